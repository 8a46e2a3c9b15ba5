"""What neighboring slices, finer pixels and repainted images bring the default model: equal short trainings of each.

    python Testing/Benchmarks/default_design.py DATA OUTPUT --start CHECKPOINT [--steps 300]

All start from the same weights and see the same number of pixels. One fold of the training patients (every sixth of
chu, myo and spider) is held out and scored beside the validation cases, on the image's own voxels, without calibrated
edges. `inner`: Dice over the slices in which a structure has at least 0.6 of its largest area; `end`: over its other
slices and the ones next to them, where it ends. Killed, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from SpineSegAILib.datasets.manifest import Case, read_case, read_manifest
from SpineSegAILib.evaluation.masks import surface_measures
from SpineSegAILib.evaluation.scores import group_of, sagittal_axis
from SpineSegAILib.inference import Predictor
from SpineSegAILib.inference.calibration import Calibration
from SpineSegAILib.methods.catalog import make_config
from SpineSegAILib.training.config import configure
from SpineSegAILib.training.recipe import read_recipe
from SpineSegAILib.training.request import TrainingRequest
from SpineSegAILib.training.run import RunDirectory
from SpineSegAILib.training.trainer import run_training

COARSE = {"preprocessing.pixel_mm": 1.25, "data.patch": [192, 128], "optimization.batch": 10}
FINE = {"preprocessing.pixel_mm": 1.0, "data.patch": [256, 160], "optimization.batch": 6}
REPAINTED = {"data.augmentation.synthesis_probability": 0.3}
ARMS: dict[str, dict[str, Any]] = {
    "1.25 mm": {**COARSE, "method.context_mm": []},
    "1.25 mm, neighbours": {**COARSE, "method.context_mm": [4.0]},
    "1 mm, neighbours": {**FINE, "method.context_mm": [4.0]},
    "1 mm, neighbours, repainted": {**FINE, "method.context_mm": [4.0], **REPAINTED},
}
SOURCES = ("chu", "myo", "usp", "spider")


def fold(data: Path, output: Path) -> Path:
    """A manifest of chu, myo, usp and spider whose `test` split is the fold that is held out of training."""
    table: dict[str, Any] = {
        "name": "fold",
        "extent": "body",
        "labels": {},
        "training": [],
        "validation": [],
        "test": [],
    }
    for name in ("lumbar_mr", "spider"):
        folder = data / name
        read = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        table["labels"] |= read["labels"]
        for split in ("training", "validation"):
            for number, case in enumerate(read[split]):
                entry = {k: v for k, v in case.items() if k != "label_whole"}
                entry |= {key: str((folder / case[key]).resolve()) for key in ("image", "label")}
                order = sum(c.get("source") == case.get("source") for c in read[split][:number])
                held = split == "training" and order % 6 == 2 and case.get("source") in ("chu", "myo", "spider")
                table["test" if held else split].append(entry)
    output.mkdir(parents=True, exist_ok=True)
    path = output / "dataset.json"
    path.write_text(json.dumps(table, indent=1), encoding="utf-8")
    return path


def train(name: str, manifest: Path, output: Path, start: str, steps: int) -> Path:
    """The weights of one arm."""
    changes = {
        "method.around_column": True, "data.phantoms": 40, "data.phantom_share": 0.08, "data.labelled_share": 0.75,
        "data.source_weights": {"chu": 3, "myo": 4, "usp": 2, "spider": 6}, "optimization.steps": steps,
        "optimization.learning_rate": 4e-4, "optimization.warmup": 50, "optimization.ema": 0.995,
        "optimization.validate_every": 100_000, "start_from": start, "seed": 51, **ARMS[name],
    }  # fmt: skip
    own = {key.removeprefix("method."): value for key, value in changes.items() if key.startswith("method.")}
    recipe = read_recipe("lumbar-mr-resenc")
    config = configure(
        make_config(recipe.method, recipe.preset, **own), str(manifest), name=name, recipe={}, changes=changes.items()
    )
    run = RunDirectory(output / name.replace(", ", "-").replace(" ", "_"))
    if run.status().get("state") != "finished":
        cache = output / f"cache-{config.preprocessing.pixel_mm}"
        run_training(TrainingRequest(config, run.folder, run.config_file.exists(), cache=cache, report=print))
    return run.last


def score(predictor: Predictor, case: Case) -> list[dict[str, Any]]:
    """Each annotated structure of a case, see above."""
    image, drawn = read_case(case)
    labels = predictor.segment(image).labels
    axis = sagittal_axis(drawn)
    truth, found = (np.moveaxis(sitk.GetArrayFromImage(i), axis, 0) for i in (drawn, labels))
    across, *in_plane = (drawn.GetSpacing()[2 - i] for i in (axis, *(i for i in range(3) if i != axis)))
    rows = []
    for sid in case.annotated:
        ours, theirs = truth == sid, found == sid
        if not ours.any():
            continue
        area = ours.sum((1, 2))
        inner = area >= 0.6 * area.max()
        end = (np.convolve(area > 0, [1, 1, 1], "same") > 0) & ~inner
        counts = {
            name: [int((a & b).sum()) for a, b in ((ours[s], theirs[s]), (ours[s], ours[s]), (theirs[s], theirs[s]))]
            for name, s in (("all", slice(None)), ("inner", inner), ("end", end))
        }
        hd95, _, surface = surface_measures(ours, theirs, (across, *in_plane))
        rows.append({"source": case.source, "group": group_of(sid), "surface": surface, "hd95": hd95, **counts})
    return rows


def summary(rows: list[dict[str, Any]]) -> str:
    """Cells of the table."""
    dice = np.mean([2 * r["all"][0] / (r["all"][1] + r["all"][2]) for r in rows])
    part = [2 * sum(r[k][0] for r in rows) / max(1, sum(r[k][1] + r[k][2] for r in rows)) for k in ("inner", "end")]
    hd95 = np.nanmean([r["hd95"] for r in rows])
    surface = np.mean([r["surface"] for r in rows])
    return f"{len(rows)} | {dice:.3f} | {part[0]:.3f} | {part[1]:.3f} | {surface:.3f} | {hd95:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Short equal trainings of the default model's parts.")
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--start", required=True, help="checkpoint that all start from")
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    manifest = fold(arguments.data, arguments.output / "data")
    lines = [
        "| cases | structures | training | n | Dice | inner | end | surface Dice 1 mm | HD95 mm |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name in ARMS:
        predictor = Predictor(train(name, manifest, arguments.output, arguments.start, arguments.steps))
        predictor.calibration = Calibration()
        cases = {split: read_manifest(manifest).cases(split) for split in ("validation", "test")}
        results[name] = {s: [row for case in found for row in score(predictor, case)] for s, found in cases.items()}
    for split, title in (("validation", "validation"), ("test", "fold")):
        groups = {(r["source"], r["group"]): None for r in results[next(iter(ARMS))][split]}
        for source, group in groups:
            for name in ARMS:
                rows = [r for r in results[name][split] if (r["source"], r["group"]) == (source, group)]
                lines.append(f"| {title}, {source} | {group} | {name} | {summary(rows)} |")
    table = "\n".join(lines)
    (arguments.output / "table.md").write_text(table + "\n", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
