"""Instances out of named pieces: vertebrae, the discs between them, posterior elements, the canal."""

from __future__ import annotations

import numpy as np

from ..anatomy import CANAL_ID, KINDS, STRUCTURES, disc_below, level_chain, vertebra_above
from .column import Column, canal_parts
from .posterior import posterior_instances
from .result import Instance
from .sequence import Level, disc_of, relative_pitch
from .shapes import Piece


def named_instances(
    column: Column, levels: list[Level | None], probability: list[dict[int, float]]
) -> list[tuple[Instance, np.ndarray]]:
    """What is named: vertebrae, discs, posterior elements, with their voxels."""
    if column.bones:
        found = _bone_instances(column, levels, probability) + _disc_instances(column, levels, probability)
    else:
        found = _lone_discs(column, levels, probability)
    named = [(piece, level) for piece, level in zip(column.bones, levels, strict=False) if level]  # none of lone discs
    return found + posterior_instances(column, named, {i.structure_id: i for i, _ in found if i.structure_id})


def renaming(
    column: Column, now: list[tuple[Instance, np.ndarray]], other: list[tuple[Instance, np.ndarray]]
) -> dict[int, int]:
    """Id that a structure has now → what another naming calls most of its voxels, 0 if it omits them."""
    called = np.zeros(column.kind.size, np.int16)
    for instance, index in other:
        called[index] = instance.structure_id
    mapping: dict[int, int] = {}
    for instance, index in now:
        if old := instance.structure_id:
            new = int(np.bincount(called[index]).argmax())
            if new != old:
                mapping[old] = new
    return mapping


def canal_instances(column: Column) -> list[tuple[Instance, np.ndarray]]:
    if CANAL_ID not in column.scheme.channel_of:
        return []
    kept, rest = canal_parts(column)
    found = []
    if kept:
        index = np.concatenate(kept)
        confidence = float(column.probability[KINDS.index("canal")].ravel()[index].mean())
        found.append((column.instance("canal", index, CANAL_ID, confidence=confidence), index))
    if rest:
        index = np.concatenate(rest)
        found.append((column.instance("canal", index, 0), index))
    return found


def _second(ids: dict[int, float], best: int) -> int | None:
    others = [(p, i) for i, p in ids.items() if i != best and p > 0.001]
    return max(others)[1] if others else None


def _bone_instances(
    column: Column, levels: list[Level | None], probability: list[dict[int, float]]
) -> list[tuple[Instance, np.ndarray]]:
    found = []
    for piece, level, ids in zip(column.bones, levels, probability, strict=True):
        sid = level.id if level else 0
        kind = STRUCTURES[sid].kind.value if level else "vertebra"
        instance = column.instance(
            kind,
            piece.index,
            piece.locked or column.output_id(sid),
            rank=piece.median_rank,
            confidence=min(ids.get(sid, 0.0), 1.0),
            runner_up=_second(ids, sid),
        )
        found.append((instance, column.with_residue(piece)))
    return found


def _lone_discs(
    column: Column, levels: list[Level | None], probability: list[dict[int, float]]
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
            piece.locked or column.output_id(sid),
            rank=piece.median_rank,
            confidence=min(ids.get(upper, 0.0), 1.0),
            runner_up=runner_up.id if runner_up else None,
        )
        found.append((instance, column.with_residue(piece)))
    return found


def _disc_instances(
    column: Column, levels: list[Level | None], probability: list[dict[int, float]]
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
    fixed = {disc.locked for disc in column.discs if disc.locked}
    for disc in column.discs:
        if disc.locked:
            instance = column.instance("disc", disc.index, disc.locked, rank=disc.median_rank, confidence=1.0)
            found.append((instance, column.with_residue(disc)))
            continue
        place = _disc_place(disc.middle(near), named, column.sizes.pitch)
        upper = chain[place[0]] if place and 0 <= place[0] < len(chain) - 1 else 0
        below = disc_below(upper) if upper else None
        sid = column.output_id(below.id) if below else 0
        if sid and place and sid not in fixed:
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
    """(chain position of the vertebra above the disc, which of `named` it was inferred from)."""
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


def leftovers(column: Column) -> list[tuple[Instance, np.ndarray]]:
    return [(column.instance(kind, index, 0), index) for kind, index in column.rejected]
