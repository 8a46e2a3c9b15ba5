"""Two numbers per kind of structure that put a network's edges where the readers drew them.

A network that learns from sources of different habits (masks with the cortex, masks without it, phantoms) draws edges
between them. Which habit the result should follow is a choice, made on the validation split and stored in the
checkpoint: log-odds taken from a kind, and a blend with the neighbouring slices, which a 2D network does not see.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from .anatomy import KINDS
from .evidence import Evidence


class Calibration(BaseModel):
    """What is done to a network's probabilities before anatomy has its say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    offsets: dict[str, float] = Field(default_factory=dict, description="log-odds taken from each kind of structure")
    neighbour: float = Field(
        0.0, ge=0, le=1, description="weight of each neighbouring slice, that of the slice being 1"
    )

    def apply(self, evidence: Evidence) -> Evidence:
        """The evidence with shifted edges; the same object where there is nothing to do.

        Probabilities sum to one again afterwards.
        """
        name = "kinds" if evidence.kinds is not None else "classes"
        probabilities = getattr(evidence, name)
        if probabilities is None or not (self.neighbour or any(self.offsets.values())):
            return evidence
        changed = _blend(probabilities, self.neighbour) if self.neighbour else probabilities.copy()
        kinds = range(len(KINDS)) if name == "kinds" else evidence.scheme.kinds
        for channel, kind in enumerate(kinds):
            offset = self.offsets.get(KINDS[kind], 0.0)
            if offset:
                changed[channel] *= math.exp(-offset)
        changed /= changed.sum(0)
        return replace(evidence, **{name: changed})


def _blend(probabilities: np.ndarray, weight: float) -> np.ndarray:
    """Mean of each slice (second axis) and its neighbours; the outermost have one neighbour."""
    blended = probabilities.copy()
    blended[:, 1:] += weight * probabilities[:, :-1]
    blended[:, :-1] += weight * probabilities[:, 1:]
    total = np.ones(probabilities.shape[1], blended.dtype)
    total[1:] += weight
    total[:-1] += weight
    blended /= total[None, :, None, None]
    return blended
