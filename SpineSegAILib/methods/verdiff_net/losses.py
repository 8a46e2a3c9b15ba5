"""Losses of Verdiff-Net (equations 8–10), over sets of allowed classes as in `methods.losses`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..losses import marginal_cross_entropy
from .encoding import Encoding, combine


def code_cross_entropy(encoding: Encoding, logits: Tensor, allowed: Tensor) -> Tensor:
    """Binary cross-entropy of the code's bits; cross-entropy where a softmax chooses among one-hot channels.

    A voxel that may be several classes costs minus the log of the probability of any of them among all that exist; with
    all of them allowed the gradient is zero.

    Args:
        encoding: the codes.
        logits: (B, n, H, W).
        allowed: (B, S, H, W) bool, classes of the state that a voxel may be.
    """
    if encoding.exclusive:
        return marginal_cross_entropy(logits, allowed)
    logits = logits.float()
    ones = (encoding.codes > 0).float()
    # log of each class's probability: the sum over its bits of log σ(±l)
    likelihood = combine(ones, F.logsigmoid(logits)) + combine(1 - ones, F.logsigmoid(-logits))
    inside = torch.logsumexp(likelihood.masked_fill(~allowed, -torch.inf), 1)
    decided = allowed.sum(1) == 1
    reference = torch.where(decided, 0.0, torch.logsumexp(likelihood, 1))
    return (reference - inside).mean() / encoding.channels


def weighted_square_error(estimate: Tensor, mask: Tensor, decided: Tensor, weight: Tensor) -> Tensor:
    """w_t·‖ŷ0 − y0‖², averaged over channels and decided voxels: the KL term between the posteriors.

    Args:
        estimate: (B, n, H, W) ŷ0.
        mask: (B, n, H, W) y0.
        decided: (B, H, W) bool, where y0 is known.
        weight: (B,).
    """
    square = (estimate - mask).square().mean(1) * weight[:, None, None]
    return (square * decided).sum() / decided.sum().clamp(min=1)
