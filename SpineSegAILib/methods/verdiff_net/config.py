"""Configuration of Verdiff-Net and of the diffusion models that it is compared with."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from ..config import NO_AUGMENTATION, MethodConfig

BASELINES = {
    "ddpm": {},
    "medsegdiff": {"dynamic_condition": True, "frequency_parser": True},
}
"""The same code without prior, MSFM and NSA: a plain conditional diffusion model, and one with MedSegDiff's parts."""

MANY_CLASSES = 8
"""Beyond this many classes (background included) masks are encoded as bits: the paper fears the memory of nine."""


class VerdiffNetConfig(MethodConfig):
    """Verdiff-Net (Zhang et al. 2024, section 2); what the paper leaves open is marked as our choice.

    The paper segments vertebrae against the rest (scheme ``vertebra``); other schemes are ours, by `encoding`.
    """

    prior_widths: tuple[int, ...] = Field(
        (32, 64, 128, 256, 512), min_length=2, description="channels per resolution of the conditional U-Net"
    )
    prior_blocks: tuple[int, ...] = Field(
        (),
        description="residual blocks per resolution of the conditional U-Net, which is then made like the default "
        "method's and sees the image beside the fused features, so that it can start from its weights (our addition); "
        "empty: plain convolutions, as published",
    )
    widths: tuple[int, ...] = Field(
        (128, 128, 256, 256, 512, 512),
        min_length=2,
        description="channels per resolution of the diffusion U-Net (MedSegDiff's; 64 to 256 on small GPUs)",
    )
    patch: int = Field(
        1, description="pixels per side that the diffusion U-Net takes as one, 1, 2 or 4 (for speed; our addition)"
    )
    blocks: int = Field(2, ge=1, description="residual blocks per resolution of the diffusion U-Net")
    attention_levels: int = Field(2, ge=0, description="lowest resolutions of the diffusion U-Net with self-attention")
    msfm: bool = Field(True, description="multi-scale fusion module; off: one 3 by 3 convolution")
    msfm_width: int = Field(32, ge=2, description="channels of the multi-scale fusion module")
    msfm_kernels: tuple[int, ...] = Field(
        (3, 5, 7), min_length=2, description="kernel sizes of the fusion module's branches (lost in print: our choice)"
    )
    nsa: bool = Field(True, description="noise semantic adapter after each residual block of the diffusion encoder")
    nsa_kernel: Literal["select", "3", "5"] = Field(
        "select", description="fine kernel of the adapter: 3 near the prior's mask and 5 elsewhere, or one everywhere"
    )
    dynamic_condition: bool = Field(
        False, description="the image is encoded at every time, led by the noisy mask, as in MedSegDiff"
    )
    frequency_parser: bool = Field(
        False, description="the noisy mask's features are filtered by frequency before they lead (MedSegDiff)"
    )
    prior: bool = Field(True, description="re-center the diffusion on the conditional U-Net's mask; off: on zero")
    encoding: Literal["auto", "binary", "onehot", "bits", "binary+label", "kind+label"] = Field(
        "auto",
        description="how a label becomes the state of the diffusion; auto: bits beyond eight classes; with “+label” "
        "the state is structure or not, or its kind (vertebra, disc …), and the prior names the level",
    )
    around_prior: bool = Field(
        False,
        description="the denoiser's logits count from those of the prior, so that untrained it repeats the prior (our "
        "addition)",
    )
    bits: int | None = Field(None, ge=1, le=12, description="bits per voxel of the encoding “bits”; as few as suffice")
    temperature: float = Field(0.5, gt=0, description="bits: standard deviation of a bit when classes are read off")
    timesteps: int = Field(1000, ge=2, description="length of the diffusion (not in the paper; MedSegDiff's)")
    beta: tuple[float, float] = Field((1e-4, 0.02), description="first and last variance of the linear schedule")
    mask_scale: float = Field(
        1.0,
        gt=0,
        le=1,
        description="size of mask and prior against the noise; at 1 a mask is legible in itself until late in the "
        "diffusion, and the denoiser learns to copy it; 0.1 to 0.3 make it look at the image (analog bits; our choice)",
    )
    recycling: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the training steps in which the noisy mask is made of the denoiser's own answer, as in "
        "sampling (our addition)",
    )
    surest: float = Field(
        0.98,
        gt=0.5,
        lt=1,
        description="around_prior: probability of the prior beyond which the denoiser need not be surer still to "
        "overrule it",
    )
    kl_weight: float = Field(1.0, ge=0, description="weight of the KL term (our choice)")
    kl_clip: tuple[float, float] = Field((0.01, 5.0), description="range of the KL term's weight per time (our choice)")
    stage: Literal["prior", "denoise", "joint"] = Field(
        "joint",
        description="what is trained: the conditional U-Net, the diffusion U-Net with the former frozen, or both",
    )
    corruption: float = Field(
        0.0, ge=0, le=1, description="share of training images whose prior is made worse first (our addition)"
    )
    samples: int = Field(5, ge=1, description="masks that are drawn where the user asks for no number (MedSegDiff's)")
    steps: int = Field(20, ge=1, description="of DDIM per mask where the user asks for no number")
    rank_weight: float = Field(
        0.0, ge=0, description="weight of a rank head on the prior, in training only (our addition); 0 for none"
    )
    kind_weight: float = Field(
        0.0,
        ge=0,
        description="weight of a loss of the kinds alone (vertebra, disc …), whatever the level, on the prior: where "
        "levels look alike, as on films, it learns outlines before names (our addition)",
    )

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"scheme": "vertebra", "coordinates": False},
        "small": {
            "prior_widths": (16, 32, 64, 128, 176),
            "prior_blocks": (1, 2, 2, 2, 1),
            "widths": (24, 48, 64, 96, 96),
            "patch": 2,
            "blocks": 1,
            "encoding": "kind+label",
            "around_prior": True,
            "msfm_width": 16,
            "corruption": 0.5,
            "samples": 3,
            "steps": 2,
            "rank_weight": 0.5,
        },
        "tiny": {
            "prior_widths": (8, 12, 16),
            "widths": (8, 12, 16),
            "blocks": 1,
            "attention_levels": 1,
            "msfm_width": 8,
        },
    }

    @model_validator(mode="before")
    @classmethod
    def _baseline(cls, values: Any) -> Any:
        """The baseline has neither prior nor modules of the paper, unless one of them is switched on for a trial."""
        if isinstance(values, dict) and values.get("method") in BASELINES:
            own = BASELINES[values["method"]]
            values = {"msfm": False, "nsa": False, **own, **values, "prior": False, "rank_weight": 0.0}
            if str(values.get("encoding", "")).endswith("+label"):
                values["encoding"] = "auto"
            return values
        return values

    @model_validator(mode="after")
    def _consistent(self) -> VerdiffNetConfig:
        if self.dims != 2:
            raise ValueError("Verdiff-Net works on slices: dims must be 2")
        if any(width % 2 for width in (*self.widths, *self.prior_widths)):
            raise ValueError("widths and prior_widths must be even")
        if self.prior_blocks and len(self.prior_blocks) != len(self.prior_widths):
            raise ValueError("prior_widths and prior_blocks must have the same length")
        if self.patch not in (1, 2, 4):
            raise ValueError("patch must be 1, 2 or 4")
        if any(kernel % 2 == 0 for kernel in self.msfm_kernels):
            raise ValueError("msfm_kernels must be odd")
        if self.attention_levels > len(self.widths):
            raise ValueError("attention_levels cannot exceed the number of widths")
        if self.frequency_parser and not self.dynamic_condition:
            raise ValueError("frequency_parser filters what leads dynamic_condition, which is off")
        low, high = self.beta
        if not 0 < low <= high < 1:
            raise ValueError(f"beta must rise inside 0…1, not from {low} to {high}")
        # ᾱ_T, to within a per cent: what is left of the mask's variance where sampling takes it for pure noise
        if math.exp(-self.timesteps * ((low + high) / 2 + (low**2 + low * high + high**2) / 6)) > 0.01:
            raise ValueError(
                f"after {self.timesteps} times with beta from {low} to {high} the mask still shows through the noise"
            )
        if not 0 <= self.kl_clip[0] <= self.kl_clip[1]:
            raise ValueError("kl_clip must be a range")
        classes = self.label_scheme.channels
        if self.resolved_encoding == "binary" and classes > 2:
            raise ValueError(f"the encoding “binary” has two codes, the scheme {self.scheme} {classes} classes")
        if self.resolved_encoding == "bits" and 2**self.resolved_bits < classes:
            raise ValueError(
                f"{self.resolved_bits} bits make {2**self.resolved_bits} codes, fewer than the {classes} classes of "
                f"the scheme {self.scheme}"
            )
        if not self.prior and self.stage == "prior":
            raise ValueError("there is no prior to train where prior is off")
        if not self.prior and self.resolved_encoding.endswith("+label"):
            raise ValueError(f"the encoding “{self.resolved_encoding}” takes its labels from the prior, which is off")
        return self

    @property
    def recipe(self) -> dict[str, Any]:
        """Settings of a training run: stage ``"denoise"`` starts from the checkpoint that stage ``"prior"`` left.

        Wide networks as published: Adam, one image per step, 9000 steps, rotation up to 30°, elastic deformation and
        contrast; shifts of 1 to 5 % are wider here. The learning rate is lost (MedSegDiff's). A slice's longest side of
        512 pixels is our choice, the paper's images are as they come (880² for MR); of a lumbar field of view of 300 mm
        that is 0.6 mm a pixel. Narrow networks are meant for a few cores (our choice).
        """
        if self.widths[0] >= 64:
            return {
                "preprocessing": {"pixel_mm": 0.6},
                "data": {
                    "patch": (512, 512), "blend_share": 0.0,
                    "augmentation": {
                        **NO_AUGMENTATION, "rotation_deg": 30.0, "elastic_probability": 0.3, "gamma_probability": 0.4,
                        "level_probability": 1.0,
                    },
                },
                "optimization": {
                    "optimizer": "adam", "steps": 9000, "batch": 1, "learning_rate": 1e-4,
                    "final_learning_rate": 1e-4, "warmup": 0, "weight_decay": 0.0, "ema": 0.9999,
                },
            }  # fmt: skip
        # The diffusion U-Net sees a new time and noise at each step, hence more steps at a lower rate.
        steps, rate = (4000, 1e-3) if self.stage == "prior" else (8000, 5e-4)
        return {"optimization": {"steps": steps, "batch": 8, "learning_rate": rate, "ema": 0.999}}

    @property
    def resolved_encoding(self) -> str:
        """The encoding that ``"auto"`` stands for in this scheme."""
        if self.encoding != "auto":
            return self.encoding
        classes = self.label_scheme.channels
        return "binary" if classes == 2 else "onehot" if classes <= MANY_CLASSES else "bits"

    @property
    def resolved_bits(self) -> int:
        """Bits per voxel of the encoding ``"bits"``: ⌈log2 of the number of classes⌉ where not given."""
        return self.bits or max(1, math.ceil(math.log2(self.label_scheme.channels)))


CONFIG = VerdiffNetConfig
