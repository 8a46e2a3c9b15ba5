"""Noise semantic adapter (section 2.4, equations 15–16)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..blocks import group_norm


class NSA(nn.Module):
    """Large-kernel attention whose fine kernel depends on where the prior sees structures.

    Fine features come from a 3×3 depthwise convolution inside and near structures and from a 5×5 one in the background,
    wide features from a dilated 7×7 one on top; a spatial attention weighs both. The paper picks the fine kernel by
    counting mask pixels around each pixel; here the two are blended by the local share of foreground in the prior
    (our choice: soft, and no mask is needed at inference).

    Args:
        channels: of input and output; even.
        kernel: ``"select"`` to blend by the prior, ``"3"`` or ``"5"`` for one fine kernel everywhere.
    """

    def __init__(self, channels: int, kernel: str = "select") -> None:
        super().__init__()
        if channels % 2:
            raise ValueError(f"channels must be even, not {channels}")
        self.norm = group_norm(channels)
        sizes = (3, 5) if kernel == "select" else (int(kernel),)
        self.fine = nn.ModuleList(nn.Conv2d(channels, channels, k, padding=k // 2, groups=channels) for k in sizes)
        self.wide = nn.Conv2d(channels, channels, 7, padding=9, dilation=3, groups=channels)
        self.reduce_fine = nn.Conv2d(channels, channels // 2, 1)
        self.reduce_wide = nn.Conv2d(channels, channels // 2, 1)
        self.attend = nn.Conv2d(2, 2, 7, padding=3)
        self.expand = nn.Conv2d(channels // 2, channels, 1)

    def attention(self, x: Tensor, foreground: Tensor) -> Tensor:
        """T: (B, C, H, W) factors for the features x (B, C, H, W), given the foreground share g (B, 1, H, W)."""
        fine = self.fine[0](x)
        if len(self.fine) == 2:
            fine = foreground * fine + (1 - foreground) * self.fine[1](x)  # F = g⊙DW3(X) + (1−g)⊙DW5(X)
        wide = self.wide(fine)  # S
        fine, wide = self.reduce_fine(fine), self.reduce_wide(wide)
        both = torch.cat([fine, wide], 1)
        pooled = torch.cat([both.mean(1, keepdim=True), both.amax(1, keepdim=True)], 1)
        weights = self.attend(pooled).sigmoid()
        return self.expand(weights[:, :1] * fine + weights[:, 1:] * wide)

    def forward(self, h: Tensor, foreground: Tensor) -> Tensor:
        """h + V(norm(h)) with V(X) = X⊙T: shape kept.

        Args:
            h: (B, C, H, W).
            foreground: (B, 1, H, W) in 0…1.
        """
        x = self.norm(h)
        return h + x * self.attention(x, foreground.to(x.dtype))
