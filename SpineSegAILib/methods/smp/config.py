"""Configuration of the architectures that come from segmentation-models-pytorch."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from ..config import MethodConfig


class SmpConfig(MethodConfig):
    """One configuration for all of them: the encoder, and the channels of the decoder.

    From scratch, as the papers train what they compare with: no pretrained weights.
    """

    encoder: str = Field("resnet34", description="name of an encoder of segmentation-models-pytorch")
    norm: Literal["batch", "instance"] = Field("batch", description="in the decoder; batch in every encoder")

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "small": {"encoder": "mobilenet_v2"},
        "tiny": {"encoder": "mobileone_s0"},
    }


CONFIG = SmpConfig
