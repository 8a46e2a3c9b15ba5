"""Configuration of ATM-Net."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from ...errors import ConfigError
from ..config import MethodConfig
from .prompts import Granularity, training_grammar

TEXT_BANK = "text_bank"
"""Name of the file with the embedded prompts among the resources of a training run."""

LEARNED_TABLE = "learned_table"
"""The text encoder that is not an encoder: a vector per word, learned with the rest (the control for language)."""


class AtmNetConfig(MethodConfig):
    """Swin UNETR encoder, a decoder that attends to text (HASF), a contrastive loss on class prompts (CCAE).

    Defaults are the paper's values where it gives them; feature size, tokens, temperature, grid and the weight of the
    presence head are our choices, since it is silent. `coordinates`, the rank head and `output="kind-rank"` are
    additions of ours and off by default.
    """

    coordinates: bool = Field(False, description="give the network the position in the field of view (our addition)")
    feature_size: int = Field(48, ge=12, multiple_of=12, description="channels of the first stage")
    encoder_heads: int = Field(3, ge=1, description="attention heads of the encoder's first stage, doubled each stage")
    use_hasf: bool = Field(True, description="decoder with attention to text; off: the plain Swin UNETR decoder")
    use_ccae: bool = Field(True, description="contrast the classes' maps with the class prompts in training")
    prompt_option: Literal["none", "1", "2", "3"] = Field("3", description="the most that a prompt says")
    text_encoder: str = Field("bio_clinicalbert", description="what embedded the prompts; read from the text bank")
    text_width: int = Field(768, ge=4, description="width of its token features; read from the text bank")
    text_length: int = Field(256, ge=8, description="tokens of the longest prompt; read from the text bank")
    tokens: int = Field(24, ge=1, description="text tokens per stage after projection")
    heads: int = Field(4, ge=1, description="heads of both attentions")
    sa_max_tokens: int | None = Field(None, ge=16, description="pool keys and values of self-attention to this many")
    alpha: float = Field(1.0, description="first value of the learnable weight of the text, one per stage")
    normalisation: Literal["none", "before", "qk"] = Field(
        "none",
        description="before the attentions: none, as printed; layer norms on pixels and tokens; or queries and keys of "
        "unit size (ours)",
    )
    decoder: Literal["paper", "residual"] = Field(
        "paper", description="how a stage merges: one convolution, or Swin UNETR's residual blocks (ours)"
    )
    descriptor: Literal["grid", "prototype"] = Field("grid", description="what a class's map is contrasted by")
    absent: Literal["masked", "negated"] = Field("masked", description="classes known to be absent: omitted or negated")
    contrast_weight: float = Field(0.2, ge=0, description="weight of the contrastive loss")
    contrast_width: int = Field(128, ge=4, description="width of the space of the contrast")
    temperature: float = Field(0.07, gt=0, description="of the contrast")
    loss: Literal["dice-focal", "marginal"] = Field("dice-focal", description="of the segmentation; marginal is ours")
    kind_weight: float = Field(
        0.0, ge=0, description="weight of the loss on kinds (vertebra, disc …), sums of their classes; ours"
    )
    head_width: int | None = Field(
        None, ge=4, description="hidden channels of the last layer (ours); none: a single 1×1 convolution"
    )
    presence_weight: float = Field(0.1, ge=0, description="weight of the head that says which structures are present")
    rank_weight: float = Field(0.0, ge=0, description="weight of the auxiliary rank head; 0 for none")
    output: Literal["classes", "kind-rank"] = Field(
        "classes", description="kind-rank only to pretrain the trunk: what a voxel is and how many levels up"
    )
    smallest_mm2: float = Field(30.0, ge=0, description="area from which a structure counts as present in a slice")
    mixture: dict[Granularity, float] = Field(
        {"3": 0.4, "2": 0.1, "1": 0.25, "range": 0.2, "empty": 0.05}, description="what training prompts say"
    )
    usual_source: Literal["self", "presence", "generic"] = Field(
        "self",
        description="where the sentence comes from at inference if nobody says: a first pass, the presence "
        "head, or it is the general one",
    )
    corruption: float = Field(0.15, ge=0, le=1, description="share of detailed training prompts that are wrong")

    RESOURCES: ClassVar[tuple[str, ...]] = (TEXT_BANK,)
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "small": {
            "feature_size": 12,
            "encoder_heads": 1,
            "tokens": 16,
            "heads": 2,
            "sa_max_tokens": 128,
            "coordinates": True,
            "rank_weight": 0.5,
            "kind_weight": 1.0,
            "head_width": 48,
            "loss": "marginal",
        },
        "tiny": {
            "feature_size": 12,
            "tokens": 6,
            "heads": 2,
            "sa_max_tokens": 64,
            "coordinates": True,
            "contrast_width": 16,
            "loss": "marginal",
            "text_encoder": LEARNED_TABLE,
            "text_width": 16,
        },
    }

    @model_validator(mode="after")
    def _heads_share_channels(self) -> AtmNetConfig:
        for name in ("encoder_heads", "heads"):
            if self.feature_size % getattr(self, name):
                raise ValueError(f"{name}={getattr(self, name)} does not divide feature_size={self.feature_size}")
        return self

    @property
    def recipe(self) -> dict[str, Any]:
        """Settings of a training run.

        Section 4.1 of the paper: AdamW, batches of 8, 1e-4 to 1e-6 by a cosine, 384². Weight decay, augmentation and
        200 epochs of its 2,169 slices are our choices. Narrow networks: for a few cores.
        """
        if self.feature_size < 24:
            return {"data": {"patch": (224, 160)}, "optimization": {"learning_rate": 5e-4, "batch": 8}}
        return {
            "preprocessing": {"pixel_mm": 0.78},
            "data": {"patch": (384, 384), "augmentation": {"zoom": (0.9, 1.1), "rotation_deg": 10.0}},
            "optimization": {
                "steps": 54000, "batch": 8, "learning_rate": 1e-4, "final_learning_rate": 1e-6, "weight_decay": 1e-4,
                "ema": 0.0,
            },
        }  # fmt: skip

    @property
    def option(self) -> int:
        """`prompt_option` as a number; 0 where the network reads no text."""
        return int(self.prompt_option) if self.use_hasf and self.prompt_option != "none" else 0

    @property
    def needs_bank(self) -> bool:
        """Whether training needs embedded prompts."""
        return (bool(self.option) or self.use_ccae) and self.text_encoder != LEARNED_TABLE

    def text_prompts(self) -> list[str]:
        return training_grammar(self.label_scheme)

    def with_resources(self, resources: Mapping[str, str]) -> AtmNetConfig:
        """With the text encoder's name, width and length as the text bank says.

        Raises:
            ConfigError: there is no text bank, or it is empty or of another scheme.
        """
        if not self.needs_bank:
            return self
        if TEXT_BANK not in resources:
            raise ConfigError(
                "ATM-Net learns from embedded prompts, and no text bank is given.",
                f"Make one with “spinesegai text-bank --method {self.method} --scheme {self.scheme}” and use "
                f"--set resources.{TEXT_BANK}=FILE, or do without language: --set method.text_encoder={LEARNED_TABLE}.",
            )
        from ..text.bank import TextBank

        bank = TextBank(resources[TEXT_BANK])
        bank.require(self.scheme, self.text_prompts())
        found = {"text_encoder": bank.encoder, "text_width": bank.width, "text_length": bank.longest}
        return self.model_copy(update=found)


CONFIG = AtmNetConfig
