"""SAM and MedSAM with tiny random weights, as a user has them: a folder in the layout of transformers."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from tiny_data import write_tiny_dataset

from SpineSegAILib.cli import main
from SpineSegAILib.comparison.hints import hint_maker
from SpineSegAILib.errors import ConfigError, HintError
from SpineSegAILib.inference import Predictor
from SpineSegAILib.methods.base import Batch, Context, coordinate_channels
from SpineSegAILib.methods.catalog import build_method, make_config
from SpineSegAILib.methods.clicking import ClickScene

pytestmark = pytest.mark.usefixtures("text_packages")
ARCHITECTURE = make_config("sam", "tiny").architecture


@pytest.fixture(scope="module")
def weights(tmp_path_factory, text_packages):
    """A folder as ``hf download`` leaves it."""
    from transformers import SamConfig, SamModel

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("weights") / "tiny-sam"
    SamModel(SamConfig(**ARCHITECTURE)).save_pretrained(folder)
    return folder


def built(method_id: str = "sam", **values):
    torch.manual_seed(0)
    return build_method(make_config(method_id, "tiny", scheme="lumbar11", **values))


def context(**values) -> Context:
    return Context(coordinate_channels((40, 32), (2.0, 2.0))[None], **values)


def square(channel: int, rows: slice, columns: slice, into: torch.Tensor | None = None) -> torch.Tensor:
    label = torch.zeros(1, 40, 32, dtype=torch.long) if into is None else into
    label[:, rows, columns] = channel
    return label


def test_the_architecture_and_the_weights_are_the_folders(weights):
    from transformers import SamModel

    config = make_config("sam", scheme="lumbar11", weights=str(weights)).with_resources({})
    method = build_method(config)
    assert method.side == 64 and method.config.architecture["vision_config"]["hidden_size"] == 16
    theirs = SamModel.from_pretrained(weights).state_dict()
    assert not all(torch.equal(v, theirs[k]) for k, v in method.sam.state_dict().items())
    method.prepare_training(None)
    assert all(torch.equal(v, theirs[k]) for k, v in method.sam.state_dict().items())
    build_method(config).prepare_training({"method": "sam"})  # from a checkpoint: its weights count


def test_what_is_no_sam_or_does_not_fit_is_refused_with_the_way_out(weights, tmp_path):
    with pytest.raises(ConfigError) as caught:
        built().prepare_training(None)
    assert "hf download facebook/sam-vit-base" in caught.value.remedy
    folder = tmp_path / "other"
    shutil.copytree(weights, folder)
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    told["vision_config"]["hidden_size"] = 32  # of another shape than its tensors
    (folder / "config.json").write_text(json.dumps(told))
    method = build_method(make_config("sam", weights=str(folder), scheme="lumbar11").with_resources({}))
    with pytest.raises(ConfigError, match="other"):
        method.prepare_training(None)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ConfigError, match=r"bert.*not of a SAM"):
        make_config("sam", weights=str(folder)).with_resources({})
    shutil.copy(weights / "config.json", folder / "config.json")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError) as caught:
        build_method(make_config("sam", weights=str(folder), scheme="lumbar11").with_resources({})).prepare_training(
            None
        )
    assert "save_pretrained" in caught.value.remedy


def test_a_picture_is_filled_by_its_longest_side_whatever_the_gray_values():
    image = torch.linspace(-1, 3, 40 * 32).view(1, 1, 40, 32)
    unit = built("medsam").pictures(image)
    assert unit.shape == (1, 3, 64, 64) and unit.min() == 0 and unit.max() <= 1
    assert unit[..., 51:].abs().max() == 0 and unit[:, :, 63, 50].min() > 0.9
    assert torch.allclose(unit, built("medsam").pictures(1000 * image), atol=1e-3)
    photograph = built("sam").pictures(image)[..., :51]
    assert torch.allclose(photograph[:, 0], (unit[:, 0, :, :51] - 0.485) / 0.229, atol=1e-4)


def test_boxes_are_those_of_the_prior_and_points_serve_what_has_none():
    method = built().eval()
    asked = []
    masks = method.masks
    method.masks = lambda embedding, prompts, shape: asked.append(prompts) or masks(embedding, prompts, shape)
    prior = square(3, slice(5, 15), slice(8, 20))
    keypoints = torch.full((1, 10, 2), torch.nan)
    keypoints[0, 2], keypoints[0, 4] = torch.tensor([10.0, 14.0]), torch.tensor([30.0, 12.0])
    with torch.inference_mode():
        found = method.evidence(torch.randn(1, 1, 40, 32), context(prior=prior, keypoints=keypoints))["classes"]
    boxes, points = asked
    assert boxes.channels == [3] and boxes.boxes.tolist() == [[8, 5, 20, 15]]
    assert points.channels == [5] and points.points.tolist() == [[12, 30]]
    shown = found[0, [3, 5]].amax((1, 2))
    assert (shown > 1e-3).all() and found[0, [1, 2, 4, 6, 7, 8, 9, 10]].max() < 1e-3


def test_nothing_shown_is_said_and_in_validation_nothing_is_found():
    method = built().eval()
    image = torch.randn(2, 1, 40, 32)
    with pytest.raises(HintError, match="nothing is shown"):
        method.evidence(image, context())
    with pytest.raises(HintError, match="not trained with points"):
        built(prompts="boxes").eval().evidence(image, context(keypoints=torch.full((2, 10, 2), 5.0)))
    maps = method.evidence(image, context(options=method.validation_options))
    assert (maps["classes"].argmax(1) == 0).all()


@pytest.mark.parametrize(("method_id", "prompts"), [("medsam", "boxes"), ("sam", "points")])
def test_the_decoder_learns_one_case(method_id, prompts):
    method = built(method_id, prompts=prompts, jitter=0.0)
    label = square(5, slice(22, 36), slice(10, 24), square(3, slice(4, 16), slice(8, 22)))
    allowed = torch.nn.functional.one_hot(label, 11).movedim(-1, 1).bool()
    image = (label > 0).float()[:, None] + 0.05 * torch.randn(1, 1, 40, 32)
    batch = Batch(image, allowed, torch.full((1, 40, 32), torch.nan), context().coordinates)
    before = {name: p.clone() for name, p in method.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        total = method.training_losses(batch)["total"]
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()))
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    changed = {name.split(".")[1] for name, p in method.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"mask_decoder"}
    method.eval()
    keypoints = torch.full((1, 10, 2), torch.nan)
    keypoints[0, 2], keypoints[0, 4] = torch.tensor([10.0, 15.0]), torch.tensor([29.0, 17.0])
    with torch.inference_mode():
        told = {"prior": label} if prompts == "boxes" else {"keypoints": keypoints}
        found = method.evidence(image, context(**told))["classes"][0]
    inside = [[float(found[channel][label[0] == place].mean()) for place in (3, 5)] for channel in (3, 5)]
    assert inside[0][0] + inside[1][1] > inside[0][1] + inside[1][0]  # a mask lies where it was asked for


def test_a_batch_without_structures_teaches_nothing():
    method = built()
    allowed = torch.nn.functional.one_hot(torch.zeros(1, 40, 32, dtype=torch.long), 11).movedim(-1, 1).bool()
    losses = method.training_losses(
        Batch(torch.randn(1, 1, 40, 32), allowed, torch.zeros(1, 40, 32), context().coordinates)
    )
    losses["total"].backward()
    assert losses["total"] == 0


def test_a_run_from_the_users_folder_segments_what_a_prior_shows(weights, tmp_path):
    manifest = write_tiny_dataset(tmp_path, training=2)
    run = tmp_path / "run"
    settings = ["optimization.workers=0", "data.patch=[64,64]", f"method.weights={weights}", "data.focus=label"]
    flags = [flag for setting in settings for flag in ("--set", setting)]
    told = ["train", str(manifest), "--method", "sam", "--steps", "2", "--output", str(run), "--device", "cpu", *flags]
    assert main([*told, "--quiet"]) == 0
    predictor = Predictor(run / "last.safetensors", "cpu")
    case = json.loads(manifest.read_text(encoding="utf-8"))["training"][0]
    image = sitk.ReadImage(str(manifest.parent / case["image"]))
    label = sitk.ReadImage(str(manifest.parent / case["label"]))
    with pytest.raises(HintError):
        predictor.segment(image)
    hints = hint_maker("reference", "cpu").make(image, label)
    assert hints.given() == {"prior"}
    assert predictor.segment(image, hints=hints).labels.GetSize() == image.GetSize()


@pytest.mark.parametrize("method_id", ["sam", "medsam"])
def test_clicks_are_followed_in_the_slices_that_they_are_in(method_id):
    method = built(method_id).eval()
    shape = method.scenes.shape
    mask = torch.zeros(1, *shape)
    mask[:, 1:4, 40:80, 40:80] = 1
    scene = ClickScene(
        torch.rand(1, *shape), mask, torch.zeros_like(mask),
        torch.tensor([[[2.0, 60.0, 60.0], [2.0, 78.0, 78.0], [3.0, 10.0, 10.0]]]), torch.tensor([[1.0, -1.0, 0.0]]),
        torch.tensor([1]), torch.tensor([30.0]), torch.ones_like(mask, dtype=torch.bool),
    )  # fmt: skip
    asked, told, plain = [], [], method.masks

    def masks(embedding, prompts, shape):
        asked.append(prompts)
        told.append(plain(embedding, prompts, shape))
        return told[-1]

    method.masks = masks
    with torch.inference_mode():
        found = method.refined(scene)
        method.refined(replace(scene, signs=torch.tensor([[-1.0, 1.0, 0.0]])))
        alone = method.refined(replace(scene, mask=torch.zeros_like(mask)))
    changed = (found != mask).flatten(2).any(2)[0]
    assert changed.tolist() == [False, False, True, False, False]  # no click, or none that counts, elsewhere
    assert asked[0].points.tolist() == [[[60, 60], [78, 78]]] and asked[0].signs.tolist() == [[1, 0]]
    assert asked[0].boxes.tolist() == [[40, 40, 80, 80]] and (told[0] != told[1]).any()
    assert asked[2].boxes is None and alone.isfinite().all()  # what is not drawn yet has no box
