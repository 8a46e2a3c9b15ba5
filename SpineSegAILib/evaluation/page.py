"""Reports as one HTML file that opens anywhere: style, plots and pictures are inside, nothing is loaded or run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import atomic_write
from ..results.templates import render
from . import plots
from .report import CAUTIONS, POLICY
from .worst import WorstCase

Block = dict[str, Any]
"""What the template `page.html.j2` shows: its ``kind``, and what belongs to that."""


def page(title: str, parts: Sequence[Block | None], notes: Sequence[str] = ()) -> str:
    """A whole document.

    Args:
        title: plain text.
        parts: of the functions below; None is omitted.
        notes: plain sentences below the title.
    """
    return render("page.html.j2", title=title, parts=[part for part in parts if part], notes=notes)


def section(title: str, *blocks: Block | None) -> Block | None:
    """A heading and what belongs to it; None if there is nothing."""
    shown = [block for block in blocks if block]
    return {"kind": "section", "title": title, "blocks": shown} if shown else None


def table(header: Sequence[str], rows: Sequence[Sequence[str]], strong: int = 0) -> Block:
    """A table of plain text.

    Args:
        strong: how many of its first rows stand out.
    """
    return {"kind": "table", "header": header, "rows": rows, "strong": strong}


def figure(svg: str, caption: str = "") -> Block | None:
    """A plot; None if there is none."""
    return {"kind": "figure", "svg": svg, "caption": caption} if svg else None


def note(text: str, *, alert: bool = False) -> Block:
    """A sentence."""
    return {"kind": "note", "text": text, "alert": alert}


def links(found: Sequence[tuple[str, str]]) -> Block | None:
    """A list of links, as text and address; None if there are none."""
    return {"kind": "links", "links": found} if found else None


def number(value: float | None, digits: int = 3) -> str:
    """A figure, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def span(interval: Sequence[float] | None, digits: int = 3) -> str:
    """An interval; empty if there is none."""
    return f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}" if interval else ""


# --- the report of one checkpoint ------------------------------------------------------------------------------------

_HEADER = (
    "", "n", "Dice", "95 %", "IoU", "surface Dice 1 mm", "HD95 mm", "ASD mm", "HD95 px", "ASD px",
    "Dice, ignoring level", "levels correctly identified", "missed", "false positives", "absent in both", "no distance",
)  # fmt: skip


def write_page(report: Mapping[str, Any], path: str | Path, worst: Sequence[WorstCase] = ()) -> None:
    """Writes the report of `evaluate_dataset` as HTML, whole or not at all.

    Args:
        worst: pictures for it, of `WorstCases.drawn`.

    Raises:
        OutputError: it cannot be written.
    """
    with atomic_write(path) as (temporary,):
        temporary.write_text(report_page(report, worst), encoding="utf-8")


def report_page(report: Mapping[str, Any], worst: Sequence[WorstCase] = ()) -> str:
    """The document that `write_page` writes."""
    about = ", ".join(f"{k} {report[k]}" for k in ("checkpoint", "method", "device") if report.get(k))
    notes = [f"Dataset {report['dataset']}, split {report['split']}. {about[:1].upper()}{about[1:]}.", POLICY]
    parts: list[Block | None] = [note(report[key], alert=True) for key in CAUTIONS if key in report]
    for variant, summary in report["variants"].items():
        parts += _variant(variant, summary)
    parts.append(section("Worst cases", *(_worst(case) for case in worst)))
    return page(f"Evaluation of {report.get('checkpoint', 'a method')}", parts, notes)


def _variant(variant: str, summary: Mapping[str, Any]) -> list[Block | None]:
    name = "" if variant == "full" else f" ({variant})"
    groups = [_row("all", summary["overall"]), *(_row(g, row) for g, row in summary["groups"].items())]
    macro = summary["overall"]
    sources = [
        _row(f"{source}: {group}", row)
        for source, found in summary["sources"].items()
        for group, row in found.items()
        if len(summary["sources"]) > 1
    ]
    single = [_row(n, row) for n, row in summary["structures"].items()]
    found = summary["identification"]
    sentences = [
        f"Mean of the structures' means (macro): Dice {number(macro['macro']['dice'])} "
        f"({span(macro['macro_intervals']['dice']) or 'too few patients for an interval'}), IoU "
        f"{number(macro['macro']['iou'])}, HD95 {number(macro['macro']['hd95_mm'], 2)} mm, ASD "
        f"{number(macro['macro']['asd_mm'], 2)} mm. With the image's diagonal as the distance of what was missed: HD95 "
        f"{number(macro['with_diagonal']['hd95_mm'], 2)} mm, ASD {number(macro['with_diagonal']['asd_mm'], 2)} mm."
    ]
    if found["rate"] is not None:
        sentences.append(
            f"Levels identified per subject: {found['rate']:.1%} ({span(found['interval']) or 'no interval'}), "
            f"{found['subjects_right']} of {found['subjects']} subjects without an error."
        )
    memory = f", at most {number(summary['peak_mb'], 0)} MB resident" if summary["peak_mb"] else ""
    memory += f", {number(summary['device_peak_mb'], 0)} MB on the device" if summary["device_peak_mb"] else ""
    sentences.append(f"{number(summary['seconds'], 2)} s per case{memory}.")
    sentences += [f"{case} failed: {why}" for case, why in summary["failures"].items()]
    return [
        section(f"Figures{name}", table(_HEADER, [*groups, *sources], strong=len(groups)), *map(note, sentences)),
        section(f"By structure{name}", table(_HEADER, single)),
        section(
            f"Plots{name}",
            figure(plots.by_structure(summary, "dice", "Dice by structure, level-strict")),
            figure(plots.by_structure(summary, "hd95_mm", "HD95 in mm, level-strict")),
            figure(plots.levels(summary)),
            note("A point is a case; bars are means with their 95 % intervals."),
        ),
        section(f"Found, ignoring level{name}", *_panoptic(summary["panoptic"])),
        section(f"Cases{name}", _cases(summary)),
    ]


def _row(name: str, row: Mapping[str, Any]) -> list[str]:
    return [
        name, str(row["scored"]), number(row["dice"]), span(row["intervals"]["dice"]), number(row["iou"]),
        number(row["surface_dice"]), number(row["hd95_mm"], 2), number(row["asd_mm"], 2), number(row["hd95_px"], 2),
        number(row["asd_px"], 2), number(row["matched_dice"]),
        f"{row['levels_right']}/{row['levels']}" if row["levels"] else "–", str(row["missed"]), str(row["invented"]),
        str(row["absent_in_both"]), str(row["undefined_distances"]),
    ]  # fmt: skip


def _panoptic(groups: Mapping[str, Any]) -> list[Block]:
    if not groups:
        return []
    counts = ("found", "missed", "spurious", "unknown")
    rows = [
        [name, *(number(q[k]) for k in ("pq", "rq", "sq")), *(str(q[k]) for k in counts)] for name, q in groups.items()
    ]
    header = ["", "PQ", "RQ", "SQ", "found", "missed", "spurious", "where nothing is annotated"]
    return [table(header, rows), note("Panoptic quality at IoU 0.5, over all cases together.")]


def _cases(summary: Mapping[str, Any]) -> Block:
    rows = []
    for case in sorted(summary["cases"], key=_case_dice):
        rate = case["identification_rate"]
        rows.append(
            [
                case["case"], case["source"], str(len(case["structures"])), number(_case_dice(case)),
                "–" if rate is None else f"{rate:.0%}", f"{case['seconds']:.2f}", number(case["peak_mb"], 0),
                ", ".join(case["not_offered"]), case["failure"],
            ]
        )  # fmt: skip
    header = ["", "source", "n", "Dice", "levels", "seconds", "MB", "not in the scheme", "failure"]
    return {"kind": "folded", "summary": f"{len(rows)} cases, the worst first", "inside": table(header, rows)}


def _case_dice(case: Mapping[str, Any]) -> float:
    found = [s["dice"] for s in case["structures"]]
    return sum(found) / len(found) if found else 0.0


def _worst(case: WorstCase) -> Block:
    title = f"{case.case}: Dice {case.dice:.3f}"
    return {"kind": "pictures", "title": title, "case": case.case, "pictures": case.pictures}
