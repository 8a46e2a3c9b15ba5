"""What a correction is, and what the tools need to know of a segmentation.

A tool takes what is labeled (`LabeledStructures`) and returns a `Correction`: which structure gets which name, and,
where voxels change, a `Patch`. Nothing is changed until the correction is applied, so that a panel can rename its
segments and a script its label image from the same description.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from ..anatomy import STRUCTURES, LabelScheme, short_name, sorted_ids
from ..errors import CorrectionError
from ..imaging.boxes import Box, bounding_box

if TYPE_CHECKING:
    from datetime import datetime

    import SimpleITK as sitk

    from ..results import Segmentation
    from ..results.correction_log import CorrectionEntry

Direction = Literal["all", "above", "below"]
"""Which levels follow: all, the chosen one with those above it, or the chosen one with those below it."""


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
        box = bounding_box(before != after)
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
        result = remap_labels(labels, self.mapping)
        if self.patch is not None:
            result[self.patch.box] = self.patch.labels
        return result

    def redrawn(self, before: np.ndarray) -> set[int]:
        """Ids, as they are afterwards, of the structures whose voxels are not the same set any more."""
        counts = Counter(new for new in self.mapping.values() if new)
        found = {new for new, count in counts.items() if count > 1}
        if self.patch is not None:
            old = remap_labels(before[self.patch.box], self.mapping)
            changed = old != self.patch.labels
            found |= {int(i) for i in np.unique([old[changed], self.patch.labels[changed]])} - {0}
        return found

    def undo(self, before: np.ndarray) -> Correction:
        """What brings `before` back from the labels that `apply` made of it, exactly."""
        words = f"Undo: {self.words}"
        if self.only_names:
            back = {new: old for old, new in self.mapping.items()}
            return Correction("undo", words, back, structures=tuple(back))
        return Correction("undo", words, patch=Patch.between(self.apply(before), before), structures=self.structures)

    def log_entry(self, present: Collection[int], when: datetime | None = None) -> CorrectionEntry:
        """The step as an entry of the log.

        Args:
            present: ids that were labeled before it; discs are named from their neighbors.
            when: now, if None.
        """
        from ..results.correction_log import CorrectionEntry, Renaming, now

        after = {self.mapping.get(i, i) for i in present} - {0}
        return CorrectionEntry(
            tool=self.tool,
            words=self.words,
            when=when or now(),
            structures=tuple(short_name(i, present) for i in self.structures),
            renamed=tuple(
                Renaming(
                    id_before=old,
                    before=short_name(old, present),
                    id_after=new,
                    after=short_name(new, after) if new else "",
                )
                for old, new in self.mapping.items()
                if old != new
            ),
            redrawn=not self.only_names,
            details=dict(self.details),
        )


def remap_labels(labels: np.ndarray, mapping: Mapping[int, int]) -> np.ndarray:
    """A copy of a label array with other ids, as int16; ids that the mapping lacks stay."""
    labels = np.asarray(labels)
    if not mapping:
        return labels.astype(np.int16)
    table = np.arange(max(int(labels.max(initial=0)), *mapping) + 1, dtype=np.int16)
    for old, new in mapping.items():
        table[old] = new
    return table[labels]


def apply_correction(segmentation: Segmentation, correction: Correction) -> Segmentation:
    """The segmentation after a correction: voxels, quality, keypoints and what is experimental follow the names.

    The quality of outlines that were redrawn is unknown; where levels were renamed, the question which levels they are
    is answered, and the confidence was of other names. Where a level was added the question stays, but no other naming
    is offered: none says what the new one would be. Only structures that are there stay marked as experimental: a
    level that takes the name of an absent one does not become experimental. The correction is added to the log; neither
    argument is changed.
    """
    import SimpleITK as sitk

    from ..imaging.geometry import like
    from ..results.correction_log import CorrectionLog

    before = sitk.GetArrayViewFromImage(segmentation.labels)
    labels = like(segmentation.labels, correction.apply(before))
    mapping, present = correction.mapping, segmentation.present
    scheme = segmentation.scheme
    renamed = any(new not in (0, i) and STRUCTURES[i].order is not None for i, new in mapping.items())
    kept = {i for i in present if mapping.get(i, i)}
    there = LabeledStructures.of(labels).present
    added = any(STRUCTURES[i].order is not None for i in there - {mapping.get(i, i) for i in kept})
    answered = {a.question for a in segmentation.alternatives} if renamed else set()
    quality = _following(segmentation.outline_quality, mapping)
    new = sorted_ids(there - set(scheme.ids))
    return replace(
        segmentation,
        labels=labels,
        scheme=replace(scheme, ids=(*scheme.ids, *new)) if new else scheme,
        level_confidence=None if renamed else segmentation.level_confidence,
        outline_quality={i: q for i, q in quality.items() if i not in correction.redrawn(before)},
        alternatives=[] if renamed or added else [a.restricted_to(kept) for a in segmentation.alternatives],
        keypoints=_following(segmentation.keypoints, mapping),
        unvalidated=frozenset(mapping.get(i, i) for i in segmentation.unvalidated.intersection(present)) - {0},
        warnings=[*(w for w in segmentation.warnings if w not in answered), *correction.notes],
        provenance=dict(segmentation.provenance),
        corrections=(segmentation.corrections or CorrectionLog()).added(correction.log_entry(present)),
    )


_Value = TypeVar("_Value")


def _following(values: Mapping[int, _Value], mapping: Mapping[int, int]) -> dict[int, _Value]:
    """Values by id under the new ids; of several that were merged, the one that had the name already."""
    moved = {mapping[i]: value for i, value in values.items() if mapping.get(i)}
    return {**moved, **{i: value for i, value in values.items() if mapping.get(i, i) == i}}


@dataclass(frozen=True)
class LabeledStructures:
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
    ) -> LabeledStructures:
        """What a label image or array holds."""
        present = np.flatnonzero(np.bincount(array_of(labels).ravel()))
        return cls(frozenset(int(i) for i in present if i), scheme, frozenset(locked))

    @property
    def vertebrae(self) -> list[int]:
        """Ids of the labeled vertebrae and the sacrum that have a level, top down."""
        return [i for i in sorted_ids(self.present) if STRUCTURES[i].is_vertebral and STRUCTURES[i].order is not None]

    def name(self, structure_id: int) -> str:
        """``"L4"``, ``"L5/L6"``: short, with the neighbors that are really there."""
        return short_name(structure_id, self.present)

    def require(self, *structure_ids: int) -> None:
        """Each must be labeled.

        Raises:
            CorrectionError: one is not.
        """
        for sid in structure_ids:
            if sid not in self.present:
                there = ", ".join(self.name(i) for i in sorted_ids(self.present)) or "nothing"
                raise CorrectionError(f"{self.name(sid)} is not labeled.", f"Labeled are: {there}.")

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


def structure_at(labels: sitk.Image, point: Sequence[float]) -> int:
    """Id of the structure at a physical point (LPS, mm).

    Raises:
        CorrectionError: the point lies outside the image or on background.
    """
    at = ", ".join(f"{x:.0f}" for x in point)
    index = labels.TransformPhysicalPointToIndex([float(x) for x in point])
    if not all(0 <= i < n for i, n in zip(index, labels.GetSize(), strict=True)):
        raise CorrectionError(f"The point ({at}) lies outside the image.", "Points are LPS millimeters.")
    found = int(labels[index])
    if not found:
        raise CorrectionError(f"There is only background at ({at}).", "Choose a point inside a vertebra or disc.")
    return found
