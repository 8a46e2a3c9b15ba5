"""Synthetic images of pulmonary vessels: two lungs, in each an artery's and a vein's tree, all known.

They let the artery/vein task be trained, tested and shown without anyone's images. A tree is a recursion of tapering
segments: each ends in two thinner ones that leave at some angle and turn back before they reach the lung's surface.
Arteries come from a trunk before the heart, veins (two on each side) go to the left atrium behind it. Anatomy is not
finer than that: what is taught is telling trees apart by where they come from, their contrast and their side.

Arrays and frames have the canonical order of `imaging`: (right, down, posterior), in mm; zero is the middle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import SimpleITK as sitk
from pydantic import BaseModel, ConfigDict, Field
from scipy.ndimage import gaussian_filter

from ..anatomy import ARTERY_ID, Kind, structure
from ..imaging import SAGITTAL_DIRECTION, Geometry

_SIZE_MM = (240.0, 210.0, 170.0)
_BODY_MM = (115.0, 1e6, 80.0)
_LUNG_MM = (46.0, 92.0, 66.0)
_LUNG_CENTER = (62.0, 0.0, 0.0)
_HEART_MM = (38.0, 48.0, 40.0)
_HEART_CENTER = (-8.0, 42.0, -22.0)
"""Half axes and centers of ellipsoids of a typical adult chest; a lung's center is mirrored for the left."""
_TRUNK = (-4.0, -6.0, -14.0)
_ATRIUM = (0.0, 22.0, 14.0)
_SMALLEST_MM = 0.7
"""A thinner vessel would be invisible at 1.5 mm."""


class VesselSpec(BaseModel):
    """What a synthetic image of vessels shows. Lengths in mm, intensities in Hounsfield units."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    voxel_mm: float = Field(1.5, gt=0.3, le=6, description="Edge of a voxel.")
    generations: int = Field(6, ge=1, le=9, description="How often a vessel branches.")
    artery_hu: float = Field(380.0, description="Of the contrast-filled arteries.")
    vein_hu: float = Field(230.0, description="Of the veins.")
    noise_hu: float = Field(20.0, ge=0)
    size: float = Field(1.0, gt=0.6, lt=1.5, description="Scale of the chest.")
    annotated: Literal["all", "right", "left", "unsided arteries"] = Field(
        "all", description="What the labels hold; the rest is in the image, but not drawn (half-labeled cases)."
    )
    orientation: str = Field("PIR", description="Axis code of the stored image, as for SimpleITK.DICOMOrient.")


@dataclass(frozen=True)
class VesselPhantom:
    """A generated case.

    Attributes:
        image: int16, HU.
        labels: int16, same geometry; structure ids 201–204, or 205 where sides are not told.
        annotated: ids that are drawn; all others are unknown.
        spec: what it was made from.
    """

    image: sitk.Image
    labels: sitk.Image
    annotated: tuple[int, ...]
    spec: VesselSpec


@dataclass(frozen=True)
class _Segment:
    """A tapering piece of a vessel between two points (mm)."""

    start: np.ndarray
    end: np.ndarray
    radius: tuple[float, float]


def make_vessels(spec: VesselSpec, rng: np.random.Generator) -> VesselPhantom:
    """Generate one case. The same spec and generator state give the same voxels."""
    mm = spec.voxel_mm
    axes = [(np.arange(round(n * spec.size / mm)) - (round(n * spec.size / mm) - 1) / 2) * mm for n in _SIZE_MM]
    points = [a.astype(np.float32).reshape([-1 if i == k else 1 for i in range(3)]) for k, a in enumerate(axes)]
    slices, rows, columns = axes
    shape = (len(slices), len(rows), len(columns))
    image = np.full(shape, -1000.0, np.float32)
    labels = np.zeros(shape, np.int16)
    image[_inside(points, (0, 0, 0), _BODY_MM, spec.size)] = 45.0
    texture = gaussian_filter(rng.standard_normal(shape).astype(np.float32), 2.0)
    for side in (1, -1):
        lung = _inside(points, (side * _LUNG_CENTER[0], *_LUNG_CENTER[1:]), _LUNG_MM, spec.size)
        image[lung] = -850.0 + 200.0 * texture[lung]
    image[_inside(points, _HEART_CENTER, _HEART_MM, spec.size)] = (spec.artery_hu + spec.vein_hu) / 2 - 100.0
    for side, word in ((1, "right"), (-1, "left")):
        for kind, hu in ((Kind.VEIN, spec.vein_hu), (Kind.ARTERY, spec.artery_hu)):
            sid = structure(f"pulmonary {kind.value}, {word}").id
            for segment in _tree(kind, side, spec, rng):
                _paint(image, labels, axes, segment, sid, hu)
    image = gaussian_filter(image, 0.5)
    image += rng.normal(0, spec.noise_hu, shape).astype(np.float32)
    annotated: tuple[int, ...] = (201, 202, 203, 204)
    if spec.annotated == "unsided arteries":
        labels = np.where(np.isin(labels, (201, 202)), ARTERY_ID, 0).astype(np.int16)
        annotated = (ARTERY_ID,)
    elif spec.annotated != "all":  # the annotator drew one half of the image, up to its middle
        annotated = (201, 203) if spec.annotated == "right" else (202, 204)
        drawn = np.isin(labels, annotated) & ((points[0] > 0) == (spec.annotated == "right"))
        labels = np.where(drawn, labels, 0).astype(np.int16)
    direction = np.array(SAGITTAL_DIRECTION).reshape(3, 3)
    x, y, z = (direction @ np.array([columns[0], rows[0], slices[0]], float)).tolist()
    size = (len(columns), len(rows), len(slices))
    geometry = Geometry(size, (mm, mm, mm), (x, y, z), tuple(direction.ravel().tolist()))
    pictures = [geometry.image(np.clip(image, -1024, 3000).astype(np.int16)), geometry.image(labels)]
    if spec.orientation != "PIR":
        pictures = [sitk.DICOMOrient(p, spec.orientation) for p in pictures]
    return VesselPhantom(pictures[0], pictures[1], annotated, spec)


def random_vessels(rng: np.random.Generator, **overrides: object) -> VesselSpec:
    """A spec drawn wide: contrast in the arteries, in the veins, or in both, and chests of many sizes.

    Args:
        overrides: fields that are not drawn.
    """
    drawn: dict[str, object] = {
        "generations": int(rng.integers(5, 8)),
        "artery_hu": float(rng.uniform(180, 500)),
        "vein_hu": float(rng.uniform(120, 450)),
        "noise_hu": float(rng.uniform(5, 45)),
        "size": float(np.clip(rng.normal(1.0, 0.08), 0.8, 1.2)),
    }
    return VesselSpec.model_validate({**drawn, **overrides})


def _inside(points: list[np.ndarray], center: tuple[float, ...], half: tuple[float, ...], size: float) -> np.ndarray:
    """(D, H, W) bool: inside an ellipsoid."""
    x, y, z = (((p - c * size) / (h * size)) ** 2 for p, c, h in zip(points, center, half, strict=True))
    return x + y + z < 1.0


def _tree(kind: Kind, side: int, spec: VesselSpec, rng: np.random.Generator) -> list[_Segment]:
    """All segments of one kind on one side (1 right, −1 left), thickest first."""
    mirror = np.array([side, 1.0, 1.0])
    center = np.array(_LUNG_CENTER) * mirror
    if kind is Kind.ARTERY:
        roots = [(np.array(_TRUNK), np.array([34.0, -2.0, -2.0]) * mirror, 8.0)]
    else:
        roots = [(np.array(_ATRIUM), np.array([26.0, down, 8.0]) * mirror, 6.0) for down in (2.0, 34.0)]
    found: list[_Segment] = []

    def grow(start: np.ndarray, direction: np.ndarray, length: float, radius: float, generation: int) -> None:
        outside = ((start - center) / np.array(_LUNG_MM)) @ ((start - center) / np.array(_LUNG_MM))
        if generation > 1 and outside > 0.7:  # turn back before the lung's surface
            inward = (center - start) / np.linalg.norm(center - start)
            direction = direction + 0.9 * inward
            direction = direction / np.linalg.norm(direction)
        end = start + length * direction
        thinner = 0.78 * radius
        found.append(_Segment(start * spec.size, end * spec.size, (radius, thinner)))
        if generation >= spec.generations or thinner < _SMALLEST_MM:
            return
        normal = np.cross(direction, rng.standard_normal(3))
        normal /= np.linalg.norm(normal)
        for sign in (1, -1):
            angle = np.radians(rng.uniform(22, 48))
            turned = np.cos(angle) * direction + sign * np.sin(angle) * normal
            share = rng.uniform(0.85, 1.05)
            grow(end, turned, length * rng.uniform(0.68, 0.9), thinner * share, generation + 1)

    for start, end, radius in roots:
        reach = end - start
        length = float(np.linalg.norm(reach))
        grow(start, reach / length, length, radius, 1)
    return sorted(found, key=lambda s: -s.radius[0])


def _paint(
    image: np.ndarray, labels: np.ndarray, axes: list[np.ndarray], segment: _Segment, sid: int, hu: float
) -> None:
    """Paint one segment: partial volume in the image, whole voxels in the labels (changes its arguments)."""
    mm = float(axes[0][1] - axes[0][0])
    margin = segment.radius[0] + mm
    low, high = np.minimum(segment.start, segment.end) - margin, np.maximum(segment.start, segment.end) + margin
    box = tuple(slice(*np.searchsorted(a, (lo, hi))) for a, lo, hi in zip(axes, low, high, strict=True))
    grid = np.stack(np.meshgrid(*(a[b] for a, b in zip(axes, box, strict=True)), indexing="ij"), -1)
    if not grid.size:
        return
    along = segment.end - segment.start
    t = np.clip((grid - segment.start) @ along / (along @ along), 0.0, 1.0)
    radius = segment.radius[0] + (segment.radius[1] - segment.radius[0]) * t
    distance = np.linalg.norm(grid - segment.start - t[..., None] * along, axis=-1) - radius
    share = np.clip(0.5 - distance / mm, 0.0, 1.0).astype(np.float32)
    image[box] += share * (hu - image[box])
    labels[box][distance < 0] = sid
