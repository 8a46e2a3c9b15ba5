"""Labels without islands and spikes, by their size in millimeters; all other voxels stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..anatomy import GENERIC_IDS, STRUCTURES, Extent, Kind
from ..imaging.geometry import like

ISLANDS_MM3: Mapping[Kind, float] = {
    # One piece. Of 83 segmented cases no part of a vertebra apart from its largest was right, up to 400 mm³; 1,000 mm³
    # is a cube of 10 mm, less than half of the smallest fragment that a fracture leaves.
    Kind.VERTEBRA: 1000.0,
    # S1 is one piece: what lies apart from it belongs to S2, or to nothing.
    Kind.SACRUM: np.inf,
    # A degenerated disc may fall into a front and a back part of 10 × 5 × 10 mm and more.
    Kind.DISC: 100.0,
    # A canal that is narrowed to nothing goes on below.
    Kind.CANAL: 100.0,
    Kind.POSTERIOR: 100.0,
}
"""Smaller than this a piece beside a structure's largest is an island, mm³."""
SPIKE_MM = 2.0
"""What is one voxel thin and reaches farther than this from the rest is a spike. In the same cases nine of ten of their
voxels were wrong; corners and rough edges reach less far."""

_SPIKED = (Kind.VERTEBRA, Kind.SACRUM, Kind.DISC)  # posterior elements and a narrow canal are thin by nature
_WITH_PROCESSES = (Kind.VERTEBRA, Kind.SACRUM)  # of whole vertebrae, thin as posterior elements, often in pieces


def clean(labels: sitk.Image, extent: Extent | None) -> sitk.Image:
    """The labels without islands and spikes, which become background; structures of unknown level stay.

    Args:
        extent: the scheme's: whole vertebrae and the sacrum have processes, and are judged as these are.
    """
    values = sitk.GetArrayFromImage(labels)
    spacing = np.array(labels.GetSpacing()[::-1])
    changed = False
    for sid, box in enumerate(ndimage.find_objects(values), start=1):
        if box is None or sid not in STRUCTURES or sid in GENERIC_IDS:
            continue
        kind = STRUCTURES[sid].kind
        if extent is Extent.WHOLE and kind in _WITH_PROCESSES:
            kind = Kind.POSTERIOR
        least = ISLANDS_MM3.get(kind)
        if least is None:
            continue
        mask = values[box] == sid
        noise = _spikes(mask, spacing) if kind in _SPIKED else np.zeros_like(mask)
        noise |= _islands(mask & ~noise, least / float(np.prod(spacing)))
        if noise.any():
            values[box][noise] = 0
            changed = True
    return like(labels, values) if changed else labels


def _islands(mask: np.ndarray, least: float) -> np.ndarray:
    """Pieces of fewer voxels than that, except the largest."""
    parts, count = ndimage.label(mask)
    if count < 2:
        return np.zeros_like(mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    small = sizes < least
    small[[0, int(sizes.argmax())]] = False
    return small[parts]


def _spikes(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """What is one voxel thin in a plane of the grid, and reaches farther from the rest than `SPIKE_MM`."""
    found = np.zeros_like(mask)
    padded = np.pad(mask, 1)
    for plane in combinations(range(3), 2):
        if min(mask.shape[axis] for axis in plane) < 3:  # too few slices to be thinner than the rest
            continue
        square = np.ones([2 if axis in plane else 1 for axis in range(3)], bool)
        thin = mask & ~ndimage.binary_opening(padded, square)[1:-1, 1:-1, 1:-1]
        parts, count = ndimage.label(thin)
        if not count:
            continue
        rest = mask & ~thin
        if not rest.any():
            continue
        away = ndimage.distance_transform_edt(~rest, sampling=spacing)
        long = np.zeros(count + 1, bool)
        long[1:] = np.asarray(ndimage.maximum(away, parts, range(1, count + 1))) > SPIKE_MM
        found |= long[parts]
    return found
