"""Multi-scale fusion module (section 2.3, equations 11–14)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MSFM(nn.Module):
    """Convolutions of several sizes whose sum is re-weighted per channel by what the whole image looks like.

    A selective-kernel unit with three branches. The paper normalizes the pooled vector by batch norm and trains with
    batches of one image, where batch norm has one value per channel and nothing to normalize: layer norm here.

    Args:
        inputs: input channels.
        channels: output channels.
        kernels: sizes of the branches (lost in print; 3, 5 and 7 are our choice).
        reduction: the pooled vector is compressed to ``max(channels / reduction, least)``.
        least: see `reduction`; 32 as in selective-kernel networks.

    Example:
        >>> MSFM(1, 32)(torch.zeros(1, 1, 64, 64)).shape
        torch.Size([1, 32, 64, 64])
    """

    def __init__(
        self, inputs: int, channels: int, kernels: Sequence[int] = (3, 5, 7), reduction: int = 16, least: int = 32
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(inputs, channels, k, padding=k // 2) for k in kernels)
        hidden = max(channels // reduction, least)
        self.compress = nn.Sequential(nn.Linear(channels, hidden), nn.LayerNorm(hidden), nn.ELU())
        self.select = nn.Linear(hidden, len(kernels) * channels)

    def weights(self, responses: Tensor) -> Tensor:
        """Branch responses (B, K, C, H, W) → weights (B, K, C) that sum to one over the K branches."""
        pooled = responses.sum(1).mean((-2, -1))  # s = GAP(ΣU_k)
        logits = self.select(self.compress(pooled))
        return logits.unflatten(1, responses.shape[1:3]).softmax(1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) → (B, channels, H, W)."""
        responses = torch.stack([branch(x) for branch in self.branches], 1)
        return torch.einsum("bkc,bkchw->bchw", self.weights(responses).to(responses.dtype), responses)


class PlainStem(nn.Module):
    """What stands in for the fusion module when it is switched off."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) → (B, channels, H, W)."""
        return F.silu(self.conv(x))
