"""``spinesegai publish``: a checkpoint with its results in its header, and its model card."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import ConfigError, OutputError
from ..files import read_text
from . import arguments
from .terminal import print_written, progress_bar

HELP = "Evaluate a checkpoint and write it with its model card."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="name or file")
    arguments.add_datasets(parser)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FOLDER", help="folder of checkpoint and card"
    )
    parser.add_argument("--name", required=True, metavar="NAME", help="name of the published checkpoint")
    parser.add_argument("--split", default="validation", metavar="NAME", help="cases to score; default: validation")
    parser.add_argument("--recipe", default="", metavar="TEXT", help="command that trained it, for the card")
    parser.add_argument(
        "--notes", type=Path, metavar="FILE.md", help="the hand-written part of the card: data, terms, what to know"
    )
    parser.add_argument(
        "--row",
        action="append",
        default=[],
        metavar="TITLE: option=value, …",
        help="evaluate once more with these options, to show what a part of the method is worth; may be repeated",
    )
    parser.add_argument(
        "--append", type=Path, action="append", default=[], metavar="FILE.md", help="add this to the end of all results"
    )
    parser.add_argument(
        "--tables",
        type=Path,
        metavar="FOLDER",
        help="folder of NAME-results.md, all results; default: that of the card",
    )
    parser.add_argument(
        "--phantoms",
        type=arguments.whole_number(minimum=0),
        default=0,
        metavar="N",
        help="also report measurements and outline quality on this number of synthetic spines; default 0",
    )
    parser.add_argument("--shown-dataset", default="", metavar="TEXT", help="how the card names the dataset")
    arguments.add_device(parser)
    arguments.add_options(parser)
    arguments.add_quiet(parser)


def run(args: argparse.Namespace) -> None:
    """Evaluates on all variants, and writes checkpoint, card and all results."""
    from ..checkpoints import find_checkpoint
    from ..datasets import read_cases

    for folder in filter(None, (args.output, args.tables)):
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder} is a file.", "Use a folder.")
    info = find_checkpoint(args.checkpoint)
    read_cases(args.dataset, args.split)  # before minutes of work
    texts = [read_text(path, ConfigError) for path in (args.notes, *args.append) if path]
    from ..evaluation.publish import Publication, Row, publish

    what = Publication(
        name=args.name,
        datasets=args.dataset,
        split=args.split,
        recipe=args.recipe,
        notes=texts[0] if args.notes else "",
        options={key: str(value) for key, value in args.option},
        rows=[Row(title, options) for title, options in map(_row, args.row)],
        more=texts[1:] if args.notes else texts,
        tables=args.tables,
        shown_dataset=args.shown_dataset,
        phantoms=args.phantoms,
    )
    with progress_bar(args.quiet) as report:
        paths = publish(info, what, args.output, device=args.device, report=report)
    if not args.quiet:
        print_written(paths)


def _row(text: str) -> tuple[str, dict[str, str]]:
    """``TITLE: option=value, option=value``."""
    title, _, options = text.rpartition(":")
    pairs = [part.partition("=") for part in options.split(",")]
    if not title.strip() or not all(name.strip() and sign for name, sign, _ in pairs):
        raise ConfigError(f"--row “{text}” cannot be read.", "Write “TITLE: option=value, option=value”.")
    return title.strip(), {name.strip(): value.strip() for name, _, value in pairs}
