"""Manifests say what is there, and name what is wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from tiny_data import SHARED_DATA

from SpineSegAILib.anatomy import Extent, sorted_ids
from SpineSegAILib.datasets import read_label, read_manifest
from SpineSegAILib.datasets.manifest import read_case
from SpineSegAILib.errors import DatasetError

REAL = SHARED_DATA / "lumbar_mr/dataset.json"


def write(folder: Path, **table) -> Path:
    """A manifest with images a, b, c (label values 0, 20 and 24) beside it."""
    array = np.zeros((2, 3, 4), np.uint8)
    array[0, 0], array[1, 1] = 20, 24
    for name in "abc":
        sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / f"{name}.nii.gz"))
    path = folder / "dataset.json"
    path.write_text(json.dumps(table), encoding="utf-8")
    return path


def entry(name: str, **more) -> dict:
    return {"image": f"./{name}.nii.gz", "label": f"{name}.nii.gz", "annotated": ["L5", "L1"], **more}


def test_reads_cases(tmp_path):
    sitk.WriteImage(sitk.Image(2, 2, 2, sitk.sitkUInt8), str(tmp_path / "d.nii.gz"))
    path = write(
        tmp_path,
        name="Three",
        modality={"0": "MR"},
        extent="body",
        training=[entry("a", source="x"), entry("b", patient="p1", annotated=["l1", 24, "vertebra"], extent="whole")],
        validation=[entry("c", keypoints={"L4": [1, 2, 3]})],
        test=["d.nii.gz"],
    )
    manifest = read_manifest(path)
    assert (manifest.name, manifest.modality, manifest.extent) == ("Three", "MR", Extent.BODY)
    first, second = manifest.cases("training")
    assert first.image == (tmp_path / "a.nii.gz").resolve()
    assert first.source == "x" and first.name == first.patient == "a"
    assert first.annotated == (20, 24) and first.extent is Extent.BODY
    assert second.patient == "p1" and second.annotated == (20, 24, 90) and second.extent is Extent.WHOLE
    assert manifest.cases("validation")[0].keypoints == {23: (1.0, 2.0, 3.0)}
    (unlabelled,) = manifest.cases("test")
    assert unlabelled.label is None and unlabelled.annotated == ()
    with pytest.raises(DatasetError, match=r"no “held-out” cases.*training \(2\), validation \(1\), test \(1\)"):
        manifest.cases("held-out")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({}, "lists no cases"),
        ({"training": {"a": 1}}, "not a list"),
        ({"training": [{"label": "a.nii.gz"}]}, "training case 1 names no image"),
        ({"training": [entry("a"), entry("d")]}, "training case 2.*d.nii.gz does not exist"),
        ({"training": [entry("a", label="gone.nii.gz")]}, "gone.nii.gz does not exist"),
        ({"training": [entry("a", annotated=["L9"])]}, "“L9” is not a known structure"),
        ({"training": [entry("a", annotated="L4")]}, "not a list"),
        ({"training": [entry("a", annotated=[])]}, "annotated structures are not listed"),
        ({"training": [entry("a")], "extent": "half"}, "“extent” is “half”"),
        ({"training": [entry("a", label_values="other")]}, "“label_values” is “other”.*spider"),
        ({"training": [entry("a", keypoints={"L4": [1, 2]})]}, "not a point"),
        ({"training": [entry("a", keypoints={"L9": [1, 2, 3]})]}, "“L9” is not a structure"),
        ({"training": [entry("a", keypoints={})]}, "holds no keypoints"),
        ({"training": [entry("a", keypoints="none.json")]}, "none.json does not exist"),
        ({"training": [entry("a")], "validation": [entry("a")]}, "in both training and validation"),
        (
            {"training": [entry("a", patient="p")], "validation": [entry("b", patient="p")]},
            "patient /p is in both training and validation",
        ),
        ({"training": [entry("a")], "labels": {"background": 0, "liver": 1}}, "“liver” is not a known structure"),
    ],
)
def test_names_what_is_wrong(tmp_path, table, words):
    with pytest.raises(DatasetError, match=words):
        read_manifest(write(tmp_path, **table))


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(DatasetError, match="does not exist"):
        read_manifest(tmp_path / "no.json")
    with pytest.raises(DatasetError, match="is a folder"):
        read_manifest(tmp_path)
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_manifest(tmp_path / "x.json")


def test_label_values_are_translated(tmp_path):
    # The Decathlon form names the values: here 20 means L5 and 24 means L1.
    cases = [{"image": "a.nii.gz", "label": "b.nii.gz"}]
    path = write(tmp_path, labels={"0": "background", "20": "L5", "24": "L1"}, training=cases)
    case = read_manifest(path).cases("training")[0]
    assert case.annotated == (20, 24)
    array = sitk.GetArrayFromImage(read_label(case))
    assert array.dtype == np.int16
    assert array[0, 0, 0] == 24 and array[1, 1, 0] == 20 and array[1, 2, 3] == 0


def test_labels_must_fit_what_is_annotated(tmp_path):
    manifest = read_manifest(write(tmp_path, training=[entry("a", annotated=["L5"])]))
    with pytest.raises(DatasetError, match="holds L1, which “annotated” does not list"):
        read_label(manifest.cases("training")[0])
    manifest = read_manifest(write(tmp_path, training=[entry("a", label_values="mrspineseg")]))
    with pytest.raises(DatasetError, match="value 20, which is not a structure"):
        read_label(manifest.cases("training")[0])


def test_images_of_one_name_in_several_folders_are_several_cases(tmp_path):
    for folder in ("p1", "p2"):
        (tmp_path / folder).mkdir()
        sitk.WriteImage(sitk.Image(2, 2, 2, sitk.sitkUInt8), str(tmp_path / folder / "t2.nii.gz"))
    path = write(tmp_path, training=[{"image": "p1/t2.nii.gz"}, entry("a")], test=[{"image": "p2/t2.nii.gz"}])
    manifest = read_manifest(path)
    assert [(c.name, c.patient) for c in manifest.cases("training")] == [("p1_t2", "p1_t2"), ("a", "a")]
    assert manifest.cases("test")[0].patient == "p2_t2"
    named = [{"image": f"p{n}/t2.nii.gz", "patient": "one"} for n in (1, 2)]
    cases = read_manifest(write(tmp_path, training=named)).cases("training")
    assert [(c.name, c.patient) for c in cases] == [("p1_t2", "one"), ("p2_t2", "one")]


def test_images_of_one_name_in_folders_of_one_name_are_several_cases(tmp_path):
    """``patient1/mr/t2.nii.gz``: their patients must not be taken for one."""
    table = {split: [f"{split}/mr/t2.nii.gz", f"{split}/ct/t2.nii.gz"] for split in ("training", "validation")}
    for name in (name for names in table.values() for name in names):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "dataset.json").write_text(json.dumps(table), encoding="utf-8")
    splits = read_manifest(tmp_path / "dataset.json").splits
    assert [case.name for case in splits["validation"]] == ["validation_mr_t2", "validation_ct_t2"]
    assert len({case.patient for cases in splits.values() for case in cases}) == 4


def test_labels_of_pictures_lie_on_their_pictures(tmp_path):
    label = np.zeros((20, 30), np.uint8)
    label[4:9, 5:20] = 24
    picture = sitk.GetImageFromArray(np.arange(600, dtype=np.uint8).reshape(20, 30))
    sitk.WriteImage(picture, str(tmp_path / "film.png"))
    sitk.WriteImage(sitk.GetImageFromArray(label), str(tmp_path / "drawn.png"))
    (case,) = read_manifest(write(tmp_path, test=[entry("film", label="drawn.png", image="film.png")])).cases("test")
    image, drawn = read_case(case)
    assert image.GetSize() == drawn.GetSize() == (30, 20, 1)
    assert np.array_equal(sitk.GetArrayFromImage(drawn)[0], label)


def test_labels_that_lie_elsewhere_are_refused(tmp_path):
    path = write(tmp_path, test=[entry("a", image="there.nii.gz")])
    image = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    image.SetOrigin((0.04, 0, 0))  # rounding
    sitk.WriteImage(image, str(tmp_path / "there.nii.gz"))
    read_case(read_manifest(path).cases("test")[0])
    image.SetOrigin((40, 0, 0))
    sitk.WriteImage(image, str(tmp_path / "there.nii.gz"))
    with pytest.raises(DatasetError, match=r"a\.nii\.gz does not lie on the grid of") as error:
        read_case(read_manifest(path).cases("test")[0])
    assert "Resample" in error.value.remedy


@pytest.mark.skipif(not REAL.exists(), reason="the shared lumbar MR data are not here")
def test_real_manifest():
    manifest = read_manifest(REAL)
    assert {s: len(cases) for s, cases in manifest.splits.items()} == {"training": 46, "validation": 7, "test": 0}
    assert manifest.extent is Extent.BODY
    case = manifest.cases("validation")[0]
    assert set(np.unique(sitk.GetArrayFromImage(read_label(case)))) - {0} <= set(case.annotated)


def test_what_whole_vertebrae_have_beyond_their_bodies_are_posterior_elements(tmp_path):
    body, whole = np.zeros((2, 30, 60), np.uint8), np.zeros((2, 30, 60), np.uint8)
    body[:, 5:25, 5:25] = 24  # L5
    whole[:, 5:25, 5:55] = 24
    whole[0, 5:25, 25] = 23  # a sliver that was given to L4
    whole[:, 26:29, 30:50] = 254
    whole[:, :3, :] = 123  # a disc, drawn in this file alone
    for name, array in (("a", body), ("body", body), ("whole", whole)):
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / f"{name}.nii.gz"))
    case = {"image": "a.nii.gz", "label": "body.nii.gz", "label_whole": "whole.nii.gz", "annotated": ["L5", "L4"]}
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"extent": "body", "training": [case]}), encoding="utf-8")
    (read,) = read_manifest(path).cases("training")
    assert read.annotated == tuple(sorted_ids((23, 24, 153, 154, 92)))
    label = sitk.GetArrayFromImage(read_label(read))
    assert (label[:, 5:25, 5:25] == 24).all() and not label[:, :3].any()
    assert (label[:, 5:25, 26:55] == 154).all()
    assert (label[0, 5:25, 25] == 92).all() and (label[:, 26:29, 30:50] == 92).all()
