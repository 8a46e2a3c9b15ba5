"""Measurements as a table for people: columns with titles, units and explanations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .measurement import MEASUREMENTS, SPINE_MEASUREMENTS, measure_all
from .segmentation import Segmentation


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        key: stable name.
        title: what a user reads, with the unit.
        description: how it is measured.
    """

    key: str
    title: str
    description: str = ""


def measurement_table(result: Segmentation) -> tuple[tuple[Column, ...], tuple[tuple[Any, ...], ...]]:
    """`measurement.measure_all` as Slicer shows it: coordinates in RAS only, a title and an explanation per column."""
    described = {
        "name": Column("name", "Structure"),
        "confidence": Column("confidence", "Confidence of the level", "0 to 1"),
        "unvalidated": Column("unvalidated", "Unvalidated", "learnt from generated images alone"),
        "touches_border": Column("touches_border", "Cut by the border", "not wholly in the image"),
    } | {
        m.key: Column(m.key, f"{m.label} ({m.unit})" if m.unit else m.label, m.method)
        for m in (*MEASUREMENTS, *SPINE_MEASUREMENTS)
        if not m.key.startswith("centroid_lps")
    }
    rows = tuple(tuple(row[key] for key in described) for row in measure_all(result))
    return tuple(described.values()), rows
