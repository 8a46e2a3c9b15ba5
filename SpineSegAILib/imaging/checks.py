"""What an image must be, and why it may not be what a checkpoint can segment."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError
from .content import (
    in_hounsfield_units,
    is_symmetric,
    seems_ct,
    seems_radiograph,
    seems_slice,
    shows_labels,
    shows_mask,
)
from .geometry import (
    NEARLY,
    PERPENDICULAR,
    SAGITTAL_DIRECTION,
    Geometry,
    as_it_lies,
    canonical_axes,
    facing,
    like,
    shear,
    view_mm,
)
from .tags import (
    BODY_PART_TAG,
    OF_THE_IMAGE,
    PICTURE,
    SERIES_TAG,
    VIEW_TAG,
    carry_tags,
    known_modality,
    notes_of,
    orientation_is_known,
    scale_is_known,
    tag_of,
)

_SPACING_RANGE_MM = (0.02, 25.0)  # finer than a micro-CT of a mouse, or coarser than any localizer: a damaged header
_LEAST_VIEW_MM = 30.0  # a lumbar body is 27 mm high
_LARGEST_VIEW_MM = 3000.0  # longer than any patient, and more than memory holds
_LEAST_PIXELS = 64  # along rows and columns, to judge by what is seen
_LOOKED_AT = (0.35, 0.5, 0.65)  # of the way through an image's slices
_MODALITIES = {"MR": "MR", "CT": "CT", "XR": "radiographs"}  # that checkpoints are for

_OTHER_FILMS = re.compile(
    r"\b(chest|thorax|rib\w*|pelvis|abdomen|c[ -]?spine|cervical|neck|head|skull|knee|shoulder|hip|ankle|wrist)\b", re.I
)
_LATERAL = re.compile(r"\b(lat|lateral\w*|seitlich|ll|rl|llat|rlat)\b", re.I)
_FRONTAL = re.compile(r"\b(ap|pa)\b", re.I)


def refuse_lateral(image: sitk.Image) -> None:
    """Raises:
    ImageError: by its header a radiograph is a lateral one.
    """
    told = tag_of(image, VIEW_TAG) or tag_of(image, SERIES_TAG)
    if _LATERAL.search(told) and not _FRONTAL.search(told):
        raise ImageError(
            f"By its header (“{told}”) this is a lateral film; the checkpoint is for films from the front.",
            "Choose an AP or PA film.",
        )


def check_view(source: Geometry) -> None:
    view = view_mm(source)[1:]
    if view.max() > _LARGEST_VIEW_MM:
        raise ImageError(
            f"The image shows {' by '.join(f'{mm:.4g}' for mm in view)} mm, more than any patient is long.",
            "Correct the voxel spacing in its header; make a picture, whose pixels count as 1 mm, smaller.",
        )


STACKS = {"MR", "CT", "PT", "NM"}  # DICOM modalities that make one file per slice
RADIOGRAPHS = {"CR", "DX", "RF", "XA", "RG"}
_OTHER_PARTS = re.compile(
    r"\b(c[ -]?spine|cervical|hws|neck|head|brain|skull|t[ -]?spine|bws|knee|shoulder|hip|ankle|wrist|breast)\b", re.I
)


def plausibility_warnings(
    image: sitk.Image, trained_on: str, models: Callable[[str], Sequence[str]] | None = None, *, as_segmented: str = ""
) -> list[str]:
    """Sentences for the reader of a result: why an image may not be what a checkpoint can segment.

    Modality, body part and plane are those that DICOM tells (`read_image`); elsewhere values give CT, radiographs and
    images that are not sagittal away (`content`).

    Args:
        trained_on: `Preprocessing.modality`; nothing is said of modalities where it is none of MR, CT and XR.
        models: names of the checkpoints that are there for a modality.
        as_segmented: modality that the vertebrae look like (`content.bright_rim`), or nothing.
    """
    result = notes_of(image)
    told = known_modality(image)
    part = next((m[0] for tag in (BODY_PART_TAG, SERIES_TAG) if (m := _OTHER_PARTS.search(tag_of(image, tag)))), "")
    image = as_volume(image, "image")
    lying = as_it_lies(image)
    _, rows, columns = view_mm(Geometry.of(lying))
    if min(rows, columns) < _LEAST_VIEW_MM:
        result.append(
            f"The image shows {rows:.3g} by {columns:.3g} mm, too little for a vertebra and its neighbors. Choose a "
            "whole image; if it is one, correct the voxel spacing in its header."
        )
    if not scale_is_known(image):
        result.append(
            f"{'A picture' if told == PICTURE else 'The file'} does not give its scale (it has no pixel size): a pixel "
            "counts as 1 mm here, so lengths and volumes mean nothing."
        )
    if 1 in image.GetSize():
        result += _about_the_plane(image, trained_on, told)
    if part and trained_on == "MR":
        result.append(f"By its header (“{part}”) this image does not show the lumbar spine: all names may be wrong.")
    film = next((m[0] for t in (BODY_PART_TAG, SERIES_TAG) if (m := _OTHER_FILMS.search(tag_of(image, t)))), "")
    if film and trained_on == "XR":
        result.append(f"By its header (“{film}”), this is not a film of the whole spine: all names may be wrong.")
    found = "XR" if told in RADIOGRAPHS else told if told in STACKS else ""
    if not found and trained_on == "MR":
        found, symmetric = _by_content(lying)
        found = found or as_segmented
        if symmetric:
            result.append(
                "The image shows left and right alike, as axial and coronal ones do: if it is not sagittal, its result "
                "means nothing. Choose a sagittal series."
            )
        if told == PICTURE and not found:  # one real film in five does not look like one
            there = models("XR") if models is not None else ()
            result.append(
                "A picture file does not give its modality, and the model was trained on MR. If it is a radiograph, "
                f"choose a checkpoint for radiographs{': ' + ', '.join(there) if there else ', if there is one'}."
            )
    values = sitk.GetArrayViewFromImage(image)
    if not found and trained_on == "XR" and 1 in values.shape and seems_slice(values):
        found = "MR"
    if trained_on == "CT" and not in_hounsfield_units(values) and seems_ct(values):
        result.append(
            "This seems to be CT whose values are not Hounsfield units (shifted, scaled or windowed): the result may "
            "be wrong. Export the original values."
        )
    if found and found != trained_on and trained_on in _MODALITIES:
        result.append(_other_modality(found, trained_on, models))
    return result


def _about_the_plane(image: sitk.Image, trained_on: str, told: str) -> list[str]:
    """What a single slice was taken for, where its header says something else or nothing."""
    if trained_on == "XR" or told == PICTURE or told in RADIOGRAPHS:
        return []
    if not orientation_is_known(image):
        return [
            "The file does not give the orientation of this single slice. It was assumed to be sagittal, rows from "
            "top to bottom. If that is not so, its result means nothing."
        ]
    way = facing(Geometry.of(image))
    return [
        f"By its header this single slice is {way}; it was assumed to be sagittal. If that is not so, its result "
        "means nothing."
    ] * bool(way)


def _by_content(image: sitk.Image) -> tuple[str, bool]:
    """What an image is of by its values, nothing for MR; and whether it is not sagittal."""
    values = sitk.GetArrayViewFromImage(image)
    single = 1 in values.shape
    if in_hounsfield_units(values):
        return "CT", False
    axes, _ = canonical_axes(Geometry.of(image))
    slices = values.transpose(axes)
    if min(slices.shape[1:]) < _LEAST_PIXELS:
        return "", False
    if single and seems_radiograph(values):
        return "XR", False
    planes = slices if single else slices[[round(at * (len(slices) - 1)) for at in _LOOKED_AT]]
    if is_symmetric(planes):
        return "", True
    return ("CT" if seems_ct(values) else ""), False


def _other_modality(found: str, trained_on: str, models: Callable[[str], Sequence[str]] | None) -> str:
    name = _MODALITIES.get(found, found)
    said = (
        f"This seems to be {name}, and the checkpoint was trained on {_MODALITIES[trained_on]}: names and outlines "
        "may be wrong."
    )
    if models is None:
        return f"{said} Choose a checkpoint for {name}, if there is one."
    there = models(found)
    return f"{said} Choose a checkpoint for {name}: {', '.join(there)}." if there else f"{said} None is for {name}."


def as_volume(image: sitk.Image, name: str) -> sitk.Image:
    """A scalar 3D image; what is flat becomes one sagittal slice: rows from superior to inferior, columns as they are.

    Raises:
        ImageError: for color, complex numbers and time series.
    """
    given = image
    components = image.GetNumberOfComponentsPerPixel()
    if components > 1:
        raise ImageError(
            f"The {name} has {components} values per pixel (a color picture, or several images in one).",
            "Export it as a single-channel grayscale image.",
        )
    if "complex" in image.GetPixelIDTypeAsString():
        raise ImageError(f"The {name} holds complex numbers.", "Export its magnitude.")
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = image[:, :, :, 0]
    if image.GetDimension() == 2:
        spacing, origin = image.GetSpacing(), image.GetOrigin()
        image = sitk.JoinSeries(image)
        image.SetSpacing((*spacing, 1.0))
        image.SetOrigin((0.0, origin[0], -origin[1]))
        image.SetDirection(SAGITTAL_DIRECTION)
    if image.GetDimension() != 3:
        raise ImageError(
            f"The {name} has {image.GetDimension()} dimensions (a time series or several contrasts in one file).",
            "Export one 3D volume of it.",
        )
    return carry_tags(given, image, OF_THE_IMAGE)


def refuse_labels(image: sitk.Image, name: str = "The image") -> None:
    """Raises:
    ImageError: the image is a label map (`content.shows_labels`) or a mask (`content.shows_mask`).
    """
    if shows_labels(image):
        raise ImageError(
            f"{name} is a label map (few whole numbers, in patches), not an image.",
            "Choose the image that it was drawn on.",
        )
    if shows_mask(sitk.GetArrayViewFromImage(image)):
        raise ImageError(
            f"{name} is a mask (nearly all values are the least or the largest), not an image.",
            "Choose the image that it was made from.",
        )


def check_spacing(spacing: Sequence[float], name: str) -> None:
    """Checks that voxels are neither finer nor coarser than any scanner's.

    Raises:
        ImageError: they are, or these are not lengths.
    """
    low, high = _SPACING_RANGE_MM
    if not all(low <= s <= high for s in spacing):
        raise ImageError(
            f"{name} has a voxel spacing of {' by '.join(f'{s:g}' for s in spacing)} mm.",
            f"Correct its header; {low:g} to {high:g} mm is taken.",
        )


_WHOLE = 1e-3
"""Label values may be off whole numbers by this much: what rescaling with 32-bit numbers leaves."""


def whole_numbers(image: sitk.Image, name: str) -> sitk.Image:
    """A label image with integers, where it has floating-point numbers that are whole but for rounding.

    Raises:
        ImageError: they are not, or not finite.
    """
    values = sitk.GetArrayViewFromImage(image)
    if not np.issubdtype(values.dtype, np.inexact):
        return image
    if np.iscomplexobj(values) or not np.isfinite(values).all():
        raise ImageError(f"{name} holds values that are not finite numbers (NaN or infinity).", "Export it again.")
    whole = np.rint(values)
    apart = values[(abs(values - whole) > _WHOLE) | (abs(values) >= 2**31)]
    if apart.size:
        raise ImageError(
            f"{name} holds values that are not whole numbers: {float(apart[0]):g}.",
            "Labels are whole numbers: resample them with nearest neighbor, make a probability map binary.",
        )
    return carry_tags(image, like(image, whole.astype(np.int32)))


def check_image(image: sitk.Image, *, name: str = "image") -> sitk.Image:
    """The image as a scalar 3D volume, if a spine could be segmented in it.

    A 2D picture becomes one sagittal slice (`as_volume`).

    Args:
        name: what to call it in messages, e.g. a file or node name.

    Raises:
        ImageError: for color, 4D, empty, constant and non-finite images, skewed axes and absurd spacing.
    """
    image = as_volume(image, name)
    if min(image.GetSize()) == 0:
        raise ImageError(f"The {name} is empty.", "Choose another image.")
    check_spacing(image.GetSpacing(), f"The {name}")
    if shear(np.reshape(image.GetDirection(), (3, 3))) > NEARLY:
        raise ImageError(
            f"The axes of the {name} are not perpendicular (a sheared or gantry-tilted volume).",
            PERPENDICULAR,
        )
    array = sitk.GetArrayViewFromImage(image)
    least, most = float(array.min()), float(array.max())
    if not (np.isfinite(least) and np.isfinite(most)):  # NaN propagates through min and max
        raise ImageError(f"The {name} holds values that are not finite numbers (NaN or infinity).", "Export it again.")
    if least == most:
        raise ImageError(f"The {name} is the same everywhere ({least:g}).", "Choose an image that shows a spine.")
    return image
