"""``spinesegai calibrate``: a checkpoint whose edges lie where the readers of a dataset drew them."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from ..errors import DatasetError
from . import arguments
from .terminal import print_written

HELP = "Choose a checkpoint's calibration on labeled cases."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="name or file")
    parser.add_argument("dataset", metavar="DATASET.json", help="manifest")
    parser.add_argument(
        "--output",
        type=arguments.output_file(".safetensors"),
        required=True,
        metavar="FILE.safetensors",
        help="write the calibrated checkpoint",
    )
    parser.add_argument(
        "--split", default="validation", metavar="NAME", help="cases to choose it on; default: validation"
    )
    arguments.add_device(parser)
    arguments.add_options(parser)
    arguments.add_quiet(parser)


def run(args: argparse.Namespace) -> None:
    """Tries calibrations, and writes the checkpoint with the best one."""
    from ..checkpoints import find_checkpoint, load_tensors, save_checkpoint
    from ..datasets import read_manifest

    arguments.check_outputs({"--output": args.output}, {"DATASET": args.dataset, "CHECKPOINT": args.checkpoint})
    info = find_checkpoint(args.checkpoint)
    cases = read_manifest(args.dataset).cases(args.split)
    if seen := [case.name for case in cases if case.name in info.trained_on]:
        raise DatasetError(
            f"The checkpoint was trained on {seen[0]} and {len(seen) - 1} others of these cases.",
            "Use a split that it has not seen.",
        )
    from ..evaluation.calibrate import fit_calibration
    from ..inference import Predictor

    def say(line: str) -> None:
        if not args.quiet:
            print(line, file=sys.stderr, flush=True)

    calibration = fit_calibration(Predictor(info, device=args.device), cases, dict(args.option), say)
    info = replace(info, metadata={**info.metadata, "calibration": calibration.model_dump()})
    save_checkpoint(args.output, load_tensors(info), info.metadata)
    if not args.quiet:
        print_written([args.output])
