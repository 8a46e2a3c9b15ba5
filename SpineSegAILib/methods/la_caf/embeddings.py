"""From sentences to vectors: what a text encoder says of each class, computed once and kept in the checkpoint.

An encoder is any callable ``texts -> (K, width) float32``. CLIP is imported only by the encoder that needs it, when a
bank is made or a new run starts; a trained checkpoint carries its vectors and needs no text model.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from ...errors import ConfigError, MissingPackageError
from ...files import staged

Encode = Callable[[Sequence[str]], np.ndarray]
"""Sentences → (K, width) float32."""

_KEY = "spinesegai-text-bank"


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
        import torch

        network = load_open_clip(model, weights)
        import open_clip

        with torch.inference_mode():
            return network.encode_text(open_clip.get_tokenizer(model)(list(texts))).float().numpy()

    return encode


def load_open_clip(model: str, weights: str):  # type: ignore[no-untyped-def]
    """An open_clip model in evaluation mode, without gradients."""
    try:
        import open_clip
    except ImportError as error:
        raise MissingPackageError(
            "The text encoder open_clip is not installed.",
            "pip install open_clip_torch, or choose another text_encoder (clip:FOLDER, bank:FILE).",
        ) from error
    try:
        network = open_clip.create_model(model, pretrained=weights or None)
    except Exception as error:  # hub, file and name errors have no common type
        raise ConfigError(
            f"The CLIP model {model} with weights “{weights}” cannot be loaded: {error}.",
            "Give a tag that open_clip knows and a network connection, or a local file: open_clip:ViT-B-32:FILE.",
        ) from error
    return network.eval().requires_grad_(False)


def transformers_clip_text(name: str) -> Encode:
    """The text tower of a CLIP model of transformers, by hub name or folder."""

    def encode(texts: Sequence[str]) -> np.ndarray:
        try:
            import torch
            from transformers import AutoTokenizer, CLIPTextModelWithProjection
        except ImportError as error:
            raise MissingPackageError("transformers is not installed.", "pip install transformers.") from error
        try:
            tokenizer = AutoTokenizer.from_pretrained(name)
            network = CLIPTextModelWithProjection.from_pretrained(name).eval()
        except (OSError, ValueError) as error:
            raise ConfigError(f"The text encoder {name} cannot be loaded: {error}.", "Give its folder.") from error
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


def write_bank(path: str | Path, texts: Sequence[str], encode: Encode, name: str) -> None:
    """Encode sentences into a bank file (safetensors), from which ``text_encoder="bank:FILE"`` reads them.

    Args:
        name: of the encoder, kept in the file.
    """
    from safetensors.numpy import save_file

    texts = list(dict.fromkeys(texts))
    document = json.dumps({"encoder": name, "texts": texts}, ensure_ascii=False)
    with staged(path) as (part,):
        save_file({"vectors": np.asarray(encode(texts), np.float32)}, part, {_KEY: document})


def read_bank(path: str | Path) -> Encode:
    """An encoder that looks sentences up in a bank file.

    Raises:
        ConfigError: the file is not a bank; or, when asked for it, a sentence is not in it.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "np") as file:
            texts = json.loads((file.metadata() or {})[_KEY])["texts"]
            vectors: Mapping[str, np.ndarray] = dict(zip(texts, file.get_tensor("vectors"), strict=True))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ConfigError(f"{path} is not a text bank: {error}.", "Make one with write_bank.") from None

    def encode(texts: Sequence[str]) -> np.ndarray:
        missing = [t for t in texts if t not in vectors]
        if missing:
            raise ConfigError(f"The text bank {path} has no entry for “{missing[0]}”.", "Add it to the bank.")
        return np.stack([vectors[t] for t in texts])

    return encode
