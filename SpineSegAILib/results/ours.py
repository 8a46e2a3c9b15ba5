"""Whether a file was written by SpineSegAI, so that a later result may take its place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from ..errors import ImageError, OutputError
from ..files import IMAGE_SUFFIXES, parse_json, read_json, stem_and_suffix
from ..imaging.headers import first_bytes, read_header
from .files import HEADER_KEY, side_file
from .measurement import COLUMNS, FILM
from .measurement.export import MARK
from .segmentation import FORMAT

_START_BYTES = 2**14
"""Pictures, reports and DICOM files name their program near their start."""


def is_ours(path: Path) -> bool:
    """Whether a file carries our provenance and none of a person's work: no corrections were made in it.

    What Slicer saved after someone drew in it is not ours, since Slicer does not keep the provenance.
    """
    suffix = stem_and_suffix(path)[1]
    if suffix in (".seg.nrrd", *IMAGE_SUFFIXES):
        return _is_untouched(_document(path))
    if suffix == ".json":
        with suppress(OutputError):
            document = read_json(path, OutputError)
            rows = document if isinstance(document, list) else [document]
            return all(isinstance(row, dict) and _is_told(row) for row in rows) and bool(rows)
        return False
    start = first_bytes(path, _START_BYTES).decode("utf-8", "replace")
    if suffix == ".csv":
        return _is_table(start.partition("\n")[0].strip().split(","))
    return _is_spreadsheet(path) if suffix == ".xlsx" else MARK in start


def _is_spreadsheet(path: Path) -> bool:
    """Whether nobody else has saved it since: programs put in their user's name."""
    with suppress(OSError, BadZipFile, KeyError), ZipFile(path) as book:
        return f"<cp:lastModifiedBy>{MARK}</cp:lastModifiedBy>" in book.read("docProps/core.xml").decode("utf-8")
    return False


def _document(path: Path) -> Any:
    """What a result says of itself; None where it says nothing."""
    side = side_file(path)
    with suppress(ImageError, OutputError, OSError):
        if side is not None:
            return read_json(side, OutputError)
        header = read_header(path)
        if header is not None and HEADER_KEY in header.metadata:
            return parse_json(header.metadata[HEADER_KEY], path.name, OutputError)
    return None


def _is_untouched(document: Any) -> bool:
    return isinstance(document, Mapping) and document.get("format") == FORMAT and "corrections" not in document


def _is_told(row: Mapping[str, Any]) -> bool:
    """A result, or a row of a table of measurements."""
    return _is_untouched(row) or _is_table(row)


def _is_table(columns: Iterable[str]) -> bool:
    """Whether these are a table of measurements: ours has more than the names that anyone's might."""
    found = set(columns)
    return "structure" in found <= {"image", *COLUMNS} and not found.isdisjoint({"volume_ml", *FILM})
