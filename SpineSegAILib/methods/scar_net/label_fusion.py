"""RALF, recognition-assisted label fusion: several networks, and the keypoints tell whether they may be trusted.

The paper names it and does not say what is fused; this is the scheme of DGMSNet, from which the name descends: one
network per weight of the heatmaps' error. For each image and network, the distance between the heatmaps' peaks and the
centroids of the predicted masks says how well its two halves agree. Where the networks differ much in that, the most
consistent one is taken; otherwise the majority decides.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def disagreement(probabilities: Tensor, points: Tensor, spacing: Tensor, channels: Sequence[int]) -> Tensor:
    """(B,) mean distance in mm between keypoints and the centroids of the labeled pixels; infinite without any.

    Args:
        probabilities: (B, C, H, W).
        points: (B, K, 2) in pixels, NaN where not found.
        spacing: (B, 2) mm.
        channels: for each keypoint its channel in `probabilities`.
    """
    winner = probabilities.argmax(1)
    height, width = winner.shape[1:]
    rows = torch.arange(height, device=winner.device, dtype=torch.float32)
    columns = torch.arange(width, device=winner.device, dtype=torch.float32)
    distances = []
    for k, channel in enumerate(channels):
        mask = (winner == channel).float()
        size = mask.sum((1, 2))
        centroid = torch.stack([(mask.sum(2) * rows).sum(1), (mask.sum(1) * columns).sum(1)], 1) / size[:, None]
        distances.append(((centroid - points[:, k]) * spacing).norm(dim=1))  # NaN without mask or keypoint
    return torch.stack(distances, 1).nanmean(1).nan_to_num(torch.inf)


def fuse(probabilities: Tensor, distances: Tensor) -> tuple[Tensor, Tensor]:
    """One answer out of M.

    Args:
        probabilities: (M, B, C, H, W).
        distances: (M, B), see `disagreement`.

    Returns:
        (B, C, H, W): those of the most consistent network, or the share of votes, where ties are broken by the mean
        probability; and (B,) the number of the most consistent network.
    """
    members, _, channels = probabilities.shape[:3]
    best = distances.argmin(0)
    finite = distances.isfinite().all(0)
    spread = torch.where(finite, distances, 0.0).std(0, correction=0) > torch.where(finite, distances, 0.0).mean(0) / 2
    # A network in which nothing is consistent is as far off as can be.
    alone = torch.where(finite, spread, distances.isfinite().any(0))
    votes = torch.stack([(probabilities.argmax(2) == c).float().mean(0) for c in range(channels)], 1)
    # Shares differ by at least 1/M, so adding a share of 1/(M + 1) never overrules a majority.
    voted = (votes + probabilities.mean(0) / (members + 1)) / (1 + 1 / (members + 1))
    chosen = probabilities.gather(0, best.view(1, -1, 1, 1, 1).expand(1, -1, *probabilities.shape[2:]))[0]
    return torch.where(alone.view(-1, 1, 1, 1), chosen, voted), best
