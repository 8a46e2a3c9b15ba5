"""What lies on films beside a patient: metal, a collimator's borders, marks. Drawn over training images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from .config import AugmentationConfig

_LETTERS = {
    "L": "100 100 100 100 111",
    "R": "110 101 110 101 101",
    "A": "010 101 111 101 101",
    "P": "110 101 110 100 100",
    "1": "010 110 010 010 111",
    "7": "111 001 010 010 010",
}
"""Shapes of three by five blocks."""


def marked(unit: Tensor, config: AugmentationConfig, rng: np.random.Generator) -> Tensor:
    """An image with what its film may show beside the patient.

    Args:
        unit: (N, H, W) in 0…1.
    """
    for probability, draw in (
        (config.metal_probability, _metal),
        (config.letters_probability, _letters),
        (config.border_probability, _border),
    ):
        if probability and rng.random() < probability:
            unit = draw(unit, rng)
    return unit


def _metal(unit: Tensor, rng: np.random.Generator) -> Tensor:
    """Rods with screws along the column, or a brace's bars anywhere: nearly white, edges soft."""
    rows, columns = unit.shape[-2:]
    mask = torch.zeros(rows, columns, device=unit.device)
    if rng.random() < 0.5:
        middle, top = rng.uniform(0.35, 0.65) * columns, rng.uniform(0, 0.5) * rows
        bottom, pitch = top + rng.uniform(0.2, 0.5) * rows, rng.uniform(0.045, 0.07) * rows
        bow, apart, width = rng.normal(0, 0.04) * columns, rng.uniform(0.08, 0.16) * columns, rng.uniform(0.9, 1.8)
        for side in (-1, 1):
            at = np.linspace(0, 1, 6)
            path = [(top + t * (bottom - top), middle + side * apart / 2 + bow * math.sin(math.pi * t)) for t in at]
            for start, end in pairwise(path):
                mask = torch.maximum(mask, _bar(mask, start, end, width))
            for y in np.arange(top, bottom, pitch):
                if rng.random() < 0.8:
                    x = middle + side * apart / 2 + bow * math.sin(math.pi * (y - top) / (bottom - top))
                    inwards = rng.uniform(0.03, 0.08) * columns * -side
                    end = (y + rng.normal(0, 0.01) * rows, x + inwards)
                    mask = torch.maximum(mask, _bar(mask, (y, x), end, 1.4 * width))
    else:
        for _ in range(int(rng.integers(1, 5))):
            first = rng.uniform(0, 1, 2) * (rows, columns)
            length, angle = rng.uniform(0.03, 0.5) * rows, rng.uniform(0, math.pi)
            last = first + length * np.array([math.sin(angle), math.cos(angle)])
            mask = torch.maximum(mask, _bar(mask, first.tolist(), last.tolist(), rng.uniform(0.8, 4.0)))
    return unit + mask * (rng.uniform(0.9, 1.15) - unit) * rng.uniform(0.6, 1.0)


def _letters(unit: Tensor, rng: np.random.Generator) -> Tensor:
    """One to three letters, all bright or all dark."""
    rows, columns = unit.shape[-2:]
    value = float(rng.choice((0.0, 1.0)))
    unit = unit.clone()
    for _ in range(int(rng.integers(1, 4))):
        blocks = np.array([[int(bit) for bit in row] for row in rng.choice(list(_LETTERS.values())).split()])
        size = int(rng.integers(1, max(2, round(0.014 * rows)) + 1))
        drawn = torch.from_numpy(np.kron(blocks, np.ones((size, size)))).to(unit.device, torch.bool)
        height, width = drawn.shape
        if height >= rows or width >= columns:
            continue
        row, column = int(rng.integers(rows - height)), int(rng.integers(columns - width))
        unit[..., row : row + height, column : column + width][..., drawn] = value
    return unit


def _border(unit: Tensor, rng: np.random.Generator) -> Tensor:
    """Everything beyond one to four slanted lines near the edges has one value."""
    rows, columns = unit.shape[-2:]
    y = torch.arange(rows, device=unit.device, dtype=unit.dtype)[:, None] / rows
    x = torch.arange(columns, device=unit.device, dtype=unit.dtype)[None, :] / columns
    outside = torch.zeros(rows, columns, dtype=torch.bool, device=unit.device)
    for away, along in ((y, x), (1 - y, x), (x, y), (1 - x, y)):
        if rng.random() < 0.5:
            depth = rng.uniform(0.01, 0.05 if along is x else 0.16)
            outside |= away < depth + rng.normal(0, 0.04) * (along - 0.5)
    return torch.where(outside, float(rng.choice((0.0, 0.0, 1.0, rng.uniform(0, 1)))), unit)


def _bar(like: Tensor, start: Sequence[float], end: Sequence[float], width: float) -> Tensor:
    """(H, W) in 0…1: a straight bar between two points (row, column), `width` pixels wide, with soft edges."""
    (y0, x0), (y1, x1) = start, end
    y = torch.arange(like.shape[0], device=like.device, dtype=like.dtype)[:, None] - float(y0)
    x = torch.arange(like.shape[1], device=like.device, dtype=like.dtype)[None, :] - float(x0)
    dy, dx = float(y1 - y0), float(x1 - x0)
    along = ((y * dy + x * dx) / max(dy * dy + dx * dx, 1e-6)).clamp(0, 1)
    distance = ((y - along * dy) ** 2 + (x - along * dx) ** 2).sqrt()
    return (width / 2 + 0.5 - distance).clamp(0, 1)
