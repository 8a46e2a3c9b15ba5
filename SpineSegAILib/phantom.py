"""Lumbar spine phantoms: parametric volumes in which every structure is known.

They feed the tests, the sample that ships with the project, and training, where they teach what no real mask shows. A
phantom is a chain of vertebrae, each a rigid body with its own frame, stacked from the sacrum upwards with discs
between their endplates; everything else (canal, posterior elements, muscles, fat, organs) is placed around that chain.
Shapes are signed distances (mm, negative inside) painted in order, from far to near.

Array axes and local frames have the canonical order of `imaging`: (right, down, posterior), all in mm.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import SimpleITK as sitk
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import gaussian_filter

from .anatomy import CANAL_ID, SACRUM_ID, Structure, disc_below, level_chain
from .imaging import SAGITTAL_DIRECTION, Geometry

Contrast = Literal["t1", "t2", "fat-suppressed", "water", "ct", "random"]
Variant = Literal["L6", "T13", "L4-count"]

# From the last lumbar vertebra (rank 0) upwards; the last entry is kept above it. Typical adult sizes in mm: depth (AP)
# and width at the waist's ends, mean height; after the usual morphometric surveys of the thoracolumbar spine.
_DEPTH = (35.0, 35.0, 34.5, 33.5, 32.5, 31.5, 30.5, 29.5, 28.5, 27.5, 26.5, 25.5, 24.5)
_WIDTH = (50.0, 48.0, 46.0, 44.0, 42.0, 40.0, 38.0, 35.0, 33.0, 31.5, 30.0, 29.0, 28.0)
_HEIGHT = (26.5, 27.0, 27.0, 27.0, 26.0, 24.5, 23.0, 22.0, 21.0, 20.5, 20.0, 19.5, 19.0)
_DISC_HEIGHT = (10.0, 11.0, 10.5, 9.5, 8.5, 7.0, 6.0, 5.5, 4.5, 4.2, 4.0, 4.0, 4.0)  # of the disc below
# Share of the lordosis in each disc and in each body, from the lowest one up; the five pairs sum to one.
_DISC_SHARE = (0.24, 0.18, 0.15, 0.11, 0.09)
_BODY_SHARE = (0.16, 0.07, 0.03, 0.0, -0.03)
_BODY_SIDE = 0.8  # anterior and posterior heights are taken at this share of the half depth, inside the rounded corners

_TISSUES: dict[str, dict[str, float]] = {
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
_TISSUES["random"] = _TISSUES["t2"]


class PhantomSpec(BaseModel):
    """What a phantom shows. Lengths in mm, angles in degrees."""

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
    slice_mm: float = Field(4.0, gt=0)
    pixel_mm: float = Field(1.0, gt=0)
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
            raise ValueError("the phantom has no neck: top must be C6 or lower")
        return self

    def chain(self) -> list[Structure]:
        """Structures C1 … S1 of this spine, with its variant."""
        present = {"L6": (25,), "T13": (28,)}.get(self.variant or "", ())
        chain = level_chain(present)
        return [s for s in chain if s.name != "L5"] if self.variant == "L4-count" else chain


@dataclass(frozen=True)
class Phantom:
    """A generated case.

    Attributes:
        image: int16; MR in arbitrary units, CT in HU.
        labels: int16, same geometry; structure ids, vertebral *bodies*; every level in view is labelled.
        keypoints: structure id → centre (LPS, mm), for vertebrae and discs whose centre is in view.
        truth: measurements of the model itself, in mm and degrees; see `make_phantom`.
        spec: what it was made from.
    """

    image: sitk.Image
    labels: sitk.Image
    keypoints: dict[int, tuple[float, float, float]]
    truth: dict
    spec: PhantomSpec


# --- the chain of vertebrae ------------------------------------------------------------------------------------------


@dataclass
class _Body:
    """A vertebral (or sacral) body. Local axes (v, w, u): right, down, posterior; the origin is the body's centre."""

    name: str
    id: int | None
    center: np.ndarray
    frame: np.ndarray  # (3, 3), rows are v, w, u in (right, down, posterior)
    depth: float
    width: float
    anterior: float
    posterior: float
    concavity: float
    waist: float
    taper: float = 0.0  # share of depth and width lost from the upper to the lower end

    @property
    def height(self) -> float:
        return (self.anterior + self.posterior) / 2

    def _slope(self) -> float:
        return (self.anterior - self.posterior) / (2 * self.depth)

    def plates(self, v: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """w of the upper and the lower endplate at (v, u): tilted planes with a dome."""
        dome = self.concavity * np.maximum(0.0, 1.0 - (2 * u / self.depth) ** 2 - (2 * v / self.width) ** 2)
        edge = self.height / 2 - self._slope() * u - dome
        return -edge, edge

    def heights(self) -> tuple[float, float, float]:
        """Anterior, middle and posterior height in the mid-sagittal plane."""
        u = np.array([-_BODY_SIDE, 0.0, _BODY_SIDE]) * self.depth / 2
        upper, lower = self.plates(np.zeros(3), u)
        return tuple(float(h) for h in lower - upper)  # type: ignore[return-value]

    def tilt(self, upper: bool) -> float:
        """Sagittal angle (radians) of an endplate; positive where its front points down."""
        angle = np.arctan2(self.frame[1, 2], self.frame[1, 1])
        return float(angle - np.arctan(self._slope()) if upper else angle + np.arctan(self._slope()))

    def local(self, points: tuple[np.ndarray, np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(v, w, u) of points given as broadcastable (right, down, posterior)."""
        r, c, a = (p - o for p, o in zip(points, self.center, strict=True))
        return tuple(row[0] * r + row[1] * c + row[2] * a for row in self.frame)  # type: ignore[return-value]

    def at(self, v: float, w: float, u: float) -> np.ndarray:
        """Position of a local point."""
        return self.center + np.array([v, w, u]) @ self.frame

    def distance(self, v: np.ndarray, w: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Signed distance to the body's surface; corners are rounded."""
        waist = 1.0 - self.waist * np.maximum(0.0, 1.0 - (2 * w / self.height) ** 2)
        if self.taper:
            waist = waist * (1.0 - self.taper * np.clip(w / self.height + 0.5, 0.0, 1.0))
        side = _superellipse(v / waist, u / waist, self.width / 2, self.depth / 2, 2.5)
        upper, lower = self.plates(v, u)
        return _rounded(side, np.maximum(w - lower, upper - w), 2.6)


def _superellipse(x: np.ndarray, y: np.ndarray, rx: float, ry: float, power: float) -> np.ndarray:
    """Signed radial distance to a superellipse with half axes rx, ry."""
    f = (np.abs(x / rx) ** power + np.abs(y / ry) ** power) ** (1.0 / power)
    return np.hypot(x, y) * (1.0 - 1.0 / np.maximum(f, 1e-3))


def _rounded(a: np.ndarray, b: np.ndarray, radius: float) -> np.ndarray:
    """Intersection of two shapes with a rounded edge."""
    a, b = a + radius, b + radius
    return np.minimum(np.maximum(a, b), 0.0) + np.hypot(np.maximum(a, 0.0), np.maximum(b, 0.0)) - radius


def _pick(table: tuple[float, ...], rank: int) -> float:
    return table[min(max(rank, 0), len(table) - 1)]


@dataclass
class _Disc:
    upper: _Body
    lower: _Body
    id: int | None
    degeneration: float
    bulge: float

    @property
    def center(self) -> np.ndarray:
        low, high = self.upper, self.lower
        return (low.at(0, low.height / 2, 0) + high.at(0, -high.height / 2, 0)) / 2

    @property
    def frame(self) -> np.ndarray:
        mean = self.upper.frame + self.lower.frame
        u, _, vt = np.linalg.svd(mean)
        return u @ vt

    def height(self) -> float:
        """Between the middles of the two endplates, square to the disc: a slip makes no disc higher."""
        up = self.upper.at(0, float(self.upper.plates(np.zeros(1), np.zeros(1))[1][0]), 0)
        low = self.lower.at(0, float(self.lower.plates(np.zeros(1), np.zeros(1))[0][0]), 0)
        return float(abs((up - low) @ self.frame[1]))


def _build_chain(spec: PhantomSpec, rng: np.random.Generator) -> tuple[list[_Body], list[_Disc]]:
    """Bodies from S5 upwards to four levels above the highest one in view, and the discs between."""
    chain = spec.chain()
    names = [s.name for s in chain]
    first = max(0, names.index(spec.top) - 4)
    levels = list(reversed(chain[first:-1]))  # from the last lumbar vertebra upwards
    size = spec.size
    lumbar = [s.name for s in levels if s.name.startswith("L")]
    shares = [(_pick(_DISC_SHARE, i), _pick(_BODY_SHARE, i)) for i in range(len(lumbar))]
    total = sum(d + b for d, b in shares)

    def jitter(sd: float) -> float:
        return float(np.clip(1.0 + sd * rng.standard_normal(), 1 - 2.5 * sd, 1 + 2.5 * sd))

    concavity, waist = rng.uniform(0.6, 2.2), rng.uniform(0.05, 0.14)

    def body(name: str, sid: int | None, rank: int, wedge_deg: float, scale: float = 1.0) -> _Body:
        depth = _pick(_DEPTH, rank) * size * scale * jitter(0.03)
        height = _pick(_HEIGHT, rank) * size * scale * jitter(0.03)
        difference = 2 * depth * np.tan(np.radians(wedge_deg) / 2)
        anterior, posterior = height + difference / 2, height - difference / 2
        lost = spec.wedge.get(name, 0.0)
        anterior = anterior if not lost else posterior * (1 - lost)
        dome = spec.biconcave.get(name, 0.0) * (anterior + posterior) / 4
        return _Body(
            name, sid, np.zeros(3), np.eye(3), depth, _pick(_WIDTH, rank) * size * scale * jitter(0.03),
            anterior, posterior, max(dome, concavity * jitter(0.2)), waist,
        )  # fmt: skip

    # The scoliotic curve: lateral position over the height above S1, one half wave over the lumbar spine.
    wave = rng.uniform(220, 320) * size
    amplitude = np.tan(np.radians(spec.scoliosis_deg) / 2) * wave / np.pi * rng.choice([-1.0, 1.0])
    rotation = rng.uniform(0.0, 0.6) * np.radians(spec.scoliosis_deg) * np.sign(amplitude)

    def frame(theta: float, down: float) -> np.ndarray:
        phase = np.pi * np.clip(-down / wave, -0.05, 2.0)
        lateral = -np.arctan(amplitude * np.pi / wave * np.cos(phase))  # slope of right over down
        axial = rotation * np.sin(phase)
        w = np.array([np.sin(lateral), np.cos(lateral) * np.cos(theta), np.cos(lateral) * np.sin(theta)])
        u = np.array([0.0, -np.sin(theta), np.cos(theta)])
        v = np.cross(w, u)
        v, u = np.cos(axial) * v + np.sin(axial) * u, np.cos(axial) * u - np.sin(axial) * v
        if v[0] < 0:
            v = -v
        return np.stack([v, w, u])

    slope = np.radians(spec.sacral_slope_deg)
    s1 = body("S1", SACRUM_ID, 0, 14.0 * jitter(0.3))
    s1.anterior, s1.posterior, s1.taper = s1.anterior * 1.12, s1.posterior * 1.05, 0.28 * jitter(0.3)
    theta = slope + np.arctan(s1._slope())
    s1.frame, s1.center = frame(theta, 0.0), np.zeros(3)
    s1.center = -s1.at(0, -s1.height / 2, 0)  # the middle of its upper endplate is the origin

    # Downwards: S2 … S5 get smaller and turn forwards.
    bodies, lower = [s1], s1
    discs: list[_Disc] = []
    turn = np.radians(rng.uniform(6, 18))
    for index in range(4):
        nxt = body(f"S{index + 2}", None, 0, 0.0, scale=(0.74, 0.6, 0.48, 0.4)[index])
        nxt.taper = 0.2
        theta = theta - turn * (0.3 if index == 0 else 1.0)
        nxt.frame = frame(theta, 0.0)
        gap = 3.0 * size if index == 0 else 1.5
        edge = lower.at(0, lower.height / 2 + gap, -0.1 * lower.depth * (index == 0))
        nxt.center = edge + nxt.height / 2 * nxt.frame[1]
        discs.append(_Disc(lower, nxt, None, 0.7, -2.0))
        bodies.append(nxt)
        lower = nxt

    # Upwards.
    lower = s1
    for rank, level in enumerate(levels):
        if level.name in lumbar:
            share_disc, share_body = (s / total * spec.lordosis_deg for s in shares[rank])
        else:
            share_disc, share_body = -0.5 * spec.kyphosis_deg, -0.5 * spec.kyphosis_deg
        new = body(level.name, level.id, rank, share_body)
        worn = spec.degenerated.get(level.name, 0.0)
        height = _pick(_DISC_HEIGHT, rank) * size * jitter(0.07) * (1 - 0.55 * worn)
        height -= 1.2 * concavity * (1 - 0.55 * worn)  # the table is about the middle, between the domes
        wedge = np.radians(share_disc) * (1 - 0.5 * worn)
        plate = lower.tilt(upper=True)
        below = plate - wedge  # sagittal angle of the new body's lower endplate
        angle = below - np.arctan(new._slope())
        start = lower.at(0, -lower.height / 2, 0)
        middle = frame((plate + below) / 2, start[1])
        bottom = start - height * middle[1] - spec.listhesis.get(level.name, 0.0) * middle[2]
        new.frame = frame(angle, bottom[1] - new.height / 2)
        new.center = bottom - new.height / 2 * new.frame[1]
        discs.append(_Disc(new, lower, disc_below(level).id, worn, rng.uniform(-0.5, 1.0) + 2.5 * worn))
        bodies.append(new)
        lower = new
    return bodies, discs


# --- painting --------------------------------------------------------------------------------------------------------


@dataclass
class _Canvas:
    """Image and labels on a grid with axes (right, down, posterior), to paint on."""

    axes: tuple[np.ndarray, np.ndarray, np.ndarray]
    soft: float
    image: np.ndarray = field(init=False)
    labels: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        shape = tuple(len(a) for a in self.axes)
        self.image = np.zeros(shape, np.float32)
        self.labels = np.zeros(shape, np.int16)

    def box(self, center: np.ndarray, reach: tuple[float, float, float] | float) -> tuple[slice, ...] | None:
        """Index ranges within reach (mm) of a point; None if out of view."""
        ranges = []
        for axis, c, mm in zip(self.axes, center, np.broadcast_to(reach, 3), strict=True):
            start, stop = np.searchsorted(axis, (c - mm, c + mm))
            if start >= stop:
                return None
            ranges.append(slice(int(start), int(stop)))
        return tuple(ranges)

    def points(self, box: tuple[slice, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Broadcastable coordinates (right, down, posterior) of a box."""
        r, c, a = (axis[s].astype(np.float32) for axis, s in zip(self.axes, box, strict=True))
        return r[:, None, None], c[None, :, None], a[None, None, :]

    def paint(
        self,
        box: tuple[slice, ...],
        distance: np.ndarray,
        value: float | np.ndarray,
        label: int | None = None,
        soft: float | None = None,
        strength: float = 1.0,
    ) -> None:
        """Cover the inside of a shape, with an edge as soft as a pixel; label where the distance is negative."""
        cover = np.clip(0.5 - distance / (soft or self.soft), 0.0, 1.0)
        part = self.image[box]
        part += strength * cover * (value - part)
        if label is not None:
            self.labels[box][distance < 0] = label

    def capsule(self, start: np.ndarray, end: np.ndarray, radius: float, shell: float, core: float) -> None:
        """A bone with round ends: cortex around marrow."""
        box = self.box((start + end) / 2, np.abs(end - start) / 2 + radius + 2)
        if box is None:
            return
        r, c, a = (p - o for p, o in zip(self.points(box), start, strict=True))
        line = end - start
        along = np.clip((r * line[0] + c * line[1] + a * line[2]) / max(float(line @ line), 1e-6), 0, 1)
        distance = (
            np.sqrt((r - along * line[0]) ** 2 + (c - along * line[1]) ** 2 + (a - along * line[2]) ** 2) - radius
        )
        self.paint(box, distance, shell)
        self.paint(box, distance + 1.2, core)


def _smooth_noise(
    axes: tuple[np.ndarray, np.ndarray, np.ndarray], scale_mm: tuple[float, float, float], rng: np.random.Generator
) -> np.ndarray:
    """Standard normal field with the given correlation lengths: a coarse random grid, interpolated along each axis."""
    weights = []
    for axis, mm in zip(axes, scale_mm, strict=True):
        position = (axis - axis[0]) / mm + rng.random()
        nodes = np.arange(int(position[-1]) + 3) - 0.5
        t = np.clip(1.0 - np.abs(position[:, None] - nodes[None, :]) / 1.5, 0.0, 1.0)
        w = t * t * (3 - 2 * t)
        weights.append((w / np.sqrt((w * w).sum(axis=1, keepdims=True))).astype(np.float32))
    noise = rng.standard_normal([w.shape[1] for w in weights]).astype(np.float32)
    noise = np.tensordot(weights[0], noise, axes=1)
    return np.matmul(np.matmul(weights[1], noise), weights[2].T)


def _tissues(spec: PhantomSpec, rng: np.random.Generator) -> dict[str, float]:
    """Intensities of the tissues in this phantom."""
    base = _TISSUES[spec.contrast]
    if spec.contrast == "random":
        values = {name: float(rng.uniform(0.05, 1.0)) for name in base}
        values["air"] = float(rng.uniform(0.0, 0.05))
        if rng.random() < 0.7:  # bone edges are dark in nearly every sequence
            values["cortex"] = values["ligament"] = float(rng.uniform(0.02, 0.15))
        return values
    if spec.contrast == "ct":
        return {name: value + spec.contrast_jitter * 60 * rng.standard_normal() for name, value in base.items()}
    return {name: value * float(np.exp(spec.contrast_jitter * rng.standard_normal())) for name, value in base.items()}


@dataclass
class _Column:
    """The canal as a function of the height: 1D arrays over the rows of the grid."""

    posterior: np.ndarray
    right: np.ndarray
    cosine: np.ndarray  # of the canal's slope: turns horizontal into perpendicular distance
    depth: np.ndarray  # half
    width: np.ndarray  # half

    def box(self, canvas: _Canvas) -> tuple[slice, ...]:
        """Where the canal is, with room for the fat around it."""
        room = float(max(self.depth.max(), self.width.max())) + 6.0
        slices, _, columns = canvas.axes
        ranges = [
            slice(*np.searchsorted(axis, (line.min() - room, line.max() + room)).tolist())
            for axis, line in ((slices, self.right), (columns, self.posterior))
        ]
        return ranges[0], slice(None), ranges[1]

    def distance(
        self, points: tuple[np.ndarray, ...], grow: float = 0.0, shift: float = 0.0, scale: float = 1.0
    ) -> np.ndarray:
        """Signed distance of points (all rows) to the sac, moved back by `shift`, larger by `grow`."""
        r, _, a = points
        row = (None, slice(None), None)
        y = (a - self.posterior[row]) * self.cosine[row] - shift
        x = r - self.right[row]
        ry = np.maximum(self.depth[row] * scale + grow, 0.05)
        rx = np.maximum(self.width[row] * scale + grow, 0.05)
        f = np.sqrt((x / rx) ** 2 + (y / ry) ** 2)
        return np.hypot(x, y) * (1.0 - 1.0 / np.maximum(f, 1e-2))


def _column(spec: PhantomSpec, bodies: list[_Body], discs: list[_Disc], rows: np.ndarray) -> tuple[_Column, float]:
    """The thecal sac behind bodies and discs; ends behind S2. Also its half depth without stenosis."""
    half = spec.canal_mm * spec.size / 2
    knots: list[tuple[float, float, float, float, float]] = []  # down, posterior, right, half depth, half width
    for b in bodies:
        taper = {"S1": 0.75, "S2": 0.45, "S3": 0.0, "S4": 0.0, "S5": 0.0}.get(b.name, 1.0)
        gap = 1.2 if b.name[0] != "S" else 3.0
        middle = b.at(0, 0, b.depth / 2 * (1 - b.waist * 0.7) + gap + half * max(taper, 0.3))
        knots.append((middle[1], middle[2], middle[0], half * taper, half * taper * 1.25))
    for d in discs:
        if d.id is None:
            continue
        lost = spec.stenosis.get(d.upper.name, 0.0)
        depth = (d.upper.depth + d.lower.depth) / 4
        gap = 1.5 if d.lower.name != "S1" else 3.0
        middle = d.center + (depth + gap + half * (1 + 0.5 * lost)) * d.frame[2]
        knots.append((middle[1], middle[2], middle[0], half * 0.95 * (1 - lost), half * 1.15 * (1 - 0.5 * lost)))
    knots.sort()
    table = np.array(knots)
    keep = np.concatenate([[True], np.diff(table[:, 0]) > 2.0])
    table = table[keep]
    down = np.clip(rows, table[0, 0], table[-1, 0])
    values = [PchipInterpolator(table[:, 0], table[:, i])(down) for i in range(1, 5)]
    posterior, right = (gaussian_filter(v, 4.0 / max(1e-6, rows[1] - rows[0]), mode="nearest") for v in values[:2])
    slope = np.gradient(posterior, rows)
    cosine = 1.0 / np.sqrt(1.0 + slope**2)
    arrays = (posterior, right, cosine, np.maximum(values[2], 0.0), np.maximum(values[3], 0.0))
    return _Column(*(a.astype(np.float32) for a in arrays)), half


def _paint_surroundings(
    canvas: _Canvas, spec: PhantomSpec, column: _Column, t: dict[str, float], rng: np.random.Generator
) -> np.ndarray:
    """Air, fat, muscles, organs and great vessels. Returns the depth below the skin of the back (mm)."""
    box = (slice(None),) * 3
    r, _, a = canvas.points(box)
    axes = canvas.axes
    back = column.posterior
    mean_back = float(np.median(back))
    skin = mean_back + 0.55 * (back - mean_back)
    fat = rng.uniform(3, 16) * np.exp(rng.uniform(-0.1, 1.0) * (axes[1] - axes[1][0]) / 300)
    skin = np.maximum(gaussian_filter(skin, 25 / spec.pixel_mm, mode="nearest"), back + 25)
    skin, fat = (x.astype(np.float32) for x in (skin + rng.uniform(38, 50) * spec.size + fat, fat))
    groove = 6.0 * np.exp(-((r / 15.0) ** 2))
    depth = skin[None, :, None] - groove - (r / rng.uniform(9, 16)) ** 2 - a  # > 0 inside the body
    belly = a - (mean_back - rng.uniform(110, 190) * spec.size) - 12 * _smooth_noise(axes, (80, 60, 500), rng)
    coarse, streaks = _smooth_noise(axes, (14, 14, 14), rng), _smooth_noise(axes, (5, 30, 4), rng)

    # In front: organs, bowel and gas in fat; each tissue fills where a smooth field is high.
    spread = 120.0 if spec.contrast == "ct" else 0.35 * t["organ"]
    canvas.image[:] = t["fat"] + (t["organ"] - t["fat"]) * rng.uniform(0.1, 0.7) * (1 + 0.2 * coarse)
    for _ in range(4):
        size = tuple(rng.uniform((15, 14, 12), (50, 60, 40)))
        texture = 1 + rng.uniform(0.0, 0.15) * (streaks if rng.random() < 0.5 else coarse)
        value = t["air"] if rng.random() < 0.15 else t["organ"] + spread * rng.standard_normal()
        where = (rng.uniform(-0.3, 1.0) - _smooth_noise(axes, size, rng)) * min(size) / 3
        canvas.paint(box, where, (value if spec.contrast == "ct" else abs(value)) * texture, soft=2.0)

    # Beside and behind the column: muscle with fatty streaks.
    fatty = np.clip(rng.uniform(0.0, 0.5) + 0.25 * streaks + 0.12 * coarse, 0, 1) ** 2
    muscle = t["muscle"] + (t["fat"] - t["muscle"]) * fatty
    front = (column.posterior - 42 * spec.size)[None, :, None]
    psoas = np.hypot((np.abs(r - column.right[None, :, None]) - 38 * spec.size) / 1.0, (a - front - 14) / 1.3) - 21
    canvas.paint(box, np.minimum(psoas, front + 26 - a + 0 * r), muscle, soft=3.0)
    # Fat in front of the column and around the sacrum, below the muscles' origin.
    canvas.paint(box, np.abs(a - front + 1.0) - 6.0 + 0 * r, t["fat"], soft=5.0, strength=0.7)
    for side, calibre, shift in ((-1.0, 8.5, 13.0), (1.0, 10.0, 11.0)):  # aorta on the left, vena cava on the right
        x = column.right[None, :, None] + side * rng.uniform(7, 22)
        tube = np.hypot(r - x, (a - front + shift) * column.cosine[None, :, None]) - calibre * rng.uniform(0.8, 1.1)
        canvas.paint(box, tube, t["vessel"] * rng.uniform(0.6, 1.4))
    canvas.paint(box, belly - rng.uniform(5, 30) + 0 * r, t["fat"], soft=3.0)
    canvas.paint(box, depth - fat[None, :, None], t["fat"] * (1 + 0.08 * coarse), soft=2.5)
    canvas.paint(box, np.abs(depth - fat[None, :, None]) - 0.8, t["ligament"], strength=0.5)  # fascia
    canvas.paint(box, depth - 1.8, t["muscle"])  # skin
    canvas.paint(box, depth, t["air"])
    canvas.paint(box, belly, t["air"])
    # Ligaments and fat between the spinous processes.
    near = (column.posterior + column.depth + 6)[None, :, None]
    middle = np.abs(r - column.right[None, :, None]) - rng.uniform(3, 6)
    mixed = t["ligament"] + (t["fat"] - t["ligament"]) * np.clip(0.4 + 0.3 * coarse + 0.2 * streaks, 0, 1)
    canvas.paint(box, np.maximum(middle, np.maximum(near - a, a - near - 28 * spec.size)), mixed, soft=3.0)
    return depth


def _paint_posterior(
    canvas: _Canvas, spec: PhantomSpec, b: _Body, t: dict[str, float], marrow: float, half: float
) -> None:
    """Pedicles, laminae, articular, transverse and spinous processes of one vertebra."""
    s = spec.size * (0.85 if b.name[0] == "T" else 1.0)
    back = b.depth / 2
    roof = back + 2 * half + 5.0  # inner side of the laminae
    shell, h = t["cortex"], b.height
    apart = b.width * 0.27
    slant = 16.0 if b.name[0] == "T" else 3.0
    for side in (-1.0, 1.0):
        canvas.capsule(
            b.at(side * apart, -0.2 * h, back - 4), b.at(side * apart * 1.05, -0.18 * h, roof - 4), 5 * s, shell, marrow
        )
        canvas.capsule(
            b.at(side * apart * 1.15, -0.55 * h, roof - 5),
            b.at(side * apart * 1.1, -0.1 * h, roof),
            5 * s,
            shell,
            marrow,
        )
        canvas.capsule(
            b.at(side * apart, 0.0, roof), b.at(side * apart * 1.05, 0.55 * h, roof + 2), 5 * s, shell, marrow
        )
        canvas.capsule(b.at(side * apart, 0.05 * h, roof + 1), b.at(0, 0.3 * h, roof + 5), 3.6 * s, shell, marrow)
        canvas.capsule(
            b.at(side * apart * 1.2, -0.15 * h, back + 5),
            b.at(side * 38 * s, -0.15 * h, back + 10),
            4 * s,
            shell,
            marrow,
        )
        # The foramen under the pedicle: fat around the nerve root.
        foramen = b.at(side * apart * 1.1, 0.42 * h, back + 4)
        canvas.capsule(foramen, b.at(side * apart * 1.1, 0.75 * h, back + 5), 5 * s, t["fat"], t["fat"])
        root = b.at(side * apart * 1.1, 0.38 * h, back + 4)
        canvas.capsule(root, root, 2.2 * s, t["muscle"], t["cord"])
    # The spinous process: a plate in the middle plane that reaches back and down.
    reach = (24 if b.name[0] == "L" else 20) * spec.size
    box = canvas.box(b.at(0, 0.3 * h + slant / 2, roof + 3 + reach / 2), reach / 2 + 0.5 * h + slant)
    if box is not None:
        v, w, u = b.local(canvas.points(box))
        along = (u - roof - 3) / reach
        sag = w - (0.32 * h + slant * along)
        tall = (0.30 + 0.08 * np.clip(along, 0, 1)) * h
        thick = 3.0 * s * (1 + 0.6 * np.clip(along, 0, 1) ** 3)
        plate = _rounded(
            np.maximum(np.abs(v) - thick, np.abs(sag) - tall), np.abs(along - 0.5) * reach - reach / 2, 2.0
        )
        canvas.paint(box, plate, shell)
        canvas.paint(box, plate + 1.2, marrow)


def _paint_canal(
    canvas: _Canvas,
    spec: PhantomSpec,
    column: _Column,
    conus: float,
    t: dict[str, float],
    rng: np.random.Generator,
) -> None:
    """Thecal sac with cord, conus and nerve roots; `conus` is the height (down, mm) at which the cord ends."""
    box = column.box(canvas)
    axes = tuple(axis[part] for axis, part in zip(canvas.axes, box, strict=True))
    if min(map(len, axes)) == 0:
        return
    rows = canvas.axes[1]
    points = canvas.points(box)
    distance = column.distance(points)
    canvas.paint(box, distance - 0.9, t["ligament"])
    # Flow makes the fluid uneven.
    fluid = t["csf"] * (1 + rng.uniform(0, 0.12) * _smooth_noise(axes, (30, 25, 5), rng))
    canvas.paint(box, distance, fluid, CANAL_ID)
    roots = np.clip(0.6 * _smooth_noise(axes, (3, 40, 1.6), rng), 0, 1)
    below = 1 / (1 + np.exp(-(rows - conus) / 8.0))[None, :, None]
    inner = column.distance(points, grow=-1.0, shift=0.25 * spec.canal_mm / 2, scale=0.75)
    canvas.paint(box, inner, fluid + (t["cord"] - fluid) * np.maximum(roots, 0.25) * below, soft=2.0)
    thickness = np.clip((conus - rows) / 28.0, 0, 1) ** 0.7
    cord = replace(column, depth=3.6 * thickness, width=4.6 * thickness)
    behind = rng.uniform(-0.1, 0.25) * spec.canal_mm / 2
    canvas.paint(box, np.where(thickness[None, :, None] > 0.03, cord.distance(points, shift=behind), 9.0), t["cord"])


def _paint_disc(canvas: _Canvas, d: _Disc, t: dict[str, float], grain: np.ndarray, rng: np.random.Generator) -> None:
    depth, width = (d.upper.depth + d.lower.depth) / 2, (d.upper.width + d.lower.width) / 2
    center, frame = d.center, d.frame
    box = canvas.box(center, max(depth, width) / 2 + 8)
    if box is None:
        return
    points = canvas.points(box)
    shift = tuple(p - o for p, o in zip(points, center, strict=True))
    v, w, u = (row[0] * shift[0] + row[1] * shift[1] + row[2] * shift[2] for row in frame)
    height = max(d.height(), 2.0)
    # The side bulges half way between the plates.
    bulge = d.bulge - 1.2 * (2 * w / height) ** 2
    side = _superellipse(v, u, width / 2, depth / 2, 2.5) - bulge
    vu, wu, uu = d.upper.local(points)
    vl, wl, ul = d.lower.local(points)
    plates = np.maximum(d.upper.plates(vu, uu)[1] - wu, wl - d.lower.plates(vl, ul)[0])
    distance = _rounded(side, plates, 0.8)
    canvas.paint(box, distance, t["annulus"] * (1 + 0.1 * grain[box]), d.id)
    bright = t["annulus"] + (t["nucleus"] * rng.uniform(0.75, 1.1) - t["annulus"]) * (1 - d.degeneration) ** 1.5
    share = rng.uniform(0.5, 0.75)
    core = _superellipse(v, u - 0.03 * depth, width / 2 * share, depth / 2 * share, 2.0)
    inside = np.maximum(core, plates + 1.0)
    value = bright * (1 + 0.08 * grain[box])
    if rng.random() < 0.5:  # the dark cleft of an adult nucleus
        value = value + (t["annulus"] - bright) * 0.5 * np.exp(-((w / 1.2) ** 2))
    canvas.paint(box, inside, value, soft=rng.uniform(1.5, 5.0))


def _paint_body(
    canvas: _Canvas, b: _Body, t: dict[str, float], marrow: float, grain: np.ndarray, rng: np.random.Generator
) -> None:
    reach = float(np.linalg.norm((b.width, b.height, b.depth))) / 2 + 2
    box = canvas.box(b.center, reach)
    if box is None:
        return
    v, w, u = b.local(canvas.points(box))
    distance = b.distance(v, w, u)
    upper, lower = b.plates(v, u)
    canvas.paint(box, distance - 0.3, t["cortex"], None)
    canvas.paint(box, distance, t["cortex"], b.id)
    value = marrow * (1 + rng.uniform(0.03, 0.12) * grain[box])
    plate = np.minimum(lower - w, w - upper)  # depth below the nearer endplate
    if rng.random() < 0.15:  # reactive (Modic) change at one endplate: brighter or darker than marrow
        depth = (lower - w) if rng.random() < 0.5 else (w - upper)
        value = value * (1 + rng.uniform(-0.5, 0.7) * np.exp(-((np.maximum(depth, 0) / rng.uniform(3, 8)) ** 2)))
    if rng.random() < 0.5:  # fatty or sclerotic rims
        value = value * (1 + rng.uniform(-0.2, 0.3) * np.exp(-plate / 4.0))
    if rng.random() < 0.08:  # haemangioma or metastasis
        spot = (rng.uniform(-0.25, 0.25, 3) * (b.width, b.height, b.depth)).tolist()
        radius = rng.uniform(3, 9)
        far = np.sqrt((v - spot[0]) ** 2 + (w - spot[1]) ** 2 + (u - spot[2]) ** 2) - radius
        value = value + (marrow * rng.uniform(0.3, 2.0) - value) * np.clip(0.5 - far / 3, 0, 1)
    canvas.paint(box, distance + rng.uniform(0.7, 1.4), value)
    if b.name[0] != "S":  # the basivertebral vein enters half way up the back wall
        vein = np.maximum(np.hypot(v / 5.0, w / 1.6) - 1.0, (0.55 * b.depth / 2 - u) / 6.0) * 1.6
        canvas.paint(box, np.maximum(vein, distance + 0.3), t["vein"], soft=2.5, strength=float(rng.uniform(0, 0.9)))


def _acquire(canvas: _Canvas, spec: PhantomSpec, depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What the scanner makes of the painted tissues: int16."""
    image = canvas.image
    in_plane = spec.blur_mm / spec.pixel_mm
    if in_plane > 0.05:
        image = gaussian_filter(image, (0, in_plane, in_plane), truncate=3.0)
    if len(image) > 2:  # slice profiles overlap a little
        image = gaussian_filter(image, (min(1.0, 0.35 + 0.3 / spec.slice_mm), 0, 0), truncate=2.0, mode="nearest")
    if spec.contrast == "ct":
        noise = gaussian_filter(rng.standard_normal(image.shape, np.float32), (0, 0.6, 0.6), truncate=2.0)
        return np.clip(image + noise * spec.noise * 2000, -1024, 3000).astype(np.int16)
    if spec.bias:
        image = image * np.exp(spec.bias * _smooth_noise(canvas.axes, (150, 120, 120), rng))
    if spec.coil_mm:
        image = image * np.exp(-np.maximum(depth, -20) / spec.coil_mm)
    image = image / max(1e-6, float(np.percentile(image[::2, ::4, ::4], 99)))
    real, imaginary = (spec.noise * rng.standard_normal(image.shape, np.float32) for _ in range(2))
    return np.clip(np.hypot(image + real, imaginary) * rng.uniform(300, 1500), 0, 32000).astype(np.int16)


def make_phantom(spec: PhantomSpec, rng: np.random.Generator) -> Phantom:
    """Generate one case. The same spec and generator state give the same voxels.

    `Phantom.truth` holds, in mm and degrees: ``levels`` (names wholly in view), ``heights`` (level → anterior, middle,
    posterior, at 80 % of the half depth before and behind the centre and in the middle), ``discs`` (disc id → height in
    the middle), ``canal`` (level, or disc id, → depth of the thecal sac where the body's, or disc's, middle plane meets
    it), ``lordosis`` (L1-S1 endplates), ``sacral_slope``, ``cobb`` (of the whole curve), ``cobb_seen``
    (between the most tilted vertebrae wholly in view), ``listhesis`` (as asked for, of the bodies' middles), ``slip``
    (level → how far its lower back edge lies in front of the upper back edge of the next one below, along the disc
    between them) and ``variant``.
    """
    bodies, discs = _build_chain(spec, rng)
    by_name = {b.name: b for b in bodies}
    top, bottom = by_name[spec.top], by_name[spec.bottom]
    first = min(top.at(0, -top.height / 2, k * top.depth / 2)[1] for k in (-1, 1)) - spec.margin_top_mm
    last = max(bottom.at(0, bottom.height / 2, k * bottom.depth / 2)[1] for k in (-1, 1)) + spec.margin_bottom_mm
    rows = np.arange(first, max(last, first + 30.0), spec.pixel_mm)
    width = spec.width_mm or len(rows) * spec.pixel_mm
    seen = [b for b in bodies if rows[0] < b.center[1] < rows[-1] and b.name not in ("S3", "S4", "S5")] or [top]
    middle = np.mean([b.center for b in seen], axis=0)
    columns = middle[2] - spec.spine_position * width + np.arange(0, width, spec.pixel_mm)
    slices = middle[0] + (np.arange(spec.slices) - (spec.slices - 1) / 2) * spec.slice_mm
    if spec.slices > 1:
        slices = slices + rng.uniform(-0.5, 0.5) * spec.slice_mm
    axes = tuple(a.astype(np.float32) for a in (slices, rows, columns))

    canvas = _Canvas(axes, spec.pixel_mm)  # type: ignore[arg-type]
    t = _tissues(spec, rng)
    if spec.contrast != "ct":  # thin cortex is only partly resolved, in some sequences hardly
        t["cortex"] += (t["marrow"] - t["cortex"]) * rng.uniform(0.0, 0.6)
    column, half = _column(spec, bodies, discs, rows)
    depth = _paint_surroundings(canvas, spec, column, t, rng)
    grain = _smooth_noise(axes, (4, 2.5, 2.5), rng) + 0.7 * _smooth_noise(axes, (12, 9, 9), rng)  # type: ignore[arg-type]
    marrow = {b.name: t["marrow"] * float(np.exp(0.07 * rng.standard_normal())) for b in bodies}
    box = column.box(canvas)
    canvas.paint(box, column.distance(canvas.points(box), grow=2.5, shift=1.0), t["fat"])  # epidural
    for b in bodies:
        if b.name[0] == "S":
            _paint_sacral_wings(canvas, b, t, marrow[b.name], half)
        else:
            _paint_posterior(canvas, spec, b, t, marrow[b.name], half)
    conus_body = by_name.get(spec.conus, bodies[-1])
    _paint_canal(canvas, spec, column, conus_body.at(0, conus_body.height / 2, 0)[1], t, rng)
    _paint_ligaments(canvas, bodies, t)
    for d in discs:
        _paint_disc(canvas, d, t, grain, rng)
    for b in bodies:
        _paint_body(canvas, b, t, marrow[b.name], grain, rng)

    geometry = _geometry(spec, axes)
    image, labels = geometry.image(_acquire(canvas, spec, depth, rng)), geometry.image(canvas.labels)
    centers = {b.id: b.center for b in bodies if b.id} | {d.id: d.center for d in discs if d.id}
    keypoints = {
        sid: tuple(float(x) for x in geometry.matrix @ center[::-1])
        for sid, center in centers.items()
        if all(axis[0] <= x <= axis[-1] for axis, x in zip(axes[1:], center[1:], strict=True))
    }
    if spec.orientation != "PIR":
        image, labels = (sitk.DICOMOrient(x, spec.orientation) for x in (image, labels))
    truth = _truth(spec, bodies, discs, column, rows)
    return Phantom(image, labels, keypoints, truth, spec)  # type: ignore[arg-type]


def _paint_sacral_wings(canvas: _Canvas, b: _Body, t: dict[str, float], marrow: float, half: float) -> None:
    """Lateral masses and the back wall of a sacral segment."""
    thick = 0.45 * b.height
    for side in (-1.0, 1.0):
        start, end = b.at(side * b.width * 0.45, 0, 0.1 * b.depth), b.at(side * b.width, 0.1 * b.height, 0.35 * b.depth)
        canvas.capsule(start, end, thick, t["cortex"], marrow)
    back = b.depth / 2 + 2 * half * 0.7 + 5
    canvas.capsule(b.at(0, -0.4 * b.height, back), b.at(0, 0.4 * b.height, back), 3.5, t["cortex"], marrow)


def _paint_ligaments(canvas: _Canvas, bodies: list[_Body], t: dict[str, float]) -> None:
    """Anterior and posterior longitudinal ligaments: dark bands from body to body."""
    for low, high in pairwise(bodies):
        if low.name[0] == "S" and high.name[0] == "S":
            continue
        for side in (-1.0, 1.0):
            start = low.at(0, -low.height / 4, side * (low.depth / 2 - 0.3))
            end = high.at(0, high.height / 4, side * (high.depth / 2 - 0.3))
            canvas.capsule(start, end, 1.8, t["ligament"], t["ligament"])


def _geometry(spec: PhantomSpec, axes: tuple[np.ndarray, ...]) -> Geometry:
    """Grid of the canvas; the model's origin (the middle of S1's upper endplate) is the physical origin."""
    rotation = np.eye(3)
    for axis, degrees in enumerate(spec.oblique_deg):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        turn = np.eye(3)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn[i, i], turn[i, j], turn[j, i], turn[j, j] = c, -s, s, c
        rotation = turn @ rotation
    direction = rotation @ np.array(SAGITTAL_DIRECTION).reshape(3, 3)
    slices, rows, columns = axes
    origin = direction @ np.array([columns[0], rows[0], slices[0]], float)
    return Geometry(
        (len(columns), len(rows), len(slices)),
        (spec.pixel_mm, spec.pixel_mm, spec.slice_mm),
        tuple(origin.tolist()),
        tuple(direction.ravel().tolist()),
    )


def _truth(
    spec: PhantomSpec, bodies: list[_Body], discs: list[_Disc], column: _Column, rows: np.ndarray
) -> dict[str, object]:
    by_name = {b.name: b for b in bodies}

    def whole(b: _Body) -> bool:
        ends = [b.at(0, k * b.height / 2, m * b.depth / 2)[1] for k in (-1, 1) for m in (-1, 1)]
        return b.id is not None and rows[0] <= min(ends) and max(ends) <= rows[-1]

    seen = [b for b in reversed(bodies) if whole(b)]
    names = {b.name for b in seen}
    return {
        "levels": [b.name for b in seen],
        "heights": {b.name: b.heights() for b in seen if b.id != SACRUM_ID},
        "discs": {d.id: d.height() for d in reversed(discs) if d.id and {d.upper.name, d.lower.name} <= names},
        "canal": {
            **{b.name: _canal_depth(column, rows, b.center, b.frame[1]) for b in seen},
            **{
                d.id: _canal_depth(column, rows, d.center, d.frame[1])
                for d in reversed(discs)
                if d.id and {d.upper.name, d.lower.name} <= names
            },
        },
        "lordosis": float(np.degrees(by_name["S1"].tilt(True) - by_name["L1"].tilt(True))) if "L1" in by_name else None,
        "sacral_slope": float(np.degrees(by_name["S1"].tilt(True))),
        "cobb": spec.scoliosis_deg,
        "cobb_seen": float(np.ptp([np.degrees(np.arctan2(-b.frame[1, 0], b.frame[1, 1])) for b in seen])),
        "listhesis": dict(spec.listhesis),
        "slip": {d.upper.name: _slip(d) for d in reversed(discs) if d.id and {d.upper.name, d.lower.name} <= names},
        "variant": spec.variant,
    }


def _slip(disc: _Disc) -> float:
    upper, lower = disc.upper, disc.lower
    offset = upper.at(0, upper.height / 2, upper.depth / 2) - lower.at(0, -lower.height / 2, lower.depth / 2)
    angle = (upper.tilt(upper=False) + lower.tilt(upper=True)) / 2  # of the disc's middle plane
    return float(-offset @ [0.0, -np.sin(angle), np.cos(angle)])


def _canal_depth(column: _Column, rows: np.ndarray, center: np.ndarray, axis: np.ndarray) -> float:
    """Depth of the sac square to its line, where the plane through `center`, square to `axis`, meets that.

    `_Column.distance` turns horizontal into perpendicular lengths row by row, which is exact for a straight sac alone;
    the truth is therefore the length of a line within the shape that was painted.
    """
    line = np.stack([column.right, rows, column.posterior], axis=1).astype(float)
    middle = np.array([np.interp(0.0, (line - center) @ axis, x) for x in line.T])
    along = np.array([np.interp(middle[1], rows, np.gradient(x, rows)) for x in line.T])
    along /= np.linalg.norm(along)
    back = np.array([0.0, 0.0, 1.0]) - along[2] * along
    back /= np.linalg.norm(back)
    step = 0.02  # mm
    right, down, behind = (middle + np.arange(-20.0, 20.0, step)[:, None] * back).T

    def at(values: np.ndarray) -> np.ndarray:
        return np.interp(down, rows, values)

    y = (behind - at(column.posterior)) * at(column.cosine) / np.maximum(at(column.depth), 0.05)
    x = (right - at(column.right)) / np.maximum(at(column.width), 0.05)
    return float(step * np.count_nonzero(x**2 + y**2 < 1))


# --- which phantoms --------------------------------------------------------------------------------------------------


def random_spec(rng: np.random.Generator, **overrides: object) -> PhantomSpec:
    """A spec drawn wider than patients vary, since range matters more than likelihood in training.

    Args:
        overrides: fields that are not drawn.
    """

    def u(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    variant = rng.choice([None, "L6", "T13"], p=[0.85, 0.09, 0.06])
    variant = overrides.get("variant", variant)
    tops = ["T8", "T9", "T10", "T11", "T12", "L1", "L2", "L3"]
    top = str(rng.choice(tops, p=[0.06, 0.16, 0.24, 0.22, 0.15, 0.09, 0.05, 0.03]))
    bottom = str(rng.choice(["S1", "L5", "L4", "L3"], p=[0.86, 0.07, 0.04, 0.03])) if top[0] == "T" else "S1"
    names = [s.name for s in PhantomSpec(variant=variant).chain()]  # type: ignore[arg-type]
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
    return PhantomSpec(**{**drawn, **overrides})  # type: ignore[arg-type]


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
"""The phantom that ships with the project."""


def sample_case() -> Phantom:
    """The shipped sample, ``Resources/Samples/lumbar_phantom.nii.gz``: T2, T11 to S1, 15 slices of 4 mm."""
    return make_phantom(SAMPLE_SPEC, np.random.default_rng(2024))
