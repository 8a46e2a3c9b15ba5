"""Validation on whole volumes, with the same steps as inference, scored on the canonical grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..anatomy import POSTERIOR_ID, STRUCTURES, Kind
from ..consistency import resolve_levels
from ..datasets.manifest import Case, read_case
from ..evidence import Evidence
from ..imaging import CanonicalVolume, Preprocessing
from ..inference import channels_without_kind
from ..inference.sliding_window import volume_evidence
from ..methods.base import Method


@dataclass
class ValidationCase:
    """A preprocessed case in memory.

    Attributes:
        volume: the image.
        label: (D, H, W) structure ids.
        annotated: ids that are labelled.
    """

    name: str
    volume: CanonicalVolume
    label: np.ndarray
    annotated: tuple[int, ...]


def load_validation(cases: Sequence[Case], preprocessing: Preprocessing) -> list[ValidationCase]:
    """Preprocess the labelled cases."""
    loaded = []
    for case in cases:
        if case.label is not None:
            image, drawn = read_case(case)
            volume = preprocessing.forward(image)
            label = preprocessing.forward_label(drawn, volume)
            loaded.append(ValidationCase(case.name, volume, label, case.annotated))
    return loaded


def validate(
    method: Method, case: ValidationCase, device: torch.device, patch: tuple[int, ...] = ()
) -> tuple[dict[str, float], np.ndarray]:
    """Scores of one case, and the structure ids that were found (D, H, W).

    Args:
        patch: window, see `volume_passes.volume_evidence`.

    ``level_dice``: mean level-strict Dice of the annotated structures; ``vertebra_dice`` and ``disc_dice``: the same
    per kind; ``matched_dice``: whatever the level, the best-overlapping instance of the same kind; ``levels_right``:
    share of the structures whose best-overlapping instance has the right name; ``keypoint_mm``: median distance of the
    method's key points, under its own names, from the centroids of the structures.
    """
    evidence = volume_evidence(method, case.volume, device, patch=patch, options=method.validation_options)
    levels = set(method.scheme.kinds) - {0}
    found = structures_found(evidence)
    strict: dict[Kind, list[float]] = {}
    matched, right, apart = [], [], []
    for sid in case.annotated:
        reference = case.label == sid
        if not reference.any():
            continue
        kind = STRUCTURES[sid].kind
        if sid in evidence.keypoints:
            away = np.argwhere(reference).mean(0) - evidence.keypoints[sid]
            apart.append(float(np.linalg.norm(away * evidence.spacing)))
        target = sid
        if sid not in method.scheme.channel_of:  # a scheme without levels: everything of the kind together
            channel = method.scheme.channel_for(sid)
            if channel == 0:
                # A vessel whose side is not known, posterior elements of which some have a level and some have none.
                members = method.scheme.members(sid) if not levels or sid == POSTERIOR_ID else ()
                if members:
                    together = np.isin(case.label, (sid, *members)) if levels else reference
                    strict.setdefault(kind, []).append(_dice(together, np.isin(found, members)))
                continue
            target = method.scheme.ids[channel - 1]
            reference = np.isin(case.label, [i for i in case.annotated if STRUCTURES[i].kind is kind])
        strict.setdefault(kind, []).append(_dice(reference, found == target))
        overlapping = np.bincount(found[reference].astype(np.int64))
        overlapping[:1] = 0
        best = int(overlapping.argmax()) if overlapping.any() else 0
        right.append(float(best == target))
        matched.append(_dice(reference, found == best) if best else 0.0)
    scores = {f"{kind.value}_dice": float(np.mean(values)) for kind, values in strict.items()}
    if apart:
        scores["keypoint_mm"] = float(np.median(apart))
    every = [v for values in strict.values() for v in values]
    if every:
        scores["level_dice"] = float(np.mean(every))
    if matched:
        scores["matched_dice"] = float(np.mean(matched))
        scores["levels_right"] = float(np.mean(right))
    return scores, found


def structures_found(evidence: Evidence) -> np.ndarray:
    """(D, H, W) structure ids that follow from the evidence, on its grid; named by anatomy where there are levels."""
    scheme = evidence.scheme
    if not set(scheme.kinds) - {0}:
        assert evidence.classes is not None
        return np.array([0, *scheme.ids], np.int16)[evidence.classes.argmax(0)]
    found = resolve_levels(evidence).labels
    others = channels_without_kind(evidence)
    if others:
        best = evidence.classes.argmax(0)  # type: ignore[union-attr]
        found = np.where(np.isin(best, others), np.array([0, *scheme.ids], found.dtype)[best], found)
    return found


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0
