"""Pictures: PNG, JPEG, BMP and TIFF, as one gray slice."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError
from .headers import check_size
from .tags import MODALITY_TAG, PICTURE, SCALE_UNKNOWN_TAG

if TYPE_CHECKING:
    from PIL import Image

_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*")
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
_GRAY_TOLERANCE = 20
"""JPEG stores colors coarsely: the channels of a gray picture saved in it were seen to differ by up to 16 of 255."""


def has_signature(start: bytes) -> bool:
    """Whether a file begins like a picture."""
    return start.startswith(_SIGNATURES)


def read_picture(path: Path) -> sitk.Image:
    """A picture as a 2D image with pixels of 1 mm, turned as it is to be seen (EXIF).

    It is gray if it shows nothing but gray.

    Raises:
        ImageError: it is damaged, incomplete, too large, or several in one file.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path, formats=_FORMATS) as picture:
            check_size(picture.size, path.name)
            count = getattr(picture, "n_frames", 1)
            if count > 1:
                raise ImageError(
                    f"{path.name} holds {count} pictures.",
                    "Save one of them, or the volume as NIfTI or NRRD.",
                )
            array = _values(ImageOps.exif_transpose(picture))
    except Image.DecompressionBombError:
        raise ImageError(f"{path.name} is larger than any film.", "Make it smaller.") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, OverflowError) as error:
        raise ImageError(
            f"{path.name} cannot be read: it is damaged, incomplete, or of a kind that is not supported.",
            "Save it again as PNG.",
        ) from error
    image = sitk.GetImageFromArray(array, isVector=array.ndim == 3)
    image.SetMetaData(MODALITY_TAG, PICTURE)
    image.SetMetaData(SCALE_UNKNOWN_TAG, "1")  # what pictures say about their resolution is the printer's
    return image


def _values(picture: Image.Image) -> np.ndarray:
    """(rows, columns), or (rows, columns, 3) of a picture in color; what is transparent counts as it is."""
    if picture.mode in ("LA", "1"):
        picture = picture.convert("L")
    elif picture.mode not in ("L", "I", "F") and not picture.mode.startswith("I;16"):
        picture = picture.convert("RGB")
    array = np.array(picture)
    if array.ndim < 3:
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    same = np.ptp(array.astype(np.int16), axis=-1).max() <= _GRAY_TOLERANCE
    return np.ascontiguousarray(array[..., 0]) if same else array
