"""From `Evidence` to named instances: `resolve_levels`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..anatomy import (
    CANAL_ID,
    DISC_ID,
    KINDS,
    L6_ID,
    POSTERIOR_ID,
    STRUCTURES,
    T13_ID,
    VERTEBRA_ID,
    Kind,
    disc_below,
    level_chain,
    vertebra_above,
)
from ..errors import HintError
from ..evidence import Evidence
from .column import BONE, DISC, POSTERIOR, Column, canal_parts
from .likelihoods import check_hints, doubt_contradicted, items_of, limit_range, pin_anchors, pin_locked, range_in_words
from .messages import in_words, warnings_of
from .posterior import posterior_instances
from .result import Instance, LevelResult
from .sequence import NEVER, Item, Level, Naming, disc_of, name_levels, relative_pitch, states_of
from .settings import ConsistencySettings
from .shapes import Piece, components, coordinates

_DEFAULT = ConsistencySettings()


def resolve_levels(
    evidence: Evidence,
    *,
    anchors: Sequence[tuple[int, tuple[float, float, float]]] = (),
    visible: tuple[int | None, int | None] | None = None,
    locked: np.ndarray | None = None,
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
            end costs as much as one missing in between. An end that is None is not known; then a level not found at
            the other costs more (`ConsistencySettings.end_cost`).
        locked: (D, H, W) structure ids that the reader has drawn and named. They keep their names, whatever the network
            says, and the others are counted from them. What the network found of the same anatomy beside them gets
            their id, too (the caller gives these voxels to what is there otherwise); what reaches beyond them along
            the spine is a structure of its own.

    Raises:
        HintError: hints that contradict the image, the scheme or each other.
    """
    scheme = evidence.scheme
    spinal = {Kind.VERTEBRA, Kind.SACRUM, Kind.DISC, Kind.CANAL, Kind.POSTERIOR}
    if not any(s.kind in spinal for s in scheme.structures):
        return _without_spine(evidence, settings)
    column = Column.of(evidence, settings, locked)
    if any(s.order is not None for s in scheme.structures):
        return _name_column(column, check_hints(scheme, anchors, visible), visible)
    if anchors or visible:
        raise HintError(f"The label scheme “{scheme.name}” has no levels to anchor.", "Leave the hint out.")
    return _generic(column)


# --- schemes without levels ------------------------------------------------------------------------------------------


def _generic(column: Column) -> LevelResult:
    s = column.settings
    found: list[tuple[Instance, np.ndarray]] = []
    sizes = (
        (BONE, VERTEBRA_ID, column.minimum(s.min_bone_area, s.min_bone_depth)),
        (DISC, DISC_ID, column.minimum(s.min_disc_area, s.min_disc_depth)),
        (POSTERIOR, POSTERIOR_ID, column.minimum(s.min_posterior_area, s.min_disc_depth)),
    )
    for value, sid, least in sizes:
        if sid not in column.scheme.channel_of:
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


def _canal_instances(column: Column) -> list[tuple[Instance, np.ndarray]]:
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
        z, y, x = coordinates(index, best.shape, evidence.spacing).mean(axis=0).tolist()
        confidence[s.id] = mean
        instances.append(Instance(s.kind.value, s.id, (z, y, x), voxel * len(index), None, mean, None, False))
    return LevelResult(labels, instances, evidence.spacing, pieces, confidence=confidence)


# --- naming ----------------------------------------------------------------------------------------------------------


def _name_column(
    column: Column, anchors: list[tuple[int, np.ndarray]], visible: tuple[int | None, int | None] | None
) -> LevelResult:
    s = column.settings
    if not column.bones and not column.discs:
        if anchors:
            raise HintError("There is nothing to anchor: no vertebra or disc was found.", "Leave the anchors out.")
        found = _canal_instances(column) + _leftovers(column)
        return column.result(found, warnings=["No vertebra was found."])
    states = states_of(column.scheme)
    items = items_of(column, states)
    believed = [int(item.unary.argmax()) for item in items]
    held = pin_locked(column, items, states)
    pinned = pin_anchors(column, items, states, anchors)
    doubt_contradicted(items, believed, s)
    if visible is not None:
        limit_range(column, items, states, visible)
    subjects = column.bones or column.discs
    lowest = subjects[-1]
    # With less than that below the lowest, the next one would not show.
    cut_below = column.room_below(lowest) < 0.6 * column.sizes.pitch
    naming = name_levels(
        items[::-1],
        states,
        column.sizes.pitch,
        cut_below=cut_below,
        variants=_variants(column, {*held, *pinned.values(), *(i for i in visible or () if i)}),
        settings=s,
    )
    levels = naming.levels[::-1]
    _check_possible(column, naming, levels, items, pinned, visible, held)
    # Every item's probability of every id, whichever variants the rest of the path has.
    probability: list[dict[int, float]] = []
    for row in naming.probability[::-1]:
        ids: dict[int, float] = {}
        for level, p in zip(states, row, strict=True):
            ids[level.id] = ids.get(level.id, 0.0) + float(p)
        probability.append(ids)

    if column.bones:
        found = _bone_instances(column, levels, probability) + _disc_instances(column, levels, probability)
    else:
        found = _lone_discs(column, levels, probability)
    named = [(piece, level) for piece, level in zip(column.bones, levels, strict=False) if level]  # none of lone discs
    found += posterior_instances(column, named, {i.structure_id: i for i, _ in found if i.structure_id})
    found += _canal_instances(column) + _leftovers(column)
    confidence = {i.structure_id: i.confidence for i, _ in found if i.structure_id}
    return column.result(
        found,
        sequence=in_words(levels, of_discs=not column.bones),
        confidence=confidence,
        margin=float(naming.margin),
        alternatives=[(in_words(o[::-1], of_discs=not column.bones), p) for o, p in naming.alternatives],
        warnings=warnings_of(column, naming, levels, known=bool(held or pinned or visible)),
    )


def _variants(column: Column, hinted: set[int]) -> dict[int, float]:
    """Log weight of L6 and T13: their frequency; less where ranks cannot show them; none where a hint names them."""
    s = column.settings
    unseen = s.unseen_variant if column.cropped.classes is None else 0.0
    usual = {L6_ID: s.log_l6 + unseen, T13_ID: s.log_t13 + unseen}
    return {sid: 0.0 if sid in hinted else weight for sid, weight in usual.items()}


def _check_possible(
    column: Column,
    naming: Naming,
    levels: list[Level | None],
    items: list[Item],
    pinned: dict[int, int],
    visible: tuple[int | None, int | None] | None,
    held: list[int],
) -> None:
    """HintError where hints leave no naming, or only one that leaves out whole vertebrae."""
    s = column.settings
    named = [i for i, level in enumerate(levels) if level is not None]
    lost = [
        i
        for i, level in enumerate(levels)
        if level is None
        and items[i].drop_cost >= s.drop_cost
        and (i in pinned or items[i].below_cost >= NEVER or (named and i < named[-1]))
    ]
    subjects = column.bones or column.discs
    unnamed = held and any(p.locked and level is None for p, level in zip(subjects, levels, strict=True))
    if naming.possible and not unnamed and not (lost and (pinned or visible)):
        return
    if held and (unnamed or not naming.possible):
        names = ", ".join(STRUCTURES[sid].name for sid in held)
        raise HintError(
            f"The locked structures ({names}) contradict each other"
            + (", or the anchors or the visible range." if pinned or visible else ": their levels are out of order."),
            "Correct the names of the locked ones, or the hints.",
        )
    if pinned:
        names = " and ".join(STRUCTURES[sid].name for sid in pinned.values())
        raise HintError(
            f"The anchors do not fit what was found: {len(items)} vertebrae or discs in view cannot be named with "
            f"{names}" + (" in this range." if visible else " there."),
            "Correct or remove an anchor" + (" or the visible range." if visible else "."),
        )
    if visible:
        raise HintError(
            f"{len(items)} vertebrae or discs were found, which is more than {range_in_words(visible)} has room for.",
            "Correct the visible range or leave it out.",
        )


# --- instances -------------------------------------------------------------------------------------------------------


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


def _leftovers(column: Column) -> list[tuple[Instance, np.ndarray]]:
    return [(column.instance(kind, index, 0), index) for kind, index in column.rejected]
