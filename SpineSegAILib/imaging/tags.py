"""What an image carries beside its voxels and its geometry, as SimpleITK's metadata.

An operation of SimpleITK drops metadata; `carry_tags` takes them along where a new image lies on the same voxels.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import SimpleITK as sitk

MODALITY_TAG = "0008|0060"
"""The modality: DICOM's words, or `PICTURE`."""
BODY_PART_TAG = "0018|0015"
SERIES_TAG = "0008|103e"
"""The body part that was examined, and the series' description, in DICOM's words."""
VIEW_TAG = "0018|5101"
"""From where a radiograph was taken, in DICOM's words: AP, PA, LL, RL …"""
PICTURE = "picture"
"""What `MODALITY_TAG` holds where the image came from a PNG or JPEG."""
SCALE_UNKNOWN_TAG = "SpineSegAI_ScaleUnknown"
"""Present where the file does not tell its pixel size, as pictures do not: pixels count as 1 mm, and no length in mm
means anything."""
ORIENTATION_UNKNOWN_TAG = "SpineSegAI_OrientationUnknown"
"""Present where the file does not tell its orientation: the image's direction is only where its voxels are stored."""
DIRECTION_TAG = "SpineSegAI_Direction"
"""Direction cosines in LPS, row by row, as they were found from the picture where the file does not tell them."""
FORMS_TAG = "SpineSegAI_NIfTIForms"
"""qform and sform as a NIfTI file had them (`nifti.Forms`), so that a result has the same."""
NOTES_TAG = "SpineSegAI_Notes"
"""Sentences for the reader of a result, about the file."""

OF_THE_GRID = (SCALE_UNKNOWN_TAG, ORIENTATION_UNKNOWN_TAG, DIRECTION_TAG, FORMS_TAG)
"""Tags that are as true of everything else on the same voxels, such as labels."""
OF_THE_IMAGE = (*OF_THE_GRID, MODALITY_TAG, BODY_PART_TAG, SERIES_TAG, VIEW_TAG, NOTES_TAG)
"""All of them."""


def carry_tags(source: sitk.Image, target: sitk.Image, tags: Iterable[str] = OF_THE_GRID) -> sitk.Image:
    """The target, with these tags of the source as far as it has them."""
    for tag in tags:
        if source.HasMetaDataKey(tag):
            target.SetMetaData(tag, source.GetMetaData(tag))
    return target


def without_tag(image: sitk.Image, tag: str) -> sitk.Image:
    """The image without one of them."""
    if not image.HasMetaDataKey(tag):
        return image
    result = sitk.Image(image)
    result.EraseMetaData(tag)
    return result


def scale_is_known(image: sitk.Image) -> bool:
    """Whether lengths in mm mean anything on this image's voxels."""
    return not image.HasMetaDataKey(SCALE_UNKNOWN_TAG)


def orientation_is_known(image: sitk.Image) -> bool:
    """Whether the image's direction is that of the patient."""
    return not image.HasMetaDataKey(ORIENTATION_UNKNOWN_TAG)


def tag_of(image: sitk.Image, tag: str) -> str:
    """What an image has of a tag; nothing where it lacks it."""
    return image.GetMetaData(tag).strip() if image.HasMetaDataKey(tag) else ""


def known_modality(image: sitk.Image) -> str:
    """What is known of an image's modality."""
    return tag_of(image, MODALITY_TAG)


def notes_of(image: sitk.Image) -> list[str]:
    """Sentences about the file for the reader of a result."""
    return json.loads(image.GetMetaData(NOTES_TAG)) if image.HasMetaDataKey(NOTES_TAG) else []


def add_notes(image: sitk.Image, notes: Iterable[str]) -> None:
    """Adds such sentences."""
    together = list(dict.fromkeys([*notes_of(image), *notes]))
    if together:
        image.SetMetaData(NOTES_TAG, json.dumps(together))
