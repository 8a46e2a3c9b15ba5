"""Endplates as lines in the sagittal plane, with their back corners: what angles and slips are made of.

A corner is where the straight part of the back wall meets the line between the endplate's rims. It counts only where
the outline really has one there: its error is what omitting a part of the wall changes, and how far the outline
stays away from the corner.

The upper endplate of S1 is another matter. Few datasets label S1, so its outline often lacks the upper back corner,
and a line along what is left is tilted by up to forty degrees. It is therefore taken from the lower face of the L5/S1
disc; from S1 itself only where its corner is sharp, both agree, and its outline has no low quality.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .bodies import Body, endplate_slope, jackknife
from .rows import NotMeasured
from .scan import STEP, Scan, central_part, edges

_OFF_MID = np.array((-3.0, -1.5, 0.0, 1.5, 3.0))  # mm aside, averaged: single slices are rough
_WALL = (1.5, 11.0)  # mm from the endplate: below its rounded edge, above the entry of the basivertebral vein
_REACH = 30.0  # mm forwards and backwards from the middle of an endplate: the deepest is 40 mm from front to back
_LEAST_WALL = 8  # samples, 4 mm
# What is left out of a corner beyond the usual rounding of outlines: half a millimeter to 1.75 in nine of ten corners
# of 83 segmented cases at L1 to L4.
_ROUNDED = 1.25
_LEAN = 0.6  # mm per mm: back walls stand square to their endplates within 30 degrees (S1: 97 ± 5 degrees)
LARGEST_CORNER_ERROR = 1.5
"""mm: 99 of 100 corners of L1 to L5 in 83 segmented cases stay below 1.1; broken ones of S1 have 4 in the median."""
_NO_CORNER = "the {} back corner of {} is missing from its outline"
_LEAST_COVER = 0.6  # of the endplate above, that a disc must reach along to stand for the one below
_UNCOVERED = 12.0  # degrees of error per share of the endplate that the disc does not cover: the rims rise there
_ROUGH = 1.0  # mm, median: an upper edge of S1 that is no line
_LARGEST_GAP = 22.0  # mm from L5 to S1: the highest discs have 17
_AGREE = 8.0  # degrees between the disc's lower face and S1's own upper edge where that is sharp


@dataclass(frozen=True)
class Endplate:
    """An endplate in the sagittal plane.

    Attributes:
        along: unit vector backwards.
        point: a point of the line, mm.
        tilt_error: standard error of the angle, degrees.
        corner: where the back wall meets it, mm; None where that is not clear.
        corner_error: of the corner's position along the endplate, mm.
        why: why there is no corner.
    """

    along: np.ndarray
    point: np.ndarray
    tilt_error: float
    corner: np.ndarray | None = None
    corner_error: float = 0.0
    why: str = ""

    @property
    def tilt(self) -> float:
        """Sagittal angle, degrees; positive where its front points down."""
        return float(-np.degrees(np.arctan2(self.along[1], self.along[2])))

    @property
    def down(self) -> np.ndarray:
        """Unit vector downwards, square to it."""
        return np.array([0.0, self.along[2], -self.along[1]])


def endplates(scan: Scan, sid: int, body: Body, name: str) -> tuple[Endplate, Endplate]:
    """The upper and the lower endplate of a vertebra."""
    found = []
    for which, word in ((0, "upper"), (1, "lower")):
        plate = Endplate(body.plate(which), body.middle_of(which), body.tilt_error(which))
        inward = plate.down if which == 0 else -plate.down
        found.append(_with_corner(scan, sid, plate, inward, _NO_CORNER.format(word, name)))
    return found[0], found[1]


def sacral_endplate(scan: Scan, sid: int | None, disc: Body | None, above: Endplate | None, depth: float) -> Endplate:
    """The upper endplate of S1.

    Args:
        sid: the sacrum's id; None where it is not segmented.
        disc: outline of the disc above it.
        above: the lower endplate of the vertebra above that.
        depth: of that vertebra from front to back, mm.

    Raises:
        NotMeasured: neither the disc nor S1 shows it.
    """
    missing = _NO_CORNER.format("upper", "S1")
    by_disc = None if disc is None else _lower_face(disc, depth)
    if sid is None:
        if by_disc is None:
            raise NotMeasured("neither S1 nor the disc above it is segmented")
        return replace(by_disc, why="S1 is not segmented")
    start = by_disc or _upper_edge_below(scan, sid, above)
    if start is None:
        raise NotMeasured(missing)
    found = _with_corner(scan, sid, start, start.down, missing)
    if found.corner is None:
        if by_disc is None:
            raise NotMeasured(missing)
        return found
    sharp = _own_upper_edge(scan, sid, found)
    if by_disc is None:
        return sharp
    difference = abs(sharp.tilt - by_disc.tilt)
    if difference > _AGREE:
        return replace(by_disc, why="the outlines of S1 and of the disc above it do not fit together")
    return replace(sharp, tilt_error=max(sharp.tilt_error, difference / 3))


def _lower_face(disc: Body, depth: float) -> Endplate:
    """The disc's lower face.

    Raises:
        NotMeasured: it reaches along too little of the endplate. Then S1 beside it is not believed either.
    """
    cover = min((disc.back - disc.front) / depth, 1.0)
    if cover < _LEAST_COVER:
        raise NotMeasured(f"the outline of the disc above S1 covers only {100 * cover:.0f} % of its depth")
    error = float(np.hypot(disc.tilt_error(1), _UNCOVERED * (1 - cover)))
    return Endplate(disc.plate(1), disc.middle_of(1), error)


def _upper_edge_below(scan: Scan, sid: int, above: Endplate | None) -> Endplate | None:
    """S1's upper edge as it is seen from the endplate above it, where no disc shows it; None if it is too rough."""
    if above is None:
        return None
    plate = above
    for _ in range(2):  # from the tilt above to its own
        upper, across, _ = _upper_edge(scan, sid, plate, (-_REACH, _REACH), (-5.0, 35.0))
        seen = np.flatnonzero(np.isfinite(upper))
        if len(seen) < 2 * _LEAST_WALL:
            return None
        inner = seen[len(seen) // 6 : -(len(seen) // 6)]
        at, slope = _robust_line(across[inner], upper[inner])
        if np.median(np.abs(upper[inner] - at - slope * across[inner])) > _ROUGH:
            return None
        along = plate.along + slope * plate.down
        plate = Endplate(along / np.linalg.norm(along), plate.point + at * plate.down, 0.0)
    gap = float((plate.point - above.point) @ above.down)
    return plate if 0.0 < gap < _LARGEST_GAP else None


def _with_corner(scan: Scan, sid: int, plate: Endplate, inward: np.ndarray, missing: str) -> Endplate:
    """The endplate with its back corner, if the outline has one; `missing` says that it has none."""
    side = np.cross(plate.down, plate.along)
    deep = np.arange(0.0, _WALL[1] + STEP, STEP)
    across = np.arange(-_REACH, _REACH + STEP, STEP)
    field = scan.field(sid)
    grid = (
        plate.point
        + deep[:, np.newaxis, np.newaxis, np.newaxis] * inward
        + across[:, np.newaxis, np.newaxis] * plate.along
        + _OFF_MID[:, np.newaxis] * side
    )
    _, wall = edges(central_part(scan.sample(field, grid).mean(axis=2)).T, across)
    chosen = np.isfinite(wall) & (deep >= _WALL[0]) & (wall < _REACH - 2 * STEP)
    if chosen.sum() < _LEAST_WALL:
        return replace(plate, why=missing)
    x, y = deep[chosen], wall[chosen]
    at, lean = _robust_line(x, y)
    error, _ = jackknife(x, y)
    corner = plate.point + at * plate.along
    # From the corner half way between endplate and wall: how far in does the outline begin?
    steps = np.arange(0.0, 10.0, 0.25)
    inwards = (inward - plate.along) / np.sqrt(2)
    values = scan.sample(field, corner + steps[:, np.newaxis, np.newaxis] * inwards + _OFF_MID[:, np.newaxis] * side)
    inside = np.flatnonzero(values.mean(axis=1) >= 0.5)
    missed = max(steps[inside[0]] - _ROUNDED, 0.0) if len(inside) else np.inf
    error = float(np.hypot(error, missed))
    if abs(lean) > _LEAN or error > LARGEST_CORNER_ERROR:
        return replace(plate, why=missing)
    return replace(plate, corner=corner, corner_error=error)


def _robust_line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Value at zero and slope of the line with the least absolute residuals: a step in the wall does not turn it."""
    weight = np.ones_like(x)
    design = np.stack([np.ones_like(x), x], axis=1)
    for _ in range(10):
        (at, slope), *_ = np.linalg.lstsq(design * weight[:, np.newaxis], y * weight, rcond=None)
        weight = 1 / np.sqrt(np.maximum(np.abs(y - at - slope * x), 0.3))
    return float(at), float(slope)


def _own_upper_edge(scan: Scan, sid: int, plate: Endplate) -> Endplate:
    """The endplate along S1's own upper edge, from its front to its sharp back corner."""
    assert plate.corner is not None
    here = replace(plate, point=plate.corner)
    upper, across, values = _upper_edge(scan, sid, here, (-2 * _REACH, 0.0), (-8.0, 12.0))
    deep = np.arange(-8.0, 12.0, STEP)
    near = (deep >= 2.0) & (deep <= 5.0)  # below the rounded edge
    front = float(np.nanmedian(edges(values.T, across)[0][near]))
    slope, error = endplate_slope(across, [upper], front, 0.0)
    along = plate.along + slope * plate.down
    return replace(plate, along=along / np.linalg.norm(along), tilt_error=float(np.degrees(error)))


def _upper_edge(
    scan: Scan, sid: int, plate: Endplate, ahead: tuple[float, float], below: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where a structure begins below an endplate: mm downwards, mm backwards, and the sampled plane.

    Args:
        ahead, below: the part of the plane that is looked at, mm backwards and downwards from the endplate's point.
    """
    side = np.cross(plate.down, plate.along)
    across, deep = np.arange(*ahead, STEP), np.arange(*below, STEP)
    grid = (
        plate.point
        + deep[:, np.newaxis, np.newaxis, np.newaxis] * plate.down
        + across[:, np.newaxis, np.newaxis] * plate.along
        + _OFF_MID[:, np.newaxis] * side
    )
    values = scan.sample(scan.field(sid), grid).mean(axis=2)
    return edges(values, deep)[0], across, values
