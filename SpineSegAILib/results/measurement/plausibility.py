"""What a measurement may be: a value that anatomy does not allow is left blank, an unusual one is noted.

“Usual” is where healthy and degenerated adults lie; a value beyond it may be a finding, or an outline to correct, and
the reader is warned. “Possible” is beyond what disease does; a value outside of it is an error of the outline.

Where the numbers come from: the reference outlines of 80 public cases (13 T2 exams of 1.5 T, 37 water images of 3 T,
30 T2 SPACE exams with degeneration, fractures and metal), of which the usual ranges hold all but a few per hundred, and
the literature where it is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ...anatomy import Kind, order_of
from ..quality import LOW
from .definitions import EVERY, SPINE
from .rows import HEIGHTS, Row, label, refuse


@dataclass(frozen=True)
class Limit:
    """The range of a measurement.

    Attributes:
        key: of the measurement.
        of: names or kinds of the structures it is for; the first limit that fits a structure counts.
        usual, possible: lowest and highest value.
        finding: what a value beyond the usual may be.
    """

    key: str
    of: frozenset[str]
    usual: tuple[float, float]
    possible: tuple[float, float]
    finding: str = ""


def _limit(key: str, of: str, usual: tuple[float, float], possible: tuple[float, float], finding: str = "") -> Limit:
    return Limit(key, frozenset(of.split()), usual, possible, finding)


SACRAL_ANGLE = (-5.0, 42.0)
"""Degrees between the last lumbar vertebra and S1 that are possible; beyond it S1's endplate is not believed at all.
References have 0 to 24, placed corners of ten water images −1 to 27."""
_FRACTURE = "a fracture or anomaly"
LIMITS: tuple[Limit, ...] = (
    # Whole bodies of adults: 15 to 45 mL below T9, 60 mL in the largest of the references; whole vertebrae twice that.
    _limit("volume_ml", "vertebra", (5.0, 90.0), (0.5, 200.0)),
    _limit("volume_ml", "disc", (1.0, 30.0), (0.1, 60.0)),
    # References: 20 to 33 mm in 95 of 100 at T11 to L5; crushed bodies down to 8 mm. Giants have 40 mm.
    _limit("height_anterior_mm", "vertebra", (14.0, 36.0), (3.0, 50.0), _FRACTURE),
    _limit("height_middle_mm", "vertebra", (14.0, 34.0), (3.0, 50.0), _FRACTURE),
    _limit("height_posterior_mm", "vertebra", (14.0, 36.0), (3.0, 50.0), _FRACTURE),
    # References: 2 to 14 mm; collapsed discs down to nothing.
    _limit("height_anterior_mm", "disc", (2.0, 17.0), (0.0, 25.0), "a collapsed disc"),
    _limit("height_middle_mm", "disc", (2.0, 16.0), (0.0, 25.0), "a collapsed disc"),
    _limit("height_posterior_mm", "disc", (1.0, 14.0), (0.0, 25.0), "a collapsed disc"),
    _limit("height_mean_mm", "disc", (2.0, 15.0), (0.0, 25.0), "a collapsed disc"),
    # References: 24 to 39 mm; discs bulge by a few.
    _limit("depth_mm", "vertebra", (22.0, 44.0), (12.0, 60.0)),
    _limit("depth_mm", "disc", (20.0, 48.0), (10.0, 65.0)),
    # Relative stenosis below 12 mm, absolute below 10 mm (Verbiest); references 6 to 19 mm.
    _limit("canal_depth_mm", "vertebra disc", (10.0, 22.0), (2.0, 40.0), "a stenosis"),
    _limit("disc_height_index", "disc", (0.08, 0.6), (0.0, 1.2), "a collapsed disc"),
    # References, 95 of 100: −12 to 2 degrees at T11 to L1, −9 to 8 at L2 to L4, −2 to 18 at L5; wedge fractures: 30.
    _limit("endplate_angle_deg", "L5 L6", (-3.0, 20.0), (-30.0, 45.0), _FRACTURE),
    _limit("endplate_angle_deg", "L2 L3 L4", (-10.0, 10.0), (-35.0, 35.0), _FRACTURE),
    _limit("endplate_angle_deg", "vertebra", (-15.0, 7.0), (-40.0, 30.0), _FRACTURE),
    # L5/S1 opens to the front by 5 to 30 degrees (standing adults, and placed corners of ten water images: −1 to 27).
    _limit("endplate_angle_deg", "L5/S1 L6/S1", (0.0, 32.0), SACRAL_ANGLE),
    # References, 95 of 100: −5 to 18 degrees at T12/L1 to L4/L5.
    _limit("endplate_angle_deg", "disc", (-6.0, 21.0), (-18.0, 32.0)),
    # Anterolisthesis counts from 3 mm, retrolisthesis likewise; outlines put healthy levels at −5 to +1 mm, since lower
    # back corners stand behind upper ones. Half an endplate (17 mm) is Meyerding's grade II; more is hardly ever met,
    # nor more than 8 mm backwards.
    _limit("slip_mm", "vertebra", (-5.0, 3.0), (-9.0, 20.0), "a listhesis"),
    # Standing adults have 40 to 80 degrees from L1 to S1 (20 to 85 with flat backs), lying 5 to 10 less; L1 to L5 of
    # the references 20 to 64.
    _limit("lordosis_deg", SPINE, (20.0, 85.0), (-20.0, 110.0), "a flat or hollow back"),
    _limit("lordosis_l1_l5_deg", SPINE, (10.0, 70.0), (-30.0, 95.0), "a flat or hollow back"),
    # 10 degrees and more are a scoliosis by definition; references up to 29.
    _limit("scoliosis_deg", SPINE, (0.0, 40.0), (0.0, 100.0), "a severe scoliosis"),
)
"""Every limit, in the order in which they are looked for."""

# Heights of a body beside its neighbors', as the references have them in the median (mm, anterior, middle, posterior).
_EXPECTED: Mapping[str, tuple[float, float, float]] = {
    "T9": (18.8, 19.0, 20.0), "T10": (20.0, 20.5, 22.0), "T11": (21.9, 21.5, 24.0), "T12": (24.3, 23.3, 26.0),
    "T13": (25.0, 24.0, 26.5), "L1": (25.8, 24.6, 26.8), "L2": (27.2, 25.0, 27.4), "L3": (28.3, 25.0, 27.4),
    "L4": (27.6, 24.3, 26.4), "L5": (28.6, 24.2, 23.6), "L6": (28.0, 24.0, 22.5),
}  # fmt: skip
_NEIGHBOURS = 3  # levels up and down: enough to outvote one other damaged body
_LOSS = 0.2  # of the height that the neighbors let expect: Genant's mild fracture
_EXCESS = 0.35  # more than that no body is higher than its neighbors
_DISC_COVER = 0.75  # of the depth of the vertebra above: less, and the heights are not where their names say
_LEAST_DISC_COVER = 0.5


def check(rows: Iterable[Row], *, scale_known: bool = True) -> None:
    """Leaves impossible values of the rows blank, and notes what is unusual and which outlines are doubtful.

    Args:
        scale_known: whether millimeters mean something; if not, only angles and ratios are looked at.
    """
    rows = list(rows)
    for row in rows:
        quality = row["outline_quality"]
        if quality is not None and quality < LOW:
            row["notes"].append(f"Low outline quality ({quality:.2f}): please check the outline.")
        _within_limits(row, scale_known)
        _lordosis_beside_itself(row)
    if scale_known:
        _discs_beside_vertebrae(rows)
    _bodies_beside_neighbours(rows)


def limit_of(key: str, row: Row) -> Limit | None:
    """The limit of a measurement for a structure."""
    return next((x for x in LIMITS if x.key == key and x.of & {row["structure"], row["kind"]}), None)


def _within_limits(row: Row, scale_known: bool) -> None:
    for key, m in EVERY.items():
        value, limit = row[key], limit_of(key, row)
        if value is None or limit is None or (m.has_scale and not scale_known):
            continue
        said = f"{value:.2f}" if not m.unit else f"{value:.1f} {m.unit}" if m.has_scale else f"{value:.0f}{m.unit}"
        if not limit.possible[0] <= value <= limit.possible[1]:
            refuse(row, (key,), f"{said} is not possible, so the outline must be wrong")
        elif not limit.usual[0] <= value <= limit.usual[1]:
            low, high = (f"{x:g}" for x in limit.usual)
            causes = f"{limit.finding}, or an outline to correct" if limit.finding else "please check the outline"
            row["notes"].append(f"Unusual {label(key)} ({said}, usually {low} to {high}): {causes}.")


def _lordosis_beside_itself(row: Row) -> None:
    """The last disc opens to the front, so that the lordosis to S1 is the larger one."""
    whole, part = row["lordosis_deg"], row["lordosis_l1_l5_deg"]
    if whole is not None and part is not None and whole < part:
        row["notes"].append(
            f"Unusual lordosis: L1–S1 ({whole:.0f}°) is less than L1–L5 ({part:.0f}°); please check the outline of S1."
        )


def _discs_beside_vertebrae(rows: list[Row]) -> None:
    """A disc that reaches along too little of its vertebra lacks its front or back."""
    by_id = {row["id"]: row for row in rows}
    for row in rows:
        above = by_id.get(row["id"] - 100)  # the vertebra above
        if row["kind"] != Kind.DISC.value or above is None or not (row["depth_mm"] and above["depth_mm"]):
            continue
        cover = row["depth_mm"] / above["depth_mm"]
        if cover < _LEAST_DISC_COVER:
            keys = (*HEIGHTS, "disc_height_index")
            refuse(row, keys, f"its outline covers only {100 * cover:.0f} % of the depth of {above['structure']}")
        elif cover < _DISC_COVER:
            row["notes"].append(
                f"Its outline covers only {100 * cover:.0f} % of the depth of {above['structure']}: anterior and "
                "posterior height are not those of its rims."
            )


def _bodies_beside_neighbours(rows: list[Row]) -> None:
    """Each height against what the neighbors' let expect."""
    bodies = [r for r in rows if r["kind"] == Kind.VERTEBRA.value and r["structure"] in _EXPECTED]
    ratios = {
        r["id"]: [
            None if r[key] is None else r[key] / usual
            for key, usual in zip(HEIGHTS[:3], _EXPECTED[r["structure"]], strict=True)
        ]
        for r in bodies
    }
    for row in bodies:
        near = [
            ratios[other["id"]]
            for other in bodies
            if other is not row and abs(order_of(other["id"]) - order_of(row["id"])) <= _NEIGHBOURS
        ]
        known = [x for three in near for x in three if x is not None]
        if len(known) < 6:  # two bodies
            continue
        size = float(np.median(known))
        odd = [
            f"{label(key)} {abs(ratio / size - 1) * 100:.0f} % {'less' if ratio < size else 'more'}"
            for key, ratio in zip(HEIGHTS[:3], ratios[row["id"]], strict=True)
            if ratio is not None and not 1 - _LOSS <= ratio / size <= 1 + _EXCESS
        ]
        if odd:
            row["notes"].append(
                f"Unusual beside its neighbors ({', '.join(odd)} than expected): a fracture or anomaly, or an outline "
                "to correct."
            )
