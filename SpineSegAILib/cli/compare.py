"""``spinesegai compare``: several methods trained and scored on the same work."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import OutputError, TrainingError
from . import arguments
from .terminal import print_json, print_note, print_table, print_written, stop_on_interrupt, training_progress

if TYPE_CHECKING:
    from ..training.request import TrainingRequest

HELP = "Train and score several methods on the same work, beside the published results."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument(
        "config",
        metavar="CONFIG",
        help="TOML or JSON file, or the name of a shipped one; see the page “Evaluation and comparison”",
    )
    parser.add_argument(
        "output", type=Path, metavar="FOLDER", help="output folder; run the same command again to resume"
    )
    parser.add_argument("--dataset", metavar="DATASET.json", help="manifest to use instead of the one in CONFIG")
    parser.add_argument(
        "--resource",
        type=arguments.name_target,
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="file to train with, e.g. text_bank=FILE; may be repeated",
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="run only this entry; may be repeated"
    )
    parser.add_argument(
        "--without", action="append", default=[], metavar="NAME", help="omit this entry; may be repeated"
    )
    parser.add_argument("--rehearse", action="store_true", help="dry run: tiny networks, two steps, two cases")
    arguments.add_device(parser)
    arguments.add_json(parser)
    arguments.add_quiet(parser)


def run(args: argparse.Namespace) -> None:
    """Trains and scores what is not done yet, and writes the tables."""
    from ..comparison.config import read_comparison

    config = read_comparison(args.config, dataset=args.dataset, resources=dict(args.resource))
    output = args.output
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output} is a file.", "Use a folder, new or of an earlier comparison.")
    from ..comparison.parts import Work
    from ..comparison.run import describe, run_comparison
    from ..comparison.tables import REHEARSAL, short_tables, tabulate, write_tables
    from ..training.run import RunDirectory
    from ..training.trainer import run_training

    def train(request: TrainingRequest) -> None:
        resume = f"run the same command again to resume in {output}"
        run = RunDirectory(request.output)
        with stop_on_interrupt(run, resume), training_progress(args.quiet, run) as report:
            run_training(replace(request, report=report))

    def say(sentence: str) -> None:
        if not args.quiet:
            print(sentence, file=sys.stderr, flush=True)

    work = Work(output, args.device, args.only, args.without, args.rehearse, train=train, say=say)
    documents = run_comparison(config, work)
    found = tabulate(config, describe(config, work, documents), documents)
    paths = write_tables(found, output)
    if args.json:
        print_json(found)
    elif not args.quiet:
        if found["rehearsal"]:
            print_note(REHEARSAL, sys.stdout)
        if found["missing"]:
            print_note(f"Not done yet: {', '.join(found['missing'])}.", sys.stdout)
        for variant, rows in short_tables(found):
            print(f"{found['title']}: {variant}")
            print_table(rows)
        print_written(paths)
    if work.failed and args.json:
        sys.exit(2)
    if work.failed:
        raise TrainingError(
            f"Not all could be done: {'; '.join(f'{name}: {why}' for name, why in work.failed.items())}",
            "Mend that, and run the same command again.",
        )
