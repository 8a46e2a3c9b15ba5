"""The table as a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...files import atomic_write, check_suffix, write_csv_rows
from .definitions import SHORT_COLUMNS

SUFFIXES = (".csv", ".json")
_THREE_DECIMALS = ("volume_ml", "level_confidence", "outline_quality", "disc_height_index")


def write_measurements(
    rows: Iterable[Mapping[str, Any]], path: str | Path, columns: Sequence[str] = SHORT_COLUMNS
) -> Path:
    """Writes the table as its name ends: ``.csv``, or ``.json`` for a list with an object per row.

    Raises:
        OutputError: another suffix, or the file cannot be written; nothing is left behind.
    """
    path = Path(path)
    check_suffix(path, SUFFIXES)
    if path.suffix.lower() == ".csv":
        return write_csv(rows, path, columns)
    document = [{key: row.get(key) for key in columns} for row in rows]
    with atomic_write(path) as (place,):
        place.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def write_csv(rows: Iterable[Mapping[str, Any]], path: str | Path, columns: Sequence[str] = SHORT_COLUMNS) -> Path:
    """Writes the table; lengths to 0.01 mm, volumes to 0.001 mL, empty cells where there is no value.

    Raises:
        OutputError: if the file cannot be written; nothing is left behind.
    """
    path = Path(path)
    with atomic_write(path) as (place,):
        write_csv_rows(place, [columns, *([_cell(key, row.get(key)) for key in columns] for row in rows)])
    return path


def _cell(key: str, value: Any) -> Any:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}" if key in _THREE_DECIMALS else f"{value:.2f}"
    return value
