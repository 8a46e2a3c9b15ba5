"""Text in pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

FONT = "DejaVu Sans"
"""It comes with matplotlib, so that pictures look the same everywhere."""


def write(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    *,
    size: float,
    color: Any,
    align: str,
    vertical: str = "center",
    weight: str = "normal",
    transform: Any = None,
) -> Text:
    """Text that can be read on any ground."""
    from matplotlib.patheffects import withStroke

    return axes.text(
        x,
        y,
        text,
        ha=align,
        va=vertical,
        color=color,
        fontsize=size,
        fontweight=weight,
        family=FONT,
        path_effects=[withStroke(linewidth=2.2, foreground=(0, 0, 0, 0.85))],
        transform=axes.transData if transform is None else transform,
        clip_on=True,
    )
