"""The measurement in `Testing/Benchmarks/refinement.py`: does sampling pay, and does the deviation tell errors?"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "Benchmarks"))

import refinement
from measures import interval, surface_scores
from refinement import PRIOR, SETTINGS, Setting, auroc, edge_band, markdown, measure, report
from tiny_data import write_tiny_dataset

from SpineSegAILib.anatomy import SCHEMES, structure
from SpineSegAILib.checkpoints import save_checkpoint
from SpineSegAILib.datasets.manifest import read_manifest
from SpineSegAILib.evaluation.on_grid import LabelledVolume, load_labelled
from SpineSegAILib.evidence import Evidence
from SpineSegAILib.imaging import Preprocessing
from SpineSegAILib.inference import Predictor
from SpineSegAILib.inference.calibration import Calibration
from SpineSegAILib.methods.catalog import build_method, make_config
from SpineSegAILib.training.config import DataConfig, TrainingConfig
from SpineSegAILib.training.request import TrainingRequest
from SpineSegAILib.training.run import RunDirectory
from SpineSegAILib.training.trainer import run_training

SPACING = (4.0, 1.0, 0.5)
FEW = (
    Setting("2 × 2", {"samples": 2, "steps": 2}),
    Setting("2 × 8", {"samples": 2, "steps": 8}),
    Setting("1 × 2", {"samples": 1, "steps": 2}),
)


def block(rows=slice(4, 10), columns=slice(4, 12), slices=slice(0, 2)):
    mask = np.zeros((2, 20, 24), bool)
    mask[slices, rows, columns] = True
    return mask


# --- masks -----------------------------------------------------------------------------------------------------------


def test_surfaces_within_a_millimetre_agree_and_the_slice_direction_has_none():
    assert surface_scores(block(), block(), SPACING) == (1.0, 0.0)
    assert surface_scores(block(), block(columns=slice(6, 14)), SPACING) == (1.0, 1.0)  # two pixels of half a mm
    apart, hd95 = surface_scores(block(), block(rows=slice(7, 13)), SPACING)  # 3 mm
    assert apart < 0.7
    assert hd95 == pytest.approx(3.0)


def test_a_slice_that_is_missed_counts_and_one_without_anything_does_not():
    surface, hd95 = surface_scores(block(), block(slices=slice(0, 1)), SPACING)
    assert surface == pytest.approx(2 / 3)  # one slice of two is there twice, the other only once
    assert hd95 == 0.0
    nothing, nowhere = surface_scores(block(), np.zeros((2, 20, 24), bool), SPACING)
    assert nothing == 0.0
    assert np.isnan(nowhere)


# --- maps ------------------------------------------------------------------------------------------------------------


def test_auroc_is_the_chance_that_an_error_has_the_larger_value():
    rng = np.random.default_rng(0)
    values, wrong = rng.integers(0, 5, 200).astype(float), rng.random(200) < 0.3
    pairs = values[wrong][:, None] - values[~wrong][None]
    assert auroc(values, wrong) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    assert auroc(np.array([0.1, 0.9]), np.array([False, True])) == 1.0
    assert auroc(np.zeros(4), np.array([False, True, True, False])) == 0.5


def test_the_band_lies_around_edges_inside_slices():
    labels = np.zeros((2, 30, 30), int)
    labels[0, :, 15:] = 1
    band = edge_band(labels, (1.0, 1.0, 1.0))
    assert not band[1].any()
    assert np.flatnonzero(band[0, 0]).tolist() == list(range(11, 19))  # 3 mm beyond the voxels on both sides
    assert np.flatnonzero(edge_band(labels, (1.0, 1.0, 2.0))[0, 0]).tolist() == list(range(13, 17))


def evidence_of(labels, scheme, certainty=0.8, uncertainty=None):
    channels = np.searchsorted([0, *scheme.ids], labels) if list(scheme.ids) == sorted(scheme.ids) else None
    assert channels is not None
    shares = np.full((scheme.channels, *labels.shape), (1 - certainty) / (scheme.channels - 1), np.float32)
    np.put_along_axis(shares, channels[None], certainty, 0)
    return Evidence(spacing=SPACING, scheme=scheme, classes=shares, uncertainty=uncertainty)


def case_of(labels, annotated):
    return LabelledVolume("case", None, labels, annotated)  # type: ignore[arg-type]


def test_a_map_that_marks_the_errors_is_better_than_one_that_is_the_same_everywhere():
    scheme = SCHEMES["vertebra"]
    (sid,) = scheme.ids
    truth = np.where(block(), structure("L3").id, 0)
    found = np.where(block(columns=slice(5, 13)), sid, 0)
    wrong = (truth > 0) != (found > 0)
    case = case_of(truth, (structure("L3").id,))
    marked = evidence_of(found, scheme, uncertainty=wrong * 0.4)
    prior = evidence_of(found, scheme)
    assert refinement.aurocs(marked, prior, case) == {"deviation": 1.0, "prior": 0.5}
    assert refinement.doubt(prior) == pytest.approx(np.full(truth.shape, 0.8 * 0.2), abs=1e-6)
    assert refinement.aurocs(prior, prior, case) == {}  # no deviation
    right = evidence_of(np.where(truth > 0, sid, 0), scheme, uncertainty=np.zeros(truth.shape))
    assert refinement.aurocs(right, prior, case) == {}  # nothing is wrong


def test_what_is_not_annotated_and_levels_are_no_errors():
    scheme = SCHEMES["mrspineseg"]
    ids = [structure(name).id for name in ("L3", "L4", "L3/L4")]
    truth = np.where(block(), ids[0], 0)
    case = case_of(truth, tuple(ids[:2]))
    order = [0, *scheme.ids]
    for name, errors in (("L4", 0), ("L3/L4", 0)):
        labels = np.where(block(), structure(name).id, 0)
        channels = np.vectorize(order.index)(labels)
        classes = np.eye(scheme.channels, dtype=np.float32)[channels].transpose(3, 0, 1, 2)
        band, wrong = refinement.near_edges(Evidence(SPACING, scheme, classes), case)
        assert band.any()
        assert (band & wrong).sum() == errors, name


# --- the whole of it -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny checkpoint, both networks taught at once by phantoms, and the data."""
    folder = tmp_path_factory.mktemp("refinement")
    manifest = write_tiny_dataset(folder, training=2)
    method = make_config("verdiff-net", "tiny", scheme="vertebra", stage="joint", patch=2)
    config = TrainingConfig(
        method=method.model_dump(mode="json"),
        dataset=str(manifest),
        preprocessing=Preprocessing(pixel_mm=4.0),
        data=DataConfig(patch=(64, 64)),
        optimization={"steps": 80, "batch": 2, "workers": 0, "learning_rate": 1e-2, "warmup": 5, "ema": 0.9},
    )
    run = RunDirectory(folder / "run")
    run_training(TrainingRequest(config, run.folder, device="cpu", cache=folder / "cache"))
    return run.last, manifest


def cases_of(predictor, manifest):
    return load_labelled(read_manifest(manifest).cases("training"), predictor.preprocessing)


def test_every_row_is_measured_and_compared_with_the_prior(trained):
    predictor = Predictor(trained[0], "cpu")
    rows = measure(predictor, cases_of(predictor, trained[1]), FEW)
    found = report(rows)
    assert list(found["rows"]) == ["prior", "2 × 2", "2 × 8", "1 × 2"]
    assert found["rows"]["2 × 8"]["seconds"] > found["rows"]["prior"]["seconds"]
    for row in found["rows"].values():
        assert row["cases"] == 2
        assert 0 <= row["surface_dice"] <= 1
    strict = {d["row"]: d for d in found["differences"] if d["metric"] == "dice"}
    difference = np.mean(
        [
            rows["2 × 2"][case]["structures"][name]["dice"] - rows["prior"][case]["structures"][name]["dice"]
            for case in rows["prior"]
            for name in rows["prior"][case]["structures"]
        ]
    )
    assert strict["2 × 2"]["difference"] == pytest.approx(difference)
    assert {u["row"] for u in found["uncertainty"]} == {"2 × 2", "2 × 8"}  # one sample does not deviate
    assert all(0 <= u[key] <= 1 for u in found["uncertainty"] for key in ("deviation", "prior"))


def test_a_calibration_is_measured_beside_what_the_network_says(trained):
    predictor = Predictor(trained[0], "cpu")
    case = cases_of(predictor, trained[1])[:1]
    (plain,) = measure(predictor, case, ())["prior"].values()
    assert all(s["calibrated_dice"] is None for s in plain["structures"].values())
    predictor.calibration = Calibration(offsets={"vertebra": 50.0})  # nothing is a vertebra any more
    (moved,) = measure(predictor, case, ())["prior"].values()
    for name, scores in moved["structures"].items():
        assert scores["dice"] == plain["structures"][name]["dice"] > 0
        assert scores["calibrated_dice"] == 0


def test_an_identity_ties(trained, tmp_path):
    """A checkpoint of the first stage has no diffusion: every row is its prior."""
    config = make_config("verdiff-net", "tiny", scheme="lumbar11", stage="prior")
    metadata = {
        "method": config.model_dump(mode="json"),
        "preprocessing": Preprocessing(pixel_mm=3.0).model_dump(mode="json"),
    }
    path = tmp_path / "prior.safetensors"
    save_checkpoint(path, build_method(config).state_dict(), metadata)
    predictor = Predictor(path, "cpu")
    found = report(measure(predictor, cases_of(predictor, trained[1]), FEW[:1]))
    assert {d["verdict"] for d in found["differences"]} == {"tie"}
    assert found["uncertainty"] == []
    assert interval([0.0, 0.01, -0.02, 0.005])["verdict"] == "undecided"
    assert interval([0.0, 0.0])["verdict"] == "tie"


def test_structures_that_only_one_row_found_have_no_difference_of_distances():
    def row(*distances):
        structures = {f"s{i}": {"hd95_mm": d} for i, d in enumerate(distances)}
        return {"case": {"structures": structures}}

    assert refinement._differences(row(3.0, None, 9.0), row(2.0, 5.0, None), "hd95_mm") == [1.0]
    assert refinement._differences(row(None), row(1.0), "hd95_mm") == []


def test_the_command_writes_its_tables(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(refinement, "measure", lambda predictor, cases: measure(predictor, cases, FEW[:1]))
    target = tmp_path / "new" / "report"
    arguments = [str(trained[0]), str(trained[1]), "--slices", "2", "--device", "cpu", "--report", str(target)]
    refinement.main(arguments)
    text, found = (
        target.with_suffix(".md").read_text(encoding="utf-8"),
        json.loads(target.with_suffix(".json").read_text(encoding="utf-8")),
    )
    assert text == markdown(found) == capsys.readouterr().out[:-1]
    assert "| prior |" in text
    assert "| 2 × 2 | surface Dice, 1 mm | 1 |" in text
    assert found["about"]["cases"] == 1
    assert found["cases"]["prior"].popitem()[1]["slices"] == 2
    with pytest.raises(SystemExit, match="has no “test” cases"):
        refinement.main([*arguments, "--split", "test"])


def test_the_rows_are_those_that_were_asked_for():
    drawn = {(s.options["samples"], s.options["steps"], s.options.get("t_start")) for s in SETTINGS}
    assert drawn == {(n, k, None) for n in (1, 3, 5) for k in (1, 2, 5, 10, 20)} | {(5, 5, 300)}
    assert PRIOR.options == {"preview": "on"}
