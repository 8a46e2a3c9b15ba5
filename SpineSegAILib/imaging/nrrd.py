"""NRRD headers (http://teem.sourceforge.net/nrrd/format.html)."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import ImageError
from .headers import Header, beside, check_size, damaged, numbers, text_lines

_MAGIC = re.compile(r"NRRD000[1-5]")
_FIELD = re.compile(r"([a-z][a-z ]*): +(.*?) *")
_KEY = re.compile(r"((?:[^:\\]|\\.|:(?!=))+):=(.*)")
_SYNONYMS = {
    "axismins": "axis mins", "axismaxs": "axis maxs", "centerings": "centers", "oldmin": "old min", "oldmax": "old max",
    "datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip", "blocksize": "block size",
}  # fmt: skip
_FIELDS = {
    "content", "number", "type", "block size", "dimension", "space", "space dimension", "sizes", "spacings",
    "thicknesses", "axis mins", "axis maxs", "space directions", "centers", "kinds", "labels", "units", "min", "max",
    "old min", "old max", "endian", "encoding", "line skip", "byte skip", "sample units", "space units", "space origin",
    "measurement frame", "data file",
}  # fmt: skip
_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": (
        "longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"
    ),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}  # fmt: skip
_DTYPES = {name: code for code, names in _TYPES.items() for name in names}
_TO_LPS = {
    "right-anterior-superior": (-1, -1, 1), "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1), "las": (1, -1, 1),
    "left-posterior-superior": (1, 1, 1), "lps": (1, 1, 1),
}  # fmt: skip
_SPATIAL = {"domain", "space", "none", "???"}


def read(path: Path) -> Header:
    """The header of an NRRD file.

    Raises:
        ImageError: see `headers.read_header`.
    """
    lines, offset = text_lines(path, b"")
    fields, metadata = _parsed(path, lines)
    try:
        dimension = int(fields["dimension"])
        sizes = tuple(numbers(path, "sizes", fields["sizes"], dimension, int))
        name, encoding = fields["type"].lower(), fields["encoding"].lower()
    except KeyError as error:
        raise damaged(path, f"it has no field {error}") from None
    except ValueError:
        raise damaged(path, "its dimension is not a number") from None
    if not 1 <= dimension <= 16:
        raise damaged(path, f"it has {dimension} dimensions")
    check_size(sizes, path.name)
    if name not in _DTYPES:
        raise ImageError(f"The voxels of {path.name} are of a type that is not supported ({name}).", "Save it again.")
    if encoding not in ("raw", "gzip", "gz"):
        raise ImageError(
            f"The voxels of {path.name} are encoded as {encoding}, which is not supported.",
            "Save it again with or without compression in Slicer.",
        )
    dtype = np.dtype(_DTYPES[name])
    if dtype.itemsize > 1:
        endian = fields.get("endian", "").lower()
        if endian not in ("little", "big"):
            raise damaged(path, "it does not tell the order of bytes (endian)")
        dtype = np.dtype(("<" if endian == "little" else ">") + _DTYPES[name])
    data, skipped = path, _skipped(path, fields)
    if "data file" in fields:
        data, offset = beside(path, fields["data file"]), 0
    elif lines[-1]:
        raise damaged(path, "it has no end")
    if skipped and encoding != "raw":
        raise ImageError(f"{path.name} skips bytes of compressed data, which is not supported.", "Save it again.")
    if skipped == -1:
        offset = data.stat().st_size - math.prod(sizes) * dtype.itemsize
    else:
        offset += skipped
    return _oriented(
        path,
        fields,
        sizes,
        Header(
            path=path,
            kind="nrrd",
            size=sizes,
            dtype=dtype,
            data=data,
            offset=offset,
            compressed=encoding != "raw",
            metadata=metadata,
        ),
    )


def _parsed(path: Path, lines: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Fields, and the file's own keys."""
    if not _MAGIC.fullmatch(lines[0]):
        raise damaged(path, f"it begins with “{lines[0][:20]}”")
    fields: dict[str, str] = {}
    metadata: dict[str, str] = {}
    for line in lines[1:]:
        if not line or line.startswith("#"):
            continue
        field, key = _FIELD.fullmatch(line), _KEY.fullmatch(line)
        name = field[1].lower() if field else ""
        name = _SYNONYMS.get(name, name)
        if field and name in _FIELDS:
            if name in fields:
                raise damaged(path, f"“{name}” is there twice")
            fields[name] = field[2]
        elif key:
            metadata[_unescaped(key[1])] = _unescaped(key[2])
        else:
            raise damaged(path, f"the line “{line[:40]}” is not understood")
    return fields, metadata


def _unescaped(text: str) -> str:
    """With line breaks and backslashes, which stand after a backslash in the file."""
    return re.sub(r"\\([n\\])", lambda match: "\n" if match[1] == "n" else "\\", text)


def _skipped(path: Path, fields: dict[str, str]) -> int:
    """Bytes between header and voxels; -1 where the voxels are the end of the file."""
    if int(numbers(path, "line skip", fields.get("line skip", "0"), 1, int)[0]):
        raise ImageError(f"{path.name} skips lines before its voxels, which is not supported.", "Save it again.")
    (skipped,) = numbers(path, "byte skip", fields.get("byte skip", "0"), 1, int)
    if skipped < -1:
        raise damaged(path, f"its voxels would begin {-skipped} bytes before they do")
    return skipped


def _oriented(path: Path, fields: dict[str, str], sizes: tuple[int, ...], header: Header) -> Header:
    """The header with its axes: those in space, and at most one along which a voxel's values lie."""
    dimension = len(sizes)
    kinds = fields.get("kinds", "").lower().split()
    if kinds and len(kinds) != dimension:
        raise damaged(path, f"it has {len(kinds)} kinds of {dimension} axes")
    vectors = _vectors(path, fields["space directions"], dimension) if "space directions" in fields else None
    if vectors is not None:
        inside = [vector is not None for vector in vectors]
    else:
        inside = [not kinds or kinds[axis] in _SPATIAL for axis in range(dimension)]
    ranges = [axis for axis in range(dimension) if not inside[axis]]
    while len(ranges) > 1 and sizes[ranges[-1]] == 1:
        ranges.pop()
    if len(ranges) > 1 or (ranges and ranges[0] not in (0, dimension - 1)):
        raise ImageError(f"{path.name} has {len(ranges)} axes that are not in space.", "Export one 3D volume of it.")
    space = [axis for axis in range(dimension) if inside[axis]]
    size = tuple(sizes[axis] for axis in space)
    n = len(size)
    spacing: tuple[float, ...] | None = None
    direction: np.ndarray | None = None
    origin: tuple[float, ...] = (0.0,) * n
    if vectors:
        matrix = np.array([vectors[axis] for axis in space]).T
        sign = _sign(path, fields, len(matrix))
        lengths = np.linalg.norm(matrix, axis=0)
        if not (np.isfinite(matrix).all() and lengths.all()):
            raise damaged(path, "its space directions have no length")
        spacing = tuple(lengths.tolist())
        if matrix.shape == (n, n):
            direction = sign[:, None] * matrix / lengths
            if "space origin" in fields:
                origin = tuple((sign * _vector(path, fields["space origin"], n)).tolist())
    elif "spacings" in fields:
        told = numbers(path, "spacings", fields["spacings"], dimension)
        spacing = tuple(told[axis] for axis in space)
        spacing = spacing if all(math.isfinite(s) and s for s in spacing) else None
    components = sizes[ranges[0]] if ranges else 1
    return replace(
        header,
        size=size,
        components=components,
        interleaved=not ranges or ranges[0] == 0,
        spacing=spacing,
        direction=direction,
        origin=origin,
    )


def _sign(path: Path, fields: dict[str, str], dimension: int) -> np.ndarray:
    """What the axes of the file's space are to be multiplied with to become LPS."""
    space = fields.get("space", "").lower().removesuffix("-time")
    if space in _TO_LPS and dimension == 3:
        return np.array(_TO_LPS[space], float)
    if "space" in fields and (space not in ("scanner-xyz", "3d-right-handed", "3d-left-handed") or dimension != 3):
        raise damaged(path, f"its space is “{fields['space'][:40]}”")
    return np.ones(dimension)


def _vectors(path: Path, text: str, dimension: int) -> list[np.ndarray | None]:
    words = re.findall(r"none|\([^()]*\)", text)
    if len(words) != dimension or re.sub(r"none|\([^()]*\)", "", text).strip():
        raise damaged(path, f"its space directions are “{text[:60]}”")
    given = [w for w in words if w != "none"]
    n = len(given[0].split(",")) if given else 0
    return [None if word == "none" else _vector(path, word, n) for word in words]


def _vector(path: Path, text: str, n: int) -> np.ndarray:
    return np.array(numbers(path, "vector", text.strip().removeprefix("(").removesuffix(")").replace(",", " "), n))
