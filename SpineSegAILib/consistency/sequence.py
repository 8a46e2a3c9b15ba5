"""One possible sequence of levels for a row of instances, and how sure it is.

A naming is a path through a graph: instances from the lowest up, each given a level above its predecessor's. A path
pays for ranks or classes that disagree, distances that do not fit, missing levels, instances omitted, and L6 or T13.
The best path is found by dynamic programming; the same graph, summed instead of maximised, gives each instance's
probability of each level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from ..anatomy import (
    L6_ID,
    SACRUM_ID,
    STRUCTURES,
    T13_ID,
    LabelScheme,
    disc_below,
    level_chain,
    level_of,
    order_of,
    ranks,
)
from .settings import ConsistencySettings

NEVER = 1e5
"""A cost that no path pays if there is another; finite, so that sums stay numbers."""
_HIDDEN_LEVELS = 4  # above the scheme's highest that an image may show: 10 cm, ample

# Distance from a vertebra's centroid to the next one's below, relative to that at L3, for ranks 0 (last lumbar to S1),
# 1, 2 …: body plus disc height falls from about 37 mm at L3 to 22 mm in the middle of the thoracic spine.
_RELATIVE_PITCH = (0.92, 1.0, 1.0, 1.0, 0.97, 0.92, 0.85, 0.79, 0.75, 0.72, 0.70, 0.68)


@dataclass(frozen=True)
class Level:
    """A state: a level, in a spine that has (used) an L6 or a T13 further down or not.

    Attributes:
        id: vertebra or sacrum.
        rank: above the sacrum.
        l6, t13: whether the path has met that variant.
    """

    id: int
    rank: int
    l6: bool
    t13: bool


@dataclass
class Item:
    """A vertebra (or a disc, where only discs are seen) to be named.

    Attributes:
        arc: position along the axis, mm, growing downwards.
        unary: (states,) log evidence.
        drop_cost: price of omitting it.
        below_cost: the same if it lies below what has the lowest name there is: S1, or in films L5.
    """

    arc: float
    unary: np.ndarray
    drop_cost: float
    below_cost: float


@dataclass
class Naming:
    """Result of `name_levels`.

    Attributes:
        levels: for each item its `Level`, or None where it was omitted.
        probability: (items, states) that an item is at that level; rows sum to 1 less the probability of
            being omitted.
        margin: log odds of the best naming to the next that reads differently, at most 20.
        alternatives: other namings with their probability, best first.
        possible: False if no path satisfies the constraints.
        share: probability of the best naming.
    """

    levels: list[Level | None]
    probability: np.ndarray
    margin: float = 20.0
    alternatives: list[tuple[list[Level | None], float]] = field(default_factory=list)
    possible: bool = True
    share: float = 1.0

    def miscounted(self, states: Sequence[Level], doubts: Mapping[int, float]) -> Naming:
        """The same naming where the count as a whole may be off.

        All that names one image comes from one network, which counts wrongly everywhere by the same step; the graph
        takes its items for witnesses that agree.

        Args:
            states: of the columns of `probability`.
            doubts: probability that everything lies so many levels higher.
        """
        place = {(level.rank, level.l6, level.t13): i for i, level in enumerate(states)}
        left = 1 - sum(doubts.values())
        probability = left * self.probability
        namings = {_reading(levels): (levels, left * p) for levels, p in self.alternatives}
        for step, doubt in doubts.items():
            moved = [place.get((level.rank + step, level.l6, level.t13)) for level in states]
            for i, to in enumerate(moved):
                if to is not None:
                    probability[:, to] += doubt * self.probability[:, i]
            to_level = {level: None if to is None else states[to] for level, to in zip(states, moved, strict=True)}
            other = [to_level[level] if level else None for level in self.levels]
            reading = _reading(other)
            if reading:
                found, p = namings.get(reading, (other, 0.0))
                namings[reading] = found, p + doubt * self.share
        alternatives = sorted(namings.values(), key=lambda naming: naming[1], reverse=True)
        share = left * self.share
        margin = math.log(share / alternatives[0][1]) if alternatives and alternatives[0][1] > 0 else 20.0
        return replace(
            self, probability=probability, margin=min(max(margin, 0.0), self.margin), alternatives=alternatives,
            share=share,
        )  # fmt: skip


@lru_cache(maxsize=16)
def states_of(scheme: LabelScheme) -> tuple[Level, ...]:
    """All levels from S1 up to four above the scheme's highest, with L6 and T13 where the scheme has them.

    Levels without a class are states nevertheless: an image may show more than the scheme can name. Only films' schemes
    without a sacrum have none, since it hides behind the pelvis and nobody drew it.
    """
    ids = set(scheme.ids)
    shown = {level_of(i) for i in ids if STRUCTURES[i].is_counted}
    result: list[Level] = []
    for l6 in (False, True) if L6_ID in ids else (False,):
        for t13 in (False, True) if T13_ID in ids else (False,):
            present = ({L6_ID} if l6 else set()) | ({T13_ID} if t13 else set())
            rank = ranks(present)
            chain = list(reversed(level_chain(present)))
            if scheme.modality == "XR" and SACRUM_ID not in ids:  # films in which the lowest drawn vertebra is L5
                chain = chain[1:]
            highest = max((i for i, v in enumerate(chain) if v.id in shown), default=0)
            met_l6 = met_t13 = False
            for vertebra in chain[: highest + 1 + _HIDDEN_LEVELS]:
                met_l6, met_t13 = met_l6 or vertebra.id == L6_ID, met_t13 or vertebra.id == T13_ID
                level = Level(vertebra.id, int(rank[vertebra.id]), met_l6, met_t13)
                if level not in result:
                    result.append(level)
    return tuple(result)


def is_lowest(states: Sequence[Level]) -> np.ndarray:
    """(S,) bool: S1, or in films whose lowest vertebra is L5, that one."""
    return np.array([level.id == states[0].id for level in states])


def expected_distance(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Distance between the centroids at two ranks, as a multiple of the pitch at L3/L4; lower < upper."""
    steps = np.array(_RELATIVE_PITCH)
    position = np.concatenate([[0.0], np.cumsum(steps)])
    return _position(np.asarray(upper), position) - _position(np.asarray(lower), position)


def _position(rank: np.ndarray, position: np.ndarray) -> np.ndarray:
    at = rank + 1.0
    beyond = np.maximum(at - (len(position) - 1), 0.0)
    return np.interp(at, np.arange(len(position)), position) + beyond * _RELATIVE_PITCH[-1]


def relative_pitch(rank: float) -> float:
    """Distance from the vertebra at this rank to the next below, as a multiple of the pitch at L3/L4."""
    at = int(np.clip(round(rank), 0, len(_RELATIVE_PITCH) - 1))
    return _RELATIVE_PITCH[at]


def _transitions(states: Sequence[Level], variants: dict[int, float], settings: ConsistencySettings) -> np.ndarray:
    """(S, S) log weight of going from a lower level (row) to the next instance's level (column)."""
    s = settings
    result = np.full((len(states), len(states)), -np.inf)
    for a, lower in enumerate(states):
        for b, upper in enumerate(states):
            skipped = upper.rank - lower.rank - 1
            if not 0 <= skipped <= s.max_skip:
                continue
            # A variant is met at its own level and remembered above it; nothing else changes it.
            if upper.l6 != (lower.l6 or upper.id == L6_ID) or upper.t13 != (lower.t13 or upper.id == T13_ID):
                continue
            if order_of(upper.id) >= order_of(lower.id):
                continue
            result[a, b] = variants.get(upper.id, 0.0) - s.skip_cost * skipped
    return result


def _starts(
    states: Sequence[Level], cut_below: bool, variants: dict[int, float], settings: ConsistencySettings
) -> np.ndarray:
    """(S,) log weight of being the lowest instance."""
    s = settings
    result = np.full(len(states), -np.inf)
    for i, level in enumerate(states):
        if level.l6 != (level.id == L6_ID) or level.t13 != (level.id == T13_ID):
            continue  # a variant further down that nothing shows
        result[i] = variants.get(level.id, 0.0) - (0.0 if cut_below else s.start_cost * max(level.rank, 0))
    return result


def _sum(values: np.ndarray, axis: int = 0) -> np.ndarray:
    top = values.max(axis=axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(values - top).sum(axis=axis)) + np.squeeze(top, axis)


def name_levels(
    items: Sequence[Item],
    states: Sequence[Level],
    pitch: float,
    *,
    cut_below: bool = False,
    variants: dict[int, float],
    settings: ConsistencySettings,
    ends: tuple[np.ndarray, np.ndarray] | None = None,
) -> Naming:
    """Best naming of items that are ordered from the lowest up.

    Args:
        pitch: distance between centroids at L3/L4 in this spine, mm.
        cut_below: the lowest item touches the image's lower edge, so that nothing is known of what lies below.
        variants: log weight of meeting an L6 and a T13, by id.
        ends: (items, states) log weights of being the lowest item that is named, and of being the topmost.
    """
    if not items:
        return Naming([], np.zeros((0, len(states))))
    graph = _Graph(items, states, pitch, cut_below, variants, settings, ends)
    forward, backward = graph.tables(np.max)
    best = float(np.max(forward + graph.ends))
    if not np.isfinite(best):
        return Naming([None] * len(items), np.zeros((len(items), len(states))), possible=False)
    last, state = np.unravel_index(int(np.argmax(forward + graph.ends)), forward.shape)
    levels = graph.trace(forward, backward, int(last), int(state))

    total_forward, total_backward = graph.tables(_sum)
    log_z = float(_sum((total_forward + graph.ends).ravel()))
    with np.errstate(invalid="ignore"):
        probability = np.exp(np.minimum(total_forward + total_backward - log_z, 0.0))

    through = forward + backward
    rivals: list[tuple[float, int, int]] = []
    for i, level in enumerate(levels):
        if level is None:
            continue
        rivals += [
            (float(through[i, s]), i, s)
            for s, rival in enumerate(states)
            if rival.id != level.id and np.isfinite(through[i, s])
        ]
    rivals.sort(reverse=True)
    # Namings that differ by which piece is left out read alike; they are no alternative for a reader.
    seen = {_reading(levels)}
    margin = 20.0
    alternatives = []
    for score, i, s in rivals:
        other = graph.trace(forward, backward, i, s)
        if (reading := _reading(other)) not in seen:
            seen.add(reading)
            margin = min(margin, best - score)
            alternatives.append((other, float(np.exp(score - log_z))))
        if len(alternatives) == 3:
            break
    return Naming(levels, probability, margin, alternatives, share=float(np.exp(best - log_z)))


def _reading(levels: Sequence[Level | None]) -> tuple[int, ...]:
    return tuple(level.id for level in levels if level)


class _Graph:
    """Tables over (item, state); `ends` is the weight of leaving the graph there."""

    def __init__(
        self,
        items: Sequence[Item],
        states: Sequence[Level],
        pitch: float,
        cut_below: bool,
        variants: dict[int, float],
        s: ConsistencySettings,
        ends: tuple[np.ndarray, np.ndarray] | None,
    ) -> None:
        self.items, self.states = items, states
        self.unary = np.stack([item.unary for item in items])
        base = _transitions(states, variants, s)
        rank = np.array([level.rank for level in states], float)
        with np.errstate(invalid="ignore"):
            distance = pitch * expected_distance(rank[:, None], rank[None, :])
        dropped = np.concatenate([[0.0], np.cumsum([item.drop_cost for item in items])])
        below = np.concatenate([[0.0], np.cumsum([item.below_cost for item in items])])
        count = len(items)
        last = is_lowest(states)
        self.starts = np.stack(
            [
                _starts(states, cut_below and i == 0, variants, s) - np.where(last, below[i], dropped[i])
                for i in range(count)
            ]
        )
        self.ends = np.stack([np.full(len(states), dropped[i + 1] - dropped[count]) for i in range(count)])
        if ends is not None:
            self.starts, self.ends = self.starts + ends[0], self.ends + ends[1]
        self.edges: dict[tuple[int, int], np.ndarray] = {}
        for i in range(count):
            for j in range(max(0, i - 3), i):  # at most two neighbors in a row may be false
                gap = max(items[j].arc - items[i].arc, 1.0)
                with np.errstate(divide="ignore", invalid="ignore"):
                    strain = np.abs(np.log(gap / distance)) / s.spacing_scale
                misfit = np.minimum(np.maximum(strain, strain**2 / 2), s.spacing_cap)
                weight = base - (dropped[i] - dropped[j + 1])
                self.edges[j, i] = np.where(np.isfinite(base), weight - misfit, -np.inf)

    def tables(self, combine: Callable[..., np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Forward (up to and with a node) and backward (from after a node) weights; combine is max or log-sum-exp."""
        count = len(self.items)
        forward, backward = np.empty_like(self.unary), np.empty_like(self.unary)
        for i in range(count):
            ways = [self.starts[i]]
            ways += [combine(forward[j][:, None] + self.edges[j, i], axis=0) for j in range(max(0, i - 3), i)]
            forward[i] = self.unary[i] + combine(np.stack(ways), axis=0)
        for i in reversed(range(count)):
            ways = [self.ends[i]]
            for k in range(i + 1, min(i + 4, count)):
                ways.append(combine(self.edges[i, k] + (self.unary[k] + backward[k])[None, :], axis=1))
            backward[i] = combine(np.stack(ways), axis=0)
        return forward, backward

    def trace(self, forward: np.ndarray, backward: np.ndarray, i: int, s: int) -> list[Level | None]:
        """The best path through a node."""
        levels: list[Level | None] = [None] * len(self.items)
        levels[i] = self.states[s]
        at, state = i, s
        while True:
            ways = [(float(self.starts[at][state]), -1, -1)]
            for j in range(max(0, at - 3), at):
                column = forward[j] + self.edges[j, at][:, state]
                ways.append((float(column.max()), j, int(column.argmax())))
            _, at, state = max(ways)
            if at < 0:
                break
            levels[at] = self.states[state]
        at, state = i, s
        while True:
            ways = [(float(self.ends[at][state]), -1, -1)]
            for k in range(at + 1, min(at + 4, len(self.items))):
                row = self.edges[at, k][state] + self.unary[k] + backward[k]
                ways.append((float(row.max()), k, int(row.argmax())))
            _, at, state = max(ways)
            if at < 0:
                break
            levels[at] = self.states[state]
        return levels


def disc_of(level: Level | None) -> int:
    """Id of the disc under a level; 0 under the sacrum."""
    disc = disc_below(level.id) if level else None
    return disc.id if disc else 0
