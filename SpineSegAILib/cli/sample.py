"""``spinesegai sample``: the synthetic case that comes along, to try things on."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from ..errors import OutputError
from ..files import atomic_write
from ..resources import resources_folder
from . import arguments
from .terminal import print_note, print_written

HELP = "Write the bundled sample, a synthetic lumbar spine in T2-like MR."

NAME = "synthetic_spine.nii.gz"
_LABELS = "synthetic_spine_label.nii.gz"
_FILES = {NAME: "lumbar_phantom.nii.gz", _LABELS: "lumbar_phantom_label.nii.gz"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument(
        "-o", "--output", type=Path, default=Path(), metavar="FOLDER", help="folder to write to; default: this one"
    )
    parser.add_argument("--label", action="store_true", help=f"write its structures as well: {_LABELS}")
    arguments.add_quiet(parser)


def run(args: argparse.Namespace) -> None:
    """Writes the files; those that are there already stay.

    Raises:
        OutputError: something else has a file's name, or it cannot be written.
    """
    samples = resources_folder() / "Samples"
    wanted = {args.output / name: (samples / _FILES[name]).read_bytes() for name in (NAME, _LABELS)[: 1 + args.label]}
    for path, content in wanted.items():
        if path.exists() and not (path.is_file() and path.read_bytes() == content):
            raise OutputError(f"{path} is there already, and is not the sample.", "Move it, or choose another folder.")
    with atomic_write(*wanted) as places:
        for place, content in zip(places, wanted.values(), strict=True):
            place.write_bytes(content)
    if not args.quiet:
        print_written(wanted)
        print(f"to segment it: spinesegai segment {shlex.quote(str(args.output / NAME))}")
        print_note("It is synthetic, not a patient's image: a result on it says nothing about real ones.", sys.stdout)
