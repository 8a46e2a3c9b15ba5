"""Losses of ATM-Net: Dice with focal, and the contrast between the classes' maps and their prompts (CCAE)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def dice_focal_loss(logits: Tensor, allowed: Tensor, gamma: float = 2.0, smooth: float = 1e-5) -> Tensor:
    """Soft Dice plus focal loss, where each channel counts at the voxels at which it is decided.

    With one channel allowed everywhere this is MONAI's ``DiceFocalLoss(softmax=True, to_onehot_y=True, gamma=2)``: Dice
    per image and channel on the softmax, background and absent channels included, and the focal term on sigmoids. A
    channel that is one of several allowed at a voxel has no gradient there through its own terms.

    Args:
        logits: (B, C, *spatial).
        allowed: (B, C, *spatial) bool.
        gamma: exponent of the focal term.
        smooth: keeps the quotient of an empty channel finite.
    """
    logits = logits.float()
    single = allowed.sum(1, keepdim=True) == 1
    target = (allowed & single).float()
    decided = (~allowed | single).float()
    axes = tuple(range(2, logits.ndim))
    probabilities = logits.softmax(1)
    overlap = (probabilities * target).sum(axes)
    total = (probabilities * decided).sum(axes) + target.sum(axes)
    dice = 1 - (2 * overlap + smooth) / (total + smooth)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    focal = (1 - torch.exp(-entropy)) ** gamma * entropy * decided
    return dice.mean() + focal.sum() / decided.sum().clamp(min=1)


def contrastive_loss(visual: Tensor, text: Tensor, taking_part: Tensor, temperature: float = 0.07) -> Tensor:
    """Symmetric InfoNCE over the classes of each image (paper, equations 5 to 7).

    A class's map and its own prompt are a positive pair, the other classes of the same image the negatives.

    Args:
        visual: (B, C, K) descriptors of the classes' maps, of unit length.
        text: (B, C, K) descriptors of their prompts, of unit length.
        taking_part: (B, C) bool, classes to contrast; the others are neither positives nor negatives.
        temperature: divides the similarities (our choice, 0.07).

    Returns:
        mean over the images with at least two such classes; 0 with a graph where there is none.
    """
    similarity = visual.float() @ text.float().transpose(1, 2) / temperature
    either = taking_part[:, :, None] & taking_part[:, None, :]
    hidden = similarity.masked_fill(~either, -1e9)  # −∞ would make the rows of absent classes NaN
    own = torch.diagonal(similarity, dim1=1, dim2=2)
    pairs = 0.5 * (torch.logsumexp(hidden, 2) + torch.logsumexp(hidden, 1)) - own
    counts = taking_part.sum(1)
    per_image = torch.where(taking_part, pairs, 0.0).sum(1) / counts.clamp(min=1)
    useful = counts >= 2
    return torch.where(useful, per_image, 0.0).sum() / useful.sum().clamp(min=1)


def presence_loss(logits: Tensor, present: Tensor) -> Tensor:
    """Cross-entropy of “is it in the slice”, over the structures of which that is known.

    Args:
        logits: (B, C−1).
        present: (B, C−1) float, NaN where not known.
    """
    known = ~torch.isnan(present)
    entropy = F.binary_cross_entropy_with_logits(logits.float(), torch.nan_to_num(present), reduction="none")
    return torch.where(known, entropy, 0.0).sum() / known.sum().clamp(min=1)
