"""Configuration of the baselines."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, model_validator

from ..config import MethodConfig


class BaselineConfig(MethodConfig):
    """One configuration for all of them: how wide, how deep, and the input size where the architecture fixes it.

    Defaults are the sizes that MONAI's examples and the papers' comparisons use.
    """

    widths: tuple[int, ...] = Field(
        (32, 64, 128, 256, 512),
        min_length=3,
        description="channels per resolution; transformers and ResNets take their size from the first",
    )
    window: tuple[int, ...] = Field((), description="UNETR: the fixed size of its input")

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "small": {"widths": (16, 32, 64, 128, 192)},
        "tiny": {"widths": (8, 12, 16)},
    }

    #: transformers have other natural widths: (paper, small, tiny)
    _FIRST_WIDTHS: ClassVar[dict[str, tuple[int, int, int]]] = {
        "unetr": (16, 16, 8),
        "swin-unetr": (48, 12, 12),
        "segresnet": (32, 16, 8),
        "fcn": (64, 32, 8),
        "deeplabv3": (64, 32, 8),
    }

    @classmethod
    def presets(cls, method_id: str) -> dict[str, dict[str, Any]]:
        first = cls._FIRST_WIDTHS.get(method_id)
        if first is None:
            return cls.PRESETS
        return {name: {"widths": (w, 2 * w, 4 * w)} for name, w in zip(("paper", "small", "tiny"), first, strict=True)}

    @model_validator(mode="after")
    def _window_fits(self) -> BaselineConfig:
        if self.window and (len(self.window) != self.dims or any(n % 16 for n in self.window)):
            raise ValueError(f"window must have {self.dims} sides that are multiples of 16")
        return self


CONFIG = BaselineConfig
"""Used by all baselines."""
