"""Trains the shipped checkpoint of Verdiff-Net for radiographs, `xray-verdiff-net`.

    python Testing/Benchmarks/train_verdiff_xray.py DATA OUTPUT

Killed, it goes on where it was when it is started again. DATA holds `xray/`: synthetic anteroposterior radiographs with
masks of the vertebrae T1 to L5 (Spinal-AI2024). Vertebra against the rest, as in the paper; of every five images, in
the order of their names, three are trained on, one is `validation`, one `test`. Coarse pixels: their size is not known,
and taken for one millimetre. The networks start from those of `lumbar-mr-verdiff-net`, as far as they fit: the images
are few. The last weights are the result: nothing is chosen.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from runs import train_or_resume

from SpineSegAILib.anatomy import structure
from SpineSegAILib.imaging import Preprocessing, read_image
from SpineSegAILib.methods.catalog import make_config
from SpineSegAILib.training.config import AugmentationConfig, DataConfig, OptimizationConfig, TrainingConfig
from SpineSegAILib.training.run import RunDirectory

VERTEBRA = structure("vertebra")
SPLITS = ("training", "training", "training", "validation", "test")
DATA = DataConfig(
    patch=(256, 128),
    blend_share=0.0,
    augmentation=AugmentationConfig(
        rotation_deg=15.0, zoom=(0.75, 1.3), tissue_probability=0.0, crop_probability=0.3, elastic_probability=0.4
    ),
)
START = "lumbar-mr-verdiff-net"
STAGES = {"prior": 600, "denoise": 300}
"""Stage → steps."""


def write_manifest(data: Path, output: Path) -> Path:
    """The pictures as one-slice volumes, their vertebrae as one structure."""
    output.mkdir(parents=True, exist_ok=True)
    table: dict = {
        "name": "Synthetic radiographs (Spinal-AI2024)", "extent": "body",
        "labels": {"background": 0, VERTEBRA.name: VERTEBRA.id}, "training": [], "validation": [], "test": [],
    }  # fmt: skip
    for number, path in enumerate(sorted((data / "xray").glob("*_image.jpg"))):
        image = read_image(path)
        drawn = sitk.GetArrayFromImage(sitk.ReadImage(str(path).replace("_image.jpg", "_label.png"))) > 0
        size = sitk.GetArrayViewFromImage(image).shape
        label = sitk.GetImageFromArray(np.where(drawn, VERTEBRA.id, 0).astype(np.int16).reshape(size))
        label.CopyInformation(image)
        name = path.name.removesuffix("_image.jpg")
        for kind, picture in (("image", image), ("label", label)):
            sitk.WriteImage(picture, str(output / f"{name}_{kind}.nii.gz"))
        table[SPLITS[number % len(SPLITS)]].append(
            {
                "image": f"{name}_image.nii.gz",
                "label": f"{name}_label.nii.gz",
                "annotated": [VERTEBRA.name],
                "source": "xray",
            }
        )
    manifest = output / "dataset.json"
    manifest.write_text(json.dumps(table, indent=1), encoding="utf-8")
    return manifest


def train(stage: str, dataset: Path, output: Path, start: str | Path) -> RunDirectory:
    """Run a stage, or what is left of it."""
    changes = {"scheme": "vertebra", "stage": stage, "rank_weight": 0.0, "corruption": 0.0}
    config = TrainingConfig(
        name="Radiographs (Verdiff-Net)" + (", prior alone" if stage == "prior" else ""),
        method=make_config("verdiff-net", "small", **changes).model_dump(mode="json"),
        dataset=str(dataset),
        preprocessing=Preprocessing(pixel_mm=2.0, modality="XR", planes=("single-slice",)),
        data=DATA,
        optimization=OptimizationConfig(
            steps=STAGES[stage],
            learning_rate=1e-3 if stage == "prior" else 5e-4,
            warmup=30,
            batch=4,
            ema=0.99,
            validate_every=20000,
            save_every=100,
            workers=0,
        ),
        start_from=str(start),
        seed=35,
    )
    return train_or_resume(config, output / stage, output / "cache")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the shipped checkpoint of Verdiff-Net for radiographs.")
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    dataset = write_manifest(arguments.data, arguments.output / "data")
    start: str | Path = START
    for stage in STAGES:
        start = train(stage, dataset, arguments.output, start).last
    print(f"wrote {start}")


if __name__ == "__main__":
    main()
