"""``spinesegai relabel``: corrections of a segmentation's labels, in the order in which they are given."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..anatomy import structure
from ..errors import ConfigError, CorrectionError, ImageError
from ..files import SEGMENTATION_SUFFIXES, atomic_write, write_json
from ..hints import Anchor, Point
from . import arguments
from .arguments import STDOUT, structure_id, structure_ids, two_structure_ids
from .terminal import print_json, print_note, print_written

if TYPE_CHECKING:
    import SimpleITK as sitk

    from ..correction import Correction, Direction, LabeledStructures
    from ..results import Segmentation

HELP = "Correct the labels of a segmentation."


@dataclass(frozen=True)
class Step:
    """One correction as it is asked for; what its tool does not use is empty."""

    tool: str
    structures: tuple[int, ...] = ()
    level: int | None = None
    point: Point | None = None
    normal: Point | None = None
    word: str = ""
    start: int | None = None
    direction: Direction | None = None


@dataclass(frozen=True)
class Refinement:
    """What a flag adds to the step before it.

    Attributes:
        flag: the flag.
        field: of `Step`.
        value: of this field.
        tools: the steps that take it.
    """

    flag: str
    field: str
    value: Any
    tools: frozenset[str]


# --- the flags -------------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command; steps and their refinements are one list, which keeps their order."""
    parser.add_argument("input", metavar="INPUT", help="segmentation: .seg.nrrd, or a label image of structure ids")
    parser.add_argument(
        "-o",
        "--output",
        type=arguments.output_file(*SEGMENTATION_SUFFIXES),
        required=True,
        metavar="FILE",
        help="write the corrected segmentation: .seg.nrrd, .nii.gz, .nii, .nrrd, .mha",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files that exist; else only unchanged results of SpineSegAI"
    )
    steps = parser.add_argument_group("steps, done in the order given")

    def step(flag: str, metavar: str, parse: Callable[[str], Step], help: str) -> None:
        steps.add_argument(flag, action="append", dest="steps", type=parse, metavar=metavar, help=help)

    step("--shift", "up|down", _shift, "shift all labels one level up or down")
    step("--set", "L5@x,y,z|L4=L5", _set, "set a level, at a point (LPS, mm) or by its present name; others follow")
    step("--swap", "A,B", _swap, "exchange two labels")
    step("--merge", "A,B", _merge, "join two pieces; levels above move down")
    step("--split", "A[@x,y,z]", _split, "split in two by a plane across the spine; levels above move up")
    step("--delete", "A,…", _delete, "remove structures")
    step("--insert", "L3", _insert, "insert a missing level; levels above move up")
    step("--counting", "L6|L5|T13|T12", _counting, "number the levels with or without L6 or T13")
    refinements = parser.add_argument_group("options of the step before")

    def refine(flag: str, field: str, tools: str, metavar: str, parse: Callable[[str], Any], help: str) -> None:
        refinements.add_argument(
            flag,
            action="append",
            dest="steps",
            type=lambda text: Refinement(flag, field, parse(text), frozenset(tools.split())),
            metavar=metavar,
            help=help,
        )

    refine("--from", "start", "shift", "L3", structure_id, "of --shift: the first level to shift")
    refine(
        "--direction",
        "direction",
        "shift set merge split insert counting",
        "all|above|below",
        arguments.choice("all", "above", "below"),
        "which levels follow; default: all for --shift and --set, above for the others",
    )
    refine("--normal", "normal", "split", "x,y,z", arguments.point, "of --split: normal of the plane (LPS)")
    parser.add_argument(
        "--lock", type=structure_ids, default=(), metavar="A,…", help="structures that no step may change or rename"
    )
    arguments.add_label_values(parser, "INPUT")
    arguments.add_measurements(parser)
    parser.add_argument(
        "--preview",
        type=arguments.output_file(".png"),
        metavar="PNG",
        help="write a picture of the corrected segmentation, on the image in --image",
    )
    parser.add_argument("--image", metavar="FILE", help="with --preview: the image that was segmented")
    arguments.add_json_file(parser)
    arguments.add_quiet(parser)


def _shift(text: str) -> Step:
    return Step("shift", word=arguments.choice("up", "down")(text))


def _set(text: str) -> Step:
    if "@" in text:
        anchor = arguments.anchor(text)
        return Step("set", level=anchor.structure_id, point=anchor.point)
    present, equals, name = text.partition("=")
    if not equals:
        raise ConfigError(f"Missing structure in “{text}”.", "Use L5@x,y,z, or L4=L5 for what is called L4.")
    return Step("set", (structure_id(present),), level=structure_id(name))


def _swap(text: str) -> Step:
    return Step("swap", two_structure_ids(text))


def _merge(text: str) -> Step:
    return Step("merge", two_structure_ids(text))


def _split(text: str) -> Step:
    if "@" in text:
        anchor = arguments.anchor(text)
        return Step("split", (anchor.structure_id,), point=anchor.point)
    return Step("split", (structure_id(text),))


def _delete(text: str) -> Step:
    return Step("delete", structure_ids(text))


def _insert(text: str) -> Step:
    return Step("insert", level=structure_id(text))


def _counting(text: str) -> Step:
    return Step("counting", word=text)


# --- the command ------------------------------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> None:
    """Reads, corrects and writes; nothing is written if a step cannot be done."""
    steps = _steps(args.steps or ())
    outputs = _outputs(args)
    result = _corrected(args, steps)
    image = _image(args, result.labels)
    summary = _write(args, outputs, result, image)
    for note in result.notes:
        print_note(note)
    if args.json == STDOUT:
        print_json(summary)
    elif not args.quiet:
        assert result.corrections is not None  # there was a step
        for entry in result.corrections.entries[-len(steps) :]:
            renamed = ", ".join(f"{r.before} → {r.after or 'removed'}" for r in entry.renamed)
            print(f"{entry.words}: {renamed}" if renamed else entry.words)
        print_written(summary["written"])


def _steps(given: Iterable[Step | Refinement]) -> list[Step]:
    """The steps, each with what refines it.

    Raises:
        ConfigError: there are none, or a refinement does not belong to the step before it.
    """
    steps: list[Step] = []
    for word in given:
        if isinstance(word, Step):
            steps.append(word)
        elif not steps:
            raise ConfigError(f"{word.flag} belongs to the step before it, and there is none.", "Put it after a step.")
        elif steps[-1].tool not in word.tools:
            takers = ", ".join(f"--{tool}" for tool in sorted(word.tools))
            raise ConfigError(f"--{steps[-1].tool} does not take {word.flag}.", f"It is for {takers}.")
        else:
            steps[-1] = replace(steps[-1], **{word.field: word.value})
    if not steps:
        raise ConfigError("There is nothing to correct.", "Use --shift, --set, --swap, --merge, --split …")
    return steps


def _outputs(args: argparse.Namespace) -> dict[str, Path]:
    """The files to write, by flag: the segmentation, and what else is asked for.

    Raises:
        ConfigError: a flag lacks the one that it goes with.
        OutputError: a folder is missing or protected, or one file would be used twice.
    """
    arguments.check_company(args, ("--measurements-all", "--measurements"), ("--image", "--preview"))
    if args.preview and not args.image:
        raise ConfigError("--preview draws on the image that was segmented.", "Name it with --image.")
    named = {
        "--output": args.output,
        "--measurements": args.measurements,
        "--preview": args.preview,
        "--json": None if args.json == STDOUT else args.json,
    }
    outputs = {flag: path for flag, path in named.items() if path is not None}
    inputs = {"INPUT": args.input, "--image": args.image}
    arguments.check_result_files(outputs, inputs, overwrite=args.overwrite)
    return outputs


def _corrected(args: argparse.Namespace, steps: Sequence[Step]) -> Segmentation:
    """The segmentation after all steps.

    Raises:
        ImageError: the file cannot be read.
        CorrectionError: a step cannot be done, contradicts another, or nothing remains.
    """
    import SimpleITK as sitk

    from ..correction import LabeledStructures, apply_correction
    from ..results import read_segmentation

    result = read_segmentation(args.input, values=args.label_values)
    for step in steps:
        scheme = None if result.scheme.name == "file" else result.scheme
        labelling = LabeledStructures.of(result.labels, scheme, args.lock)
        result = apply_correction(result, _correction(step, labelling, result.labels))
    _check_anchors([Anchor(s.level, s.point) for s in steps if s.tool == "set" and s.level and s.point], result.labels)
    if not sitk.GetArrayViewFromImage(result.labels).any():
        raise CorrectionError("Nothing would remain.", "Keep at least one structure.")
    return result


def _check_anchors(anchors: Iterable[Anchor], labels: sitk.Image) -> None:
    """Checks that the levels set at points are there after all steps.

    Raises:
        CorrectionError: a later step changed one.
    """
    for anchor in anchors:
        found = int(labels[labels.TransformPhysicalPointToIndex(anchor.point)])
        if found != anchor.structure_id:
            there = structure(found).name if found else "background"
            at = ",".join(f"{x:g}" for x in anchor.point)
            raise CorrectionError(
                f"--set {structure(anchor.structure_id).name}@{at} contradicts another step: in the end, "
                f"{there} is there.",
                "Omit one of them, or let only some of the levels follow (--direction).",
            )


def _correction(step: Step, labelling: LabeledStructures, labels: sitk.Image) -> Correction:
    """What a step comes to with what is labeled now."""
    from .. import correction as tools

    side: Direction = step.direction or "above"
    match step.tool, step.structures:
        case "shift", _:
            to: Any = step.word
            return tools.shift(labelling, to, step.start, step.direction or ("above" if step.start else "all"))
        case "set", present:
            assert step.level is not None
            chosen = tools.structure_at(labels, step.point) if step.point else present[0]
            return tools.set_level(labelling, chosen, step.level, step.direction or "all")
        case "swap", (first, second):
            return tools.swap(labelling, first, second)
        case "merge", (first, second):
            return tools.merge(labelling, first, second, None if side == "all" else side)
        case "split", (whole,):
            return tools.split(labelling, labels, whole, point=step.point, normal=step.normal, direction=side)
        case "delete", removed:
            return tools.delete(labelling, *removed)
        case "insert", _:
            assert step.level is not None
            return tools.insert(labelling, step.level, side)
        case _:
            return tools.switch_counting(labelling, step.word, side)


def _image(args: argparse.Namespace, labels: sitk.Image) -> sitk.Image | None:
    """What the picture is drawn on; None if there is to be none.

    Raises:
        ImageError: it cannot be read, or the segmentation is of another image.
    """
    if not args.image:
        return None
    from ..imaging import Geometry, read_image

    image = read_image(args.image)
    if not Geometry.of(image).matches(Geometry.of(labels)):
        raise ImageError(f"{args.input} is not a segmentation of {args.image}.", "Name its image with --image.")
    return image


def _write(
    args: argparse.Namespace, outputs: Mapping[str, Path], result: Segmentation, image: sitk.Image | None
) -> dict[str, Any]:
    """Writes all files or none, and returns the summary."""
    from ..results.measurement import measure_all, write_measurements

    with atomic_write(*outputs.values()) as places:
        place = dict(zip(outputs, places, strict=True))
        written = [args.output.with_name(path.name) for path in result.write(place["--output"])]
        written += [path for flag, path in outputs.items() if flag in ("--measurements", "--preview")]
        rows = measure_all(result) if args.measurements or args.preview else []
        if "--measurements" in place:
            write_measurements(rows, place["--measurements"], **arguments.table_shape(args))
        if "--preview" in place:
            from ..results.preview import render_preview

            assert image is not None  # `_outputs`
            render_preview(image, result, place["--preview"], title=args.output.name, rows=rows)
        summary = {"input": str(args.input), **result.to_document(), "written": [str(path) for path in written]}
        if "--json" in place:
            write_json(place["--json"], summary)
    return summary
