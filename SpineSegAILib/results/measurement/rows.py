"""Rows of the table while they are made: values, and notes that say why one is missing or doubtful."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .definitions import COLUMNS, EVERY

Row = dict[str, Any]
"""One structure: the keys of `COLUMNS`; None where a value does not apply or cannot be trusted.

Notes are a list of sentences and `Blank` until the table is done, then one text."""


class NotMeasured(Exception):
    """Why something has no value, as the end of a sentence: “the image's border cuts it”."""


@dataclass(frozen=True)
class Blank:
    """A note: this value is not given, and why."""

    key: str
    why: str


HEIGHTS = ("height_anterior_mm", "height_middle_mm", "height_posterior_mm", "height_mean_mm", "depth_mm")
"""What comes from the outline in the sagittal plane together."""


def new_row(**known: Any) -> Row:
    """A row that holds nothing but what is `known`."""
    return {**dict.fromkeys(COLUMNS), "notes": [], **known}


def label(key: str) -> str:
    """A measurement within a sentence: ``"lordosis L1–S1"``."""
    measurement = EVERY[key]
    text = measurement.label
    return measurement.word or (text if text[:2].isupper() else text[0].lower() + text[1:])


def refuse(row: Row, keys: Iterable[str], why: str) -> None:
    """Leaves values blank, and notes why."""
    for key in keys:
        row[key] = None
        row["notes"].append(Blank(key, why))


def fill(row: Row, key: str, measured: Callable[..., float], *of: Any) -> None:
    """Sets a value to what is `measured` of something, or notes why there is none."""
    try:
        row[key] = measured(*of)
    except NotMeasured as reason:
        refuse(row, (key,), str(reason))


def finish(row: Row) -> Row:
    """The row with its notes as one text: what is blank for the same reason together, then what is unusual."""
    blanks: dict[str, list[str]] = {}
    for note in row["notes"]:
        if isinstance(note, Blank):
            blanks.setdefault(note.why, []).append(note.key)
    sentences = [f"Not given: {_listed(keys)} ({why})." for why, keys in blanks.items()]
    sentences += [note for note in row["notes"] if isinstance(note, str)]
    return {**row, "notes": " ".join(dict.fromkeys(sentences))}


def _listed(keys: Iterable[str]) -> str:
    """Names of measurements in a sentence; heights are one."""
    keys = list(dict.fromkeys(keys))
    names = ["heights"] if set(HEIGHTS[:3]) <= set(keys) else []
    return ", ".join([*names, *(label(key) for key in keys if not (names and key in HEIGHTS))])
