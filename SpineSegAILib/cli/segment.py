"""``spinesegai segment``: an image with what the user knows about it, or many images."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..anatomy import Extent, LabelScheme, short_name
from ..errors import ConfigError, HintError, one_of
from ..files import stem_and_suffix
from ..hints import Hints
from ..keypoints import read_keypoints
from ..methods.catalog import METHODS, MethodInfo, method_info
from . import arguments, segment_files
from .arguments import STDOUT
from .segment_files import Work
from .terminal import print_json, print_note, print_table, print_written, progress_bar

if TYPE_CHECKING:
    import SimpleITK as sitk

    from ..checkpoints import CheckpointInfo
    from ..inference import Predictor
    from ..results import Segmentation
    from ..results.measurement import Row

HELP = "Segment images."

HINT_FLAGS = {
    "visible": "--visible",
    "anchors": "--anchor",
    "keypoints": "--keypoints",
    "prior": "--prior",
    "locked": "--lock",
    "structures": "--structures",
}
"""Field of `Hints` → its flag."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument(
        "images",
        nargs="+",
        type=Path,
        metavar="IMAGE",
        help="image file, folder with a DICOM series, or folder of images and series (sub-folders too); several are "
        "segmented one after the other",
    )
    segment_files.add_arguments(parser)
    arguments.add_checkpoint(parser)
    parser.add_argument("--method", type=arguments.method, metavar="NAME", help="use a checkpoint of this method")
    arguments.add_device(parser)
    parser.add_argument(
        "--visible",
        type=arguments.level_range,
        metavar="T11:S1",
        help="topmost and lowest vertebra in view; T11: or :S1 for one end",
    )
    parser.add_argument(
        "--anchor",
        type=arguments.anchor,
        action="append",
        default=[],
        metavar="L5@x,y,z",
        help="a point inside L5 (LPS, mm); may be repeated",
    )
    parser.add_argument("--keypoints", metavar="FILE", help="JSON file of structure centers, or Slicer markups")
    parser.add_argument("--prior", metavar="FILE", help="segmentation to start from")
    parser.add_argument("--lock", metavar="FILE", help="segmentation whose structures are kept unchanged")
    parser.add_argument(
        "--levels-from",
        metavar="FILE",
        help="take the levels from a corrected segmentation of another series of the study",
    )
    arguments.add_label_values(parser, "--prior, --lock or --levels-from")
    parser.add_argument(
        "--structures", type=arguments.structure_ids, metavar="L3,L4", help="return only these structures"
    )
    parser.add_argument(
        "--extent",
        type=arguments.choice(*(extent.value for extent in Extent)),
        metavar="body|whole",
        help="whole: add to each vertebra its posterior elements, where the model segments bodies and these apart",
    )
    parser.add_argument(
        "--unvalidated",
        action="store_true",
        help="include experimental structures, which are not validated on real cases",
    )
    arguments.add_options(parser)
    arguments.add_quiet(parser)


def run(args: argparse.Namespace) -> None:
    """Checks all that is asked for, segments, and writes all files of an image or none."""
    from ..imaging import find_images
    from . import segment_many

    images = find_images(args.images, omit=[args.output] if args.output else [])
    first = args.images[0]
    many = len(args.images) > 1 or len(images) > 1 or (first.is_dir() and not images[0].is_dir())
    works = segment_files.plan(args, images, many=many)
    if many:
        segment_many.run(args, works)
    else:
        _run_one(args, works[0])


def _run_one(args: argparse.Namespace, work: Work) -> None:
    read = ("prior", "lock", "keypoints", "levels_from")
    files = {f"--{name.replace('_', '-')}": getattr(args, name) for name in read}
    segment_files.check_work(work, files, overwrite=args.overwrite)
    info = find_model(args)
    hints = find_hints(args, method_info(info.method), info.scheme)
    given = _given_segmentations(args)
    hints = replace(hints, prior=_labels(given, "--prior"), locked=_labels(given, "--lock"))
    started = time.perf_counter()
    image, result = _segmented(args, info, work.image, hints, _labels(given, "--levels-from"))
    seconds = time.perf_counter() - started
    result.warnings[:0] = [f"{flag}: {note}" for flag, found in given.items() for note in found.notes]
    result, rows, summary = finished(args, work, info, hints, image, result)
    if args.json == STDOUT:
        for note in notes_of(args, work, result, rows):
            print_note(note)
        print_json(summary)
    elif args.quiet:
        for note in notes_of(args, work, result, rows):
            print_note(note)
    else:
        if result.level_confidence is not None:
            print(f"level confidence: {result.level_confidence:.2f}")
        print_table(_structure_rows(result))
        print(f"{seconds:.1f} s on {result.provenance.get('device', args.device)}, model {info.name}")
        for note in notes_of(args, work, result, rows):
            print_note(note, sys.stdout)  # a part of the result: it stays with it where that goes into a file
        print_written(summary["written"])


def finished(
    args: argparse.Namespace, work: Work, info: CheckpointInfo, hints: Hints, image: sitk.Image, result: Segmentation
) -> tuple[Segmentation, list[Row], dict[str, Any]]:
    """What is returned of an image's segmentation, its measurements, and the summary; its files are written.

    Raises:
        ImageError: nothing is left to return.
        OutputError: a file cannot be written.
    """
    from ..results import whole_vertebrae

    if args.extent == Extent.WHOLE.value:
        result = whole_vertebrae(result)
    result = _without_experimental(args, result, hints)
    summary: dict[str, Any] = {"image": str(work.image), "checkpoint": info.name, **result.to_document()}
    for described in summary["alternatives"]:
        described["command"] = _relabel_command(work.outputs["--output"], described["relabel"])
    rows = _measurements(args, result)
    summary["written"] = segment_files.write_files(args, work, image, result, summary, rows)
    return result, rows, summary


# --- what is asked for -----------------------------------------------------------------------------------------------


def find_model(args: argparse.Namespace) -> CheckpointInfo:
    """The checkpoint asked for.

    Raises:
        CheckpointError: there is none.
        ConfigError: it is of another method, or its method cannot do what is asked for.
    """
    from ..checkpoints import find_checkpoint

    info = find_checkpoint(args.checkpoint, args.method)
    method = method_info(info.method)
    if args.method not in (None, info.method):
        raise ConfigError(
            f"The checkpoint {info.name} is of the method {info.method}, not {args.method}.",
            "Omit --method, or choose another checkpoint.",
        )
    if args.uncertainty and "samples" not in method.sampling:
        takers = one_of(m.id for m in METHODS.values() if "samples" in m.sampling)
        raise ConfigError(
            f"--uncertainty is not available: {method.title} ({method.id}) does not produce samples.",
            f"Omit it, or use a checkpoint of {takers}.",
        )
    return info


def find_hints(args: argparse.Namespace, method: MethodInfo, scheme: LabelScheme) -> Hints:
    """What the user knows, as far as the method can use it, but for segmentations.

    Raises:
        HintError: the method cannot use one of them, or the file of keypoints cannot be read.
        SchemeError: a structure is not in the checkpoint's scheme.
    """
    given = {
        "visible": args.visible,
        "anchors": args.anchor,
        "keypoints": args.keypoints,
        "prior": args.prior,
        "locked": args.lock,
        "structures": args.structures,
    }
    check_hints({name for name, value in given.items() if value}, method)
    for structure_id in (*(args.structures or ()), *(anchor.structure_id for anchor in args.anchor)):
        scheme.require(structure_id)
    return Hints(
        visible=args.visible,
        anchors=tuple(args.anchor),
        keypoints=read_keypoints(args.keypoints) if args.keypoints else {},
        structures=args.structures or (),
    )


def _given_segmentations(args: argparse.Namespace) -> dict[str, Segmentation]:
    """Flag → segmentation in its file.

    Raises:
        ImageError, CorrectionError, SchemeError: a file cannot be read, or not understood; of what is to be locked
            nothing may be omitted.
        HintError: a file holds no structures.
        ConfigError: --label-values has nothing to apply to.
    """
    flags = {"--prior": args.prior, "--lock": args.lock, "--levels-from": args.levels_from}
    paths = {flag: path for flag, path in flags.items() if path}
    if args.label_values and not paths:
        raise ConfigError("--label-values is the numbering of a label image.", f"Use it with {one_of(flags)}.")
    if not paths:
        return {}
    from ..results import read_segmentation

    found = {
        flag: read_segmentation(path, complete=flag == "--lock", values=args.label_values)
        for flag, path in paths.items()
    }
    for flag, segmentation in found.items():
        if not segmentation.present:
            why = " ".join(segmentation.notes) or "All its voxels are background."
            raise HintError(f"{flag}: {paths[flag]} holds no structures. {why}", "Give another file.")
    return found


def _labels(given: Mapping[str, Segmentation], flag: str) -> sitk.Image | None:
    return given[flag].labels if flag in given else None


def check_hints(given: Iterable[str], method: MethodInfo) -> None:
    """Checks that a method can use these hints.

    Args:
        given: names of fields of `Hints`.
        method: the method.

    Raises:
        HintError: names the first that it cannot use, and the methods that can.
    """
    for name in sorted(set(given) - method.accepted_hints):
        takers = [m.id for m in METHODS.values() if name in m.accepted_hints]
        raise HintError(
            f"{HINT_FLAGS[name]} is not supported by {method.title} ({method.id}).",
            f"Omit it, or use a checkpoint of {one_of(takers)}." if takers else "Omit it.",
        )


# --- the work --------------------------------------------------------------------------------------------------------


def _segmented(
    args: argparse.Namespace, info: CheckpointInfo, path: Path, hints: Hints, levels: sitk.Image | None
) -> tuple[sitk.Image, Segmentation]:
    """The image and its segmentation.

    Args:
        levels: segmentation of another series of the study, to take the levels from.

    Raises:
        ImageError: the image cannot be used, or nothing was found in it.
        ConfigError: an uncertainty map is asked for and only one sample.
    """
    from ..imaging import read_image

    with progress_bar(args.quiet) as report:
        report(0.0, "reading the image")
        image = read_image(path)
        if levels is not None:
            from ..inference.level_transfer import level_anchor

            hints = replace(hints, anchors=(*hints.anchors, level_anchor(levels, image)))
        report(0.0, "loading the model")
        predictor = load_predictor(args, info)
        result = predictor.segment(image, hints=hints, options=dict(args.option), progress=report)
    require_found(args, path, result)
    return image, result


def load_predictor(args: argparse.Namespace, info: CheckpointInfo) -> Predictor:
    """The model on the device.

    Raises:
        CheckpointError, DeviceError: it cannot be loaded there.
        ConfigError: an uncertainty map is asked for and only one sample.
    """
    from ..inference import Predictor

    predictor = Predictor(info, device=args.device)
    if args.uncertainty and predictor.method.images_per_slice(dict(args.option)) < 2:
        raise ConfigError(
            "--uncertainty needs at least two samples; one sample, or the prior alone, has no uncertainty.",
            "Use --option samples=2 or more, with a checkpoint that draws samples.",
        )
    return predictor


def require_found(args: argparse.Namespace, path: Path, result: Segmentation) -> None:
    """Raises:
    ImageError: nothing was found.
    """
    from ..results import require_structures

    what = "None of the requested structures" if args.structures else "No spine"
    require_structures(result, f"{what} was found in {path}.")


def _without_experimental(args: argparse.Namespace, result: Segmentation, hints: Hints) -> Segmentation:
    """The result without experimental structures, unless they are asked for."""
    if args.unvalidated or args.structures:
        return result
    from ..results import drop_unvalidated

    remedy = "Use --unvalidated to include them"
    rest = drop_unvalidated(result, hints.locked, remedy)
    if rest is not result:
        kept, present = rest.present, result.present
        omitted = ", ".join(short_name(sid, present) for sid in present if sid not in kept)
        rest.warnings.append(f"Omitted {omitted}: experimental, not validated on real cases. {remedy}.")
    return rest


def _measurements(args: argparse.Namespace, result: Segmentation) -> list[Row]:
    """The table of measurements, if it is written or drawn."""
    if not (args.measurements or args.preview or args.report):
        return []
    from ..results.measurement import measure_all

    return measure_all(result)


def notes_of(args: argparse.Namespace, work: Work, result: Segmentation, rows: Sequence[Row]) -> list[str]:
    """What the user should know: the result's warnings, each question with its answer, doubtful measurements."""
    notes = list(result.warnings)
    for alternative in result.alternatives:
        if alternative.question and alternative.step:
            command = _relabel_command(work.outputs["--output"], alternative.step)
            notes.append(f"To name them {alternative.names}: {command}")
    doubtful = [row["structure"] for row in rows if row["notes"]]
    if doubtful and args.measurements:
        notes.append(f"Measurements that are not given or unusual: see the notes of {', '.join(doubtful)}.")
    return notes


def _relabel_command(output: Path, step: str) -> str:
    """What to type to choose another naming; nothing where no single step does."""
    if not step:
        return ""
    stem, suffix = stem_and_suffix(output)
    other = output.with_name(f"{stem}-renamed{suffix}")
    return f"spinesegai relabel {shlex.quote(str(output))} {step} --output {shlex.quote(str(other))}"


def _structure_rows(result: Segmentation) -> list[tuple[str, ...]]:
    """A line per structure; no volume where the image does not tell its scale, or shows a slice or projection of it."""
    import numpy as np
    import SimpleITK as sitk

    voxel_ml = math.prod(result.labels.GetSpacing()) / 1000.0
    ids, counts = np.unique(sitk.GetArrayViewFromImage(result.labels), return_counts=True)
    voxels, present = dict(zip(ids.tolist(), counts.tolist(), strict=True)), result.present
    rows: list[tuple[str, ...]] = [("structure", "volume", "outline quality")]
    for sid in present:
        quality = result.outline_quality.get(sid)
        shown = "" if quality is None else f"{quality:.2f}"
        rows.append((result.name_of(sid, present), f"{voxels[sid] * voxel_ml:.1f} mL", shown))
    return rows if result.tells_volumes else [(row[0], row[2]) for row in rows]
