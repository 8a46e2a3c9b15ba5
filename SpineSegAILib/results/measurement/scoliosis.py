"""Scoliosis in films from the front: tilts of vertebrae, Cobb angles, curves with their end vertebrae and apex.

A film is a single slice of a scheme for radiographs. Angles need no pixel size; nothing else is measured here. A
curve's angle is that between the upper endplate of its upper end vertebra and the lower endplate of its lower one
(Cobb). A vertebra that is cut by the image's border, missing or doubtful has no tilt of its own. What its neighbors let
expect of it stands in where that can change an angle by 5° at most, and the table says so; elsewhere the angle is
blank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ...anatomy import STRUCTURES, T13_ID, Kind, order_of, structure
from ...hints import Point
from ...imaging import Geometry
from ...imaging.geometry import canonical_axes
from ..segmentation import Segmentation
from .bodies import CUT
from .cobb import Ends, completed, curves, set_angles_of
from .corners import Quad, fit_quad
from .definitions import SPINE
from .rows import NotMeasured, Row, finish, new_row, refuse
from .spine import LARGEST_TILT_ERROR

CURVE = "curve"
"""``kind`` of the row of a curve."""
_SET_ANGLES = ("cobb_main_deg", "cobb_upper_deg", "cobb_lower_deg")
_MOST_OFF = 5.0
"""Degrees by which an angle that is given may be off since vertebrae are estimated: as much as readers differ."""
LEAST_QUALITY = 0.2
"""Below, an outline has no corners. Where it is merely low they mostly serve: without them three films in ten have a
main angle, with them half, and no worse (`Testing/Benchmarks/films.py`)."""
Line = tuple[Point, Point]
"""Left and right end (LPS, mm), as the picture has them."""


@dataclass(frozen=True)
class Curve:
    """A curve of the column.

    Attributes:
        upper, lower, apex: ids of its end vertebrae, and of the vertebra furthest from the line between them.
        side: of the picture to which it is convex, ``"left"`` or ``"right"``.
        angle: Cobb's, degrees; None where it cannot be trusted.
        why: reason for that.
        note: what the angle depends on, a sentence, or nothing.
        lines: upper endplate of the upper end vertebra, lower one of the lower.
    """

    upper: int
    lower: int
    apex: int
    side: str
    angle: float | None
    why: str
    note: str
    lines: tuple[Line, Line]

    @property
    def name(self) -> str:
        """``"T5–T11"``."""
        return f"{STRUCTURES[self.upper].name}–{STRUCTURES[self.lower].name}"


@dataclass(frozen=True)
class SetAngles:
    """The angles of `cobb.set_angles`.

    Attributes:
        degrees: main, upper and lower one.
        missing: ids of the vertebrae that are estimated.
        off: by how many degrees each angle may be off for that.
        most: id of the vertebra for which it may be off most; None where none is estimated.
    """

    degrees: tuple[float, ...]
    missing: tuple[int, ...]
    off: tuple[float, ...]
    most: tuple[int | None, ...]

    @property
    def largest_error(self) -> float:
        """The largest `off` of the angles that are certain enough."""
        return max((off for off in self.off if off <= _MOST_OFF), default=0.0)


class FilmSpine:
    """The vertebrae of a film as quadrangles.

    Attributes:
        scheme: ids of the vertebrae that the angles of `cobb.set_angles` are of, top down, from T1 to L5.
        quads: vertebra's id → its quadrangle, top down; columns and rows in units of a row's height.
        why: vertebra's id → why it has none that can be trusted.
    """

    def __init__(self, segmentation: Segmentation) -> None:
        labels = segmentation.labels
        self._image = labels
        self._axes, self._flips = canonical_axes(Geometry.of(labels))
        array = sitk.GetArrayViewFromImage(labels).transpose(self._axes)
        flip = tuple(slice(None, None, -1 if flipped else 1) for flipped in self._flips)
        self.labels: np.ndarray = array[flip][0]
        spacing = np.array(labels.GetSpacing()[::-1])[list(self._axes)]
        self._wide = float(spacing[2] / spacing[1])
        ids = [sid for sid in segmentation.present if STRUCTURES[sid].kind is Kind.VERTEBRA]
        self.ids = sorted((sid for sid in ids if STRUCTURES[sid].order is not None), key=order_of)
        # Readers may add C7 or L6, which the angles of the set do not know, or a T13, which lies between others.
        first, last = (order_of(structure(name).id) for name in ("T1", "L5"))
        expected = {sid for sid in segmentation.scheme.of_kind(Kind.VERTEBRA) if STRUCTURES[sid].order is not None}
        if T13_ID not in self.ids:
            expected.discard(T13_ID)
        self.scheme = sorted((sid for sid in expected if first <= order_of(sid) <= last), key=order_of)
        self.quads: dict[int, Quad] = {}
        self.why: dict[int, str] = {}
        self._fit(segmentation.outline_quality)
        known = {place: self.quads[sid].corners for place, sid in enumerate(self.scheme) if sid in self.quads}
        self._column = completed(known, len(self.scheme))

    def _fit(self, quality: Mapping[int, float]) -> None:
        centers = {sid: np.array(ndimage.center_of_mass(self.labels == sid))[::-1] for sid in self.ids}
        for at, sid in enumerate(self.ids):
            mask = self.labels == sid
            ends = self.ids[max(at - 1, 0)], self.ids[min(at + 1, len(self.ids) - 1)]
            down = centers[ends[1]] - centers[ends[0]] if ends[0] != ends[1] else np.array([0.0, 1.0])
            try:
                if self.is_cut(sid):
                    raise NotMeasured(CUT)
                if quality.get(sid, 1.0) < LEAST_QUALITY:
                    raise NotMeasured("its outline is doubtful")
                quad = fit_quad(mask, down)
                if quad.tilt_error > LARGEST_TILT_ERROR:
                    raise NotMeasured(f"its outline is rough, with an error of about {quad.tilt_error:.0f}°")
            except NotMeasured as reason:
                self.why[sid] = str(reason)
            else:
                self.quads[sid] = Quad(quad.corners * [self._wide, 1.0], quad.tilt_error)

    def is_cut(self, sid: int) -> bool:
        """Whether the image's border cuts a vertebra."""
        mask = self.labels == sid
        return bool(mask[[0, -1]].any() or mask[:, [0, -1]].any())

    def point(self, place: np.ndarray) -> Point:
        """Physical point (LPS, mm) of a column and row of `quads`."""
        canonical = (0.0, float(place[1]), float(place[0]) / self._wide)
        index = [0.0, 0.0, 0.0]
        for axis, flipped, value in zip(self._axes, self._flips, canonical, strict=True):
            index[axis] = self._image.GetSize()[2 - axis] - 1 - value if flipped else value
        x, y, z = self._image.TransformContinuousIndexToPhysicalPoint(index[::-1])
        return x, y, z

    def set_angles(self) -> SetAngles:
        """The three angles of `cobb.set_angles`.

        Raises:
            NotMeasured: hardly a vertebra is wholly in view and certain.
        """
        column = self._column
        if column is None:
            raise NotMeasured("fewer than two vertebrae are certain")
        degrees, changes = set_angles_of(column, self.labels.shape[0])
        missing = tuple(self.scheme[place] for place in column.off)
        if not missing:
            return SetAngles(tuple(degrees.tolist()), (), (0.0,) * 3, (None,) * 3)
        most = tuple(missing[row] for row in changes.argmax(axis=0))
        return SetAngles(tuple(degrees.tolist()), missing, tuple(changes.max(axis=0).tolist()), most)

    def curves(self) -> list[Curve]:
        """The curves of at least `cobb.LEAST_CURVE`, top down."""
        ids = list(self.quads)
        tilts = [self.quads[sid].tilt for sid in ids]
        centers = np.array([self.quads[sid].center for sid in ids]).reshape(-1, 2)
        return [self._curve(ids, ends) for ends in curves(tilts, centers)]

    def _curve(self, ids: list[int], ends: Ends) -> Curve:
        upper, lower = ids[ends.upper], ids[ends.lower]
        lines = [self.quads[sid].plate(which) for sid, which in ((upper, 0), (lower, 1))]
        angle: float | None = abs(self.quads[lower].plate_tilt(1) - self.quads[upper].plate_tilt(0))
        why = note = ""
        way = np.sign(self.quads[lower].tilt - self.quads[upper].tilt)
        beside = [found for sid, sign in ((upper, -way), (lower, way)) for found in self._beside(sid, sign)]
        for other, sid, more in beside:
            if more > _MOST_OFF:
                angle, why = None, f"{STRUCTURES[sid].name} may not be its end: {self.missing(other)}"
                break
        else:
            if beside:
                note = _estimated([other for other, _, _ in beside], max(more for _, _, more in beside))
        (a, b), (c, d) = ((self.point(left), self.point(right)) for left, right in lines)
        return Curve(upper, lower, ids[ends.apex], ends.side, angle, why, note, ((a, b), (c, d)))

    def _beside(self, sid: int, sign: float) -> list[tuple[int, int, float]]:
        """The vertebrae beside an end that have no tilt of their own, the end, and by how many degrees they may be more
        tilted, where they may be.

        Args:
            sign: of the tilt of such an end.
        """
        column = self._column
        if column is None or sid not in self.scheme:
            return []
        at = self.scheme.index(sid)
        result = []
        for place in (at - 1, at + 1):
            if place not in column.off:
                continue
            tilt = Quad(column.corners[place], 0.0).tilt
            more = float(sign * (tilt - self.quads[sid].tilt) + column.off[place])
            if more > 0:
                result.append((self.scheme[place], sid, more))
        return result

    def missing(self, sid: int) -> str:
        """Why a vertebra has no quadrangle, with its name."""
        name = STRUCTURES[sid].name
        return f"{name}: {self.why[sid]}" if sid in self.why else f"{name} is not segmented"


def _estimated(ids: Iterable[int], off: float) -> str:
    """The note about vertebrae that are estimated."""
    names = ", ".join(STRUCTURES[sid].name for sid in ids)
    return f"With the tilt of {names} as the neighbors let expect: it may be off by {off:.0f}°."


def is_film(segmentation: Segmentation) -> bool:
    """Whether a result is of a film, with levels: a single slice, of a scheme for radiographs."""
    return (
        segmentation.scheme.modality == "XR"
        and 1 in segmentation.labels.GetSize()
        and any(s.order is not None for s in segmentation.scheme.structures)
    )


def film_rows(segmentation: Segmentation) -> list[Row]:
    """Rows of a film: vertebrae top down, then curves, then the spine as a whole."""
    spine = FilmSpine(segmentation)
    present = segmentation.present
    rows = []
    for sid in present:
        row = new_row(
            id=sid,
            structure=STRUCTURES[sid].name,
            name=segmentation.name_of(sid, present),
            kind=STRUCTURES[sid].kind.value,
            outline_quality=segmentation.outline_quality.get(sid),
            unvalidated=sid in segmentation.unvalidated,
            touches_border=spine.is_cut(sid),
        )
        if sid in spine.quads:
            row["tilt_deg"] = spine.quads[sid].tilt
        elif sid in spine.why:
            refuse(row, ("tilt_deg",), spine.why[sid])
        rows.append(row)
    for curve in spine.curves():
        apex, side = STRUCTURES[curve.apex].name, curve.side
        row = new_row(id=0, structure=curve.name, name=f"curve {curve.name}", kind=CURVE, curve_deg=curve.angle)
        if curve.angle is None:
            refuse(row, ("curve_deg",), curve.why)
        row["notes"].append(f"Apex {apex}, convex to the {side} of the picture.")
        if curve.note:
            row["notes"].append(curve.note)
        rows.append(row)
    whole = new_row(
        id=0, structure=SPINE, name="whole spine", kind=SPINE, level_confidence=segmentation.level_confidence
    )
    try:
        found = spine.set_angles()
    except NotMeasured as reason:
        refuse(whole, _SET_ANGLES, str(reason))
    else:
        for key, degrees, off, most in zip(_SET_ANGLES, found.degrees, found.off, found.most, strict=True):
            if most is not None and off > _MOST_OFF:
                refuse(whole, (key,), spine.missing(most))
            else:
                whole[key] = degrees
        if found.largest_error >= 0.5:
            whole["notes"].append(_estimated(found.missing, found.largest_error))
    return [finish(row) for row in (*rows, whole)]
