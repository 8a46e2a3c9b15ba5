"""One vertebra that is two: cut by a plane across the spine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..anatomy import STRUCTURES, counterpart, disc_below, level_of, order_of, sorted_ids
from ..errors import CorrectionError
from ..imaging import as_it_lies
from ..imaging.boxes import bounding_box
from .levels import chain_ids, in_scheme, is_levelled, shifted_names, side_of, variants_of
from .step import Correction, Direction, LabeledStructures, Patch, array_of, remap_labels

if TYPE_CHECKING:
    import SimpleITK as sitk


def split(
    labelling: LabeledStructures,
    labels: sitk.Image,
    chosen: int,
    *,
    point: Sequence[float] | None = None,
    normal: Sequence[float] | None = None,
    direction: Direction = "above",
) -> Correction:
    """One structure that is two is cut by a plane.

    The lower part keeps the name and the upper one gets that of the level above; where that is taken, all above move
    up by one. With `direction` below it is the other way round.

    Args:
        labels: the label image (any orientation).
        chosen: id of a vertebra, the sacrum or a disc.
        point: physical point (LPS, mm) on the plane; None for the narrowest place near the middle.
        normal: of the plane (LPS); None for the spine's axis there.

    Raises:
        CorrectionError: not labeled, without level, locked, not cut by the plane, or there is no name for the part.
    """
    labelling.require(chosen)
    labelling.require_unlocked([chosen])
    s, name = STRUCTURES[chosen], labelling.name(chosen)
    if s.order is None:
        raise CorrectionError(f"“{s.name}” has no level: its parts would have no names.", "Choose a vertebra or disc.")
    if direction == "all":
        raise CorrectionError(
            "The direction is missing: the other part gets the name above or below.", "Use above or below."
        )
    values = array_of(labels)
    box = bounding_box(values == chosen)
    assert box is not None  # it is labeled
    index = np.argwhere(values[box] == chosen)
    positions = _physical(labels, index + [b.start for b in box])
    axis = _axis(labels, values, labelling, chosen, positions)
    across = axis if normal is None else np.asarray(normal, float)
    length = float(np.linalg.norm(across))
    if across.shape != (3,) or not np.isfinite(length) or length < 1e-6:
        raise CorrectionError("The plane's normal is not a direction.", "Give three numbers, for example 0,0,1.")
    across = across / length * (1.0 if across @ axis >= 0 else -1.0)  # downwards
    height = positions @ across
    at = _waist(height) if point is None else float(np.asarray(point, float) @ across)
    above = height < at
    if above.all() or not above.any():
        raise CorrectionError(f"The plane does not cut {name}.", "Choose a point inside it.")

    mapping, part = _room_beside(labelling, chosen, direction)
    patch_labels = remap_labels(values[box], mapping)
    moved = index[above if direction == "above" else ~above]
    patch_labels[tuple(moved.T)] = part
    details = {
        "direction": direction,
        "point": None if point is None else [float(x) for x in point],
        "normal": [round(float(x), 4) for x in across],
    }
    return Correction("split", f"Split {name}", mapping, Patch(box, patch_labels), (chosen,), details=details)


def _room_beside(labelling: LabeledStructures, chosen: int, direction: Direction) -> tuple[dict[int, int], int]:
    """What is renamed so that the level beside the chosen one is free, and its id."""
    chain = chain_ids(variants_of(labelling.present))
    step = 1 if direction == "below" else -1
    at = chain.index(level_of(chosen)) + step
    named = counterpart(chosen, chain[at]) if 0 <= at < len(chain) else None
    name = labelling.name(chosen)
    if named is None:
        raise CorrectionError(f"There is no name {direction} {name}.", "Split to the other side.")
    part = named.id
    in_scheme(labelling, part, f"The part {direction} {name}")
    if not STRUCTURES[chosen].is_vertebral:
        if part in labelling.present:
            raise CorrectionError(
                f"The part of {name} would be {labelling.name(part)}, which is labeled already.",
                "Split to the other side, or correct the vertebrae first: the others follow them.",
            )
        return {}, part
    if part in labelling.present:
        moving = {i for i in is_levelled(labelling) if i != chosen and side_of(i, direction, chosen)}
        return shifted_names(labelling, chain, chain, step, moving), part
    own = disc_below(chosen)
    if direction == "below" and own is not None and own.id in labelling.present:  # it lies below the lower part
        return shifted_names(labelling, chain, chain, 1, {own.id}), part
    return {}, part


def _physical(labels: sitk.Image, index: np.ndarray) -> np.ndarray:
    """(n, 3) LPS millimeters of (n, 3) array indices (z, y, x)."""
    matrix = np.reshape(labels.GetDirection(), (3, 3)) * labels.GetSpacing()
    return index[:, ::-1] @ matrix.T + np.array(labels.GetOrigin())


def _upwards(labels: sitk.Image) -> np.ndarray:
    """Unit vector towards the patient's head, in the file's coordinates."""
    stored, lying = (np.reshape(x.GetDirection(), (3, 3)) for x in (labels, as_it_lies(labels)))
    return stored @ lying[2]


def _axis(
    labels: sitk.Image, values: np.ndarray, labelling: LabeledStructures, chosen: int, positions: np.ndarray
) -> np.ndarray:
    """Unit vector downwards along the spine at a structure: from its neighbors, else from its own shape."""
    order = order_of(chosen)
    levelled = sorted_ids(is_levelled(labelling))
    line = [i for i in levelled if STRUCTURES[i].is_vertebral] or [i for i in levelled if STRUCTURES[i].is_counted]
    above = [i for i in line if order_of(i) < order]
    below = [i for i in line if order_of(i) > order]
    ends = [
        _physical(labels, np.argwhere(values == i)).mean(axis=0) if i else positions.mean(axis=0)
        for i in (above[-1] if above else 0, below[0] if below else 0)
    ]
    along = ends[1] - ends[0]
    if np.linalg.norm(along) < 1.0:  # alone in view: the principal axis that is nearest to the body's
        _, vectors = np.linalg.eigh(np.cov(positions.T)) if len(positions) > 3 else (None, np.eye(3))
        up = _upwards(labels) @ vectors
        along = vectors[:, np.argmax(np.abs(up))] * (-1.0 if up[np.argmax(np.abs(up))] > 0 else 1.0)
    return along / np.linalg.norm(along)


def _waist(height: np.ndarray) -> float:
    """Where a structure is narrowest within a tenth of its length from the middle; mm along the axis.

    Two bodies that were taken for one are joined by less than a body's width; where there is no waist it is the middle.
    """
    low, high = np.percentile(height, (0.5, 99.5))
    middle, reach = (low + high) / 2, 0.1 * (high - low)
    step = 1.0  # mm
    centers = middle + step * np.arange(-int(reach / step), int(reach / step) + 1)
    area = np.array([np.count_nonzero(np.abs(height - c) <= 1.5 * step) for c in centers])
    least = int(np.argmin(area))
    return float(centers[least] if area[least] <= 0.8 * np.median(area) else middle)
