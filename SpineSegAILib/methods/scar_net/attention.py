"""MCCA, the multi-channel cross attention that fuses segmentation and semantic features (paper, section 3.1)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PositionAttention(nn.Module):
    """Every position gathers from all positions, by ``f' = f^c P^T`` with ``P = softmax(f^aT f^b)``.

    At a sixteenth of the resolution only: P has as many entries as there are pairs of positions.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = max(channels // 8, 1)
        self.query = nn.Conv2d(channels, narrow, 1)
        self.key = nn.Conv2d(channels, narrow, 1)
        self.value = nn.Conv2d(channels, channels, 1)

    def weights(self, features: Tensor) -> Tensor:
        """P: (B, N, N), N positions; rows sum to 1."""
        query, key = self.query(features).flatten(2), self.key(features).flatten(2)
        return (query.transpose(1, 2) @ key).softmax(-1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape."""
        query, key, value = (layer(features).flatten(2).transpose(1, 2) for layer in (self.query, self.key, self.value))
        gathered = F.scaled_dot_product_attention(query, key, value, scale=1.0)  # the paper does not scale
        return gathered.transpose(1, 2).unflatten(2, features.shape[2:])


class ChannelAttention(nn.Module):
    """Channels gather from the channels that resemble them least: ``MF = γ softmax(max E − E) FC + FC``.

    ``E = FC FC^T``; subtracted from its maximum as in the ancestors, which the paper does not repeat. The paper calls
    the three blocks similar, so 1x1 convolutions as in the position blocks are an option.
    """

    def __init__(self, channels: int, convolutions: bool = False, gamma: float = 0.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(gamma))
        self.projections = nn.ModuleList(
            nn.Conv2d(channels, channels, 1) if convolutions else nn.Identity() for _ in range(3)
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape."""
        query, key, value = (layer(features).flatten(2) for layer in self.projections)
        with torch.autocast(features.device.type, enabled=False):  # sums over all positions overflow half precision
            energy = query.float() @ key.float().transpose(1, 2)
            weights = (energy.amax(-1, keepdim=True) - energy).softmax(-1)
            gathered = (weights @ value.float()).unflatten(2, features.shape[2:])
        return self.scale * gathered.to(features.dtype) + features


class MCCA(nn.Module):
    """Multi-channel cross attention: an inter-class block on the segmentation features ``F_S^H``, an intra-class block
    on the semantic ones ``F_S``; their sum passes the channel block.

    The paper multiplies an attended stream by γ and adds “the results”. Three readings (`residual`):

    - ``"cross"``: ``F1 = γ1 F_S^H' + F_S``, ``F2 = γ2 F_S' + F_S^H``, as SSHSNet does; our choice.
    - ``"self"``: ``F1 = γ1 F_S^H' + F_S^H``, ``F2 = γ2 F_S' + F_S``.
    - ``"attended"``: ``F1 = γ1 F_S^H' + F_S'``, ``F2 = γ2 F_S' + F_S^H'``, both attended, as its words may be taken.

    Summing F1 and F2, not concatenating them, is our choice. With all γ = 0 the first two give exactly ``F_S^H + F_S``.

    Args:
        channels: of both streams.
        residual: see above.
        channel_convolutions: 1x1 convolutions before the channel attention.
        gamma: first value of each γ.
    """

    def __init__(
        self,
        channels: int,
        residual: Literal["cross", "self", "attended"] = "cross",
        channel_convolutions: bool = False,
        gamma: float = 0.0,
    ) -> None:
        super().__init__()
        self.residual = residual
        self.inter_class = PositionAttention(channels)
        self.intra_class = PositionAttention(channels)
        self.inter_scale = nn.Parameter(torch.tensor(gamma))
        self.intra_scale = nn.Parameter(torch.tensor(gamma))
        self.channel = ChannelAttention(channels, channel_convolutions, gamma)

    def forward(self, segmentation: Tensor, semantic: Tensor) -> Tensor:
        """``F_S^H`` and ``F_S``, both (B, C, H, W) → ``MF`` of that shape."""
        inter, intra = self.inter_class(segmentation), self.intra_class(semantic)
        readings = {"cross": (semantic, segmentation), "self": (segmentation, semantic), "attended": (intra, inter)}
        first, second = readings[self.residual]
        return self.channel(self.inter_scale * inter + first + self.intra_scale * intra + second)
