"""Verdiff-Net's parts, and whether sampling makes the prior better, row by row.

    python Testing/Benchmarks/ablate_verdiff_net.py DATA OUTPUT [--steps N] [--rows NAME …] [--report FILE]

Killed, it goes on where it was. The published rows: the plain diffusion (`ddpm`), + MSFM, + NSA, both; then the same
with the prior, which is the whole method (`verdiff`). It is scored by samples of two steps, of five (as the plain ones
are), and by its prior alone, so that the differences say what the sampling adds.

All rows start from the same network, that of `verdiff`, which knows phantoms and seven slices that are never scored;
each takes what it has in common with it. Conditional and diffusion U-Net learn at the same time.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from ablation import Comparison, Row, Screening, run_and_report, screening_head, train_start, write_folds
from train_default import write_manifest

from SpineSegAILib.methods.catalog import make_config

SCREENING = {
    "prior_widths": (12, 24, 48, 96, 128),
    "prior_blocks": (1, 1, 1, 1, 1),
    "widths": (16, 32, 48, 64),
    "stage": "joint",
}
"""The preset `small`, narrower, for pixels of 2.5 mm."""
DIFFUSION = {"prior": False, "prior_blocks": (), "rank_weight": 0.0, "encoding": "bits", "around_prior": False}
VARIANTS = {
    "verdiff": {},
    "ddpm": {**DIFFUSION, "msfm": False, "nsa": False},
    "ddpm+msfm": {**DIFFUSION, "nsa": False},
    "ddpm+nsa": {**DIFFUSION, "msfm": False},
    "ddpm+both": DIFFUSION,
}
QUICK = {"samples": "3", "steps": "2"}
LONG = {"samples": "3", "steps": "5"}
START_STEPS, PHANTOMS = 600, 40
COMPARISONS = (
    Comparison("verdiff", "prior"),
    Comparison("verdiff-5-steps", "prior"),
    *(Comparison(name, "ddpm") for name in ("ddpm+msfm", "ddpm+nsa", "ddpm+both")),
    Comparison("verdiff-5-steps", "ddpm+both"),
)
DECIDING = ("surface_dice", "raw_dice", "dice", "matched_dice", "levels_right")


def rows() -> list[Row]:
    """The trained rows, then those that score `verdiff` otherwise."""
    made = {
        name: Row(
            name,
            make_config("verdiff-net", "small", **{**SCREENING, **changes}).model_dump(mode="json"),
            options=QUICK if name == "verdiff" else LONG,
        )
        for name, changes in VARIANTS.items()
    }
    whole = made["verdiff"]
    others = {"prior": {"preview": "on"}, "verdiff-5-steps": LONG}
    return [
        *made.values(),
        *(replace(whole, name=name, options=options, trained_as="verdiff") for name, options in others.items()),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Verdiff-Net's ablations.")
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=Screening.steps)
    parser.add_argument("--rows", nargs="*", help="only these")
    parser.add_argument("--report", type=Path, help="also write the tables as this file with .md and .json")
    arguments = parser.parse_args()
    screening = Screening(steps=arguments.steps)
    manifest = write_manifest(arguments.data, arguments.output / "data")
    folds = write_folds(manifest, arguments.output / "data", sources=("chu", "myo", "usp"))
    every = rows()
    start = train_start(every[0], manifest, ("mri2d",), arguments.output, screening, START_STEPS, PHANTOMS)
    screening = replace(screening, start_from=str(start))
    wanted = [r for r in every if not arguments.rows or r.name in arguments.rows]
    head = screening_head("ablate_verdiff_net.py DATA OUTPUT", arguments.steps)
    run_and_report(wanted, COMPARISONS, DECIDING, folds, arguments.output, screening, arguments.report, head=head)


if __name__ == "__main__":
    main()
