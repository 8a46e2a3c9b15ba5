"""The diffusion U-Net: predicts the clean mask from a noisy one, the prior and the image (section 2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..blocks import group_norm, sinusoids
from .dynamic_condition import DynamicCondition
from .nsa import NSA


@dataclass
class Guidance:
    """What the denoiser is given of an image; the same at every time and for every sample.

    Attributes:
        stem: (B, ·, H / patch, W / patch) the prior f and the projected image features.
        levels: per resolution what is added to the features, or None beyond the conditional U-Net's depth.
        foreground: per resolution (B, 1, H, W) share of foreground in the prior's neighborhood.
    """

    stem: Tensor
    levels: list[Tensor | None]
    foreground: list[Tensor]

    def repeated(self, samples: int) -> Guidance:
        """Each image `samples` times in succession."""
        if samples == 1:
            return self
        again = [None if x is None else x.repeat_interleave(samples, 0) for x in self.levels]
        shares = [x.repeat_interleave(samples, 0) for x in self.foreground]
        return Guidance(self.stem.repeat_interleave(samples, 0), again, shares)


class DiffusionUNet(nn.Module):
    """Residual U-Net with time embedding and attention at the lowest resolutions, in the manner of MedSegDiff.

    Where the paper is silent (our choice): the prior and the projected image enter with the noisy mask, and the
    conditional U-Net's encoder features are added at equal scales through 1×1 convolutions.

    Args:
        states: channels of the noisy mask.
        image_channels: channels of the fused image features X.
        feature_widths: channels per resolution of the conditional U-Net's encoder; empty without one.
        widths: channels per resolution, finest first.
        blocks: residual blocks per resolution.
        attention_levels: how many of the lowest resolutions attend.
        nsa: kernel of the noise semantic adapter (see `NSA`), or None for no adapter.
        patch: pixels per side that are taken as one; their states become channels (1 in the paper; our addition).
        condition: encodes the image again at every time (see `DynamicCondition`), or None.
    """

    def __init__(
        self,
        states: int,
        image_channels: int,
        feature_widths: Sequence[int],
        widths: Sequence[int],
        blocks: int,
        attention_levels: int,
        nsa: str | None,
        patch: int = 1,
        condition: DynamicCondition | None = None,
    ) -> None:
        super().__init__()
        self.condition = condition
        self.depth, self.patch = len(widths), patch
        self.coarser = patch.bit_length() - 1
        states *= patch**2
        embedding = 4 * widths[0]
        self.time = nn.Sequential(
            _TimeEncoding(widths[0]), nn.Linear(widths[0], embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.project = nn.Conv2d(image_channels, widths[0], patch, patch)
        self.merge = nn.ModuleList(
            nn.Conv2d(a, b, 1) for a, b in zip(feature_widths[self.coarser :], widths, strict=False)
        )
        self.stem = nn.Conv2d(2 * states + widths[0], widths[0], 3, padding=1)
        self.encoder, self.down = nn.ModuleList(), nn.ModuleList()
        skips = []
        current = widths[0]
        for level, width in enumerate(widths):
            attends = level >= self.depth - attention_levels
            self.down.append(nn.Conv2d(current, width, 3, 2, 1) if level else nn.Identity())
            current = width if level else current
            stage = nn.ModuleList()
            for _ in range(blocks):
                stage.append(_Stage(current, width, embedding, attends, nsa))
                current = width
                skips.append(width)
            self.encoder.append(stage)
        self.middle = _Stage(current, current, embedding, attention_levels > 0, None)
        self.decoder, self.up = nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(self.depth)):
            width = widths[level]
            attends = level >= self.depth - attention_levels
            stage = nn.ModuleList()
            for _ in range(blocks):
                stage.append(_Stage(current + skips.pop(), width, embedding, attends, None))
                current = width
            self.decoder.append(stage)
            self.up.append(nn.Conv2d(width, width, 3, padding=1) if level else nn.Identity())
        self.head = nn.Sequential(group_norm(current), nn.SiLU(), nn.Conv2d(current, states, 3, padding=1))

    def guidance(self, image: Tensor, features: Sequence[Tensor], center: Tensor, foreground: Tensor) -> Guidance:
        """Everything that does not depend on the noisy mask.

        Args:
            image: (B, image_channels, H, W) fused image features X.
            features: of the conditional U-Net's encoder, finest first.
            center: (B, states, H, W) the prior f.
            foreground: (B, 1, H, W) the prior's probability of any structure.
        """
        levels: list[Tensor | None] = [merge(x) for merge, x in zip(self.merge, features[self.coarser :], strict=False)]
        levels += [None] * (self.depth - len(levels))
        # Border pixels are averaged over what lies inside the image.
        near = F.avg_pool2d(foreground, 5, 1, 2, count_include_pad=False)
        shares = [F.avg_pool2d(near, self.patch * 2**level) for level in range(self.depth)]
        projected = self.project(image)
        center = F.pixel_unshuffle(center.to(projected.dtype), self.patch)
        return Guidance(torch.cat([center, projected], 1), levels, shares)

    def forward(self, noisy: Tensor, time: Tensor, guidance: Guidance) -> Tensor:
        """Logits (B, states, H, W) of the clean mask.

        Args:
            noisy: (B, states, H, W) the mask y_t.
            time: (B,) long, its index 0…T−1.
            guidance: of the same B.
        """
        embedding = self.time(time)
        noisy = F.pixel_unshuffle(noisy.to(guidance.stem.dtype), self.patch)
        x = self.stem(torch.cat([noisy, guidance.stem], 1))
        skips = []
        image = guidance.stem[:, -self.project.out_channels :]
        for level, stage in enumerate(self.encoder):
            x = self.down[level](x)
            added = guidance.levels[level]
            if added is not None:
                x = x + added
            for block in stage.children():
                x = block(x, embedding, guidance.foreground[level])
                skips.append(x)
            if self.condition is not None:
                image = self.condition(level, image, x)
        if self.condition is not None:
            x = x + image
        x = self.middle(x, embedding, guidance.foreground[-1])
        for up, stage in zip(self.up, self.decoder, strict=True):
            for block in stage.children():
                x = block(torch.cat([x, skips.pop()], 1), embedding, None)
            if not isinstance(up, nn.Identity):
                x = up(F.interpolate(x, scale_factor=2, mode="nearest"))
        return F.pixel_shuffle(self.head(x), self.patch)


class _Stage(nn.Module):
    """Residual block, then attention and the noise semantic adapter where wanted."""

    def __init__(self, inputs: int, outputs: int, embedding: int, attends: bool, nsa: str | None) -> None:
        super().__init__()
        self.residual = _ResidualBlock(inputs, outputs, embedding)
        self.attention = _SelfAttention(outputs) if attends else None
        self.adapter = NSA(outputs, nsa) if nsa else None

    def forward(self, x: Tensor, embedding: Tensor, foreground: Tensor | None) -> Tensor:
        x = self.residual(x, embedding)
        if self.attention is not None:
            x = self.attention(x)
        if self.adapter is not None:
            assert foreground is not None
            x = self.adapter(x, foreground)
        return x


class _ResidualBlock(nn.Module):
    """Two convolutions; the time scales and shifts the features between them."""

    def __init__(self, inputs: int, outputs: int, embedding: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = group_norm(inputs), group_norm(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.modulate = nn.Linear(embedding, 2 * outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulate(F.silu(embedding))[..., None, None].chunk(2, 1)
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return self.skip(x) + h


class _SelfAttention(nn.Module):
    """Multi-head attention between all pixels, heads of 32 channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(1, channels // 32) if channels % 32 == 0 else 1
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(1, (self.heads, -1)).flatten(3).transpose(2, 3)
            for part in self.qkv(self.norm(x)).chunk(3, 1)
        )
        attended = F.scaled_dot_product_attention(q, k, v).transpose(2, 3)
        return x + self.out(attended.reshape(x.shape))


class _TimeEncoding(nn.Module):
    """(B,) times → (B, channels) their cosines, then sines."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.count = channels // 2

    def forward(self, time: Tensor) -> Tensor:
        return sinusoids(time, self.count).roll(self.count, 1)
