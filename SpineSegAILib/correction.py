"""A reader's corrections of names and pieces: shift, “this one is L5”, swap, merge, split, delete, insert, counting.

A tool takes what is labelled (`Labelling`) and returns a `Correction`: which structure gets which name, and, where
voxels change, a `Patch`. Nothing is changed until the correction is applied, so that a panel can rename its segments
and a script its label image from the same description. A name stands for a level: the disc below a vertebra follows
it, the canal and whatever else has no level stays. The sacrum is the lowest level; nothing can be moved below it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from .anatomy import (
    SACRUM_ID,
    STRUCTURES,
    Kind,
    LabelScheme,
    disc_below,
    disc_name,
    level_chain,
    sorted_ids,
    structure,
    vertebra_above,
)
from .errors import CorrectionError, SchemeError

if TYPE_CHECKING:
    import SimpleITK as sitk

    from .results import Segmentation

Direction = Literal["all", "above", "below"]
"""Which levels follow: all, the chosen one with those above it, or the chosen one with those below it."""

Box = tuple[slice, slice, slice]
"""Part of a label array, along its axes (z, y, x)."""

L6_ID, T13_ID = 25, 28
_VARIANTS = (L6_ID, T13_ID)
COUNTINGS: Mapping[str, str] = {
    "L6": "six lumbar vertebrae",
    "L5": "five lumbar vertebrae",
    "T13": "thirteen thoracic vertebrae",
    "T12": "twelve thoracic vertebrae",
}
"""The ways to count, named by the last lumbar or thoracic vertebra that they have."""


# --- what a correction is ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Patch:
    """New labels in a box of a label array; all outside it stays.

    Attributes:
        box: where, along (z, y, x).
        labels: int16 structure ids in the box.
    """

    box: Box
    labels: np.ndarray

    @classmethod
    def between(cls, before: np.ndarray, after: np.ndarray) -> Patch | None:
        """What turns one label array into another of the same shape; None where they are equal."""
        box = box_of(before != after)
        return None if box is None else cls(box, after[box].astype(np.int16))


@dataclass(frozen=True, eq=False)
class Correction:
    """One step, as small as it can be said: first names change, then the voxels of a box.

    Attributes:
        tool: which tool made it: ``"shift"``, ``"set"`` …
        words: a sentence for the reader and the log.
        mapping: id → new id of what is renamed; 0 is removed; those that get the same id are merged, and the one
            that had it before is listed too.
        patch: labels that replace a box after the renaming, or None.
        structures: ids that it is about, as they were called before.
        missing: ids that it expects but that have no voxels: where a reader should draw.
        notes: sentences that the reader should see.
        details: JSON-able parameters, for the log.
    """

    tool: str
    words: str
    mapping: Mapping[int, int] = field(default_factory=dict)
    patch: Patch | None = None
    structures: tuple[int, ...] = ()
    missing: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def only_names(self) -> bool:
        """Whether every voxel stays in a structure of its own: nothing merged, removed or redrawn."""
        kept = [i for i in self.mapping.values() if i]
        return self.patch is None and len(kept) == len(self.mapping) == len(set(kept))

    def apply(self, labels: np.ndarray) -> np.ndarray:
        """The corrected copy of a label array (z, y, x)."""
        result = renamed(labels, self.mapping)
        if self.patch is not None:
            result[self.patch.box] = self.patch.labels
        return result

    def undo(self, before: np.ndarray) -> Correction:
        """What brings `before` back from the labels that `apply` made of it, exactly."""
        words = f"Undo: {self.words}"
        if self.only_names:
            back = {new: old for old, new in self.mapping.items()}
            return Correction("undo", words, back, structures=tuple(back))
        return Correction("undo", words, patch=Patch.between(self.apply(before), before), structures=self.structures)


def renamed(labels: np.ndarray, mapping: Mapping[int, int]) -> np.ndarray:
    """A copy of a label array with other ids, as int16; ids that the mapping lacks stay."""
    labels = np.asarray(labels)
    if not mapping:
        return labels.astype(np.int16)
    table = np.arange(max(int(labels.max(initial=0)), *mapping) + 1, dtype=np.int16)
    for old, new in mapping.items():
        table[old] = new
    return table[labels]


def corrected(segmentation: Segmentation, correction: Correction) -> Segmentation:
    """The segmentation after a correction: voxels, confidence, key points and what is unvalidated follow the names.

    The correction is added to its log; neither argument is changed.
    """
    import SimpleITK as sitk

    from .correction_log import CorrectionLog, entry_of

    before = sitk.GetArrayViewFromImage(segmentation.labels)
    labels = sitk.GetImageFromArray(correction.apply(before))
    labels.CopyInformation(segmentation.labels)
    mapping = correction.mapping
    scheme = segmentation.scheme
    new = sorted_ids(Labelling.of(labels).present - set(scheme.ids))
    return replace(
        segmentation,
        labels=labels,
        scheme=replace(scheme, ids=(*scheme.ids, *new)) if new else scheme,
        confidence=_following(segmentation.confidence, mapping),
        keypoints=_following(segmentation.keypoints, mapping),
        unvalidated=frozenset(mapping.get(i, i) for i in segmentation.unvalidated) - {0},
        warnings=[*segmentation.warnings, *correction.notes],
        provenance=dict(segmentation.provenance),
        corrections=(segmentation.corrections or CorrectionLog()).added(entry_of(correction, segmentation.present)),
    )


_Value = TypeVar("_Value")


def _following(values: Mapping[int, _Value], mapping: Mapping[int, int]) -> dict[int, _Value]:
    """Values by id under the new ids; of several that were merged, the one that had the name already."""
    moved = {mapping[i]: value for i, value in values.items() if mapping.get(i)}
    return {**moved, **{i: value for i, value in values.items() if mapping.get(i, i) == i}}


# --- what is labelled -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Labelling:
    """What the tools need to know of a segmentation.

    Attributes:
        present: ids of the structures that have voxels.
        scheme: names that may be given; None for all levels from C1 to the sacrum.
        locked: ids that no tool may change or rename.
    """

    present: frozenset[int]
    scheme: LabelScheme | None = None
    locked: frozenset[int] = frozenset()

    @classmethod
    def of(
        cls, labels: sitk.Image | np.ndarray, scheme: LabelScheme | None = None, locked: Collection[int] = ()
    ) -> Labelling:
        """What a label image or array holds."""
        present = np.flatnonzero(np.bincount(array_of(labels).ravel()))
        return cls(frozenset(int(i) for i in present if i), scheme, frozenset(locked))

    @property
    def vertebrae(self) -> list[int]:
        """Ids of the labelled vertebrae and the sacrum that have a level, top down."""
        return [i for i in sorted_ids(self.present) if STRUCTURES[i].is_vertebral and STRUCTURES[i].order is not None]

    def name(self, structure_id: int) -> str:
        """``"L4"``, ``"L5/L6"``: short, with the neighbours that are really there."""
        s = structure(structure_id)
        return disc_name(s.id, self.present) if s.kind is Kind.DISC and s.order is not None else s.name

    def require(self, *structure_ids: int) -> None:
        """Each must be labelled.

        Raises:
            CorrectionError: one is not.
        """
        for sid in structure_ids:
            if sid not in self.present:
                there = ", ".join(self.name(i) for i in sorted_ids(self.present)) or "nothing"
                raise CorrectionError(f"{self.name(sid)} is not labelled.", f"Labelled are: {there}.")

    def require_unlocked(self, structure_ids: Iterable[int]) -> None:
        """None of these may be locked.

        Raises:
            CorrectionError: one is, or everything is.
        """
        if self.present and self.present <= self.locked:
            raise CorrectionError("Every structure is locked: nothing can be changed.", "Unlock what is to change.")
        for sid in structure_ids:
            if sid in self.locked:
                raise CorrectionError(f"{self.name(sid)} is locked.", "Unlock it first.")


def array_of(labels: sitk.Image | np.ndarray) -> np.ndarray:
    """Voxels (z, y, x) of a label image; an array as it is."""
    if isinstance(labels, np.ndarray):
        return labels
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(labels)


def box_of(mask: np.ndarray, margin: Sequence[int] = (0, 0, 0)) -> Box | None:
    """The smallest box that holds all of a mask, grown by a margin (voxels) within the array; None if it is empty."""
    box = []
    for axis, grow in enumerate(margin):
        others = tuple(a for a in range(3) if a != axis)
        along = np.flatnonzero(mask.any(axis=others))
        if not len(along):
            return None
        box.append(slice(max(int(along[0]) - grow, 0), min(int(along[-1]) + 1 + grow, mask.shape[axis])))
    return tuple(box)  # type: ignore[return-value]


def structure_at(labels: sitk.Image, point: Sequence[float]) -> int:
    """Id of the structure at a physical point (LPS, mm).

    Raises:
        CorrectionError: the point lies outside the image or on background.
    """
    at = ", ".join(f"{x:.0f}" for x in point)
    index = labels.TransformPhysicalPointToIndex([float(x) for x in point])
    if not all(0 <= i < n for i, n in zip(index, labels.GetSize(), strict=True)):
        raise CorrectionError(f"The point ({at}) lies outside the image.", "Points are LPS millimetres.")
    found = int(labels[index])
    if not found:
        raise CorrectionError(f"There is only background at ({at}).", "Choose a point inside a vertebra or disc.")
    return found


def check_names(segments: Iterable[tuple[int, str]]) -> None:
    """Segments must be called what they are recorded as, each once.

    Args:
        segments: (structure id of its tag, name that the reader sees).

    Raises:
        CorrectionError: one was renamed by hand to another structure, or a structure is there twice.
    """
    seen: dict[int, str] = {}
    for sid, name in segments:
        try:
            called = structure(_short(name))
        except SchemeError:
            called = None  # a name of the reader's own says nothing of the level
        was = STRUCTURES[sid].name
        if called is not None and called.id != sid:
            raise CorrectionError(
                f"The segment “{name}” was renamed by hand: it is recorded as {was}.",
                f"Call it {was} again, and say “this one is {called.name}”: the other levels then follow.",
            )
        if sid in seen:
            raise CorrectionError(
                f"{was} is there twice, as “{seen[sid]}” and “{name}”.", "Merge the two, or delete one."
            )
        seen[sid] = name


def _short(display_name: str) -> str:
    """``"L4 vertebra (body)"`` → ``"L4"``, ``"L4/L5 disc"`` → ``"L4/L5"``."""
    text = display_name.split(" (")[0]
    for word in (" vertebra", " disc"):
        text = text.removesuffix(word)
    return text


def check_overlap(masks: Mapping[int, np.ndarray]) -> None:
    """Masks drawn by hand must not share voxels.

    Args:
        masks: structure id → bool array, all of one shape.

    Raises:
        CorrectionError: names the first two that do.
    """
    owner: np.ndarray | None = None
    for sid, mask in masks.items():
        owner = np.zeros(mask.shape, np.int16) if owner is None else owner
        taken = owner[mask]
        if taken.any():
            first = int(taken[taken > 0][0])
            count = int((taken == first).sum())
            raise CorrectionError(
                f"{STRUCTURES[first].name} and {STRUCTURES[sid].name} overlap in {count} voxels.",
                "Draw with overwriting allowed, or take one from the other (Logical operators, Subtract).",
            )
        owner[mask] = sid


# --- levels -----------------------------------------------------------------------------------------------------------


def shift(
    labelling: Labelling, to: Literal["up", "down"], start: int | None = None, direction: Direction = "all"
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
        raise CorrectionError(f"“{to}” is no direction to shift in.", "Use up or down.")
    _with_levels(labelling)
    moving = _moving(labelling, start, direction)
    if step == 1 and moving != {SACRUM_ID}:
        moving = moving - {SACRUM_ID}
    chain = _ids(_variants_of(labelling.present))
    mapping = _follow(labelling, chain, chain, step, moving)
    part = "" if start is None or direction == "all" else f" from {labelling.name(start)} {direction}"
    details = {"to": to, "direction": direction, **({} if start is None else {"from": start})}
    return Correction("shift", f"Shift levels {to}{part}", mapping, structures=tuple(mapping), details=details)


def set_level(
    labelling: Labelling, chosen: int, level: int | str, direction: Direction = "all", tool: str = "set"
) -> Correction:
    """“This one is L5”: the chosen one gets the level, and the others follow by counting from it.

    T13 and L6 are counted if `level` says so, or if they were. Where the sacrum is labelled and neither chosen nor
    named, the way of counting that leaves it the sacrum is preferred.

    Args:
        chosen: id of a labelled vertebra, of the sacrum, or of a disc.
        level: id or name of what it is; a disc is a disc.

    Raises:
        CorrectionError: not labelled, no level, another kind, locked, or the others do not fit around it.
    """
    target = structure(level)
    labelling.require(chosen)
    s = STRUCTURES[chosen]
    for x in (s, target):
        if x.order is None:
            raise CorrectionError(f"“{x.name}” has no level.", "Choose a vertebra or a disc.")
    if s.is_vertebral != target.is_vertebral:
        raise CorrectionError(
            f"{labelling.name(chosen)} cannot be {target.name}: one is a vertebra and the other a disc.",
            "Name a vertebra by a vertebra, a disc by a disc.",
        )
    old_chain = _ids(_variants_of(labelling.present))
    moving = _moving(labelling, chosen, direction)
    wanted = _bone_of(target.id)
    ways: list[tuple[tuple[bool, int, int], dict[int, int], set[int]]] = []
    refused: CorrectionError | None = None
    counted = _variants_of(labelling.present)
    for variants in (set(c) for n in range(3) for c in combinations(_VARIANTS, n)):
        chain = _ids(variants)
        if wanted not in chain:
            continue
        try:
            step = chain.index(wanted) - old_chain.index(_bone_of(chosen))
            mapping = _follow(labelling, old_chain, chain, step, moving)
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
        f"{STRUCTURES[v].name} is counted now: please check the numbering."
        for v in _VARIANTS
        if v in mapping.values() and v not in counted and v != wanted
    )
    words = f"{labelling.name(chosen)} is {target.name}"
    details = {"chosen": chosen, "level": target.id, "direction": direction}
    return Correction(tool, words, mapping, structures=(chosen,), notes=notes, details=details)


def swap(labelling: Labelling, first: int, second: int) -> Correction:
    """Two structures of a kind exchange their names; nothing else moves.

    Raises:
        CorrectionError: not labelled, of different kinds, or locked.
    """
    _pair(labelling, first, second, "swapped")
    words = f"Swap {labelling.name(first)} and {labelling.name(second)}"
    return Correction("swap", words, {first: second, second: first}, structures=(first, second))


def merge(labelling: Labelling, first: int, second: int, direction: Direction | None = "above") -> Correction:
    """Two pieces of one structure become one.

    Neighbouring vertebrae become one that keeps the lower one's name, with the disc between them, which was none; the
    levels above come down by one. With `direction` below it keeps the upper one's name and those below come up; with
    None no other level moves. Of discs and other structures the second becomes part of the first.

    Raises:
        CorrectionError: not labelled, of different kinds, not neighbours, or locked.
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
            f"{STRUCTURES[upper].name} and {STRUCTURES[lower].name} are no neighbours: {between} lies between them.",
            "Merge neighbours, one pair after the other.",
        )
    kept, given_up = (upper, lower) if direction == "below" else (lower, upper)
    mapping = {given_up: kept, kept: kept}
    disc = disc_below(upper)
    if disc is not None and disc.id in labelling.present:
        mapping[disc.id] = kept
    labelling.require_unlocked(mapping)
    chain = _ids(_variants_of(labelling.present))
    if direction and chain.index(lower) - chain.index(upper) == 1:
        rest = replace(labelling, present=labelling.present - set(mapping) | {kept})
        kept_side, step = ("below", -1) if direction == "below" else ("above", 1)
        moving = {i for i in _levelled(rest) if i != kept and _lies(i, kept_side, kept)}
        mapping |= _follow(rest, chain, chain, step, moving)
    return Correction("merge", words, mapping, structures=(upper, lower), details=details)


def delete(labelling: Labelling, *structure_ids: int) -> Correction:
    """Structures are removed; the names of the others stay.

    Raises:
        CorrectionError: not labelled, or locked.
    """
    if not structure_ids:
        raise CorrectionError("Nothing to delete was named.", "Name a structure.")
    labelling.require(*structure_ids)
    labelling.require_unlocked(structure_ids)
    words = f"Delete {', '.join(labelling.name(i) for i in structure_ids)}"
    return Correction("delete", words, dict.fromkeys(structure_ids, 0), structures=tuple(structure_ids))


def insert(labelling: Labelling, level: int | str, direction: Direction = "above") -> Correction:
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
        raise CorrectionError(f"“{s.name}” is no level of a vertebra.", "Name the missing vertebra, for example L3.")
    if direction == "all":
        raise CorrectionError("Either those above or those below make room.", "Say above or below.")
    _with_levels(labelling)
    if s.id not in labelling.present:
        raise CorrectionError(
            f"No vertebra is called {s.name}: there is a gap already.", f"Draw it, and call it {s.name}."
        )
    chain = _ids(_variants_of(labelling.present))
    moving = _moving(labelling, s.id, direction)
    mapping = _follow(labelling, chain, chain, 1 if direction == "below" else -1, moving)
    words, details = f"{s.name} is missing", {"level": s.id, "direction": direction}
    return Correction("insert", words, mapping, structures=(s.id,), missing=(s.id,), details=details)


def switch_counting(labelling: Labelling, to: str, direction: Direction = "above") -> Correction:
    """Count with or without an L6 or a T13.

    Args:
        to: one of `COUNTINGS`: ``"L6"`` for six lumbar vertebrae, ``"L5"`` back to five, ``"T13"``, ``"T12"`` likewise.
        direction: those above the variant are renamed (the sacrum stays what it is), or those below.

    Raises:
        CorrectionError: unknown, counted so already, or a level would leave the scheme or is locked.
    """
    if to not in COUNTINGS:
        raise CorrectionError(f"“{to}” is no way to count.", f"Known: {', '.join(COUNTINGS)}.")
    _with_levels(labelling)
    before = _variants_of(labelling.present)
    variant, wanted = (L6_ID if to in ("L6", "L5") else T13_ID), to in ("L6", "T13")
    if (variant in before) == wanted:
        raise CorrectionError(f"The levels are counted with {COUNTINGS[to]} already.")
    after = before | {variant} if wanted else before - {variant}
    old, new = _ids(before), _ids(after)
    step = 0 if direction == "below" else len(new) - len(old)  # aligned at the top, or at the sacrum
    mapping = _follow(labelling, old, new, step, set(_levelled(labelling)))
    if wanted and variant not in mapping.values():
        raise CorrectionError(
            f"No level in view becomes {STRUCTURES[variant].name}.", "Say which one it is: “this one is …”."
        )
    words, details = f"Count {COUNTINGS[to]}", {"to": to, "direction": direction}
    return Correction("counting", words, mapping, structures=tuple(mapping), details=details)


# --- split ------------------------------------------------------------------------------------------------------------


def split(
    labelling: Labelling,
    labels: sitk.Image,
    chosen: int,
    *,
    point: Sequence[float] | None = None,
    normal: Sequence[float] | None = None,
    direction: Direction = "above",
) -> Correction:
    """One structure that is two is cut by a plane.

    The lower part keeps the name and the upper one gets that of the level above; where that is taken, all above move
    up by one. With `direction` below it is the other way round.

    Args:
        labels: the label image (any orientation).
        chosen: id of a vertebra, the sacrum or a disc.
        point: physical point (LPS, mm) on the plane; None for the narrowest place near the middle.
        normal: of the plane (LPS); None for the spine's axis there.

    Raises:
        CorrectionError: not labelled, without level, locked, not cut by the plane, or there is no name for the part.
    """
    labelling.require(chosen)
    labelling.require_unlocked([chosen])
    s, name = STRUCTURES[chosen], labelling.name(chosen)
    if s.order is None:
        raise CorrectionError(f"“{s.name}” has no level: its parts would have no names.", "Choose a vertebra or disc.")
    if direction == "all":
        raise CorrectionError("One part keeps the name; the other gets the one above or below.", "Say above or below.")
    values = array_of(labels)
    box = box_of(values == chosen)
    assert box is not None  # it is labelled
    index = np.argwhere(values[box] == chosen)
    positions = _physical(labels, index + [b.start for b in box])
    axis = _axis(labels, values, labelling, chosen, positions)
    across = axis if normal is None else np.asarray(normal, float)
    length = float(np.linalg.norm(across))
    if across.shape != (3,) or not np.isfinite(length) or length < 1e-6:
        raise CorrectionError("The plane's normal is no direction.", "Give three numbers, for example 0,0,1.")
    across = across / length * (1.0 if across @ axis >= 0 else -1.0)  # downwards
    height = positions @ across
    at = _waist(height) if point is None else float(np.asarray(point, float) @ across)
    above = height < at
    if above.all() or not above.any():
        raise CorrectionError(f"The plane does not cut {name}.", "Choose a point inside it.")

    mapping, part = _room_beside(labelling, chosen, direction)
    patch_labels = renamed(values[box], mapping)
    moved = index[above if direction == "above" else ~above]
    patch_labels[tuple(moved.T)] = part
    details = {
        "direction": direction,
        "point": None if point is None else [float(x) for x in point],
        "normal": [round(float(x), 4) for x in across],
    }
    return Correction("split", f"Split {name}", mapping, Patch(box, patch_labels), (chosen,), details=details)


def _room_beside(labelling: Labelling, chosen: int, direction: Direction) -> tuple[dict[int, int], int]:
    """What is renamed so that the level beside the chosen one is free, and its id."""
    chain = _ids(_variants_of(labelling.present))
    step = 1 if direction == "below" else -1
    at = chain.index(_bone_of(chosen)) + step
    bone = chain[at] if 0 <= at < len(chain) else 0
    disc = disc_below(bone) if bone else None
    is_disc = STRUCTURES[chosen].kind is Kind.DISC
    part = (disc.id if disc else 0) if is_disc else bone
    name = labelling.name(chosen)
    if not part:
        raise CorrectionError(f"There is no name {direction} {name}.", "Split to the other side.")
    _in_scheme(labelling, part, f"The part {direction} {name}")
    if is_disc:
        if part in labelling.present:
            raise CorrectionError(
                f"The part of {name} would be {labelling.name(part)}, which is labelled already.",
                "Split to the other side, or correct the vertebrae first: discs follow them.",
            )
        return {}, part
    if part in labelling.present:
        moving = {i for i in _levelled(labelling) if i != chosen and _lies(i, direction, chosen)}
        return _follow(labelling, chain, chain, step, moving), part
    own = disc_below(chosen)
    if direction == "below" and own is not None and own.id in labelling.present:  # it lies below the lower part
        return _follow(labelling, chain, chain, 1, {own.id}), part
    return {}, part


def _physical(labels: sitk.Image, index: np.ndarray) -> np.ndarray:
    """(n, 3) LPS millimetres of (n, 3) array indices (z, y, x)."""
    matrix = np.reshape(labels.GetDirection(), (3, 3)) * labels.GetSpacing()
    return index[:, ::-1] @ matrix.T + np.array(labels.GetOrigin())


def _axis(
    labels: sitk.Image, values: np.ndarray, labelling: Labelling, chosen: int, positions: np.ndarray
) -> np.ndarray:
    """Unit vector downwards along the spine at a structure: from its neighbours, else from its own shape."""
    order = STRUCTURES[chosen].order
    line = [i for i in sorted_ids(_levelled(labelling)) if STRUCTURES[i].kind is not Kind.DISC] or sorted_ids(
        _levelled(labelling)
    )
    above = [i for i in line if STRUCTURES[i].order < order and i != chosen]  # type: ignore[operator]
    below = [i for i in line if STRUCTURES[i].order > order and i != chosen]  # type: ignore[operator]
    ends = [
        _physical(labels, np.argwhere(values == i)).mean(axis=0) if i else positions.mean(axis=0)
        for i in (above[-1] if above else 0, below[0] if below else 0)
    ]
    along = ends[1] - ends[0]
    if np.linalg.norm(along) < 1.0:  # alone in view: the principal axis that is nearest to the body's
        _, vectors = np.linalg.eigh(np.cov(positions.T)) if len(positions) > 3 else (None, np.eye(3))
        along = vectors[:, np.argmax(np.abs(vectors[2]))]
        along = along * (-1.0 if along[2] > 0 else 1.0)
    return along / np.linalg.norm(along)


def _waist(height: np.ndarray) -> float:
    """Where a structure is narrowest within a tenth of its length from the middle; mm along the axis.

    Two bodies that were taken for one are joined by less than a body's width; where there is no waist it is the middle.
    """
    low, high = np.percentile(height, (0.5, 99.5))
    middle, reach = (low + high) / 2, 0.1 * (high - low)
    step = 1.0  # mm
    centers = middle + step * np.arange(-int(reach / step), int(reach / step) + 1)
    area = np.array([np.count_nonzero(np.abs(height - c) <= 1.5 * step) for c in centers])
    least = int(np.argmin(area))
    return float(centers[least] if area[least] <= 0.8 * np.median(area) else middle)


# --- the chain of levels ----------------------------------------------------------------------------------------------


def _ids(variants: Iterable[int]) -> list[int]:
    """C1 … sacrum with these variants."""
    return [s.id for s in level_chain(variants)]


def _variants_of(present: Iterable[int]) -> set[int]:
    """Which of T13 and L6 are labelled, by themselves or by their disc."""
    return set(_ids(present)) & set(_VARIANTS)


def _bone_of(structure_id: int) -> int:
    """The vertebra that a disc follows; a vertebra itself."""
    return vertebra_above(structure_id).id if STRUCTURES[structure_id].kind is Kind.DISC else structure_id


def _levelled(labelling: Labelling) -> list[int]:
    return [i for i in labelling.present if STRUCTURES[i].order is not None]


def _with_levels(labelling: Labelling) -> None:
    if not _levelled(labelling):
        raise CorrectionError("No vertebra or disc with a level is labelled.", "Segment first.")


def _lies(structure_id: int, side: Direction, of: int) -> bool:
    """Whether a structure lies above or below another; a disc lies below its vertebra."""
    here, there = STRUCTURES[structure_id].order, STRUCTURES[of].order
    return here > there if side == "below" else here < there  # type: ignore[operator]


def _moving(labelling: Labelling, start: int | None, direction: Direction) -> set[int]:
    """What moves when all move, or the chosen one with those above (its disc comes along) or below it."""
    if direction not in ("all", "above", "below"):
        raise CorrectionError(f"“{direction}” is no direction.", "Use all, above or below.")
    levelled = _levelled(labelling)
    if direction == "all":
        return set(levelled)
    if start is None:
        raise CorrectionError(f"From which level on do those {direction} move?", "Name one that is labelled.")
    labelling.require(start)
    if STRUCTURES[start].order is None:
        raise CorrectionError(f"“{STRUCTURES[start].name}” has no level.", "Choose a vertebra or a disc.")
    own = disc_below(start) if STRUCTURES[start].is_vertebral else None
    return {i for i in levelled if i == start or (own and i == own.id) or _lies(i, direction, start)}


def _follow(
    labelling: Labelling, old_chain: Sequence[int], new_chain: Sequence[int], step: int, moving: Collection[int]
) -> dict[int, int]:
    """Names of what moves by `step` levels, from one way of counting to another; checked against all that stays.

    Raises:
        CorrectionError: a name does not exist, is not in the scheme, is taken or locked.
    """
    mapping: dict[int, int] = {}
    for sid in sorted_ids(moving):
        at = old_chain.index(_bone_of(sid)) + step
        bone = new_chain[at] if 0 <= at < len(new_chain) else None
        disc = disc_below(bone) if bone is not None else None
        new = (disc.id if disc else None) if STRUCTURES[sid].kind is Kind.DISC else bone
        if new is None:
            end = "above C1" if at < 1 else "below the sacrum"
            raise CorrectionError(
                f"{labelling.name(sid)} would come to lie {end}, where nothing has a name.",
                f"Delete {labelling.name(sid)} first, or move only those above or below a level.",
            )
        if new != sid:
            _in_scheme(labelling, new, labelling.name(sid))
            mapping[sid] = new
    labelling.require_unlocked(mapping)
    _check_order(labelling, mapping)
    return mapping


def _in_scheme(labelling: Labelling, new: int, name: str) -> None:
    scheme = labelling.scheme
    if scheme is not None and new not in scheme.ids:
        raise CorrectionError(
            f"{name} would become {STRUCTURES[new].name}, which lies beyond the label scheme “{scheme.name}”.",
            "Delete it first if that is right.",
        )


def _check_order(labelling: Labelling, mapping: Mapping[int, int]) -> None:
    """What moves may neither take a name that stays in use nor pass by another level."""
    staying = {i for i in labelling.present if i not in mapping}
    for old, new in mapping.items():
        if new in staying:
            raise CorrectionError(
                f"{labelling.name(old)} cannot become {STRUCTURES[new].name}, which is labelled and stays.",
                f"Move {STRUCTURES[new].name} too, delete it, or merge the two.",
            )
    for vertebral in (True, False):
        row = [i for i in sorted_ids(_levelled(labelling)) if STRUCTURES[i].is_vertebral is vertebral]
        for upper, lower in pairwise(row):
            a, b = mapping.get(upper, upper), mapping.get(lower, lower)
            if STRUCTURES[a].order >= STRUCTURES[b].order:  # type: ignore[operator]
                raise CorrectionError(
                    f"{labelling.name(upper)} would become {STRUCTURES[a].name} and lie below {STRUCTURES[b].name}.",
                    "Move fewer levels, or all of them.",
                )


def _pair(labelling: Labelling, first: int, second: int, done: str) -> None:
    """Two different labelled structures of a kind, not locked."""
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
