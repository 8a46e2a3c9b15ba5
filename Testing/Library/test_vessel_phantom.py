"""Vessel phantoms, and half-labeled vessels from the file to the loss."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from tiny_data import SHARED_DATA

from SpineSegAILib.anatomy import other_side, scheme, structure
from SpineSegAILib.checkpoints import read_header
from SpineSegAILib.cli import main
from SpineSegAILib.datasets.manifest import read_manifest
from SpineSegAILib.evaluation import evaluate_case
from SpineSegAILib.imaging import AIR, Preprocessing, read_file
from SpineSegAILib.inference import Predictor
from SpineSegAILib.methods.catalog import make_config
from SpineSegAILib.phantoms.vessels import VesselSpec, make_vessels, random_vessels
from SpineSegAILib.training.config import DataConfig, OptimizationConfig, TrainingConfig
from SpineSegAILib.training.data import SampleDataset, cache_case, cache_phantom
from SpineSegAILib.training.regions import code_label
from SpineSegAILib.training.request import TrainingRequest
from SpineSegAILib.training.trainer import run_training

AV = scheme("pulmonary-av")
COARSE = {"voxel_mm": 3.0, "generations": 4}
CT = Preprocessing(
    pixel_mm=3.0, min_slice_mm=3.0, intensity="hu", low=-700, high=300, modality="CT",
    planes=("axial", "coronal", "sagittal", "isotropic"),
)  # fmt: skip


def phantom(seed=0, **values):
    return make_vessels(VesselSpec(**{**COARSE, **values}), np.random.default_rng(seed))


def arrays(case):
    """Image and labels with the canonical axes."""
    return [sitk.GetArrayFromImage(sitk.DICOMOrient(i, "PIR")) for i in (case.image, case.labels)]


def test_the_same_seed_gives_the_same_voxels():
    first, again, other = phantom(), phantom(), phantom(seed=1)
    assert np.array_equal(arrays(first)[0], arrays(again)[0])
    assert not np.array_equal(arrays(first)[1], arrays(other)[1])


def test_trees_are_trees_on_their_side_and_bright():
    image, labels = arrays(phantom(noise_hu=0.0, voxel_mm=2.0))
    side = np.arange(labels.shape[0])[:, None, None] - (labels.shape[0] - 1) / 2  # grows towards the right
    for name, hu in (("artery", 380), ("vein", 230)):
        for word, sign in (("right", 1), ("left", -1)):
            mask = labels == structure(f"pulmonary {name}, {word}").id
            assert mask.sum() > 500
            assert (sign * np.broadcast_to(side, mask.shape)[mask] > -8).all()  # 16 mm beyond the midline at most
            pieces, count = ndimage.label(mask, np.ones((3, 3, 3)))
            assert np.bincount(pieces[mask]).max() > 0.75 * mask.sum(), f"{count} pieces"
            core = ndimage.binary_erosion(mask)
            assert np.median(image[core]) == pytest.approx(hu, abs=40)
    assert image.min() > -1025
    assert (image < -700).mean() > 0.15  # lungs


def test_geometry_is_physical_whatever_the_orientation():
    plain, turned = phantom(), phantom(orientation="LPS")
    assert turned.image.GetSpacing() == (3.0, 3.0, 3.0)
    assert np.array_equal(arrays(plain)[1], arrays(turned)[1])
    right = np.argwhere(sitk.GetArrayFromImage(turned.labels) == 201).mean(0)[::-1]
    assert turned.labels.TransformContinuousIndexToPhysicalPoint(right.tolist())[0] < 0  # the patient's right in LPS


def test_half_labelled_phantoms_keep_the_picture():
    whole, right, arteries = phantom(), phantom(annotated="right"), phantom(annotated="unsided arteries")
    assert np.array_equal(arrays(whole)[0], arrays(right)[0])
    assert set(np.unique(arrays(right)[1])) == {0, 201, 203}
    assert right.annotated == (201, 203)
    assert set(np.unique(arrays(arteries)[1])) == {0, 205}
    assert (arrays(arteries)[1] > 0).sum() == np.isin(arrays(whole)[1], (201, 202)).sum()


def test_random_specs_make_phantoms():
    rng = np.random.default_rng(3)
    contrasts = {random_vessels(rng, voxel_mm=3.0).artery_hu for _ in range(5)}
    assert len(contrasts) == 5
    made = make_vessels(random_vessels(rng, **COARSE), rng)
    assert len(np.unique(arrays(made)[1])) == 5


# --- what is known ---


def test_sides_have_partners():
    assert other_side(201) == 202
    assert other_side(204) == 203
    assert other_side(205) is None


def test_beyond_the_midline_nothing_is_known_of_a_half_labelled_case():
    label = np.zeros((20, 4, 4), np.int16)
    label[15, 1] = 201
    coded = code_label(label, (201, 203), AV.ids, (1.5,) * 3)
    assert coded.sets[coded.codes[15, 1, 0]] == {201}
    assert coded.sets[coded.codes[15, 3, 0]] == {0, 202, 204}  # the labeled half
    assert coded.sets[coded.codes[4, 3, 0]] == {0, 201, 202, 203, 204}
    left = code_label(np.flip(label, 0) * 0, (202, 204), AV.ids, (1.5,) * 3)
    assert left.sets[left.codes[15, 0, 0]] == {0, 201, 202, 203, 204}
    assert left.sets[left.codes[4, 0, 0]] == {0, 201, 203}
    whole = code_label(label, AV.ids, AV.ids, (1.5,) * 3)
    assert whole.sets[whole.codes[4, 3, 0]] == {0}


def test_arteries_of_unknown_side_may_be_either_and_veins_anywhere(tmp_path):
    label = np.zeros((8, 4, 4), np.int16)
    label[2, 1] = 205
    coded = code_label(label, (205,), AV.ids, (1.5,) * 3)
    assert coded.sets[coded.codes[2, 1, 0]] == {201, 202, 205}
    assert coded.sets[coded.codes[7, 3, 0]] == {0, 203, 204}


def write_case(folder, case, name):
    sitk.WriteImage(case.image, str(folder / f"{name}_image.nii.gz"))
    sitk.WriteImage(case.labels, str(folder / f"{name}_label.nii.gz"))
    names = [structure(i).name for i in case.annotated]
    return {"image": f"{name}_image.nii.gz", "label": f"{name}_label.nii.gz", "annotated": names, "source": "made"}


def test_channels_of_a_cached_case(tmp_path):
    entry = write_case(tmp_path, phantom(annotated="unsided arteries"), "a")
    (tmp_path / "d.json").write_text(json.dumps({"training": [entry]}))
    (case,) = read_manifest(tmp_path / "d.json").cases("training")
    cached = cache_case(case, CT, AV, tmp_path / "cache")
    allowed, rank = cached.tables(AV)
    rows = {tuple(row) for row in allowed[: len(cached.sets)].tolist()}
    assert rows == {(True, False, False, True, True), (False, True, True, False, False), (True,) + (False,) * 4}
    assert np.isnan(rank).all()


def test_training_phantoms_of_a_vessel_scheme_are_vessels(tmp_path):
    cached = cache_phantom(0, 1, CT, AV, tmp_path)
    assert {i for s in cached.sets for i in s} == {0, 201, 202, 203, 204}
    assert all(len(s) == 1 for s in cached.sets)
    spine = cache_phantom(0, 1, Preprocessing(pixel_mm=3.0), scheme("lumbar11+cord"), tmp_path)
    assert any(60 in s and 0 in s for s in spine.sets)  # phantoms never show it: not known, and not absent


def test_windows_around_labels_find_vessels_everywhere(tmp_path):
    cached = cache_phantom(0, 1, CT, AV, tmp_path)
    config = DataConfig(patch=(16, 16, 16), labelled_share=1.0, focus="label")
    data = SampleDataset([cached], AV, config, 0, AIR, margin=1.0)
    centers, drawn = [], 0
    for number in range(40):
        item = data[number]
        drawn += bool((item["codes"] > 0).any())
        centers.append(item["box"].mean(1).numpy())
    assert drawn > 36
    assert np.ptp(np.array(centers)[:, 1]) > 20  # voxels, rows: more than straying around one point


# --- learning, from the file to the result ---


def test_half_labelled_vessels_are_learnt_from_the_command_to_the_labels(tmp_path):
    entries = [
        write_case(tmp_path, phantom(seed, annotated=what, size=0.7), f"case{seed}")
        for seed, what in enumerate(("right", "left", "unsided arteries", "all"))
    ]
    manifest = tmp_path / "d.json"
    manifest.write_text(json.dumps({"modality": {"0": "CT"}, "training": entries[:3], "validation": entries[3:]}))
    method = make_config("la-caf", "tiny", scheme="pulmonary-av", widths=(8, 16, 24))
    config = TrainingConfig(
        method=method.model_dump(mode="json"),
        dataset=str(manifest),
        preprocessing=CT,
        data=DataConfig(patch=(24, 24, 24), focus="label", augmentation=method.recipe["data"]["augmentation"]),
        optimization=OptimizationConfig(
            steps=40, batch=2, learning_rate=4e-3, warmup=2, report_every=5, workers=0, ema=0.9, validate_every=100,
            mixed_precision="no",
        ),
    )  # fmt: skip
    run = run_training(TrainingRequest(config, tmp_path / "run", device="cpu"))
    losses = [e["losses"]["total"] for e in run.events() if e["event"] == "step"]
    assert np.mean(losses[-3:]) < 0.85 * losses[0]
    (scores,) = (e["scores"] for e in run.events() if e["event"] == "validation")
    assert {"artery_dice", "vein_dice"} <= set(scores)
    info = read_header(run.best)
    case = phantom(7, orientation="LPS", size=0.7)
    result = Predictor(info, "cpu").segment(case.image)
    assert result.labels.GetSize() == case.image.GetSize()
    report = evaluate_case(case.labels, result, case.annotated)
    assert report.structures


def test_unsided_references_are_compared_with_both_sides():
    whole, arteries = phantom(), phantom(annotated="unsided arteries")
    report = evaluate_case(arteries.labels, whole.labels, (205,))
    (score,) = report.structures
    assert score.id == 205
    assert score.dice == 1.0


def test_the_command_makes_vessels(tmp_path):
    image, label = tmp_path / "v.nii.gz", tmp_path / "l.nii.gz"
    command = ["phantom", "--vessels", "--output", str(image), "--label", str(label), "--quiet"]
    assert main([*command, "--spec", "voxel_mm=4", "--spec", "annotated=left"]) == 0
    assert set(np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(label))))) == {0, 202, 204}
    assert main([*command, "--spec", "pixel_mm=4"]) == 2


def test_the_real_half_labelled_case_reaches_the_loss(tmp_path):
    folder = SHARED_DATA / "pulmonary_ct"
    if not folder.exists():
        pytest.skip("the shared pulmonary CT is not here")
    label = read_file(folder / "pulmonary_label.nii.gz")
    sitk.WriteImage(sitk.Cast(label, sitk.sitkInt16) * 205, str(tmp_path / "label.nii.gz"))
    entry = {
        "image": str(folder / "pulmonary_image.nii.gz"), "label": "label.nii.gz", "annotated": ["pulmonary artery"],
    }  # fmt: skip
    (tmp_path / "d.json").write_text(json.dumps({"training": [entry]}))
    (case,) = read_manifest(tmp_path / "d.json").cases("training")
    cached = cache_case(case, CT, AV, tmp_path / "cache")
    assert sorted(cached.sets) == [[0], [0, 203, 204], [201, 202, 205]]
    assert cached.labelled_slices
