"""Documents from the templates in ``Resources/Templates``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from ..resources import resources_folder


def render(template: str, **values: Any) -> str:
    """The text of a template; what a value holds is escaped in HTML.

    Args:
        template: file name, such as ``"page.html.j2"``.
        values: what it shows; a missing one is an error.
    """
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(resources_folder() / "Templates"),
        autoescape=select_autoescape(("html.j2",)),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    made.filters["selected"] = _selected
    return made


def _selected(table: Mapping[str, Mapping[str, Any]], key: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Items of a table whose entry has something under a key."""
    return [(name, entry) for name, entry in table.items() if entry[key]]
