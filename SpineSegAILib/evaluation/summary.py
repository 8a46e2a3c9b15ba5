"""Averages over cases, with their intervals, and with the counts of what could not be averaged."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ..anatomy import STRUCTURES, sorted_ids, structure
from ..files import jsonable
from .measurements import measurement_summary
from .quality import quality_summary
from .scores import CaseReport, Panoptic, StructureScore, group_of
from .statistics import mean_intervals

METRICS = (
    "dice", "iou", "precision", "hd95_mm", "asd_mm", "surface_dice", "hd95_px", "asd_px",
    "matched_dice", "matched_iou", "matched_hd95_mm", "matched_asd_mm", "matched_surface_dice",
)  # fmt: skip
"""Fields of `StructureScore` that are averaged."""

DISTANCES = frozenset(m for m in METRICS if m.endswith(("_mm", "_px")))
"""Those of which less is better, and which a structure that was missed does not have."""


def summarize(reports: Sequence[CaseReport]) -> dict[str, Any]:
    """Averages over cases, JSON-able: over all, by group of structures, by source and group, by structure; and every
    case."""
    sources = sorted({r.source for r in reports})
    names = {s.id: s.name for r in reports for s in r.structures}
    return {
        "overall": _average(reports, STRUCTURES),
        "groups": _by_group(reports),
        "sources": {s or "unnamed": _by_group([r for r in reports if r.source == s]) for s in sources},
        "structures": {names[sid]: _average(reports, {sid}) for sid in sorted_ids(names)},
        "identification": _identification(reports),
        "panoptic": _panoptic(reports),
        "false_positive_ml": _false_positives(reports),
        "outline_quality": quality_summary(reports),
        "measurements": measurement_summary(pair for r in reports for pair in r.measurements),
        "failures": {r.case: r.failure for r in reports if r.failure},
        "seconds": mean([r.seconds for r in reports]),
        "peak_mb": max((r.peak_mb for r in reports if r.peak_mb is not None), default=None),
        "device_peak_mb": max((r.device_peak_mb for r in reports if r.device_peak_mb is not None), default=None),
        "cases": [case_document(r) for r in reports],
    }


def merge_reports(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One report of several over different cases, such as the folds of a cross-validation.

    Args:
        reports: of `evaluate_dataset`, with the same variants; what else they say is taken from the first.
    """
    first = reports[0]
    return {
        **first,
        "variants": {
            variant: summarize([CaseReport.from_document(c) for r in reports for c in r["variants"][variant]["cases"]])
            for variant in first["variants"]
        },
    }


def case_document(report: CaseReport) -> dict[str, Any]:
    """A case as reports have it; `CaseReport.from_document` reads it."""
    derived = {"levels_right": report.levels_right, "identification_rate": report.identification_rate}
    return jsonable({**asdict(report), **derived})


def _by_group(reports: Sequence[CaseReport]) -> dict[str, Any]:
    groups = dict.fromkeys(s.group for r in reports for s in r.structures)
    return {group: _average(reports, {i for i in STRUCTURES if group_of(i) == group}) for group in groups}


def _average(reports: Sequence[CaseReport], wanted: Container[int]) -> dict[str, Any]:
    """Means over all scored structures, and (`macro`) means over the structures' own means, as papers give them.

    Missed and false positive structures have Dice 0 and no distance. `undefined_distances` counts them;
    `with_diagonal` gives them the image's diagonal instead of omitting them.
    """
    per_case = [[s for s in r.structures if s.id in wanted] for r in reports]
    scores = [s for found in per_case for s in found]
    levels = [s.level_right for s in scores if s.level_right is not None]
    per_case_levels = [[s.level_right for s in found if s.level_right is not None] for found in per_case]
    absent = sum(structure(name).id in wanted for r in reports for name in r.absent)
    row: dict[str, Any] = {
        "scored": len(scores),
        "missed": sum(s.predicted_ml == 0 for s in scores),
        "invented": sum(s.reference_ml == 0 for s in scores),
        "absent_in_both": absent,
        **{metric: mean([getattr(s, metric) for s in scores]) for metric in METRICS},
        "undefined_distances": sum(math.isnan(s.hd95_mm) for s in scores),
        "one_sided_slices": sum(s.one_sided_slices for s in scores),
        "levels_right": sum(levels),
        "levels": len(levels),
        "cases_right": sum(all(found) for found in per_case_levels if found),
        "cases": sum(bool(found) for found in per_case_levels),
    }
    row["with_diagonal"] = {
        metric: mean(
            [
                r.diagonal_mm if math.isnan(getattr(s, metric)) else getattr(s, metric)
                for r, found in zip(reports, per_case, strict=True)
                for s in found
            ]
        )
        for metric in ("hd95_mm", "asd_mm")
    }
    by_structure = [[s for s in scores if s.id == sid] for sid in dict.fromkeys(s.id for s in scores)]
    row["macro"] = {m: mean([mean([getattr(s, m) for s in one]) for one in by_structure]) for m in METRICS}
    row["intervals"], row["macro_intervals"] = _intervals(reports, per_case)
    return row


def _intervals(
    reports: Sequence[CaseReport], per_case: Sequence[Sequence[StructureScore]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """95 % bootstrap intervals over patients of the means and of the macro means; null where there are too few."""
    units = {unit: n for n, unit in enumerate(dict.fromkeys(r.unit for r in reports))}
    places = {sid: n for n, sid in enumerate(dict.fromkeys(s.id for found in per_case for s in found))}
    pooled: dict[str, Any] = {}
    macro: dict[str, Any] = {}
    for metric in METRICS:
        sums, counts = np.zeros((2, len(units), max(len(places), 1)))
        for report, found in zip(reports, per_case, strict=True):
            for s in found:
                value = getattr(s, metric)
                if not math.isnan(value):
                    sums[units[report.unit], places[s.id]] += value
                    counts[units[report.unit], places[s.id]] += 1
        pooled[metric], macro[metric] = (i and list(i) for i in mean_intervals(sums, counts))
    return pooled, macro


def _identification(reports: Sequence[CaseReport]) -> dict[str, Any]:
    """Share of the levels that were recognized, per subject, then averaged over subjects."""
    units: dict[tuple[str, str], list[float]] = {}
    for report in reports:
        if report.identification_rate is not None:
            units.setdefault(report.unit, []).append(report.identification_rate)
    rates = [sum(values) / len(values) for values in units.values()]
    interval, _ = mean_intervals(np.array(rates)[:, None], np.ones((len(rates), 1))) if rates else (None, None)
    return {
        "rate": mean(rates),
        "interval": interval and list(interval),
        "subjects": len(rates),
        "subjects_right": sum(rate == 1.0 for rate in rates),
    }


def _panoptic(reports: Sequence[CaseReport]) -> dict[str, Any]:
    groups: dict[str, Panoptic] = {}
    for report in reports:
        for group, counted in report.panoptic.items():
            groups[group] = groups.get(group, Panoptic()) + counted
    return {group: counted.quality() for group, counted in groups.items()}


def _false_positives(reports: Sequence[CaseReport]) -> dict[str, Any]:
    """For each structure that was predicted anywhere: its mean volume (mL) per case outside the reference."""
    scored: dict[int, list[float]] = {}
    unscored: dict[int, list[float]] = {}
    for report in reports:
        for s in report.structures:
            scored.setdefault(s.id, []).append(s.false_positive_ml)
        for u in report.unscored:
            unscored.setdefault(u.id, []).append(u.outside_ml)
    return {
        STRUCTURES[sid].name: {
            "mean_ml_per_case": sum(scored.get(sid, [])) / len(reports),
            "unscored_mean_ml_per_case": sum(unscored.get(sid, [])) / len(reports),
            "unscored_cases": len(unscored.get(sid, [])),
        }
        for sid in sorted_ids({*scored, *unscored})
    }


def paired_values(
    one: Mapping[str, Any], other: Mapping[str, Any], metric: str, group: str = ""
) -> tuple[dict[str, float], dict[str, float], int]:
    """What a paired test takes: patient → mean of a metric, for two summaries of the same cases.

    The mean is over the structures that have the metric in both, so that a distance is not compared with that of a
    structure which the other one missed. One that is rightly absent in a case has a share of 1 where the other one
    found a false positive, which has 0.

    Args:
        one: of `summarize`, also when read back from JSON.
        other: likewise.
        metric: one of `METRICS`.
        group: ``"vertebrae"``, ``"discs"`` …; empty for all.

    Returns:
        The values of each, and how many structures of cases one of them has no value for.
    """
    tables = [_values(summary, metric, group) for summary in (one, other)]
    if metric not in DISTANCES:
        for table, others, summary in zip(tables, reversed(tables), (one, other), strict=True):
            table.update(dict.fromkeys(_rightly_absent(summary) & others.keys(), 1.0))
    both = [key for key in tables[0] if key in tables[1]]
    found: list[dict[str, list[float]]] = [{}, {}]
    for table, values in zip(tables, found, strict=True):
        for key in both:
            values.setdefault(key[0], []).append(table[key])
    first, second = ({p: sum(v) / len(v) for p, v in values.items()} for values in found)
    return first, second, len(tables[0].keys() ^ tables[1].keys())


def _values(summary: Mapping[str, Any], metric: str, group: str) -> dict[tuple[str, str, str], float]:
    """(patient, case, structure) → value."""
    return {
        (_patient(case), case["case"], s["name"]): s[metric]
        for case in summary["cases"]
        for s in case["structures"]
        if s[metric] is not None and group in ("", s["group"])
    }


def _rightly_absent(summary: Mapping[str, Any]) -> set[tuple[str, str, str]]:
    """(patient, case, structure) of what is annotated, and neither there nor predicted."""
    return {(_patient(case), case["case"], name) for case in summary["cases"] for name in case["absent"]}


def _patient(case: Mapping[str, Any]) -> str:
    return f"{case['source']}/{case['patient'] or case['case']}"


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of what is defined; None if nothing is."""
    defined = [v for v in values if v is not None and not math.isnan(v)]
    return sum(defined) / len(defined) if defined else None
