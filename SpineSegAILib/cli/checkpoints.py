"""``spinesegai checkpoints``: the checkpoints that can be used by name."""

from __future__ import annotations

import argparse

from . import arguments
from .terminal import print_json, print_note, print_table

HELP = "List the checkpoints."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Prints the list."""
    from ..checkpoints import checkpoint_folders, search_checkpoints

    found, unusable = search_checkpoints()
    for error in unusable:
        print_note(str(error))
    if args.json:
        print_json(
            [
                {
                    "name": c.name,
                    "title": c.title,
                    "method": c.method,
                    "scheme": c.scheme.name,
                    "path": str(c.path),
                    "size_bytes": c.size_bytes,
                    "metadata": dict(c.metadata),
                }
                for c in found
            ]
        )
    elif found:
        rows = [("checkpoint", "method", "scheme", "size", "title")]
        rows += [(c.name, c.method, c.scheme.name, f"{c.size_bytes / 1e6:.1f} MB", c.title) for c in found]
        print_table(rows)
    else:
        print("There are no checkpoints in:", *checkpoint_folders(), sep="\n  ")
