"""Sizes and positions of segmented structures, in millimetres and millilitres.

Everything is measured on the label image alone, in the patient's proportions: the grid may be oblique and its slices
thick. A size is given only where the structure ends inside the image; where the border cuts it, the value is empty.

How heights are found. A vertebra (or disc) gets its own frame: the axis along the spine from the centres of its
neighbours, the anterior–posterior axis square to it in the sagittal plane through its centre. The mask is sampled there
every half millimetre, between voxels. Straight lines through its upper and lower endplate turn the frame until both are
equally inclined to it. Over the depth each endplate is a polynomial: it follows domes, wedges and crushed middles, but
not the stairs of single voxels. Heights are distances between the two, along the frame's axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..anatomy import CANAL_ID, STRUCTURES, Extent, Kind, disc_below, next_below, order_of, structure
from ..files import atomic_write, write_csv_rows
from .segmentation import Segmentation

Row = dict[str, Any]
"""One structure: the keys of `COLUMNS`; None where a value does not apply or cannot be told."""


@dataclass(frozen=True)
class Measurement:
    """What a column of the table means.

    Attributes:
        key: name of the column, ends with the unit.
        label: for readers.
        unit: ``"mm"``, ``"mL"``, ``"°"``, or empty for a ratio.
        method: how it is measured.
    """

    key: str
    label: str
    unit: str
    method: str


_PROFILE = "distance between the endplates along the structure's axis, {} % of the way from its front to its back"

MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("volume_ml", "Volume", "mL", "voxels times voxel volume; empty if the border cuts the structure"),
    *(
        Measurement(
            f"centroid_{frame}_{axis}_mm",
            f"Centre, {letter} ({frame.upper()})",
            "mm",
            "mean position of the voxels that are in view; of the part in view where the border cuts the structure",
        )
        for frame in ("lps", "ras")
        for axis, letter in zip("xyz", frame.upper(), strict=True)
    ),
    Measurement("height_anterior_mm", "Anterior height", "mm", _PROFILE.format(10)),
    Measurement("height_middle_mm", "Middle height", "mm", _PROFILE.format(50)),
    Measurement("height_posterior_mm", "Posterior height", "mm", _PROFILE.format(90)),
    Measurement("height_mean_mm", "Mean height", "mm", "the same, mean from 10 to 90 % of the depth"),
    Measurement("depth_mm", "Depth (AP)", "mm", "front to back in the sagittal plane, at half height"),
    Measurement(
        "canal_depth_mm",
        "Canal depth (AP)",
        "mm",
        "front to back of the canal at the level of the structure's centre, square to the canal; only for canals from "
        "a checkpoint that was validated on real ones",
    ),
    Measurement(
        "disc_height_index",
        "Disc height index",
        "",
        "mean height of the disc over the mean height of the vertebrae above and below it (Masuda et al. 2005)",
    ),
    Measurement(
        "endplate_angle_deg",
        "Endplate angle",
        "°",
        "sagittal angle between the upper and the lower endplate of a vertebra, or between the endplates beside a "
        "disc; positive if it opens to the front",
    ),
    Measurement(
        "slip_mm",
        "Slip forwards",
        "mm",
        "how far a vertebra's lower back edge lies in front of the upper back edge of the next one below, along the "
        "disc between them; negative backwards (listhesis)",
    ),
)
"""Every measurement of a structure, in the order of the table's columns."""

SPINE_MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("lordosis_deg", "Lordosis L1–S1", "°", "sagittal angle between the upper endplates of L1 and S1"),
    Measurement(
        "lordosis_l1_l5_deg",
        "Lordosis L1–L5",
        "°",
        "sagittal angle between the upper endplate of L1 and the lower one of L5",
    ),
    Measurement(
        "scoliosis_deg",
        "Scoliosis (Cobb)",
        "°",
        "largest angle, in the coronal plane, between any two vertebrae wholly in view; lying, as in the scanner",
    ),
)
"""What is measured of the spine as a whole: columns of the last row of `measure_all`."""

SPINE = "spine"
"""``structure`` of that row."""

COLUMNS: tuple[str, ...] = (
    "id", "structure", "name", "kind", "confidence", "unvalidated", "touches_border",
    *(m.key for m in (*MEASUREMENTS, *SPINE_MEASUREMENTS)),
)  # fmt: skip
"""Columns of the table."""

_STEP = 0.5  # mm between samples; crossings are interpolated between them
_OFF_MID = (-1.5, 0.0, 1.5)  # mm to the left and right of the sagittal plane, averaged against single rough slices
_AT = {"anterior": 0.1, "middle": 0.5, "posterior": 0.9}  # of the way from front to back: inside the rounded edges
_DEGREE = {Kind.VERTEBRA: 4, Kind.DISC: 2}
"""Of the polynomial over the depth: four follows real bodies to 0.1 mm on average; thin discs would show stairs."""
_FITTED = (0.07, 0.93)  # share of the depth that the endplates' curves are fitted to
# mm aside, for the slopes of endplates: where one runs along the voxels' diagonal, half of it may lie a third of a
# voxel off in one slice; a dome brings other steps in others.
_PLATE_OFF_MID = (-9.0, -4.5, 0.0, 4.5, 9.0)
_TURNS = 6  # two do for most; S1, which has no neighbour below, starts ten degrees off
_LARGEST_TURN = np.radians(35)  # between the axis from the neighbours and the body's own; more is a damaged mask
_ACROSS_CANAL = (-3.0, -1.5, 0.0, 1.5, 3.0)  # mm to the left and right of the canal's centre
_ALONG_CANAL = 5.0  # mm up and down over which the canal's direction is taken


def measure(segmentation: Segmentation) -> list[Row]:
    """Measures every structure that is present, top down.

    Returns:
        A row per structure with the keys of `COLUMNS`; lengths in mm, volumes in mL, angles in degrees.
    """
    return measure_all(segmentation)[:-1]


def measure_all(segmentation: Segmentation) -> list[Row]:
    """The rows of `measure`, and at the end one of the spine as a whole (`SPINE`), with `SPINE_MEASUREMENTS`."""
    oriented = sitk.DICOMOrient(segmentation.labels, "PIR")
    scan = _Scan(sitk.GetArrayFromImage(oriented), np.array(oriented.GetSpacing()[::-1]), segmentation.scheme.extent)
    present = segmentation.present
    canal = _Canal.of(scan) if CANAL_ID in present and CANAL_ID not in segmentation.unvalidated else None
    rows: list[Row] = []
    bodies: dict[int, _Profile] = {}
    for sid in present:
        row: Row = dict.fromkeys(COLUMNS)
        row |= {
            "id": sid,
            "structure": STRUCTURES[sid].name,
            "name": segmentation.name_of(sid, present),
            "kind": STRUCTURES[sid].kind.value,
            "confidence": segmentation.confidence.get(sid),
            "unvalidated": sid in segmentation.unvalidated,
            "touches_border": scan.is_cut(sid),
        }
        row |= _size_and_place(scan, sid, oriented)
        if STRUCTURES[sid].kind in (Kind.VERTEBRA, Kind.DISC):
            profile = _profile(scan, sid)
            if profile is not None:
                row |= _heights(profile, STRUCTURES[sid].kind)
                if canal is not None:
                    row["canal_depth_mm"] = canal.depth_at(profile.center, profile.axis)
                if STRUCTURES[sid].kind is Kind.VERTEBRA:
                    bodies[sid] = profile
        elif STRUCTURES[sid].kind is Kind.SACRUM and scan.extent is not Extent.WHOLE:
            profile = _profile(scan, sid, may_be_cut=True)  # its upper endplate is what counts
            if profile is not None:
                bodies[sid] = profile
        rows.append(row)
    _relate(rows, scan, bodies)
    return [*rows, _of_the_spine(scan, bodies)]


def write_csv(rows: Iterable[Mapping[str, Any]], path: str | Path) -> Path:
    """Writes the table; lengths to 0.01 mm, volumes to 0.001 mL, empty cells where there is no value.

    Raises:
        OutputError: if the file cannot be written; nothing is left behind.
    """
    path = Path(path)
    with atomic_write(path) as (place,):
        write_csv_rows(place, [COLUMNS, *([_cell(key, row.get(key)) for key in COLUMNS] for row in rows)])
    return path


def _cell(key: str, value: Any) -> Any:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}" if key in ("volume_ml", "confidence", "disc_height_index") else f"{value:.2f}"
    return value


# --- the label image --------------------------------------------------------------------------------------------------


class _Scan:
    """Labels (slices, rows, columns) on the canonical grid, with what every measurement asks of them.

    Positions are millimetres along the three axes, from the centre of the first voxel.
    """

    def __init__(self, labels: np.ndarray, spacing: np.ndarray, extent: Extent | None) -> None:
        self.labels = labels
        self.spacing = spacing
        self.extent = extent
        self._boxes = ndimage.find_objects(labels)
        self._centers: dict[int, np.ndarray] = {}
        self.column = [  # what the spine's axis is told from, top down
            sid
            for sid in sorted(self.ids, key=lambda i: STRUCTURES[i].order or 0.0)
            if STRUCTURES[sid].is_vertebral and STRUCTURES[sid].order is not None
        ]
        self.discs = [
            sid
            for sid in sorted(self.ids, key=lambda i: STRUCTURES[i].order or 0.0)
            if STRUCTURES[sid].kind is Kind.DISC and STRUCTURES[sid].order is not None
        ]

    @property
    def ids(self) -> list[int]:
        return [i for i, box in enumerate(self._boxes, start=1) if box is not None and i in STRUCTURES]

    def box(self, sid: int) -> tuple[slice, slice, slice]:
        return self._boxes[sid - 1]

    def mask(self, sid: int) -> np.ndarray:
        """The structure in its box, bool."""
        return self.labels[self.box(sid)] == sid

    def is_cut(self, sid: int) -> bool:
        """Whether the image's border cuts the structure: part of it may be missing."""
        return any(b.start == 0 or b.stop == size for b, size in zip(self.box(sid), self.labels.shape, strict=True))

    def center(self, sid: int) -> np.ndarray:
        """Centre in mm; of a whole vertebra that of its front half, roughly the body."""
        if sid not in self._centers:
            mask = self.mask(sid)
            if self.extent is Extent.WHOLE and STRUCTURES[sid].kind is Kind.VERTEBRA:
                mask[:, :, max(mask.shape[2] // 2, 1) :] = False
            index = np.array(ndimage.center_of_mass(mask)) + [b.start for b in self.box(sid)]
            self._centers[sid] = index * self.spacing
        return self._centers[sid]

    def axis(self, sid: int) -> np.ndarray:
        """Unit vector along the spine, downwards: from the neighbours' centres, else from the mask's own shape."""
        order = STRUCTURES[sid].order
        if order is not None:
            chain = self.column if STRUCTURES[sid].is_vertebral or len(self.column) > 1 else self.discs
            above = [i for i in chain if order_of(i) < order]
            below = [i for i in chain if order_of(i) > order]
            ends = [above[-1] if above else sid, below[0] if below else sid]
            if ends[0] != ends[1]:
                along = self.center(ends[1]) - self.center(ends[0])
                return along / np.linalg.norm(along)
        return self._own_axis(sid)

    def _own_axis(self, sid: int) -> np.ndarray:
        """Principal axis within the sagittal plane that is nearest to the vertical; for discs the shortest one."""
        points = np.argwhere(self.mask(sid))[:, 1:] * self.spacing[1:]
        if len(points) < 3:
            return np.array([0.0, 1.0, 0.0])
        _, vectors = np.linalg.eigh(np.cov(points.T))
        short, long = vectors[:, 0], vectors[:, 1]
        axis = short if STRUCTURES[sid].kind is Kind.DISC or abs(short[0]) >= abs(long[0]) else long
        return np.array([0.0, *(axis if axis[0] >= 0 else -axis)])

    def sampler(self, sid: int, blur: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
        """The mask as a soft field with room around it, and the position (mm) of its first voxel.

        Half a voxel of smoothing in the sagittal plane turns stairs into slopes and leaves straight edges in place.
        """
        pad = math.ceil(4 * blur)
        field = np.pad(self.mask(sid).astype(np.float32), ((0, 0), (pad, pad), (pad, pad)))
        field = ndimage.gaussian_filter(field, (0.0, blur, blur))
        first = np.array([b.start for b in self.box(sid)]) - [0, pad, pad]
        return field, first * self.spacing

    def sample(self, field: tuple[np.ndarray, np.ndarray], points: np.ndarray) -> np.ndarray:
        """Values between voxels at `points` (…, 3) in mm; beyond the outermost slice its values go on."""
        values, first = field
        index = (points - first) / self.spacing
        return ndimage.map_coordinates(values, np.moveaxis(index, -1, 0), order=1, mode="nearest")


def _size_and_place(scan: _Scan, sid: int, oriented: sitk.Image) -> Row:
    mask = scan.mask(sid)
    index = np.array(ndimage.center_of_mass(mask)) + [b.start for b in scan.box(sid)]
    lps = oriented.TransformContinuousIndexToPhysicalPoint(index[::-1].tolist())
    ras = (-lps[0], -lps[1], lps[2])
    row: Row = {
        f"centroid_{frame}_{axis}_mm": float(value)
        for frame, point in (("lps", lps), ("ras", ras))
        for axis, value in zip("xyz", point, strict=True)
    }
    if not scan.is_cut(sid):
        row["volume_ml"] = float(mask.sum() * np.prod(scan.spacing) / 1000.0)
    return row


# --- heights ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Profile:
    """A body's outline in its own frame.

    Attributes:
        depth: (n,) mm along the anterior–posterior axis, from front to back.
        upper, lower: (n,) mm along the axis (downwards) at which the endplates lie.
        front, back: mm of the foremost and rearmost point.
        waist: mm from front to back at half height.
        back_edges: mm along the anterior–posterior axis at which the back wall would meet the upper and lower endplate.
        slopes: of the upper and the lower endplate, mm downwards per mm backwards.
        center: position in the scan, mm.
        axis: unit vector along the body's axis, downwards.
    """

    depth: np.ndarray
    upper: np.ndarray
    lower: np.ndarray
    front: float
    back: float
    waist: float
    back_edges: tuple[float, float]
    slopes: tuple[float, float]
    center: np.ndarray
    axis: np.ndarray

    @property
    def behind(self) -> np.ndarray:
        """Unit vector backwards."""
        return _square_to(self.axis)

    def plate(self, which: int) -> np.ndarray:
        """Unit vector backwards along the upper (0) or lower (1) endplate, in the sagittal plane of the scan."""
        _, down, back = self.axis - self.slopes[which] * self.behind  # normal of the endplate
        return np.array([0.0, -back, down]) / np.hypot(down, back)

    def tilt(self, which: int) -> float:
        """Sagittal angle of an endplate, degrees; positive where its front points down."""
        along = self.plate(which)
        return float(-np.degrees(np.arctan2(along[1], along[2])))

    def back_corner(self, which: int) -> np.ndarray:
        """Where the back wall meets the upper (0) or lower (1) endplate, mm."""
        behind = self.back_edges[which]
        edge = (self.upper, self.lower)[which]
        inner = np.abs(self.depth - (self.front + self.back) / 2) <= 0.35 * (self.back - self.front)
        level = np.polynomial.Polynomial.fit(self.depth[inner], edge[inner], 1)(behind)
        return self.center + behind * self.behind + level * self.axis


def _profile(scan: _Scan, sid: int, *, may_be_cut: bool = False) -> _Profile | None:
    """The outline in the sagittal plane through the centre; None where it is too small, or the border cuts it (unless
    it may)."""
    field = scan.sampler(sid)
    center, axis = scan.center(sid), scan.axis(sid)
    start = axis
    box = scan.box(sid)
    reach = 0.5 * np.hypot(*((b.stop - b.start) * s for b, s in zip(box[1:], scan.spacing[1:], strict=True))) + 5.0
    if scan.extent is Extent.WHOLE and STRUCTURES[sid].kind is Kind.VERTEBRA:
        reach = min(reach, 45.0)  # the body is no deeper; what lies behind it is not wanted
    along = np.arange(-reach, reach + _STEP, _STEP)
    for turn in range(_TURNS):
        back = _square_to(axis)
        side = np.cross(axis, back)
        grid = (
            center
            + along[:, np.newaxis, np.newaxis, np.newaxis] * axis
            + along[:, np.newaxis, np.newaxis] * back
            + np.array(_OFF_MID)[:, np.newaxis] * side
        )  # (downwards, backwards, aside, 3)
        plane = _central_part(scan.sample(field, grid).mean(axis=2))
        upper, lower = _edges(plane, along)
        thick = lower - upper  # NaN where there is nothing
        if np.isfinite(thick).sum() < 4:
            return None
        inside = np.flatnonzero(thick >= np.nanmedian(thick) / 3)  # a voxel that sticks out in front is no front
        first, last = along[inside[0]], along[inside[-1]]
        fitted = inside[np.abs(along[inside] - (first + last) / 2) <= 0.35 * (last - first)]
        if len(fitted) < 4:
            return None
        slope = np.mean([np.polyfit(along[fitted], edge[fitted], 1)[0] for edge in (upper, lower)])
        height = np.mean((upper + lower)[fitted]) / 2
        if abs(slope) < 0.005 or turn == _TURNS - 1:  # the outline belongs to this frame; no other may be returned
            break
        center = center + (first + last) / 2 * back + height * axis
        axis = (axis - slope * back) / np.hypot(1.0, slope)
        if np.arccos(np.clip(axis @ start, -1, 1)) > _LARGEST_TURN:
            return None
    if not may_be_cut and _reaches_border(scan, grid[:, :, 1][plane >= 0.5]):
        return None
    front, rear = _edges(plane.T, along)
    span = np.nanmedian(thick)
    near = [np.abs(along - (height + side * 0.3 * span)) <= max(0.12 * span, _STEP) for side in (-1, 1)]
    walls = [(float(np.nanmedian(front[rows])), float(np.nanmedian(rear[rows]))) for rows in near]
    planes = scan.sample(field, grid[:, :, 1:2] + np.array(_PLATE_OFF_MID)[:, np.newaxis] * side)
    cuts = [_edges(_central_part(planes[:, :, i]), along) for i in range(len(_PLATE_OFF_MID))]
    each = [[_slope(along, cut[which], *walls[which]) for cut in cuts] for which in (0, 1)]
    if any(all(s is None for s in found) for found in each):
        return None
    upper_slope, lower_slope = (float(np.mean([s for s in found if s is not None])) for found in each)
    middle = np.abs(along - height) <= max(0.25 * np.nanmedian(thick), _STEP)
    return _Profile(
        along[inside],
        upper[inside],
        lower[inside],
        first,
        last,
        waist=float(np.nanmean((rear - front)[middle])),
        back_edges=(walls[0][1], walls[1][1]),
        slopes=(upper_slope, lower_slope),
        center=center,
        axis=axis,
    )


def _slope(along: np.ndarray, edge: np.ndarray, front: float, back: float) -> float | None:
    """Slope of an endplate: of the line between its rims, as it is drawn on radiographs.

    A parabola about the middle between the walls follows the dome; there its slope is that of the line. None where too
    little is in view.
    """
    middle, half = (front + back) / 2, (back - front) / 2
    chosen = np.isfinite(edge) & (np.abs(along - middle) <= 0.75 * half)
    if chosen.sum() < 5:
        return None
    return float(np.polynomial.polynomial.polyfit(along[chosen] - middle, edge[chosen], 2)[1])


def _square_to(axis: np.ndarray) -> np.ndarray:
    """Unit vector backwards, square to the spine's axis."""
    back = np.array([0.0, 0.0, 1.0])
    back = back - (back @ axis) * axis
    return back / np.linalg.norm(back)


def _central_part(plane: np.ndarray) -> np.ndarray:
    """The connected part that lies nearest to the middle; the rest (a spinous process, an island) set to zero."""
    parts, count = ndimage.label(plane >= 0.5)
    if not count:
        return plane
    inside = np.argwhere(parts)
    middle = (np.array(plane.shape) - 1) / 2
    nearest = inside[np.argmin(((inside - middle) ** 2).sum(axis=1))]
    return plane * ndimage.binary_dilation(parts == parts[tuple(nearest)])  # with the slope of its own edge


def _edges(plane: np.ndarray, along: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each column of `plane` (along, across) where it first rises above and last falls below one half, or NaN."""
    above = plane >= 0.5
    any_above = above.any(axis=0)
    columns = np.arange(plane.shape[1])
    first = np.clip(above.argmax(axis=0), 1, len(along) - 1)
    last = np.clip(len(along) - 1 - above[::-1].argmax(axis=0), 0, len(along) - 2)

    def crossing(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        a, b = plane[low, columns], plane[high, columns]
        part = np.divide(0.5 - a, b - a, out=np.full(a.shape, 0.5), where=np.abs(b - a) > 1e-6)
        return np.where(any_above, along[low] + np.clip(part, 0, 1) * (along[high] - along[low]), np.nan)

    return crossing(first - 1, first), crossing(last, last + 1)


def _reaches_border(scan: _Scan, points: np.ndarray) -> bool:
    """Whether points (n, 3) reach the image's border within the sagittal plane, so that more may lie outside."""
    limits = (np.array(scan.labels.shape[1:]) - 1) * scan.spacing[1:]
    return bool((points[:, 1:].min(axis=0) < 0).any() or (points[:, 1:].max(axis=0) > limits).any())


def _heights(profile: _Profile, kind: Kind) -> Row:
    share = (profile.depth - profile.front) / (profile.back - profile.front)
    fitted = (share >= _FITTED[0]) & (share <= _FITTED[1])
    degree = min(_DEGREE[kind], int(fitted.sum()) - 1)
    curve = np.polynomial.Polynomial.fit(share[fitted], (profile.lower - profile.upper)[fitted], degree)
    row: Row = {f"height_{name}_mm": float(curve(at)) for name, at in _AT.items()}
    if kind is Kind.DISC:
        low, high = _AT["anterior"], _AT["posterior"]
        row["height_mean_mm"] = float(curve(np.linspace(low, high, 81)).mean())
    row["depth_mm"] = profile.waist
    return row


# --- one to another ---------------------------------------------------------------------------------------------------


def _relate(rows: list[Row], scan: _Scan, bodies: dict[int, _Profile]) -> None:
    """Fills in what takes a structure's neighbours: disc height index, angles of endplates, slips."""
    by_id = {row["id"]: row for row in rows}
    for sid, body in bodies.items():
        if STRUCTURES[sid].kind is Kind.VERTEBRA:
            by_id[sid]["endplate_angle_deg"] = body.tilt(1) - body.tilt(0)
    for upper, lower in pairwise(scan.column):
        # With a level missing between them they are no neighbours.
        if next_below(STRUCTURES[upper], scan.column) is not STRUCTURES[lower]:
            continue
        disc = disc_below(upper)
        row = by_id.get(disc.id) if disc else None
        if row is not None:
            heights = [_mean_height(by_id[i]) for i in (upper, lower)]
            known = [h for h in heights if h is not None]
            if known and row["height_mean_mm"] is not None:
                row["disc_height_index"] = row["height_mean_mm"] / float(np.mean(known))
        if upper in bodies and lower in bodies:
            above, below = bodies[upper], bodies[lower]
            if row is not None:
                row["endplate_angle_deg"] = below.tilt(0) - above.tilt(1)
            along = above.plate(1) + below.plate(0)
            offset = above.back_corner(1) - below.back_corner(0)
            by_id[upper]["slip_mm"] = float(-offset @ along / np.linalg.norm(along))


def _mean_height(row: Row) -> float | None:
    heights = [row[f"height_{at}_mm"] for at in _AT]
    return None if None in heights else float(np.mean(heights))


def _of_the_spine(scan: _Scan, bodies: dict[int, _Profile]) -> Row:
    """The row of the spine as a whole."""
    row: Row = dict.fromkeys(COLUMNS)
    row |= {"id": 0, "structure": SPINE, "name": "whole spine", "kind": SPINE}
    first, last, sacrum = (bodies.get(structure(name).id) for name in ("L1", "L5", "S1"))
    if first and sacrum:
        row["lordosis_deg"] = sacrum.tilt(0) - first.tilt(0)
    if first and last:
        row["lordosis_l1_l5_deg"] = last.tilt(1) - first.tilt(0)
    tilts = [t for sid, body in bodies.items() if (t := _coronal_tilt(scan, sid, body)) is not None]
    if len(tilts) >= 2:
        row["scoliosis_deg"] = float(np.ptp(tilts))
    return row


_BESIDE = 0.35  # of the width, to either side, over which the endplates' coronal slope is taken
_NARROW = 20.0  # mm; a stack that shows less of a body's width tells nothing of its tilt


def _coronal_tilt(scan: _Scan, sid: int, body: _Profile) -> float | None:
    """Angle of a body in the coronal plane, degrees, mean of its endplates; positive if its right side points down."""
    if len(scan.labels) < 3:
        return None
    behind = body.behind
    side = np.cross(body.axis, behind)
    side = side * (1.0 if side[0] >= 0 else -1.0)
    along = np.arange(-25.0, 25.0 + _STEP, _STEP)
    grid = (
        body.center
        + along[:, np.newaxis, np.newaxis, np.newaxis] * body.axis
        + along[:, np.newaxis, np.newaxis] * side
        + np.array([-6.0, -3.0, 0.0, 3.0, 6.0])[:, np.newaxis] * behind
    )  # (downwards, aside, backwards, 3)
    values = scan.sample(scan.sampler(sid), grid)
    inside_stack = (grid[..., 0] >= 0) & (grid[..., 0] <= (len(scan.labels) - 1) * scan.spacing[0])
    plane = _central_part(np.where(inside_stack, values, 0.0).mean(axis=2))
    upper, lower = _edges(plane, along)
    thick = lower - upper
    if np.isfinite(thick).sum() < 4:
        return None
    inside = np.flatnonzero(thick >= np.nanmedian(thick) / 2)
    first, last = along[inside[0]], along[inside[-1]]
    if last - first < _NARROW:
        return None
    fitted = inside[np.abs(along[inside] - (first + last) / 2) <= _BESIDE * (last - first)]
    slope = float(np.mean([np.polyfit(along[fitted], edge[fitted], 1)[0] for edge in (upper, lower)]))
    # The plane of the body's middle, cut by the scan's coronal plane.
    normal = np.cross(side + slope * body.axis, behind)
    return float(np.degrees(np.arctan(-normal[0] / normal[1])))


# --- the canal --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Canal:
    """The spinal canal as a line of centres, one per row, with its soft mask.

    Attributes:
        line: (n, 3) centres in mm, top down.
    """

    scan: _Scan
    field: tuple[np.ndarray, np.ndarray]
    line: np.ndarray

    @classmethod
    def of(cls, scan: _Scan) -> _Canal | None:
        mask = scan.mask(CANAL_ID)
        rows = np.flatnonzero(mask.any(axis=(0, 2)))
        if len(rows) < 3:
            return None
        start = np.array([b.start for b in scan.box(CANAL_ID)])
        centers = [ndimage.center_of_mass(mask[:, r]) for r in rows]
        line = (np.array([(c[0], r, c[1]) for r, c in zip(rows, centers, strict=True)]) + start) * scan.spacing
        sigma = 2.0 / scan.spacing[1]  # 2 mm: rows differ by where their voxels happen to end
        line = ndimage.gaussian_filter1d(line, sigma, axis=0, mode="nearest")
        return cls(scan, scan.sampler(CANAL_ID), line)

    def depth_at(self, center: np.ndarray, axis: np.ndarray) -> float | None:
        """Depth (AP, mm) where the plane through `center`, square to `axis`, meets the canal; None if it does not."""
        height = (self.line - center) @ axis
        nearest = int(np.argmin(np.abs(height)))
        step = max(round(_ALONG_CANAL / self.scan.spacing[1]), 1)
        if abs(height[nearest]) > self.scan.spacing[1] or not step <= nearest < len(self.line) - step:
            return None  # the canal ends there, and how deep it is cannot be told
        along = self.line[nearest + step] - self.line[nearest - step]
        along = along / np.linalg.norm(along)
        back = _square_to(along)
        side = np.cross(along, back)
        across = np.arange(-25.0, 25.0 + _STEP, _STEP)
        points = (
            self.line[nearest]
            + across[:, np.newaxis, np.newaxis, np.newaxis] * back
            + np.array((-2.0, -1.0, 0.0, 1.0, 2.0))[:, np.newaxis, np.newaxis] * along
            + np.array(_ACROSS_CANAL)[:, np.newaxis] * side
        )
        first, last = _edges(self.scan.sample(self.field, points).mean(axis=1), across)
        depths = last - first
        # The sac is round: its depth is where it is deepest, which rough slices put a little to one side.
        return None if np.isnan(depths).all() else float(np.nanmax(depths))
