"""The reader of the Spinal Disease Dataset, on a study written in its form."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from test_imaging import write_series

from SpineSegAILib.anatomy import scheme, structure
from SpineSegAILib.cli import main
from SpineSegAILib.datasets.manifest import read_label, read_manifest
from SpineSegAILib.datasets.public_sets import import_dataset
from SpineSegAILib.errors import DatasetError
from SpineSegAILib.imaging import Preprocessing
from SpineSegAILib.phantoms.spine import PhantomSpec, make_phantom
from SpineSegAILib.training.data import cache_case

NAMES = ("L1", "L2", "L3", "L1/L2", "L5/S1")


@pytest.fixture(scope="module")
def phantom():
    spec = PhantomSpec(top="T12", bottom="S1", slices=7, slice_mm=5.0, pixel_mm=1.5, contrast="t2")
    return make_phantom(spec, np.random.default_rng(4))


@pytest.fixture
def study(tmp_path, phantom):
    """An annotation of the middle slice, and DICOM files of two series in one folder."""
    image = sitk.Cast(phantom.image, sitk.sitkInt16)
    write_series(tmp_path / "train" / "study0", "5", "T2 sag", image)
    write_series(tmp_path / "train" / "study0", "6", "T1 sag", image * 2)
    middle = image.GetSize()[2] // 2
    points = []
    for name in NAMES:
        x, y, _ = image.TransformPhysicalPointToContinuousIndex(phantom.keypoints[structure(name).id])
        kind = "disc" if "/" in name else "vertebra"
        points.append(
            {"coord": [x, y], "tag": {"identification": name.replace("/", "-"), kind: "v1"}, "zIndex": middle}
        )
    entry = {"seriesUid": "1.2.3.5", "instanceUid": f"1.2.3.5.{middle + 1}"}
    entry["annotation"] = [{"annotator": 1, "data": {"point": points}}]
    table = [{"studyUid": "1.2.3.1", "version": "v0.1", "data": [entry]}]
    path = tmp_path / "train_annotation.json"
    path.write_text(json.dumps(table))
    return path, table


def test_points_become_physical_and_train(tmp_path, study, phantom):
    flags = [
        "import-dataset",
        "--format",
        "spinal-disease",
        str(tmp_path),
        "--output",
        str(tmp_path / "out"),
        "--quiet",
    ]
    assert main(flags) == 0
    manifest = read_manifest(tmp_path / "out" / "dataset.json")
    (case,) = manifest.cases("training")
    assert case.label is None and case.annotated == () and case.patient == "1.2.3.1"
    assert set(case.keypoints) == {structure(n).id for n in NAMES}
    for sid, point in case.keypoints.items():
        # the annotated slice is the middle one; across it the centers of the phantom wander a little
        assert np.linalg.norm(np.subtract(point, phantom.keypoints[sid])) < 8.0
    cached = cache_case(case, Preprocessing(pixel_mm=2.0), scheme("lumbar11"), tmp_path / "cache")
    assert cached.weak and cached.image.shape[0] == 7
    assert np.isfinite(cached.points(scheme("lumbar11"), 3)).sum() == 2 * len(NAMES)


def test_what_does_not_fit_is_refused(tmp_path, study):
    path, table = study
    output = tmp_path / "out"
    with pytest.raises(DatasetError, match="no cases"):
        import_dataset("spinal-disease", tmp_path / "train", output)
    path.write_text('{"training": []}')
    with pytest.raises(DatasetError, match="not an annotation"):
        import_dataset("spinal-disease", tmp_path, output)
    for change, words in (
        ({"instanceUid": "9.9"}, "9.9 is not in"),
        ({"annotation": [{"data": {"point": []}}]}, "no points"),
        ({"annotation": [{"data": {"point": [{"coord": [1, 2], "tag": {"identification": "L9"}}]}}]}, "“L9”"),
        ({"annotation": [{"data": {"point": [{"coord": [1, 2], "tag": {"identification": "L3"}}] * 2}}]}, "two points"),
    ):
        broken = [{**table[0], "data": [{**table[0]["data"][0], **change}]}]
        path.write_text(json.dumps(broken))
        with pytest.raises(DatasetError, match=words):
            import_dataset("spinal-disease", tmp_path, output)
    assert not output.exists()


def test_masks_of_the_test_slices_lie_on_their_slices(tmp_path, study, phantom):
    folder = tmp_path / "in"
    (folder / "MR").mkdir(parents=True)
    (folder / "mask").mkdir()
    drawn = {}
    for number, name in enumerate(("Case417", "Case418", "Case419")):
        write_series(tmp_path / "tests" / name, f"7{number}", "T2 sag", sitk.Cast(phantom.image, sitk.sitkInt16))
        source = sorted((tmp_path / "tests" / name).iterdir())[3]  # a series each
        shutil.copy(source, folder / "MR" / f"{name}.dcm")
        columns, rows, _ = sitk.ReadImage(str(source)).GetSize()
        array = np.zeros((rows, columns), np.int16)
        array[3:9, 4:12], array[9:12, 4:12] = 5, 10
        drawn[name] = array
        sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / "mask" / f"{name}.nii.gz"))
    target = import_dataset("spinal-disease", tmp_path, tmp_path / "out", validation_share=0.4)
    manifest = read_manifest(target.path)
    assert len(manifest.cases("training")) == 3 and len(manifest.cases("validation")) == 1
    assert not any(case.label is None for case in manifest.cases("validation"))
    masked = [case for case in manifest.cases("training") if case.label]
    assert all(case.annotated == (structure("L5").id, structure("L5/S1").id) for case in masked)
    for case in masked:
        label = read_label(case)
        found = sitk.GetArrayFromImage(label)[0]
        assert np.array_equal(found == structure("L5").id, drawn[case.patient] == 5)
        assert np.allclose(label.GetOrigin(), sitk.ReadImage(str(case.image)).GetOrigin(), atol=1e-3)
    sitk.WriteImage(sitk.GetImageFromArray(drawn["Case417"].T[:-1]), str(folder / "mask" / "Case417.nii.gz"))
    with pytest.raises(DatasetError, match="pixels, its slice Case417"):
        import_dataset("spinal-disease", tmp_path, tmp_path / "out")
