"""SCAR-Net's mechanisms and its mixed supervision, row by row.

    python Testing/Benchmarks/ablate_scar_net.py DATA OUTPUT [--steps N] [--rows NAME …] [--report FILE]

Killed, it goes on where it was. The published rows are the baseline (DGMSNet), + MCCA, + AT and both. Whether key
points without masks pay: two thirds of a fold's masks alone, against the same with key points of the other third.

All rows start from the same network, the baseline's, which knows phantoms and seven slices that are never scored. All
rows of a fold have the same steps and the same number of masks per step; the row with key points has two cases more in
each batch, of which the segmentation network sees nothing.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

from ablation import Comparison, Entries, Row, Screening, run_and_report, screening_head, train_start, write_folds
from train_default import write_manifest

from SpineSegAILib.anatomy import STRUCTURES
from SpineSegAILib.datasets.manifest import read_label, read_manifest
from SpineSegAILib.keypoints import centres_of
from SpineSegAILib.methods.catalog import make_config

SCREENING = {
    "stem": (12, 16),
    "stages": (24, 48, 96),
    "middle": 1,
    "exit": (128, 128, 160),
    "features": 48,
    "decoder": 48,
    "fine_channels": 24,
    "heatmap_mm": 10.0,
}
"""The preset `small`, narrower, for pixels of 2.5 mm."""
MASKS, POINTS = 4, 2
START_STEPS, PHANTOMS = 900, 40
COMPARISONS = (
    Comparison("mcca", "baseline"),
    Comparison("at", "baseline"),
    Comparison("both", "baseline"),
    Comparison("two-thirds-and-points", "two-thirds"),
)
DECIDING = ("raw_dice", "dice", "matched_dice", "levels_right", "keypoint_mm")


def rows(points: dict[str, dict[str, tuple[float, ...]]]) -> list[Row]:
    """The published ablation, and mixed supervision.

    Args:
        points: label file's name → structure name → centroid of its mask (LPS, mm).
    """
    variants = {
        "baseline": {"adaptive": "conv", "use_mcca": False},
        "mcca": {"adaptive": "conv"},
        "at": {"use_mcca": False},
        "both": {},
    }
    made = [
        Row(name, make_config("scar-net", "small", **SCREENING, **changes).model_dump(mode="json"))
        for name, changes in variants.items()
    ]
    mixed = {"data": {"weak_share": POINTS / (MASKS + POINTS)}, "optimization": {"batch": MASKS + POINTS}}
    both = made[-1].method
    made.append(Row("two-thirds", both, entries=partial(fewer_masks, points={})))
    made.append(Row("two-thirds-and-points", both, entries=partial(fewer_masks, points=points), **mixed))
    return made


def fewer_masks(entries: Entries, points: dict[str, dict[str, tuple[float, ...]]]) -> Entries:
    """Every third case loses its masks, and is left out or keeps the masks' centroids."""
    kept = []
    for number, entry in enumerate(entries):
        if number % 3:
            kept.append(entry)
        elif points:
            bare = {k: v for k, v in entry.items() if k not in ("label", "annotated")}
            kept.append({**bare, "keypoints": points[Path(entry["label"]).name]})
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description="SCAR-Net's ablations.")
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=Screening.steps)
    parser.add_argument("--rows", nargs="*", help="only these")
    parser.add_argument("--report", type=Path, help="also write the tables as this file with .md and .json")
    arguments = parser.parse_args()
    screening = Screening(steps=arguments.steps, batch=MASKS)
    manifest = write_manifest(arguments.data, arguments.output / "data")
    folds = write_folds(manifest, arguments.output / "data", sources=("chu", "myo", "usp"))
    points = {
        case.label.name: {STRUCTURES[i].name: p for i, p in centres_of(read_label(case)).items()}
        for case in read_manifest(manifest).cases("training")
        if case.label
    }
    every = rows(points)
    start = train_start(every[0], manifest, ("mri2d",), arguments.output, screening, START_STEPS, PHANTOMS)
    screening = replace(screening, start_from=str(start))
    wanted = [r for r in every if not arguments.rows or r.name in arguments.rows]
    head = screening_head("ablate_scar_net.py DATA OUTPUT", arguments.steps)
    run_and_report(wanted, COMPARISONS, DECIDING, folds, arguments.output, screening, arguments.report, head=head)


if __name__ == "__main__":
    main()
