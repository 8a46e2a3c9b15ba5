"""``spinesegai evaluate``: a checkpoint scored on the labeled cases of a dataset."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..errors import CheckpointError, ConfigError
from ..files import checksum
from . import arguments
from .kept import Kept
from .terminal import print_json, print_line, print_written, progress_bar

if TYPE_CHECKING:
    from ..checkpoints import CheckpointInfo
    from ..datasets import Case
    from ..evaluation.dataset import Seen
    from ..evaluation.scores import CaseReport
    from ..evaluation.worst import WorstCases

HELP = "Score a checkpoint on labeled cases."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    arguments.add_datasets(parser)
    parser.add_argument("--split", required=True, metavar="NAME", help="training, validation or test")
    arguments.add_checkpoint(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=arguments.output_file(".json"),
        required=True,
        metavar="REPORT.json",
        help="write the report, with all results",
    )
    parser.add_argument(
        "--html",
        type=arguments.output_file(".html"),
        metavar="FILE",
        help="write a report with plots and the worst cases, in one file",
    )
    parser.add_argument(
        "--csv",
        type=arguments.output_file(".csv"),
        metavar="FILE",
        help="write a table with one row for each structure of each case",
    )
    parser.add_argument(
        "--embedding",
        type=arguments.output_file(".png"),
        metavar="PNG",
        help="write a picture of how well the network's features separate the structures (t-SNE)",
    )
    parser.add_argument(
        "--worst",
        type=arguments.whole_number(minimum=0),
        default=3,
        metavar="N",
        help="number of cases shown in --html; default 3",
    )
    parser.add_argument(
        "--variants",
        type=arguments.names,
        default=["full"],
        metavar="NAME,…",
        help="also score cropped and enlarged copies of the cases; “all” for all variants",
    )
    arguments.add_device(parser)
    arguments.add_options(parser)
    parser.add_argument(
        "--allow-label-leak",
        action="store_true",
        help="let the method read the reference labels; the report is marked accordingly",
    )
    arguments.add_json(parser)
    arguments.add_quiet(parser)


def run(args: argparse.Namespace) -> None:
    """Checks all that is asked for, scores, and writes the reports. What is scored is kept until they are written."""
    info, cases = _checked(args)
    model = checksum(info.path, CheckpointError)
    with Kept(args.output, model, args.option, args.allow_label_leak, args.device, __version__) as kept:
        report, worst = _evaluated(args, info, cases, kept)
        _write(args, report, worst)
    if args.json:
        print_json(report)
    elif not args.quiet:
        from ..evaluation import format_report

        print(format_report(report))
        print_written([args.output, args.csv, args.html, args.embedding])


def _checked(args: argparse.Namespace) -> tuple[CheckpointInfo, Sequence[Case]]:
    """The checkpoint and the cases, after all checks that need no network.

    Raises:
        SpineSegAIError: a file cannot be written, the checkpoint or the split does not exist, a package is missing …
    """
    from ..checkpoints import find_checkpoint
    from ..datasets import read_cases

    outputs = {"--output": args.output, "--csv": args.csv, "--html": args.html, "--embedding": args.embedding}
    arguments.check_outputs(outputs, arguments.numbered_datasets(args.dataset))
    if args.embedding and args.allow_label_leak:
        raise ConfigError("--embedding shows the features without the reference labels.", "Omit --allow-label-leak.")
    info = find_checkpoint(args.checkpoint)
    cases = read_cases(args.dataset, args.split)
    if args.embedding:
        from ..evaluation.embedding import require_scikit_learn

        require_scikit_learn()
    return info, cases


def _evaluated(
    args: argparse.Namespace, info: CheckpointInfo, cases: Sequence[Case], kept: Kept
) -> tuple[dict[str, Any], WorstCases]:
    """The report, and the worst cases for its page; the picture of the features is written on the way."""
    from ..evaluation import VARIANTS, evaluate_dataset
    from ..evaluation.embedding import collect_vectors, write_embedding
    from ..evaluation.worst import WorstCases
    from ..inference import Predictor

    variants = VARIANTS if args.variants == ["all"] else args.variants
    options = dict(args.option)
    if args.allow_label_leak:
        options["allow_label_leak"] = True
    worst = WorstCases(args.worst if args.html else 0, variants[0])
    for key in worst.among(kept):
        del kept[key]
    if kept and not args.quiet:
        print_line(f"{len(kept)} results of an unfinished evaluation are there already")

    def watch(seen: Seen) -> None:
        worst(seen)
        if not args.quiet:
            print_line(f"[{seen.number}/{seen.total}] {_in_words(seen.report)}")

    with progress_bar(args.quiet) as report:
        report(0.0, "loading the checkpoint")
        predictor = Predictor(info, device=args.device)
        vectors = None
        if args.embedding:  # first, since it may not be possible
            vectors = collect_vectors(
                predictor, cases, options=options, progress=lambda _, message: report(0.0, message)
            )
        found = evaluate_dataset(
            args.dataset,
            args.split,
            predictor,
            variants=variants,
            about={"checkpoint": info.name, "method": info.method, "device": str(predictor.device), "options": options},
            options=options,
            label_leak=args.allow_label_leak,
            trained_on=info.trained_on,
            watch=watch,
            kept=kept,
            progress=report,
        )
    if vectors is not None:
        title = f"{info.name}, {args.split} cases of {', '.join(Path(d).name for d in args.dataset)}"
        found["embedding"] = write_embedding(vectors, args.embedding, title=title)
    return found, worst


def _in_words(report: CaseReport) -> str:
    """A case in a line."""
    from ..evaluation.summary import mean

    name = report.case if report.variant == "full" else f"{report.case}, {report.variant}"
    if report.failure:
        return f"{name}: failed: {report.failure}"
    dice = mean([s.dice for s in report.structures])
    parts = [
        "nothing to score" if dice is None else f"Dice {dice:.3f}",
        {True: "all levels correct", False: "levels wrong"}.get(report.levels_right, ""),  # type: ignore[arg-type]
        f"{report.seconds:.1f} s",
    ]
    return f"{name}: {', '.join(part for part in parts if part)}"


def _write(args: argparse.Namespace, report: dict[str, Any], worst: WorstCases) -> None:
    from ..evaluation import write_csv, write_report
    from ..evaluation.page import write_page

    write_report(report, args.output)
    if args.csv:
        write_csv(report, args.csv)
    if args.html:
        write_page(report, args.html, worst.drawn())
