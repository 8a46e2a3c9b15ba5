"""What every method's configuration has; pydantic only, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..anatomy import LabelScheme, scheme

NO_AUGMENTATION: Mapping[str, Any] = {
    "zoom": (1.0, 1.0), "stretch": 0.0, "rotation_deg": 0.0,
    **dict.fromkeys(
        (
            "elastic_probability", "crop_probability", "tissue_probability", "synthesis_probability",
            "gamma_probability", "contrast_probability", "invert_probability", "bias_probability",
            "noise_probability", "blur_probability", "low_resolution_probability", "level_probability",
            "mirror_probability", "metal_probability", "border_probability", "letters_probability",
        ),
        0.0,
    ),
    "mirror_left_right": False,
}  # fmt: skip
"""Settings (`training.config.AugmentationConfig`) that switch all of it off, for recipes of papers that name theirs."""


class MethodConfig(BaseModel):
    """Hyperparameters of a method: everything needed to rebuild its network.

    Subclasses add their own with the paper's values as defaults, and `PRESETS`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = Field(description="id of the method in the catalog")
    scheme: str = Field("lumbar-mr", description="label scheme that the network predicts")
    dims: int = Field(2, ge=2, le=3, description="2 for sagittal slices, 3 for volumes")
    coordinates: bool = Field(True, description="give the network the position in the field of view (our addition)")
    context_mm: tuple[float, ...] = Field(
        (), description="2D: give the network also the slices at these distances to either side, in mm (our addition)"
    )
    around_column: bool = Field(
        False,
        description="look at what lies around the column, found at a first glance, not at whole slices (our addition)",
    )

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}}
    BEFORE: ClassVar[dict[str, Any]] = {}
    """What a stored configuration meant that lacks an option, since it is older (`catalog.stored_config`)."""
    RESOURCES: ClassVar[tuple[str, ...]] = ()
    """Names of files that it may learn from (`TrainingConfig.resources`), besides those that its settings name."""

    @field_validator("scheme")
    @classmethod
    def _known_scheme(cls, value: str) -> str:
        scheme(value)
        return value

    @classmethod
    def presets(cls, method_id: str) -> dict[str, dict[str, Any]]:
        """Named configurations of this method."""
        return cls.PRESETS

    @model_validator(mode="after")
    def _slices_have_neighbours(self) -> MethodConfig:
        if self.context_mm and self.dims != 2:
            raise ValueError("context_mm is for dims=2")
        return self

    def text_prompts(self) -> list[str]:
        """Every sentence that the method may need embedded (`text.bank`); none for most."""
        return []

    @property
    def whole_sentences(self) -> bool:
        """Whether the text bank holds a vector per sentence, not per word."""
        return False

    def with_resources(self, resources: Mapping[str, str]) -> MethodConfig:
        """This configuration with what only the files of a training run say, such as the width of text features.

        Args:
            resources: `TrainingConfig.resources`.

        Raises:
            ConfigError: a file is missing or does not fit.
        """
        return self

    def as_published(self) -> MethodConfig:
        """This configuration as a checkpoint states it: nothing of the machine that it was trained on."""
        return self

    @property
    def label_scheme(self) -> LabelScheme:
        """The scheme itself."""
        return scheme(self.scheme)

    @property
    def predicts_classes(self) -> bool:
        """Whether the network itself chooses among the scheme's structures; else names come from `consistency` alone.

        Methods that can do either have an option ``output``.
        """
        return getattr(self, "output", "classes") == "classes"

    @property
    def recipe(self) -> dict[str, Any]:
        """Settings of a training run (`training.config.TrainingConfig`) that fit this configuration; what a user sets
        goes before them."""
        return {}

    @property
    def input_channels(self) -> int:
        """Images (a slice and its neighbors) plus coordinates."""
        return 1 + 2 * len(self.context_mm) + (self.dims if self.coordinates else 0)
