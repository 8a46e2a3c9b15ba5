"""Local repair of voxels: a box or some slices segmented again, slices interpolated, edges smoothed.

Each tool returns a `Correction` whose patch is as small as the change; nothing outside it is touched, and no structure
that is locked, or that was not asked for, loses or gains a voxel.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from ..anatomy import STRUCTURES
from ..errors import CorrectionError
from ..imaging import as_it_lies
from ..imaging.boxes import Box, bounding_box
from .step import Correction, LabeledStructures, Patch, array_of

if TYPE_CHECKING:
    import SimpleITK as sitk

AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
"""Names of slicing directions, with the physical axis (left–right, front–back, up–down) that they are nearest to."""

LARGEST_SMOOTHING_MM = 10.0
"""Half the height of a vertebra; more would leave an egg."""

_FACES = ndimage.generate_binary_structure(3, 1)


# --- where ------------------------------------------------------------------------------------------------------------


def array_axis(labels: sitk.Image, slicing: str) -> int:
    """Axis of the label array (z, y, x) that crosses the slices of a direction: ``"sagittal"``, ``"axial"`` …

    Raises:
        CorrectionError: no such direction.
    """
    if slicing not in AXES:
        raise CorrectionError(f"“{slicing}” is not a slice direction.", f"Use {', '.join(AXES)}.")
    direction = np.abs(np.reshape(as_it_lies(labels).GetDirection(), (3, 3)))
    # The three index axes go to the three physical ones so that they agree best together (an oblique grid).
    orders = [(i, j, k) for i in range(3) for j in range(3) for k in range(3) if len({i, j, k}) == 3]
    best = max(orders, key=lambda o: sum(direction[physical, index] for physical, index in enumerate(o)))
    return 2 - best[AXES[slicing]]


def _slice_numbers(numbers: Collection[int], count: int) -> None:
    if not numbers:
        raise CorrectionError("No slice was given.", "Name at least one.")
    beyond = [n for n in numbers if not 0 <= n < count]
    if beyond:
        raise CorrectionError(f"There is no slice {beyond[0]}.", f"There are slices 0 to {count - 1}.")


# --- tools ------------------------------------------------------------------------------------------------------------


def replace_inside(
    labels: sitk.Image | np.ndarray,
    new: sitk.Image | np.ndarray,
    region: Box | np.ndarray,
    *,
    locked: Collection[int] = (),
    structures: Collection[int] = (),
) -> Correction:
    """Labels of a new result inside a box or mask; everything outside stays as it is.

    Args:
        labels: as they are.
        new: the new result on the same grid, with the same names (`Hints.prior` sees to that).
        region: a box, or a mask (z, y, x).
        locked: structures that keep every voxel and get none.
        structures: those to replace; empty for all that are not locked.

    Raises:
        CorrectionError: the grids differ, or everything is locked.
    """
    before, after = array_of(labels), array_of(new)
    if before.shape != after.shape:
        raise CorrectionError("The new result has another grid.", "Segment the same image.")
    LabeledStructures.of(before, None, locked).require_unlocked(())
    box = bounding_box(region) if isinstance(region, np.ndarray) else region
    if box is None:
        raise CorrectionError("The region is empty.", "Choose a box or slices.")
    old, found = before[box], np.array(after[box])
    if structures:
        found[~np.isin(found, list(structures))] = 0
    held = np.isin(old, list(locked))
    if structures:
        held |= ~np.isin(old, [0, *structures])
    found[np.isin(found, list(locked))] = 0
    change = ~held
    if isinstance(region, np.ndarray):
        change &= region[box]
    result = np.where(change, found, old)
    touched = sorted({int(i) for i in np.unique(np.stack([old, result])[:, old != result])} - {0})
    return Correction(
        "segment part",
        f"Segment again inside {'some slices or a mask' if isinstance(region, np.ndarray) else 'a box'}",
        patch=_patch(before, box, result),
        structures=tuple(touched),
    )


def interpolate(
    labels: sitk.Image,
    chosen: int,
    slicing: str = "sagittal",
    corrected: Collection[int] | None = None,
    *,
    locked: Collection[int] = (),
) -> Correction:
    """One structure in the slices between those that were corrected by hand (shape-based interpolation).

    Between two corrected slices the outline goes over from one to the other: signed distances (mm) to both outlines,
    laid center upon center, are averaged by the distance of the slices (Raya and Udupa, IEEE Trans Med Imaging 1990).
    The corrected slices stay as drawn, other structures keep their voxels.

    Args:
        slicing: direction of the slices that were drawn on.
        corrected: their numbers; None for all slices that the structure has voxels in.

    Raises:
        CorrectionError: not labeled, locked, fewer than two slices, nothing drawn on one, nothing between them.
    """
    values = array_of(labels)
    name = _drawn(values, chosen, locked)
    axis = array_axis(labels, slicing)
    spacing = np.delete(np.array(labels.GetSpacing()[::-1]), axis)
    box = bounding_box(values == chosen)
    assert box is not None  # it is labeled
    plane = [b for a, b in enumerate(box) if a != axis]
    margin = 3  # pixels; outlines move within their common box and a little beyond
    shape = [n for a, n in enumerate(values.shape) if a != axis]
    plane = [slice(max(b.start - margin, 0), min(b.stop + margin, n)) for b, n in zip(plane, shape, strict=True)]
    stack = np.moveaxis(values, axis, 0)[(slice(None), *plane)]
    mask = stack == chosen
    drawn = mask.any(axis=(1, 2))
    keys = sorted(set(np.flatnonzero(drawn).tolist() if corrected is None else corrected))
    _slice_numbers(keys, len(stack))
    empty = [k for k in keys if not drawn[k]]
    if empty:
        raise CorrectionError(f"{name} is not drawn on slice {empty[0]}.", "Draw it there, or omit the slice.")
    if len(keys) < 2 or keys[-1] - keys[0] < len(keys):
        raise CorrectionError(f"There is no slice of {name} to interpolate.", "Correct two slices with some between.")
    result = np.array(stack)
    for first, last in pairwise(keys):
        if last - first < 2:
            continue
        ends = [(_signed_distance(mask[k], spacing), np.array(ndimage.center_of_mass(mask[k]))) for k in (first, last)]
        for k in range(first + 1, last):
            share = (k - first) / (last - first)
            at = (1 - share) * ends[0][1] + share * ends[1][1]
            distance = sum(
                weight * ndimage.shift(field, at - centre, order=1, mode="nearest")
                for weight, (field, centre) in zip((1 - share, share), ends, strict=True)
            )
            free = (stack[k] == 0) | mask[k]
            result[k] = np.where(mask[k], 0, stack[k])
            result[k][(distance < 0) & free] = chosen
    cut = list(plane)
    cut.insert(axis, slice(None))
    slices, rows, columns = cut
    return Correction(
        "interpolate",
        f"Interpolate {name} between {len(keys)} {slicing} slices",
        patch=_patch(values, (slices, rows, columns), np.moveaxis(result, 0, axis)),
        structures=(chosen,),
        details={"slicing": slicing, "slices": [int(k) for k in keys]},
    )


def smooth(labels: sitk.Image, chosen: int, mm: float, *, locked: Collection[int] = ()) -> Correction:
    """One structure with smoother edges and the same volume.

    Its mask is blurred by a Gaussian with a standard deviation of `mm`, and as many voxels as it had are taken, those
    with the highest values. Voxels of others are not taken, and none that would newly touch another structure: a gap
    stays a gap.

    Raises:
        CorrectionError: not labeled, locked, or not a sensible length.
    """
    if not 0 < mm <= LARGEST_SMOOTHING_MM:
        raise CorrectionError(
            f"Edges cannot be smoothed by {mm:g} mm.", f"Choose more than 0 and at most {LARGEST_SMOOTHING_MM:g} mm."
        )
    values = array_of(labels)
    name = _drawn(values, chosen, locked)
    spacing = np.array(labels.GetSpacing()[::-1])
    margin = [max(math.ceil(2 * mm / s), 1) for s in spacing]
    box = bounding_box(values == chosen, margin)
    assert box is not None  # it is labeled
    old = values[box]
    mask = old == chosen
    sigma = mm / spacing
    blurred = ndimage.gaussian_filter(mask.astype(np.float32), sigma, mode="nearest", truncate=3.0)
    beside = ndimage.binary_dilation((old != 0) & ~mask, _FACES)  # the margin holds all that could newly be touched
    allowed = mask | ((old == 0) & ~beside)
    # Where two candidates are equal, what was there before stays: a smoothed shape is not moved by smoothing it again.
    score = np.where(allowed, blurred + 1e-6 * mask, -1.0)
    count = int(mask.sum())
    new = np.zeros(mask.shape, bool)
    new.ravel()[np.argpartition(score.ravel(), -count)[-count:]] = True
    result = np.where(mask, 0, old)
    result[new] = chosen
    return Correction(
        "smooth",
        f"Smooth {name} by {mm:g} mm",
        patch=_patch(values, box, result),
        structures=(chosen,),
        details={"mm": float(mm)},
    )


def _drawn(values: np.ndarray, chosen: int, locked: Collection[int]) -> str:
    """Name of a structure, which must be there and not locked."""
    name = STRUCTURES[chosen].name
    if chosen in locked:
        raise CorrectionError(f"{name} is locked.", "Unlock it first.")
    if not (values == chosen).any():
        raise CorrectionError(f"{name} is not labeled.", "Choose a structure that is there.")
    return name


def _patch(values: np.ndarray, box: Box, result: np.ndarray) -> Patch | None:
    """What changes in a box, cut down to where it does; None if nothing does."""
    inner = bounding_box(values[box] != result)
    if inner is None:
        return None
    starts = [b.indices(n)[0] for b, n in zip(box, values.shape, strict=True)]
    slices, rows, columns = (slice(a + i.start, a + i.stop) for a, i in zip(starts, inner, strict=True))
    return Patch((slices, rows, columns), result[inner].astype(np.int16))


def _signed_distance(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Distance (mm) of each pixel's center to the outline, negative inside."""
    step = float(spacing.min()) / 2  # the outline runs half a pixel outside the outermost centers
    outside = ndimage.distance_transform_edt(~mask, sampling=spacing)
    inside = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=spacing)[1:-1, 1:-1]
    return np.where(mask, step - inside, outside - step)
