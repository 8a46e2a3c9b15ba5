"""What a synthetic lumbar spine looks like: its specification, and a random one."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...anatomy import Structure, level_chain

Contrast = Literal["t1", "t2", "fat-suppressed", "water", "ct", "random"]
Variant = Literal["L6", "T13", "L4-count"]

TISSUES: dict[str, dict[str, float]] = {
    "t2": {
        "air": 0.01, "fat": 0.70, "muscle": 0.17, "marrow": 0.36, "cortex": 0.06, "nucleus": 0.62, "annulus": 0.13,
        "csf": 1.00, "cord": 0.45, "ligament": 0.07, "vessel": 0.06, "organ": 0.32, "vein": 0.65,
    },
    "t1": {
        "air": 0.01, "fat": 0.95, "muscle": 0.30, "marrow": 0.52, "cortex": 0.08, "nucleus": 0.33, "annulus": 0.26,
        "csf": 0.15, "cord": 0.36, "ligament": 0.08, "vessel": 0.10, "organ": 0.36, "vein": 0.30,
    },
    "fat-suppressed": {
        "air": 0.01, "fat": 0.13, "muscle": 0.25, "marrow": 0.22, "cortex": 0.08, "nucleus": 0.62, "annulus": 0.14,
        "csf": 1.00, "cord": 0.45, "ligament": 0.07, "vessel": 0.12, "organ": 0.35, "vein": 0.55,
    },
    "water": {
        "air": 0.02, "fat": 0.06, "muscle": 0.55, "marrow": 0.42, "cortex": 0.20, "nucleus": 0.85, "annulus": 0.55,
        "csf": 0.95, "cord": 0.65, "ligament": 0.20, "vessel": 0.50, "organ": 0.45, "vein": 0.75,
    },
    "ct": {
        "air": -1000.0, "fat": -100.0, "muscle": 55.0, "marrow": 170.0, "cortex": 480.0, "nucleus": 85.0,
        "annulus": 100.0, "csf": 12.0, "cord": 38.0, "ligament": 60.0, "vessel": 120.0, "organ": 45.0, "vein": 60.0,
    },
}  # fmt: skip
"""Typical intensities: relative to the brightest tissue for MR, Hounsfield units for CT."""
TISSUES["random"] = TISSUES["t2"]


class PhantomSpec(BaseModel):
    """What a synthetic image shows. Lengths in mm, angles in degrees."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    top: str = Field("T11", description="Highest level in view.")
    bottom: str = Field("S1", description="Lowest level in view.")
    margin_top_mm: float = Field(6.0, description="Room above the highest level; negative cuts it.")
    margin_bottom_mm: float = Field(25.0, description="Room below the lowest level; negative cuts it.")
    width_mm: float | None = Field(
        None, gt=40, description="Field of view from front to back; as high as wide if None."
    )
    spine_position: float = Field(0.5, ge=0.2, le=0.8, description="Where the column lies between front (0) and back.")
    variant: Variant | None = Field(None, description="Numbering variant: six or four lumbar, thirteen thoracic.")
    size: float = Field(1.0, gt=0.5, lt=1.6, description="Scale of the whole spine.")
    lordosis_deg: float = Field(48.0, ge=0, le=90, description="Between the upper endplates of L1 and S1.")
    sacral_slope_deg: float = Field(38.0, ge=0, le=75, description="Of the upper endplate of S1 to the horizontal.")
    kyphosis_deg: float = Field(3.0, description="Per level above L1.")
    scoliosis_deg: float = Field(0.0, ge=0, le=50, description="Cobb angle of a lumbar curve.")
    listhesis: dict[str, float] = Field(default_factory=dict, description="Level → mm it has slipped forwards.")
    wedge: dict[str, float] = Field(default_factory=dict, description="Level → share of anterior height lost.")
    biconcave: dict[str, float] = Field(default_factory=dict, description="Level → share of middle height lost.")
    degenerated: dict[str, float] = Field(
        default_factory=dict, description="Level above the disc → 0…1: lower, darker and bulging."
    )
    stenosis: dict[str, float] = Field(
        default_factory=dict, description="Level above the disc → share of the canal's depth lost."
    )
    canal_mm: float = Field(15.0, ge=8, le=25, description="Depth (AP) of the thecal sac.")
    conus: str = Field("L1", description="Level at which the cord ends.")
    contrast: Contrast = "t2"
    contrast_jitter: float = Field(0.1, ge=0, le=1, description="Relative spread of tissue intensities.")
    slices: int = Field(15, ge=1, le=400)
    slice_mm: float = Field(4.0, ge=0.1, le=100)
    pixel_mm: float = Field(1.0, ge=0.1, le=100)
    noise: float = Field(0.02, ge=0, description="Standard deviation, relative to the brightest tissue.")
    bias: float = Field(0.15, ge=0, description="Strength of the smooth intensity field.")
    coil_mm: float | None = Field(
        150.0, gt=20, description="Depth at which a surface coil has lost 63 %; None: body coil."
    )
    blur_mm: float = Field(0.5, ge=0, description="In-plane standard deviation of the point spread.")
    orientation: str = Field("PIR", description="Axis code of the stored image, as for SimpleITK.DICOMOrient.")
    oblique_deg: tuple[float, float, float] = Field((0.0, 0.0, 0.0), description="Rotation of the grid about L, P, S.")

    @model_validator(mode="after")
    def _levels(self) -> PhantomSpec:
        names = [s.name for s in self.chain()]
        for name in (self.top, self.bottom, *self.listhesis, *self.wedge, *self.biconcave):
            if name not in names:
                raise ValueError(f"{name} is not a level of this spine ({names[0]} to {names[-1]})")
        if names.index(self.top) > names.index(self.bottom):
            raise ValueError(f"top ({self.top}) lies below bottom ({self.bottom})")
        if names.index(self.top) < 5:
            raise ValueError("synthetic spines have no neck: top must be C6 or lower")
        return self

    def chain(self) -> list[Structure]:
        """Structures C1 … S1 of this spine, with its variant."""
        present = {"L6": (25,), "T13": (28,)}.get(self.variant or "", ())
        chain = level_chain(present)
        return [s for s in chain if s.name != "L5"] if self.variant == "L4-count" else chain


def pick(table: tuple[float, ...], rank: int) -> float:
    return table[min(max(rank, 0), len(table) - 1)]


def random_spec(rng: np.random.Generator, **overrides: object) -> PhantomSpec:
    """A spec drawn wider than patients vary, since range matters more than likelihood in training.

    Args:
        overrides: fields that are not drawn.
    """

    def u(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    drawn_variant = (None, "L6", "T13")[rng.choice(3, p=[0.85, 0.09, 0.06])]
    variant = overrides.get("variant", drawn_variant)
    tops = ["T8", "T9", "T10", "T11", "T12", "L1", "L2", "L3"]
    top = str(rng.choice(tops, p=[0.06, 0.16, 0.24, 0.22, 0.15, 0.09, 0.05, 0.03]))
    bottom = str(rng.choice(["S1", "L5", "L4", "L3"], p=[0.86, 0.07, 0.04, 0.03])) if top[0] == "T" else "S1"
    names = [s.name for s in PhantomSpec.model_validate({"variant": variant}).chain()]
    visible = names[names.index(top) : names.index(bottom) + 1]

    def some(chance: float, low: float, high: float, among: list[str]) -> dict[str, float]:
        return {name: u(low, high) for name in among if rng.random() < chance}

    above = [name for name in visible if name != "S1"]
    lordosis = float(np.clip(rng.normal(47, 13), 15, 80))
    contrast = str(rng.choice(["t2", "t1", "fat-suppressed", "water", "random"], p=[0.36, 0.2, 0.14, 0.12, 0.18]))
    thin = rng.random() < 0.1
    slice_mm = u(0.9, 2.0) if thin else u(2.0, 5.0)
    drawn: dict[str, object] = {
        "top": top,
        "bottom": bottom,
        "margin_top_mm": u(-14, 25),
        "margin_bottom_mm": u(-8, 90) if bottom == "S1" else u(-12, 25),
        "spine_position": u(0.35, 0.65),
        "variant": variant,
        "size": float(np.clip(rng.normal(1.0, 0.09), 0.78, 1.22)),
        "lordosis_deg": lordosis,
        "sacral_slope_deg": float(np.clip(0.72 * lordosis + rng.normal(4, 7), 8, 65)),
        "kyphosis_deg": u(0.0, 5.0),
        "scoliosis_deg": u(8, 35) if rng.random() < 0.2 else u(0, 5),
        "listhesis": some(0.04, -4, 12, [n for n in above if n[0] == "L"]),
        "wedge": some(0.04, 0.15, 0.55, above),
        "biconcave": some(0.04, 0.15, 0.5, above),
        "degenerated": some(u(0, 0.8), 0.2, 1.0, above),
        "stenosis": some(0.12, 0.15, 0.7, above),
        "canal_mm": float(np.clip(rng.normal(14.5, 2.0), 10, 20)),
        "conus": str(rng.choice(["T12", "L1", "L2"])),
        "contrast": contrast,
        "contrast_jitter": u(0.05, 0.3),
        "slices": int(rng.integers(60, 90) * 1.0 / slice_mm) if not thin else int(70 / slice_mm),
        "slice_mm": slice_mm,
        "pixel_mm": u(0.6, 1.4),
        "noise": float(rng.uniform(0.003, 0.07)),
        "bias": u(0, 0.4),
        "coil_mm": u(60, 220) if rng.random() < 0.6 else None,
        "blur_mm": u(0.3, 1.3),
        "orientation": str(rng.choice(["PIR", "PIR", "ASR", "LPS", "RAS"])),
        "oblique_deg": tuple(float(x) for x in np.clip(rng.normal(0, 4, 3), -12, 12)),
    }
    return PhantomSpec.model_validate({**drawn, **overrides})


SAMPLE_SPEC = PhantomSpec(
    top="T11",
    bottom="S1",
    margin_top_mm=8,
    margin_bottom_mm=30,
    width_mm=230,
    spine_position=0.52,
    degenerated={"L4": 0.4, "L5": 0.8},
    slices=15,
    slice_mm=4.0,
    pixel_mm=1.0,
    noise=0.015,
)
"""The synthetic image that ships with the project."""
