"""Measurements as a table for people: columns with titles, units and explanations, cells as text."""

from __future__ import annotations

from typing import Any

from .column import Column
from .measurement import FILM, MEASUREMENTS, SPINE_MEASUREMENTS, decimals, is_film, measure_all
from .segmentation import Segmentation

NOTES = Column("notes", "Notes", "why a value is not given, and what is unusual")
_TRUST = (
    Column("level_confidence", "Level confidence", "of the names of all levels together, 0 to 1"),
    Column("outline_quality", "Outline quality", "how far the structure's outline can be trusted, 0 to 1"),
)
_ABOUT = (
    Column("unvalidated", "Experimental", "not validated on real cases"),
    Column("touches_border", "Cut by the border", "not wholly in the image"),
)


def measurement_table(result: Segmentation) -> tuple[tuple[Column, ...], tuple[tuple[Any, ...], ...]]:
    """`measure_all` as Slicer shows it: a title and an explanation per column, coordinates (RAS alone) last.

    Numbers are text with one decimal, ratios with two; what is not given is blank.
    """
    film = is_film(result)
    measured = [
        Column(m.key, f"{m.label} ({m.unit})" if m.unit else m.label, m.method)
        for m in (*MEASUREMENTS, *SPINE_MEASUREMENTS)
        if not m.key.startswith("centroid_lps") and (m.key in FILM) is film
    ]
    places = [column for column in measured if column.key.startswith("centroid")]
    values = [column for column in measured if column not in places]
    columns = (Column("name", "Structure"), *_TRUST, *values, NOTES, *_ABOUT, *places)
    rows = tuple(tuple(cell(column.key, row[column.key]) for column in columns) for row in measure_all(result))
    return columns, rows


def cell(key: str, value: Any) -> Any:
    """A value as a reader sees it; numbers as text."""
    if value is None:
        return ""
    if not isinstance(value, float):
        return value
    return f"{round(value, decimals(key)) + 0:.{decimals(key)}f}"  # no minus zero
