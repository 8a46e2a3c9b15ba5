"""Building blocks that the networks of several methods share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def resized(maps: Tensor, shape: Sequence[int]) -> Tensor:
    """(B, C, *spatial) → (B, C, *shape) by linear interpolation."""
    if maps.shape[2:] == torch.Size(shape):
        return maps
    return F.interpolate(maps, list(shape), mode=_LINEAR[len(shape)], align_corners=False)


def coarse_level(features: Sequence[object]) -> int:
    """Which of the features (or their widths) per resolution, finest first, has a quarter of it; the coarsest of few.

    Levels are coarse facts about the place: they are read off features like these.
    """
    return min(2, len(features) - 1)


def rank_map(raw: Tensor, shape: Sequence[int]) -> Tensor:
    """What a rank head's last layer says (B, 1, *spatial) → (B, *shape) rank above the sacrum, in full precision.

    Ranks run from −1 to about 9; the offset starts an untrained head at L2.
    """
    return resized(raw.float() * 4.0 + 3.0, shape)[:, 0]


def group_norm(channels: int, groups: int = 32, least: int = 4) -> nn.GroupNorm:
    """Group norm: as good with a batch of one as with many.

    Args:
        channels: of the features.
        groups: most that there may be.
        least: channels of a group where there are that many.
    """
    return nn.GroupNorm(math.gcd(groups, max(channels // least, 1), channels), channels)


def sinusoids(position: Tensor, count: int, longest: float = 10_000.0) -> Tensor:
    """(N,) positions → (N, 2 · count) their sines, then cosines, with wavelengths from 2π to nearly 2π · `longest`."""
    rates = torch.tensor([longest ** (-i / count) for i in range(count)], device=position.device)
    angles = position.float()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


def position_encoding(
    size: Sequence[int],
    channels: int,
    device: torch.device | None = None,
    *,
    longest: float = 10_000.0,
    centered: bool = False,
) -> Tensor:
    """(channels, *size) `sinusoids` of the position, the channels shared by the axes; what is left over is zero.

    Args:
        centered: positions are counted from the center, so that an image that is padded on both sides keeps them;
            else from the first.
    """
    count = max(1, channels // (2 * len(size)))
    parts = []
    for axis, n in enumerate(size):
        at = torch.arange(n, device=device) - (n - 1) / 2 * centered
        waves = sinusoids(at, count, longest).T
        parts.append(waves.view(-1, *(n if a == axis else 1 for a in range(len(size)))).expand(-1, *size))
    found = torch.cat(parts)[:channels]
    return torch.cat([found, found.new_zeros(channels - len(found), *size)])
