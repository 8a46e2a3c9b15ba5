"""What is known of a synthetic spine: measurements of its making."""

from __future__ import annotations

import numpy as np

from ...anatomy import SACRUM_ID
from .chain import Body, Disc
from .paint import ColumnFrame
from .spec import PhantomSpec


def measure_truth(
    spec: PhantomSpec, bodies: list[Body], discs: list[Disc], column: ColumnFrame, rows: np.ndarray
) -> dict[str, object]:
    by_name = {b.name: b for b in bodies}

    def whole(b: Body) -> bool:
        ends = [b.at(0, k * b.height / 2, m * b.depth / 2)[1] for k in (-1, 1) for m in (-1, 1)]
        return b.id is not None and rows[0] <= min(ends) and max(ends) <= rows[-1]

    seen = [b for b in reversed(bodies) if whole(b)]
    names = {b.name for b in seen}
    between = [d for d in reversed(discs) if d.id and {d.upper.name, d.lower.name} <= names]
    canal: dict[str | int | None, float] = {b.name: _canal_depth(column, rows, b.center, b.frame[1]) for b in seen}
    canal |= {d.id: _canal_depth(column, rows, d.center, d.frame[1]) for d in between}
    return {
        "levels": [b.name for b in seen],
        "heights": {b.name: b.heights() for b in seen if b.id != SACRUM_ID},
        "discs": {d.id: d.height() for d in between},
        "canal": canal,
        "lordosis": float(np.degrees(by_name["S1"].tilt(True) - by_name["L1"].tilt(True))) if "L1" in by_name else None,
        "sacral_slope": float(np.degrees(by_name["S1"].tilt(True))),
        "cobb": spec.scoliosis_deg,
        "cobb_seen": float(np.ptp([np.degrees(np.arctan2(-b.frame[1, 0], b.frame[1, 1])) for b in seen])),
        "listhesis": dict(spec.listhesis),
        "slip": {d.upper.name: _slip(d) for d in between},
        "variant": spec.variant,
    }


def _slip(disc: Disc) -> float:
    upper, lower = disc.upper, disc.lower
    offset = upper.back_corner(upper=False) - lower.back_corner(upper=True)
    angle = (upper.tilt(upper=False) + lower.tilt(upper=True)) / 2  # of the disc's middle plane
    return float(-offset @ [0.0, -np.sin(angle), np.cos(angle)])


def _canal_depth(column: ColumnFrame, rows: np.ndarray, center: np.ndarray, axis: np.ndarray) -> float:
    """Depth of the sac square to its line, where the plane through `center`, square to `axis`, meets that.

    `ColumnFrame.distance` turns horizontal into perpendicular lengths row by row, which is exact for a straight sac
    alone; the truth is therefore the length of a line within the shape that was painted.
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
