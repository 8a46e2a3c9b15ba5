"""The spinal canal: its depth at the level of a vertebra or disc."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ...anatomy import CANAL_ID
from .rows import NotMeasured
from .scan import STEP, Field, Scan, edges, square_to

_ACROSS = (-3.0, -1.5, 0.0, 1.5, 3.0)  # mm to the left and right of the canal's center
_ALONG = 5.0  # mm up and down over which the canal's direction is taken
_ENDS = "the canal's outline ends there"


@dataclass(frozen=True)
class Canal:
    """The canal as a line of centers, one per row, with its soft mask.

    Attributes:
        line: (n, 3) centers in mm, top down.
    """

    scan: Scan
    field: Field
    line: np.ndarray

    @classmethod
    def of(cls, scan: Scan) -> Canal | None:
        """The canal that is labeled; None if it is too short."""
        mask = scan.mask(CANAL_ID)
        rows = np.flatnonzero(mask.any(axis=(0, 2)))
        if len(rows) < 3:
            return None
        start = np.array([b.start for b in scan.box(CANAL_ID)])
        centers = [ndimage.center_of_mass(mask[:, r]) for r in rows]
        line = (np.array([(c[0], r, c[1]) for r, c in zip(rows, centers, strict=True)]) + start) * scan.spacing
        sigma = 2.0 / scan.spacing[1]  # 2 mm: rows differ by where their voxels happen to end
        line = ndimage.gaussian_filter1d(line, sigma, axis=0, mode="nearest")
        return cls(scan, scan.field(CANAL_ID), line)

    def depth_at(self, center: np.ndarray, axis: np.ndarray) -> float:
        """Depth (AP, mm) where the plane through `center`, square to `axis`, meets the canal.

        Raises:
            NotMeasured: it does not.
        """
        height = (self.line - center) @ axis
        nearest = int(np.argmin(np.abs(height)))
        step = max(round(_ALONG / self.scan.spacing[1]), 1)
        if abs(height[nearest]) > self.scan.spacing[1] or not step <= nearest < len(self.line) - step:
            raise NotMeasured(_ENDS)
        along = self.line[nearest + step] - self.line[nearest - step]
        along = along / np.linalg.norm(along)
        back = square_to(along)
        side = np.cross(along, back)
        across = np.arange(-25.0, 25.0 + STEP, STEP)
        points = (
            self.line[nearest]
            + across[:, np.newaxis, np.newaxis, np.newaxis] * back
            + np.array((-2.0, -1.0, 0.0, 1.0, 2.0))[:, np.newaxis, np.newaxis] * along
            + np.array(_ACROSS)[:, np.newaxis] * side
        )
        first, last = edges(self.scan.sample(self.field, points).mean(axis=1), across)
        depths = last - first
        if np.isnan(depths).all():
            raise NotMeasured(_ENDS)
        # The sac is round: its depth is where it is deepest, which rough slices put a little to one side.
        return float(np.nanmax(depths))
