"""Completes partly labeled cases with another checkpoint's results: the structures that nobody drew.

A softmax over levels learns slowly from masks that stop at L5: nothing says where S1 lies, nor what the vertebra above
the last one drawn is. A checkpoint that was trained on the same cases knows (self-training). It is given the levels
that were drawn; its results are taken only where nothing was drawn, and only for structures that it learned from more
than synthetic images. What was drawn stays as it was drawn; so does a case in which the two do not fit.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..anatomy import STRUCTURES
from ..errors import DatasetError, HintError
from ..files import atomic_write, read_json
from ..hints import Anchor, Hints
from ..imaging import read_image
from ..imaging.geometry import like
from ..inference import Predictor
from ..keypoints import centres_of
from .manifest import Case, moved, read_label, read_manifest


def complete_dataset(
    dataset: Path, output: Path, predictor: Predictor, report: Callable[[float, str], None] = lambda *_: None
) -> Path:
    """Write completed labels of the `training` split and a manifest for them; finished cases are not done again.

    Args:
        dataset: manifest. Its other splits are listed as they are.
        output: folder of the new manifest.
        predictor: the checkpoint that knows the others.
        report: called with the share of cases done and the case's name.

    Returns:
        the new manifest.

    Raises:
        DatasetError, ImageError: from what the manifest names.
    """
    output.mkdir(parents=True, exist_ok=True)
    cases = read_manifest(dataset).cases("training")
    table = moved(read_json(dataset, DatasetError), dataset.parent, output)
    known = set(predictor.scheme.ids) - set(predictor.info.unvalidated)
    for number, (entry, case) in enumerate(zip(table["training"], cases, strict=True)):
        if case.label is None:
            continue
        report(number / len(cases), case.name)
        path = output / f"{case.name}_completed.nii.gz"
        added = sorted(known - set(case.annotated))
        if not path.exists():
            try:
                labels = complete_case(case, predictor, added)
            except HintError as error:  # what it finds does not fit the levels that were drawn
                report(number / len(cases), f"{case.name} stays as it was drawn: {error.message}")
                continue
            with atomic_write(path) as (place,):
                sitk.WriteImage(labels, str(place), useCompression=True)
        entry["label"] = path.name
        entry["annotated"] = [STRUCTURES[i].name for i in (*case.annotated, *added)]
        for key in ("label_values", "label_whole"):  # what is written holds structure ids, of both files
            entry.pop(key, None)
    table["labels"] = {"background": 0, **{STRUCTURES[i].name: i for i in sorted(known)}, **table.get("labels", {})}
    table["name"] = f"{table.get('name', dataset.parent.name)}; completed by {predictor.info.name}"
    target = output / "dataset.json"
    with atomic_write(target) as (place,):
        place.write_text(json.dumps(table, indent=1), encoding="utf-8")
    return target


def complete_case(case: Case, predictor: Predictor, added: list[int]) -> sitk.Image:
    """The drawn labels, and `added` structures where nothing is drawn."""
    drawn = read_label(case)
    hints = Hints(anchors=tuple(Anchor(i, p) for i, p in centres_of(drawn).items()))
    found = predictor.segment(read_image(case.image), hints=hints).labels
    labels, theirs = sitk.GetArrayFromImage(drawn).astype(np.int16), sitk.GetArrayFromImage(found)
    return like(drawn, np.where((labels == 0) & np.isin(theirs, added), theirs, labels).astype(np.int16))
