"""Corners of vertebrae in films: straight lines along the four edges of each outline, and where they meet.

An outline is smoothed by less than a pixel, and its edges are looked for between pixels; lines are fitted to the middle
part of each edge in the L1 sense, so that rounded corners, notches and spurs do not turn them. Of outlines that were
drawn at a 320th of a film's height, the corners come back to 0.1 % of the height and tilts to 0.5°.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .bodies import jackknife, straight_line
from .rows import NotMeasured
from .scan import central_part, edges

_SMOOTH = 0.7  # pixels
_TURNS = 4
_SAMPLES = 90  # along a vertebra's larger side, at most; half a pixel each, at least
_ALONG_PLATE, _ALONG_SIDE = 0.38, 0.30  # of width and height to either side of the middle: where edges are straight
_LEAST_PIXELS, _LEAST_SAMPLES = 12, 5
_LARGEST_TURN = np.radians(40)  # from the direction that the neighbors tell
_LEAST_FILLED = 0.75  # of the quadrangle and the outline together, that both share


@dataclass(frozen=True)
class Quad:
    """A vertebra in a film.

    Attributes:
        corners: (4, 2) column and row, in the order of `keypoints.CORNERS`.
        tilt_error: standard error of its tilt, degrees.
    """

    corners: np.ndarray
    tilt_error: float

    @property
    def center(self) -> np.ndarray:
        """Column and row."""
        return self.corners.mean(0)

    @property
    def tilt(self) -> float:
        """Degrees of the line between the middles of its sides; positive where its right end points down."""
        left, right = self.corners[[0, 2]].mean(0), self.corners[[1, 3]].mean(0)
        return _degrees(right - left)

    def plate(self, which: int) -> tuple[np.ndarray, np.ndarray]:
        """Left and right end of the upper (0) or lower (1) endplate."""
        return self.corners[2 * which], self.corners[2 * which + 1]

    def plate_tilt(self, which: int) -> float:
        """Degrees, as `tilt`."""
        left, right = self.plate(which)
        return _degrees(right - left)


def fit_quad(mask: np.ndarray, down: np.ndarray) -> Quad:
    """The quadrangle of one vertebra.

    Args:
        mask: (rows, columns) bool.
        down: (2,) column and row: along the spine there, of any length.

    Raises:
        NotMeasured: the outline is too small, or no quadrangle.
    """
    if mask.sum() < _LEAST_PIXELS:
        raise NotMeasured("its outline is too small")
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    first = np.array([columns[0], rows[0]]) - 4
    part = np.pad(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32), 4)
    soft = ndimage.gaussian_filter(part, _SMOOTH)
    axis = start = down / np.linalg.norm(down)
    index = np.argwhere(part > 0.5)[:, ::-1]
    center = index.mean(0)
    reach = 0.5 * float(np.hypot(*part.shape)) + 1
    along = np.linspace(-reach, reach, 2 * max(round(min(2 * reach, _SAMPLES)), 16) + 1)
    for _ in range(_TURNS):
        across = np.array([axis[1], -axis[0]])
        grid = center + along[:, np.newaxis, np.newaxis] * axis + along[:, np.newaxis] * across
        plane = central_part(ndimage.map_coordinates(soft, [grid[..., 1], grid[..., 0]], order=1))
        upper, lower = edges(plane, along)
        left, right = edges(plane.T, along)
        lines = [_line(along, edge, _ALONG_PLATE) for edge in (upper, lower)]
        turn = float(np.mean([slope for _, slope, _ in lines]))
        middle = np.mean([level for level, _, _ in lines])
        center = center + middle * axis + float(np.nanmedian(left + right)) / 2 * across
        axis = (axis - turn * across) / np.hypot(1.0, turn)
        if np.arccos(np.clip(axis @ start, -1, 1)) > _LARGEST_TURN:
            raise NotMeasured("its outline is not a quadrangle")
        if abs(turn) < 0.002 and abs(middle) < 0.01:
            break
    across = np.array([axis[1], -axis[0]])
    grid = center + along[:, np.newaxis, np.newaxis] * axis + along[:, np.newaxis] * across
    plane = central_part(ndimage.map_coordinates(soft, [grid[..., 1], grid[..., 0]], order=1))
    plates = [_line(along, edge, _ALONG_PLATE) for edge in edges(plane, along)]
    sides = [_line(along, edge, _ALONG_SIDE) for edge in edges(plane.T, along)]
    corners = []
    for level, slope, _ in plates:
        for place, lean, _ in sides:
            # down = level + slope · x and x = place + lean · down meet
            x = (place + lean * level) / (1 - lean * slope)
            corners.append(center + (level + slope * x) * axis + x * across)
    found = np.array(corners)
    _check_filled(part > 0.5, found)
    (_, _, first_error), (_, _, last_error) = plates
    error = math.degrees(math.hypot(first_error, last_error) / 2)
    return Quad(found + first, error)


def _line(at: np.ndarray, edge: np.ndarray, share: float) -> tuple[float, float, float]:
    """Value at 0, slope and its standard error of the straight line along the middle part of an edge (NaN where it is
    none), in the L1 sense."""
    there = np.flatnonzero(np.isfinite(edge))
    if len(there) < _LEAST_SAMPLES:
        raise NotMeasured("its outline is too small")
    low, high = at[there[0]], at[there[-1]]
    chosen = there[np.abs(at[there] - (low + high) / 2) <= share * (high - low)]
    if len(chosen) < _LEAST_SAMPLES:
        raise NotMeasured("its outline is too small")
    x, y = at[chosen], edge[chosen]
    weight = np.ones_like(x)
    for _ in range(8):
        level, slope = straight_line(x, y, weight)
        weight = 1 / np.maximum(np.abs(y - level - slope * x), 0.05)
    return level, slope, jackknife(x, y)[1]


def _check_filled(mask: np.ndarray, corners: np.ndarray) -> None:
    """Raises:
    NotMeasured: an outline and its quadrangle have too little in common.
    """
    from ...imaging.quads import filled_quadrangles, is_quadrangle

    filled = filled_quadrangles(mask.shape, {1: corners}) > 0 if is_quadrangle(corners) else np.zeros_like(mask)
    if (filled & mask).sum() < _LEAST_FILLED * (filled | mask).sum():
        raise NotMeasured("its outline is not a quadrangle")


def _degrees(across: np.ndarray) -> float:
    return float(np.degrees(np.arctan2(across[1], across[0])))
