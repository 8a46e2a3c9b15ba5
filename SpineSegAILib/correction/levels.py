"""Corrections of names: shift, “this one is L5”, swap, merge, delete, insert, counting.

A name stands for a level: a vertebra's posterior elements and the disc below it follow it, the canal and whatever else
has no level stays. The sacrum is the lowest level; nothing can be moved below it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Literal

from ..anatomy import (
    L6_ID,
    SACRUM_ID,
    STRUCTURES,
    T13_ID,
    Kind,
    counterpart,
    disc_below,
    level_chain,
    level_of,
    order_of,
    posterior_of,
    sorted_ids,
    structure,
)
from ..errors import CorrectionError
from .step import Correction, Direction, LabeledStructures

if TYPE_CHECKING:
    from ..results import Alternative

_VARIANTS = (L6_ID, T13_ID)
_KIND = {
    Kind.VERTEBRA: "a vertebra", Kind.SACRUM: "a vertebra", Kind.DISC: "a disc", Kind.POSTERIOR: "posterior elements",
}  # fmt: skip
COUNTINGS: Mapping[str, str] = {
    "L6": "six lumbar vertebrae",
    "L5": "five lumbar vertebrae",
    "T13": "thirteen thoracic vertebrae",
    "T12": "twelve thoracic vertebrae",
}
"""The ways to count, named by the last lumbar or thoracic vertebra that they have."""


def shift(
    labelling: LabeledStructures, to: Literal["up", "down"], start: int | None = None, direction: Direction = "all"
) -> Correction:
    """Every level gets the name of the one above it (up) or below it (down).

    Nothing lies below the sacrum: shifted down it stays, if the others have room above it.

    Args:
        to: ``"up"``: L4 becomes L3; ``"down"``: L3 becomes L4.
        start: with `direction` above or below, the chosen one, from which on (itself included) levels move.
        direction: see `Direction`.

    Raises:
        CorrectionError: a level would leave the scheme, meet one that stays, or is locked.
    """
    step = {"up": -1, "down": 1}.get(to)
    if step is None:
        raise CorrectionError(f"“{to}” is not a direction.", "Use up or down.")
    _with_levels(labelling)
    moving = _moving(labelling, start, direction)
    if step == 1 and moving != {SACRUM_ID}:
        moving = moving - {SACRUM_ID}
    chain = chain_ids(variants_of(labelling.present))
    mapping = shifted_names(labelling, chain, chain, step, moving)
    part = "" if start is None or direction == "all" else f" from {labelling.name(start)} {direction}"
    details = {"to": to, "direction": direction, **({} if start is None else {"from": start})}
    return Correction("shift", f"Shift levels {to}{part}", mapping, structures=tuple(mapping), details=details)


def set_level(
    labelling: LabeledStructures, chosen: int, level: int | str, direction: Direction = "all", tool: str = "set"
) -> Correction:
    """“This one is L5”: the chosen one gets the level, and the others follow by counting from it.

    T13 and L6 are counted if `level` says so, or if they were. Where the sacrum is labeled and neither chosen nor
    named, the way of counting that leaves it the sacrum is preferred.

    Args:
        chosen: id of a labeled vertebra, of the sacrum, or of a disc.
        level: id or name of what it is; a disc is a disc.

    Raises:
        CorrectionError: not labeled, no level, another kind, locked, or the others do not fit around it.
    """
    target = structure(level)
    labelling.require(chosen)
    s = STRUCTURES[chosen]
    for x in (s, target):
        if x.order is None:
            raise CorrectionError(f"“{x.name}” has no level.", "Choose a vertebra or a disc.")
    if s.is_vertebral != target.is_vertebral or (not s.is_vertebral and s.kind is not target.kind):
        kinds = f"one is {_KIND[s.kind]} and the other {_KIND[target.kind]}"
        raise CorrectionError(
            f"{labelling.name(chosen)} cannot be {target.name}: {kinds}.",
            "Give a vertebra the name of a vertebra, a disc that of a disc.",
        )
    old_chain = chain_ids(variants_of(labelling.present))
    moving = _moving(labelling, chosen, direction)
    wanted = level_of(target.id)
    ways: list[tuple[tuple[bool, int, int], dict[int, int], set[int]]] = []
    refused: CorrectionError | None = None
    counted = variants_of(labelling.present)
    for variants in (set(c) for n in range(3) for c in combinations(_VARIANTS, n)):
        chain = chain_ids(variants)
        if wanted not in chain:
            continue
        try:
            step = chain.index(wanted) - old_chain.index(level_of(chosen))
            mapping = shifted_names(labelling, old_chain, chain, step, moving)
        except CorrectionError as error:
            refused = refused or error
            continue
        lost = SACRUM_ID in mapping and SACRUM_ID not in (chosen, wanted)
        ways.append(((lost, len(variants ^ counted), len(variants)), mapping, variants))
    if not ways:
        assert refused is not None  # every level is in one of the chains
        raise refused
    _, mapping, _ = min(ways, key=lambda way: way[0])
    notes = tuple(
        f"{STRUCTURES[v].name} is now part of the numbering: please check it."
        for v in _VARIANTS
        if v in mapping.values() and v not in counted and v != wanted
    )
    words = f"{labelling.name(chosen)} is {target.name}"
    details = {"chosen": chosen, "level": target.id, "direction": direction}
    return Correction(tool, words, mapping, structures=(chosen,), notes=notes, details=details)


def choose_naming(labelling: LabeledStructures, alternative: Alternative) -> Correction:
    """The other naming that a result offers (`Segmentation.alternatives`), for all structures at once.

    Raises:
        CorrectionError: the structures are not those that it was offered for any more, so that a name would be taken
            or out of order, or one is locked.
    """
    mapping = dict(alternative.mapping)
    gone = [i for i in mapping if i not in labelling.present]
    if gone or not mapping:
        raise CorrectionError(
            f"The naming {alternative.names} was suggested for other structures than those labeled now.",
            "Set the level of one structure instead.",
        )
    labelling.require_unlocked(mapping)
    for old, new in mapping.items():
        if new:
            in_scheme(labelling, new, labelling.name(old))
    _check_order(labelling, mapping)
    details = {"names": alternative.names}
    return Correction("naming", f"Name them {alternative.names}", mapping, structures=tuple(mapping), details=details)


def swap(labelling: LabeledStructures, first: int, second: int) -> Correction:
    """Two structures of a kind exchange their names; nothing else moves.

    Raises:
        CorrectionError: not labeled, of different kinds, or locked.
    """
    _pair(labelling, first, second, "swapped")
    words = f"Swap {labelling.name(first)} and {labelling.name(second)}"
    return Correction("swap", words, {first: second, second: first}, structures=(first, second))


def merge(labelling: LabeledStructures, first: int, second: int, direction: Direction | None = "above") -> Correction:
    """Two pieces of one structure become one.

    Neighboring vertebrae become one that keeps the lower one's name, with the disc between them, which was none; the
    levels above come down by one. With `direction` below it keeps the upper one's name and those below come up; with
    None no other level moves. Of discs and other structures the second becomes part of the first.

    Raises:
        CorrectionError: not labeled, of different kinds, not neighbors, or locked.
    """
    _pair(labelling, first, second, "merged")
    words = f"Merge {labelling.name(first)} and {labelling.name(second)}"
    details = {"direction": direction}
    if not STRUCTURES[first].is_vertebral or STRUCTURES[first].order is None:
        return Correction("merge", words, {second: first, first: first}, structures=(first, second), details=details)
    upper, lower = sorted_ids((first, second))
    vertebrae = labelling.vertebrae
    if vertebrae.index(lower) - vertebrae.index(upper) != 1:
        between = ", ".join(STRUCTURES[i].name for i in vertebrae[vertebrae.index(upper) + 1 : vertebrae.index(lower)])
        raise CorrectionError(
            f"{STRUCTURES[upper].name} and {STRUCTURES[lower].name} are not neighbors: {between} lies between them.",
            "Merge neighbors, one pair after the other.",
        )
    kept, given_up = (upper, lower) if direction == "below" else (lower, upper)
    mapping = {given_up: kept, kept: kept}
    disc = disc_below(upper)
    if disc is not None and disc.id in labelling.present:
        mapping[disc.id] = kept
    arches = [p.id for bone in (given_up, kept) if (p := posterior_of(bone)) and p.id in labelling.present]
    own = posterior_of(kept)
    mapping |= dict.fromkeys(arches, own.id if own else 0)  # those of the sacrum have no name
    labelling.require_unlocked(mapping)
    chain = chain_ids(variants_of(labelling.present))
    if direction and chain.index(lower) - chain.index(upper) == 1:
        rest = replace(labelling, present=labelling.present - set(mapping) | {kept})
        side: Direction = "below" if direction == "below" else "above"
        moving = {i for i in is_levelled(rest) if i != kept and side_of(i, side, kept)}
        mapping |= shifted_names(rest, chain, chain, -1 if side == "below" else 1, moving)
    return Correction("merge", words, mapping, structures=(upper, lower), details=details)


def delete(labelling: LabeledStructures, *structure_ids: int) -> Correction:
    """Structures are removed; the names of the others stay.

    Raises:
        CorrectionError: not labeled, or locked.
    """
    if not structure_ids:
        raise CorrectionError("No structure to delete was given.", "Name a structure.")
    labelling.require(*structure_ids)
    labelling.require_unlocked(structure_ids)
    words = f"Delete {', '.join(labelling.name(i) for i in structure_ids)}"
    return Correction("delete", words, dict.fromkeys(structure_ids, 0), structures=tuple(structure_ids))


def insert(labelling: LabeledStructures, level: int | str, direction: Direction = "above") -> Correction:
    """A vertebra that was overlooked gets its name back: what is called so and all above (or below) it move on by one.

    The name is then free, and `Correction.missing` says what to draw.

    Args:
        level: id or name of the vertebra that is not segmented.
        direction: who makes room.

    Raises:
        CorrectionError: no vertebra, or not in use as a name; the others have no room, or are locked.
    """
    s = structure(level)
    if not s.is_vertebral or s.order is None:
        raise CorrectionError(
            f"“{s.name}” is not the level of a vertebra.", "Name the missing vertebra, for example L3."
        )
    if direction == "all":
        raise CorrectionError("The direction is missing.", "Use above or below.")
    _with_levels(labelling)
    if s.id not in labelling.present:
        raise CorrectionError(
            f"No vertebra is called {s.name}: the name is free already.",
            f"Draw the missing vertebra and name it {s.name}.",
        )
    chain = chain_ids(variants_of(labelling.present))
    moving = _moving(labelling, s.id, direction)
    mapping = shifted_names(labelling, chain, chain, 1 if direction == "below" else -1, moving)
    words, details = f"{s.name} is missing", {"level": s.id, "direction": direction}
    return Correction("insert", words, mapping, structures=(s.id,), missing=(s.id,), details=details)


def switch_counting(labelling: LabeledStructures, to: str, direction: Direction = "above") -> Correction:
    """Count with or without an L6 or a T13.

    Args:
        to: one of `COUNTINGS`: ``"L6"`` for six lumbar vertebrae, ``"L5"`` back to five, ``"T13"``, ``"T12"`` likewise.
        direction: those above the variant are renamed (the sacrum stays what it is), or those below.

    Raises:
        CorrectionError: unknown, counted so already, or a level would leave the scheme or is locked.
    """
    if to not in COUNTINGS:
        raise CorrectionError(f"“{to}” is not a numbering.", f"Use {', '.join(COUNTINGS)}.")
    _with_levels(labelling)
    before = variants_of(labelling.present)
    variant, wanted = (L6_ID if to in ("L6", "L5") else T13_ID), to in ("L6", "T13")
    if (variant in before) == wanted:
        raise CorrectionError(f"The levels are already numbered with {COUNTINGS[to]}.")
    after = before | {variant} if wanted else before - {variant}
    old, new = chain_ids(before), chain_ids(after)
    step = 0 if direction == "below" else len(new) - len(old)  # aligned at the top, or at the sacrum
    mapping = shifted_names(labelling, old, new, step, set(is_levelled(labelling)))
    if wanted and variant not in mapping.values():
        raise CorrectionError(
            f"No level in view becomes {STRUCTURES[variant].name}.", "Select a vertebra and set its level."
        )
    words, details = f"Count {COUNTINGS[to]}", {"to": to, "direction": direction}
    return Correction("counting", words, mapping, structures=tuple(mapping), details=details)


def chain_ids(variants: Iterable[int]) -> list[int]:
    """C1 … sacrum with these variants."""
    return [s.id for s in level_chain(variants)]


def variants_of(present: Iterable[int]) -> set[int]:
    """Which of T13 and L6 are labeled, by themselves or by their disc."""
    return set(chain_ids(present)) & set(_VARIANTS)


def is_levelled(labelling: LabeledStructures) -> list[int]:
    return [i for i in labelling.present if STRUCTURES[i].order is not None]


def _with_levels(labelling: LabeledStructures) -> None:
    if not is_levelled(labelling):
        raise CorrectionError("No vertebra or disc with a level is labeled.", "Segment first.")


def side_of(structure_id: int, side: Direction, of: int) -> bool:
    """Whether a structure lies above or below another; a disc lies below its vertebra, posterior elements beside it."""
    here, there = order_of(structure_id), order_of(of)
    return here > there if side == "below" else here < there


def _moving(labelling: LabeledStructures, start: int | None, direction: Direction) -> set[int]:
    """What moves when all move, or the chosen one with those above (what belongs to it comes along) or below it."""
    if direction not in ("all", "above", "below"):
        raise CorrectionError(f"“{direction}” is not a direction.", "Use all, above or below.")
    levelled = is_levelled(labelling)
    if direction == "all":
        return set(levelled)
    if start is None:
        raise CorrectionError(
            f"The level that those {direction} move with is missing.", "Name a labeled vertebra or disc."
        )
    labelling.require(start)
    if STRUCTURES[start].order is None:
        raise CorrectionError(f"“{STRUCTURES[start].name}” has no level.", "Choose a vertebra or a disc.")
    own = {p.id for p in (disc_below(start), posterior_of(start)) if p} if STRUCTURES[start].is_vertebral else set()
    return {i for i in levelled if i == start or i in own or side_of(i, direction, start)}


def shifted_names(
    labelling: LabeledStructures, old_chain: Sequence[int], new_chain: Sequence[int], step: int, moving: Collection[int]
) -> dict[int, int]:
    """Names of what moves by `step` levels, from one way of counting to another; checked against all that stays.

    Raises:
        CorrectionError: a name does not exist, is not in the scheme, is taken or locked.
    """
    mapping: dict[int, int] = {}
    for sid in sorted_ids(moving):
        at = old_chain.index(level_of(sid)) + step
        named = counterpart(sid, new_chain[at]) if 0 <= at < len(new_chain) else None
        if named is None:
            end = "above C1" if at < 1 else "below the sacrum"
            raise CorrectionError(
                f"Cannot shift {labelling.name(sid)} {end}.",
                f"Delete {labelling.name(sid)} first, or move only those above or below a level.",
            )
        if named.id != sid:
            in_scheme(labelling, named.id, labelling.name(sid))
            mapping[sid] = named.id
    labelling.require_unlocked(mapping)
    _check_order(labelling, mapping)
    return mapping


def in_scheme(labelling: LabeledStructures, new: int, name: str) -> None:
    scheme = labelling.scheme
    if scheme is not None and new not in scheme.ids:
        raise CorrectionError(
            f"{name} would become {STRUCTURES[new].name}, which the label scheme “{scheme.name}” does not have.",
            "Delete it first if the shift is right.",
        )


def _check_order(labelling: LabeledStructures, mapping: Mapping[int, int]) -> None:
    """What moves may neither take a name that stays in use nor pass by another level; what becomes 0 is removed."""
    staying = {i for i in labelling.present if i not in mapping}
    for old, new in mapping.items():
        if new in staying:
            raise CorrectionError(
                f"{labelling.name(old)} cannot become {STRUCTURES[new].name}, which is labeled and stays.",
                f"Shift {STRUCTURES[new].name} too, delete it, or merge the two.",
            )
    rows: dict[object, list[int]] = {}
    for sid in sorted_ids(i for i in is_levelled(labelling) if mapping.get(i, i)):
        rows.setdefault(STRUCTURES[sid].is_vertebral or STRUCTURES[sid].kind, []).append(sid)
    for row in rows.values():
        for upper, lower in pairwise(row):
            a, b = mapping.get(upper, upper), mapping.get(lower, lower)
            if order_of(a) >= order_of(b):
                raise CorrectionError(
                    f"{labelling.name(upper)} would become {STRUCTURES[a].name} and lie below {STRUCTURES[b].name}.",
                    "Shift fewer levels, or all of them.",
                )


def _pair(labelling: LabeledStructures, first: int, second: int, done: str) -> None:
    """Two different labeled structures of a kind, not locked."""
    labelling.require(first, second)
    if first == second:
        raise CorrectionError(f"{labelling.name(first)} cannot be {done} with itself.", "Choose two structures.")
    a, b = STRUCTURES[first], STRUCTURES[second]
    if a.is_vertebral != b.is_vertebral or (not a.is_vertebral and a.kind is not b.kind):
        raise CorrectionError(
            f"{labelling.name(first)} and {labelling.name(second)} cannot be {done}: they are of different kinds.",
            "Choose two vertebrae, or two discs.",
        )
    labelling.require_unlocked((first, second))
