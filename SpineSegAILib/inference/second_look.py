"""A second look at a doubtful result: does the spine lie as the image's header says, and is it an adult's?

A lumbar column bows forwards, most sharply at its lower end, and leans forwards on its way down (`Bow`). That needs no
other look: it did so in each of 80 exams whose bodies were outlined by readers. Only where a column does otherwise, or
where the network hardly recognizes one, it looks again, at some slices of the middle that are turned in other ways.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import SimpleITK as sitk

from ..anatomy import KINDS, Kind
from ..consistency import LevelResult, relative_size
from ..errors import ImageError
from ..evidence import Evidence
from ..imaging import CanonicalVolume, Preprocessing, as_volume
from ..imaging.geometry import direction_of
from ..imaging.tags import DIRECTION_TAG

See = Callable[[CanonicalVolume], tuple[Evidence, LevelResult | None]]
"""A network's pass over a preprocessed volume."""

_SLICES, _MIDDLE = 5, (0.35, 0.65)
_LEAST_PIXELS = 64
_VERTEBRAE = 4
_PLAIN = 0.89  # certainty of whole spines that are seen as the network has learned them: 0.92 to 0.96
_UPRIGHT = 0.84  # certainty of spines that lie across is 0.6 to 0.81, from 0.87 where they are turned otherwise
_LEAD = 1.0  # points of `Look.score`: the right way led over front-to-back ones by 2 to 8
_MOST_ODDS = 7.0
_SMALL_SCALE = 0.6
SMALL = 0.75
"""Vertebrae this small beside an adult's are a child's, no lumbar ones, or several that were taken for one."""
_THICKER = 1.5
_COLUMN = {Kind.VERTEBRA.value, Kind.DISC.value, Kind.SACRUM.value}
_LEAST_POINTS, _LEAST_LENGTH_MM = 5, 100.0
_LEAST_DEPTH_MM, _LEAST_DESCENT_MM = 2.0, 4.0


@dataclass(frozen=True)
class Bow:
    """How a column runs on its way down: Legendre coefficients (mm) of its place from front to back.

    Attributes:
        lean: half of the way backwards from its upper to its lower end, on the whole; negative where it leans forwards.
        depth: positive where its ends lie further back than its middle.
        skew: positive where it turns backwards at its lower end rather than at its upper one.
    """

    lean: float
    depth: float
    skew: float

    @classmethod
    def of(cls, levels: LevelResult) -> Bow | None:
        """Of the vertebrae and discs that have names; None where they are too few."""
        points = [i.centroid_mm[1:] for i in levels.instances if i.structure_id and i.kind in _COLUMN]
        if len(points) < _LEAST_POINTS:
            return None
        down, back = np.array(points).T
        length = np.ptp(down)
        if length < _LEAST_LENGTH_MM:
            return None
        _, lean, depth, skew = np.polynomial.legendre.legfit(2 * (down - down.min()) / length - 1, back, 3)
        return cls(float(lean), float(depth), float(skew))

    @property
    def descent(self) -> float:
        """Positive where the column runs down: 0.8 and more in upright exams, and the same below 0 in those turned."""
        return self.skew - self.lean / 2

    @property
    def is_reversed(self) -> bool:
        """Whether it bows backwards, as in an image that is turned front to back, and where there is a kyphosis."""
        return self.depth < -_LEAST_DEPTH_MM

    @property
    def is_upside_down(self) -> bool:
        """Whether it bows forwards, and runs up."""
        return self.depth > 0 and self.descent < -_LEAST_DESCENT_MM

    @property
    def is_upright(self) -> bool:
        """Whether it plainly bows forwards and runs down."""
        return self.depth > 0 and self.descent > 0


@dataclass(frozen=True)
class Look:
    """How well the network recognizes a lumbar spine.

    Attributes:
        vertebrae: named ones.
        margin: log odds of the naming.
        certainty: mean probability of what each voxel of the spine is taken for, in the middle slices.
        size: of the vertebrae, over an adult's, or None.
        bow: of the column, or None.
    """

    vertebrae: int
    margin: float
    certainty: float
    size: float | None = None
    bow: Bow | None = None

    @classmethod
    def of(cls, evidence: Evidence, levels: LevelResult) -> Look:
        """At a result."""
        maps = {name: m for name in ("classes", "kinds") if (m := getattr(evidence, name)) is not None}
        kinds = replace(evidence, **{k: m[:, _middle(m.shape[1])] for k, m in maps.items()}).kind_probabilities()
        spine = kinds.argmax(0) != KINDS.index("background")
        return cls(
            vertebrae=sum(i.structure_id > 0 and i.kind in ("vertebra", "sacrum") for i in levels.instances),
            margin=levels.margin if levels.sequence else 0.0,
            certainty=float(kinds.max(0)[spine].mean()) if spine.any() else 0.0,
            size=relative_size(levels),
            bow=Bow.of(levels),
        )

    @property
    def score(self) -> float:
        """Percent of certainty, and half the log odds; nothing where there is no spine."""
        return 100.0 * self.certainty + min(self.margin, _MOST_ODDS) / 2.0 if self.vertebrae >= _VERTEBRAE else 0.0

    @property
    def is_plain(self) -> bool:
        """Whether there is a spine for certain."""
        return self.vertebrae >= _VERTEBRAE and self.certainty > _PLAIN


@dataclass(frozen=True)
class Turn:
    """A way to turn slices: rows and columns exchanged or not, then flipped.

    Attributes:
        words: for a reader, how the picture stands where this turn puts it right.
    """

    words: str
    exchanged: bool = False
    rows_flipped: bool = False
    columns_flipped: bool = False

    def apply(self, volume: CanonicalVolume) -> CanonicalVolume:
        """The volume with its slices turned; its geometry is no longer true."""
        array = volume.array.transpose(0, 2, 1) if self.exchanged else volume.array
        array = array[:, :: -1 if self.rows_flipped else 1, :: -1 if self.columns_flipped else 1]
        slices, rows, columns = volume.spacing
        spacing = (slices, columns, rows) if self.exchanged else volume.spacing
        return replace(volume, array=np.ascontiguousarray(array), spacing=spacing)

    @property
    def doubt(self) -> str:
        """For the reader of a result, where this turn would put the picture right."""
        return (
            f"The picture seems to be {self.words}: the spine does not lie as the header says. If so, all names and "
            "measurements are wrong: correct the orientation in the header and segment again."
        )

    def direction(self, volume: CanonicalVolume) -> tuple[float, ...]:
        """The direction of the source with which it would be so."""
        (slices, rows, columns), (slice_flip, row_flip, column_flip) = volume.axes, volume.flips
        if self.exchanged:
            rows, columns, row_flip, column_flip = columns, rows, column_flip, row_flip
        flips = (slice_flip, row_flip != self.rows_flipped, column_flip != self.columns_flipped)
        return direction_of((slices, rows, columns), flips)


AS_IT_IS = Turn("as it is")
UPSIDE_DOWN = Turn("upside down", rows_flipped=True)
_REVERSED = (
    Turn("turned front to back", columns_flipped=True),
    Turn("turned by 180° (upside down and front to back)", rows_flipped=True, columns_flipped=True),
)
_ACROSS = (
    Turn("lying on its side, with rows and columns exchanged", exchanged=True),
    Turn("turned by 90°", exchanged=True, rows_flipped=True),
    Turn("turned by 270°", exchanged=True, columns_flipped=True),
    Turn("lying on its side, with rows and columns exchanged and turned", True, True, True),
)


def is_large(volume: CanonicalVolume) -> bool:
    """Whether there is enough to look at."""
    return min(volume.array.shape[1:]) >= _LEAST_PIXELS


def looks(volume: CanonicalVolume, see: See, turns: tuple[Turn, ...]) -> dict[Turn, Look]:
    """The middle slices turned in each of these ways."""
    slab = replace(volume, array=np.ascontiguousarray(volume.array[_middle(len(volume.array))]))
    seen = {turn: see(turn.apply(slab)) for turn in turns}
    return {turn: Look.of(evidence, levels) for turn, (evidence, levels) in seen.items() if levels is not None}


def better_turn(volume: CanonicalVolume, see: See, look: Look) -> Turn | None:
    """The way in which a picture seems to stand against its header; None where nothing speaks against the header.

    Args:
        look: at its result.
    """
    if look.certainty < _UPRIGHT:
        turns: tuple[Turn, ...] = _ACROSS
    elif look.bow is not None and look.bow.is_reversed:
        turns = _REVERSED
    elif look.bow is not None and look.bow.is_upside_down:
        # So do a few short views of a steep lordosis; but there the network plainly knows the spine better as it is.
        seen = looks(volume, see, (AS_IT_IS, UPSIDE_DOWN))
        return UPSIDE_DOWN if seen[UPSIDE_DOWN].score > seen[AS_IT_IS].score else None
    else:
        return None
    seen = looks(volume, see, (AS_IT_IS, *turns))
    best = max(turns, key=lambda turn: seen[turn].score)
    return best if seen[best].is_plain and seen[best].score >= seen[AS_IT_IS].score + _LEAD else None


def as_found(image: sitk.Image, preprocessing: Preprocessing, see: See) -> tuple[sitk.Image, list[str]]:
    """An image whose file does not tell how it lies, with the direction that it plainly shows (`tags.DIRECTION_TAG`).

    Slices of a sagittal stack are thicker than its pixels are wide; how they are turned, the network tells. A single
    slice is what it is.

    Returns:
        The image, and what its reader should know.

    Raises:
        ImageError: it is not such a stack, or shows no spine, or one in more than one way.
    """
    spacing = as_volume(image, "image").GetSpacing()
    if 1 in as_volume(image, "image").GetSize():
        return image, []
    stack = int(np.argmax(spacing))
    if "sagittal" in preprocessing.planes and spacing[stack] > _THICKER * min(spacing):
        rest = [axis for axis in range(3) if axis != 2 - stack]
        found = sitk.Image(image)
        found.SetMetaData(DIRECTION_TAG, _in_words(direction_of((2 - stack, *rest), (False,) * 3)))
        start = preprocessing.apply(found)
        turn = _only_turn(start, see)
        if turn is not None:
            found.SetMetaData(DIRECTION_TAG, _in_words(turn.direction(start)))
            return found, [
                "The file does not give the image's orientation; it was found from the picture, but for left and "
                "right. Convert the original DICOM series again."
            ]
    raise ImageError(
        "The file does not give the image's orientation (a NIfTI file without qform and sform, or the like), and the "
        "picture does not plainly show a spine from the side.",
        "Convert the original DICOM series again, e.g. with 3D Slicer or dcm2niix.",
    )


def _in_words(direction: tuple[float, ...]) -> str:
    return " ".join(f"{cosine:g}" for cosine in direction)


def _only_turn(volume: CanonicalVolume, see: See) -> Turn | None:
    """The one way to turn a picture of unknown orientation in which it plainly shows a spine from the side; None where
    there is none, or more than one."""
    seen = looks(volume, see, (AS_IT_IS, UPSIDE_DOWN, *_REVERSED, *_ACROSS))
    plain = [turn for turn, look in seen.items() if look.is_plain and look.bow is not None and look.bow.is_upright]
    best, *others = sorted(plain, key=lambda turn: seen[turn].score, reverse=True) or [AS_IT_IS]
    return best if plain and all(seen[turn].score + _LEAD <= seen[best].score for turn in others) else None


def small_size(apply: Callable[[float], CanonicalVolume], see: See, here: Look) -> float | None:
    """The size of vertebrae that are so small that several were taken for one; None where they are not.

    Args:
        apply: the volume, preprocessed for anatomy of such a size.
        here: the look at it as an adult's.
    """
    if here.is_plain and not (here.size is not None and here.size < SMALL):
        return None
    look = looks(apply(_SMALL_SCALE), see, (AS_IT_IS,))[AS_IT_IS]
    better = look.is_plain and look.score >= here.score + _LEAD
    return _SMALL_SCALE * look.size if better and look.size is not None else None


def _middle(count: int) -> np.ndarray:
    """Indices of some slices of the middle."""
    if count <= _SLICES:
        return np.arange(count)
    low, high = _MIDDLE
    return np.unique(np.linspace(low * (count - 1), high * (count - 1), _SLICES).round().astype(int))
