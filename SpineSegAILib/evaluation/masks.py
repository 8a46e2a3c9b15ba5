"""Two boolean masks: overlap, and how far their surfaces are from each other, in mm and in pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

NAN = math.nan

TOLERANCE_MM = 1.0
"""Surface Dice counts surface voxels that are no farther than this from the other surface."""


def dice(reference: np.ndarray, prediction: np.ndarray) -> float:
    """Dice coefficient of two boolean masks; NaN if both are empty."""
    total = int(reference.sum()) + int(prediction.sum())
    return 2.0 * int((reference & prediction).sum()) / total if total else NAN


def surface_distances(
    reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Distances from each surface voxel of one mask to the nearest surface voxel of the other, both ways.

    Of a single slice the surface is its outline: it has no neighbors to be cut off from.

    Args:
        reference: boolean mask of any dimension, of the whole image.
        prediction: likewise, same shape.
        spacing: mm along the arrays' axes.

    Returns:
        Distances (mm) from the reference's surface to the prediction's, and back; empty if either mask is.
    """
    if not reference.any() or not prediction.any():
        return np.empty(0), np.empty(0)
    axes = [axis for axis, length in enumerate(reference.shape) if length > 1] or [0]
    shape, spacing = [reference.shape[axis] for axis in axes], [spacing[axis] for axis in axes]
    reference, prediction = reference.reshape(shape), prediction.reshape(shape)
    # Both surfaces lie in the box around both masks, so nothing outside it matters. A margin of one voxel is needed
    # for the erosion alone, and the erosion supplies it: beyond the array counts as outside, as does the image's edge.
    box = _box(reference | prediction)
    ours, theirs = _surface(reference[box]), _surface(prediction[box])
    to_theirs = ndimage.distance_transform_edt(~theirs, sampling=spacing)
    to_ours = ndimage.distance_transform_edt(~ours, sampling=spacing)
    return to_theirs[ours], to_ours[theirs]


def hd95_and_asd(reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]) -> tuple[float, float]:
    """95th percentile Hausdorff distance and average symmetric surface distance (mm); NaN if either mask is empty."""
    hd95, asd, _ = surface_measures(reference, prediction, spacing)
    return hd95, asd


def surface_measures(
    reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float], tolerance: float = TOLERANCE_MM
) -> tuple[float, float, float]:
    """HD95 (mm), ASD (mm) and surface Dice: the share of both surfaces' voxels within the tolerance of the other one.

    Where one mask is empty, the distances are NaN and the surface Dice is 0; where both are, it is NaN, too. Surface
    voxels count alike, whatever the area that they stand for.
    """
    forth, back = surface_distances(reference, prediction, spacing)
    if not forth.size:
        return NAN, NAN, 0.0 if reference.any() or prediction.any() else NAN
    both = np.concatenate([forth, back])
    hd95 = max(np.percentile(forth, 95), np.percentile(back, 95))
    # A distance of exactly the tolerance must not be lost by the rounding of a root.
    return float(hd95), float(both.mean()), float((both <= tolerance + 1e-9).mean())


def pixel_distances(reference: np.ndarray, prediction: np.ndarray, axis: int) -> tuple[float, float, int]:
    """HD95 and ASD as papers on 2D networks give them: in pixels, slice by slice, averaged over the slices with both.

    Args:
        axis: the one that slices are counted along.

    Returns:
        HD95 and ASD in pixels of the image, NaN where no slice has both; and in how many slices one of the two masks is
        missing, which these means omit.
    """
    together = reference | prediction
    if not together.any():
        return NAN, NAN, 0
    found, one_sided = [], 0
    for ours, theirs in zip(np.moveaxis(reference, axis, 0), np.moveaxis(prediction, axis, 0), strict=True):
        if ours.any() and theirs.any():
            found.append(hd95_and_asd(ours, theirs, (1.0,) * ours.ndim))
        elif ours.any() or theirs.any():
            one_sided += 1
    if not found:
        return NAN, NAN, one_sided
    hd95, asd = np.mean(found, axis=0)
    return float(hd95), float(asd), one_sided


def on_square_grid(labels: np.ndarray, axis: int, side: int) -> np.ndarray:
    """Every slice brought to `side` × `side` pixels by nearest neighbor, as where a network sees slices resized.

    A slice that is not a square is padded to one, equally on both sides, so that nothing is stretched.

    Args:
        labels: (D, H, W), 0 for nothing.
        axis: the one that slices are counted along.
    """
    longest = max(n for a, n in enumerate(labels.shape) if a != axis)
    for plane in (a for a in range(labels.ndim) if a != axis):
        length = labels.shape[plane]
        at = np.floor((np.arange(side) + 0.5) * longest / side - (longest - length) / 2).astype(int)
        labels = labels.take(at.clip(0, length - 1), plane)
        labels[tuple([slice(None)] * plane + [(at < 0) | (at >= length)])] = 0
    return labels


def _surface(mask: np.ndarray) -> np.ndarray:
    return mask & ~ndimage.binary_erosion(mask)


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    return box
