"""The chain of vertebrae and discs of a synthetic spine: places, tilts and sizes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...anatomy import SACRUM_ID, disc_below
from .spec import PhantomSpec, pick

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


@dataclass
class Body:
    """A vertebral (or sacral) body. Local axes (v, w, u): right, down, posterior; the origin is the body's center."""

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
        anterior, middle, posterior = (lower - upper).tolist()
        return anterior, middle, posterior

    def tilt(self, upper: bool) -> float:
        """Sagittal angle (radians) of an endplate; positive where its front points down."""
        angle = np.arctan2(self.frame[1, 2], self.frame[1, 1])
        return float(angle - np.arctan(self._slope()) if upper else angle + np.arctan(self._slope()))

    def back_corner(self, upper: bool) -> np.ndarray:
        """Where the back wall meets an endplate in the mid-sagittal plane."""
        u = self.depth / 2
        w = self.plates(np.zeros(1), np.array([u]))[0 if upper else 1]
        return self.at(0, float(w[0]), u)

    def local(self, points: tuple[np.ndarray, np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(v, w, u) of points given as broadcastable (right, down, posterior)."""
        r, c, a = (p - o for p, o in zip(points, self.center, strict=True))
        v, w, u = (row[0] * r + row[1] * c + row[2] * a for row in self.frame)
        return v, w, u

    def at(self, v: float, w: float, u: float) -> np.ndarray:
        """Position of a local point."""
        return self.center + np.array([v, w, u]) @ self.frame

    def distance(self, v: np.ndarray, w: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Signed distance to the body's surface; corners are rounded."""
        waist = 1.0 - self.waist * np.maximum(0.0, 1.0 - (2 * w / self.height) ** 2)
        if self.taper:
            waist = waist * (1.0 - self.taper * np.clip(w / self.height + 0.5, 0.0, 1.0))
        side = superellipse(v / waist, u / waist, self.width / 2, self.depth / 2, 2.5)
        upper, lower = self.plates(v, u)
        return rounded(side, np.maximum(w - lower, upper - w), 2.6)


def superellipse(x: np.ndarray, y: np.ndarray, rx: float, ry: float, power: float) -> np.ndarray:
    """Signed radial distance to a superellipse with half axes rx, ry."""
    f = (np.abs(x / rx) ** power + np.abs(y / ry) ** power) ** (1.0 / power)
    return np.hypot(x, y) * (1.0 - 1.0 / np.maximum(f, 1e-3))


def rounded(a: np.ndarray, b: np.ndarray, radius: float) -> np.ndarray:
    """Intersection of two shapes with a rounded edge."""
    a, b = a + radius, b + radius
    return np.minimum(np.maximum(a, b), 0.0) + np.hypot(np.maximum(a, 0.0), np.maximum(b, 0.0)) - radius


@dataclass
class Disc:
    upper: Body
    lower: Body
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


def build_chain(spec: PhantomSpec, rng: np.random.Generator) -> tuple[list[Body], list[Disc]]:
    """Bodies from S5 upwards to four levels above the highest one in view, and the discs between."""
    chain = spec.chain()
    names = [s.name for s in chain]
    first = max(0, names.index(spec.top) - 4)
    levels = list(reversed(chain[first:-1]))  # from the last lumbar vertebra upwards
    size = spec.size
    lumbar = [s.name for s in levels if s.name.startswith("L")]
    shares = [(pick(_DISC_SHARE, i), pick(_BODY_SHARE, i)) for i in range(len(lumbar))]
    total = sum(d + b for d, b in shares)

    def jitter(sd: float) -> float:
        return float(np.clip(1.0 + sd * rng.standard_normal(), 1 - 2.5 * sd, 1 + 2.5 * sd))

    concavity, waist = rng.uniform(0.6, 2.2), rng.uniform(0.05, 0.14)

    def body(name: str, sid: int | None, rank: int, wedge_deg: float, scale: float = 1.0) -> Body:
        depth = pick(_DEPTH, rank) * size * scale * jitter(0.03)
        height = pick(_HEIGHT, rank) * size * scale * jitter(0.03)
        difference = 2 * depth * np.tan(np.radians(wedge_deg) / 2)
        anterior, posterior = height + difference / 2, height - difference / 2
        lost = spec.wedge.get(name, 0.0)
        anterior = anterior if not lost else posterior * (1 - lost)
        dome = spec.biconcave.get(name, 0.0) * (anterior + posterior) / 4
        return Body(
            name, sid, np.zeros(3), np.eye(3), depth, pick(_WIDTH, rank) * size * scale * jitter(0.03),
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
    discs: list[Disc] = []
    turn = np.radians(rng.uniform(6, 18))
    for index in range(4):
        nxt = body(f"S{index + 2}", None, 0, 0.0, scale=(0.74, 0.6, 0.48, 0.4)[index])
        nxt.taper = 0.2
        theta = theta - turn * (0.3 if index == 0 else 1.0)
        nxt.frame = frame(theta, 0.0)
        gap = 3.0 * size if index == 0 else 1.5
        edge = lower.at(0, lower.height / 2 + gap, -0.1 * lower.depth * (index == 0))
        nxt.center = edge + nxt.height / 2 * nxt.frame[1]
        discs.append(Disc(lower, nxt, None, 0.7, -2.0))
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
        height = pick(_DISC_HEIGHT, rank) * size * jitter(0.07) * (1 - 0.55 * worn)
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
        disc = disc_below(level)
        discs.append(Disc(new, lower, disc.id if disc else None, worn, rng.uniform(-0.5, 1.0) + 2.5 * worn))
        bodies.append(new)
        lower = new
    return bodies, discs
