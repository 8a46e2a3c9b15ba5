"""Whole volumes on the network's own grid: the same steps as inference but the last, scored as everything is.

What is measured often (validation during a training, the choice of a calibration) need not go back to the image's
voxels each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..anatomy import STRUCTURES, LabelScheme
from ..consistency import resolve_levels
from ..datasets.manifest import Case, read_case
from ..evidence import Evidence
from ..imaging import CanonicalVolume, Preprocessing
from ..inference import channels_without_kind
from ..inference.sliding_window import predict_volume
from ..methods.base import Method
from ..results import Segmentation
from .scores import CaseReport, evaluate_case


@dataclass
class LabelledVolume:
    """A preprocessed case in memory.

    Attributes:
        name: of the case.
        volume: the image.
        label: (D, H, W) structure ids.
        annotated: ids that are labeled.
    """

    name: str
    volume: CanonicalVolume
    label: np.ndarray
    annotated: tuple[int, ...]


def load_labelled(cases: Sequence[Case], preprocessing: Preprocessing) -> list[LabelledVolume]:
    """Preprocess the cases that have labels."""
    loaded = []
    for case in cases:
        if case.label is not None:
            image, drawn = read_case(case)
            volume = preprocessing.apply(image)
            label = preprocessing.apply_to_labels(drawn, volume)
            loaded.append(LabelledVolume(case.name, volume, label, case.annotated))
    return loaded


def structures_found(evidence: Evidence) -> np.ndarray:
    """(D, H, W) structure ids that follow from the evidence, on its grid; named by anatomy where there are levels."""
    scheme = evidence.scheme
    if not set(scheme.kinds) - {0}:
        return np.array([0, *scheme.ids], np.int16)[evidence.class_probabilities().argmax(0)]
    found = resolve_levels(evidence).labels
    others = channels_without_kind(evidence)
    if others:
        best = evidence.class_probabilities().argmax(0)
        found = np.where(np.isin(best, others), np.array([0, *scheme.ids], found.dtype)[best], found)
    return found


def score_on_grid(case: LabelledVolume, found: np.ndarray, scheme: LabelScheme) -> CaseReport:
    """Scores of structure ids (D, H, W) on the case's grid, by `scores.evaluate_case`."""
    geometry = case.volume.geometry
    prediction = Segmentation(geometry.image(found.astype(np.int16)), scheme)
    reference = geometry.image(case.label.astype(np.int16))
    return evaluate_case(reference, prediction, case.annotated, case=case.name)


def validate(
    method: Method, case: LabelledVolume, device: torch.device, patch: tuple[int, ...] = ()
) -> tuple[dict[str, float], np.ndarray]:
    """Scores of one case, and the structure ids that were found (D, H, W).

    Args:
        patch: window, see `sliding_window.predict_volume`.

    ``level_dice``: mean level-strict Dice of the annotated structures; ``vertebra_dice``, ``disc_dice`` …: per kind;
    ``matched_dice``: ignoring the level; ``levels_right``: share of the structures whose best-overlapping instance has
    the right name; ``keypoint_mm``: median distance of the method's keypoints, under its own names, from the centroids
    of the structures.
    """
    evidence = predict_volume(method, case.volume, device, patch=patch, options=method.validation_options)
    found = structures_found(evidence)
    structures = score_on_grid(case, found, method.scheme).structures
    groups: dict[str, list[float]] = {}
    for s in structures:
        groups.setdefault(f"{STRUCTURES[s.id].kind.value}_dice", []).append(s.dice)
    scores = {name: float(np.mean(values)) for name, values in groups.items()}
    if structures:
        scores["level_dice"] = float(np.mean([s.dice for s in structures]))
        scores["matched_dice"] = float(np.mean([s.matched_dice for s in structures]))
    levels = [s.level_right for s in structures if s.level_right is not None]
    if levels:
        scores["levels_right"] = float(np.mean(levels))
    apart = []
    for sid, index in evidence.keypoints.items():
        if sid in case.annotated and (case.label == sid).any():
            away = (np.argwhere(case.label == sid).mean(0) - index) * evidence.spacing
            apart.append(float(np.linalg.norm(away)))
    if apart:
        scores["keypoint_mm"] = float(np.median(apart))
    return scores, found
