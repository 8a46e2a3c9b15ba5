"""What ATM-Net's attentions read, and that normalization keeps them from falling onto one token."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_methods import example_batch
from tiny_data import write_tiny_dataset
from torch.nn import functional as F

from SpineSegAILib.datasets.manifest import read_manifest
from SpineSegAILib.evaluation.on_grid import load_labelled
from SpineSegAILib.inference import Predictor
from SpineSegAILib.methods.atm_net.fusion import FusionStage
from SpineSegAILib.methods.atm_net.losses import contrastive_loss
from SpineSegAILib.methods.base import coordinate_channels
from SpineSegAILib.methods.blocks import position_encoding
from SpineSegAILib.methods.catalog import build_method, make_config

sys.path.insert(0, str(Path(__file__).parents[1] / "Benchmarks"))
import atm_net_attention

C, SIZE, TOKENS = 16, (6, 4), 8


def stage(**values) -> FusionStage:
    torch.manual_seed(0)
    return FusionStage(C, 8, TOKENS, 2, values.pop("max_tokens", None), 1.0, **values)


def inputs():
    g = torch.Generator().manual_seed(3)
    return (torch.randn(s, generator=g) for s in ((2, C, *SIZE), (2, 8, 12, 8), (2, TOKENS, C)))


def watched(made: FusionStage, features, skip, text):
    """(queries, keys, values) of both attentions, and the result."""
    seen = {}
    for name in ("self_attention", "cross_attention"):
        getattr(made, name).register_forward_pre_hook(lambda module, given, name=name: seen.update({name: given}))
    return seen, made(features, skip, text)


def entropy(made: FusionStage, queries, keys) -> float:
    """Of the weights over the tokens, as a share of the largest that there is."""
    weights = made.cross_attention.weights(queries, keys).detach()
    return float(-(weights * weights.clamp(min=1e-12).log()).sum(-1).mean() / math.log(weights.shape[-1]))


@pytest.mark.parametrize("normalisation", ["none", "before", "qk"])
def test_positions_are_in_queries_and_keys_and_never_in_values(normalisation):
    features, skip, text = inputs()
    made = stage(normalisation=normalisation)
    seen, _ = watched(made, features, skip, text)
    places = position_encoding(SIZE, C, centered=True).flatten(1).T
    queries, keys, values = seen["self_attention"]
    plain = made.before_self(features.flatten(2).transpose(1, 2))
    assert torch.allclose(values, plain, atol=1e-6)  # equation 1
    assert torch.allclose(queries - values, places.expand_as(values), atol=1e-5) and torch.equal(queries, keys)
    queries, keys, values = seen["cross_attention"]
    assert torch.allclose(values, made.token_norm(text), atol=1e-6)  # equation 2
    assert torch.allclose(keys - values, made.text_position.expand_as(values), atol=1e-5)
    assert made.text_position.abs().max() > 0.5


def test_pooled_values_have_no_positions_either():
    features, skip, text = inputs()
    made = stage(max_tokens=8)
    seen, _ = watched(made, features, skip, text)
    _, keys, values = seen["self_attention"]
    assert values.shape[1] < math.prod(SIZE)
    assert torch.allclose(values, F.avg_pool2d(features, 2, ceil_mode=True).flatten(2).transpose(1, 2), atol=1e-6)
    assert not torch.allclose(keys, values, atol=1e-2)


def test_tokens_that_grow_take_all_attention_unless_they_are_normalised():
    features, skip, text = inputs()
    found = {}
    for normalisation in ("none", "before", "qk"):
        made = stage(normalisation=normalisation)
        seen, _ = watched(made, features, skip, 500 * text)
        queries, keys, _ = seen["cross_attention"]
        found[normalisation] = entropy(made, queries, keys)
    assert found["none"] < 0.2  # what happened in training as printed
    assert found["before"] > 0.8 and found["qk"] > 0.8


@pytest.mark.parametrize("decoder", ["paper", "residual"])
def test_either_decoder_merges_what_comes_from_below_with_the_skip(decoder):
    features, skip, text = inputs()
    made = stage(normalisation="before", decoder=decoder)
    result = made(features, skip, text)
    assert result.shape == skip.shape
    assert not torch.allclose(made(features, 0 * skip, text), result, atol=1e-3)
    assert not torch.allclose(made(0 * features, skip, text), result, atol=1e-3)
    assert hasattr(made.merge, "conv2") == (decoder == "residual")


def test_after_a_tiny_training_no_stage_has_fallen_onto_one_token_and_every_stage_hears_the_range():
    torch.manual_seed(0)
    own = {"normalisation": "qk", "decoder": "residual", "alpha": 0.01, "scheme": "lumbar11"}
    method = build_method(make_config("atm-net", "tiny", **own))
    batch = example_batch(2, method.scheme.channels, (64, 64))
    optimizer = torch.optim.AdamW(method.parameters(), 3e-3)
    for _ in range(12):
        optimizer.zero_grad()
        method.training_losses(batch)["total"].backward()
        optimizer.step()
    method.eval()
    for entropy_share, change in listened(method, batch.image, batch.coordinates):
        assert entropy_share > 0.4 and change > 1e-3


def test_in_the_shipped_weights_no_stage_has_fallen_onto_one_token_and_every_stage_hears_the_range(tmp_path):
    """As printed, the coarse stages had: entropy 0, and a change of the range changed nothing there."""
    predictor = Predictor("lumbar-mr-atm-net", "cpu")
    manifest = read_manifest(write_tiny_dataset(tmp_path, training=1))
    (case, *_) = load_labelled(manifest.cases("training"), predictor.preprocessing)
    at = int(np.median(np.flatnonzero((case.label > 0).any((1, 2)))))
    image = F.pad(torch.from_numpy(case.volume.array[at])[None, None], (0, 64, 0, 64))
    rows, columns = (n // 32 * 32 for n in image.shape[2:])
    place = coordinate_channels((rows, columns), case.volume.spacing[1:])[None]
    found = listened(predictor.method, image[..., :rows, :columns], place)
    assert all(entropy_share > 0.1 and change > 1e-3 for entropy_share, change in found), found


def listened(method, images, coordinates) -> list[tuple[float, float]]:
    """Of each stage: the entropy of its attention to the text, and how much what it gathers changes with the range."""
    texts = [text for text in method.config.text_prompts() if text.startswith("Sagittal")]
    with torch.inference_mode():
        encoded = method._encode(images, coordinates)
        tokens = (method.text([text] * len(images)) for text in (min(texts, key=len), max(texts, key=len)))
        first, second = (atm_net_attention.watched(method, encoded, said)[0] for said in tokens)
        return [
            (entropy(made, queries, keys), float((one - other).norm() / one.norm()))
            for made, (queries, keys, one), (_, _, other) in zip(method.stages, first, second, strict=True)
        ]


def test_the_contrast_goes_both_ways():
    g = torch.Generator().manual_seed(1)
    visual, text = (F.normalize(torch.randn(2, 5, 6, generator=g), dim=2) for _ in range(2))
    part = torch.ones(2, 5, dtype=torch.bool)
    similarity, own = visual @ text.mT / 0.07, torch.arange(5)
    rows = torch.stack([F.cross_entropy(s, own) for s in similarity]).mean()
    columns = torch.stack([F.cross_entropy(s.T, own) for s in similarity]).mean()
    assert (rows - columns).abs() > 0.01
    assert torch.allclose(contrastive_loss(visual, text, part), (rows + columns) / 2, atol=1e-5)
