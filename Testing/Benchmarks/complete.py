"""Completes partly labelled cases with another checkpoint's results: the structures that nobody drew.

    python Testing/Benchmarks/complete.py DATASET.json OUTPUT [--checkpoint NAME]

A softmax over levels learns slowly from masks that stop at L5: nothing says where S1 lies, nor what the vertebra above
the last one drawn is. A checkpoint that was trained on the same cases knows (self-training). Its results are told the
levels that were drawn, taken only where nothing was, and only for structures which it learnt from more than phantoms.
What was drawn stays as it was drawn; `validation` and `test` are copied untouched.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from SpineSegAILib.anatomy import STRUCTURES
from SpineSegAILib.datasets.manifest import Case, read_label, read_manifest
from SpineSegAILib.hints import Anchor, Hints
from SpineSegAILib.imaging import read_image
from SpineSegAILib.inference import Predictor
from SpineSegAILib.keypoints import centres_of

TEACHER = "lumbar-mr-resenc"


def complete(dataset: Path, output: Path, checkpoint: str = TEACHER) -> Path:
    """Write the completed labels of the `training` split and a manifest for them; what is there already is kept."""
    output.mkdir(parents=True, exist_ok=True)
    table = json.loads(dataset.read_text(encoding="utf-8"))
    for split in ("training", "validation", "test"):
        for entry in table.get(split, []):
            for key in ("image", "label"):
                if entry.get(key):
                    entry[key] = os.path.relpath((dataset.parent / entry[key]).resolve(), output.resolve())
    predictor = Predictor(checkpoint)
    known = set(predictor.scheme.ids) - set(predictor.info.unvalidated)
    for entry, case in zip(table["training"], read_manifest(dataset).cases("training"), strict=True):
        if case.label is None:
            continue
        path = output / case.label.name.replace("_label", "_completed")
        added = sorted(known - set(case.annotated))
        if not path.exists():
            sitk.WriteImage(completed(case, predictor, added), str(path))
        entry["label"] = path.name
        entry["annotated"] = [STRUCTURES[i].name for i in (*case.annotated, *added)]
        print(path, flush=True)
    target = output / "dataset.json"
    target.write_text(json.dumps({**table, "name": f"{table['name']}; completed by {checkpoint}"}, indent=1))
    return target


def completed(case: Case, predictor: Predictor, added: list[int]) -> sitk.Image:
    """The drawn labels, and `added` structures where nothing is drawn."""
    drawn = read_label(case)
    hints = Hints(anchors=tuple(Anchor(i, p) for i, p in centres_of(drawn).items()))
    found = predictor.segment(read_image(case.image), hints=hints).labels
    labels, theirs = sitk.GetArrayFromImage(drawn).astype(np.int16), sitk.GetArrayFromImage(found)
    labels = np.where((labels == 0) & np.isin(theirs, added), theirs, labels).astype(np.int16)
    result = sitk.GetImageFromArray(labels)
    result.CopyInformation(drawn)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Complete partly labelled cases with a checkpoint's results.")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--checkpoint", default=TEACHER)
    arguments = parser.parse_args()
    print(f"wrote {complete(arguments.dataset, arguments.output, arguments.checkpoint)}")


if __name__ == "__main__":
    main()
