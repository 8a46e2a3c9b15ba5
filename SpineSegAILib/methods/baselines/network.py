"""The baselines' networks. Everything comes from MONAI; only the heads of FCN and DeepLabv3 are put together here."""

from __future__ import annotations

import torch
from monai.networks.blocks import Convolution, SimpleASPP
from monai.networks.nets import UNETR, AttentionUnet, DynUNet, ResNet, SegResNet, SwinUNETR, UNet
from torch import Tensor, nn

from ..base import Tiling
from ..blocks import resized
from ..class_network import ClassNetwork
from .config import BaselineConfig

_INSTANCE = ("instance", {"affine": True})
_DEFAULT_WINDOW = {2: (224, 160), 3: (16, 96, 96)}

_Made = tuple[nn.Module, Tiling, str]
"""A network, what inputs it takes, and which part of it reads the last features."""


def build(config: BaselineConfig) -> ClassNetwork:
    """The baseline that `config.method` names."""
    return ClassNetwork(config, *_BUILDERS[config.method](config, config.input_channels, config.label_scheme.channels))


def _unet(c: BaselineConfig, inputs: int, outputs: int) -> _Made:
    strides = (2,) * (len(c.widths) - 1)
    network = UNet(c.dims, inputs, outputs, c.widths, strides, num_res_units=2, norm=_INSTANCE)
    return network, Tiling(2 ** len(strides)), "model.2"  # at half resolution: it upsamples straight into classes


def _attention_unet(c: BaselineConfig, inputs: int, outputs: int) -> _Made:
    strides = (2,) * (len(c.widths) - 1)
    return AttentionUnet(c.dims, inputs, outputs, c.widths, strides), Tiling(2 ** len(strides)), "model.2"


def _unetr(c: BaselineConfig, inputs: int, outputs: int) -> _Made:
    # Transformer of the paper's proportions: 12 heads of 64 for feature size 16, fewer for smaller ones.
    hidden = 768 * c.widths[0] // 16
    window = c.window or _DEFAULT_WINDOW[c.dims]
    network = UNETR(
        inputs, outputs, window, c.widths[0], hidden, 4 * hidden, num_heads=max(hidden // 64, 1), spatial_dims=c.dims
    )
    return network, Tiling(16, window), "out"


def _segresnet(c: BaselineConfig, inputs: int, outputs: int) -> _Made:
    return SegResNet(c.dims, c.widths[0], inputs, outputs), Tiling(8), "conv_final"


def _swin_unetr(c: BaselineConfig, inputs: int, outputs: int) -> _Made:
    return SwinUNETR(inputs, outputs, feature_size=c.widths[0], spatial_dims=c.dims), Tiling(32), "out"


def _dynunet(c: BaselineConfig, inputs: int, outputs: int) -> _Made:
    levels = len(c.widths)
    strides = [1] + [2] * (levels - 1)
    network = DynUNet(c.dims, inputs, outputs, [3] * levels, strides, strides[1:], filters=c.widths)
    return network, Tiling(2 ** (levels - 1)), "output_block"


def _fcn(c: BaselineConfig, inputs: int, outputs: int) -> _Made:
    body = _DilatedResNet(c, inputs)
    middle = body.width // 4
    head = nn.Sequential(
        Convolution(c.dims, body.width, middle, kernel_size=3, norm=_INSTANCE, act="relu"),
        Convolution(c.dims, middle, outputs, kernel_size=1, conv_only=True),
    )
    return _Resized(body, head), Tiling(8), "head.1"


def _deeplabv3(c: BaselineConfig, inputs: int, outputs: int) -> _Made:
    body = _DilatedResNet(c, inputs)
    head = nn.Sequential(
        _ASPP(c.dims, body.width, 4 * c.widths[0]),
        Convolution(c.dims, 4 * c.widths[0], 4 * c.widths[0], kernel_size=3, norm=_INSTANCE, act="relu"),
        Convolution(c.dims, 4 * c.widths[0], outputs, kernel_size=1, conv_only=True),
    )
    return _Resized(body, head), Tiling(8), "head.2"


class _DilatedResNet(nn.Module):
    """ResNet-34 features at an eighth of the resolution: the last two stages dilate instead of striding."""

    def __init__(self, c: BaselineConfig, inputs: int) -> None:
        super().__init__()
        planes = [c.widths[0] * factor for factor in (1, 2, 4, 8)]
        self.width = planes[-1]
        self.net = ResNet(
            "basic", [3, 4, 6, 3], planes, c.dims, inputs, conv1_t_stride=2, norm=_INSTANCE, feed_forward=False,
            bias_downsample=False,
        )  # fmt: skip
        for dilation, stage in ((2, self.net.layer3), (4, self.net.layer4)):
            for module in stage.modules():
                if isinstance(module, nn.Conv2d | nn.Conv3d):
                    module.stride = (1,) * c.dims
                    if module.kernel_size[0] == 3:
                        module.dilation = module.padding = (dilation,) * c.dims

    def forward(self, x: Tensor) -> Tensor:
        net = self.net
        x = net.maxpool(net.act(net.bn1(net.conv1(x))))
        return net.layer4(net.layer3(net.layer2(net.layer1(x))))


class _ASPP(nn.Module):
    """Atrous spatial pyramid with the image-level branch of DeepLabv3, which MONAI's `SimpleASPP` omits."""

    def __init__(self, dims: int, inputs: int, outputs: int) -> None:
        super().__init__()
        branch = outputs // 4
        self.pyramid = SimpleASPP(dims, inputs, branch, (1, 3, 3, 3), (1, 12, 24, 36), norm_type=_INSTANCE)
        self.pooled = Convolution(dims, inputs, branch, kernel_size=1, norm=None, act="relu")
        # Instance normalization would take away what is the same everywhere, which is all that the pooled branch says.
        groups = ("group", {"num_groups": max(outputs // 8, 1)})
        self.merge = Convolution(dims, 5 * branch, outputs, kernel_size=1, norm=groups, act="relu")

    def forward(self, x: Tensor) -> Tensor:
        axes = tuple(range(2, x.ndim))
        whole = self.pooled(x.mean(axes, keepdim=True)).expand(-1, -1, *x.shape[2:])
        return self.merge(torch.cat([self.pyramid(x), whole], 1))


class _Resized(nn.Module):
    """A body and a head, brought back to the input's size."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x: Tensor) -> Tensor:
        return resized(self.head(self.body(x)), x.shape[2:])


_BUILDERS = {
    "unet": _unet,
    "attention-unet": _attention_unet,
    "unetr": _unetr,
    "segresnet": _segresnet,
    "swin-unetr": _swin_unetr,
    "dynunet": _dynunet,
    "fcn": _fcn,
    "deeplabv3": _deeplabv3,
}
