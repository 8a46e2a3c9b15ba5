"""Configuration of Swin-Unet."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, model_validator

from ..config import MethodConfig


class SwinUnetConfig(MethodConfig):
    """Defaults are the paper's: Swin-T's widths, two blocks per stage, windows of 7 × 7."""

    width: int = Field(96, ge=8, description="channels of the first stage, doubled in each of the next")
    depths: tuple[int, ...] = Field((2, 2, 2, 2), min_length=2, description="blocks per stage; the last is the bottom")
    heads: tuple[int, ...] = Field((3, 6, 12, 24), min_length=2, description="attention heads per stage")
    window: int = Field(7, ge=2, description="side of the attention's windows, in tokens of 4 × 4 pixels")
    drop_path: float = Field(0.1, ge=0, lt=1, description="largest chance that a block is skipped in training")

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "small": {"width": 48},
        "tiny": {"width": 16, "depths": (2, 2, 2), "heads": (2, 4, 8), "window": 4, "drop_path": 0.0},
    }

    @model_validator(mode="after")
    def _consistent(self) -> SwinUnetConfig:
        if len(self.depths) != len(self.heads):
            raise ValueError("depths and heads must have the same length")
        if any((self.width * 2**level) % heads for level, heads in enumerate(self.heads)):
            raise ValueError("the width of each stage must be a multiple of its heads")
        return self


CONFIG = SwinUnetConfig
