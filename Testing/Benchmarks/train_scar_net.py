"""Trains the shipped checkpoint of SCAR-Net, `lumbar-mr-scar-net`.

    python Testing/Benchmarks/train_scar_net.py DATA OUTPUT

Killed, it goes on where it was when it is started again. DATA as for `train_default.py`. The
heatmaps' weight grows once the segmentation network knows what things are; the later stages see mostly the volumes that
are drawn slice by slice, and the last two larger windows. The last stage also learns what nobody drew, as the default
checkpoint sees it (`complete.py`). The last weights are the result: nothing is chosen.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from complete import complete
from train_default import PIXEL_MM, write_manifest

from SpineSegAILib.imaging import Preprocessing
from SpineSegAILib.methods.catalog import make_config
from SpineSegAILib.training.config import AugmentationConfig, DataConfig, OptimizationConfig, TrainingConfig
from SpineSegAILib.training.run import RunDirectory
from SpineSegAILib.training.trainer import TrainingRequest, run_training

METHOD = make_config("scar-net", "small").model_dump(mode="json")
DRAWN_SLICE_BY_SLICE = {"chu": 3.0, "myo": 4.0, "usp": 3.0, "mri2d": 1.0}
WHOLE = (320, 192)
"""Rows and columns that show the whole height of any of the images: without the sacrum levels are a guess."""
ALL = DataConfig(phantoms=120, phantom_share=0.3)
EDGES = DataConfig(phantoms=120, phantom_share=0.15, source_weights=DRAWN_SLICE_BY_SLICE, labelled_share=0.65)
CUT = EDGES.model_copy(update={"patch": WHOLE, "augmentation": AugmentationConfig(crop_probability=0.7)})
FINE = CUT.model_copy(update={"augmentation": AugmentationConfig(crop_probability=0.5, elastic_probability=0.2)})


@dataclass(frozen=True)
class Stage:
    """One run, which starts from the weights of the one before.

    Attributes:
        schedule: hours over which the learning rate falls.
        hours: when it ends.
        method: what differs from `METHOD`.
        completed: whether structures that nobody drew are learnt too.
    """

    folder: str
    schedule: float
    hours: float
    rate: float
    data: DataConfig
    seed: int
    method: dict[str, Any] = field(default_factory=dict)
    batch: int = 8
    completed: bool = False


STAGES = (
    Stage("run", 0.75, 0.22, 2e-3, ALL, 35, {"heatmap_weight": 100.0}),  # what things are
    Stage("run2", 0.5, 0.37, 1.5e-3, ALL, 36),  # and which; ends while the rate is still a fifth
    Stage("run3", 0.28, 0.28, 6e-4, EDGES, 37),  # where edges lie
    Stage("run4", 0.205, 0.2, 8e-4, EDGES.model_copy(update={"patch": WHOLE}), 38, batch=4),  # the whole height at once
    Stage("run5", 0.145, 0.135, 8e-4, CUT, 39, batch=4),  # whatever part of it is cut off
    Stage("run6", 0.25, 0.25, 6e-4, FINE, 40, batch=4, completed=True),  # all edges, down to a rate of zero
)


def train(stage: Stage, dataset: Path, output: Path, start: Path | None) -> RunDirectory:
    """Run a stage, or what is left of it."""
    last = stage is STAGES[-1]
    config = TrainingConfig(
        name="Lumbar MR (SCAR-Net)" + ("" if last else f", {stage.folder}"),
        method={**METHOD, **stage.method},
        dataset=str(dataset),
        preprocessing=Preprocessing(pixel_mm=PIXEL_MM),
        data=stage.data,
        optimization=OptimizationConfig(
            steps=20000,
            hours=stage.schedule,
            learning_rate=stage.rate,
            warmup=50,
            batch=stage.batch,
            ema=0.995 if last else 0.999,
            validate_every=20000,
            save_every=100,
            workers=0,
        ),
        start_from=str(start) if start else None,
        seed=stage.seed,
    )
    run = RunDirectory(output / stage.folder)

    def stop_in_time(event: dict[str, Any]) -> None:
        print(event, flush=True)
        if event.get("elapsed", 0) >= stage.hours * 3600 and not run.stop_requested:
            run.request_stop()

    if run.status().get("state") not in ("stopped", "finished"):
        resume = run.config_file.exists()
        run_training(TrainingRequest(config, run.folder, resume, cache=output / "cache", report=stop_in_time))
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the shipped checkpoint of SCAR-Net.")
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    dataset = write_manifest(arguments.data, arguments.output / "data")
    completed = complete(dataset, arguments.output / "completed")
    start = None
    for stage in STAGES:
        run = train(stage, completed if stage.completed else dataset, arguments.output, start)
        start = run.last
    print(f"wrote {run.last}")


if __name__ == "__main__":
    main()
