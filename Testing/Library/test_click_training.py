"""Training what corrects by clicks: errors as they occur, a simulated reader, runs that go on where they stopped."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from tiny_data import VERTEBRAE, write_tiny_checkpoint, write_tiny_dataset

from SpineSegAILib.anatomy import Kind, scheme, structure
from SpineSegAILib.checkpoints import find_checkpoint, load_method, read_header
from SpineSegAILib.datasets.manifest import read_label, read_manifest
from SpineSegAILib.errors import ConfigError
from SpineSegAILib.imaging import Preprocessing
from SpineSegAILib.methods.base import Batch, coordinate_channels
from SpineSegAILib.methods.catalog import METHODS, build_method, make_config, method_info
from SpineSegAILib.methods.clicking import (
    ClickScene,
    click_kind,
    normalized,
    reach_mm,
    simulated_click,
    simulated_scribble,
)
from SpineSegAILib.training.clicks import ClickCase, ClickDataset, cached_errors, click_batch, degraded
from SpineSegAILib.training.config import DataConfig, OptimizationConfig, TrainingConfig
from SpineSegAILib.training.damage import DAMAGES, damaged, end_slices, merge
from SpineSegAILib.training.data import cache_case
from SpineSegAILib.training.request import TrainingRequest
from SpineSegAILib.training.run import RunDirectory
from SpineSegAILib.training.trainer import run_training

SPACING = (4.0, 1.0, 1.0)
WINDOW = (5, 32, 32)
PREPROCESSING = Preprocessing(pixel_mm=2.0)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    return write_tiny_dataset(tmp_path_factory.mktemp("clicks"), training=2)


@pytest.fixture(scope="module")
def cases(manifest) -> list[ClickCase]:
    cache, wanted = manifest.parent / "cache", scheme("lumbar-mr")
    return [
        ClickCase(cache_case(case, PREPROCESSING, wanted, cache)) for case in read_manifest(manifest).cases("training")
    ]


def a_body(shape=(9, 64, 64)) -> tuple[np.ndarray, np.ndarray]:
    """A box, and its neighbor below."""
    mask, others = np.zeros(shape, bool), np.zeros(shape, bool)
    mask[2:7, 20:36, 20:44] = True
    others[2:7, 38:50, 20:44] = True
    return mask, others


def a_scene(count: int = 2) -> tuple[ClickScene, torch.Tensor]:
    """A block of which the lower half is missing, with a click on it; and the whole block."""
    truth = torch.zeros(count, *WINDOW, dtype=torch.bool)
    truth[:, 1:4, 8:24, 8:24] = True
    mask = truth.clone()
    mask[:, :, 16:] = False
    image = truth.float() + 0.05 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))
    nothing = torch.zeros_like(image)
    points = torch.tensor([[[2.0, 20.0, 16.0]]]).expand(count, -1, -1).clone()
    scene = ClickScene(
        image, mask.float(), nothing, points, torch.ones(count, 1), torch.ones(count, dtype=torch.long),
        torch.full((count,), 30.0), torch.ones_like(truth),
    )  # fmt: skip
    return scene, truth


def batch_of(scene: ClickScene, truth: torch.Tensor) -> Batch:
    nothing = scene.image.new_zeros(len(truth), 0)
    return Batch(scene.image, torch.stack([~truth, truth], 1), nothing, nothing, prompt=scene)


# --- damage and clicks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_every_damage_changes_the_mask_and_is_repeatable(damage):
    mask, others = a_body()
    found = [damage(mask, others, SPACING, np.random.default_rng(n)) for n in (0, 1, 2, 0)]
    assert all(f.shape == mask.shape and f.dtype == bool for f in found)
    assert sum((f != mask).sum() for f in found) > 0
    assert np.array_equal(found[0], found[3])
    assert np.array_equal(mask, a_body()[0])  # it is no argument's business


def test_what_a_mask_takes_its_neighbors_lose():
    mask, others = a_body()
    for seed in range(30):
        found, left = damaged(mask, others, SPACING, np.random.default_rng(seed))
        assert not (found & left).any() and not (left & ~others).any()


def test_ends_and_merged_neighbors_are_what_they_are_called():
    mask, others = a_body()
    for seed in range(12):
        found = end_slices(mask, others, SPACING, np.random.default_rng(seed))
        for before, after in zip(mask, found, strict=True):
            assert not after.any() or np.array_equal(after, before) or not before.any()
        merged = merge(mask, others, SPACING, np.random.default_rng(seed))
        assert (merged & others).any() and not (merged & ~mask & ~others).any()


def test_a_careful_reader_clicks_in_the_middle_of_the_largest_error():
    missing, extra = np.zeros((5, 40, 40), bool), np.zeros((5, 40, 40), bool)
    missing[1:4, 4:17, 6:19] = True
    extra[2, 30:33, 30:33] = True
    point, sign = simulated_click(missing, extra, SPACING, np.random.default_rng(0), careful=True)
    assert sign == 1 and np.abs(point - [2, 10, 12]).max() <= 2
    assert simulated_click(missing & False, extra & False, SPACING, np.random.default_rng(0)) is None


def test_careless_clicks_lie_mostly_in_an_error_and_seldom_a_little_beside():
    missing, extra = np.zeros((5, 40, 40), bool), np.zeros((5, 40, 40), bool)
    missing[1:4, 4:17, 6:19] = True
    extra[2, 30:36, 30:36] = True
    away = {1: ndimage.distance_transform_edt(~missing, sampling=SPACING)}
    away[-1] = ndimage.distance_transform_edt(~extra, sampling=SPACING)
    rng = np.random.default_rng(3)
    clicks = [simulated_click(missing, extra, SPACING, rng) for _ in range(200)]
    off = np.array([away[sign][tuple(point.astype(int))] for point, sign in clicks])
    assert off.max() <= 3 and 0 < (off > 0).mean() < 0.15
    assert 0.05 < np.mean([sign < 0 for _, sign in clicks]) < 0.5  # not always the largest
    assert len({tuple(point) for point, _ in clicks}) > 60


def test_a_scribble_stays_in_its_error():
    wrong = np.zeros((3, 40, 40), bool)
    wrong[1, 5:30, 10:14] = True
    wrong[1, 5:9, 10:35] = True
    for seed in range(20):
        stroke = simulated_scribble(wrong, np.array([1.0, 7, 11]), SPACING, np.random.default_rng(seed))
        assert 1 <= len(stroke) <= 12 and (stroke[0] == [1, 7, 11]).all()
        assert all(wrong[tuple(point.astype(int))] for point in stroke)


# --- the network -----------------------------------------------------------------------------------------------------


def test_it_is_in_the_catalogue_for_correction_alone():
    assert method_info("click-refine").group == "correction" and not METHODS["click-refine"].offered
    method = build_method(make_config("click-refine", "tiny"))
    with pytest.raises(ConfigError, match="does not segment by itself"):
        method.evidence(torch.zeros(1, 1, 8, 8), None)
    with pytest.raises(ConfigError, match="takes no clicks"):
        build_method(make_config("resenc-unet", "tiny")).refined(a_scene()[0])
    for preset in ("paper", "slices"):
        method = build_method(make_config("click-refine", preset))
        assert sum(p.numel() for p in method.parameters()) * 2 < 5e6  # float16


RESENC = {"backbone": "resenc", "widths": (6, 8, 12), "blocks": (1, 1, 2)}
both = pytest.mark.parametrize("network", [{}, RESENC], ids=["unet", "resenc"])


@both
def test_an_untrained_one_changes_nothing_and_a_trained_one_nothing_far_from_the_clicks(network):
    torch.manual_seed(0)
    method = build_method(make_config("click-refine", "tiny", **network)).eval()
    scene, _ = a_scene()
    with torch.inference_mode():
        assert ((method.refined(scene) > 0.5) == (scene.mask > 0.5)).all()
        torch.nn.init.normal_(method.network.head.weight, std=50.0)
        scene.reach[:] = 8.0
        found = method.refined(scene)
    z, y, x = torch.meshgrid(*(torch.arange(n) for n in WINDOW), indexing="ij")
    far = ((z - 2) * 4.0) ** 2 + (y - 20.0) ** 2 + (x - 16.0) ** 2 >= 64
    assert (found[:, far] == scene.mask[:, far]).all() and (found != scene.mask).any()


def test_it_starts_as_the_default_network_on_each_slice_and_its_neighbors():
    torch.manual_seed(0)
    shape = {"widths": (6, 8, 12, 14), "blocks": (1, 1, 2, 1)}  # one resolution more than is taken
    teacher = build_method(make_config("resenc-unet", "tiny", context_mm=(4.0,), **shape)).eval()
    mine = build_method(make_config("click-refine", "tiny", **RESENC)).eval()
    fitting = mine.remap_weights(teacher.state_dict())
    taken = {k: v for k, v in fitting.items() if k in mine.state_dict()}
    assert set(taken) == {k for k in mine.state_dict() if k.startswith("network.network.")}
    mine.load_state_dict({**mine.state_dict(), **taken})
    seen = {}
    mine.network.encoder_mix[-1].register_forward_hook(lambda module, inputs, output: seen.update(deep=output))
    scene, _ = a_scene(1)
    with torch.inference_mode():
        mine(scene)
        image = 2 * normalized(scene.image, scene.inside)[0]
        around = torch.stack([image, image[[0, *range(4)]], image[[*range(1, 5), 4]]], 1)
        place = coordinate_channels(WINDOW[1:], (1.0, 1.0)).expand(len(image), -1, -1, -1)
        told = teacher.network.encode(torch.cat([around, place], 1))[2]
    assert torch.allclose(seen["deep"], told, atol=1e-5)


def test_slices_of_a_scene_learn_from_their_neighbors():
    torch.manual_seed(0)
    method = build_method(make_config("click-refine", "tiny", **RESENC)).eval()
    torch.nn.init.normal_(method.network.head.weight)
    scene, _ = a_scene(1)

    def far_slice_changes() -> bool:
        """Whether what is drawn in the first slice says anything about the last but one."""
        other = replace(scene, mask=scene.mask.clone())
        other.mask[:, 0] = 1 - other.mask[:, 0]
        with torch.inference_mode():
            return bool((method(scene)[:, 3] != method(other)[:, 3]).any())

    assert not far_slice_changes()
    for mix in (*method.network.encoder_mix, *method.network.decoder_mix):
        torch.nn.init.normal_(mix.say.weight)
    assert far_slice_changes()


@both
def test_it_learns_to_fill_in_what_is_clicked_on(network):
    torch.manual_seed(0)
    method = build_method(make_config("click-refine", "tiny", rounds=2, **network))
    optimizer = torch.optim.AdamW(method.parameters(), 2e-2)
    scene, truth = a_scene()
    for _ in range(60):
        optimizer.zero_grad()
        method.training_losses(batch_of(scene, truth))["total"].backward()
        optimizer.step()
    method.eval()
    with torch.inference_mode():
        found = method.refined(scene) > 0.5
    dice = 2 * (found & truth).sum() / (found.sum() + truth.sum())
    assert dice > 0.95  # of 0.67


def test_where_nothing_is_known_nothing_is_learned():
    torch.manual_seed(0)
    method = build_method(make_config("click-refine", "tiny", rounds=1)).eval()
    scene, truth = a_scene(1)
    batch = batch_of(scene, truth)
    allowed = batch.allowed.clone()
    allowed[:, :, 2] = True  # the middle slice may be anything
    losses = []
    for answer in (truth, ~truth):
        changed = allowed.clone()
        changed[:, :, 2] = True
        batch = Batch(scene.image, changed, batch.rank, batch.coordinates, prompt=scene)
        losses.append(float(method.training_losses(batch)["total"]))
        assert not batch.known[:, 1, 2].any(), answer
    assert losses[0] == losses[1]


def test_a_scene_is_normalized_by_itself():
    image = torch.rand(1, 3, 16, 16) * 900 + 100
    inside = torch.ones_like(image, dtype=torch.bool)
    inside[..., :4] = False
    plain, other = normalized(image, inside), normalized(image * 7 - 50, inside)
    assert torch.allclose(plain, other, atol=1e-3) and (plain[~inside] == -1).all()
    assert plain.abs().max() <= 1.5


def test_reach_grows_with_the_structure_and_kinds_are_told():
    assert reach_mm(1000) < reach_mm(12_000) < reach_mm(40_000) < 50
    assert reach_mm(0) > 25
    names = {click_kind(structure(name).id) for name in ("L4", "L4/L5", "canal", "S1")}
    assert len(names) == 4 and 0 not in names


# --- samples ---------------------------------------------------------------------------------------------------------


def test_only_what_is_annotated_is_corrected(cases):
    names = {place.structure.name for case in cases for place in case.places}
    assert names == set(VERTEBRAE)  # discs, canal and S1 are in the images, and nobody drew them
    assert all(case.choose(np.random.default_rng(0)).structure.kind is Kind.VERTEBRA for case in cases)


def test_samples_are_errors_with_a_click_on_them_and_repeatable(cases):
    data = ClickDataset(cases, WINDOW, (4.0, 2.0, 2.0), DataConfig(patch=WINDOW), 5)
    items = [data[n] for n in range(30)]
    again = data[3]
    assert all(torch.equal(torch.as_tensor(items[3][k]), torch.as_tensor(again[k])) for k in again)
    wrong = 0
    for item in items:
        truth, mask, known = item["truth"], item["mask"] > 0, item["known"]
        assert item["image"].shape == truth.shape == torch.Size(WINDOW)
        assert not ((item["others"] > 0) & mask).any() and not (known & ~item["inside"]).any()
        count = int((item["signs"] != 0).sum())
        assert count >= 1 and abs(float(item["signs"].sum())) == count  # a scribble is of one sign
        at = item["points"][:count]
        assert (at >= 0).all() and (at <= torch.tensor(WINDOW) - 1).all()
        wrong += bool((truth != mask).any())
    assert wrong >= 25


def test_a_degraded_copy_is_worse_and_lies_where_it_lay(manifest):
    from SpineSegAILib.imaging import Geometry, read_image

    image = read_image(read_manifest(manifest).cases("training")[0].image)
    worse = degraded(image, np.random.default_rng(0))
    assert Geometry.of(worse) == Geometry.of(image)
    assert worse.GetPixelIDTypeAsString() == "32-bit float"


def test_mistakes_of_other_checkpoints_are_found_once(manifest, cases, tmp_path):
    case = read_manifest(manifest).cases("training")[0]
    asked = []

    def find(name, image):
        asked.append(name)
        return read_label(case)

    for _ in range(2):
        found = cached_errors(case, cases[0].cached, PREPROCESSING, {"a": "1", "b": "2"}, tmp_path, find)
    assert len(asked) == 4 and len(found) == 4  # two checkpoints, the image and its copy
    with np.load(found[0]) as stored:
        assert stored["labels"].shape == cases[0].cached.image.shape and stored["labels"].any()
    data = ClickDataset(
        [ClickCase(cases[0].cached, found)], WINDOW, (4.0, 2.0, 2.0), DataConfig(patch=WINDOW), 5, vary=False
    )
    assert data[0]["mask"].any()


# --- runs ------------------------------------------------------------------------------------------------------------


def config_for(manifest: Path, steps: int, **data) -> TrainingConfig:
    method = make_config("click-refine", "tiny", pixel_mm=2.0)
    return TrainingConfig(
        name="Tiny clicks",
        method=method.model_dump(mode="json"),
        dataset=str(manifest),
        preprocessing=PREPROCESSING,
        data=DataConfig(patch=WINDOW, **data),
        optimization=OptimizationConfig(steps=steps, batch=2, validate_every=4, save_every=2, workers=0, warmup=1),
    )


def test_a_run_learns_validates_and_goes_on_where_it_stopped(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr("SpineSegAILib.training.clicks._VALIDATED", 3)
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    write_tiny_checkpoint(folder / "tiny.safetensors")
    monkeypatch.setenv("SPINESEGAI_CHECKPOINTS", str(folder))
    config = config_for(manifest, 6, mistakes_of=("tiny",))
    cache = tmp_path / "cache"
    whole = run_training(TrainingRequest(config, tmp_path / "whole", device="cpu", cache=cache))
    kept = sorted((cache / "mistakes").iterdir())
    assert len(kept) == 2 * 3  # two cases to learn from, one to validate
    scores = [e["scores"] for e in whole.events() if e["event"] == "validation"]
    assert {"dice_before", "dice_after_1", "dice_after_3", "dice_after_5"} <= set(scores[-1])
    info = read_header(whole.best)
    assert info.method == "click-refine" and set(info.metadata["validation"]) == set(scores[-1])
    load_method(info)

    stopped = RunDirectory(tmp_path / "stopped")

    def stop(event: dict) -> None:
        if event["event"] == "validation":
            stopped.request_stop()

    run_training(TrainingRequest(config, stopped.folder, device="cpu", cache=cache, report=stop))
    assert stopped.status()["state"] == "stopped"
    run_training(TrainingRequest(None, stopped.folder, resume=True, device="cpu", cache=cache))
    ours, theirs = (load_method(read_header(run.last)).state_dict() for run in (stopped, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert find_checkpoint(whole.last).metadata["patch"] == list(WINDOW)


def test_a_batch_travels_with_its_scenes(cases):
    from torch.utils.data import default_collate

    data = ClickDataset(cases, WINDOW, (4.0, 2.0, 2.0), DataConfig(patch=WINDOW), 5)
    batch = click_batch(default_collate([data[0], data[1]]), torch.device("cpu"))
    part = batch.each(lambda tensor: tensor[:1])
    assert len(part.prompt.mask) == len(part.image) == 1 and len(batch.prompt.mask) == 2
