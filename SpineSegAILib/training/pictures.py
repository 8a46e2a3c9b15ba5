"""Pictures of a run's progress, for those who watch: its curves, and its latest result on a validation case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..anatomy import STRUCTURES
from ..files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..evaluation.on_grid import LabelledVolume

SCORES = {"level_dice": "Dice", "matched_dice": "Dice, ignoring level"}
"""Validation scores that are drawn."""

_COLORS = ("#1f77b4", "#d9822b")
_DPI = 160


def loss_curve(events: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[float]]:
    """Steps and total losses of a run's events."""
    steps = [e for e in events if e.get("event") == "step" and "step" in e and "total" in e.get("losses", ())]
    return [e["step"] for e in steps], [e["losses"]["total"] for e in steps]


def score_curve(events: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one validation score."""
    found = [e for e in events if e.get("event") == "validation" and "step" in e and name in e.get("scores", ())]
    return [e["step"] for e in found], [e["scores"][name] for e in found]


def draw_curves(events: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the loss and the validation Dice over the steps as PNG.

    Raises:
        OutputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 2.3), dpi=_DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    steps, losses = loss_curve(events)
    many = len(steps) > 40
    left.plot(steps, losses, color=_COLORS[0], alpha=0.35 if many else 1, linewidth=1, marker="" if many else ".")
    if many:
        width = len(steps) // 20
        left.plot(steps[width - 1 :], np.convolve(losses, np.ones(width) / width, "valid"), color=_COLORS[0])
    left.set_title("Loss")
    for color, (name, title) in zip(_COLORS, SCORES.items(), strict=True):
        at, values = score_curve(events, name)
        if values:
            right.plot(at, values, color=color, marker=".", label=f"{title}: {values[-1]:.3f}")
    right.set(title="Validation", ylim=(0, 1))
    if right.lines:
        right.legend(loc="lower right", fontsize=8)
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    _write(figure, path)


def draw_result(case: LabelledVolume, found: np.ndarray, title: str, path: Path) -> None:
    """Write one slice of a validation case, its reference and what the network finds, as PNG.

    Args:
        found: (D, H, W) structure ids.

    Raises:
        OutputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    labelled = (case.label > 0).sum((1, 2))
    index = int(labelled.argmax()) if labelled.any() else len(case.label) // 2
    image = case.volume.array[index]
    rows, columns = (n * mm for n, mm in zip(image.shape, case.volume.spacing[1:], strict=True))
    height = 2.9
    figure = Figure(figsize=(3 * height * columns / rows, height + 0.2), dpi=_DPI, layout="constrained")
    for axes, name, labels in zip(
        figure.subplots(1, 3), (case.name, "reference", title), (None, case.label[index], found[index]), strict=True
    ):
        axes.imshow(image, cmap="gray", extent=(0, columns, rows, 0), vmin=-2, vmax=2)
        if labels is not None:
            _overlay(axes, labels, case.volume.spacing[1:], (0, columns, rows, 0))
        axes.set_title(name, fontsize=8)
        axes.set_axis_off()
    _write(figure, path)


def _overlay(
    axes: Axes, labels: np.ndarray, spacing: tuple[float, float], extent: tuple[float, float, float, float]
) -> None:
    colors = np.zeros((*labels.shape, 4))
    for sid in np.unique(labels[labels > 0]):
        mask = labels == sid
        colors[mask] = (*STRUCTURES[int(sid)].color, 0.5)
        row, column = (np.argwhere(mask).mean(0) + 0.5) * spacing
        axes.text(column, row, STRUCTURES[int(sid)].name, color="white", fontsize=6, ha="center", va="center")
    axes.imshow(colors, extent=extent, interpolation="nearest")


def _write(figure: Figure, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with atomic_write(path) as (part,):
        FigureCanvasAgg(figure).print_png(str(part), metadata={"Software": "SpineSegAI"})
