"""The Universal Model's published weights as a start, which the release of LA-CAF takes, too.

Source of the names: `ljwztc/CLIP-Driven-Universal-Model` (its U-Net) and the release of LA-CAF. The weights themselves
are the user's to get (CC BY-NC-ND 4.0: not to be passed on changed). They are published as a pickle, which is never
opened here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...errors import ConfigError
from .config import LaCafConfig

_CONVERT = (
    'python -c "import torch, safetensors.torch as s; '
    "s.save_file({k: v.contiguous() for k, v in torch.load('unet.pth', map_location='cpu')['net'].items()}, "
    "'unet.safetensors')\""
)

_LEVELS = {"64": 0, "128": 1, "256": 2, "512": 3}
"""By the channels in the names of the U-Net's parts."""
_LAYERS = {("0", "conv1"): 0, ("0", "bn1"): 1, ("1", "conv1"): 3, ("1", "bn1"): 4}
"""A double convolution's layers, by number and part."""
_OTHERS = {
    "precls_conv.0": "to_head.0",
    "precls_conv.2": "to_head.2",
    "GAP.0": "image_adapter.norm",
    "GAP.3": "image_adapter.project",
    "text_to_vision": "text_projection",
    "controller": "controller",
}


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a file by their published names.

    Raises:
        ConfigError: it is missing, or no safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"{path} cannot be read as safetensors: {error}.",
            f"Weights that are published as .pth are converted once, where that file is trusted: {_CONVERT}",
        ) from None


def renamed(published: Mapping[str, Tensor], config: LaCafConfig) -> dict[str, Tensor]:
    """The Universal Model's tensors under the names of `LaCafMethod`; what has no counterpart there is omitted.

    Running statistics are: the U-Net normalizes by each image's own.

    Args:
        published: name → tensor, with or without the ``module.`` of a distributed training.
        config: of the network that takes them.
    """
    found: dict[str, Tensor] = {}
    for name, value in published.items():
        name = name.removeprefix("module.")
        part, _, kind = name.rpartition(".")
        if kind not in ("weight", "bias"):
            continue
        target = _place_in_unet(part.removeprefix("backbone.")) or _OTHERS.get(part)
        if target is None:
            continue
        if target in ("image_adapter.project", "text_projection", "controller") and value.ndim > 2:
            value = value.flatten(1)  # a 1×1×1 convolution of a vector
        if target == "controller":
            value = _interleaved(value, config.head_width)
        found[f"{target}.{kind}"] = value
    return found


def _place_in_unet(part: str) -> str | None:
    down = re.fullmatch(r"down_tr(\d+)\.ops\.(\d)\.(\w+)", part)
    up = re.fullmatch(r"up_tr(\d+)\.(?:up_conv|ops\.(\d)\.(\w+))", part)
    if down and down[1] in _LEVELS:
        return f"backbone.down.{_LEVELS[down[1]]}.{_LAYERS[down[2], down[3]]}"
    if up and up[1] in _LEVELS:
        number = 2 - _LEVELS[up[1]]  # decoder levels are counted from the coarsest
        return f"backbone.merge.{number}.{_LAYERS[up[2], up[3]]}" if up[2] else f"backbone.up.{number}"
    return None


def _interleaved(rows: Tensor, width: int) -> Tensor:
    """The generated parameters' rows, published as all weights and then all biases, layer by layer."""
    square = width * width
    w1, w2, w3, b1, b2, b3 = rows.split((square, square, width, width, width, 1))
    return torch.cat([w1, b1, w2, b2, w3, b3])
