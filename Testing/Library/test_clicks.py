"""Corrections by clicks: what follows a click, and what never does."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from tiny_data import write_tiny_checkpoint

from SpineSegAILib import Click, refine
from SpineSegAILib.anatomy import custom_structure, scheme, structure
from SpineSegAILib.checkpoints import save_checkpoint
from SpineSegAILib.cli import main
from SpineSegAILib.correction import apply_correction, click_correction, load_click_method
from SpineSegAILib.correction.clicks import LEAST_MM, MOST_FURTHER, MOST_SCENES
from SpineSegAILib.errors import CheckpointError, CorrectionError
from SpineSegAILib.imaging import Geometry
from SpineSegAILib.imaging.tags import DIRECTION_TAG
from SpineSegAILib.methods.catalog import build_method, make_config
from SpineSegAILib.methods.clicking import SceneGrid, gate, reach_mm
from SpineSegAILib.results import Segmentation, read_segmentation
from SpineSegAILib.worker.process import Worker
from SpineSegAILib.worker.protocol import EVENT, ClickMessage, RefineRequest, save_image

L3, L4, DISC, CANAL = (structure(name).id for name in ("L3", "L4", "L3/L4", "canal"))


class Seer:
    """Knows what belongs to the structure: all that is bright. It answers as far as clicks reach, like the network."""

    scenes = SceneGrid((7, 48, 48), (4.0, 1.0, 1.0))

    def __init__(self) -> None:
        self.shown: list = []

    def refined(self, scene):
        self.shown.append(scene)
        bright = (scene.image > 500).float()
        return scene.mask + gate(scene, self.scenes.spacing) * (bright - scene.mask)


class Blind(Seer):
    """Changes nothing."""

    def refined(self, scene):
        return scene.mask


def a_case(spacing=(1.0, 1.0, 4.0), direction=None) -> tuple[sitk.Image, sitk.Image, np.ndarray]:
    """A bright block of which the lower half is drawn as L3, L4 below it, the canal far off; and the block."""
    size = [round(n / mm) for n, mm in zip((90, 80, 48), spacing, strict=True)]
    z, y, x = (np.arange(n) * mm for n, mm in zip(size[::-1], spacing[::-1], strict=True))
    block = (
        ((z > 10) & (z < 34))[:, None, None] & ((y > 20) & (y < 44))[None, :, None] & ((x > 20) & (x < 50))[None, None]
    )
    labels = np.where(block & (y >= 32)[None, :, None], L3, 0).astype(np.int16)
    labels[np.ix_((z > 10) & (z < 34), (y > 48) & (y < 70), (x > 20) & (x < 50))] = L4
    labels[np.ix_((z > 10) & (z < 34), (y > 4) & (y < 76), (x > 74) & (x < 86))] = CANAL
    image, label = (sitk.GetImageFromArray(a) for a in (1000.0 * block.astype(np.float32), labels))
    for made in (image, label):
        made.SetSpacing(spacing)
        made.SetOrigin((-20.0, 30.0, 7.0))
        # Slices from right to left, rows downwards, columns backwards: a sagittal stack.
        made.SetDirection(direction or (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0))
    return image, label, block


def at(label: sitk.Image, x: float, y: float, z: float) -> tuple[float, float, float]:
    """Point of a place in mm along the array's axes."""
    mm = label.GetSpacing()
    return label.TransformContinuousIndexToPhysicalPoint([x / mm[0], y / mm[1], z / mm[2]])


def after(label: sitk.Image, correction) -> np.ndarray:
    return correction.apply(sitk.GetArrayFromImage(label))


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    return 2 * (found & truth).sum() / (found.sum() + truth.sum())


@pytest.mark.parametrize(
    ("spacing", "least"),  # fine slices end between those that are looked at
    [((1.0, 1.0, 4.0), 0.97), ((0.6, 0.6, 1.0), 0.92), ((1.3, 1.3, 5.0), 0.97), ((2.0, 2.0, 2.0), 0.94)],
)
def test_a_structure_follows_a_click_whatever_the_spacing(spacing, least):
    image, label, block = a_case(spacing)
    assert dice(sitk.GetArrayFromImage(label) == L3, block) < 0.75
    correction = click_correction(image, label, [Click(L3, at(label, 35, 26, 22))], Seer())
    found = after(label, correction)
    assert dice(found == L3, block) > least
    before = sitk.GetArrayFromImage(label)
    assert np.array_equal(found == L4, before == L4) and np.array_equal(found == CANAL, before == CANAL)
    assert correction.tool == "click" and correction.words == "Correct L3 by 1 click" and correction.structures == (L3,)
    assert np.array_equal(correction.undo(before).apply(found), before)


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0), (0, 2, 1)])
def test_axial_and_turned_images_give_the_same(order):
    image, label, _ = a_case((1.0, 1.0, 1.0))
    plain = after(label, click_correction(image, label, [Click(L3, at(label, 35, 26, 22))], Seer()))
    point = at(label, 35, 26, 22)
    turned_image, turned = (sitk.PermuteAxes(i, order)[::-1] for i in (image, label))
    found = turned.__copy__()
    result = after(turned, click_correction(turned_image, turned, [Click(L3, point)], Seer()))
    found = sitk.GetImageFromArray(result)
    found.CopyInformation(turned)
    back = sitk.Resample(found, label, sitk.Transform(), sitk.sitkNearestNeighbor)
    assert (sitk.GetArrayFromImage(back) == plain).mean() > 0.9995


def test_what_is_far_from_a_click_stays():
    image, label, _ = a_case()
    before = sitk.GetArrayFromImage(label)
    bright = image + 1000.0  # the seer takes everything it may
    point = at(label, 35, 26, 22)
    found = after(label, click_correction(bright, label, [Click(L3, point)], Seer()))
    index = np.argwhere(found != before)
    away = np.linalg.norm(
        [np.subtract(label.TransformIndexToPhysicalPoint([int(i) for i in v[::-1]]), point) for v in index], axis=1
    )
    volume = float((before == L3).sum() * 4)
    assert 5 < away.max() <= reach_mm(volume)


def test_a_change_that_does_not_come_near_a_click_is_not_made():
    image, label, block = a_case()
    array = sitk.GetArrayFromImage(image)
    array[3:8, 54:58, 30:40] = 1000.0  # bright too, apart from the block, within reach
    speckled = sitk.GetImageFromArray(array)
    speckled.CopyInformation(image)
    found = after(label, click_correction(speckled, label, [Click(L3, at(label, 35, 26, 22))], Seer()))
    assert not (found[3:8, 54:58, 30:40] == L3).any() and dice(found == L3, block) > 0.95


def test_locked_structures_keep_every_voxel_and_others_give_way():
    image, label, block = a_case()
    before = sitk.GetArrayFromImage(label)
    before[:, :26] = np.where(block[:, :26], DISC, before[:, :26])
    taken = sitk.GetImageFromArray(before)
    taken.CopyInformation(label)
    clicks = [Click(L3, at(label, 35, 29, 22))]
    locked = after(taken, click_correction(image, taken, clicks, Seer(), locked=[DISC]))
    assert np.array_equal(locked == DISC, before == DISC) and (locked == L3).sum() > (before == L3).sum()
    free = after(taken, click_correction(image, taken, clicks, Seer()))
    assert not (free == DISC).any() and dice(free == L3, block) > 0.97  # one label a voxel: nothing overlaps
    with pytest.raises(CorrectionError, match="L3 is locked"):
        click_correction(image, taken, clicks, Seer(), locked=[L3])
    with pytest.raises(CorrectionError, match="lies on L3/L4, which is locked"):
        click_correction(image, taken, [Click(L3, at(label, 35, 24, 22))], Seer(), locked=[DISC])


def test_what_should_not_be_there_goes():
    image, label, _ = a_case()
    before = sitk.GetArrayFromImage(label)
    before[4:7, 44:47, 25:45] = L3
    leaky = sitk.GetImageFromArray(before)
    leaky.CopyInformation(label)
    found = after(leaky, click_correction(image, leaky, [Click(L3, at(label, 35, 45, 22), add=False)], Seer()))
    assert not (found[4:7, 44:47, 25:45] == L3).any() and (found == L4).sum() == (before == L4).sum()


def test_a_click_on_nothing_starts_the_structure():
    image, label, block = a_case()
    before = sitk.GetArrayFromImage(label)
    before[before == L3] = 0
    empty = sitk.GetImageFromArray(before)
    empty.CopyInformation(label)
    found = after(empty, click_correction(image, empty, [Click(L3, at(label, 35, 32, 22))], Seer()))
    assert dice(found == L3, block) > 0.95
    result = refine_with(Seer(), image, None, [Click(L3, at(label, 35, 32, 22))])
    assert result.present == [L3] or set(result.present) == {L3}
    own = custom_structure("my own", 300).id
    found = after(label, click_correction(image, label, [Click(own, at(label, 35, 26, 22))], Seer()))
    assert (found == own).sum() > 500


def a_canal(bends: float = 0.0) -> tuple[sitk.Image, np.ndarray]:
    """A bright canal of 240 mm in a sagittal stack, and where it is."""
    z, y, x = np.ogrid[:7, :260, :120]
    canal = (z > 1) & (z < 5) & (y >= 10) & (y < 250) & (abs(x - 60 - bends * np.sin(y / 40)) < 6)
    image = sitk.GetImageFromArray(1000.0 * canal.astype(np.float32))
    image.SetSpacing((1.0, 1.0, 4.0))
    image.SetDirection((0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0))
    return image, canal


@pytest.mark.parametrize("bends", [0.0, 15.0])
def test_one_click_starts_the_whole_of_a_long_structure(bends):
    image, canal = a_canal(bends)
    label = sitk.Cast(image * 0, sitk.sitkInt16)
    low = at(label, 60 + bends * np.sin(60 / 40), 60, 12)
    found = after(label, click_correction(image, label, [Click(CANAL, low)], Seer()))
    assert dice(found == CANAL, canal) > 0.95
    body = after(label, click_correction(image, label, [Click(L3, low)], Seer()))
    assert np.ptp(np.argwhere(body == L3)[:, 1]) < 100  # no vertebra is as long as that


def test_what_is_followed_on_takes_from_no_other_structure_and_not_what_was_forbidden():
    image, canal = a_canal()
    before = np.where(canal & (np.arange(260) >= 180)[:, None], DISC, 0).astype(np.int16)
    label = sitk.GetImageFromArray(before)
    label.CopyInformation(image)
    clicks = [Click(CANAL, at(label, 60, 60, 12))]
    found = after(label, click_correction(image, label, clicks, Seer()))
    assert np.array_equal(found == DISC, before == DISC)
    assert dice(found == CANAL, canal & (before == 0)) > 0.95
    nearly_all = np.where(canal & (np.arange(260) < 200)[:, None], CANAL, 0).astype(np.int16)
    label = sitk.GetImageFromArray(nearly_all)
    label.CopyInformation(image)
    walled = np.where(canal & (np.arange(260) >= 100)[:, None] & (np.arange(260) < 105)[:, None], DISC, 0)
    wall = labels_like(image, walled.astype(np.int16))
    beyond = after(wall, click_correction(image, wall, clicks, Seer())) == CANAL
    assert beyond[:, 80].any() and not beyond[:, 106:].any()  # it does not leap over another structure
    leaky = click_correction(image, label, [Click(CANAL, at(label, 60, 150, 12), add=False)], Seer())
    gone = (nearly_all == CANAL) & (after(label, leaky) != CANAL)
    assert np.ptp(np.argwhere(gone)[:, 1]) < 100 or not gone.any()  # what is removed is not followed on


def labels_like(image: sitk.Image, array: np.ndarray) -> sitk.Image:
    label = sitk.GetImageFromArray(array)
    label.CopyInformation(image)
    return label


def test_what_is_removed_lets_nothing_grow():
    image, canal = a_canal()
    half = np.where(canal & (np.arange(260) < 130)[:, None], CANAL, 0).astype(np.int16)
    half[2:5, 112:130, 66:80] = CANAL  # a leak beside it, at its open end
    label = labels_like(image, half)
    found = after(label, click_correction(image, label, [Click(CANAL, at(label, 76, 122, 12), add=False)], Seer()))
    assert not (found == CANAL)[:, 180:].any() and not (found == CANAL)[2:5, 112:130, 70:80].any()


@pytest.mark.parametrize("order", [1, -1])
def test_clicks_of_one_time_hold_whatever_their_order_and_distance(order):
    image, _ = a_canal()
    label = sitk.Cast(image * 0, sitk.sitkInt16)
    there, not_there = at(label, 60, 60, 12), at(label, 60, 200, 12)
    label = labels_like(image, np.where(sitk.GetArrayFromImage(image) > 500, CANAL, 0).astype(np.int16))
    label[60:61, 195:206, 3:4] = CANAL
    clicks = [Click(CANAL, there), Click(CANAL, not_there, add=False)][::order]
    start = labels_like(
        image, np.where(np.arange(260)[:, None] > 180, sitk.GetArrayFromImage(label), 0).astype(np.int16)
    )
    found = labels_like(image, after(start, click_correction(image, start, clicks, Seer())))
    value = lambda point: found[found.TransformPhysicalPointToIndex(point)]  # noqa: E731
    assert value(there) == CANAL and value(not_there) == 0


def test_a_file_that_does_not_tell_how_it_lies_is_seen_as_it_was_found_to_lie():
    image, label, _ = a_case()
    method = Seer()
    told = click_correction(image, label, [Click(L3, at(label, 35, 26, 22))], method)
    untold = []
    for made in (image, label):
        bare = sitk.Image(made)
        bare.SetDirection(np.eye(3).ravel().tolist())
        bare.SetMetaData(DIRECTION_TAG, " ".join(map(str, made.GetDirection())))
        untold.append(bare)
    click = Click(L3, at(untold[1], 35, 26, 22))
    assert np.array_equal(after(untold[1], click_correction(*untold, [click], method)), after(label, told))
    assert torch.equal(method.shown[0].image, method.shown[1].image)


def test_a_long_structure_is_followed_by_bounded_work():
    image, _ = a_canal()
    label = sitk.Cast(image * 0, sitk.sitkInt16)
    method = Seer()
    click_correction(image + 1000.0, label, [Click(CANAL, at(label, 60, 60, 12))], method)  # bright everywhere
    assert len(method.shown) <= 1 + MOST_FURTHER


def refine_with(method, image, segmentation, clicks, **options):
    """`refine` with a method that is no checkpoint's."""
    from SpineSegAILib.correction import clicks as room

    kept = room.load_click_method
    room.load_click_method = lambda checkpoint: method
    try:
        return refine(image, segmentation, clicks, **options)
    finally:
        room.load_click_method = kept


def test_a_click_always_does_something_and_no_more_than_it_must():
    image, label, _ = a_case()
    before = sitk.GetArrayFromImage(label)
    added = after(label, click_correction(image, label, [Click(L3, at(label, 60, 60, 22))], Blind()))
    assert 1 <= ((added == L3) & (before != L3)).sum() <= (2 * LEAST_MM + 1) ** 3
    removed = after(label, click_correction(image, label, [Click(L3, at(label, 35, 38, 22), add=False)], Blind()))
    assert (removed == L3).sum() < (before == L3).sum() and not (removed[~(before == L3)] == L3).any()
    nothing = click_correction(image, label, [Click(L3, at(label, 35, 38, 22))], Blind())
    assert nothing.patch is None  # it is there already


def test_clicks_on_several_slices_are_taken_together():
    image, label, _ = a_case()
    seer = Seer()
    clicks = [Click(L3, at(label, 35, 26, z)) for z in (16, 20, 24)] + [Click(L3, at(label, 35, 38, 20), add=False)]
    click_correction(image, label, clicks, seer)
    assert len(seer.shown) == 1 and sorted(seer.shown[0].signs[0].tolist()) == [-1, 1, 1, 1]
    seer = Seer()
    both = [Click(L3, at(label, 35, 26, 20)), Click(CANAL, at(label, 80, 60, 20))]
    correction = click_correction(image, label, both, seer)
    assert len(seer.shown) == 2 and correction.structures == (L3, CANAL) and "L3, canal by 2 clicks" in correction.words


def test_earlier_clicks_are_shown_and_nothing_changes_for_their_sake():
    image, label, _ = a_case()
    seer = Seer()
    new, old = Click(L3, at(label, 35, 28, 22)), Click(L3, at(label, 40, 30, 22))
    click_correction(image, label, [new], seer, earlier=[old, replace(new, add=False)])
    assert seer.shown[0].signs[0].tolist() == [1, 1]  # what the new one contradicts is forgotten
    far = Click(L3, at(label, 35, 33, 22))
    found = click_correction(image, label, [Click(L3, at(label, 85, 10, 40))], Blind(), earlier=[far])
    assert found.patch is None or found.patch.labels.size < 200


@pytest.mark.parametrize("count", [3000])
def test_thousands_of_clicks_take_bounded_work(count):
    image, label, _ = a_case()
    rng = np.random.default_rng(0)
    places = [at(label, *p) for p in rng.uniform((22, 24, 14), (48, 42, 30), (count, 3))]
    seer = Seer()
    click_correction(image, label, [Click(L3, p) for p in places], seer)
    assert len(seer.shown) <= 12 and all(s.points.shape[1] <= 96 for s in seer.shown)
    wide = sitk.Image(900, 900, 3, sitk.sitkInt16)
    gray = sitk.Cast(wide, sitk.sitkFloat32)
    with pytest.raises(CorrectionError, match="too many places"):
        spread = [Click(L3, (20.0 * i, 20.0 * j, 1.0)) for i in range(44) for j in range(44)]
        click_correction(gray, wide, spread, seer)
    assert len(seer.shown) <= 12 + MOST_SCENES


def test_what_cannot_be_followed_is_refused_in_a_sentence():
    image, label, _ = a_case()
    good = at(label, 35, 26, 22)

    def refused(clicks, words, **changed):
        with pytest.raises(CorrectionError, match=words) as caught:
            click_correction(changed.get("image", image), label, clicks, Seer())
        assert caught.value.remedy

    refused([], "no clicks")
    refused([Click(L3, (1e4, 0.0, 0.0))], "outside of the image")
    refused([Click(L3, (float("nan"), 0.0, 0.0))], "outside of the image")
    refused([Click(L3, (1e300, 0.0, 0.0))], "outside of the image")
    refused([Click(L3, good), Click(L3, good, add=False)], "L3 is to be added and removed at the same point")
    refused([Click(L3, good), Click(L4, good)], "L3 and L4 cannot both be at the same point")
    refused([Click(DISC, good, add=False)], "L3/L4 is not labeled")
    refused([Click(L3, good)], "does not lie on the voxels", image=image[:, :, 1:])
    color = sitk.Compose([image] * 3)
    refused([Click(L3, good)], "in color", image=color)


def test_not_a_number_and_single_slices_are_no_trouble():
    image, label, _ = a_case()
    array = sitk.GetArrayFromImage(image)
    array[5, 40:42, 20:24] = np.nan
    holed = sitk.GetImageFromArray(array)
    holed.CopyInformation(image)
    found = after(label, click_correction(holed, label, [Click(L3, at(label, 35, 26, 22))], Seer()))
    assert (found == L3).any()
    plane, drawn = image[:, :, 5:6], label[:, :, 5:6]
    point = drawn.TransformIndexToPhysicalPoint((35, 26, 0))
    found = after(drawn, click_correction(plane, drawn, [Click(L3, point)], Seer()))
    assert (found[0, 22:31, 24:46] == L3).all()


# --- checkpoints, the shell, the worker ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An untrained network for clicks, which follows them no farther than it must."""
    torch.manual_seed(0)
    config = make_config("click-refine", "tiny")
    path = tmp_path_factory.mktemp("clicks") / "click-refine.safetensors"
    save_checkpoint(path, build_method(config).state_dict(), {"method": config.model_dump(mode="json")})
    return path


def test_a_checkpoint_must_be_there_and_take_clicks(checkpoint, tmp_path, monkeypatch):
    assert load_click_method(str(checkpoint)).scenes.shape == (5, 32, 32)
    with pytest.raises(CheckpointError, match="takes no clicks"):
        load_click_method(str(write_tiny_checkpoint(tmp_path / "tiny.safetensors")))
    with pytest.raises(CheckpointError, match="no checkpoint named “nobody”"):
        load_click_method("nobody")


def test_the_result_is_a_correction_like_any_other(checkpoint):
    image, label, _ = a_case()
    before = Segmentation(label, scheme("lumbar-mr"), outline_quality={L3: 0.9, L4: 0.8})
    result = refine(image, before, [Click(L3, at(label, 60, 60, 22))], checkpoint=str(checkpoint))
    assert result.outline_quality == {L4: 0.8}  # that of a redrawn outline is unknown
    assert result.corrections.entries[-1].tool == "click"
    assert Geometry.of(result.labels) == Geometry.of(label) and before.corrections is None


@pytest.fixture
def files(tmp_path, checkpoint):
    image, label, _ = a_case()
    image = sitk.AdditiveGaussianNoise(image, 40.0, 500.0, 1)  # else it would be taken for a label map
    sitk.WriteImage(image, str(tmp_path / "image.nii.gz"))
    Segmentation(label, scheme("lumbar-mr")).write(tmp_path / "drawn.nii.gz")
    point = ",".join(f"{x:g}" for x in at(label, 60, 60, 20))
    return SimpleNamespace(folder=tmp_path, point=point, label=label)


def shell(files, checkpoint, *arguments) -> int:
    inputs = [str(files.folder / name) for name in ("drawn.nii.gz", "image.nii.gz")]
    output = ["--output", str(files.folder / "out.nii.gz"), "--checkpoint", str(checkpoint)]
    return main(["refine", *inputs, *output, *arguments])


def test_the_shell_follows_clicks(files, checkpoint, capsys):
    assert shell(files, checkpoint, "--add", f"L3@{files.point}", "--json", "-") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["written"][0].endswith("out.nii.gz")
    found = read_segmentation(files.folder / "out.nii.gz")
    before = sitk.GetArrayFromImage(files.label)
    assert (sitk.GetArrayFromImage(found.labels) != before).sum() > 0
    assert found.corrections.entries[-1].words == "Correct L3 by 1 click"
    assert shell(files, checkpoint, "--add", f"L3@{files.point}", "--overwrite") == 0
    assert re.search(r"^L3: .* mL$", capsys.readouterr().out, re.M)
    Segmentation(files.label, scheme("lumbar-mr"), scale_known=False).write(files.folder / "drawn.nii.gz")
    assert shell(files, checkpoint, "--add", f"L3@{files.point}", "--overwrite") == 0
    assert re.search(r"^L3: \d+ → \d+ voxels$", capsys.readouterr().out, re.M)  # pixels of an unknown size


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "no clicks"),
        (("--add", "L3"), "--add: “L3” lacks a point"),
        (("--add", "L3@9999,0,0"), "outside of the image"),
        (("--remove", "L5@{point}"), "L5 is not labeled"),
        (("--add", "L3@{point}", "--remove", "L3@{point}"), "added and removed at the same point"),
        (("--add", "L3@{point}", "--lock", "L3"), "L3 is locked"),
    ],
)
def test_the_shell_refuses_in_a_sentence_and_writes_nothing(files, checkpoint, capsys, arguments, said):
    assert shell(files, checkpoint, *(a.format(point=files.point) for a in arguments)) == 2
    assert said in capsys.readouterr().err and not (files.folder / "out.nii.gz").exists()


def test_the_worker_answers_with_the_box_that_changed(tmp_path, checkpoint):
    import io

    image, label, _ = a_case()
    files = {"image": save_image(image, tmp_path / "i.npy"), "labels": save_image(label, tmp_path / "l.npy")}
    click = ClickMessage(structure_id=L3, point=at(label, 60, 60, 22))
    bad = ClickMessage(structure_id=9999, point=click.point)
    requests = [
        RefineRequest(job=1, **files, clicks=(click,), checkpoint=str(checkpoint)),
        RefineRequest(job=2, **files, clicks=(bad,), checkpoint=str(checkpoint)),
        RefineRequest(job=3, **files, clicks=(click,), locked=(L3,), checkpoint=str(checkpoint)),
    ]
    output = io.StringIO()
    worker = Worker(output, tmp_path)
    worker.read(r.model_dump_json().encode() for r in requests)
    worker.run()
    _, done, unknown, locked = (EVENT.validate_json(line) for line in output.getvalue().splitlines())
    assert done.event == "refined" and done.job == 1 and done.structures and L3 in done.structures
    box = np.load(done.labels)
    expected = apply_correction(
        Segmentation(label, scheme("lumbar-mr")),
        click_correction(image, label, [click.click()], load_click_method(str(checkpoint))),
    )
    result = sitk.GetArrayFromImage(label)
    result[tuple(slice(a, a + n) for a, n in zip(done.corner, box.shape, strict=True))] = box
    assert np.array_equal(result, sitk.GetArrayFromImage(expected.labels)) and box.size < 500
    assert (unknown.kind, locked.kind) == ("CorrectionError", "CorrectionError") and "locked" in locked.message
