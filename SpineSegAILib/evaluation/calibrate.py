"""Choosing a checkpoint's calibration: the two or three numbers of `inference.calibration`, by a small search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from ..datasets.manifest import Case
from ..errors import DatasetError
from ..inference import Predictor
from ..inference.calibration import Calibration
from ..inference.sliding_window import predict_volume
from .on_grid import load_labelled, score_on_grid, structures_found

LEAST_GAIN = 3e-4
"""Mean Dice below which the calibration is not refined any further."""
_COARSE = tuple(product((0.15, 0.3), (0.5, 1.5, 2.5), (1.0, 2.0)))
_STEPS = ((0.0, 0.25, 0.0), (0.05, 0.0, 0.0), (0.0, 0.0, 0.5))

Place = tuple[float, float, float]
"""Weight of a neighboring slice, log-odds taken from vertebrae and sacrum, log-odds taken from discs."""


def fit_calibration(
    predictor: Predictor,
    cases: Sequence[Case],
    options: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Calibration:
    """The calibration with the best mean level-strict Dice of all annotated structures, on the network's own grid.

    Args:
        predictor: its own calibration is not used.
        cases: labeled ones, that the checkpoint was not trained on.
        options: run-time options of the method.
        report: given a line per calibration tried.

    Raises:
        DatasetError: no case has a label of a structure of the checkpoint.
    """
    labelled = load_labelled(cases, predictor.preprocessing)
    if not labelled:
        raise DatasetError("No case has a label.", "A calibration is chosen on labeled cases.")
    found = [
        predict_volume(predictor.method, case.volume, predictor.device, patch=predictor.patch, options=options)
        for case in labelled
    ]
    scheme = predictor.scheme

    def score(calibration: Calibration) -> float:
        dice = []
        for case, evidence in zip(labelled, found, strict=True):
            result = score_on_grid(case, structures_found(calibration.apply(evidence)), scheme)
            dice += [s.dice for s in result.structures]
        if not dice:
            raise DatasetError(
                f"Nothing that is annotated in these cases is of {scheme.name}.",
                "Choose cases with structures that the checkpoint segments.",
            )
        return float(np.mean(dice))

    best, best_place, best_score = Calibration(), (0.0, 0.0, 0.0), score(Calibration())
    report(f"without calibration: {best_score:.4f}")
    tried: set[Place] = set()

    def improves(place: Place) -> bool:
        nonlocal best, best_place, best_score
        neighbour, vertebra, disc = (round(max(0.0, p), 2) for p in place)
        place = neighbour, vertebra, disc
        if place in tried or neighbour > 1:
            return False
        tried.add(place)
        candidate = Calibration(offsets={"vertebra": vertebra, "sacrum": vertebra, "disc": disc}, neighbour=neighbour)
        reached = score(candidate)
        report(f"neighbor {neighbour:.2f}, vertebra {vertebra:.2f}, disc {disc:.2f}: {reached:.4f}")
        if reached <= best_score + LEAST_GAIN:
            return False
        best, best_place, best_score = candidate, place, reached
        return True

    for place in _COARSE:
        improves(place)
    moved = True
    while moved:  # then around the best, one number after the other
        moved = False
        for step in _STEPS:
            around = best_place
            for sign in (-1, 1):
                neighbour, vertebra, disc = (a + sign * s for a, s in zip(around, step, strict=True))
                moved |= improves((neighbour, vertebra, disc))
    return best
