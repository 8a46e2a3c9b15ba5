"""The label image as every measurement asks for it: masks, centers, the spine's axis, values between voxels."""

from __future__ import annotations

import math

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ...anatomy import STRUCTURES, Extent, Kind, order_of
from ...imaging import as_it_lies, upright

STEP = 0.5
"""mm between samples; crossings are interpolated between them."""

Field = tuple[np.ndarray, np.ndarray]
"""A soft mask, and the position (mm) of its first voxel."""


class Scan:
    """Labels (slices, rows, columns) on the canonical grid.

    Positions are millimeters along the three axes, from the center of the first voxel.
    """

    def __init__(self, labels: sitk.Image, extent: Extent | None) -> None:
        self.image = upright(labels)
        self.labels = sitk.GetArrayFromImage(self.image)
        self.spacing = np.array(self.image.GetSpacing()[::-1])
        self.extent = extent
        self._source, self._lying = labels, as_it_lies(labels)
        self._boxes = ndimage.find_objects(self.labels)
        self._centers: dict[int, np.ndarray] = {}
        # What the spine's axis is told from, top down.
        levelled = sorted((i for i in self.ids if STRUCTURES[i].order is not None), key=order_of)
        self.column = [sid for sid in levelled if STRUCTURES[sid].is_vertebral]
        self.discs = [sid for sid in levelled if STRUCTURES[sid].kind is Kind.DISC]

    @property
    def ids(self) -> list[int]:
        return [i for i, box in enumerate(self._boxes, start=1) if box is not None and i in STRUCTURES]

    def box(self, sid: int) -> tuple[slice, slice, slice]:
        return self._boxes[sid - 1]

    def mask(self, sid: int) -> np.ndarray:
        """The structure in its box, bool."""
        return self.labels[self.box(sid)] == sid

    def is_cut(self, sid: int) -> bool:
        """Whether the image's border cuts the structure: part of it may be missing."""
        return any(b.start == 0 or b.stop == size for b, size in zip(self.box(sid), self.labels.shape, strict=True))

    def center_of_mass(self, sid: int) -> np.ndarray:
        """(slice, row, column) index of the mean of the structure's voxels."""
        return np.array(ndimage.center_of_mass(self.mask(sid))) + [b.start for b in self.box(sid)]

    def place_of(self, sid: int) -> tuple[float, float, float]:
        """Physical point (LPS, mm) of the mean of the structure's voxels, in the file's own coordinates."""
        point = self.image.TransformContinuousIndexToPhysicalPoint(self.center_of_mass(sid)[::-1].tolist())
        index = self._lying.TransformPhysicalPointToContinuousIndex(point)
        return self._source.TransformContinuousIndexToPhysicalPoint(index)

    def center(self, sid: int) -> np.ndarray:
        """Center in mm; of a whole vertebra that of its front half, roughly the body."""
        if sid not in self._centers:
            mask = self.mask(sid)
            if self.extent is Extent.WHOLE and STRUCTURES[sid].kind is Kind.VERTEBRA:
                mask[:, :, max(mask.shape[2] // 2, 1) :] = False
            index = np.array(ndimage.center_of_mass(mask)) + [b.start for b in self.box(sid)]
            self._centers[sid] = index * self.spacing
        return self._centers[sid]

    def axis(self, sid: int) -> np.ndarray:
        """Unit vector along the spine, downwards: from the neighbors' centers, else from the mask's own shape."""
        order = STRUCTURES[sid].order
        if order is not None:
            chain = self.column if STRUCTURES[sid].is_vertebral or len(self.column) > 1 else self.discs
            above = [i for i in chain if order_of(i) < order]
            below = [i for i in chain if order_of(i) > order]
            ends = [above[-1] if above else sid, below[0] if below else sid]
            if ends[0] != ends[1]:
                along = self.center(ends[1]) - self.center(ends[0])
                return along / np.linalg.norm(along)
        return self._own_axis(sid)

    def _own_axis(self, sid: int) -> np.ndarray:
        """Principal axis within the sagittal plane that is nearest to the vertical; for discs the shortest one."""
        points = np.argwhere(self.mask(sid))[:, 1:] * self.spacing[1:]
        if len(points) < 3:
            return np.array([0.0, 1.0, 0.0])
        _, vectors = np.linalg.eigh(np.cov(points.T))
        short, long = vectors[:, 0], vectors[:, 1]
        axis = short if STRUCTURES[sid].kind is Kind.DISC or abs(short[0]) >= abs(long[0]) else long
        return np.array([0.0, *(axis if axis[0] >= 0 else -axis)])

    def field(self, sid: int, blur: float = 0.5) -> Field:
        """The mask as a soft field with room around it.

        Half a voxel of smoothing in the sagittal plane turns stairs into slopes and leaves straight edges in place.
        """
        pad = math.ceil(4 * blur)
        values = np.pad(self.mask(sid).astype(np.float32), ((0, 0), (pad, pad), (pad, pad)))
        values = ndimage.gaussian_filter(values, (0.0, blur, blur))
        first = np.array([b.start for b in self.box(sid)]) - [0, pad, pad]
        return values, first * self.spacing

    def sample(self, field: Field, points: np.ndarray) -> np.ndarray:
        """Values between voxels at `points` (…, 3) in mm; beyond the outermost slice its values continue."""
        values, first = field
        index = (points - first) / self.spacing
        return ndimage.map_coordinates(values, np.moveaxis(index, -1, 0), order=1, mode="nearest")

    def reaches_border(self, points: np.ndarray) -> bool:
        """Whether points (n, 3) reach the image's border within the sagittal plane, so that more may lie outside."""
        limits = (np.array(self.labels.shape[1:]) - 1) * self.spacing[1:]
        return bool((points[:, 1:].min(axis=0) < 0).any() or (points[:, 1:].max(axis=0) > limits).any())


def square_to(axis: np.ndarray) -> np.ndarray:
    """Unit vector backwards, square to the spine's axis."""
    back = np.array([0.0, 0.0, 1.0])
    back = back - (back @ axis) * axis
    return back / np.linalg.norm(back)


def central_part(plane: np.ndarray) -> np.ndarray:
    """The connected part that lies nearest to the middle; the rest (a spinous process, an island) set to zero."""
    parts, count = ndimage.label(plane >= 0.5)
    if not count:
        return plane
    inside = np.argwhere(parts)
    middle = (np.array(plane.shape) - 1) / 2
    nearest = inside[np.argmin(((inside - middle) ** 2).sum(axis=1))]
    return plane * ndimage.binary_dilation(parts == parts[tuple(nearest)])  # with the slope of its own edge


def edges(plane: np.ndarray, along: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each column of `plane` (along, across) where it first rises above and last falls below one half, or NaN."""
    above = plane >= 0.5
    any_above = above.any(axis=0)
    columns = np.arange(plane.shape[1])
    first = np.clip(above.argmax(axis=0), 1, len(along) - 1)
    last = np.clip(len(along) - 1 - above[::-1].argmax(axis=0), 0, len(along) - 2)

    def crossing(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        a, b = plane[low, columns], plane[high, columns]
        part = np.divide(0.5 - a, b - a, out=np.full(a.shape, 0.5), where=np.abs(b - a) > 1e-6)
        return np.where(any_above, along[low] + np.clip(part, 0, 1) * (along[high] - along[low]), np.nan)

    return crossing(first - 1, first), crossing(last, last + 1)
