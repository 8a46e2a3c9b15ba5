"""What the outline quality of a structure means; how it is found is in `inference.quality`."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from ..anatomy import STRUCTURES
from ..imaging import upright

GOOD_DICE = 0.8
"""The outline quality is the probability that the outline's Dice with a reader's is at least this."""
LOW = 0.5
"""A lower quality is a low one: the outline is more likely to be corrected than not."""
CUT = 0.4
"""The most that it can be where the image's upper, lower, front or back border cuts the structure."""
BROKEN = 0.2
"""The most that it can be of an S1 without its upper back corner."""


def cut_by_border(labels: sitk.Image) -> set[int]:
    """Ids of levels that reach the first or last row or column of the sagittal plane. Canal and cord always continue.

    Slices are not a limit: stacks that show the middle of the spine alone cut everything from side to side.
    """
    turned = upright(labels)  # kept in a name: a view does not keep its image alive
    values = sitk.GetArrayViewFromImage(turned)
    edges = [values[:, 0], values[:, -1], values[:, :, 0], values[:, :, -1]]
    met = {int(sid) for edge in edges for sid in np.unique(edge)} - {0}
    return {sid for sid in met if sid in STRUCTURES and STRUCTURES[sid].order is not None}
