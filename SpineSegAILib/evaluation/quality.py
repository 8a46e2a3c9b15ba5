"""How well a low outline quality tells a poor outline."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from scipy import stats

from ..results.quality import GOOD_DICE, LOW
from .scores import CaseReport


def quality_summary(reports: Iterable[CaseReport]) -> dict[str, Any] | None:
    """How well a low quality tells an outline whose Dice (whatever the level) is below `GOOD_DICE`; JSON-able.

    Of outlines that the image's border does not cut: how many there are, how many of them are poor, and how many the
    qualities let expect; how many have a low quality, and how many of these are poor; and the area under the ROC
    curve: how often a poor outline has a lower quality than a good one. None where no outline has a quality.
    """
    pairs = [
        (s.outline_quality, s.matched_dice)
        for report in reports
        for s in report.structures
        if not np.isnan(s.outline_quality) and not s.cut
    ]
    if not pairs:
        return None
    quality, dice = np.array(pairs).T
    poor, low = dice < GOOD_DICE, quality < LOW
    area = None
    if 0 < poor.sum() < len(poor):
        ranks = stats.rankdata(-quality)
        area = float((ranks[poor].sum() - poor.sum() * (poor.sum() + 1) / 2) / (poor.sum() * (~poor).sum()))
    return {
        "outlines": len(pairs), "poor": int(poor.sum()), "expected_poor": float((1 - quality).sum()),
        "low": int(low.sum()), "poor_of_low": int((poor & low).sum()), "roc_area": area,
    }  # fmt: skip
