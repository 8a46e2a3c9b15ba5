"""Turns a trained checkpoint into a shipped one: evaluates it, writes its model card, puts the figures into its header.

    python Testing/Benchmarks/publish.py CHECKPOINT DATASET.json --name NAME --recipe "COMMAND"
        [--options OPTION=VALUE, …] [--row "TITLE: OPTION=VALUE, …"] … [--append FILE.md] …

The hand-written part of the card (the data, their terms, what to know) is in `cards/NAME.md` beside this file.
Everything else is measured here. Each `--row` evaluates the same weights once more with run-time options of the method,
so that a mechanism can be seen to work: it is switched off, and the figures say what it was worth. `--options` are
those of all evaluations, where the defaults would take too long. `--append` adds what another script measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from SpineSegAILib.checkpoints import CheckpointInfo, load_tensors, read_header, save_checkpoint
from SpineSegAILib.datasets.manifest import read_manifest
from SpineSegAILib.evaluation import VARIANTS, evaluate_dataset, format_report
from SpineSegAILib.evaluation.on_grid import load_validation, structures_found
from SpineSegAILib.inference import Predictor
from SpineSegAILib.inference.calibration import Calibration
from SpineSegAILib.inference.sliding_window import volume_evidence
from SpineSegAILib.methods.catalog import method_info
from SpineSegAILib.resources import resources_folder

LEAST_GAIN = 3e-4
"""Mean Dice below which the calibration is not refined any further."""
LICENCE = "Weights: research use; they inherit the terms of the training data, see the model card. Not Apache-2.0."


@dataclass(frozen=True)
class Row:
    """The same weights with run-time options: what a part of the method is worth."""

    title: str
    options: dict[str, str]

    @classmethod
    def parse(cls, text: str) -> Row:
        """From ``TITLE: OPTION=VALUE, OPTION=VALUE``."""
        title, _, options = text.rpartition(":")
        if not title:
            raise argparse.ArgumentTypeError(f"“{text}” is not “TITLE: OPTION=VALUE, …”")
        return cls(title.strip(), parse_options(options))

    @property
    def flags(self) -> str:
        """As `spinesegai evaluate` takes them."""
        return " ".join(f"--option {name}={value}" for name, value in self.options.items())


def parse_options(text: str) -> dict[str, str]:
    """From ``OPTION=VALUE, OPTION=VALUE``."""
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name.strip() and sign for name, sign, _ in pairs):
        raise argparse.ArgumentTypeError(f"“{text}” is not “OPTION=VALUE, …”")
    return {name.strip(): value.strip() for name, _, value in pairs}


def mechanisms(
    dataset: Path, split: str, predictor: Predictor, rows: Sequence[Row], whole: dict[str, Any]
) -> list[dict[str, Any]]:
    """Summaries of the split for each row, the first of them as shipped.

    Args:
        whole: the summary without options.
    """
    found = [{"title": "as shipped", "flags": "", "summary": whole}]
    for row in rows:
        report = evaluate_dataset(dataset, split, predictor, options=row.options)
        found.append({"title": row.title, "flags": row.flags, "summary": report["variants"]["full"]})
        print(f"{row.title}: {figures(report['variants']['full'])}", flush=True)
    return found


def figures(summary: dict[str, Any]) -> dict[str, Any]:
    """The groups' main figures."""
    keys = ("scored", "dice", "hd95_mm", "asd_mm", "levels_right", "levels")
    return {name: {key: row[key] for key in keys} for name, row in summary["groups"].items()}


def card(
    info: CheckpointInfo,
    report: dict[str, Any],
    notes: str,
    recipe: str,
    rows: Sequence[dict[str, Any]] = (),
    more: Sequence[str] = (),
) -> str:
    """The model card as Markdown."""
    method = method_info(info.method)
    training = info.metadata["training"]
    unvalidated = ", ".join(info.metadata["unvalidated"]) or "none"
    lines = [
        f"# {info.title}",
        "",
        f"`{info.name}`: {method.title} ({method.citation}), label scheme `{info.scheme.name}`, vertebral extent "
        f"`{info.scheme.extent.value if info.scheme.extent else 'none'}`, {info.size_bytes / 1e6:.1f} MB.",
        "",
        "For research use; not a medical device. Numbering assumes five lumbar vertebrae unless L6 or T13 is seen.",
        "",
        notes.strip(),
        "",
        "## Recipe",
        "",
        "```sh",
        recipe,
        "```",
        "",
        f"{len(training['cases'])} cases and {training['phantoms']} phantoms, {training['steps']} steps in "
        f"{training['hours']:.2f} hours, seed {training['seed']}; the whole configuration is in the file's header.",
        "",
        f"Calibration, chosen on the same split: {_calibration(info)}.",
        "",
        f"Learnt from phantoms alone, off by default and called “(unvalidated)”: {unvalidated}.",
        "",
        "## Figures",
        "",
        f"On the `{report['split']}` split, which chose the checkpoint and was not trained on. Dice, HD95 and ASD are "
        "level-strict: a vertebra with the wrong name scores 0. `n` is the number of annotated structures.",
        "",
        "```sh",
        report["command"],
        "```",
    ]
    for variant, summary in report["variants"].items():
        lines += ["", f"### {variant}", "", *_table(summary)]
    if len(rows) > 1:
        lines += ["", "## What its parts are worth", "", *_mechanism_table(rows)]
    for text in more:
        lines += ["", text.strip()]
    return "\n".join(lines) + "\n"


def _table(summary: dict[str, Any]) -> list[str]:
    lines = [
        "| | n | Dice | HD95 mm | ASD mm | Dice, any level | levels right | cases right |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = [(f"**{name}**", row) for name, row in summary["groups"].items()]
    for source, groups in summary["sources"].items():
        rows += [(f"{source}: {name}", row) for name, row in groups.items()]
    rows += list(summary["structures"].items())
    for name, row in rows:
        numbers = [_number(row[key], digits) for key, digits in (("dice", 3), ("hd95_mm", 2), ("asd_mm", 2))]
        lines.append(
            f"| {name} | {row['scored']} | {' | '.join(numbers)} | {_number(row['matched_dice'], 3)} "
            f"| {row['levels_right']}/{row['levels']} | {row['cases_right']}/{row['cases']} |"
        )
    outside = {n: v for n, v in summary["false_positive_ml"].items() if v["unscored_cases"]}
    if outside:
        listed = ", ".join(f"{n} {v['unscored_mean_ml_per_case']:.1f} mL" for n, v in outside.items())
        lines += ["", f"Predicted where nothing is annotated, so not scored (mean per case): {listed}."]
    wrong = [c["case"] for c in summary["cases"] if c["levels_right"] is False]
    lines += ["", f"Cases with a wrong level: {', '.join(wrong) or 'none'}."]
    undefined = sum(row["undefined_distances"] for row in summary["groups"].values())
    lines.append(f"Structures missed, left out of HD95 and ASD: {undefined}.")
    return lines


def _mechanism_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    groups = list(rows[0]["summary"]["groups"])
    columns = [f"{g}: {what}" for g in groups for what in ("Dice", "any level", "levels right")]
    lines = [
        "The same weights on the same split, one part at a time switched off by run-time options.",
        "",
        f"| | {' | '.join(columns)} | options |",
        f"|---|{'---|' * len(columns)}---|",
    ]
    for row in rows:
        cells = []
        for group in groups:
            found = row["summary"]["groups"][group]
            cells += [_number(found["dice"], 3), _number(found["matched_dice"], 3)]
            cells.append(f"{found['levels_right']}/{found['levels']}")
        lines.append(f"| {row['title']} | {' | '.join(cells)} | `{row['flags']}` |".replace("``", "–"))
    return lines


def _calibration(info: CheckpointInfo) -> str:
    calibration = Calibration.model_validate(info.metadata.get("calibration", {}))
    offsets = ", ".join(f"{kind} {value:g}" for kind, value in calibration.offsets.items() if value)
    return f"log-odds taken from {offsets or 'nothing'}; weight of neighbouring slices {calibration.neighbour:g}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def calibrate(predictor: Predictor, dataset: Path, split: str, options: Mapping[str, str]) -> Calibration:
    """The calibration with the best mean level-strict Dice of all annotated structures, on the network's own grid."""
    cases = load_validation(read_manifest(dataset).cases(split), predictor.preprocessing)
    found = [
        volume_evidence(predictor.method, case.volume, predictor.device, patch=predictor.patch, options=options)
        for case in cases
    ]

    def score(calibration: Calibration) -> float:
        dice = []
        for case, evidence in zip(cases, found, strict=True):
            labels = structures_found(calibration.apply(evidence))
            for sid in case.annotated:
                reference, mine = case.label == sid, labels == sid
                if reference.any():
                    dice.append(2 * int((reference & mine).sum()) / (int(reference.sum()) + int(mine.sum())))
        return sum(dice) / len(dice)

    best, best_score = Calibration(), score(Calibration())
    tried = set()

    def better(neighbour: float, vertebra: float, disc: float) -> bool:
        nonlocal best, best_score
        place = (round(neighbour, 2), round(vertebra, 2), round(disc, 2))
        if place in tried or neighbour > 1:
            return False
        tried.add(place)
        offsets = {"vertebra": vertebra, "sacrum": vertebra, "disc": disc}
        candidate = Calibration(offsets=offsets, neighbour=neighbour)
        reached = score(candidate)
        print(f"{neighbour:.2f} {vertebra:.2f} {disc:.2f}: {reached:.4f}", flush=True)
        if reached <= best_score + LEAST_GAIN:
            return False
        best, best_score = candidate, reached
        return True

    for coarse in product((0.15, 0.3), (0.5, 1.5, 2.5), (1.0, 2.0)):
        better(*coarse)
    moved = True
    while moved:  # then around the best, one after the other
        moved = False
        for step in ((0.0, 0.25, 0.0), (0.05, 0.0, 0.0), (0.0, 0.0, 0.5)):
            middle = (best.neighbour, best.offsets.get("vertebra", 0.0), best.offsets.get("disc", 0.0))
            for sign in (-1, 1):
                moved |= better(*(max(0.0, m + sign * s) for m, s in zip(middle, step, strict=True)))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate a checkpoint and put it among those that ship.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--calibrate", action="store_true", help="choose the calibration on this split first")
    parser.add_argument("--recipe", required=True, help="the command that trained it")
    parser.add_argument("--options", type=parse_options, default={}, metavar="OPTION=VALUE, …", help="of everything")
    parser.add_argument("--row", type=Row.parse, action="append", default=[], metavar="TITLE: OPTION=VALUE, …")
    parser.add_argument("--append", type=Path, action="append", default=[], metavar="FILE.md")
    parser.add_argument(
        "--shown-dataset", default="DATA/lumbar_mr/dataset.json", help="how the card names the data set"
    )
    arguments = parser.parse_args()

    info = read_header(arguments.checkpoint)
    if arguments.calibrate:
        calibration = calibrate(Predictor(info), arguments.dataset, arguments.split, arguments.options)
        info = replace(info, metadata={**info.metadata, "calibration": calibration.model_dump()})
    predictor = Predictor(info)
    report = evaluate_dataset(
        arguments.dataset,
        arguments.split,
        predictor,
        variants=VARIANTS,
        options=arguments.options,
        progress=lambda f, m: print(f"{f:.0%} {m}"),
    )
    print(format_report(report))
    report["command"] = (
        f"spinesegai evaluate {arguments.shown_dataset} --split {arguments.split} --checkpoint {arguments.name} "
        "--variants all --output report.json"
    )
    everywhere = Row("", arguments.options)
    if arguments.options:
        report["command"] += f" {everywhere.flags}"
    asked = [replace(row, options={**arguments.options, **row.options}) for row in arguments.row]
    rows = mechanisms(arguments.dataset, arguments.split, predictor, asked, report["variants"]["full"])
    validation = {variant: figures(summary) for variant, summary in report["variants"].items()}
    metadata = {**info.metadata, "validation": validation, "licence": LICENCE}
    metadata["validation_command"] = report["command"]
    if arguments.row:
        metadata["mechanisms"] = {row["title"]: figures(row["summary"]) for row in rows}
    target = resources_folder() / "Checkpoints" / f"{arguments.name}.safetensors"
    target.parent.mkdir(exist_ok=True)
    save_checkpoint(target, load_tensors(info), metadata)
    shipped = read_header(target)
    notes = (Path(__file__).parent / "cards" / f"{arguments.name}.md").read_text(encoding="utf-8")
    more = [path.read_text(encoding="utf-8") for path in arguments.append]
    text = card(shipped, report, notes, arguments.recipe, rows, more)
    target.with_suffix(".md").write_text(text, encoding="utf-8")
    print(json.dumps(validation, indent=1))
    print(f"wrote {target} and {target.with_suffix('.md').name}")


if __name__ == "__main__":
    main()
