"""What a network's last layers read, beside what it says."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from ..methods.base import Context, Method
from ..methods.blocks import resized


def evidence_and_features(method: Method, images: Tensor, context: Context) -> dict[str, Tensor]:
    """`Method.evidence`, and ``features`` (B, F, *spatial): what the layers of its `readout` read, those of several
    networks side by side, brought to the size of the images where it is smaller.

    Of layers that are run repeatedly the last time counts, and the mean of an image's samples. A pass in which none
    is run has no features.
    """
    read: dict[str, Tensor] = {}

    def keep(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        read[name] = inputs[0]

    layers = {name: method.get_submodule(name) for name in method.readout.layers}
    hooks = [layer.register_forward_pre_hook(partial(keep, name)) for name, layer in layers.items()]
    try:
        maps = method.evidence(images, context)
    finally:
        for hook in hooks:
            hook.remove()
    if not read:
        return maps
    found = (x.float().unflatten(0, (len(images), -1)).mean(1) for x in read.values())
    return {**maps, "features": torch.cat([resized(x, images.shape[2:]) for x in found], 1)}
