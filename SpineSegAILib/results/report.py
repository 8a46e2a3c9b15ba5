"""A report of one result: a page for the reader, and all rows of the measurements behind it. HTML or PDF."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from .. import __version__
from ..anatomy import STRUCTURES, Kind
from ..errors import ConfigError
from ..files import atomic_write, check_suffix
from ..imaging.study import study_of
from .measurement import CURVE, EVERY, FILM, MEASUREMENTS, SPINE_MEASUREMENTS, is_film
from .measurement_table import cell
from .preview import draw_preview
from .quality import LOW
from .segmentation import Segmentation

RESEARCH = "For research use only. Not a medical device; every value has to be checked by a radiologist."
NUMBERING = "Numbering assumes five lumbar vertebrae unless L6 or T13 is seen."
_VERTEBRAE = (
    "height_anterior_mm", "height_middle_mm", "height_posterior_mm", "depth_mm", "endplate_angle_deg", "slip_mm",
    "canal_depth_mm", "tilt_deg",
)  # fmt: skip
_DISCS = ("height_mean_mm", "disc_height_index", "endplate_angle_deg", "canal_depth_mm")
_CURVES = ("curve_deg",)
_HEADS = {"slip_mm": "Slip", "canal_depth_mm": "Canal AP", "depth_mm": "AP diam.", "disc_height_index": "Height index",
          "height_anterior_mm": "Ant. height", "height_middle_mm": "Mid. height", "height_posterior_mm": "Post. height",
          "outline_quality": "Outline quality"}  # fmt: skip
"""Short heads for narrow columns."""


@dataclass(frozen=True)
class Table:
    """Cells as text; a column without values is not there.

    Attributes:
        title: above it.
        header, rows: cells.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Report:
    """What a report shows.

    Attributes:
        title: name of the image.
        about: title → value: the study, the model and how it was computed.
        picture: PNG.
        tables: of the first page.
        spine: values of the spine as a whole, as sentences' ends: ``("Lordosis L1–S1", "52.1°")``.
        doubts: what is uncertain, and why.
        every: all structures of the table of measurements.
        notes: why values are missing or unusual: names of the structures, and the note that they share.
        methods: title → how it is measured, of all that is shown.
    """

    title: str
    about: dict[str, str]
    picture: bytes
    tables: tuple[Table, ...]
    spine: tuple[tuple[str, str], ...]
    doubts: tuple[str, ...]
    every: Table
    notes: tuple[tuple[str, str], ...]
    methods: tuple[tuple[str, str], ...]


def write_report(
    image: sitk.Image,
    result: Segmentation,
    path: str | Path,
    *,
    source: str | Path,
    rows: Sequence[Mapping[str, Any]],
    patient: bool = False,
    title: str = "",
) -> Path:
    """Writes the report as the name ends: ``.html`` (one file, nothing is loaded), or ``.pdf``.

    Args:
        image: what was segmented.
        result: its segmentation, in the image's geometry.
        source: the image's file or folder; what its DICOM says of the study is shown.
        rows: `measurement.measure_all` of the result.
        patient: show the patient's name, ID, birth date and sex.
        title: name of the image, where that is not its file's.

    Raises:
        OutputError: another suffix, or the file cannot be written.
        ConfigError: the patient is asked for, and the source is not DICOM.
    """
    path = Path(path)
    check_suffix(path, (".html", ".pdf"))
    report = make_report(image, result, source=source, rows=rows, patient=patient, title=title)
    with atomic_write(path) as (place,):
        if path.suffix.lower() == ".html":
            from .templates import render

            picture = base64.b64encode(report.picture).decode("ascii")
            page = render("report.html.j2", r=report, picture=picture, research=RESEARCH)
            place.write_text(page, encoding="utf-8")
        else:
            from .report_pdf import write_pdf

            write_pdf(report, place)
    return path


def make_report(
    image: sitk.Image,
    result: Segmentation,
    *,
    source: str | Path,
    rows: Sequence[Mapping[str, Any]],
    patient: bool = False,
    title: str = "",
) -> Report:
    """What the report shows; see `write_report`."""
    study = study_of(source, patient=patient)
    if patient and not study:
        raise ConfigError(f"{source} is not DICOM: it has no patient data.", "Omit --patient.")
    *structures, spine = rows
    vertebrae = [row for row in structures if row["kind"] in (Kind.VERTEBRA.value, Kind.SACRUM.value)]
    discs = [row for row in structures if row["kind"] == Kind.DISC.value]
    curves = [row for row in structures if row["kind"] == CURVE]
    tables = (
        _table("Curves", curves, _CURVES),
        _table("Vertebrae", vertebrae, _VERTEBRAE),
        _table("Discs", discs, _DISCS),
    )
    shown = tuple(
        (m.label, "–" if spine[m.key] is None else f"{cell(m.key, spine[m.key])}{m.unit}")
        for m in SPINE_MEASUREMENTS
        if len(vertebrae) > 1 and (m.key in FILM) is is_film(result)
    )
    rest = [m.key for m in MEASUREMENTS if not m.key.startswith("centroid")]
    every = _table("All measurements", structures, rest)
    measured = [*rest, *(m.key for m in SPINE_MEASUREMENTS)]
    keys = [key for key in measured if any(row[key] is not None for row in rows)]
    return Report(
        title=title or Path(source).absolute().name,
        about={**study, **_about(result)},
        picture=_picture(image, result),
        tables=tuple(table for table in tables if table.rows and len(table.header) > 1),
        spine=shown,
        doubts=_doubts(result, structures),
        every=every,
        notes=_notes(rows),
        methods=tuple((f"{EVERY[key].label}{_unit(key)}", EVERY[key].method) for key in keys),
    )


def _about(result: Segmentation) -> dict[str, str]:
    provenance = result.provenance
    seconds = provenance.get("seconds")
    took = f"{sum(seconds.values()):.1f} s" if isinstance(seconds, Mapping) and seconds else ""
    device = " on ".join(part for part in (took, str(provenance.get("device", ""))) if part)
    about = {
        "Model": ", ".join(dict.fromkeys(str(provenance[k]) for k in ("checkpoint", "method") if provenance.get(k))),
        "Program": f"SpineSegAI {__version__}",
        "Computed": device,
        "Corrected by the user": "yes" if result.corrections else "",
        "Level confidence": "" if result.level_confidence is None else f"{result.level_confidence:.2f} (0 to 1)",
        "Report made": date.today().isoformat(),
    }
    return {title: value for title, value in about.items() if value}


def _unit(key: str) -> str:
    return f" ({EVERY[key].unit})" if key in EVERY and EVERY[key].unit else ""


def _table(title: str, rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> Table:
    """The columns in which something has a value; the last one is the outline's quality."""
    keys = [key for key in (*keys, "outline_quality") if any(row[key] is not None for row in rows)]
    heads = [(_HEADS.get(key) or EVERY[key].label) + _unit(key) for key in keys]
    found = []
    for row in rows:
        marks = (" *" if row["unvalidated"] else "") + (" ¹" if row["notes"] else "")
        found.append((row["structure"] + marks, *(cell(key, row[key]) or "–" for key in keys)))
    return Table(title, ("", *heads), tuple(found))


def _notes(rows: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, str], ...]:
    """The rows' notes, each once."""
    of: dict[str, list[str]] = {}
    for row in rows:
        if row["notes"]:
            of.setdefault(row["notes"], []).append(row["structure"])
    return tuple((", ".join(names), note) for note, names in of.items())


def _doubts(result: Segmentation, rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    doubts = list(result.warnings)
    if any(STRUCTURES[sid].order is not None for sid in result.present):
        doubts.append(NUMBERING)
    low = [row["structure"] for row in rows if row["outline_quality"] is not None and row["outline_quality"] < LOW]
    if low:
        doubts.append(f"Low outline quality, please check: {', '.join(low)}.")
    if any(row["unvalidated"] for row in rows):
        doubts.append("* Experimental: not validated on real cases.")
    return tuple(doubts)


def _picture(image: sitk.Image, result: Segmentation) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    stored = io.BytesIO()
    FigureCanvasAgg(draw_preview(image, result, framed=False)).print_png(stored)
    return stored.getvalue()
