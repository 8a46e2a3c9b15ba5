"""``spinesegai rank``: images by how uncertain a checkpoint is about them."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import __version__
from ..errors import CheckpointError
from ..files import checksum
from . import arguments
from .kept import Kept
from .terminal import print_json, print_line, print_table, progress_bar

HELP = "Suggest which image to annotate next: the one that a checkpoint is least certain about."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image, or folder of images")
    arguments.add_checkpoint(parser)
    arguments.add_device(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=arguments.output_file(".csv"),
        metavar="CSV",
        help="write the ranking as a table; the same command, run again, continues a ranking that was stopped",
    )
    arguments.add_json(parser)
    arguments.add_quiet(parser)
    arguments.add_progress_lines(parser)


def run(args: argparse.Namespace) -> None:
    """Ranks the images. With a table to write, what is done is kept until it is written."""
    from ..checkpoints import find_checkpoint
    from ..imaging import find_images
    from ..inference.ranking import Scores, rank, write_csv

    arguments.check_outputs({"--output": args.output}, {})
    images = find_images(args.images)
    info = find_checkpoint(args.checkpoint)
    asked = (checksum(info.path, CheckpointError), args.device, __version__)
    speaks, number = not (args.quiet or args.progress_lines), 0

    def watch(scores: Scores) -> None:
        nonlocal number
        number += 1
        if speaks:
            figure = "" if scores.uncertainty is None else f"uncertainty {scores.uncertainty:.2f}, "
            print_line(f"[{number}/{len(images)}] {scores.path}: {figure}{scores.reason}")

    with Kept(args.output, *asked) as kept:
        with progress_bar(args.quiet, args.progress_lines) as report:
            report(0.0, "loading the checkpoint")
            from ..inference import Predictor

            predictor = Predictor(info, device=args.device)
            ranking = rank(images, predictor, progress=report, kept=kept, watch=watch)
        if args.output:
            write_csv(ranking, args.output)
    if args.json:
        print_json({"checkpoint": info.name, "ranking": [scores.document() for scores in ranking]})
    elif not args.quiet:
        rows = [("", "image", "uncertainty", "margin", "entropy", "disagreement", "why")]
        rows += [(str(n), s.path.name, *s.figures(), s.reason) for n, s in enumerate(ranking, start=1)]
        print_table(rows)
