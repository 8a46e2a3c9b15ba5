"""The names of a column's pieces: evidence and hints weighed, and what else they could be called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from ..anatomy import L6_ID, STRUCTURES, T13_ID
from ..errors import HintError
from ..results import Alternative
from .column import Column
from .instances import canal_instances, leftovers, named_instances, renaming
from .likelihoods import (
    Ends,
    doubt_contradicted,
    items_of,
    keeps_range,
    levels_of_range,
    limit_range,
    pin_anchors,
    pin_locked,
    range_in_words,
)
from .messages import close_call, in_words, sacrum_seen, short_last_disc, warnings_of
from .result import LevelResult
from .sequence import NEVER, Item, Level, Naming, expected_distance, name_levels, states_of


def name_column(
    column: Column, anchors: list[tuple[int, np.ndarray]], visible: tuple[int | None, int | None] | None
) -> LevelResult:
    s = column.settings
    if not column.bones and not column.discs:
        if anchors:
            raise HintError("There is nothing to anchor: no vertebra or disc was found.", "Omit the anchors.")
        found = canal_instances(column) + leftovers(column)
        return column.result(found, warnings=["No vertebra was found."])
    states = states_of(column.scheme)
    items = items_of(column, states)
    believed = [int(item.unary.argmax()) for item in items]
    held = pin_locked(column, items, states)
    pinned = pin_anchors(column, items, states, anchors)
    doubt_contradicted(items, believed, s)
    naming = _named(column, items, states, visible, {*held, *pinned.values()})
    levels = naming.levels[::-1]
    _check_possible(column, naming, levels, items, pinned, visible, held)
    known = bool(held or pinned or visible)
    if not known and not sacrum_seen(column, levels):
        naming = naming.miscounted(states, {1: s.miscount / 2, -1: s.miscount / 2})
    reason = "" if known else short_last_disc(column, levels)
    if reason:
        naming = naming.miscounted(states, {-1: s.sacral_disc})
    of_discs = not column.bones
    kept = visible is not None and keeps_range(column, levels, visible)
    others = [
        (other[::-1], p)
        for other, p in naming.alternatives
        if visible is None or not kept or keeps_range(column, other[::-1], visible)
    ]
    # Every item's probability of every id, whichever variants the rest of the path has.
    probability: list[dict[int, float]] = []
    for row in naming.probability[::-1]:
        ids: dict[int, float] = {}
        for level, p in zip(states, row, strict=True):
            ids[level.id] = ids.get(level.id, 0.0) + float(p)
        probability.append(ids)
    found = named_instances(column, levels, probability)
    question = close_call(column, naming.margin, levels, others, reason)
    alternatives = [
        Alternative(
            in_words(other, of_discs=of_discs),
            p,
            renaming(column, found, named_instances(column, other, probability)),
            question if number == 0 else "",
        )
        for number, (other, p) in enumerate(others)
        if p >= _WORTH_A_WORD
    ]
    found += canal_instances(column) + leftovers(column)
    return column.result(
        found,
        sequence=in_words(levels, of_discs=of_discs),
        confidence={i.structure_id: i.confidence for i, _ in found if i.structure_id},
        margin=float(naming.margin),
        alternatives=alternatives,
        warnings=warnings_of(column, levels, question, visible, known=known),
    )


_WORTH_A_WORD = 0.01
"""Probability from which on another naming is offered."""


def _named(
    column: Column,
    items: list[Item],
    states: Sequence[Level],
    visible: tuple[int | None, int | None] | None,
    hinted: set[int],
) -> Naming:
    """The best naming, from the lowest item up.

    Where the network's count would omit an end of the range that the reader sees, its opinion counts little: who
    looks at the image knows what is in it.
    """
    s = column.settings
    lowest = (column.bones or column.discs)[-1]
    # With less than that below the lowest, the next one would not show.
    cut_below = column.room_below(lowest) < 0.6 * column.sizes.pitch
    variants = _variants(column, {*hinted, *(i for i in visible or () if i)})

    def best(weight: float = 1.0, ends: Ends | None = None) -> Naming:
        weighted = [
            replace(item, unary=np.where(np.isfinite(item.unary), weight * item.unary, -np.inf))
            for item in reversed(items)
        ]
        return name_levels(
            weighted,
            states,
            column.sizes.pitch,
            cut_below=cut_below,
            variants=variants,
            settings=s,
            ends=None if ends is None else (ends.lowest[::-1], ends.topmost[::-1]),
        )

    naming = best()
    if visible is None:
        return naming
    # What the column has without the hint is there; what it lacks may be anything.
    there = [level is not None for level in reversed(naming.levels)]
    ends = limit_range(column, items, states, visible, there)
    naming = best(ends=ends)
    if not naming.possible or keeps_range(column, naming.levels[::-1], visible):
        return naming
    doubted = best(s.doubted, ends)
    return doubted if keeps_range(column, doubted.levels[::-1], visible) else naming


def _variants(column: Column, hinted: set[int]) -> dict[int, float]:
    """Log weight of L6 and T13: their frequency; less where ranks cannot show them; none where a hint names them."""
    s = column.settings
    unseen = s.unseen_variant if column.cropped.classes is None else 0.0
    usual = {L6_ID: s.log_l6 + unseen, T13_ID: s.log_t13 + unseen}
    return {sid: 0.0 if sid in hinted else weight for sid, weight in usual.items()}


def _too_close(column: Column, levels: list[Level | None]) -> bool:
    """Whether levels were omitted between two pieces that are too close to each other for that."""
    near, s = column.settings.near_axis, column.settings
    placed = [(p.middle(near), x.rank) for p, x in zip(column.bones or column.discs, levels, strict=True) if x]
    for (upper, high), (lower, low) in pairwise(placed):
        if high - low > 1:
            expected = column.sizes.pitch * float(expected_distance(np.array(float(low)), np.array(float(high))))
            if lower - upper < s.least_gap * expected:
                return True
    return False


def _check_possible(
    column: Column,
    naming: Naming,
    levels: list[Level | None],
    items: list[Item],
    pinned: dict[int, int],
    visible: tuple[int | None, int | None] | None,
    held: list[int],
) -> None:
    """HintError where hints leave no naming, or only one that omits whole vertebrae."""
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
    crowded = visible and naming.possible and _too_close(column, levels)
    if naming.possible and not unnamed and not crowded and not (lost and (pinned or visible)):
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
        whole = sum(item.drop_cost >= s.drop_cost for item in items)
        asked = levels_of_range(visible)
        if crowded or (None not in visible and whole < len(asked)):
            count = f"are {len(asked)} levels" if None not in visible else "has more levels than that"
            raise HintError(
                f"{whole} vertebrae or discs were found, {range_in_words(visible)} {count}, and the image has no room "
                "for another.",
                "Correct the visible range or omit it.",
            )
        raise HintError(
            f"{len(items)} vertebrae or discs were found, which is more than {range_in_words(visible)} has room for.",
            "Correct the visible range or omit it.",
        )
