"""Levels and voxels of a corrected segmentation, carried to another series of the same study.

Series of one study share the patient's coordinates, but not their grid, and the patient may have moved a little. So
levels are carried as an anchor, which a few millimeters do not mislead, and only what the reader locked is carried as
voxels.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..anatomy import STRUCTURES, Kind
from ..errors import HintError
from ..hints import Anchor


def carried(labels: sitk.Image, image: sitk.Image) -> sitk.Image:
    """Labels on another image's voxels, through physical space (nearest neighbor); 0 where they do not reach."""
    return sitk.Resample(sitk.Cast(labels, sitk.sitkInt16), image, sitk.Transform(), sitk.sitkNearestNeighbor, 0)


def level_anchor(labels: sitk.Image, image: sitk.Image) -> Anchor:
    """A point deep inside the vertebra (or disc) that lies most centrally in an image, with its level.

    One is enough: the others are counted from it.

    Raises:
        HintError: no structure with a level reaches the image.
    """
    here = sitk.GetArrayFromImage(carried(labels, image))
    ids = [int(i) for i in np.unique(here) if i and STRUCTURES[int(i)].is_counted]
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
