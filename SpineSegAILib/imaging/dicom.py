"""DICOM: classic series, multi-frame files and radiographs, checked slice by slice before they are one volume."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError
from .checks import PERPENDICULAR, RADIOGRAPHS, STACKS
from .decoding import pixels
from .dicom_headers import DIFFERENCES, File, Frame, images, is_dicom, read_header
from .geometry import NEARLY, nearest_rotation, shear
from .headers import first_bytes
from .tags import BODY_PART_TAG, MODALITY_TAG, ORIENTATION_UNKNOWN_TAG, SCALE_UNKNOWN_TAG, SERIES_TAG, VIEW_TAG

_ROUNDING_MM = 1e-3
_SAME_PLACE = 0.05
"""Part of the usual step by which two slices differ at least; less, and they are at one place."""


def read_file(path: Path) -> sitk.Image:
    """The image of a DICOM file; one slice of an MR or CT series stands for the series in its folder.

    Raises:
        ImageError: it is damaged, not an image, or its slices are not one regular stack.
    """
    return _volume(series(path))


def read_folder(folder: Path) -> sitk.Image:
    """The only series in a folder or its sub-folders.

    Raises:
        ImageError: there is none, there are several, or its slices are not one regular stack.
    """
    return _volume(series(folder))


def is_series(path: Path) -> bool:
    """Whether `read_image` would take a path for DICOM: a folder, or a file that is."""
    return path.is_dir() or is_dicom(first_bytes(path, 256))


def series(path: Path) -> list[File]:
    """The files of the series that a file or folder stands for, in no certain order.

    Raises:
        ImageError: it is damaged or not an image; or in the folder there is no series, or there are several.
    """
    if not path.is_dir():
        file = read_header(path)
        if file.modality not in STACKS or len(file.frames) > 1 or not file.series:
            return [file]
        others = [path.parent / name for name in sorted(os.listdir(path.parent))]
        same = [f for f in images(p for p in others if p != path) if f.series == file.series and len(f.frames) == 1]
        return [file, *same]
    found: dict[str, list[File]] = {}
    inside = (Path(place) / name for place, _, names in sorted(os.walk(path)) for name in sorted(names))
    for file in images(inside):
        found.setdefault(file.series, []).append(file)
    if not found:
        raise ImageError(f"There is no DICOM series in {path}.", "Give an image file, or a folder with one series.")
    if len(found) > 1:
        lines = sorted(f"{files[0].name}, {len(files)} files, e.g. {files[0].path}" for files in found.values())
        raise ImageError(
            f"{path} holds {len(found)} DICOM series: " + "; ".join(lines) + ".",
            "Give the path of one file of the series that you want.",
        )
    return next(iter(found.values()))


def _volume(files: list[File]) -> sitk.Image:
    """One volume of a series' slices, sorted by position.

    Raises:
        ImageError: if the slices are not one regular stack: of several orientations (a localizer) or sizes, several at
            one place (echoes, time points, copies), with gaps, or shifted against each other (gantry tilt).
    """
    first = files[0]
    slices = [(file, frame) for file in files for frame in file.frames]
    what = f"“{first.description}”" if first.description else first.path.name
    name = f"The series {what}" if len(files) > 1 or first.description else what
    if any(file.size != first.size for file in files):
        raise ImageError(f"{name} has slices of several sizes.", "Choose a series with one stack of slices.")
    if len(slices) == 1:
        image = _single(*slices[0])
    elif first.modality in RADIOGRAPHS:
        raise ImageError(f"{name} has {len(slices)} frames (a film or several views).", "Export one of them.")
    else:
        slices, spacing = _stack(slices, name)
        image = _placed(pixels(files, slices, name), slices[0][1], spacing)
    for tag, told in (
        (MODALITY_TAG, first.modality),
        (BODY_PART_TAG, first.body_part),
        (SERIES_TAG, first.description),
        (VIEW_TAG, first.view),
    ):
        if told:
            image.SetMetaData(tag, told)
    if slices[0][1].spacing is None:
        image.SetMetaData(SCALE_UNKNOWN_TAG, "1")
    return image


def _single(file: File, frame: Frame) -> sitk.Image:
    """One slice; a radiograph's orientation is that of the film, not the patient's, and is left aside."""
    values = pixels([file], [(file, frame)], file.path.name)
    if file.modality in STACKS:
        image = _placed(values, frame, 1.0)
        if frame.axes is None:
            image.SetMetaData(ORIENTATION_UNKNOWN_TAG, "1")
        return image
    image = sitk.GetImageFromArray(values[0], isVector=values.ndim == 4)
    image.SetSpacing(frame.spacing or (1.0, 1.0))
    return image


def _stack(slices: list[tuple[File, Frame]], name: str) -> tuple[list[tuple[File, Frame]], float]:
    """The slices in the order of their positions, and the distance from one to the next (mm)."""
    if any(frame.position is None or frame.axes is None for _, frame in slices):
        raise ImageError(
            f"{name} does not give the positions of its slices (ImagePositionPatient, "
            "ImageOrientationPatient are missing).",
            "Export the original series again; anonymization must keep positions and orientations.",
        )
    axes, spacing = slices[0][1].axes, slices[0][1].spacing
    assert axes is not None
    if any(frame.axes is None or not np.allclose(frame.axes, axes, atol=1e-2) for _, frame in slices):
        raise ImageError(f"{name} has slices of several orientations (a localizer).", "Choose a sagittal series.")
    if any(not np.allclose(frame.spacing or (0, 0), spacing or (0, 0), rtol=1e-3) for _, frame in slices):
        raise ImageError(f"{name} has slices of several pixel sizes.", "Choose a series with one stack of slices.")
    normal = np.cross(axes[:, 0], axes[:, 1])
    where = np.array([frame.position for _, frame in slices])
    order = np.argsort(where @ normal, kind="stable")
    slices, where = [slices[i] for i in order], where[order]
    steps = np.diff(where @ normal)
    usual = float(np.median(steps[steps > _ROUNDING_MM])) if steps.max() > _ROUNDING_MM else 0.0
    together = np.flatnonzero(steps < max(_ROUNDING_MM, _SAME_PLACE * usual))
    if together.size:
        raise _several_at_one_place(slices[together[0]], slices[together[0] + 1], name)
    if steps.max() > 1.2 * steps.min():  # a missing slice doubles the step; less is rounding or table motion
        raise ImageError(
            f"{name} has gaps: its slices lie {steps.min():.2f} to {steps.max():.2f} mm apart.",
            "Load the whole series.",
        )
    shifts = [float(np.linalg.norm(away - (away @ normal) * normal)) for away in where - where[0]]
    if max(shifts) > max(0.5 * min(spacing or (1.0, 1.0)), 0.3):
        raise ImageError(
            f"The slices of {name[0].lower()}{name[1:]} are shifted against each other by up to {max(shifts):.1f} mm "
            "(a tilted gantry).",
            PERPENDICULAR,
        )
    return slices, float(steps.mean())


def _several_at_one_place(one: tuple[File, Frame], other: tuple[File, Frame], name: str) -> ImageError:
    """Two slices at one place: which, and what tells them apart."""
    (file, frame), (second, more) = one, other
    if file.path != second.path and file.instance and file.instance == second.instance:
        return ImageError(
            f"{name} holds the same image twice: {file.path.name} and {second.path.name} are copies.",
            "Remove one of the two, and other copies.",
        )
    differing = next((key for key in DIFFERENCES if frame.told.get(key) != more.told.get(key)), None)
    why = "echoes or time points"
    if differing:
        told = (frame.told.get(differing, "none"), more.told.get(differing, "none"))
        why = f"they differ in {DIFFERENCES[differing]}: {told[0]} and {told[1]}"
    return ImageError(f"{name} has several images at one place ({why}).", "Export them separately.")


def _placed(values: np.ndarray, first: Frame, step: float) -> sitk.Image:
    """An image of slices (n, rows, columns), the first of which is known."""
    image = sitk.GetImageFromArray(values, isVector=values.ndim == 4)
    image.SetSpacing((*(first.spacing or (1.0, 1.0)), step))
    if first.position is not None:
        image.SetOrigin(first.position.tolist())
    if first.axes is not None:
        if shear(first.axes) > NEARLY:
            raise ImageError("The axes of the series are not perpendicular.", PERPENDICULAR)
        axes = nearest_rotation(first.axes)
        image.SetDirection(np.column_stack([axes, np.cross(axes[:, 0], axes[:, 1])]).ravel().tolist())
    return image
