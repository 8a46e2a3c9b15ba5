"""The command line: ``spinesegai COMMAND …``, and ``python -m SpineSegAILib COMMAND …``.

Each command is a module with its flags and its run, and one entry in `COMMANDS`. Whatever needs numpy or torch is
imported when a command runs, so that help and listings answer at once.

Exit codes: 0 done; 2 a foreseeable failure, whose message and remedy are on stderr (and as JSON on stdout with
``--json``); 130 interrupted. A command that fails leaves no output behind.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

from .. import __version__
from ..errors import DeviceError, PathError, SpineSegAIError
from . import (
    calibrate,
    checkpoints,
    compare,
    complete,
    completion,
    evaluate,
    import_dataset,
    import_scenes,
    methods,
    phantom,
    publish,
    rank,
    refine,
    relabel,
    sample,
    segment,
    text_bank,
    train,
)
from .arguments import STDOUT, Parser
from .terminal import print_json, termination_as_interruption


class Command(Protocol):
    """What a command's module offers."""

    HELP: str
    """One line, shown in the list of commands."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the command's flags."""

    def run(self, args: argparse.Namespace) -> None:
        """Does the work, or raises a `SpineSegAIError`."""


COMMANDS: Mapping[str, Command] = {
    "segment": segment,
    "relabel": relabel,
    "refine": refine,
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "complete": complete,
    "calibrate": calibrate,
    "publish": publish,
    "import-scenes": import_scenes,
    "import-dataset": import_dataset,
    "rank": rank,
    "methods": methods,
    "checkpoints": checkpoints,
    "text-bank": text_bank,
    "sample": sample,
    "phantom": phantom,
    "completion": completion,
}


def build_parser() -> argparse.ArgumentParser:
    """All commands with their flags."""
    parser = Parser(
        prog="spinesegai",
        description="Spine segmentation: vertebrae and discs with their levels. For research use.",
    )
    parser.add_argument("--version", action="version", version=f"spinesegai {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        added = commands.add_parser(name, help=command.HELP, description=command.HELP)
        added.set_defaults(run=command.run, json=None)
        command.add_arguments(added)
    return parser


@contextmanager
def refusals_in_words() -> Iterator[None]:
    """What the operating system refuses is a `PathError`, whichever of the many looks at a path it was; or it refuses
    memory.

    Raises:
        PathError, DeviceError: see above.
        BrokenPipeError: as it is.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise PathError.of(error) from error
    except MemoryError as error:
        raise DeviceError(
            "There is not enough memory for this.", "Close other applications, or use less data."
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without UTF-8 shows ? for what it lacks
            stream.reconfigure(errors="replace")
    args = build_parser().parse_args(argv)
    try:
        if args.wrong_value:
            raise args.wrong_value
        with termination_as_interruption(), refusals_in_words():
            args.run(args)
            sys.stdout.flush()
    except SpineSegAIError as error:
        print(f"spinesegai: {error.message}", file=sys.stderr)
        if error.remedy:
            print(f"  {error.remedy}", file=sys.stderr)
        if args.json in (True, STDOUT):
            print_json({"error": {"kind": error.kind, "message": error.message, "remedy": error.remedy}})
        return 2
    except KeyboardInterrupt:
        print("spinesegai: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0
