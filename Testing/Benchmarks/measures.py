"""What several benchmarks of mechanisms share: views of a case, and measures on the network's grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from SpineSegAILib.anatomy import STRUCTURES, Kind, structure
from SpineSegAILib.evaluation import surface_distances
from SpineSegAILib.evaluation.on_grid import LabelledVolume
from SpineSegAILib.hints import Hints

TOLERANCE_MM = 1.0
"""Of the surface Dice."""
LEAK = {"prompt_source": "oracle", "allow_label_leak": "true"}


def surface_scores(reference: np.ndarray, predicted: np.ndarray, spacing: Sequence[float]) -> tuple[float, float]:
    """Surface Dice and HD95 of two masks (D, H, W), of which the reference is not empty.

    Distances are taken inside slices. In a slice that only one of the masks has, its surface counts as missed for the
    surface Dice, and has no distance; HD95 is NaN where no slice has both.
    """
    ways: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    total = 0
    for ours, theirs in zip(reference, predicted, strict=True):
        for way, distances in zip(ways, surface_distances(ours, theirs, spacing[1:]), strict=True):
            way.append(distances)
        for mask in (ours, theirs):
            total += surface_distances(mask, mask, spacing[1:])[0].size
    forth, back = (np.concatenate(way) for way in ways)
    close = int((forth <= TOLERANCE_MM).sum()) + int((back <= TOLERANCE_MM).sum())
    hd95 = max(np.percentile(forth, 95), np.percentile(back, 95)) if forth.size else math.nan
    return close / total, float(hd95)


def middle_slices(case: LabelledVolume, count: int | None) -> LabelledVolume:
    """The slices in the middle of the labeled ones."""
    labelled = np.flatnonzero((case.label > 0).any((1, 2)))
    if count is None or len(case.label) <= count or not len(labelled):
        return case
    first = int(np.clip((labelled[0] + labelled[-1] + 1 - count) // 2, 0, len(case.label) - count))
    chosen = slice(first, first + count)
    volume = replace(case.volume, array=np.ascontiguousarray(case.volume.array[chosen]))
    return replace(case, volume=volume, label=case.label[chosen])


def interval(differences: Sequence[float], *, less_is_better: bool = False, resamples: int = 10000) -> dict[str, Any]:
    """Mean of the cases' differences, its 95 % bootstrap interval, and a verdict.

    The verdict is “undecided” unless the interval leaves zero out, and “tie” where no case differs at all.
    """
    values = np.asarray(differences, float)
    rng = np.random.default_rng(0)
    means = values[rng.integers(len(values), size=(resamples, len(values)))].mean(1)
    low, high = np.percentile(means, (2.5, 97.5))
    verdict = "undecided"
    if not values.any():
        verdict = "tie"
    elif low > 0 or high < 0:
        verdict = "better" if bool(low + high > 0) != less_is_better else "worse"
    return {
        "cases": len(values), "difference": float(values.mean()), "low": float(low), "high": float(high),
        "verdict": verdict,
    }  # fmt: skip


def bottom_off(case: LabelledVolume) -> LabelledVolume:
    """Without the lowest third of the view."""
    rows = case.volume.array.shape[1]
    return _cut(case, slice(0, rows - rows // 3))


def top_off(case: LabelledVolume) -> LabelledVolume:
    """Without the uppermost third of the view."""
    return _cut(case, slice(case.volume.array.shape[1] // 3, None))


def _cut(case: LabelledVolume, kept: slice) -> LabelledVolume:
    volume = replace(case.volume, array=np.ascontiguousarray(case.volume.array[:, kept]))
    return replace(case, volume=volume, label=np.ascontiguousarray(case.label[:, kept]))


def visible(case: LabelledVolume) -> Hints:
    """The range that a reader who sees the case would give: the uppermost and the lowest level wholly in view.

    Every case of these sources shows the sacrum, which few have labeled; so where all labeled levels are in view down
    to L5, the range ends at S1.
    """
    levels = set()
    for sid in case.annotated:
        s, rows = STRUCTURES[sid], np.flatnonzero((case.label == sid).any((0, 2)))
        if not len(rows):
            continue
        if s.kind is Kind.DISC:
            levels.add(sid - 100)  # the vertebra above it
        elif s.kind is Kind.VERTEBRA and rows[0] > 0 and rows[-1] < case.label.shape[1] - 1:
            levels.add(sid)
    last = max(levels)
    if last == structure("L5").id:
        last = structure("S1").id
    return Hints(visible=(min(levels), last))
