"""A report as PDF, drawn by matplotlib: text that does not fit onto a page continues to the next one."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from .lettering import FONT
from .report import RESEARCH, Report, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT = 8.27, 11.69  # inch, A4
_MARGIN = 0.6
_INK, _MUTED, _LINE, _ALERT = "#1d2329", "#5a6570", "#c3cad2", "#8a4b00"
_LINE_HEIGHT = 1.45
_CHARACTER = 0.58
"""Mean width of a character of the font, in its size; generous, so that no line is cut."""


class _Pages:
    """Pages that are written on from top to bottom; lengths in inches."""

    def __init__(self, turned: bool = False) -> None:
        self.figures: list[Figure] = []
        self.width, self.height = (_HEIGHT, _WIDTH) if turned else (_WIDTH, _HEIGHT)
        self.new_page()

    def new_page(self) -> None:
        from matplotlib.figure import Figure

        self.figure = Figure(figsize=(self.width, self.height))
        self.figures.append(self.figure)
        self.y = self.height - _MARGIN
        self._put(_MARGIN, 0.3, f"SpineSegAI · {RESEARCH}", size=7, color=_ALERT)

    @property
    def inside(self) -> float:
        """Width between the margins."""
        return self.width - 2 * _MARGIN

    def room_for(self, inches: float) -> None:
        """Begins a page where less than this is left on it."""
        if self.y - inches < 0.5:
            self.new_page()

    def text(self, text: str, *, size: float = 8, color: str = _INK, weight: str = "normal", hang: str = "  ") -> None:
        """Sentences over the whole width."""
        step = size * _LINE_HEIGHT / 72
        for line in _wrapped(text, self.inside, size, weight, hang):
            self.room_for(step)
            self.y -= step
            self._put(_MARGIN, self.y, line, size=size, color=color, weight=weight)

    def section(self, title: str, texts: Sequence[str], *, size: float = 7, color: str = _MUTED) -> None:
        """A heading and sentences in two columns, all on one page."""
        gutter, step = 0.3, size * _LINE_HEIGHT / 72
        width = (self.inside - gutter) / 2
        blocks = [_wrapped(text, width, size) for text in texts]
        half = sum(map(len, blocks)) / 2
        columns: tuple[list[str], list[str]] = ([], [])
        for block in blocks:
            columns[len(columns[0]) >= half].extend(block)
        self.room_for((max(map(len, columns)) + 2) * step + 0.1)
        self.text(title, size=9.5, weight="bold")
        top = self.y
        for number, lines in enumerate(columns):
            for row, line in enumerate(lines, start=1):
                self._put(_MARGIN + number * (width + gutter), top - row * step, line, size=size, color=color)
        self.y = top - step * max(map(len, columns))

    def gap(self, inches: float) -> None:
        self.y -= inches

    def table(self, table: Table, *, size: float = 7.5) -> None:
        """A table over as much of the width as it needs; heads are wrapped."""
        heads = [textwrap.wrap(head, 13) or [""] for head in table.header]
        cells = [max(len(c) for c in column) for column in zip(*table.rows, strict=True)]
        widths = [max(c, *map(len, h)) + 2.5 for c, h in zip(cells, heads, strict=True)]
        unit = min(size * _CHARACTER / 72, self.inside / sum(widths))
        size = min(size, unit * 72 / _CHARACTER)
        step = size * _LINE_HEIGHT / 72
        most = max(map(len, heads))
        self.room_for(step * (most + 4))
        self.text(table.title, size=9.5, weight="bold")
        self.gap(0.04)
        self._heads(heads, widths, unit, size, step)
        for row in table.rows:
            if self.y - step < 0.5:
                self.new_page()
                self._heads(heads, widths, unit, size, step)
            self.y -= step
            self._row(row, widths, unit, size)

    def _heads(
        self, heads: Sequence[Sequence[str]], widths: Sequence[float], unit: float, size: float, step: float
    ) -> None:
        most = max(map(len, heads))
        for line in range(most):
            self.y -= step
            words = [head[line - (most - len(head))] if line >= most - len(head) else "" for head in heads]
            self._row(words, widths, unit, size, color=_MUTED)
        self._rule(sum(widths) * unit)

    def _row(self, cells: Sequence[str], widths: Sequence[float], unit: float, size: float, color: str = _INK) -> None:
        x = _MARGIN
        for number, (text, width) in enumerate(zip(cells, widths, strict=True)):
            x += width * unit
            if number == 0:
                self._put(_MARGIN, self.y, text, size=size, color=color)
            else:
                self._put(x, self.y, text, size=size, color=color, align="right")

    def _rule(self, length: float) -> None:
        from matplotlib.lines import Line2D

        self.y -= 0.035
        x = [_MARGIN / self.width, (_MARGIN + length) / self.width]
        self.figure.add_artist(Line2D(x, [self.y / self.height] * 2, color=_LINE, linewidth=0.7))

    def picture(self, png: bytes, most: float) -> None:
        """A picture over the width, at most so high."""
        import numpy as np
        from PIL import Image

        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        height = min(most, self.inside * pixels.shape[0] / pixels.shape[1])
        width = height * pixels.shape[1] / pixels.shape[0]
        self.y -= height
        left = (self.width - width) / 2
        axes = self.figure.add_axes((left / self.width, self.y / self.height, width / self.width, height / self.height))
        axes.imshow(pixels, aspect="auto", interpolation="antialiased")
        axes.set_axis_off()

    def _put(
        self, x: float, y: float, text: str, *, size: float, color: str, weight: str = "normal", align: str = "left"
    ) -> None:
        self.figure.text(
            x / self.width, y / self.height, text, fontsize=size, color=color, fontweight=weight, ha=align,
            family=FONT, parse_math=False,
        )  # fmt: skip


def _wrapped(text: str, inches: float, size: float, weight: str = "normal", hang: str = "  ") -> list[str]:
    """Lines of a text that are no wider than this, all but the first one indented by `hang`."""
    lines, line = [], ""
    for word in text.split():
        share = inches / _width(hang + word, size, weight)
        for part in [word] if share >= 1 else textwrap.wrap(word, max(int(0.8 * share * len(word)), 1)):  # a file name
            if line and _width(f"{line} {part}", size, weight) > inches:
                lines.append(line)
                line = hang + part
            else:
                line = f"{line} {part}" if line else part
    return [*lines, line]


@cache
def _width(text: str, size: float, weight: str) -> float:
    """Of a line, in inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=FONT, size=size, weight=weight)
    return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]) / 72


def write_pdf(report: Report, path: Path) -> None:
    """Writes the report."""
    from matplotlib.backends.backend_pdf import PdfPages

    with PdfPages(path, metadata={"Title": report.title, "Creator": "SpineSegAI"}) as pdf:
        for pages in (_first(report), _all_rows(report)):
            for figure in pages.figures:
                pdf.savefig(figure)


def _first(report: Report) -> _Pages:
    pages = _Pages()
    pages.text(report.title, size=14, weight="bold")
    pages.gap(0.04)
    pages.text("  ·  ".join(f"{title}: {value}" for title, value in report.about.items()), color=_MUTED, hang="")
    pages.gap(0.12)
    pages.picture(report.picture, 4.1)
    pages.gap(0.1)
    for table in report.tables:
        pages.table(table)
        pages.gap(0.1)
    if report.spine:
        pages.text(";  ".join(f"{title}: {value}" for title, value in report.spine), size=8.5, weight="bold")
        pages.gap(0.06)
    if report.doubts:
        pages.text("What is uncertain, and why", size=9.5, weight="bold")
        for doubt in report.doubts:
            pages.text(f"• {doubt}", color=_ALERT)
        pages.gap(0.06)
    if report.notes:
        pages.text("¹ Values are missing or unusual; see the next page.", size=7.5, color=_MUTED)
    taken = " How each value is taken is on the next page." if report.methods else ""
    pages.text(f"– not given.{taken}", size=7.5, color=_MUTED)
    return pages


def _all_rows(report: Report) -> _Pages:
    pages = _Pages(turned=True)
    pages.table(report.every)
    pages.gap(0.12)
    if report.notes:
        pages.text("¹ Why values are missing or unusual", size=9.5, weight="bold")
        for structure, note in report.notes:
            pages.text(f"{structure}: {note}", size=7.5)
        pages.gap(0.12)
    if report.methods:
        pages.section("How the values are taken", [f"{title}: {method}." for title, method in report.methods])
    return pages
