"""Copies of a case that ask more of a method."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from ..errors import ConfigError

# A structure cut by a crop is scored on what is left of it, unless that is too little to be recognised.
MINIMUM_LEFT = 0.3

VARIANTS: tuple[str, ...] = ("full", "top-third-off", "bottom-third-off", "zoom-1.3")
"""Copies of a case that a method should stand: as it is, cropped above, cropped below (no sacrum), and enlarged."""


def make_variant(image: sitk.Image, label: sitk.Image, variant: str) -> tuple[sitk.Image, sitk.Image]:
    """A copy of image and label that asks more of a method.

    ``top-third-off`` and ``bottom-third-off`` lose a third of the image's height; ``zoom-1.3`` has every spacing
    multiplied by 1.3, so that the anatomy is that much larger in mm (and so are distances measured in it).

    Raises:
        ConfigError: no such variant.
    """
    if variant not in VARIANTS:
        raise ConfigError(f"There is no variant “{variant}”.", f"Known: {', '.join(VARIANTS)}.")
    if variant == "full":
        return image, label
    if variant == "zoom-1.3":
        return _enlarged(image, 1.3), _enlarged(label, 1.3)
    return _without_third(image, variant), _without_third(label, variant)


def _enlarged(image: sitk.Image, factor: float) -> sitk.Image:
    larger = sitk.Image(image)
    larger.SetSpacing([factor * s for s in image.GetSpacing()])
    return larger


def _without_third(image: sitk.Image, variant: str) -> sitk.Image:
    upright = sitk.DICOMOrient(image, "PIR")  # y runs downwards
    height = upright.GetSize()[1]
    third = height // 3
    return upright[:, third:, :] if variant == "top-third-off" else upright[:, : height - third, :]


def cut_ids(before: sitk.Image, after: sitk.Image) -> set[int]:
    """Ids of which some, but less than `MINIMUM_LEFT`, is left."""
    whole, left = (
        dict(zip(*np.unique(sitk.GetArrayViewFromImage(i), return_counts=True), strict=True)) for i in (before, after)
    )
    return {int(sid) for sid, count in whole.items() if sid and 0 < left.get(sid, 0) < MINIMUM_LEFT * count}
