"""An exponential moving average of the weights, and weights taken over from a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from ..checkpoints import find_checkpoint, load_tensors
from ..errors import ConfigError
from ..methods.base import Method


class WeightAverage:
    """Exponential moving average of the weights; the decay grows to its value, so early averages forget the start."""

    def __init__(self, method: Method, decay: float) -> None:
        self.decay = decay
        self.values = {k: v.detach().clone() for k, v in method.state_dict().items() if v.is_floating_point()}

    def to(self, device: torch.device) -> None:
        self.values = {k: v.to(device) for k, v in self.values.items()}

    @torch.no_grad()
    def update(self, method: Method, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        current = method.state_dict()
        for name, value in self.values.items():
            value.lerp_(current[name].detach(), 1 - decay)

    def state(self, method: Method) -> dict[str, Tensor]:
        return {**method.state_dict(), **self.values}


def load_matching(method: Method, checkpoint: str, parts: Sequence[str] = ()) -> int:
    """Take over the weights of a checkpoint wherever name and shape agree.

    Args:
        method: takes them.
        checkpoint: name or file.
        parts: patterns of the names of the weights that are taken, ``"vit.*"``; all if empty.

    Returns:
        how many tensors were taken.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ConfigError: nothing fits.
    """
    theirs = method.remap_weights(load_tensors(find_checkpoint(checkpoint)))
    mine = method.state_dict()
    asked = {k: v for k, v in theirs.items() if not parts or any(fnmatchcase(k, part) for part in parts)}
    fitting = {k: v for k, v in asked.items() if k in mine and mine[k].shape == v.shape}
    if not fitting:
        raise ConfigError(f"Nothing in {checkpoint} fits this method.", "Start from a checkpoint of the same method.")
    method.load_state_dict({**mine, **fitting})
    return len(fitting)
