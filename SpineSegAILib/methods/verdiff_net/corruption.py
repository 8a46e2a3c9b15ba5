"""Priors made worse in training, so that there is something to refine (our addition).

On the training images the conditional U-Net is nearly always right, and a denoiser that only ever sees such priors
learns to repeat them. A prior at inference errs, and one that a reader drew is hard-edged and may lack a structure.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SHIFT = 0.03
"""Standard deviation of the displacement, as a share of half the image's side: some 2 to 3 pixels of 192."""

ERASED = 1.0
"""Standard deviations above which a smooth random field erases: about a sixth of the image, in patches."""


def corrupted(probabilities: Tensor, share: float) -> Tensor:
    """Displace, erase and harden the class probabilities of some images.

    Args:
        probabilities: (B, K, H, W), background first.
        share: chance of each image to be changed; then it is displaced, and erased in patches and made hard with a
            chance of one half each.

    Returns:
        (B, K, H, W) probabilities.
    """
    count, classes, *size = probabilities.shape
    device = probabilities.device

    def chance(value: float) -> Tensor:
        return torch.rand((count, 1, 1, 1), device=device) < value

    def smooth(channels: int, knots: int) -> Tensor:
        coarse = torch.randn((count, channels, knots, knots), device=device)
        return F.interpolate(coarse, size, mode="bicubic", align_corners=True)

    identity = torch.eye(2, 3, device=device).expand(count, 2, 3)
    grid = F.affine_grid(identity, [count, 1, *size], align_corners=False)
    grid = grid + SHIFT * smooth(2, 5).movedim(1, -1)
    worse = F.grid_sample(probabilities, grid, padding_mode="border", align_corners=False)
    erased = (smooth(1, 6) > ERASED) & chance(0.5)
    background = torch.zeros_like(worse[:, :1]).expand_as(worse).clone()
    background[:, 0] = 1.0
    worse = torch.where(erased, background, worse)
    hard = F.one_hot(worse.argmax(1), classes).movedim(-1, 1).to(worse.dtype)
    worse = torch.where(chance(0.5), hard, worse)
    return torch.where(chance(share), worse, probabilities)
