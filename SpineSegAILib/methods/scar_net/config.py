"""Configuration of SCAR-Net and of DGMSNet, which is SCAR-Net without its two attentions."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from ..config import MethodConfig


class ScarNetConfig(MethodConfig):
    """Defaults are the paper's, or DGMSNet's where the paper is silent; choices of ours are marked.

    Training as published: Adam with a learning rate of 5e-4 that falls to a fifth at each third of the training
    (``schedule="thirds"``), weight decay 1e-4, batches of two cases with masks and two with key points alone
    (``batch=4, weak_share=0.5``), sagittal slices of 512² pixels (our choice; DGMSNet takes 780²).
    """

    coordinates: bool = Field(False, description="give the network the position in the field of view (our addition)")
    adaptive: Literal["transformer", "conv"] = Field(
        "transformer", description="what the dynamic kernels feed: key-point-weighted self-attention, or nothing more"
    )
    use_mcca: bool = Field(True, description="fuse the two feature maps by cross attention; otherwise add them")
    mcca_residual: Literal["cross", "self"] = Field(
        "cross", description="the stream that an attended stream is added to: the other one, or itself"
    )
    channel_convolutions: bool = Field(False, description="1x1 convolutions before the channel attention")
    gate_low_features: bool = Field(False, description="recognition gates the low-level features (our addition)")
    heads: int = Field(4, ge=1, description="heads of the adaptive transformer (our choice)")
    weight_floor: float = Field(0.5, gt=0, le=1, description="key-point weight far from every key point (our choice)")
    weight_queries: bool = Field(
        False,
        description="key-point weights also scale what a position gathers, so key points act where they are"
        " (our addition)",
    )
    weight_mm: float = Field(10.0, gt=0, description="width (standard deviation) of the key-point weight (our choice)")
    heatmap_mm: float = Field(
        3.0,
        gt=0,
        description="width (standard deviation) of the target heatmaps; no less than four pixels, since they are drawn"
        " at a quarter of the resolution",
    )
    least_peak: float = Field(
        0.3, gt=0, lt=1, description="heatmap value below which a structure counts as not found (our choice)"
    )
    heatmap_weight: float = Field(
        60.0, ge=0, description="weight of the heatmaps' error; the paper tries 40 to 100, in 600 epochs"
    )
    ralf_ensemble: tuple[float, ...] = Field(
        (), description="heatmap weights of several networks whose labels are fused; empty for a single network"
    )
    true_points: float = Field(
        0.5, ge=0, le=1, description="chance of annotated points in the weight map at first (our choice)"
    )
    dice_weight: float = Field(0.0, ge=0, description="weight of a Dice loss (our addition)")
    rank_weight: float = Field(0.0, ge=0, description="weight of auxiliary rank heads; 0 for none (our addition)")
    loss_stride: int = Field(
        1,
        ge=1,
        description="losses look at every so-many-th row and column, at others in every step: the same on average, and"
        " most of the time that losses take is saved (our addition)",
    )
    norm: Literal["batch", "group"] = Field("batch", description="group suits very small batches (our addition)")
    stem: tuple[int, int] = Field((16, 32), description="channels of the first two convolutions")
    stages: tuple[int, int, int] = Field((64, 128, 364), description="channels of the three strided residual blocks")
    middle: int = Field(3, ge=0, description="residual blocks without stride")
    exit: tuple[int, ...] = Field((512, 768, 768, 1024), min_length=2, description="channels of the last layers")
    features: int = Field(128, ge=8, description="channels of the high-level features and of the dynamic kernels")
    decoder: int = Field(256, ge=8, description="channels of the decoder")
    low_channels: int = Field(24, ge=4, description="channels of the low-level features in the decoder")
    fine_channels: int = Field(
        0, ge=0, description="channels of one more decoder step, at half the resolution; 0 for none (our addition)"
    )

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"scheme": "lumbar11"},
        "small": {
            "coordinates": True,
            "dice_weight": 1.0,
            "rank_weight": 0.5,
            "weight_queries": True,
            "heatmap_mm": 7.0,
            "heatmap_weight": 1000.0,
            "loss_stride": 2,
            "stem": (12, 24),
            "stages": (32, 64, 160),
            "middle": 2,
            "exit": (192, 256, 256, 320),
            "features": 64,
            "decoder": 64,
            "low_channels": 24,
            "fine_channels": 32,
        },
        "tiny": {
            "coordinates": True,
            "dice_weight": 1.0,
            "rank_weight": 0.5,
            "weight_queries": True,
            "heatmap_mm": 8.0,
            "norm": "group",
            "stem": (8, 8),
            "stages": (12, 16, 24),
            "middle": 1,
            "exit": (24, 24, 24),
            "features": 16,
            "decoder": 16,
            "low_channels": 8,
            "fine_channels": 8,
        },
    }

    @model_validator(mode="before")
    @classmethod
    def _dgmsnet_has_no_attention(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("method") == "dgmsnet":
            return {"adaptive": "conv", "use_mcca": False, **values}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> ScarNetConfig:
        if self.method == "dgmsnet" and (self.adaptive != "conv" or self.use_mcca):
            raise ValueError("DGMSNet has neither the adaptive transformer nor MCCA; that is scar-net")
        if not self.point_channels:
            raise ValueError(f"the scheme {self.scheme} has no vertebrae or discs of known level to make key points of")
        if self.features % self.heads:
            raise ValueError("features must be a multiple of heads")
        return self

    @property
    def point_channels(self) -> tuple[int, ...]:
        """Positions in the scheme (0 = first structure) of what has a key point: vertebrae, sacrum and discs, not
        tubes."""
        return tuple(i for i, s in enumerate(self.label_scheme.structures) if s.order is not None)

    @property
    def heatmap_weights(self) -> tuple[float, ...]:
        """Heatmap weight of each network."""
        return self.ralf_ensemble or (self.heatmap_weight,)


CONFIG = ScarNetConfig
