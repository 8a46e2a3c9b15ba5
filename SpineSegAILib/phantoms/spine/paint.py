"""Painting a synthetic spine and its surroundings on a fine grid."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import gaussian_filter

from ...anatomy import CANAL_ID
from .chain import Body, Disc, rounded, superellipse
from .spec import TISSUES, PhantomSpec


@dataclass
class Canvas:
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


def smooth_noise(
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


def tissues(spec: PhantomSpec, rng: np.random.Generator) -> dict[str, float]:
    """Intensities of the tissues in this synthetic image."""
    base = TISSUES[spec.contrast]
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
class ColumnFrame:
    """The canal as a function of the height: 1D arrays over the rows of the grid."""

    posterior: np.ndarray
    right: np.ndarray
    cosine: np.ndarray  # of the canal's slope: turns horizontal into perpendicular distance
    depth: np.ndarray  # half
    width: np.ndarray  # half

    def box(self, canvas: Canvas) -> tuple[slice, ...]:
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


def column_frame(
    spec: PhantomSpec, bodies: list[Body], discs: list[Disc], rows: np.ndarray
) -> tuple[ColumnFrame, float]:
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
    return ColumnFrame(*(a.astype(np.float32) for a in arrays)), half


def paint_surroundings(
    canvas: Canvas, spec: PhantomSpec, column: ColumnFrame, t: dict[str, float], rng: np.random.Generator
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
    belly = a - (mean_back - rng.uniform(110, 190) * spec.size) - 12 * smooth_noise(axes, (80, 60, 500), rng)
    coarse, streaks = smooth_noise(axes, (14, 14, 14), rng), smooth_noise(axes, (5, 30, 4), rng)

    # In front: organs, bowel and gas in fat; each tissue fills where a smooth field is high.
    spread = 120.0 if spec.contrast == "ct" else 0.35 * t["organ"]
    canvas.image[:] = t["fat"] + (t["organ"] - t["fat"]) * rng.uniform(0.1, 0.7) * (1 + 0.2 * coarse)
    for _ in range(4):
        size = tuple(rng.uniform((15, 14, 12), (50, 60, 40)))
        texture = 1 + rng.uniform(0.0, 0.15) * (streaks if rng.random() < 0.5 else coarse)
        value = t["air"] if rng.random() < 0.15 else t["organ"] + spread * rng.standard_normal()
        where = (rng.uniform(-0.3, 1.0) - smooth_noise(axes, size, rng)) * min(size) / 3
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


def paint_posterior(
    canvas: Canvas, spec: PhantomSpec, b: Body, t: dict[str, float], marrow: float, half: float
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
        plate = rounded(np.maximum(np.abs(v) - thick, np.abs(sag) - tall), np.abs(along - 0.5) * reach - reach / 2, 2.0)
        canvas.paint(box, plate, shell)
        canvas.paint(box, plate + 1.2, marrow)


def paint_canal(
    canvas: Canvas,
    spec: PhantomSpec,
    column: ColumnFrame,
    conus: float,
    t: dict[str, float],
    rng: np.random.Generator,
) -> None:
    """Thecal sac with cord, conus and nerve roots; `conus` is the height (down, mm) at which the cord ends."""
    box = column.box(canvas)
    right, down, posterior = (axis[part] for axis, part in zip(canvas.axes, box, strict=True))
    axes = right, down, posterior
    if min(map(len, axes)) == 0:
        return
    rows = canvas.axes[1]
    points = canvas.points(box)
    distance = column.distance(points)
    canvas.paint(box, distance - 0.9, t["ligament"])
    # Flow makes the fluid uneven.
    fluid = t["csf"] * (1 + rng.uniform(0, 0.12) * smooth_noise(axes, (30, 25, 5), rng))
    canvas.paint(box, distance, fluid, CANAL_ID)
    roots = np.clip(0.6 * smooth_noise(axes, (3, 40, 1.6), rng), 0, 1)
    below = 1 / (1 + np.exp(-(rows - conus) / 8.0))[None, :, None]
    inner = column.distance(points, grow=-1.0, shift=0.25 * spec.canal_mm / 2, scale=0.75)
    canvas.paint(box, inner, fluid + (t["cord"] - fluid) * np.maximum(roots, 0.25) * below, soft=2.0)
    thickness = np.clip((conus - rows) / 28.0, 0, 1) ** 0.7
    cord = replace(column, depth=3.6 * thickness, width=4.6 * thickness)
    behind = rng.uniform(-0.1, 0.25) * spec.canal_mm / 2
    canvas.paint(box, np.where(thickness[None, :, None] > 0.03, cord.distance(points, shift=behind), 9.0), t["cord"])


def paint_disc(canvas: Canvas, d: Disc, t: dict[str, float], grain: np.ndarray, rng: np.random.Generator) -> None:
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
    side = superellipse(v, u, width / 2, depth / 2, 2.5) - bulge
    vu, wu, uu = d.upper.local(points)
    vl, wl, ul = d.lower.local(points)
    plates = np.maximum(d.upper.plates(vu, uu)[1] - wu, wl - d.lower.plates(vl, ul)[0])
    distance = rounded(side, plates, 0.8)
    canvas.paint(box, distance, t["annulus"] * (1 + 0.1 * grain[box]), d.id)
    bright = t["annulus"] + (t["nucleus"] * rng.uniform(0.75, 1.1) - t["annulus"]) * (1 - d.degeneration) ** 1.5
    share = rng.uniform(0.5, 0.75)
    core = superellipse(v, u - 0.03 * depth, width / 2 * share, depth / 2 * share, 2.0)
    inside = np.maximum(core, plates + 1.0)
    value = bright * (1 + 0.08 * grain[box])
    if rng.random() < 0.5:  # the dark cleft of an adult nucleus
        value = value + (t["annulus"] - bright) * 0.5 * np.exp(-((w / 1.2) ** 2))
    canvas.paint(box, inside, value, soft=rng.uniform(1.5, 5.0))


def paint_body(
    canvas: Canvas, b: Body, t: dict[str, float], marrow: float, grain: np.ndarray, rng: np.random.Generator
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


def paint_sacral_wings(canvas: Canvas, b: Body, t: dict[str, float], marrow: float, half: float) -> None:
    """Lateral masses and the back wall of a sacral segment."""
    thick = 0.45 * b.height
    for side in (-1.0, 1.0):
        start, end = b.at(side * b.width * 0.45, 0, 0.1 * b.depth), b.at(side * b.width, 0.1 * b.height, 0.35 * b.depth)
        canvas.capsule(start, end, thick, t["cortex"], marrow)
    back = b.depth / 2 + 2 * half * 0.7 + 5
    canvas.capsule(b.at(0, -0.4 * b.height, back), b.at(0, 0.4 * b.height, back), 3.5, t["cortex"], marrow)


def paint_ligaments(canvas: Canvas, bodies: list[Body], t: dict[str, float]) -> None:
    """Anterior and posterior longitudinal ligaments: dark bands from body to body."""
    for low, high in pairwise(bodies):
        if low.name[0] == "S" and high.name[0] == "S":
            continue
        for side in (-1.0, 1.0):
            start = low.at(0, -low.height / 4, side * (low.depth / 2 - 0.3))
            end = high.at(0, high.height / 4, side * (high.depth / 2 - 0.3))
            canvas.capsule(start, end, 1.8, t["ligament"], t["ligament"])
