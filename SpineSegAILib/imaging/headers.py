"""Headers of image files, read strictly and by ourselves.

What a foreign file says is checked before memory is taken for it, and no other file is opened because it says so.

NIfTI-1, NRRD and MetaImage are read here and in the modules beside this one; DICOM and pictures have their own.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import ImageError

MAX_VOXELS = 2**30
"""Of an image: a whole-body CT at half a millimeter. More is a damaged header, or an attack."""
LONGEST_HEADER = 2**24
"""Bytes; the largest real ones are those of segmentations, with all that is known of each segment."""

Kind = Literal["nifti", "nrrd", "metaimage"]

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Header:
    """What a file says about its voxels.

    Attributes:
        path: the file.
        kind: its format.
        size: voxels along each axis, the fastest first.
        components: values per voxel.
        interleaved: whether the values of a voxel lie together, else each has a volume of its own.
        dtype: of a value in the file, with its byte order.
        data: the file that holds the voxels: `path`, or one beside it.
        offset: bytes before the voxels; after decompression in NIfTI, before it in the other formats.
        compressed: with zlib or gzip.
        spacing: mm along each axis; None where the file does not say.
        origin: LPS, mm.
        direction: (n, n) direction cosines in LPS; columns are the axes. None where the file does not say.
        slope, intercept: value = slope × stored + intercept.
        metadata: what else is kept with the image, as ITK's metadata.
        forms: of NIfTI; see `nifti.Forms`.
        notes: sentences for the reader of a result.
    """

    path: Path
    kind: Kind
    size: tuple[int, ...]
    dtype: np.dtype
    data: Path
    offset: int
    compressed: bool
    components: int = 1
    interleaved: bool = True
    spacing: tuple[float, ...] | None = None
    origin: tuple[float, ...] = ()
    direction: np.ndarray | None = None
    slope: float = 1.0
    intercept: float = 0.0
    metadata: Mapping[str, str] = field(default_factory=dict)
    forms: str = ""
    notes: tuple[str, ...] = ()

    @property
    def values(self) -> int:
        """How many numbers the voxels are."""
        return math.prod(self.size) * self.components

    @property
    def is_inline(self) -> bool:
        """Whether the file holds its own voxels."""
        return self.data == self.path


def read_header(path: Path) -> Header | None:
    """The header of a NIfTI-1, NRRD or MetaImage file; None for other files.

    Raises:
        ImageError: the file calls itself one of them and its header is damaged, or of a kind that is not supported.
    """
    from . import metaimage, nifti, nrrd

    start = first_bytes(path, 1024)
    if start.startswith(b"\xef\xbb\xbf") and (start[3:7] == b"NRRD" or b"=" in start[:200]):
        raise ImageError(
            f"{path.name} cannot be read: it begins with a byte-order mark, as a text editor leaves it.",
            "Use the original file.",
        )
    if start.startswith(b"\x1f\x8b"):
        header = nifti.read_compressed(path)
    elif start.startswith(b"NRRD"):
        header = nrrd.read(path)
    elif nifti.is_nifti(start):
        header = nifti.read(path, start)
    elif metaimage.is_metaimage(path, start):
        header = metaimage.read(path)
    else:
        return None
    check_size(header.size, path.name, header.components)
    return header


def check_inline(path: str | Path) -> None:
    """Checks that an NRRD or MetaImage file holds its own voxels, whichever program reads it.

    Only plain headers pass: each line is one that the format's definition knows, and none could be read otherwise by a
    more tolerant reader. Files of other formats pass, as they cannot name another file.

    Raises:
        ImageError: it names another file, or might.
    """
    refuse_elsewhere(read_header(Path(path)))


def refuse_elsewhere(header: Header | None) -> None:
    """Raises:
    ImageError: the header names another file as the one with the voxels.
    """
    if header is not None and not header.is_inline:
        raise ImageError(f"{header.path.name} keeps its voxels in another file.", "Save it as one file, e.g. .nrrd.")


def check_size(size: tuple[int, ...], name: str, components: int = 1) -> None:
    """Checks that an image has voxels, and not more than `MAX_VOXELS`.

    Raises:
        ImageError: it does not.
    """
    if min(size) < 1:
        raise ImageError(f"{name} is empty: its header says {in_words(size)} voxels.", "Choose another image.")
    if math.prod(size) * components > MAX_VOXELS:
        raise ImageError(
            f"{name} has {in_words(size)} voxels by its header, more than can be read at once.",
            "If it is that large, crop it first; else the header is damaged: export the file again.",
        )


def in_words(size: tuple[int, ...]) -> str:
    """``"512 × 512 × 20"``."""
    return " × ".join(str(n) for n in size)


def first_bytes(path: Path, count: int) -> bytes:
    """The beginning of a file.

    Raises:
        ImageError: it cannot be opened.
    """
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise not_readable(path, error) from None


def not_readable(path: Path, error: OSError) -> ImageError:
    """What the operating system says about a path, in words."""
    return ImageError(f"{path.name} cannot be read: {error.strerror}.", "Check the file and its permissions.")


def text_lines(path: Path, end: bytes) -> tuple[list[str], int]:
    """Lines of a text header, and the offset of what follows.

    Args:
        end: what the header's last line begins with; nothing for headers that an empty line or the file's end closes.

    Raises:
        ImageError: line ends that readers take differently, bytes that are not text, or no end.
    """
    lines: list[str] = []
    offset = 0
    try:
        with path.open("rb") as file:
            while offset < LONGEST_HEADER:
                line = file.readline(LONGEST_HEADER)
                if not line and not end:
                    return lines, offset
                if not line.endswith(b"\n"):
                    break
                offset += len(line)
                content = line[:-2] if line.endswith(b"\r\n") else line[:-1]
                if b"\r" in content or b"\0" in content:
                    break
                lines.append(content.decode("utf-8", "replace"))
                if content.startswith(end) if end else not content:
                    return lines, offset
    except OSError as error:
        raise not_readable(path, error) from None
    raise ImageError(
        f"{path.name} cannot be read: its header is damaged (it has no end, or line ends of several kinds).",
        "Export the file again.",
    )


def damaged(path: Path, what: str) -> ImageError:
    """A header that cannot be understood."""
    return ImageError(f"{path.name} cannot be read: its header is damaged ({what}).", "Export the file again.")


def beside(path: Path, name: str) -> Path:
    """The data file that a header names.

    Raises:
        ImageError: it does not lie beside the header.
    """
    data = path.parent / name
    if not name or name != data.name or name in (".", ".."):
        raise ImageError(
            f"{path.name} keeps its voxels in another file, “{name}”, that is not one beside it.",
            "Save it as one file, e.g. .nrrd.",
        )
    if not data.is_file():
        raise ImageError(
            f"{path.name} keeps its voxels in another file, {name}, that is not there.", "Copy both files."
        )
    return data


def numbers(path: Path, name: str, text: str, count: int, kind: type = float) -> list:
    """Numbers of a text header's field.

    Raises:
        ImageError: there are not as many, or they are not numbers.
    """
    words = text.split()
    try:
        found = [kind(word) for word in words]
    except ValueError:
        found = []
    if len(found) != count or len(words) != count:
        raise damaged(path, f"“{name}” is “{text[:60]}”")
    return found


def inflated(path: Path, offset: int = 0) -> Generator[bytes, None, None]:
    """What a file compressed with gzip or zlib holds, in pieces of at most a megabyte.

    Raises:
        zlib.error: it is damaged.
        EOFError: it is cut off.
    """
    with path.open("rb") as file:
        file.seek(offset)
        rest = file.read(_CHUNK)
        while rest:
            stream = zlib.decompressobj(47)  # either, with its checksum
            while not stream.eof:
                rest = rest or file.read(_CHUNK)
                piece = stream.decompress(rest, _CHUNK)
                if not rest and not piece and not stream.eof:
                    raise EOFError
                yield piece
                rest = stream.unconsumed_tail
            rest = (stream.unused_data or file.read(_CHUNK)).lstrip(b"\0")  # another member, or zeros that fill a block
            if not rest.startswith(b"\x1f\x8b"):
                return
