"""``spinesegai import-scenes``: annotated Slicer scenes as cases of a training set."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import arguments
from .terminal import print_json, print_note, print_table, print_written, progress_bar

HELP = "Make a training set from annotated Slicer scenes."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("scenes", nargs="+", type=Path, metavar="SCENE", help=".mrb, .mrml, or a folder of them")
    parser.add_argument(
        "--list", action="store_true", help="show which structure each segment is mapped to; write nothing"
    )
    parser.add_argument(
        "--mapping", metavar="JSON", help='file of names and their structures: {"my tumor": "custom:tumor"}'
    )
    parser.add_argument(
        "--split",
        type=arguments.choice("training", "validation", "test"),
        metavar="training|validation|test",
        help="part of the training set for all scenes; default: random split by patient",
    )
    parser.add_argument("--patient", metavar="NAME", help="patient ID for all scenes; default: from the scene")
    parser.add_argument(
        "--ignore-unknown", action="store_true", help="omit segments whose structure cannot be identified"
    )
    parser.add_argument("--skip-problems", action="store_true", help="omit scenes and volumes that cannot be read")
    parser.add_argument(
        "--unlabelled", action="store_true", help="keep volumes without a segmentation, to annotate next"
    )
    arguments.add_json(parser)
    arguments.add_training_set(parser)


def run(args: argparse.Namespace) -> None:
    """Adds the scenes to the training set, or lists what would be added."""
    from ..datasets.scene_files import find_scenes
    from ..datasets.scene_summary import SceneSummary
    from ..datasets.slicer_scene import read_scene
    from ..datasets.training_set import TrainingSet
    from ..results.segment_names import parse_table, read_table

    target = TrainingSet(args.output)
    said = parse_table([*(read_table(args.mapping) if args.mapping else ()), *args.map])
    table = {**parse_table(target.names.items()), **said}
    scenes = find_scenes(args.scenes)
    reports = (read_scene(path, root=root, table=table, customs=target.customs) for path, root in scenes)
    with progress_bar(args.quiet, args.progress_lines) as report:
        if args.list:
            summary = SceneSummary()
            for number, found in enumerate(reports):
                report(number / len(scenes), found.path.name)
                summary.take(found)
        else:
            summary = target.add_scenes(
                reports,
                count=len(scenes),
                split=args.split,
                validation_share=args.validation,
                extent=args.extent,
                patient=args.patient,
                names=said,
                ignore_unknown=args.ignore_unknown,
                skip_problems=args.skip_problems,
                unlabelled=args.unlabelled,
                progress=report,
            )
    if args.json:
        print_json({**summary.document(), "dataset": None if args.list else str(target.path)})
        return
    for sentence in (*summary.problems, *summary.notes, *(note for case in summary.cases for note in case["notes"])):
        print_note(sentence)
    if not args.quiet:
        print_table([("segment", "mapped to", "based on", "cases"), *summary.segment_rows()])
        if not args.list:
            print_written([target.path])
