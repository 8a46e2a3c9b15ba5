"""From prompts to text tokens per decoder stage: live from a text bank in training, stored in the checkpoint after."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ...errors import ConfigError
from ..text.bank import TextBank
from .config import LEARNED_TABLE, AtmNetConfig
from .prompts import class_prompt, inference_grammar, training_grammar


class TextTokens(nn.Module):
    """The text side of ATM-Net.

    Its buffers hold, as float16, the projected tokens of every sentence that inference can meet. They are filled when a
    checkpoint is written (`exported`), so a loaded checkpoint needs no text model. With a text bank attached
    (training), or with the learned table, tokens are computed from features instead.

    Args:
        config: of the method.
        widths: channels of each stage that reads text.
    """

    stored_digest: Tensor

    def __init__(self, config: AtmNetConfig, widths: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        self.bank: TextBank | None = None
        self.projections = nn.ModuleList(
            TextProjection(config.text_length, config.tokens, config.text_width, width) for width in widths
        )
        self.table = WordTable(training_grammar(config.label_scheme), config) if _is_learned(config) else None
        self._index: dict[str, int] = {}
        if self.table is None and widths:
            texts = inference_grammar(config.label_scheme, config.option)
            self._index = {text: i for i, text in enumerate(texts)}
            self._digest = int.from_bytes(hashlib.sha256("\n".join(texts).encode()).digest()[:7], "big")
            self.register_buffer("stored_digest", torch.zeros(1, dtype=torch.int64))
            for stage, width in enumerate(widths):
                stored = torch.zeros(len(texts), config.tokens, width, dtype=torch.float16)
                self.register_buffer(f"stored_{stage}", stored)

    def attach(self, bank: TextBank) -> None:
        """Use the features of a bank from now on.

        Raises:
            ConfigError: it does not fit the configuration.
        """
        c = self.config
        bank.require(c.scheme, c.text_prompts())
        if bank.width != c.text_width or bank.longest > c.text_length:
            raise ConfigError(
                f"The text bank has features of {bank.width} × {bank.longest}, the network takes "
                f"{c.text_width} × {c.text_length}.",
                "Use the bank that the network was configured with.",
            )
        self.bank = bank

    def forward(self, texts: Sequence[str]) -> list[Tensor]:
        """For each stage the (B, M, C) tokens of the sentences.

        Raises:
            ConfigError: there is nothing to take them from.
        """
        unique = list(dict.fromkeys(texts))
        where = torch.tensor([unique.index(text) for text in texts], device=self._device)
        if self.bank is not None or self.table is not None:
            features = self.features(unique)
            return [projection(features)[where] for projection in self.projections]
        if int(self.stored_digest) != self._digest:
            what = "is empty" if int(self.stored_digest) == 0 else "is of another version of the grammar"
            raise ConfigError(
                f"The prompt bank of this ATM-Net {what}.",
                "Train it with a text bank (spinesegai text-bank), or use a checkpoint that was.",
            )
        rows = torch.tensor([self._index[text] for text in unique], device=self._device)[where]
        return [getattr(self, f"stored_{stage}")[rows].float() for stage in range(len(self.projections))]

    def features(self, texts: Sequence[str]) -> Tensor:
        """(B, L, width) features of the sentences' tokens, zero behind their ends."""
        result = torch.zeros(len(texts), self.config.text_length, self.config.text_width, device=self._device)
        for row, text in enumerate(texts):
            found = self._of(text)
            result[row, : len(found)] = found
        return result

    def class_features(self) -> tuple[Tensor, Tensor]:
        """(C, width) mean features of the prompts that say a class is there, and of those that say it is not."""
        ids = (0, *self.config.label_scheme.ids)
        there, absent = (
            torch.stack([self._of(class_prompt(i, present)).mean(0) for i in ids]) for present in (True, False)
        )
        return there, absent

    def exported(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The stored tokens of every sentence for the weights of a state (of this module), by buffer name."""
        if self.bank is None or not self._index:
            return {}
        found: dict[str, list[Tensor]] = {f"stored_{stage}": [] for stage in range(len(self.projections))}
        texts = list(self._index)
        with torch.no_grad():
            for start in range(0, len(texts), 32):
                features = self.features(texts[start : start + 32])
                for stage, projection in enumerate(self.projections):
                    prefix = f"projections.{stage}."
                    weights = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
                    tokens = functional_call(projection, weights, (features,))
                    found[f"stored_{stage}"].append(tokens.to(torch.float16))
        stored = {name: torch.cat(parts) for name, parts in found.items()}
        return {**stored, "stored_digest": torch.tensor([self._digest])}

    def _of(self, text: str) -> Tensor:
        if self.table is not None:
            return self.table(text)
        if self.bank is None:
            raise ConfigError(
                "ATM-Net learns from embedded prompts, and no text bank is given.",
                "Give one to the run: resources.text_bank=FILE, made by “spinesegai text-bank”.",
            )
        return self.bank.features(text).to(self._device)

    @property
    def _device(self) -> torch.device:
        # Modules without projections (CCAE alone) have a table, or live with the bank's device.
        return next((p.device for p in self.parameters()), torch.device("cpu"))


class TextProjection(nn.Module):
    """Features of L tokens → M tokens as wide as a stage: 1×1 convolution over the tokens, linear layer, ReLU."""

    def __init__(self, length: int, tokens: int, width: int, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv1d(length, tokens, 1)
        self.project = nn.Linear(width, channels)

    def forward(self, features: Tensor) -> Tensor:
        """(B, L, width) → (B, M, channels)."""
        return torch.relu(self.project(self.mix(features)))


class WordTable(nn.Module):
    """One learned vector per word of the grammar: what attention to text gives without any language in it.

    Args:
        texts: the grammar.
        config: its `text_width` is the vectors' length.

    Raises:
        ConfigError: a sentence has more words than `text_length`.
    """

    def __init__(self, texts: Sequence[str], config: AtmNetConfig) -> None:
        super().__init__()
        split = [_words(text) for text in texts]
        if max(map(len, split)) > config.text_length:
            raise ConfigError(
                f"A prompt has {max(map(len, split))} words, text_length is {config.text_length}.",
                "Raise text_length.",
            )
        self._index = {word: i for i, word in enumerate(sorted({word for words in split for word in words}))}
        self.vectors = nn.Embedding(len(self._index), config.text_width)

    def forward(self, text: str) -> Tensor:
        """(words, width)."""
        rows = [self._index[word] for word in _words(text)]
        return self.vectors(torch.tensor(rows, dtype=torch.long, device=self.vectors.weight.device))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


def _is_learned(config: AtmNetConfig) -> bool:
    return config.text_encoder == LEARNED_TABLE and (bool(config.option) or config.use_ccae)
