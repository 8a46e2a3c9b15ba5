"""The state of a training between its steps: weights, their average, the optimizer, and a few numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..files import atomic_write
from ..methods.base import Method
from .averaging import WeightAverage


def write_state(
    path: Path,
    method: Method,
    average: WeightAverage | None,
    optimizer: torch.optim.Optimizer,
    numbers: Mapping[str, Any],
) -> None:
    """Write the state, whole or not at all.

    Args:
        numbers: small values by name; they are kept as text.
    """
    tensors = {f"model.{k}": v for k, v in method.state_dict().items()}
    if average:
        tensors |= {f"ema.{k}": v for k, v in average.values.items()}
    for index, entry in optimizer.state_dict()["state"].items():
        for name, value in entry.items():
            tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    whole = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    with atomic_write(path) as (part,):
        save_file(whole, part, {name: str(value) for name, value in numbers.items()})


def read_state(
    path: Path, method: Method, average: WeightAverage | None, optimizer: torch.optim.Optimizer
) -> dict[str, str]:
    """Take a state over into a method, its average and its optimizer.

    Returns:
        the numbers that were kept with it, as text.

    Raises:
        SafetensorError, OSError: it is damaged or gone.
    """
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        numbers = dict(file.metadata())
    method.load_state_dict(_below(tensors, "model."))
    if average:
        average.values = _below(tensors, "ema.")
    state = optimizer.state_dict()
    entries: dict[int, dict[str, Tensor]] = {}
    for key, value in _below(tensors, "optimizer.").items():
        index, name = key.split(".", 1)
        entries.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": entries, "param_groups": state["param_groups"]})
    return numbers


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
