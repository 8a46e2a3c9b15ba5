"""Geometry and intensity of images: from a file of any orientation to the canonical grid, and exactly back.

The *canonical grid* of an image has its own axes, reordered and flipped so that arrays run from the patient's left to
the right (axis 0, slices), from superior to inferior (axis 1, rows) and from anterior to posterior (axis 2, columns):
``PIR`` for `SimpleITK.DICOMOrient`. Oblique direction cosines are kept; nothing is ever resampled by rotation, so the
way back is only a change of pixel size along each axis. Points are in LPS millimetres, as in SimpleITK.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Literal

import numpy as np
import SimpleITK as sitk
from pydantic import BaseModel, ConfigDict, Field, model_validator

from .errors import ImageError

Plane = Literal["sagittal", "axial", "coronal", "isotropic", "single-slice"]

# Columns are the canonical image's x, y and z axes in LPS: toward posterior, inferior and the patient's right.
_PIR = np.array([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
SAGITTAL_DIRECTION: tuple[float, ...] = tuple(_PIR.ravel())
"""Direction cosines of a picture whose rows run downwards and whose columns run from anterior to posterior."""

_SPACING_RANGE_MM = (0.02, 25.0)  # finer than a micro-CT of a mouse, or coarser than any localizer: a damaged header
_ISOTROPIC_RATIO = 1.5  # of the largest spacing to the smallest one, up to which no plane is preferred
_ISOTROPIC_MM = 1.5  # slices as thin as this serve every plane, whatever the pixel size
_SAME_SPACING = 1e-3  # relative difference that is rounding, not another pixel size


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
            and np.allclose(self.origin, other.origin, atol=1e-2 * min(self.spacing))
        )


@dataclass(frozen=True)
class CanonicalVolume:
    """An image on the canonical grid, ready for a network.

    Attributes:
        array: (D, H, W) float32, slices from left to right, rows downwards, columns from anterior to posterior.
        spacing: mm along (slices, rows, columns).
        geometry: of the canonical grid.
        source: geometry of the image it came from.
    """

    array: np.ndarray
    spacing: tuple[float, float, float]
    geometry: Geometry
    source: Geometry
    # For each canonical axis (slices, rows, columns): the source's numpy axis, and whether that one runs backwards.
    _axes: tuple[int, int, int] = field(repr=False)
    _flips: tuple[bool, bool, bool] = field(repr=False)

    @property
    def image(self) -> sitk.Image:
        """The array as a SimpleITK image with its geometry."""
        return self.geometry.image(self.array)

    def index_of(self, point: Sequence[float]) -> tuple[float, float, float]:
        """Fractional (slice, row, column) of a physical point (LPS, mm); may lie outside the array."""
        g = self.geometry
        xyz = np.linalg.solve(g.matrix, np.asarray(point, float) - g.origin) / g.spacing
        return tuple(float(v) for v in xyz[::-1])  # type: ignore[return-value]

    def point_of(self, index: Sequence[float]) -> tuple[float, float, float]:
        """Physical point (LPS, mm) of a fractional (slice, row, column)."""
        g = self.geometry
        point = g.matrix @ (np.asarray(index, float)[::-1] * g.spacing) + g.origin
        return tuple(float(v) for v in point)  # type: ignore[return-value]


class Preprocessing(BaseModel):
    """How images become a network's input. Stored in the checkpoint; used by training and inference alike."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pixel_mm: float = Field(1.0, gt=0, le=20, description="In-plane pixel size, along rows and columns (mm).")
    min_slice_mm: float = Field(2.0, gt=0, le=20, description="Finer stacks are resampled to this slice spacing (mm).")
    intensity: Literal["percentile", "hu"] = Field(
        "percentile",
        description="“percentile”: low and high are percentiles of the volume; “hu”: they are Hounsfield units.",
    )
    low: float = Field(0.5, description="Intensity that becomes -2.")
    high: float = Field(99.5, description="Intensity that becomes +2.")
    modality: str = Field("MR", description="Modality that the checkpoint was trained on.")
    planes: tuple[Plane, ...] = Field(
        ("sagittal", "isotropic", "single-slice"), description="Acquisition planes that are accepted."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Preprocessing:
        if not self.low < self.high:
            raise ValueError(f"low ({self.low}) must be less than high ({self.high})")
        if self.intensity == "percentile" and not 0 <= self.low < self.high <= 100:
            raise ValueError(f"percentiles must lie in 0…100, not {self.low} and {self.high}")
        return self

    @property
    def padding(self) -> float:
        """Value of air in the network's input, for padding."""
        return -2.0

    def forward(self, image: sitk.Image) -> CanonicalVolume:
        """Reorient, resample and normalise an image; intensities end in -2…2.

        Raises:
            ImageError: if the content is unusable (`check_image`) or the plane is not one that is accepted.
        """
        image = check_image(image)
        found = plane(image)
        if found not in self.planes:
            raise ImageError(
                f"This is a {found} image; the checkpoint takes {', '.join(self.planes)}.",
                "Choose a sagittal series, or a checkpoint for this kind of image.",
            )
        canonical, steps = self._grid(Geometry.of(image))
        source = sitk.GetArrayViewFromImage(image)
        low, high = self.low, self.high
        if self.intensity == "percentile":
            values = source.reshape(-1)
            low, high = np.percentile(values[:: max(1, values.size // 1_000_000)], (low, high))
            if not low < high:  # nearly everything is air: an image with a few bright voxels
                low, high = float(values.min()), float(values.max())
        array = _reorder(source, canonical._axes, canonical._flips).astype(np.float32)
        array = _interpolate(array, steps)
        array -= np.float32(low)
        array *= np.float32(4.0 / (high - low))
        array -= np.float32(2.0)
        np.clip(array, -2.0, 2.0, out=array)
        return CanonicalVolume(
            array, canonical.spacing, canonical.geometry, canonical.source, canonical._axes, canonical._flips
        )

    def forward_label(self, label: sitk.Image, canonical: CanonicalVolume) -> np.ndarray:
        """Labels on the canonical grid by nearest neighbour: (D, H, W) int16.

        A label image on another grid than the image's is resampled; outside it there is background.

        Raises:
            ImageError: if the label image is not scalar, or holds values that are not whole numbers.
        """
        label = _lift(label, "label image")
        values = sitk.GetArrayViewFromImage(label)
        if np.issubdtype(values.dtype, np.floating) and not np.array_equal(values, np.rint(values)):
            raise ImageError("The label image holds values that are not whole numbers.", "Choose the label file.")
        if not Geometry.of(label).matches(canonical.source):
            label = sitk.Cast(label, sitk.sitkInt16)
            reference = canonical.geometry.image(np.zeros(canonical.array.shape, np.uint8))
            label = sitk.Resample(label, reference, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
            return sitk.GetArrayFromImage(label)
        array = _reorder(values, canonical._axes, canonical._flips)
        return _nearest(array, _steps(array.shape, canonical.array.shape, canonical)).astype(np.int16)

    def _grid(self, source: Geometry) -> tuple[CanonicalVolume, tuple[_Step, _Step, _Step]]:
        """The canonical grid of a geometry, with an empty array, and the steps to resample to it."""
        axes, flips = _canonical_axes(source)
        spacing = np.array(source.spacing)[::-1][list(axes)]
        size = np.array(source.size)[::-1][list(axes)]
        wanted = (max(spacing[0], self.min_slice_mm), self.pixel_mm, self.pixel_mm)
        if size[0] == 1:
            wanted = (spacing[0], *wanted[1:])
        steps = tuple(_Step.between(int(n), float(s), float(w)) for n, s, w in zip(size, spacing, wanted, strict=True))
        new_size = tuple(s.target for s in steps)
        new_spacing = tuple(s.ratio * float(mm) for s, mm in zip(steps, spacing, strict=True))
        # Physical position of the first canonical voxel, and direction of the canonical axes.
        matrix = source.matrix[:, ::-1][:, list(axes)] * np.where(flips, -1.0, 1.0)
        first_index = np.zeros(3)  # in source numpy axes
        for step, axis, flip, n in zip(steps, axes, flips, size, strict=True):
            first_index[axis] = n - 1 - step.first if flip else step.first
        origin = source.matrix @ (first_index[::-1] * source.spacing) + source.origin
        geometry = Geometry(
            tuple(reversed(new_size)),  # type: ignore[arg-type]
            tuple(reversed(new_spacing)),  # type: ignore[arg-type]
            tuple(float(v) for v in origin),  # type: ignore[arg-type]
            tuple(float(v) for v in matrix[:, ::-1].ravel()),
        )
        empty = np.empty(new_size, np.float32)
        return CanonicalVolume(empty, new_spacing, geometry, source, axes, flips), steps  # type: ignore[arg-type]


def back_to_source_many(
    arrays: np.ndarray, canonical: CanonicalVolume, *, order: int = 1, dtype: type | np.dtype = np.float32
) -> np.ndarray:
    """Arrays (C, D, H, W) on the canonical grid → (C, z, y, x) on the source's voxels.

    Args:
        order: 1 for linear interpolation, 0 for nearest neighbour (labels).
        dtype: of the result; linear interpolation itself is float32.
    """
    return np.stack([_back(array, canonical, order).astype(dtype, copy=False) for array in arrays])


def back_to_source(
    array: np.ndarray, canonical: CanonicalVolume, *, order: int = 1, dtype: type | np.dtype = np.float32
) -> sitk.Image:
    """An array (D, H, W) on the canonical grid → an image in exactly the source's geometry.

    Args:
        order: 1 for linear interpolation, 0 for nearest neighbour (labels).
        dtype: of the image's voxels.
    """
    return canonical.source.image(_back(array, canonical, order).astype(dtype, copy=False))


def _back(array: np.ndarray, canonical: CanonicalVolume, order: int) -> np.ndarray:
    if array.shape != canonical.array.shape:
        raise ValueError(f"array has shape {array.shape}, the canonical grid {canonical.array.shape}")
    target = tuple(np.array(canonical.source.size)[::-1][list(canonical._axes)])
    steps = _steps(array.shape, target, canonical)
    result = _interpolate(array.astype(np.float32, copy=False), steps) if order else _nearest(array, steps)
    return np.ascontiguousarray(_restore(result, canonical._axes, canonical._flips))


# --- axes ------------------------------------------------------------------------------------------------------------


def _canonical_axes(geometry: Geometry) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """For (slices, rows, columns): the source's numpy axis, and whether it must be flipped.

    Each canonical axis gets the source axis nearest to it. A single slice is its own slice axis whatever its direction;
    a picture that lies in the axial plane has no craniocaudal axis and is taken as it is, rows downwards.
    """
    cosines = (_PIR.T @ geometry.matrix)[::-1, ::-1]  # [canonical (slices, rows, columns), source numpy axis]
    singles = [axis for axis in range(3) if geometry.size[2 - axis] == 1]
    orders = list(permutations(range(3)))
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
    return best, tuple(bool(cosines[i, axis] < 0) for i, axis in enumerate(best))  # type: ignore[return-value]


def _reorder(array: np.ndarray, axes: Sequence[int], flips: Sequence[bool]) -> np.ndarray:
    return array.transpose(axes)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]


def _restore(array: np.ndarray, axes: Sequence[int], flips: Sequence[bool]) -> np.ndarray:
    return array[tuple(slice(None, None, -1 if flip else 1) for flip in flips)].transpose(np.argsort(axes))


# --- resampling along one axis ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Step:
    """Resampling along one axis; target voxel `i` lies at source index ``first + ratio * i``. Centres coincide."""

    size: int
    target: int
    first: float
    ratio: float

    @classmethod
    def between(cls, size: int, spacing: float, wanted: float) -> _Step:
        if abs(wanted / spacing - 1.0) < _SAME_SPACING:
            return cls(size, size, 0.0, 1.0)
        ratio = wanted / spacing
        return cls.centred(size, max(1, round(size / ratio)), ratio)

    @classmethod
    def centred(cls, size: int, target: int, ratio: float) -> _Step:
        return cls(size, target, ((size - 1) - (target - 1) * ratio) / 2.0, ratio)

    @property
    def is_identity(self) -> bool:
        return self.size == self.target and self.ratio == 1.0

    @property
    def positions(self) -> np.ndarray:
        return self.first + self.ratio * np.arange(self.target)

    def weights(self) -> np.ndarray:
        """(target, size) float32; rows sum to one.

        Linear interpolation; where the target is coarser, the triangle is wider accordingly (antialiasing).
        Beyond the edge the outermost voxel goes on.
        """
        width = max(1.0, self.ratio)
        positions = np.clip(self.positions, 0, self.size - 1)
        distance = np.abs(positions[:, None] - np.arange(self.size)[None, :])
        weights = np.maximum(0.0, 1.0 - distance / width)
        return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)

    def nearest(self) -> np.ndarray:
        """(target,) index of the nearest source voxel."""
        return np.clip(np.floor(self.positions + 0.5).astype(np.intp), 0, self.size - 1)


def _steps(shape: Sequence[int], target: Sequence[int], canonical: CanonicalVolume) -> tuple[_Step, _Step, _Step]:
    """Steps between the canonical grid and the reordered source, in the direction that the two shapes say."""
    source_spacing = np.array(canonical.source.spacing)[::-1][list(canonical._axes)]
    to_source = tuple(shape) == canonical.array.shape and tuple(target) == tuple(
        np.array(canonical.source.size)[::-1][list(canonical._axes)]
    )
    steps = []
    for size, new, fine, coarse in zip(shape, target, source_spacing, canonical.spacing, strict=True):
        ratio = float(fine / coarse if to_source else coarse / fine)
        same = size == new and abs(ratio - 1.0) < _SAME_SPACING
        steps.append(_Step(size, new, 0.0, 1.0) if same else _Step.centred(int(size), int(new), ratio))
    return tuple(steps)  # type: ignore[return-value]


def _interpolate(array: np.ndarray, steps: Sequence[_Step]) -> np.ndarray:
    """Separable linear resampling of (D, H, W) float32; always a new array. A matrix per axis: BLAS does the work."""
    slices, rows, columns = steps
    result = array
    if slices.target < slices.size and not slices.is_identity:
        result = np.tensordot(slices.weights(), result, axes=1)
    if not columns.is_identity:
        result = np.matmul(result, columns.weights().T)
    if not rows.is_identity:
        result = np.matmul(rows.weights(), result)
    if slices.target >= slices.size and not slices.is_identity:
        result = np.tensordot(slices.weights(), result, axes=1)
    return np.array(result, np.float32) if result is array else result


def _nearest(array: np.ndarray, steps: Sequence[_Step]) -> np.ndarray:
    return array[np.ix_(*(step.nearest() for step in steps))]


# --- what an image is ------------------------------------------------------------------------------------------------


def plane(image: sitk.Image) -> Plane:
    """Which acquisition a 3D image is: by its slice spacing and the direction of its slice axis."""
    geometry = Geometry.of(image)
    if 1 in geometry.size:
        return "single-slice"
    spacing = np.array(geometry.spacing)
    if spacing.max() <= _ISOTROPIC_RATIO * spacing.min() or spacing.max() <= _ISOTROPIC_MM:
        return "isotropic"
    axes, _ = _canonical_axes(geometry)
    slice_axis = 2 - int(np.argmax(spacing))  # numpy order
    return ("sagittal", "axial", "coronal")[axes.index(slice_axis)]  # type: ignore[return-value]


def _lift(image: sitk.Image, name: str) -> sitk.Image:
    """A scalar 3D image; a picture becomes one sagittal slice."""
    components = image.GetNumberOfComponentsPerPixel()
    if components > 1:
        raise ImageError(
            f"The {name} has {components} values per pixel (a colour picture or a vector image).",
            "Export it as a single-channel grey-scale image.",
        )
    if image.GetDimension() == 2:
        spacing, origin = image.GetSpacing(), image.GetOrigin()
        image = sitk.JoinSeries(image)
        image.SetSpacing((*spacing, 1.0))
        image.SetOrigin((0.0, origin[0], -origin[1]))
        image.SetDirection(SAGITTAL_DIRECTION)
    if image.GetDimension() != 3:
        raise ImageError(
            f"The {name} has {image.GetDimension()} dimensions (a time series or several contrasts in one file).",
            "Export one 3D volume of it.",
        )
    return image


def check_image(image: sitk.Image, *, name: str = "image") -> sitk.Image:
    """The image as a scalar 3D volume, if a spine could be segmented in it.

    A 2D picture becomes one sagittal slice: rows from superior to inferior, columns as in the picture.

    Args:
        name: what to call it in messages, e.g. a file or node name.

    Raises:
        ImageError: for colour, 4D, empty, constant and non-finite images, skewed axes and absurd spacing.
    """
    image = _lift(image, name)
    if min(image.GetSize()) == 0:
        raise ImageError(f"The {name} is empty.", "Choose another image.")
    spacing, direction = np.array(image.GetSpacing()), np.array(image.GetDirection()).reshape(3, 3)
    low, high = _SPACING_RANGE_MM
    if not (np.isfinite(spacing).all() and (spacing >= low).all() and (spacing <= high).all()):
        raise ImageError(
            f"The {name} has a voxel spacing of {' by '.join(f'{s:g}' for s in spacing)} mm.",
            f"Correct its header; {low:g} to {high:g} mm is taken.",
        )
    if not np.allclose(direction.T @ direction, np.eye(3), atol=1e-3):
        raise ImageError(
            f"The axes of the {name} are not perpendicular (a sheared or gantry-tilted volume).",
            "Resample it to a regular grid first, in Slicer with the module “Resample Scalar Volume”.",
        )
    array = sitk.GetArrayViewFromImage(image)
    least, most = float(array.min()), float(array.max())
    if not (np.isfinite(least) and np.isfinite(most)):  # NaN propagates through min and max
        raise ImageError(f"The {name} holds values that are not finite numbers (NaN or infinity).", "Export it again.")
    if least == most:
        raise ImageError(f"The {name} is the same everywhere ({least:g}).", "Choose an image that shows a spine.")
    return image
