"""Where voxels lie: geometry, planes and the axes of the canonical grid.

The *canonical grid* of an image has its own axes, reordered and flipped so that arrays run from the patient's left to
the right (axis 0, slices), from superior to inferior (axis 1, rows) and from anterior to posterior (axis 2, columns):
``PIR`` for `SimpleITK.DICOMOrient`. Points are in LPS millimeters, as in SimpleITK.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

import numpy as np
import SimpleITK as sitk

from .tags import DIRECTION_TAG, carry_tags

Plane = Literal["sagittal", "axial", "coronal", "isotropic", "single-slice"]

# Columns are the canonical image's x, y and z axes in LPS: toward posterior, inferior and the patient's right.
_PIR = np.array([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
SAGITTAL_DIRECTION: tuple[float, ...] = tuple(_PIR.ravel())
"""Direction cosines of a picture whose rows run downwards and whose columns run from anterior to posterior."""
EXACT, NEARLY = 1e-4, 1e-3
"""Shear up to which axes count as perpendicular: as they are, and once turned to the nearest ones that are."""
PERPENDICULAR = "Resample it to a regular grid first, in Slicer with the module “Resample Scalar Volume”."
"""The remedy for axes that are not."""
_FEW_LABELS = 1 << 16  # up to here, counting all values takes little memory

_ISOTROPIC_RATIO = 1.5  # of the largest spacing to the smallest one, up to which no plane is preferred
_ISOTROPIC_MM = 1.5  # slices as thin as this serve every plane, whatever the pixel size


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of an image lie: SimpleITK's size, spacing (mm), origin (LPS, mm) and direction, x first."""

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]

    @classmethod
    def of(cls, image: sitk.Image) -> Geometry:
        """Geometry of a 3D image."""
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    @property
    def matrix(self) -> np.ndarray:
        """(3, 3) direction cosines; columns are the x, y and z axes in LPS."""
        return np.array(self.direction).reshape(3, 3)

    def image(self, array: np.ndarray) -> sitk.Image:
        """SimpleITK image of an array (z, y, x) that lies on this geometry."""
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction)
        return image

    def matches(self, other: Geometry) -> bool:
        """True where the voxels coincide, up to rounding in file headers."""
        return (
            self.size == other.size
            and np.allclose(self.spacing, other.spacing, rtol=1e-3)
            and np.allclose(self.direction, other.direction, atol=1e-3)
            and np.allclose(self.origin, other.origin, atol=0.1 * min(self.spacing))
        )


RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""(4, 4) from SimpleITK's and DICOM's millimeters to Slicer's; its own inverse."""


def index_to_lps(image: sitk.Image) -> np.ndarray:
    """(4, 4) matrix from voxel index (i, j, k) to LPS millimeters."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    matrix[:3, 3] = image.GetOrigin()
    return matrix


def set_index_to_lps(image: sitk.Image, matrix: np.ndarray) -> None:
    """Give an image the spacing, origin and direction of such a matrix."""
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(matrix[:3, 3].tolist())
    image.SetDirection((matrix[:3, :3] / spacing).ravel().tolist())


def shear(matrix: np.ndarray) -> float:
    """Largest cosine between two axes (columns); infinite where one has no length."""
    with np.errstate(all="ignore"):
        axes = matrix / np.linalg.norm(matrix, axis=0)
    if not np.isfinite(axes).all():
        return math.inf
    return float(np.abs(axes.T @ axes - np.eye(axes.shape[1])).max())


def nearest_rotation(matrix: np.ndarray) -> np.ndarray:
    """The orthonormal axes nearest to a matrix's columns; a reflection stays one."""
    u, _, vt = np.linalg.svd(matrix / np.linalg.norm(matrix, axis=0), full_matrices=False)
    return u @ vt


def like(image: sitk.Image, array: np.ndarray) -> sitk.Image:
    """An array (z, y, x) as an image on another one's voxels, with what its file says about them (`tags`)."""
    made = sitk.GetImageFromArray(array)
    made.CopyInformation(image)
    return carry_tags(image, made)


def ids_in(labels: sitk.Image) -> list[int]:
    """The values of an image of labels but 0, ascending. Counting is several times as fast as sorting."""
    values = sitk.GetArrayViewFromImage(labels)
    if values.min(initial=0) < 0 or values.max(initial=0) >= _FEW_LABELS:
        found = np.unique(values)
    else:
        found = np.flatnonzero(np.bincount(values.ravel()))
    return [int(v) for v in found if v]


def view_mm(source: Geometry) -> np.ndarray:
    """mm along slices, rows and columns that an image shows."""
    axes, _ = canonical_axes(source)
    return np.multiply(source.size, source.spacing)[::-1][list(axes)]


def facing(source: Geometry) -> Literal["", "axial", "coronal"]:
    """Where a single slice does not face left or right by its header, what it is instead; else nothing."""
    single = source.size.index(1)
    left, front, up = abs(source.matrix[:, single])
    return "" if left >= 0.5 else "axial" if up > front else "coronal"


def canonical_axes(geometry: Geometry) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """For (slices, rows, columns): the source's numpy axis, and whether it must be flipped.

    Each canonical axis gets the source axis nearest to it. A single slice is its own slice axis whatever its direction;
    a picture that lies in the axial plane has no craniocaudal axis and is taken as it is, rows downwards.
    """
    cosines = (_PIR.T @ geometry.matrix)[::-1, ::-1]  # [canonical (slices, rows, columns), source numpy axis]
    singles = [axis for axis in range(3) if geometry.size[2 - axis] == 1]
    orders = list(permutations((0, 1, 2), 3))
    if len(singles) == 1:
        single = singles[0]
        rest = [axis for axis in range(3) if axis != single]
        if max(abs(cosines[1, axis]) for axis in rest) < 0.5:  # no axis within 60° of craniocaudal
            return (single, rest[0], rest[1]), (False, False, False)
        orders = [order for order in orders if order[0] == single]
        cosines = cosines.copy()
        cosines[0] = 0.0
        if abs(geometry.matrix[1, 2 - single]) > 0.7:  # coronal: columns from the patient's right to left, as displayed
            cosines[2] = (np.array([1.0, 0.0, 0.0]) @ geometry.matrix)[::-1]
    best = max(orders, key=lambda order: sum(abs(cosines[i, axis]) for i, axis in enumerate(order)))
    slices, rows, columns = best
    return best, (bool(cosines[0, slices] < 0), bool(cosines[1, rows] < 0), bool(cosines[2, columns] < 0))


def direction_of(axes: Sequence[int], flips: Sequence[bool]) -> tuple[float, ...]:
    """The direction with which an image has these canonical axes: `canonical_axes` the other way round.

    Args:
        axes: for slices, rows and columns, the source's numpy axis.
        flips: whether it runs the other way.
    """
    matrix = np.zeros((3, 3))
    for canonical, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        matrix[:, 2 - axis] = _PIR[:, 2 - canonical] * (-1.0 if flip else 1.0)
    return tuple(matrix.ravel().tolist())


def as_it_lies(image: sitk.Image) -> sitk.Image:
    """The image with the direction that counts, where that is not its file's: the one that was found from the picture,
    where the file tells none; of a single slice the one that it is taken for (`canonical_axes`). Else itself."""
    if image.HasMetaDataKey(DIRECTION_TAG):
        direction = [float(word) for word in image.GetMetaData(DIRECTION_TAG).split()]
    elif 1 in image.GetSize():
        direction = list(direction_of(*canonical_axes(Geometry.of(image))))
    else:
        return image
    turned = sitk.Image(image)
    turned.SetDirection(direction)
    return turned


def upright(image: sitk.Image) -> sitk.Image:
    """The image as it lies, with the axes of the canonical grid: arrays run to the right, downwards and backwards.

    Physical points in it are those of the file only where the file tells how it lies (`as_it_lies`).
    """
    return sitk.DICOMOrient(as_it_lies(image), "PIR")


def plane(image: sitk.Image) -> Plane:
    """Which acquisition a 3D image is: by its slice spacing and the direction of its slice axis."""
    geometry = Geometry.of(image)
    if 1 in geometry.size:
        return "single-slice"
    spacing = np.array(geometry.spacing)
    if spacing.max() <= _ISOTROPIC_RATIO * spacing.min() or spacing.max() <= _ISOTROPIC_MM:
        return "isotropic"
    axes, _ = canonical_axes(geometry)
    slice_axis = 2 - int(np.argmax(spacing))  # numpy order
    return ("sagittal", "axial", "coronal")[axes.index(slice_axis)]
