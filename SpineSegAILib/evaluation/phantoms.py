"""Synthetic spines as a dataset: the only cases in which everything is labeled, S1 and its corners too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..anatomy import STRUCTURES
from ..imaging.geometry import ids_in
from ..phantoms.spine import make_phantom, random_spec

SEED = 20_000_000
"""Of the first synthetic image; trainings draw from other streams."""


def write_phantoms(folder: Path, count: int) -> Path:
    """Writes random synthetic images with their labels; the split is ``"validation"``.

    Returns:
        the manifest.
    """
    entries = []
    for number in range(count):
        rng = np.random.default_rng(SEED + number)
        phantom = make_phantom(random_spec(rng), rng)
        image, label = f"phantom_{number:03}.nii.gz", f"phantom_{number:03}_label.nii.gz"
        sitk.WriteImage(phantom.image, str(folder / image))
        sitk.WriteImage(phantom.labels, str(folder / label))
        names = [STRUCTURES[sid].name for sid in ids_in(phantom.labels)]
        entries.append({"image": image, "label": label, "annotated": names, "source": "phantoms"})
    path = folder / "dataset.json"
    path.write_text(json.dumps({"name": "Synthetic spines", "extent": "body", "validation": entries}), encoding="utf-8")
    return path
