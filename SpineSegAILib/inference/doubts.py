"""Why an image may not be what a checkpoint can segment, once it was segmented."""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK as sitk

from ..anatomy import STRUCTURES, Kind
from ..checkpoints import list_checkpoints
from ..consistency import LevelResult
from ..imaging import CanonicalVolume, orientation_is_known, plausibility_warnings
from ..imaging.content import bright_rim
from ..imaging.tags import DIRECTION_TAG, tag_of

_VERTEBRAE = [sid for sid, structure in STRUCTURES.items() if structure.kind is Kind.VERTEBRA]


def doubts(image: sitk.Image, volume: CanonicalVolume, levels: LevelResult | None, modality: str) -> list[str]:
    """Sentences for the reader of a result.

    Args:
        image: as it was given.
        volume: the same, preprocessed.
        levels: what was found in it.
        modality: that the checkpoint was trained on.
    """
    ct = levels is not None and bright_rim(volume.array, np.isin(levels.labels, _VERTEBRAE))
    return plausibility_warnings(image, modality, _models_for, as_segmented="CT" if ct else "")


def not_told(labels: sitk.Image) -> dict[str, Any]:
    """For a result's provenance: what the image's file does not tell (`imaging.tags`)."""
    return {} if orientation_is_known(labels) else {"orientation": tag_of(labels, DIRECTION_TAG) or "unknown"}


def _models_for(modality: str) -> list[str]:
    """Names of the installed checkpoints that were trained on it."""
    trained = ((info.name, info.metadata.get("preprocessing", {})) for info in list_checkpoints())
    return [name for name, preprocessing in trained if preprocessing.get("modality", "MR") == modality]
