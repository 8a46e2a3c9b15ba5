"""``spinesegai import-dataset``: a public dataset as cases of a training set."""

from __future__ import annotations

import argparse

from . import arguments
from .terminal import print_note, print_written, progress_bar

HELP = "Make a training set from the folder of a public dataset."
_FORMATS = ("spider", "mrspineseg", "verse", "ctspine1k", "parse", "nnunet", "spinal-disease", "aasce")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("folder", metavar="FOLDER", help="folder of the dataset, as it is distributed")
    parser.add_argument(
        "--format",
        type=arguments.choice(*_FORMATS),
        required=True,
        metavar="|".join(_FORMATS),
        help="which dataset it is; nnunet for any folder in the layout of nnU-Net",
    )
    arguments.add_training_set(parser)


def run(args: argparse.Namespace) -> None:
    """Adds the dataset's cases to the training set."""
    from ..datasets.public_sets import import_dataset
    from ..results.segment_names import parse_table

    with progress_bar(args.quiet, args.progress_lines) as report:
        target = import_dataset(
            args.format,
            args.folder,
            args.output,
            validation_share=args.validation,
            extent=args.extent,
            table=parse_table(args.map),
            progress=report,
        )
    if not args.quiet:
        counts = {split: len(target.table.get(split, ())) for split in ("training", "validation", "test")}
        print(", ".join(f"{count} {split}" for split, count in counts.items() if count))
        for note in target.notes:
            print_note(note)
        print_written([target.path])
