"""KRAL, the keypoint recognition-assisted learner, and the adaptive transformer that it steers (paper, section 3.2).

Keypoints are (B, K, 2) positions (row, column) in pixels of the input, NaN where not known; `spacing` is (B, 2), mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import ScarNetConfig
from .encoder import convolution

KERNEL = 7
"""Side of the dynamic kernels [paper]."""
STRIDE = 16
"""Input pixels per pixel of the high-level features."""
GUESS_RADIUS_MM = 20.0
"""The weight map is flat this far around an interpolated point: one level more or less."""
LEVEL_MM = 36.0
"""Vertebra to vertebra, a lumbar average; used only where a single keypoint is known."""


def heatmaps(points: Tensor, spacing: Tensor, shape: Sequence[int], width_mm: float) -> Tensor:
    """(B, K, H, W) Gaussians of peak 1 around the points, round in millimeters; NaN where a point is not known."""
    down, across = (torch.exp(d**2 / (-2 * width_mm**2)) for d in _distances_mm(points, spacing, shape))
    return down[..., :, None] * across[..., None, :]


def peaks(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Where each heatmap is highest, and how high.

    The arg-max, refined to the center of mass (above their lowest value) of the 5x5 pixels around it, through which
    gradients reach the maps.

    Args:
        maps: (B, K, H, W).

    Returns:
        (B, K, 2) positions and (B, K) heights.
    """
    maps = maps.float()
    height, width = maps.shape[2:]
    value, index = maps.flatten(2).max(-1)
    top, left = index // width, index % width
    offsets = torch.arange(-2, 3, device=maps.device)
    rows = (top[..., None] + offsets).clamp(0, height - 1)  # (B, K, 5)
    columns = (left[..., None] + offsets).clamp(0, width - 1)
    around = (rows[..., :, None] * width + columns[..., None, :]).flatten(2)
    values = maps.flatten(2).gather(2, around)
    mass = (values - values.amin(-1, keepdim=True)).unflatten(2, (5, 5)) + 1e-6
    total = mass.sum((-2, -1))
    row = (mass.sum(-1) * rows).sum(-1) / total
    column = (mass.sum(-2) * columns).sum(-1) / total
    return torch.stack([row, column], -1), value


def neighbourhood(points: np.ndarray, heights: np.ndarray, slice_mm: float, reach_mm: float) -> np.ndarray:
    """Keypoints that neighboring slices agree on: the median over slices, which a stray peak does not move.

    Args:
        points: (D, K, 2), NaN where a slice has no peak.
        heights: (D, K) of the peaks.
        slice_mm: distance between slices.
        reach_mm: slices up to this far to either side have a say.

    Returns:
        (D, K, 2), NaN where none of the neighbors has a peak.
    """
    reach = int(reach_mm / slice_mm)
    heights = np.where(np.isnan(points[..., 0]), 0.0, heights)
    result = np.full(points.shape, np.nan, np.float32)
    for index in range(len(points)):
        near = slice(max(index - reach, 0), index + reach + 1)
        for k in np.flatnonzero((heights[near] > 0).any(0)):
            result[index, k] = _weighted_median(points[near, k], heights[near, k])
    return result


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Of each column; values of weight 0 may be NaN."""
    values, weights = values[weights > 0], weights[weights > 0]
    order = values.argsort(0)
    half = weights[order].cumsum(0) >= weights.sum() / 2
    return np.take_along_axis(values, order, 0)[half.argmax(0), np.arange(values.shape[1])]


@dataclass
class Steering:
    """What the keypoints say to the adaptive transformer, on the grid of the high-level features.

    Attributes:
        weight: (B, 1, h, w) W, see `weight_map`.
        places: (B, K, h, w) a Gaussian around each keypoint, zero where there is none; None where they are not marked.
    """

    weight: Tensor
    places: Tensor | None = None

    def of(self, rows: Tensor) -> Steering:
        """Of these images of the batch."""
        return Steering(self.weight[rows], None if self.places is None else self.places[rows])


def point_maps(points: Tensor, spacing: Tensor, shape: Sequence[int], width_mm: float) -> Tensor:
    """(B, K, h, w) Gaussians of peak 1 around the keypoints on the grid of the high-level features; zero without one.

    Args: as of `weight_map`.
    """
    coarse = (points - (STRIDE - 1) / 2) / STRIDE
    return torch.exp(_squared_mm(coarse, spacing * STRIDE, shape) / (-2 * width_mm**2)).nan_to_num(0.0)


def weight_map(
    points: Tensor, spacing: Tensor, shape: Sequence[int], orders: Sequence[float], config: ScarNetConfig
) -> Tensor:
    """The keypoint weight ``W = w0 + (1 − w0) max_k exp(−d_k² / 2σ²)`` on the grid of the high-level features.

    A structure without a keypoint has weight 1 within `GUESS_RADIUS_MM` of the place that its neighbors suggest, so
    that what was not found is not suppressed; without any keypoint the map is 1 everywhere. (The paper has the
    Gaussian of the distance; floor, width and the treatment of missing points are our choice.)

    Args:
        points: (B, K, 2).
        spacing: (B, 2) mm per input pixel.
        shape: rows and columns of the high-level features.
        orders: cranio-caudal position of each structure (`anatomy.Structure.order`).

    Returns:
        (B, 1, h, w) in [w0, 1].
    """
    guessed = torch.as_tensor(
        np.stack([_guess(p, o, orders) for p, o in zip(points.cpu().numpy(), spacing.cpu().numpy(), strict=True)]),
        device=points.device,
    )
    guessed = (guessed - (STRIDE - 1) / 2) / STRIDE
    found = point_maps(points, spacing, shape, config.weight_mm)
    beyond = (_squared_mm(guessed, spacing * STRIDE, shape).sqrt() - GUESS_RADIUS_MM).clamp(min=0)
    missing = torch.exp(beyond**2 / (-2 * config.weight_mm**2)).nan_to_num(0.0)
    nearest = torch.maximum(found, missing).amax(1, keepdim=True)
    none = points[..., 0].isnan().all(1).view(-1, 1, 1, 1)
    return torch.where(none, 1.0, config.weight_floor + (1 - config.weight_floor) * nearest)


def _guess(points: np.ndarray, spacing: np.ndarray, orders: Sequence[float]) -> np.ndarray:
    """(K, 2): for the structures without a point, where their neighbors suggest; NaN for the others."""
    order = np.asarray(orders)
    known = np.flatnonzero(~np.isnan(points[:, 0]))
    known = known[order[known].argsort()]
    result = np.full_like(points, np.nan)
    if not len(known):
        return result
    at, place = order[known], points[known]
    if len(known) == 1:  # a second one, straight below
        at = np.append(at, at + 1)
        place = np.vstack([place, np.add(place, (LEVEL_MM / spacing[0], 0.0))])
    for k in np.flatnonzero(np.isnan(points[:, 0])):
        upper = int(np.clip(np.searchsorted(at, order[k]) - 1, 0, len(at) - 2))
        share = (order[k] - at[upper]) / (at[upper + 1] - at[upper])
        result[k] = place[upper] + share * (place[upper + 1] - place[upper])
    return result


def _squared_mm(points: Tensor, spacing: Tensor, shape: Sequence[int]) -> Tensor:
    """(B, K, H, W) squared distance to each point."""
    down, across = _distances_mm(points, spacing, shape)
    return down[..., :, None] ** 2 + across[..., None, :] ** 2


def _distances_mm(points: Tensor, spacing: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(B, K, H) and (B, K, W): mm from each point along the rows' and the columns' axis."""
    rows = torch.arange(shape[0], device=points.device, dtype=torch.float32)
    columns = torch.arange(shape[1], device=points.device, dtype=torch.float32)
    down = (rows - points[..., 0, None].float()) * spacing[:, None, :1]
    across = (columns - points[..., 1, None].float()) * spacing[:, None, 1:]
    return down, across


class DynamicKernels(nn.Module):
    """The parameter adapter: recognition features → one 7x7 kernel per channel and image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, high: Tensor) -> Tensor:
        """``F_R^H`` (B, C, h, w) → κ (B, C, 7, 7)."""
        return self.project(F.adaptive_avg_pool2d(high, KERNEL))


def dynamic_convolution(features: Tensor, kernels: Tensor) -> Tensor:
    """Depthwise convolution of each image with its own kernels, as one grouped convolution.

    Args:
        features: (B, C, h, w).
        kernels: (B, C, 7, 7).
    """
    batch, channels = features.shape[:2]
    stacked = features.reshape(1, batch * channels, *features.shape[2:])
    weights = kernels.reshape(batch * channels, 1, *kernels.shape[2:])
    result = F.conv2d(stacked, weights.to(stacked.dtype), padding=KERNEL // 2, groups=batch * channels)
    return result.view_as(features)


class AdaptiveTransformer(nn.Module):
    """``F_S = ReLU(BN(V(A + Attention(A; W))))``, where ``A`` is what the dynamic kernels make of ``U(F_S^H)``.

    The attention is over positions; log W of the attended position is added to its score, so near keypoints counts
    more. That changes what every position gathers, wherever it is; `weight_queries` (our addition) also multiplies what
    a position gathers by its own W, so that a keypoint changes most what is near it. W does not say which structure a
    keypoint is of; with `marks` (our addition, their number) each adds a learned vector of its own to A around it.
    `attends=False` omits the attention, which is DGMSNet.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        norm: str,
        attends: bool = True,
        weight_queries: bool = False,
        marks: int = 0,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.weight_queries = weight_queries
        self.before = nn.Conv2d(channels, channels, 1)
        self.attention = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(3)) if attends else None
        self.marks = nn.Parameter(torch.randn(marks, channels) / channels**0.5) if attends and marks else None
        self.after = convolution(channels, channels, norm, kernel=1)

    def forward(self, high: Tensor, kernels: Tensor, steering: Steering | None = None) -> Tensor:
        """``F_S^H`` (B, C, h, w), κ (B, C, 7, 7), and what keypoints say (None: nothing) → ``F_S`` (B, C, h, w)."""
        adapted = dynamic_convolution(self.before(high), kernels)
        if self.attention is None:
            return self.after(adapted)
        if self.marks is not None and steering is not None and steering.places is not None:
            adapted = adapted + torch.einsum("bkhw,kc->bchw", steering.places.to(adapted.dtype), self.marks)
        query, key, value = (
            layer(adapted).unflatten(1, (self.heads, -1)).flatten(3).transpose(2, 3) for layer in self.attention
        )
        weight = None if steering is None else steering.weight
        bias = None if weight is None else weight.flatten(2)[:, :, None].log().to(query.dtype)
        gathered = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        gathered = gathered.transpose(2, 3).flatten(1, 2).unflatten(2, high.shape[2:])
        if weight is not None and self.weight_queries:
            gathered = gathered * weight.to(gathered.dtype)
        return self.after(adapted + gathered)
