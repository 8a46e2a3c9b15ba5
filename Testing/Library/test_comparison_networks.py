"""What is there for comparison alone: each network has what its paper is about."""

import pytest
import torch
from test_methods import example_batch

from SpineSegAILib.errors import ConfigError, MissingPackageError
from SpineSegAILib.methods import catalog
from SpineSegAILib.methods.base import coordinate_channels
from SpineSegAILib.methods.catalog import METHODS, build_method, make_config
from SpineSegAILib.methods.verdiff_net.dynamic_condition import DynamicCondition, FrequencyParser


def built(method_id: str, **values):
    torch.manual_seed(0)
    return build_method(make_config(method_id, "tiny", scheme="lumbar11", **values))


def reach(method, row: int, column: int) -> torch.Tensor:
    """(64, 96) how much a pixel's logits depend on each pixel of the image."""
    method.eval()
    image = torch.randn(1, 1, 64, 96, generator=torch.Generator().manual_seed(2), requires_grad=True)
    logits = method(image, coordinate_channels((64, 96), (2.0, 2.0))[None])
    logits[0, :, row, column].square().sum().backward()
    return image.grad[0, 0].abs()


def test_bisenet_keeps_detail_beside_context():
    network = built("bisenet").network.eval()
    sides, image = {}, torch.randn(1, 3, 64, 96)
    for name, part in (("spatial", network.spatial), ("refine16", network.refine16), ("refine32", network.refine32)):
        part.register_forward_hook(lambda module, given, out, name=name: sides.update({name: tuple(out.shape[2:])}))
    whole = network(image)
    assert sides == {"spatial": (8, 12), "refine16": (4, 6), "refine32": (2, 3)}
    for name in ("spatial", "refine16", "refine32", "whole"):  # each counts
        handle = getattr(network, name).register_forward_hook(lambda module, given, out: torch.zeros_like(out))
        assert not torch.allclose(network(image), whole, atol=1e-4)
        handle.remove()


def test_the_image_level_branch_of_deeplabv3_counts():
    head = built("deeplabv3").network.head.eval()
    features = torch.randn(1, head[0].pooled.conv.in_channels, 8, 12)
    whole = head(features)
    head[0].pooled.register_forward_hook(lambda module, given, out: torch.zeros_like(out))
    assert not torch.allclose(head(features), whole, atol=1e-4)


def test_bisenet_learns_from_both_stages_of_its_context_path():
    method = built("bisenet", auxiliary_weight=2.0)
    batch = example_batch(2, method.scheme.channels, (64, 96))
    method.train()
    losses = method.training_losses(batch)
    own = losses["cross_entropy"] + losses["dice"]
    assert torch.allclose(losses["total"], own + 2 * losses["auxiliary"])
    losses["auxiliary"].backward()
    for head in method.network.auxiliary:
        assert head[1].weight.grad.abs().sum() > 0
    assert method.network.head[1].weight.grad is None


def test_swin_unet_shifts_its_windows_and_expands_in_place():
    method = built("swin-unet", coordinates=False, depths=(2, 2), heads=(2, 4))
    assert reach(method, 2, 2)[16:32, 16:32].max() > 0  # a window is 16 pixels: the shifted ones reach beyond
    network = method.network
    x = torch.zeros(1, network.expand_last.width, 4, 6)
    before = network.expand_last(x)
    x[0, :, 1, 2] = torch.randn(x.shape[1])
    changed = (network.expand_last(x) - before).abs().sum((0, 1)) > 0
    assert changed[4:8, 8:12].all() and changed.sum() == 16


def test_swin_unet_takes_any_size_of_its_divisor():
    method = built("swin-unet").eval()
    divisor = method.tiling.divisor
    side = 3 * divisor
    logits = method(torch.randn(1, 1, side, divisor), coordinate_channels((side, divisor), (1.0, 1.0))[None])
    assert logits.shape == (1, method.scheme.channels, side, divisor)
    for wrong in ({"depths": (2, 2)}, {"heads": (2, 4, 5)}):
        with pytest.raises(ConfigError, match="heads"):
            make_config("swin-unet", "tiny", **wrong)


def test_medsegdiff_filters_what_leads_the_image():
    filtering = FrequencyParser(4)
    x = torch.randn(2, 4, 12, 20)
    assert torch.allclose(filtering(x), x, atol=1e-5)  # untrained it changes nothing, whatever the size
    rows = torch.linspace(-1, 1, filtering.weight.shape[2]).abs()[:, None]
    columns = torch.linspace(0, 1, filtering.weight.shape[3])
    with torch.no_grad():
        filtering.weight[0] = ((rows < 0.5) & (columns < 0.5)).float()
    kept = filtering(x) - x.mean((2, 3), keepdim=True)
    rough = (kept[..., 1:, :] - kept[..., :-1, :]).square().mean() / kept.square().mean()
    assert rough < 0.5 * (x[..., 1:, :] - x[..., :-1, :]).square().mean() / x.square().mean()


def test_medsegdiff_encodes_the_image_by_the_noisy_mask():
    condition = DynamicCondition((8, 12), parser=True)
    image, masks = torch.randn(1, 8, 16, 16), torch.randn(2, 1, 8, 16, 16)
    one, other = (condition(0, image, mask) for mask in masks)
    assert not torch.allclose(one, other, atol=1e-3)
    assert condition(1, one, torch.randn(1, 12, 8, 8)).shape == (1, 12, 8, 8)
    assert condition(0, image, masks[0]).shape == image.shape
    plain, led = built("ddpm").denoiser, built("medsegdiff").denoiser
    assert plain.condition is None and all(isinstance(p, FrequencyParser) for p in led.condition.parsers)
    with pytest.raises(ConfigError, match="dynamic_condition"):
        make_config("medsegdiff", "tiny", dynamic_condition=False)


def test_architectures_learn_from_one_image_and_refuse_an_encoder_that_does_not_fit(text_packages):
    method = built("deeplabv3plus").train()
    batch = example_batch(2, method.scheme.channels, (64, 64)).each(lambda t: t[:1])
    method.training_losses(batch)["total"].backward()  # batch normalization has no statistics of one pooled value
    for encoder in ("resnet_of_mine", "mit_b0"):
        with pytest.raises(ConfigError, match=f"UnetPlusPlus.*{encoder}"):
            built("unetplusplus", encoder=encoder)


def test_what_is_not_installed_is_said_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setattr(catalog, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError) as caught:
        built("segformer")
    assert "pip install segmentation-models-pytorch" in caught.value.remedy


def test_they_are_offered_for_comparison_only():
    group = {m.id for m in METHODS.values() if m.group == "comparison"}
    assert {
        "bisenet",
        "swin-unet",
        "medsegdiff",
        "unetplusplus",
        "deeplabv3plus",
        "segformer",
        "upernet",
        "fpn",
    } <= group
    assert not group & {"resenc-unet", "atm-net", "scar-net", "la-caf", "verdiff-net"}
