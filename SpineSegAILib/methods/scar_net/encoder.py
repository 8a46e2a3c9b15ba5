"""DeepLabv3+-like encoder and decoder: a reduced aligned Xception with atrous spatial pyramid pooling.

Blocks and sizes are DGMSNet's, whose baseline result the SCAR-Net paper reports as its own baseline; only the branch of
the global mean differs (`Pyramid`).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from ..blocks import group_norm, resized
from .config import ScarNetConfig

ASPP_RATES = (6, 12, 18)


def normalisation(kind: str, channels: int) -> nn.Module:
    """Batch norm, or group norm of at most eight groups."""
    return nn.BatchNorm2d(channels) if kind == "batch" else group_norm(channels, 8, least=1)


def convolution(inputs: int, outputs: int, norm: str, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, normalization, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), normalisation(norm, outputs), nn.ReLU()
    )


def separable(
    inputs: int,
    outputs: int,
    norm: str,
    stride: int = 1,
    dilation: int = 1,
    *,
    between: bool = False,
    ends: bool = True,
) -> nn.Sequential:
    """Depthwise 3x3 and pointwise convolution, each normalized; ReLU at the end, and between the two, where wanted."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, inputs, 3, stride, dilation, dilation, inputs, bias=False),
        normalisation(norm, inputs),
        *([nn.ReLU()] if between else []),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        normalisation(norm, outputs),
        *([nn.ReLU()] if ends else []),
    ]
    return nn.Sequential(*layers)


class XceptionBlock(nn.Module):
    """Three separable convolutions, a ReLU before each, and a skip that is added after the last normalization.

    So a block can lower what it is given as well as raise it. Returns of `forward`: the features before the last
    convolution, which alone may stride, and the block's result; neither has passed a ReLU.

    Args:
        inputs, outputs: channels.
        norm: kind of normalization.
        stride: of the last convolution and the skip.
        active: whether there is a ReLU before the first convolution; the first block's input has passed one.
        late: whether the second convolution widens, as in the exit block, not the first.
    """

    def __init__(
        self, inputs: int, outputs: int, norm: str, stride: int = 1, *, active: bool = True, late: bool = False
    ) -> None:
        super().__init__()
        middle = inputs if late else outputs
        self.body = nn.Sequential(
            nn.ReLU() if active else nn.Identity(),
            separable(inputs, middle, norm, ends=False),
            nn.ReLU(),
            separable(middle, outputs, norm, ends=False),
        )
        self.last = nn.Sequential(nn.ReLU(), separable(outputs, outputs, norm, stride, ends=False))
        self.skip = _skip(inputs, outputs, norm, stride)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        before = self.body(x)
        return before, self.last(before) + self.skip(x)


class EarlierBlock(nn.Module):
    """`XceptionBlock` of checkpoints of version 0.1: a ReLU after each convolution, the skip added after the last one,
    so that features only grow; the first convolution widens in every block."""

    def __init__(
        self, inputs: int, outputs: int, norm: str, stride: int = 1, *, active: bool = True, late: bool = False
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(separable(inputs, outputs, norm), separable(outputs, outputs, norm))
        self.last = separable(outputs, outputs, norm, stride)
        self.skip = _skip(inputs, outputs, norm, stride)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        before = self.body(x)
        return before, self.last(before) + self.skip(x)


def _skip(inputs: int, outputs: int, norm: str, stride: int) -> nn.Module:
    if inputs == outputs and stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), normalisation(norm, outputs))


class Pyramid(nn.Module):
    """Atrous spatial pyramid: 1x1, three dilated 3x3 and the global mean, merged by a 1x1 convolution.

    The branch of the global mean is not normalized: over one pixel of one image there is nothing to normalize by.
    """

    def __init__(self, inputs: int, outputs: int, norm: str, between: bool = True) -> None:
        super().__init__()
        self.point = convolution(inputs, outputs, norm, kernel=1)
        self.dilated = nn.ModuleList(
            separable(inputs, outputs, norm, dilation=rate, between=between) for rate in ASPP_RATES
        )
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(inputs, outputs, 1), nn.ReLU())
        self.merge = convolution((2 + len(ASPP_RATES)) * outputs, outputs, norm, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        whole = self.pooled(x).expand(-1, -1, *x.shape[2:])
        return self.merge(torch.cat([self.point(x), *(branch(x) for branch in self.dilated), whole], 1))


class Encoder(nn.Module):
    """Image → features at half, low-level features at a quarter, high-level ones at a sixteenth of the resolution.

    Returns of `forward`: those of the stem (B, stem[1], H/2, W/2), ``F^L`` (B, stages[1], H/4, W/4) and ``F^H``
    (B, features, H/16, W/16).
    """

    def __init__(self, config: ScarNetConfig) -> None:
        super().__init__()
        norm, first = config.norm, config.stages[0]
        self.stem = nn.Sequential(
            convolution(config.input_channels, config.stem[0], norm, stride=2), convolution(*config.stem, norm)
        )
        block = XceptionBlock if config.is_xception else EarlierBlock
        self.quarter = block(config.stem[1], first, norm, 2, active=False)
        self.eighth = block(first, config.stages[1], norm, 2)
        self.sixteenth = block(config.stages[1], config.stages[2], norm, 2)
        widths = (*[config.stages[2]] * (config.middle + 1), config.exit[0])
        self.middle = nn.ModuleList(
            block(a, b, norm, late=number == config.middle) for number, (a, b) in enumerate(pairwise(widths))
        )
        between = config.is_xception
        self.exit = nn.Sequential(
            *(separable(a, b, norm, dilation=2, between=between) for a, b in pairwise(config.exit))
        )
        self.pyramid = Pyramid(config.exit[-1], config.features, norm, between)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fine = self.stem(x)
        _, x = self.quarter(fine)
        low, x = self.eighth(x)
        _, x = self.sixteenth(x)
        for block in self.middle:
            _, x = block(x)
        return fine, low, self.pyramid(self.exit(x))


class Decoder(nn.Module):
    """High-level features, upsampled by four, and low-level features → maps of the input's size.

    The published maps come from a quarter of the resolution, which is coarse where a pixel is 1.25 mm. With `fine`
    channels (our addition) one more step of the same kind, with the stem's features, makes them at half of it.

    Args:
        config: the configuration.
        outputs: number of maps.
        fine: channels of the step at half the resolution; 0 for none.
    """

    def __init__(self, config: ScarNetConfig, outputs: int, fine: int = 0) -> None:
        super().__init__()
        self.low = convolution(config.stages[1], config.low_channels, config.norm, kernel=1)
        self.refine = nn.Sequential(
            separable(config.features + config.low_channels, config.decoder, config.norm, between=config.is_xception),
            separable(config.decoder, config.decoder, config.norm, between=config.is_xception),
        )
        self.narrow = convolution(config.decoder, fine, config.norm, kernel=1) if fine else None
        self.sharpen = separable(fine + config.stem[1], fine, config.norm, between=config.is_xception) if fine else None
        self.head = nn.Conv2d(fine or config.decoder, outputs, 1)

    def forward(self, fine: Tensor, low: Tensor, high: Tensor, gate: Tensor | None = None) -> Tensor:
        """(B, outputs, H, W) from what `Encoder` returns; the gate (B, 1, H/4, W/4) scales the low-level features."""
        enhanced = self.low(low)
        if gate is not None:
            enhanced = enhanced * gate
        x = self.refine(torch.cat([resized(high, low.shape[2:]), enhanced], 1))
        if self.narrow is not None and self.sharpen is not None:
            x = self.sharpen(torch.cat([resized(self.narrow(x), fine.shape[2:]), fine], 1))
        return resized(self.head(x), [4 * n for n in low.shape[2:]])
