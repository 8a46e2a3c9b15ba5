"""What a training run is given: pydantic models, torch-free, saved as `config.json` in the run directory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import ConfigError, problems
from ..imaging import Preprocessing
from ..methods.config import NO_AUGMENTATION, MethodConfig

_MODEL = ConfigDict(extra="forbid", frozen=True)
_NAMED_VALUES = {"source_weights", "mixture"}


class AugmentationConfig(BaseModel):
    """Random changes of geometry and intensity; probabilities per sample.

    Coordinates tie levels to the field of view, so zoom, shift and cropping are strong (design section 4). Never a flip
    along rows or columns: up and down, front and back are what the levels are read from.
    """

    model_config = _MODEL

    zoom: tuple[float, float] = Field((0.75, 1.4), description="range of the scale factor")
    stretch: float = Field(0.1, description="relative difference between the axes' scale factors")
    rotation_deg: float = Field(15.0, description="in-plane rotation, ±")
    rotation_probability: float = Field(1.0, ge=0, le=1)
    elastic_mm: float = Field(4.0, description="standard deviation of the elastic displacement")
    elastic_probability: float = 0.3
    crop_probability: float = Field(0.45, description="chance that part of the field of view is cut off")
    crop_top: float = Field(0.45, description="largest share cut off above")
    crop_bottom: float = Field(0.35, description="largest share cut off below")
    crop_side: float = Field(0.3, description="largest share cut off in front or behind")
    mirror_probability: float = Field(
        0.0, ge=0, le=1, description="2D: left and right exchanged; for views from the front, never for sagittal slices"
    )
    metal_probability: float = Field(
        0.0, ge=0, le=1, description="films: screws and rods, or the bars and buckles of a brace, drawn over the image"
    )
    border_probability: float = Field(
        0.0,
        ge=0,
        le=1,
        description="films: what lies outside a slanted frame black or white, as collimators do",
    )
    letters_probability: float = Field(0.0, ge=0, le=1, description="films: marks and letters, bright or dark")
    tissue_probability: float = Field(
        0.35, description="labeled vertebrae and discs brightened or darkened: T1, T2 and fat suppression differ so"
    )
    synthesis_probability: float = Field(
        0.0, ge=0, le=1, description="every drawn structure, and all around them, given a look of its own at random"
    )
    gamma_probability: float = 0.4
    contrast_probability: float = Field(0.25, description="random monotone or non-monotone intensity curve")
    invert_probability: float = Field(0.12, description="bright and dark exchanged inside the body")
    bias_probability: float = 0.5
    noise_probability: float = 0.35
    blur_probability: float = 0.2
    low_resolution_probability: float = 0.2
    level_probability: float = Field(1.0, ge=0, le=1, description="brightness and contrast changed a little")
    brightness: tuple[float, float] = Field(
        (0.75, 1.3), description="range of the factor of the gray values, whose percentiles differ between exams"
    )
    offset: float = Field(0.05, ge=0, description="shift of the gray values, ±, as a share of their range")
    mirror_left_right: bool = Field(
        True, description="3D, and neighboring slices in 2D; never where structures have sides"
    )

    @classmethod
    def none(cls) -> AugmentationConfig:
        """Nothing is changed: what a paper's own augmentation is set on top of."""
        return cls(**NO_AUGMENTATION)


class DataConfig(BaseModel):
    """Which samples are drawn, and how large."""

    model_config = _MODEL

    patch: tuple[int, ...] = Field((192, 160), description="rows, columns; slices first in 3D")
    blend_share: float = Field(0.15, description="2D: share of samples mixed with a neighboring slice, as thick slices")
    lone_share: float = Field(
        0.1,
        ge=0,
        le=1,
        description="2D, methods that see neighboring slices: share of samples without any, as in a stack of one",
    )
    labelled_share: float = Field(0.8, description="share of samples from slices (patches) with labels")
    focus: Literal["column", "label"] = Field(
        "column",
        description="windows lie around the spine, or around a labeled voxel (anywhere in slices without)",
    )
    source_weights: dict[str, float] = Field(
        default_factory=dict, description="relative frequency per source; square root of the case count where not given"
    )
    weak_share: float = Field(
        0.5, ge=0, le=1, description="share of samples from cases with keypoints but no masks, where there are such"
    )
    phantoms: int = Field(0, ge=0, description="number of synthetic images in the training set")
    phantom_share: float = Field(0.3, ge=0, le=1, description="share of samples that come from synthetic images")
    mistakes_of: tuple[str, ...] = Field(
        (),
        description="methods that correct: checkpoints whose results on the training images are corrected, by name;"
        " damage made on purpose comes besides",
    )
    augmentation: AugmentationConfig = AugmentationConfig()


class OptimizationConfig(BaseModel):
    """The optimizer and its schedule."""

    model_config = _MODEL

    optimizer: Literal["adamw", "adam"] = Field(
        "adamw",
        description="adam: weight decay is L2 regularization of all parameters, as in papers that say Adam; adamw: it"
        " is decoupled, and spares biases and normalizations",
    )
    steps: int = Field(4000, ge=1)
    hours: float | None = Field(None, gt=0, description="stop after this time even if steps are left")
    stop_steps: int | None = Field(None, ge=1, description="end after these steps though the schedule is longer")
    stop_hours: float | None = Field(None, gt=0, description="end after these hours though the schedule is longer")
    batch: int = Field(8, ge=1, description="global batch size, over all processes")
    learning_rate: float = Field(1e-3, gt=0)
    final_learning_rate: float = Field(1e-6, ge=0)
    schedule: Literal["cosine", "poly", "thirds", "constant"] = Field(
        "cosine",
        description="thirds: a fifth of the learning rate after each third; constant: for a stage that may end at any"
        " time, since another one follows in which the rate falls",
    )
    warmup: int = Field(100, ge=0)
    weight_decay: float = Field(1e-2, ge=0)
    clip: float = Field(1.0, ge=0, description="largest norm of the gradient; 0 for no limit")
    ema: float = Field(0.999, ge=0, lt=1, description="decay of the averaged weights; 0 for none")
    keep: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the starting checkpoint's weights in those that are validated and saved: a mean of before"
        " and after forgets little (Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022)",
    )
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    validate_every: int = Field(1000, ge=1)
    save_every: int = Field(200, ge=1)
    report_every: int = Field(20, ge=1, description="steps whose mean loss makes one report")
    workers: int = Field(1, ge=0, description="processes that load data; 0 loads in the trainer itself")


class TrainingConfig(BaseModel):
    """Everything that determines a run."""

    model_config = _MODEL

    method: dict[str, Any] = Field(description="the method's configuration")
    dataset: str = Field(description="path of the manifest")
    also: tuple[str, ...] = Field((), description="paths of more manifests, whose cases are mixed in")
    preprocessing: Preprocessing = Preprocessing(pixel_mm=1.25)
    data: DataConfig = DataConfig()
    optimization: OptimizationConfig = OptimizationConfig()
    seed: int = 35
    resources: dict[str, str] = Field(default_factory=dict, description="files that the method needs to learn, by name")
    start_from: str | None = Field(None, description="checkpoint whose weights are taken where they fit")
    start_parts: tuple[str, ...] = Field(
        (), description="patterns of the names of the weights taken from it (encoder.*); all that fit if not given"
    )
    name: str = Field("", description="name of the checkpoint that results")

    @property
    def starts_whole(self) -> bool:
        """Whether a checkpoint is trained further, not just parts of one taken over."""
        return bool(self.start_from) and not self.start_parts


def configure(
    method: MethodConfig,
    dataset: str,
    *,
    name: str,
    recipe: Mapping[str, Any] | None = None,
    changes: Iterable[tuple[str, Any]] = (),
) -> TrainingConfig:
    """The configuration of a run: the method's recipe, and what a user sets on top.

    Args:
        method: the method's configuration.
        dataset: path of the manifest.
        name: of the checkpoint that results.
        recipe: other settings than the method's own recipe.
        changes: dotted name of a setting → value; those of the method (``method.…``) are taken to be in `method`.

    Raises:
        ConfigError: a setting does not exist, or its value is not valid.
    """
    values = TrainingConfig(
        method=method.model_dump(mode="json"),
        dataset=dataset,
        name=name,
        **(method.recipe if recipe is None else recipe),
    ).model_dump(mode="json")
    for key, value in changes:
        if not key.startswith("method."):
            *path, last = key.split(".")
            table = values
            for part in path:
                table = table.setdefault(part, {})
                if not isinstance(table, dict):
                    raise ConfigError(f"--set {key}: there is no such setting.", f"{part} has no parts.")
            table[last] = value
    try:
        return TrainingConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(
            f"The settings of the run are not valid: {problems(error)}.",
            "--set takes optimization.batch=8, data.patch=[256,192], preprocessing.pixel_mm=1, method.dims=2 …",
        ) from None


def flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as dotted names: ``{"data": {"patch": …}}`` → ``data.patch``.

    Tables whose keys are names of the user's (`source_weights`) are values, not settings.
    """
    for key, value in table.items():
        if isinstance(value, Mapping) and key not in _NAMED_VALUES:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def fill_in(settings: Mapping[str, Any], resources: Mapping[str, str]) -> dict[str, Any]:
    """Settings in which ``{name}`` stands for the file that is given for a resource."""
    filled = dict(settings)
    for key, value in settings.items():
        if isinstance(value, str):
            for name, file in resources.items():
                value = value.replace(f"{{{name}}}", file)
            filled[key] = value
    return filled
