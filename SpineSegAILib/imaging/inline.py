"""NRRD and MetaImage files from elsewhere, opened so that nothing but the file itself is read.

Both formats may name another file as their voxels, and readers accept more spellings of that than any search finds. So
a header is parsed by a strict grammar, what that does not know is refused, and ITK gets a copy whose header is written
anew from the values that were understood: no comments, no lines of anybody else's, no length that it did not expect.
"""

from __future__ import annotations

import gzip
import math
import re
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..errors import ImageError

MAX_VOXELS = 2**30
"""Of a volume: a whole-body CT at half a millimetre. More is a damaged header, or an attack."""
MAX_HEADER_BYTES = 16 * 2**20
"""A segmentation with a long correction log has some hundred kilobytes."""

_LONGEST_FIELD = 1000  # characters; ITK's NRRD reader ends the process over longer ones
_NOT_TEXT = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")  # a lone carriage return among them
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Header:
    """What the header of an NRRD or MetaImage file says.

    Attributes:
        fields: the format's own fields, by their usual names.
        keys: key → value of the pairs that programs add to an NRRD file, as they stand there (`unescaped`).
        size: voxels along each axis, the fastest first; layers of an NRRD file are an axis.
        bytes: of all voxels.
        offset: where they begin in the file.
        compressed: whether they are a gzip or zlib stream.
    """

    fields: Mapping[str, str]
    keys: Mapping[str, str]
    size: tuple[int, ...]
    bytes: int
    offset: int
    compressed: bool


@contextmanager
def inline_copy(path: Path) -> Iterator[Path]:
    """A file that ITK may open without opening another: of an NRRD or MetaImage file a copy with a clean header and
    uncompressed voxels, any other file itself.

    Raises:
        ImageError: the header is damaged, or not of the plain form that programs write; the voxels are in another file,
            incomplete, or too many.
    """
    form = _FORMATS.get(path.suffix.lower())
    if form is None:
        _refuse_pair(path)
        yield path
        return
    read, written = form
    header = read(path)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / copy_name(path)
        with path.open("rb") as source, copy.open("wb") as target:
            target.write(written(header))
            source.seek(header.offset)
            left = header.bytes
            for chunk in _inflated(source) if header.compressed else iter(lambda: source.read(_CHUNK), b""):
                target.write(chunk[:left])
                left -= min(len(chunk), left)
                if not left:
                    break
        if left:
            raise ImageError(f"{path.name} is damaged or incomplete.", "Copy or save it again.")
        yield copy


def copy_name(path: Path) -> str:
    """What `inline_copy` calls its copy: whatever the file is called, ITK can open that."""
    return f"image{path.suffix.lower()}"


def read_nrrd_header(path: Path) -> Header:
    """The header of an NRRD file that holds its own voxels.

    Raises:
        ImageError: see `inline_copy`.
    """
    lines, offset = _lines(path, lambda line: not line)
    if not re.fullmatch("NRRD000[1-5]", lines[0]):
        raise _damaged(path)
    fields: dict[str, str] = {}
    keys: dict[str, str] = {}
    for line in lines[1:-1]:
        if line.startswith("#"):
            continue
        name, pair, value = line.partition(":=")
        if pair and ": " not in name:
            keys[name] = value
            continue
        name, _, value = line.partition(": ")
        name = _NRRD_ALIASES.get(name.lower(), name.lower())
        if name in ("data file", "datafile"):
            raise _detached(path)
        if name in fields or name not in {*_NRRD_FIELDS, *_NRRD_DROPPED}:
            raise _damaged(path)
        fields[name] = value.strip()
    if any(fields.get(skip, "0") != "0" for skip in ("line skip", "byte skip")):
        raise _damaged(path)
    _check(fields, _NRRD_FIELDS, ("type", "dimension", "sizes", "encoding"), path)
    size = _checked_size(fields["sizes"], fields["dimension"], path)
    count = math.prod(size) * _NRRD_TYPES[fields["type"]]
    return Header(fields, keys, size, count, offset, fields["encoding"] != "raw")


def read_meta_header(path: Path) -> Header:
    """The header of a MetaImage file (.mha) that holds its own voxels.

    Raises:
        ImageError: see `inline_copy`.
    """
    lines, offset = _lines(path, lambda line: line.startswith("ElementDataFile"))
    fields: dict[str, str] = {}
    for line in lines:
        match = re.fullmatch(r"([A-Za-z]\w*) = ?(.*)", line)
        if match is None or match[1] in fields:
            raise _damaged(path)
        fields[match[1]] = match[2].strip()
    if fields.get("ElementDataFile") != "LOCAL":
        raise _detached(path)
    if fields.get("HeaderSize", "0") != "0":
        raise _damaged(path)
    _check(fields, _META_FIELDS, ("NDims", "DimSize", "ElementType"), path)
    channels = int(fields.get("ElementNumberOfChannels", "1"))
    size = _checked_size(fields["DimSize"], fields["NDims"], path, channels)
    count = channels * math.prod(size) * _META_TYPES[fields["ElementType"]]
    return Header(fields, {}, size, count, offset, fields.get("CompressedData") == "True")


def unescaped(value: str) -> str:
    """A value of `Header.keys` as 3D Slicer writes it: with line breaks and backslashes after a backslash."""
    return re.sub(r"\\([n\\])", lambda match: "\n" if match[1] == "n" else "\\", value)


# --- lines and voxels ------------------------------------------------------------------------------------------------


def _lines(path: Path, is_last: Callable[[str], bool]) -> tuple[list[str], int]:
    """The header's lines up to its last one, and where the voxels begin. Lines end as on Unix or as on Windows."""
    lines: list[str] = []
    offset = 0
    with path.open("rb") as file:
        while offset < MAX_HEADER_BYTES:
            raw = file.readline(MAX_HEADER_BYTES)
            offset += len(raw)
            line = raw.removesuffix(b"\n").removesuffix(b"\r")
            if not raw.endswith(b"\n") or _NOT_TEXT.search(line):
                break
            try:
                lines.append(line.decode("utf-8"))
            except UnicodeDecodeError:
                lines.append(line.decode("latin-1"))
            if is_last(lines[-1]):
                return lines, offset
    raise _damaged(path)


def _inflated(file: BinaryIO) -> Iterator[bytes]:
    """Pieces of what was compressed with gzip or zlib, up to where it ends or is damaged."""
    rest = b""
    while piece := rest or file.read(_CHUNK):
        stream = zlib.decompressobj(zlib.MAX_WBITS | 32)  # either of the two
        try:
            while not stream.eof and piece:
                yield stream.decompress(piece, _CHUNK)
                piece = stream.unconsumed_tail or file.read(_CHUNK)
            yield stream.flush()
        except zlib.error:
            return
        rest = stream.unused_data


def _check(fields: Mapping[str, str], forms: Mapping[str, str], needed: tuple[str, ...], path: Path) -> None:
    for name in {*needed, *fields}:
        value = fields.get(name, "")
        if name in forms and (len(value) > _LONGEST_FIELD or not re.fullmatch(forms[name], value, re.ASCII)):
            raise _damaged(path)


def _checked_size(sizes: str, dimensions: str, path: Path, channels: int = 1) -> tuple[int, ...]:
    size = tuple(int(n) for n in sizes.split())
    if len(size) != int(dimensions):
        raise _damaged(path)
    if channels * math.prod(size) > MAX_VOXELS:
        raise ImageError(
            f"{path.name} has {' × '.join(map(str, size))} voxels, which is more than a computer can take at once.",
            "Crop it in Slicer.",
        )
    return size


def _damaged(path: Path) -> ImageError:
    return ImageError(
        f"The header of {path.name} is damaged, or not written as usual.", "Save the file again with 3D Slicer."
    )


def _detached(path: Path) -> ImageError:
    return ImageError(f"{path.name} keeps its voxels in another file.", "Save it as one .nrrd file.")


def _refuse_pair(path: Path) -> None:
    """A NIfTI file may be the header of a pair, whose voxels are in a file beside it."""
    name = path.name.lower()
    if not name.endswith((".nii", ".nii.gz")):
        return
    try:
        with gzip.open(path) if name.endswith(".gz") else path.open("rb") as file:
            header = file.read(348)
    except (OSError, EOFError, zlib.error):
        return  # whoever reads it says what is wrong
    if header[344:348].rstrip(b"\0") == b"ni1":
        raise _detached(path)


# --- the two formats: fields that are passed on, and what their values look like -------------------------------------

_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_NUMBERS = rf"{_NUMBER}(?: +{_NUMBER})*"
_AXES = rf"(?:{_NUMBER}|[nN]a[nN])(?: +(?:{_NUMBER}|[nN]a[nN]))*"
_VECTOR = rf"\({_NUMBER}(?:, ?{_NUMBER})*\)"
_COUNTS = r"[1-9]\d{0,9}(?: +[1-9]\d{0,9}){0,3}"

_NRRD_TYPES: Mapping[str, int] = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(
        ("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t", "float"), 4
    ),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "signed long long int"), 8),
    **dict.fromkeys(("int64", "int64_t", "ulonglong", "unsigned long long", "unsigned long long int"), 8),
    **dict.fromkeys(("uint64", "uint64_t", "double"), 8),
}
_NRRD_ALIASES = {"axis maxes": "axis maxs", "centerings": "centers", "datafile": "data file", "axismins": "axis mins"}
_NRRD_FIELDS: Mapping[str, str] = {
    "type": "|".join(_NRRD_TYPES),
    "dimension": "[1-4]",
    "space": r"[A-Za-z0-9-]+",
    "space dimension": "[1-3]",
    "sizes": _COUNTS,
    "spacings": _AXES,
    "axis mins": _AXES,
    "space directions": rf"(?:none|{_VECTOR})(?: +(?:none|{_VECTOR}))*",
    "kinds": r"[\w?-]+(?: +[\w?-]+)*",
    "endian": "little|big",
    "encoding": "raw|gzip|gz",
    "space origin": _VECTOR,
}
_NRRD_DROPPED = (
    *("axis maxs", "byte skip", "centers", "content", "labels", "line skip", "max", "measurement frame", "min"),
    *("number", "old max", "old min", "sample units", "space units", "thicknesses", "units"),
)
_META_TYPES: Mapping[str, int] = {
    **dict.fromkeys(("MET_CHAR", "MET_UCHAR"), 1),
    **dict.fromkeys(("MET_SHORT", "MET_USHORT"), 2),
    **dict.fromkeys(("MET_INT", "MET_UINT", "MET_FLOAT"), 4),
    **dict.fromkeys(("MET_LONG_LONG", "MET_ULONG_LONG", "MET_DOUBLE"), 8),
}
_META_FIELDS: Mapping[str, str] = {
    "ObjectType": "Image",
    "NDims": "[1-4]",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "True|False",
    "ElementByteOrderMSB": "True|False",
    "CompressedData": "True|False",
    **dict.fromkeys(("TransformMatrix", "Rotation", "Orientation", "Offset", "Position", "Origin"), _NUMBERS),
    "CenterOfRotation": _NUMBERS,
    "AnatomicalOrientation": "[A-Za-z?]{1,4}",
    "ElementSpacing": _NUMBERS,
    "ElementSize": _NUMBERS,
    "DimSize": _COUNTS,
    "ElementNumberOfChannels": r"[1-9]\d{0,3}",
    "ElementType": "|".join(_META_TYPES),
}


def _nrrd_header(header: Header) -> bytes:
    fields = {**header.fields, "encoding": "raw"}
    lines = [f"{name}: {fields[name]}" for name in _NRRD_FIELDS if name in fields]
    return "\n".join(["NRRD0004", *lines, "", ""]).encode("ascii")


def _meta_header(header: Header) -> bytes:
    fields = {**header.fields, "CompressedData": "False"}
    lines = [f"{name} = {fields[name]}" for name in _META_FIELDS if name in fields]
    return "\n".join([*lines, "ElementDataFile = LOCAL", ""]).encode("ascii")


_FORMATS: Mapping[str, tuple[Callable[[Path], Header], Callable[[Header], bytes]]] = {
    **dict.fromkeys((".nrrd", ".nhdr"), (read_nrrd_header, _nrrd_header)),
    **dict.fromkeys((".mha", ".mhd"), (read_meta_header, _meta_header)),
}
