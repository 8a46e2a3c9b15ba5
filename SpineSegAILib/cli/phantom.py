"""``spinesegai phantom``: a synthetic image with every structure known."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..errors import ConfigError, problems
from ..files import IMAGE_SUFFIXES, atomic_write
from . import arguments
from .terminal import print_written

if TYPE_CHECKING:
    from ..phantoms.spine import Phantom
    from ..phantoms.vessels import VesselPhantom

HELP = "Make a synthetic image of the lumbar spine, or of pulmonary vessels, with its reference segmentation."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("--vessels", action="store_true", help="pulmonary arteries and veins in CT instead of a spine")
    image = arguments.output_file(*IMAGE_SUFFIXES)
    parser.add_argument(
        "-o", "--output", type=image, required=True, metavar="FILE", help="write the image: .nii.gz, .nii, .nrrd, .mha"
    )
    parser.add_argument("--label", type=image, metavar="FILE", help="write the label image of the structures")
    parser.add_argument(
        "--seed",
        type=arguments.whole_number(minimum=0),
        default=0,
        metavar="N",
        help="seed of the random numbers; default 0",
    )
    parser.add_argument("--random", action="store_true", help="randomize parameters not set by --spec")
    parser.add_argument(
        "--spec",
        type=arguments.key_value,
        action="append",
        default=[],
        metavar="key=value",
        help="parameter of the synthetic anatomy or image, e.g. top=L1; may be repeated",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    arguments.add_quiet(parser)


def run(args: argparse.Namespace) -> None:
    """Generates the image and its labels, and writes both or neither."""
    outputs = {"--output": args.output, "--label": args.label}
    arguments.check_outputs(outputs, {})
    arguments.check_new(outputs, overwrite=args.overwrite)
    import SimpleITK as sitk

    phantom = _generated(args)
    paths = [path for path in outputs.values() if path]
    with atomic_write(*paths) as places:
        for image, place in zip((phantom.image, phantom.labels), places, strict=False):
            sitk.WriteImage(image, str(place), useCompression=True)
    if not args.quiet:
        print_written(paths)


def _generated(args: argparse.Namespace) -> Phantom | VesselPhantom:
    """The synthetic case.

    Raises:
        ConfigError: a parameter does not exist, or its value does not fit.
    """
    import numpy as np
    from pydantic import ValidationError

    from ..phantoms.spine import PhantomSpec, make_phantom, random_spec
    from ..phantoms.vessels import VesselSpec, make_vessels, random_vessels

    rng, fields = np.random.default_rng(args.seed), dict(args.spec)
    try:
        if args.vessels:
            vessels = random_vessels(rng, **fields) if args.random else VesselSpec(**fields)
        else:
            spine = random_spec(rng, **fields) if args.random else PhantomSpec(**fields)
    except ValidationError as error:
        kind = VesselSpec if args.vessels else PhantomSpec
        raise ConfigError(
            f"--spec is not valid: {problems(error)}.", f"Available: {', '.join(kind.model_fields)}."
        ) from None
    return make_vessels(vessels, rng) if args.vessels else make_phantom(spine, rng)
