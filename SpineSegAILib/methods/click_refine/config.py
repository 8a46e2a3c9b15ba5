"""Configuration of the network that corrects by clicks; pydantic only, no torch."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from ..config import MethodConfig


class ClickRefineConfig(MethodConfig):
    """A network over a few slices around the clicks, of fixed pixel size and distance (our design).

    What is fed back is as in interactive segmentation since RITM (Sofiiuk et al., Reviving iterative training with mask
    guidance, ICIP 2022): the mask so far, and maps of the clicks; the neighbors' masks and the kind of structure are
    what a program knows that names what it segments.
    """

    dims: int = Field(3, ge=3, le=3, description="a few slices")
    backbone: Literal["unet", "resenc"] = Field(
        "unet",
        description="network: a light U-Net; resenc: the finer resolutions of the default method's, whose shipped "
        "weights fit it, and mixing between slices",
    )
    widths: tuple[int, ...] = Field(
        (32, 64, 96),
        min_length=2,
        description="channels by resolution; for the U-Net, from pixels of twice the size on",
    )
    blocks: tuple[int, ...] = Field((), description="resenc: residual blocks per resolution; two each where empty")
    window: tuple[int, int, int] = Field((9, 96, 96), description="slices, rows and columns that it sees")
    pixel_mm: float = Field(1.0, gt=0, description="size of its pixels")
    slice_mm: float = Field(4.0, gt=0, description="distance of its slices, whatever that of the image's")
    rounds: int = Field(4, ge=1, description="training: clicks on a sample at most, the later ones on its own answers")

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "small": {"widths": (16, 32, 64)},
        "slices": {
            "backbone": "resenc",
            "widths": (16, 32, 64, 128),
            "blocks": (1, 2, 2, 2),
            "window": (11, 80, 80),
        },
        "tiny": {"widths": (6, 8), "window": (5, 32, 32)},
    }

    @model_validator(mode="after")
    def _fits(self) -> ClickRefineConfig:
        if any(side % self.divisor for side in self.window[1:]):
            raise ValueError(f"rows and columns of the window must be multiples of {self.divisor}")
        if self.blocks and len(self.blocks) != len(self.widths):
            raise ValueError("widths and blocks must have the same length")
        if self.window[0] % 2 == 0:
            raise ValueError("the number of slices must be odd: the click lies in the middle one")
        return self

    @property
    def divisor(self) -> int:
        """Of the window's rows and columns."""
        return 2 ** (len(self.widths) - (self.backbone == "resenc"))

    @property
    def spacing(self) -> tuple[float, float, float]:
        """mm along slices, rows and columns."""
        return self.slice_mm, self.pixel_mm, self.pixel_mm

    @property
    def recipe(self) -> dict[str, Any]:
        """Settings of a training run."""
        return {
            "data": {"patch": self.window},
            "preprocessing": {"pixel_mm": self.pixel_mm},
            "optimization": {"batch": 8, "learning_rate": 2e-3, "workers": 0},
        }


CONFIG = ClickRefineConfig
