"""``spinesegai rank``: images by how uncertain a checkpoint is about them."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import arguments
from .terminal import print_json, print_table, progress_bar

HELP = "Suggest which image to annotate next: the one that a checkpoint is least certain about."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image, or folder of images")
    arguments.add_checkpoint(parser)
    arguments.add_device(parser)
    parser.add_argument(
        "-o", "--output", type=arguments.output_file(".csv"), metavar="CSV", help="write the ranking as a table"
    )
    arguments.add_json(parser)
    arguments.add_quiet(parser)
    arguments.add_progress_lines(parser)


def run(args: argparse.Namespace) -> None:
    """Ranks the images."""
    from ..checkpoints import find_checkpoint
    from ..imaging import find_images
    from ..inference.ranking import rank, write_csv

    arguments.check_outputs({"--output": args.output}, {})
    images = find_images(args.images)
    info = find_checkpoint(args.checkpoint)
    with progress_bar(args.quiet, args.progress_lines, by_item=True) as report:
        report(0.0, "loading the checkpoint")
        from ..inference import Predictor

        ranking = rank(images, Predictor(info, device=args.device), progress=report)
    if args.output:
        write_csv(ranking, args.output)
    if args.json:
        print_json({"checkpoint": info.name, "ranking": [scores.document() for scores in ranking]})
    elif not args.quiet:
        rows = [("", "image", "uncertainty", "level margin", "entropy", "disagreement", "why")]
        rows += [(str(n), s.path.name, *s.figures(), s.reason) for n, s in enumerate(ranking, start=1)]
        print_table(rows)
