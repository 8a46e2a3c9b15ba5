"""Why an image may not be what a checkpoint can segment, once it was segmented."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..anatomy import CANAL_ID, STRUCTURES, Kind, LabelScheme, disc_below, disc_name, next_below, sorted_ids
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


def not_found(present: Iterable[int], scheme: LabelScheme, wanted: Collection[int] = ()) -> list[str]:
    """Sentences about structures that must be in an image in which others are, and were not found.

    Args:
        present: ids of what was found, asked for or not.
        scheme: the checkpoint's.
        wanted: ids, where only those were asked for.
    """
    present = set(present)
    vertebrae = present.intersection(_VERTEBRAE)
    lacking = set(scheme.ids).intersection(wanted or scheme.ids) - present
    discs = []
    for sid in sorted_ids(vertebrae):
        disc, below = disc_below(sid), next_below(STRUCTURES[sid], present)
        if disc and disc.id in lacking and below and below.id in present:
            discs.append(disc_name(disc.id, present))
    sentences = []
    if discs:
        which = f"disc {discs[0]} was" if len(discs) == 1 else f"discs {', '.join(discs)} were"
        sentences.append(
            f"The {which} not found, though the vertebrae above and below were: fused, beside the slices, or missed."
        )
    if vertebrae and CANAL_ID in lacking:
        sentences.append("The spinal canal was not found: beside the slices, or missed.")
    return sentences


def not_told(labels: sitk.Image) -> dict[str, Any]:
    """For a result's provenance: what the image's file does not tell (`imaging.tags`)."""
    return {} if orientation_is_known(labels) else {"orientation": tag_of(labels, DIRECTION_TAG) or "unknown"}


def _models_for(modality: str) -> list[str]:
    """Names of the installed checkpoints that were trained on it."""
    trained = ((info.name, info.metadata.get("preprocessing", {})) for info in list_checkpoints())
    return [name for name, preprocessing in trained if preprocessing.get("modality", "MR") == modality]
