"""A naming in words: the sequence, and what a reader should be warned of."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ..anatomy import L6_ID, SACRUM_ID, STRUCTURES, T13_ID, disc_below, level_chain, order_of
from .column import Column
from .likelihoods import attach
from .sequence import Level, disc_of
from .shapes import sagittal_length


def _between(upper: Level, lower: Level) -> list[int]:
    """Ids of the levels missing between two consecutive ones."""
    chain = [v.id for v in level_chain({upper.id, lower.id})]
    return chain[chain.index(upper.id) + 1 : chain.index(lower.id)]


def in_words(levels: Sequence[Level | None], *, of_discs: bool) -> str:
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


def warnings_of(
    column: Column,
    levels: list[Level | None],
    question: str,
    visible: tuple[int | None, int | None] | None,
    *,
    known: bool,
) -> list[str]:
    """What a reader should know about the naming.

    Args:
        question: of `close_call`.
        visible: the range that the user sees.
        known: whether hints fixed the levels.
    """
    s = column.settings
    of_discs = not column.bones
    named = [level for level in levels if level]
    if not named:
        return ["No vertebra could be named."]
    result = []
    if not known and not sacrum_seen(column, levels):
        landmark = "last lumbar vertebra" if column.film else "sacrum"
        result.append(f"No {landmark} was recognized: level labels are uncertain.")
    if question:
        result.append(question)
    if visible and not of_discs:
        ends = zip(visible, (named[0].id, named[-1].id), ("upper", "lower"), strict=True)
        for wanted, there, word in ends:
            # A vertebra beyond the range that the image's edge cuts, or the sacrum, is more than was asked for.
            inside = wanted and (order_of(there) > order_of(wanted)) == (word == "upper") and there != wanted
            if wanted and inside:
                name = STRUCTURES[wanted].name
                result.append(f"{name}, the {word} end of the visible range, was not recognized in the image.")
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
    unnamed = [level for level in named if not column.output_id(disc_of(level) if of_discs else level.id)]
    unnamed = [level for level in unnamed if level.id != SACRUM_ID]
    if unnamed:
        names = ", ".join(_word(level.id, of_discs) for level in unnamed)
        result.append(f"Omitted, because this model has no label for it: {names}.")
    subjects = column.bones or column.discs
    volumes = [column.volume(p) for p in subjects]
    last = max(i for i, level in enumerate(levels) if level)
    lost = [
        i
        for i, level in enumerate(levels)
        if level is None and volumes[i] >= s.small_share * np.median(volumes) and i < last
    ]
    if lost:
        result.append(
            f"{len(lost)} structure(s) that look like vertebrae did not fit into the sequence and were omitted."
        )
    return result


def close_call(
    column: Column,
    margin: float,
    levels: list[Level | None],
    others: Sequence[tuple[list[Level | None], float]],
    reason: str = "",
) -> str:
    """The question whether the levels are right, where another naming fits nearly as well; else nothing.

    Args:
        margin: log odds of the naming to the next.
        others: namings that read differently, with their probability, best first.
        reason: why they are uncertain, if it is known.
    """
    named = [level for level in levels if level]
    if not others or not named or margin >= column.settings.close_call:
        return ""
    levels_of_other, probability = others[0]
    question = _question(named, [level for level in levels_of_other if level], probability, not column.bones)
    return f"{question[:-1]}: {reason}." if reason else question


def _question(named: list[Level], other: list[Level], probability: float, of_discs: bool) -> str:
    here, there = {level.id for level in named}, {level.id for level in other}
    odds = f"{100 * probability:.0f} %"
    if not of_discs and (L6_ID in here) != (L6_ID in there):
        return f"L5 or L6? The lowest lumbar vertebra could be {'L5' if L6_ID in here else 'L6'} ({odds})."
    if not of_discs and (T13_ID in here) != (T13_ID in there):
        first, second = ("T13", "L1") if T13_ID in here else ("L1", "T13")
        return f"{first} or {second}? The count allows either ({odds} for the other)."
    mine = f"{_word(named[0].id, of_discs)} to {_word(named[-1].id, of_discs)}"
    theirs = f"{_word(other[0].id, of_discs)} to {_word(other[-1].id, of_discs)}" if other else "nothing"
    if mine == theirs:  # they differ in the middle
        mine, theirs = (in_words(x, of_discs=of_discs) for x in (named, other))
    return f"{mine} or {theirs}? The levels are uncertain ({odds} for the other)."


def short_last_disc(column: Column, levels: Sequence[Level | None]) -> str:
    """What is said of the disc below the last lumbar vertebra if it is as short as one within the sacrum; else nothing.

    Then the S1 that was named is the second segment of the sacrum, and all levels are one too high. Nothing is said
    where this disc or the next one is not seen whole.
    """
    last = next((i for i, x in enumerate(levels) if x and x.rank == 0), None) if column.bones else None
    if not last:  # none, or nothing above it
        return ""
    places = attach(column)
    below = [[d for d, place in zip(column.discs, places, strict=True) if place == (i, 0)] for i in (last, last - 1)]
    if not all(len(found) == 1 and not any(column.touches(found[0].index)) for found in below):
        return ""
    low, high = (sagittal_length(column.points(disc.index)) for (disc,) in below)
    if low >= column.settings.short_disc * high:
        return ""
    return (
        f"the lowest disc is {low:.0f} mm long from front to back and the next one {high:.0f} mm; a disc within the "
        "sacrum is as short"
    )


def sacrum_seen(column: Column, levels: list[Level | None]) -> bool:
    """Whether the landmark that the count starts from is in view.

    S1 itself; or a last lumbar vertebra that the network takes for one, with 20 mm of image below it: it has seen
    what is there although it did not mark it.
    """
    piece, level = [(p, x) for p, x in zip(column.bones or column.discs, levels, strict=True) if x][-1]
    if level.id == SACRUM_ID:
        return True
    expected = level.rank - (0.0 if column.bones else 0.5)
    believed = piece.median_rank is not None and abs(piece.median_rank - expected) < 0.6
    return level.rank == 0 and believed and column.room_below(piece) > 20
