"""Cross-validation in comparisons: folds by patient, starts that have seen no scored case, less supervision."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from tiny_data import write_tiny_dataset

from SpineSegAILib.anatomy import STRUCTURES, structure
from SpineSegAILib.checkpoints import read_header
from SpineSegAILib.comparison.config import ComparisonConfig, read_comparison, shipped_configs
from SpineSegAILib.comparison.folds import with_supervision, write_folds, write_never_scored
from SpineSegAILib.comparison.hints import visible_levels
from SpineSegAILib.comparison.parts import Work, training_of
from SpineSegAILib.comparison.run import describe, run_comparison
from SpineSegAILib.comparison.tables import markdown, tabulate
from SpineSegAILib.datasets.manifest import read_label, read_manifest
from SpineSegAILib.errors import ConfigError, DatasetError
from SpineSegAILib.evaluation.scores import CaseReport
from SpineSegAILib.evaluation.summary import summarize
from SpineSegAILib.training.run import RunDirectory

TINY = {
    "preprocessing.pixel_mm": 4.0,
    "data.patch": [64, 64],
    "optimization.batch": 2,
    "optimization.workers": 0,
    "optimization.warmup": 0,
    "optimization.ema": 0.0,
}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Four training cases, by turns of the sources b and a."""
    return write_tiny_dataset(tmp_path_factory.mktemp("data"), training=4)


def config_of(manifest, **values) -> ComparisonConfig:
    entries = [{"name": "A", "method": "resenc-unet", "preset": "tiny"}]
    return ComparisonConfig.model_validate(
        {
            "title": "Tiny", "dataset": str(manifest), "split": "training", "folds": 2, "budget": {"steps": 1},
            "set": TINY, "entries": entries, **values,
        }
    )  # fmt: skip


def names(path, split):
    return [case.name for case in read_manifest(path).splits[split]]


def test_every_case_is_left_out_once_and_patients_stay_together(manifest, tmp_path):
    table = json.loads(manifest.read_text(encoding="utf-8"))
    table["training"][2]["patient"] = table["training"][0]["patient"]
    table["training"][2]["source"] = table["training"][0]["source"]
    (manifest.parent / "together.json").write_text(json.dumps(table))
    folds = write_folds(manifest.parent / "together.json", "training", 3, (), tmp_path)
    left = [names(f.left_out, "validation") for f in folds]
    assert sorted(name for out in left for name in out) == [f"case{n}_image" for n in range(4)]
    assert ["case0_image", "case2_image"] in left
    for fold, out in zip(folds, left, strict=True):
        assert not set(out) & set(names(fold.training, "training")) and len(
            names(fold.training, "training")
        ) == 4 - len(out)
    with pytest.raises(DatasetError, match="3 patients cannot be dealt to 4 folds"):
        write_folds(manifest.parent / "together.json", "training", 4, (), tmp_path)
    with pytest.raises(DatasetError, match=r"Cases of chu or myo are scored .* ones are of a, b\."):
        write_folds(manifest, "training", 3, ("chu", "myo"), tmp_path)


def test_patients_of_images_with_one_name_are_not_one_patient(manifest, tmp_path):
    table = json.loads(manifest.read_text(encoding="utf-8"))
    for number, entry in enumerate(table["training"]):
        (tmp_path / f"p{number}").mkdir()
        for key in ("image", "label"):
            entry[key] = shutil.copy(manifest.parent / entry[key], str(tmp_path / f"p{number}/{key}.nii.gz"))
        del entry["patient"], entry["source"]
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({**table, "validation": []}), encoding="utf-8")
    left_out = [read_manifest(f.left_out).cases("validation") for f in write_folds(path, "training", 4, (), tmp_path)]
    assert {case.patient for cases in left_out for case in cases} == {f"p{n}_image" for n in range(4)}


def test_cases_of_other_sources_are_always_trained_on(manifest, tmp_path):
    folds = write_folds(manifest, "training", 2, ("a",), tmp_path)
    assert [names(f.left_out, "validation") for f in folds] == [["case1_image"], ["case3_image"]]
    assert all({"case0_image", "case2_image"} <= set(names(f.training, "training")) for f in folds)
    assert names(write_never_scored(manifest, "training", ("a",), tmp_path), "training") == [
        "case0_image",
        "case2_image",
    ]
    with pytest.raises(ConfigError, match="Every case is scored"):
        write_never_scored(manifest, "training", (), tmp_path)


def test_what_has_only_keypoints_is_not_trained_on_where_its_patient_is_scored(manifest, tmp_path):
    table = json.loads(manifest.read_text(encoding="utf-8"))
    first = table["training"][0]
    for key in ("label", "annotated"):
        del table["training"][2][key]
    table["training"][2] |= {"source": first["source"], "patient": first["patient"], "keypoints": {"L5": [0, 0, 0]}}
    path = manifest.parent / "points.json"
    path.write_text(json.dumps(table))
    for fold in write_folds(path, "training", 3, (), tmp_path):
        scored = {case.patient for case in read_manifest(fold.left_out).cases("validation")}
        assert scored and not scored & {case.patient for case in read_manifest(fold.training).cases("training")}
    never = write_never_scored(path, "training", (first["source"],), tmp_path)
    assert first["patient"] not in {case.patient for case in read_manifest(never).cases("training")}


def test_less_supervision(manifest, tmp_path):
    assert with_supervision(manifest, "full", tmp_path) == manifest
    before = read_manifest(manifest).cases("training")
    half = read_manifest(with_supervision(manifest, "half-structures", tmp_path)).cases("training")
    assert [len(c.annotated) for c in half] == [6, 3, 6, 3]
    assert set(half[1].annotated) | set(half[3].annotated) == set(before[1].annotated)  # the other half by turns
    shown, drawn = (sitk.GetArrayFromImage(read_label(c)) for c in (half[1], before[1]))
    assert np.array_equal(shown, np.where(np.isin(drawn, half[1].annotated), drawn, 0))
    fewer = read_manifest(with_supervision(manifest, "two-thirds", tmp_path)).cases("training")
    assert [c.name for c in fewer] == ["case1_image", "case2_image"]
    points = read_manifest(with_supervision(manifest, "two-thirds-and-keypoints", tmp_path)).cases("training")
    assert [c.label is None for c in points] == [True, False, False, True]
    assert {STRUCTURES[i].name for i in points[0].keypoints} == {"T12", "L1", "L2", "L3", "L4", "L5"}


def test_half_of_the_structures_where_a_fold_changes_the_turn_of_a_case(tmp_path):
    """Patients with two series each: without one, the others move up by two."""
    manifest = write_tiny_dataset(tmp_path / "data", training=8)
    table = json.loads(manifest.read_text(encoding="utf-8"))
    for number, entry in enumerate(table["training"]):
        entry |= {"source": "", "patient": f"patient {number // 2}"}
    numbers = {STRUCTURES[i].name: i for i in (19, 20, 21, 22, 23, 24)}
    manifest.write_text(json.dumps({**table, "label_values": {str(i): name for name, i in numbers.items()}}))
    for fold in write_folds(manifest, "training", 4, (), tmp_path):
        for case in read_manifest(with_supervision(fold.training, "half-structures", tmp_path)).cases("training"):
            assert set(np.unique(sitk.GetArrayFromImage(read_label(case)))) == {0, *case.annotated}


def test_less_supervision_of_cases_with_one_structure_or_without_masks(manifest, tmp_path):
    table = json.loads(manifest.read_text(encoding="utf-8"))
    for entry in table["training"]:
        entry |= {"annotated": ["L5"], "label_values": {"24": "L5", **{str(i): "background" for i in range(19, 24)}}}
    for key in ("label", "annotated", "label_values"):
        del table["training"][0][key]
    table["training"][0]["keypoints"] = {"L5": [0, 0, 0]}
    path = manifest.parent / "one.json"
    path.write_text(json.dumps(table))
    half = read_manifest(with_supervision(path, "half-structures", tmp_path)).cases("training")
    assert [len(case.annotated) for case in half] == [0, 1, 1, 1] and read_label(half[3])
    points = read_manifest(with_supervision(path, "two-thirds-and-keypoints", tmp_path)).cases("training")
    assert [len(case.keypoints) for case in points] == [1, 0, 0, 1]


def test_masks_of_whole_vertebrae_follow_and_are_not_read_twice(manifest, tmp_path):
    table = json.loads(manifest.read_text(encoding="utf-8"))
    for entry in table["training"]:
        entry["label_whole"] = entry["label"]
    path = manifest.parent / "whole.json"
    path.write_text(json.dumps(table))
    for fold in write_folds(path, "training", 2, (), tmp_path / "folds"):
        assert all(case.label_whole is not None for case in read_manifest(fold.training).cases("training"))
    half = read_manifest(with_supervision(path, "half-structures", tmp_path)).cases("training")[1]
    drawn = sitk.GetArrayFromImage(read_label(read_manifest(path).cases("training")[1]))
    assert np.array_equal(sitk.GetArrayFromImage(read_label(half)), np.where(np.isin(drawn, half.annotated), drawn, 0))


def test_the_visible_range_ends_at_what_is_wholly_in_view():
    label = np.zeros((3, 40, 10), np.int16)
    for name, top in (("L2", 0), ("L3", 6), ("L4", 14), ("L5", 22)):
        label[1, top : top + 5, 2:6] = structure(name).id
    image = sitk.GetImageFromArray(label)
    image.SetDirection((0.0, 0.0, -1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0))
    assert visible_levels(image).visible == (structure("L3").id, structure("S1").id)
    label[label == structure("L5").id] = 0
    lower = sitk.GetImageFromArray(label)
    lower.CopyInformation(image)
    assert visible_levels(lower).visible == (structure("L3").id, structure("L4").id)
    assert visible_levels(image[:, :, :1]).visible is None


def test_folds_are_trained_scored_and_put_together(manifest, tmp_path):
    """With a start that is trained once, on what is never scored; done once, it is not done again."""
    config = config_of(
        manifest, scored_sources=["a"], start={"share": 2.0}, seeds=[1],
        entries=[
            {"name": "A", "method": "resenc-unet", "preset": "tiny"},
            {
                "name": "Given", "method": "resenc-unet", "preset": "tiny", "start_from": "entry:A, start",
                "hints": "visible",
            },
        ],
    )  # fmt: skip
    said = []
    work = Work(tmp_path, device="cpu", say=said.append)
    documents = run_comparison(config, work)
    assert [d["name"] for d in documents] == ["A", "Given"]
    for document in documents:
        report = document["report"]["variants"]["full"]
        assert sorted(c["case"] for c in report["cases"]) == ["case1_image", "case3_image"]
        assert document["seen"] == [] and len(document["pages"]) == 2
    assert "hints" in documents[1]["report"] and "hints" not in documents[0]["report"]
    trainings = sorted(tmp_path.glob("*/seed1*/run"))
    assert len(trainings) == 3  # the start, and two folds that both rows share
    start = read_header(next(p for p in trainings if p.parent.name == "seed1") / "last.safetensors")
    assert set(start.metadata["training"]["cases"]) == {"case0_image", "case2_image"}
    assert start.metadata["training"]["steps"] == 2
    for path in trainings:
        if path.parent.name != "seed1":
            assert RunDirectory(path).config().start_from.startswith(str(tmp_path / "a-start"))
    assert any("fold 2" in sentence for sentence in said)

    def fail(*_):
        raise AssertionError("done already")

    again = run_comparison(config, Work(tmp_path, device="cpu", train=fail, say=fail))
    assert again == documents
    text = markdown(tabulate(config, describe(config, work), documents))
    assert "2 folds by patient" in text


def test_reports_that_are_put_together_average_over_all_cases(manifest, tmp_path):
    (document,) = run_comparison(config_of(manifest), Work(tmp_path, device="cpu"))
    merged = document["report"]["variants"]["full"]
    parts = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(tmp_path.glob("*/*/report-*.json"))]
    cases = [c for part in parts for c in part["variants"]["full"]["cases"]]
    assert len(cases) == 4 and merged["overall"]["scored"] == sum(len(c["structures"]) for c in cases)
    dice = [s["dice"] for c in cases for s in c["structures"]]
    assert merged["overall"]["dice"] == pytest.approx(np.mean(dice))
    by_name = {c["case"]: c for c in cases}
    again = summarize([CaseReport.from_document(by_name[c["case"]]) for c in merged["cases"]])  # sums depend on order
    assert json.dumps(again["overall"]) == json.dumps(merged["overall"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": "best"}, "nothing but the scored cases"),
        ({"folds": None, "start": {}}, "there are no folds"),
        ({"entries": [{"name": "A", "checkpoint": "lumbar-mr-resenc"}]}, "may have seen"),
        ({"entries": [{"name": "A", "method": "unet", "once": True}]}, "is not scored"),
        ({"folds": 1}, "folds"),
        ({"variants": ["upside-down"]}, "there is none"),
    ],
)
def test_what_folds_do_not_allow(manifest, change, message):
    with pytest.raises(ValueError, match=message):
        config_of(manifest, **change)


@pytest.mark.parametrize("name", shipped_configs())
def test_every_entry_of_the_shipped_configurations_can_be_trained(name, manifest, tmp_path):
    config = read_comparison(name, dataset=manifest, resources={"text_bank": tmp_path / "bank.safetensors"})
    for entry in (entry for entry in config.entries if entry.method):
        training = training_of(entry, 35, config, manifest, rehearse=False)
        assert training.method["method"] == entry.method
