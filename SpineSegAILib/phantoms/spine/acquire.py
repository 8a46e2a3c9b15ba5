"""From the fine grid to an image: resolution, bias field and noise."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from ...imaging import SAGITTAL_DIRECTION, Geometry
from .paint import Canvas, smooth_noise
from .spec import PhantomSpec


def acquire(canvas: Canvas, spec: PhantomSpec, depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What the scanner makes of the painted tissues: int16."""
    image = canvas.image
    in_plane = spec.blur_mm / spec.pixel_mm
    if in_plane > 0.05:
        image = gaussian_filter(image, (0, in_plane, in_plane), truncate=3.0)
    if len(image) > 2:  # slice profiles overlap a little
        image = gaussian_filter(image, (min(1.0, 0.35 + 0.3 / spec.slice_mm), 0, 0), truncate=2.0, mode="nearest")
    if spec.contrast == "ct":
        noise = gaussian_filter(rng.standard_normal(image.shape, np.float32), (0, 0.6, 0.6), truncate=2.0)
        return np.clip(image + noise * spec.noise * 2000, -1024, 3000).astype(np.int16)
    if spec.bias:
        image = image * np.exp(spec.bias * smooth_noise(canvas.axes, (150, 120, 120), rng))
    if spec.coil_mm:
        image = image * np.exp(-np.maximum(depth, -20) / spec.coil_mm)
    image = image / max(1e-6, float(np.percentile(image[::2, ::4, ::4], 99)))
    real, imaginary = (spec.noise * rng.standard_normal(image.shape, np.float32) for _ in range(2))
    return np.clip(np.hypot(image + real, imaginary) * rng.uniform(300, 1500), 0, 32000).astype(np.int16)


def acquired_geometry(spec: PhantomSpec, axes: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Geometry:
    """Grid of the canvas; the model's origin (the middle of S1's upper endplate) is the physical origin."""
    rotation = np.eye(3)
    for axis, degrees in enumerate(spec.oblique_deg):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        turn = np.eye(3)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn[i, i], turn[i, j], turn[j, i], turn[j, j] = c, -s, s, c
        rotation = turn @ rotation
    direction = rotation @ np.array(SAGITTAL_DIRECTION).reshape(3, 3)
    slices, rows, columns = axes
    origin = direction @ np.array([columns[0], rows[0], slices[0]], float)
    return Geometry(
        (len(columns), len(rows), len(slices)),
        (spec.pixel_mm, spec.pixel_mm, spec.slice_mm),
        tuple(origin.tolist()),
        tuple(direction.ravel().tolist()),
    )
