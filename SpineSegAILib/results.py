"""Segmentation: labels in the input's geometry with their names, confidence and provenance; reads and writes files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import SimpleITK as sitk

from .anatomy import LabelScheme, sorted_ids


@dataclass
class Segmentation:
    """What `Predictor` returns.

    Attributes:
        labels: int16 image in the input's geometry; values are structure ids, 0 is background.
        scheme: the checkpoint's label scheme.
        confidence: structure id → 0…1 (absent for structures without one).
        warnings: sentences for the reader, e.g. that the sacrum is not visible and levels are a guess.
        unvalidated: ids of structures that the checkpoint learnt from phantoms alone.
        provenance: JSON-able: method, checkpoint, versions, device, seconds per stage, hints …
        uncertainty: float image in the input's geometry (standard deviation of the sampled probabilities), or None.
        keypoints: structure id → physical point (LPS, mm) predicted by the method.
    """

    labels: sitk.Image
    scheme: LabelScheme
    confidence: dict[int, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    unvalidated: frozenset[int] = frozenset()
    provenance: dict[str, Any] = field(default_factory=dict)
    uncertainty: sitk.Image | None = None
    keypoints: dict[int, tuple[float, float, float]] = field(default_factory=dict)

    @property
    def present(self) -> list[int]:
        """Ids of the structures that have voxels, in anatomical order."""
        values = np.unique(sitk.GetArrayViewFromImage(self.labels))
        return sorted_ids(int(v) for v in values if v)
