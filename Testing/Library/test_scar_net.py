"""SCAR-Net and DGMSNet: what `methods.scar_net` promises of its parts, and keypoints from the data to the result."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from SpineSegAILib.anatomy import scheme, structure
from SpineSegAILib.checkpoints import save_checkpoint
from SpineSegAILib.errors import ConfigError, HintError, SchemeError
from SpineSegAILib.hints import Hints
from SpineSegAILib.imaging import Preprocessing
from SpineSegAILib.inference import Predictor
from SpineSegAILib.methods.base import Batch, Context, coordinate_channels
from SpineSegAILib.methods.catalog import build_method, make_config, stored_config
from SpineSegAILib.methods.scar_net.attention import MCCA, PositionAttention
from SpineSegAILib.methods.scar_net.encoder import EarlierBlock, XceptionBlock
from SpineSegAILib.methods.scar_net.label_fusion import disagreement, fuse
from SpineSegAILib.methods.scar_net.losses import heatmap_error
from SpineSegAILib.methods.scar_net.network import pixel_spacing
from SpineSegAILib.methods.scar_net.recognition import (
    DynamicKernels,
    Steering,
    dynamic_convolution,
    heatmaps,
    neighbourhood,
    peaks,
    weight_map,
)
from SpineSegAILib.phantoms.spine import PhantomSpec, make_phantom
from SpineSegAILib.training.config import TrainingConfig

LUMBAR = scheme("lumbar11")
ORDERS = [s.order for s in LUMBAR.structures]
SPACING = torch.tensor([[1.25, 1.25]])
NAN = float("nan")


def tiny(method_id="scar-net", **values):
    torch.manual_seed(0)
    return build_method(make_config(method_id, "tiny", **{"scheme": "lumbar11", **values}))


def mixed_batch(masks: int, weak: int, side: int = 64) -> Batch:
    """Images with three squares; the first with masks, the others with keypoints alone."""
    count = masks + weak
    label = torch.zeros(count, side, side, dtype=torch.long)
    points = torch.full((count, 10, 2), NAN)
    for number in range(3):
        top = 5 + 18 * number
        label[:, top : top + 12, 20:40] = number + 3
        points[:, number + 2] = torch.tensor([top + 5.5, 29.5])
    generator = torch.Generator().manual_seed(3)
    image = (label[:, None] > 0).float() + 0.1 * torch.randn(count, 1, side, side, generator=generator)
    allowed = F.one_hot(label, 11).movedim(-1, 1).bool()
    allowed[masks:] = True
    rank = torch.where(label > 0, 7.0 - label, NAN)
    rank[masks:] = NAN
    coordinates = coordinate_channels((side, side), (2.0, 2.0)).expand(count, -1, -1, -1)
    return Batch(image, allowed, rank, coordinates, points)


def gradient(module) -> float:
    return sum(float(p.grad.abs().sum()) for p in module.parameters() if p.grad is not None)


# --- dynamic kernels and the adaptive transformer ------------------------------------------------------------------


def test_dynamic_kernels_have_the_paper_s_shape_and_depend_on_the_image():
    torch.manual_seed(0)
    kernels = DynamicKernels(128)(torch.randn(2, 128, 32, 32))
    assert kernels.shape == (2, 128, 7, 7)
    assert not torch.allclose(kernels[0], kernels[1])


def test_the_grouped_convolution_is_a_loop_over_images():
    torch.manual_seed(0)
    features, kernels = torch.randn(3, 6, 9, 11), torch.randn(3, 6, 7, 7)
    looped = [F.conv2d(f[None], k[:, None], padding=3, groups=6) for f, k in zip(features, kernels, strict=True)]
    found = dynamic_convolution(features, kernels)
    assert torch.allclose(found, torch.cat(looped), atol=1e-4)
    assert not torch.allclose(dynamic_convolution(features, kernels.flip(0)), found, atol=0.1)


def test_swapping_kernels_between_images_changes_the_output():
    method = tiny().eval()
    network, batch = method.networks[0], mixed_batch(2, 0)
    x = method.network_input(batch.image * torch.tensor([1.0, -2.0]).view(2, 1, 1, 1), batch.coordinates)
    with torch.inference_mode():
        kernels = network.recognize(x).kernels
        own, _ = network.segment(x, kernels, None, None)
        swapped, _ = network.segment(x, kernels.flip(0), None, None)
    assert kernels.shape == (2, 16, 7, 7)
    assert (own - swapped).abs().max() > 1e-3


def test_moving_a_key_point_changes_the_weight_near_it_and_the_semantic_features():
    method = tiny().eval()
    config, adaptive = method.config, method.networks[0].adaptive
    points = torch.stack([torch.linspace(20, 236, 10), torch.full((10,), 128.0)], 1)[None]
    points = points[:, [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]]  # channels are vertebrae, then discs
    moved = points.clone()
    moved[0, 2, 1] += 15 / 1.25
    before, after = (weight_map(p, SPACING, (16, 16), ORDERS, config) for p in (points, moved))
    change = (after - before).abs()[0, 0]
    row, column = divmod(int(change.argmax()), 16)
    assert change.max() > 0.02
    assert abs(row * 16 + 7.5 - float(points[0, 2, 0])) * 1.25 < 25
    assert abs(column * 16 + 7.5 - 128) * 1.25 < 45
    assert change[0].max() == 0  # far above
    torch.manual_seed(1)
    high, kernels = torch.randn(1, 16, 16, 16), torch.randn(1, 16, 7, 7) * 0.1
    with torch.inference_mode():
        moved_by = adaptive(high, kernels, Steering(before)) - adaptive(high, kernels, Steering(after))
        assert moved_by.abs().max() > 1e-4
        flat = adaptive(high, kernels, Steering(torch.ones_like(before)))
        assert torch.allclose(flat, adaptive(high, kernels), atol=1e-5)


def test_the_adaptive_transformer_adds_what_it_gathers_to_what_it_has():
    """``F_S = ReLU(BN(V(A + Attention(A; W))))``: with nothing gathered it is DGMSNet's layer."""
    torch.manual_seed(1)
    adaptive = tiny().eval().networks[0].adaptive
    high, kernels = torch.randn(1, 16, 8, 8), torch.randn(1, 16, 7, 7) * 0.1
    with torch.inference_mode():
        adapted = dynamic_convolution(adaptive.before(high), kernels)
        found = adaptive(high, kernels)
        for parameter in adaptive.attention[2].parameters():  # values
            parameter.zero_()
        alone = adaptive(high, kernels)
        assert torch.allclose(alone, adaptive.after(adapted), atol=1e-5)
    assert adapted.abs().mean() > 0.1 and (found - alone).abs().max() > 1e-3


def test_a_marked_key_point_says_which_structure_is_there():
    method = tiny(mark_points=True).eval()
    network, batch = method.networks[0], mixed_batch(1, 0)
    x, spacing = method.network_input(batch.image, batch.coordinates), pixel_spacing(batch.coordinates)
    found = method._steering(batch.keypoints, spacing, x.shape[2:])
    assert found.places.shape == (1, 10, 4, 4) and not found.places[:, 5].any() and found.places[:, 2].max() > 0.3
    renamed = Steering(found.weight, found.places[:, [0, 1, 3, 2, *range(4, 10)]])  # W is the same
    with torch.inference_mode():
        kernels = network.recognize(x).kernels
        first, second = (network.segment(x, kernels, None, s)[0] for s in (found, renamed))
        assert (first - second).abs().max() > 1e-3
        network.adaptive.marks.zero_()
        first, second = (network.segment(x, kernels, None, s)[0] for s in (found, renamed))
        assert torch.equal(first, second)
    learning = tiny(mark_points=True)
    learning.training_losses(batch)["total"].backward()
    assert learning.networks[0].adaptive.marks.grad.abs().sum() > 0
    assert tiny().networks[0].adaptive.marks is None


def test_the_weight_is_one_at_key_points_and_falls_to_its_floor():
    config = tiny().config
    points = torch.tensor([[[16 * 4 + 7.5, 16 * 3 + 7.5]] * 10])
    weight = weight_map(points, SPACING, (16, 16), ORDERS, config)[0, 0]
    assert weight[4, 3] == 1.0
    assert weight[15, 15] == pytest.approx(config.weight_floor)
    # one coarse pixel beside it: 20 mm away
    assert weight[4, 4] == pytest.approx(0.5 + 0.5 * np.exp(-(20.0**2) / 200), abs=1e-5)


def test_where_a_structure_was_not_found_nothing_is_suppressed():
    config = tiny().config
    nothing = torch.full((1, 10, 2), NAN)
    assert (weight_map(nothing, SPACING, (8, 8), ORDERS, config) == 1).all()
    # L1 … L5 and discs down a line, 27.5 mm apart; L3 is missing.
    line = torch.tensor([[(22.0 * 2 * (o - 20) + 40, 70.0) for o in ORDERS]])
    missing = line.clone()
    missing[0, 2] = NAN
    row, column = (round(float((v - 7.5) / 16)) for v in line[0, 2])
    assert weight_map(missing, SPACING, (16, 16), ORDERS, config)[0, 0, row, column] == 1.0
    # A single known point: the others are looked for above and below it.
    one = nothing.clone()
    one[0, 2] = torch.tensor([128.0, 70.0])
    weight = weight_map(one, SPACING, (16, 16), ORDERS, config)[0, 0]
    assert weight[3:14, 4].min() == 1.0 and weight[:, 12].max() < 0.6


def test_no_attention_is_larger_than_a_sixteenth_of_the_resolution(monkeypatch):
    tokens = []
    original = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, *a, **k: (tokens.append(q.shape[-2]), original(q, *a, **k))[1]
    )
    batch = mixed_batch(1, 0, side=128)
    tiny().training_losses(batch)["total"].backward()
    assert tokens == [64, 64, 64]  # adaptive transformer, inter-class, intra-class at 8²


# --- MCCA ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", ["cross", "self"])
def test_mcca_starts_as_a_sum(residual):
    torch.manual_seed(0)
    a, b = torch.randn(2, 16, 6, 5), torch.randn(2, 16, 6, 5)
    mcca = MCCA(16, residual)
    assert torch.equal(mcca(a, b), a + b)
    for name in ("inter_scale", "intra_scale"):
        changed = MCCA(16, residual)
        with torch.no_grad():
            getattr(changed, name).fill_(0.5)
        assert not torch.allclose(changed(a, b), a + b)


def test_the_three_readings_of_the_residual():
    torch.manual_seed(0)
    a, b = torch.randn(1, 16, 4, 4), torch.randn(1, 16, 4, 4)
    with torch.no_grad():
        for reading in ("cross", "self", "attended"):
            mcca = MCCA(16, reading, gamma=0.7)
            mcca.channel.scale.zero_()
            inter, intra = mcca.inter_class(a), mcca.intra_class(b)
            rest = a + b if reading != "attended" else inter + intra
            assert torch.allclose(mcca(a, b), 0.7 * (inter + intra) + rest, atol=1e-5), reading
    assert MCCA(16, gamma=0.7).channel.scale.item() == pytest.approx(0.7)
    network = tiny(gamma=0.3, mcca_residual="attended").networks[0]
    assert network.fusion.inter_scale.item() == network.fusion.channel.scale.item() == pytest.approx(0.3)


def test_attention_rows_sum_to_one_and_do_the_gathering():
    torch.manual_seed(0)
    block, features = PositionAttention(16), torch.randn(2, 16, 6, 5)
    weights = block.weights(features)
    assert weights.shape == (2, 30, 30)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 30), atol=1e-5)
    explicit = block.value(features).flatten(2) @ weights.transpose(1, 2)
    assert torch.allclose(block(features).flatten(2), explicit, atol=1e-5)


def test_the_residual_crosses_over():
    torch.manual_seed(0)
    a, b = torch.randn(1, 16, 4, 4), torch.randn(1, 16, 4, 4)
    mcca = MCCA(16)
    with torch.no_grad():
        mcca.channel.scale.fill_(0.3)
    mixed = a + b
    energy = mixed.flatten(2) @ mixed.flatten(2).transpose(1, 2)
    weights = (energy.amax(-1, keepdim=True) - energy).softmax(-1)
    expected = 0.3 * (weights @ mixed.flatten(2)).view_as(mixed) + mixed
    assert torch.allclose(mcca(a, b), expected, atol=1e-5)


# --- mixed supervision ---------------------------------------------------------------------------------------------


def test_a_weak_batch_teaches_recognition_alone():
    method = tiny()
    network = method.networks[0]
    losses = method.training_losses(mixed_batch(0, 3))
    assert all(float(losses[name].detach()) == pytest.approx(0, abs=1e-6) for name in ("cross_entropy", "dice", "rank"))
    assert losses["heatmaps"] > 0
    losses["total"].backward()
    assert gradient(network.decoder) == gradient(network.encoder) == gradient(network.fusion) == 0
    assert gradient(network.recognition_encoder) > 0 and gradient(network.recognition_decoder) > 0


def test_the_segmentation_loss_reaches_recognition_through_the_kernels():
    method = tiny(heatmap_weight=0.0)
    method.training_losses(mixed_batch(2, 0))["total"].backward()
    network = method.networks[0]
    assert gradient(network.recognition_encoder) > 0 and gradient(network.kernels) > 0
    assert gradient(network.recognition_decoder) == 0


def test_weak_cases_do_not_dilute_the_segmentation_loss():
    both = mixed_batch(1, 2)
    one = Batch(both.image[:1], both.allowed[:1], both.rank[:1], both.coordinates[:1], both.keypoints[:1])
    method = tiny(true_points=0.0)  # group norm: images do not see each other
    with torch.no_grad():
        together, alone = method.training_losses(both), method.training_losses(one)
    for name in ("cross_entropy", "dice", "rank"):
        assert together[name] == pytest.approx(float(alone[name]), rel=1e-4), name


def test_weak_images_count_in_the_batch_statistics_of_the_segmentation_network_as_in_the_ancestor():
    both = mixed_batch(2, 2)
    both.image[2:] *= 5  # the weak ones look different
    masked = Batch(both.image[:2], both.allowed[:2], both.rank[:2], both.coordinates[:2], both.keypoints[:2])
    found = {}
    for counted in (True, False):
        method = tiny(norm="batch", weak_statistics=counted, true_points=0.0, weight_queries=False)
        with torch.no_grad():
            together, alone = method.training_losses(both), method.training_losses(masked)
        found[counted] = float((together["cross_entropy"] - alone["cross_entropy"]).abs())
        mean = method.networks[0].encoder.stem[0][1].running_mean
        found[counted, "mean"] = float(mean.abs().sum())
    assert found[True] > 10 * found[False]
    assert found[True, "mean"] > 1.5 * found[False, "mean"]
    method = tiny(norm="batch")
    losses = method.training_losses(both)
    losses["total"].backward()
    weak = tiny(norm="batch").training_losses(mixed_batch(0, 3))
    assert float(weak["cross_entropy"].detach()) == pytest.approx(0, abs=1e-6)
    assert losses["cross_entropy"].isfinite()


def test_doubling_the_weight_doubles_the_heatmaps_term_only():
    batch = mixed_batch(2, 2)
    with torch.no_grad():
        single = tiny(heatmap_weight=40.0).training_losses(batch)
        double = tiny(heatmap_weight=80.0).training_losses(batch)
    for name in ("cross_entropy", "dice", "rank", "heatmaps"):
        assert single[name] == double[name], name
    assert double["total"] - single["total"] == pytest.approx(40 * float(single["heatmaps"]), rel=1e-4)


def test_heatmaps_are_round_in_millimetres():
    points = torch.tensor([[[20.0, 30.0], [NAN, NAN]]])
    maps = heatmaps(points, torch.tensor([[3.0, 1.0]]), (40, 60), 3.0)
    assert maps[0, 0, 20, 30] == 1.0 == maps[0, 0].max()
    assert maps[0, 0, 21, 30] == pytest.approx(np.exp(-0.5)) == maps[0, 0, 20, 33]
    assert maps[0, 1].isnan().all()


def test_what_is_not_known_of_a_heatmap_counts_for_nothing():
    predicted = torch.full((1, 2, 4, 4), 0.5, requires_grad=True)
    target = torch.full((1, 2, 4, 4), NAN)
    target[:, 0] = 0.0
    absent = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    absent[0, 1, :2] = True  # the second structure has no point, but is known not to be in the upper half
    error = heatmap_error(predicted, target, absent)
    error.backward()
    assert error == 0.25
    assert (predicted.grad[0, 1, 2:] == 0).all() and (predicted.grad[0, 1, :2] != 0).all()
    assert heatmap_error(predicted, torch.full_like(target, NAN), torch.zeros_like(absent)) == 0


def test_peaks_are_found_between_pixels_and_pass_gradients_on():
    points = torch.tensor([[[20.3, 30.6], [5.0, 0.0]]])
    maps = heatmaps(points, SPACING, (40, 60), 3.0).requires_grad_()
    found, heights = peaks(maps)
    assert torch.allclose(found[0, 0], points[0, 0], atol=0.2)
    assert (found[0, 1] - points[0, 1]).abs().max() < 1.0  # at the edge
    assert (heights > 0.9).all()
    found.sum().backward()
    assert maps.grad.abs().sum() > 0


def test_encoders_share_no_storage():
    network = tiny().networks[0]
    first, second = (
        {tensor.data_ptr() for tensor in encoder.state_dict().values()}
        for encoder in (network.encoder, network.recognition_encoder)
    )
    assert not first & second
    assert len(first) == len(second) > 20


def test_neighbouring_slices_outvote_a_stray_peak():
    points = np.tile(np.array([40.0, 50.0], np.float32), (7, 2, 1)) + np.arange(7)[:, None, None].astype(np.float32)
    heights = np.full((7, 2), 0.8, np.float32)
    points[3, 0] = (5.0, 5.0)
    points[:4, 1] = NAN
    agreed = neighbourhood(points, heights, slice_mm=4.0, reach_mm=8.0)
    assert np.abs(agreed[3, 0] - (43, 53)).max() <= 1.0
    assert np.isnan(agreed[1, 1]).all()  # the nearest peak is three slices away
    assert np.abs(agreed[3, 1] - (44, 54)).max() <= 1.0


def test_true_key_points_steer_the_attention_in_the_first_third_of_the_training_only():
    method = tiny(true_points=1.0)
    early, late = mixed_batch(2, 0), mixed_batch(2, 0)
    late.progress = 0.5
    for batch, changes in ((early, True), (late, False)):
        with torch.no_grad():
            before = method.training_losses(batch)["cross_entropy"]
            batch.keypoints = batch.keypoints + torch.tensor([0.0, 20.0])
            after = method.training_losses(batch)["cross_entropy"]
        assert (before != after) == changes


@pytest.fixture(scope="module")
def taught():
    """Learned three squares from one image with masks and one with keypoints."""
    method, batch = tiny(weight_queries=True), mixed_batch(1, 1)
    optimizer = torch.optim.Adam(method.parameters(), 1e-2)
    for step in range(80):
        batch.progress = step / 80
        optimizer.zero_grad()
        method.training_losses(batch)["total"].backward()
        optimizer.step()
    return method.eval(), batch


def test_key_points_are_learnt_from_either_kind_of_case(taught):
    method, batch = taught
    with torch.inference_mode():
        maps = method.evidence(batch.image, Context(batch.coordinates))
    known = ~batch.keypoints[..., 0].isnan()
    assert (maps["keypoints"][..., :2] - batch.keypoints)[known].abs().max() < 2.0
    assert maps["keypoints"][0, :, 0][~known[0]].isnan().all()  # known to be absent
    label = mixed_batch(2, 0).label
    assert (maps["classes"].argmax(1) == label)[0].float().mean() > 0.98


def test_a_moved_key_point_changes_most_what_is_near_it(taught):
    method, batch = taught
    results = []
    for shift in (0.0, 7.5):  # pixels of 2 mm
        points = batch.keypoints.clone()
        points[:, 4, 1] += shift
        context = Context(batch.coordinates, keypoints=points)
        with torch.inference_mode():
            results.append(method.evidence(batch.image, context)["classes"][0])
    change = (results[0] - results[1]).abs().amax(0)
    assert change.max() > 1e-3
    assert change[36:].mean() > change[:28].mean()  # the third square lies in rows 41 to 53


# --- DGMSNet and ensembles -----------------------------------------------------------------------------------------


def test_dgmsnet_is_scar_net_without_its_attentions():
    plain, dgmsnet, full = tiny(adaptive="conv", use_mcca=False), tiny("dgmsnet"), tiny()
    assert plain.state_dict().keys() == dgmsnet.state_dict().keys()
    assert len(full.state_dict()) > len(dgmsnet.state_dict())
    assert dgmsnet.passes.count == 1 and full.passes.count == 2
    assert "weight_map" in full.options and "weight_map" not in dgmsnet.options
    with pytest.raises(ConfigError, match="that is scar-net"):
        make_config("dgmsnet", "tiny", use_mcca=True)


def test_sizes_follow_the_ancestor():
    method = build_method(make_config("dgmsnet", "paper", scheme="lumbar11"))
    encoder = method.networks[0].encoder
    _, low, high = encoder(torch.zeros(1, 1, 96, 96))
    assert low.shape == (1, 128, 24, 24) and high.shape == (1, 128, 6, 6)
    exit_block = encoder.middle[-1]
    layers = [m for m in exit_block.modules() if isinstance(m, torch.nn.Conv2d) and m.groups == 1]
    assert [(m.in_channels, m.out_channels) for m in layers] == [(364, 364), (364, 512), (512, 512), (364, 512)]
    assert [branch[0].dilation for branch in encoder.pyramid.dilated] == [(6, 6), (12, 12), (18, 18)]
    assert [layer[0].dilation for layer in encoder.exit] == [(2, 2)] * 3
    parameters = sum(p.numel() for p in method.parameters())
    assert abs(parameters / 10.35e6 - 1) < 0.002


def test_a_block_lowers_what_it_is_given_as_well_as_it_raises_it():
    """ReLU before each convolution, the sum after the last normalization; the earlier block's features only grew."""
    torch.manual_seed(0)
    x = torch.randn(2, 12, 16, 16)
    for block, both in ((XceptionBlock(12, 12, "batch"), True), (EarlierBlock(12, 12, "batch"), False)):
        before, after = block(x)
        change = after - x
        assert bool((change < -0.1).any()) == both and (change > 0.1).any()
        assert bool((before < 0).any()) == both  # the tap is normalized, not cut off
    block = XceptionBlock(12, 16, "group", 2)
    y = x
    for number in (1, 3):
        y = block.body[number](F.relu(y))
    assert torch.allclose(block(x)[0], y, atol=1e-6)
    assert torch.allclose(block(x)[1], block.last[1](F.relu(y)) + block.skip(x), atol=1e-6)


def test_checkpoints_of_the_first_version_keep_their_blocks():
    new = make_config("scar-net", "tiny")
    assert (new.block, new.weak_statistics) == ("xception", True)
    stored = {k: v for k, v in new.model_dump(mode="json").items() if k not in ("block", "weak_statistics", "gamma")}
    old = stored_config(stored)
    assert (old.block, old.weak_statistics, old.gamma) == ("earlier", False, 0.0)
    assert isinstance(build_method(old).networks[0].encoder.quarter, EarlierBlock)
    assert stored_config(new.model_dump(mode="json")) == new


def test_the_paper_s_preset_trains_as_the_paper_says():
    for method in ("scar-net", "dgmsnet"):
        config = make_config(method, "paper")
        training = TrainingConfig(method=config.model_dump(mode="json"), dataset="d", **config.recipe)
        o, a = training.optimization, training.data.augmentation
        assert (o.optimizer, o.learning_rate, o.schedule, o.steps, o.weight_decay) == (
            "adam",
            5e-4,
            "thirds",
            51600,
            1e-4,
        )
        assert (o.batch, training.data.weak_share, o.ema) == (4, 0.5, 0.0)
        assert (a.rotation_deg, a.rotation_probability) == (15.0, 0.4)
        others = a.model_dump()
        assert not any(v for k, v in others.items() if k.endswith("_probability") and k != "rotation_probability")


def test_bad_configurations_are_refused():
    with pytest.raises(ConfigError, match="keypoints"):
        make_config("scar-net", "tiny", scheme="pulmonary-av")
    with pytest.raises(ConfigError, match="multiple of heads"):
        make_config("scar-net", "tiny", heads=3)


@pytest.mark.parametrize(
    "values",
    [
        {"gate_low_features": True},
        {"channel_convolutions": True, "mcca_residual": "self"},
        {"mark_points": True, "mcca_residual": "attended", "gamma": 0.5, "context_mm": ()},
        {"norm": "batch", "weight_queries": False, "dice_weight": 0.0, "rank_weight": 0.0, "coordinates": False},
    ],
)
def test_every_choice_trains_and_predicts_in_half_precision(values):
    method, batch = tiny(**values), mixed_batch(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        losses = method.training_losses(batch)
        losses["total"].backward()
        with torch.inference_mode():
            maps = method.eval().evidence(batch.image, Context(batch.coordinates, keypoints=batch.keypoints))
    assert losses["total"].isfinite()
    assert gradient(method.networks[0].encoder) > 0
    assert torch.allclose(maps["classes"].sum(1), torch.ones(4, 64, 64), atol=1e-3)
    assert ("rank" in maps) == (method.config.rank_weight > 0)


def test_labels_are_fused_by_vote_or_by_the_most_consistent():
    classes = torch.zeros(3, 2, 2, 1, 2)
    classes[0] = torch.tensor([0.9, 0.1]).view(2, 1, 1)
    classes[1:] = torch.tensor([0.4, 0.6]).view(2, 1, 1)
    # first image: equally consistent, so two against one; second: the first network alone can be trusted
    distances = torch.tensor([[2.0, 0.5], [2.2, 30.0], [1.9, torch.inf]])
    fused, best = fuse(classes, distances)
    assert fused[0].argmax(0).flatten().tolist() == [1, 1]
    assert fused[1].argmax(0).flatten().tolist() == [0, 0]
    assert torch.equal(fused[1], classes[0, 1])
    assert best.tolist() == [2, 0]
    assert torch.allclose(fused.sum(1), torch.ones(2, 1, 2))


def test_disagreement_is_the_distance_of_peaks_and_masks():
    probabilities = torch.zeros(2, 3, 20, 20)
    probabilities[:, 0] = 0.5
    probabilities[0, 1, 4:7, 4:7] = 1.0
    points = torch.tensor([[[5.0, 8.0], [1.0, 1.0]], [[5.0, 8.0], [NAN, NAN]]])
    found = disagreement(probabilities, points, torch.tensor([[1.0, 2.0]] * 2), (1, 2))
    assert found.tolist() == [6.0, torch.inf]


def test_an_ensemble_trains_its_networks_apart_and_predicts():
    method = tiny(ralf_ensemble=(40.0, 80.0))
    losses = method.training_losses(mixed_batch(1, 1))
    losses["total"].backward()
    assert all(gradient(n.encoder) > 0 for n in method.networks)
    method.eval()
    batch = mixed_batch(2, 0)
    with torch.inference_mode():
        maps = method.evidence(batch.image, Context(batch.coordinates))
    assert torch.allclose(maps["classes"].sum(1), torch.ones(2, 64, 64), atol=1e-4)
    assert maps["rank"].shape == (2, 64, 64)


# --- in a volume ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def phantom():
    spec = PhantomSpec(top="T12", bottom="S1", slices=5, slice_mm=6.0, pixel_mm=1.5, contrast="t2", noise=0.0)
    return make_phantom(spec, np.random.default_rng(2))


def checkpoint(folder, name="scar", **values):
    method = tiny(scheme="lumbar-mr", **values)
    with torch.no_grad():  # untrained heatmaps rarely reach the threshold, and log W moves untrained attention little
        for network in method.networks:
            network.recognition_decoder.head.weight *= 5
            network.adaptive.attention[0].weight *= 5
            network.fusion.inter_scale.fill_(1.0)
    metadata = {
        "method": method.config.model_dump(mode="json"),
        "preprocessing": Preprocessing(pixel_mm=2.0).model_dump(mode="json"),
    }
    save_checkpoint(folder / f"{name}.safetensors", method.state_dict(), metadata)
    return folder / f"{name}.safetensors"


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return Predictor(checkpoint(tmp_path_factory.mktemp("scar")), "cpu")


def evidence_of(predictor, phantom, hints=None, **options):
    from SpineSegAILib.inference.sliding_window import predict_volume

    volume = predictor.preprocessing.apply(phantom.image)
    return volume, predict_volume(predictor.method, volume, predictor.device, hints=hints, options=options)


def test_the_result_does_not_depend_on_the_batch(predictor, phantom):
    _, one = evidence_of(predictor, phantom, batch=1)
    _, all_at_once = evidence_of(predictor, phantom, batch=8)
    assert np.allclose(one.classes, all_at_once.classes, atol=1e-5)
    assert one.keypoints.keys() == all_at_once.keypoints.keys()
    assert all(one.keypoints[i] == pytest.approx(all_at_once.keypoints[i], abs=1e-2) for i in one.keypoints)


def test_predicted_key_points_come_back_and_can_be_given_as_hints(predictor, phantom):
    result = predictor.segment(phantom.image)
    assert result.keypoints
    again = predictor.segment(phantom.image, Hints(keypoints=result.keypoints))
    assert again.keypoints.items() >= result.keypoints.items()
    assert again.provenance["hints"] == ["keypoints"]


def test_a_moved_key_point_changes_the_result_near_it(predictor, phantom):
    l3 = structure("L3").id
    placed = {i: p for i, p in phantom.keypoints.items() if i in predictor.scheme.channel_of}
    moved = {**placed, l3: tuple(np.add(placed[l3], (0.0, 15.0, 0.0)))}  # backwards
    volume, before = evidence_of(predictor, phantom, Hints(keypoints=placed))
    _, after = evidence_of(predictor, phantom, Hints(keypoints=moved))
    at = tuple(round(v) for v in volume.index_of(placed[l3]))
    change = np.abs(before.classes - after.classes).max(0)[at[0]]
    away = np.hypot(*(np.indices(change.shape) - np.reshape(at[1:], (2, 1, 1)))) * volume.spacing[1]
    assert change.max() > 1e-3
    assert change[away < 25].mean() > 2 * change[away > 60].mean()
    assert after.keypoints[l3] == pytest.approx(volume.index_of(moved[l3]))
    _, flat = evidence_of(predictor, phantom, Hints(keypoints=moved), weight_map="off")
    _, other = evidence_of(predictor, phantom, Hints(keypoints=placed), weight_map="off")
    assert np.array_equal(flat.classes, other.classes)


def test_mechanisms_can_be_switched_off_in_the_same_weights(predictor, phantom):
    _, whole = evidence_of(predictor, phantom)
    for name in ("weight_map", "mcca"):
        _, without = evidence_of(predictor, phantom, **{name: "off"})
        assert np.abs(whole.classes - without.classes).max() > 1e-5, name
    _, without = evidence_of(predictor, phantom, rank="off")
    assert whole.rank is not None and without.rank is None


def test_key_points_that_cannot_be_are_refused(predictor, phantom):
    l3, point = structure("L3").id, phantom.keypoints[structure("L3").id]
    with pytest.raises(HintError, match=r"L3.*outside the image"):
        predictor.segment(phantom.image, Hints(keypoints={l3: (point[0], point[1] + 900, point[2])}))
    with pytest.raises(HintError, match="no center"):
        predictor.segment(phantom.image, Hints(keypoints={structure("canal").id: point}))
    with pytest.raises(SchemeError, match="not in the label scheme"):
        predictor.segment(phantom.image, Hints(keypoints={structure("C5").id: point}))
    assert predictor.segment(phantom.image, Hints(keypoints={})).provenance["hints"] == []


def test_key_points_that_would_steer_nothing_are_refused(tmp_path, phantom):
    config = make_config("scar-net", "tiny", scheme="lumbar-mr", adaptive="conv").model_dump(mode="json")
    metadata = {"method": config, "preprocessing": Preprocessing(pixel_mm=2.0).model_dump(mode="json")}
    save_checkpoint(tmp_path / "c.safetensors", tiny(scheme="lumbar-mr", adaptive="conv").state_dict(), metadata)
    predictor = Predictor(tmp_path / "c.safetensors", "cpu")
    with pytest.raises(HintError, match="do not steer"):
        predictor.segment(phantom.image, Hints(keypoints=phantom.keypoints))


def test_dgmsnet_takes_no_key_points(tmp_path, phantom):
    method = tiny("dgmsnet", scheme="lumbar-mr")
    metadata = {
        "method": method.config.model_dump(mode="json"),
        "preprocessing": Preprocessing(pixel_mm=2.0).model_dump(mode="json"),
    }
    save_checkpoint(tmp_path / "d.safetensors", method.state_dict(), metadata)
    with pytest.raises(HintError, match="keypoints"):
        Predictor(tmp_path / "d.safetensors", "cpu").segment(phantom.image, Hints(keypoints=phantom.keypoints))


def test_spacing_is_read_off_the_coordinates():
    coordinates = coordinate_channels((8, 10), (1.5, 0.75))[None]
    assert torch.allclose(pixel_spacing(coordinates), torch.tensor([[1.5, 0.75]]), atol=1e-5)
