"""Trains the shipped checkpoint of SCAR-Net, `lumbar-mr-scar-net`.

    python Testing/Benchmarks/train_scar_net.py DATA OUTPUT

Killed, it goes on where it was when it is started again. DATA as for `train_default.py`, and the same two stages: all
sources and many phantoms, then mostly the volumes that are drawn slice by slice.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from train_default import PIXEL_MM, write_manifest

from SpineSegAILib.imaging import Preprocessing
from SpineSegAILib.methods.catalog import make_config
from SpineSegAILib.training.config import DataConfig, OptimizationConfig, TrainingConfig
from SpineSegAILib.training.run import RunDirectory
from SpineSegAILib.training.trainer import TrainingRequest, run_training

SCHEDULE_HOURS, FIRST_STAGE_HOURS, SECOND_STAGE_HOURS = 0.75, 0.55, 0.27
METHOD = make_config("scar-net", "small").model_dump(mode="json")
DRAWN_SLICE_BY_SLICE = {"chu": 3.0, "myo": 4.0, "usp": 3.0, "mri2d": 1.0}


def first_stage(dataset: Path, output: Path) -> Path:
    """What things are, and where they are. Ends while the rate is still a fifth."""
    config = TrainingConfig(
        name="Lumbar MR (SCAR-Net), first stage",
        method=METHOD,
        dataset=str(dataset),
        preprocessing=Preprocessing(pixel_mm=PIXEL_MM),
        data=DataConfig(phantoms=120, phantom_share=0.3),
        optimization=OptimizationConfig(
            steps=20000, hours=SCHEDULE_HOURS, learning_rate=2e-3, validate_every=750, save_every=150, workers=0
        ),
    )
    run = RunDirectory(output / "run")

    def stop_in_time(event: dict[str, Any]) -> None:
        print(event, flush=True)
        if event.get("elapsed", 0) >= FIRST_STAGE_HOURS * 3600 and not run.stop_requested:
            run.request_stop()

    resume = run.config_file.exists()
    run_training(TrainingRequest(config, run.folder, resume, cache=output / "cache", report=stop_in_time))
    return run.last


def second_stage(dataset: Path, output: Path, start: Path) -> Path:
    """Where edges lie."""
    config = TrainingConfig(
        name="Lumbar MR (SCAR-Net)",
        method=METHOD,
        dataset=str(dataset),
        preprocessing=Preprocessing(pixel_mm=PIXEL_MM),
        data=DataConfig(phantoms=120, phantom_share=0.15, source_weights=DRAWN_SLICE_BY_SLICE, labelled_share=0.65),
        optimization=OptimizationConfig(
            steps=20000,
            hours=SECOND_STAGE_HOURS,
            learning_rate=6e-4,
            warmup=50,
            validate_every=300,
            save_every=150,
            workers=0,
        ),
        start_from=str(start),
        seed=36,
    )
    run = RunDirectory(output / "run2")
    resume = run.config_file.exists()
    run_training(
        TrainingRequest(config, run.folder, resume, cache=output / "cache", report=lambda e: print(e, flush=True))
    )
    return run.best


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the shipped checkpoint of SCAR-Net.")
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    dataset = write_manifest(arguments.data, arguments.output / "data")
    start = arguments.output / "run/last.safetensors"
    if not (arguments.output / "run2").exists():
        start = first_stage(dataset, arguments.output)
    print(f"wrote {second_stage(dataset, arguments.output, start)}")


if __name__ == "__main__":
    main()
