"""How large the vertebrae of an image are beside an adult's."""

from __future__ import annotations

import math

from ..anatomy import Kind, ranks
from .result import LevelResult
from .sequence import relative_pitch

USUAL_PITCH_MM = 37.3
"""Distance between the centroids of L3 and L4 in adults: median of 44 cases with drawn vertebrae, which lay between
31.9 and 41.7 mm."""


def relative_size(levels: LevelResult) -> float | None:
    """Distance from vertebra to vertebra, as a multiple of an adult's at the same levels.

    Returns:
        None where fewer than three whole vertebrae follow one another.
    """
    rank = ranks(i.structure_id for i in levels.instances if i.structure_id)
    vertebrae = [
        i for i in levels.instances if i.kind == Kind.VERTEBRA.value and i.structure_id in rank and not i.touches_border
    ]
    placed = sorted(((rank[i.structure_id], i.centroid_mm) for i in vertebrae), key=lambda pair: pair[0])
    pitches = sorted(
        math.dist(lower, upper) / relative_pitch(level)
        for (level, upper), (below, lower) in zip(placed[1:], placed[:-1], strict=True)
        if level == below + 1
    )
    return pitches[len(pitches) // 2] / USUAL_PITCH_MM if len(pitches) >= 2 else None
