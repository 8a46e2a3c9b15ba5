"""Configuration of BiSeNet."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from ..config import MethodConfig


class BiSeNetConfig(MethodConfig):
    """Defaults are those of the paper's larger network, with ResNet-18."""

    width: int = Field(64, ge=4, multiple_of=4, description="channels of the first ResNet stage and the spatial path")
    auxiliary_weight: float = Field(1.0, ge=0, description="weight of the losses that the context path's stages have")

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}, "small": {"width": 32}, "tiny": {"width": 8}}


CONFIG = BiSeNetConfig
