"""Which device computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import DeviceError, is_out_of_memory


def choose_device(name: str = "auto") -> torch.device:
    """The device of a name.

    Args:
        name: ``"auto"`` (CUDA where there is one, else CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``, ``"gpu"``
            (CUDA or MPS, whichever there is).

    Raises:
        DeviceError: it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "gpu":
        if not (torch.cuda.is_available() or torch.backends.mps.is_available()):
            raise DeviceError("There is no GPU here that PyTorch can use.", "Use --device auto or cpu.")
        return torch.device("cuda" if torch.cuda.is_available() else "mps")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"“{name}” is not a device.", "Use auto, cpu, gpu, cuda, cuda:0 or mps.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"There is no device {name} here.", "Use --device auto or cpu.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("This computer has no MPS device.", "Use --device auto or cpu.")
    if device.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(f"Devices of type {device.type} are not supported.", "Use auto, cpu, cuda or mps.")
    return device


@contextmanager
def memory_in_words() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            message = "There is not enough memory for this volume."
            raise DeviceError(message, "Crop it, or close other applications.") from error
        raise


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
