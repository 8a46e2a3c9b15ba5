"""Geometry and intensity of images: from a file of any orientation to the canonical grid, and exactly back.

The *canonical grid* of an image has its own axes, reordered and flipped so that arrays run from the patient's left to
the right (axis 0, slices), from superior to inferior (axis 1, rows) and from anterior to posterior (axis 2, columns):
``PIR`` for `SimpleITK.DICOMOrient`. Oblique direction cosines are kept; nothing is ever resampled by rotation, so the
way back is only a change of pixel size along each axis. Points are in LPS millimetres, as in SimpleITK.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Literal

import numpy as np
import SimpleITK as sitk
from pydantic import BaseModel, ConfigDict, Field, model_validator

from .errors import ImageError, is_out_of_memory
from .files import this_very_file

Plane = Literal["sagittal", "axial", "coronal", "isotropic", "single-slice"]

# Columns are the canonical image's x, y and z axes in LPS: toward posterior, inferior and the patient's right.
_PIR = np.array([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
SAGITTAL_DIRECTION: tuple[float, ...] = tuple(_PIR.ravel())
"""Direction cosines of a picture whose rows run downwards and whose columns run from anterior to posterior."""

_SPACING_RANGE_MM = (0.02, 25.0)  # finer than a micro-CT of a mouse, or coarser than any localizer: a damaged header
_ISOTROPIC_RATIO = 1.5  # of the largest spacing to the smallest one, up to which no plane is preferred
_ISOTROPIC_MM = 1.5  # slices as thin as this serve every plane, whatever the pixel size
_LEAST_VIEW_MM = 30.0  # a lumbar body is 27 mm high
_LARGEST_VIEW_MM = 3000.0  # longer than any patient, and more than memory holds
_AIR_HU, _AIR_SHARE = (-1200, -900), 0.02  # of an image's values, from which on it is taken for CT
_PADDING_SHARE, _PADDING_GAP = 0.005, 5.0  # of the values; in widths of the contrast of the rest
_MODALITIES = {"MR": "MR", "CT": "CT", "XR": "radiographs"}  # that checkpoints are for
MODALITY_TAG = "0008|0060"
"""DICOM's, as an image's metadata."""
PICTURE = "picture"
"""What `MODALITY_TAG` holds where the image came from a PNG or JPEG."""
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
            and np.allclose(self.origin, other.origin, atol=0.1 * min(self.spacing))
        )


@dataclass(frozen=True)
class CanonicalVolume:
    """An image on the canonical grid, ready for a network.

    Attributes:
        array: (D, H, W) float32, slices from left to right, rows downwards, columns from anterior to posterior.
        spacing: mm along (slices, rows, columns), as the network is to see them: divided by the scale of
            `Preprocessing.forward`.
        geometry: of the canonical grid, in true mm.
        source: geometry of the image it came from.
    """

    array: np.ndarray
    spacing: tuple[float, float, float]
    geometry: Geometry
    source: Geometry
    _route: _Route = field(repr=False)

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

    def forward(self, image: sitk.Image, scale: float = 1.0) -> CanonicalVolume:
        """Reorient, resample and normalise an image; intensities end in -2…2.

        Args:
            scale: how many times its usual size the anatomy has. The pixels grow by it, so that a network meets the
                sizes it has learnt, and `CanonicalVolume.spacing` is in mm of usual anatomy.

        Raises:
            ImageError: if the content is unusable (`check_image`) or the plane is not one that is accepted.
        """
        image = check_image(image)
        found = plane(image)
        if found == "single-slice" and _told(image) in _STACKS:  # then its direction is not just a picture's
            found = _facing(Geometry.of(image)) or found
        if found not in self.planes:
            wanted = "a sagittal series" if "sagittal" in self.planes else f"one that is {self.planes[0]}"
            raise ImageError(
                f"The image is {found}; the checkpoint takes what is {' or '.join(self.planes)}.",
                f"Choose {wanted}, or a checkpoint for this kind of image.",
            )
        source = Geometry.of(image)
        route = self._route(source, scale)
        _refuse_larger_than_life(source)
        values = sitk.GetArrayViewFromImage(image)
        low, high = self.low, self.high
        if self.intensity == "percentile":
            some = _some(values)
            kept = _without_padding(some)
            low, high = np.percentile(kept, (low, high))
            if kept.size < some.size:  # where it is mixed with its neighbours, it would drown them
                values = np.clip(values, kept.min(), kept.max())
            if not low < high:  # nearly everything is air: an image with a few bright voxels
                low, high = float(values.min()), float(values.max())
        array = route.forward(values, order=1)
        array -= np.float32(low)
        array *= np.float32(4.0 / (high - low))
        array -= np.float32(2.0)
        np.clip(array, -2.0, 2.0, out=array)
        geometry = route.geometry(source)
        z, y, x = (step / scale for step in geometry.spacing[::-1])
        return CanonicalVolume(array, (z, y, x), geometry, source, route)

    def forward_label(self, label: sitk.Image, canonical: CanonicalVolume) -> np.ndarray:
        """Labels on the canonical grid by nearest neighbour: (D, H, W) int16.

        A label image on another grid than the image's is resampled; outside it there is background.

        Raises:
            ImageError: if the label image is not scalar, or holds values that are not whole numbers.
        """
        label = as_volume(label, "label image")
        values = sitk.GetArrayViewFromImage(label)
        if np.issubdtype(values.dtype, np.floating) and not np.array_equal(values, np.rint(values)):
            raise ImageError("The label image holds values that are not whole numbers.", "Choose the label file.")
        if not Geometry.of(label).matches(canonical.source):
            label = sitk.Cast(label, sitk.sitkInt16)
            g = canonical.geometry
            nearest = sitk.sitkNearestNeighbor
            label = sitk.Resample(label, g.size, sitk.Transform(), nearest, g.origin, g.spacing, g.direction, 0)
            return sitk.GetArrayFromImage(label)
        return canonical._route.forward(values, order=0).astype(np.int16, copy=False)

    def _route(self, source: Geometry, scale: float) -> _Route:
        axes, flips = _canonical_axes(source)
        size, spacing = (np.array(v)[::-1][list(axes)] for v in (source.size, source.spacing))
        slice_mm = spacing[0] if size[0] == 1 else max(spacing[0], scale * self.min_slice_mm)
        wanted = (slice_mm, scale * self.pixel_mm, scale * self.pixel_mm)
        steps = (_Step.between(int(n), float(s), float(w)) for n, s, w in zip(size, spacing, wanted, strict=True))
        return _Route(axes, flips, tuple(steps))  # type: ignore[arg-type]


def back_to_source_many(
    arrays: np.ndarray, canonical: CanonicalVolume, *, order: int = 1, dtype: type | np.dtype = np.float32
) -> np.ndarray:
    """Arrays (C, D, H, W) on the canonical grid → (C, z, y, x) on the source's voxels.

    Args:
        order: 1 for linear interpolation, 0 for nearest neighbour (labels).
        dtype: of the result; linear interpolation itself is float32.
    """
    result = np.empty((len(arrays), *reversed(canonical.source.size)), dtype)
    for target, array in zip(result, arrays, strict=True):
        target[...] = _back(array, canonical, order)
    return result


def back_to_source(
    array: np.ndarray, canonical: CanonicalVolume, *, order: int = 1, dtype: type | np.dtype = np.float32
) -> sitk.Image:
    """An array (D, H, W) on the canonical grid → an image in exactly the source's geometry.

    Args:
        order: 1 for linear interpolation, 0 for nearest neighbour (labels).
        dtype: of the image's voxels.
    """
    return canonical.source.image(np.ascontiguousarray(_back(array, canonical, order), dtype))


def _back(array: np.ndarray, canonical: CanonicalVolume, order: int) -> np.ndarray:
    if array.shape != canonical.array.shape:
        raise ValueError(f"array has shape {array.shape}, the canonical grid {canonical.array.shape}")
    return canonical._route.back(array, order)


def _some(values: np.ndarray) -> np.ndarray:
    """(n,) about a million of the values, evenly taken."""
    return values.reshape(-1)[:: max(1, values.size // 1_000_000)]


def _without_padding(some: np.ndarray) -> np.ndarray:
    """The values without those that no scanner measured: an extreme one that many voxels have and that lies far beyond
    all others, such as −32768 around a volume that was turned or stitched."""
    for extreme in (some.min(), some.max()):
        rest = some[some != extreme]
        if not rest.size or some.size - rest.size <= _PADDING_SHARE * some.size:
            continue
        low, high = np.percentile(rest, (0.5, 99.5)).astype(float)
        if low < high and abs(float(extreme) - (low + high) / 2) > (_PADDING_GAP + 0.5) * (high - low):
            some = rest
    return some


def _view(source: Geometry) -> np.ndarray:
    """mm along slices, rows and columns that an image shows."""
    axes, _ = _canonical_axes(source)
    return np.multiply(source.size, source.spacing)[::-1][list(axes)]


def _refuse_larger_than_life(source: Geometry) -> None:
    view = _view(source)[1:]
    if view.max() > _LARGEST_VIEW_MM:
        raise ImageError(
            f"The image shows {' by '.join(f'{mm:.4g}' for mm in view)} mm, more than any patient is long.",
            "Correct the voxel spacing in its header; make a picture, whose pixels count as 1 mm, smaller.",
        )


def _facing(source: Geometry) -> Literal["", "axial", "coronal"]:
    """Where a single slice does not face left or right by its header, what it is instead; else nothing."""
    single = source.size.index(1)
    left, front, up = abs(source.matrix[:, single])
    return "" if left >= 0.5 else "axial" if up > front else "coronal"


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
        target = max(1, round(size / ratio))
        return cls(size, target, ((size - 1) - (target - 1) * ratio) / 2.0, ratio)

    def inverse(self) -> _Step:
        """The way back."""
        return self if self.is_identity else _Step(self.target, self.size, -self.first / self.ratio, 1.0 / self.ratio)

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


@dataclass(frozen=True)
class _Route:
    """The way from a source's voxels (z, y, x) to the canonical grid and back: axes reordered, flipped, resampled.

    Attributes:
        axes: for slices, rows and columns, the source's numpy axis.
        flips: whether that axis runs backwards.
        steps: resampling along slices, rows and columns.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    steps: tuple[_Step, _Step, _Step]

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
        origin = source.matrix @ (first[::-1] * source.spacing) + source.origin
        return Geometry(
            tuple(step.target for step in reversed(self.steps)),  # type: ignore[arg-type]
            tuple(float(mm) for mm in reversed(spacing)),  # type: ignore[arg-type]
            tuple(float(v) for v in origin),  # type: ignore[arg-type]
            tuple(float(v) for v in directions[:, ::-1].ravel()),
        )


def _resample(array: np.ndarray, steps: Sequence[_Step], order: int) -> np.ndarray:
    """Separable resampling of (D, H, W); always a new array. BLAS does the linear one, a matrix per axis."""
    if order == 0:
        return array[np.ix_(*(step.nearest() for step in steps))]
    slices, rows, columns = steps
    result = np.ascontiguousarray(array, np.float32)
    if slices.target < slices.size:
        result = np.tensordot(slices.weights(), result, axes=1)
    for axis in (1, 2) if rows.target / rows.size < columns.target / columns.size else (2, 1):
        if not steps[axis].is_identity:
            weights = steps[axis].weights()
            result = np.matmul(weights, result) if axis == 1 else np.matmul(result, weights.T)
    if slices.target >= slices.size and not slices.is_identity:
        result = np.tensordot(slices.weights(), result, axes=1)
    return result.copy() if np.shares_memory(result, array) else result


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


_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
_STACKS = {"MR", "CT", "PT", "NM"}  # DICOM modalities that make one file per slice
_RADIOGRAPHS = {"CR", "DX", "RF", "XA", "RG"}
_PERPENDICULAR = "Resample it to a regular grid first, in Slicer with the module “Resample Scalar Volume”."


def read_image(path: str | Path) -> sitk.Image:
    """Read and check an image: NIfTI, NRRD, MetaImage, PNG, JPEG, a DICOM file, or a folder with one DICOM series.

    A DICOM file of an MR or CT series stands for its whole series, which is how to choose one of several in a folder.
    Pictures and radiographs become one sagittal slice (`check_image`); a picture's pixels count as 1 mm.

    The result knows the modality that DICOM told (its metadata `MODALITY_TAG`), for `doubts`.

    Raises:
        ImageError: if it is missing, damaged, of an unknown format, several series, or unusable (`check_image`).
    """
    path = Path(path)
    if not path.exists():
        raise ImageError(f"There is no file or folder {path}.", "Check the path.")
    if path.is_dir():
        image = _read_series(_one_series(path))
    elif path.stat().st_size == 0:
        raise ImageError(f"{path.name} is an empty file.", "Export or copy it again.")
    else:
        with this_very_file(path) as place:
            image = _read_file(place)
    checked = check_image(image, name=path.name)
    if image.HasMetaDataKey(MODALITY_TAG):
        checked.SetMetaData(MODALITY_TAG, image.GetMetaData(MODALITY_TAG).strip())
    return checked


def doubts(image: sitk.Image, trained_on: str) -> list[str]:
    """Sentences for the reader of a result: why an image may not be what a checkpoint can segment.

    DICOM says of which modality it is (`read_image`). Elsewhere only CT gives itself away, by air at −1000 HU.

    Args:
        trained_on: `Preprocessing.modality`; nothing is said of modalities where it is none of MR, CT and XR.
    """
    result = []
    told = _told(image)
    image = as_volume(image, "image")
    source = Geometry.of(image)
    _, rows, columns = _view(source)
    if min(rows, columns) < _LEAST_VIEW_MM:
        result.append(
            f"The image shows {rows:.3g} by {columns:.3g} mm, too little for a vertebra and its neighbours. Choose a "
            "whole image; if it is one, correct the voxel spacing in its header."
        )
    if told == PICTURE:
        result.append(
            "A picture does not tell its scale: a pixel counts as 1 mm here, so lengths and volumes mean nothing."
        )
    elif 1 in source.size and trained_on != "XR" and told not in _RADIOGRAPHS and (way := _facing(source)):
        result.append(
            f"By its header this single slice is {way}; it was taken for a sagittal one. If that is not so, its result "
            "means nothing."
        )
    found = "XR" if told in _RADIOGRAPHS else told if told in _STACKS else ""
    if not found and trained_on != "CT":
        some = _some(sitk.GetArrayViewFromImage(image))
        low, high = _AIR_HU
        found = "CT" if ((low < some) & (some < high)).mean() > _AIR_SHARE else ""
    if found and found != trained_on and trained_on in _MODALITIES:
        name = _MODALITIES.get(found, found)
        result.append(
            f"This seems to be {name}, and the checkpoint was trained on {_MODALITIES[trained_on]}: names and outlines "
            f"may be wrong. Choose a checkpoint for {name}, if there is one."
        )
    return result


def _told(image: sitk.Image) -> str:
    """What is known of an image's modality."""
    return image.GetMetaData(MODALITY_TAG) if image.HasMetaDataKey(MODALITY_TAG) else ""


def header_geometry(path: Path) -> Geometry | None:
    """Where a file's voxels lie, from its header alone; None where that is not all that decides (folders, DICOM,
    pictures, files that are not three-dimensional or cannot be read)."""
    if path.is_dir() or is_picture(path):
        return None
    reader = sitk.ImageFileReader()
    try:
        with this_very_file(path) as place:
            if sitk.ImageFileReader.GetImageIOFromFileName(str(place)) in ("", "GDCMImageIO"):
                return None
            reader.SetFileName(str(place))
            reader.ReadImageInformation()
    except (OSError, RuntimeError):
        return None
    if reader.GetDimension() != 3:
        return None
    return Geometry(reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())


def _read_file(path: Path) -> sitk.Image:
    damaged = ImageError(
        f"{path.name} cannot be read: it is damaged, incomplete, or not an image.",
        "NIfTI, NRRD, MetaImage, PNG, JPEG and DICOM are read; export or copy the file again.",
    )
    if not _is_whole(path):
        raise damaged
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        if sitk.ImageFileReader.GetImageIOFromFileName(str(path)) == "GDCMImageIO":
            modality = _tag(reader, MODALITY_TAG)
            if modality in _STACKS and reader.GetSize()[-1] == 1:
                series = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path.parent), _tag(reader, "0020|000e"))
                if len(series) > 1:
                    return _read_series(series)
            image = reader.Execute()
            if modality in _RADIOGRAPHS:
                image = _as_sagittal(image)
            image.SetMetaData(MODALITY_TAG, modality)
            return image
        image = reader.Execute()
    except RuntimeError as error:
        if "orthonormal" in str(error):
            raise ImageError(f"The axes of {path.name} are not perpendicular.", _PERPENDICULAR) from error
        if is_out_of_memory(error):
            raise ImageError(f"There is not enough memory to read {path.name}.", "Close programs.") from error
        raise damaged from error
    if is_picture(path):
        image = of_picture(image)
        image.SetMetaData(MODALITY_TAG, PICTURE)
    return image


def is_picture(path: Path) -> bool:
    """Whether a file is a PNG, JPEG, BMP or TIFF, by its name."""
    return path.suffix.lower() in _PICTURES


def of_picture(image: sitk.Image) -> sitk.Image:
    """What was read of a picture, as a grey image with pixels of 1 mm: what pictures say about their resolution is the
    printer's."""
    if image.GetNumberOfComponentsPerPixel() in (3, 4):
        image = _grey(image)
    image.SetSpacing([1.0] * image.GetDimension())
    return image


def _is_whole(path: Path) -> bool:
    """False for cut-off files of the three formats of which ITK reads one half and leaves the other to chance."""
    suffix = path.suffix.lower()
    if suffix == ".gz":  # its checksum comes last
        try:
            with gzip.open(path) as stream:
                while stream.read(1 << 22):
                    pass
        except (OSError, EOFError, zlib.error):
            return False
    elif suffix in (".jpg", ".jpeg"):
        return b"\xff\xd9" in path.read_bytes()[-1024:]  # the end-of-image marker, with room for trailing remarks
    elif suffix == ".nii":
        with path.open("rb") as stream:
            header = stream.read(352)
        if len(header) < 352:
            return False
        order = "<" if header[:4] == b"\x5c\x01\x00\x00" else ">"  # 348, the size of the header itself
        dims = struct.unpack(order + "8h", header[40:56])
        bits, offset = struct.unpack(order + "h", header[72:74])[0], struct.unpack(order + "f", header[108:112])[0]
        return (
            path.stat().st_size
            >= offset + np.prod(np.maximum(dims[1 : 1 + max(dims[0], 0)], 1), dtype=float) * bits / 8
        )
    return True


_GREY_TOLERANCE = 20
"""JPEG stores colours coarsely: the channels of a grey picture saved in it were seen to differ by up to 16 of 255."""


def _grey(image: sitk.Image) -> sitk.Image:
    """A grey picture that was saved in colour, as grey; others unchanged."""
    channels = sitk.GetArrayViewFromImage(image)[..., :3]
    same = np.ptp(channels.astype(np.int32), axis=-1).max() <= _GREY_TOLERANCE
    return sitk.VectorIndexSelectionCast(image, 0) if same else image


def _as_sagittal(image: sitk.Image) -> sitk.Image:
    """A radiograph as one sagittal slice: what DICOM says about its orientation is about the picture, not the
    patient."""
    if image.GetDimension() == 3 and image.GetSize()[2] == 1 and image.GetNumberOfComponentsPerPixel() == 1:
        image = image[:, :, 0]
        image.SetOrigin((0.0, 0.0))
    return image


def _tag(reader: sitk.ImageFileReader, key: str) -> str:
    return reader.GetMetaData(key).strip() if reader.HasMetaDataKey(key) else ""


def _one_series(folder: Path) -> tuple[str, ...]:
    """Files of the only DICOM series in a folder or its sub-folders."""
    found: dict[str, tuple[str, ...]] = {}
    for place in (folder, *sorted(p for p in folder.rglob("*") if p.is_dir())):
        for series in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(place)):
            files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(place), series)
            found[series] = (*found.get(series, ()), *files)
    if not found:
        raise ImageError(f"There is no DICOM series in {folder}.", "Give an image file, or a folder with one series.")
    if len(found) > 1:
        lines = sorted(f"{_describe(files[0])}, {len(files)} files, e.g. {files[0]}" for files in found.values())
        raise ImageError(
            f"{folder} holds {len(found)} DICOM series: " + "; ".join(lines) + ".",
            "Give the path of one file of the series that you want.",
        )
    return next(iter(found.values()))


def _describe(file: str) -> str:
    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return "unreadable"
    return _tag(reader, "0008|103e") or _tag(reader, MODALITY_TAG) or "no description"


def _read_series(files: Sequence[str]) -> sitk.Image:
    """One volume of a series' files, sorted by position.

    Raises:
        ImageError: if the slices are not one regular stack: damaged, of several orientations (a localizer), several
            images at one place (echoes, time points), with gaps, or shifted against each other (gantry tilt).
    """
    reader = sitk.ImageFileReader()
    slices = []
    for file in files:
        reader.SetFileName(file)
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise ImageError(
                f"{file} cannot be read: it is damaged or incomplete.", "Export the series again."
            ) from error
        slices.append(
            (np.array(reader.GetDirection()).reshape(3, 3), np.array(reader.GetOrigin()), reader.GetSize(), file)
        )
    direction, _, size, _ = slices[0]
    name = f"The series “{_describe(files[0])}”"
    if any(not np.allclose(d, direction, atol=1e-2) for d, *_ in slices):
        raise ImageError(f"{name} has slices of several orientations (a localizer).", "Choose a sagittal series.")
    if any(s != size for _, _, s, _ in slices):
        raise ImageError(f"{name} has slices of several sizes.", "Choose a series with one stack of slices.")
    if len(slices) == 1:
        return _read_file(Path(files[0]))
    slices.sort(key=lambda item: float(item[1] @ direction[:, 2]))
    steps = np.diff([float(origin @ direction[:, 2]) for _, origin, _, _ in slices])
    if steps.min() < 1e-3:
        raise ImageError(f"{name} has several images at one place (echoes or time points).", "Export them separately.")
    if steps.max() > 1.2 * steps.min():  # a missing slice doubles the step; less is rounding or table motion
        raise ImageError(
            f"{name} has gaps: its slices lie {steps.min():.2f} to {steps.max():.2f} mm apart.",
            "Load the whole series.",
        )
    normal, first = direction[:, 2], slices[0][1]
    shifts = [np.linalg.norm((origin - first) - ((origin - first) @ normal) * normal) for _, origin, _, _ in slices]
    if max(shifts) > max(0.5 * min(reader.GetSpacing()[:2]), 0.3):
        raise ImageError(
            f"The slices of {name[0].lower()}{name[1:]} are shifted against each other by up to {max(shifts):.1f} mm "
            "(a tilted gantry).",
            _PERPENDICULAR,
        )
    try:
        image = sitk.ReadImage([file for *_, file in slices])
    except RuntimeError as error:
        raise ImageError(f"{name} cannot be read: a file is damaged or incomplete.", "Export it again.") from error
    image.SetSpacing((*image.GetSpacing()[:2], float(steps.mean())))
    image.SetOrigin(slices[0][1].tolist())
    image.SetDirection(direction.ravel().tolist())
    image.SetMetaData(MODALITY_TAG, _tag(reader, MODALITY_TAG))
    return image


def as_volume(image: sitk.Image, name: str) -> sitk.Image:
    """A scalar 3D image; what is flat becomes one sagittal slice: rows from superior to inferior, columns as they are.

    Raises:
        ImageError: for colour, complex numbers and time series.
    """
    components = image.GetNumberOfComponentsPerPixel()
    if components > 1:
        raise ImageError(
            f"The {name} has {components} values per pixel (a colour picture or a vector image).",
            "Export it as a single-channel grey-scale image.",
        )
    if "complex" in image.GetPixelIDTypeAsString():
        raise ImageError(f"The {name} holds complex numbers.", "Export its magnitude.")
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = image[:, :, :, 0]
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

    A 2D picture becomes one sagittal slice (`as_volume`).

    Args:
        name: what to call it in messages, e.g. a file or node name.

    Raises:
        ImageError: for colour, 4D, empty, constant and non-finite images, skewed axes and absurd spacing.
    """
    image = as_volume(image, name)
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
            _PERPENDICULAR,
        )
    array = sitk.GetArrayViewFromImage(image)
    least, most = float(array.min()), float(array.max())
    if not (np.isfinite(least) and np.isfinite(most)):  # NaN propagates through min and max
        raise ImageError(f"The {name} holds values that are not finite numbers (NaN or infinity).", "Export it again.")
    if least == most:
        raise ImageError(f"The {name} is the same everywhere ({least:g}).", "Choose an image that shows a spine.")
    return image
