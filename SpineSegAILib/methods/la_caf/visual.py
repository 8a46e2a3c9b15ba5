"""CLIP's view of single slices (`use_clip_visual`, off by default): our reading of its “image representations”.

The release does not use CLIP's image encoder. Where it is switched on it is needed at inference too, unlike the text.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import ConfigError
from ..text.encoders import load_open_clip

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
"""The color statistics that CLIP's weights expect."""
_SIDE = 224


def slice_encoder(name: str, width: int) -> Callable[[Tensor], Tensor]:
    """(N, 1, H, W) preprocessed slices, −2…2 → (N, width), frozen.

    Args:
        name: ``open_clip:MODEL:WEIGHTS``; ``hashed`` stands in for it with a fixed random projection, for tests.

    Raises:
        ConfigError: the encoder has no image side here.
    """
    kind, _, rest = name.partition(":")
    if name == "hashed":
        projection = torch.randn(16 * 16, width, generator=torch.Generator().manual_seed(0)) / 16

        def project(slices: Tensor) -> Tensor:
            return F.adaptive_avg_pool2d(slices.float(), 16).flatten(1) @ projection.to(slices.device)

        return project
    if kind != "open_clip":
        raise ConfigError(f"The encoder {name} cannot look at slices.", "It takes open_clip:MODEL:WEIGHTS.")
    model, _, weights = rest.partition(":")
    network = load_open_clip(model, weights)

    def look(slices: Tensor) -> Tensor:
        network.to(slices.device)
        unit = F.interpolate((slices.float() + 2) / 4, (_SIDE, _SIDE), mode="bilinear", align_corners=False)
        mean, std = (torch.tensor(v, device=slices.device).view(1, 3, 1, 1) for v in (_MEAN, _STD))
        return network.encode_image((unit - mean) / std).float()

    return look
