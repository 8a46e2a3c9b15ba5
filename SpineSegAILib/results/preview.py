"""One picture of a result: a mid-sagittal slice without and with labels, and a coronal view along the column.

Arrays are on the canonical grid of `imaging` (slices left → right, rows superior → inferior, columns anterior →
posterior); all drawing is in millimeters, so that proportions are the patient's.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..anatomy import STRUCTURES, Extent, Kind, short_name
from ..files import atomic_write
from ..imaging import carry_tags, upright
from .film_lines import draw_curves
from .lettering import FONT, write
from .measurement import FilmSpine, is_film
from .segmentation import Segmentation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BACKGROUND, _TEXT, _MUTED, _AMBER = "#0b0e12", "#e8ecf1", "#8a94a0", "#f0b95a"
_HEIGHT_INCH, _DPI = 7.2, 130
_MARGIN_INCH, _HEADER_INCH = 0.28, 0.85
_ASPECT_LIMITS = (0.2, 1.5)  # panels narrower or wider than this part of their height would waste the page
_CAPTION_INCH = 1.2  # width of the longest title of a picture that may be narrower
_ANTERIOR_MM, _POSTERIOR_MM = 75.0, 65.0  # shown before and behind what is labeled: vessels and skin
_ASIDE_MM = 60.0  # shown beside it


@dataclass(frozen=True)
class _View:
    """A slice to be drawn.

    Attributes:
        image, labels: (rows, columns).
        spacing: mm along rows and columns.
        ends: letters for the left, right, upper and lower edge.
        title: what the reader should see above it.
    """

    image: np.ndarray
    labels: np.ndarray
    spacing: tuple[float, float]
    ends: tuple[str, str, str, str]
    title: str

    @property
    def size_mm(self) -> tuple[float, float]:
        """Height and width."""
        return self.image.shape[0] * self.spacing[0], self.image.shape[1] * self.spacing[1]


def render_preview(
    image: sitk.Image,
    segmentation: Segmentation,
    path: str | Path,
    *,
    title: str = "",
    rows: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Writes the picture as PNG.

    Args:
        image: what was segmented, in any orientation; a volume, or a single slice such as a radiograph.
        segmentation: its result, in the image's geometry.
        path: where to write; ends with ``.png``.
        title: name of the case, shown above the picture.
        rows: `measurement.measure_all` of the segmentation; its notes stand below the picture.

    Raises:
        ValueError: if image and labels differ in size.
        OutputError: if the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = draw_preview(image, segmentation, title=title, rows=rows)
    path = Path(path)
    with atomic_write(path) as (place,):
        FigureCanvasAgg(figure).print_png(str(place), metadata={"Software": "SpineSegAI"})
    return path


def draw_preview(
    image: sitk.Image,
    segmentation: Segmentation,
    *,
    title: str = "",
    rows: Sequence[Mapping[str, Any]] = (),
    framed: bool = True,
) -> Figure:
    """The picture as a matplotlib figure that belongs to no window; see `render_preview`.

    Args:
        framed: with heading and notes; without them where they stand elsewhere.
    """
    from matplotlib.figure import Figure

    if image.GetSize() != segmentation.labels.GetSize():
        raise ValueError(f"Image {image.GetSize()} and labels {segmentation.labels.GetSize()} differ in size")
    image = carry_tags(segmentation.labels, sitk.Image(image))  # how it lies may be known from the result alone
    oriented = [upright(x) for x in (image, segmentation.labels)]
    volume, labels = (sitk.GetArrayViewFromImage(x) for x in oriented)  # a copy of a large CT is a gigabyte
    spacing = tuple(reversed(oriented[0].GetSpacing()))
    views = _views(volume, labels, spacing, segmentation.scheme.extent)
    low, high = _window(views[0])
    panels = [(views[0], False), *((view, True) for view in views)]
    height, dpi = (_HEIGHT_INCH, _DPI) if framed else (4.4, 210)  # smaller, so that text can be read on a page
    aspects = [view.size_mm[1] / view.size_mm[0] for view, _ in panels]
    widths = [max(height * float(np.clip(aspect, *_ASPECT_LIMITS)), _CAPTION_INCH) for aspect in aspects]
    narrow = [height * aspect < _CAPTION_INCH for aspect in aspects]  # stacks of the middle of the spine alone
    notes = _notes(segmentation, rows, columns=int(sum(widths) * 12)) if framed else []
    header, footer = (_HEADER_INCH, 0.38 + 0.19 * len(notes)) if framed else (0.4, 0.1)
    total = (sum(widths) + _MARGIN_INCH * (len(widths) + 1), height + header + footer)
    figure = Figure(figsize=total, dpi=dpi, facecolor=_BACKGROUND)
    left = _MARGIN_INCH
    names = _names(segmentation)
    spine = FilmSpine(segmentation) if is_film(segmentation) else None
    for (view, overlaid), width, is_narrow in zip(panels, widths, narrow, strict=True):
        axes = figure.add_axes((left / total[0], footer / total[1], width / total[0], height / total[1]))
        _draw(axes, view, (low, high), names if overlaid else None)
        if overlaid and spine is not None:
            draw_curves(axes, spine, view.spacing)
        if not overlaid and segmentation.scale_known:
            _scale_bar(axes, view)
        _caption(axes, view.title if not overlaid or view is not views[0] else "with labels", is_narrow)
        left += width + _MARGIN_INCH
    if not framed:
        return figure
    _header(figure, segmentation, title, total)
    _footer(figure, notes, total, levels=any(STRUCTURES[sid].order is not None for sid in segmentation.present))
    return figure


# --- what is shown ----------------------------------------------------------------------------------------------------


def _views(
    volume: np.ndarray, labels: np.ndarray, spacing: tuple[float, float, float], extent: Extent | None
) -> list[_View]:
    if 1 in volume.shape:
        return [_single_slice(volume, labels, spacing)]
    index = _mid_sagittal(labels)
    shown = _shown(labels, 2, spacing, (_ANTERIOR_MM, _POSTERIOR_MM))
    title = f"Sagittal, slice {index + 1} of {len(volume)}"
    image, ends = volume[index][:, shown].astype(np.float32), ("A", "P", "S", "I")
    sagittal = _View(image, labels[index][:, shown], spacing[1:], ends, title)
    depth = _column_depth(labels, extent)
    if depth is None:
        return [sagittal]
    # Curved: each row is taken at the depth of the column there. Radiological: the patient's right is on the left.
    rows = np.arange(volume.shape[1])
    depth = np.clip(depth, 0, volume.shape[2] - 1)
    lower = np.minimum(depth.astype(int), max(volume.shape[2] - 2, 0))
    part = (depth - lower)[:, np.newaxis]
    image = (1 - part) * volume[:, rows, lower].T + part * volume[:, rows, lower + 1].T
    nearest = labels[:, rows, np.rint(depth).astype(int)].T
    shown = _shown(labels, 0, spacing, (_ASIDE_MM, _ASIDE_MM))
    image, nearest = (x[:, shown][:, ::-1] for x in (image, nearest))
    return [sagittal, _View(image, nearest, (spacing[1], spacing[0]), ("R", "L", "S", "I"), "Coronal, curved")]


def _single_slice(volume: np.ndarray, labels: np.ndarray, spacing: tuple[float, float, float]) -> _View:
    """The slice as it was taken. No letters: a picture file does not say which side is which."""
    return _View(volume[0].astype(np.float32), labels[0], spacing[1:], ("", "", "", ""), "Single slice")


def _mid_sagittal(labels: np.ndarray) -> int:
    """The slice through the middle of the column: near the median of the vertebrae, the one that shows most of them."""
    counted = np.isin(labels, [s.id for s in STRUCTURES.values() if s.is_vertebral])
    if not counted.any():
        counted = labels > 0
    if not counted.any():
        return labels.shape[0] // 2
    per_slice = counted.sum(axis=(1, 2))
    median = int(np.searchsorted(np.cumsum(per_slice), per_slice.sum() / 2))
    near = slice(max(median - 2, 0), median + 3)
    return near.start + int(np.argmax(per_slice[near]))


def _shown(
    labels: np.ndarray, axis: int, spacing: tuple[float, float, float], margins_mm: tuple[float, float]
) -> slice:
    """The part of an axis that is shown: all that is labeled, with margins on both sides."""
    inside = np.flatnonzero(labels.any(axis=tuple(a for a in range(3) if a != axis)))
    if not inside.size:
        return slice(None)
    before, behind = (round(mm / spacing[axis]) for mm in margins_mm)
    return slice(max(int(inside[0]) - before, 0), int(inside[-1]) + 1 + behind)


def _column_depth(labels: np.ndarray, extent: Extent | None) -> np.ndarray | None:
    """Anterior–posterior index of the vertebral bodies for each row, (rows,); None without vertebrae or discs."""
    known: dict[float, float] = {}
    for sid, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None or sid not in STRUCTURES:
            continue
        s = STRUCTURES[sid]
        if not (s.is_vertebral or s.kind is Kind.DISC):
            continue
        inside = labels[box] == sid
        if s.is_vertebral and extent is Extent.WHOLE:
            inside[:, :, inside.shape[2] // 2 :] = False  # the body is the anterior half of a whole vertebra
            if not inside.any():
                continue
        _, row, column = ndimage.center_of_mass(inside)
        known[row + box[1].start] = column + box[2].start
    if not known:
        return None
    rows = sorted(known)
    return np.interp(np.arange(labels.shape[1]), rows, [known[r] for r in rows])


def _window(view: _View) -> tuple[float, float]:
    """Gray values that are shown black and white: the column well exposed, whatever the skin near the coil does."""
    image = view.image
    if image.min() < -500:  # Hounsfield units: fat to dense bone
        return -200.0, 750.0
    low = float(np.percentile(image, 1))
    rows, columns = (np.flatnonzero(view.labels.any(axis=axis)) for axis in (1, 0))
    if rows.size:
        image = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    high = float(np.percentile(image, 99.5))
    return low, high if high > low else low + 1.0


def _names(segmentation: Segmentation) -> dict[int, str]:
    """Short names for the picture: ``"L4"``, ``"L4/L5"``; a star marks what is experimental."""
    present = segmentation.present
    names = {sid: short_name(sid, present) for sid in present}
    return {sid: f"{name} *" if sid in segmentation.unvalidated else name for sid, name in names.items()}


_MOST_LINES = 8  # of the table's notes; the picture is above them


def _notes(segmentation: Segmentation, rows: Sequence[Mapping[str, Any]], columns: int) -> list[str]:
    """Lines below the picture: what the result warns of, and what the table notes of each structure."""

    def wrapped(notes: list[str]) -> list[str]:
        return [line for note in notes for line in textwrap.wrap(note, columns, subsequent_indent="  ")]

    notes = [f"• {warning}" for warning in segmentation.warnings]
    if not segmentation.present:
        notes.insert(0, "• No structure was found in this image.")
    if any(sid in segmentation.unvalidated for sid in segmentation.present):
        notes.append("* Experimental: not validated on real cases.")
    measured = wrapped([f"• {row['structure']}: {row['notes']}" for row in rows if row["notes"]])
    if len(measured) > _MOST_LINES:
        measured = [*measured[: _MOST_LINES - 1], "• More notes are in the table of measurements."]
    return [*wrapped(notes), *measured]


# --- how it is drawn --------------------------------------------------------------------------------------------------


def _draw(axes: Axes, view: _View, window: tuple[float, float], names: Mapping[int, str] | None) -> None:
    height, width = view.size_mm
    axes.set_facecolor("black")
    axes.imshow(
        view.image,
        cmap="gray",
        vmin=window[0],
        vmax=window[1],
        extent=(0, width, height, 0),
        interpolation="bicubic",
        aspect="equal",
    )
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    # Upper and lower end are named in the right corners: the column fills the middle.
    corners = (0.02, 0.5, "left", "center"), (0.98, 0.5, "right", "center"), (0.98, 0.985, "right", "top")
    for letter, (x, y, align, vertical) in zip(view.ends, (*corners, (0.98, 0.015, "right", "bottom")), strict=True):
        write(axes, x, y, letter, size=9, color=_MUTED, align=align, vertical=vertical, transform=axes.transAxes)
    if names is not None:
        for sid, box in enumerate(ndimage.find_objects(view.labels), start=1):
            if box is not None and sid in STRUCTURES:
                _draw_structure(axes, view, sid, box, names.get(sid, STRUCTURES[sid].name))


def _draw_structure(axes: Axes, view: _View, sid: int, box: tuple[slice, slice], name: str) -> None:
    """Fill, outline and name of one structure."""
    mask = np.pad((view.labels[box] == sid).astype(np.float32), 1)
    row0, column0 = (b.start - 1 for b in box)
    y = (row0 + np.arange(mask.shape[0]) + 0.5) * view.spacing[0]
    x = (column0 + np.arange(mask.shape[1]) + 0.5) * view.spacing[1]
    s = STRUCTURES[sid]
    axes.contourf(x, y, mask, levels=(0.5, 1.5), colors=[s.color], alpha=0.30, antialiased=True)
    bright = tuple(0.55 + 0.45 * channel for channel in s.color)  # for what is thin, on a dark ground
    axes.contour(x, y, mask, levels=(0.5,), colors=[s.color], linewidths=1.2)
    if s.kind is Kind.POSTERIOR:
        return  # the hue says whose they are; names of all would hide the picture
    parts, count = ndimage.label(mask)
    largest = 1 + int(np.argmax(np.bincount(parts.ravel(), minlength=count + 1)[1:]))
    row, column = ndimage.center_of_mass(parts == largest)
    edge = 0.014 * view.size_mm[0]  # half a line of text
    middle = float(np.clip((row0 + row + 0.5) * view.spacing[0], edge, view.size_mm[0] - edge))
    at = (column0 + column + 0.5) * view.spacing[1], middle
    if s.kind is Kind.DISC and view.ends[0] == "R":
        write(axes, *at, name, size=7, color=bright, align="center")
    elif s.kind is Kind.DISC:
        anterior = x[0] - 1.5  # beside the disc, where it hides neither the disc nor the canal
        write(axes, anterior, at[1], name, size=7.5, color=bright, align="right")
    elif s.is_vertebral:
        write(axes, *at, name, size=10.5, color="white", align="center", weight="bold")
    else:
        top = x[np.flatnonzero(mask[1])[-1]]  # its right end where it begins
        write(axes, top + 4, max(y[1], 0.0) + 3 * edge, name, size=7.5, color=bright, align="left")


def _scale_bar(axes: Axes, view: _View) -> None:
    height, width = view.size_mm
    length = next((mm for mm in (50, 20, 10, 5) if mm < 0.4 * width), None)
    if length is None:
        return
    x, y = 0.04 * width, 0.965 * height
    axes.plot([x, x + length], [y, y], color=_TEXT, linewidth=2, solid_capstyle="butt")
    write(axes, x, y - 0.008 * height, f"{length} mm", size=8, color=_TEXT, align="left", vertical="bottom")


def _caption(axes: Axes, text: str, narrow: bool) -> None:
    """The title; of a picture that is narrower than it, in the middle, and names may stand out at the sides."""
    axes.set_title(text, loc="center" if narrow else "left", color=_MUTED, fontsize=8.5, pad=5, family=FONT)
    for name in axes.texts if narrow else ():
        name.set_clip_on(False)


def _header(figure: Figure, segmentation: Segmentation, title: str, total: tuple[float, float]) -> None:
    x = _MARGIN_INCH / total[0]
    by = [_named(segmentation.provenance.get(key)) for key in ("method", "checkpoint")]
    subtitle = "  ·  ".join(dict.fromkeys(part for part in by if part))
    top = 1 - 0.2 / total[1]
    heading = title or "Spine segmentation"
    figure.text(x, top, heading, color=_TEXT, fontsize=13, fontweight="bold", va="top", family=FONT)
    right = 1 - x
    figure.text(right, top, "SpineSegAI", color=_TEXT, fontsize=10, va="top", ha="right", family=FONT)
    figure.text(
        right, top - 0.2 / total[1], "Research use only", color=_AMBER, fontsize=8, va="top", ha="right", family=FONT
    )
    if subtitle:
        figure.text(x, top - 0.25 / total[1], subtitle, color=_MUTED, fontsize=8.5, va="top", family=FONT)


def _footer(figure: Figure, notes: list[str], total: tuple[float, float], *, levels: bool) -> None:
    x = _MARGIN_INCH / total[0]
    for line, text in enumerate(notes):
        y = (0.19 * (len(notes) - line) + 0.16) / total[1]
        figure.text(x, y, text, color=_AMBER, fontsize=8, va="center", family=FONT)
    if levels:
        numbering = "Numbering assumes five lumbar vertebrae unless L6 or T13 is seen."
        figure.text(x, 0.15 / total[1], numbering, color=_MUTED, fontsize=7.5, va="center", family=FONT)


def _named(value: Any) -> str:
    """A method or checkpoint as provenance has it: a name, or a mapping with one."""
    if isinstance(value, Mapping):
        value = value.get("title") or value.get("name") or value.get("id")
    return str(value) if value else ""
