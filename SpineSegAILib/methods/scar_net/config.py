"""Configuration of SCAR-Net and of DGMSNet, which is SCAR-Net without its two attentions."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from ..config import NO_AUGMENTATION, MethodConfig


class ScarNetConfig(MethodConfig):
    """Defaults are the paper's, or DGMSNet's where the paper is silent; choices of ours are marked.

    What differs from both in any preset: heatmaps are refined between pixels, W's form (`recognition.weight_map`), the
    global mean's branch without normalization, and warm-up and clipping of the gradient where a run does not switch
    them off.
    """

    coordinates: bool = Field(False, description="give the network the position in the field of view (our addition)")
    adaptive: Literal["transformer", "conv"] = Field(
        "transformer", description="what the dynamic kernels feed: keypoint-weighted self-attention, or nothing more"
    )
    use_mcca: bool = Field(True, description="fuse the two feature maps by cross attention; otherwise add them")
    mcca_residual: Literal["cross", "self", "attended"] = Field(
        "cross", description="what an attended stream is added to: the other stream, itself, or the other one attended"
    )
    gamma: float = Field(0.0, description="first value of the learnable weights of MCCA's three attentions")
    block: Literal["xception", "earlier"] = Field(
        "xception",
        description="residual blocks with ReLU before the convolutions, as published; or as in version 0.1",
    )
    weak_statistics: bool = Field(
        True,
        description="weakly annotated images pass through the segmentation network, too, and count in its batch"
        " statistics, as in DGMSNet; off: half the work where half of a batch is weak",
    )
    mark_points: bool = Field(
        False,
        description="a keypoint adds a learned vector of its structure to the features around it, so that it says which"
        " one is there (our addition)",
    )
    channel_convolutions: bool = Field(False, description="1x1 convolutions before the channel attention")
    gate_low_features: bool = Field(False, description="recognition gates the low-level features (our addition)")
    heads: int = Field(4, ge=1, description="heads of the adaptive transformer (our choice)")
    weight_floor: float = Field(0.5, gt=0, le=1, description="keypoint weight far from every keypoint (our choice)")
    true_until: float = Field(
        1 / 3, ge=0, le=1, description="share of the training in which annotated points may steer (our choice)"
    )
    weight_queries: bool = Field(
        False,
        description="keypoint weights also scale what a position gathers, so keypoints act where they are"
        " (our addition)",
    )
    weight_mm: float = Field(10.0, gt=0, description="width (standard deviation) of the keypoint weight (our choice)")
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
        0.5, ge=0, le=1, description="chance that annotated points steer in place of those found (our choice)"
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

    BEFORE: ClassVar[dict[str, Any]] = {"block": "earlier", "weak_statistics": False}

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
            raise ValueError(f"the scheme {self.scheme} has no vertebrae or discs of known level to make keypoints of")
        if self.features % self.heads:
            raise ValueError("features must be a multiple of heads")
        return self

    @property
    def recipe(self) -> dict[str, Any]:
        """Settings of a training run.

        As published for wide networks: Adam, 5e-4, which falls to a fifth after each third, two cases with masks and
        two with keypoints alone in a batch, 600 epochs (of 172 subjects: 51,600 steps); of DGMSNet weight decay 1e-4
        and, in two of five images, rotation up to 15° as the only augmentation. Slices of 512² pixels of 0.6 mm are our
        choice (DGMSNet: 780²).
        """
        if self.features < 128:
            return {"data": {"patch": (256, 160)}, "optimization": {"learning_rate": 1.5e-3}}
        return {
            "preprocessing": {"pixel_mm": 0.6},
            "data": {
                "patch": (512, 512), "weak_share": 0.5, "blend_share": 0.0,
                "augmentation": {**NO_AUGMENTATION, "rotation_deg": 15.0, "rotation_probability": 0.4},
            },
            "optimization": {
                "optimizer": "adam", "steps": 51600, "batch": 4, "learning_rate": 5e-4, "final_learning_rate": 0.0,
                "schedule": "thirds", "warmup": 0, "weight_decay": 1e-4, "ema": 0.0,
            },
        }  # fmt: skip

    @property
    def is_xception(self) -> bool:
        """Whether blocks, exit and decoder are made as published."""
        return self.block == "xception"

    @property
    def point_channels(self) -> tuple[int, ...]:
        """Positions in the scheme (0 = first structure) of what has a keypoint: vertebrae, sacrum and discs, not
        tubes."""
        return tuple(i for i, s in enumerate(self.label_scheme.structures) if s.order is not None)

    @property
    def heatmap_weights(self) -> tuple[float, ...]:
        """Heatmap weight of each network."""
        return self.ralf_ensemble or (self.heatmap_weight,)


CONFIG = ScarNetConfig
