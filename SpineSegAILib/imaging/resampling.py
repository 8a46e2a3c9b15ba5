"""From a source's voxels to the canonical grid, and exactly back.

Oblique direction cosines are kept; nothing is ever resampled by rotation, so the way back is only a change of pixel
size along each axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .geometry import Geometry

_MOST = float(np.finfo(np.float32).max) / 2
"""Interpolated values end here: infinity, which sums of larger ones are, times a weight of 0 is not a number."""
_SAME_SPACING = 1e-3  # relative difference that is rounding, not another pixel size


@dataclass(frozen=True)
class AxisStep:
    """Resampling along one axis; target voxel `i` lies at source index ``first + ratio * i``. Centers coincide."""

    size: int
    target: int
    first: float
    ratio: float

    @classmethod
    def between(cls, size: int, spacing: float, wanted: float) -> AxisStep:
        if abs(wanted / spacing - 1.0) < _SAME_SPACING:
            return cls(size, size, 0.0, 1.0)
        ratio = wanted / spacing
        target = max(1, round(size / ratio))
        return cls(size, target, ((size - 1) - (target - 1) * ratio) / 2.0, ratio)

    def inverse(self) -> AxisStep:
        """The way back."""
        return (
            self if self.is_identity else AxisStep(self.target, self.size, -self.first / self.ratio, 1.0 / self.ratio)
        )

    @property
    def is_identity(self) -> bool:
        return self.size == self.target and self.ratio == 1.0

    @property
    def positions(self) -> np.ndarray:
        return self.first + self.ratio * np.arange(self.target)

    def weights(self) -> np.ndarray:
        """(target, size) float32; rows sum to one.

        Linear interpolation; where the target is coarser, the triangle is wider accordingly (antialiasing).
        Beyond the edge the outermost voxel continues.
        """
        width = max(1.0, self.ratio)
        positions = np.clip(self.positions, 0, self.size - 1)
        distance = np.abs(positions[:, None] - np.arange(self.size)[None, :])
        weights = np.maximum(0.0, 1.0 - distance / width)
        return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)

    def nearest(self) -> np.ndarray:
        """(target,) index of the nearest source voxel."""
        return np.clip(np.floor(self.positions + 0.5).astype(np.intp), 0, self.size - 1)


@dataclass(frozen=True)
class Route:
    """The way from a source's voxels (z, y, x) to the canonical grid and back: axes reordered, flipped, resampled.

    Attributes:
        axes: for slices, rows and columns, the source's numpy axis.
        flips: whether that axis runs backwards.
        steps: resampling along slices, rows and columns.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    steps: tuple[AxisStep, AxisStep, AxisStep]

    @property
    def _flip(self) -> tuple[slice, ...]:
        return tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)

    def forward(self, array: np.ndarray, order: int) -> np.ndarray:
        """Array (z, y, x) on the source → new array (D, H, W); linear interpolation gives float32."""
        return _resample(array.transpose(self.axes)[self._flip], self.steps, order)

    def back(self, array: np.ndarray, order: int) -> np.ndarray:
        """Array (D, H, W) → (z, y, x) on the source; a view of a new array."""
        result = _resample(array, [step.inverse() for step in self.steps], order)
        return result[self._flip].transpose(np.argsort(self.axes))

    def geometry(self, source: Geometry) -> Geometry:
        """Geometry of the canonical grid."""
        spacing = [source.spacing[2 - axis] * step.ratio for axis, step in zip(self.axes, self.steps, strict=True)]
        signs = np.where(self.flips, -1.0, 1.0)
        directions = source.matrix[:, ::-1][:, list(self.axes)] * signs  # columns: slices, rows, columns
        first = np.zeros(3)  # index (z, y, x) of the first canonical voxel in the source
        for axis, flip, step in zip(self.axes, self.flips, self.steps, strict=True):
            first[axis] = step.size - 1 - step.first if flip else step.first
        x, y, z = (source.matrix @ (first[::-1] * source.spacing) + source.origin).tolist()
        slices, rows, columns = self.steps
        slice_mm, row_mm, column_mm = map(float, spacing)
        return Geometry(
            (columns.target, rows.target, slices.target),
            (column_mm, row_mm, slice_mm),
            (x, y, z),
            tuple(directions[:, ::-1].ravel().tolist()),
        )


def _resample(array: np.ndarray, steps: Sequence[AxisStep], order: int) -> np.ndarray:
    """Separable resampling of (D, H, W); always a new array. BLAS does the linear one, a matrix per axis."""
    if order == 0:
        return array[np.ix_(*(step.nearest() for step in steps))]
    slices, rows, columns = steps
    with np.errstate(over="ignore"):
        result = np.ascontiguousarray(array, np.float32)
    if array.dtype.kind == "f" and max(result.max(initial=0.0), -result.min(initial=0.0)) > _MOST:
        result = np.clip(result, -_MOST, _MOST)
    if slices.target < slices.size:
        result = np.tensordot(slices.weights(), result, axes=1)
    for axis in (1, 2) if rows.target / rows.size < columns.target / columns.size else (2, 1):
        if not steps[axis].is_identity:
            weights = steps[axis].weights()
            result = np.matmul(weights, result) if axis == 1 else np.matmul(result, weights.T)
    if slices.target >= slices.size and not slices.is_identity:
        result = np.tensordot(slices.weights(), result, axes=1)
    return result.copy() if np.shares_memory(result, array) else result
