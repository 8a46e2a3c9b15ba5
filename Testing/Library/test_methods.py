"""Every method of the catalog: builds, learns, predicts. The invariants of each system are in its own test file."""

import pytest
import torch

from SpineSegAILib.anatomy import BASIC_KINDS, KINDS, scheme
from SpineSegAILib.errors import ConfigError
from SpineSegAILib.methods.base import Batch, Context, coordinate_channels
from SpineSegAILib.methods.catalog import METHODS, build_method, make_config, method_info

CASES = [(m.id, d) for m in METHODS.values() if m.group != "correction" for d in m.dims]


def example_batch(dims: int, channels: int, sizes: tuple[int, ...]) -> Batch:
    g = torch.Generator().manual_seed(1)
    label = torch.randint(0, channels, (2, *sizes), generator=g)
    allowed = torch.nn.functional.one_hot(label, channels).movedim(-1, 1).bool()
    coordinates = coordinate_channels(sizes, (2.0,) * dims)[None].expand(2, *([-1] * (dims + 1)))
    image = label[:, None].float() / channels + 0.01 * torch.randn((2, 1, *sizes), generator=g)
    return Batch(image, allowed, torch.where(label > 0, label.float() % 5, float("nan")), coordinates)


PROMPTED = ("sam", "medsam")
"""They segment what they are shown."""


@pytest.mark.parametrize(("method_id", "dims"), CASES)
def test_every_method_trains_a_step_and_predicts(method_id, dims, text_packages):
    torch.manual_seed(0)
    sizes = (64, 96) if dims == 2 else (32, 64, 32)
    extra = {"window": sizes} if method_id == "unetr" else {}
    method = build_method(make_config(method_id, "tiny", dims=dims, scheme="lumbar11", **extra))
    assert METHODS[method_id].clicks == (method.scenes is not None)
    batch = example_batch(dims, method.scheme.channels, sizes)
    losses = method.training_losses(batch)
    losses["total"].backward()
    with_gradient = [p for p in method.parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    # UNETR of MONAI has a few parameters that it never uses
    assert len(with_gradient) > 0.85 * sum(p.requires_grad for p in method.parameters())
    method.eval()
    with torch.inference_mode():
        shown = batch.allowed.long().argmax(1) if method_id in PROMPTED else None
        maps = method.evidence(batch.image, Context(batch.coordinates, prior=shown))
    name, channels = ("kinds", method.scheme.head_kinds) if "kinds" in maps else ("classes", method.scheme.channels)
    assert maps[name].shape == (2, channels, *sizes)
    assert torch.allclose(maps[name].sum(1), torch.ones(2, *sizes), atol=1e-4)


@pytest.mark.parametrize("method_id", ["resenc-unet", "unet", "scar-net", "dgmsnet"])
def test_a_method_overfits_one_case(method_id):
    torch.manual_seed(0)
    method = build_method(make_config(method_id, "tiny", scheme="lumbar11"))
    image = torch.zeros(1, 1, 64, 64)
    label = torch.zeros(1, 64, 64, dtype=torch.long)
    for number in range(3):
        label[:, 5 + 20 * number : 20 + 20 * number, 20:45] = number + 3
        image[:, :, 5 + 20 * number : 20 + 20 * number, 20:45] = 1.0
    allowed = torch.nn.functional.one_hot(label, 11).movedim(-1, 1).bool()
    rank = torch.where(label > 0, 7.0 - label, float("nan"))
    batch = Batch(image, allowed, rank, coordinate_channels((64, 64), (2.0, 2.0))[None])
    optimizer = torch.optim.AdamW(method.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        method.training_losses(batch)["total"].backward()
        optimizer.step()
    method.eval()
    with torch.inference_mode():
        maps = method.evidence(image, Context(batch.coordinates))
    if "classes" in maps:
        assert (maps["classes"].argmax(1) == label).float().mean() > 0.98
    else:
        assert ((maps["kinds"].argmax(1) > 0) == (label > 0)).float().mean() > 0.98
        assert (maps["rank"] - rank)[label > 0].abs().median() < 0.4


def test_coordinates_are_centred_and_physical():
    channels = coordinate_channels((5, 9), (2.0, 1.0))
    assert channels.shape == (2, 5, 9)
    assert torch.allclose(channels[0, :, 0] * 128, torch.tensor([-4.0, -2.0, 0.0, 2.0, 4.0]))
    assert torch.allclose(channels[1, 0] * 128, torch.arange(9.0) - 4)


def test_label_and_known_follow_from_what_is_allowed():
    allowed = torch.zeros(1, 3, 2, 2, dtype=torch.bool)
    allowed[:, 0] = True
    allowed[0, 1, 0, 0] = True  # background or structure 1
    allowed[0, :, 1, 1] = torch.tensor([False, False, True])
    batch = Batch(torch.zeros(1, 1, 2, 2), allowed, torch.zeros(1, 2, 2), torch.zeros(1, 2, 2, 2))
    assert batch.label[0].tolist() == [[-1, 0], [0, 2]]
    assert batch.known[0, 1].tolist() == [[False, True], [True, True]]


def test_adding_a_method_is_one_folder_and_one_entry():
    """Nothing outside the catalog and its folder may name a method."""
    from pathlib import Path

    library = Path(__file__).parents[2] / "SpineSegAILib"
    packages = {m.package for m in METHODS.values()}
    for path in library.rglob("*.py"):
        inside = path.relative_to(library).parts
        if inside[0] == "methods" and (len(inside) == 2 or inside[1] in packages):
            continue
        text = path.read_text(encoding="utf-8")
        for package in packages:
            assert f"methods.{package}" not in text, f"{path} imports {package} directly"


def test_unknown_methods_presets_and_options_are_refused():
    with pytest.raises(ConfigError, match="no method “nope”"):
        method_info("nope")
    with pytest.raises(ConfigError, match="no preset"):
        make_config("unet", "huge")
    with pytest.raises(ConfigError, match="widhts"):
        make_config("unet", widhts=(1, 2, 3))
    with pytest.raises(ConfigError, match="3D"):
        build_method(make_config("fcn", "tiny", dims=3))


def test_the_catalogue_says_what_it_must():
    for info in METHODS.values():
        assert info.summary.endswith(".")
        assert info.citation
        assert info.group in ("system", "baseline", "comparison", "correction")
        assert info.offered == (info.group in ("system", "baseline"))
        assert {"small", "tiny"} <= set(info.config_class().presets(info.id))
        assert scheme(make_config(info.id).scheme)


def test_a_head_has_the_kinds_that_its_scheme_holds():
    assert make_config("resenc-unet", "tiny").kinds == BASIC_KINDS  # as of every checkpoint that says nothing of it
    config = make_config("resenc-unet", "tiny", scheme="lumbar-mr-posterior")
    assert config.kinds == len(KINDS) and config.model_dump(mode="json")["kinds"] == len(KINDS)
    with pytest.raises(ConfigError, match="structures of 6 kinds"):
        make_config("resenc-unet", "tiny", scheme="lumbar-mr-posterior", kinds=BASIC_KINDS)
    with pytest.raises(ConfigError, match="context_mm"):
        make_config("resenc-unet", "tiny", dims=3, context_mm=(4.0,))


def test_a_network_that_is_grown_says_what_it_said():
    torch.manual_seed(0)
    old = build_method(make_config("resenc-unet", "tiny")).eval()
    new = build_method(make_config("resenc-unet", "tiny", scheme="lumbar-mr-posterior", context_mm=(4.0, 8.0))).eval()
    new.load_state_dict(new.remap_weights(old.state_dict()))
    image, coordinates = torch.randn(1, 5, 64, 64), coordinate_channels((64, 64), (1.0, 1.0))[None]
    with torch.inference_mode():
        before = old.evidence(image[:, :1], Context(coordinates))
        after = new.evidence(image, Context(coordinates))
    assert torch.allclose(before["rank"], after["rank"], atol=1e-5)
    assert after["kinds"].shape[1] == len(KINDS) and after["kinds"][:, -1].max() < 0.05
    assert torch.equal(before["kinds"].argmax(1), after["kinds"].argmax(1))
    assert new.remap_weights(new.state_dict()).keys() == new.state_dict().keys()
