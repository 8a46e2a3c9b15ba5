"""What a segmentation that was drawn or renamed by hand must fulfil."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from ..anatomy import STRUCTURES, structure
from ..errors import CorrectionError, SchemeError


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
