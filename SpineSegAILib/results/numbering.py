"""Whether the values of a label image can mean what they are taken for, and what else they may mean.

Programs number the spine each in its own way. What a value is taken for shows in where its voxels lie: levels run
downwards along the body, cervical ones lie close together, and no vertebra is as long as the canal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..anatomy import STRUCTURES, VALUE_MAPS, Kind, order_of, sorted_ids
from ..imaging import as_it_lies
from ..imaging.geometry import index_to_lps

_CLOSE_MM = 3.0  # centers that differ in height by less are in no order: neighbors of a strongly bent spine
_CLOSE_KINDS_MM = 6.0  # the same of a disc and a vertebra, whose processes point downwards
_LONGEST_VERTEBRA_MM = 100.0  # whole, with its processes; the sacrum is not asked
_CERVICAL_MM = 26.0  # from one cervical vertebra to the next, of tall people 22
_DIRECT = 10_000  # the largest value that is its own index in a list of boxes


@dataclass(frozen=True)
class Place:
    """Where a value's voxels lie.

    Attributes:
        height: of their center along the body, upwards (mm).
        length: along the body (mm).
    """

    height: float
    length: float


def places(labels: sitk.Image) -> dict[int, Place]:
    """Value → place, of every value above 0 in an image of whole numbers."""
    values = sitk.GetArrayViewFromImage(labels)
    found = [v for v in np.unique(values).tolist() if v > 0]
    matrix = index_to_lps(as_it_lies(labels))[2]  # of (i, j, k), 1: millimeters upwards
    compact = np.searchsorted([0, *found], values) if max(found, default=0) > _DIRECT else values
    boxes = ndimage.find_objects(compact.astype(np.int32, copy=False))
    result: dict[int, Place] = {}
    for value, box in zip(found, (box for box in boxes if box is not None), strict=True):
        index = np.argwhere(values[box] == value)[:, ::-1] + [axis.start for axis in box[::-1]]
        heights = index @ matrix[:3] + matrix[3]
        result[int(value)] = Place(float(heights.mean()), float(np.ptp(heights)))
    return result


def upside_down(where: Mapping[int, Place], least: int = 3) -> tuple[int, int] | None:
    """Two structures, the first of which should lie above the second and lies below it, if more pairs of levels are in
    the wrong order than in the right one; else None.

    Args:
        where: structure id → place.
        least: how many levels it takes to tell.
    """
    levels = _levels(where)
    if len(levels) < least:
        return None
    rising = [
        (upper, lower)
        for n, upper in enumerate(levels)
        for lower in levels[n + 1 :]
        if where[lower].height - where[upper].height > _CLOSE_MM
    ]
    falling = sum(
        where[upper].height - where[lower].height > _CLOSE_MM
        for n, upper in enumerate(levels)
        for lower in levels[n + 1 :]
    )
    widest = max(rising, key=lambda pair: where[pair[1]].height - where[pair[0]].height, default=None)
    return widest if len(rising) > falling else None


def out_of_order(where: Mapping[int, Place]) -> list[tuple[int, int]]:
    """Neighboring levels, upper and lower by their names, that lie the other way round."""
    found = []
    for upper, lower in pairwise(_levels(where)):
        alike = STRUCTURES[upper].kind is STRUCTURES[lower].kind
        if where[lower].height - where[upper].height > (_CLOSE_MM if alike else _CLOSE_KINDS_MM):
            found.append((upper, lower))
    return found


def implausible(where: Mapping[int, Place]) -> str:
    """Why the values of a label image cannot be the structures that they are taken for; empty if they can.

    Args:
        where: structure id → place.
    """
    wrong = upside_down(where, least=2)
    if wrong:
        return f"{STRUCTURES[wrong[1]].name} would lie above {STRUCTURES[wrong[0]].name}"
    vertebrae = [sid for sid in _levels(where) if STRUCTURES[sid].kind is Kind.VERTEBRA]
    for sid in vertebrae:
        if where[sid].length > _LONGEST_VERTEBRA_MM:
            return f"{STRUCTURES[sid].name} would be {where[sid].length:.0f} mm long"
    for upper, lower in pairwise(vertebrae):
        apart = where[upper].height - where[lower].height
        neighbours = order_of(lower) - order_of(upper) == 1
        if STRUCTURES[lower].name.startswith("C") and neighbours and apart > _CERVICAL_MM:
            return f"{STRUCTURES[upper].name} and {STRUCTURES[lower].name} would be {apart:.0f} mm apart"
    return ""


def fitting_numberings(where: Mapping[int, Place]) -> list[str]:
    """Names of `anatomy.VALUE_MAPS` in which values are structures that can lie where they do.

    Args:
        where: value → place.
    """
    return [name for name, table in VALUE_MAPS.items() if _fits(where, table)]


def _fits(where: Mapping[int, Place], table: Mapping[int, int]) -> bool:
    if not all(value in table for value in where):
        return False
    named: dict[int, Place] = {}
    for value, place in where.items():
        named.setdefault(table[value], place)  # the sacrum and its first body: either tells
    return not implausible(named)


def _levels(ids: Iterable[int]) -> list[int]:
    """Those that are vertebrae, discs or the sacrum of known level, top down by their names."""
    kinds = (Kind.VERTEBRA, Kind.DISC, Kind.SACRUM)
    return sorted_ids(i for i in ids if STRUCTURES[i].kind in kinds and STRUCTURES[i].order is not None)
