"""What a method learns from, as the trainer sees it: windows of labeled images, or clicks on errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from ..anatomy import laterality
from ..evaluation.on_grid import LabelledVolume, validate
from ..imaging import AIR
from ..methods.base import Batch, Method
from .augmentation import Augmenter
from .config import TrainingConfig
from .data import CachedCase, SampleDataset
from .pictures import draw_result

Draw = Callable[[str, Path], None]
"""Draws a validated case: (title, file)."""


class Material(Protocol):
    """A training set, and how what has learned from it is validated.

    Attributes:
        cases: the preprocessed cases.
        dataset: samples, by number.
        augment: collated samples on a device → what the method sees.
        validation: what `score` takes.
        criterion: the score by which the best weights are chosen.
    """

    @property
    def cases(self) -> Sequence[CachedCase]: ...

    @property
    def dataset(self) -> Dataset[dict[str, Any]]: ...

    @property
    def augment(self) -> Callable[[Mapping[str, Any], torch.device], Batch]: ...

    @property
    def validation(self) -> Sequence[Any]: ...

    @property
    def criterion(self) -> str: ...

    def score(self, method: Method, case: Any, device: torch.device) -> tuple[dict[str, float], Draw | None]:
        """Scores of a case of `validation`, and how to draw the result."""


class WindowMaterial:
    """Windows of labeled images; whole volumes are validated.

    Args:
        method: that learns.
        config: of the run.
        cases: the training set.
        validation: in memory.
    """

    criterion = "level_dice"

    def __init__(
        self,
        method: Method,
        config: TrainingConfig,
        cases: Sequence[CachedCase],
        validation: Sequence[LabelledVolume],
    ) -> None:
        data = config.data
        self.cases, self.validation, self.patch = cases, validation, data.patch
        self.dataset = SampleDataset(cases, method.scheme, data, config.seed, AIR, context_mm=method.tiling.context_mm)
        augmentation = data.augmentation
        if any(laterality(i) for i in method.scheme.ids):  # a mirrored left lung is not a right one
            augmentation = augmentation.model_copy(update={"mirror_left_right": False})
        self.augment = Augmenter(data.patch, augmentation, config.seed, AIR)

    def score(
        self, method: Method, case: LabelledVolume, device: torch.device
    ) -> tuple[dict[str, float], Callable[[str, Path], None]]:
        """See `Material.score`."""
        scores, found = validate(method, case, device, self.patch)

        def draw(title: str, path: Path, found: np.ndarray = found) -> None:
            draw_result(case, found, title, path)

        return scores, draw
