"""Verdiff-Net: the diffusion, its modules, its encodings, its stages, and what it says about its own doubt."""

import math

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from tiny_data import write_tiny_dataset
from torch.nn import functional as F

from SpineSegAILib import cli
from SpineSegAILib.anatomy import SCHEMES, Kind, scheme, structure
from SpineSegAILib.checkpoints import load_tensors, read_header, save_checkpoint
from SpineSegAILib.errors import Cancelled, ConfigError, HintError
from SpineSegAILib.hints import Hints
from SpineSegAILib.imaging import Preprocessing, read_image
from SpineSegAILib.inference import Predictor
from SpineSegAILib.inference.sliding_window import slices_per_pass
from SpineSegAILib.methods.base import Batch, Context, coordinate_channels
from SpineSegAILib.methods.catalog import build_method, make_config
from SpineSegAILib.methods.verdiff_net.corruption import corrupted
from SpineSegAILib.methods.verdiff_net.diffusion import SAMPLERS, RecentredDiffusion, Sampling
from SpineSegAILib.methods.verdiff_net.encoding import gray_codes, make_encoding
from SpineSegAILib.methods.verdiff_net.losses import code_cross_entropy, weighted_square_error
from SpineSegAILib.methods.verdiff_net.msfm import MSFM
from SpineSegAILib.methods.verdiff_net.nsa import NSA
from SpineSegAILib.phantoms.spine import PhantomSpec, make_phantom
from SpineSegAILib.training.config import DataConfig, TrainingConfig
from SpineSegAILib.training.request import TrainingRequest
from SpineSegAILib.training.run import RunDirectory
from SpineSegAILib.training.trainer import run_training


def noise_of(seed: int, shape: tuple[int, ...]):
    g = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=g)


def tiny(method_id: str = "verdiff-net", **values):
    torch.manual_seed(0)
    return build_method(make_config(method_id, "tiny", **{"scheme": "lumbar11", **values}))


def context(sizes: tuple[int, int], **values) -> Context:
    return Context(coordinate_channels(sizes, (2.0, 2.0))[None], **values)


def blocks_batch(channels: int, size: int = 64) -> Batch:
    """Three bright blocks with different labels (one label where there is one structure)."""
    image = torch.zeros(1, 1, size, size)
    label = torch.zeros(1, size, size, dtype=torch.long)
    for number in range(3):
        rows = slice(5 + 20 * number, 20 + 20 * number)
        label[:, rows, 20:45] = min(number + 3, channels - 1)
        image[:, :, rows, 20:45] = 1.0
    allowed = F.one_hot(label, channels).movedim(-1, 1).bool()
    rank = torch.where(label > 0, 7.0 - label, float("nan"))
    return Batch(image, allowed, rank, coordinate_channels((size, size), (2.0, 2.0))[None])


# --- a prior that is made like the default method ---------------------------------------------------------------------


def test_a_prior_of_residual_blocks_starts_as_the_default_network():
    shape = {"widths": (8, 12, 16), "blocks": (1, 2, 1)}
    teacher = build_method(make_config("resenc-unet", "tiny", scheme="lumbar11", **shape)).eval()
    mine = tiny(prior_widths=shape["widths"], prior_blocks=shape["blocks"], rank_weight=0.5).eval()
    found, state = mine.remap_weights(teacher.state_dict()), mine.state_dict()
    taken = {name: value for name, value in found.items() if name in state and state[name].shape == value.shape}
    assert len(taken) == len([n for n in teacher.state_dict() if n.startswith(("network.", "rank_head."))])
    mine.load_state_dict({**state, **taken})
    image, where = torch.randn(2, 1, 32, 32), coordinate_channels((32, 32), (2.0, 2.0))[None].expand(2, -1, -1, -1)
    with torch.inference_mode():
        theirs, rank = teacher(image, where)
        condition = mine.condition(image, where)
        own = mine.network_input(image, where)
        features = mine.conditional.network(torch.cat([own, condition.fused], 1))
        assert torch.allclose(features[0], teacher.network(own)[0], atol=1e-5)  # whatever the fused features say
        assert torch.allclose(condition.rank, rank, atol=1e-4)
    assert theirs.shape != condition.logits.shape  # kinds there, classes here


def test_a_prior_of_residual_blocks_sees_the_fused_features_and_hands_its_encoder_on():
    method = tiny(prior_widths=(8, 12, 16), prior_blocks=(1, 1, 1))
    losses = method.training_losses(blocks_batch(method.scheme.channels))
    losses["total"].backward()
    assert all(p.grad.abs().sum() > 0 for p in method.fusion.parameters() if p.requires_grad and p.ndim == 4)
    with pytest.raises(ConfigError, match="same length"):
        make_config("verdiff-net", "tiny", prior_blocks=(1,))


# --- the process -----------------------------------------------------------------------------------------------------


def test_without_noise_the_noisy_mask_is_the_mask():
    mask, center = torch.sign(torch.randn(2, 3, 8, 8)), torch.rand(2, 3, 8, 8)
    still = RecentredDiffusion(10, (1e-12, 1e-12))
    noisy = still.noisy(mask, center, torch.tensor([0, 9]), torch.randn_like(mask))
    assert torch.allclose(noisy, mask, atol=1e-4)


def test_at_the_end_the_noisy_mask_is_noise_around_the_prior():
    diffusion = RecentredDiffusion()
    assert diffusion.remaining[-1] == pytest.approx(4.0e-5, rel=0.02)
    center = torch.full((1, 1, 400, 400), -0.3)
    noisy = diffusion.noisy(torch.ones_like(center), center, torch.tensor([999]), noise_of(0, center.shape)())
    assert noisy.mean() == pytest.approx(-0.3, abs=0.02)
    assert noisy.std() == pytest.approx(1.0, abs=0.01)


def test_one_step_after_the_other_ends_where_the_closed_form_does():
    diffusion = RecentredDiffusion(300)
    center, mask, count = 0.4, -1.0, 100_000
    g = torch.Generator().manual_seed(3)
    y = torch.full((count,), mask)
    for beta in diffusion.betas:
        root = math.sqrt(1 - beta)
        y = root * y + (1 - root) * center + math.sqrt(beta) * torch.randn(count, generator=g)
    mean = center + float(diffusion.keep[-1]) * (mask - center)
    assert float(y.mean()) == pytest.approx(mean, abs=0.01)
    assert float(y.std()) == pytest.approx(float(diffusion.spread[-1]), abs=0.01)


def test_a_prior_of_zero_is_the_ordinary_diffusion():
    from monai.networks.schedulers import DDPMScheduler

    mask, noise, time = torch.randn(4, 2, 8, 8), torch.randn(4, 2, 8, 8), torch.tensor([0, 10, 500, 999])
    ours = RecentredDiffusion().noisy(mask, torch.zeros_like(mask), time, noise)
    assert torch.allclose(ours, DDPMScheduler(1000).add_noise(mask, noise, time), atol=1e-5)


def test_the_posterior_is_bayes_rule():
    """Density of y_{t−1} given y_t and y0, on a grid, against the formula with all three terms."""
    diffusion = RecentredDiffusion(50)
    time, mask, center, noisy = 30, 1.0, -0.2, 0.5
    grid = np.linspace(-6, 6, 20_001)
    before, beta = diffusion.remaining[time - 1], diffusion.betas[time]
    mean = math.sqrt(before) * mask + (1 - math.sqrt(before)) * center
    root = math.sqrt(1 - beta)
    log = -((grid - mean) ** 2) / (2 * (1 - before)) - (noisy - root * grid - (1 - root) * center) ** 2 / (2 * beta)
    density = np.exp(log - log.max())
    density /= density.sum()
    g0, g1, g2, variance = diffusion.posterior(time)
    assert g0 * mask + g1 * noisy + g2 * center == pytest.approx((density * grid).sum(), abs=1e-6)
    assert variance == pytest.approx((density * grid**2).sum() - (density * grid).sum() ** 2, abs=1e-6)


def test_weights_of_the_kl_term():
    diffusion = RecentredDiffusion()
    weights = diffusion.kl_weights()
    for time, expected in ((2, 2.7e3), (10, 46), (100, 0.09), (1000, 4e-7)):  # counted from 1
        assert weights[time - 1] == pytest.approx(expected, rel=0.08)
    assert float(diffusion.kl_weight.min()) == pytest.approx(0.01)
    assert float(diffusion.kl_weight.max()) == 5.0


# --- the samplers ----------------------------------------------------------------------------------------------------

SETTINGS = [("ddpm", 1000, 1000), ("ddpm", 50, 1000), ("ddim", 20, 1000), ("ddim", 6, 300), ("dpm++2m", 12, 1000),
            ("dpm++2m", 5, 300), ("ddim", 1, 1), ("dpm++2m", 1, 1000)]  # fmt: skip


@pytest.mark.parametrize("scale", [1.0, 0.2])
@pytest.mark.parametrize(("sampler", "steps", "start"), SETTINGS)
def test_an_oracle_is_obeyed(sampler, steps, start, scale):
    mask = torch.sign(torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)))
    center = torch.rand(mask.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    sampling = Sampling(sampler, steps, 1, start)
    diffusion = RecentredDiffusion(scale=scale)
    found = diffusion.sample(lambda y, t: mask, center, noise_of(2, mask.shape), sampling)
    assert (found - mask).abs().max() < 1e-3


@pytest.mark.parametrize("scale", [1.0, 0.2])
def test_a_scaled_mask_is_small_against_the_noise_and_what_the_network_sees_is_not(scale):
    diffusion = RecentredDiffusion(scale=scale)
    mask, center = torch.sign(torch.randn(1, 1, 300, 300, generator=torch.Generator().manual_seed(0))), torch.zeros(1)
    for time in (0, 200, 999):
        at = torch.tensor([time])
        noisy = diffusion.noisy(mask, center.expand_as(mask), at, noise_of(1, mask.shape)())
        signal = float((noisy * mask).mean())
        assert signal == pytest.approx(scale * float(diffusion.keep[time]), abs=0.02)
        assert float(diffusion.leveled(noisy, at).std()) == pytest.approx(1.0, abs=0.02)
    unscaled = RecentredDiffusion()
    assert torch.allclose(unscaled.leveled(noisy, at), noisy, atol=1e-6)
    inside = (diffusion.kl_weight > 0.01) & (diffusion.kl_weight < 5)  # of masks that are smaller by s: by s²
    assert torch.allclose(
        diffusion.kl_weight[inside], scale**2 * torch.tensor(unscaled.kl_weights()).float()[inside], rtol=1e-4
    )


def pull(y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A denoiser that is sure of nothing: its answer depends on what it is given."""
    return torch.tanh(0.7 * y)


def test_steps_agree_with_monai_ddpm():
    from monai.networks.schedulers import DDPMScheduler

    shape = (2, 1, 5, 5)
    center = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    ours = RecentredDiffusion(60).sample(pull, center, noise_of(5, shape), Sampling("ddpm", 60, 1, 60))
    scheduler = DDPMScheduler(60, clip_sample=False, prediction_type="sample")
    g = torch.Generator().manual_seed(5)
    rest = torch.randn(shape, generator=g) * float((1 - scheduler.alphas_cumprod[-1]).sqrt())
    for t in range(59, -1, -1):
        rest, _ = scheduler.step(pull(center + rest, torch.tensor([t])) - center, t, rest, generator=g)
    assert torch.allclose(ours, center + rest, atol=1e-4)


def test_steps_agree_with_monai_ddim():
    from monai.networks.schedulers import DDIMScheduler

    shape = (2, 1, 5, 5)
    center = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    sampling = Sampling("ddim", 20, 1, 1000)
    assert sampling.times == tuple(range(999, 0, -50))
    ours = RecentredDiffusion().sample(pull, center, noise_of(5, shape), sampling)
    scheduler = DDIMScheduler(1000, clip_sample=False, prediction_type="sample")
    scheduler.set_timesteps(20)
    rest = noise_of(5, shape)() * float((1 - scheduler.alphas_cumprod[-1]).sqrt())
    for t in sampling.times:
        rest, _ = scheduler.step(pull(center + rest, torch.tensor([t])) - center, t, rest)
    assert torch.allclose(ours, center + rest, atol=1e-4)


def test_the_two_step_solver_is_more_exact_than_ddim():
    """Gaussian masks have an exact denoiser and a known end for every start of the deterministic flow."""
    diffusion, deviation = RecentredDiffusion(), 0.6
    shape = (1, 1, 30, 30)

    def exact(y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        keep, spread = float(diffusion.keep[t[0]]), float(diffusion.spread[t[0]])
        return y * keep * deviation**2 / (keep**2 * deviation**2 + spread**2)

    def end(sampler: str, steps: int) -> torch.Tensor:
        return diffusion.sample(exact, torch.zeros(shape), noise_of(1, shape), Sampling(sampler, steps, 1, 1000))

    truth = end("ddim", 1000)
    errors = {s: float((end(s, 40) - truth).abs().mean()) for s in ("ddim", "dpm++2m")}
    assert errors["dpm++2m"] < 0.5 * errors["ddim"]


def test_a_later_start_begins_at_the_prior_with_the_noise_of_that_time():
    diffusion, shape = RecentredDiffusion(), (1, 1, 200, 200)
    seen = []

    def watch(y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append((int(t[0]), y))
        return y

    diffusion.sample(watch, torch.full(shape, 0.7), noise_of(0, shape), Sampling("ddim", 6, 1, 300))
    assert [time for time, _ in seen] == [299, 249, 199, 149, 99, 49]
    assert seen[0][1].mean() == pytest.approx(0.7, abs=0.02)
    assert seen[0][1].std() == pytest.approx(math.sqrt(1 - diffusion.remaining[299]), abs=0.02)


def test_seeds_and_priors_decide_the_samples():
    diffusion, shape = RecentredDiffusion(), (1, 1, 8, 8)
    center = torch.zeros(shape)
    draw = lambda seed, f: diffusion.sample(pull, f, noise_of(seed, shape), Sampling())  # noqa: E731
    assert torch.equal(draw(1, center), draw(1, center))
    assert not torch.allclose(draw(1, center), draw(2, center), atol=0.1)
    assert not torch.allclose(draw(1, center), draw(1, center + 0.5), atol=0.05)


def test_times_fall_evenly_from_the_start():
    assert Sampling("ddim", 6, 1, 300).times == (299, 249, 199, 149, 99, 49)
    assert Sampling("ddpm", 1000, 1, 1000).times == tuple(range(999, -1, -1))
    assert Sampling("ddim", 7, 1, 7).times == tuple(range(6, -1, -1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "0 steps"),
        ({"steps": "many"}, "whole number of steps"),
        ({"steps": 2.5}, "whole number of steps"),
        ({"steps": 400, "t_start": 300}, "400 steps"),
        ({"t_start": 1001}, "1000 times"),
        ({"t_start": 0}, "1000 times"),
        ({"samples": 0}, "0 samples"),
        ({"seed": -1}, "negative"),
        ({"sampler": "euler"}, "no sampler “euler”"),
    ],
)
def test_options_that_cannot_be_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        Sampling.from_options(options, 1000)


def test_options_have_defaults_and_may_be_text():
    for sampler, steps in SAMPLERS.items():
        assert Sampling.from_options({"sampler": sampler}, 1000).steps == steps
    assert Sampling.from_options({}, 1000) == Sampling()
    given = {"steps": "5", "samples": "3", "t_start": "300", "preview": "on", "seed": "7"}
    assert Sampling.from_options(given, 1000) == Sampling("ddim", 5, 3, 300, 7, True)
    assert Sampling.from_options({"t_start": 8}, 1000).steps == 8


# --- the modules -----------------------------------------------------------------------------------------------------


def test_branch_weights_sum_to_one_and_follow_the_image():
    torch.manual_seed(0)
    module = MSFM(1, 32).train()
    found = []
    for scale in (0.5, 3.0):
        image = scale * torch.randn(1, 1, 16, 16)  # a batch of one, as the paper trains
        responses = torch.stack([b(image) for b in module.branches], 1)
        weights = module.weights(responses)
        assert weights.shape == (1, 3, 32)
        assert torch.allclose(weights.sum(1), torch.ones(1, 32), atol=1e-6)
        expected = sum(weights[:, k, :, None, None] * responses[:, k] for k in range(3))
        assert torch.allclose(module(image), expected, atol=1e-5)
        found.append(weights)
    assert not torch.allclose(found[0], found[1], atol=1e-3)
    module(image).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_the_adapter_keeps_the_shape_and_chooses_its_kernel():
    torch.manual_seed(0)
    adapter = NSA(8)
    h = torch.randn(2, 8, 20, 12)
    for share, unused in ((1.0, 1), (0.0, 0)):
        adapter.zero_grad()
        out = adapter(h, torch.full((2, 1, 20, 12), share))
        assert out.shape == h.shape
        out.square().sum().backward()
        assert adapter.fine[unused].weight.grad.abs().max() == 0
        assert adapter.fine[1 - unused].weight.grad.abs().max() > 0
    assert [c.kernel_size for c in adapter.fine] == [(3, 3), (5, 5)]
    assert (adapter.wide.groups, adapter.wide.dilation, adapter.wide.padding) == (8, (3, 3), (9, 9))
    with pytest.raises(ValueError, match="even"):
        NSA(7)


def test_the_adapter_multiplies_what_it_is_given_by_its_attention():
    """Equation 16: V(X) = X ⊙ T, beside the skip."""
    torch.manual_seed(0)
    adapter, share = NSA(8), torch.rand(1, 1, 12, 10)
    h = torch.randn(1, 8, 12, 10)
    x = adapter.norm(h)
    assert torch.allclose(adapter(h, share), h + x * adapter.attention(x, share), atol=1e-6)
    doubled = adapter.attention(x, share)
    with torch.no_grad():  # a constant attention scales what is there: alone, it would add the same everywhere
        adapter.expand.weight.zero_()
        adapter.expand.bias.fill_(0.5)
        assert torch.allclose(adapter(h, share), h + 0.5 * x, atol=1e-6)
    assert doubled.std() > 1e-3


def test_the_denoiser_knows_the_time():
    method = tiny(scheme="vertebra").eval()
    image = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        c = method.condition(image, coordinate_channels((32, 32), (2.0, 2.0))[None])
        prior = c.logits.softmax(1)
        center = method.center(prior)
        guidance = method._guidance(c, center, prior)
        noisy = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
        said = [method.clean_logits(noisy, torch.tensor([t]), guidance, center) for t in (5, 500, 995)]
    assert (said[0] - said[1]).abs().mean() > 1e-3
    assert (said[1] - said[2]).abs().mean() > 1e-3


def test_the_adapter_can_have_one_kernel_only():
    torch.manual_seed(0)
    for kernel in ("3", "5"):
        adapter = NSA(4, kernel)
        assert [c.kernel_size[0] for c in adapter.fine] == [int(kernel)]
        h = torch.randn(1, 4, 9, 9)
        assert torch.equal(adapter(h, torch.zeros(1, 1, 9, 9)), adapter(h, torch.ones(1, 1, 9, 9)))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"msfm": False, "nsa": False},
        {"nsa_kernel": "5", "patch": 2},
        {"prior": False},
        {"encoding": "onehot"},
        {"encoding": "binary+label"},
        {"encoding": "kind+label"},
        {"scheme": "vertebra"},
        {"rank_weight": 0.5, "coordinates": False},
        {"widths": (8, 12), "prior_widths": (8, 8, 8, 8), "attention_levels": 0, "blocks": 2},
    ],
)
def test_every_flag_learns_and_predicts(values):
    method = tiny(**values)
    n = method.scheme.channels
    batch = blocks_batch(n)
    losses = method.training_losses(batch)
    losses["total"].backward()
    grads = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in method.parameters()]
    assert sum(grads) > 0.85 * len(grads)
    options = {"samples": 2, "steps": 2}
    with torch.inference_mode():
        maps = method.eval().evidence(batch.image, context((64, 64), options=options))
    assert maps["classes"].shape == (1, n, 64, 64)
    assert torch.allclose(maps["classes"].sum(1), torch.ones(1, 64, 64), atol=1e-4)
    assert maps["uncertainty"].shape == (1, 64, 64)
    assert ("rank" in losses) == (method.config.rank_weight > 0)


def test_the_loss_of_kinds_does_not_care_about_levels():
    method = tiny(kind_weight=2.0)
    kinds = [s.kind for s in method.scheme.structures]
    vertebrae = [1 + i for i, kind in enumerate(kinds) if kind is Kind.VERTEBRA]
    batch = blocks_batch(method.scheme.channels)

    def loss_where(logits):
        condition = method.condition(batch.image, batch.coordinates)
        condition.logits = logits
        return method._prior_losses(condition, batch)

    truth = batch.allowed.float() * 20
    swapped = truth.clone()
    swapped[:, vertebrae] = truth[:, [*vertebrae[1:], vertebrae[0]]]  # each called by its neighbor's name
    right, renamed = loss_where(truth), loss_where(swapped)
    assert renamed["prior_cross_entropy"] > right["prior_cross_entropy"] + 1
    assert torch.allclose(renamed["kind"], right["kind"], atol=1e-4)
    missed = truth.clone()
    missed[:, 0] = 40.0
    assert loss_where(missed)["kind"] > right["kind"] + 1
    assert method.training_losses(batch)["kind"] > 0
    assert "kind" not in tiny().training_losses(batch)


def test_the_baseline_has_none_of_it():
    config = make_config("ddpm", "small")
    assert not (config.prior or config.msfm or config.nsa)
    method = tiny("ddpm", scheme="vertebra")
    assert method.conditional is None
    probabilities = torch.rand(1, 2, 4, 4)
    assert torch.equal(method.center(probabilities), torch.zeros(1, 1, 4, 4))
    with pytest.raises(ConfigError, match="no prior to preview"):
        method.evidence(torch.zeros(1, 1, 16, 16), context((16, 16), options={"preview": "on"}))


# --- encodings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(SCHEMES))
@pytest.mark.parametrize("kind", ["auto", "bits", "onehot"])
def test_every_class_survives_encoding(name, kind):
    encoding = make_encoding(make_config("verdiff-net", "tiny", scheme=name, encoding=kind))
    count = scheme(name).channels
    labels = torch.arange(count)[None, None]
    codes = encoding.encode(labels)
    assert set(codes.unique().tolist()) == {-1.0, 1.0}
    prior = torch.full((1, count, 1, count), 1 / count)
    decoded = encoding.decode(codes, encoding.naming(prior))
    assert torch.equal(decoded.argmax(1), labels)
    assert decoded.amax(1).min() > 0.95
    onehot = F.one_hot(labels, count).movedim(-1, 1).float()
    assert torch.allclose(encoding.center(onehot), codes)


def test_the_prior_of_a_binary_mask_is_twice_its_probability_less_one():
    encoding = make_encoding(make_config("verdiff-net", "tiny", scheme="vertebra"))
    p = torch.rand(1, 1, 4, 4)
    assert torch.allclose(encoding.center(torch.cat([1 - p, p], 1)), 2 * p - 1, atol=1e-6)


def test_as_few_bits_as_suffice_and_never_a_class_that_does_not_exist():
    for name, bits in (("mrspineseg", 5), ("lumbar11", 4), ("lumbar-mr", 5)):
        config = make_config("verdiff-net", "tiny", scheme=name)
        encoding = make_encoding(config)
        assert encoding.channels == bits
        anything = torch.randn(1, bits, 50, 50, generator=torch.Generator().manual_seed(0)) * 2
        decoded = encoding.decode(anything, torch.empty(0))
        assert decoded.shape[1] == scheme(name).channels
        assert torch.allclose(decoded.sum(1), torch.ones(1, 50, 50), atol=1e-5)


def test_neighbours_along_the_spine_differ_in_one_bit():
    codes = gray_codes(20, 5)
    assert ((codes[1:] != codes[:-1]).sum(1) == 1).all()
    assert len(torch.unique(codes, dim=0)) == 20
    lumbar = scheme("lumbar-mr")
    encoding = make_encoding(make_config("verdiff-net", "tiny", scheme="lumbar-mr"))
    row = lambda name: encoding.codes[lumbar.channel_of[structure(name).id]]  # noqa: E731
    for upper, lower in (("L3", "L3/L4"), ("L3/L4", "L4"), ("T11/T12", "T12")):
        assert (row(upper) != row(lower)).sum() == 1
    with pytest.raises(ValueError, match="32 codes"):
        gray_codes(33, 5)


def test_names_come_from_the_prior_where_the_state_is_binary():
    encoding = make_encoding(make_config("verdiff-net", "tiny", scheme="lumbar11", encoding="binary+label"))
    prior = torch.zeros(1, 11, 1, 2)
    prior[0, 0], prior[0, 4, 0, 0], prior[0, 7, 0, 1] = 0.9, 0.1, 0.1  # faint, but they know which
    naming = encoding.naming(prior)
    decoded = encoding.decode(torch.ones(1, 1, 1, 2), naming)
    assert decoded.argmax(1).tolist() == [[[4, 7]]]
    assert encoding.decode(-torch.ones(1, 1, 1, 2), naming).argmax(1).tolist() == [[[0, 0]]]


def test_a_state_of_kinds_takes_levels_from_the_prior_and_its_neighbourhood():
    lumbar = scheme("lumbar-mr")
    channel = lambda name: lumbar.channel_of[structure(name).id]  # noqa: E731
    encoding = make_encoding(make_config("verdiff-net", "tiny", scheme="lumbar-mr", encoding="kind+label"))
    assert encoding.channels == 5  # background, vertebra, disc, sacrum, canal
    labels = torch.zeros(1, 40, 8, dtype=torch.long)
    labels[:, 4:14], labels[:, 14:18], labels[:, 18:28] = channel("L3"), channel("L3/L4"), channel("L4")
    prior = F.one_hot(labels, lumbar.channels).movedim(-1, 1).float()
    naming = encoding.naming(prior)
    same = encoding.decode(encoding.center(prior), naming)
    assert torch.equal(same.argmax(1), labels)
    assert torch.allclose(same.sum(1), torch.ones(1, 40, 8), atol=1e-5)
    grown = labels.clone()
    grown[:, 2:4], grown[:, 28:31] = channel("L3"), channel("L4")  # beyond the hard edges
    kinds = torch.tensor(encoding.groups)[grown]
    assert torch.equal(encoding.decode(encoding.encode(kinds), naming).argmax(1), grown)


@pytest.mark.parametrize("encoding", ["kind+label", "binary+label", "bits", "onehot"])
def test_around_the_prior_an_untrained_denoiser_repeats_it_and_learns(encoding):
    method = tiny(scheme="lumbar11", encoding=encoding, around_prior=True)
    batch = blocks_batch(method.scheme.channels)
    method.eval()
    with torch.inference_mode():
        prior = method.evidence(batch.image, context((64, 64), options={"preview": "on"}))["classes"]
        again = method.encoding.decode(method.center(prior), method.encoding.naming(prior))
        drawn = method.evidence(batch.image, context((64, 64), options={"samples": 1, "steps": 3}))["classes"]
    assert (drawn - again).abs().max() < 0.05  # the prior's logits are capped
    method.train()
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        method.training_losses(batch)["total"].backward()
        optimizer.step()
    assert all(p.grad.abs().sum() > 0 for p in method.denoiser.head.parameters())
    assert method.denoiser.stem.weight.grad.abs().sum() > 0


def test_settings_that_cannot_be_are_refused():
    for values, words in (
        ({"encoding": "bits", "bits": 3, "scheme": "lumbar-mr"}, "3 bits make 8 codes"),
        ({"encoding": "binary", "scheme": "lumbar11"}, "two codes"),
        ({"prior": False, "stage": "prior"}, "no prior to train"),
        ({"prior": False, "encoding": "binary+label"}, "binary\\+label"),
        ({"prior": False, "encoding": "kind+label"}, "kind\\+label"),
        ({"dims": 3}, "dims must be 2"),
        ({"widths": (7, 8)}, "even"),
        ({"patch": 3}, "patch must be"),
        ({"msfm_kernels": (3, 4)}, "odd"),
        ({"beta": (0.1, 0.01)}, "beta must rise"),
        ({"timesteps": 100}, "still shows"),
        ({"attention_levels": 4}, "attention_levels"),
    ):
        with pytest.raises(ConfigError, match=words):
            make_config("verdiff-net", "tiny", **values)


# --- losses and stages -----------------------------------------------------------------------------------------------


def test_the_loss_of_a_decided_voxel_is_binary_cross_entropy():
    encoding = make_encoding(make_config("verdiff-net", "tiny", scheme="lumbar11"))
    g = torch.Generator().manual_seed(0)
    label = torch.randint(0, 11, (2, 6, 6), generator=g)
    logits = torch.randn(2, 4, 6, 6, generator=g)
    allowed = F.one_hot(label, 11).movedim(-1, 1).bool()
    target = (encoding.encode(label) + 1) / 2
    expected = F.binary_cross_entropy_with_logits(logits, target)
    found = code_cross_entropy(encoding, logits, allowed)
    assert found == pytest.approx(float(expected), rel=1e-5)
    with torch.autocast("cpu", torch.bfloat16):  # mixed precision does not round it
        assert torch.equal(code_cross_entropy(encoding, logits, allowed), found)


@pytest.mark.parametrize("kind", ["bits", "onehot"])
def test_what_is_unknown_teaches_nothing(kind):
    encoding = make_encoding(make_config("verdiff-net", "tiny", scheme="lumbar11", encoding=kind))
    logits = torch.randn(1, encoding.channels, 1, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    allowed = torch.zeros(1, 11, 1, 3, dtype=torch.bool)
    allowed[..., 0] = True  # anything
    allowed[:, [0, 3], :, 1] = True  # background or L3
    allowed[:, 5, :, 2] = True  # L5
    code_cross_entropy(encoding, logits, allowed).backward()
    sizes = logits.grad.abs().sum((0, 1, 2))
    assert sizes[0] < 1e-6
    assert sizes[1] > 1e-3
    assert sizes[2] > 1e-3
    estimate = torch.zeros(1, 1, 1, 3, requires_grad=True)
    decided = allowed.sum(1) == 1
    weighted_square_error(estimate, torch.ones(1, 1, 1, 3), decided, torch.tensor([2.0])).backward()
    assert estimate.grad.flatten().tolist() == [0.0, 0.0, -4.0]


def test_each_stage_trains_its_own_network():
    batch = blocks_batch(11)
    for stage, prior_learns, denoiser_learns in (
        ("prior", True, False),
        ("denoise", False, True),
        ("joint", True, True),
    ):
        method = tiny(stage=stage)
        method.training_losses(batch)["total"].backward()
        of = lambda module: any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())  # noqa: E731
        assert of(method.conditional) == prior_learns
        assert of(method.fusion) == prior_learns
        assert of(method.denoiser) == denoiser_learns
        assert all(p.requires_grad == prior_learns for p in method.conditional.parameters())


def test_the_total_is_the_sum_of_its_parts():
    """Of each stage; the KL term counts as much as its weight says."""
    batch = blocks_batch(11)
    for stage, weight in (("prior", 1.0), ("denoise", 1.0), ("joint", 1.0), ("joint", 3.0)):
        method = tiny(stage=stage, kl_weight=weight, rank_weight=0.5)
        torch.manual_seed(4)
        losses = {name: float(value.detach()) for name, value in method.training_losses(batch).items()}
        total, factors = losses.pop("total"), {"kl": weight, "rank": 0.5}
        assert total == pytest.approx(sum(factors.get(name, 1.0) * value for name, value in losses.items()), rel=1e-5)
        assert ("kl" in losses) == (stage != "prior")
        assert losses.get("kl", 1.0) > 1e-4


@pytest.mark.parametrize("around", [True, False])
def test_the_noisy_mask_is_now_and_then_of_the_denoiser_s_own_answer(around):
    method, batch = tiny(recycling=1.0, around_prior=around), blocks_batch(11)
    asked, answer = [], torch.full((1, 4, 64, 64), 9.0)
    method.clean_logits = lambda noisy, time, guidance, center: asked.append((noisy, int(time))) or answer + 0 * noisy
    torch.manual_seed(1)
    method.training_losses(batch)
    (_, first), (noisy, second) = asked
    assert second <= first < 1000
    # All bits are answered to be set, so the second y_t is noise around them, whatever the labels are.
    keep, spread = float(method.diffusion.keep[second]), float(method.diffusion.spread[second])
    center = method.center(method.condition(batch.image, batch.coordinates).logits.softmax(1))
    assert float((noisy - (1 - keep) * center).detach().mean()) == pytest.approx(keep, abs=4 * spread / 64 + 0.02)
    method.config = method.config.model_copy(update={"recycling": 0.0})
    asked.clear()
    method.training_losses(batch)
    assert len(asked) == 1


def test_the_loss_repeats_after_the_same_seed():
    method, batch = tiny(), blocks_batch(11)
    totals = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        totals.append(float(method.training_losses(batch)["total"].detach()))
    assert totals[0] == totals[1] != totals[2]


@pytest.fixture(scope="module")
def overfitted():
    """Trained on one image: both networks at once, 180 steps, the prior often made worse."""
    method = tiny(patch=2, corruption=0.5)
    batch = blocks_batch(11)
    optimizer = torch.optim.AdamW(method.parameters(), 5e-3)
    torch.manual_seed(0)
    for _ in range(180):
        optimizer.zero_grad()
        method.training_losses(batch)["total"].backward()
        optimizer.step()
    return method.eval(), batch


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_a_learnt_case_is_given_back(overfitted, sampler):
    method, batch = overfitted
    options = {"sampler": sampler, "samples": 2, "steps": 10}
    with torch.inference_mode():
        maps = method.evidence(batch.image, context((64, 64), options=options))
    assert (maps["classes"].argmax(1) == batch.label).float().mean() > 0.98


def test_a_bad_prior_is_refined_by_what_was_learnt(overfitted):
    """The denoiser sees the image: a drawn prior with one block missing comes back more complete than it went in."""
    method, batch = overfitted
    drawn = batch.label.clone()
    drawn[:, :20] = 0
    given = context((64, 64), options={"samples": 3, "steps": 10}, prior=drawn)
    with torch.inference_mode():
        found = method.evidence(batch.image, given)["classes"].argmax(1)
        same = method.evidence(batch.image, context((64, 64), options={"preview": "on"}, prior=drawn))
    assert torch.equal(same["classes"].argmax(1), drawn)
    assert (found != batch.label).sum() < 0.5 * (drawn != batch.label).sum()


def discs(seed: int, count: int, size: int = 32) -> Batch:
    """Images of a disc each, at random places, in noise that is larger than it is bright; its mask is the label."""
    g = torch.Generator().manual_seed(seed)
    at = torch.rand(count, 2, generator=g) * (size - 24) + 12
    grid = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")).float()
    label = ((grid[None] - at[:, :, None, None]).norm(dim=1) < 8).long()
    image = label[:, None] + 1.5 * torch.randn(count, 1, size, size, generator=g)
    allowed = F.one_hot(label, 2).movedim(-1, 1).bool()
    where = coordinate_channels((size, size), (2.0, 2.0))[None].expand(count, -1, -1, -1)
    return Batch(image, allowed, torch.full(label.shape, math.nan), where)


@pytest.fixture(scope="module")
def follower():
    """Trained a little on discs, without a prior's help: at full size it would learn to copy the noisy mask."""
    method = tiny(
        scheme="vertebra", coordinates=False, mask_scale=0.2, recycling=0.5, prior_widths=(8, 8), widths=(8, 12),
        attention_levels=0, nsa=False,
    )  # fmt: skip
    method.center = lambda probabilities: torch.zeros_like(probabilities[:, :1])
    optimizer = torch.optim.AdamW(method.parameters(), 5e-3)
    for step in range(80):
        optimizer.zero_grad()
        torch.manual_seed(step)
        method.training_losses(discs(step, 4))["total"].backward()
        optimizer.step()
    return method.eval()


def overlap(found: torch.Tensor, mask: torch.Tensor) -> float:
    return float(2 * (found & mask).sum() / (found.sum() + mask.sum()))


@pytest.mark.parametrize("time", [200, 300, 600])
def test_a_noisy_mask_that_is_12_mm_off_does_not_outweigh_the_image(follower, time):
    batch = discs(1000, 6)
    mask, shifted = batch.label > 0, (batch.label > 0).roll(6, 2)  # pixels of 2 mm
    assert overlap(mask, shifted) < 0.6
    with torch.inference_mode():
        c = follower.condition(batch.image, batch.coordinates)
        prior = c.logits.softmax(1)
        center = follower.center(prior)
        drawn = 2.0 * shifted[:, None].float() - 1
        at = torch.full((6,), time)
        noisy = follower.diffusion.noisy(drawn, center, at, noise_of(3, drawn.shape)())
        found = follower.clean_logits(noisy, at, follower._guidance(c, center, prior), center)[:, 0] > 0
    assert overlap(found, mask) > 0.85 > 0.7 > overlap(found, shifted)


def test_more_steps_are_no_worse_than_one(follower):
    batch, scores = discs(2000, 12), {}
    for steps in (1, 20):
        options = {"samples": 1, "steps": steps}
        with torch.inference_mode():
            maps = follower.evidence(batch.image, Context(batch.coordinates, tuple(range(12)), 12, options=options))
        scores[steps] = overlap(maps["classes"].argmax(1) > 0, batch.label > 0)
    assert scores[20] > scores[1] > 0.8


def test_a_corrupted_prior_is_still_a_prior():
    torch.manual_seed(0)
    probabilities = torch.rand(8, 4, 40, 40).softmax(1)
    worse = corrupted(probabilities, 1.0)
    assert torch.allclose(worse.sum(1), torch.ones(8, 40, 40), atol=1e-5)
    assert worse.min() >= 0
    assert all(not torch.allclose(a, b) for a, b in zip(worse, probabilities, strict=True))
    assert torch.equal(corrupted(probabilities, 0.0), probabilities)
    full = F.one_hot(torch.ones(64, 40, 40, dtype=torch.long), 4).movedim(-1, 1).float()
    assert 0.02 < corrupted(full, 1.0)[:, 0].mean() < 0.2  # half the images lose something


# --- samples and doubt -----------------------------------------------------------------------------------------------


def test_samples_depend_on_seed_and_slice_not_on_the_batch():
    method = tiny().eval()
    images = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    coordinates = coordinate_channels((32, 32), (2.0, 2.0))[None].expand(3, -1, -1, -1)
    options = {"samples": 2, "steps": 3, "sampler": "ddpm"}
    with torch.inference_mode():
        together = method.evidence(images, Context(coordinates, (4, 5, 6), options=options))
        alone = method.evidence(images[1:2], Context(coordinates[:1], (5,), options=options))
        again = method.evidence(images, Context(coordinates, (4, 5, 6), options=options))
        other = method.evidence(images, Context(coordinates, (4, 5, 6), options={**options, "seed": 1}))
    for name in ("classes", "uncertainty"):
        assert torch.allclose(together[name][1:2], alone[name], atol=1e-4)
        assert torch.equal(together[name], again[name])
        assert not torch.allclose(together[name], other[name], atol=1e-3)


def test_the_mean_of_many_samples_varies_less():
    method = tiny(scheme="vertebra").eval()
    image = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))

    def spread(samples: int) -> float:
        options = [{"samples": samples, "steps": 2, "seed": seed} for seed in range(8)]
        with torch.inference_mode():
            maps = [method.evidence(image, context((32, 32), options=o))["classes"][:, 1] for o in options]
        return float(torch.stack(maps).var(0).mean())

    assert spread(6) < 0.5 * spread(1)


def test_the_deviation_is_that_of_a_mask_drawn_where_nothing_is_decided_yet():
    """With one step and many samples the deviation is that of the mean; more steps change the masks, not the doubt."""
    method = tiny(scheme="vertebra").eval()
    image = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))

    def maps(**options):
        with torch.inference_mode():
            return method.evidence(image, context((32, 32), options=options))

    one, more = maps(samples=4, steps=1), maps(samples=4, steps=6)
    p = one["classes"][:, 1]
    assert torch.allclose(one["uncertainty"], (p * (1 - p)).sqrt(), atol=1e-4)
    assert torch.allclose(more["uncertainty"], one["uncertainty"], atol=1e-6)
    assert not torch.allclose(more["classes"], one["classes"], atol=1e-3)
    assert set(maps(samples=1, steps=2)) == {"classes"}


@pytest.mark.parametrize("encoding", ["kind+label", "bits"])
def test_the_map_is_of_outlines_not_of_names(encoding):
    """A body that is surely a vertebra, and as likely L3 as L4, is clean inside."""
    method = tiny(scheme="lumbar-mr", encoding=encoding).eval()
    lumbar = method.scheme
    probabilities = torch.zeros(1, lumbar.channels, 1, 3)
    for name in ("L3", "L4"):
        probabilities[0, lumbar.channel_of[structure(name).id], 0, 0] = 0.5
    probabilities[0, 0, 0, 1] = 1.0
    probabilities[0, [0, lumbar.channel_of[structure("L3/L4").id]], 0, 2] = 0.5
    kinds = method._of_kinds(probabilities)
    assert torch.allclose(kinds.sum(1), torch.ones(1, 1, 3))
    assert kinds.amax(1).flatten().tolist() == [1.0, 1.0, 0.5]
    method._mean = lambda state, samples, naming: probabilities.expand(1, -1, 32, 3)
    image = torch.zeros(1, 1, 32, 32)
    with torch.inference_mode():
        doubt = method.evidence(image, context((32, 32), options={"samples": 2, "steps": 1}))["uncertainty"]
    assert doubt[0, 0].tolist() == pytest.approx([0.0, 0.0, 0.5])


def test_a_checkpoint_says_how_many_samples_and_steps_where_nobody_does():
    image = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    method = tiny(scheme="vertebra", samples=2, steps=3).eval()

    def maps(**options):
        with torch.inference_mode():
            return method.evidence(image, context((32, 32), options=options))["classes"]

    assert torch.equal(maps(), maps(samples=2, steps=3))
    assert torch.equal(maps(steps=4), maps(samples=2, steps=4))
    assert torch.equal(maps(sampler="dpm++2m"), maps(sampler="dpm++2m", samples=2, steps=12))
    assert Sampling.from_options({}, 1000, 2, 3) == Sampling(samples=2, steps=3)
    assert Sampling.from_options({"t_start": 2}, 1000, 2, 3).steps == 2


def test_a_processor_computes_the_samples_of_one_slice_at_a_time():
    method = tiny(scheme="vertebra", samples=3)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert slices_per_pass(method, cpu, {}) == slices_per_pass(method, cpu, {"samples": 2}) == 1
    assert slices_per_pass(method, cpu, {"preview": "on"}) == slices_per_pass(method, cpu, {"samples": 1}) == 2
    assert slices_per_pass(method, gpu, {}) == 8
    assert slices_per_pass(method, cpu, {"batch": "5"}) == 5


# --- from image to segmentation --------------------------------------------------------------------------------------


def checkpoint(folder, pixel_mm: float = 4.0, **values):
    method = tiny(**values)
    metadata = {
        "method": method.config.model_dump(mode="json"),
        "preprocessing": Preprocessing(pixel_mm=pixel_mm).model_dump(mode="json"),
    }
    path = folder / "verdiff.safetensors"
    save_checkpoint(path, method.state_dict(), metadata)
    return path


@pytest.fixture(scope="module")
def phantom():
    spec = PhantomSpec(top="T12", bottom="S1", slices=5, slice_mm=6.0, pixel_mm=2.0, contrast="t2")
    return make_phantom(spec, np.random.default_rng(2))


def test_a_given_segmentation_is_the_prior_whatever_its_grid(tmp_path, phantom):
    predictor = Predictor(checkpoint(tmp_path, pixel_mm=2.0, scheme="lumbar-mr"), "cpu")
    options = {"preview": "on", "consistency": "off"}
    result = predictor.segment(phantom.image, Hints(prior=phantom.labels), options)
    found, truth = (sitk.GetArrayFromImage(x) for x in (result.labels, phantom.labels))
    ids = [i for i in np.unique(truth) if i in predictor.scheme.ids]
    assert np.array_equal(found, np.where(np.isin(truth, ids), truth, 0))
    assert result.provenance["hints"] == ["prior"]
    turned = sitk.DICOMOrient(phantom.labels, "LPS")  # axial slices first, another voxel order
    again = predictor.segment(phantom.image, Hints(prior=turned), options)
    assert (sitk.GetArrayFromImage(again.labels) == found).mean() > 0.999


def test_priors_that_show_nothing_here_are_refused(tmp_path, phantom):
    predictor = Predictor(checkpoint(tmp_path, scheme="lumbar-mr"), "cpu")
    elsewhere = sitk.Image(phantom.labels)
    elsewhere.SetOrigin([x + 5000 for x in phantom.labels.GetOrigin()])
    for prior in (elsewhere, phantom.labels * 0):
        with pytest.raises(HintError, match="inside the image"):
            predictor.segment(phantom.image, Hints(prior=prior))
    baseline = Predictor(checkpoint(tmp_path, method_id="ddpm", scheme="lumbar-mr"), "cpu")
    with pytest.raises(HintError, match="prior"):
        baseline.segment(phantom.image, Hints(prior=phantom.labels))


def test_a_volume_comes_back_with_its_doubt(tmp_path, phantom):
    predictor = Predictor(checkpoint(tmp_path, scheme="lumbar-mr"), "cpu")
    options = {"samples": 2, "steps": 2, "consistency": "off", "batch": 2}
    result = predictor.segment(phantom.image, options=options)
    doubt = sitk.GetArrayFromImage(result.uncertainty)
    assert doubt.shape == sitk.GetArrayFromImage(phantom.image).shape
    assert 0 <= doubt.min() < doubt.max() <= 0.71
    means = result.provenance["uncertainty"]
    labels = sitk.GetArrayFromImage(result.labels)
    name = next(iter(means))
    assert means[name] == pytest.approx(doubt[labels == structure(name).id].mean(), abs=1e-3)
    other = predictor.segment(phantom.image, options={**options, "batch": 5})
    assert (sitk.GetArrayFromImage(other.labels) == labels).mean() > 0.999
    assert predictor.segment(phantom.image, options={**options, "samples": 1}).uncertainty is None
    with pytest.raises(ConfigError, match="1000 times"):
        predictor.segment(phantom.image, options={"t_start": 1001})


def test_cancelling_is_heard_between_steps(tmp_path, phantom):
    predictor = Predictor(checkpoint(tmp_path, scheme="vertebra"), "cpu")
    told: list[float] = []

    def cancelled() -> bool:
        return len(told) > 6

    with pytest.raises(Cancelled):
        options = {"steps": 50, "samples": 1}
        predictor.segment(phantom.image, None, options, progress=lambda f, m: told.append(f), cancelled=cancelled)
    assert told == sorted(told)
    assert len(told) < 12


def test_a_radiograph_is_one_slice(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "xray.png"
    sitk.WriteImage(sitk.GetImageFromArray(rng.integers(0, 255, (150, 70), np.uint8)), str(path))
    predictor = Predictor(checkpoint(tmp_path, scheme="vertebra"), "cpu")
    image = read_image(path)
    result = predictor.segment(image, options={"samples": 2, "steps": 2})
    assert result.labels.GetSize() == image.GetSize()
    assert set(np.unique(sitk.GetArrayFromImage(result.labels))) <= {0, structure("vertebra").id}
    assert result.uncertainty.GetSize() == image.GetSize()


@pytest.mark.parametrize("pixel_mm", [1.0, 2.0])
def test_a_radiograph_keeps_its_shape_at_the_shell(tmp_path, pixel_mm):
    """A picture, and a mask drawn on it to start from: what comes back lies where it was drawn, as large as it was."""
    png, drawing, output = (tmp_path / name for name in ("xray.png", "drawn.nii.gz", "out.nii.gz"))
    pixels = np.random.default_rng(0).integers(0, 255, (150, 70), np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(pixels), str(png))
    image = read_image(png)
    rows = sitk.GetArrayViewFromImage(image).shape.index(150)
    drawn = np.zeros((150, 70), np.int16)
    drawn[20:50, 10:30], drawn[60:100, 14:40] = structure("L3").id, structure("L4").id
    mask = sitk.GetImageFromArray(drawn.reshape(sitk.GetArrayViewFromImage(image).shape))
    mask.CopyInformation(image)
    sitk.WriteImage(mask, str(drawing))
    path = checkpoint(tmp_path, pixel_mm=pixel_mm, scheme="vertebra")
    seen = Predictor(path, "cpu").preprocessing.apply(image).array
    assert seen.shape == (1, 150 / pixel_mm, 70 / pixel_mm)

    words = ["segment", png, "--output", output, "--checkpoint", path, "--device", "cpu", "--prior", drawing]
    words += ["--option", "preview=on", "--option", "consistency=off"]
    assert cli.main([str(word) for word in words]) == 0
    result = sitk.ReadImage(str(output))
    assert (result.GetSize(), rows) == (image.GetSize(), 1)
    assert np.allclose(result.GetDirection(), image.GetDirection())
    found = sitk.GetArrayFromImage(result)[tuple(0 if n == 1 else slice(None) for n in image.GetSize()[::-1])]
    assert set(np.unique(found)) == {0, structure("vertebra").id}
    assert ((found > 0) == (drawn > 0)).mean() > (0.9999 if pixel_mm == 1 else 0.99)


def test_a_checkpoint_of_the_first_stage_is_its_prior(tmp_path, phantom):
    predictor = Predictor(checkpoint(tmp_path, scheme="vertebra", stage="prior"), "cpu")
    result = predictor.segment(phantom.image, options={"consistency": "off"})
    assert result.uncertainty is None
    assert predictor.method.images_per_slice({}) == 1  # so that a map of uncertainty is refused
    with pytest.raises(HintError, match="cannot refine a mask"):
        predictor.segment(phantom.image, Hints(prior=phantom.labels))


def test_without_a_prior_of_its_own_a_checkpoint_takes_none(tmp_path, phantom):
    predictor = Predictor(checkpoint(tmp_path, scheme="vertebra", prior=False), "cpu")
    with pytest.raises(HintError, match="starts from noise alone"):
        predictor.segment(phantom.image, Hints(prior=phantom.labels))


# --- training in two stages ------------------------------------------------------------------------------------------


def test_the_second_stage_leaves_the_prior_alone_and_resumes_exactly(tmp_path):
    manifest = str(write_tiny_dataset(tmp_path, training=1))

    def train(name: str, stage: str, steps: int, stop_at: int = 0, **values) -> RunDirectory:
        method = make_config("verdiff-net", "tiny", scheme="vertebra", stage=stage, patch=2)
        optimization = {"steps": steps, "batch": 2, "workers": 0, "report_every": 1, "mixed_precision": "no"}
        config = TrainingConfig(
            method=method.model_dump(mode="json"),
            dataset=manifest,
            preprocessing=Preprocessing(pixel_mm=4.0),
            data=DataConfig(patch=(64, 32)),
            optimization={**method.recipe["optimization"], **optimization},
            **values,
        )
        run = RunDirectory(tmp_path / name)

        def stop(event):
            if event["event"] == "step" and event["step"] == stop_at:
                run.request_stop()

        cache = tmp_path / "cache"
        run_training(TrainingRequest(config, run.folder, device="cpu", cache=cache, report=stop))
        if stop_at:
            assert run.status()["state"] == "stopped"
            run_training(TrainingRequest(None, run.folder, resume=True, device="cpu", cache=cache))
        return run

    first = train("first", "prior", 3)
    straight = train("straight", "denoise", 5, start_from=str(first.last))
    halted = train("halted", "denoise", 5, stop_at=2, start_from=str(first.last))
    prior, one, other = (load_tensors(read_header(run.last)) for run in (first, straight, halted))
    of_prior = [k for k in prior if k.startswith(("fusion.", "conditional."))]
    assert of_prior
    assert all(torch.equal(prior[k], one[k]) for k in of_prior)
    assert any(not torch.equal(prior[k], one[k]) for k in prior if k.startswith("denoiser."))
    assert all(torch.equal(one[k], other[k]) for k in one)
    losses = [{e["step"]: e["losses"] for e in run.events() if e["event"] == "step"} for run in (straight, halted)]
    assert losses[0] == losses[1]
    assert set(losses[0][1]) == {"total", "cross_entropy", "kl"}


def test_recipes_say_what_the_paper_says():
    paper = make_config("verdiff-net", "paper")
    training = TrainingConfig(method=paper.model_dump(mode="json"), dataset="data.json", **paper.recipe)
    o = training.optimization
    assert (o.steps, o.batch, o.learning_rate, o.final_learning_rate, o.weight_decay) == (9000, 1, 1e-4, 1e-4, 0.0)
    assert (training.seed, training.data.augmentation.rotation_deg, paper.scheme) == (35, 30.0, "vertebra")
    for preset in ("paper", "small"):
        config = make_config("verdiff-net", preset, stage="denoise")
        training = TrainingConfig(method=config.model_dump(mode="json"), dataset="data.json", **config.recipe)
        method = build_method(config).to("meta")
        assert all(
            side % divisor == 0 for side, divisor in zip(training.data.patch, method.tiling.divisors(2), strict=True)
        )
        assert method.tiling.divisor == 32
