"""Outlines of vertebral bodies and discs in the sagittal plane: heights, endplates, back walls.

How heights are found. A vertebra (or disc) gets its own frame: the axis along the spine from the centers of its
neighbors, the anterior–posterior axis square to it in the sagittal plane through its center. The mask is sampled there
every half millimeter, between voxels. Straight lines through its upper and lower endplate turn the frame until both are
equally inclined to it. Over the depth each endplate is a polynomial: it follows domes, wedges and crushed middles, but
not the stairs of single voxels. Heights are distances between the two, along the frame's axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...anatomy import STRUCTURES, Extent, Kind
from .rows import NotMeasured, Row
from .scan import STEP, Scan, central_part, edges, square_to

_OFF_MID = (-1.5, 0.0, 1.5)  # mm to the left and right of the sagittal plane, averaged against single rough slices
_AT = {"anterior": 0.1, "middle": 0.5, "posterior": 0.9}  # of the way from front to back: inside the rounded edges
_DEGREE = {Kind.VERTEBRA: 4, Kind.DISC: 2}
"""Of the polynomial over the depth: four follows real bodies to 0.1 mm on average; thin discs would show stairs."""
_FITTED = (0.07, 0.93)  # share of the depth that the endplates' curves are fitted to
# mm aside, for the slopes of endplates: where one runs along the voxels' diagonal, half of it may lie a third of a
# voxel off in one slice; a dome brings other steps in others.
_PLATE_OFF_MID = (-9.0, -4.5, 0.0, 4.5, 9.0)
_RIM = 0.85  # of the half depth: the rim, just inside the rounded edge
_PARTS = 5  # of a line, left out one by one
_TURNS = 6  # two do for most; S1, which has no neighbor below, starts ten degrees off
_LARGEST_TURN = np.radians(35)  # between the axis from the neighbors and the body's own; more is a damaged mask


CUT = "the image's border cuts it"
DAMAGED = "its outline is too small or damaged"


@dataclass(frozen=True)
class Body:
    """The outline of a vertebra, sacral body or disc in its own frame.

    Attributes:
        depth: (n,) mm along the anterior–posterior axis, from front to back.
        upper, lower: (n,) mm along the axis (downwards) at which the endplates lie.
        front, back: mm of the foremost and rearmost point.
        waist: mm from front to back at half height.
        slopes: of the upper and the lower endplate, mm downwards per mm backwards.
        slope_errors: standard errors of these.
        center: position in the scan, mm.
        axis: unit vector along the body's axis, downwards.
    """

    depth: np.ndarray
    upper: np.ndarray
    lower: np.ndarray
    front: float
    back: float
    waist: float
    slopes: tuple[float, float]
    slope_errors: tuple[float, float]
    center: np.ndarray
    axis: np.ndarray

    @property
    def behind(self) -> np.ndarray:
        """Unit vector backwards."""
        return square_to(self.axis)

    def plate(self, which: int) -> np.ndarray:
        """Unit vector backwards along the upper (0) or lower (1) endplate, in the sagittal plane of the scan."""
        _, down, back = self.axis - self.slopes[which] * self.behind  # normal of the endplate
        return np.array([0.0, -back, down]) / np.hypot(down, back)

    def tilt(self, which: int) -> float:
        """Sagittal angle of an endplate, degrees; positive where its front points down."""
        along = self.plate(which)
        return float(-np.degrees(np.arctan2(along[1], along[2])))

    def tilt_error(self, which: int) -> float:
        """Standard error of it, degrees."""
        return float(np.degrees(self.slope_errors[which] / (1 + self.slopes[which] ** 2)))

    def middle_of(self, which: int) -> np.ndarray:
        """A point of the upper (0) or lower (1) endplate as the line between its rims, above the middle, mm."""
        middle, half = (self.front + self.back) / 2, (self.back - self.front) / 2
        edge = (self.upper, self.lower)[which]
        level = self._rim(edge, middle + _RIM * half) - self.slopes[which] * _RIM * half
        return self.center + middle * self.behind + level * self.axis

    def _rim(self, edge: np.ndarray, at: float) -> float:
        """Where an endplate, domed as it is, lies near its edge."""
        middle, half = (self.front + self.back) / 2, (self.back - self.front) / 2
        inner = np.abs(self.depth - middle) <= 0.9 * half
        return float(np.polynomial.Polynomial.fit(self.depth[inner], edge[inner], 2)(at))


def outline(scan: Scan, sid: int, *, may_be_cut: bool = False) -> Body:
    """The outline in the sagittal plane through the center.

    Raises:
        NotMeasured: it is too small or damaged, or the border cuts it (unless it may).
    """
    field = scan.field(sid)
    center, axis = scan.center(sid), scan.axis(sid)
    start = axis
    box = scan.box(sid)
    reach = 0.5 * np.hypot(*((b.stop - b.start) * s for b, s in zip(box[1:], scan.spacing[1:], strict=True))) + 5.0
    if scan.extent is Extent.WHOLE and STRUCTURES[sid].kind is Kind.VERTEBRA:
        reach = min(reach, 45.0)  # the body is no deeper; what lies behind it is not wanted
    along = np.arange(-reach, reach + STEP, STEP)
    for turn in range(_TURNS):
        back = square_to(axis)
        side = np.cross(axis, back)
        grid = (
            center
            + along[:, np.newaxis, np.newaxis, np.newaxis] * axis
            + along[:, np.newaxis, np.newaxis] * back
            + np.array(_OFF_MID)[:, np.newaxis] * side
        )  # (downwards, backwards, aside, 3)
        plane = central_part(scan.sample(field, grid).mean(axis=2))
        upper, lower = edges(plane, along)
        thick = lower - upper  # NaN where there is nothing
        if np.isfinite(thick).sum() < 4:
            raise NotMeasured(DAMAGED)
        inside = np.flatnonzero(thick >= np.nanmedian(thick) / 3)  # a voxel that sticks out in front is no front
        first, last = along[inside[0]], along[inside[-1]]
        fitted = inside[np.abs(along[inside] - (first + last) / 2) <= 0.35 * (last - first)]
        if len(fitted) < 4:
            raise NotMeasured(DAMAGED)
        slope = np.mean([np.polyfit(along[fitted], edge[fitted], 1)[0] for edge in (upper, lower)])
        height = np.mean((upper + lower)[fitted]) / 2
        if abs(slope) < 0.005 or turn == _TURNS - 1:  # the outline belongs to this frame; no other may be returned
            break
        center = center + (first + last) / 2 * back + height * axis
        axis = (axis - slope * back) / np.hypot(1.0, slope)
        if np.arccos(np.clip(axis @ start, -1, 1)) > _LARGEST_TURN:
            raise NotMeasured(DAMAGED)
    if not may_be_cut and scan.reaches_border(grid[:, :, 1][plane >= 0.5]):
        raise NotMeasured(CUT)
    front, rear = edges(plane.T, along)
    span = np.nanmedian(thick)
    near = [np.abs(along - (height + side * 0.3 * span)) <= max(0.12 * span, STEP) for side in (-1, 1)]
    walls = [(float(np.nanmedian(front[rows])), float(np.nanmedian(rear[rows]))) for rows in near]
    planes = scan.sample(field, grid[:, :, 1:2] + np.array(_PLATE_OFF_MID)[:, np.newaxis] * side)
    cuts = [edges(central_part(planes[:, :, i]), along) for i in range(len(_PLATE_OFF_MID))]
    # A disc's face stands for the flat upper endplate of S1, and its outline bends round the rims.
    flat = STRUCTURES[sid].kind is Kind.DISC
    found = [endplate_slope(along, [cut[which] for cut in cuts], *walls[which], flat=flat) for which in (0, 1)]
    middle = np.abs(along - height) <= max(0.25 * np.nanmedian(thick), STEP)
    return Body(
        along[inside],
        upper[inside],
        lower[inside],
        first,
        last,
        waist=float(np.nanmean((rear - front)[middle])),
        slopes=(found[0][0], found[1][0]),
        slope_errors=(found[0][1], found[1][1]),
        center=center,
        axis=axis,
    )


def endplate_slope(
    along: np.ndarray, cuts: list[np.ndarray], front: float, back: float, *, flat: bool = False
) -> tuple[float, float]:
    """Slope of an endplate with its standard error: of the line between its rims, as it is drawn on radiographs.

    A cubic about the middle between the walls follows the endplate's dome and its S: the deepest place of most lies
    behind the middle, and the slope there is not that of the line (by 3 to 9 degrees, in the same sense at every
    level). A `flat` one is fitted by a straight line. The error is what the slices differ by, and what omitting each
    fifth of the plate changes (the jackknife).

    Raises:
        NotMeasured: too little is in view.
    """
    middle, half = (front + back) / 2, (back - front) / 2
    near = np.abs(along - middle) <= _RIM * half
    slopes, errors = [], []
    for edge in cuts:
        chosen = np.isfinite(edge) & near
        if chosen.sum() < 6:
            continue
        x, y = along[chosen] - middle, edge[chosen]
        start, rise, dome, bend = np.polynomial.polynomial.polyfit(x / half, y, 3)
        slope = straight_line(x, y)[1] if flat else float((rise + bend * _RIM**2) / half)
        curve = np.polynomial.polynomial.polyval(x / half, (start, rise, dome, bend))
        slopes.append(slope)
        errors.append(jackknife(x, y - curve + slope * x)[1])
    if not slopes:
        raise NotMeasured(DAMAGED)
    spread = float(np.std(slopes)) / np.sqrt(len(slopes))
    return float(np.mean(slopes)), float(np.hypot(spread, np.mean(errors)))


def straight_line(x: np.ndarray, y: np.ndarray, weight: np.ndarray | None = None) -> tuple[float, float]:
    """Value at 0 and slope of the line with the least squares, in closed form: thousands are fitted for a film.

    Args:
        weight: of each square.
    """
    share = np.full(len(x), 1 / len(x)) if weight is None else weight / weight.sum()
    mean_x, mean_y = share @ x, share @ y
    from_mean = x - mean_x
    slope = (share * from_mean) @ y / ((share * from_mean) @ from_mean)
    return float(mean_y - slope * mean_x), float(slope)


def jackknife(x: np.ndarray, y: np.ndarray, at: float = 0.0) -> tuple[float, float]:
    """Standard errors of a straight line through points, of its value `at` and of its slope: by omitting each fifth
    along `x`."""
    fits = []
    for part in np.array_split(np.argsort(x), _PARTS):
        rest = np.ones(len(x), bool)
        rest[part] = False
        fits.append(straight_line(x[rest] - at, y[rest]))
    value, slope = np.sqrt((_PARTS - 1) / _PARTS * ((np.array(fits) - np.mean(fits, axis=0)) ** 2).sum(axis=0))
    return float(value), float(slope)


def heights(body: Body, kind: Kind) -> dict[str, float]:
    """Heights (mm) by the keys of the table, and the depth."""
    share = (body.depth - body.front) / (body.back - body.front)
    fitted = (share >= _FITTED[0]) & (share <= _FITTED[1])
    degree = min(_DEGREE[kind], int(fitted.sum()) - 1)
    curve = np.polynomial.Polynomial.fit(share[fitted], (body.lower - body.upper)[fitted], degree)
    found = {f"height_{name}_mm": float(curve(at)) for name, at in _AT.items()}
    if kind is Kind.DISC:
        low, high = _AT["anterior"], _AT["posterior"]
        found["height_mean_mm"] = float(curve(np.linspace(low, high, 81)).mean())
    return found | {"depth_mm": body.waist}


def mean_height(row: Row) -> float | None:
    """Mean of a vertebra's three heights; None where one is missing."""
    found = [row[f"height_{at}_mm"] for at in _AT]
    return None if None in found else float(np.mean(found))
