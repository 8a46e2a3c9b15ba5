"""Reading images: NIfTI, NRRD, MetaImage, DICOM files and series, pictures."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError, is_out_of_memory
from ..files import itk_path
from .checks import MODALITY_TAG, PERPENDICULAR, PICTURE, RADIOGRAPHS, STACKS, check_image
from .geometry import Geometry

_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}


def read_image(path: str | Path) -> sitk.Image:
    """Read and check an image: NIfTI, NRRD, MetaImage, PNG, JPEG, a DICOM file, or a folder with one DICOM series.

    A DICOM file of an MR or CT series stands for its whole series, which is how to choose one of several in a folder.
    Pictures and radiographs become one sagittal slice (`check_image`); a picture's pixels count as 1 mm.

    The result knows the modality that DICOM told (its metadata `MODALITY_TAG`), for `plausibility_warnings`.

    Raises:
        ImageError: if it is missing, damaged, of an unknown format, several series, or unusable (`check_image`).
    """
    path = Path(path)
    if not path.exists():
        raise ImageError(f"There is no file or folder {path}.", "Check the path.")
    if path.is_dir():
        image = _read_series(_one_series(path))
    elif path.stat().st_size == 0:
        raise ImageError(f"{path.name} is an empty file.", "Export or copy it again.")
    else:
        with itk_path(path) as place:
            image = _read_file(place)
    checked = check_image(image, name=path.name)
    if image.HasMetaDataKey(MODALITY_TAG):
        checked.SetMetaData(MODALITY_TAG, image.GetMetaData(MODALITY_TAG).strip())
    return checked


def read_geometry(path: Path) -> Geometry | None:
    """Where a file's voxels lie, from its header alone; None where that is not all that decides (folders, DICOM,
    pictures, files that are not three-dimensional or cannot be read)."""
    if path.is_dir() or is_picture(path):
        return None
    reader = sitk.ImageFileReader()
    try:
        with itk_path(path) as place:
            if sitk.ImageFileReader.GetImageIOFromFileName(str(place)) in ("", "GDCMImageIO"):
                return None
            reader.SetFileName(str(place))
            reader.ReadImageInformation()
    except (OSError, RuntimeError):
        return None
    if reader.GetDimension() != 3:
        return None
    return Geometry(reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())


def _read_file(path: Path) -> sitk.Image:
    damaged = ImageError(
        f"{path.name} cannot be read: it is damaged, incomplete, or not an image.",
        "NIfTI, NRRD, MetaImage, PNG, JPEG and DICOM are read; export or copy the file again.",
    )
    if not _is_whole(path):
        raise damaged
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        if sitk.ImageFileReader.GetImageIOFromFileName(str(path)) == "GDCMImageIO":
            modality = _tag(reader, MODALITY_TAG)
            if modality in STACKS and reader.GetSize()[-1] == 1:
                series = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path.parent), _tag(reader, "0020|000e"))
                if len(series) > 1:
                    return _read_series(series)
            image = reader.Execute()
            if modality in RADIOGRAPHS:
                image = _as_sagittal(image)
            image.SetMetaData(MODALITY_TAG, modality)
            return image
        image = reader.Execute()
    except RuntimeError as error:
        if "orthonormal" in str(error):
            raise ImageError(f"The axes of {path.name} are not perpendicular.", PERPENDICULAR) from error
        if is_out_of_memory(error):
            raise ImageError(f"There is not enough memory to read {path.name}.", "Close programs.") from error
        raise damaged from error
    if is_picture(path):
        image = gray_picture(image)
        image.SetMetaData(MODALITY_TAG, PICTURE)
    return image


def is_picture(path: Path) -> bool:
    """Whether a file is a PNG, JPEG, BMP or TIFF, by its name."""
    return path.suffix.lower() in _PICTURES


def gray_picture(image: sitk.Image) -> sitk.Image:
    """What was read of a picture, as a grey image with pixels of 1 mm: what pictures say about their resolution is the
    printer's."""
    if image.GetNumberOfComponentsPerPixel() in (3, 4):
        image = _grey(image)
    image.SetSpacing([1.0] * image.GetDimension())
    return image


def _is_whole(path: Path) -> bool:
    """False for cut-off files of the three formats of which ITK reads one half and leaves the other to chance."""
    suffix = path.suffix.lower()
    if suffix == ".gz":  # its checksum comes last
        try:
            with gzip.open(path) as stream:
                while stream.read(1 << 22):
                    pass
        except (OSError, EOFError, zlib.error):
            return False
    elif suffix in (".jpg", ".jpeg"):
        return b"\xff\xd9" in path.read_bytes()[-1024:]  # the end-of-image marker, with room for trailing remarks
    elif suffix == ".nii":
        with path.open("rb") as stream:
            header = stream.read(352)
        if len(header) < 352:
            return False
        order = "<" if header[:4] == b"\x5c\x01\x00\x00" else ">"  # 348, the size of the header itself
        dims = struct.unpack(order + "8h", header[40:56])
        bits, offset = struct.unpack(order + "h", header[72:74])[0], struct.unpack(order + "f", header[108:112])[0]
        return (
            path.stat().st_size
            >= offset + np.prod(np.maximum(dims[1 : 1 + max(dims[0], 0)], 1), dtype=float) * bits / 8
        )
    return True


_GREY_TOLERANCE = 20
"""JPEG stores colours coarsely: the channels of a grey picture saved in it were seen to differ by up to 16 of 255."""


def _grey(image: sitk.Image) -> sitk.Image:
    """A grey picture that was saved in colour, as grey; others unchanged."""
    channels = sitk.GetArrayViewFromImage(image)[..., :3]
    same = np.ptp(channels.astype(np.int32), axis=-1).max() <= _GREY_TOLERANCE
    return sitk.VectorIndexSelectionCast(image, 0) if same else image


def _as_sagittal(image: sitk.Image) -> sitk.Image:
    """A radiograph as one sagittal slice: what DICOM says about its orientation is about the picture, not the
    patient."""
    if image.GetDimension() == 3 and image.GetSize()[2] == 1 and image.GetNumberOfComponentsPerPixel() == 1:
        image = image[:, :, 0]
        image.SetOrigin((0.0, 0.0))
    return image


def _tag(reader: sitk.ImageFileReader, key: str) -> str:
    return reader.GetMetaData(key).strip() if reader.HasMetaDataKey(key) else ""


def _one_series(folder: Path) -> tuple[str, ...]:
    """Files of the only DICOM series in a folder or its sub-folders."""
    found: dict[str, tuple[str, ...]] = {}
    for place in (folder, *sorted(p for p in folder.rglob("*") if p.is_dir())):
        for series in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(place)):
            files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(place), series)
            found[series] = (*found.get(series, ()), *files)
    if not found:
        raise ImageError(f"There is no DICOM series in {folder}.", "Give an image file, or a folder with one series.")
    if len(found) > 1:
        lines = sorted(f"{_describe(files[0])}, {len(files)} files, e.g. {files[0]}" for files in found.values())
        raise ImageError(
            f"{folder} holds {len(found)} DICOM series: " + "; ".join(lines) + ".",
            "Give the path of one file of the series that you want.",
        )
    return next(iter(found.values()))


def _describe(file: str) -> str:
    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return "unreadable"
    return _tag(reader, "0008|103e") or _tag(reader, MODALITY_TAG) or "no description"


def _read_series(files: Sequence[str]) -> sitk.Image:
    """One volume of a series' files, sorted by position.

    Raises:
        ImageError: if the slices are not one regular stack: damaged, of several orientations (a localizer), several
            images at one place (echoes, time points), with gaps, or shifted against each other (gantry tilt).
    """
    reader = sitk.ImageFileReader()
    slices = []
    for file in files:
        reader.SetFileName(file)
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise ImageError(
                f"{file} cannot be read: it is damaged or incomplete.", "Export the series again."
            ) from error
        slices.append(
            (np.array(reader.GetDirection()).reshape(3, 3), np.array(reader.GetOrigin()), reader.GetSize(), file)
        )
    direction, _, size, _ = slices[0]
    name = f"The series “{_describe(files[0])}”"
    if any(not np.allclose(d, direction, atol=1e-2) for d, *_ in slices):
        raise ImageError(f"{name} has slices of several orientations (a localizer).", "Choose a sagittal series.")
    if any(s != size for _, _, s, _ in slices):
        raise ImageError(f"{name} has slices of several sizes.", "Choose a series with one stack of slices.")
    if len(slices) == 1:
        return _read_file(Path(files[0]))
    slices.sort(key=lambda item: float(item[1] @ direction[:, 2]))
    steps = np.diff([float(origin @ direction[:, 2]) for _, origin, _, _ in slices])
    if steps.min() < 1e-3:
        raise ImageError(f"{name} has several images at one place (echoes or time points).", "Export them separately.")
    if steps.max() > 1.2 * steps.min():  # a missing slice doubles the step; less is rounding or table motion
        raise ImageError(
            f"{name} has gaps: its slices lie {steps.min():.2f} to {steps.max():.2f} mm apart.",
            "Load the whole series.",
        )
    normal, first = direction[:, 2], slices[0][1]
    shifts = [np.linalg.norm((origin - first) - ((origin - first) @ normal) * normal) for _, origin, _, _ in slices]
    if max(shifts) > max(0.5 * min(reader.GetSpacing()[:2]), 0.3):
        raise ImageError(
            f"The slices of {name[0].lower()}{name[1:]} are shifted against each other by up to {max(shifts):.1f} mm "
            "(a tilted gantry).",
            PERPENDICULAR,
        )
    try:
        image = sitk.ReadImage([file for *_, file in slices])
    except RuntimeError as error:
        raise ImageError(f"{name} cannot be read: a file is damaged or incomplete.", "Export it again.") from error
    image.SetSpacing((*image.GetSpacing()[:2], float(steps.mean())))
    image.SetOrigin(slices[0][1].tolist())
    image.SetDirection(direction.ravel().tolist())
    image.SetMetaData(MODALITY_TAG, _tag(reader, MODALITY_TAG))
    return image
