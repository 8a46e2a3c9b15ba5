"""``spinesegai methods``: the methods and the label schemes."""

from __future__ import annotations

import argparse

from ..anatomy import SCHEMES
from ..methods.catalog import METHODS
from . import arguments
from .terminal import print_json, print_table

HELP = "List the methods and label schemes."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Prints the list."""
    if args.json:
        print_json(
            {
                "methods": [
                    {
                        "id": m.id,
                        "title": m.title,
                        "group": m.group,
                        "summary": m.summary,
                        "citation": m.citation,
                        "dims": list(m.dims),
                        "modalities": list(m.modalities),
                        "hints": sorted(m.accepted_hints),
                        "presets": list(m.config_class().presets(m.id)),
                    }
                    for m in METHODS.values()
                ],
                "schemes": [
                    {"name": s.name, "title": s.title, "structures": [x.name for x in s.structures]}
                    for s in SCHEMES.values()
                ],
            }
        )
        return
    rows = [("method", "dims", "title", "summary")]
    rows += [(m.id, ", ".join(f"{d}D" for d in m.dims), m.title, m.summary) for m in METHODS.values()]
    print_table(rows)
    print("\nLabel schemes:")
    for s in SCHEMES.values():
        print(f"  {s.name}: {'; '.join(x.name for x in s.structures)}")
