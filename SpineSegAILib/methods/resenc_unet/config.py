"""Configuration of the residual-encoder U-Net."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from ...anatomy import BASIC_KINDS, KINDS, scheme
from ..config import MethodConfig


class ResEncUNetConfig(MethodConfig):
    """nnU-Net's residual-encoder topology; two heads of ours.

    `output="kind-rank"` (our choice, measured better with few data) predicts what a voxel is and how many vertebrae lie
    between it and the sacrum; `output="classes"` is nnU-Net's softmax over the structures.
    """

    widths: tuple[int, ...] = Field((32, 64, 128, 256, 512, 512), min_length=2, description="channels per resolution")
    blocks: tuple[int, ...] = Field((1, 3, 4, 6, 6, 6), description="residual blocks per resolution of the encoder")
    output: Literal["kind-rank", "classes"] = Field("kind-rank", description="what the network predicts")
    rank_weight: float = Field(0.5, ge=0, description="weight of the rank loss")
    kinds: int = Field(
        BASIC_KINDS,
        ge=BASIC_KINDS,
        le=len(KINDS),
        description="kinds that the kind head tells apart; by default what the scheme holds",
    )
    flat_levels: int = Field(0, ge=0, description="3D: how many first poolings leave the left-right axis alone")

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "small": {"widths": (16, 32, 64, 128, 176, 192), "blocks": (1, 2, 2, 2, 2, 2)},
        "tiny": {"widths": (6, 8, 12), "blocks": (1, 1, 1)},
    }

    @model_validator(mode="before")
    @classmethod
    def _kinds_of_scheme(cls, values: Any) -> Any:
        """A checkpoint says how many kinds its head has; where none are said it is what its scheme holds."""
        if not isinstance(values, Mapping) or "kinds" in values:
            return values
        return {**values, "kinds": scheme(values.get("scheme", cls.model_fields["scheme"].default)).head_kinds}

    @model_validator(mode="after")
    def _consistent(self) -> ResEncUNetConfig:
        if len(self.widths) != len(self.blocks):
            raise ValueError("widths and blocks must have the same length")
        if self.kinds < self.label_scheme.head_kinds:
            raise ValueError(f"the scheme {self.scheme} has structures of {self.label_scheme.head_kinds} kinds")
        return self


CONFIG = ResEncUNetConfig
