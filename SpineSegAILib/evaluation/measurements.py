"""Errors of measurements: those of a segmentation against those of the reader's outlines, measured in the same way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..anatomy import STRUCTURES
from ..imaging.geometry import like
from ..results import Segmentation
from ..results.measurement import EVERY, SPINE, measure_all

_HEIGHTS = ("height_anterior_mm", "height_middle_mm", "height_posterior_mm")
MEASURED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "vertebra: height": ("vertebra", _HEIGHTS),
    "vertebra: AP diameter": ("vertebra", ("depth_mm",)),
    "vertebra: endplate angle": ("vertebra", ("endplate_angle_deg",)),
    "vertebra: slip": ("vertebra", ("slip_mm",)),
    "disc: height": ("disc", (*_HEIGHTS, "height_mean_mm")),
    "disc: endplate angle": ("disc", ("endplate_angle_deg",)),
    "canal: AP diameter": ("vertebra disc", ("canal_depth_mm",)),
    "lordosis L1–L5": (SPINE, ("lordosis_l1_l5_deg",)),
    "lordosis L1–S1": (SPINE, ("lordosis_deg",)),
    "Cobb angle": (SPINE, ("scoliosis_deg",)),
}
"""Lines of the table: kinds of rows, and the measurements that are averaged in it."""


@dataclass(frozen=True)
class MeasuredPair:
    """One value of the reader's outlines, and what the segmentation has for it.

    Attributes:
        line: of `MEASURED`.
        key: of the measurement.
        structure: its name.
        reference: the value.
        found: likewise; None where it is left blank.
    """

    line: str
    key: str
    structure: str
    reference: float
    found: float | None


def compare_measurements(
    reference: sitk.Image, prediction: Segmentation, annotated: Iterable[int]
) -> list[MeasuredPair]:
    """Every value that the reader's outlines allow, with the segmentation's.

    Args:
        reference: structure ids.
        prediction: in the same geometry.
        annotated: ids that the reference labels; others in it are not looked at.
    """
    values = sitk.GetArrayFromImage(reference)
    values[~np.isin(values, list(annotated))] = 0
    ours = _rows(Segmentation(like(reference, values.astype(np.int16)), prediction.scheme))
    theirs = _rows(prediction)
    return [
        MeasuredPair(line, key, row["structure"], row[key], theirs[sid][key] if sid in theirs else None)
        for line, (kinds, keys) in MEASURED.items()
        for sid, row in ours.items()
        if row["kind"] in kinds.split()
        for key in keys
        if row[key] is not None
    ]


def _rows(segmentation: Segmentation) -> dict[int, dict[str, Any]]:
    """Rows by id, of structures that have a level, and of the spine."""
    rows = measure_all(segmentation)
    return {r["id"]: r for r in rows if r["kind"] == SPINE or (r["id"] and STRUCTURES[r["id"]].order is not None)}


def measurement_summary(pairs: Iterable[MeasuredPair]) -> dict[str, Any]:
    """Errors by line of `MEASURED`, JSON-able: how many values, how many of them are left blank; of the others mean
    error (the segmentation's minus the reader's), mean, 95th percentile and largest absolute error."""
    by_line: dict[str, list[MeasuredPair]] = {}
    for pair in pairs:
        by_line.setdefault(pair.line, []).append(pair)
    return {line: _line(by_line[line]) for line in MEASURED if line in by_line}


def _line(pairs: list[MeasuredPair]) -> dict[str, Any]:
    errors = np.array([p.found - p.reference for p in pairs if p.found is not None])
    size = np.abs(errors)
    some = len(errors) > 0
    return {
        "unit": EVERY[pairs[0].key].unit,
        "values": len(pairs),
        "blank": len(pairs) - len(errors),
        "bias": float(errors.mean()) if some else None,
        "mean_error": float(size.mean()) if some else None,
        "p95_error": float(np.percentile(size, 95)) if some else None,
        "largest_error": float(size.max()) if some else None,
    }
