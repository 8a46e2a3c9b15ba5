"""Fitting a checkpoint's model of outline quality, on labeled cases and their damaged copies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk
from scipy import optimize

from ..datasets.manifest import Case, read_case
from ..errors import DatasetError
from ..inference import Predictor
from ..inference.quality import FEATURES, KIND_FEATURES, QUALITY_PRIOR, QualityModel, describe
from ..results import Segmentation
from ..results.quality import GOOD_DICE, cut_by_border
from .scores import evaluate_case
from .variants import VARIANTS, make_variant

_SPREAD, _BIAS_SPREAD = 1.0, 2.0
"""Standard deviations of weights and bias about the default's: few poor outlines must not move them far."""


@dataclass(frozen=True)
class Outline:
    """What is known of one structure of one copy of a case.

    Attributes:
        features: of `inference.quality.describe`.
        dice: with the reader's outline, whatever the level.
    """

    features: Mapping[str, float]
    dice: float


def fit_quality(
    predictor: Predictor,
    cases: Sequence[Case],
    variants: Sequence[str] = VARIANTS,
    options: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> QualityModel | None:
    """The quality model of a checkpoint, from cases that it was not trained on and their damaged copies; None if it
    found no outline in them.

    Args:
        options: run-time options of the method.

    Raises:
        DatasetError: no case has a label.
    """
    labelled = [case for case in cases if case.label is not None]
    if not labelled:
        raise DatasetError("No case has a label.", "The outline quality is fitted on labeled cases.")
    seen: list[Outline] = []
    for case in labelled:
        image, label = read_case(case)
        for variant in variants:
            found = _outlines(predictor, case, *make_variant(image, label, variant), options)
            poor = sum(outline.dice < GOOD_DICE for outline in found)
            report(f"{case.name}, {variant}: {len(found)} outlines, {poor} poor")
            seen += found
    if not seen:
        report("no outline was found: the checkpoint gets no outline quality")
        return None
    model = fit(seen)
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in model.weights.items())
    report(f"{len(seen)} outlines: bias {model.bias:.2f}, {weights}")
    return model


def _outlines(
    predictor: Predictor, case: Case, image: sitk.Image, label: sitk.Image, options: Mapping[str, Any] | None
) -> list[Outline]:
    """Of the structures that are annotated, found, and not cut by the image's border; on the network's own grid."""
    volume = predictor.preprocessing.apply(image)
    evidence, levels = predictor.predict_evidence(volume, options=options)
    if levels is None:
        return []
    features = describe(evidence, levels.labels, volume)
    prediction = Segmentation(volume.geometry.image(levels.labels), predictor.scheme)
    reference = volume.geometry.image(predictor.preprocessing.apply_to_labels(label, volume))
    cut = cut_by_border(prediction.labels)
    structures = evaluate_case(reference, prediction, case.annotated).structures
    return [
        Outline(features[s.matched_id], s.matched_dice)
        for s in structures
        if s.matched_id is not None and s.matched_id in features and s.matched_id not in cut
    ]


def fit(outlines: Iterable[Outline], start: QualityModel = QUALITY_PRIOR) -> QualityModel:
    """The likeliest logistic function of the features, near the weights of `start` where the outlines say little.

    What speaks against an outline never counts in its favor.
    """
    outlines = list(outlines)
    values = np.array([[1.0, *(o.features[name] for name in FEATURES)] for o in outlines])
    good = np.array([o.dice >= GOOD_DICE for o in outlines], float)
    before = np.array([start.bias, *(start.weights.get(name, 0.0) for name in FEATURES)])
    spread = np.array([_BIAS_SPREAD, *(_SPREAD for _ in FEATURES)])

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        odds, away = values @ weights, (weights - before) / spread
        value = np.logaddexp(0, odds).sum() - good @ odds + (away**2).sum() / 2
        return float(value), values.T @ (1 / (1 + np.exp(-odds)) - good) + away / spread

    bounds = [(-20.0, 20.0), *((-20.0, 20.0 if name in KIND_FEATURES else 0.0) for name in FEATURES)]
    found = optimize.minimize(loss, before, jac=True, bounds=bounds, method="L-BFGS-B").x
    weights = {name: round(float(w), 3) for name, w in zip(FEATURES, found[1:], strict=True)}
    return QualityModel(bias=round(float(found[0]), 3), weights=weights)
