"""The comparison of variants in `Testing/Benchmarks/ablation.py`: folds, pairs, verdicts, going on after a kill."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "Benchmarks"))

import ablation
from ablation import Comparison, Row, Screening, markdown, paired, report, run_rows, write_folds
from tiny_data import write_tiny_dataset

from SpineSegAILib.checkpoints import read_header
from SpineSegAILib.datasets.manifest import read_manifest
from SpineSegAILib.methods.catalog import make_config


def results(base, row, metric="dice"):
    cases = {
        name: {f"c{i}": {metric: v} for i, v in enumerate(values)} for name, values in (("base", base), ("row", row))
    }
    return {name: {"cases": found, "seconds": 60.0, "steps": 10} for name, found in cases.items()}


def test_a_steady_gain_is_better_and_chance_is_undecided():
    rng = np.random.default_rng(1)
    base = rng.uniform(0.2, 0.9, 30)
    comparison = Comparison("row", "base")
    gain = paired(results(base, base + rng.normal(0.05, 0.02, 30)), comparison, "dice")
    assert gain["verdict"] == "better" and gain["low"] < gain["difference"] < gain["high"]
    assert gain["difference"] == pytest.approx(0.05, abs=0.01)
    assert paired(results(base, base + rng.normal(0, 0.2, 30)), comparison, "dice")["verdict"] == "undecided"
    assert paired(results(base, base - 0.1), comparison, "dice")["verdict"] == "worse"


def test_less_is_better_for_distances():
    base = np.linspace(3, 9, 12)
    found = paired(results(base, base - 1, "keypoint_mm"), Comparison("row", "base"), "keypoint_mm")
    assert found["difference"] == -1 and found["verdict"] == "better"


def test_only_cases_that_both_have_are_compared():
    both = results([0.5, 0.6], [0.6, 0.7])
    both["row"]["cases"]["more"] = {"dice": 0.0}
    assert paired(both, Comparison("row", "base"), "dice")["cases"] == 2


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_tiny_dataset(tmp_path_factory.mktemp("data"), training=4)


def test_every_case_is_left_out_once_and_nothing_else_is_read(manifest, tmp_path):
    folds = write_folds(manifest, tmp_path)
    every = {c.name for c in read_manifest(manifest).cases("training")}
    left = []
    for training, out in folds:
        taught = {c.name for c in read_manifest(training).cases("training")}
        scored = {c.name for c in read_manifest(out).cases("validation")}
        assert taught | scored == every and not taught & scored
        assert read_manifest(training).splits["validation"] == read_manifest(out).splits["training"] == ()
        left += scored
    assert sorted(left) == sorted(every)


def test_a_row_is_trained_scored_and_not_trained_again(manifest, tmp_path, monkeypatch):
    folds = write_folds(manifest, tmp_path / "data", folds=2)
    screening = Screening(steps=2, batch=2, pixel_mm=4.0, patch=(64, 64))
    row = Row("tiny", make_config("scar-net", "tiny").model_dump(mode="json"))
    first = run_rows([row], folds, tmp_path / "out", screening)
    assert len(first["tiny"]["cases"]) == len(read_manifest(manifest).cases("training"))
    assert all(0 <= c["dice"] <= 1 for c in first["tiny"]["cases"].values())
    monkeypatch.setattr(ablation, "run_training", lambda request: pytest.fail("trained again"))
    assert run_rows([row], folds, tmp_path / "out", screening) == first
    found = report({"tiny": first["tiny"], "other": first["tiny"]}, [Comparison("tiny", "other")], ["dice"])
    assert "| tiny − other | Dice |" in markdown(json.loads(json.dumps(found)))
    with pytest.raises(pytest.fail.Exception):  # other settings are another experiment
        run_rows([row], folds, tmp_path / "out", Screening(steps=3, batch=2, pixel_mm=4.0, patch=(64, 64)))


def test_every_method_fits_the_screening():
    from compare_all import DECIDING, METHOD_IDS, rows

    from SpineSegAILib.methods.catalog import METHODS, build_method
    from SpineSegAILib.training.trainer import _check_patch

    assert set(METHOD_IDS) == set(METHODS) and set(DECIDING) <= set(ablation.METRICS)
    screening = Screening()
    for row in rows(screening):
        config = screening.training(row, Path("dataset.json"))
        settings = dict(config.method)
        method = build_method(make_config(settings.pop("method"), **settings))
        _check_patch(config.data.patch, method)
    timed = screening.training(rows(screening, minutes=6)[0], Path("dataset.json"))
    assert timed.optimization.hours == 0.1 and timed.optimization.steps > 10**5


def test_rows_may_each_start_from_a_training_of_their_own(manifest, tmp_path, monkeypatch):
    screening = Screening(steps=2, batch=2, pixel_mm=4.0, patch=(64, 64))
    tiny = Row("tiny", make_config("unet", "tiny").model_dump(mode="json"))
    again = ablation.replace(tiny, name="again", trained_as="tiny")
    monkeypatch.setattr(ablation, "START_PHANTOMS", 1)
    rows = ablation.with_own_starts([tiny, again], manifest, ("a",), tmp_path, screening, 3)
    starts = {row.start_from for row in rows}
    assert len(starts) == 1, "the same weights start from the same training"
    (start,) = starts
    assert read_header(start).metadata["training"]["steps"] == 3
    assert screening.training(rows[0], tmp_path / "fold.json").start_from == start
    monkeypatch.setattr(ablation, "run_training", lambda request: pytest.fail("trained again"))
    assert ablation.with_own_starts([tiny], manifest, ("a",), tmp_path, screening, 3)[0].start_from == start


def test_a_row_goes_on_from_another_one_in_the_same_fold(manifest, tmp_path, monkeypatch):
    folds = write_folds(manifest, tmp_path / "data", folds=2)
    screening = Screening(steps=2, batch=2, pixel_mm=4.0, patch=(64, 64))
    base = Row("base", make_config("unet", "tiny").model_dump(mode="json"), optimization={"steps": 3})
    row = ablation.replace(base, name="row", optimization={}, after=base)
    starts = []
    real = ablation.run_training

    def noting(request):
        starts.append((request.config.name, request.config.start_from))
        return real(request)

    monkeypatch.setattr(ablation, "run_training", noting)
    run_rows([row], folds, tmp_path / "out", screening)
    assert [name for name, _ in starts] == ["base", "row"] * 2
    assert [start for name, start in starts if name == "base"] == [None] * 2
    for number, start in enumerate(start for name, start in starts if name == "row"):
        assert Path(start).parent.name == f"run{number}" and read_header(start).metadata["training"]["steps"] == 3
    again = ablation.replace(row, name="again", optimization={"steps": 1})
    run_rows([again], folds, tmp_path / "out", screening)
    assert [name for name, _ in starts[4:]] == ["again"] * 2, "the base is trained once"


def test_seeds_are_averaged_case_by_case(manifest, tmp_path, capsys):
    folds = write_folds(manifest, tmp_path / "data", folds=2)
    screening = Screening(steps=2, batch=2, pixel_mm=4.0, patch=(64, 64))
    row = Row("tiny", make_config("unet", "tiny").model_dump(mode="json"))
    path = tmp_path / "RESULTS.md"
    seeds = {"seeds": [1, 2], "head": "# Head\n\n"}
    ablation.run_and_report([row], [], ["dice"], folds, tmp_path / "out", screening, path, **seeds)
    found = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["rows"]["tiny"]
    one, two = (
        run_rows([row], folds, tmp_path / "out", ablation.replace(screening, seed=seed))["tiny"]["cases"]
        for seed in (1, 2)
    )
    assert one != two and len(found["cases"]) == 4
    for name, scores in found["cases"].items():
        assert scores["dice"] == pytest.approx((one[name]["dice"] + two[name]["dice"]) / 2)
    means = [np.mean([scores["dice"] for scores in cases.values()]) for cases in (one, two)]
    assert found["dice_by_seed"] == pytest.approx(means)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# Head") and "| tiny | 4 |" in text and "2 × 2 × 2" in text and "parameters, M" in text
    assert f"| {means[0]:.3f}, {means[1]:.3f} |" in text
