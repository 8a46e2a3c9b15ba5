"""Copies of a case that ask more of a method."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import SimpleITK as sitk

from ..errors import ConfigError
from ..imaging import Geometry
from ..imaging.geometry import canonical_axes
from ..imaging.tags import OF_THE_IMAGE, carry_tags

# A structure cut by a crop is scored on what is left of it, unless that is too little to be recognized.
MINIMUM_LEFT = 0.3

VARIANTS: tuple[str, ...] = (
    "full", "top-third-off", "bottom-third-off", "zoom-1.3", "t1-like", "fat-suppressed-like",
)  # fmt: skip
"""Copies of a case that a method should stand: as it is, cropped above, cropped below (no sacrum), enlarged, and with
other contrasts."""
MIDDLE_SLICES = "middle-slices"
"""A copy of the three slices in the middle of the labeled ones: a quick look, for comparisons with many trainings."""
ALL_VARIANTS = (*VARIANTS, MIDDLE_SLICES)


def make_variant(image: sitk.Image, label: sitk.Image, variant: str) -> tuple[sitk.Image, sitk.Image]:
    """A copy of image and label that asks more of a method.

    ``top-third-off`` and ``bottom-third-off`` lose a third of the image's height; ``zoom-1.3`` has every spacing
    multiplied by 1.3, so that the anatomy is that much larger in mm (and so are distances measured in it);
    ``t1-like`` and ``fat-suppressed-like`` change the intensities alone (`_CURVES`);
    ``middle-slices`` keeps the three slices in the middle of the labeled ones.

    Raises:
        ConfigError: no such variant.
    """
    require_variant(variant)
    if variant == "full":
        return image, label
    if variant in _CURVES:
        return _other_contrast(image, label, _CURVES[variant]), label
    if variant == MIDDLE_SLICES:
        return _middle_slices(image, label, 3)
    if variant == "zoom-1.3":
        return _enlarged(image, 1.3), _enlarged(label, 1.3)
    return _without_third(image, variant), _without_third(label, variant)


_CURVES: Mapping[str, tuple[tuple[float, float], ...]] = {
    # Of a T2-weighted or water image: fluid becomes dark and marrow bright; air and cortex stay dark.
    "t1-like": ((0.0, 0.0), (0.15, 0.2), (0.35, 0.75), (0.6, 0.6), (0.85, 0.2), (1.0, 0.15)),
    # Marrow and fat lose most of their signal, fluid keeps it.
    "fat-suppressed-like": ((0.0, 0.0), (0.3, 0.1), (0.55, 0.2), (0.8, 0.6), (1.0, 1.0)),
}
"""Points of an intensity curve; 0 and 1 are the 0.5th and 99.5th percentiles around the labels. A curve knows no
tissues: these copies are harder than real exams where two tissues are alike, and easier where noise differs."""
_AROUND_MM = 15.0
"""In front of, behind, above and below the labels: the column with its canal, without the fat under a surface coil."""


def _other_contrast(image: sitk.Image, label: sitk.Image, curve: tuple[tuple[float, float], ...]) -> sitk.Image:
    values = sitk.GetArrayFromImage(image).astype(np.float32)
    drawn = sitk.GetArrayViewFromImage(label) > 0
    box = []
    for axis, step in enumerate(image.GetSpacing()[::-1]):
        along = np.flatnonzero(drawn.any(axis=tuple(a for a in range(3) if a != axis)))
        margin = round(_AROUND_MM / step)
        box.append(slice(max(along[0] - margin, 0), along[-1] + margin + 1) if len(along) else slice(None))
    low, high = np.percentile(values[tuple(box)], (0.5, 99.5))
    unit = np.clip((values - low) / max(high - low, 1e-6), 0, 1)
    at, becomes = zip(*curve, strict=True)
    changed = sitk.GetImageFromArray(np.interp(unit, at, becomes).astype(np.float32) * 1000)
    changed.CopyInformation(image)
    return carry_tags(image, changed, OF_THE_IMAGE)


def require_variant(variant: str) -> None:
    """Raises:
    ConfigError: no such variant.
    """
    if variant not in ALL_VARIANTS:
        raise ConfigError(f"There is no variant “{variant}”.", f"Available: {', '.join(ALL_VARIANTS)}.")


def _middle_slices(image: sitk.Image, label: sitk.Image, count: int) -> tuple[sitk.Image, sitk.Image]:
    (axis, rows, columns), _ = canonical_axes(Geometry.of(image))
    labelled = np.flatnonzero(sitk.GetArrayViewFromImage(label).any((rows, columns)))
    slices = image.GetSize()[2 - axis]
    if slices <= count or not len(labelled):
        return image, label
    first = int(np.clip((labelled[0] + labelled[-1] + 1 - count) // 2, 0, slices - count))
    kept = slice(first, first + count)
    return _part(image, axis, kept), _part(label, axis, kept)


def _part(image: sitk.Image, axis: int, kept: slice) -> sitk.Image:
    """What is kept along an axis of the image's array."""
    index = [slice(None)] * 3
    index[2 - axis] = kept
    return carry_tags(image, image[tuple(index)], OF_THE_IMAGE)


def _enlarged(image: sitk.Image, factor: float) -> sitk.Image:
    larger = sitk.Image(image)
    larger.SetSpacing([factor * s for s in image.GetSpacing()])
    return larger


def _without_third(image: sitk.Image, variant: str) -> sitk.Image:
    (_, rows, _), (_, upwards, _) = canonical_axes(Geometry.of(image))
    height = image.GetSize()[2 - rows]
    third = height // 3
    upper = (variant == "top-third-off") != upwards
    return _part(image, rows, slice(third, None) if upper else slice(None, height - third))


def cut_ids(before: sitk.Image, after: sitk.Image) -> set[int]:
    """Ids of which some, but less than `MINIMUM_LEFT`, is left."""
    whole, left = (
        dict(zip(*np.unique(sitk.GetArrayViewFromImage(i), return_counts=True), strict=True)) for i in (before, after)
    )
    return {int(sid) for sid, count in whole.items() if sid and 0 < left.get(sid, 0) < MINIMUM_LEFT * count}
