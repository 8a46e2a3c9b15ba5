"""Synthetic films of a spine from the front, with corners and Cobb angles known, so that nobody's film is needed.

Each vertebra is a rectangle, tilted as the spec says, with bright endplates, pedicles and a spinous process; ribs, the
mediastinum, the pelvis and the body's outline are around it. Anatomy is no finer than that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from pydantic import BaseModel, ConfigDict, Field, field_validator
from scipy.ndimage import gaussian_filter

from ..anatomy import STRUCTURES, scheme, structure
from ..errors import SpineSegAIError
from ..imaging import as_volume
from ..imaging.quads import filled_quadrangles
from ..imaging.tags import MODALITY_TAG, PICTURE, SCALE_UNKNOWN_TAG
from ..keypoints import Corners

_IDS = scheme("thoracolumbar-xr").ids
_MARGIN = 0.05  # of the height, above T1 and below L5


class FilmSpec(BaseModel):
    """What a synthetic film shows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int = Field(512, ge=64, description="Height of the whole film in pixels, before it is cropped.")
    columns: int = Field(240, ge=32, description="Width in pixels.")
    tilts: Mapping[str, float] = Field(
        default_factory=dict,
        description="Degrees by which vertebrae are tilted, positive where their right end in the picture points down; "
        "those between two named ones lie between, those beyond the last named ones are tilted like these.",
    )
    crop: tuple[float, float] = Field((0.0, 0.0), description="Shares of the height that are cut off above and below.")
    pixel_mm: float | None = Field(None, gt=0, description="Pixel size in the film's header; none by default.")
    inverted: bool = Field(False, description="Bone dark on a bright ground.")
    noise: float = Field(4.0, ge=0, description="Standard deviation of the noise, of 255.")

    @field_validator("tilts")
    @classmethod
    def _known_levels(cls, value: Mapping[str, float]) -> Mapping[str, float]:
        for name in value:
            try:
                known = structure(name).id in _IDS
            except SpineSegAIError:
                known = False
            if not known:
                raise ValueError(f"{name} is none of T1 to L5")
        return value


@dataclass(frozen=True)
class Film:
    """A generated film.

    Attributes:
        image: uint8, one slice as films are read; with the tags of a picture where it tells no pixel size.
        labels: uint8, same geometry; a vertebra's id inside its corners.
        corners: vertebra's id → its corners (LPS, mm), in the order of `keypoints.CORNERS`; of those that are in view.
        tilts: vertebra's id → degrees, as in the spec; a Cobb angle is the difference of two.
        spec: what it was made from.
    """

    image: sitk.Image
    labels: sitk.Image
    corners: dict[int, Corners]
    tilts: dict[int, float]
    spec: FilmSpec


def make_film(spec: FilmSpec, rng: np.random.Generator) -> Film:
    """Generate one film. The same spec and generator state give the same pixels."""
    tilts = _tilts(spec.tilts)
    quads = _quadrangles(spec, tilts)
    picture = _painted(spec, quads, rng)
    first, last = round(spec.crop[0] * spec.rows), round((1 - spec.crop[1]) * spec.rows)
    picture = np.clip(picture[first:last] + rng.normal(0, spec.noise, (last - first, spec.columns)), 0, 255)
    values = (255 - picture if spec.inverted else picture).round().astype(np.uint8)
    shown = {
        sid: quad - [0, first]
        for sid, quad in zip(_IDS, quads, strict=True)
        if quad[:, 1].max() > first and quad[:, 1].min() < last - 1
    }
    flat = sitk.GetImageFromArray(values)
    flat.SetSpacing([spec.pixel_mm or 1.0] * 2)
    if spec.pixel_mm is None:
        flat.SetMetaData(MODALITY_TAG, PICTURE)
        flat.SetMetaData(SCALE_UNKNOWN_TAG, "1")
    image = as_volume(flat, "film")
    labels = sitk.GetImageFromArray(filled_quadrangles(values.shape, shown)[np.newaxis])
    labels.CopyInformation(image)
    corners: dict[int, Corners] = {}
    for sid, quad in shown.items():
        a, b, c, d = (image.TransformContinuousIndexToPhysicalPoint((*point, 0.0)) for point in quad.tolist())
        corners[sid] = (a, b, c, d)
    return Film(image, labels, corners, dict(zip(_IDS, tilts.tolist(), strict=True)), spec)


def random_film(rng: np.random.Generator, **overrides: object) -> FilmSpec:
    """A spec with one to three curves.

    Args:
        overrides: fields that are not drawn.
    """
    ends = sorted(rng.choice(np.arange(1, len(_IDS) - 1), int(rng.integers(2, 4)), replace=False).tolist())
    side = float(rng.choice((-1, 1)))
    tilts = {"T1": float(rng.normal(0, 3)), "L5": float(rng.normal(0, 3))}
    for number, at in enumerate(ends):
        tilts[STRUCTURES[_IDS[at]].name] = side * (-1) ** number * float(rng.uniform(4, 28))
    drawn: dict[str, object] = {"tilts": tilts, "columns": int(rng.integers(200, 300)), "noise": rng.uniform(2, 10)}
    return FilmSpec.model_validate({**drawn, **overrides})


def _tilts(named: Mapping[str, float]) -> np.ndarray:
    """(17,) degrees; between two named levels half a cosine, so that these are the most tilted ones."""
    if not named:
        return np.zeros(len(_IDS))
    places = sorted((_IDS.index(structure(name).id), tilt) for name, tilt in named.items())
    at, values = np.array(places, float).T
    level = np.arange(len(_IDS))
    step = np.clip(np.searchsorted(at, level, side="right") - 1, 0, max(len(at) - 2, 0))
    if len(at) == 1:
        return np.full(len(_IDS), values[0])
    share = np.clip((level - at[step]) / (at[step + 1] - at[step]), 0, 1)
    return values[step] + (values[step + 1] - values[step]) * (1 - np.cos(np.pi * share)) / 2


def _quadrangles(spec: FilmSpec, tilts: np.ndarray) -> np.ndarray:
    """(17, 4, 2) column and row of the corners: vertebrae grow downwards, and each stands square on its disc."""
    size = np.linspace(0.52, 1.0, len(_IDS))  # body and disc, beside L5's
    turned = np.radians(tilts)
    down = np.stack([-np.sin(turned), np.cos(turned)], 1)
    right = np.stack([np.cos(turned), np.sin(turned)], 1)
    halves = size[:, np.newaxis] * down / 2
    centers = np.concatenate([[halves[0]], halves[0] + np.cumsum(halves[:-1] + halves[1:], axis=0)])
    length = centers[-1, 1] + halves[-1, 1]
    scale = (1 - 2 * _MARGIN) * spec.rows / length
    centers, size = scale * centers, scale * size
    centers += [spec.columns / 2 - np.ptp(centers[:, 0]) / 2 - centers[:, 0].min(), _MARGIN * spec.rows]
    wide = size * np.linspace(1.5, 1.3, len(_IDS))
    high = size * np.linspace(0.6, 0.74, len(_IDS))
    signs = np.array([(-1, -1), (1, -1), (-1, 1), (1, 1)]) / 2
    return centers[:, np.newaxis] + (
        signs[:, :1] * (wide[:, np.newaxis] * right)[:, np.newaxis]
        + signs[:, 1:] * (high[:, np.newaxis] * down)[:, np.newaxis]
    )


def _painted(spec: FilmSpec, quads: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(rows, columns) in 0…255: air dark, bone bright."""
    rows, columns = np.mgrid[: spec.rows, : spec.columns].astype(float)
    y, centers = rows / spec.rows, quads.mean(1)
    middle = np.interp(rows, centers[:, 1], centers[:, 0])
    width = 0.5 * spec.rows * (0.30 + 0.05 * np.cos(2 * np.pi * y))
    aside = (columns - spec.columns / 2) / width
    picture = 60 * np.clip(1.2 - aside**2, 0, 1) + 55 * (y - 0.2).clip(0)  # more tissue further down
    lungs = ((np.abs(aside) - 0.55) / 0.32) ** 2 + ((y - 0.28) / 0.24) ** 2 < 1
    picture -= 35 * gaussian_filter(lungs.astype(float), 3)
    picture += 30 * np.exp(-(((columns - middle) / (0.06 * spec.rows)) ** 2))  # the mediastinum, and muscles
    for quad in quads[:12]:  # ribs
        side_width = np.ptp(quad[:, 0])
        for sign in (-1, 1):
            start = quad[[0, 2] if sign < 0 else [1, 3]].mean(0)
            out = sign * (columns - start[0])
            curve = start[1] + 0.25 * out + 0.0035 * out**2 * 512 / spec.rows
            on = np.exp(-(((rows - curve) / (0.07 * side_width + 1)) ** 2)) * (out > 0) * (np.abs(aside) < 0.95)
            picture += 28 * on
    bone = np.zeros_like(picture)
    for quad in quads:
        across, along = quad[[1, 3]].mean(0) - quad[[0, 2]].mean(0), quad[[2, 3]].mean(0) - quad[[0, 1]].mean(0)
        margin = 12 + 0.6 * np.linalg.norm(across)  # nothing of it is seen beyond
        low, high = np.maximum(quad.min(0) - margin, 0).astype(int), (quad.max(0) + margin).astype(int)
        near = np.s_[low[1] : high[1], low[0] : high[0]]
        own = filled_quadrangles((spec.rows, spec.columns), {1: quad})[near].astype(float)
        soft = gaussian_filter(own, 0.8)
        rim = soft - gaussian_filter(own, 2.5)
        bone[near] = np.maximum(bone[near], rng.uniform(34, 46) * soft + 55 * rim.clip(0))
        for place in (-0.28, 0.28, 0.0):  # pedicles and the spinous process
            x, row = quad.mean(0) + place * across + (0.25 if place == 0 else -0.1) * along
            size = 0.09 * np.linalg.norm(across)
            away = np.hypot((columns[near] - x) / size, (rows[near] - row) / (1.5 * size))
            bone[near] += 22 * np.exp(-(((away - 1) / 0.4) ** 2))
    pelvis = y - 0.94 - 0.35 * (np.abs(columns - middle) / spec.columns) ** 2
    picture += bone + 45 * np.clip(60 * pelvis, 0, 1)
    texture = gaussian_filter(rng.standard_normal(picture.shape), 3)
    return gaussian_filter(picture + 25 * texture, 0.5) + 15
