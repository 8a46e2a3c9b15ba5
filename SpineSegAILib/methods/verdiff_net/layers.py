"""Building blocks that both networks share."""

from __future__ import annotations

import math

from torch import nn


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm with at most 32 groups of at least four channels: as good with a batch of one as with many."""
    return nn.GroupNorm(math.gcd(32, max(channels // 4, 1), channels), channels)
