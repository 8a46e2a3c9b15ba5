"""The cases that went worst, kept while an evaluation runs, and drawn when it has ended."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..anatomy import SCHEMES
from ..results import Segmentation
from ..results.preview import draw_preview
from .dataset import Seen
from .scores import CaseReport
from .summary import mean

_DPI = 62  # a preview of 1500 × 1100 points then takes about 80 kB


@dataclass(frozen=True)
class WorstCase:
    """One of the worst cases.

    Attributes:
        case: its name.
        variant: which copy of it.
        dice: mean over its structures, level-strict.
        pictures: title → JPEG as a data URL; reference and result.
    """

    case: str
    variant: str
    dice: float
    pictures: dict[str, str]


class WorstCases:
    """A watcher for `evaluate_dataset` that holds the images of the worst few cases.

    Args:
        count: how many.
        variant: which copies are looked at.
    """

    def __init__(self, count: int = 3, variant: str = "full") -> None:
        self.count, self.variant = count, variant
        self._kept: list[tuple[float, Seen]] = []

    def __call__(self, seen: Seen) -> None:
        dice = self._dice(seen.report)
        if dice is None:
            return
        self._kept = sorted([*self._kept, (dice, seen)], key=lambda kept: kept[0])[: self.count]

    def among(self, kept: Mapping[str, Any]) -> list[str]:
        """Keys of the worst of these case documents: to be drawn, they have to be segmented again."""
        scored = [(self._dice(CaseReport.from_document(found)), key) for key, found in kept.items()]
        return [key for _, key in sorted((dice, key) for dice, key in scored if dice is not None)[: self.count]]

    def _dice(self, report: CaseReport) -> float | None:
        if report.variant != self.variant:
            return None
        return mean([s.dice for s in report.structures])

    def drawn(self) -> list[WorstCase]:
        """Their pictures, the worst case first."""
        return [
            WorstCase(seen.report.case, seen.report.variant, dice, _pictures(seen, dice)) for dice, seen in self._kept
        ]


def _pictures(seen: Seen, dice: float) -> dict[str, str]:
    scheme = seen.prediction.scheme if seen.prediction else SCHEMES["lumbar-mr"]
    found = {"reference": _jpeg(seen, Segmentation(seen.reference, scheme), f"{seen.report.case}: reference")}
    if seen.prediction is not None:
        found["result"] = _jpeg(seen, seen.prediction, f"{seen.report.case}: result, Dice {dice:.3f}")
    return found


def _jpeg(seen: Seen, segmentation: Segmentation, title: str) -> str:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = draw_preview(seen.image, segmentation, title=title)
    figure.set_dpi(_DPI)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_jpg(buffer, pil_kwargs={"quality": 82})
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
