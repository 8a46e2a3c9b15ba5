"""Residual-encoder U-Net (nnU-Net's ResEnc topology), 2D and 3D.

MONAI has the plain nnU-Net topology (`DynUNet`) but no residual *encoder* with a light decoder, hence this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Batch, Context, Method, Readout, Tiling
from ..blocks import coarse_level, rank_map, resized
from ..losses import group_channels, marginal_cross_entropy, partial_dice_loss, rank_loss
from .config import ResEncUNetConfig

# By the number of dimensions, which the lengths of strides depend on, too.
_CONV: dict[int, Callable[..., nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
_UP: dict[int, Callable[..., nn.Module]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORM: dict[int, Callable[..., nn.Module]] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_POOL: dict[int, Callable[..., Tensor]] = {2: F.avg_pool2d, 3: F.avg_pool3d}

AtLevel = Callable[[int, Tensor], Tensor]
"""(resolution, 0 the finest; features) → features."""

FIRST_LAYERS = ("encoder.0.0.conv1.weight", "encoder.0.0.skip.weight")
"""Weights of a `ResEncUNet` that read its input channels."""


class ResidualBlock(nn.Module):
    """Two convolutions with instance norm and a skip; a strided block averages its skip (ResNet-D)."""

    def __init__(self, dims: int, inputs: int, outputs: int, stride: tuple[int, ...]) -> None:
        super().__init__()
        conv, norm = _CONV[dims], _NORM[dims]
        self.dims, self.stride = dims, stride
        self.conv1 = conv(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = norm(outputs, affine=True)
        self.conv2 = conv(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = norm(outputs, affine=True)
        self.skip = conv(inputs, outputs, 1, bias=False) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.norm1(self.conv1(x)), 0.01)
        y = self.norm2(self.conv2(y))
        if any(s > 1 for s in self.stride):
            x = _POOL[self.dims](x, self.stride)
        return F.leaky_relu(y + self.skip(x), 0.01)


class ResEncUNet(nn.Module):
    """Encoder of residual blocks, decoder of one residual block per resolution.

    Args:
        dims: 2 or 3.
        inputs: input channels.
        widths: channels per resolution, finest first.
        blocks: residual blocks per resolution.
        flat_levels: 3D only: this many first poolings keep the first axis.

    Returns of `forward`: decoder features, finest first; ``[0]`` has the input's resolution.
    """

    def __init__(
        self, dims: int, inputs: int, widths: tuple[int, ...], blocks: tuple[int, ...], flat_levels: int = 0
    ) -> None:
        super().__init__()
        self.strides = [(1,) * dims]
        for level in range(1, len(widths)):
            self.strides.append((1, 2, 2) if dims == 3 and level <= flat_levels else (2,) * dims)
        self.encoder = nn.ModuleList()
        for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            first = ResidualBlock(dims, inputs, width, self.strides[level])
            rest = [ResidualBlock(dims, width, width, (1,) * dims) for _ in range(count - 1)]
            self.encoder.append(nn.Sequential(first, *rest))
            inputs = width
        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for level in range(len(widths) - 1):
            stride = self.strides[level + 1]
            self.up.append(_UP[dims](widths[level + 1], widths[level], stride, stride))
            self.decoder.append(ResidualBlock(dims, 2 * widths[level], widths[level], (1,) * dims))

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.decode(self.encode(x))

    def encode(self, x: Tensor, then: AtLevel | None = None) -> list[Tensor]:
        """Encoder features, finest first.

        Args:
            then: what becomes of a level's features before the next one sees them.
        """
        features = []
        for level, stage in enumerate(self.encoder):
            x = stage(x)
            x = then(level, x) if then else x
            features.append(x)
        return features

    def decode(self, encoded: list[Tensor], then: AtLevel | None = None) -> list[Tensor]:
        """Decoder features, finest first, of encoder features; the deepest of both are the same.

        Args:
            then: as for `encode`.
        """
        x = encoded[-1]
        features = [x]
        for level in reversed(range(len(self.up))):
            x = self.decoder[level](torch.cat([self.up[level](x), encoded[level]], 1))
            x = then(level, x) if then else x
            features.append(x)
        return features[::-1]


class PlacedFeatures(nn.Module):
    """Full-resolution features, and beside them what a quarter of the resolution says about the place.

    For classes that are levels: which one it is, is a coarse fact, while the finest features are few and tell edges.

    Args:
        widths: channels of the decoder features, finest first; two-dimensional ones.
        place: channels for the place.
    """

    def __init__(self, widths: tuple[int, ...], place: int = 24) -> None:
        super().__init__()
        self.level = coarse_level(widths)
        self.read = nn.Conv2d(widths[self.level], place, 1)
        self.width = widths[0] + place

    def forward(self, decoded: list[Tensor]) -> Tensor:
        """(B, width, H, W) of decoder features, finest first."""
        place = F.leaky_relu(self.read(decoded[self.level]), 0.01)
        return torch.cat([decoded[0], resized(place, decoded[0].shape[2:])], 1)


class ResEncUNetMethod(Method):
    """The default method: kinds and ranks, or classes (see `ResEncUNetConfig.output`)."""

    readout = Readout(("class_head",))

    def __init__(self, config: ResEncUNetConfig) -> None:
        super().__init__(config)
        self.config: ResEncUNetConfig = config
        self.network = ResEncUNet(config.dims, config.input_channels, config.widths, config.blocks, config.flat_levels)
        self.tiling = Tiling(
            2 ** (len(config.widths) - 1), context_mm=config.context_mm, around_column=config.around_column
        )
        conv = _CONV[config.dims]
        self.predicts_rank = config.output == "kind-rank"
        self.class_head = conv(config.widths[0], config.kinds if self.predicts_rank else self.scheme.channels, 1)
        if self.predicts_rank:
            self.rank_level = coarse_level(config.widths)
            self.rank_head = conv(config.widths[self.rank_level], 1, 1)

    def forward(self, images: Tensor, coordinates: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits (B, K or C, *spatial), and rank (B, *spatial) where predicted."""
        features = self.network(self.network_input(images, coordinates))
        logits = self.class_head(features[0])
        if not self.predicts_rank:
            return logits, None
        return logits, rank_map(self.rank_head(features[self.rank_level]), images.shape[2:])

    def remap_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A network that sees fewer neighbors or tells fewer kinds apart, grown to this one; what it says stays the
        same but for the new kinds, which start as improbable as they are rare."""
        state = dict(state)
        mine = self.state_dict()
        for name in (f"network.{layer}" for layer in FIRST_LAYERS):
            if name not in state or name not in mine:
                continue
            extra = mine[name].shape[1] - state[name].shape[1]
            if extra > 0 and extra % 2 == 0 and mine[name].shape[0] == state[name].shape[0]:
                images = state[name].shape[1] - self.config.dims * self.config.coordinates
                old = state[name]
                unseen = old.new_zeros((old.shape[0], extra, *old.shape[2:]))
                state[name] = torch.cat([old[:, :images], unseen, old[:, images:]], 1)
        weight, bias = state.get("class_head.weight"), state.get("class_head.bias")
        if self.predicts_rank and weight is not None and bias is not None and len(weight) < self.config.kinds:
            new = self.config.kinds - len(weight)
            state["class_head.weight"] = torch.cat([weight, weight.new_zeros((new, *weight.shape[1:]))])
            state["class_head.bias"] = torch.cat([bias, (bias[:1] - 4.0).expand(new)])
        return state

    def training_losses(self, batch: Batch) -> dict[str, Tensor]:
        logits, rank = self(batch.image, batch.coordinates)
        allowed = batch.allowed
        if self.predicts_rank:
            allowed = group_channels(allowed, self.scheme.kinds, self.config.kinds)
        ce = marginal_cross_entropy(logits, allowed)
        dice = partial_dice_loss(logits, allowed)
        losses = {"total": ce + dice, "cross_entropy": ce, "dice": dice}
        if rank is not None:
            losses["rank"] = rank_loss(rank, batch.rank)
            losses["total"] = losses["total"] + self.config.rank_weight * losses["rank"]
        return losses

    def evidence(self, images: Tensor, context: Context) -> dict[str, Tensor]:
        logits, rank = self(images, context.coordinates)
        probabilities = logits.float().softmax(1)
        return {"kinds": probabilities, "rank": rank.float()} if rank is not None else {"classes": probabilities}


def build(config: ResEncUNetConfig) -> ResEncUNetMethod:
    """The method of a configuration."""
    return ResEncUNetMethod(config)
