"""Trains the shipped checkpoint of LA-CAF, `lumbar-mr-la-caf`.

    spinesegai text-bank --method la-caf --encoder ENCODER --output NAME.safetensors
    python Testing/Benchmarks/train_la_caf.py DATA OUTPUT --bank NAME.safetensors

Killed, it goes on where it was when it is started again. ENCODER as for `train_atm_net.py`; a checkpoint says what the
bank's file is called. DATA as for `train_default.py`; what nobody drew is learnt as the default checkpoint sees it
(`complete.py`), and the backbone starts from that checkpoint's weights, as far as they fit. First in small windows,
then in such as show a spine from the sacrum up: the levels are counted from there, and last with more weight on
what is rare. The last weights are the result: nothing is chosen.
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
    phantoms=120,
    phantom_share=0.15,
    source_weights={"chu": 3.0, "myo": 4.0, "usp": 3.0, "mri2d": 1.0},
    labelled_share=0.75,
    augmentation=AugmentationConfig(crop_probability=0.5, elastic_probability=0.2),
)


@dataclass(frozen=True)
class Stage:
    """One run, which starts from the weights of the one before."""

    name: str
    patch: tuple[int, int, int]
    steps: int
    rate: float
    seed: int
    positive_weight: float


STAGES = (
    Stage("small", (4, 160, 96), 500, 1e-3, 35, 1.0),
    Stage("tall", (2, 224, 128), 800, 1.5e-3, 36, 1.0),
    Stage("rare", (2, 224, 128), 600, 1e-3, 37, 10.0),
)


def train(stage: Stage, dataset: Path, output: Path, bank: Path, start: str | Path) -> RunDirectory:
    """Run a stage, or what is left of it."""
    changes = {"text_encoder": f"bank:{bank}", "positive_weight": stage.positive_weight}
    config = TrainingConfig(
        name="Lumbar MR (LA-CAF)",
        method=make_config("la-caf", "slices", **changes).model_dump(mode="json"),
        dataset=str(dataset),
        preprocessing=Preprocessing(pixel_mm=PIXEL_MM),
        data=DATA.model_copy(update={"patch": stage.patch}),
        optimization=OptimizationConfig(
            steps=stage.steps,
            learning_rate=stage.rate,
            weight_decay=1e-5,
            warmup=50,
            batch=2,
            ema=0.99,
            validate_every=20000,
            save_every=100,
            workers=0,
        ),
        start_from=str(start),
        seed=stage.seed,
    )
    return train_or_resume(config, output / stage.name, output / "cache")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the shipped checkpoint of LA-CAF.")
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--bank", type=Path, required=True, help="embedded prompts, of “spinesegai text-bank”")
    arguments = parser.parse_args()
    dataset = complete(write_manifest(arguments.data, arguments.output / "data"), arguments.output / "completed")
    start: str | Path = TEACHER
    for stage in STAGES:
        start = train(stage, dataset, arguments.output, arguments.bank, start).last
    print(f"wrote {start}")


if __name__ == "__main__":
    main()
