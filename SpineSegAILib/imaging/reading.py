"""Reading images: NIfTI, NRRD, MetaImage, DICOM files and series, pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError, is_out_of_memory
from ..files import check_name
from . import dicom, dicom_headers, pictures
from .checks import check_image, check_spacing, refuse_labels
from .geometry import Geometry
from .headers import Header, first_bytes, read_header, refuse_elsewhere
from .voxels import image_of


def read_image(path: str | Path, *, inline: bool = False) -> sitk.Image:
    """Read and check an image: NIfTI, NRRD, MetaImage, PNG, JPEG, a DICOM file, or a folder with one DICOM series.

    A DICOM file of an MR or CT series stands for its whole series, which is how to choose one of several in a folder.
    Pictures and radiographs become one sagittal slice (`check_image`); a picture's pixels count as 1 mm.

    What the file tells or does not tell beside voxels and geometry stays with the result (`tags`), for
    `plausibility_warnings` and for what is written on the same voxels.

    Args:
        inline: refuse a file that keeps its voxels in another one.

    Raises:
        ImageError: it is missing, damaged, of an unknown format, several series, a segmentation, or unusable
            (`check_image`).
    """
    path = Path(path)
    check_name(path, ImageError)
    if _is_folder(path):
        image = dicom.read_folder(path)
    else:
        header = _header(path, inline)
        if header is not None:
            _refuse_other_than_images(header)
        image = _read(path, header)
    refuse_labels(image, path.name)
    return check_image(image, name=path.name)


def read_file(path: str | Path, *, inline: bool = False) -> sitk.Image:
    """What an image or label file holds, as it is and unchecked: also several values per voxel, or other than three
    dimensions.

    Args:
        inline: refuse a file that keeps its voxels in another one.

    Raises:
        ImageError: it is missing, damaged, incomplete or of an unknown format.
    """
    path = Path(path)
    check_name(path, ImageError)
    if _is_folder(path):
        raise ImageError(f"{path} is a folder.", "Give a file.")
    return _read(path, _header(path, inline))


def read_geometry(path: str | Path) -> Geometry | None:
    """Where a file's voxels lie, from its header alone; None where that is not all that decides (folders, DICOM,
    pictures, files that are not three-dimensional or cannot be read)."""
    try:
        header = read_header(Path(path)) if Path(path).is_file() else None
        if header is None or len(header.size) != 3:
            return None
        check_spacing(header.spacing or (1.0,), "It")
    except (OSError, ImageError):
        return None
    direction = np.eye(3) if header.direction is None else header.direction
    (x, y, z), (a, b, c), (left, posterior, up) = header.size, header.spacing or (1.0, 1.0, 1.0), header.origin
    return Geometry((x, y, z), (a, b, c), (left, posterior, up), tuple(direction.ravel().tolist()))


def _is_folder(path: Path) -> bool:
    """Raises:
    ImageError: there is nothing, or it may not be looked at.
    """
    try:
        if not path.exists():
            raise ImageError(f"There is no file or folder {path}.", "Check the path.")
        return path.is_dir()
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}.", "Check the path and its permissions.") from None


def _header(path: Path, inline: bool) -> Header | None:
    if not path.is_file():
        raise ImageError(f"{path.name} is not a file.", "Check the path.")
    if not first_bytes(path, 1):
        raise ImageError(f"{path.name} is an empty file.", "Export or copy it again.")
    header = read_header(path)
    if inline:
        refuse_elsewhere(header)
    return header


def _read(path: Path, header: Header | None) -> sitk.Image:
    start = first_bytes(path, 256)
    try:
        if header is not None:
            return image_of(header)
        if pictures.has_signature(start):
            return pictures.read_picture(path)
        if dicom_headers.is_dicom(start):
            return dicom.read_file(path)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ImageError(f"There is not enough memory to read {path.name}.", "Close other applications.") from error
    raise ImageError(
        f"{path.name} cannot be read: it is damaged, or not an image.",
        "NIfTI, NRRD, MetaImage, PNG, JPEG and DICOM are read; export or copy the file again.",
    )


def _refuse_other_than_images(header: Header) -> None:
    """Raises:
    ImageError: the file says that it is a segmentation.
    """
    if header.path.name.lower().endswith(".seg.nrrd") or "Segment0_ID" in header.metadata:
        raise ImageError(
            f"{header.path.name} is a segmentation, not an image.", "Choose the image that it was drawn on."
        )
    if header.size and len(header.size) > 3:
        raise ImageError(
            f"The {header.path.name} has {len(header.size)} dimensions (a time series or several contrasts in one "
            "file).",
            "Export one 3D volume of it.",
        )
