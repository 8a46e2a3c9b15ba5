"""What the network and the reader think of each piece: log evidence for every level, and what hints forbid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..anatomy import (
    L6_ID,
    SACRUM_ID,
    STRUCTURES,
    T13_ID,
    Kind,
    LabelScheme,
    level_chain,
    next_below,
    order_of,
    ranks,
    structure,
    vertebra_above,
)
from ..errors import HintError, SchemeError
from .column import Column
from .sequence import NEVER, Item, Level, disc_of, is_lowest
from .settings import ConsistencySettings
from .shapes import Piece


def _laplace(rank: np.ndarray, expected: np.ndarray, s: ConsistencySettings) -> np.ndarray:
    """Log likelihood of a piece's voxel ranks for each expected rank, up to a constant."""
    median = float(np.median(rank))
    spread = 1.4826 * float(np.median(np.abs(rank - median)))
    scale = max(s.rank_scale, spread) + s.rank_scale_slope * max(median, 0.0)
    return -np.minimum(np.abs(median - expected), s.rank_cap) / scale


def _class_likelihood(column: Column, piece: Piece, ids: Sequence[int]) -> np.ndarray:
    """Log of the mean probability of each id over a piece; ids without a class get a fixed small probability."""
    s, scheme = column.settings, column.scheme
    known = sorted({i for i in ids if i in scheme.channel_of})
    share = dict.fromkeys(ids, s.hidden_probability)
    if known:
        index = piece.index[:: max(1, len(piece.index) // 4000)]  # plenty for a mean
        mean = column.class_probabilities(index, known).mean(axis=1)
        mean = mean / max(float(mean.sum()), 1e-6)
        share.update({i: float(m) + s.class_floor for i, m in zip(known, mean, strict=True)})
    return np.log([share[i] for i in ids])


def _opinion(column: Column, piece: Piece, ids: Sequence[int], expected: np.ndarray) -> np.ndarray:
    """(S,) log evidence of a piece for being each of `ids`, whose ranks are `expected`; zeros where none is given."""
    result = np.zeros(len(ids))
    if column.cropped.rank is not None and piece.rank is not None:
        weight = 1.0 if column.cropped.classes is None else column.settings.rank_beside_classes
        result += weight * _laplace(piece.rank, expected, column.settings)
    if column.cropped.classes is not None:
        result += _class_likelihood(column, piece, ids)
    return result


def _level_above(states: Sequence[Level], level: Level) -> Level | None:
    return next((x for x in states if (x.rank, x.l6, x.t13) == (level.rank + 1, level.l6, level.t13)), None)


def attach(column: Column) -> list[tuple[int, int] | None]:
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


def items_of(column: Column, states: Sequence[Level]) -> list[Item]:
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
        for disc, place in zip(column.discs, attach(column), strict=True):
            if place is None:
                continue
            bone, side = place
            opinion = _opinion(column, disc, above_ids if side else disc_ids, rank + (0.5 if side else -0.5))
            unary[bone] = unary[bone] + s.disc_weight * opinion
            witnesses += s.disc_weight
    volumes = np.array([column.volume(p) for p in subjects])
    small = s.small_share * np.median(volumes)
    sacrum = np.array([level.id == SACRUM_ID for level in states])
    last = is_lowest(states)
    items: list[Item] = []
    for piece, evidence, volume in zip(subjects, unary, volumes, strict=True):
        evidence = _shared(evidence, states, min(1.0, s.independent / witnesses))
        if of_discs:
            evidence = np.where(sacrum, -np.inf, evidence)
        elif SACRUM_ID in column.scheme.channel_of:  # what it looks like, not a count: an opinion of its own
            hit, false = s.sacrum_hit, s.sacrum_false
            marked = piece.sacral.mean() > 0.5
            yes, no = np.log((hit, false) if marked else (1 - hit, 1 - false))
            evidence = evidence + np.where(sacrum, yes, no)
        cut = any(column.touches(piece.index)[:2])
        cost = s.drop_cost_small if volume < small and not cut else s.drop_cost
        # Two sacral segments at most look like vertebrae, and only if the network does not count them as lumbar; in
        # films, where nobody drew S1, as anything above L5.
        fits = len(items) >= len(subjects) - 2 and evidence[~last].max() - evidence[last].max() < s.below_sacrum_fit
        below = min(s.drop_cost_below_sacrum - float(evidence[last].max()), cost) if fits and not of_discs else cost
        items.append(Item(_position(column, piece), evidence, cost, below))
    return items


def _position(column: Column, piece: Piece) -> float:
    """Center of a piece along the axis, mm; where it would be if the piece is cut by the image's edge."""
    near, height = column.settings.near_axis, column.sizes.at(piece).height
    low, high = piece.span(near)
    at_top, at_bottom, _ = column.touches(piece.index)
    if at_top == at_bottom or high - low > 0.9 * height or not column.bones:
        return (low + high) / 2
    return high - height / 2 if at_top else low + height / 2


def pin_locked(column: Column, items: list[Item], states: Sequence[Level]) -> list[int]:
    """Locked structures are what they are called, and the others are counted from them; returns their ids.

    Raises:
        HintError: a locked disc contradicts a locked vertebra beside it.
    """
    of_discs = not column.bones
    held: list[int] = []
    for at, piece in enumerate(column.bones or column.discs):
        if piece.locked:
            level = vertebra_above(piece.locked).id if of_discs else piece.locked
            _pin(items[at], np.array([state.id == level for state in states]))
            held.append(piece.locked)
    for disc, place in zip(column.discs, [] if of_discs else attach(column), strict=False):
        if not disc.locked or place is None:
            continue
        at, side = place
        upper = vertebra_above(disc.locked).id
        holders = [_level_above(states, level) if side else level for level in states]
        _pin(items[at], np.array([holder is not None and holder.id == upper for holder in holders]))
        held.append(disc.locked)
        if column.bones[at].locked and not np.isfinite(items[at].unary).any():
            where = "above" if side else "below"
            raise HintError(
                f"The locked {STRUCTURES[disc.locked].name} lies {where} the locked "
                f"{STRUCTURES[column.bones[at].locked].name}.",
                "Correct the name of one of them.",
            )
    return held


def _pin(item: Item, allowed: np.ndarray) -> None:
    """The item is there and has one of the allowed levels."""
    item.unary = np.where(allowed, item.unary, -np.inf)
    item.drop_cost = item.below_cost = NEVER


def pin_anchors(
    column: Column, items: list[Item], states: Sequence[Level], anchors: list[tuple[int, np.ndarray]]
) -> dict[int, int]:
    """Forbid what anchors exclude; returns item → structure that it was anchored as."""
    pinned: dict[int, int] = {}
    of_discs = not column.bones
    for sid, point in anchors:
        s = STRUCTURES[sid]
        if s.kind is not Kind.DISC and of_discs:
            raise HintError(f"The anchor {s.name} names a vertebra, but only discs were found.", "Anchor a disc.")
        if s.kind is Kind.DISC:
            upper = vertebra_above(sid).id
            if of_discs:
                at = _hit(column, point, column.discs, s.name)
                allowed = np.array([level.id == upper for level in states])
            else:
                if not column.discs:
                    raise HintError(f"The anchor {s.name} names a disc, but none was found.", "Anchor a vertebra.")
                disc = _hit(column, point, column.discs, s.name)
                place = attach(column)[disc]
                if place is None:
                    raise HintError(
                        f"The anchor {s.name} lies in a disc that has no vertebra beside it.", "Anchor a vertebra."
                    )
                at, side = place
                holders = [_level_above(states, level) if side else level for level in states]
                allowed = np.array([holder is not None and holder.id == upper for holder in holders])
        else:
            at = _hit(column, point, column.bones, s.name)
            allowed = np.array([level.id == sid for level in states])
        _pin(items[at], allowed)
        if not np.isfinite(items[at].unary).any():
            locked = (column.bones or column.discs)[at].locked
            raise HintError(
                f"The anchor {s.name} contradicts what is locked as {STRUCTURES[locked].name} there."
                if locked
                else f"{STRUCTURES[pinned[at]].name} and {s.name} are anchored in the same place."
                if at in pinned
                else f"Nothing can be {s.name} where the anchor lies.",
                "Correct or remove one of the anchors.",
            )
        pinned[at] = sid
    return pinned


def doubt_contradicted(items: list[Item], believed: Sequence[int], settings: ConsistencySettings) -> None:
    """Where a hint shows that the network miscounted, its opinion of the other levels counts little, too.

    A network is wrong by the same step everywhere; without this, a confident one would rather omit a level beside
    the anchor than give up its count.

    Args:
        items: after the hints.
        believed: for each item the state that the network thought most likely.
    """
    if all(np.isfinite(item.unary[best]) for item, best in zip(items, believed, strict=True)):
        return
    for item in items:
        if np.isfinite(item.unary).all():
            item.unary = settings.doubted * item.unary


@dataclass(frozen=True)
class Ends:
    """Log weight of being the lowest, and the topmost, vertebra that is named.

    Attributes:
        lowest, topmost: (items, states), items top down.
    """

    lowest: np.ndarray
    topmost: np.ndarray


def limit_range(
    column: Column,
    items: list[Item],
    states: Sequence[Level],
    visible: tuple[int | None, int | None],
    there: Sequence[bool],
) -> Ends:
    """Forbid levels beyond the visible range; and at its ends those that omit a level for which the image has no room.

    A level that the user sees and that nothing was found of must have its place in the image, between the last one
    found and the edge. Where it has, its absence has a price.

    Args:
        there: for each item whether it has a name without the hint: it may not be omitted then, since who knows the
            range has seen what is there.
    """
    s = column.settings
    top, bottom = (order_of(i) if i else end for i, end in zip(visible, (-np.inf, np.inf), strict=True))
    order = np.array([order_of(level.id) for level in states])
    subjects = column.bones or column.discs
    if not ((order >= top) & (order <= bottom)).any():
        raise HintError(
            f"The visible range {range_in_words(visible)} has no level of the label scheme “{column.scheme.name}”.",
            "Correct the range, or use another model.",
        )
    # The order counts T13 and L6 as steps, which most spines lack: distance in levels is counted along the usual chain.
    rank = ranks({i for i in (L6_ID, T13_ID) if i in visible})
    usual = np.array([rank.get(level.id, level.rank) for level in states], float)
    highest, lowest = (rank[i] if i else end for i, end in zip(visible, (np.inf, -np.inf), strict=True))
    last = len(items) - 1
    small = np.array([item.drop_cost < s.drop_cost for item in items])
    for i, (item, piece) in enumerate(zip(items, subjects, strict=True)):
        at_top, at_bottom = column.is_cut(piece)
        # Who counts vertebrae may well not count the sacrum that is seen below them.
        at_bottom = at_bottom or lowest == 0
        high, low = highest + (at_top and i == 0), lowest - (at_bottom and i == last)
        allowed = (usual <= high) & (usual >= low)
        item.unary = np.where(allowed, item.unary, -np.inf)
        if there[i] and not small[i]:
            if item.below_cost >= item.drop_cost:  # and it looks like nothing that lies below S1
                item.below_cost = NEVER
            item.drop_cost = NEVER
    needed = s.room_for_a_level * column.sizes.pitch
    if not column.bones:  # the lowest disc is named after the vertebra above it
        lowest += 1
    sacrum = visible[1] == SACRUM_ID and bool(column.bones)
    below = np.stack([_absence(usual - lowest, column.room_below(p) / needed, s, sacrum) for p in subjects])
    above = np.stack([_absence(highest - usual, column.room_above(p) / needed, s, False) for p in subjects])
    # A fragment is not what a user sees as the last vertebra.
    below = below - s.fragment_cost * (small[:, None] & (usual == lowest))
    above = above - s.fragment_cost * (small[:, None] & (usual == highest))
    return Ends(below, above)


def _absence(missing: np.ndarray, room: float, s: ConsistencySettings, sacrum: bool) -> np.ndarray:
    """(S,) log weight of ending so many levels before the end that the user sees.

    Args:
        missing: (S,) levels; negative beyond the end, infinite where it is not known.
        room: levels that have room there.
        sacrum: whether the last of them is the sacrum, which is missed more often.
    """
    if not np.isfinite(missing).any():
        return np.zeros(len(missing))
    count = np.maximum(missing, 0.0)
    price = -s.end_cost * (count - (0.5 if sacrum else 0.0) * (count > 0))
    beyond = np.where(missing < 0, -s.beyond_cost, 0.0)
    return np.where(count <= room, price + beyond, -np.inf)


def keeps_range(column: Column, levels: Sequence[Level | None], visible: tuple[int | None, int | None]) -> bool:
    """Whether the topmost and the lowest level named (top down) are those that the user sees.

    One more at either end does not contradict where the image's edge cuts it, nor does the sacrum below the last lumbar
    vertebra: it may be seen without being counted.
    """
    of_discs = not column.bones
    named = [(level.id, piece) for level, piece in zip(levels, column.bones or column.discs, strict=True) if level]
    if not named:
        return False
    present = [sid for sid, _ in named]
    top, bottom = visible
    if top is not None:
        first, piece = named[0]
        under = next_below(STRUCTURES[first], present)
        if first != top and not (under is not None and under.id == top and column.is_cut(piece)[0]):
            return False
    if bottom is not None:
        last, piece = named[-1]
        if of_discs:  # named after the vertebra above
            under = next_below(STRUCTURES[last], present)
            return under is not None and under.id == bottom
        beyond = next_below(STRUCTURES[bottom], present)
        cut = last == SACRUM_ID or column.is_cut(piece)[1]
        return last == bottom or (beyond is not None and beyond.id == last and cut)
    return True


def levels_of_range(visible: tuple[int | None, int | None]) -> list[int]:
    """Ids of the levels of a range, top down; from the top of the spine, or to the sacrum, where an end is open."""
    chain = [v.id for v in level_chain(i for i in visible if i)]
    top, bottom = visible
    return chain[chain.index(top) if top else 0 : chain.index(bottom) + 1 if bottom else None]


# --- hints -----------------------------------------------------------------------------------------------------------


def range_in_words(visible: tuple[int | None, int | None]) -> str:
    """``"T11 to S1"``, ``"T11 downwards"``, ``"L3 upwards"``."""
    top, bottom = (STRUCTURES[i].name if i else "" for i in visible)
    return f"{top} to {bottom}" if top and bottom else f"{top} downwards" if top else f"{bottom} upwards"


def check_hints(
    scheme: LabelScheme,
    anchors: Sequence[tuple[int, tuple[float, float, float]]],
    visible: tuple[int | None, int | None] | None,
) -> list[tuple[int, np.ndarray]]:
    """Anchors with their points as arrays, after the checks that need no image."""
    result = []
    for sid, point in anchors:
        try:
            anatomy = scheme.require(sid)
        except SchemeError as error:
            raise HintError(f"An anchor is not valid: {error.message}", error.remedy) from error
        if not anatomy.is_counted:
            raise HintError(
                f"“{anatomy.name}” cannot be an anchor: it has no level, or is not counted.",
                "Anchor a vertebra or a disc, e.g. L5 or L4/L5.",
            )
        result.append((sid, np.asarray(point, float)))
    by_height = sorted(result, key=lambda a: a[1][1])
    for (upper, p), (lower, q) in pairwise(by_height):
        if order_of(upper) > order_of(lower) and q[1] - p[1] > 3:
            raise HintError(
                f"The anchors are out of order: {STRUCTURES[upper].name} was put above {STRUCTURES[lower].name}.",
                "Correct or remove one of them.",
            )
    if visible is not None:
        ends = [structure(i) for i in visible if i]
        if not ends or any(not s.is_vertebral or s.order is None for s in ends):
            raise HintError("The visible range must be named by vertebrae.", "For example T11 to S1.")
        if order_of(ends[0].id) > order_of(ends[-1].id):
            raise HintError(
                f"The visible range {ends[0].name} to {ends[-1].name} is upside down.",
                "Name the topmost vertebra first.",
            )
    return result


def _hit(column: Column, point: np.ndarray, pieces: list[Piece], name: str) -> int:
    """Which piece an index point means."""
    offset = np.array([b.start for b in column.box])
    at = (point - offset) * column.spacing
    distance = [float(np.min(np.sum((column.points(p.index) - at) ** 2, axis=1))) ** 0.5 for p in pieces]
    best = int(np.argmin(distance))
    if distance[best] > column.settings.anchor_reach:
        raise HintError(
            f"The anchor {name} lies {distance[best]:.0f} mm away from anything that was found.",
            "Put it inside the vertebra or disc that it names.",
        )
    return best
