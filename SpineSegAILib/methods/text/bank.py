"""A bank: sentences with the token features that a text encoder gave them, in one file.

Training reads the features from the file as it needs them; inference needs neither the encoder nor the bank, since a
checkpoint carries what its network makes of every sentence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from ...errors import ConfigError
from ...files import atomic_write
from .encoders import TextEncoder

_FORMAT = 1
_KEY = "spinesegai-text-bank"


def write_bank(
    path: str | Path,
    texts: Sequence[str],
    encoder: TextEncoder,
    scheme: str,
    progress: Callable[[float, str], None] | None = None,
) -> None:
    """Embed sentences once and for all.

    Args:
        path: ends in ``.safetensors``.
        texts: the sentences; an empty one has no tokens.
        encoder: gives each its (tokens, width) features, which are stored as float16.
        scheme: label scheme that the sentences speak of.
        progress: called with a fraction and a sentence.

    Raises:
        OutputError: the file cannot be written.
    """
    from safetensors.torch import save_file

    report = progress or (lambda fraction, message: None)
    spoken = [text for text in dict.fromkeys(texts) if text]
    features: list[Tensor] = []
    for start in range(0, len(spoken), 16):
        report(start / max(len(spoken), 1), f"Prompt {start + 1} of {len(spoken)}")
        features += [f.to(torch.float16) for f in encoder.encode(spoken[start : start + 16])]
    document = {
        "format": _FORMAT,
        "scheme": scheme,
        "encoder": encoder.name,
        "width": encoder.width,
        "texts": spoken,
        "lengths": [len(f) for f in features],
    }
    every = torch.cat([*features, torch.zeros(0, encoder.width, dtype=torch.float16)])
    with atomic_write(path) as (part,):
        save_file({"features": every.contiguous()}, part, {_KEY: json.dumps(document, ensure_ascii=False)})


class _Document(BaseModel):
    """What a bank says of itself."""

    scheme: str
    encoder: str
    width: int = Field(ge=1)
    texts: list[str]
    lengths: list[Annotated[int, Field(ge=0)]]


class TextBank:
    """A bank on disk.

    Attributes:
        scheme: name of the label scheme.
        encoder: name of the text encoder.
        width: of the features.
        longest: tokens of the longest sentence.

    Raises:
        ConfigError: the file is missing, or is not a text bank.
    """

    def __init__(self, path: str | Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = Path(path)
        try:
            self._file = safe_open(self.path, "pt")
            document = _Document.model_validate_json(self._file.metadata()[_KEY])
            self._rows = self._file.get_slice("features")
            rows = self._rows.get_shape()
            if list(rows) != [sum(document.lengths), document.width] or len(document.texts) != len(document.lengths):
                raise ValueError("features")
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            raise ConfigError(
                f"{self.path} is not a text bank, is damaged, or is missing.",
                "Make one with “spinesegai text-bank”.",
            ) from None
        self.scheme, self.encoder, self.width = document.scheme, document.encoder, document.width
        self.longest = max(document.lengths, default=0)
        ends = [0, *accumulate(document.lengths)]
        self._place = {t: (a, b) for t, a, b in zip(document.texts, ends, ends[1:], strict=False)}
        self.features = lru_cache(maxsize=512)(self._features)

    def require(self, scheme: str, texts: Sequence[str]) -> None:
        """Make sure that the bank can serve.

        Raises:
            ConfigError: it is empty, of another scheme, or lacks one of the sentences.
        """
        again = f"Make it again with “spinesegai text-bank --scheme {scheme}”."
        if not self._place:
            raise ConfigError(f"The text bank {self.path.name} is empty.", again)
        if self.scheme != scheme:
            raise ConfigError(
                f"The text bank {self.path.name} is for the scheme “{self.scheme}”, not for “{scheme}”.", again
            )
        lacking = [text for text in texts if text and text not in self._place]
        if lacking:
            raise ConfigError(f"The text bank {self.path.name} lacks “{lacking[0]}”.", again)

    def _features(self, text: str) -> Tensor:
        """(tokens, width) float32 features of a sentence; no tokens for an empty one.

        Raises:
            ConfigError: the sentence is not in the bank.
        """
        if not text:
            return torch.zeros(0, self.width)
        if text not in self._place:
            raise ConfigError(
                f"The text bank {self.path.name} lacks “{text}”.",
                "Make it again with “spinesegai text-bank”, a structure of your own with its --add-structure.",
            )
        start, end = self._place[text]
        return self._rows[start:end].float()
