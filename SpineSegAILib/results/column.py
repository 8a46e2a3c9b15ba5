"""A column of a table. Apart from measuring, since whoever shows a table need not load what measures."""

from __future__ import annotations

from dataclasses import dataclass


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
