"""Names of results in a BIDS dataset of derivatives.

See https://bids-specification.readthedocs.io, “Imaging data type derivatives: segmentations”.
"""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePath

from .. import __version__
from ..errors import OutputError
from ..files import atomic_write, read_json, stem_and_suffix

DESCRIPTION = "dataset_description.json"
_NAME = re.compile(r"(?P<entities>sub-[A-Za-z0-9]+(?:_[a-z]+-[A-Za-z0-9]+)*)_(?P<suffix>[A-Za-z0-9]+)")


def derivative(image: Path) -> PurePath | None:
    """Folder and name (without suffix) of an image's segmentation within a dataset of derivatives; None where the
    image is not named and placed as BIDS wants.

    ``sub-01/anat/sub-01_acq-sag_T2w.nii.gz`` gives ``sub-01/anat/sub-01_acq-sag_seg-spine_desc-T2w_dseg``.
    """
    stem, suffix = stem_and_suffix(image)
    name = _NAME.fullmatch(stem)
    if name is None or suffix not in (".nii", ".nii.gz"):
        return None
    folders = image.absolute().parent.parts
    subject = stem.partition("_")[0]
    if subject not in folders:
        return None
    inside = PurePath(*folders[len(folders) - 1 - folders[::-1].index(subject) :])
    return inside / f"{name['entities']}_seg-spine_desc-{name['suffix']}_dseg"


def write_description(folder: Path) -> None:
    """Writes what a dataset of derivatives needs to say of itself; what is there already stays.

    Raises:
        OutputError: the folder is a dataset of raw images, or it cannot be written to.
    """
    path = folder / DESCRIPTION
    if path.exists():
        there = read_json(path, OutputError)
        if not isinstance(there, dict) or there.get("DatasetType") != "derivative":
            raise OutputError(
                f"{folder} is a dataset of raw images.",
                f"Use a separate folder for the results, such as {folder / 'derivatives' / 'spinesegai'}.",
            )
        return
    document = {
        "Name": "SpineSegAI segmentations",
        "BIDSVersion": "1.9.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "SpineSegAI", "Version": __version__}],
    }
    with atomic_write(path) as (place,):
        place.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
