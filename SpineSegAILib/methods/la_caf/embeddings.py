"""From sentences to vectors: what a text encoder says of each class, computed once and kept in the checkpoint.

An encoder is any callable ``texts -> (K, width) float32``. CLIP is imported only by the encoder that needs it, when a
bank is made or a new run starts; a trained checkpoint carries its vectors and needs no text model.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from ...errors import ConfigError, MissingPackageError
from ..text.bank import TextBank
from ..text.encoders import load_open_clip, load_pretrained

Encode = Callable[[Sequence[str]], np.ndarray]
"""Sentences → (K, width) float32."""


def hashed(width: int = 512) -> Encode:
    """An encoder that knows no language: it adds up a fixed random vector for each word and each word pair.

    Deterministic, offline, the same on every machine. Sentences that share words get similar vectors, nothing more; a
    checkpoint made with it says ``hashed``.
    """

    def vector(token: str) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(token.encode()).digest()[:8], "little")
        return np.random.default_rng(seed).standard_normal(width)

    def encode(texts: Sequence[str]) -> np.ndarray:
        rows = []
        for text in texts:
            words = re.findall(r"[\w/]+", text.lower())
            rows.append(sum(vector(token) for token in [*words, *map(" ".join, pairwise(words))]))
        return np.array(rows, np.float32)

    return encode


def open_clip_text(model: str, weights: str) -> Encode:
    """The text tower of open_clip's `model`; `weights` is a pretrained tag or a local file.

    Raises:
        MissingPackageError: open_clip is not installed.
        ConfigError: the weights cannot be had.
    """

    def encode(texts: Sequence[str]) -> np.ndarray:
        network = load_open_clip(model, weights)
        import open_clip

        with torch.inference_mode():
            return network.encode_text(open_clip.get_tokenizer(model)(list(texts))).float().numpy()

    return encode


def transformers_clip_text(name: str) -> Encode:
    """The text tower of a CLIP model of transformers, by hub name or folder."""

    def encode(texts: Sequence[str]) -> np.ndarray:
        try:
            from transformers import AutoTokenizer, CLIPTextModelWithProjection
        except ImportError as error:
            raise MissingPackageError("transformers is not installed.", "pip install transformers.") from error
        tokenizer, network = load_pretrained(name, AutoTokenizer, CLIPTextModelWithProjection)
        network.eval()
        with torch.inference_mode():
            return network(**tokenizer(list(texts), padding=True, return_tensors="pt")).text_embeds.float().numpy()

    return encode


def encoder(name: str, width: int) -> Encode:
    """The encoder that `LaCafConfig.text_encoder` names.

    Raises:
        ConfigError: there is no such encoder.
    """
    kind, _, rest = name.partition(":")
    if name == "hashed":
        return hashed(width)
    if kind == "open_clip" and rest:
        model, _, weights = rest.partition(":")
        return open_clip_text(model, weights)
    if kind == "clip" and rest:
        return transformers_clip_text(rest)
    if kind == "bank" and rest:
        return read_bank(rest)
    raise ConfigError(
        f"“{name}” is not a text encoder.", "Use open_clip:MODEL:WEIGHTS, clip:NAME, bank:FILE or hashed."
    )


def encode_prompts(prompts: Sequence[str], encode: Encode, width: int) -> np.ndarray:
    """(K, width) float32 vectors of root-mean-square 1, so that the adapters start alike whatever the encoder (ours).

    Raises:
        ConfigError: the encoder gives another width, or a vector that says nothing.
    """
    found = np.asarray(encode(prompts), np.float32)
    if found.shape != (len(prompts), width):
        raise ConfigError(
            f"The text encoder gives vectors of shape {found.shape}, not {(len(prompts), width)}.",
            f"Set text_width={found.shape[-1]}.",
        )
    return unit_rms(found)


def unit_rms(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to root-mean-square 1.

    Raises:
        ConfigError: a row is zero or not a number.
    """
    size = np.sqrt((vectors**2).mean(1, keepdims=True))
    if not np.isfinite(vectors).all() or not (size > 1e-6).all():
        raise ConfigError("The text vectors are zero, all the same, or not numbers.", "Choose another text encoder.")
    return vectors / size


def read_bank(path: str | Path) -> Encode:
    """An encoder that looks sentences up in a text bank of one vector per sentence.

    Raises:
        ConfigError: the file is not such a bank; or, when asked for it, a sentence is not in it.
    """
    bank = TextBank(path)
    if bank.longest != 1:
        raise ConfigError(f"The text bank {path} has a vector per word, not per sentence.", "Give another bank.")

    def encode(texts: Sequence[str]) -> np.ndarray:
        return np.concatenate([bank.features(text).numpy() for text in texts])

    return encode
