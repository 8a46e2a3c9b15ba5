"""Errors that a reader can act on.

Every foreseeable failure is a :class:`SpineSegAIError`: a message that names the thing that is wrong, and a remedy.
The command line prints both and exits with 2; the panel shows them in a dialog.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any


class SpineSegAIError(Exception):
    """A foreseeable failure, with a remedy.

    Args:
        message: what is wrong, naming the file, volume or option.
        remedy: what the reader can do about it; may be empty.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    @property
    def kind(self) -> str:
        """Stable name for machine-readable output, e.g. ``"ImageError"``."""
        return type(self).__name__

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class ImageError(SpineSegAIError):
    """The image cannot be read, or is not what the checkpoint takes."""


class SchemeError(SpineSegAIError):
    """A structure, level or label value is unknown to the label scheme."""


class HintError(SpineSegAIError):
    """A hint contradicts the image, the scheme, another hint, or the method does not take it."""


class CorrectionError(SpineSegAIError):
    """A correction cannot be made as it was asked for."""


class CheckpointError(SpineSegAIError):
    """A checkpoint is missing, damaged, foreign, or of a newer format."""


class ConfigError(SpineSegAIError):
    """An option or configuration value is not valid."""


class DatasetError(SpineSegAIError):
    """A dataset's manifest or one of its files is missing or inconsistent."""


class TrainingError(SpineSegAIError):
    """A training run cannot start, continue or be resumed."""


class DeviceError(SpineSegAIError):
    """The requested device is not there, or ran out of memory."""


class OutputError(SpineSegAIError):
    """A result cannot be written."""


class PathError(SpineSegAIError):
    """The operating system refuses a file or folder."""

    @classmethod
    def of(cls, error: OSError) -> PathError:
        """What the system says, in words."""
        what = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes, os.PathLike)) else "A file"
        return cls(
            f"{what} cannot be used: {error.strerror or error}.", "Check the path, its permissions and the disk."
        )


class MissingPackageError(SpineSegAIError):
    """An optional package is needed for what was asked."""


class Cancelled(SpineSegAIError):
    """The user canceled; nothing was written."""


def problems(error: Any) -> str:
    """What pydantic found wrong, in a line."""
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'value'}: {e['msg']}" for e in error.errors())


def one_of(words: Iterable[str]) -> str:
    """The alternatives in a sentence: ``".nii, .nrrd or .mha"``."""
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``" Did you mean “segment”?"`` for a word that is nearly one of these; else nothing."""
    from difflib import get_close_matches

    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean “{near[0]}”?" if near else ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: numpy says so by a class of its own, torch and ITK by a `RuntimeError`'s words."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and any(words in text for words in ("out of memory", "allocate memory", "not enough memory"))
    )
