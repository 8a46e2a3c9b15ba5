"""Windows that cover an image, the padding that makes it fit a network, and positions in what is padded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from types import EllipsisType

import torch
from torch import Tensor

from ..methods.base import COORDINATE_SCALE_MM, coordinate_channels

Index = tuple[EllipsisType | slice, ...]

MANY_CHANNELS = 8
"""Maps of more channels are kept in half precision."""


def windowed(
    predict: Callable[[Tensor, tuple[int, ...]], dict[str, Tensor]],
    data: Tensor,
    window: tuple[int, ...],
    overlap: float,
) -> dict[str, Tensor]:
    """Overlapping windows blended with Gaussian weights; maps without a channel axis keep their shape.

    Of ``keypoints``, which are not a map, the strongest of all windows counts.

    The sum of weights is known beforehand, so windows add up to the result itself: no second copy of it. Maps of many
    channels are kept in half precision; probabilities lose 0.001 at most, and a volume of 24 classes half its memory.

    Args:
        predict: of a window and where it begins.
        data: (B, C, *spatial), no smaller than the window.
        overlap: of neighboring windows, as a share of their side.
    """
    size = data.shape[2:]
    places = window_places(size, window, overlap)
    importance = _importance_map(window)
    total = torch.zeros(tuple(size))
    for place in places:
        total[place] += importance
    result: dict[str, Tensor] = {}
    for place in places:
        weight = importance / total[place]
        within: Index = (..., *place)
        for name, value in predict(data[within], tuple(side.start for side in place)).items():
            value = value.to(data.device)
            if name == "keypoints":
                result[name] = _strongest(result[name], value) if name in result else value
                continue
            if name not in result:
                many = value.ndim == data.ndim and value.shape[1] > MANY_CHANNELS
                shape = (*value.shape[: value.ndim - len(window)], *size)
                result[name] = torch.zeros(shape, dtype=torch.float16 if many else torch.float32, device=data.device)
            target = result[name]
            weights = weight.to(data.device)
            for sample in range(len(value)):  # image by image, channel by channel: no large temporary
                if value.ndim == data.ndim:
                    for channel in range(value.shape[1]):
                        target[sample, channel][place] += (value[sample, channel] * weights).to(target.dtype)
                else:
                    target[sample][place] += value[sample] * weights
    return result


def _strongest(one: Tensor, other: Tensor) -> Tensor:
    """Of two sets of keypoints (B, K, dims + 1), whichever is higher; NaN is not found."""
    heights = [torch.where(points[..., :1].isnan(), -torch.inf, points[..., -1:]) for points in (one, other)]
    return torch.where(heights[1] > heights[0], other, one)


def window_places(shape: Sequence[int], window: Sequence[int], overlap: float) -> list[tuple[slice, ...]]:
    """Where windows lie: evenly spread, the first and last at the edges, no farther apart than the overlap allows."""
    starts = []
    for full, side in zip(shape, window, strict=True):
        steps = math.ceil((full - side) / max(1, side * (1 - overlap)))
        starts.append([round(i * (full - side) / max(steps, 1)) for i in range(steps + 1)])
    return [tuple(slice(a, a + n) for a, n in zip(corner, window, strict=True)) for corner in product(*starts)]


def _importance_map(window: Sequence[int]) -> Tensor:
    """Gaussian weight whose standard deviation is an eighth of the window, as nnU-Net's; never quite zero."""
    result = torch.ones(())
    for n in window:
        at = (torch.arange(n) - (n - 1) / 2) / (n / 8)
        result = result[..., None] * torch.exp(-0.5 * at**2)
    return result.clamp(min=1e-3)


def multiple(n: int, divisor: int) -> int:
    return math.ceil(n / divisor) * divisor


def fitting(size: int, divisor: int) -> int:
    """The next side that a network takes; at its coarsest two voxels at least, since one has no spread to normalize
    by."""
    return multiple(max(size, 2 * divisor if divisor > 1 else 1), divisor)


def padding(shape: Sequence[int], divisors: Sequence[int], window: Sequence[int] = ()) -> tuple[tuple[int, ...], Index]:
    """`F.pad` amounts that make sides divisible and no smaller than a window, equal on both sides, and the index of
    the last axes that undoes it."""
    pads: list[int] = []
    inner: list[EllipsisType | slice] = [...]
    for n, divisor, least in zip(shape, divisors, window or (0,) * len(shape), strict=True):
        extra = fitting(max(n, least), divisor) - n
        pads = [extra // 2, extra - extra // 2, *pads]  # F.pad counts from the last axis
        inner.append(slice(extra // 2, extra // 2 + n))
    return tuple(pads), tuple(inner)


def padded_coordinates(
    shape: Sequence[int],
    spacing: tuple[float, ...],
    pads: tuple[int, ...],
    device: torch.device,
    aside: Sequence[float] | None = None,
) -> Tensor:
    """(1, dims, *padded) coordinates whose zero stays at the center of the image.

    Args:
        aside: how far the center of what is padded lies from that of the image, voxels along each axis.
    """
    low = pads[0::2][::-1]
    high = pads[1::2][::-1]
    full = [n + a + b for n, a, b in zip(shape, low, high, strict=True)]
    channels = coordinate_channels(full, spacing, device)
    # The padded array's center lies (high − low) / 2 voxels behind the image's.
    shift = [(b - a) / 2 * mm / COORDINATE_SCALE_MM for a, b, mm in zip(low, high, spacing, strict=True)]
    shift = [
        s + a * mm / COORDINATE_SCALE_MM for s, a, mm in zip(shift, aside or [0.0] * len(shift), spacing, strict=True)
    ]
    offset = torch.tensor(shift, dtype=torch.float32, device=device)
    return (channels + offset.view(-1, *[1] * len(full)))[None]
