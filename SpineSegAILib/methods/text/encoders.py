"""Text encoders behind one interface: sentences in, one vector per token out. All are frozen.

transformers and open_clip are imported only when an encoder of theirs is asked for, and load weights from safetensors
files alone: a pickle runs whatever it holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ...errors import ConfigError, MissingPackageError

HUB_NAMES = {"bio_clinicalbert": "emilyalsentzer/Bio_ClinicalBERT"}
"""Short names of encoders on the Hugging Face hub."""

TINY_OFFLINE = "tiny_offline"
CLIP = "open_clip"


class TextEncoder(Protocol):
    """What a bank is made with.

    Attributes:
        name: told in the bank and in every checkpoint trained with it.
        width: of a token's vector.
    """

    name: str
    width: int

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """For each sentence its (tokens, width) features, padding omitted."""


def make_encoder(name: str, texts: Sequence[str] = ()) -> TextEncoder:
    """The encoder of a name.

    Args:
        name: ``"bio_clinicalbert"``, a name on the Hugging Face hub or a local folder of a BERT-like model,
            ``"open_clip"`` or ``"open_clip:MODEL:WEIGHTS"`` (WEIGHTS a file or a tag of it), or ``"tiny_offline"``: a
            small random BERT, for trials without any download.
        texts: what will be embedded; ``"tiny_offline"`` takes its vocabulary from it.

    Raises:
        MissingPackageError: transformers or open_clip is not installed.
        ConfigError: the model cannot be loaded.
    """
    if name == TINY_OFFLINE:
        return tiny_offline_encoder(texts)
    if name == CLIP or name.startswith(f"{CLIP}:"):
        return _clip_encoder(name)
    return _pretrained_encoder(name)


class BertEncoder:
    """The last hidden state of a BERT-like model, frozen and in evaluation mode.

    Args:
        name: what it is called.
        tokenizer: of transformers.
        model: of transformers; its `config.hidden_size` is the width.

    Raises (`encode`):
        ConfigError: a sentence is longer than the model can read.
    """

    batch = 16

    def __init__(self, name: str, tokenizer: Any, model: Any) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.model = model.eval().requires_grad_(False)
        self.width: int = model.config.hidden_size
        self.longest: int = model.config.max_position_embeddings

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        found: list[Tensor] = []
        for some in _batches(texts, self.batch):
            inputs = self.tokenizer(some, return_tensors="pt", padding=True)
            if inputs["input_ids"].shape[1] > self.longest:
                raise ConfigError(
                    f"A prompt has {inputs['input_ids'].shape[1]} tokens; {self.name} reads up to {self.longest}.",
                    "Use an encoder for longer texts.",
                )
            hidden = self.model(**inputs).last_hidden_state
            found += [h[m.bool()] for h, m in zip(hidden, inputs["attention_mask"], strict=True)]
        return found


class ClipEncoder:
    """Token features of CLIP's text tower after its last normalization.

    CLIP reads 77 tokens. A longer sentence is cut at its semicolons, full stops and commas into parts that fit, each
    read by itself; their features follow one another (our choice: cutting off the end would lose the sacrum).

    Args:
        name: what it is called.
        tokenizer: of open_clip, texts → (n, 77) ids, padded with 0 after the end token.
        model: of open_clip, with the text tower's parts as attributes.
    """

    def __init__(self, name: str, tokenizer: Any, model: Any) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.model = model.eval().requires_grad_(False)
        self.width: int = model.token_embedding.weight.shape[1]

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        return [torch.cat([self._read(part) for part in self._parts(text)]) for text in texts]

    def _read(self, text: str) -> Tensor:
        model = self.model
        ids = self.tokenizer([text])
        x = model.token_embedding(ids) + model.positional_embedding[: ids.shape[1]]
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask))
        return x[0, : int(ids[0].argmax()) + 1]  # the end token has the largest id

    def _parts(self, text: str) -> list[str]:
        parts = [""]
        for piece in re.split(r"(?<=[;.,])\s", text):
            longer = f"{parts[-1]} {piece}".strip()
            # A full row means that the text was cut off.
            if parts[-1] and int(self.tokenizer([longer])[0, -1]) != 0:
                parts.append(piece)
            else:
                parts[-1] = longer
        return parts


class SentenceMeans:
    """Another encoder's token features averaged: one vector per sentence, as sentence encoders are meant to be read."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.name, self.width, self._encoder = encoder.name, encoder.width, encoder

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """(1, width) per sentence."""
        return [tokens.mean(0, keepdim=True) for tokens in self._encoder.encode(texts)]


def tiny_offline_encoder(texts: Sequence[str], width: int = 32, seed: int = 0) -> BertEncoder:
    """A small BERT with random weights, one token per word of `texts`: nothing is downloaded.

    Raises:
        MissingPackageError: transformers is not installed.
    """
    transformers = _transformers()
    from tokenizers import Tokenizer, models, pre_tokenizers

    split = pre_tokenizers.BertPreTokenizer()
    words = sorted({word.lower() for text in texts for word, _ in split.pre_tokenize_str(text)})
    vocabulary = {word: i for i, word in enumerate(("[PAD]", "[UNK]", *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    from tokenizers.normalizers import Lowercase

    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = split
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=width, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=2 * width, max_position_embeddings=512,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.BertModel(config, add_pooling_layer=False)
    return BertEncoder(TINY_OFFLINE, fast, model)


def _pretrained_encoder(name: str) -> BertEncoder:
    transformers = _transformers()
    source = HUB_NAMES.get(name, name)
    tokenizer, model = load_pretrained(source, transformers.AutoTokenizer, transformers.AutoModel)
    return BertEncoder(name.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1], tokenizer, model)


def load_pretrained(source: str, tokenizer: Any, model: Any) -> tuple[Any, Any]:
    """Tokenizer and model of a hub name or folder, by classes of transformers.

    Raises:
        ConfigError: they cannot be had, or the weights are a pickle; says what to do.
    """
    try:
        return tokenizer.from_pretrained(source), model.from_pretrained(source, use_safetensors=True)
    except ImportError as error:
        raise broken_package("transformers", error) from error
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        if "safetensors" in reason:
            raise ConfigError(
                f"The text model {source} is published as a pickle alone, which is never opened here.",
                "Convert it where it is trusted, then give the folder FOLDER: "
                f"python -c \"import transformers as t; m = '{source}'; "
                "t.AutoModel.from_pretrained(m).save_pretrained('FOLDER'); "
                "t.AutoTokenizer.from_pretrained(m).save_pretrained('FOLDER')\"",
            ) from error
        raise ConfigError(
            f"The text model {source} cannot be loaded: {reason}",
            f"Where there is a network: hf download {source} --local-dir FOLDER; then give the FOLDER. "
            "Its weights must be .safetensors.",
        ) from error


def _clip_encoder(name: str) -> ClipEncoder:
    _, model_name, weights, *_ = [*name.split(":", 2), "", ""]
    model_name = model_name or "ViT-B-32"
    model = load_open_clip(model_name, weights or "openai")
    import open_clip

    return ClipEncoder(f"{CLIP} {model_name}", open_clip.get_tokenizer(model_name), model)


def load_open_clip(model: str, weights: str) -> Any:
    """An open_clip model in evaluation mode, without gradients.

    Args:
        model: a name that open_clip knows, such as ``"ViT-B-32"``.
        weights: a pretrained tag or a local file, of the kind safetensors; random weights where empty.

    Raises:
        MissingPackageError: open_clip is not installed.
        ConfigError: the weights cannot be had, or are a pickle.
    """
    try:
        import open_clip
    except ModuleNotFoundError:
        raise MissingPackageError(
            "CLIP's text encoder needs open_clip, which is not installed.", "pip install open_clip_torch"
        ) from None
    except (ImportError, RuntimeError) as error:
        raise broken_package("open_clip", error) from error
    remedy = f"Give a tag that open_clip knows and a network connection, or a file: {CLIP}:ViT-B-32:FILE.safetensors."
    try:
        published = open_clip.get_pretrained_cfg(model, weights) if weights else {}
        file = open_clip.download_pretrained(published) if published else weights
        if file and not file.endswith(".safetensors"):
            raise ConfigError(f"The weights “{weights}” of CLIP are a pickle, which is never opened here.", remedy)
        network = open_clip.create_model(model, pretrained=weights or None)
    except ConfigError:
        raise
    except Exception as error:  # open_clip raises what its many sources raise
        raise ConfigError(f"CLIP {model} with weights “{weights}” cannot be loaded: {error}", remedy) from error
    return network.eval().requires_grad_(False)


def broken_package(package: str, error: Exception) -> MissingPackageError:
    """What to say where a package is there and cannot be imported."""
    reason = str(error).splitlines()[0]
    return MissingPackageError(
        f"{package} is installed and cannot be imported: {reason}",
        "Most often torchvision does not fit torch: install the one that does (for a CPU: pip install torchvision "
        "--index-url https://download.pytorch.org/whl/cpu), or uninstall it: the text encoders of transformers do "
        "without.",
    )


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise MissingPackageError(
            "BERT-like text encoders need transformers, which is not installed.", "pip install transformers"
        ) from None
    return transformers


def _batches(texts: Sequence[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(texts), size):
        yield list(texts[start : start + size])
