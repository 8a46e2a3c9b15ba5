"""What a reader changed, step by step: a document that is stored with the segmentation.

It is an attribute of the segmentation node in Slicer (`LOG_ATTRIBUTE`), and the key ``corrections`` of the document in
a ``.seg.nrrd`` header and beside a label image.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import datetime, timezone
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..anatomy import short_name
from ..errors import CorrectionError


class Renaming(BaseModel):
    """One structure's name before and after; after a removal both `id_after` and `after` are empty."""

    model_config = ConfigDict(frozen=True)

    id_before: int
    before: str
    id_after: int = 0
    after: str = ""


class CorrectionEntry(BaseModel):
    """One step.

    Attributes:
        tool: ``"shift"``, ``"set"``, ``"smooth"``, ``"paint"`` …
        words: the step in a sentence.
        when: UTC.
        structures: names of what it was about, as they were before.
        renamed: names that changed.
        redrawn: whether voxels changed.
        details: parameters of the tool.
    """

    model_config = ConfigDict(frozen=True)

    tool: str
    words: str = ""
    when: datetime
    structures: tuple[str, ...] = ()
    renamed: tuple[Renaming, ...] = ()
    redrawn: bool = False
    details: dict[str, Any] = Field(default_factory=dict)


class CorrectionLog(BaseModel):
    """All steps, first to last. `str(log)` reads like a list; `to_json` and `from_json` store it."""

    model_config = ConfigDict(frozen=True)

    format: Literal["SpineSegAI correction log"] = "SpineSegAI correction log"
    version: Literal[1] = 1
    entries: tuple[CorrectionEntry, ...] = ()

    def added(self, *entries: CorrectionEntry) -> CorrectionLog:
        """A copy that goes on with these."""
        return self.model_copy(update={"entries": (*self.entries, *entries)})

    def without_last(self) -> CorrectionLog:
        """A copy that lacks the last step, which was undone."""
        return self.model_copy(update={"entries": self.entries[:-1]})

    def corrected_structures(self) -> set[str]:
        """Names, as they are now, of the structures that a reader redrew or named; for a training import."""
        names: set[str] = set()
        for entry in self.entries:
            after = {r.before: r.after for r in entry.renamed}
            names = {after.get(name, name) for name in {*names, *entry.structures, *after}} - {""}
        return names

    def to_json(self) -> str:
        """The document as text."""
        return self.model_dump_json(exclude_defaults=False)

    @classmethod
    def from_document(cls, document: Any) -> CorrectionLog:
        """The log from its decoded JSON.

        Raises:
            CorrectionError: it is damaged or of a newer version.
        """
        return cls.from_json(json.dumps(document))

    @classmethod
    def from_json(cls, text: str) -> CorrectionLog:
        """The document from text; empty text is an empty log.

        Raises:
            CorrectionError: it is damaged or of a newer version.
        """
        if not text.strip():
            return cls()
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise CorrectionError(
                "The correction log is damaged, or was written by a newer SpineSegAI.",
                "Remove it to continue without it.",
            ) from error

    def __str__(self) -> str:
        return "\n".join(f"{e.when:%Y-%m-%d %H:%M} {e.words or e.tool}" for e in self.entries)


def painted(structure_ids: Collection[int], present: Collection[int], when: datetime | None = None) -> CorrectionEntry:
    """An entry for what was drawn by hand, with Slicer's Segment Editor."""
    names = tuple(short_name(i, present) for i in structure_ids)
    return CorrectionEntry(
        tool="paint",
        words=f"Drawn by hand: {', '.join(names)}",
        when=when or now(),
        structures=names,
        redrawn=True,
    )


def carried(
    structure_ids: Collection[int], present: Collection[int], source: str, when: datetime | None = None
) -> CorrectionEntry:
    """An entry for what was replaced, by position, by the segments of another series."""
    return CorrectionEntry(
        tool="carry",
        words=f"Copied from {source}",
        when=when or now(),
        structures=tuple(short_name(i, present) for i in structure_ids),
        redrawn=True,
    )


def now() -> datetime:
    """UTC, to the second."""
    return datetime.now(timezone.utc).replace(microsecond=0)
