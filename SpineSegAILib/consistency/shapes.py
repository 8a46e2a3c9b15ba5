"""From a mask to the pieces of a spine: axis, components, touching bodies split, fragments merged.

Arrays are on the canonical grid (slices left to right, rows downwards, columns backwards). A piece is a list of
voxels with two coordinates each, both in mm: the arc length along the spine's axis, growing downwards, and the
distance from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import ndimage

from ..imaging.boxes import bounding_box
from .sequence import relative_pitch
from .settings import ConsistencySettings

Spacing = tuple[float, float, float]


def coordinates(index: np.ndarray, shape: tuple[int, ...], spacing: Spacing) -> np.ndarray:
    """Flat voxel indices (N,) → (N, 3) positions in mm along (slices, rows, columns) from the first voxel's center."""
    return np.stack(np.unravel_index(index, shape), axis=1) * np.asarray(spacing)


def components(mask: np.ndarray) -> list[np.ndarray]:
    """Face-connected components of a (D, H, W) mask as flat index arrays, largest first.

    Face connectivity, because two bodies that meet at an edge or a corner only should stay two.
    """
    if not mask.any():
        return []
    box = bounding_box(mask)
    assert box is not None
    labels, count = ndimage.label(mask[box])
    inside = np.flatnonzero(labels)
    values = labels.ravel()[inside]
    order = np.argsort(values, kind="stable")
    offset = [b.start for b in box]
    position = np.unravel_index(inside[order], labels.shape)
    flat = np.ravel_multi_index(tuple(p + o for p, o in zip(position, offset, strict=True)), mask.shape)
    bounds = np.cumsum(np.bincount(values, minlength=count + 1)[1:])[:-1]
    return sorted(np.split(flat, bounds), key=len, reverse=True)


def sagittal_length(points: np.ndarray) -> float:
    """Longest extent of a structure within sagittal slices, mm: the median over its slices. A disc's, front to back.

    Args:
        points: (N, 3) positions in mm along (slices, rows, columns); N ≥ 1.
    """
    lengths = []
    for at in np.unique(points[:, 0]):
        part = points[points[:, 0] == at, 1:]
        if len(part) < 3:
            continue
        middle = part - part.mean(axis=0)
        along = middle @ np.linalg.eigh(middle.T @ middle)[1][:, -1]
        lengths.append(float(np.ptp(np.percentile(along, (1, 99)))))
    return float(np.median(lengths)) if lengths else 0.0


# --- the axis --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SpineAxis:
    """A smooth curve through the column, sampled every millimeter of height.

    Attributes:
        top: row position of the first sample, mm.
        curve: (n, 3) points, mm.
        tangent: (n, 3) unit vectors, pointing down.
        arc: (n,) arc length, mm.
    """

    top: float
    curve: np.ndarray
    tangent: np.ndarray
    arc: np.ndarray

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, 3) points in mm → arc length and distance from the axis, (N,) each.

        The foot of the perpendicular is found by three fixed-point steps, ample for a curve that bends as a spine does.
        """
        row = points[:, 1].astype(float)
        for _ in range(3):
            at = np.clip(np.rint(row - self.top).astype(int), 0, len(self.arc) - 1)
            offset = points - self.curve[at]
            along = np.einsum("ij,ij->i", offset, self.tangent[at])
            row = self.curve[at, 1] + along * self.tangent[at, 1]
        radial = np.linalg.norm(offset - along[:, None] * self.tangent[at], axis=1)
        return self.arc[at] + along, radial


def fit_axis(points: np.ndarray, most: int = 4) -> SpineAxis:
    """Axis through (N, 3) points of vertebrae and discs, mm; N ≥ 1.

    The median column and slice of every 4 mm of height are fitted by polynomials of a degree that the length in view
    can carry, but no higher than `most`, in the L1 sense, so that a false positive beside the column or above it does
    not bend the curve.
    """
    bins = np.floor(points[:, 1] / 4.0).astype(int)
    order = np.argsort(bins, kind="stable")
    groups = np.split(points[order], np.flatnonzero(np.diff(bins[order])) + 1)
    knots = np.array([np.median(g, axis=0) for g in groups])
    weight = np.sqrt([len(g) for g in groups])
    first, last = knots[0, 1], knots[-1, 1]
    middle, half = (first + last) / 2, max((last - first) / 2, 1.0)
    length = last - first
    degree = 0 if length < 45 else min(most, 1 + int(length // 70), len(knots) - 1)
    rows = np.arange(np.floor(first) - 150.0, np.ceil(last) + 150.0)
    inner = np.clip(rows, first, last)
    curve = np.empty((len(rows), 3))
    curve[:, 1] = rows
    design = np.vander((knots[:, 1] - middle) / half, degree + 1)
    at_rows = np.vander((inner - middle) / half, degree + 1)
    derivative = np.arange(degree, 0, -1)
    at_slope = np.vander((inner - middle) / half, degree) * derivative if degree else np.zeros((len(rows), 0))
    for axis in (0, 2):
        w = weight.copy()
        for _ in range(8):
            solution, *_ = np.linalg.lstsq(design * w[:, None], knots[:, axis] * w, rcond=None)
            residual = np.abs(design @ solution - knots[:, axis])
            w = weight / np.sqrt(np.maximum(residual, 1.0))
        slope = at_slope @ solution[:degree] / half
        # A spine does not lie down within the image: 60° is the steepest sacral slope to be expected.
        curve[:, axis] = at_rows @ solution + np.clip(slope, -1.7, 1.7) * (rows - inner)
    tangent = np.gradient(curve, axis=0)
    step = np.linalg.norm(tangent, axis=1)
    return SpineAxis(float(rows[0]), curve, tangent / step[:, None], np.concatenate([[0.0], np.cumsum(step[1:])]))


# --- pieces ----------------------------------------------------------------------------------------------------------


@dataclass
class Piece:
    """Voxels that belong together.

    Attributes:
        index: (N,) flat voxel indices.
        arc, radial: (N,) position along the axis and distance from it, mm.
        rank: (N,) rank that the network gives each voxel, or None.
        sacral: (N,) True where the sacrum outweighs the vertebra channel.
        locked: structure id that the reader gave it, with exactly these voxels; 0 for what the network found.
    """

    index: np.ndarray
    arc: np.ndarray
    radial: np.ndarray
    rank: np.ndarray | None
    sacral: np.ndarray
    locked: int = 0

    def part(self, chosen: np.ndarray) -> Piece:
        """The chosen voxels (boolean or index array)."""
        rank = None if self.rank is None else self.rank[chosen]
        return Piece(self.index[chosen], self.arc[chosen], self.radial[chosen], rank, self.sacral[chosen])

    def joined(self, other: Piece) -> Piece:
        """Both pieces as one."""
        rank = None if self.rank is None or other.rank is None else np.concatenate([self.rank, other.rank])
        return Piece(
            np.concatenate([self.index, other.index]),
            np.concatenate([self.arc, other.arc]),
            np.concatenate([self.radial, other.radial]),
            rank,
            np.concatenate([self.sacral, other.sacral]),
        )

    def span(self, near: float) -> tuple[float, float]:
        """Upper and lower end along the axis, mm: the 2nd and 98th percentile of the voxels within `near` of it."""
        close = self.radial < near
        arc = self.arc[close] if np.count_nonzero(close) > 0.3 * len(close) else self.arc
        arc = arc[:: max(1, len(arc) // 20_000)]  # enough for a percentile
        low, high = np.percentile(arc, (2, 98))
        return float(low), float(high)

    def middle(self, near: float) -> float:
        """Middle of the span, mm."""
        return sum(self.span(near)) / 2

    def height(self, near: float) -> float:
        """Length of the span, mm."""
        low, high = self.span(near)
        return high - low

    @property
    def median_rank(self) -> float | None:
        """Median of the voxels' ranks."""
        return None if self.rank is None else float(np.median(self.rank))


@dataclass(frozen=True)
class Sizes:
    """Size of this spine, mm: usual height of a body, usual distance from centroid to centroid.

    Attributes:
        tapered: both are those at L3, and get less upwards: for views of the whole column, whose vertebrae differ too
            much for one size. Then ranks say where a piece is.
    """

    height: float
    pitch: float
    tapered: bool = False

    def at(self, piece: Piece) -> Sizes:
        """Sizes where a piece is."""
        if not self.tapered or piece.median_rank is None:
            return self
        share = relative_pitch(piece.median_rank)
        return Sizes(self.height * share, self.pitch * share)


def tapered_sizes(bones: list[Piece], settings: ConsistencySettings, *, single: bool) -> Sizes:
    """Sizes at L3 of a column of which much is seen, from pieces with ranks; the adult's where these are too few.

    Args:
        single: whether each piece is one vertebra, so that distances between neighbors by rank are known, too; else the
            distance goes with the height, of which those count that one vertebra may have.
    """
    s = settings
    ranked = sorted((p for p in bones if p.median_rank is not None), key=lambda p: p.middle(s.near_axis))
    usual = Sizes(s.usual_height, s.usual_pitch, tapered=True)
    heights = [p.height(s.near_axis) / usual.at(p).height for p in ranked]
    heights = [h for h in heights if 0.5 < h < 1.5]
    steps = [
        (lower.middle(s.near_axis) - upper.middle(s.near_axis)) / usual.at(upper).pitch
        for upper, lower in pairwise(ranked)
        if round((upper.median_rank or 0.0) - (lower.median_rank or 0.0)) == 1
    ]
    height = float(np.median(heights)) if len(heights) >= 2 else 1.0
    pitch = float(np.median(steps)) if single and len(steps) >= 2 else height
    return Sizes(height * s.usual_height, pitch * s.usual_pitch, tapered=True)


def usual_sizes(bones: list[Piece], discs: list[Piece], settings: ConsistencySettings) -> Sizes:
    """Measured where at least two plausible bodies, or three discs one pitch apart, are seen; else the adult's.

    The median of plausible heights only: a pair of touching bodies or a fragment must not set the standard. A large
    person's bodies, or those of an image with a wrong pixel size, are plausible up to what a pair would measure.
    """
    s = settings
    heights = [h for h in (p.height(s.near_axis) for p in bones) if 0.55 * s.usual_height < h < 1.75 * s.usual_height]
    middles = np.sort([p.middle(s.near_axis) for p in discs])
    steps = [d for d in np.diff(middles) if 0.6 * s.usual_pitch < d < 1.75 * s.usual_pitch]
    pitch = float(np.median(steps)) if len(steps) >= 2 else None
    if len(heights) >= 2:
        height = float(np.median(heights))
        return Sizes(height, pitch or s.pitch_per_height * height)
    if pitch:
        return Sizes(pitch / s.pitch_per_height, pitch)
    return Sizes(s.usual_height, s.usual_pitch)


def split_touching(
    piece: Piece, sizes: Sizes, disc_arc: np.ndarray, settings: ConsistencySettings, *, whole: bool
) -> list[Piece]:
    """One piece per vertebra, top down; a piece of ordinary height is returned as it is.

    A sacrum that hangs on L5 is first parted by the two channels. Then the piece's height and the range of its ranks
    say how many vertebrae it holds, and cuts across the axis are put where the cross-section is waisted, disc was
    seen beside the bridge, and the rank falls.

    Args:
        disc_arc: arc lengths of all disc voxels near the axis.
        whole: masks hold whole vertebrae; then voxels away from the axis (posterior elements, which overlap the
            neighbor's height) go by their rank alone, where there is one.
    """
    s, by_height, sizes = settings, not sizes.tapered, sizes.at(piece)
    low, high = piece.span(s.near_axis)
    height = high - low
    if height < s.split_height * sizes.height and (by_height or not _holds_two(piece, low, high, sizes, s)):
        return [piece]
    sacral_share = float(np.mean(piece.sacral))
    if sacral_share > 0.85 and whole:
        return [piece]  # the whole sacrum is taller than a vertebra
    if 0.1 < sacral_share < 0.85:
        bone, sacrum = piece.part(~piece.sacral), piece.part(piece.sacral)
        if sacrum.middle(s.near_axis) - bone.middle(s.near_axis) > 0.6 * sizes.height:
            return [*split_touching(bone, sizes, disc_arc, s, whole=whole), sacrum]
    count = max(1, round((height - sizes.height) / sizes.pitch) + 1)
    if piece.rank is not None:
        quarter = min(height / 4, 0.5 * sizes.height)
        upper, lower = piece.rank[piece.arc < low + quarter], piece.rank[piece.arc > high - quarter]
        by_rank = 1 + round(float(np.median(upper) - np.median(lower)))
        # Below S1 the rank counts no further; and ranks that run together do not undo a disc that is seen inside.
        fewer = by_rank < count and _discs_inside(piece, low, high, sizes, disc_arc) >= count - 1
        if abs(by_rank - count) <= 1 and np.median(lower) > -0.5 and not fewer:
            count = max(1, by_rank)
    if count == 1:
        return [piece]
    cuts = _cuts(piece, low, high, count, disc_arc, s)
    belongs = np.searchsorted(cuts, piece.arc)
    if whole and piece.rank is not None:
        ranks = np.array([np.median(piece.rank[m]) if (m := belongs == i).any() else np.nan for i in range(count)])
        far = piece.radial > s.near_axis
        if far.any() and np.isfinite(ranks).all():
            belongs[far] = np.argmin(np.abs(piece.rank[far, None] - ranks), axis=1)
    return [piece.part(m) for i in range(count) if (m := belongs == i).any()]


def _holds_two(piece: Piece, low: float, high: float, sizes: Sizes, s: ConsistencySettings) -> bool:
    """Whether a piece that is hardly higher than one body has another rank in its lower third than in its upper one."""
    if piece.rank is None or high - low < s.merge_height * sizes.height:
        return False
    third = (high - low) / 3
    upper, lower = (np.median(piece.rank[m]) for m in (piece.arc < low + third, piece.arc > high - third))
    return bool(upper - lower >= 1)


def _discs_inside(piece: Piece, low: float, high: float, sizes: Sizes, disc_arc: np.ndarray) -> int:
    """How many discs lie beside the piece, away from its ends: runs along the axis with half a disc's cross-section."""
    edges = np.arange(low + 0.4 * sizes.height, high - 0.4 * sizes.height, 1.0)
    if len(edges) < 2:
        return 0
    per_mm = len(piece.index) / (high - low)
    dense = np.histogram(disc_arc, edges)[0] > 0.5 * per_mm
    return int(np.count_nonzero(np.diff(np.r_[False, dense].astype(int)) == 1))


def _cuts(
    piece: Piece, low: float, high: float, count: int, disc_arc: np.ndarray, s: ConsistencySettings
) -> np.ndarray:
    """Arc lengths of the `count` − 1 best cuts, by dynamic programming over 1 mm bins."""
    bins = max(int(np.ceil(high - low)), count)
    edges = np.linspace(low, high, bins + 1)
    close = piece.radial < s.near_axis
    close = close if close.any() else np.ones_like(close)
    area = ndimage.gaussian_filter1d(np.histogram(piece.arc[close], edges)[0].astype(float), 1.5)
    disc = ndimage.gaussian_filter1d(np.histogram(disc_arc, edges)[0].astype(float), 1.0)
    reference = np.percentile(area, 80) + 1e-6
    score = (1 - area / reference) + np.minimum(disc / reference, 1.0)
    if piece.rank is not None:
        score += _rank_fall(piece.arc, piece.rank, edges)
    part = bins / count
    best = np.full((count, bins), -np.inf)
    came = np.zeros((count, bins), int)
    at = np.arange(bins)
    for cut in range(1, count):
        # Equal parts by default; a cut may leave its place by a quarter of a part without much cost.
        local = score - 0.5 * ((at - cut * part) / (0.5 * part)) ** 2
        if cut == 1:
            best[1] = np.where(at >= 0.4 * part, local, -np.inf)
            continue
        for b in range(bins):
            earlier = best[cut - 1, : max(0, b - int(0.5 * part))]
            if len(earlier):
                came[cut, b] = int(np.argmax(earlier))
                best[cut, b] = local[b] + earlier[came[cut, b]]
    chosen = [int(np.argmax(best[count - 1]))]
    for cut in range(count - 1, 1, -1):
        chosen.append(int(came[cut, chosen[-1]]))
    return (edges[:-1] + edges[1:])[sorted(chosen)] / 2


def _rank_fall(arc: np.ndarray, rank: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """How much the median rank of the 8 mm above each bin exceeds that of the 8 mm below it, 0…1."""
    step = max(1, len(arc) // 50_000)  # enough for medians
    order = np.argsort(arc[::step])
    arc, rank = arc[::step][order], rank[::step][order]
    fall = np.zeros(len(edges) - 1)
    for i, centre in enumerate((edges[:-1] + edges[1:]) / 2):
        a, m, b = np.searchsorted(arc, (centre - 8, centre, centre + 8))
        if m - a > 5 and b - m > 5:
            fall[i] = np.clip(np.median(rank[a:m]) - np.median(rank[m:b]), 0, 1)
    return fall


def merge_fragments(
    pieces: list[Piece], sizes: Sizes, disc_arc: np.ndarray, settings: ConsistencySettings, *, whole: bool = False
) -> list[Piece]:
    """Pieces, top down, with the fragments of one body joined.

    Two pieces side by side (more than half of the shorter one's span in common) are one; so are two that lie on top
    of each other if together they are no taller than a body, the network gives them the same rank and no disc lies
    between. Of whole vertebrae, pieces side by side must have the same rank too: a spinous process hangs beside the
    body below it.
    """
    s = settings
    result = sorted(pieces, key=lambda p: p.middle(s.near_axis))
    at = 0
    while at + 1 < len(result):
        upper, lower = result[at], result[at + 1]
        if _side_by_side(upper, lower, s, whole) or _stacked(upper, lower, sizes, disc_arc, s):
            result[at : at + 2] = [upper.joined(lower)]
            at = max(at - 1, 0)
        else:
            at += 1
    return result


def _same_rank(a: Piece, b: Piece) -> bool:
    first, second = a.median_rank, b.median_rank
    return first is None or second is None or abs(first - second) <= 0.5


def _side_by_side(a: Piece, b: Piece, s: ConsistencySettings, whole: bool) -> bool:
    if whole and not _same_rank(a, b):
        return False
    (a0, a1), (b0, b1) = a.span(s.near_axis), b.span(s.near_axis)
    shorter = max(min(a1 - a0, b1 - b0), 1.0)
    return (min(a1, b1) - max(a0, b0)) / shorter > 0.5


def _stacked(a: Piece, b: Piece, sizes: Sizes, disc_arc: np.ndarray, s: ConsistencySettings) -> bool:
    (a0, a1), (b0, b1) = a.span(s.near_axis), b.span(s.near_axis)
    if max(a1, b1) - min(a0, b0) > s.merge_height * sizes.at(a).height:
        return False
    if not _same_rank(a, b):
        return False
    gap = (disc_arc > (a0 + a1) / 2) & (disc_arc < (b0 + b1) / 2)
    return bool(np.count_nonzero(gap) < 0.15 * min(len(a.index), len(b.index)))
