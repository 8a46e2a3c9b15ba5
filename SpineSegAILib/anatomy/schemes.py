"""Label schemes: the ordered structures that a checkpoint predicts; label values of public datasets and tools."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ..errors import SchemeError
from .structures import (
    ARTERY_ID,
    BASIC_KINDS,
    CANAL_ID,
    CORD_ID,
    CUSTOM_IDS,
    DISC_ID,
    KINDS,
    POSTERIOR_ID,
    SACRUM_ID,
    STRUCTURES,
    VEIN_ID,
    VERTEBRA_ID,
    Extent,
    Kind,
    Structure,
    custom_structure,
    disc_below,
    posterior_of,
    structure,
)


@dataclass(frozen=True)
class LabelScheme:
    """The ordered structures that a checkpoint predicts.

    Network channel 0 is background and channel ``i + 1`` is ``ids[i]``; files hold the structure's id.
    """

    name: str
    title: str
    ids: tuple[int, ...]
    extent: Extent | None = Extent.BODY
    modality: str = "MR"

    def to_document(self) -> dict[str, Any]:
        """The scheme, ready for JSON."""
        return {
            "name": self.name,
            "title": self.title,
            "ids": list(self.ids),
            "extent": self.extent.value if self.extent else None,
            "modality": self.modality,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> LabelScheme:
        """The scheme that `to_document` described; the structures that its name adds become known.

        Raises:
            KeyError, TypeError, ValueError: the document is not such a description.
        """
        name, ids = document["name"], tuple(document["ids"])
        try:
            known = scheme(name) if isinstance(name, str) else None
        except SchemeError:
            known = None
        if known is not None and known.ids == ids:
            return known
        extent = Extent(document["extent"]) if document["extent"] else None
        return cls(name, document["title"], ids, extent, document["modality"])

    @cached_property
    def structures(self) -> tuple[Structure, ...]:
        """The structures in channel order (without background)."""
        return tuple(STRUCTURES[i] for i in self.ids)

    @cached_property
    def channel_of(self) -> dict[int, int]:
        """Structure id → network channel (1, 2, …)."""
        return {sid: channel for channel, sid in enumerate(self.ids, start=1)}

    @property
    def channels(self) -> int:
        """Number of softmax channels, background included."""
        return len(self.ids) + 1

    @cached_property
    def head_kinds(self) -> int:
        """How many of `KINDS` a kind head for this scheme needs: posterior elements only where they are in it."""
        return len(KINDS) if self.of_kind(Kind.POSTERIOR) else BASIC_KINDS

    @cached_property
    def kinds(self) -> tuple[int, ...]:
        """For each channel (background first) its index in `KINDS`; kinds that `KINDS` lacks count as background."""
        index = {k: i for i, k in enumerate(KINDS)}
        return (0, *(index.get(s.kind.value, 0) for s in self.structures))

    def members(self, structure_id: int) -> tuple[int, ...]:
        """Ids of this scheme that a labeled structure may be: itself, or all of its kind where its level or side is
        not known and the scheme tells levels or sides apart."""
        if structure_id in self.channel_of:
            return (structure_id,)
        kinds = {
            VERTEBRA_ID: (Kind.VERTEBRA, Kind.SACRUM), DISC_ID: (Kind.DISC,), POSTERIOR_ID: (Kind.POSTERIOR,),
            ARTERY_ID: (Kind.ARTERY,), VEIN_ID: (Kind.VEIN,),
        }.get(structure_id, ())  # fmt: skip
        return self.of_kind(*kinds)

    def channel_for(self, structure_id: int) -> int:
        """Network channel that a labeled structure trains: its own, its kind's generic one, or background (0)."""
        if structure_id in self.channel_of:
            return self.channel_of[structure_id]
        kind = structure(structure_id).kind
        generic = {
            Kind.VERTEBRA: VERTEBRA_ID, Kind.SACRUM: VERTEBRA_ID, Kind.DISC: DISC_ID, Kind.POSTERIOR: POSTERIOR_ID,
        }.get(kind)  # fmt: skip
        return self.channel_of.get(generic, 0) if generic else 0

    def of_kind(self, *kinds: Kind) -> tuple[int, ...]:
        """Ids of these kinds, in channel order."""
        return tuple(s.id for s in self.structures if s.kind in kinds)

    def subset(self, ids: Iterable[int]) -> LabelScheme:
        """The same with these structures alone, in this scheme's order.

        Raises:
            SchemeError: one of them is not in the scheme, or there is none.
        """
        wanted = {self.require(i).id for i in ids}
        if not wanted:
            raise SchemeError(f"No structure of “{self.name}” was named.", "Name at least one.")
        return replace(self, ids=tuple(i for i in self.ids if i in wanted))

    def require(self, name_or_id: str | int) -> Structure:
        """The structure, which must be in this scheme.

        Raises:
            SchemeError: unknown, or not one of this scheme's.
        """
        s = structure(name_or_id)
        if s.id not in self.channel_of:
            listed = ", ".join(x.name for x in self.structures)
            raise SchemeError(f"{s.name} is not in the label scheme “{self.name}”.", f"It has: {listed}.")
        return s


def _ids(*names: str) -> tuple[int, ...]:
    return tuple(structure(n).id for n in names)


_LUMBAR_MR = _ids("T9", "T10", "T11", "T12", "T13", "L1", "L2", "L3", "L4", "L5", "L6", "S1") + _ids(
    "T9/T10", "T10/T11", "T11/T12", "T12/L1", "T13/L1", "L1/L2", "L2/L3", "L3/L4", "L4/L5", "L5/S1", "L6/S1", "canal"
)
_DISCS_T9_L5 = ("T9/T10", "T10/T11", "T11/T12", "T12/L1", "L1/L2", "L2/L3", "L3/L4", "L4/L5", "L5/S1")

_THORACOLUMBAR = tuple(range(structure("T1").id, structure("L5").id + 1))

SCHEMES: Mapping[str, LabelScheme] = {
    s.name: s
    for s in (
        LabelScheme(
            "lumbar-mr",
            "Lumbar MR: vertebral bodies T9–L6 and S1, discs, canal",
            _LUMBAR_MR,
        ),
        LabelScheme(
            "lumbar-mr-posterior",
            "Lumbar MR: vertebral bodies T9–L6 and S1, posterior elements, discs, canal",
            _LUMBAR_MR + tuple(found.id for found in map(posterior_of, _LUMBAR_MR) if found),
        ),
        LabelScheme(
            "lumbar-mr-whole",
            "Lumbar MR: whole vertebrae T9–L6, S1, discs, canal",
            _LUMBAR_MR,
            extent=Extent.WHOLE,
        ),
        LabelScheme(
            "mrspineseg",
            "MRSpineSeg challenge: sacrum, L5–T9 and their discs",
            _ids("S1", "L5", "L4", "L3", "L2", "L1", "T12", "T11", "T10", "T9") + _ids(*reversed(_DISCS_T9_L5)),
            extent=Extent.WHOLE,
        ),
        LabelScheme(
            "spider",
            "SPIDER: whole vertebrae L5–T9, discs, canal",
            _ids("L5", "L4", "L3", "L2", "L1", "T12", "T11", "T10", "T9") + _ids(*reversed(_DISCS_T9_L5)) + (CANAL_ID,),
            extent=Extent.WHOLE,
        ),
        LabelScheme(
            "lumbar11",
            "Five lumbar vertebrae and five discs",
            _ids("L1", "L2", "L3", "L4", "L5", "L1/L2", "L2/L3", "L3/L4", "L4/L5", "L5/S1"),
        ),
        LabelScheme(
            "thoracolumbar-xr",
            "Radiographs of the spine: vertebrae T1–L5",
            _THORACOLUMBAR,
            modality="XR",
        ),
        LabelScheme(
            "vertebra",
            "Vertebrae against the rest, without levels",
            (VERTEBRA_ID,),
            extent=Extent.BODY,
            modality="any",
        ),
        LabelScheme(
            "vertebra-whole",
            "Whole vertebrae against the rest, without levels",
            (VERTEBRA_ID,),
            extent=Extent.WHOLE,
            modality="any",
        ),
        LabelScheme(
            "pulmonary-av",
            "Pulmonary arteries and veins, right and left",
            (201, 202, 203, 204),
            extent=None,
            modality="CT",
        ),
    )
}
"""The label schemes by name."""


def scheme(name: str) -> LabelScheme:
    """The scheme of this name; ``lumbar-mr+cord+left psoas=300`` is a scheme with structures added at its end.

    What is added is a known structure, or a new one with its id (`custom_structure`).

    Raises:
        SchemeError: if there is none, or an addition does not fit.
    """
    base, *added = name.split("+")
    try:
        found = SCHEMES[base]
    except KeyError:
        raise SchemeError(f"There is no label scheme “{base}”.", f"Available: {', '.join(SCHEMES)}.") from None
    for entry in added:
        label, _, number = entry.partition("=")
        if number and not number.isdecimal():
            raise SchemeError(f"“{entry}” in the scheme “{name}” is not an addition.", "Write +cord or +psoas=300.")
        s = custom_structure(label, int(number)) if number else structure(label)
        if s.id in found.ids:
            raise SchemeError(f"{s.name} is already in the scheme “{base}”.", "Omit it.")
        found = replace(found, name=name, title=f"{found.title}, {s.name}", ids=(*found.ids, s.id))
    return found


def extended(name: str, structures: Iterable[str]) -> str:
    """The name of a label scheme with structures added: ``"lumbar-mr+cord"``, or ``"…+left psoas=300"`` for a new one.

    Args:
        name: of the scheme.
        structures: names; those that are new are made known.

    Raises:
        SchemeError: there is no such scheme, or it has one of them already.
    """
    for added in structures:
        name = scheme(f"{name}+{_addition(added, scheme(name))}").name
    return name


def _addition(name: str, to: LabelScheme) -> str:
    """How a scheme's name continues when a structure is added: ``"cord"``, or ``"left psoas=300"`` for a new one."""
    try:
        known = structure(name)
        return f"{known.name}={known.id}" if known.kind is Kind.CUSTOM else known.name
    except SchemeError:
        free = next(i for i in CUSTOM_IDS if i not in STRUCTURES and i not in to.ids)
        return f"{custom_structure(name, free).name}={free}"


def _range(names: Iterable[str], first: int, step: int = 1) -> dict[int, int]:
    return {first + step * i: structure(n).id for i, n in enumerate(names)}


_UPWARD = ("L5", "L4", "L3", "L2", "L1", *(f"T{i}" for i in range(12, 0, -1)), *(f"C{i}" for i in range(7, 0, -1)))
_UPWARD_DISCS = tuple(disc.name for n in _UPWARD if (disc := disc_below(structure(n))))  # none below C1

VALUE_MAPS: Mapping[str, Mapping[int, int]] = {
    "verse": {i: i for i in (*range(1, 27), 28)},
    # Vertebrae counted upwards from L5 = 1; partly visible ones + 100; discs 200 + the vertebra above them.
    "spider": {
        **_range(_UPWARD, 1),
        100: CANAL_ID,
        **_range(_UPWARD, 101),
        **_range(_UPWARD_DISCS, 201),
    },
    "mrspineseg": {
        **_range(("S1", "L5", "L4", "L3", "L2", "L1", "T12", "T11", "T10", "T9"), 1),
        **_range(tuple(reversed(_DISCS_T9_L5)), 11),
    },
    "totalsegmentator": {
        25: SACRUM_ID,
        26: SACRUM_ID,  # the S1 body, a class of its own there
        **_range(_UPWARD, 27),
        79: CORD_ID,
    },
    "totalspineseg": {
        1: CORD_ID,
        2: CANAL_ID,
        **_range([f"C{i}" for i in range(1, 8)], 11),
        **_range([f"T{i}" for i in range(1, 13)], 21),
        **_range([f"L{i}" for i in range(1, 7)], 41),
        50: SACRUM_ID,
        **_range([f"C{i}/C{i + 1}" for i in range(2, 7)], 63),
        71: structure("C7/T1").id,
        **_range([f"T{i}/T{i + 1}" for i in range(1, 12)], 72),
        91: structure("T12/L1").id,
        **_range([f"L{i}/L{i + 1}" for i in range(1, 5)], 92),
        100: structure("L5/S1").id,
    },
}
"""Value in another project's label files → structure id. SPIDER's are from memory of its paper; see `datasets`."""
