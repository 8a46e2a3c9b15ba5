"""HASF (section 3.3): a decoder stage whose pixels attend to each other, then to the text."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..blocks import position_encoding


class FusionStage(nn.Module):
    """One stage: self-attention, cross-attention to text weighted by α, upsampling, and the skip connection.

    Args:
        channels: of the stage's features.
        lower: of the next finer stage's.
        tokens: text tokens.
        heads: of both attentions.
        max_tokens: pool keys and values of the self-attention to about this many; None for no pooling.
        alpha: first value of the learnable weight; None for a stage without text.
    """

    text_position: Tensor

    def __init__(
        self, channels: int, lower: int, tokens: int, heads: int, max_tokens: int | None, alpha: float | None
    ) -> None:
        super().__init__()
        self.max_tokens = max_tokens
        self.self_attention = Attention(channels, heads)
        self.self_norm = nn.LayerNorm(channels)
        if alpha is not None:
            self.cross_attention = Attention(channels, heads)
            self.cross_norm = nn.LayerNorm(channels)
            self.alpha = nn.Parameter(torch.tensor(float(alpha)))
            places = position_encoding([tokens], channels, centered=True).T.contiguous()
            self.register_buffer("text_position", places, persistent=False)
        self.up = nn.ConvTranspose2d(channels, lower, 2, 2)
        self.merge = nn.Conv2d(2 * lower, lower, 3, padding=1, bias=False)
        # Our choice: the paper names the convolution and the ReLU only.
        self.norm = nn.InstanceNorm2d(lower, affine=True)

    def forward(self, features: Tensor, skip: Tensor, text: Tensor | None) -> Tensor:
        """Features (B, C, H, W), skip (B, C', 2H, 2W), text (B, M, C) or None → (B, C', 2H, 2W)."""
        size = features.shape[2:]
        # From the centre, so that an image which is padded on both sides keeps its positions (our choice).
        position = position_encoding(size, features.shape[1], features.device, centered=True)
        pixels = _sequence(features)
        queries = pixels + _sequence(position[None])
        keys, values = queries, pixels
        if self.max_tokens is not None and math.prod(size) > self.max_tokens:
            factor = math.ceil(math.sqrt(math.prod(size) / self.max_tokens))
            values = _sequence(F.avg_pool2d(features, factor, ceil_mode=True))
            keys = values + _sequence(F.avg_pool2d(position[None], factor, ceil_mode=True))
        pixels = pixels + self.self_norm(self.self_attention(queries, keys, values))
        if text is not None:
            said = self.cross_attention(pixels + _sequence(position[None]), text + self.text_position, text)
            pixels = pixels + self.alpha * self.cross_norm(said)
        image = pixels.transpose(1, 2).unflatten(2, tuple(size))
        return F.relu(self.norm(self.merge(torch.cat([self.up(image), skip], 1))))


class Attention(nn.Module):
    """Multi-head attention that never holds the matrix of weights (36,864 pixels at the first stage of 384²)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be shared by {heads} heads")
        self.heads = heads
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(B, N, C), (B, M, C), (B, M, C) → (B, N, C)."""
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, queries), (self.key, keys), (self.value, values))
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _sequence(image: Tensor) -> Tensor:
    """(B, C, H, W) → (B, H·W, C)."""
    return image.flatten(2).transpose(1, 2)
