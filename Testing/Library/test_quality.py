"""Outline quality: what lowers it, how it is fitted, and how well it tells poor outlines."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache

import numpy as np
import pytest
import SimpleITK as sitk

from SpineSegAILib.anatomy import CANAL_ID, KINDS, SACRUM_ID, STRUCTURES, Kind, scheme, structure
from SpineSegAILib.checkpoints import read_header
from SpineSegAILib.consistency import LevelResult
from SpineSegAILib.errors import CheckpointError
from SpineSegAILib.evaluation import CaseReport, StructureScore
from SpineSegAILib.evaluation.fit_quality import Outline, fit
from SpineSegAILib.evaluation.quality import quality_summary
from SpineSegAILib.evidence import Evidence
from SpineSegAILib.imaging import CanonicalVolume, Geometry
from SpineSegAILib.inference import Predictor
from SpineSegAILib.inference.metadata import read_metadata
from SpineSegAILib.inference.quality import (
    FEATURES,
    KIND_FEATURES,
    NOT_FITTED,
    QUALITY_PRIOR,
    describe,
    outline_quality,
)
from SpineSegAILib.phantoms.spine import Phantom, PhantomSpec, make_phantom
from SpineSegAILib.results import Segmentation
from SpineSegAILib.results.measurement import measure_all
from SpineSegAILib.results.quality import BROKEN, CUT, LOW, cut_by_border

SCHEME = scheme("lumbar-mr")
T12, L3, L4, DISC = (structure(name).id for name in ("T12", "L3", "L4", "L3/L4"))
FAULTS = [name for name in FEATURES if name not in KIND_FEATURES]


@cache
def phantom() -> Phantom:
    return make_phantom(PhantomSpec(slices=9, margin_top_mm=10, blur_mm=0.3), np.random.default_rng(1))


class Case:
    """A phantom, and a network that sees it as it is."""

    def __init__(self) -> None:
        made = phantom()
        self.image, self.labels = made.image, sitk.GetArrayFromImage(made.labels)
        self.geometry = Geometry.of(made.image)
        self.sure = np.full(self.labels.shape, 0.95, np.float32)

    @property
    def spacing(self):
        return tuple(self.image.GetSpacing()[::-1])

    @property
    def evidence(self) -> Evidence:
        kinds = np.zeros((len(KINDS), *self.labels.shape), np.float32)
        for sid in np.unique(self.labels):
            kind = KINDS.index(STRUCTURES[int(sid)].kind.value) if sid else 0
            kinds[kind][self.labels == sid] = self.sure[self.labels == sid]
        kinds[0] += 1 - kinds.sum(0)
        return Evidence(self.spacing, SCHEME, kinds=kinds)

    @property
    def volume(self) -> CanonicalVolume:
        values = sitk.GetArrayFromImage(self.image).astype(np.float32)
        return CanonicalVolume(values / values.std(), self.spacing, self.geometry, self.geometry, None)

    @property
    def result(self) -> Segmentation:
        return Segmentation(self.geometry.image(self.labels.astype(np.int16)), SCHEME)

    def features(self) -> dict[int, dict[str, float]]:
        return describe(self.evidence, self.labels, self.volume)

    def quality(self) -> dict[int, float]:
        levels = LevelResult(self.labels, [], self.spacing, self.labels)
        return outline_quality(QUALITY_PRIOR, self.evidence, levels, self.volume, self.result)


@pytest.fixture
def case() -> Case:
    return Case()


def unsure(case: Case) -> None:
    case.sure[case.labels == L3] = 0.6


def differing_slices(case: Case) -> None:
    for index in range(1, 9, 2):
        case.labels[index][case.labels[index] == L3] = 0
        case.labels[index] += np.roll(L3 * (Case().labels[index] == L3), 9, axis=1) * (case.labels[index] == 0)


def no_edge(case: Case) -> None:
    values = sitk.GetArrayFromImage(case.image)
    grown = np.zeros(values.shape, bool)
    for down in range(-6, 7):
        for back in range(-6, 7):
            grown |= np.roll(case.labels == L3, (down, back), (1, 2))
    values[grown] = values[grown].mean()
    case.image = case.geometry.image(values)


def too_small(case: Case) -> None:
    rows = np.flatnonzero((case.labels == L3).any((0, 2)))
    region = case.labels[:, rows[len(rows) // 3] :]
    region[region == L3] = 0


def spur(case: Case) -> None:
    slices, rows, columns = (int(np.median(axis)) for axis in np.nonzero(case.labels == L3))
    case.labels[slices - 1 : slices + 2, rows : rows + 3, columns - 50 : columns][:] = L3


@pytest.mark.parametrize(
    ("damage", "feature"),
    [(unsure, "unsure"), (differing_slices, "slices"), (no_edge, "edge"), (too_small, "size"), (spur, "ragged")],
)
def test_each_fault_of_an_outline_is_seen_where_it_is(case, damage, feature):
    before, quality = case.features(), case.quality()
    damage(case)
    after = case.features()
    assert after[L3][feature] > before[L3][feature] + 0.2
    assert abs(after[T12][feature] - before[T12][feature]) < 0.2  # three levels away
    lower = case.quality()
    if QUALITY_PRIOR.weights[feature]:
        assert lower[L3] < quality[L3]
    assert quality[L3] > 0.8


def test_good_outlines_have_a_high_quality(case):
    quality = case.quality()
    assert set(quality) == set(case.result.present)
    whole = set(quality) - cut_by_border(case.result.labels)
    assert {"T12", "L1", "L2", "L3", "L4", "L5"} <= {STRUCTURES[sid].name for sid in whole}
    assert min(quality[sid] for sid in whole if STRUCTURES[sid].kind.value == "vertebra") > 0.8


def test_what_the_border_cuts_is_not_whole(case):
    rows = np.flatnonzero((case.labels == T12).any((0, 2)))
    kept = slice(int(np.median(rows)), None)
    case.labels, case.sure = case.labels[:, kept], case.sure[:, kept]
    case.image = case.image[:, kept.start :, :]
    case.geometry = Geometry.of(case.image)
    assert T12 in cut_by_border(case.result.labels) and CANAL_ID not in cut_by_border(case.result.labels)
    quality = case.quality()
    assert quality[T12] <= CUT < LOW < quality[L3]


def test_a_sacrum_without_its_corner_is_broken(case):
    assert case.quality()[SACRUM_ID] > BROKEN
    rows, columns = (np.flatnonzero((case.labels == SACRUM_ID).any((0, axis))) for axis in (2, 1))
    behind = case.labels[:, : int(np.median(rows)), int(np.quantile(columns, 0.6)) :]
    behind[behind == SACRUM_ID] = 0
    assert case.quality()[SACRUM_ID] <= BROKEN


def test_a_low_quality_is_noted_in_the_table(case):
    result = replace(case.result, outline_quality={L3: 0.31, L4: 0.97})
    notes = {row["structure"]: row["notes"] for row in measure_all(result)}
    assert "Low outline quality (0.31): please check the outline." in notes["L3"]
    assert "outline quality" not in notes["L4"]


def outlines(count: int = 400) -> list[Outline]:
    """Poor where `unsure` is high; `size` says nothing but by chance, and in the wrong direction."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        values = {name: float(rng.normal()) for name in FEATURES}
        poor = rng.random() < 1 / (1 + np.exp(2 - 2 * values["unsure"] + 0.3 * values["size"]))
        made.append(Outline(values, 0.6 if poor else 0.9))
    return made


def test_the_fit_finds_what_tells_poor_outlines():
    seen = outlines()
    model = fit(seen)
    assert model.weights["unsure"] < -1
    assert all(model.weights[name] <= 0 for name in FAULTS)
    expected = sum(1 - model.quality(o.features) for o in seen)
    assert expected == pytest.approx(sum(o.dice < 0.8 for o in seen), rel=0.05)
    few = fit([Outline(dict.fromkeys(FEATURES, 0.0), 0.9)] * 5)  # which say nothing of the weights
    assert few.weights == pytest.approx(QUALITY_PRIOR.weights, abs=0.01)


def score(dice: float, quality: float, cut: bool = False) -> StructureScore:
    given = {
        "id": 22, "name": "L3", "group": "vertebrae", "one_sided_slices": 0, "matched_dice": dice, "matched_id": 22,
        "level_right": True, "outline_quality": quality, "cut": cut,
    }  # fmt: skip
    return StructureScore(**{f.name: 0.0 for f in fields(StructureScore)} | given)


def test_the_summary_counts_what_a_low_quality_is_worth():
    nothing = score(0.2, float("nan"))
    scores = [score(0.9, 0.9), score(0.9, 0.4), score(0.5, 0.1), score(0.7, 0.6), score(0.1, 0.3, cut=True), nothing]
    found = quality_summary([CaseReport("a", structures=scores)])
    assert found == {
        "outlines": 4, "poor": 2, "expected_poor": pytest.approx(2.0), "low": 2, "poor_of_low": 1, "roc_area": 0.75,
    }  # fmt: skip
    assert quality_summary([CaseReport("a", structures=[nothing])]) is None
    assert quality_summary([CaseReport("a", structures=[score(0.9, 0.9)])])["roc_area"] is None


@pytest.mark.parametrize("weights", [{"beauty": 1.0}, {"unsure": float("nan")}, {"unsure": 1e9}])
def test_a_checkpoint_whose_quality_model_is_nonsense_is_refused(tiny_checkpoint, weights):
    info = read_header(tiny_checkpoint)
    assert read_metadata(info).outline_quality is None
    given = {**info.metadata, "outline_quality": QUALITY_PRIOR.model_dump()}
    assert read_metadata(replace(info, metadata=given)).outline_quality == QUALITY_PRIOR
    with pytest.raises(CheckpointError):
        read_metadata(replace(info, metadata={**info.metadata, "outline_quality": {"weights": weights}}))


def test_the_canal_has_a_quality_of_its_own(case):
    assert case.features()[CANAL_ID]["canal"] == 1.0 and case.features()[DISC]["disc"] == 1.0


def test_posterior_elements_have_none(case):
    """No case teaches it: readers drew them without levels."""
    behind = structure("L3 posterior elements").id
    case.labels[:, 20:30, 2:8] = behind
    assert behind in case.result.present and behind not in case.quality()


def test_no_quality_is_claimed_where_none_was_fitted(tiny_checkpoint):
    """A model without a fit of its own, as one for films: its outlines' quality is blank, and the result says why."""
    spec = PhantomSpec(top="L3", bottom="S1", slices=5, slice_mm=6.0, pixel_mm=2.0)
    image = make_phantom(spec, np.random.default_rng(0)).image
    predictor = Predictor(tiny_checkpoint, "cpu")
    result = predictor.segment(image)
    assert result.outline_quality == {} and NOT_FITTED in result.warnings
    predictor.quality_model = QUALITY_PRIOR
    result = predictor.segment(image)
    assert NOT_FITTED not in result.warnings
    assert set(result.outline_quality) == {s for s in result.present if STRUCTURES[s].kind is not Kind.POSTERIOR}
