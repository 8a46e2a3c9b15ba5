"""Swin-Unet (Cao et al., ECCV workshops 2022) on MONAI's Swin blocks.

Where it differs: trained from scratch, not from ImageNet's weights, which fit three channels; stages whose tokens are
no multiple of the window are padded by the blocks, so that any image fits, where the paper has 224 × 224 pixels.
"""

from __future__ import annotations

import torch
from monai.networks.nets.swin_unetr import BasicLayer, PatchMerging
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Tiling
from ..class_network import ClassNetwork
from .config import SwinUnetConfig

_PATCH = 4
"""Side of what is one token, in pixels."""


class SwinUnet(nn.Module):
    """(B, inputs, H, W) → logits (B, outputs, H, W); H and W multiples of `SwinUnet.divisor`.

    Args:
        c: the configuration.
        inputs: channels of the image.
        outputs: classes.
    """

    def __init__(self, c: SwinUnetConfig, inputs: int, outputs: int) -> None:
        super().__init__()
        widths = [c.width * 2**level for level in range(len(c.depths))]
        rates = torch.linspace(0, c.drop_path, sum(c.depths)).tolist()
        firsts = [sum(c.depths[:level]) for level in range(len(c.depths))]

        def stage(level: int) -> nn.Module:
            own = rates[firsts[level] : firsts[level] + c.depths[level]]
            side = (c.window, c.window)
            return BasicLayer(widths[level], c.depths[level], c.heads[level], side, own, qkv_bias=True)

        self.embed = nn.Conv2d(inputs, c.width, _PATCH, _PATCH)
        self.embed_norm = nn.LayerNorm(c.width)
        self.encoder = nn.ModuleList(stage(level) for level in range(len(widths)))
        self.merge = nn.ModuleList(PatchMerging(width, spatial_dims=2) for width in widths[:-1])
        self.bottom_norm = nn.LayerNorm(widths[-1])
        self.expand = nn.ModuleList(_Expand(width, 2) for width in widths[:0:-1])
        self.join = nn.ModuleList(nn.Linear(2 * width, width) for width in widths[-2::-1])
        self.decoder = nn.ModuleList(stage(level) for level in range(len(widths) - 1)[::-1])
        self.top_norm = nn.LayerNorm(c.width)
        self.expand_last = _Expand(c.width, _PATCH, keep=True)
        self.head = nn.Conv2d(c.width, outputs, 1, bias=False)
        self.divisor = _PATCH * 2 ** (len(widths) - 1)

    def forward(self, x: Tensor) -> Tensor:
        x = _last(self.embed_norm, self.embed(x))
        skips: list[Tensor] = []
        for level, stage in enumerate(self.encoder):
            x = stage(x)
            if level < len(self.merge):
                skips.append(x)
                x = _last(self.merge[level], x)
        x = _last(self.bottom_norm, x)
        for expand, join, stage in zip(self.expand, self.join, self.decoder, strict=True):
            x = _last(join, torch.cat([expand(x), skips.pop()], 1))
            x = stage(x)
        return self.head(self.expand_last(_last(self.top_norm, x)))


class _Expand(nn.Module):
    """Patch expanding: a token's channels become `factor` × `factor` tokens, of half the width or, in the last one, of
    the same."""

    def __init__(self, width: int, factor: int, *, keep: bool = False) -> None:
        super().__init__()
        self.factor, self.width = factor, width if keep else width // 2
        self.linear = nn.Linear(width, factor**2 * self.width, bias=False)
        self.norm = nn.LayerNorm(self.width)

    def forward(self, x: Tensor) -> Tensor:
        return _last(self.norm, F.pixel_shuffle(_last(self.linear, x), self.factor))


def _last(module: nn.Module, x: Tensor) -> Tensor:
    """A module that wants channels last, on (B, C, H, W)."""
    return module(x.movedim(1, -1)).movedim(-1, 1).contiguous()


def build(config: SwinUnetConfig) -> ClassNetwork:
    """The method of a configuration."""
    network = SwinUnet(config, config.input_channels, config.label_scheme.channels)
    return ClassNetwork(config, network, Tiling(network.divisor), "head")
