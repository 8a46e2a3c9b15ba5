"""What a film from the front may be instead: its negative, two films beside each other, a lateral one, one of something
else. Told from how the network sees it, since pictures tell nothing of themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import ndimage

from ..anatomy import STRUCTURES, Kind
from ..consistency import LevelResult
from ..errors import ImageError
from ..evidence import Evidence
from ..imaging import CanonicalVolume
from .second_look import AS_IT_IS, Look, See, looks

_LEAD = 1.0  # points of `Look.score` by which a negative must be seen better
_LEAST_PAIRS = 5  # vertebrae that have a twin beside them
_LEAST_SHARE, _LEAST_OVERLAP, _LEAST_APART = 0.35, 0.5, 1.8
_NARROWEST = 1.25
"""Width over height, in the median of a film's vertebrae: from the front 1.29 to 4 in 439 films with T1 to L5; bodies
that are seen from the side are about as deep as they are high."""
_WIDE = 0.75  # width over height of a picture; films of a whole spine had at most 0.56
_FEW = 6
_HARDLY = 0.7  # certainty

NEGATIVE = "The picture is a negative (bone dark on a bright ground); it was segmented with its gray values inverted."
TWO_COLUMNS = "The picture seems to show two spines beside each other, as two films in one picture do."


def negative(volume: CanonicalVolume) -> CanonicalVolume:
    """The volume with its gray values inverted."""
    return replace(volume, array=-volume.array)


def is_negative(volume: CanonicalVolume, see: See, look: Look) -> bool:
    """Whether a film shows a spine better with its gray values inverted.

    Args:
        look: at it as it is.
    """
    if look.is_plain:
        return False
    other = looks(negative(volume), see, (AS_IT_IS,)).get(AS_IT_IS)
    return other is not None and other.score >= look.score + _LEAD


def refuse_two_columns(evidence: Evidence, volume: CanonicalVolume) -> None:
    """Raises:
    ImageError: there are two columns of vertebrae beside each other.
    """
    if _pairs(1 - evidence.kind_probabilities()[0, 0] > 0.5, volume.spacing[1:]) >= _LEAST_PAIRS:
        raise ImageError(TWO_COLUMNS, "Cut it into two pictures and segment each, or export the films one by one.")


def _pairs(mask: np.ndarray, spacing: tuple[float, float]) -> int:
    """How many vertebrae of a mask (rows, columns) have another of their size beside them."""
    parts, count = ndimage.label(mask)
    if count < 2:
        return 0
    sizes = np.bincount(parts.ravel())[1:]
    boxes = ndimage.find_objects(parts)
    usual = float(np.median(np.sort(sizes)[-20:]))
    large = [box for box, size in zip(boxes, sizes, strict=True) if size >= _LEAST_SHARE * usual]
    found = 0
    for number, (rows, columns) in enumerate(large):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        for other_rows, other_columns in large[number + 1 :]:
            shared = min(rows.stop, other_rows.stop) - max(rows.start, other_rows.start)
            apart = abs((columns.start + columns.stop) - (other_columns.start + other_columns.stop)) / 2
            least = min(height, other_rows.stop - other_rows.start)
            if shared >= _LEAST_OVERLAP * least and apart >= _LEAST_APART * width:
                found += 1
                break
    return found


def film_doubts(volume: CanonicalVolume, levels: LevelResult | None, look: Look | None) -> list[str]:
    """Sentences for the reader of a result: why a picture may not be a film of the spine from the front."""
    _, rows, columns = volume.array.shape
    vertebrae = [] if levels is None else _vertebrae(levels)
    result = []
    if look is not None and len(vertebrae) >= _FEW and look.certainty < _HARDLY:
        result.append(
            "Vertebrae were hardly recognized: if this is not a frontal film of the spine (but a lateral one, a "
            "photograph of a screen or the like), the result means nothing."
        )
    if len(vertebrae) < _FEW:
        result.append(
            f"Only {len(vertebrae)} vertebrae were found: if this is not a frontal film of the spine (but one of "
            "the chest, a lateral one or the like), their names mean nothing."
        )
    elif _shape(levels, vertebrae, volume.spacing[1:]) < _NARROWEST:
        result.append(
            "The vertebrae are hardly wider than high, as in a lateral film: if it is one, names and angles mean "
            "nothing. Choose a film from the front."
        )
    if columns * volume.spacing[2] > _WIDE * rows * volume.spacing[1]:
        result.append(
            "The picture is wide for a film of the spine. Of a chest film or one of several parts names and angles may "
            "be wrong: cut the picture to the spine, with L5 at its lower end."
        )
    return result


def _vertebrae(levels: LevelResult) -> list[int]:
    named = {i.structure_id for i in levels.instances if i.structure_id}
    return [sid for sid in named if STRUCTURES[sid].kind is Kind.VERTEBRA]


def _shape(levels: LevelResult | None, vertebrae: list[int], spacing: tuple[float, float]) -> float:
    """Width over height of the vertebrae, in the median, by the spread of their pixels along their own axes."""
    assert levels is not None
    shapes = []
    for sid in vertebrae:
        points = np.argwhere(levels.labels[0] == sid) * spacing
        if len(points) < 8:
            continue
        values, vectors = np.linalg.eigh(np.cov(points.T))
        across = int(np.argmax(np.abs(vectors[1])))  # the axis that lies more along the columns
        shapes.append(float(np.sqrt(values[across] / max(values[1 - across], 1e-9))))
    return float(np.median(shapes)) if shapes else np.inf
