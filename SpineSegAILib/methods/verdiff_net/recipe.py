"""How Verdiff-Net is trained: first the conditional U-Net, then the diffusion U-Net on top of it."""

from __future__ import annotations

from typing import Any, Literal

from ...imaging import Preprocessing
from ...training.config import AugmentationConfig, DataConfig, OptimizationConfig, TrainingConfig
from ..catalog import make_config

Stage = Literal["prior", "denoise", "joint"]


def recipe(
    dataset: str,
    preset: str = "small",
    stage: Stage = "prior",
    *,
    start_from: str | None = None,
    preprocessing: Preprocessing | None = None,
    **method: Any,
) -> TrainingConfig:
    """The configuration of one stage; stage ``"denoise"`` starts from the checkpoint that stage ``"prior"`` left.

    Args:
        dataset: path of the manifest.
        preset: ``"paper"`` for the published numbers: Adam, one image per step, 9000 steps, rotation up to 30°, seed
            35; its learning rate is lost (MedSegDiff's). Others are meant for a few cores (our choice).
        stage: what is trained.
        start_from: checkpoint to start from.
        preprocessing: 1.25 mm pixels and percentiles where not given.
        method: further values of the method's configuration, e.g. ``scheme="lumbar-mr"``.
    """
    config = make_config("verdiff-net", preset, **method, stage=stage)
    if preset == "paper":
        optimization = OptimizationConfig(
            steps=9000, batch=1, learning_rate=1e-4, final_learning_rate=1e-4, warmup=0, weight_decay=0.0, ema=0.9999
        )
        data = DataConfig(patch=(512, 512), augmentation=AugmentationConfig(rotation_deg=30.0))
    else:
        # The diffusion U-Net sees a new time and noise at each step, hence more steps at a lower rate.
        steps, rate = (4000, 1e-3) if stage == "prior" else (8000, 5e-4)
        optimization = OptimizationConfig(steps=steps, batch=8, learning_rate=rate, ema=0.999)
        data = DataConfig()
    return TrainingConfig(
        method=config.model_dump(mode="json"),
        dataset=dataset,
        preprocessing=preprocessing or Preprocessing(pixel_mm=1.25),
        data=data,
        optimization=optimization,
        start_from=start_from,
        name=f"Verdiff-Net {preset} ({stage})",
    )
