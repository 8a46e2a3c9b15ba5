"""Structures and levels: the one source of names, ids, codes and colors.

Ids follow VerSe and its successors: C1-C7 are 1-7, T1-T12 8-19, L1-L6 20-25, the sacrum 26, T13 28, the cord 60, the
canal 61, the disc below a vertebra is 100 plus its id and its posterior elements (pedicles, laminae and processes: all
that a whole vertebra has beyond its body) are 130 plus its id. Nothing here needs more than the standard library.
"""

from __future__ import annotations

import colorsys
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from ..errors import SchemeError


class Kind(str, Enum):
    """What a structure is, whatever its level."""

    VERTEBRA = "vertebra"
    DISC = "disc"
    CANAL = "canal"
    SACRUM = "sacrum"
    CORD = "cord"
    POSTERIOR = "posterior"
    ARTERY = "artery"
    VEIN = "vein"
    CUSTOM = "custom"


class Extent(str, Enum):
    """How much of a vertebra a mask covers; a checkpoint or dataset never mixes the two."""

    BODY = "body"
    WHOLE = "whole"


KINDS: tuple[str, ...] = (
    "background", Kind.VERTEBRA.value, Kind.DISC.value, Kind.CANAL.value, Kind.SACRUM.value, Kind.POSTERIOR.value,
)  # fmt: skip
"""Channels of a kind head, in order; a head may have the first `BASIC_KINDS` alone."""
BASIC_KINDS = 5
"""How many of `KINDS` a head without posterior elements has."""

SACRUM_RANK = -1.0
"""Rank of the sacrum; the last lumbar vertebra has rank 0, each vertebra above it one more, a disc lies half way."""


@dataclass(frozen=True)
class Code:
    """A SNOMED CT concept."""

    value: str
    meaning: str
    scheme: str = "SCT"


@dataclass(frozen=True)
class Structure:
    """One thing that can be labeled.

    Attributes:
        id: value in label files (VerSe convention).
        name: short name, also the segment id: ``"L4"``, ``"L4/L5"``, ``"canal"``.
        kind: vertebra, disc, canal …
        order: cranio-caudal position, increasing downwards; vertebrae have whole numbers, discs lie half way, posterior
            elements have their vertebra's; None for structures that have no level.
        color: red, green, blue in 0…1.
    """

    id: int
    name: str
    kind: Kind
    order: float | None
    color: tuple[float, float, float]

    @property
    def color_255(self) -> tuple[int, int, int]:
        """Color as bytes."""
        red, green, blue = self.color
        return round(255 * red), round(255 * green), round(255 * blue)

    @property
    def is_vertebral(self) -> bool:
        """True for a vertebra or the sacrum: something that is counted."""
        return self.kind in (Kind.VERTEBRA, Kind.SACRUM)

    @property
    def is_counted(self) -> bool:
        """True for what makes up the column: a vertebra, the sacrum or a disc of a known level."""
        return self.order is not None and (self.is_vertebral or self.kind is Kind.DISC)


_VERTEBRAE: tuple[tuple[int, str], ...] = (
    *((i, f"C{i}") for i in range(1, 8)),
    *((7 + i, f"T{i}") for i in range(1, 13)),
    (28, "T13"),
    *((19 + i, f"L{i}") for i in range(1, 7)),
)
SACRUM_ID, CORD_ID, CANAL_ID = 26, 60, 61
L6_ID, T13_ID = 25, 28
"""Levels that few people have."""
VERTEBRA_ID, DISC_ID, POSTERIOR_ID = 90, 91, 92
"""A vertebra, a disc or posterior elements of unknown level: in training data, and in schemes without levels."""
ARTERY_ID, VEIN_ID = 205, 206
"""A pulmonary vessel whose side is not known: in training data."""
GENERIC_IDS = frozenset({VERTEBRA_ID, DISC_ID, POSTERIOR_ID, ARTERY_ID, VEIN_ID})
"""Of a known kind; not of a known level or side."""
CUSTOM_IDS = range(300, 400)
"""Ids of structures that a scheme adds by name (`scheme`) and that nothing else knows."""
_DISC_OFFSET, _POSTERIOR_OFFSET = 100, 130
_POSTERIOR_WORDS = "posterior elements"


def _color(index: int, first_hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    # Steps of 0.38 of the color circle keep neighbors (and neighbors' neighbors) apart.
    hue = (first_hue + 0.38 * index) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red, 3), round(green, 3), round(blue, 3)


def _vertebra_color(index: int) -> tuple[float, float, float]:
    return _color(index, 0.08, 0.55, 0.95)


def _disc_color(index: int) -> tuple[float, float, float]:
    return _color(index, 0.55, 0.85, 0.75)


def _posterior_color(index: int) -> tuple[float, float, float]:
    # The vertebra's hue, darker: the two belong together and are told apart.
    hue = (0.08 + 0.38 * index) % 1.0
    return tuple(round(c, 3) for c in colorsys.hsv_to_rgb(hue, 0.65, 0.68))  # type: ignore[return-value]


def _build() -> dict[int, Structure]:
    made: list[Structure] = []
    for index, (vid, name) in enumerate(_VERTEBRAE):
        made.append(Structure(vid, name, Kind.VERTEBRA, float(index), _vertebra_color(index)))
    bottom = float(len(_VERTEBRAE))
    made.append(Structure(SACRUM_ID, "S1", Kind.SACRUM, bottom, _vertebra_color(len(_VERTEBRAE))))
    # Discs: named from the usual neighbors; with T13 or L6 in the case `display_name` says otherwise.
    usual_below = {"T12": "L1", "T13": "L1", "L5": "S1", "L6": "S1"}
    names = [name for _, name in _VERTEBRAE]
    for index, (vid, name) in enumerate(_VERTEBRAE):
        if name == "C1":
            continue  # no disc between C1 and C2
        below = usual_below.get(name) or names[index + 1]
        made.append(Structure(_DISC_OFFSET + vid, f"{name}/{below}", Kind.DISC, index + 0.5, _disc_color(index)))
    for index, (vid, name) in enumerate(_VERTEBRAE):
        made.append(
            Structure(
                _POSTERIOR_OFFSET + vid,
                f"{name} {_POSTERIOR_WORDS}",
                Kind.POSTERIOR,
                float(index),
                _posterior_color(index),
            )
        )
    made += [
        Structure(VERTEBRA_ID, "vertebra", Kind.VERTEBRA, None, (0.95, 0.80, 0.55)),
        Structure(DISC_ID, "disc", Kind.DISC, None, (0.35, 0.75, 0.55)),
        Structure(POSTERIOR_ID, _POSTERIOR_WORDS, Kind.POSTERIOR, None, (0.70, 0.60, 0.42)),
        Structure(CORD_ID, "cord", Kind.CORD, None, (0.96, 0.85, 0.36)),
        Structure(CANAL_ID, "canal", Kind.CANAL, None, (0.36, 0.78, 0.93)),
        Structure(201, "pulmonary artery, right", Kind.ARTERY, None, (0.90, 0.25, 0.25)),
        Structure(202, "pulmonary artery, left", Kind.ARTERY, None, (0.95, 0.50, 0.35)),
        Structure(203, "pulmonary vein, right", Kind.VEIN, None, (0.25, 0.35, 0.90)),
        Structure(204, "pulmonary vein, left", Kind.VEIN, None, (0.35, 0.65, 0.95)),
        Structure(ARTERY_ID, "pulmonary artery", Kind.ARTERY, None, (0.85, 0.15, 0.30)),
        Structure(VEIN_ID, "pulmonary vein", Kind.VEIN, None, (0.20, 0.20, 0.75)),
    ]
    return {s.id: s for s in made}


_STRUCTURES = _build()
STRUCTURES: Mapping[int, Structure] = MappingProxyType(_STRUCTURES)
"""Every known structure by id."""

BUILT_IN: frozenset[int] = frozenset(_STRUCTURES)
"""Ids of the structures that are known without a scheme that adds them."""

_BY_NAME: dict[str, Structure] = {s.name.lower(): s for s in STRUCTURES.values()}
_ALIASES = {
    "s": "s1",
    "sacrum": "s1",
    "spinal canal": "canal",
    "vertebral canal": "canal",
    "spinal cord": "cord",
    "l5/s": "l5/s1",
    "l5/l6": "l5/s1",  # the disc below L5 keeps its id when L6 is there
    "t12/t13": "t12/l1",
    "l6/s": "l6/s1",
}


def structure(name_or_id: str | int) -> Structure:
    """The structure with this id or name (``"L4"``, ``"L4/L5"``, ``"S1"``, ``"canal"``; upper or lower case).

    Raises:
        SchemeError: if there is none.
    """
    if isinstance(name_or_id, str) and not re.fullmatch(r"\d{1,9}", name_or_id.strip()):
        key = re.sub(r"\s+", " ", name_or_id.strip().lower()).replace("-", "/")
        found = _BY_NAME.get(_ALIASES.get(key, key))
    else:
        found = STRUCTURES.get(int(name_or_id))
    if found is None:
        raise SchemeError(
            f"“{name_or_id}” is not a structure that SpineSegAI knows.",
            "Use names such as L4, L4/L5, S1 or canal; `spinesegai methods` lists the structures of each scheme.",
        )
    return found


def custom_structure(name: str, structure_id: int) -> Structure:
    """Make a structure known that is not part of the anatomy here: ``custom_structure("left psoas", 300)``.

    Saying the same again changes nothing.

    Raises:
        SchemeError: the id is not one of `CUSTOM_IDS`, or id or name already mean something else.
    """
    name = re.sub(r"\s+", " ", name.strip())
    known = _STRUCTURES.get(structure_id) or _BY_NAME.get(name.lower())
    if known is not None and (known.id, known.name.lower()) == (structure_id, name.lower()):
        return known
    if known is not None or name.lower() in _ALIASES:
        other = known or structure(name)
        raise SchemeError(
            f"{name}={structure_id} cannot be added: {other.id} is “{other.name}”.", "Choose another name or number."
        )
    if structure_id not in CUSTOM_IDS or not name or name.isdecimal() or set(name) & set("+=,"):
        raise SchemeError(
            f"“{name}={structure_id}” cannot be added.",
            f"Use a name without + = , and a number from {CUSTOM_IDS[0]} to {CUSTOM_IDS[-1]}.",
        )
    color = _color(structure_id - CUSTOM_IDS[0], 0.45, 0.45, 0.85)
    made = Structure(structure_id, name, Kind.CUSTOM, None, color)
    _STRUCTURES[structure_id] = _BY_NAME[name.lower()] = made
    return made


def order_of(structure_id: int) -> float:
    """`Structure.order` of a structure that has a level.

    Raises:
        ValueError: it has none.
    """
    order = STRUCTURES[structure_id].order
    if order is None:
        raise ValueError(f"{STRUCTURES[structure_id].name} has no level")
    return order


def disc_below(vertebra: Structure | int) -> Structure | None:
    """The disc under a vertebra; None under C1 and the sacrum."""
    vid = vertebra if isinstance(vertebra, int) else vertebra.id
    return STRUCTURES.get(_DISC_OFFSET + vid)


def vertebra_above(disc: Structure | int) -> Structure:
    """The vertebra that a disc is named after (the one above it)."""
    did = disc if isinstance(disc, int) else disc.id
    return STRUCTURES[did - _DISC_OFFSET]


def posterior_of(vertebra: Structure | int) -> Structure | None:
    """The posterior elements of a vertebra; None for the sacrum, whose are part of it."""
    vid = vertebra if isinstance(vertebra, int) else vertebra.id
    return STRUCTURES.get(_POSTERIOR_OFFSET + vid)


def level_of(structure_or_id: Structure | int) -> int:
    """The vertebra that a structure with a level belongs to, its id: a disc to the one above it."""
    s = structure_or_id if isinstance(structure_or_id, Structure) else STRUCTURES[structure_or_id]
    return s.id - {Kind.DISC: _DISC_OFFSET, Kind.POSTERIOR: _POSTERIOR_OFFSET}.get(s.kind, 0)


def counterpart(structure_or_id: Structure | int, vertebra: int) -> Structure | None:
    """What is to another vertebra as this structure is to its own (`level_of`); None where there is no such thing."""
    s = structure_or_id if isinstance(structure_or_id, Structure) else STRUCTURES[structure_or_id]
    if s.kind is Kind.DISC:
        return disc_below(vertebra)
    return posterior_of(vertebra) if s.kind is Kind.POSTERIOR else STRUCTURES.get(vertebra)


def next_below(vertebra: Structure, present: Iterable[int] = ()) -> Structure | None:
    """The vertebra (or sacrum) under this one, taking T13 and L6 into account only if they are in `present`."""
    if vertebra.kind is Kind.SACRUM:
        return None
    chain = level_chain(present)
    ids = [s.id for s in chain]
    if vertebra.id not in ids:
        return None
    return chain[ids.index(vertebra.id) + 1]


def level_chain(present: Iterable[int] = ()) -> list[Structure]:
    """C1 … sacrum in cranio-caudal order; T13 and L6 only if `present` holds them or parts of theirs."""
    present = set(present)
    has_t13, has_l6 = (bool(present & {vid, _DISC_OFFSET + vid, _POSTERIOR_OFFSET + vid}) for vid in (T13_ID, L6_ID))
    chain = [STRUCTURES[vid] for vid, name in _VERTEBRAE if (name != "T13" or has_t13) and (name != "L6" or has_l6)]
    return [*chain, STRUCTURES[SACRUM_ID]]


def ranks(present: Iterable[int] = ()) -> dict[int, float]:
    """Rank above the sacrum of every vertebra, its posterior elements and its disc, given which variants a case has.

    The sacrum has −1, the last lumbar vertebra 0 whether it is called L5 or L6, and each vertebra above it one more;
    the disc under a vertebra lies half a rank below it. This is what can be seen in an image; names follow from it.
    """
    chain = level_chain(present)
    result: dict[int, float] = {}
    for position, vertebra in enumerate(reversed(chain)):
        rank = SACRUM_RANK + position
        result[vertebra.id] = rank
        for part, place in ((disc_below(vertebra), rank - 0.5), (posterior_of(vertebra), rank)):
            if part is not None:
                result[part.id] = place
    return result


def display_name(structure_id: int, present: Iterable[int] = (), extent: Extent | None = None) -> str:
    """What a reader should see: ``"L4 vertebra (body)"``, ``"L5/L6 disc"``, ``"spinal canal"``.

    Discs are named from the neighbors that the case really has (124 is L5/S1, or L5/L6 where L6 is present).
    """
    s = structure(structure_id)
    if s.kind is Kind.VERTEBRA:
        name = s.name if s.order is None else f"{s.name} vertebra"
        return f"{name} (body)" if extent is Extent.BODY else name
    if s.kind is Kind.SACRUM:
        return "S1 (body)" if extent is Extent.BODY else "sacrum"
    if s.kind is Kind.DISC and s.order is not None:
        return f"{disc_name(s.id, present)} disc"
    if s.kind is Kind.CANAL:
        return "spinal canal"
    if s.kind is Kind.CORD:
        return "spinal cord"
    return s.name


def disc_name(disc_id: int, present: Iterable[int] = ()) -> str:
    """``"L4/L5"``; the lower neighbor is T13 or L6 where the case has one."""
    upper = vertebra_above(disc_id)
    lower = next_below(upper, {*present, upper.id})
    return f"{upper.name}/{lower.name}" if lower else structure(disc_id).name


def short_name(structure_id: int, present: Iterable[int] = ()) -> str:
    """``"L4"``, ``"L5/L6"``: a structure's name, with the neighbors that the case really has."""
    s = structure(structure_id)
    return disc_name(s.id, present) if s.kind is Kind.DISC and s.order is not None else s.name


def sorted_ids(ids: Iterable[int]) -> list[int]:
    """Ids in anatomical order, top down, structures without a level last."""
    return sorted(ids, key=lambda i: (STRUCTURES[i].order is None, STRUCTURES[i].order or 0.0, i))


# C1-T8 as in TotalSegmentator's public SNOMED mapping; the rest from DICOM value sets.
_WHOLE_CODES = {
    "C1": "14806007", "C2": "39976000", "C3": "113205007", "C4": "5329002", "C5": "36978003", "C6": "36054005",
    "C7": "87391001", "T1": "64864005", "T2": "53733008", "T3": "1626008", "T4": "73071006", "T5": "56401006",
    "T6": "45296009", "T7": "62487009", "T8": "11068009",
    "T9": "82687006", "T10": "7610001", "T11": "12989004", "T12": "23215003", "L1": "66794005", "L2": "14293000",
    "L3": "36470004", "L4": "11994002", "L5": "49668003", "S1": "54735007",
}  # fmt: skip
_BODY_CODES = {
    "T9": "33766003", "T10": "48405002", "T11": "52120002", "T12": "280849005", "L1": "61032001", "L2": "53983007",
    "L3": "55492004", "L4": "71996003", "L5": "21799000",
}  # fmt: skip
_DISC_CODES = {
    "T9/T10": "113209001", "T10/T11": "34959001", "T11/T12": "1537001", "T12/L1": "76206002", "L1/L2": "80064006",
    "L2/L3": "67459009", "L3/L4": "62551000", "L4/L5": "84020006", "L5/S1": "715056000",
}  # fmt: skip
_GENERIC_CODES = {
    Kind.VERTEBRA: Code("51282000", "Vertebra"),
    Kind.SACRUM: Code("54735007", "Sacrum"),
    Kind.DISC: Code("360499006", "Intervertebral disc"),
    Kind.CORD: Code("2748008", "Spinal cord"),
    Kind.CANAL: Code("61853006", "Spinal canal"),
    Kind.ARTERY: Code("81040000", "Pulmonary artery"),
    Kind.VEIN: Code("122972007", "Pulmonary vein"),
    Kind.POSTERIOR: Code("51282000", "Vertebra"),  # no public value set has a code for them: told by the modifier
    Kind.CUSTOM: Code("123037004", "Anatomical structure"),
}
_VERTEBRAL_BODY = Code("3572006", "Vertebral body")
LATERALITY = {"right": Code("24028007", "Right"), "left": Code("7771000", "Left")}


def code(structure_id: int, present: Iterable[int] = (), extent: Extent | None = None) -> Code:
    """SNOMED CT concept of a structure; where none is known for the level, the generic one of its kind.

    Args:
        present: ids in the case, since the disc below L5 is L5/L6 where there is an L6.
        extent: whether vertebral masks are bodies or whole vertebrae; whole where not given.
    """
    s = structure(structure_id)
    if s.is_vertebral:
        table, label = (_BODY_CODES, "Body of {} vertebra") if extent is Extent.BODY else (_WHOLE_CODES, "{} vertebra")
        if s.name in table:
            return Code(table[s.name], "Sacrum" if s.kind is Kind.SACRUM else label.format(s.name))
        if extent is Extent.BODY:
            return _VERTEBRAL_BODY  # S1 among them: no code is known for its body
    elif s.kind is Kind.DISC and s.order is not None:
        name = disc_name(s.id, present)
        if name in _DISC_CODES:
            return Code(_DISC_CODES[name], f"{name} intervertebral disc")
    return _GENERIC_CODES[s.kind]


def laterality(structure_id: int) -> Code | None:
    """Right or left, for sided structures."""
    name = structure(structure_id).name
    return next((c for side, c in LATERALITY.items() if name.endswith(side)), None)


def other_side(structure_id: int) -> int | None:
    """The same structure on the other side; None for structures without sides."""
    name = structure(structure_id).name
    for side, other in (("right", "left"), ("left", "right")):
        if name.endswith(side):
            found = _BY_NAME.get(f"{name.removesuffix(side)}{other}".lower())
            return found.id if found else None
    return None
