"""Losses that respect what is not known.

A voxel is not always known to be one thing. In a case whose canal nobody drew, a voxel behind the column is
“background or canal”. So the target is a set per voxel, `allowed` (B, C, *spatial) bool: the channels it may be. A set
of one is an ordinary label.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def marginal_cross_entropy(logits: Tensor, allowed: Tensor) -> Tensor:
    """Minus the log of the probability that falls on the allowed channels, averaged over voxels.

    Equals the cross-entropy where one channel is allowed. Where all are, the gradient is zero.

    Args:
        logits: (B, C, *spatial).
        allowed: (B, C, *spatial) bool, at least one per voxel.

    Source: marginal loss of Shi et al., Marginal loss and exclusion loss for partially supervised multi-organ
    segmentation, MedIA 2021.
    """
    logs = logits.float().log_softmax(1)
    label = decided_channel(allowed)
    single = label >= 0
    # Most voxels have one label: picking it is several times quicker than a sum over the allowed channels.
    picked = logs.gather(1, label.clamp(min=0)[:, None])[:, 0][single]
    some = ~single & ~allowed.all(1)  # where everything is allowed the sum is one, up to rounding: nothing is taught
    inside = torch.logsumexp(_rows(logs, some).masked_fill(~_rows(allowed, some), -torch.inf), 1)
    return -(picked.sum() + inside.sum()) / label.numel()


def partial_dice_loss(logits: Tensor, allowed: Tensor, *, background: bool = False, smooth: float = 1e-5) -> Tensor:
    """One minus the soft Dice per channel, over the voxels where the channel is decided, averaged over channels.

    A channel is undecided at a voxel that may be it or something else; such voxels count for nothing, so their gradient
    through this channel's numerator and denominator is zero. Channels without a decided positive voxel in the batch are
    left to the cross-entropy. Sums run over the batch, which is steadier than per image for small structures.

    Args:
        logits: (B, C, *spatial).
        allowed: (B, C, *spatial) bool.
        background: whether channel 0 counts.
    """
    probabilities = logits.float().softmax(1)
    label = decided_channel(allowed)
    single = label >= 0
    said = label[single]
    picked = probabilities.gather(1, label.clamp(min=0)[:, None])[:, 0][single]
    count = torch.bincount(said, minlength=logits.shape[1])
    intersection = torch.zeros_like(count, dtype=torch.float32).index_add(0, said, picked)
    undecided = (_rows(probabilities, ~single) * _rows(allowed, ~single)).sum(0)
    total = probabilities.sum((0, *range(2, logits.ndim))) - undecided + count
    present = count > 0
    if not background:
        present[0] = False
    dice = (2 * intersection + smooth) / (total + smooth)
    return ((1 - dice) * present).sum() / present.sum().clamp(min=1)


def decided_channel(allowed: Tensor) -> Tensor:
    """(B, C, *spatial) bool → (B, *spatial) long: the channel where exactly one is allowed, −1 elsewhere."""
    # Bytes, not numbers of 64 bits: on a CPU this is thirty times quicker than `sum` and `argmax` of the flags.
    flags = allowed.contiguous().view(torch.uint8)
    numbers = torch.arange(flags.shape[1], dtype=torch.uint8, device=flags.device)
    label = (flags * numbers.view(-1, *[1] * (flags.ndim - 2))).sum(1, dtype=torch.uint8).long()
    return label.masked_fill(flags.sum(1, dtype=torch.uint8) != 1, -1)


def _rows(maps: Tensor, where: Tensor) -> Tensor:
    """(B, C, *spatial) and (B, *spatial) bool → (n, C)."""
    return maps.movedim(1, -1)[where]


def group_channels(allowed: Tensor, groups: Sequence[int], count: int) -> Tensor:
    """Sets of channels → sets of groups: a group is allowed where any of its channels is.

    Args:
        allowed: (B, C, *spatial) bool.
        groups: for each of the C channels, its group.
        count: number of groups.

    Returns:
        (B, count, *spatial) bool.
    """
    result = torch.zeros((allowed.shape[0], count, *allowed.shape[2:]), dtype=torch.bool, device=allowed.device)
    for channel, group in enumerate(groups):
        result[:, group] |= allowed[:, channel]
    return result


def grouped_logits(logits: Tensor, groups: Sequence[int]) -> Tensor:
    """Logits of channels → logits of groups: a group's probability is the sum of its channels'.

    Args:
        logits: (B, C, *spatial).
        groups: for each of the C channels, its group; none is empty.

    Returns:
        (B, number of groups, *spatial).
    """
    of = torch.tensor(groups, device=logits.device)
    return torch.stack([logits.float()[:, of == group].logsumexp(1) for group in range(1 + max(groups))], 1)


def rank_loss(predicted: Tensor, rank: Tensor) -> Tensor:
    """Smooth L1 between the predicted and the true rank where there is one.

    The absolute error makes the network predict the median, i.e. one of the possible levels, where a mean would lie
    between two. 0 (with gradient zero) where no voxel has a rank.

    Args:
        predicted: (B, *spatial).
        rank: (B, *spatial), NaN where the level is not known.
    """
    known = ~torch.isnan(rank)
    if not known.any():
        return predicted.float().sum() * 0.0
    return F.smooth_l1_loss(predicted.float()[known], rank[known], beta=0.2)
