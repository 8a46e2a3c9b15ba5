"""MetaImage headers (.mha, .mhd)."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from ..errors import ImageError
from .headers import Header, beside, check_size, damaged, numbers, text_lines

_LINE = re.compile(r"([A-Za-z0-9_|.\[\]()-]+) ?= ?(.*)")
_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_KNOWN = {
    "Comment", "ObjectType", "ObjectSubType", "TransformType", "NDims", "Name", "ID", "ParentID", "Color", "BinaryData",
    "BinaryDataByteOrderMSB", "ElementByteOrderMSB", "CompressedData", "CompressedDataSize", "CompressionLevel",
    "TransformMatrix", "Rotation", "Orientation", "Offset", "Origin", "Position", "CenterOfRotation", "DistanceUnits",
    "AnatomicalOrientation", "ElementSpacing", "ElementSize", "DimSize", "HeaderSize", "HeaderSizePerSlice", "Modality",
    "SequenceID", "ElementMin", "ElementMax", "ElementNumberOfChannels", "ElementToIntensityFunctionSlope",
    "ElementToIntensityFunctionOffset", "ElementType", "ElementDataFile", "AcquisitionDate",
}  # fmt: skip
_LOWER = {key.lower(): key for key in _KNOWN}


def is_metaimage(path: Path, start: bytes) -> bool:
    """Whether a file is a MetaImage, by its name or as it begins."""
    return path.suffix.lower() in (".mha", ".mhd") or re.match(rb"(ObjectType|NDims|Comment) ?=", start) is not None


def read(path: Path) -> Header:
    """The header of a MetaImage file.

    Raises:
        ImageError: see `headers.read_header`.
    """
    lines, offset = text_lines(path, b"ElementDataFile")
    fields, metadata = _parsed(path, lines)
    try:
        (n,) = numbers(path, "NDims", fields["NDims"], 1, int)
        if not 2 <= n <= 5:
            raise damaged(path, f"it has {n} dimensions")
        size = tuple(numbers(path, "DimSize", fields["DimSize"], n, int))
        kind, data_file = fields["ElementType"], fields["ElementDataFile"]
    except KeyError as error:
        raise damaged(path, f"it has no field {error}") from None
    check_size(size, path.name)
    (components,) = numbers(path, "channels", fields.get("ElementNumberOfChannels", "1"), 1, int)
    if components < 1:
        raise damaged(path, f"it has {components} channels")
    if fields.get("ObjectType", "Image") != "Image":
        raise ImageError(f"{path.name} holds a “{fields['ObjectType'][:40]}”, not an image.", "Choose an image.")
    if kind not in _TYPES:
        raise ImageError(f"The voxels of {path.name} are of a type that is not supported ({kind}).", "Save it again.")
    if not _flag(path, fields, "BinaryData", default=True):
        raise ImageError(f"The voxels of {path.name} are stored as text, which is not supported.", "Save it again.")
    msb = "ElementByteOrderMSB" if "ElementByteOrderMSB" in fields else "BinaryDataByteOrderMSB"
    order = ">" if _flag(path, fields, msb, default=False) else "<"
    compressed = _flag(path, fields, "CompressedData", default=False)
    (skipped,) = numbers(path, "HeaderSize", fields.get("HeaderSize", "0"), 1, int)
    data, dtype = path, np.dtype(order + _TYPES[kind])
    if data_file != "LOCAL":
        data, offset = beside(path, data_file), skipped
        if skipped == -1:
            offset = data.stat().st_size - math.prod(size) * components * dtype.itemsize
    if skipped < -1 or (skipped and data == path) or (skipped == -1 and compressed):
        raise damaged(path, f"its HeaderSize is {skipped}")
    matrix = _first(path, fields, ("TransformMatrix", "Rotation", "Orientation"), n * n)
    origin = _first(path, fields, ("Offset", "Origin", "Position"), n)
    spacing = _first(path, fields, ("ElementSpacing", "ElementSize"), n)
    if spacing is not None and not all(math.isfinite(s) and s for s in spacing):
        spacing = None
    return Header(
        path=path,
        kind="metaimage",
        size=size,
        components=components,
        dtype=dtype,
        data=data,
        offset=offset,
        compressed=compressed,
        spacing=None if spacing is None else tuple(spacing),
        origin=tuple(origin or (0.0,) * n),
        direction=None if matrix is None else np.reshape(matrix, (n, n)).T,
        metadata=metadata,
    )


def _parsed(path: Path, lines: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Fields, and the file's own keys."""
    fields: dict[str, str] = {}
    metadata: dict[str, str] = {}
    for line in lines:
        match = _LINE.fullmatch(line)
        if not match:
            raise damaged(path, f"the line “{line[:40]}” is not understood")
        key, value = match[1], match[2].strip()
        if key not in _KNOWN and key.lower() in _LOWER:
            raise damaged(path, f"“{key}” should be “{_LOWER[key.lower()]}”")
        if key not in _KNOWN:
            metadata[key] = value
        elif key in fields:
            raise damaged(path, f"“{key}” is there twice")
        else:
            fields[key] = value
    return fields, metadata


def _flag(path: Path, fields: dict[str, str], key: str, *, default: bool) -> bool:
    value = fields.get(key, str(default)).lower()
    if value not in ("true", "false", "0", "1"):
        raise damaged(path, f"“{key}” is “{value[:20]}”")
    return value in ("true", "1")


def _first(path: Path, fields: dict[str, str], keys: tuple[str, ...], count: int) -> list[float] | None:
    """The numbers of the first of these fields that is there."""
    return next((numbers(path, key, fields[key], count) for key in keys if key in fields), None)
