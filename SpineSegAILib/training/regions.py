"""Where a structure that nobody drew could be: the geometry behind partial labels (design: “known is a region”).

A case lists the structures that were annotated. Any other structure is *unknown*, but not everywhere: an undrawn
vertebra can lie only in the column's corridor above or below the drawn run, an undrawn disc only between or at the ends
of drawn vertebrae, canal and cord only behind them, posterior elements only behind the bodies. Elsewhere background is
background, and a false canal in front of the column is punished.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from ..anatomy import (
    ARTERY_ID,
    DISC_ID,
    L6_ID,
    POSTERIOR_ID,
    SACRUM_ID,
    STRUCTURES,
    T13_ID,
    VEIN_ID,
    VERTEBRA_ID,
    Kind,
    disc_below,
    laterality,
    order_of,
    other_side,
    posterior_of,
    structure,
)

ANTERIOR_MARGIN_MM = 10.0
"""An undrawn vertebral body may stand this far before the extrapolated column (listhesis, osteophytes, curvature)."""
POSTERIOR_MARGIN_MM = 10.0
SACRAL_SLOPE = 0.9
"""Below the last drawn level the corridor widens backwards by this many mm per mm: the sacrum turns away."""
LATERAL_MARGIN_MM = 8.0
CANAL_START_MM = 6.0
"""The canal may begin this far inside the posterior wall, since hand-drawn walls wobble."""
CANAL_DEPTH_MM = 28.0
CANAL_HALF_WIDTH_MM = 25.0
POSTERIOR_DEPTH_MM = 90.0
"""From the posterior wall to the tip of the longest spinous process, with room to spare."""
POSTERIOR_HALF_WIDTH_MM = 60.0
"""Transverse processes reach this far to either side."""
END_TOLERANCE_MM = 3.0
"""A drawn level's end is blurred by its tilt; an undrawn neighbor may begin this far inside."""


_EXTRA = (
    (T13_ID, structure("T12").id, structure("L1").id),
    (L6_ID, structure("L5").id, SACRUM_ID),
)
"""Vertebrae that most people do not have, with the neighbors that leave no room for them."""


@dataclass
class CodedLabel:
    """A label map in which every voxel points at the set of structures that it may be.

    Attributes:
        codes: (D, H, W) uint8; 0 is background, as far as the column tells.
        sets: for each code the structure ids that its voxels may be (0 = background). A set of one is an ordinary
            label.
    """

    codes: np.ndarray
    sets: list[frozenset[int]]


def code_label(
    label: np.ndarray, annotated: Iterable[int], possible: Iterable[int], spacing: tuple[float, float, float]
) -> CodedLabel:
    """Combine what is drawn with what is unknown.

    Args:
        label: (D, H, W) structure ids on the canonical grid (slices, superior→inferior, anterior→posterior).
        annotated: ids of the structures whose every voxel in the image is labeled.
        possible: ids that may be there at all (the scheme's); unannotated ones become unknown in their region.
        spacing: mm along the three axes.

    A structure of kind `CUSTOM` that is not annotated may be in any background: nothing is known of where it lies.
    Generic ids in `label` mean “a vertebra / disc / posterior elements of whatever level” (`VERTEBRA_ID`, `DISC_ID`,
    `POSTERIOR_ID`) or “an artery / vein of either side” (`ARTERY_ID`, `VEIN_ID`). Where only one side of a sided
    structure is annotated, it was drawn up to the midline: beyond that nothing is known of it.
    """
    annotated = set(annotated)
    generic_vessels = {ARTERY_ID: Kind.ARTERY, VEIN_ID: Kind.VEIN}
    unknown = set(possible) - annotated - {VERTEBRA_ID, DISC_ID, POSTERIOR_ID, *generic_vessels}
    for sid, kind in generic_vessels.items():
        if sid in annotated:
            unknown = {i for i in unknown if STRUCTURES[i].kind is not kind}
    if VERTEBRA_ID in annotated:
        unknown = {i for i in unknown if not STRUCTURES[i].is_vertebral}
    if DISC_ID in annotated:
        unknown = {i for i in unknown if STRUCTURES[i].kind is not Kind.DISC}
    drawn = [int(v) for v in np.unique(label) if v]
    unknown -= _no_room(drawn)
    sets: list[frozenset[int]] = [frozenset({0})]
    codes = np.zeros(label.shape, np.uint8)
    for sid in drawn:
        if sid == VERTEBRA_ID:
            allowed = frozenset(i for i in possible if STRUCTURES[i].is_vertebral) | {VERTEBRA_ID}
        elif sid == DISC_ID:
            allowed = frozenset(i for i in possible if STRUCTURES[i].kind is Kind.DISC) | {DISC_ID}
        elif sid == POSTERIOR_ID:
            allowed = frozenset(i for i in possible if STRUCTURES[i].kind is Kind.POSTERIOR) | {POSTERIOR_ID}
        elif sid in generic_vessels:
            allowed = frozenset(i for i in possible if STRUCTURES[i].kind is generic_vessels[sid]) | {sid}
        else:
            allowed = frozenset({sid}) if sid in annotated else frozenset({0, sid})
        sets.append(allowed)
        codes[label == sid] = len(sets) - 1
    background = label == 0
    anywhere = frozenset(i for i in unknown if STRUCTURES[i].kind is Kind.CUSTOM)
    levelled = unknown and _ColumnFrame.build(label, spacing)
    if levelled:
        unknown -= anywhere
        posterior = {i for i in unknown if STRUCTURES[i].kind is Kind.POSTERIOR}
        leveled_unknown = {i for i in unknown - posterior if STRUCTURES[i].order is not None}
        tubes = unknown - posterior - leveled_unknown
        for region, ids in levelled.regions(leveled_unknown, tubes, label.shape):
            allowed = frozenset({0, *ids})
            if allowed not in sets:
                sets.append(allowed)
            codes[background & region] = sets.index(allowed)
        for region, possible_there in levelled.posterior_regions(posterior, annotated, label.shape):
            here = background & region
            for code in np.unique(codes[here]).tolist():
                allowed = sets[code] | possible_there
                if allowed not in sets:
                    sets.append(allowed)
                codes[here & (codes == code)] = sets.index(allowed)
        sets = [allowed | anywhere if 0 in allowed else allowed for allowed in sets]
    elif unknown:
        # Nothing with a level is drawn, so there is no geometry to go by: unknown everywhere.
        sets.append(frozenset({0, *unknown}))
        codes[background] = len(sets) - 1
        _beyond_midline(codes, sets, background, annotated, unknown)
    return CodedLabel(codes, sets)


def _no_room(drawn: Collection[int]) -> set[int]:
    """Ids of the extra vertebrae that cannot be there, their discs and posterior elements: the vertebrae above and
    below are drawn, and the disc between them."""
    absent: set[int] = set()
    for extra, above, below in _EXTRA:
        between = disc_below(above)
        if between is not None and {above, between.id, below} <= set(drawn) and extra not in drawn:
            parts = (structure(extra), disc_below(extra), posterior_of(extra))
            absent |= {part.id for part in parts if part is not None}
    return absent


def _beyond_midline(
    codes: np.ndarray, sets: list[frozenset[int]], background: np.ndarray, annotated: set[int], unknown: set[int]
) -> None:
    """Adds to the unknown, in the half that nobody annotated, what was annotated in the other (changes its arguments).

    Halves are those of the image, as in the data that the rule is for, split at the middle column.
    """
    half = background.shape[0] / 2
    for side, there in (("Right", slice(0, int(half))), ("Left", slice(int(np.ceil(half)), None))):  # left comes first
        drawn = {i for i in annotated if (c := laterality(i)) and c.meaning == side and other_side(i) in unknown}
        if drawn:
            sets.append(frozenset({0, *unknown, *drawn}))
            codes[there][background[there]] = len(sets) - 1


class _ColumnFrame:
    """Arc length along the drawn column and signed distance from it, for every pixel of the sagittal plane."""

    def __init__(
        self,
        label: np.ndarray,
        spacing: tuple[float, float, float],
        ids: list[int],
        centers: np.ndarray,
        objects: list[tuple[slice, ...]],
    ) -> None:
        self.spacing = spacing
        self.ids = ids  # top down
        rows, cols = label.shape[1:]
        curve, lateral = _extend(centers, rows * spacing[1])
        steps = np.linalg.norm(np.diff(curve, axis=0), axis=1)
        arc = np.concatenate([[0.0], np.cumsum(steps)])
        tangent = np.gradient(curve, axis=0)
        tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
        grid = np.stack(np.meshgrid(np.arange(rows) * spacing[1], np.arange(cols) * spacing[2], indexing="ij"), -1)
        _, nearest = cKDTree(curve).query(grid.reshape(-1, 2))
        delta = grid.reshape(-1, 2) - curve[nearest]
        t = tangent[nearest]
        self.along = (arc[nearest] + (delta * t).sum(1)).reshape(rows, cols)
        # Positive behind the column: columns run from anterior to posterior and the tangent points down.
        self.behind = (t[:, 0] * delta[:, 1] - t[:, 1] * delta[:, 0]).reshape(rows, cols)
        self.lateral = lateral[nearest].reshape(rows, cols)
        self.spans: dict[int, tuple[float, float]] = {}
        depths, widths = [], []
        for sid, box in zip(ids, objects, strict=True):
            mask = label[box] == sid
            s, u = self.along[box[1:]], self.behind[box[1:]]
            plane = mask.any(0)
            low, high = np.percentile(s[plane], (4, 96))
            self.spans[sid] = (float(low), float(high))
            depths.append(np.percentile(u[plane], (3, 97)))
            widths.append(mask.any((1, 2)).sum() * spacing[0])
        self.front = float(np.median([d[0] for d in depths]))
        self.back = float(np.median([d[1] for d in depths]))
        self.half_width = max(widths) / 2

    @classmethod
    def build(cls, label: np.ndarray, spacing: tuple[float, float, float]) -> _ColumnFrame | None:
        objects = ndimage.find_objects(label.astype(np.int32), max_label=int(label.max(initial=0)))
        boxes = {i: box for i, box in enumerate(objects, start=1) if box is not None and i in STRUCTURES}
        ids = sorted((i for i in boxes if STRUCTURES[i].is_counted), key=order_of)
        if not ids:
            return None
        centers = []
        for sid in ids:
            index = np.argwhere(label[boxes[sid]] == sid).mean(0) + [b.start for b in boxes[sid]]
            centers.append(index * np.asarray(spacing))
        return cls(label, spacing, ids, np.array(centers), [boxes[sid] for sid in ids])

    def regions(
        self, leveled: set[int], tubes: set[int], shape: tuple[int, ...]
    ) -> Iterator[tuple[np.ndarray, set[int]]]:
        """Pairs of a (D, H, W) bool region and the unknown structures that may lie in it."""
        slices = np.arange(shape[0])[:, None, None] * self.spacing[0]
        aside = np.abs(slices - self.lateral[None])
        in_width = aside <= self.half_width + LATERAL_MARGIN_MM
        tube_plane = (self.behind >= self.back - CANAL_START_MM) & (self.behind <= self.back + CANAL_DEPTH_MM)
        tube = tube_plane[None] & (aside <= CANAL_HALF_WIDTH_MM) if tubes else np.zeros((1, 1, 1), bool)
        claimed = np.zeros(shape[1:], bool)
        for upper, lower in pairwise([None, *self.ids, None]):
            start, low = (-np.inf, -np.inf) if upper is None else (self.spans[upper][1], order_of(upper))
            end, high = (np.inf, np.inf) if lower is None else (self.spans[lower][0], order_of(lower))
            ids = {i for i in leveled if low < order_of(i) < high}
            if not ids:
                continue
            plane = (self.along >= start - END_TOLERANCE_MM) & (self.along <= end + END_TOLERANCE_MM)
            behind_limit = self.back + POSTERIOR_MARGIN_MM
            if lower is None:
                behind_limit = behind_limit + SACRAL_SLOPE * np.clip(self.along - start, 0, None)
            plane &= (self.behind >= self.front - ANTERIOR_MARGIN_MM) & (self.behind <= behind_limit) & ~claimed
            claimed |= plane
            corridor = plane[None] & in_width
            yield corridor & ~tube, ids
            if tubes:
                yield corridor & tube, ids | tubes
        if tubes:
            yield tube & ~(claimed[None] & in_width), tubes

    def posterior_regions(
        self, unknown: set[int], annotated: set[int], shape: tuple[int, ...]
    ) -> Iterator[tuple[np.ndarray, frozenset[int]]]:
        """Pairs of a (D, H, W) bool region and the undrawn posterior elements that may lie in it.

        Everywhere behind the bodies where none are annotated; else above and below the run of vertebrae whose are,
        since spinous processes of the next ones, and the sacrum's crest, show there.
        """
        if not unknown:
            return
        slices = np.arange(shape[0])[:, None, None] * self.spacing[0]
        plane = (self.behind >= self.back - CANAL_START_MM) & (self.behind <= self.back + POSTERIOR_DEPTH_MM)
        behind = plane[None] & (np.abs(slices - self.lateral[None]) <= POSTERIOR_HALF_WIDTH_MM)
        some = POSTERIOR_ID in annotated  # all are drawn, though not all are named
        parts = {i: p.id for i in self.ids if STRUCTURES[i].is_vertebral and (p := posterior_of(i))}
        drawn = [i for i, part in parts.items() if part in annotated or (some and i in annotated)]
        if not drawn:
            yield behind, frozenset(unknown)
            return
        above = frozenset(i for i in unknown if order_of(i) < order_of(drawn[0]))
        below = frozenset(i for i in unknown if order_of(i) > order_of(drawn[-1]))
        between = frozenset() if some else frozenset(unknown) - above - below
        if above:  # a spinous process hangs down beside the next two bodies
            yield behind & (self.along <= self.spans[drawn[0]][1])[None], above
        if below:
            yield behind & (self.along >= self.spans[drawn[-1]][1] - END_TOLERANCE_MM)[None], below
        if between:
            yield behind, between


def _extend(centers: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """A polyline through the centers, 1 mm steps, drawn on past both ends: (N, 2) (row, column) mm, and slice mm."""
    if len(centers) == 1:
        down = np.array([0.0, 1.0, 0.0])
        ends = (-down, down)
    else:
        ends = tuple(v / np.linalg.norm(v) for v in (centers[0] - centers[1], centers[-1] - centers[-2]))
    knots = np.vstack([centers[0] + reach * ends[0], centers, centers[-1] + reach * ends[1]])
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(knots, axis=0), axis=1))])
    at = np.arange(0.0, length[-1], 1.0)
    points = np.stack([np.interp(at, length, knots[:, axis]) for axis in range(3)], 1)
    return points[:, 1:], points[:, 0]
