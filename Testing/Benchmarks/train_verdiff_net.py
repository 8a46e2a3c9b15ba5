"""Trains the shipped checkpoint of Verdiff-Net, `lumbar-mr-verdiff-net`.

    python Testing/Benchmarks/train_verdiff_net.py DATA OUTPUT

Killed, it goes on where it was when it is started again. DATA as for `train_default.py`; what nobody drew is learnt as
the default checkpoint sees it (`complete.py`), and the conditional U-Net starts from that checkpoint's weights, as far
as they fit: its deepest level is not taken over, and class output instead of kinds has to be learnt. Then the diffusion
U-Net learns with the conditional U-Net frozen. The last weights are the result: nothing is chosen.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from complete import TEACHER, complete
from runs import train_or_resume
from train_default import write_manifest

from SpineSegAILib.imaging import Preprocessing
from SpineSegAILib.methods.catalog import make_config
from SpineSegAILib.training.config import AugmentationConfig, DataConfig, OptimizationConfig, TrainingConfig
from SpineSegAILib.training.run import RunDirectory

PIXEL_MM = 1.5
DATA = DataConfig(
    patch=(160, 128),
    phantoms=120,
    phantom_share=0.15,
    source_weights={"chu": 3.0, "myo": 4.0, "usp": 3.0, "mri2d": 1.0},
    labelled_share=0.65,
    augmentation=AugmentationConfig(crop_probability=0.5, elastic_probability=0.2),
)


@dataclass(frozen=True)
class Stage:
    """One run, which starts from the weights of the one before."""

    name: str
    steps: int
    rate: float
    seed: int
    ema: float
    batch: int


STAGES = (Stage("prior", 500, 1e-3, 35, 0.99, 8), Stage("denoise", 600, 1e-3, 35, 0.99, 4))


def train(stage: Stage, dataset: Path, output: Path, start: str | Path) -> RunDirectory:
    """Run a stage, or what is left of it."""
    config = TrainingConfig(
        name="Lumbar MR (Verdiff-Net)" + (", prior alone" if stage.name == "prior" else ""),
        method=make_config("verdiff-net", "small", stage=stage.name).model_dump(mode="json"),
        dataset=str(dataset),
        preprocessing=Preprocessing(pixel_mm=PIXEL_MM),
        data=DATA,
        optimization=OptimizationConfig(
            steps=stage.steps,
            learning_rate=stage.rate,
            warmup=50,
            batch=stage.batch,
            ema=stage.ema,
            validate_every=20000,
            save_every=100,
            workers=0,
        ),
        start_from=str(start),
        seed=stage.seed,
    )
    return train_or_resume(config, output / stage.name, output / "cache")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the shipped checkpoint of Verdiff-Net.")
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    dataset = complete(write_manifest(arguments.data, arguments.output / "data"), arguments.output / "completed")
    start: str | Path = TEACHER
    for stage in STAGES:
        start = train(stage, dataset, arguments.output, start).last
    print(f"wrote {start}")


if __name__ == "__main__":
    main()
