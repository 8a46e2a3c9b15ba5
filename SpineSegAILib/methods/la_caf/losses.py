"""Loss of independent sigmoids over partly known labels (methods section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_SMOOTH = 1.0
"""One voxel: an absent class costs nothing where it is predicted nowhere, and everything else is larger."""


def masked_sigmoid_loss(
    logits: Tensor,
    allowed: Tensor,
    *,
    mask_unlabelled: bool = True,
    positive_weight: float = 1.0,
    smooth_overlap: bool = True,
) -> dict[str, Tensor]:
    """Σ m (BCE + Dice) / Σ m over images and classes; m is 1 where the class is known at any voxel of the image.

    At a voxel that may be a structure or something else, that structure is unknown: its logit gets no gradient there.
    A voxel that must be one of several (an artery whose side nobody said) teaches their union,
    ``-log(1 - Π(1 - p_c))``, averaged over such voxels and weighted like one more class.

    Args:
        logits: (B, K, *spatial), without background.
        allowed: (B, K + 1, *spatial) bool, background first (`methods.losses`).
        mask_unlabelled: False counts all that is not annotated as background, as the release does.
        positive_weight: of the structure's own voxels in the cross-entropy; 1 in the release.
        smooth_overlap: whether Dice is smoothed in the numerator, too. In the release it is not: there an absent class
            costs 1 and has no gradient.

    Returns:
        ``total``, ``bce``, ``dice`` and ``one_of``, scalars; zero (with zero gradient) where nothing is known.
    """
    logits = logits.float()
    single = allowed.sum(1, keepdim=True) == 1
    target = allowed[:, 1:] & single
    known = ~allowed[:, 1:] | single if mask_unlabelled else torch.ones_like(target)
    axes = tuple(range(2, logits.ndim))
    weight = known.float()
    counted = known.flatten(2).any(-1).float()  # m
    truth = target.float()
    bce = F.binary_cross_entropy_with_logits(
        logits, truth, reduction="none", pos_weight=logits.new_tensor(positive_weight)
    )
    bce = (bce * weight).sum(axes) / weight.sum(axes).clamp(min=1)
    inside = logits.sigmoid() * weight
    overlap = (inside * truth).sum(axes)
    dice = 1 - (2 * overlap + _SMOOTH * smooth_overlap) / (inside.sum(axes) + truth.sum(axes) + _SMOOTH)
    one_of, images = _one_of(logits, allowed, axes)
    count = (counted.sum() + images.sum()).clamp(min=1)
    parts = {
        "bce": (bce * counted).sum() / count,
        "dice": (dice * counted).sum() / count,
        "one_of": (one_of * images).sum() / count,
    }
    return {"total": parts["bce"] + parts["dice"] + parts["one_of"], **parts}


def _one_of(logits: Tensor, allowed: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """(B,) mean loss over the voxels that must be one of several structures, and (B,) whether there are any."""
    voxels = ~allowed[:, 0] & (allowed.sum(1) > 1)
    axes = tuple(a - 1 for a in axes)
    number = voxels.sum(axes)
    images = (number > 0).float()
    if not voxels.any():
        return logits.sum((1, *(a + 1 for a in axes))) * 0.0, images
    none = (F.logsigmoid(-logits) * allowed[:, 1:]).sum(1)  # log of the probability that it is none of them
    none = torch.where(voxels, none, -1.0).clamp(max=-1e-30)
    loss = -torch.log(-torch.expm1(none))
    return (loss * voxels).sum(axes) / number.clamp(min=1), images
