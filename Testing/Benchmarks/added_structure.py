"""A structure added by its name, from few cases: what becomes of it, and of what the checkpoint knew before.

    python Testing/Benchmarks/added_structure.py lumbar-mr-la-caf DATA/spider/dataset.json WORK --bank BANK.safetensors

The structure is the posterior elements, all levels in one, which the dataset has beside the bodies (``label_whole``)
and the checkpoint has no output for. BANK is a text bank of the checkpoint's encoder that holds the name:

    spinesegai text-bank --method la-caf --scheme lumbar-mr --add-structure "vertebral arches" --encoder ENCODER \\
        --output BANK.safetensors

It learns from the first --cases of the training split, in which what the checkpoint knew before is drawn, too; the
score is on the validation split, where nobody chose anything. All weights learn; with --only the new structure's own
alone (``method.only``), which cannot find what the features before the heads do not tell. What results has no
calibration, so what the checkpoint knew before moves a little without it. WORK keeps the data set and the run; delete
it to begin again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import SimpleITK as sitk  # noqa: E402

from SpineSegAILib.anatomy import CUSTOM_IDS, POSTERIOR_ID, STRUCTURES, Kind, structure  # noqa: E402
from SpineSegAILib.cli import main as spinesegai  # noqa: E402
from SpineSegAILib.datasets.manifest import Case, read_case, read_manifest  # noqa: E402
from SpineSegAILib.imaging.geometry import like  # noqa: E402

NAME = "vertebral arches"
GROUPS = {"vertebrae": Kind.VERTEBRA, "discs": Kind.DISC, "canal": Kind.CANAL}


def write_case(case: Case, folder: Path) -> dict[str, Any]:
    """The case with its posterior elements as one structure of a reader's own; its entry of a manifest."""
    image, label = read_case(case)
    array = sitk.GetArrayFromImage(label).astype(np.int16)
    posterior = [sid for sid, s in STRUCTURES.items() if s.kind is Kind.POSTERIOR] + [POSTERIOR_ID]
    array[np.isin(array, posterior)] = CUSTOM_IDS[0]
    sitk.WriteImage(image, str(folder / f"{case.name}.nii.gz"))
    sitk.WriteImage(like(image, array), str(folder / f"{case.name}_label.nii.gz"))
    kept = [structure(sid).name for sid in case.annotated if sid not in posterior]
    return {"image": f"{case.name}.nii.gz", "label": f"{case.name}_label.nii.gz", "annotated": [*kept, NAME]}


def write_dataset(manifest: Path, folder: Path, cases: int) -> Path:
    """A dataset with the structure: the first training cases, and all of the validation."""
    path = folder / "dataset.json"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    found = read_manifest(manifest)
    table = {
        "name": f"{found.name}, with {NAME}",
        "modality": {"0": "MR"},
        "extent": "body",
        "custom": {NAME: CUSTOM_IDS[0]},
        "training": [write_case(case, folder) for case in found.cases("training")[:cases]],
        "validation": [write_case(case, folder) for case in found.cases("validation")],
    }
    path.write_text(json.dumps(table, indent=1), encoding="utf-8")
    return path


def scores(manifest: Path, checkpoint: str | Path, report: Path) -> dict[str, float]:
    """Mean Dice on the validation split, by group of structures."""
    words = ["evaluate", manifest, "--split", "validation", "--checkpoint", checkpoint, "--output", report, "--quiet"]
    if spinesegai([str(word) for word in words]):
        raise SystemExit(1)
    found: dict[str, list[float]] = {group: [] for group in (*GROUPS, NAME)}
    for case in json.loads(report.read_text(encoding="utf-8"))["variants"]["full"]["cases"]:
        for row in case["structures"]:
            name = row["name"]
            group = NAME if name == NAME else next((g for g, k in GROUPS.items() if structure(name).kind is k), None)
            if group is not None and row["dice"] is not None:
                found[group].append(row["dice"])
    return {group: float(np.mean(values)) for group, values in found.items() if values}


def main() -> None:
    """Trains, scores before and after, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("work", type=Path, help="folder for the dataset, the run and the reports")
    parser.add_argument("--bank", type=Path, required=True, help="text bank that holds the name")
    parser.add_argument("--cases", type=int, default=10)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--rate", default="1e-3", help="learning rate")
    parser.add_argument("--only", action="store_true", help="the new structure's own weights alone learn")
    args = parser.parse_args()
    manifest = write_dataset(args.dataset, args.work / "set", args.cases)
    run = args.work / "run"
    if not (run / "last.safetensors").exists():
        settings = {
            "method.text_encoder": f"bank:{args.bank.resolve()}",
            **({"method.only": json.dumps([NAME])} if args.only else {"method.positive_weight": 4}),
            "optimization.learning_rate": args.rate,
            "optimization.batch": 2,
            "optimization.warmup": 20,
            "optimization.validate_every": 10**6,
            "optimization.workers": 0,
        }
        words = ["train", manifest, "--output", run, "--from", args.checkpoint, "--add-structure", NAME]
        words += ["--steps", args.steps, *(w for k, v in settings.items() for w in ("--set", f"{k}={v}"))]
        if spinesegai([str(word) for word in words]):
            raise SystemExit(1)
    before = scores(manifest, args.checkpoint, args.work / "before.json")
    after = scores(manifest, run / "last.safetensors", args.work / "after.json")
    print("| | before | after |\n|---|---|---|")
    for group, value in after.items():
        old = f"{before[group]:.3f}" if group in before and group != NAME else "–"
        print(f"| {group} | {old} | {value:.3f} |")


if __name__ == "__main__":
    main()
