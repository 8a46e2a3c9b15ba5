"""The part of an array that holds something."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Box = tuple[slice, slice, slice]
"""Part of a (D, H, W) array."""


def bounding_box(mask: np.ndarray, margin: Sequence[int] = (0, 0, 0)) -> Box | None:
    """The smallest box that holds all of a mask, grown by a margin (voxels) within the array; None if it is empty."""
    if not mask.any():
        return None

    def along(axis: int) -> slice:
        line = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        return slice(max(int(line[0]) - margin[axis], 0), min(int(line[-1]) + 1 + margin[axis], mask.shape[axis]))

    return along(0), along(1), along(2)
