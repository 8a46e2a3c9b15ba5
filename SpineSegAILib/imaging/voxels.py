"""The voxels that a header announces, all of them or an error."""

from __future__ import annotations

import math
import zlib
from contextlib import closing

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError
from .checks import check_spacing
from .headers import Header, in_words, inflated, not_readable
from .tags import FORMS_TAG, NOTES_TAG, ORIENTATION_UNKNOWN_TAG, SCALE_UNKNOWN_TAG, add_notes

_MOST_INFLATED = 1032
"""Times as many bytes as it takes itself a stream of zlib or gzip holds at most."""


def image_of(header: Header) -> sitk.Image:
    """The image that a header describes, unchecked but for its geometry.

    Raises:
        ImageError: voxels are missing or damaged, or the geometry is none.
    """
    n = len(header.size)
    spacing = header.spacing or (1.0,) * n
    check_spacing(spacing[:3], header.path.name)
    if not np.isfinite(header.origin).all():
        raise ImageError(
            f"The header of {header.path.name} is damaged: its origin is not a position.", "Export it again."
        )
    shape = header.size[::-1]
    if header.components > 1:
        shape = (*shape, header.components) if header.interleaved else (header.components, *shape)
    array = _rescaled(header, _stored(header).reshape(shape))
    if header.components > 1 and not header.interleaved:
        array = np.moveaxis(array, 0, -1)
    image = sitk.GetImageFromArray(array, isVector=header.components > 1)
    image.SetSpacing(spacing)
    image.SetOrigin(header.origin)
    if header.direction is not None:
        if not abs(np.linalg.det(header.direction)) > 1e-6:
            raise ImageError(f"The axes of {header.path.name} are not perpendicular.", "Export it again.")
        image.SetDirection(header.direction.ravel().tolist())
    for key, value in header.metadata.items():
        if key not in (FORMS_TAG, NOTES_TAG):
            image.SetMetaData(key, value)
    add_notes(image, header.notes)
    if header.direction is None and n == 3:
        image.SetMetaData(ORIENTATION_UNKNOWN_TAG, "1")
    if header.spacing is None:
        image.SetMetaData(SCALE_UNKNOWN_TAG, "1")
    if header.forms:
        image.SetMetaData(FORMS_TAG, header.forms)
    return image


def _stored(header: Header) -> np.ndarray:
    """(n,) the numbers as the file has them."""
    needed = header.values * header.dtype.itemsize
    try:
        held = header.data.stat().st_size * (_MOST_INFLATED if header.compressed else 1)
    except OSError as error:
        raise not_readable(header.data, error) from None
    bytes_ = np.empty(min(needed, held), np.uint8)  # not more than the file can fill, whatever its header claims
    memory = memoryview(bytes_)
    try:
        filled = _inflate(header, memory) if header.compressed else _read(header, memory)
    except zlib.error:
        raise ImageError(
            f"{header.path.name} cannot be read: its compressed voxels are damaged.", "Copy or export it again."
        ) from None
    except OSError as error:
        raise not_readable(header.data, error) from None
    if filled < needed:
        row = math.prod(header.size[:-1]) * header.components * header.dtype.itemsize
        raise ImageError(
            f"{header.path.name} cannot be read: it is incomplete. Of {in_words(header.size)} voxels it "
            f"holds {filled // row} of {header.size[-1]} slices.",
            "Export or copy it again.",
        )
    return bytes_.view(header.dtype)


def _read(header: Header, memory: memoryview) -> int:
    """Fills the memory; returns how many bytes were there."""
    filled = 0
    with header.data.open("rb") as file:
        file.seek(header.offset)
        while filled < len(memory) and (count := file.readinto(memory[filled:])):
            filled += count
    return filled


def _inflate(header: Header, memory: memoryview) -> int:
    """The same, out of a compressed file; all of it is read, for the checksum at its end."""
    inside = header.offset if header.kind == "nifti" else 0  # bytes before the voxels, once decompressed
    filled = 0
    try:
        with closing(inflated(header.data, header.offset - inside)) as pieces:
            for piece in pieces:
                dropped = min(inside, len(piece))
                inside -= dropped
                part = memoryview(piece)[dropped : dropped + len(memory) - filled]
                memory[filled : filled + len(part)] = part
                filled += len(part)
    except EOFError:
        return min(filled, len(memory) - 1)  # what is there may be right, and is not known to be
    return filled


def _rescaled(header: Header, values: np.ndarray) -> np.ndarray:
    """In the machine's byte order and in the units that the header gives."""
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if (header.slope, header.intercept) == (1.0, 0.0):
        return values
    result = np.empty(values.shape, np.float64 if values.dtype == np.float64 else np.float32)
    for place, part in zip(result, values, strict=True):  # with double precision, a slice at a time
        place[...] = part * np.float64(header.slope) + np.float64(header.intercept)
    return result
