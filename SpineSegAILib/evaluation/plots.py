"""Plots of reports, as SVG to be put into a page; and of embeddings."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..anatomy import STRUCTURES, Kind, sorted_ids

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _ORANGE, _GREY = "#2f6db3", "#d9822b", "#8a94a0"
_DPI = 150
_MARKERS = {
    Kind.VERTEBRA: "o", Kind.DISC: "s", Kind.CANAL: "^", Kind.SACRUM: "D", Kind.CORD: "v", Kind.ARTERY: "P",
    Kind.VEIN: "X", Kind.POSTERIOR: "p", Kind.CUSTOM: "*",
}  # fmt: skip


def by_structure(summary: Mapping[str, Any], metric: str, title: str) -> str:
    """One point per case for each structure, and their mean with its interval."""
    rows = [(name, row) for name, row in summary["structures"].items() if row[metric] is not None]
    values: dict[str, list[float]] = {name: [] for name, _ in rows}
    for case in summary["cases"]:
        for s in case["structures"]:
            if s[metric] is not None and s["name"] in values:
                values[s["name"]].append(s[metric])
    figure, axes = _figure(max(4.5, 0.42 * len(rows) + 1.4), 3.0)
    rng = np.random.default_rng(0)
    for place, (name, row) in enumerate(rows):
        jitter = rng.uniform(-0.16, 0.16, len(values[name]))
        axes.plot(place + jitter, values[name], "o", color=_BLUE, alpha=0.35, markersize=3.5, markeredgewidth=0)
        _mean(axes, place, row[metric], row["intervals"][metric])
    axes.set_xticks(range(len(rows)), [name for name, _ in rows], rotation=60, ha="right")
    axes.set_title(title, loc="left")
    if "dice" in metric:
        axes.set_ylim(-0.03, 1.03)
    else:
        axes.set_ylim(bottom=0)
    return _svg(figure)


def by_method(rows: Sequence[tuple[str, float, Sequence[float] | None]], title: str) -> str:
    """A mean with its interval for each method, the first one on top."""
    figure, axes = _figure(6.4, 0.34 * len(rows) + 1.1)
    for place, (_, value, interval) in enumerate(rows):
        if interval:
            axes.plot(interval, (place, place), color=_BLUE, linewidth=2)
        axes.plot([value], [place], "o", color=_ORANGE, markersize=6)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.invert_yaxis()
    axes.set_title(title, loc="left")
    return _svg(figure)


def levels(summary: Mapping[str, Any]) -> str:
    """How often each level was taken for which one; empty where no level is known."""
    counts: dict[tuple[int, int], int] = {}
    for case in summary["cases"]:
        for s in case["structures"]:
            if s["level_right"] is not None:
                pair = s["id"], s["matched_id"] or 0
                counts[pair] = counts.get(pair, 0) + 1
    if not counts:
        return ""
    true = sorted_ids({t for t, _ in counts})
    found = [*sorted_ids({g for _, g in counts if g}), *([0] if any(g == 0 for _, g in counts) else [])]
    table = np.array([[counts.get((t, g), 0) for g in found] for t in true])
    figure, axes = _figure(0.42 * len(found) + 1.9, 0.3 * len(true) + 1.6)
    share = table / table.sum(1, keepdims=True)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1.4, aspect="auto")
    for row, column in np.argwhere(table):
        right = true[row] == found[column]
        text = str(table[row, column])
        axes.text(column, row, text, ha="center", va="center", color="black" if right else "#b3261e", fontsize=8)
    axes.set_xticks(range(len(found)), [STRUCTURES[g].name if g else "nothing" for g in found], rotation=60, ha="right")
    axes.set_yticks(range(len(true)), [STRUCTURES[t].name for t in true])
    axes.set_xlabel("taken for")
    axes.set_title("Levels: how often each was taken for which", loc="left")
    axes.grid(False)
    return _svg(figure)


def scatter(points: np.ndarray, ids: np.ndarray, title: str) -> Figure:
    """Structures in a plane whose axes have no meaning; colors are the structures', markers those of their kinds.

    Args:
        points: (N, 2).
        ids: (N,) structure ids.
        title: may have several lines.
    """
    from matplotlib.patheffects import withStroke

    figure, axes = _figure(8.0, 6.4)
    figure.set_dpi(_DPI)
    placed: list[np.ndarray] = []
    for sid in sorted_ids(set(ids.tolist())):
        own, s = points[ids == sid], STRUCTURES[sid]
        label = f"{s.name} ({len(own)})"
        axes.plot(
            *own.T, _MARKERS[s.kind], color=s.color, markersize=5, markeredgecolor="#33383f", markeredgewidth=0.4,
            label=label,
        )  # fmt: skip
        # Its name is above one of the middle half of its points, where it is farthest from the names before it.
        away = np.linalg.norm(own - np.median(own, axis=0), axis=1)
        middle = own[away <= np.median(away)]
        gaps = [min((float(np.linalg.norm(point - other)) for other in placed), default=0.0) for point in middle]
        x, y = place = middle[int(np.argmax(gaps))]
        placed.append(place)
        axes.plot(
            x, y, _MARKERS[s.kind], color=s.color, markersize=9, markeredgecolor="black", markeredgewidth=1.5, zorder=4
        )
        axes.annotate(
            s.name, (x, y), (0, 6), textcoords="offset points", ha="center", va="bottom", fontsize=9,
            fontweight="bold", zorder=5, path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip
    axes.set_axis_off()
    axes.set_title(title, loc="left", fontsize=9)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _mean(axes: Axes, place: float, value: float, interval: Sequence[float] | None) -> None:
    if interval:
        axes.plot((place, place), interval, color=_ORANGE, linewidth=2, zorder=3)
    axes.plot([place], [value], "_", color=_ORANGE, markersize=13, markeredgewidth=2, zorder=3)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(True, color="#e3e7ec", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_GREY)
    return figure, axes


def _svg(figure: Figure) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "SpineSegAI", "font.size": 9, "font.family": "sans-serif"}
    ):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
