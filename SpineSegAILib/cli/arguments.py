"""What the commands' arguments have in common: types, flags and checks.

A type turns a word of the shell into a value, or raises a `SpineSegAIError`. `Parser` keeps that error and lets the
parse finish, so that a wrong value is reported in one sentence, as JSON too where that was asked for. argparse's own
errors, with the usage, are left for what cannot be parsed: an unknown flag, a missing argument.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..anatomy import VALUE_MAPS, Extent, Structure, structure
from ..errors import ConfigError, OutputError, SpineSegAIError, did_you_mean, one_of
from ..files import check_suffix, check_writable, real_path
from ..hints import Anchor, Point
from ..methods.catalog import method_info

STDOUT = "-"
"""File name that stands for standard output."""


class Parser(argparse.ArgumentParser):
    """A parser whose result has the first wrong value as `wrong_value`: an error that names its flag, or None."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """See `argparse.ArgumentParser.parse_known_args`."""
        self._wrong_value: SpineSegAIError | None = None
        self._parsed: argparse.Namespace | None = None
        found, rest = super().parse_known_args(args, namespace)
        self._parsed = found
        found.wrong_value = self._wrong_value or getattr(found, "wrong_value", None)
        return found, rest

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            if isinstance(action, argparse._SubParsersAction):
                error.message = f"“{value}” is not a command.{did_you_mean(str(value), action.choices)}"
            raise

    def error(self, message: str) -> NoReturn:
        """See `argparse.ArgumentParser.error`; what is nearly a flag is named."""
        found = re.match(r"unrecognized arguments: (-{1,2}[^\s=]+)", message)
        known = [flag for action in self._all_actions() for flag in action.option_strings]
        super().error(message + (did_you_mean(found[1], known) if found else ""))

    def _all_actions(self) -> Iterator[argparse.Action]:
        """Its own, and those of the command that was given."""
        for action in self._actions:
            yield action
            if isinstance(action, argparse._SubParsersAction) and self._parsed is not None:
                command = action.choices.get(getattr(self._parsed, action.dest, ""))
                yield from command._actions if command is not None else ()

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            empty = not arg_string.strip() and arg_string != action.default
            if empty and action.nargs != argparse.PARSER:  # as a path, it would be the current folder
                raise ConfigError("It is empty.", "Give a value, or omit it.")
            return super()._get_value(action, arg_string)
        except SpineSegAIError as error:
            long = next((flag for flag in action.option_strings if flag.startswith("--")), action.metavar)
            error.message = f"{long}: {error.message}"
            self._wrong_value = self._wrong_value or error
            return None


# --- types -----------------------------------------------------------------------------------------------------------


def output_file(*suffixes: str) -> Callable[[str], Path]:
    """A file to write, whose name ends with one of these suffixes."""

    def parse(text: str) -> Path:
        check_suffix(text, suffixes)
        return Path(text)

    return parse


def table_file(text: str) -> Path:
    """A table of measurements to write."""
    from ..results.measurement.export import check_table_file

    check_table_file(text)
    return Path(text)


def json_file(text: str) -> Path | str:
    """A JSON file to write, or `STDOUT`."""
    return STDOUT if text == STDOUT else output_file(".json")(text)


def choice(*words: str) -> Callable[[str], str]:
    """One of these words."""

    def parse(text: str) -> str:
        if text not in words:
            raise ConfigError(f"“{text}” is not a valid choice.", f"Use {one_of(words)}.")
        return text

    return parse


def extent(text: str) -> Extent:
    """What of a vertebra is labeled: ``body`` or ``whole``."""
    return Extent(choice(*(e.value for e in Extent))(text))


def method(text: str) -> str:
    """The id of a method."""
    return method_info(text).id


def device(text: str) -> str:
    """What to compute on."""
    if not re.fullmatch(r"auto|cpu|gpu|mps|cuda(:\d+)?", text):
        raise ConfigError(f"“{text}” is not a device.", "Use auto, cpu, gpu, cuda, cuda:N or mps.")
    return text


def whole_number(minimum: int | None = None) -> Callable[[str], int]:
    """An integer, `minimum` or more."""

    def parse(text: str) -> int:
        try:
            value = int(text)
            if minimum is None or value >= minimum:
                return value
        except ValueError:
            pass
        least = "" if minimum is None else f" of {minimum} or more"
        raise ConfigError(f"“{text}” is not a whole number{least}.", "Use a number such as 3.")

    return parse


def number(text: str) -> float:
    """A finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"“{text}” is not a number.", "Use a number such as 1.5.")
    return value


def share(text: str) -> float:
    """A part of a whole, from 0 to below 1."""
    value = number(text)
    if not 0.0 <= value < 1.0:
        raise ConfigError(f"“{text}” is not a share.", "Use a number from 0 to below 1, such as 0.2 for a fifth.")
    return value


def names(text: str) -> list[str]:
    """``a,b`` → the names; at least one."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise ConfigError(f"“{text}” does not name anything.", "Use names separated by commas.")
    return found


def key_value(text: str) -> tuple[str, Any]:
    """``key=value``; the value is JSON where it can be (numbers, true, lists), else text."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"“{text}” is not of the form key=value.")
    try:
        return key, json.loads(value)
    except (ValueError, RecursionError):
        return key, value


def name_target(text: str) -> tuple[str, str]:
    """``my tumor=custom:tumor``; the name may have an equals sign in it."""
    name, equals, target = text.rpartition("=")
    if not equals or not name.strip():
        raise ConfigError(f"“{text}” is not of the form NAME=VALUE.")
    return name, target


def structure_id(text: str) -> int:
    """``L3`` → its id."""
    return structure(text).id


def structure_ids(text: str) -> tuple[int, ...]:
    """``L3,L4`` → ids; at least one."""
    return tuple(structure_id(name) for name in names(text))


def two_structure_ids(text: str) -> tuple[int, ...]:
    """``L3,L4`` → two ids."""
    found = structure_ids(text)
    if len(found) != 2:
        raise ConfigError(f"“{text}” does not name two structures.", "Use two names, as in L3,L4.")
    return found


def level_range(text: str) -> tuple[int | None, int | None]:
    """``T11:S1`` → the two ids, upper one first; ``:L3`` and ``T11:`` name one end."""
    ends = [structure(name) if name.strip() else None for name in text.split(":")]
    named = [end for end in ends if end]
    if len(ends) != 2 or not named:
        raise ConfigError(
            f"“{text}” is not a range.", "Use the upper and the lower level, as in T11:S1; T11: or :S1 for one end."
        )
    orders = [_order(end) for end in named]
    if orders != sorted(orders):
        raise ConfigError(f"{named[0].name} lies below {named[1].name}.", "Give the upper level first.")
    upper, lower = (end.id if end else None for end in ends)
    return upper, lower


def _order(vertebra: Structure) -> float:
    if not vertebra.is_vertebral or vertebra.order is None:
        raise ConfigError(f"{vertebra.name} is not a vertebra.", "Use vertebrae, as in T11:S1.")
    return vertebra.order


def point(text: str) -> Point:
    """``x,y,z`` → a point (LPS, mm)."""
    try:
        x, y, z = (float(coordinate) for coordinate in text.split(","))
    except ValueError:
        x = y = z = math.nan
    if not all(map(math.isfinite, (x, y, z))):
        raise ConfigError(f"“{text}” is not a point.", "Use x,y,z in LPS millimeters.")
    return x, y, z


def anchor(text: str) -> Anchor:
    """``L5@x,y,z`` → a structure at a point."""
    name, at, place = text.partition("@")
    if not at:
        raise ConfigError(f"“{text}” lacks a point.", "Use L5@x,y,z in LPS millimeters.")
    return Anchor(structure_id(name), point(place))


# --- flags -----------------------------------------------------------------------------------------------------------


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """``-m/--model``, or ``--checkpoint``."""
    parser.add_argument(
        "-m",
        "--model",
        "--checkpoint",
        dest="checkpoint",
        metavar="NAME|FILE",
        help="model to use, by name or file (a checkpoint); “spinesegai checkpoints” lists them",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """``--device``."""
    parser.add_argument(
        "--device",
        type=device,
        default="auto",
        metavar="auto|cpu|gpu|cuda[:N]|mps",
        help="device to compute on; default: the fastest available",
    )


def add_label_values(parser: argparse.ArgumentParser, files: str) -> None:
    """``--label-values``.

    Args:
        files: the arguments that it is about.
    """
    parser.add_argument(
        "--label-values",
        type=choice(*VALUE_MAPS),
        metavar="NAME",
        help=f"numbering of the label image in {files}: {', '.join(VALUE_MAPS)}; default: SpineSegAI's structure ids",
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """``--option key=value``, any number of times."""
    parser.add_argument(
        "--option",
        type=key_value,
        action="append",
        default=[],
        metavar="key=value",
        help="method-specific inference option",
    )


def add_measurements(parser: argparse.ArgumentParser, **shape: Any) -> None:
    """``--measurements FILE`` and ``--measurements-all``.

    Args:
        shape: ``nargs`` and ``const``, where the file's name may be omitted.
    """
    parser.add_argument(
        "--measurements",
        type=table_file,
        metavar="FILE",
        help="write a table of volumes, heights, angles …: .csv, .json, .xlsx (needs openpyxl)"
        + ("; without a name, beside the segmentation" if shape else ""),
        **shape,
    )
    parser.add_argument(
        "--measurements-all",
        action="store_true",
        help="with --measurements: every column, coordinates too, and more decimals",
    )


def table_shape(args: argparse.Namespace) -> dict[str, Any]:
    """What ``--measurements-all`` means for `write_measurements`."""
    from ..results.measurement import COLUMNS

    return {"columns": COLUMNS if args.measurements_all else None, "precise": args.measurements_all}


def add_new_structures(parser: argparse.ArgumentParser, help: str) -> None:
    """``--add-structure NAME``, any number of times."""
    parser.add_argument("--add-structure", action="append", default=[], metavar="NAME", help=help)


def add_datasets(parser: argparse.ArgumentParser) -> None:
    """One manifest or more."""
    parser.add_argument(
        "dataset", nargs="+", type=Path, metavar="DATASET.json", help="manifest; several are taken together"
    )


def numbered_datasets(datasets: Sequence[Path]) -> dict[str, str | Path | None]:
    """For `check_outputs`."""
    return {f"DATASET {number}": path for number, path in enumerate(datasets, start=1)}


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """``--quiet``."""
    parser.add_argument("--quiet", action="store_true", help="print warnings and errors only")


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``, for what a command prints."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of text on standard output")


def add_json_file(parser: argparse.ArgumentParser) -> None:
    """``--json FILE|-``, for a summary beside other files."""
    parser.add_argument(
        "--json", type=json_file, metavar="FILE|-", help="machine-readable summary; - is standard output"
    )


def add_progress_lines(parser: argparse.ArgumentParser) -> None:
    """``--progress-lines``."""
    parser.add_argument(
        "--progress-lines", action="store_true", help="report progress as JSON lines on standard error, for programs"
    )


def add_training_set(parser: argparse.ArgumentParser) -> None:
    """The flags of the commands that add cases to a training set."""
    parser.add_argument(
        "-o", "--output", required=True, metavar="FOLDER", help="training-set folder (created if it does not exist)"
    )
    parser.add_argument(
        "--map",
        type=name_target,
        action="append",
        default=[],
        metavar="NAME=STRUCTURE",
        help='structure that a name stands for: "L4 old=ignore", "my tumor=custom:tumor"',
    )
    parser.add_argument(
        "--validation",
        type=share,
        default=0.2,
        metavar="SHARE",
        help="share of the new patients used for validation; default 0.2",
    )
    parser.add_argument(
        "--extent",
        type=extent,
        metavar="body|whole",
        help="what the vertebra masks cover, for data that do not specify it",
    )
    add_quiet(parser)
    add_progress_lines(parser)


# --- checks ----------------------------------------------------------------------------------------------------------


def check_company(args: argparse.Namespace, *pairs: tuple[str, str]) -> None:
    """Checks that flags which say how something is done come with the flag that says to do it.

    Args:
        pairs: such a flag, and the one that it needs.

    Raises:
        ConfigError: one comes alone.
    """
    for flag, needed in pairs:
        if getattr(args, _name(flag)) and getattr(args, _name(needed)) is None:
            raise ConfigError(f"{flag} is an option of {needed}, which is missing.", f"Use {needed} with it.")


def _name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def check_outputs(outputs: Mapping[str, Path | None], inputs: Mapping[str, str | Path | None]) -> None:
    """Finds out before the work begins whether the files can be written.

    Args:
        outputs: flag → file to write, or None.
        inputs: flag → file that is read, or None.

    Raises:
        OutputError: two of them are the same file, a folder is missing or protected …
    """
    used = {real_path(path): flag for flag, path in inputs.items() if path}
    for flag, path in outputs.items():
        if path is None:
            continue
        other = used.setdefault(real_path(path), flag)
        if other != flag:
            raise OutputError(f"{other} and {flag} name the same file: {path}.", "Choose another name.")
    for path in filter(None, outputs.values()):
        check_writable(path)


def check_new(outputs: Mapping[str, Path | None], *, overwrite: bool) -> None:
    """Finds out whether files are there already.

    Args:
        outputs: as in `check_outputs`.
        overwrite: they may be.

    Raises:
        OutputError: one is.
    """
    for path in () if overwrite else filter(None, outputs.values()):
        if path.exists():
            raise OutputError(f"{path} exists.", "Choose another name, or use --overwrite to replace it.")


def check_result_files(
    outputs: Mapping[str, Path], inputs: Mapping[str, str | Path | None], *, overwrite: bool
) -> None:
    """As `check_outputs`, for a segmentation (``--output``), the file beside it, and what else is written with it.

    Args:
        overwrite: also over what others made or changed.

    Raises:
        OutputError: see `check_outputs`; or a file that is there is not an unchanged result.
    """
    from ..results import check_sidecar, is_ours, side_file

    output = outputs["--output"]
    check_outputs({**outputs, "the side file of --output": side_file(output)}, inputs)
    check_sidecar(output)
    for path in () if overwrite else outputs.values():
        if path.exists() and not is_ours(path):
            raise OutputError(
                f"{path} exists and is not an unchanged result of SpineSegAI.",
                "Choose another name, or use --overwrite to replace it.",
            )
