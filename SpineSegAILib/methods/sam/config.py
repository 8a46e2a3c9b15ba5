"""Configuration of SAM and MedSAM."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from ...errors import ConfigError, MissingPackageError
from ...files import read_json
from ..config import MethodConfig

PARTS = ("vision_config", "prompt_encoder_config", "mask_decoder_config")
"""What an architecture has, by the names of transformers."""


class SamConfig(MethodConfig):
    """Weights are the user's: a folder, or a name on the Hugging Face hub such as ``facebook/sam-vit-base``.

    MedSAM is the same network with other weights; it takes boxes alone and images as they are.
    """

    coordinates: bool = Field(False, description="not for SAM, which takes pictures")
    weights: str = Field("", description="folder or hub name of a SAM in the layout of transformers, safetensors alone")
    architecture: dict[str, dict[str, Any]] = Field(
        {}, description="sizes of its parts, read from the weights' config.json; empty: those of ViT-B"
    )
    trained: Literal["decoder", "all"] = Field(
        "decoder", description="what learns: the mask decoder, or the image encoder as well"
    )
    prompts: Literal["boxes", "points", "either"] = Field("either", description="what shows a structure in training")
    jitter: float = Field(
        0.1, ge=0, lt=0.5, description="share of its side by which each edge of a training box may be off"
    )
    masks: int = Field(8, ge=1, description="structures of an image that a training step asks for, for the memory")
    pixels: Literal["imagenet", "unit"] = Field(
        "imagenet", description="how gray values are given: as a photograph's, or from 0 to 1"
    )

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "small": {},
        "tiny": {
            "architecture": {
                "vision_config": {
                    "hidden_size": 16, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                    "image_size": 64, "patch_size": 8, "window_size": 4, "global_attn_indexes": [1],
                    "num_pos_feats": 8, "initializer_range": 0.02,
                },
                "prompt_encoder_config": {
                    "hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4,
                },
                "mask_decoder_config": {
                    "hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16,
                },
            }
        },
    }  # fmt: skip

    @model_validator(mode="before")
    @classmethod
    def _medsam(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("method") == "medsam":
            return {"prompts": "boxes", "pixels": "unit", **values}
        return values

    @model_validator(mode="after")
    def _sees_a_slice(self) -> SamConfig:
        if self.dims != 2 or self.coordinates or self.context_mm or self.around_column:
            raise ValueError("SAM sees whole slices: neither dims=3, coordinates, context_mm nor around_column")
        if not set(self.architecture) <= set(PARTS):
            raise ValueError(f"architecture has the parts {', '.join(PARTS)}")
        return self

    def with_resources(self, resources: Mapping[str, str]) -> SamConfig:
        """With the architecture of the weights.

        Raises:
            ConfigError: they cannot be had, or are not SAM's.
        """
        if not self.weights:
            return self
        if self.weights.startswith("{"):
            raise ConfigError(
                "No folder is given with weights of SAM.",
                "hf download facebook/sam-vit-base --local-dir FOLDER; then --resource sam=FOLDER.",
            )
        told = _description(self.weights)
        if told.get("model_type") != "sam":
            raise ConfigError(
                f"The weights {self.weights} are of the kind “{told.get('model_type')}”, not of a SAM.",
                "Give those of facebook/sam-vit-base, wanglab/medsam-vit-base, or another SamModel.",
            )
        return self.model_copy(update={"architecture": {part: _sizes(told.get(part) or {}) for part in PARTS}})

    @property
    def recipe(self) -> dict[str, Any]:
        """Settings of a training run: the decoder learns as MedSAM does, AdamW with 1e-4 and weight decay 0.01."""
        return {
            "data": {"patch": (320, 256), "blend_share": 0.0},
            "optimization": {"batch": 2, "learning_rate": 1e-4, "weight_decay": 0.01, "warmup": 0, "ema": 0.0},
        }


def _description(weights: str) -> dict[str, Any]:
    """The weights' config.json."""
    file = Path(weights) / "config.json"
    if file.is_file():
        told = read_json(file, ConfigError)
        return told if isinstance(told, dict) else {}
    try:
        from transformers import AutoConfig
    except ImportError:
        raise MissingPackageError(
            "SAM needs transformers, which is not installed.", "pip install transformers"
        ) from None
    try:
        return AutoConfig.from_pretrained(weights).to_dict()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The weights {weights} cannot be had: {str(error).splitlines()[0]}",
            f"Where there is a network: hf download {weights} --local-dir FOLDER; then give the FOLDER.",
        ) from error


def _sizes(told: Mapping[str, Any]) -> dict[str, Any]:
    """What of a part's description is a size or a switch."""
    names = {
        "hidden_size", "output_channels", "num_hidden_layers", "num_attention_heads", "num_channels", "image_size",
        "patch_size", "hidden_act", "layer_norm_eps", "qkv_bias", "mlp_ratio", "use_abs_pos", "use_rel_pos",
        "window_size", "global_attn_indexes", "num_pos_feats", "mlp_dim", "mask_input_channels",
        "num_point_embeddings", "attention_downsample_rate", "num_multimask_outputs", "iou_head_depth",
        "iou_head_hidden_dim",
    }  # fmt: skip
    return {name: value for name, value in told.items() if name in names and value is not None}


CONFIG = SamConfig
