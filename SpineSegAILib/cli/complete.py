"""``spinesegai complete``: partly labeled cases completed with a checkpoint's results."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import OutputError
from . import arguments
from .terminal import print_written, progress_bar

HELP = "Complete partly labeled cases with a checkpoint's results (self-training)."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("dataset", type=Path, metavar="DATASET.json", help="manifest")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="folder of the new manifest")
    arguments.add_checkpoint(parser)
    arguments.add_device(parser)
    arguments.add_quiet(parser)


def run(args: argparse.Namespace) -> None:
    """Writes a manifest whose training cases have every structure that the checkpoint knows."""
    from ..checkpoints import find_checkpoint
    from ..datasets import read_manifest

    if args.output.exists() and not args.output.is_dir():
        raise OutputError(f"{args.output} is a file.", "Use a folder, new or of an earlier try.")
    info = find_checkpoint(args.checkpoint)
    read_manifest(args.dataset).cases("training")
    from ..datasets.completion import complete_dataset, find_teacher

    with progress_bar(args.quiet) as report:
        report(0.0, "loading the checkpoint")
        path = complete_dataset(args.dataset, args.output, find_teacher(info, args.device), report)
    if not args.quiet:
        print_written([path])
