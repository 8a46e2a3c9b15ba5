"""Two numbers per kind of structure that put a network's edges where the readers drew them.

A network that learns from sources of different habits (masks with the cortex, without it, synthetic images) draws edges
between them. Which habit the result should follow is a choice, made on the validation split and stored in the
checkpoint: log-odds taken from a kind, and a blend with the neighboring slices, which a 2D network does not see.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ..anatomy import KINDS
from ..evidence import Evidence, copy_between_precisions


class Calibration(BaseModel):
    """What is done to a network's probabilities before anatomy has its say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    offsets: dict[str, float] = Field(default_factory=dict, description="log-odds taken from each kind of structure")
    neighbour: float = Field(0.0, ge=0, le=1, description="weight of each neighboring slice, that of the slice being 1")

    def apply(self, evidence: Evidence) -> Evidence:
        """The evidence with shifted edges; the same object where there is nothing to do.

        Probabilities sum to one again afterwards.
        """
        name = "kinds" if evidence.kinds is not None else "classes"
        probabilities = getattr(evidence, name)
        if probabilities is None or not (self.neighbour or any(self.offsets.values())):
            return evidence
        kinds = range(len(probabilities)) if name == "kinds" else evidence.scheme.kinds
        factors = np.array([math.exp(-self.offsets.get(KINDS[kind], 0.0)) for kind in kinds], np.float32)
        changed = np.empty_like(probabilities)
        for index, blended in enumerate(_blended(probabilities, self.neighbour)):
            blended *= factors[:, None, None]
            blended *= 1 / blended.sum(0)
            copy_between_precisions(changed[:, index], blended)
        return replace(evidence, **{name: changed})


def _blended(probabilities: np.ndarray, weight: float) -> Iterator[np.ndarray]:
    """Weighted sum of each slice (second axis) and its neighbors, in single precision; always the same array.

    Slice by slice, since of many classes the whole is large and may be held in half precision, in which to reckon is
    slow.
    """
    count = probabilities.shape[1]
    before, here, after, result = np.zeros((4, *probabilities[:, 0].shape), np.float32)
    copy_between_precisions(here, probabilities[:, 0])
    for index in range(count):
        if index + 1 < count:
            copy_between_precisions(after, probabilities[:, index + 1])
        else:
            after[:] = 0
        np.add(before, after, out=result)
        result *= weight
        result += here
        yield result
        before, here, after = here, after, before
