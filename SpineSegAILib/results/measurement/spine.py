"""What takes several structures: disc height index, angles between endplates, slips, lordosis, scoliosis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ...anatomy import SACRUM_ID, STRUCTURES, Kind, disc_below, next_below, structure
from .bodies import Body, mean_height
from .endplates import Endplate
from .rows import NotMeasured, Row, fill
from .scan import STEP, Scan, central_part, edges

LARGEST_TILT_ERROR = 3.0
"""Standard error (degrees) up to which an angle is given: readers differ by 3 to 5 degrees in Cobb's angles."""
LARGEST_SLIP_ERROR = 2.0
"""The same of a slip, mm: half of what is usual."""


_TO_THE_DISC = (
    "Lordosis L1–S1 is measured to the lower face of the last disc, since the outline of S1 lacks its upper back "
    "corner or has a low quality: it may be 2 to 7° too large."
)
"""Of 18 cases in which corners of S1 were placed by hand."""

_AT_S1 = (
    "Slip is measured to the upper back corner of the outline of S1, which is often rounded off: the vertebra may seem "
    "1 to 5 mm too far back."
)
"""Of 8 cases in which corners of S1 were placed by hand."""

Place = tuple[int, int]
"""Which endplate: a vertebra's id, and 0 for its upper or 1 for its lower one."""


@dataclass
class Column:
    """What is known of the bodies.

    Attributes:
        bodies: outlines of vertebrae and discs by id.
        plates: upper and lower endplate of each vertebra; of the sacrum the upper one, twice.
        why: why a structure has no endplates.
    """

    bodies: dict[int, Body] = field(default_factory=dict)
    plates: dict[int, tuple[Endplate, Endplate]] = field(default_factory=dict)
    why: dict[int, str] = field(default_factory=dict)

    def plate(self, place: Place, of: int) -> Endplate:
        """An endplate, for a measurement of the structure `of`.

        Raises:
            NotMeasured: it has none.
        """
        sid, which = place
        if sid not in self.plates:
            name = STRUCTURES[sid].name
            if sid not in self.why:
                raise NotMeasured(f"{name} is not segmented")
            raise NotMeasured(self.why[sid] if sid == of else f"endplates of {name}: {self.why[sid]}")
        return self.plates[sid][which]


def angle(column: Column, upper: Place, lower: Place, of: int) -> float:
    """Sagittal angle between two endplates, degrees; positive if it opens to the front.

    Raises:
        NotMeasured: an endplate is missing, or the error is too large.
    """
    above, below = column.plate(upper, of), column.plate(lower, of)
    error = float(np.hypot(above.tilt_error, below.tilt_error))
    if error > LARGEST_TILT_ERROR:
        raise NotMeasured(f"an endplate's outline is too rough or incomplete with an error of about {error:.0f}°")
    return below.tilt - above.tilt


def slip(column: Column, upper: Place, lower: Place, of: int) -> float:
    """How far the corner above lies in front of the one below, along the disc, mm.

    Raises:
        NotMeasured: a corner is missing, or the error is too large.
    """
    above, below = column.plate(upper, of), column.plate(lower, of)
    for plate in (above, below):
        if plate.corner is None:
            raise NotMeasured(plate.why)
    assert above.corner is not None and below.corner is not None
    along = above.along + below.along
    along = along / np.linalg.norm(along)
    offset = above.corner - below.corner
    turned = np.radians(np.hypot(above.tilt_error, below.tilt_error) / 2)
    lever = np.linalg.norm(offset - (offset @ along) * along)
    error = float(np.sqrt(above.corner_error**2 + below.corner_error**2 + (lever * np.sin(turned)) ** 2))
    if error > LARGEST_SLIP_ERROR:
        raise NotMeasured(f"the corners' outlines are too rough with an error of about {error:.1f} mm")
    return float(-offset @ along)


def relate(rows: Mapping[int, Row], scan: Scan, column: Column) -> None:
    """Fills in what takes a structure's neighbors."""
    for upper in scan.column:
        if STRUCTURES[upper].kind is not Kind.VERTEBRA:
            continue
        fill(rows[upper], "endplate_angle_deg", angle, column, (upper, 0), (upper, 1), upper)
        below = next_below(STRUCTURES[upper], scan.ids)
        if below is None:
            continue
        fill(rows[upper], "slip_mm", slip, column, (upper, 1), (below.id, 0), upper)
        if below.id == SACRUM_ID and rows[upper]["slip_mm"] is not None:
            rows[upper]["notes"].append(_AT_S1)
        disc = disc_below(upper)
        if disc is None or disc.id not in rows:
            continue
        row = rows[disc.id]
        fill(row, "endplate_angle_deg", angle, column, (upper, 1), (below.id, 0), disc.id)
        heights = [mean_height(rows[i]) for i in (upper, below.id) if i in rows]
        known = [h for h in heights if h is not None]
        if below.id in rows and known and row["height_mean_mm"] is not None:
            row["disc_height_index"] = row["height_mean_mm"] / float(np.mean(known))


def of_the_spine(scan: Scan, column: Column, row: Row) -> None:
    """Fills in the row of the spine as a whole."""
    first, last, sacrum = (structure(name).id for name in ("L1", "L5", "S1"))
    fill(row, "lordosis_deg", angle, column, (first, 0), (sacrum, 0), 0)
    if row["lordosis_deg"] is not None and column.plates[sacrum][0].corner is None:
        row["notes"].append(_TO_THE_DISC)
    fill(row, "lordosis_l1_l5_deg", angle, column, (first, 0), (last, 1), 0)
    fill(row, "scoliosis_deg", _cobb, scan, column)


_BESIDE = 0.35  # of the width, to either side, over which the endplates' coronal slope is taken
_NARROW = 20.0  # mm; outlines that reach over less of a body's width tell nothing of its tilt
_FEW_SLICES = 4  # fewer across a body are too far apart


def _cobb(scan: Scan, column: Column) -> float:
    vertebral = [sid for sid in column.plates if sid in column.bodies and STRUCTURES[sid].is_vertebral]
    tilts = [t for sid in vertebral if (t := _coronal_tilt(scan, sid, column.bodies[sid])) is not None]
    if len(tilts) < 2:
        raise NotMeasured("fewer than two vertebrae are in view from side to side")
    return float(np.ptp(tilts))


def _coronal_tilt(scan: Scan, sid: int, body: Body) -> float | None:
    """Angle of a body in the coronal plane, degrees, mean of its endplates; positive if its right side points down."""
    drawn = scan.box(sid)[0]
    if drawn.stop - drawn.start < _FEW_SLICES:
        return None
    behind = body.behind
    side = np.cross(body.axis, behind)
    side = side * (1.0 if side[0] >= 0 else -1.0)
    along = np.arange(-25.0, 25.0 + STEP, STEP)
    grid = (
        body.center
        + along[:, np.newaxis, np.newaxis, np.newaxis] * body.axis
        + along[:, np.newaxis, np.newaxis] * side
        + np.array([-6.0, -3.0, 0.0, 3.0, 6.0])[:, np.newaxis] * behind
    )  # (downwards, aside, backwards, 3)
    values = scan.sample(scan.field(sid), grid)
    slices = grid[..., 0] / scan.spacing[0]
    is_drawn = (slices >= drawn.start) & (slices <= drawn.stop - 1)  # beyond, `values` just continue
    plane = central_part(np.where(is_drawn, values, 0.0).mean(axis=2))
    upper, lower = edges(plane, along)
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
