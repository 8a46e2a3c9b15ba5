"""All methods on the same work: the table in `RESULTS.md`, which says which one to use.

    python Testing/Benchmarks/compare_all.py DATA OUTPUT --report Testing/Benchmarks/RESULTS.md
        [--steps N | --minutes M] [--start-steps N] [--batch N] [--patch ROWS COLUMNS] [--learning-rate RATE]
        [--seeds 35 36] [--rows NAME …] [--bank BANK.safetensors] [--clip bank:FILE]

Each is trained with the screening preset of `ablation.py` (coarse pixels, the same steps or minutes, batch and learning
rate for all) once per fold of the `training` split and scored on the cases left out. With `--start-steps` each learns
first, once for all folds, from phantoms and from the single slices, which are never scored. Killed, it goes on where it
was; rows can be done one by one, and whatever is done is in the table. Differences are from the default method.

Such short trainings say who learns fast from few cases, not who is best after a long one. Without `--bank`, ATM-Net
learns a vector per word instead of reading a language model; without `--clip`, LA-CAF's class vectors know no language.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ablation import (
    FOLDS,
    START_PHANTOMS,
    Comparison,
    Row,
    Screening,
    run_and_report,
    with_own_starts,
    write_folds,
)
from train_default import write_manifest

from SpineSegAILib import __version__
from SpineSegAILib.methods.catalog import DEFAULT_METHOD, METHODS, make_config

METHOD_IDS = (
    "resenc-unet", "atm-net", "scar-net", "la-caf", "verdiff-net", "dynunet", "unet", "attention-unet", "segresnet",
    "swin-unetr", "unetr", "deeplabv3", "fcn", "dgmsnet", "ddpm",
)  # fmt: skip
"""The default, the four systems, and what their papers compare with."""

SOURCES = ("chu", "myo", "usp")
"""Whose cases are left out and scored; the single slices of `mri2d` are always trained on."""

DECIDING = ("dice", "vertebra_dice", "disc_dice", "matched_dice", "levels_right")
VOLUME_PATCH = (8, 160, 96)
OTHERS = ("mri2d",)
"""Besides phantoms, what a start may have seen: never scored."""
ENDLESS = 1_000_000  # steps of a training that ends by the clock


def rows(
    screening: Screening,
    *,
    preset: str = "small",
    bank: Path | None = None,
    clip: str = "",
    minutes: float | None = None,
) -> list[Row]:
    """A row for every method.

    Args:
        screening: what all share; 2D networks of a fixed input take its patch.
        preset: of every method.
        bank: embedded prompts for ATM-Net; a vector per word if not given.
        clip: LA-CAF's text encoder; none if not given.
        minutes: time of each training, instead of the screening's steps.
    """
    own: dict[str, dict[str, Any]] = {
        "atm-net": {} if bank else {"text_encoder": "learned_table", "text_width": 32},
        "la-caf": {"text_encoder": clip or "hashed"},
        "unetr": {"window": screening.patch},
    }
    resources = {"atm-net": {"text_bank": str(bank)}} if bank else {}
    optimization = {"steps": ENDLESS, "hours": minutes / 60} if minutes else {}
    made = []
    for name in METHOD_IDS:
        config = make_config(name, preset, **own.get(name, {}))
        data = {"patch": VOLUME_PATCH[:1] + screening.patch} if config.dims == 3 else {}
        method = config.model_dump(mode="json")
        made.append(Row(name, method, data=data, optimization=optimization, resources=resources.get(name, {})))
    return made


def head(
    command: Sequence[str], screening: Screening, seeds: Sequence[int], minutes: float | None, start_steps: int
) -> str:
    """What stands above the tables."""
    budget = f"{minutes:g} minutes per training" if minutes else f"{screening.steps} steps per training"
    if start_steps:
        budget += (
            f", after {start_steps} steps, once for all folds and seeds, on {START_PHANTOMS} phantoms and the single "
            "slices that are never scored"
        )
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    scored = f"{screening.slices} slices in the middle" if screening.slices else "whole volumes"
    return (
        f"# All methods on the same work\n\n```sh\n{shlex.join(command)}\n```\n\n"
        f"{FOLDS} folds of the `training` split, by patient; every case is scored once per seed by a network that has "
        f"not seen it. {budget[:1].upper()}{budget[1:]}; batch {screening.batch}, windows of "
        f"{' × '.join(map(str, screening.patch))}, learning rate "
        f"{screening.learning_rate:g}, pixels of {screening.pixel_mm:g} mm, preset `small`, seeds "
        f"{', '.join(map(str, seeds))}; {scored} of each case. Dice is level-strict but for “any level”. Intervals: "
        f"bootstrap over cases; they do not say what another seed would do. Differences are from {DEFAULT_METHOD}, "
        f"{METHODS[DEFAULT_METHOD].title}.\n\n{machine}; SpineSegAI {__version__}. Short trainings say who learns fast "
        "from few cases, not who is best after a long one.\n\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="All methods on the same work.")
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=int, default=Screening.steps)
    budget.add_argument("--minutes", type=float, help="of each training, instead of steps")
    parser.add_argument(
        "--start-steps", type=int, default=0, help="of each method, on phantoms and single slices first"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[Screening.seed])
    parser.add_argument("--rows", nargs="*", choices=METHOD_IDS, help="only these")
    parser.add_argument("--bank", type=Path, help="ATM-Net's embedded prompts, of “spinesegai text-bank”")
    parser.add_argument("--clip", default="", help="LA-CAF's text encoder: bank:FILE, open_clip:MODEL:WEIGHTS …")
    parser.add_argument("--batch", type=int, default=Screening.batch)
    parser.add_argument("--patch", type=int, nargs=2, default=Screening.patch, metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--learning-rate", type=float, default=Screening.learning_rate)
    parser.add_argument("--sources", nargs="+", default=SOURCES, help="whose cases are scored")
    parser.add_argument("--whole", action="store_true", help="score whole volumes instead of the slices in the middle")
    parser.add_argument("--report", type=Path, help="write the tables as this file with .md and .json")
    arguments = parser.parse_args()
    screening = Screening(
        steps=arguments.steps,
        batch=arguments.batch,
        patch=tuple(arguments.patch),
        learning_rate=arguments.learning_rate,
        slices=None if arguments.whole else Screening.slices,
    )
    manifest = write_manifest(arguments.data, arguments.output / "data")
    folds = write_folds(manifest, arguments.output / "data", sources=arguments.sources)
    every = rows(screening, bank=arguments.bank, clip=arguments.clip, minutes=arguments.minutes)
    wanted = [r for r in every if not arguments.rows or r.name in arguments.rows]
    if arguments.start_steps:
        wanted = with_own_starts(wanted, manifest, OTHERS, arguments.output, screening, arguments.start_steps)
    comparisons = [Comparison(r.name, DEFAULT_METHOD) for r in every if r.name != DEFAULT_METHOD]
    command = ["python", "Testing/Benchmarks/compare_all.py", *sys.argv[1:]]
    text = head(command, screening, arguments.seeds, arguments.minutes, arguments.start_steps)
    run_and_report(
        wanted, comparisons, DECIDING, folds, arguments.output, screening, arguments.report,
        seeds=arguments.seeds, head=text,
    )  # fmt: skip


if __name__ == "__main__":
    main()
