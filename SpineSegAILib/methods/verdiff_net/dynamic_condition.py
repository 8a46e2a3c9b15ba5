"""MedSegDiff's two ideas: the image is encoded again at every time, led by the noisy mask, whose high frequencies are
filtered first.

Source: Wu et al., MedSegDiff: medical image segmentation with diffusion probabilistic model, MIDL 2024. Its filter has
one weight per frequency of one image size; here its map is stretched to the size at hand (our choice).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..blocks import group_norm, resized


class FrequencyParser(nn.Module):
    """A learned complex weight for each channel and frequency; untrained it changes nothing.

    Args:
        channels: of the features.
        side: of the map, whose rows are vertical frequencies from the most negative to the most positive and whose
            columns are horizontal ones from zero.
    """

    def __init__(self, channels: int, side: int = 16) -> None:
        super().__init__()
        start = torch.zeros(2, channels, side, side // 2 + 1)
        start[0] = 1
        self.weight = nn.Parameter(start)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → the same shape."""
        with torch.autocast(x.device.type, enabled=False):
            spectrum = torch.fft.rfft2(x.float(), norm="ortho")
            real, imaginary = resized(self.weight.float(), spectrum.shape[2:])
            weight = torch.fft.ifftshift(torch.complex(real, imaginary), 1)
            return torch.fft.irfft2(spectrum * weight, x.shape[2:], norm="ortho").to(x.dtype)


class DynamicCondition(nn.Module):
    """Encodes the image beside the diffusion U-Net's encoder, whose features say at each resolution what to look at.

    Args:
        widths: channels per resolution of the diffusion U-Net, finest first.
        parser: whether the mask's features are filtered first.
    """

    def __init__(self, widths: Sequence[int], *, parser: bool) -> None:
        super().__init__()
        before = [widths[0], *widths[:-1]]
        self.encode = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(a, b, 3, 2 if level else 1, 1), group_norm(b), nn.SiLU(),
                nn.Conv2d(b, b, 3, padding=1), group_norm(b), nn.SiLU(),
            )
            for level, (a, b) in enumerate(zip(before, widths, strict=True))
        )  # fmt: skip
        self.parsers = nn.ModuleList(FrequencyParser(w) if parser else nn.Identity() for w in widths)
        self.image_norms = nn.ModuleList(nn.GroupNorm(1, w) for w in widths)
        self.mask_norms = nn.ModuleList(nn.GroupNorm(1, w) for w in widths)

    def forward(self, level: int, image: Tensor, mask: Tensor) -> Tensor:
        """The image's features at a resolution, led by the mask's.

        Args:
            level: of the resolution, 0 for the finest.
            image: features of the resolution before; at the first the projected image.
            mask: (B, widths[level], H, W) the diffusion U-Net's.
        """
        image = self.encode[level](image)
        affinity = self.image_norms[level](image) * self.mask_norms[level](self.parsers[level](mask))
        return image + affinity * image
