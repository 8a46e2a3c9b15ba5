"""From `Evidence` to named instances: `resolve_levels`, and `nearest_level_maps` to take the names to another grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from scipy import ndimage

from ..anatomy import (
    CANAL_ID,
    DISC_ID,
    KINDS,
    SACRUM_ID,
    STRUCTURES,
    VERTEBRA_ID,
    Extent,
    Kind,
    LabelScheme,
    disc_below,
    level_chain,
    ranks,
    structure,
    vertebra_above,
)
from ..errors import HintError, SchemeError
from ..evidence import Evidence
from .sequence import L6_ID, NEVER, T13_ID, Item, Level, Naming, disc_of, name_levels, relative_pitch, states_of
from .settings import ConsistencySettings
from .shapes import (
    Piece,
    Sizes,
    SpineAxis,
    bounding_box,
    components,
    coordinates,
    fit_axis,
    merge_fragments,
    split_touching,
    usual_sizes,
)

_BONE, _DISC, _CANAL = 1, 2, 3  # values of the kind map in here: vertebra and sacrum are one until named
_DEFAULT = ConsistencySettings()


@dataclass(frozen=True)
class Instance:
    """One vertebra, disc, canal or vessel.

    Attributes:
        kind: ``"vertebra"``, ``"sacrum"``, ``"disc"``, ``"canal"`` …
        structure_id: its level; 0 for what was left out (it has no voxels in `LevelResult.labels`).
        centroid_mm: position along (slices, rows, columns) from the centre of the grid's first voxel.
        volume_mm3: of its voxels.
        rank: median rank that the network gave it, or None.
        confidence: 0…1; of the level for vertebrae and discs, of the voxels for the rest.
        runner_up: the next most probable level, or None.
        touches_border: reaches the first or last row or column, so that it may be cut.
    """

    kind: str
    structure_id: int
    centroid_mm: tuple[float, float, float]
    volume_mm3: float
    rank: float | None
    confidence: float
    runner_up: int | None
    touches_border: bool


@dataclass
class LevelResult:
    """What `resolve_levels` returns.

    Attributes:
        labels: (D, H, W) int16 structure ids, 0 background.
        instances: top down, vertebrae first, then discs, then the rest; those left out have `structure_id` 0.
        spacing: mm along (slices, rows, columns).
        sequence: for a reader, e.g. ``"T11 T12 L1 (L2) L3"``, a missing level in brackets.
        confidence: structure id → 0…1.
        margin: log odds of the sequence to the second-best one, at most 20.
        alternatives: other sequences with their probability, best first.
        warnings: sentences for the reader.
        pieces: (D, H, W) int16; voxel value i + 1 belongs to `instances[i]`, left out or not.
    """

    labels: np.ndarray
    instances: list[Instance]
    spacing: tuple[float, float, float]
    sequence: str = ""
    confidence: dict[int, float] = field(default_factory=dict)
    margin: float = 20.0
    alternatives: list[tuple[str, float]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    pieces: np.ndarray | None = None


def resolve_levels(
    evidence: Evidence,
    *,
    anchors: Sequence[tuple[int, tuple[float, float, float]]] = (),
    visible: tuple[int, int] | None = None,
    settings: ConsistencySettings = _DEFAULT,
) -> LevelResult:
    """Instances along the spine, and one possible sequence of names for them.

    Schemes without levels only lose their islands. No instance at all is a result (empty labels), not an error.

    Args:
        evidence: class probabilities, or kinds with or without ranks.
        anchors: (structure id, (slice, row, column) index, fractional) of vertebrae or discs whose level is known; a
            point beside an instance counts for the nearest one within 15 mm.
        visible: topmost and lowest vertebra wholly in view. No instance is named beyond them, except one more at either
            end that touches the image's edge, and the sacrum below the last lumbar vertebra; a level not found at an
            end costs as much as one missing in between.

    Raises:
        HintError: hints that contradict the image, the scheme or each other.
    """
    scheme = evidence.scheme
    spinal = {Kind.VERTEBRA, Kind.SACRUM, Kind.DISC, Kind.CANAL}
    if not any(s.kind in spinal for s in scheme.structures):
        return _without_spine(evidence, settings)
    column = _Column.of(evidence, settings)
    if any(s.order is not None for s in scheme.structures):
        return _name_column(column, _check_hints(scheme, anchors, visible), visible)
    if anchors or visible:
        raise HintError(f"The label scheme “{scheme.name}” has no levels to anchor.", "Leave the hint out.")
    return _generic(column)


# --- what is there ---------------------------------------------------------------------------------------------------


class _Column:
    """Kind map, axis and pieces of one volume, cropped to what is not background."""

    def __init__(self, evidence: Evidence, settings: ConsistencySettings) -> None:
        self.settings, self.scheme, self.spacing = settings, evidence.scheme, evidence.spacing
        source = evidence.kinds if evidence.kinds is not None else evidence.classes
        if source is None:
            raise ValueError("Evidence holds neither classes nor kinds")
        self.shape: tuple[int, int, int] = source.shape[1:]
        self.thickness = self.shape[0] * self.spacing[0]
        self.voxel = float(np.prod(self.spacing))
        self.whole = evidence.scheme.extent is Extent.WHOLE
        # Only where background has no majority can anything else win: the rest is cut away before the real work.
        candidates = source[0] <= 0.5
        self.box = bounding_box(candidates) if candidates.any() else None
        self.axis: SpineAxis | None = None
        self.bones: list[Piece] = []
        self.discs: list[Piece] = []
        self.rejected: list[tuple[str, np.ndarray]] = []
        self.sizes = Sizes(settings.usual_height, settings.usual_pitch)
        self.cropped = evidence
        self.kind = np.zeros((0, 0, 0), np.uint8)
        self.sacral = np.zeros((0, 0, 0), bool)
        if self.box is not None:
            within = (slice(None), *self.box)
            self.cropped = Evidence(
                evidence.spacing,
                evidence.scheme,
                classes=None if evidence.classes is None else evidence.classes[within],
                kinds=None if evidence.kinds is None else evidence.kinds[within],
                rank=None if evidence.rank is None else np.ascontiguousarray(evidence.rank[self.box]),
            )
            self.probability = self.cropped.kind_probabilities()
            self.kind = _kind_map(self.probability)
            self.sacral = self.probability[KINDS.index("sacrum")] > self.probability[KINDS.index("vertebra")]

    @classmethod
    def of(cls, evidence: Evidence, settings: ConsistencySettings) -> _Column:
        """The column with its axis and pieces found."""
        column = cls(evidence, settings)
        if column.box is not None and any(s.order is not None for s in evidence.scheme.structures):
            column._find()
        return column

    def minimum(self, area: float, depth: float) -> float:
        """Volume threshold in mm³ for this slab."""
        return area * min(self.thickness, depth)

    def volume(self, piece: Piece | np.ndarray) -> float:
        """mm³."""
        return self.voxel * len(piece.index if isinstance(piece, Piece) else piece)

    def points(self, index: np.ndarray) -> np.ndarray:
        """Positions in the crop, mm."""
        return coordinates(index, self.kind.shape, self.spacing)

    def _find(self) -> None:
        s = self.settings
        least_bone = self.minimum(s.min_bone_area, s.min_bone_depth)
        least_disc = self.minimum(s.min_disc_area, s.min_disc_depth)
        bones = self._at_least(components(self.kind == _BONE), s.fragment_share * least_bone, "vertebra")
        discs = self._at_least(components(self.kind == _DISC), s.fragment_share * least_disc, "disc")
        if not bones and not discs:
            return
        self.axis = fit_axis(np.concatenate([self.points(i) for i in (*bones, *discs)]))
        bone_pieces = self._on_axis(bones, (Kind.VERTEBRA, Kind.SACRUM))
        disc_pieces = self._on_axis(discs, (Kind.DISC,))
        self.sizes = usual_sizes(bone_pieces, disc_pieces, s)
        disc_arc = np.concatenate([p.arc[p.radial < s.near_axis] for p in disc_pieces] or [np.zeros(0)])
        parts = [q for p in bone_pieces for q in split_touching(p, self.sizes, disc_arc, s, whole=self.whole)]
        parts = merge_fragments(parts, self.sizes, disc_arc, s, whole=self.whole)
        self.bones = self._large_enough(parts, least_bone, "vertebra")
        for disc in merge_fragments(disc_pieces, Sizes(0.0, 0.0), np.zeros(0), s):
            inside = any(
                abs(disc.middle(s.near_axis) - b.middle(s.near_axis)) < 0.2 * b.height(s.near_axis) for b in self.bones
            )
            if inside or self.volume(disc) < least_disc:
                self.rejected.append(("disc", disc.index))
            else:
                self.discs.append(disc)

    def _at_least(self, found: list[np.ndarray], volume: float, kind: str) -> list[np.ndarray]:
        # Islands are not even counted as left out: they are noise. They only must not come back in a larger instance.
        kept = [i for i in found if self.volume(i) >= volume]
        noise = [i for i in found if self.volume(i) < volume]
        if noise:
            self.rejected.append((f"{kind} islands", np.concatenate(noise)))
        return kept

    def _large_enough(self, pieces: list[Piece], volume: float, kind: str) -> list[Piece]:
        self.rejected += [(kind, p.index) for p in pieces if self.volume(p) < volume]
        return [p for p in pieces if self.volume(p) >= volume]

    def _on_axis(self, found: list[np.ndarray], kinds: tuple[Kind, ...]) -> list[Piece]:
        s = self.settings
        limit = s.off_axis_whole if self.whole else s.off_axis
        result, beside = [], []
        for index in found:
            points = self.points(index)
            _, off = self.axis.project(points.mean(axis=0, keepdims=True))  # type: ignore[union-attr]
            if off[0] > limit:
                beside.append(index)
                continue
            arc, radial = self.axis.project(points)  # type: ignore[union-attr]
            result.append(Piece(index, arc, radial, self._voxel_ranks(index, kinds), self.sacral.ravel()[index]))
        if beside:
            self.rejected.append((f"{kinds[0].value} islands", np.concatenate(beside)))
        return result

    def _voxel_ranks(self, index: np.ndarray, kinds: tuple[Kind, ...]) -> np.ndarray | None:
        """Rank per voxel: the network's own, or that of the most probable class."""
        if self.cropped.rank is not None:
            return self.cropped.rank.ravel()[index].astype(np.float32)
        if self.cropped.classes is None:
            return None
        ids = [i for i in self.scheme.of_kind(*kinds) if STRUCTURES[i].order is not None]
        if not ids:
            return None
        best = np.argmax(self.class_probabilities(index, ids), axis=0)
        met = {i for i in (L6_ID, T13_ID) if i in ids and np.mean(best == ids.index(i)) > 0.05}
        rank = {**ranks({L6_ID, T13_ID}), **ranks(met)}
        return np.array([rank[i] for i in ids], np.float32)[best]

    def class_probabilities(self, index: np.ndarray, ids: Sequence[int]) -> np.ndarray:
        """(len(ids), N) probabilities of these structures' channels at these voxels."""
        at = np.unravel_index(index, self.kind.shape)  # the crop is a view: to flatten it would copy every class
        return np.stack([self.cropped.classes[self.scheme.channel_of[i]][at] for i in ids]).astype(np.float32)  # type: ignore[index]

    def touches(self, index: np.ndarray) -> tuple[bool, bool, bool]:
        """Whether voxels reach the grid's (first row, last row, first or last column)."""
        _, rows, columns = np.unravel_index(index, self.kind.shape)
        rows, columns = rows + self.box[1].start, columns + self.box[2].start  # type: ignore[index]
        last_row, last_column = self.shape[1] - 1, self.shape[2] - 1
        return (
            bool(rows.min() == 0),
            bool(rows.max() == last_row),
            bool(columns.min() == 0 or columns.max() == last_column),
        )

    def room_below(self, piece: Piece) -> float:
        """Distance from a piece's lowest voxel to the last row, mm."""
        rows = np.unravel_index(piece.index, self.kind.shape)[1] + self.box[1].start  # type: ignore[index]
        return float((self.shape[1] - 1 - rows.max()) * self.spacing[1])

    def instance(self, kind: str, index: np.ndarray, structure_id: int, **known) -> Instance:
        """An `Instance` of these voxels."""
        offset = np.array([b.start for b in self.box]) * self.spacing  # type: ignore[union-attr]
        centroid = self.points(index).mean(axis=0) + offset
        fields = {"rank": None, "confidence": 0.0, "runner_up": None, **known}
        return Instance(
            kind,
            structure_id,
            tuple(float(c) for c in centroid),  # type: ignore[arg-type]
            self.volume(index),
            touches_border=any(self.touches(index)),
            **fields,
        )

    def result(self, found: list[tuple[Instance, np.ndarray]], **known) -> LevelResult:
        """Instances and their voxels as label arrays on the whole grid."""
        labels, pieces = np.zeros(self.shape, np.int16), np.zeros(self.shape, np.int16)
        if self.box is not None:
            label_crop, piece_crop = np.zeros(self.kind.shape, np.int16), np.zeros(self.kind.shape, np.int16)
            for number, (instance, index) in enumerate(found, start=1):
                label_crop.ravel()[index] = instance.structure_id
                piece_crop.ravel()[index] = number
            labels[self.box], pieces[self.box] = label_crop, piece_crop
        return LevelResult(labels, [i for i, _ in found], self.spacing, pieces=pieces, **known)


def _kind_map(probability: np.ndarray) -> np.ndarray:
    """(5, D, H, W) → uint8: background, bone (vertebra or sacrum), disc, canal.

    The two bone channels are added first: a sacrum that is half vertebra to the network is bone all the same.
    """
    best = probability[0].copy()
    kind = np.zeros(best.shape, np.uint8)
    bone = probability[KINDS.index("vertebra")] + probability[KINDS.index("sacrum")]
    disc, canal = probability[KINDS.index("disc")], probability[KINDS.index("canal")]
    for value, p in ((_BONE, bone), (_DISC, disc), (_CANAL, canal)):
        wins = p > best
        kind[wins] = value
        np.maximum(best, p, out=best)
    return kind


def _canal(column: _Column) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Canal components that are kept (the largest, and what continues its line), and the rest."""
    s = column.settings
    found = components(column.kind == _CANAL)
    if not found:
        return [], []
    least = column.minimum(s.min_canal_area, s.min_disc_depth)
    main = column.points(found[0])
    kept, rest = [], []
    if column.volume(found[0]) < least:
        return [], found
    line = fit_axis(main)
    for index in found:
        _, off = line.project(column.points(index).mean(axis=0, keepdims=True))
        # 15 mm is the canal's width: farther off is something else. A fragment may be a quarter of the least size.
        (kept if off[0] < 15 and column.volume(index) >= 0.25 * least else rest).append(index)
    return kept, rest


# --- schemes without levels ------------------------------------------------------------------------------------------


def _generic(column: _Column) -> LevelResult:
    s = column.settings
    found: list[tuple[Instance, np.ndarray]] = []
    sizes = (
        (_BONE, VERTEBRA_ID, column.minimum(s.min_bone_area, s.min_bone_depth)),
        (_DISC, DISC_ID, column.minimum(s.min_disc_area, s.min_disc_depth)),
    )
    for value, sid, least in sizes:
        if sid not in column.scheme.channel_of or column.box is None:
            continue
        kind = STRUCTURES[sid].kind.value
        channel = column.probability[KINDS.index(kind)].ravel()
        for index in components(column.kind == value):
            keep = sid if column.volume(index) >= least else 0
            confidence = float(channel[index].mean()) if keep else 0.0
            found.append((column.instance(kind, index, keep, confidence=confidence), index))
    found.sort(key=lambda f: (f[0].structure_id == 0, f[0].kind != "vertebra", f[0].centroid_mm[1]))
    found += _canal_instances(column)
    return column.result(found, confidence=_generic_confidence(found))


def _canal_instances(column: _Column) -> list[tuple[Instance, np.ndarray]]:
    if column.box is None or CANAL_ID not in column.scheme.channel_of:
        return []
    kept, rest = _canal(column)
    found = []
    if kept:
        index = np.concatenate(kept)
        confidence = float(column.probability[KINDS.index("canal")].ravel()[index].mean())
        found.append((column.instance("canal", index, CANAL_ID, confidence=confidence), index))
    if rest:
        index = np.concatenate(rest)
        found.append((column.instance("canal", index, 0), index))
    return found


def _generic_confidence(found: list[tuple[Instance, np.ndarray]]) -> dict[int, float]:
    result: dict[int, float] = {}
    for sid in {i.structure_id for i, _ in found} - {0}:
        group = [i for i, _ in found if i.structure_id == sid]
        volume = sum(i.volume_mm3 for i in group)
        result[sid] = float(sum(i.confidence * i.volume_mm3 for i in group) / volume)
    return result


def _without_spine(evidence: Evidence, settings: ConsistencySettings) -> LevelResult:
    """Arg-max of the classes without islands; for vessels and the like."""
    classes, scheme = evidence.classes, evidence.scheme
    if classes is None:
        raise ValueError(f"The scheme “{scheme.name}” has no kinds; class probabilities are needed")
    best = np.argmax(classes, axis=0)
    labels, pieces = np.zeros(best.shape, np.int16), np.zeros(best.shape, np.int16)
    voxel = float(np.prod(evidence.spacing))
    least = settings.min_other_volume
    instances: list[Instance] = []
    confidence: dict[int, float] = {}
    for s in scheme.structures:
        channel = scheme.channel_of[s.id]
        kept = [i for i in components(best == channel) if voxel * len(i) >= least]
        if not kept:
            continue
        index = np.concatenate(kept)
        labels.ravel()[index] = s.id
        pieces.ravel()[index] = len(instances) + 1
        mean = float(classes[channel].ravel()[index].mean())
        centroid = coordinates(index, best.shape, evidence.spacing).mean(axis=0)
        confidence[s.id] = mean
        instances.append(
            Instance(s.kind.value, s.id, tuple(map(float, centroid)), voxel * len(index), None, mean, None, False)  # type: ignore[arg-type]
        )
    return LevelResult(labels, instances, evidence.spacing, confidence=confidence, pieces=pieces)


# --- hints -----------------------------------------------------------------------------------------------------------


def _check_hints(
    scheme: LabelScheme,
    anchors: Sequence[tuple[int, tuple[float, float, float]]],
    visible: tuple[int, int] | None,
) -> list[tuple[int, np.ndarray]]:
    """Anchors with their points as arrays, after the checks that need no image."""
    result = []
    for sid, point in anchors:
        try:
            anatomy = scheme.require(sid)
        except SchemeError as error:
            raise HintError(f"An anchor names what cannot be found: {error.message}", error.remedy) from error
        if anatomy.order is None:
            raise HintError(
                f"“{anatomy.name}” cannot be an anchor: it has no level.",
                "Anchor a vertebra or a disc, e.g. L5 or L4/L5.",
            )
        result.append((sid, np.asarray(point, float)))
    by_height = sorted(result, key=lambda a: a[1][1])
    for (upper, p), (lower, q) in pairwise(by_height):
        if STRUCTURES[upper].order > STRUCTURES[lower].order and q[1] - p[1] > 3:  # type: ignore[operator]
            raise HintError(
                f"The anchors are out of order: {STRUCTURES[upper].name} was put above {STRUCTURES[lower].name}.",
                "Correct or remove one of them.",
            )
    if visible is not None:
        top, bottom = structure(visible[0]), structure(visible[1])
        if not (top.is_vertebral and bottom.is_vertebral) or top.order is None or bottom.order is None:
            raise HintError("The visible range must be named by vertebrae.", "For example T11 to S1.")
        if top.order > bottom.order:
            raise HintError(
                f"The visible range {top.name} to {bottom.name} is upside down.", "Name the topmost vertebra first."
            )
    return result


def _hit(column: _Column, point: np.ndarray, pieces: list[Piece], name: str) -> int:
    """Which piece an index point means."""
    offset = np.array([b.start for b in column.box])  # type: ignore[union-attr]
    at = (point - offset) * column.spacing
    distance = [float(np.min(np.sum((column.points(p.index) - at) ** 2, axis=1))) ** 0.5 for p in pieces]
    best = int(np.argmin(distance))
    if distance[best] > column.settings.anchor_reach:
        raise HintError(
            f"The anchor {name} lies {distance[best]:.0f} mm away from anything that was found.",
            "Put it inside the vertebra or disc that it names.",
        )
    return best


# --- naming ----------------------------------------------------------------------------------------------------------


def _laplace(rank: np.ndarray, expected: np.ndarray, s: ConsistencySettings) -> np.ndarray:
    """Log likelihood of a piece's voxel ranks for each expected rank, up to a constant."""
    median = float(np.median(rank))
    spread = 1.4826 * float(np.median(np.abs(rank - median)))
    scale = max(s.rank_scale, spread) + s.rank_scale_slope * max(median, 0.0)
    return -np.minimum(np.abs(median - expected), s.rank_cap) / scale


def _class_likelihood(column: _Column, piece: Piece, ids: Sequence[int]) -> np.ndarray:
    """Log of the mean probability of each id over a piece; ids without a class get a fixed small probability."""
    s, scheme = column.settings, column.scheme
    known = sorted({i for i in ids if i in scheme.channel_of})
    share = dict.fromkeys(ids, s.hidden_probability)
    if known:
        # Nearest-neighbour thinning: 4,000 voxels are plenty for a mean.
        index = piece.index[:: max(1, len(piece.index) // 4000)]
        mean = column.class_probabilities(index, known).mean(axis=1)
        mean = mean / max(float(mean.sum()), 1e-6)
        share.update({i: float(m) + s.class_floor for i, m in zip(known, mean, strict=True)})
    return np.log([share[i] for i in ids])


def _opinion(column: _Column, piece: Piece, ids: Sequence[int], expected: np.ndarray) -> np.ndarray:
    """(S,) log evidence of a piece for being each of `ids`, whose ranks are `expected`; zeros where none is given."""
    if column.cropped.rank is not None and piece.rank is not None:
        return _laplace(piece.rank, expected, column.settings)
    if column.cropped.classes is not None:
        return _class_likelihood(column, piece, ids)
    return np.zeros(len(ids))


def _level_above(states: Sequence[Level], level: Level) -> Level | None:
    return next((x for x in states if (x.rank, x.l6, x.t13) == (level.rank + 1, level.l6, level.t13)), None)


def _attach(column: _Column) -> list[tuple[int, int] | None]:
    """For each disc the bone that it informs, and 0 if it lies below that bone, 1 if above; None if neither is near."""
    near = column.settings.near_axis
    middles = np.array([b.middle(near) for b in column.bones])
    reach = 0.85 * column.sizes.pitch
    result: list[tuple[int, int] | None] = []
    for disc in column.discs:
        at = disc.middle(near)
        below = int(np.searchsorted(middles, at))
        if below > 0 and at - middles[below - 1] < reach:
            result.append((below - 1, 0))
        elif below < len(middles) and middles[below] - at < reach:
            result.append((below, 1))
        else:
            result.append(None)
    return result


def _shared(evidence: np.ndarray, states: Sequence[Level], weight: float) -> np.ndarray:
    """Evidence of one instance among many that err together, so that each has less than full weight.

    Whether this very instance is an L6 or T13 is an opinion that no other instance shares; it keeps its full weight.
    """
    variant = np.array([level.id in (L6_ID, T13_ID) for level in states])
    result = weight * evidence
    if variant.any() and np.ptp(evidence) > 0:
        result[variant] += (1 - weight) * (evidence[variant] - evidence[~variant].max())
    return result


def _items(column: _Column, states: Sequence[Level]) -> list[Item]:
    """Bones (or discs, where there are no bones) as items, top down, with all evidence."""
    s = column.settings
    subjects = column.bones or column.discs
    of_discs = not column.bones
    rank = np.array([level.rank for level in states], float)
    ids = [level.id for level in states]
    disc_ids = [disc_of(level) for level in states]
    above = [_level_above(states, level) for level in states]
    above_ids = [disc_of(level) for level in above]
    unary = [_opinion(column, p, disc_ids if of_discs else ids, rank - 0.5 if of_discs else rank) for p in subjects]
    witnesses = float(len(subjects))
    if not of_discs:
        for disc, place in zip(column.discs, _attach(column), strict=True):
            if place is None:
                continue
            bone, side = place
            opinion = _opinion(column, disc, above_ids if side else disc_ids, rank + (0.5 if side else -0.5))
            unary[bone] = unary[bone] + s.disc_weight * opinion
            witnesses += s.disc_weight
    volumes = np.array([column.volume(p) for p in subjects])
    small = s.small_share * np.median(volumes)
    sacrum = np.array([level.id == SACRUM_ID for level in states])
    items = []
    for piece, evidence, volume in zip(subjects, unary, volumes, strict=True):
        evidence = _shared(evidence, states, min(1.0, s.independent / witnesses))
        if of_discs:
            evidence = np.where(sacrum, -np.inf, evidence)
        elif column.cropped.kinds is not None and SACRUM_ID in column.scheme.channel_of:
            share = float(piece.sacral.mean())
            hit, false = s.sacrum_hit, s.sacrum_false
            yes = share * np.log(hit) + (1 - share) * np.log(1 - hit)
            no = share * np.log(false) + (1 - share) * np.log(1 - false)
            evidence = evidence + np.where(sacrum, yes, no)
        cut = any(column.touches(piece.index)[:2])
        cost = s.drop_cost_small if volume < small and not cut else s.drop_cost
        # Two sacral segments at most look like vertebrae, and only if the network does not count them as lumbar.
        fits = len(items) >= len(subjects) - 2 and evidence[~sacrum].max() - evidence[sacrum].max() < s.below_sacrum_fit
        below = min(s.drop_cost_below_sacrum - float(evidence[sacrum].max()), cost) if fits and not of_discs else cost
        items.append(Item(_position(column, piece), evidence, cost, below))
    return items


def _position(column: _Column, piece: Piece) -> float:
    """Centre of a piece along the axis, mm; where it would be if the piece is cut by the image's edge."""
    near, height = column.settings.near_axis, column.sizes.height
    low, high = piece.span(near)
    at_top, at_bottom, _ = column.touches(piece.index)
    if at_top == at_bottom or high - low > 0.9 * height or not column.bones:
        return (low + high) / 2
    return high - height / 2 if at_top else low + height / 2


def _pin_anchors(
    column: _Column, items: list[Item], states: Sequence[Level], anchors: list[tuple[int, np.ndarray]]
) -> dict[int, int]:
    """Forbid what anchors exclude; returns item → structure that it was anchored as."""
    pinned: dict[int, int] = {}
    of_discs = not column.bones
    for sid, point in anchors:
        s = STRUCTURES[sid]
        if s.kind is not Kind.DISC and of_discs:
            raise HintError(f"The anchor {s.name} names a vertebra, but only discs were found.", "Anchor a disc.")
        above = [False] * len(states)
        if s.kind is Kind.DISC:
            upper = vertebra_above(sid).id
            if of_discs:
                at = _hit(column, point, column.discs, s.name)
                allowed = np.array([level.id == upper for level in states])
            else:
                if not column.discs:
                    raise HintError(f"The anchor {s.name} names a disc, but none was found.", "Anchor a vertebra.")
                disc = _hit(column, point, column.discs, s.name)
                place = _attach(column)[disc]
                if place is None:
                    raise HintError(
                        f"The anchor {s.name} lies in a disc that has no vertebra beside it.", "Anchor a vertebra."
                    )
                at, side = place
                if side:
                    above = [(up := _level_above(states, level)) is not None and up.id == upper for level in states]
                    allowed = np.array(above)
                else:
                    allowed = np.array([level.id == upper for level in states])
        else:
            at = _hit(column, point, column.bones, s.name)
            allowed = np.array([level.id == sid for level in states])
        items[at].unary = np.where(allowed, items[at].unary, -np.inf)
        items[at].drop_cost = items[at].below_cost = NEVER
        if not np.isfinite(items[at].unary).any():
            raise HintError(
                f"{STRUCTURES[pinned[at]].name} and {s.name} are anchored in the same place."
                if at in pinned
                else f"Nothing can be {s.name} where the anchor lies.",
                "Correct or remove one of the anchors.",
            )
        pinned[at] = sid
    return pinned


def _limit_range(column: _Column, items: list[Item], states: Sequence[Level], visible: tuple[int, int]) -> None:
    """Forbid levels beyond the visible range, and charge for levels at its ends that nothing shows."""
    s = column.settings
    top, bottom = STRUCTURES[visible[0]].order, STRUCTURES[visible[1]].order
    order = np.array([STRUCTURES[level.id].order for level in states], float)
    subjects = column.bones or column.discs
    if not ((order >= top) & (order <= bottom)).any():  # type: ignore[operator]
        raise HintError(
            f"The visible range {STRUCTURES[visible[0]].name} to {STRUCTURES[visible[1]].name} has no level of the "
            f"label scheme “{column.scheme.name}”.",
            "Correct the range or take another checkpoint.",
        )
    # The order counts T13 and L6 as steps, which most spines lack: distance in levels is counted along the usual chain.
    rank = ranks({i for i in (L6_ID, T13_ID) if i in visible})
    usual = np.array([rank.get(level.id, level.rank) for level in states], float)
    last = len(items) - 1
    for i, (item, piece) in enumerate(zip(items, subjects, strict=True)):
        at_top, at_bottom, _ = column.touches(piece.index)
        # Who counts vertebrae may well not count the sacrum that is seen below them.
        at_bottom = at_bottom or rank[visible[1]] == 0
        high, low = rank[visible[0]] + (at_top and i == 0), rank[visible[1]] - (at_bottom and i == last)
        allowed = (usual <= high) & (usual >= low)
        item.unary = np.where(allowed, item.unary, -np.inf)
        if i == 0:
            item.unary = item.unary - s.skip_cost * np.maximum(rank[visible[0]] - usual, 0)
        if i == last:
            item.unary = item.unary - s.skip_cost * np.maximum(usual - rank[visible[1]], 0)


def _name_column(
    column: _Column, anchors: list[tuple[int, np.ndarray]], visible: tuple[int, int] | None
) -> LevelResult:
    s = column.settings
    if not column.bones and not column.discs:
        if anchors:
            raise HintError("There is nothing to anchor: no vertebra or disc was found.", "Leave the anchors out.")
        found = _leftovers(column) if column.box is not None else []
        return column.result(_canal_instances(column) + found, warnings=["No vertebra was found."])
    states = states_of(column.scheme)
    items = _items(column, states)
    pinned = _pin_anchors(column, items, states, anchors)
    if visible is not None:
        _limit_range(column, items, states, visible)
    subjects = column.bones or column.discs
    lowest = subjects[-1]
    # With less than that below the lowest, the next one would not show.
    cut_below = column.room_below(lowest) < 0.6 * column.sizes.pitch
    naming = name_levels(
        items[::-1],
        states,
        column.sizes.pitch,
        cut_below=cut_below,
        variants=_variants(column, {*pinned.values(), *(visible or ())}),
        settings=s,
    )
    levels = naming.levels[::-1]
    _check_possible(column, naming, levels, items, pinned, visible)
    # Every item's probability of every id, whichever variants the rest of the path has.
    probability: list[dict[int, float]] = []
    for row in naming.probability[::-1]:
        ids: dict[int, float] = {}
        for level, p in zip(states, row, strict=True):
            ids[level.id] = ids.get(level.id, 0.0) + float(p)
        probability.append(ids)

    found: list[tuple[Instance, np.ndarray]] = []
    if column.bones:
        found += _bone_instances(column, levels, probability)
        found += _disc_instances(column, levels, probability)
    else:
        found += _lone_discs(column, levels, probability)
    found += _canal_instances(column) + _leftovers(column)
    confidence = {i.structure_id: i.confidence for i, _ in found if i.structure_id}
    return column.result(
        found,
        sequence=_sequence(levels, of_discs=not column.bones),
        confidence=confidence,
        margin=float(naming.margin),
        alternatives=[(_sequence(o[::-1], of_discs=not column.bones), p) for o, p in naming.alternatives],
        warnings=_warnings(column, naming, levels, known=bool(pinned or visible)),
    )


def _variants(column: _Column, hinted: set[int]) -> dict[int, float]:
    """Log weight of L6 and T13: their frequency; less where ranks cannot show them; none where a hint names them."""
    s = column.settings
    unseen = s.unseen_variant if column.cropped.rank is not None else 0.0
    usual = {L6_ID: s.log_l6 + unseen, T13_ID: s.log_t13 + unseen}
    return {sid: 0.0 if sid in hinted else weight for sid, weight in usual.items()}


def _check_possible(
    column: _Column,
    naming: Naming,
    levels: list[Level | None],
    items: list[Item],
    pinned: dict[int, int],
    visible: tuple[int, int] | None,
) -> None:
    """HintError where hints leave no naming, or only one that leaves out whole vertebrae."""
    s = column.settings
    named = [i for i, level in enumerate(levels) if level is not None]
    lost = [
        i
        for i, level in enumerate(levels)
        if level is None and items[i].drop_cost >= s.drop_cost and (i in pinned or (named and i < named[-1]))
    ]
    if naming.possible and not (lost and (pinned or visible)):
        return
    if pinned:
        names = " and ".join(STRUCTURES[sid].name for sid in pinned.values())
        raise HintError(
            f"The anchors do not fit what was found: {len(items)} vertebrae or discs in view cannot be named with "
            f"{names}" + (" in this range." if visible else " there."),
            "Correct or remove an anchor" + (" or the visible range." if visible else "."),
        )
    if visible:
        raise HintError(
            f"{len(items)} vertebrae or discs were found, which is more than {STRUCTURES[visible[0]].name} to "
            f"{STRUCTURES[visible[1]].name} has room for.",
            "Correct the visible range or leave it out.",
        )


# --- instances -------------------------------------------------------------------------------------------------------


def _output_id(column: _Column, sid: int) -> int:
    return sid if sid in column.scheme.channel_of else 0


def _second(ids: dict[int, float], best: int) -> int | None:
    others = [(p, i) for i, p in ids.items() if i != best and p > 0.001]
    return max(others)[1] if others else None


def _bone_instances(
    column: _Column, levels: list[Level | None], probability: list[dict[int, float]]
) -> list[tuple[Instance, np.ndarray]]:
    found = []
    for piece, level, ids in zip(column.bones, levels, probability, strict=True):
        sid = level.id if level else 0
        kind = STRUCTURES[sid].kind.value if level else "vertebra"
        instance = column.instance(
            kind,
            piece.index,
            _output_id(column, sid),
            rank=piece.median_rank,
            confidence=min(ids.get(sid, 0.0), 1.0),
            runner_up=_second(ids, sid),
        )
        found.append((instance, piece.index))
    return found


def _lone_discs(
    column: _Column, levels: list[Level | None], probability: list[dict[int, float]]
) -> list[tuple[Instance, np.ndarray]]:
    found = []
    for piece, level, ids in zip(column.discs, levels, probability, strict=True):
        sid = disc_of(level)
        upper = level.id if level else 0
        second = _second(ids, upper)
        runner_up = disc_below(second) if second else None
        instance = column.instance(
            "disc",
            piece.index,
            _output_id(column, sid),
            rank=piece.median_rank,
            confidence=min(ids.get(upper, 0.0), 1.0),
            runner_up=runner_up.id if runner_up else None,
        )
        found.append((instance, piece.index))
    return found


def _disc_instances(
    column: _Column, levels: list[Level | None], probability: list[dict[int, float]]
) -> list[tuple[Instance, np.ndarray]]:
    """Discs named from the vertebrae beside them, by extension of the pitch where one side has none."""
    near = column.settings.near_axis
    present = {level.id for level in levels if level}
    chain = [v.id for v in level_chain(present)]
    named = [
        (bone.middle(near), chain.index(level.id), level, ids)
        for bone, level, ids in zip(column.bones, levels, probability, strict=True)
        if level
    ]
    claimed: dict[int, list[tuple[Piece, int]]] = {}
    found: list[tuple[Instance, np.ndarray]] = []
    for disc in column.discs:
        place = _disc_place(disc.middle(near), named, column.sizes.pitch)
        upper = chain[place[0]] if place and 0 <= place[0] < len(chain) - 1 else 0
        below = disc_below(upper) if upper else None
        sid = _output_id(column, below.id) if below else 0
        if sid and place:
            claimed.setdefault(sid, []).append((disc, place[1]))
        else:
            found.append((column.instance("disc", disc.index, 0, rank=disc.median_rank), disc.index))
    for sid, group in claimed.items():
        group.sort(key=lambda g: len(g[0].index), reverse=True)
        main, neighbour = group[0]
        for other, _ in group[1:]:
            # A degenerated disc falls into an anterior and a posterior piece; at another height it is something else.
            if abs(other.middle(near) - main.middle(near)) < 8:
                main = main.joined(other)
            else:
                found.append((column.instance("disc", other.index, 0, rank=other.median_rank), other.index))
        _, _, level, ids = named[neighbour]
        second = _second(ids, level.id)
        runner_up = None
        if second in chain:
            shifted = chain.index(vertebra_above(sid).id) + chain.index(second) - chain.index(level.id)
            moved = disc_below(chain[shifted]) if 0 <= shifted < len(chain) else None
            runner_up = moved.id if moved else None
        instance = column.instance(
            "disc",
            main.index,
            sid,
            rank=main.median_rank,
            confidence=min(ids.get(level.id, 0.0), 1.0),
            runner_up=runner_up,
        )
        found.append((instance, main.index))
    found.sort(key=lambda f: f[0].centroid_mm[1])
    return found


def _disc_place(
    at: float, named: list[tuple[float, int, Level, dict[int, float]]], pitch: float
) -> tuple[int, int] | None:
    """(chain position of the vertebra above the disc, which of `named` it was told from)."""
    below = next((i for i, n in enumerate(named) if n[0] > at), len(named))
    if not named:
        return None
    if 0 < below < len(named):
        (a, first, *_), (b, second, *_) = named[below - 1], named[below]
        steps = second - first
        return first + min(int((at - a) / (b - a) * steps), steps - 1), below - 1
    if below == len(named):
        middle, first, level, _ = named[-1]
        steps = int((at - middle) / (pitch * relative_pitch(level.rank)))
        return (first + steps, below - 1) if steps <= 2 else None
    middle, first, level, _ = named[0]
    steps = int((middle - at) / (pitch * relative_pitch(level.rank + 1)))
    return (first - 1 - steps, 0) if steps <= 2 else None


def _leftovers(column: _Column) -> list[tuple[Instance, np.ndarray]]:
    return [(column.instance(kind, index, 0), index) for kind, index in column.rejected]


# --- words -----------------------------------------------------------------------------------------------------------


def _between(upper: Level, lower: Level) -> list[int]:
    """Ids of the levels missing between two consecutive ones."""
    chain = [v.id for v in level_chain({upper.id, lower.id})]
    return chain[chain.index(upper.id) + 1 : chain.index(lower.id)]


def _sequence(levels: Sequence[Level | None], *, of_discs: bool) -> str:
    """Names top down; missing levels in brackets."""
    words: list[str] = []
    previous: Level | None = None
    for level in levels:
        if level is None:
            continue
        if previous is not None:
            words += [f"({_word(i, of_discs)})" for i in _between(previous, level)]
        words.append(_word(level.id, of_discs))
        previous = level
    return " ".join(words)


def _word(sid: int, of_discs: bool) -> str:
    disc = disc_below(sid) if of_discs else None
    return disc.name if disc else STRUCTURES[sid].name


def _warnings(column: _Column, naming: Naming, levels: list[Level | None], *, known: bool) -> list[str]:
    """What a reader should know about the naming; `known` if hints fixed it."""
    s = column.settings
    of_discs = not column.bones
    named = [level for level in levels if level]
    if not named:
        return ["No vertebra could be named."]
    result = []
    if not known and not _sacrum_seen(column, levels):
        result.append("The sacrum is not visible: levels are a guess.")
    if naming.margin < s.close_call and naming.alternatives:
        other, probability = naming.alternatives[0]
        result.append(_close_call(named, [level for level in other[::-1] if level], probability, of_discs))
    for upper, lower in pairwise(named):
        missing = [_word(i, of_discs) for i in _between(upper, lower)]
        if missing:
            a, b = _word(upper.id, of_discs), _word(lower.id, of_discs)
            result.append(
                f"A level seems to be missing between {a} and {b}: {', '.join(missing)}."
                if len(missing) == 1
                else f"Levels seem to be missing between {a} and {b}: {', '.join(missing)}."
            )
    for sid, words in ((L6_ID, "Six lumbar vertebrae (L6)"), (T13_ID, "A thirteenth thoracic vertebra (T13)")):
        if any(level.id == sid for level in named):
            result.append(f"{words} seen: please check the numbering.")
    unnamed = [level for level in named if not _output_id(column, disc_of(level) if of_discs else level.id)]
    unnamed = [level for level in unnamed if level.id != SACRUM_ID]
    if unnamed:
        names = ", ".join(_word(level.id, of_discs) for level in unnamed)
        result.append(f"Left out, because this checkpoint has no label for it: {names}.")
    subjects = column.bones or column.discs
    volumes = [column.volume(p) for p in subjects]
    last = max(i for i, level in enumerate(levels) if level)
    lost = [
        i
        for i, level in enumerate(levels)
        if level is None and volumes[i] >= s.small_share * np.median(volumes) and i < last
    ]
    if lost:
        result.append(f"{len(lost)} structure(s) like a vertebra did not fit into the sequence and were left out.")
    return result


def _close_call(named: list[Level], other: list[Level], probability: float, of_discs: bool) -> str:
    here, there = {level.id for level in named}, {level.id for level in other}
    odds = f"{100 * probability:.0f} %"
    if not of_discs and (L6_ID in here) != (L6_ID in there):
        return f"L5 or L6? The lowest lumbar vertebra could be {'L5' if L6_ID in here else 'L6'} ({odds})."
    if not of_discs and (T13_ID in here) != (T13_ID in there):
        first, second = ("T13", "L1") if T13_ID in here else ("L1", "T13")
        return f"{first} or {second}? The count allows either ({odds} for the other)."
    mine = f"{_word(named[0].id, of_discs)} to {_word(named[-1].id, of_discs)}"
    theirs = f"{_word(other[0].id, of_discs)} to {_word(other[-1].id, of_discs)}" if other else "nothing"
    return f"{mine} or {theirs}? The levels are uncertain ({odds} for the other)."


def _sacrum_seen(column: _Column, levels: list[Level | None]) -> bool:
    """Whether the landmark that the count starts from is in view.

    S1 itself; or a last lumbar vertebra that the network takes for one, with 20 mm of image below it: it has seen
    what is there although it did not mark it.
    """
    at = max(i for i, level in enumerate(levels) if level)
    level = levels[at]
    if level.id == SACRUM_ID:  # type: ignore[union-attr]
        return True
    piece = (column.bones or column.discs)[at]
    expected = level.rank - (0.0 if column.bones else 0.5)  # type: ignore[union-attr]
    believed = piece.median_rank is not None and abs(piece.median_rank - expected) < 0.6
    return level.rank == 0 and believed and column.room_below(piece) > 20  # type: ignore[union-attr]


# --- to another grid -------------------------------------------------------------------------------------------------


def nearest_level_maps(result: LevelResult, reach: float = _DEFAULT.reach) -> dict[str, np.ndarray]:
    """For each kind a (D, H, W) int16 map: every voxel's nearest instance of this kind, as a structure id.

    For carrying names to a grid where the kinds were decided again: take the kind there and the level here (nearest
    neighbour). 0 where no instance lies within `reach` mm, or where the nearest one was left out. Vertebra and
    sacrum share one map, since which of the two bones it is, is decided here.

    Args:
        result: of `resolve_levels`.
        reach: mm; at least one and a half voxels are looked at in any direction.
    """
    bone = (Kind.VERTEBRA.value, Kind.SACRUM.value)
    groups: dict[str, list[int]] = {}
    for number, instance in enumerate(result.instances, start=1):
        groups.setdefault(bone[0] if instance.kind in bone else instance.kind.split(" ")[0], []).append(number)
    maps = {kind: _nearest(result, numbers, reach) for kind, numbers in groups.items()}
    if bone[0] in maps:
        maps[bone[1]] = maps[bone[0]]
    return maps


def _nearest(result: LevelResult, numbers: list[int], reach: float) -> np.ndarray:
    pieces, spacing = result.pieces, result.spacing
    level = np.zeros(pieces.shape, np.int16)  # type: ignore[union-attr]
    distance = np.full(pieces.shape, np.inf, np.float32)  # type: ignore[union-attr]
    margin = [max(int(np.ceil(reach / step)), 1) for step in spacing]
    boxes = ndimage.find_objects(pieces)
    for number in numbers:
        instance, box = result.instances[number - 1], boxes[number - 1] if number <= len(boxes) else None
        if box is None:
            continue
        grown = tuple(
            slice(max(b.start - m, 0), min(b.stop + m, n))
            for b, m, n in zip(box, margin, pieces.shape, strict=True)  # type: ignore[union-attr]
        )
        mine = pieces[grown] == number  # type: ignore[index]
        if instance.structure_id == 0 and instance.kind.endswith("islands"):
            # Scattered specks: their own voxels and the next ones only, else one box would span the volume.
            own = ndimage.binary_dilation(mine) & (distance[grown] > 0)
            level[grown][own], distance[grown][own] = 0, 0
            continue
        far = ndimage.distance_transform_edt(~mine, sampling=spacing)
        nearer = (far < distance[grown]) & (far <= max(reach, 1.5 * max(spacing)))
        level[grown][nearer] = instance.structure_id
        distance[grown][nearer] = far[nearer]
    return level
