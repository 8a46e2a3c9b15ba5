"""HASF (section 3.3): a decoder stage whose pixels attend to each other, then to the text."""

from __future__ import annotations

import math
from typing import Literal

import torch
from monai.networks.blocks.dynunet_block import UnetResBlock
from torch import Tensor, nn
from torch.nn import functional as F

from ..blocks import position_encoding

Normalisation = Literal["none", "before", "qk"]
Decoder = Literal["paper", "residual"]


class FusionStage(nn.Module):
    """One stage: self-attention, cross-attention to text weighted by α, upsampling, and the skip connection.

    As printed, nothing is normalized before the attentions. The loss does not see the scale of what is attended to,
    since a layer norm follows, so tokens grow until one of them takes all the attention of every pixel, whatever is
    said. `normalisation` keeps scores in bounds (ours; LGMS normalizes the visual side, too).

    Args:
        channels: of the stage's features.
        lower: of the next finer stage's.
        tokens: text tokens.
        heads: of both attentions.
        max_tokens: pool keys and values of the self-attention to about this many; None for no pooling.
        alpha: first value of the learnable weight; None for a stage without text.
        normalisation: ``"none"`` as printed; ``"before"``: layer norms on pixels and tokens before each attention;
            ``"qk"``: queries and keys of unit root-mean-square in each head, times a learnable gain.
        decoder: ``"paper"``: one convolution merges, the skip comes as it is; ``"residual"``: as in Swin UNETR's own
            decoder, two convolutions with a residual merge, and the skip passes a residual block first.
    """

    text_position: Tensor

    def __init__(
        self,
        channels: int,
        lower: int,
        tokens: int,
        heads: int,
        max_tokens: int | None,
        alpha: float | None,
        normalisation: Normalisation = "none",
        decoder: Decoder = "paper",
    ) -> None:
        super().__init__()
        self.max_tokens = max_tokens
        before, qk = normalisation == "before", normalisation == "qk"
        self.before_self: nn.Module = nn.LayerNorm(channels) if before else nn.Identity()
        self.self_attention = Attention(channels, heads, qk)
        self.self_norm = nn.LayerNorm(channels)
        if alpha is not None:
            self.before_cross: nn.Module = nn.LayerNorm(channels) if before else nn.Identity()
            self.token_norm: nn.Module = nn.LayerNorm(channels) if before else nn.Identity()
            self.cross_attention = Attention(channels, heads, qk)
            self.cross_norm = nn.LayerNorm(channels)
            self.alpha = nn.Parameter(torch.tensor(float(alpha)))
            places = position_encoding([tokens], channels, centered=True).T.contiguous()
            self.register_buffer("text_position", places, persistent=False)
        self.up = nn.ConvTranspose2d(channels, lower, 2, 2)
        self.refine: nn.Module | None = None
        self.merge: nn.Module
        if decoder == "residual":
            self.refine = UnetResBlock(2, lower, lower, 3, 1, "instance")
            self.merge = UnetResBlock(2, 2 * lower, lower, 3, 1, "instance")
        else:
            self.merge = nn.Conv2d(2 * lower, lower, 3, padding=1, bias=False)
            # Our choice: the paper names the convolution and the ReLU only.
            self.norm = nn.InstanceNorm2d(lower, affine=True)

    def forward(self, features: Tensor, skip: Tensor, text: Tensor | None) -> Tensor:
        """Features (B, C, H, W), skip (B, C', 2H, 2W), text (B, M, C) or None → (B, C', 2H, 2W)."""
        size = features.shape[2:]
        # From the center, so that an image which is padded on both sides keeps its positions (our choice).
        position = position_encoding(size, features.shape[1], features.device, centered=True)
        pixels = _sequence(features)
        seen = self.before_self(pixels)
        queries = seen + _sequence(position[None])
        keys, values = queries, seen
        if self.max_tokens is not None and math.prod(size) > self.max_tokens:
            factor = math.ceil(math.sqrt(math.prod(size) / self.max_tokens))
            values = _sequence(F.avg_pool2d(_image(seen, size), factor, ceil_mode=True))
            keys = values + _sequence(F.avg_pool2d(position[None], factor, ceil_mode=True))
        pixels = pixels + self.self_norm(self.self_attention(queries, keys, values))
        if text is not None:
            said = self.token_norm(text)
            asked = self.before_cross(pixels) + _sequence(position[None])
            found = self.cross_attention(asked, said + self.text_position, said)
            pixels = pixels + self.alpha * self.cross_norm(found)
        image = self.up(_image(pixels, size))
        if self.refine is not None:
            return self.merge(torch.cat([image, self.refine(skip)], 1))
        return F.relu(self.norm(self.merge(torch.cat([image, skip], 1))))


class Attention(nn.Module):
    """Multi-head attention that never holds the matrix of weights (36,864 pixels at the first stage of 384²).

    Args:
        channels: of queries, keys, values and the result.
        heads: share the channels.
        normalised: whether queries and keys have unit root-mean-square in each head, times a learnable gain per head.
    """

    def __init__(self, channels: int, heads: int, normalised: bool = False) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be shared by {heads} heads")
        self.heads = heads
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)
        self.gain = nn.Parameter(torch.ones(heads, 1, 1)) if normalised else None

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(B, N, C), (B, M, C), (B, M, C) → (B, N, C)."""
        q, k = self._asked(queries, keys)
        gathered = F.scaled_dot_product_attention(q, k, self._parted(self.value(values)))
        return self.out(gathered.transpose(1, 2).flatten(2))

    def weights(self, queries: Tensor, keys: Tensor) -> Tensor:
        """(B, heads, N, M): the shares that `forward` gathers by; for those who look at them."""
        q, k = self._asked(queries, keys)
        return (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(-1)

    def _asked(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        q, k = self._parted(self.query(queries)), self._parted(self.key(keys))
        if self.gain is not None:
            q, k = (F.rms_norm(x, x.shape[-1:]) for x in (q, k))
            q = q * self.gain
        return q, k

    def _parted(self, x: Tensor) -> Tensor:
        """(B, N, C) → (B, heads, N, C / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _sequence(image: Tensor) -> Tensor:
    """(B, C, H, W) → (B, H·W, C)."""
    return image.flatten(2).transpose(1, 2)


def _image(sequence: Tensor, size: torch.Size) -> Tensor:
    """(B, H·W, C) → (B, C, H, W)."""
    return sequence.transpose(1, 2).unflatten(2, tuple(size))
