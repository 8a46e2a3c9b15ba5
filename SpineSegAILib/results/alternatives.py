"""Another naming that fits nearly as well, with what it takes to choose it."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..anatomy import L6_ID, SACRUM_ID, STRUCTURES, T13_ID, order_of


@dataclass(frozen=True)
class Alternative:
    """A second answer to “which levels are these?”.

    Attributes:
        names: the sequence, top down: ``"T12 L1 … S1"``, a missing level in brackets.
        probability: 0…1.
        mapping: id that a structure has now → id that it would get; 0 where it would be omitted. What is not listed
            stays.
        question: the sentence that a reader is asked; empty where only more probable alternatives are asked about.
    """

    names: str
    probability: float
    mapping: Mapping[int, int]
    question: str = ""

    @property
    def step(self) -> str:
        """What ``spinesegai relabel`` does to choose it, ``"--set L5=S1"``; empty where no such step does.

        What it omits is deleted first: ``'--delete S1,L5/S1 --set L5=S1'``.
        """
        return relabel_step(self.mapping)

    def restricted_to(self, ids: Collection[int]) -> Alternative:
        """The same for a result that has no other structures than these."""
        return replace(self, mapping={old: new for old, new in self.mapping.items() if old in ids})

    def to_document(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "names": self.names,
            "probability": round(self.probability, 4),
            "mapping": [
                {
                    "id": old, "structure": STRUCTURES[old].name,
                    "new_id": new, "new_structure": STRUCTURES[new].name if new else None,
                }
                for old, new in self.mapping.items()
            ],
            "relabel": self.step,
            "question": self.question,
        }  # fmt: skip

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Alternative:
        """What `to_document` made.

        Raises:
            KeyError, TypeError, ValueError: it did not.
        """
        mapping = {int(m["id"]): int(m["new_id"]) for m in document["mapping"]}
        return cls(str(document["names"]), float(document["probability"]), mapping, str(document.get("question", "")))


def relabel_step(mapping: Mapping[int, int]) -> str:
    """What of ``relabel`` renames so: all levels by the same number, or with another way of counting.

    All levels follow the one that is set by counting from it. Another way of counting keeps the sacrum, and renames
    those above an L6 or a T13.
    """
    omitted = sorted(old for old, new in mapping.items() if not new)
    if omitted:
        if SACRUM_ID not in omitted:  # what lies below what is omitted may keep its name, and would follow nevertheless
            return ""
        rest = relabel_step({old: new for old, new in mapping.items() if new})
        names = ",".join(STRUCTURES[old].name for old in omitted)
        return f"--delete {shlex.quote(names)} {rest}" if rest else ""
    bones = sorted((old for old in mapping if STRUCTURES[old].is_vertebral), key=order_of)
    if not bones:
        discs = sorted((old for old in mapping if STRUCTURES[old].order is not None), key=order_of)
        return _set(discs[-1], mapping[discs[-1]]) if discs else ""
    before, after = set(bones), {mapping[i] for i in bones}
    lowest = bones[-1]
    if lowest != SACRUM_ID and SACRUM_ID not in after:
        for variant, usual in ((L6_ID, "L5"), (T13_ID, "T12")):
            if variant in after and variant not in before:
                return f"--counting {STRUCTURES[variant].name}"
            if variant in before and variant not in after:
                return f"--counting {usual}"
    return _set(lowest, mapping[lowest])


def _set(old: int, new: int) -> str:
    return f"--set {STRUCTURES[old].name}={STRUCTURES[new].name}"
