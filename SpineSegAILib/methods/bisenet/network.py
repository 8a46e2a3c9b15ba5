"""BiSeNet (Yu et al., ECCV 2018): a spatial path keeps detail at an eighth of the resolution, a context path sees far.

Where it differs: group for batch normalization, since batches are small (instance normalization would take away what is
the same everywhere, and with it the pooled tail of the context path); the pooled vectors of its attentions are not
normalized, since one value per channel cannot be; and the loss is that of the other baselines (with Dice), on the
result and, as published, on both stages of the context path.
"""

from __future__ import annotations

import torch
from monai.networks.nets import ResNet
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Batch, Tiling
from ..blocks import group_norm, resized
from ..class_network import ClassNetwork
from ..losses import marginal_cross_entropy, partial_dice_loss
from .config import BiSeNetConfig


class BiSeNet(nn.Module):
    """The network.

    Args:
        inputs: channels of the image.
        outputs: classes.
        width: channels of the first ResNet stage.

    Returns of `forward`: logits (B, outputs, H, W), and in training a list of them: the result's, then those of the
    context path's stages at a sixteenth and a thirty-second of the resolution.
    """

    def __init__(self, inputs: int, outputs: int, width: int) -> None:
        super().__init__()
        self.spatial = nn.Sequential(
            _conv(inputs, width, 3, 2), _conv(width, width, 3, 2), _conv(width, 2 * width, 3, 2)
        )
        planes = [width, 2 * width, 4 * width, 8 * width]
        self.context = ResNet(
            "basic", [2, 2, 2, 2], planes, 2, inputs, conv1_t_stride=2, norm=("group", {"num_groups": width // 4}),
            feed_forward=False, bias_downsample=False,
        )  # fmt: skip
        self.whole = nn.Conv2d(planes[3], 2 * width, 1)
        self.refine16 = _AttentionRefinement(planes[2], 2 * width)
        self.refine32 = _AttentionRefinement(planes[3], 2 * width)
        self.fuse = _FeatureFusion(4 * width, 4 * width)
        self.head = _head(4 * width, outputs)
        self.auxiliary = nn.ModuleList(_head(2 * width, outputs) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        net = self.context
        shallow = net.layer2(net.layer1(net.maxpool(net.act(net.bn1(net.conv1(x))))))
        at16 = net.layer3(shallow)
        at32 = net.layer4(at16)
        tail = F.relu(self.whole(at32.mean((2, 3), keepdim=True)))  # what the whole image shows
        deep = self.refine32(at32) + tail
        wide = self.refine16(at16) + resized(deep, at16.shape[2:])
        detail = self.spatial(x)
        fused = self.fuse(torch.cat([detail, resized(wide, detail.shape[2:])], 1))
        result = resized(self.head(fused), x.shape[2:])
        if not self.training:
            return result
        return [result, *(resized(head(y), x.shape[2:]) for head, y in zip(self.auxiliary, (wide, deep), strict=True))]


class _AttentionRefinement(nn.Module):
    """Features weighed, channel by channel, by what their mean over the image says."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.reduce = _conv(inputs, outputs, 3)
        self.weigh = nn.Conv2d(outputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x)
        return x * self.weigh(x.mean((2, 3), keepdim=True)).sigmoid()


class _FeatureFusion(nn.Module):
    """Both paths' features mixed, and the useful channels of the mixture raised."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.mix = _conv(inputs, outputs, 1)
        self.weigh = nn.Sequential(
            nn.Conv2d(outputs, outputs // 4, 1), nn.ReLU(), nn.Conv2d(outputs // 4, outputs, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(x)
        return x + x * self.weigh(x.mean((2, 3), keepdim=True))


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), group_norm(outputs), nn.ReLU()
    )


def _head(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(_conv(inputs, inputs, 3), nn.Conv2d(inputs, outputs, 1))


class BiSeNetMethod(ClassNetwork):
    """Softmax over the scheme, with the losses of both stages of the context path."""

    def __init__(self, config: BiSeNetConfig) -> None:
        network = BiSeNet(config.input_channels, config.label_scheme.channels, config.width)
        super().__init__(config, network, Tiling(32), "head.1")
        self.auxiliary_weight = config.auxiliary_weight

    def training_losses(self, batch: Batch) -> dict[str, Tensor]:
        result, *stages = self(batch.image, batch.coordinates)
        losses = {
            "cross_entropy": marginal_cross_entropy(result, batch.allowed),
            "dice": partial_dice_loss(result, batch.allowed),
        }
        auxiliary = [
            marginal_cross_entropy(stage, batch.allowed) + partial_dice_loss(stage, batch.allowed) for stage in stages
        ]
        losses["auxiliary"] = torch.stack(auxiliary).sum()
        total = losses["cross_entropy"] + losses["dice"] + self.auxiliary_weight * losses["auxiliary"]
        return {"total": total, **losses}


def build(config: BiSeNetConfig) -> BiSeNetMethod:
    """The method of a configuration."""
    return BiSeNetMethod(config)
