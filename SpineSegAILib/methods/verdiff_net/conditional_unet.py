"""The conditional U-Net: a discriminative network whose mask the diffusion starts from (section 2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..blocks import coarse_level, group_norm, rank_map
from ..resenc_unet.network import PlacedFeatures, ResEncUNet


class ConditionalUNet(nn.Module):
    """A plain U-Net that also hands out its encoder's features.

    Args:
        inputs: channels of the fused image features X.
        widths: channels per resolution, finest first.
        outputs: channels of the result.
        rank: whether a rank head reads the decoder (our addition, for training).

    Returns of `forward`: logits (B, outputs, H, W), rank (B, H, W) or None, and encoder features, finest first.
    """

    def __init__(self, inputs: int, widths: Sequence[int], outputs: int, *, rank: bool = False) -> None:
        super().__init__()
        self.encoder = nn.ModuleList()
        for width in widths:
            self.encoder.append(_double(inputs, width))
            inputs = width
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in pairwise(widths))
        self.decoder = nn.ModuleList(_double(2 * width, width) for width in widths[:-1])
        self.head = nn.Conv2d(widths[0], outputs, 1)
        self.rank_head = _rank_head(widths) if rank else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        features: list[Tensor] = []
        for level, stage in enumerate(self.encoder):
            x = stage(F.max_pool2d(x, 2) if level else x)
            features.append(x)
        decoded = [x]
        for level in reversed(range(len(self.up))):
            x = self.decoder[level](torch.cat([self.up[level](x), features[level]], 1))
            decoded.append(x)
        return self.head(x), _rank(self.rank_head, decoded[::-1]), features


class ResidualConditionalUNet(nn.Module):
    """The same of residual blocks, as the default method's network, whose weights fit (our addition).

    Args:
        inputs: channels of the network's own input (image and coordinates) and of the fused features after them.
        widths, blocks: channels and residual blocks per resolution, finest first.
        outputs: channels of the result.
        rank: whether a rank head reads the decoder.

    Returns of `forward`: as `ConditionalUNet`'s.
    """

    def __init__(
        self, inputs: int, widths: Sequence[int], blocks: Sequence[int], outputs: int, *, rank: bool = False
    ) -> None:
        super().__init__()
        self.network = ResEncUNet(2, inputs, tuple(widths), tuple(blocks))
        self.placed = PlacedFeatures(tuple(widths))
        self.head = nn.Conv2d(self.placed.width, outputs, 1)
        self.rank_head = _rank_head(widths) if rank else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        encoded = self.network.encode(x)
        decoded = self.network.decode(encoded)
        return self.head(self.placed(decoded)), _rank(self.rank_head, decoded), encoded


def _rank_head(widths: Sequence[int]) -> nn.Module:
    return nn.Conv2d(widths[coarse_level(widths)], 1, 1)


def _rank(head: nn.Module | None, decoded: Sequence[Tensor]) -> Tensor | None:
    """(B, H, W) rank that a head, if there is one, reads off decoder features, finest first."""
    return None if head is None else rank_map(head(decoded[coarse_level(decoded)]), decoded[0].shape[2:])


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), group_norm(outputs), nn.SiLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), group_norm(outputs), nn.SiLU(),
    )  # fmt: skip
