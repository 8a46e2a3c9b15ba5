"""Configuration of LA-CAF; pydantic only, no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from ...anatomy import Structure, display_name, laterality
from ..config import NO_AUGMENTATION, MethodConfig

if TYPE_CHECKING:
    from ..text.bank import TextBank

UNIVERSAL_MODEL = "universal_model"
"""Name of the resource: a file with the published weights."""

_TEMPLATES = {
    "CT": "A computerized tomography of a {}",
    "MR": "A magnetic resonance imaging of the {}",
    "any": "A medical image of the {}",
}
"""The release's sentence for CT; its counterparts for what else there is (our choice)."""


_OURS: dict[str, Any] = {
    "coordinates": True,
    "short_names": False,
    "center_text": True,
    "adapter_biases": False,
    "dice_smooth": "both",
}
"""What the presets for spines have in common and the release has not."""


class LaCafConfig(MethodConfig):
    """Language-guided self-adaptive cross-attention fusion.

    Defaults are the paper's, as far as its abstract and released code tell: 3D U-Net with 19.1 M parameters, CLIP
    ViT-B/32 text features, per-class adapters 512→128→256, heads of 8 channels. Two are ours: `fusion="xattn"` is what
    its title says, while the release multiplies by a scalar, and `mask_unlabelled` omits from the loss what nobody
    annotated. The preset ``"released"`` is the release. Instance norm in the U-Net, text vectors of unit size, warm-up
    by steps and a clipped gradient differ in all presets.

    The rows of its ablation: linear projection (`text_map="linear", image_map="pool", fusion="none"`); text adapter
    (`text_map="adapter", image_map="pool", fusion="none"`); attention without concatenation (`concat=False`) and with
    it; text and image adapters (all defaults). The Universal Model is the first row.
    """

    dims: int = Field(3, ge=3, le=3, description="always 3: a volume method")
    coordinates: bool = Field(False, description="give the network the position in the field of view (our addition)")
    backbone: Literal["unet", "swinunetr", "resenc"] = Field(
        "unet",
        description="3D network that makes the features; resenc: the default method's, slice by slice, with weights "
        "across slices (ours)",
    )
    widths: tuple[int, ...] = Field(
        (64, 128, 256, 512), min_length=2, description="channels per resolution; Swin UNETR takes the first"
    )
    blocks: tuple[int, ...] = Field((), description="resenc: residual blocks per resolution; two each where empty")
    flat_levels: int | None = Field(
        None,
        ge=0,
        description="U-Net: how many first poolings leave the left-right axis alone; by default 2 for the spine, whose "
        "slices are thick, and 0 for vessels",
    )
    text_encoder: str = Field(
        "open_clip:ViT-B-32:openai",
        description="who turned the classes' sentences into vectors: open_clip:MODEL:WEIGHTS, clip:NAME or FOLDER "
        "(transformers), bank:FILE, or hashed (knows no language)",
    )
    text_width: int = Field(512, ge=8, description="length of a text vector; of a bank, as its file says")
    template: str = Field("", description="sentence with {} for the class; by modality where empty")
    short_names: bool = Field(True, description="“left artery”, as released, not “left pulmonary artery”")
    center_text: bool = Field(
        False,
        description="text vectors without what all classes of the first run share, so that a class's own words count "
        "(ours)",
    )
    adapter_width: int = Field(128, ge=1, description="hidden width of a class's text adapter")
    adapter_biases: bool = Field(
        True, description="text adapters have biases, as released: they can say all about a class without its text"
    )
    fusion_width: int = Field(256, ge=8, description="width in which text and image meet")
    head_width: int = Field(8, ge=1, description="channels of the generated heads")
    attention_heads: int = Field(8, ge=1, description="heads of the cross-attention")
    text_map: Literal["adapter", "linear"] = Field("adapter", description="per-class adapters, or one linear map")
    image_map: Literal["adapter", "pool"] = Field("adapter", description="image vector: the adapter's, or the mean")
    fusion: Literal["xattn", "released", "none"] = Field(
        "xattn", description="text attends to image tokens; the release's scalar gain; or the image vector alone"
    )
    attention_norm: bool = Field(
        False,
        description="xattn: tokens and queries are normalized and the text vector is not added to what it attends to, "
        "so that heads depend more on the image (ours)",
    )
    concat: bool = Field(True, description="heads are generated from the fused vector and the text vector")
    use_clip_visual: bool = Field(False, description="also attend to CLIP's image vectors of a few slices (ours)")
    clip_slices: int = Field(4, ge=1, description="how many slices CLIP sees")
    mask_unlabelled: bool = Field(True, description="no loss where a structure is not annotated; off: the release")
    dice_smooth: Literal["denominator", "both"] = Field(
        "denominator",
        description="where the smoothing term of Dice stands; in the denominator alone, as released, an absent class "
        "costs 1 whatever is predicted; in both it costs what is predicted of it (ours)",
    )
    foreground_prior: float = Field(0.05, gt=0, lt=1, description="probability that every class starts with (ours)")
    positive_weight: float = Field(
        1.0,
        gt=0,
        description="how much more a structure's own voxels count in the cross-entropy; above 1 small and rare ones "
        "are not given up early (ours)",
    )
    rank_weight: float = Field(0.0, ge=0, description="weight of an auxiliary head that counts levels (ours)")
    only: tuple[str, ...] = Field((), description="only these structures' adapters learn; the rest is frozen")

    BEFORE: ClassVar[dict[str, Any]] = {"short_names": False, "adapter_biases": False, "dice_smooth": "both"}

    RESOURCES: ClassVar[tuple[str, ...]] = (UNIVERSAL_MODEL,)
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "released": {"scheme": "pulmonary-av", "fusion": "released", "mask_unlabelled": False, "foreground_prior": 0.5},
        "small": {
            **_OURS,
            "widths": (16, 32, 64, 128, 160),
            "adapter_width": 64,
            "fusion_width": 128,
            "rank_weight": 0.25,
        },
        "slices": {
            **_OURS,
            "backbone": "resenc",
            "widths": (16, 32, 64, 128, 176, 192),
            "blocks": (1, 2, 2, 2, 2, 1),
            "adapter_width": 32,
            "fusion_width": 96,
            "positive_weight": 10.0,
            "rank_weight": 0.25,
        },
        "tiny": {
            **_OURS,
            "widths": (8, 12, 16),
            "flat_levels": 1,
            "adapter_width": 16,
            "fusion_width": 32,
            "attention_heads": 4,
            "text_width": 64,
            "text_encoder": "hashed",
        },
    }

    @model_validator(mode="after")
    def _fits(self) -> LaCafConfig:
        if self.fusion_width % self.attention_heads:
            raise ValueError(f"fusion_width ({self.fusion_width}) must be a multiple of attention_heads")
        if self.blocks and len(self.blocks) != len(self.widths):
            raise ValueError("widths and blocks must have the same length")
        if self.template and self.template.count("{}") != 1:
            raise ValueError("template must hold {} once, where the class's name goes")
        if self.use_clip_visual and self.fusion != "xattn":
            raise ValueError("use_clip_visual adds tokens to attend to; it needs fusion=xattn")
        for name in self.only:
            self.label_scheme.require(name)
        return self

    @property
    def prompts(self) -> dict[int, str]:
        """Structure id → the sentence that stands for it."""
        return self._sentences(self.short_names)

    def text_prompts(self) -> list[str]:
        """With short names and with whole ones, so that a bank serves either."""
        both = (*self.prompts.values(), *self._sentences(not self.short_names).values())
        return list(dict.fromkeys(both))

    def _sentences(self, short: bool) -> dict[int, str]:
        scheme = self.label_scheme
        template = self.template or _TEMPLATES.get(scheme.modality, _TEMPLATES["any"])
        return {s.id: template.format(_spoken(s, short)) for s in scheme.structures}

    @property
    def whole_sentences(self) -> bool:
        return True

    def with_resources(self, resources: Mapping[str, str]) -> LaCafConfig:
        """With the length of the vectors of the text bank, if the text comes from one.

        A bank that is gone is not an error here: a network that continues from a checkpoint has its vectors.
        """
        bank = _bank(self.text_encoder)
        return self.model_copy(update={"text_width": bank.width}) if bank else self

    def as_published(self) -> LaCafConfig:
        """With the name of the encoder that made the text bank, not with where that file lay."""
        return self.model_copy(update={"text_encoder": published_encoder(self.text_encoder)})

    @property
    def is_sided(self) -> bool:
        """True where structures are left or right, so that no image may be mirrored."""
        return any(laterality(i) for i in self.label_scheme.ids)

    @property
    def strides(self) -> list[tuple[int, int, int]]:
        """Plain U-Net: pooling (slices, rows, columns) before each level but the first."""
        flat = self.flat_levels if self.flat_levels is not None else 0 if self.is_sided else 2
        return [(1, 2, 2) if level < flat else (2, 2, 2) for level in range(len(self.widths) - 1)]

    @property
    def divisor(self) -> tuple[int, int, int]:
        """What the sides of an input must be divisible by."""
        if self.backbone == "swinunetr":
            return (32, 32, 32)
        if self.backbone == "resenc":
            side = 2 ** (len(self.widths) - 1)
            return (1, side, side)
        slices, rows, columns = (math.prod(s[axis] for s in self.strides) for axis in range(3))
        return slices, rows, columns

    @property
    def recipe(self) -> dict[str, Any]:
        """Settings of a training run (`training.config.TrainingConfig`) that fit this configuration.

        Vessels, as released: 1.5 mm, HU −700…300, 96³, crops around labels and anywhere 2:1, AdamW 8e-4 with weight
        decay 1e-5, batches of four, a warm-up of 10 of 1,001 epochs (of 502 cases: 125,625 steps); of its augmentation
        the zoom, 1.3 to 1.5 in three of ten crops, is wider here, and quarter turns are omitted, since sides would
        change. Spine: thick sagittal slices, pixels of 0.75 mm (1.25 mm for narrower networks), windows of 16 slices
        (our choice).
        """
        small = self.widths[0] < 32
        optimization = {"batch": 2 if small else 4, "learning_rate": 8e-4, "weight_decay": 1e-5, "warmup": 200}
        if self.is_sided:
            side = 64 if small else 96
            if not small:
                optimization |= {"steps": 125_625, "warmup": 1255, "ema": 0.0}
            return {
                "preprocessing": {
                    "pixel_mm": 1.5, "min_slice_mm": 1.5, "intensity": "hu", "low": -700.0, "high": 300.0,
                    "modality": "CT", "planes": ("axial", "coronal", "sagittal", "isotropic"),
                },
                "data": {
                    "patch": (side,) * 3, "labelled_share": 2 / 3, "focus": "label",
                    "augmentation": {**NO_AUGMENTATION, "zoom": (0.85, 1.5), "level_probability": 0.2},
                },
                "optimization": optimization,
            }  # fmt: skip
        return {
            "preprocessing": {"pixel_mm": 1.25 if small else 0.75},
            "data": {
                "patch": (4, 192, 96) if self.backbone == "resenc" else (16, 128, 96) if small else (16, 160, 160)
            },
            "optimization": optimization,
        }


def published_encoder(name: str) -> str:
    """A text encoder as checkpoints name it: a bank by the encoder that made it, or by its file where that is gone."""
    kind, _, file = name.partition(":")
    if kind != "bank":
        return name
    bank = _bank(name)
    return f"bank:{Path(bank.encoder).name}.safetensors" if bank else f"bank:{Path(file).name}"


def _bank(name: str) -> TextBank | None:
    """The text bank that an encoder's name names, if it does and the file is there."""
    kind, _, file = name.partition(":")
    if kind != "bank" or not Path(file).is_file():
        return None
    from ..text.bank import TextBank

    return TextBank(file)


def _spoken(s: Structure, short: bool) -> str:
    """``"right pulmonary artery"`` (short: ``"right artery"``), ``"L3 vertebra"``, ``"L4/L5 intervertebral disc"``."""
    side = laterality(s.id)
    if side:
        name = s.name.split(",")[0]
        return f"{side.meaning.lower()} {name.removeprefix('pulmonary ') if short else name}"
    return display_name(s.id).replace(" disc", " intervertebral disc")


CONFIG = LaCafConfig
