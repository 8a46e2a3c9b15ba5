"""What ends a training, in words that a user can act on."""

from __future__ import annotations

from safetensors import SafetensorError

from ..errors import OutputError, TrainingError, is_out_of_memory
from .run import RunDirectory


def first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def as_training_error(error: BaseException, run: RunDirectory, step: int) -> BaseException:
    """A failure in words that a reader can act on; the same object where it has them, or nobody foresaw it."""
    if isinstance(error, OutputError):
        return TrainingError(
            f"The run could not write to {run.folder} at step {step}: {error.message}",
            "Free space there and resume: what was saved last is whole.",
        )
    if isinstance(error, (OSError, SafetensorError)):  # the latter is how safetensors says that a disk is full
        return TrainingError(
            f"The run could not read or write its files at step {step}: {error}.",
            f"Is the disk of {run.folder} full, or gone? Resume when it is not: what was saved last is whole.",
        )
    if is_out_of_memory(error):
        return TrainingError(
            f"Out of memory at step {step}: {first_line(error)}",
            "Close other applications and resume, or choose a smaller patch or preset.",
        )
    return error
