"""LA-CAF's parts, and what masking unlabelled structures is worth, row by row.

    spinesegai text-bank --method la-caf --encoder ENCODER --output BANK.safetensors
    python Testing/Benchmarks/ablate_la_caf.py DATA OUTPUT --bank BANK.safetensors [--rows NAME …] [--report FILE]

Killed, it goes on where it was. The released variants: one linear map of the text (`linear`), a text adapter per class
(`adapter`), attention to the image without (`attention`) and with the text vector beside its result (`concat`), image
adapter too (`all`); `released` is the same with the release's scalar gain instead of attention.

Half labels: half of the structures of every second case are hidden from training, and count as unknown
(`half-masked`) or, as in the release, as background (`half-unmasked`).

All rows start from the same backbone, which was trained with `linear` on phantoms and seven slices that are never
scored; what makes the heads of the text is learnt by each row from nothing.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from ablation import Comparison, Entries, Row, Screening, run_and_report, screening_head, train_start, write_folds
from train_default import write_manifest

from SpineSegAILib.anatomy import STRUCTURES
from SpineSegAILib.checkpoints import load_tensors, read_header, save_checkpoint
from SpineSegAILib.datasets.manifest import read_label, read_manifest
from SpineSegAILib.methods.catalog import make_config

SCREENING = {"widths": (12, 16, 24, 48, 96), "blocks": (1, 1, 1, 1, 1), "adapter_width": 32, "fusion_width": 48}
"""The preset `slices`, narrower, for pixels of 2.5 mm."""
POOLED = {"image_map": "pool"}
VARIANTS = {
    "linear": {**POOLED, "text_map": "linear", "fusion": "none"},
    "adapter": {**POOLED, "fusion": "none"},
    "attention": {**POOLED, "concat": False},
    "concat": POOLED,
    "all": {},
    "released": {"fusion": "released"},
}
PATCH, START_PATCH = (2, 160, 96), (4, 160, 96)
START_STEPS, PHANTOMS = 600, 40
COMPARISONS = (
    *(Comparison(name, "linear") for name in ("adapter", "attention", "concat", "all")),
    Comparison("all", "released"),
    Comparison("half-masked", "half-unmasked"),
)
DECIDING = ("raw_dice", "dice", "matched_dice", "levels_right")


def rows(bank: Path, hidden: dict[str, tuple[str, list[str]]]) -> list[Row]:
    """The released variants, and half labels.

    Args:
        bank: of whole sentences.
        hidden: label file's name → file with half of its structures, and their names.
    """
    text = {"text_encoder": f"bank:{bank}"}
    made = [
        Row(
            name, make_config("la-caf", "slices", **SCREENING, **text, **changes).model_dump(mode="json"),
            data={"patch": PATCH}, optimization={"batch": 2},
        )
        for name, changes in VARIANTS.items()
    ]  # fmt: skip
    everything = next(row for row in made if row.name == "all")
    half = replace(everything, entries=partial(half_labelled, hidden=hidden))
    unmasked = {**everything.method, "mask_unlabelled": False}
    return [*made, replace(half, name="half-masked"), replace(half, name="half-unmasked", method=unmasked)]


def half_labelled(entries: Entries, hidden: dict[str, tuple[str, list[str]]]) -> Entries:
    """Every second case shows half of its structures."""
    result = []
    for number, entry in enumerate(entries):
        if number % 2:
            path, names = hidden[Path(entry["label"]).name]
            entry = {**entry, "label": path, "annotated": names}
        result.append(entry)
    return result


def hide_half(manifest: Path, output: Path, beside: Path) -> dict[str, tuple[str, list[str]]]:
    """Label files of the `training` split without every second structure, from the first or the second on by turns.

    Args:
        output: folder for the files.
        beside: folder of the manifests that will name them.
    """
    output.mkdir(parents=True, exist_ok=True)
    found = {}
    for number, case in enumerate(read_manifest(manifest).cases("training")):
        if case.label is None:
            continue
        kept = list(case.annotated)[number // 2 % 2 :: 2]
        path = output / case.label.name
        if not path.exists():
            label = read_label(case)
            array = sitk.GetArrayFromImage(label)
            shown = sitk.GetImageFromArray(np.where(np.isin(array, kept), array, 0).astype(np.int16))
            shown.CopyInformation(label)
            sitk.WriteImage(shown, str(path))
        relative = os.path.relpath(path.resolve(), beside.resolve())
        found[case.label.name] = (relative, [STRUCTURES[i].name for i in kept])
    return found


def backbone_of(checkpoint: Path) -> Path:
    """Beside the checkpoint, another one without what turns text into heads."""
    path = checkpoint.with_name("backbone.safetensors")
    if not path.exists():
        info = read_header(checkpoint)
        kept = ("backbone.", "rank_head.", "text_center")
        tensors = {n: t for n, t in load_tensors(info).items() if n.startswith(kept) or n.endswith(".embedding")}
        save_checkpoint(path, tensors, info.metadata)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="LA-CAF's ablations.")
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--bank", type=Path, required=True, help="embedded prompts, of “spinesegai text-bank”")
    parser.add_argument("--steps", type=int, default=Screening.steps)
    parser.add_argument("--rows", nargs="*", help="only these")
    parser.add_argument("--report", type=Path, help="also write the tables as this file with .md and .json")
    arguments = parser.parse_args()
    screening = Screening(steps=arguments.steps, slices=4)
    data = arguments.output / "data"
    manifest = write_manifest(arguments.data, data)
    folds = write_folds(manifest, data, sources=("chu", "myo", "usp"))
    every = rows(arguments.bank, hide_half(manifest, data / "half", data))
    first = replace(every[0], data={"patch": START_PATCH})
    start = train_start(first, manifest, ("mri2d",), arguments.output, screening, START_STEPS, PHANTOMS)
    screening = replace(screening, start_from=str(backbone_of(start)))
    wanted = [r for r in every if not arguments.rows or r.name in arguments.rows]
    head = screening_head(f"ablate_la_caf.py DATA OUTPUT --bank {arguments.bank}", arguments.steps)
    run_and_report(wanted, COMPARISONS, DECIDING, folds, arguments.output, screening, arguments.report, head=head)


if __name__ == "__main__":
    main()
