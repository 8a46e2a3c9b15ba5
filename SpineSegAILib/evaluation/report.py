"""A report as files and as text: JSON, CSV, a table for people. `page` makes the one with pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..anatomy import STRUCTURES
from ..files import atomic_write, write_csv_rows
from ..results.quality import GOOD_DICE, LOW

POLICY = (
    "A structure that is in neither mask is skipped; one that is in exactly one of them has Dice, IoU, precision and "
    "surface Dice 0 and no distance. How many these are is in the columns “missed”, “false positives” and “no "
    "distance”; means of distances omit them, which flatters a method that misses structures. Intervals are 95 % "
    "bootstrap intervals over patients."
)
"""How the results are to be read."""

_CASE_COLUMNS = ("case", "source", "patient", "variant", "seconds", "peak_mb", "device_peak_mb", "failure")


def write_report(report: Mapping[str, Any], path: str | Path) -> None:
    """Writes the report as JSON, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    with atomic_write(path) as (temporary,):
        temporary.write_text(json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def write_csv(report: Mapping[str, Any], path: str | Path) -> None:
    """Writes a line for each structure of each case; a case without a scored structure has one, too. What is not
    defined is empty.

    Raises:
        OutputError: it cannot be written.
    """
    cases = [case for summary in report["variants"].values() for case in summary["cases"]]
    columns = list(dict.fromkeys(key for case in cases for s in case["structures"] for key in s))
    rows = [[*_CASE_COLUMNS, *("structure" if c == "name" else c for c in columns)]]
    for case in cases:
        rows += [[*(case[c] for c in _CASE_COLUMNS), *(s.get(c) for c in columns)] for s in case["structures"] or [{}]]
    with atomic_write(path) as (temporary,):
        write_csv_rows(temporary, rows)


CAUTIONS = ("label_leak", "seen", "extent", "grid", "left_out")
"""Keys of a report whose sentences come before its numbers."""


def format_report(report: Mapping[str, Any]) -> str:
    """The report as a table for people."""
    header = f"{'':28}{'n':>4}{'Dice':>8}{'IoU':>8}{'HD95':>8}{'ASD':>8}{'matched':>9}{'levels':>9}{'cases':>8}"
    lines: list[str] = [report[key] for key in CAUTIONS if key in report]
    for variant, summary in report["variants"].items():
        lines += [f"{variant}", header, _row("all", summary["overall"])]
        lines += [_row(group, row) for group, row in summary["groups"].items()]
        if len(summary["sources"]) > 1:
            for source, groups in summary["sources"].items():
                lines += [_row(f"  {source}: {group}", row) for group, row in groups.items()]
        lines += [_row(f"    {name}", row) for name, row in summary["structures"].items()]
        lines += _about_all(summary)
        false = summary["false_positive_ml"]
        outside = [f"{n} {v['unscored_mean_ml_per_case']:.1f}" for n, v in false.items() if v["unscored_cases"]]
        if outside:
            lines.append(f"  predicted where nothing is annotated (mL per case): {', '.join(outside)}")
        lines += [f"  {case} failed: {why}" for case, why in summary["failures"].items()]
        for case in summary["cases"]:
            wrong = [
                f"{s['name']} as {STRUCTURES[s['matched_id']].name if s['matched_id'] else 'nothing'}"
                for s in case["structures"]
                if s["level_right"] is False
            ]
            if wrong:
                lines.append(f"  {case['case']}: {', '.join(wrong)}")
            if case["not_offered"]:
                lines.append(f"  {case['case']}: not in the scheme, not scored: {', '.join(case['not_offered'])}")
        lines.append("")
    lines.append(
        "HD95 and ASD in mm; matched: Dice ignoring level; levels: correctly identified; cases: all levels correct."
    )
    return "\n".join(lines)


def _about_all(summary: Mapping[str, Any]) -> list[str]:
    """What a table's row has no room for."""
    row, found, lines = summary["overall"], summary["identification"], []
    lines.append(
        f"  missed {row['missed']}, false positives {row['invented']}, absent in both {row['absent_in_both']}; "
        f"without distances {row['undefined_distances']} of {row['scored']}"
    )
    if row["scored"]:
        ends = row["intervals"]["dice"]
        interval = f" (95 %: {ends[0]:.3f} to {ends[1]:.3f})" if ends else ""
        surface = f", surface Dice at 1 mm {row['surface_dice']:.3f}"
        lines.append(f"  Dice {row['dice']:.3f}{interval}, mean of structures {row['macro']['dice']:.3f}{surface}")
    if found["rate"] is not None:
        lines.append(
            f"  levels identified per subject: {found['rate']:.1%} of {found['subjects']} subjects' structures"
        )
    for group, quality in summary["panoptic"].items():
        if quality["pq"] is not None:
            sq = "–" if quality["sq"] is None else f"{quality['sq']:.3f}"
            lines.append(f"  {group}, ignoring level: PQ {quality['pq']:.3f}, RQ {quality['rq']:.3f}, SQ {sq}")
    if (quality := summary.get("outline_quality")) is not None:
        lines.append(f"  {quality_in_words(quality)}")
    lines += _measurement_lines(summary.get("measurements", {}))
    if summary["seconds"] is not None:
        memory = "" if summary["peak_mb"] is None else f", at most {summary['peak_mb']:.0f} MB resident"
        device = summary["device_peak_mb"]
        memory += "" if device is None else f", {device:.0f} MB on the device"
        lines.append(f"  {summary['seconds']:.2f} s per case{memory}")
    return lines


def quality_in_words(quality: Mapping[str, Any]) -> str:
    """`quality.quality_summary` as a sentence."""
    area = quality["roc_area"]
    return (
        f"outline quality below {LOW:g}: {quality['low']} of {quality['outlines']} outlines, of which "
        f"{quality['poor_of_low']} have a Dice below {GOOD_DICE:g}; of the others "
        f"{quality['poor'] - quality['poor_of_low']} have (expected in all: {quality['expected_poor']:.1f}, "
        f"found: {quality['poor']}{'' if area is None else f'; area under the ROC curve {area:.2f}'})"
    )


def _measurement_lines(lines: Mapping[str, Any]) -> list[str]:
    """Errors of measurements, a line each."""
    if not lines:
        return []
    shown = [
        f"  {'measured against the reference':32}{'values':>8}{'blank':>8}{'bias':>8}{'mean':>8}{'95 %':>8}{'max':>8}"
    ]
    for name, line in lines.items():
        numbers = [line[key] for key in ("bias", "mean_error", "p95_error", "largest_error")]
        cells = "".join(f"{'–' if x is None else f'{x:.1f}':>8}" for x in numbers)
        shown.append(f"    {name:30}{line['values']:>8}{line['blank'] / line['values']:>8.0%}{cells} {line['unit']}")
    return shown


def _row(name: str, row: Mapping[str, Any]) -> str:
    def number(key: str, digits: int) -> str:
        return "–" if row[key] is None else f"{row[key]:.{digits}f}"

    levels = f"{row['levels_right']}/{row['levels']}" if row["levels"] else "–"
    cases = f"{row['cases_right']}/{row['cases']}" if row["cases"] else "–"
    return (
        f"{name:28}{row['scored']:>4}{number('dice', 3):>8}{number('iou', 3):>8}{number('hd95_mm', 2):>8}"
        f"{number('asd_mm', 2):>8}{number('matched_dice', 3):>9}{levels:>9}{cases:>8}"
    )
