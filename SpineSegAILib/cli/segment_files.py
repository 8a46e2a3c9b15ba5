"""The files of ``spinesegai segment``: what is asked for, where it goes, what may be replaced, and writing it."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, OutputError
from ..files import (
    IMAGE_SUFFIXES,
    SEGMENTATION_SUFFIXES,
    atomic_write,
    check_suffix,
    real_path,
    stem_and_suffix,
    write_json,
)
from . import arguments
from .arguments import STDOUT

if TYPE_CHECKING:
    import SimpleITK as sitk

    from ..results import Segmentation
    from ..results.measurement import Row

BESIDE = True
"""Value of a flag without a file name: the file goes beside the segmentation and is named after it."""

_ENDINGS = {
    "--preview": ".png",
    "--measurements": ".csv",
    "--report": ".html",
    "--dicom-seg": ".dcm",
    "--uncertainty": "_uncertainty.nii.gz",
}
"""Flag → what is added to the segmentation's name where the flag has no file name."""

_KNOWN_SUFFIXES = (*SEGMENTATION_SUFFIXES, ".mhd", ".png", ".jpg", ".jpeg", ".dcm", ".ima")
RESULTS = "spinesegai-results"
"""Name of the tables of all results in the folder of several segmentations; .csv and .jsonl."""


@dataclass(frozen=True)
class Work:
    """One image, and the files to write, by flag; the first is the segmentation (``--output``)."""

    image: Path
    outputs: dict[str, Path]


# --- flags -----------------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that name files to write."""
    parser.add_argument(
        "-o",
        "--output",
        type=_file_or_folder,
        metavar="FILE|FOLDER",
        help="write the segmentation: .seg.nrrd for Slicer, or a label image: .nii.gz, .nii, .nrrd, .mha; or a folder, "
        "for several images; default: beside the image",
    )
    parser.add_argument(
        "--format",
        type=arguments.choice(*(suffix[1:] for suffix in SEGMENTATION_SUFFIXES)),
        metavar="|".join(suffix[1:] for suffix in SEGMENTATION_SUFFIXES),
        help="file type if --output does not give it; default: seg.nrrd, and nii.gz for BIDS",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace files that exist; without it, only SpineSegAI's own are replaced, and of several images those "
        "that have a result are skipped",
    )
    for flag, suffixes, metavar, words in (
        ("--preview", (".png",), "PNG", "a picture of the result"),
        ("--report", (".html", ".pdf"), "FILE", "a report with the picture and the measurements: .html, .pdf"),
        ("--dicom-seg", (".dcm",), "DCM", "a DICOM segmentation object, for a DICOM image"),
        ("--uncertainty", IMAGE_SUFFIXES, "FILE",
         "the uncertainty map, for methods that produce samples: .nii.gz, .nii, .nrrd, .mha"),
    ):  # fmt: skip
        parser.add_argument(
            flag,
            type=arguments.output_file(*suffixes),
            nargs="?",
            const=BESIDE,
            metavar=metavar,
            help=f"write {words}; without a name, beside the segmentation",
        )
    arguments.add_measurements(parser, nargs="?", const=BESIDE)
    parser.add_argument(
        "--patient", action="store_true", help="with --report: show the patient's name, ID and birth date of the DICOM"
    )
    arguments.add_json_file(parser)


def _file_or_folder(text: str) -> Path:
    path = Path(text)
    if os.path.isdir(path) or text.endswith(("/", os.sep)) or not path.suffix:
        return path
    check_suffix(path, SEGMENTATION_SUFFIXES)
    return path


def _is_file(output: Path) -> bool:
    return stem_and_suffix(output)[1] in SEGMENTATION_SUFFIXES and not os.path.isdir(output)


# --- where results go ------------------------------------------------------------------------------------------------


def plan(args: argparse.Namespace, images: Sequence[Path], *, many: bool) -> list[Work]:
    """For each image the files to write.

    Raises:
        ConfigError, OutputError: flags contradict each other, or two images would have the same file.
    """
    arguments.check_company(args, ("--measurements-all", "--measurements"), ("--patient", "--report"))
    if many:
        _check_many(args)
        if args.output is not None and os.path.lexists(args.output) and not os.path.isdir(args.output):
            raise OutputError(f"{args.output} is not a folder.", "Give a folder for the results of several images.")
    stems = _stems(args, images, many)
    works = []
    for image, stem in zip(images, stems, strict=True):
        if args.output is not None and not many and _is_file(args.output):
            output, stem = args.output, args.output.with_name(stem_and_suffix(args.output)[0])
        else:
            suffix = f".{args.format}" if args.format else ".nii.gz" if stem.name.endswith("_dseg") else ".seg.nrrd"
            if suffix != ".seg.nrrd" and not stem.name.endswith("_dseg"):
                stem = stem.with_name(f"{stem.name}_seg")  # the image itself may have the name without it
            output = stem.with_name(stem.name + suffix)
        outputs = {"--output": output}
        for flag, ending in _ENDINGS.items():
            given = getattr(args, flag[2:].replace("-", "_"))
            if given is BESIDE:
                outputs[flag] = stem.with_name(stem.name + ending)
            elif given is not None and not many:
                outputs[flag] = given
        if args.json not in (None, STDOUT) and not many:
            outputs["--json"] = args.json
        works.append(Work(image, outputs))
    return works


def _check_many(args: argparse.Namespace) -> None:
    """Raises:
    ConfigError: a flag says something of one image alone.
    OutputError: a flag names one file for all.
    """
    if args.output is not None and _is_file(args.output):
        raise OutputError(
            f"--output names one file, {args.output}, and there are several images.", "Give a folder, such as results/."
        )
    for flag in ("--anchor", "--keypoints", "--prior", "--lock", "--levels-from"):
        if getattr(args, flag[2:].replace("-", "_")):
            raise ConfigError(f"{flag} is about one image, and there are several.", "Segment that image alone.")
    for flag in _ENDINGS:
        given = getattr(args, flag[2:].replace("-", "_"))
        if given not in (None, BESIDE) and flag != "--measurements":
            raise OutputError(
                f"{flag} names one file, {given}, and there are several images.", f"Use {flag} without a name."
            )


def _stems(args: argparse.Namespace, images: Sequence[Path], many: bool) -> list[Path]:
    """Where each result goes, without a suffix: beside its image; in a folder as the images lie in theirs, or as BIDS
    has it.

    Raises:
        OutputError: two images would have the same file.
    """
    from ..results.bids import derivative

    folder = None if args.output is None or (not many and _is_file(args.output)) else args.output
    stems: list[Path] = []
    root = _common([image if image.is_dir() else image.parent for image in map(Path, args.images)])
    for image in images:
        name = derivative(image) if folder is not None else None
        if folder is None:
            stem = real_path(image).parent / _stem(image) if image.is_dir() else image.with_name(_stem(image))
        elif name is not None:
            stem = folder / name
        else:
            inside = real_path(image.parent).relative_to(root) if root and many and real_path(image) != root else Path()
            stem = folder / inside / _stem(image)
        stems.append(stem)
    twice = {stem for stem in stems if stems.count(stem) > 1}  # a.nii.gz and a.nrrd
    told_apart = [stem.with_name(f"{stem.name}_{image.suffix[1:]}") for stem, image in zip(stems, images, strict=True)]
    stems = [other if stem in twice else stem for stem, other in zip(stems, told_apart, strict=True)]
    for stem in (stem for stem, count in Counter(stems).items() if count > 1):
        both = " and ".join(str(i) for i, s in zip(images, stems, strict=True) if s == stem)
        raise OutputError(f"{both} would have the same result file, {stem}.", "Segment them one after the other.")
    return stems


def _common(folders: Sequence[Path]) -> Path | None:
    """The folder that all of them are in; None where there is none (drives of Windows)."""
    try:
        return Path(os.path.commonpath([real_path(folder) for folder in folders]))
    except ValueError:
        return None


def _stem(image: Path) -> str:
    stem, suffix = stem_and_suffix(image)
    return stem if suffix in _KNOWN_SUFFIXES and not image.is_dir() else real_path(image).name


def check_work(work: Work, read: Mapping[str, Any], *, overwrite: bool) -> None:
    """Finds out before the work begins whether its files may be written.

    Args:
        read: flag → file that is read, or None.

    Raises:
        OutputError: a folder is protected, one file would be used twice, or one that is there is not ours.
    """
    arguments.check_result_files(work.outputs, {"IMAGE": work.image, **read}, overwrite=overwrite)
    if "--dicom-seg" in work.outputs:
        from ..results.dicom_seg import check_dicom_seg

        check_dicom_seg(work.image)


# --- writing ---------------------------------------------------------------------------------------------------------


def write_files(
    args: argparse.Namespace,
    work: Work,
    image: sitk.Image,
    result: Segmentation,
    summary: Mapping[str, Any],
    rows: Sequence[Row],
) -> list[str]:
    """Writes all files of one image or none, and returns their names."""
    from ..results import write_image
    from ..results.measurement import write_measurements

    outputs = work.outputs
    with atomic_write(*outputs.values()) as places:
        place = dict(zip(outputs, places, strict=True))
        written = [outputs["--output"].with_name(path.name) for path in result.write(place["--output"])]
        if "--preview" in place:
            from ..results.preview import render_preview

            render_preview(image, result, place["--preview"], title=work.image.name, rows=rows)
        if "--measurements" in place:
            write_measurements(rows, place["--measurements"], **arguments.table_shape(args))
        if "--report" in place:
            from ..results.report import write_report

            write_report(image, result, place["--report"], source=work.image, rows=rows, patient=args.patient)
        if "--dicom-seg" in place:
            from ..results.dicom_seg import write_dicom_seg

            write_dicom_seg(result, work.image, place["--dicom-seg"])
        if "--uncertainty" in place:
            assert result.uncertainty is not None  # two samples or more have one
            write_image(result.uncertainty, place["--uncertainty"])
        names = [str(path) for path in (*written, *(p for flag, p in outputs.items() if flag != "--output"))]
        if "--json" in place:
            write_json(place["--json"], {**summary, "written": names})
    return names
