"""The 3D networks that make features, each as (full-size features, bottleneck)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..resenc_unet.network import PlacedFeatures, ResEncUNet

Triple = tuple[int, int, int]


def _double(inputs: int, middle: int, outputs: int, kernel: Triple) -> nn.Sequential:
    slices, rows, columns = kernel
    padding = (slices // 2, rows // 2, columns // 2)
    layers: list[nn.Module] = []
    for a, b in ((inputs, middle), (middle, outputs)):
        layers += [nn.Conv3d(a, b, kernel, padding=padding), nn.InstanceNorm3d(b, affine=True), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class UNet3D(nn.Module):
    """The release's U-Net: two convolutions per level, max pooling, transposed convolutions; 19.1 M parameters.

    Instance norm where the release has a batch norm that always uses the batch's own statistics (our choice). Levels
    whose slices have not been pooled yet, while their pixels will be pooled without them, convolve inside slices only:
    neighboring slices of a sagittal stack are 4 mm apart, neighboring pixels less than 1 mm (our choice, as nnU-Net).

    Args:
        inputs: input channels.
        widths: channels per level, finest first.
        strides: pooling before each level but the first.
    """

    def __init__(self, inputs: int, widths: tuple[int, ...], strides: list[Triple]) -> None:
        super().__init__()
        kernels: list[Triple] = [(1, 3, 3) if s[0] == 1 else (3, 3, 3) for s in strides] + [(3, 3, 3)]
        self.full_width, self.bottleneck_width = widths[0], widths[-1]
        self.down = nn.ModuleList()
        self.pool = nn.ModuleList(nn.MaxPool3d(s, s) for s in strides)
        for width, kernel in zip(widths, kernels, strict=True):
            # The release widens in the second convolution: 1 → 32 → 64, 64 → 64 → 128 …
            self.down.append(_double(inputs, max(inputs, width // 2), width, kernel))
            inputs = width
        self.up, self.merge = nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(len(strides))):
            self.up.append(nn.ConvTranspose3d(inputs, inputs, strides[level], strides[level]))
            self.merge.append(_double(inputs + widths[level], widths[level], widths[level], kernels[level]))
            inputs = widths[level]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        skips = []
        for level, block in enumerate(self.down):
            x = block(self.pool[level - 1](x) if level else x)
            skips.append(x)
        bottleneck = skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([up(x), skips.pop()], 1))
        return x, bottleneck


class SwinUNETR3D(nn.Module):
    """MONAI's Swin UNETR without its output layer.

    Args:
        inputs: input channels.
        width: feature size, a multiple of 12.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        from monai.networks.nets import SwinUNETR

        self.net = SwinUNETR(inputs, 1, feature_size=width, spatial_dims=3)
        del self.net.out
        self.full_width, self.bottleneck_width = width, 16 * width

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        net = self.net
        hidden = net.swinViT(x, net.normalize)
        bottleneck = net.encoder10(hidden[4])
        y = net.decoder5(bottleneck, hidden[3])
        y = net.decoder4(y, net.encoder4(hidden[2]))
        y = net.decoder3(y, net.encoder3(hidden[1]))
        y = net.decoder2(y, net.encoder2(hidden[0]))
        return net.decoder1(y, net.encoder1(x)), bottleneck


class SlicewiseResEnc(nn.Module):
    """The default method's residual-encoder U-Net inside slices, and what neighboring slices say after each level.

    Our choice for stacks of few thick slices and few cores: the release starts from weights of another network too
    (Universal Model's), and the shipped one of the default method fits this one (`LaCafMethod.remap_weights`). Slices
    are never pooled. At first the weights across slices are zero, so that it starts as that network.

    Args:
        inputs: input channels: image and, where there are coordinates, three of them; the place across slices is left
            to the attention.
        widths, blocks: channels and residual blocks per resolution, finest first.
    """

    def __init__(self, inputs: int, widths: tuple[int, ...], blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.channels = [0, *range(2, inputs)]
        self.slices = ResEncUNet(2, len(self.channels), widths, blocks)
        self.down_across = nn.ModuleList(_Across(width) for width in widths)
        self.up_across = nn.ModuleList(_Across(width) for width in widths[:-1])
        self.placed = PlacedFeatures(widths)
        self.full_width, self.bottleneck_width = self.placed.width, widths[-1]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch = len(x)
        x = x[:, self.channels].transpose(1, 2).flatten(0, 1)
        encoded = self.slices.encode(x, lambda level, y: self.down_across[level](y, batch))
        decoded = self.slices.decode(encoded, lambda level, y: self.up_across[level](y, batch))
        return _volume(self.placed(decoded), batch), _volume(encoded[-1], batch)


class _Across(nn.Module):
    """Adds to each channel of a slice (B·D, C, H, W) a weight times that of the slices on either side."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.after = (nn.Parameter(torch.zeros(width, 1, 1)) for _ in range(2))

    def forward(self, x: Tensor, batch: int) -> Tensor:
        stack = x.unflatten(0, (batch, -1))
        if stack.shape[1] == 1:
            return x
        result = stack.clone()
        result[:, 1:] += self.before * stack[:, :-1]
        result[:, :-1] += self.after * stack[:, 1:]
        return result.flatten(0, 1)


def _volume(x: Tensor, batch: int) -> Tensor:
    """(B·D, C, H, W) → (B, C, D, H, W)."""
    return x.unflatten(0, (batch, -1)).transpose(1, 2)
