"""Keypoints as training data: from masks, from annotations, through the augmentation, and mixed with masks."""

import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from tiny_data import VERTEBRAE, write_tiny_dataset
from torch.utils.data import default_collate

from SpineSegAILib.anatomy import scheme, structure
from SpineSegAILib.datasets.manifest import read_label, read_manifest
from SpineSegAILib.errors import DatasetError
from SpineSegAILib.imaging import AIR, Preprocessing
from SpineSegAILib.keypoints import KEYPOINT_REACH_MM, centres_of, read_keypoints
from SpineSegAILib.methods.catalog import make_config
from SpineSegAILib.training.augmentation import Augmenter
from SpineSegAILib.training.config import AugmentationConfig, DataConfig, OptimizationConfig, TrainingConfig
from SpineSegAILib.training.data import SampleDataset, cache_case
from SpineSegAILib.training.request import TrainingRequest
from SpineSegAILib.training.schedule import learning_rate
from SpineSegAILib.training.trainer import run_training

SCHEME = scheme("lumbar-mr")
PREPROCESSING = Preprocessing(pixel_mm=2.0)
IDS = [structure(n).id for n in VERTEBRAE]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weak")
    write_tiny_dataset(folder)
    return folder


@pytest.fixture(scope="module")
def originals(folder):
    return read_manifest(folder / "dataset.json").cases("training")


def weakened(case):
    return replace(case, label=None, annotated=(), keypoints=centres_of(read_label(case)))


@pytest.fixture(scope="module")
def full(folder, originals):
    return [cache_case(c, PREPROCESSING, SCHEME, folder / "cache") for c in originals]


@pytest.fixture(scope="module")
def weak(folder, originals):
    return [cache_case(weakened(c), PREPROCESSING, SCHEME, folder / "cache") for c in originals]


def samples(cases, numbers, augmentation=None, patch=(96, 64), **config):
    data = SampleDataset(cases, SCHEME, DataConfig(patch=patch, **config), 7, AIR)
    raw = default_collate([data[i] for i in numbers])
    return raw, Augmenter(patch, augmentation, 7, AIR)(raw, torch.device("cpu"))


def centroids(batch):
    """(B, C − 1, 2) of the labels as augmented, NaN where the structure is not wholly inside."""
    count, channels, *shape = batch.allowed.shape
    result = np.full((count, channels - 1, 2), np.nan)
    for b, label in enumerate(batch.label.numpy()):
        for channel in range(1, channels):
            where = np.argwhere(label == channel)
            if len(where) > 20 and (where > 0).all() and (where < np.array(shape) - 1).all():
                result[b, channel - 1] = where.mean(0)
    return result


@pytest.mark.parametrize("augmentation", [None, AugmentationConfig(crop_probability=0, elastic_probability=1.0)])
def test_key_points_of_masks_move_with_the_masks(full, augmentation):
    _, batch = samples(full, range(12), augmentation)
    expected, found = centroids(batch), batch.keypoints.numpy()
    both = ~np.isnan(expected[..., 0]) & ~np.isnan(found[..., 0])
    assert both.sum() > 30
    assert np.median(np.abs(expected - found)[both]) < 0.4
    assert np.abs(expected - found)[both].max() < 3.0  # a bent mask's center is not its center, bent
    assert np.isnan(found[:, SCHEME.channel_of[structure("canal").id] - 1]).all()


def test_key_points_follow_a_landmark_in_the_image_exactly(weak):
    """Marks painted at the keypoints of the window are found at those of the patch."""
    data = SampleDataset(weak, SCHEME, DataConfig(patch=(96, 64)), 7, AIR)
    raw = default_collate([data[i] for i in range(8)])
    raw["image"][:] = AIR
    for image, points in zip(raw["image"][:, 0], raw["keypoints"], strict=True):
        grid = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in image.shape), indexing="ij"), -1)
        for point in points[~points.isnan().any(1)]:
            image += 5 * torch.exp(-((grid - point) ** 2).sum(-1) / 8)
    config = AugmentationConfig(elastic_probability=1.0, elastic_mm=6.0, crop_probability=0.0)
    augmenter = Augmenter((96, 64), config, 7, AIR)
    augmenter._intensity = lambda image, *more: image
    batch = augmenter(raw, torch.device("cpu"))
    checked = 0
    for image, points in zip(batch.image[:, 0], batch.keypoints, strict=True):
        for row, column in points[~points.isnan().any(1)].tolist():
            if not (6 < row < 89 and 6 < column < 57):
                continue
            top, left = round(row) - 4, round(column) - 4
            near = image[top : top + 9, left : left + 9]
            highest = divmod(int(near.argmax()), 9)
            assert abs(highest[0] + top - row) < 1.2 and abs(highest[1] + left - column) < 1.2
            checked += 1
    assert checked > 15


def test_what_is_cropped_away_has_no_key_point(full):
    _, batch = samples(full, range(24), AugmentationConfig(crop_probability=1.0, crop_top=0.6))
    outside = batch.image[:, 0] == AIR
    checked = 0
    for air, points in zip(outside, batch.keypoints, strict=True):
        for row, column in points[~points.isnan().any(1)].round().long().tolist():
            checked += 1
            assert not air[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].all()
    assert checked > 20


def test_a_weak_case_has_points_near_its_slice_and_allows_everything(weak):
    for case in weak:
        assert case.weak and case.centres == []
        for index in range(len(case.image)):
            points = case.points(SCHEME, index)
            for sid in IDS:
                near = abs(case.keypoints[sid][0] - index) * case.spacing[0] <= KEYPOINT_REACH_MM
                assert near != np.isnan(points[SCHEME.channel_of[sid] - 1, 0])
    raw, batch = samples(weak, range(6), AugmentationConfig(crop_probability=1.0))
    assert (batch.image == AIR).any()
    assert batch.allowed.all()
    assert not raw["keypoints"].isnan().all(2).all(1).any()  # slices without keypoints teach nothing


def test_masks_and_annotated_points_agree(full, weak):
    for a, b in zip(full, weak, strict=True):
        drawn = a.points(SCHEME)
        placed = b.points(SCHEME)
        known = ~np.isnan(drawn[:, 0])
        assert known.sum() == len(IDS) and (known == ~np.isnan(placed[:, 0])).all()
        assert np.abs(drawn - placed)[known].max() < 0.7


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_every_batch_has_its_share_of_weak_cases(full, weak, share):
    data = SampleDataset([full[0], *weak[1:]], SCHEME, DataConfig(patch=(96, 64), weak_share=share), 7, -2.0)
    is_weak = [bool(data[i]["allowed"].all()) for i in range(16)]
    for start in range(0, 16, 4):
        assert sum(is_weak[start : start + 4]) == 4 * share


def test_without_weak_cases_the_samples_are_what_they_were(full):
    some, other = (SampleDataset(full, SCHEME, DataConfig(patch=(96, 64), weak_share=s), 7, -2.0) for s in (0.1, 0.9))
    assert all(torch.equal(some[i]["image"], other[i]["image"]) for i in range(5))


def test_key_points_outside_the_image_are_refused(folder, originals):
    far = replace(weakened(originals[0]), keypoints={24: (0.0, 4000.0, 0.0)})
    with pytest.raises(DatasetError, match=r"L5.*outside the image"):
        cache_case(far, PREPROCESSING, SCHEME, folder / "cache")


def test_centres_are_physical(tmp_path):
    array = np.zeros((4, 6, 8), np.int16)
    array[1:3, 2:5, 3:6] = 23
    array[0, 0, 0] = 61  # the canal has no center
    label = sitk.GetImageFromArray(array)
    label.SetSpacing((0.5, 2.0, 4.0))
    label.SetOrigin((10.0, -20.0, 30.0))
    label.SetDirection((-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0))
    found = centres_of(label)
    assert found == {23: pytest.approx((10 - 4 * 0.5, -20 - 3 * 2.0, 30 + 1.5 * 4.0))}
    table = {structure(sid).name: point for sid, point in found.items()}
    (tmp_path / "points.json").write_text(json.dumps(table))
    assert read_keypoints(tmp_path / "points.json") == {23: pytest.approx(found[23])}


def test_scar_net_trains_on_mixed_cases(folder, originals, tmp_path):
    """The published batch: two cases with masks, two with keypoints in Slicer's form (RAS) alone."""
    table = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    points = weakened(originals[1]).keypoints
    controls = [{"label": structure(i).name, "position": [-x, -y, z]} for i, (x, y, z) in points.items()]
    markups = {"markups": [{"type": "Fiducial", "coordinateSystem": "RAS", "controlPoints": controls}]}
    (folder / "points.mrk.json").write_text(json.dumps(markups))
    entry = table["training"][1]
    table["training"][1] = {"image": entry["image"], "keypoints": "points.mrk.json", "patient": entry["patient"]}
    path = folder / "mixed.json"
    path.write_text(json.dumps(table))
    config = TrainingConfig(
        method=make_config("scar-net", "tiny").model_dump(mode="json"),
        dataset=str(path),
        preprocessing=Preprocessing(pixel_mm=3.0),
        data=DataConfig(patch=(64, 64)),
        optimization=OptimizationConfig(
            steps=20, batch=4, learning_rate=5e-3, schedule="thirds", validate_every=1000, save_every=100, workers=0,
            warmup=1, mixed_precision="no", report_every=5,
        ),
    )  # fmt: skip
    run = run_training(TrainingRequest(config, tmp_path / "run", device="cpu", cache=folder / "cache"))
    losses = [e["losses"] for e in run.events() if e["event"] == "step"]
    assert losses[-1]["heatmaps"] < losses[0]["heatmaps"]
    assert losses[-1]["cross_entropy"] < losses[0]["cross_entropy"]
    assert run.status()["state"] == "finished"


def test_the_learning_rate_falls_by_thirds():
    o = OptimizationConfig(steps=300, learning_rate=5e-4, final_learning_rate=0.0, schedule="thirds", warmup=0)
    assert [learning_rate(o, s, 0.0) for s in (0, 99, 100, 199, 200, 299)] == pytest.approx(
        [5e-4, 5e-4, 1e-4, 1e-4, 2e-5, 2e-5]
    )
