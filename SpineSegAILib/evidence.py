"""What a network says about every voxel of a volume, before anatomy has its say.

Arrays are on the *canonical grid* of `imaging`: axis 0 runs along the slices from the patient's left to the right,
axis 1 from superior to inferior, axis 2 from anterior to posterior.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from .anatomy import LabelScheme


@dataclass
class Evidence:
    """Per-voxel output of a method over a whole volume.

    Either `classes` (one probability per channel of the scheme) or `kinds` (one per entry of `anatomy.KINDS`), the
    latter with `rank` where the method counts levels. Kinds that end before `KINDS` does lack its last ones.

    Attributes:
        spacing: mm along (slices, rows, columns).
        scheme: what the channels of `classes` mean.
        classes: (C, D, H, W) probabilities, background first, in half precision where there are many; or None.
        kinds: (K, D, H, W) probabilities; or None.
        rank: (D, H, W) rank above the sacrum (`anatomy.ranks`), meaningful inside vertebrae, discs and sacrum; or None.
        uncertainty: (D, H, W) standard deviation from sampling; or None.
        features: (F, D, H, W) what the network's last layers read (`Method.readout`), where it was asked for.
        keypoints: structure id → (slice, row, column) index, fractional; may be empty.
        about: how the method worked, to be stored with the result; JSON-able.
    """

    spacing: tuple[float, float, float]
    scheme: LabelScheme
    classes: np.ndarray | None = None
    kinds: np.ndarray | None = None
    rank: np.ndarray | None = None
    uncertainty: np.ndarray | None = None
    features: np.ndarray | None = None
    keypoints: dict[int, tuple[float, float, float]] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    _summed: np.ndarray | None = field(default=None, init=False, repr=False, compare=False)

    def class_probabilities(self) -> np.ndarray:
        """(C, D, H, W) `classes`.

        Raises:
            ValueError: the network said kinds.
        """
        if self.classes is None:
            raise ValueError("Evidence holds no classes")
        return self.classes

    def kind_probabilities(self) -> np.ndarray:
        """(K, D, H, W) float32 probabilities over `anatomy.KINDS`, summed from the classes where need be (once)."""
        if self.kinds is not None:
            return self.kinds.astype(np.float32, copy=False)
        if self._summed is not None:
            return self._summed
        if self.classes is None:
            raise ValueError("Evidence holds neither classes nor kinds")
        result = np.zeros((self.scheme.head_kinds, *self.classes.shape[1:]), np.float32)
        single = np.empty(self.classes.shape[1:], np.float32)
        for channel, kind in enumerate(self.scheme.kinds):
            copy_between_precisions(single, self.classes[channel])
            result[kind] += single
        result.flags.writeable = False  # several look at it
        self._summed = result
        return result


def copy_between_precisions(target: np.ndarray, source: np.ndarray) -> None:
    """``target[...] = source`` for half and single precision, by torch: numpy takes twenty times as long over numbers
    that are subnormal in half precision, as most probabilities are."""
    torch.from_numpy(target).copy_(torch.from_numpy(source))
