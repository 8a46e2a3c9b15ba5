"""The loss ``CE(S(x_full), y) + λ MSE(R(x_all), H)``, where not everything is known.

The paper's formula did not survive; this is DGMSNet's.
"""

from __future__ import annotations

import torch
from torch import Tensor


def heatmap_error(predicted: Tensor, target: Tensor, absent: Tensor) -> Tensor:
    """Mean squared error over the pixels of each heatmap where its value is known; 0 where nothing is.

    A structure with a keypoint is known everywhere. Without one, its heatmap is known to be 0 wherever the structure
    itself is known not to be; the rest counts for nothing.

    Args:
        predicted: (B, K, H, W).
        target: (B, K, H, W), NaN for structures without a keypoint.
        absent: (B, K, H, W) bool, where the structure is known not to be.
    """
    missing = target.isnan()
    known = ~missing | absent
    squared = (predicted.float() - torch.where(missing, 0.0, target)) ** 2
    return (squared * known).sum() / known.sum().clamp(min=1)


def supervised(allowed: Tensor) -> Tensor:
    """(B,) bool: which images have any pixel about which something is known.

    Args:
        allowed: (B, C, H, W) bool, see `methods.losses`.
    """
    return ~allowed.flatten(1).all(1)
