"""``spinesegai calibrate``: a checkpoint whose edges lie where the readers of a dataset drew them, and which knows how
good its outlines are."""

from __future__ import annotations

import argparse
import sys

from ..errors import DatasetError
from . import arguments
from .terminal import print_written

HELP = "Choose a checkpoint's calibration of edges and of outline quality on labeled cases."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="name or file")
    arguments.add_datasets(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=arguments.output_file(".safetensors"),
        required=True,
        metavar="FILE.safetensors",
        help="write the calibrated checkpoint",
    )
    parser.add_argument(
        "--split", default="validation", metavar="NAME", help="cases to choose it on; default: validation"
    )
    parser.add_argument(
        "--keep-edges",
        action="store_true",
        help="keep the calibration of the edges; fit only the outline quality, on the cases and their damaged copies",
    )
    arguments.add_device(parser)
    arguments.add_options(parser)
    arguments.add_quiet(parser)


def run(args: argparse.Namespace) -> None:
    """Tries calibrations, fits the outline quality, and writes the checkpoint with both."""
    from ..checkpoints import find_checkpoint, save_checkpoint
    from ..datasets import read_cases
    from ..datasets.manifest import learned_from

    inputs = {"CHECKPOINT": args.checkpoint, **arguments.numbered_datasets(args.dataset)}
    arguments.check_outputs({"--output": args.output}, inputs)
    info = find_checkpoint(args.checkpoint)
    cases = read_cases(args.dataset, args.split)
    if seen := [case.name for case in learned_from(cases, info.trained_on)]:
        raise DatasetError(
            f"The checkpoint was trained on {len(seen)} of these cases, such as {seen[0]}.",
            "Use a split that it has not seen.",
        )
    from ..evaluation.calibrate import fit_calibration
    from ..evaluation.fit_quality import fit_quality
    from ..inference import Predictor

    def say(line: str) -> None:
        if not args.quiet:
            print(line, file=sys.stderr, flush=True)

    predictor = Predictor(info, device=args.device)
    if not args.keep_edges:
        predictor.calibration = fit_calibration(predictor, cases, dict(args.option), say)
    quality = fit_quality(predictor, cases, options=dict(args.option), report=say)
    found = {"calibration": predictor.calibration.model_dump(), "outline_quality": quality and quality.model_dump()}
    measured = () if args.keep_edges else ("validation", "validation_command")  # with other edges
    kept = {key: value for key, value in info.metadata.items() if key not in measured}
    # Not what the file holds by now: a run may have written it again.
    save_checkpoint(args.output, predictor.method.state_dict(), {**kept, **found})
    if not args.quiet:
        print_written([args.output])
