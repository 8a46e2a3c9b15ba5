"""What a checkpoint says of itself, checked as a whole: one model, and one error."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..anatomy import structure
from ..checkpoints import CheckpointInfo, method_config, not_valid
from ..errors import SpineSegAIError, problems
from ..imaging import Preprocessing
from ..methods.config import MethodConfig
from .calibration import Calibration
from .quality import QualityModel

_FINEST_MM = 0.05  # pixels of a network's input: finer ones need more memory than there is
_LARGEST_PATCH = 2**26  # voxels; those of published networks have some millions


class Training(BaseModel):
    """Where the weights come from; for cards, and to tell cases that were trained on."""

    model_config = ConfigDict(extra="allow", frozen=True)

    dataset: str = ""
    cases: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    cases_before: tuple[str, ...] = ()
    images_before: tuple[str, ...] = ()
    phantoms: int = Field(0, ge=0)
    steps: int = Field(0, ge=0)


class Metadata(BaseModel):
    """The JSON document of a checkpoint. What is not named here is kept for cards and is not looked at."""

    model_config = ConfigDict(extra="allow", frozen=True)

    format: int
    title: str = ""
    method: MethodConfig
    preprocessing: Preprocessing
    calibration: Calibration = Calibration()
    outline_quality: QualityModel | None = None
    patch: tuple[Annotated[int, Field(ge=1, le=100_000)], ...] = ()
    unvalidated: tuple[str, ...] = ()
    training: Training = Training()

    @field_validator("preprocessing")
    @classmethod
    def _usable(cls, value: Preprocessing) -> Preprocessing:
        if not value.planes:
            raise ValueError("planes is empty")
        if not all(map(math.isfinite, (value.low, value.high, value.pixel_mm, value.min_slice_mm))):
            raise ValueError("a number is not finite")
        if min(value.pixel_mm, value.min_slice_mm) < _FINEST_MM:
            raise ValueError(f"pixels and slices are finer than {_FINEST_MM} mm")
        return value

    @field_validator("calibration")
    @classmethod
    def _finite(cls, value: Calibration) -> Calibration:
        if not all(abs(offset) <= _LARGEST_OFFSET for offset in value.offsets.values()):  # NaN is not, either
            raise ValueError("an offset is not a log-odds value")
        return value

    @field_validator("unvalidated")
    @classmethod
    def _structures(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            try:
                structure(name)
            except SpineSegAIError as error:
                raise ValueError(error.message) from None
        return value

    @model_validator(mode="after")
    def _patch_fits(self) -> Metadata:
        if self.patch and (len(self.patch) != self.method.dims or math.prod(self.patch) > _LARGEST_PATCH):
            raise ValueError(f"a patch of {' × '.join(map(str, self.patch))} does not go with {self.method.dims}D")
        return self


_LARGEST_OFFSET = 50.0  # beyond, a probability is 0 or 1 in single precision


def read_metadata(info: CheckpointInfo) -> Metadata:
    """A checkpoint's description.

    Raises:
        CheckpointError: it is not valid; says what is wrong.
    """
    try:
        return Metadata.model_validate({**info.metadata, "method": method_config(info)})
    except ValidationError as error:
        raise not_valid(info, problems(error)) from None
