"""Damage as segmentations really have it: what a reader finds to correct, made on purpose for training and tests.

All of it on a box of a canonical grid: (S, H, W) bool masks of one structure and of everything else that is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

Damage = Callable[[np.ndarray, np.ndarray, Sequence[float], np.random.Generator], np.ndarray]
"""(mask, others, spacing in mm, generator) → the damaged mask; what it takes of the others they lose."""


def _ball(shape: tuple[int, ...], center: np.ndarray, radii_mm: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """(S, H, W) bool, an ellipsoid."""
    z, y, x = (
        ((np.arange(n) - at) * mm / radius) ** 2
        for n, at, mm, radius in zip(shape, center, spacing, radii_mm, strict=True)
    )
    return z[:, None, None] + y[:, None] + x <= 1


def _edge_point(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A voxel of the mask at its edge within a slice."""
    inner = ndimage.binary_erosion(mask, np.ones((1, 3, 3), bool), border_value=1)
    there = np.argwhere(mask & ~inner)
    return there[int(rng.integers(len(there)))] if len(there) else np.argwhere(mask)[0]


def _size_mm(mask: np.ndarray, spacing: Sequence[float]) -> float:
    """Radius of the ball with the mask's volume."""
    return float((mask.sum() * np.prod(spacing) * 3 / (4 * np.pi)) ** (1 / 3))


def wobble(mask: np.ndarray, others: np.ndarray, mm: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """Edges that wander by some mm, here outwards and there inwards, or all in one direction."""
    outside = ndimage.distance_transform_edt(~mask, sampling=mm)
    inside = ndimage.distance_transform_edt(mask, sampling=mm)
    coarse = rng.normal(0, 1, [max(2, round(n * s / 16)) + 1 for n, s in zip(mask.shape, mm, strict=True)])
    field = ndimage.zoom(coarse, np.array(mask.shape) / coarse.shape, order=1)
    return inside - outside + field * rng.uniform(0.8, 2.5) + rng.normal(0, 0.8) > 0.5 * min(mm)


def leak(mask: np.ndarray, others: np.ndarray, mm: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """It flows out over an edge, into the neighbor or into what is nobody's."""
    radii = rng.uniform(4, 12) * rng.uniform(0.7, 1.4, 3)
    return mask | _ball(mask.shape, _edge_point(mask, rng), radii, mm)


def cut(mask: np.ndarray, others: np.ndarray, mm: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """A corner or a bite is missing."""
    radii = min(rng.uniform(4, 14), 1.2 * _size_mm(mask, mm)) * rng.uniform(0.7, 1.4, 3)
    return mask & ~_ball(mask.shape, _edge_point(mask, rng), radii, mm)


def halve(mask: np.ndarray, others: np.ndarray, mm: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """All beyond a plane is missing, or is another structure's."""
    there = np.argwhere(mask) * np.asarray(mm)
    normal = rng.normal(0, 1, 3) * [0.6, 1, 1]
    height = there @ normal
    grid = np.tensordot(normal * mm, np.indices(mask.shape), 1)
    return mask & (grid <= np.quantile(height, rng.uniform(0.35, 0.8)))


def end_slices(mask: np.ndarray, others: np.ndarray, mm: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """It ends one to three slices too early at a side, or continues as it ended."""
    slices = np.flatnonzero(mask.any((1, 2)))
    count, result = int(rng.integers(1, 4)), mask.copy()
    low = rng.random() < 0.5
    if rng.random() < 0.6 and len(slices) > count:
        result[slices[:count] if low else slices[-count:]] = False
    elif low:
        result[max(slices[0] - count, 0) : slices[0]] = mask[slices[0]]
    else:
        result[slices[-1] + 1 : slices[-1] + 1 + count] = mask[slices[-1]]
    return result


def shift(mask: np.ndarray, others: np.ndarray, mm: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """The whole outline lies some mm off, as after a movement."""
    angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(1.5, 5)
    by = np.rint([0, np.sin(angle) * length / mm[1], np.cos(angle) * length / mm[2]]).astype(int)
    return ndimage.shift(mask.astype(np.uint8), by, order=0) > 0


def islands(mask: np.ndarray, others: np.ndarray, mm: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """One to three specks that do not belong to it."""
    result = mask.copy()
    for _ in range(int(rng.integers(1, 4))):
        near = _edge_point(mask, rng) + rng.normal(0, 14, 3) / mm
        result |= _ball(mask.shape, near, rng.uniform(2, 6) * rng.uniform(0.7, 1.4, 3), mm)
    return result


def merge(mask: np.ndarray, others: np.ndarray, mm: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """A piece of what touches it counts as its own, up to the whole neighbor."""
    beside = ndimage.binary_dilation(mask, iterations=3) & others
    there = np.argwhere(beside)
    if not len(there):
        return leak(mask, others, mm, rng)
    near = _ball(mask.shape, there[int(rng.integers(len(there)))], np.full(3, rng.uniform(8, 35)), mm)
    return mask | (near & others)


def miss(mask: np.ndarray, others: np.ndarray, mm: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """Nothing of it is there, or a speck."""
    if rng.random() < 0.7:
        return np.zeros_like(mask)
    return mask & _ball(mask.shape, _edge_point(mask, rng), np.full(3, rng.uniform(3, 7)), mm)


DAMAGES: dict[Damage, float] = {
    wobble: 3.0, leak: 2.0, cut: 2.5, halve: 1.0, end_slices: 2.0, shift: 1.0, islands: 1.0, merge: 1.5, miss: 1.0,
}  # fmt: skip
"""Kinds of damage, and how often each is drawn relative to the others."""


def damaged(
    mask: np.ndarray, others: np.ndarray, spacing: Sequence[float], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A mask with one to three kinds of damage, and what is left of the others.

    Args:
        mask: (S, H, W) bool, not empty.
        others: (S, H, W) bool.
        spacing: mm along the axes.
    """
    kinds, weights = list(DAMAGES), np.array(list(DAMAGES.values()))
    count = int(rng.choice((1, 2, 3), p=(0.55, 0.3, 0.15)))
    found = mask
    for number in rng.choice(len(kinds), count, replace=False, p=weights / weights.sum()):
        if found.any():
            found = kinds[int(number)](found, others, spacing, rng)
    return found, others & ~found
