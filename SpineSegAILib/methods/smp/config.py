"""Configuration of the architectures that come from segmentation-models-pytorch."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from ..config import MethodConfig


class SmpConfig(MethodConfig):
    """One configuration for all of them: the encoder. From scratch, as the papers train what they compare with."""

    encoder: str = Field("resnet34", description="name of an encoder of segmentation-models-pytorch")

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "small": {"encoder": "mobilenet_v2"},
        "tiny": {"encoder": "mobilenet_v2"},
    }

    #: SegFormer is a decoder for transformers: (paper, small, tiny)
    _SEGFORMER: ClassVar[tuple[str, str, str]] = ("mit_b2", "mit_b0", "mit_b0")

    @classmethod
    def presets(cls, method_id: str) -> dict[str, dict[str, Any]]:
        if method_id != "segformer":
            return cls.PRESETS
        return {name: {"encoder": e} for name, e in zip(cls.PRESETS, cls._SEGFORMER, strict=True)}


CONFIG = SmpConfig
