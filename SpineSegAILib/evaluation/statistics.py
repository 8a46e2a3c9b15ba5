"""What the scores of some patients say of others: bootstrap intervals and paired tests.

Chance draws patients, not structures or slices: those of one patient stand or fall together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

RESAMPLES = 2000
COVERAGE = (2.5, 97.5)
"""Percentiles that enclose 95 %."""

DECISIVE_PAIRS = 6
"""With fewer pairs, Wilcoxon's two-sided test cannot reach 0.05 (five of one sign have p = 2 / 2⁵), and their bootstrap
interval is too short."""

Interval = tuple[float, float]


def draws(units: int, resamples: int = RESAMPLES) -> np.ndarray:
    """(resamples, units) how often each unit is drawn, with replacement; the same ones each time."""
    return np.random.default_rng(0).multinomial(units, np.full(units, 1 / units), size=resamples)


def mean_intervals(sums: np.ndarray, counts: np.ndarray) -> tuple[Interval | None, Interval | None]:
    """95 % bootstrap intervals of a mean over everything, and of the mean of the structures' means.

    Args:
        sums: (units, structures) sums of what is defined.
        counts: (units, structures) of how many values.

    Returns:
        Both intervals; None where fewer than two units have a value.
    """
    if (counts.sum(1) > 0).sum() < 2:
        return None, None
    weights = draws(len(sums))
    total, number = weights @ sums, weights @ counts
    with np.errstate(invalid="ignore", divide="ignore"):
        pooled = total.sum(1) / number.sum(1)
        each = total / number
    has = number > 0
    macro = np.where(has, each, 0.0).sum(1) / np.maximum(has.sum(1), 1)
    drawn = has.any(1)  # a draw may hold only units without the structure
    return _interval(pooled[drawn]), _interval(macro[drawn])


def _interval(values: np.ndarray) -> Interval:
    low, high = np.percentile(values, COVERAGE)
    return float(low), float(high)


@dataclass(frozen=True)
class PairedResult:
    """One method against another on the same patients.

    Attributes:
        pairs: patients that both have a value for.
        unpaired: patients that one of them has a value for; they are omitted.
        difference: mean of method minus base.
        low: lower end of its 95 % bootstrap interval; None with fewer than two pairs.
        high: its upper end.
        p: two-sided, of Wilcoxon's signed-rank test; pairs without a difference are omitted. None without pairs.
        rank_biserial: its effect: 1 if every difference is positive, −1 if every one is negative.
        verdict: ``"better"`` or ``"worse"`` if the interval leaves zero out and there are at least
            `DECISIVE_PAIRS`, else ``"undecided"``.
    """

    pairs: int
    unpaired: int
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    rank_biserial: float | None
    verdict: str

    def document(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def paired(method: Mapping[Any, float], base: Mapping[Any, float], *, less_is_better: bool = False) -> PairedResult:
    """Compares two methods patient by patient.

    Args:
        method: patient → value; NaN counts as none.
        base: likewise.
        less_is_better: of distances.
    """
    method, base = ({k: v for k, v in m.items() if not math.isnan(v)} for m in (method, base))
    both = [key for key in method if key in base]
    unpaired = len(method.keys() ^ base.keys())
    if not both:
        return PairedResult(0, unpaired, None, None, None, None, None, "undecided")
    difference = np.array([method[key] - base[key] for key in both])
    p, effect = _wilcoxon(difference)
    low = high = None
    verdict = "undecided"
    if len(both) > 1:
        low, high = _interval(draws(len(both)) @ difference / len(both))
        if len(both) >= DECISIVE_PAIRS and (low > 0 or high < 0):
            verdict = "worse" if (low > 0) == less_is_better else "better"
    return PairedResult(len(both), unpaired, float(difference.mean()), low, high, p, effect, verdict)


def _wilcoxon(difference: np.ndarray) -> tuple[float, float]:
    from scipy.stats import rankdata, wilcoxon

    moved = difference[difference != 0]
    if not moved.size:
        return 1.0, 0.0
    ranks = rankdata(np.abs(moved))
    effect = float((ranks * np.sign(moved)).sum() / ranks.sum())
    return float(wilcoxon(moved).pvalue), effect


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p values corrected for their number (Holm 1979), in the same order; what is None stays so."""
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    result: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        result[index] = largest
    return result
