from copy import copy

import numpy as np
import pytest
import torch
from tiny_data import write_tiny_dataset
from torch.utils.data import default_collate

from SpineSegAILib.anatomy import DISC_ID, VERTEBRA_ID, Kind, scheme, structure
from SpineSegAILib.datasets.manifest import read_manifest
from SpineSegAILib.errors import DatasetError
from SpineSegAILib.imaging import AIR, Preprocessing
from SpineSegAILib.methods.base import between_slices, context_offsets
from SpineSegAILib.training.augmentation import Augmenter
from SpineSegAILib.training.config import AugmentationConfig, DataConfig
from SpineSegAILib.training.data import SampleDataset, StepSampler, cache_case, cache_phantom

SCHEME = scheme("lumbar-mr")
PREPROCESSING = Preprocessing(pixel_mm=2.0)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    manifest = read_manifest(write_tiny_dataset(folder))
    return [cache_case(c, PREPROCESSING, SCHEME, folder / "cache") for c in manifest.cases("training")]


def dataset(cases, seed=7, **config):
    return SampleDataset(cases, SCHEME, DataConfig(patch=(96, 64), **config), seed, AIR)


def batch_of(data, indices, config=None, patch=(96, 64)):
    raw = default_collate([data[i] for i in indices])
    return Augmenter(patch, config, data.seed, AIR)(raw, torch.device("cpu"))


def test_bone_of_an_unknown_level_is_no_background(cases):
    known = copy(cases[0])
    known.sets = [(0,), (20, 21, VERTEBRA_ID), (DISC_ID, 120)]
    allowed, _ = known.tables(SCHEME)
    assert allowed[0].nonzero()[0].tolist() == [0]
    vertebrae = {SCHEME.channel_of[i] for i in SCHEME.of_kind(Kind.VERTEBRA, Kind.SACRUM)}
    assert set(allowed[1].nonzero()[0].tolist()) == vertebrae
    assert set(allowed[2].nonzero()[0].tolist()) == {SCHEME.channel_of[i] for i in SCHEME.of_kind(Kind.DISC)}


def test_a_sample_depends_on_seed_and_number_alone(cases):
    first, again, other = dataset(cases)[11], dataset(cases)[11], dataset(cases, seed=8)[11]
    assert torch.equal(first["image"], again["image"])
    assert torch.equal(first["codes"], again["codes"])
    assert not torch.equal(first["image"], other["image"])


def test_augmentation_is_repeatable_and_independent_of_the_batch(cases):
    data = dataset(cases)
    config = AugmentationConfig()
    together = batch_of(data, [3, 4, 5], config)
    alone = batch_of(data, [4], config)
    assert torch.allclose(together.image[1], alone.image[0])
    assert torch.equal(together.allowed[1], alone.allowed[0])


def test_without_augmentation_the_patch_is_the_window_s_centre(cases):
    data = dataset(cases)
    batch = batch_of(data, range(6))
    for i in range(6):
        window = data[i]["image"][0]
        top, left = ((n - m) // 2 for n, m in zip(window.shape, (96, 64), strict=True))
        middle = window[top : top + 96, left : left + 64]
        box = data[i]["box"]
        spare = np.array([96, 64]) - (box[:, 1] - box[:, 0]).numpy()
        if (spare < 0).all():
            assert torch.allclose(batch.image[i, 0], middle, atol=1e-4)


def test_with_every_change_off_nothing_is_changed(cases):
    """What a paper's own augmentation is set on top of; gray values beyond the percentiles are cut off."""
    data = dataset(cases)
    plain, off = batch_of(data, range(8)), batch_of(data, range(8), AugmentationConfig.none())
    assert torch.allclose(off.image, plain.image.clamp(-2, 2), atol=1e-5)
    assert torch.equal(off.allowed, plain.allowed) and torch.allclose(off.coordinates, plain.coordinates, atol=1e-6)
    shares = {name for name in AugmentationConfig.model_fields if name.endswith("_probability")} - {
        "rotation_probability"  # by 0°
    }
    assert not any(getattr(AugmentationConfig.none(), name) for name in shares)
    changes = {"level_probability": 1.0, "brightness": (1.2, 1.2), "offset": 0.0}
    brighter = AugmentationConfig.none().model_copy(update=changes)
    unit = (plain.image.clamp(-2, 2) + 2) / 4
    inside = plain.image > AIR
    assert torch.allclose(
        batch_of(data, range(8), brighter).image[inside], (unit * 1.2 * 4 - 2).clamp(max=3)[inside], atol=1e-4
    )


def test_levels_keep_their_ranks_through_augmentation(cases):
    batch = batch_of(dataset(cases), range(16), AugmentationConfig())
    for name, rank in (("L5", 0.0), ("L3", 2.0), ("T12", 5.0)):
        voxels = batch.label == SCHEME.channel_of[structure(name).id]
        assert voxels.any()
        assert (batch.rank[voxels] == rank).all()
    assert torch.isnan(batch.rank[batch.label <= 0]).all()


def test_coordinates_are_zero_at_the_centre_of_the_field_of_view(cases):
    data = dataset(cases)
    raw = default_collate([data[i] for i in range(12)])
    raw["image"][:] = 1.0  # so that only what is outside the field of view has the value of air
    plain = {"gamma_probability": 0, "contrast_probability": 0, "invert_probability": 0, "bias_probability": 0}
    config = AugmentationConfig(crop_probability=1.0, noise_probability=0, **plain)
    batch = Augmenter((96, 64), config, data.seed, AIR)(raw, torch.device("cpu"))
    checked = 0
    for image, coordinates in zip(batch.image[:, 0], batch.coordinates, strict=True):
        inside = image != AIR
        for axis in (0, 1):
            if inside.any(1 - axis)[[0, -1]].any():
                continue  # the field of view sticks out of the patch on this axis
            extent = coordinates[axis][inside]
            assert abs(extent.min() + extent.max()) <= 2.0 / 128  # one voxel
            checked += 1
    assert checked >= 4


def test_cropping_leaves_background_beyond_the_edge(cases):
    batch = batch_of(dataset(cases), range(12), AugmentationConfig(crop_probability=1.0, crop_top=0.6))
    outside = batch.image[:, 0] == AIR
    assert outside.float().mean() > 0.1
    assert (batch.label[outside] <= 0).all()


def test_intensities_stay_finite_whatever_is_drawn(cases):
    every = {name: 1.0 for name in AugmentationConfig.model_fields if name.endswith("_probability")}
    batch = batch_of(dataset(cases), range(40), AugmentationConfig(**every))
    assert torch.isfinite(batch.image).all()
    assert batch.image.abs().max() <= 3


def test_the_cache_is_used_and_renewed(tmp_path):
    manifest = read_manifest(write_tiny_dataset(tmp_path, training=1))
    (case,) = manifest.cases("training")
    first = cache_case(case, PREPROCESSING, SCHEME, tmp_path / "cache")
    again = cache_case(case, PREPROCESSING, SCHEME, tmp_path / "cache")
    other = cache_case(case, Preprocessing(pixel_mm=3.0), SCHEME, tmp_path / "cache")
    assert first.folder == again.folder != other.folder
    assert other.image.shape[1] < first.image.shape[1]


def test_phantoms_are_wholly_known(tmp_path):
    phantom = cache_phantom(0, 5, PREPROCESSING, SCHEME, tmp_path)
    allowed, _ = phantom.tables(SCHEME)
    certain = [len(s) == 1 for s in phantom.sets]
    assert all(certain)
    assert (allowed[: len(phantom.sets)].sum(1) >= 1).all()


def test_steps_are_shared_between_processes_without_overlap():
    whole = [i for step in StepSampler(2, 5, 8) for i in step]
    parts = [list(StepSampler(2, 5, 8, rank, 2)) for rank in (0, 1)]
    merged = [i for a, b in zip(*parts, strict=True) for i in (*a, *b)]
    assert merged == whole == list(range(16, 40))


def test_three_dimensional_samples(cases):
    config = DataConfig(patch=(8, 64, 64))
    data = SampleDataset(cases, SCHEME, config, 1, AIR)
    batch = batch_of(data, range(3), AugmentationConfig(), (8, 64, 64))
    assert batch.image.shape == (3, 1, 8, 64, 64)
    assert batch.coordinates.shape == (3, 3, 8, 64, 64)
    assert (batch.label > 0).any()


def test_an_empty_training_set_is_refused():
    with pytest.raises(DatasetError, match="no cases"):
        dataset([])


# --- neighboring slices ---------------------------------------------------------------------------------------------


def test_slices_between_slices():
    volume = np.arange(4, dtype=np.float32)[:, None, None] * np.ones((1, 2, 3), np.float32)
    found = between_slices(volume, np.array([1.0, 0.5, -2.0, 2.25, 9.0]))
    assert found[:, 0, 0].tolist() == [1.0, 0.5, 0.0, 2.25, 3.0]
    assert context_offsets((4.0, 8.0)).tolist() == [0.0, -4.0, 4.0, -8.0, 8.0]


def context_dataset(cases, **config):
    config = DataConfig(patch=(96, 64), blend_share=0.0, labelled_share=0.0, **config)
    return SampleDataset(cases, SCHEME, config, 7, AIR, context_mm=(4.0,))


def test_a_sample_shows_the_slices_beside_it(cases):
    with_neighbours, alone = context_dataset(cases, lone_share=0.0), context_dataset(cases, lone_share=1.0)
    plain = SampleDataset(cases, SCHEME, alone.config, 7, AIR)
    for index in range(6):
        item, lone = with_neighbours[index], alone[index]
        assert item["image"].shape[0] == item["codes"].shape[0] == 3
        assert torch.equal(lone["image"], lone["image"][:1].expand(3, -1, -1))  # as in a stack of one
        assert torch.equal(lone["codes"], lone["codes"][:1].expand(3, -1, -1))
        assert torch.equal(item["image"][:1], lone["image"][:1])
        assert torch.equal(item["codes"][:1], lone["codes"][:1])
        assert plain[index]["image"].shape[0] == 1
    assert any(
        not torch.equal(context_dataset(cases, lone_share=0.0)[i]["image"][1], alone[i]["image"][1]) for i in range(6)
    )


def test_a_slice_and_its_neighbours_are_changed_alike(cases):
    data = context_dataset(cases, lone_share=1.0)  # so that they are the same to begin with
    config = AugmentationConfig(synthesis_probability=0.5, noise_probability=0.0)
    image = batch_of(data, range(8), config).image
    assert image.shape[:2] == (8, 3)
    assert torch.allclose(image[:, 0], image[:, 1]) and torch.allclose(image[:, 0], image[:, 2])


def test_repainted_images_show_the_same_anatomy_in_another_look(cases):
    data = dataset(cases, labelled_share=1.0)
    plain = {name: 0.0 for name in AugmentationConfig.model_fields if name.endswith("_probability")}
    same = batch_of(data, range(12), AugmentationConfig(**plain))
    other = batch_of(data, range(12), AugmentationConfig(**{**plain, "synthesis_probability": 1.0}))
    assert torch.equal(same.allowed, other.allowed)
    vertebra = same.rank.frac() == 0  # NaN, where nothing is drawn, is none
    means = torch.stack([other.image[i, 0][vertebra[i]].mean() for i in range(12) if vertebra[i].any()])
    before = torch.stack([same.image[i, 0][vertebra[i]].mean() for i in range(12) if vertebra[i].any()])
    assert means.std() > 2 * before.std()  # each has a mean of its own
    air = same.image < -1.99
    assert (other.image[air] < same.image.max()).all() and other.image[air].mean() < other.image[~air].mean()
