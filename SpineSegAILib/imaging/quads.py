"""Vertebrae in films as quadrangles: their corners, and the pixels inside."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

AROUND = (0, 1, 3, 2)
"""Places of `keypoints.CORNERS` on the way around: upper left, upper right, lower right, lower left."""


def is_quadrangle(corners: np.ndarray) -> bool:
    """Whether four corners (4, 2) of (column, row), in the order of `keypoints.CORNERS`, bound a convex quadrangle
    whose upper corners are above and whose left ones are on the left, by its own axes."""
    around = corners[list(AROUND)]
    sides = np.roll(around, -1, axis=0) - around
    following = np.roll(sides, -1, axis=0)
    turns = sides[:, 0] * following[:, 1] - sides[:, 1] * following[:, 0]
    right, down = corners[[1, 3]].mean(0) - corners[[0, 2]].mean(0), corners[[2, 3]].mean(0) - corners[[0, 1]].mean(0)
    return bool((turns > 0).all() and right[0] > 0 and down[1] > 0)


def filled_quadrangles(shape: tuple[int, int], corners: Mapping[int, np.ndarray]) -> np.ndarray:
    """(rows, columns) uint8 with each structure's id where a pixel's center lies inside its quadrangle.

    Args:
        shape: rows and columns.
        corners: structure id → (4, 2) column and row, in the order of `keypoints.CORNERS`, of `is_quadrangle`s; where
            two overlap, the latter wins.
    """
    result = np.zeros(shape, np.uint8)
    for sid, points in corners.items():
        first = np.maximum(np.floor(points.min(0)).astype(int), 0)
        last = np.minimum(np.ceil(points.max(0)).astype(int) + 1, shape[::-1])
        if (last <= first).any():
            continue
        rows, columns = np.mgrid[first[1] : last[1], first[0] : last[0]]
        inside = np.ones(rows.shape, bool)
        around = points[list(AROUND)]
        for (x, y), (dx, dy) in zip(around, np.roll(around, -1, axis=0) - around, strict=True):
            inside &= dx * (rows - y) - dy * (columns - x) >= 0
        result[first[1] : last[1], first[0] : last[0]][inside] = sid
    return result
