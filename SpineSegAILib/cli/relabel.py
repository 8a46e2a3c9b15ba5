"""``spinesegai relabel``: corrections of names and pieces at the shell, in the order in which they are given."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..anatomy import structure
from ..errors import ConfigError, CorrectionError, OutputError, SpineSegAIError
from ..files import check_writable, staged

if TYPE_CHECKING:
    import SimpleITK as sitk

    from ..correction import Correction, Labelling

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Step:
    """One correction as it was asked for; what a tool does not use must be empty."""

    tool: str
    structures: tuple[int, ...] = ()
    level: int | None = None
    point: Point | None = None
    normal: Point | None = None
    word: str = ""
    start: int | None = None
    direction: str | None = None

    def __str__(self) -> str:
        return f"--{self.tool}"


_TAKES_DIRECTION = {"shift", "set", "merge", "split", "insert", "counting"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command; those that make a step keep their order."""
    parser.add_argument("input", metavar="INPUT", help="segmentation: .seg.nrrd, or a label image with structure ids")
    parser.add_argument("--output", required=True, metavar="FILE", help="a new file of either kind")

    def step(flag: str, metavar: str, parse: Any, help: str) -> None:
        parser.add_argument(flag, action=_AddStep, type=_argument(parse), metavar=metavar, dest="steps", help=help)

    step("--shift", "up|down", lambda t: Step("shift", word=t), "every level gets the name of the one above or below")
    step("--set", "L5@x,y,z|L4=L5", _set, "“this one is L5”: at a point (LPS, mm), or what is called L4; others follow")
    step("--swap", "A,B", lambda t: Step("swap", _ids(t, 2)), "exchange two names")
    step("--merge", "A,B", lambda t: Step("merge", _ids(t, 2)), "two pieces become one; those above come down")
    step("--split", "A[@x,y,z]", _split, "one becomes two, by a plane across the spine; those above go up")
    step("--delete", "A,…", lambda t: Step("delete", _ids(t)), "remove structures")
    step("--insert", "L3", lambda t: Step("insert", level=_id(t)), "L3 was overlooked: those above go up")
    step("--counting", "L6|L5|T13|T12", lambda t: Step("counting", word=t), "with or without L6 or T13")
    of_step = parser.add_argument_group("of the step before")
    of_step.add_argument(
        "--from", action=_Refine, type=_argument(_id), dest="start", metavar="L3", help="of --shift: from this one on"
    )
    of_step.add_argument(
        "--direction",
        action=_Refine,
        choices=("all", "above", "below"),
        help="which levels follow; default: all for --shift and --set, above for the others",
    )
    of_step.add_argument(
        "--normal", action=_Refine, type=_argument(_numbers), metavar="x,y,z", help="of the plane of --split (LPS)"
    )
    parser.add_argument(
        "--lock", type=_argument(_ids), default=(), metavar="A,…", help="structures that no step may change or rename"
    )
    parser.add_argument("--json", metavar="FILE|-", help="what was done, for machines; - is stdout")
    parser.add_argument("--quiet", action="store_true", help="no list of steps; notes and errors remain")


class _AddStep(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None) -> None:
        namespace.steps = [*(namespace.steps or []), values]


class _Refine(argparse.Action):
    """Adds to the step before; argparse has no order among flags of its own."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        steps = namespace.steps or []
        if not steps:
            parser.error(f"{option_string} belongs to the step before it, and there is none")
        tool = steps[-1].tool
        fits = {"start": tool == "shift", "normal": tool == "split", "direction": tool in _TAKES_DIRECTION}
        if not fits[self.dest]:
            parser.error(f"--{tool} takes no {option_string}")
        namespace.steps = [*steps[:-1], replace(steps[-1], **{self.dest: values})]


def _argument(parse: Any) -> Any:
    """A parser whose errors argparse shows."""

    def parsed(text: str) -> Any:
        try:
            return parse(text)
        except SpineSegAIError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parsed


def _id(text: str) -> int:
    return structure(text).id


def _ids(text: str, count: int | None = None) -> tuple[int, ...]:
    found = tuple(_id(name) for name in text.split(",") if name.strip())
    if not found or count not in (None, len(found)):
        wanted = "two structures as L3,L4" if count == 2 else "structures as L3,L4"
        raise ConfigError(f"“{text}” does not name {wanted}.")
    return found


def _numbers(text: str) -> Point:
    try:
        x, y, z = (float(n) for n in text.split(","))
    except ValueError:
        x = y = z = math.nan
    if not all(map(math.isfinite, (x, y, z))):
        raise ConfigError(f"“{text}” is no point.", "Write x,y,z with LPS millimetres.")
    return x, y, z


def _set(text: str) -> Step:
    if "@" in text:
        name, _, place = text.partition("@")
        return Step("set", level=_id(name), point=_numbers(place))
    called, equals, name = text.partition("=")
    if not equals:
        raise ConfigError(f"“{text}” says not which one.", "Write L5@x,y,z, or L4=L5 for what is called L4.")
    return Step("set", (_id(called),), level=_id(name))


def _split(text: str) -> Step:
    name, at, place = text.partition("@")
    return Step("split", (_id(name),), point=_numbers(place) if at else None)


# --- the command ------------------------------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> None:
    """Reads, corrects and writes; nothing is written if a step cannot be done."""
    if not args.steps:
        raise ConfigError("There is nothing to correct.", "Give --shift, --set, --swap, --merge, --split …")
    outputs = [Path(args.output)] + ([Path(args.json)] if args.json not in (None, "-") else [])
    taken = [Path(args.input).resolve()]
    for path in outputs:
        if path.resolve() in taken:
            raise OutputError(f"{path} has two parts to play.", "Choose another name.")
        taken.append(path.resolve())
        check_writable(path)

    import SimpleITK as sitk

    from ..correction import Labelling, corrected
    from ..results import read_segmentation, refuse_foreign_side_file

    refuse_foreign_side_file(outputs[0])
    result = read_segmentation(args.input, strict=True)
    anchors: list[tuple[Point, int]] = []
    notes: list[str] = []
    for step in args.steps:
        scheme = None if result.scheme.name == "file" else result.scheme
        labelling = Labelling.of(result.labels, scheme, args.lock)
        correction = _correction(step, labelling, result.labels)
        result = corrected(result, correction)
        notes += correction.notes
        if step.tool == "set" and step.point and step.level:
            anchors.append((step.point, step.level))
    for point, level in anchors:
        found = int(result.labels[result.labels.TransformPhysicalPointToIndex(point)])
        if found != level:
            at = ",".join(f"{x:g}" for x in point)
            raise CorrectionError(
                f"--set {structure(level).name}@{at} contradicts another step: there lies {structure(found).name} in "
                "the end.",
                "Leave one out, or let only part of the levels follow (--direction).",
            )
    if not sitk.GetArrayViewFromImage(result.labels).any():
        raise CorrectionError("Nothing would be left.", "Delete less.")

    assert result.corrections is not None
    steps = result.corrections.entries[-len(args.steps) :]
    with staged(*outputs) as places:
        written = [outputs[0].with_name(path.name) for path in result.write(places[0])]
        summary = {"input": str(args.input), **result.to_document(), "written": [str(path) for path in written]}
        if len(places) > 1:
            places[1].write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if args.json == "-":
        print(json.dumps(summary, indent=1, allow_nan=False))
    elif not args.quiet:
        for entry in steps:
            renamed = ", ".join(f"{r.before} → {r.after or 'removed'}" for r in entry.renamed)
            print(f"{entry.words}: {renamed}" if renamed else entry.words)
        for path in written:
            print(f"wrote {path}")


def _correction(step: Step, labelling: Labelling, labels: sitk.Image) -> Correction:
    """What a step comes to with what is labelled now."""
    from .. import correction as tools

    structures: Sequence[int] = step.structures
    side: Any = step.direction or "above"
    if step.tool == "shift":
        start = step.start
        return tools.shift(labelling, step.word, start, step.direction or ("above" if start else "all"))  # type: ignore[arg-type]
    if step.tool == "set":
        assert step.level is not None
        chosen = tools.structure_at(labels, step.point) if step.point else structures[0]
        return tools.set_level(labelling, chosen, step.level, step.direction or "all")  # type: ignore[arg-type]
    if step.tool == "swap":
        return tools.swap(labelling, *structures)
    if step.tool == "merge":
        return tools.merge(labelling, *structures, None if side == "all" else side)
    if step.tool == "split":
        return tools.split(labelling, labels, structures[0], point=step.point, normal=step.normal, direction=side)
    if step.tool == "delete":
        return tools.delete(labelling, *structures)
    if step.tool == "insert":
        assert step.level is not None
        return tools.insert(labelling, step.level, side)
    return tools.switch_counting(labelling, step.word, side)
