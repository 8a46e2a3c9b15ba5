"""How an image becomes a network's input, and a network's output an image in the source's geometry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import SimpleITK as sitk
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.ndimage import gaussian_filter

from ..errors import ImageError
from .checks import STACKS, as_volume, check_image, check_view, whole_numbers
from .content import sampled_values, without_padding
from .geometry import Geometry, Plane, as_it_lies, canonical_axes, facing, plane, view_mm
from .resampling import AxisStep, Route
from .tags import DIRECTION_TAG, known_modality, orientation_is_known

AIR = -2.0
"""Value of air in a network's input, for padding."""

_FAINT = 0.05
"""Spread below which nothing is seen but noise (an image reaches from −2 to 2)."""


@dataclass(frozen=True)
class CanonicalVolume:
    """An image on the canonical grid, ready for a network.

    Attributes:
        array: (D, H, W) float32, slices from left to right, rows downwards, columns from anterior to posterior.
        spacing: mm along (slices, rows, columns), as the network is to see them: divided by the scale of
            `Preprocessing.apply`.
        geometry: of the canonical grid, in true mm.
        source: geometry of the image it came from.
    """

    array: np.ndarray
    spacing: tuple[float, float, float]
    geometry: Geometry
    source: Geometry
    _route: Route = field(repr=False)

    @property
    def axes(self) -> tuple[int, int, int]:
        """For slices, rows and columns, the source's numpy axis."""
        return self._route.axes

    @property
    def flips(self) -> tuple[bool, bool, bool]:
        """Whether that axis runs the other way."""
        return self._route.flips

    @property
    def image(self) -> sitk.Image:
        """The array as a SimpleITK image with its geometry."""
        return self.geometry.image(self.array)

    def index_of(self, point: Sequence[float]) -> tuple[float, float, float]:
        """Fractional (slice, row, column) of a physical point (LPS, mm); may lie outside the array."""
        g = self.geometry
        x, y, z = (np.linalg.solve(g.matrix, np.asarray(point, float) - g.origin) / g.spacing).tolist()
        return z, y, x

    def point_of(self, index: Sequence[float]) -> tuple[float, float, float]:
        """Physical point (LPS, mm) of a fractional (slice, row, column)."""
        g = self.geometry
        x, y, z = (g.matrix @ (np.asarray(index, float)[::-1] * g.spacing) + g.origin).tolist()
        return x, y, z


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
    height_mm: float | None = Field(
        None,
        gt=0,
        description="Height (mm) that every image counts as having, whatever its pixel size: films do not give theirs.",
    )
    local_mm: float | None = Field(
        None,
        gt=0,
        description="Every pixel is then compared with those around it, within about this distance (mm): what lies "
        "before and behind the bone hides its edges otherwise. None: as it is.",
    )
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

    def apply(self, image: sitk.Image, scale: float = 1.0) -> CanonicalVolume:
        """Reorient, resample and normalize an image; intensities end in -2…2.

        Args:
            scale: how many times its usual size the anatomy has. The pixels grow by it, so that a network meets the
                sizes it has learned, and `CanonicalVolume.spacing` is in mm of usual anatomy.

        Raises:
            ImageError: if the content is unusable (`check_image`) or the plane is not one that is accepted.
        """
        image = check_image(image)
        lying = as_it_lies(image)
        found = plane(lying)
        if not orientation_is_known(image) and not image.HasMetaDataKey(DIRECTION_TAG) and found != "single-slice":
            raise ImageError(
                "The file does not give the image's orientation (a NIfTI file without qform and sform, or the like).",
                "Convert the original DICOM series again, e.g. with Slicer or dcm2niix.",
            )
        # Then its direction is not just a picture's.
        if found == "single-slice" and known_modality(image) in STACKS and orientation_is_known(image):
            found = facing(Geometry.of(image)) or found
        if found not in self.planes:
            wanted = "a sagittal series" if "sagittal" in self.planes else f"one that is {self.planes[0]}"
            raise ImageError(
                f"The image is {found}; the model requires an image that is {' or '.join(self.planes)}.",
                f"Choose {wanted}, or a model for this kind of image.",
            )
        source = Geometry.of(image)
        scale *= self.usual_size(Geometry.of(lying))
        route = self._route(Geometry.of(lying), scale)
        check_view(source)
        values = sitk.GetArrayViewFromImage(image)
        low, high = self.low, self.high
        if self.intensity == "percentile":
            some = sampled_values(values)
            kept = without_padding(some)
            low, high = np.percentile(kept, (low, high))
            if kept.size < some.size:  # where it is mixed with its neighbors, it would drown them
                values = np.clip(values, kept.min(), kept.max())
            if not low < high:  # nearly everything is air: an image with a few bright voxels
                low, high = float(values.min()), float(values.max())
        array = route.forward(values, order=1)
        array -= np.float32(low)
        array *= np.float32(4.0 / (high - low))
        array -= np.float32(2.0)
        np.clip(array, -2.0, 2.0, out=array)
        if self.local_mm is not None:
            array = _local_contrast(array, self.local_mm / self.pixel_mm)
        geometry = route.geometry(source)
        z, y, x = (step / scale for step in geometry.spacing[::-1])
        return CanonicalVolume(array, (z, y, x), geometry, source, route)

    def apply_to_labels(self, label: sitk.Image, canonical: CanonicalVolume) -> np.ndarray:
        """Labels on the canonical grid by nearest neighbor: (D, H, W) int16.

        A label image on another grid than the image's is resampled; outside it there is background.

        Raises:
            ImageError: if the label image is not scalar, or holds values that are not whole numbers.
        """
        label = whole_numbers(as_volume(label, "label image"), "The label image")
        values = sitk.GetArrayViewFromImage(label)
        if not Geometry.of(label).matches(canonical.source):
            label = sitk.Cast(label, sitk.sitkInt16)
            g = canonical.geometry
            nearest = sitk.sitkNearestNeighbor
            label = sitk.Resample(label, g.size, sitk.Transform(), nearest, g.origin, g.spacing, g.direction, 0)
            return sitk.GetArrayFromImage(label)
        return canonical._route.forward(values, order=0).astype(np.int16, copy=False)

    def usual_size(self, source: Geometry) -> float:
        """How many times as large as `height_mm` says an image is."""
        return 1.0 if self.height_mm is None else float(view_mm(source)[1]) / self.height_mm

    def _route(self, source: Geometry, scale: float) -> Route:
        axes, flips = canonical_axes(source)
        size, spacing = (np.array(v)[::-1][list(axes)] for v in (source.size, source.spacing))
        slice_mm = spacing[0] if size[0] == 1 else max(spacing[0], scale * self.min_slice_mm)
        wanted = (slice_mm, scale * self.pixel_mm, scale * self.pixel_mm)
        slices, rows, columns = (
            AxisStep.between(int(n), float(s), float(w)) for n, s, w in zip(size, spacing, wanted, strict=True)
        )
        return Route(axes, flips, (slices, rows, columns))


def _local_contrast(array: np.ndarray, reach: float) -> np.ndarray:
    """Every pixel against the mean and the spread of its slice around it, in −2…2.

    Args:
        reach: standard deviation of the surroundings' weight, in pixels.
    """
    within = (0.0, reach, reach)
    mean = gaussian_filter(array, within)
    spread = np.sqrt(np.maximum(gaussian_filter(array * array, within) - mean * mean, 0.0))
    return np.clip((array - mean) / (spread + _FAINT), -2.0, 2.0).astype(np.float32)


def resample_to_source(
    arrays: np.ndarray, canonical: CanonicalVolume, *, order: int = 1, dtype: type | np.dtype = np.float32
) -> np.ndarray:
    """Arrays (C, D, H, W) on the canonical grid → (C, z, y, x) on the source's voxels.

    Args:
        order: 1 for linear interpolation, 0 for nearest neighbor (labels).
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
        order: 1 for linear interpolation, 0 for nearest neighbor (labels).
        dtype: of the image's voxels.
    """
    return canonical.source.image(np.ascontiguousarray(_back(array, canonical, order), dtype))


def _back(array: np.ndarray, canonical: CanonicalVolume, order: int) -> np.ndarray:
    if array.shape != canonical.array.shape:
        raise ValueError(f"array has shape {array.shape}, the canonical grid {canonical.array.shape}")
    return canonical._route.back(array, order)
