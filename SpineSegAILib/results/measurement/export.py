"""The table as a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...errors import MissingPackageError
from ...files import atomic_write, check_suffix, write_csv_rows
from .definitions import EVERY, FILM, FILM_COLUMNS, SHORT_COLUMNS

SUFFIXES = (".csv", ".json", ".xlsx")
MARK = "SpineSegAI"
"""Who last wrote a spreadsheet, in its properties."""


def check_table_file(path: str | Path) -> None:
    """Checks that a table can be written to a file of this name.

    Raises:
        OutputError: another suffix.
        MissingPackageError: openpyxl, which writes .xlsx, is not installed.
    """
    check_suffix(path, SUFFIXES)
    if Path(path).suffix.lower() == ".xlsx" and find_spec("openpyxl") is None:
        raise MissingPackageError(
            "An .xlsx table needs the package openpyxl.", "Install it (pip install openpyxl), or write a .csv."
        )


def write_measurements(
    rows: Iterable[Mapping[str, Any]],
    path: str | Path,
    columns: Sequence[str] | None = None,
    *,
    precise: bool = False,
) -> Path:
    """Writes the table as its name ends: ``.csv``, ``.xlsx``, or ``.json`` for a list with an object per row.

    Args:
        columns: `short_columns` where none are given.
        precise: numbers as `decimals` says; JSON, which is for programs, then has them unrounded.

    Raises:
        OutputError: another suffix, or the file cannot be written; nothing is left behind.
        MissingPackageError: see `check_table_file`.
    """
    path = Path(path)
    check_table_file(path)
    suffix = path.suffix.lower()
    rows = list(rows)
    columns = short_columns(rows) if columns is None else columns
    cells = [[row.get(key) for key in columns] for row in rows]
    if suffix != ".json" or not precise:
        cells = [[_rounded(*pair, precise) for pair in zip(columns, row, strict=True)] for row in cells]
    with atomic_write(path) as (place,):
        if suffix == ".csv":
            texts = ([_text(*pair, precise) for pair in zip(columns, row, strict=True)] for row in cells)
            write_csv_rows(place, [columns, *texts])
        elif suffix == ".json":
            document = [dict(zip(columns, row, strict=True)) for row in cells]
            place.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        else:
            _write_xlsx(columns, cells, place, precise)
    return path


def short_columns(rows: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """`SHORT_COLUMNS`, or `FILM_COLUMNS` where what is measured is what films tell."""
    return FILM_COLUMNS if any(row.get(key) is not None for row in rows for key in FILM) else SHORT_COLUMNS


def decimals(key: str, precise: bool = False) -> int:
    """Of a column's numbers: one, of ratios two; if precise, two, of ratios and volumes three."""
    ratio = key not in EVERY or not EVERY[key].unit
    if precise:
        return 3 if ratio or key == "volume_ml" else 2
    return 2 if ratio else 1


def _rounded(key: str, value: Any, precise: bool) -> Any:
    return round(value, decimals(key, precise)) + 0 if isinstance(value, float) else value  # no minus zero


def _text(key: str, value: Any, precise: bool) -> Any:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.{decimals(key, precise)}f}" if isinstance(value, float) else value


def _write_xlsx(columns: Sequence[str], cells: Iterable[Sequence[Any]], path: Path, precise: bool) -> None:
    from openpyxl import Workbook
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
    from openpyxl.styles import Font

    book = Workbook()
    book.properties.creator = book.properties.lastModifiedBy = MARK  # who saves it elsewhere puts in another name
    sheet = book.active
    sheet.title, sheet.freeze_panes = "Measurements", "B2"
    sheet.append(list(columns))
    for cell in sheet[1]:
        cell.font = Font(bold=True)
    for row in cells:
        sheet.append([ILLEGAL_CHARACTERS_RE.sub("?", c) if isinstance(c, str) else c for c in row])
        for key, cell in zip(columns, sheet[sheet.max_row], strict=True):
            if isinstance(cell.value, float):
                cell.number_format = f"0.{'0' * decimals(key, precise)}"
            elif isinstance(cell.value, str):
                cell.data_type = "s"  # a file may be called =1+1
    book.save(path)
