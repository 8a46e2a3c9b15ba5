"""Trains SCAR-Net or one of its ablations, with all masks or with key points in place of a third of them.

    python Testing/Benchmarks/train_scar_net.py DATA OUTPUT [--hours 1.4] [--resume]
        [--method dgmsnet] [--adaptive conv] [--no-mcca] [--third {0,1,2} {--keypoints-only,--left-out}]

DATA as for `train_default.py`. The published rows are ``--adaptive conv --no-mcca`` (the baseline), ``--adaptive conv``
(+MCCA), ``--no-mcca`` (+AT) and neither (both). Whether mixed supervision pays is the difference, in the same third,
between ``--keypoints-only``, which replaces its masks by their centroids, and ``--left-out``. A step sees two cases
with masks and two with key points, so as many steps are as many passes over the masks.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from train_default import write_manifest

from SpineSegAILib.anatomy import STRUCTURES
from SpineSegAILib.datasets.manifest import read_label, read_manifest
from SpineSegAILib.imaging import Preprocessing
from SpineSegAILib.keypoints import centres_of
from SpineSegAILib.methods.catalog import make_config
from SpineSegAILib.training.config import DataConfig, OptimizationConfig, TrainingConfig
from SpineSegAILib.training.trainer import TrainingRequest, run_training


def without_masks(manifest: Path, third: int, keep_points: bool) -> Path:
    """A manifest beside this one in which every third training case has key points only, or is left out."""
    table = json.loads(manifest.read_text())
    kept = []
    for number, (entry, case) in enumerate(
        zip(table["training"], read_manifest(manifest).cases("training"), strict=True)
    ):
        if number % 3 != third:
            kept.append(entry)
        elif keep_points:
            points = {STRUCTURES[i].name: p for i, p in centres_of(read_label(case)).items()}
            kept.append({k: v for k, v in entry.items() if k not in ("label", "annotated")} | {"keypoints": points})
    path = manifest.with_name(f"dataset-{'keypoints' if keep_points else 'without'}-{third}.json")
    path.write_text(json.dumps({**table, "training": kept}, indent=1))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Train SCAR-Net.")
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--method", choices=("scar-net", "dgmsnet"), default="scar-net")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--adaptive", choices=("transformer", "conv"))
    parser.add_argument("--no-mcca", action="store_true")
    parser.add_argument("--third", type=int, choices=(0, 1, 2))
    masks = parser.add_mutually_exclusive_group()
    masks.add_argument("--keypoints-only", action="store_true", help="of the third")
    masks.add_argument("--left-out", action="store_true", help="the third")
    parser.add_argument("--phantoms", type=int, default=120)
    parser.add_argument("--hours", type=float, default=1.4)
    parser.add_argument("--steps", type=int, default=20000, help="upper bound; the hours decide")
    parser.add_argument("--seed", type=int, default=35)
    parser.add_argument("--start-from", help="checkpoint whose weights are taken where they fit")
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    if (arguments.third is None) == (arguments.keypoints_only or arguments.left_out):
        parser.error("--third goes with --keypoints-only or --left-out")
    manifest = write_manifest(arguments.data, arguments.output / "data")
    if arguments.third is not None:
        manifest = without_masks(manifest, arguments.third, arguments.keypoints_only)
    changes = {"adaptive": arguments.adaptive} if arguments.adaptive else {}
    if arguments.no_mcca:
        changes["use_mcca"] = False
    config = TrainingConfig(
        name="Lumbar MR (SCAR-Net)" if arguments.method == "scar-net" else "Lumbar MR (DGMSNet)",
        method=make_config(arguments.method, arguments.preset, **changes).model_dump(mode="json"),
        dataset=str(manifest),
        preprocessing=Preprocessing(pixel_mm=1.25),
        data=DataConfig(phantoms=arguments.phantoms, phantom_share=0.3),
        optimization=OptimizationConfig(
            steps=arguments.steps, hours=arguments.hours, batch=8, validate_every=750, save_every=150, workers=0
        ),
        seed=arguments.seed,
        start_from=arguments.start_from,
    )
    run_training(TrainingRequest(config, arguments.output / "run", resume=arguments.resume, report=print))


if __name__ == "__main__":
    main()
