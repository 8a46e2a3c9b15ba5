"""What there is of a spine in a volume, before anything has a name: kind map, axis, pieces, canal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..anatomy import CANAL_ID, KINDS, L6_ID, STRUCTURES, T13_ID, Extent, Kind, ranks
from ..evidence import Evidence
from ..imaging.boxes import bounding_box
from .result import Instance, LevelResult
from .settings import ConsistencySettings
from .shapes import (
    Piece,
    Sizes,
    SpineAxis,
    components,
    coordinates,
    fit_axis,
    merge_fragments,
    split_touching,
    tapered_sizes,
    usual_sizes,
)

_FILM_DEGREE = 6  # of the axis: a scoliosis may have three curves
BONE, DISC, CANAL, POSTERIOR = 1, 2, 3, 4  # values of the kind map: vertebra and sacrum are one until named


class Column:
    """Kind map, axis and pieces of one volume, cropped to what is not background."""

    def __init__(self, evidence: Evidence, settings: ConsistencySettings, locked: np.ndarray | None = None) -> None:
        self.settings, self.scheme, self.spacing = settings, evidence.scheme, evidence.spacing
        source = evidence.kinds if evidence.kinds is not None else evidence.classes
        if source is None:
            raise ValueError("Evidence holds neither classes nor kinds")
        self.shape: tuple[int, int, int] = source.shape[1:]
        self.thickness = self.shape[0] * self.spacing[0]
        self.voxel = float(np.prod(self.spacing))
        self.whole = evidence.scheme.extent is Extent.WHOLE
        self.film = evidence.scheme.modality == "XR"  # of the whole column, which may bend to either side
        # Only where background has no majority can anything else win: the rest is cut away before the real work.
        candidates = source[0] <= 0.5
        if locked is not None:
            candidates |= locked > 0
        self.box = bounding_box(candidates) or (slice(0, 0),) * 3
        self.axis: SpineAxis  # through the pieces, once there are any
        self.bones: list[Piece] = []
        self.discs: list[Piece] = []
        self.rejected: list[tuple[str, np.ndarray]] = []
        self.residue: dict[int, list[np.ndarray]] = {}  # what the network gives a locked structure beyond its voxels
        self.sizes = Sizes(settings.usual_height, settings.usual_pitch)
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
        self.locked = np.zeros(self.kind.shape, np.int16) if locked is None else locked[self.box].astype(np.int16)
        self._impose_locked()
        self.sacral = self.probability[KINDS.index("sacrum")] > self.probability[KINDS.index("vertebra")]

    @classmethod
    def of(cls, evidence: Evidence, settings: ConsistencySettings, locked: np.ndarray | None = None) -> Column:
        """The column with its axis and pieces found.

        Args:
            locked: (D, H, W) structure ids of what the reader has drawn and named; 0 elsewhere.
        """
        column = cls(evidence, settings, locked)
        if any(s.order is not None for s in evidence.scheme.structures):
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
        free = self.locked == 0
        bones = self._at_least(components((self.kind == BONE) & free), s.fragment_share * least_bone, "vertebra")
        discs = self._at_least(components((self.kind == DISC) & free), s.fragment_share * least_disc, "disc")
        fixed = self._fixed()
        if not bones and not discs and not fixed:
            return
        points = np.concatenate([self.points(i) for i in (*bones, *discs, *fixed.values())])
        self.axis = fit_axis(points, _FILM_DEGREE if self.film else 4)
        fixed_bones = [self._piece(i, sid) for sid, i in fixed.items() if STRUCTURES[sid].is_vertebral]
        fixed_discs = [self._piece(i, sid) for sid, i in fixed.items() if not STRUCTURES[sid].is_vertebral]
        if fixed:
            bones = self._beyond(bones, fixed_bones)
            discs = self._beyond(discs, fixed_discs)
        bone_pieces = self._on_axis(bones, (Kind.VERTEBRA, Kind.SACRUM))
        disc_pieces = self._on_axis(discs, (Kind.DISC,))
        if self.film:
            self.sizes = tapered_sizes(bone_pieces + fixed_bones, s, single=False)
        else:
            self.sizes = usual_sizes(bone_pieces + fixed_bones, disc_pieces + fixed_discs, s)
        bone_pieces = self._without_rims(bone_pieces, fixed_bones, 0.4 * self.sizes.height)
        disc_pieces = self._without_rims(disc_pieces, fixed_discs, 4.0)  # mm; a thin disc
        disc_arc = np.concatenate([p.arc[p.radial < s.near_axis] for p in disc_pieces] or [np.zeros(0)])
        parts = [q for p in bone_pieces for q in split_touching(p, self.sizes, disc_arc, s, whole=self.whole)]
        parts = merge_fragments(parts, self.sizes, disc_arc, s, whole=self.whole)
        if self.film:  # told by what is single now, where many had grown together
            self.sizes = tapered_sizes(parts + fixed_bones, s, single=True)
        found = self._large_enough(parts, least_bone, "vertebra")
        self.bones = sorted(found + fixed_bones, key=lambda p: p.middle(s.near_axis))
        for disc in merge_fragments(disc_pieces, Sizes(0.0, 0.0), np.zeros(0), s):
            inside = any(
                abs(disc.middle(s.near_axis) - b.middle(s.near_axis)) < 0.2 * b.height(s.near_axis) for b in self.bones
            )
            if inside or self.volume(disc) < least_disc:
                self.rejected.append(("disc", disc.index))
            else:
                self.discs.append(disc)
        self.discs = sorted(self.discs + fixed_discs, key=lambda p: p.middle(s.near_axis))

    # --- what the reader locked

    def _impose_locked(self) -> None:
        """Where something is locked the network is not asked what it is."""
        self.kind[self.locked > 0] = 0
        kinds = {
            Kind.VERTEBRA: BONE, Kind.SACRUM: BONE, Kind.DISC: DISC, Kind.CANAL: CANAL, Kind.POSTERIOR: POSTERIOR,
        }  # fmt: skip
        for sid in np.unique(self.locked).tolist():
            if sid and STRUCTURES[sid].kind in kinds:
                self.kind[self.locked == sid] = kinds[STRUCTURES[sid].kind]

    def _fixed(self) -> dict[int, np.ndarray]:
        """Voxels of the locked structures that make up the column."""
        ids = [i for i in np.unique(self.locked).tolist() if i and STRUCTURES[i].is_counted]
        return {sid: np.flatnonzero(self.locked == sid) for sid in ids}

    def _piece(self, index: np.ndarray, sid: int) -> Piece:
        kinds = (Kind.VERTEBRA, Kind.SACRUM) if STRUCTURES[sid].is_vertebral else (Kind.DISC,)
        arc, radial = self.axis.project(self.points(index))
        return Piece(index, arc, radial, self.voxel_ranks(index, kinds), self.sacral.ravel()[index], sid)

    def _beyond(self, found: list[np.ndarray], fixed: list[Piece]) -> list[np.ndarray]:
        """What the network found of a kind, without what lies beside the locked ones: that is the same anatomy.

        A component that holds a locked vertebra's rest and its neighbor is thereby parted.
        """
        near = self.settings.near_axis
        if not found or not fixed:
            return found
        index = np.concatenate(found)
        arc, radial = self.axis.project(self.points(index))
        rest = np.ones(len(index), bool)
        for piece in fixed:
            low, high = piece.span(near)
            beside = (arc >= low) & (arc <= high)
            if self.whole:  # a neighbor's spinous process hangs beside the body
                beside &= radial < near
            self.residue.setdefault(piece.locked, []).append(index[beside])
            rest &= ~beside
        mask = np.zeros(self.kind.shape, bool)
        mask.ravel()[index[rest]] = True
        return components(mask)

    def _without_rims(self, pieces: list[Piece], fixed: list[Piece], thin: float) -> list[Piece]:
        """Pieces without the thin ones (mm) directly above or below a locked one: its endplate, not another."""
        near, kept = self.settings.near_axis, []
        for piece in pieces:
            low, high = piece.span(near)
            touching = [
                f
                for f in fixed
                if high - low < thin and min(abs(low - f.span(near)[1]), abs(high - f.span(near)[0])) < 3.0
            ]
            if touching:
                self.residue.setdefault(touching[0].locked, []).append(piece.index)
            else:
                kept.append(piece)
        return kept

    def with_residue(self, piece: Piece) -> np.ndarray:
        """Voxels of a piece; of a locked one with what the network gives it beyond."""
        return np.concatenate([piece.index, *self.residue.get(piece.locked, ())]) if piece.locked else piece.index

    # --- looks at pieces

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
        limit = s.off_axis_whole if self.whole or self.film else s.off_axis
        result, beside = [], []
        for index in found:
            points = self.points(index)
            _, off = self.axis.project(points.mean(axis=0, keepdims=True))
            if off[0] > limit:
                beside.append(index)
                continue
            arc, radial = self.axis.project(points)
            result.append(Piece(index, arc, radial, self.voxel_ranks(index, kinds), self.sacral.ravel()[index]))
        if beside:
            self.rejected.append((f"{kinds[0].value} islands", np.concatenate(beside)))
        return result

    def voxel_ranks(self, index: np.ndarray, kinds: tuple[Kind, ...]) -> np.ndarray | None:
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
        classes = self.cropped.class_probabilities()
        return np.stack([classes[self.scheme.channel_of[i]][at] for i in ids]).astype(np.float32)

    def touches(self, index: np.ndarray) -> tuple[bool, bool, bool]:
        """Whether voxels reach the grid's (first row, last row, first or last column)."""
        _, rows, columns = np.unravel_index(index, self.kind.shape)
        rows, columns = rows + self.box[1].start, columns + self.box[2].start
        last_row, last_column = self.shape[1] - 1, self.shape[2] - 1
        return (
            bool(rows.min() == 0),
            bool(rows.max() == last_row),
            bool(columns.min() == 0 or columns.max() == last_column),
        )

    def room_below(self, piece: Piece) -> float:
        """Distance from a piece's lowest voxel to the last row, mm."""
        rows = np.unravel_index(piece.index, self.kind.shape)[1] + self.box[1].start
        return float((self.shape[1] - 1 - rows.max()) * self.spacing[1])

    def room_above(self, piece: Piece) -> float:
        """Distance from the first row to a piece's highest voxel, mm."""
        rows = np.unravel_index(piece.index, self.kind.shape)[1] + self.box[1].start
        return float(rows.min() * self.spacing[1])

    def is_cut(self, piece: Piece) -> tuple[bool, bool]:
        """Whether the image ends within a piece above, and below: outlines may end a pixel or two before the edge."""
        return self.room_above(piece) < self.settings.at_edge, self.room_below(piece) < self.settings.at_edge

    def output_id(self, sid: int) -> int:
        """The id if the scheme has it, else 0."""
        return sid if sid in self.scheme.channel_of else 0

    def instance(
        self,
        kind: str,
        index: np.ndarray,
        structure_id: int,
        *,
        rank: float | None = None,
        confidence: float = 0.0,
        runner_up: int | None = None,
    ) -> Instance:
        """An `Instance` of these voxels."""
        offset = np.array([b.start for b in self.box]) * self.spacing
        z, y, x = (self.points(index).mean(axis=0) + offset).tolist()
        at_edge = any(self.touches(index))
        return Instance(kind, structure_id, (z, y, x), self.volume(index), rank, confidence, runner_up, at_edge)

    def result(self, found: list[tuple[Instance, np.ndarray]], **known: Any) -> LevelResult:
        """Instances and their voxels as label arrays on the whole grid; `known` is what else a `LevelResult` says."""
        labels, pieces = np.zeros(self.shape, np.int16), np.zeros(self.shape, np.int16)
        label_crop, piece_crop = np.zeros(self.kind.shape, np.int16), np.zeros(self.kind.shape, np.int16)
        for number, (instance, index) in enumerate(found, start=1):
            label_crop.ravel()[index] = instance.structure_id
            piece_crop.ravel()[index] = number
        labels[self.box], pieces[self.box] = label_crop, piece_crop
        return LevelResult(labels, [i for i, _ in found], self.spacing, pieces, **known)


def _kind_map(probability: np.ndarray) -> np.ndarray:
    """(K, D, H, W) → uint8: background, bone (vertebra or sacrum), disc, canal, posterior elements.

    The two bone channels are added first: a sacrum that is half vertebra to the network is bone all the same.
    """
    best = probability[0].copy()
    kind = np.zeros(best.shape, np.uint8)
    bone = probability[KINDS.index("vertebra")] + probability[KINDS.index("sacrum")]
    named = {value: probability[KINDS.index(k)] for value, k in ((DISC, "disc"), (CANAL, "canal"))}
    if len(probability) > (posterior := KINDS.index("posterior")):
        named[POSTERIOR] = probability[posterior]
    for value, p in ((BONE, bone), *named.items()):
        wins = p > best
        kind[wins] = value
        np.maximum(best, p, out=best)
    return kind


def canal_parts(column: Column) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Canal components that are kept (the largest, and what continues its line), and the rest."""
    s = column.settings
    if (column.locked == CANAL_ID).any():
        fixed = column.locked == CANAL_ID
        return [np.flatnonzero(fixed), *components((column.kind == CANAL) & ~fixed)], []
    found = components(column.kind == CANAL)
    if not found:
        return [], []
    least = column.minimum(s.min_canal_area, s.min_disc_depth)
    main = column.points(found[0])
    if column.volume(found[0]) < least:
        return [], found
    line = fit_axis(main)
    kept: list[np.ndarray] = [found[0]]
    rest: list[np.ndarray] = []
    for index in found[1:]:
        _, off = line.project(column.points(index).mean(axis=0, keepdims=True))
        # 15 mm is the canal's width: farther off is something else. A fragment may be a quarter of the least size.
        (kept if off[0] < 15 and column.volume(index) >= 0.25 * least else rest).append(index)
    return kept, rest
