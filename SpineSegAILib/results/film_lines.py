"""How a curve's angle is taken, drawn on a film: its end vertebrae's endplates as lines, the angle beside the apex."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..anatomy import STRUCTURES
from .lettering import write
from .measurement import Curve, FilmSpine
from .measurement.corners import Quad

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOR, _DOUBTED = "#ffd166", "#8a94a0"
_LONGER = 0.45  # of its length, that a line goes on to the side where it meets the other
_SHORTER = 0.1


def draw_curves(axes: Axes, spine: FilmSpine, spacing: tuple[float, float]) -> None:
    """Draws every curve of a film.

    Args:
        axes: in mm from the upper left corner of the picture.
        spacing: mm along rows and columns.
    """
    for curve in spine.curves():
        color = _COLOR if curve.angle is not None else _DOUBTED
        side = 1 if curve.side == "right" else -1  # the lines meet on the concave side
        for sid, which in ((curve.upper, 0), (curve.lower, 1)):
            left, right = (_place(point, spacing) for point in spine.quads[sid].plate(which))
            beyond = (_LONGER, _SHORTER) if side > 0 else (_SHORTER, _LONGER)
            ends = np.array([left - beyond[0] * (right - left), right + beyond[1] * (right - left)])
            axes.plot(*ends.T, color=color, linewidth=1.3, solid_capstyle="butt")
        _tell(axes, curve, spine.quads[curve.apex], spacing, color, side)


def _tell(axes: Axes, curve: Curve, apex: Quad, spacing: tuple[float, float], color: str, side: int) -> None:
    """The angle beside the apex: where the curve is convex, or on the other side if the picture ends there."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(axes.figure.figure).get_renderer()
    for last, here in enumerate((side, -side)):
        beside = apex.corners[[1, 3]].mean(0) if here > 0 else apex.corners[[0, 2]].mean(0)
        x, y = _place(apex.center + 1.35 * (beside - apex.center), spacing)
        told = write(axes, x, y, _words(curve), size=8, color=color, align="left" if here > 0 else "right")
        ends = told.get_window_extent(renderer).transformed(axes.transData.inverted()).intervalx
        if last or (min(axes.get_xlim()) <= min(ends) and max(ends) <= max(axes.get_xlim())):
            return
        told.remove()


def _words(curve: Curve) -> str:
    angle = "not given" if curve.angle is None else f"{curve.angle:.0f}°"
    return f"{angle}\n{curve.name}\napex {STRUCTURES[curve.apex].name}"


def _place(point: np.ndarray, spacing: tuple[float, float]) -> np.ndarray:
    """(x, y) in mm of a column and row of `FilmSpine.quads`, whose unit is a row's height."""
    rows, columns = spacing
    return np.array([point[0] * rows + columns / 2, point[1] * rows + rows / 2])
