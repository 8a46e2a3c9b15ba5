"""What a segmentation that was drawn or renamed by hand must fulfil."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from ..anatomy import GENERIC_IDS, STRUCTURES
from ..errors import CorrectionError
from .segment_names import structure_of_name


def check_names(segments: Iterable[tuple[int, str]]) -> None:
    """Segments must be called what they are recorded as, each once.

    Args:
        segments: (structure id of its tag, name that the reader sees).

    Raises:
        CorrectionError: one was renamed by hand to another structure, or a structure is there twice.
    """
    segments = list(segments)
    for sid, name in segments:
        called = structure_of_name(name)
        if called is not None and called[0] not in (sid, *GENERIC_IDS):
            was = STRUCTURES[sid].name
            raise CorrectionError(
                f"The segment “{name}” was renamed by hand: it is recorded as {was}.",
                f"Rename it to {was} again, then set its level to {STRUCTURES[called[0]].name}: "
                "the other levels follow.",
            )
    check_once(segments)


def check_once(segments: Iterable[tuple[int, str]]) -> None:
    """A structure must not be there twice.

    Args:
        segments: (structure id, name that the reader sees).

    Raises:
        CorrectionError: names the first two that are the same.
    """
    seen: dict[int, str] = {}
    for sid, name in segments:
        if sid in seen:
            raise CorrectionError(
                f"{STRUCTURES[sid].name} is there twice, as “{seen[sid]}” and “{name}”.",
                "Merge the two, delete one, or rename one.",
            )
        seen[sid] = name


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
