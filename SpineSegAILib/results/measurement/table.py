"""The table of all measurements of a segmentation."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import numpy as np

from ...anatomy import CANAL_ID, SACRUM_ID, STRUCTURES, Extent, Kind, disc_below, next_below, short_name
from ..quality import LOW
from ..segmentation import Segmentation
from .bodies import CUT, heights, outline
from .canal import Canal
from .definitions import EVERY, SPINE
from .endplates import endplates, sacral_endplate
from .plausibility import SACRAL_ANGLE, check
from .rows import HEIGHTS, Blank, NotMeasured, Row, fill, finish, new_row, refuse
from .scan import Scan
from .scoliosis import film_rows, is_film
from .spine import Column, of_the_spine, relate

NO_SCALE = "the image does not give its pixel size"


def measure(segmentation: Segmentation) -> list[Row]:
    """Measures every structure that is present, top down.

    Returns:
        A row per structure with the keys of `COLUMNS`; lengths in mm, volumes in mL, angles in degrees.
    """
    return [row for row in measure_all(segmentation) if row["id"]]


def measure_all(segmentation: Segmentation) -> list[Row]:
    """The rows of `measure`, and at the end one of the spine as a whole (`SPINE`), with `SPINE_MEASUREMENTS`.

    In a film curves have rows of their own, between them (`scoliosis.CURVE`).
    """
    if is_film(segmentation):
        return film_rows(segmentation)
    scan = Scan(segmentation.labels, segmentation.scheme.extent)
    rows, column = outlines(scan, segmentation)
    relate(rows, scan, column)
    spine = new_row(
        id=0, structure=SPINE, name="whole spine", kind=SPINE, level_confidence=segmentation.level_confidence
    )
    of_the_spine(scan, column, spine)
    every = [*rows.values(), spine]
    check(every, scale_known=segmentation.scale_known)
    if not segmentation.scale_known:
        for row in every:
            _without_lengths(row)
    return [finish(row) for row in every]


def outlines(scan: Scan, segmentation: Segmentation) -> tuple[dict[int, Row], Column]:
    """What each structure tells by itself: its row, by id; and the endplates that the others are measured from."""
    present = segmentation.present
    canal = Canal.of(scan) if CANAL_ID in present and CANAL_ID not in segmentation.unvalidated else None
    rows: dict[int, Row] = {}
    column = Column()
    for sid in present:
        rows[sid] = new_row(
            id=sid,
            structure=short_name(sid, present),
            name=segmentation.name_of(sid, present),
            kind=STRUCTURES[sid].kind.value,
            outline_quality=segmentation.outline_quality.get(sid),
            unvalidated=sid in segmentation.unvalidated,
            touches_border=scan.is_cut(sid),
        )
        _size_and_place(rows[sid], scan, sid)
        if STRUCTURES[sid].kind in (Kind.VERTEBRA, Kind.DISC):
            _outline(rows[sid], scan, sid, column, canal)
    _sacrum(scan, column, segmentation.outline_quality.get(SACRUM_ID))
    return rows, column


def _size_and_place(row: Row, scan: Scan, sid: int) -> None:
    lps = scan.place_of(sid)
    ras = (-lps[0], -lps[1], lps[2])
    for frame, point in (("lps", lps), ("ras", ras)):
        for axis, value in zip("xyz", point, strict=True):
            row[f"centroid_{frame}_{axis}_mm"] = float(value)
    if scan.is_cut(sid):
        refuse(row, ("volume_ml",), CUT)
    else:
        row["volume_ml"] = float(scan.mask(sid).sum() * np.prod(scan.spacing) / 1000.0)


def _outline(row: Row, scan: Scan, sid: int, column: Column, canal: Canal | None) -> None:
    """Heights, depth and canal depth of a vertebra or disc; its outline is kept in `column`."""
    kind = STRUCTURES[sid].kind
    try:
        body = outline(scan, sid)
        if kind is Kind.VERTEBRA:
            column.plates[sid] = endplates(scan, sid, body, STRUCTURES[sid].name)
    except NotMeasured as reason:
        column.why[sid] = str(reason)
        refuse(row, HEIGHTS[: 3 if kind is Kind.VERTEBRA else 4] + HEIGHTS[4:], str(reason))
        return
    column.bodies[sid] = body
    row.update(heights(body, kind))
    if canal is not None:
        fill(row, "canal_depth_mm", canal.depth_at, body.center, body.axis)


def _sacrum(scan: Scan, column: Column, quality: float | None = None) -> None:
    """The sacrum's upper endplate and, where it shows one, its outline.

    Args:
        quality: of S1's outline; where it is low the disc above alone counts, and there is no corner for a slip.
    """
    last = next((sid for sid in reversed(scan.column) if STRUCTURES[sid].kind is Kind.VERTEBRA), None)
    if last is None or next_below(STRUCTURES[last], scan.ids) is not STRUCTURES[SACRUM_ID]:
        return
    present = SACRUM_ID in scan.column
    if present and scan.extent is not Extent.WHOLE:
        with suppress(NotMeasured):
            column.bodies[SACRUM_ID] = outline(scan, SACRUM_ID, may_be_cut=True)  # its upper half is what counts
    disc, body = disc_below(last), column.bodies.get(last)
    try:
        if body is None:
            raise NotMeasured(f"{STRUCTURES[last].name} above it has none")
        above = column.plates[last][1]
        seen = column.bodies.get(disc.id) if disc else None, above, body.back - body.front
        plate = sacral_endplate(scan, SACRUM_ID if present else None, *seen)
        if present and quality is not None and quality < LOW:
            poor = "the outline of S1 has a low quality"
            if seen[0] is None:
                raise NotMeasured(poor)
            plate = replace(sacral_endplate(scan, None, *seen), why=plate.why or poor)
        low, high = SACRAL_ANGLE
        if not low <= (turned := plate.tilt - above.tilt) <= high:
            raise NotMeasured(f"its outline would be turned by {turned:.0f}° against {STRUCTURES[last].name}")
    except NotMeasured as reason:
        column.why[SACRUM_ID] = str(reason)
    else:
        column.plates[SACRUM_ID] = (plate, plate)


def sacrum_is_broken(segmentation: Segmentation) -> bool:
    """Whether S1 is segmented below a lumbar vertebra, and lacks its upper endplate or that one's back corner.

    Then neither a slip nor an angle can rest on its outline.
    """
    scan = Scan(segmentation.labels, segmentation.scheme.extent)
    last = next((sid for sid in reversed(scan.column) if STRUCTURES[sid].kind is Kind.VERTEBRA), None)
    if SACRUM_ID not in scan.column or last is None or next_below(STRUCTURES[last], scan.ids) != STRUCTURES[SACRUM_ID]:
        return False
    column, disc = Column(), disc_below(last)
    for sid in (last, *([disc.id] if disc and disc.id in scan.ids else ())):
        _outline(new_row(), scan, sid, column, None)
    if last not in column.plates:  # its own outline is in question, or the image ends there
        return False
    _sacrum(scan, column)
    return SACRUM_ID not in column.plates or column.plates[SACRUM_ID][0].corner is None


def _without_lengths(row: Row) -> None:
    lengths = [key for key in row if key in EVERY and EVERY[key].has_scale and row[key] is not None]
    row.update(dict.fromkeys(lengths))
    row["notes"] = [n for n in row["notes"] if not (isinstance(n, Blank) and EVERY[n.key].has_scale)]
    row["notes"].append(f"Not given: lengths and volumes ({NO_SCALE}).")
