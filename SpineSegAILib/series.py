"""A corrected segmentation carried to another series of the same study, and refined there by the network.

Series of one study share the patient's coordinates, but not their grid, and the patient may have moved a little. So
levels are carried as an anchor, which a few millimetres do not mislead, and only what the reader locked is carried as
voxels.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from .anatomy import STRUCTURES, Kind
from .errors import HintError
from .hints import Anchor, Hints
from .results import Segmentation

if TYPE_CHECKING:
    from .inference import Predictor
    from .volume_passes import Cancel, Progress


def carried(labels: sitk.Image, image: sitk.Image) -> sitk.Image:
    """Labels on another image's voxels, through physical space (nearest neighbour); 0 where they do not reach."""
    return sitk.Resample(sitk.Cast(labels, sitk.sitkInt16), image, sitk.Transform(), sitk.sitkNearestNeighbor, 0)


def level_anchor(labels: sitk.Image, image: sitk.Image) -> Anchor:
    """A point deep inside the vertebra (or disc) that lies most centrally in an image, with its level.

    One is enough: the others are counted from it.

    Raises:
        HintError: no structure with a level reaches the image.
    """
    here = sitk.GetArrayFromImage(carried(labels, image))
    ids = [int(i) for i in np.unique(here) if i and STRUCTURES[int(i)].order is not None]
    if not ids:
        raise HintError(
            "The corrected segmentation shows no vertebra inside this image.",
            "Choose a series of the same study that shows the same part of the spine.",
        )
    bones = [i for i in ids if STRUCTURES[i].kind is Kind.VERTEBRA] or ids
    spacing = np.array(image.GetSpacing()[::-1])
    middle = (np.array(here.shape) - 1) / 2 * spacing
    centres = {i: np.array(ndimage.center_of_mass(here == i)) * spacing for i in bones}
    chosen = min(bones, key=lambda i: float(np.linalg.norm(centres[i] - middle)))
    depth = ndimage.distance_transform_edt(np.pad(here == chosen, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    index = np.unravel_index(int(np.argmax(depth)), here.shape)
    return Anchor(chosen, image.TransformIndexToPhysicalPoint([int(i) for i in index[::-1]]))


def segment_other_series(
    predictor: Predictor,
    image: sitk.Image,
    corrected: Segmentation,
    *,
    carry: Collection[int] = (),
    locked: sitk.Image | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    cancelled: Cancel | None = None,
) -> Segmentation:
    """Segments another series with the levels of a corrected result.

    Args:
        corrected: of one series.
        carry: ids of structures that are carried voxel for voxel (what the reader corrected and locked there).
        locked: on this image's grid, what is locked here already; it wins over what is carried.
        options, progress, cancelled: as for `Predictor.segment`.

    Raises:
        HintError: the two do not show the same part of the spine, or contradict each other.
    """
    kept = sitk.GetArrayFromImage(carried(corrected.labels, image))
    kept[~np.isin(kept, list(carry))] = 0
    if locked is not None:
        own = sitk.GetArrayViewFromImage(locked)
        if own.shape != kept.shape:
            raise HintError("The locked segmentation has another geometry than the image.", "Resample it to the image.")
        kept[np.isin(kept, np.unique(own[own > 0]))] = 0  # a structure is locked once
        kept[own > 0] = own[own > 0]
    fixed = sitk.GetImageFromArray(kept)
    fixed.CopyInformation(image)
    levelled = any(STRUCTURES[int(i)].order is not None for i in np.unique(kept) if i)
    hints = Hints(
        anchors=() if levelled else (level_anchor(corrected.labels, image),),
        locked=fixed if kept.any() else None,
    )
    result = predictor.segment(image, hints, options, progress, cancelled)
    names = sorted(STRUCTURES[int(i)].name for i in np.unique(kept) if i)
    return replace(result, provenance={**result.provenance, "carried_from_another_series": names or "levels"})
