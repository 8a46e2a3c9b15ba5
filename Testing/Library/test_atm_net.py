"""ATM-Net: the invariants of its section, its prompts and their sources, and what a checkpoint carries."""

import json
import math
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import DiceFocalLoss
from monai.networks.nets import SwinUNETR
from tiny_data import write_tiny_dataset

from SpineSegAILib.anatomy import CANAL_ID, SCHEMES, Kind, scheme, structure
from SpineSegAILib.checkpoints import load_method, read_header, save_checkpoint
from SpineSegAILib.cli import main
from SpineSegAILib.errors import ConfigError, HintError, MissingPackageError, SchemeError
from SpineSegAILib.hints import Hints
from SpineSegAILib.imaging import Preprocessing, read_image
from SpineSegAILib.inference import Predictor
from SpineSegAILib.inference.sliding_window import predict_volume
from SpineSegAILib.methods.atm_net import sources
from SpineSegAILib.methods.atm_net.config import LEARNED_TABLE
from SpineSegAILib.methods.atm_net.losses import contrastive_loss, dice_focal_loss, presence_loss
from SpineSegAILib.methods.atm_net.prompts import (
    Prompt,
    class_prompt,
    draw_prompt,
    inference_grammar,
    level_run,
    likely_run,
    parse_prompt,
    third_of,
    training_grammar,
)
from SpineSegAILib.methods.base import Batch, Context, coordinate_channels
from SpineSegAILib.methods.catalog import build_method, make_config
from SpineSegAILib.methods.text.bank import TextBank, write_bank

LUMBAR = scheme("lumbar-mr")
SMALL = scheme("lumbar11")


def ids(*names):
    return tuple(structure(n).id for n in names)


class WordVectors:
    """A text encoder that needs nothing: a fixed random vector per word."""

    name, width = "word vectors", 12

    def encode(self, texts):
        found = []
        for text in texts:
            words = [torch.Generator().manual_seed(zlib.crc32(word.encode())) for word in text.split()]
            found.append(torch.stack([torch.randn(self.width, generator=g) for g in words]))
        return found


@pytest.fixture(scope="module")
def bank_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("bank") / "lumbar11.safetensors"
    write_bank(path, training_grammar(SMALL), WordVectors(), "lumbar11")
    return path


def method_of(seed=0, **values):
    torch.manual_seed(seed)
    return build_method(make_config("atm-net", "tiny", **{"scheme": "lumbar11", **values}))


def method_with_bank(bank_file, seed=0, **values):
    resources = {"text_bank": str(bank_file)}
    values = {"scheme": "lumbar11", "text_encoder": "anything", **values}
    config = make_config("atm-net", "tiny", **values).with_resources(resources)
    torch.manual_seed(seed)
    method = build_method(config)
    method.open_resources(resources)
    return method


def place(size=(64, 64), count=1, mm=2.0):
    return coordinate_channels(size, (mm, mm))[None].expand(count, -1, -1, -1)


def stripes(channels=(3, 8, 4, 9, 5), size=64, count=1):
    """A batch of images with horizontal bands, one per channel of lumbar11."""
    label = torch.zeros(count, size, size, dtype=torch.long)
    image = torch.full((count, 1, size, size), -1.0)
    for number, channel in enumerate(channels):
        rows = slice(4 + 12 * number, 14 + 12 * number)
        label[:, rows, 20:45] = channel
        image[:, :, rows, 20:45] = 1.0 if channel <= 5 else 0.3
    allowed = torch.nn.functional.one_hot(label, SMALL.channels).movedim(-1, 1).bool()
    return Batch(image, allowed, torch.full(label.shape, math.nan), place((size, size), count))


# --- HASF ------------------------------------------------------------------------------------------------------------


def logits_of(method, *texts, size=64):
    g = torch.Generator().manual_seed(3)
    image = torch.randn((1, 1, size, size), generator=g)
    with torch.inference_mode():
        return [method(image, place((size, size)), [text]).logits for text in texts]


def test_the_text_acts_through_alpha_alone():
    method = method_of(scheme="lumbar-mr").eval()
    with_t12 = Prompt(3, level_run(LUMBAR, *ids("T12", "L5")), "middle").text(LUMBAR)
    without = Prompt(3, level_run(LUMBAR, *ids("L1", "L5")), "middle").text(LUMBAR)
    a, b = logits_of(method, with_t12, without)
    assert not torch.equal(a, b)
    with torch.no_grad():
        for stage in method.stages:
            stage.alpha.zero_()
    a, b, empty = logits_of(method, with_t12, without, "")
    assert torch.equal(a, b)
    assert torch.equal(a, empty)
    with torch.inference_mode():
        image = torch.randn((1, 1, 64, 64), generator=torch.Generator().manual_seed(3))
        assert torch.equal(a, method(image, place(), None).logits)


def test_every_stage_reads_m_tokens_whose_positions_count():
    method = method_of().eval()
    text = Prompt(2, ids("L1", "L2")).text(SMALL)
    tokens = method.text([text])
    assert [tuple(t.shape) for t in tokens] == [(1, 6, 12 * 2**i) for i in (4, 3, 2, 1, 0)]
    (before,) = logits_of(method, text)
    for stage in method.stages:
        stage.text_position.zero_()
    (after,) = logits_of(method, text)
    assert not torch.equal(before, after)


def test_text_projections_alpha_and_decoder_learn_and_the_bank_does_not(bank_file):
    method = method_with_bank(bank_file)
    method.training_losses(stripes(count=4))["total"].backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        if name.startswith(("text.projections", "stages")):
            assert parameter.grad.abs().sum() > 0, name
    assert not any("bank" in name or "stored" in name for name, _ in method.named_parameters())
    assert not method.text.bank.features(training_grammar(SMALL)[1]).requires_grad


@pytest.mark.parametrize("size", [96, 384])
def test_different_sizes_work(size):
    method = method_of().eval()
    (logits,) = logits_of(method, "", size=size)
    assert logits.shape == (1, 11, size, size)
    assert torch.isfinite(logits).all()


def test_pooled_keys_are_the_whole_ones_where_there_are_few():
    few, many = method_of(sa_max_tokens=64).eval(), method_of(sa_max_tokens=None).eval()
    many.load_state_dict(few.state_dict())
    a, b = logits_of(few, "")[0], logits_of(many, "")[0]
    assert not torch.equal(a, b)  # the finest stage has 1024 pixels
    lots = method_of(sa_max_tokens=1024).eval()
    lots.load_state_dict(few.state_dict())
    assert torch.equal(logits_of(lots, "")[0], b)


def test_without_both_modules_it_is_swin_unetr():
    method = method_of(use_hasf=False, use_ccae=False).eval()
    plain = SwinUNETR(3, 11, feature_size=12, spatial_dims=2).eval()
    own = {f"out.conv.conv.{k}": v for k, v in method.head.state_dict().items()}
    plain.load_state_dict({**method.plain.state_dict(), **own})
    image = torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        expected = plain(torch.cat([image, place()], 1))
        assert torch.allclose(method(image, place()).logits, expected, atol=1e-5)
    assert not list(method.text.parameters())


@pytest.mark.parametrize(
    "flags",
    [
        {"use_hasf": False, "use_ccae": False},
        {"use_hasf": False},
        {"use_ccae": False},
        {"prompt_option": "none"},
        {"prompt_option": "1"},
        {"prompt_option": "2"},
        {"descriptor": "prototype", "absent": "negated"},
        {"output": "kind-rank"},
        {"rank_weight": 0.5, "loss": "dice-focal", "coordinates": False},
        {"kind_weight": 1.0, "head_width": 8},
    ],
)
def test_every_ablation_trains_and_predicts(flags):
    method = method_of(**flags)
    losses = method.training_losses(stripes(count=2))
    losses["total"].backward()
    assert torch.isfinite(losses["total"])
    unused = [n for n, p in method.named_parameters() if p.grad is None]
    assert not unused  # distributed training would wait for them
    with torch.inference_mode():
        maps = method.eval().evidence(stripes().image, Context(place()))
    assert ("rank" in maps) == bool(flags.get("rank_weight") or flags.get("output") == "kind-rank")
    assert maps["kinds" if flags.get("output") else "classes"].shape[-2:] == (64, 64)


def test_heads_that_do_not_share_the_channels_are_refused():
    for name in ("heads", "encoder_heads"):
        with pytest.raises(ConfigError, match=f"{name}=5 does not divide feature_size=12"):
            make_config("atm-net", "small", **{name: 5})


def test_the_validation_of_a_training_takes_one_pass(volume):
    method = method_of()
    assert run(method, volume, **method.validation_options).about["prompt_source"] == "generic"
    for plain in (method_of(use_hasf=False), method_of(prompt_option="1")):
        run(plain, volume, **plain.validation_options)


def test_the_loss_on_kinds_minds_what_a_thing_is_and_not_which():
    method, batch = method_of(kind_weight=1.0), stripes()
    logits = torch.where(batch.allowed, 20.0, -20.0)
    vertebrae, discs = SMALL.of_kind(Kind.VERTEBRA), SMALL.of_kind(Kind.DISC)
    vertebrae, discs = ([SMALL.channel_of[i] for i in group] for group in (vertebrae, discs))
    renamed = logits.clone()
    renamed[:, vertebrae] = logits[:, [*vertebrae[1:], vertebrae[0]]]
    mistaken = logits.clone()
    mistaken[:, discs[0]], mistaken[:, vertebrae] = logits[:, vertebrae].amax(1), -20.0
    assert method._kind_loss(logits, batch.allowed) < 1e-3
    assert method._kind_loss(renamed, batch.allowed) < 1e-3
    assert method._kind_loss(mistaken, batch.allowed) > 1
    weighted = method.training_losses(batch)
    assert weighted["total"] > weighted["segmentation"] + 0.9 * weighted["kinds"]


def test_it_overfits_one_case():
    method = method_of()
    batch = stripes()
    optimizer = torch.optim.AdamW(method.parameters(), 1e-2)
    for _ in range(45):
        optimizer.zero_grad()
        method.training_losses(batch)["total"].backward()
        optimizer.step()
    with torch.inference_mode():
        maps = method.eval().evidence(batch.image, Context(batch.coordinates))
    assert (maps["classes"].argmax(1) == batch.label).float().mean() > 0.98


def test_the_prompt_decides_what_the_image_cannot():
    """Two copies of an image, cut so that nothing tells their levels apart: only the sentence does."""
    method = method_of(mixture={"3": 1.0}, corruption=0.0, use_ccae=False, presence_weight=0.0)
    high, low = stripes(channels=(1, 2, 3)), stripes(channels=(3, 4, 5))
    both = Batch(*(torch.cat([getattr(high, n), getattr(low, n)]) for n in ("image", "allowed", "rank", "coordinates")))
    assert torch.equal(both.image[0], both.image[1])
    optimizer = torch.optim.AdamW(method.parameters(), 1e-2)
    for _ in range(45):
        optimizer.zero_grad()
        method.training_losses(both)["total"].backward()
        optimizer.step()
    ranges = (Hints(visible=ids("L1", "L3")), Hints(visible=ids("L3", "L5")))
    with torch.inference_mode():
        found = [method.eval().evidence(high.image, Context(place(), hints=h))["classes"].argmax(1) for h in ranges]
        skipped = method.evidence(high.image, Context(place(), options={"prompt_source": "none"}))["classes"].argmax(1)
    for levels, batch in zip(found, (high, low), strict=True):
        assert (levels == batch.label)[batch.label > 0].float().mean() > 0.9
    assert min((skipped == b.label)[b.label > 0].float().mean() for b in (high, low)) < 0.6


# --- losses ----------------------------------------------------------------------------------------------------------


def test_contrast_of_aligned_constant_and_shuffled_pairs():
    n = 20
    taking_part = torch.ones(1, n, dtype=torch.bool)
    apart = torch.eye(n)[None]
    assert contrastive_loss(apart, apart, taking_part) < 1e-4
    same = torch.nn.functional.normalize(torch.ones(1, n, 8), dim=2)
    assert contrastive_loss(same, same, taking_part).item() == pytest.approx(math.log(n), abs=1e-5)
    assert contrastive_loss(apart, apart.roll(1, 1), taking_part) > 2 * math.log(n)


def test_classes_that_take_no_part_change_nothing():
    g = torch.Generator().manual_seed(0)
    visual, text = (torch.nn.functional.normalize(torch.randn((1, 6, 8), generator=g), dim=2) for _ in range(2))
    taking_part = torch.tensor([[True, True, False, True, False, False]])
    reduced = contrastive_loss(visual[:, [0, 1, 3]], text[:, [0, 1, 3]], torch.ones(1, 3, dtype=torch.bool))
    assert contrastive_loss(visual, text, taking_part).item() == pytest.approx(reduced.item(), abs=1e-5)
    alone = torch.tensor([[True, False, False, False, False, False]])
    assert contrastive_loss(visual, text, alone) == 0


@pytest.mark.parametrize("descriptor", ["grid", "prototype"])
def test_the_contrast_reaches_the_logits(descriptor):
    method = method_of(descriptor=descriptor)
    batch = stripes()
    out = method(batch.image, batch.coordinates, [""])
    out.logits.retain_grad()
    method._contrastive(out, *method._observed(batch)).backward()
    assert out.logits.grad.abs().sum() > 0


def test_dice_focal_is_monai_s_where_everything_is_known():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn((2, 5, 16, 16), generator=g)
    label = torch.randint(0, 4, (2, 1, 16, 16), generator=g)  # channel 4 is absent
    allowed = torch.nn.functional.one_hot(label[:, 0], 5).movedim(-1, 1).bool()
    expected = DiceFocalLoss(softmax=True, to_onehot_y=True, gamma=2.0)(logits, label)
    assert dice_focal_loss(logits, allowed).item() == pytest.approx(expected.item(), abs=1e-5)


def test_without_its_weights_the_total_is_dice_focal():
    method = method_of(contrast_weight=0.0, presence_weight=0.0, loss="dice-focal")
    batch = stripes()
    torch.manual_seed(5)
    losses = method.training_losses(batch)
    torch.manual_seed(5)
    texts = method._drawn_texts(*method._observed(batch), batch)
    logits = method(batch.image, batch.coordinates, texts).logits
    expected = DiceFocalLoss(softmax=True, to_onehot_y=True, gamma=2.0)(logits, batch.label[:, None])
    assert losses["total"].item() == pytest.approx(expected.item(), abs=1e-5)


def test_what_is_unknown_teaches_nothing():
    logits = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1), requires_grad=True)
    allowed = torch.zeros(1, 4, 8, 8, dtype=torch.bool)
    allowed[:, 0] = True
    allowed[:, 3, :4] = True  # the upper half may also be structure 3
    focal_only = dice_focal_loss(logits, allowed)
    focal_only.backward()
    # Through the softmax of Dice the other channels still say “not me”; 3 and background gain alike there.
    upper, lower = logits.grad[0, :, :4], logits.grad[0, :, 4:]
    assert (lower[3] > 0).all()
    assert (upper[1] > 0).all()
    assert upper[3].mean() < 0.1 * lower[3].mean()
    present = torch.tensor([[1.0, math.nan, 0.0]])
    guess = torch.zeros(1, 3, requires_grad=True)
    presence_loss(guess, present).backward()
    assert guess.grad[0, 1] == 0
    assert guess.grad[0, 0] < 0 < guess.grad[0, 2]


def test_an_unannotated_structure_is_neither_present_nor_absent():
    batch = stripes(channels=(3, 8, 4))
    batch.allowed[:, SMALL.channel_of[structure("L5").id], 40:50, 20:45] = True
    present, possible = method_of()._observed(batch)
    assert {SMALL.ids[i - 1] for i in present[0].nonzero().flatten().tolist() if i} == set(ids("L3", "L3/L4", "L4"))
    assert {SMALL.ids[i - 1] for i in possible[0].nonzero().flatten().tolist() if i} == set(ids("L5"))


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_option_1_says_the_same_of_every_mask():
    a, b = Prompt(1, ids("L1", "L2")), Prompt(1, ids("L3"), "upper")
    assert a.text(LUMBAR) == b.text(LUMBAR) == "Sagittal MR image of the lumbar spine."


def test_option_3_lists_from_the_top_with_the_canal_last():
    text = Prompt(3, ids("canal", "L1", "T12", "T12/L1"), third_of(0, 9)).text(LUMBAR)
    assert text == (
        "Sagittal MR image of the lumbar spine. Slice in the upper third of the sagittal stack (para-sagittal plane). "
        "From superior to inferior: vertebra T12; below it disc T12/L1, lying between T12 and L1; "
        "below it vertebra L1; spinal canal behind the column."
    )
    assert "middle third of the sagittal stack (mid-sagittal plane)" in Prompt(3, ids("L1"), "middle").text(LUMBAR)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["lumbar-mr", "mrspineseg", "spider", "lumbar11"]),
    st.data(),
    st.sampled_from([2, 3]),
    st.sampled_from(["upper", "middle", "lower"]),
)
def test_mask_to_prompt_to_mask(name, data, option, third):
    s = scheme(name)
    chosen = data.draw(st.sets(st.sampled_from(s.ids), min_size=1))
    mask = np.random.default_rng(0).permutation(np.repeat(sorted(chosen), 3))
    found = parse_prompt(Prompt(option, tuple(np.unique(mask).tolist()), third).text(s))
    assert set(found.structures) == chosen
    assert found.option == option
    assert found.third == (third if option == 3 else "middle")


def test_other_sentences_are_refused():
    with pytest.raises(HintError, match="not a sentence"):
        parse_prompt("Where is L5?")
    with pytest.raises(HintError, match="not a sentence"):
        parse_prompt("Sagittal MR image of the lumbar spine. It shows: vertebra L9.")


def test_class_prompts_name_the_right_region():
    assert class_prompt(*ids("L1"), True) == "It contains lumbar vertebra L1."
    assert class_prompt(*ids("T12"), False) == "It does not contain thoracic vertebra T12."
    assert class_prompt(*ids("S1"), True) == "It contains sacral vertebra S1."
    assert class_prompt(*ids("L4/L5"), True) == "It contains disc L4/L5."
    assert class_prompt(CANAL_ID, False) == "It does not contain spinal canal."


def test_runs_know_the_variants():
    names = [structure(i).name for i in level_run(LUMBAR, *ids("L4", "S1"))]
    assert names == ["L4", "L4/L5", "L5", "L5/S1", "S1"]
    with_l6 = level_run(LUMBAR, *ids("L5", "L6"))
    assert "disc L5/L6" in Prompt(2, with_l6).text(LUMBAR)
    assert Prompt(3, with_l6, "lower").text(LUMBAR) in training_grammar(LUMBAR)
    with pytest.raises(HintError, match="upside down"):
        level_run(LUMBAR, *ids("S1", "T11"))
    with pytest.raises(SchemeError, match="not in the label scheme"):
        level_run(SMALL, *ids("T11", "L5"))
    with pytest.raises(HintError, match="cannot end a range"):
        level_run(LUMBAR, *ids("T12/L1", "L5"))


def test_a_likely_run_fills_gaps_and_drops_strays():
    assert likely_run(LUMBAR, ids("L1", "L3", "L4")) == level_run(LUMBAR, *ids("L1", "L4"))
    assert likely_run(LUMBAR, ids("T9", "L3", "L4", "L5")) == level_run(LUMBAR, *ids("L3", "L5"))
    assert likely_run(LUMBAR, ids("L4/L5", "canal")) == ()


@pytest.mark.parametrize("name", list(SCHEMES))
def test_all_that_is_drawn_is_in_the_grammar(name):
    s = scheme(name)
    grammar = set(training_grammar(s))
    assert set(inference_grammar(s, 3)) <= grammar
    rng = np.random.default_rng(0)
    mixture = make_config("atm-net").mixture
    for number in range(200):
        present = {i for i in s.ids if rng.random() < 0.6}
        possible = {i for i in s.ids if i not in present and rng.random() < 0.3}
        prompt = draw_prompt(rng, s, mixture, 1 + number % 3, present, possible, third_of(number % 9, 9), 0.5)
        assert prompt.text(s) in grammar


def test_the_mixture_is_what_was_asked_for():
    rng = np.random.default_rng(0)
    present = set(level_run(LUMBAR, *ids("T12", "L5"))) | {CANAL_ID}
    mixture = make_config("atm-net").mixture
    drawn = [draw_prompt(rng, LUMBAR, mixture, 3, present, set(), "upper", 0.0) for _ in range(2000)]
    share = {option: sum(p.option == option for p in drawn) / 2000 for option in range(4)}
    assert share == pytest.approx({0: 0.05, 1: 0.25, 2: 0.1, 3: 0.6}, abs=0.04)
    assert all(set(p.structures) == present for p in drawn if p.option > 1)
    corrupted = [draw_prompt(rng, LUMBAR, {"3": 1.0}, 3, present, set(), "upper", 1.0) for _ in range(300)]
    assert {p.third for p in corrupted} == {"upper", "middle", "lower"}
    lengths = {sum(structure(i).kind is Kind.VERTEBRA for i in p.structures) for p in corrupted}
    assert lengths == {5, 6, 7}
    assert all((set(p.structures) != present) != (p.third != "upper") for p in corrupted)


def test_what_nobody_labelled_is_named_half_of_the_times():
    rng = np.random.default_rng(0)
    present = set(level_run(LUMBAR, *ids("L1", "L5")))
    drawn = [draw_prompt(rng, LUMBAR, {"3": 1.0}, 3, present, set(ids("S1")), "middle", 0.0) for _ in range(200)]
    assert sum(ids("S1")[0] in p.structures for p in drawn) == pytest.approx(100, abs=25)
    never = [draw_prompt(rng, LUMBAR, {"3": 1.0}, 3, present, set(), "middle", 0.0) for _ in range(50)]
    assert not any(ids("S1")[0] in p.structures for p in never)


# --- where prompts come from -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def volume():
    rng = np.random.default_rng(4)
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(rng.normal(100, 20, (5, 45, 70)).astype(np.float32))
    image.SetSpacing((2.0, 2.0, 4.0))
    image.SetDirection((0.0, 0.0, -1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0))
    return Preprocessing(pixel_mm=2.0).apply(image)


def run(method, volume, hints=None, **options):
    reference = options.pop("reference", None)
    options = {"batch": 2, **options}
    return predict_volume(method.eval(), volume, torch.device("cpu"), hints=hints, options=options, reference=reference)


def test_sides_that_do_not_divide_are_padded(volume):
    evidence = run(method_of(), volume)
    assert evidence.classes.shape == (11, *volume.array.shape)
    assert np.allclose(evidence.classes.sum(0), 1, atol=1e-4)


def test_the_range_is_used_where_it_is_given(volume):
    method = method_of()
    evidence = run(method, volume, Hints(visible=ids("L2", "L5")))
    assert evidence.about["prompt_source"] == "range"
    assert evidence.about["prompt_levels"] == "L2:L5"
    assert set(parse_prompt(evidence.about["prompt"]).structures) == set(level_run(SMALL, *ids("L2", "L5")))
    other = run(method, volume, Hints(visible=ids("L1", "L4")))
    assert not np.array_equal(evidence.classes, other.classes)
    generic = run(method, volume, Hints(visible=ids("L1", "L4")), prompt_source="generic")
    assert generic.about["prompt"] == "Sagittal MR image of the lumbar spine."
    none = run(method, volume, prompt_source="none")
    assert "prompt" not in none.about


def test_a_range_that_makes_no_sense_is_refused(volume):
    with pytest.raises(HintError, match="upside down"):
        run(method_of(), volume, Hints(visible=ids("L5", "L2")))
    with pytest.raises(SchemeError, match="not in the label scheme"):
        run(method_of(), volume, Hints(visible=ids("T11", "L2")))
    with pytest.raises(HintError, match="no visible range"):
        run(method_of(), volume, prompt_source="range")
    with pytest.raises(ConfigError, match="no prompt source"):
        run(method_of(), volume, prompt_source="guess")
    with pytest.raises(ConfigError, match="reads no text"):
        run(method_of(use_hasf=False), volume, prompt_source="self")
    with pytest.raises(ConfigError, match="general prompt"):
        run(method_of(prompt_option="1"), volume, prompt_source="self")


def test_the_usual_source_counts_where_nobody_says_anything(volume):
    for usual in ("self", "generic", "presence"):
        method = method_of(usual_source=usual)
        assert run(method, volume).about["prompt_source"] == usual
        assert run(method, volume, Hints(visible=ids("L2", "L5"))).about["prompt_source"] == "range"
    assert method_of().config.usual_source == "self"


def test_self_looks_again_with_what_it_saw(volume):
    method = method_of().eval()
    seen = []

    def spy(images, context, original=method.evidence):
        maps = original(images, context)
        classes = torch.zeros_like(maps["classes"])
        # The first pass sees L2 to L4; later ones also L5, since the prompt helps.
        for number, name in enumerate(("L2", "L3", "L4", *(["L5"] if context.memory.get(sources.RUNS) else []))):
            classes[:, SMALL.channel_of[structure(name).id], 10 * number + 12 : 10 * number + 20, 10:30] = 1.0
        seen.append((context.slices, context.about["prompt_levels"]))
        return {"classes": classes}

    method.evidence = spy
    evidence = run(method, volume)
    assert [s for s, _ in seen] == 3 * [(0, 1), (2, 3), (4,)]
    assert [levels for s, levels in seen if s == (4,)] == ["", "L2:L4", "L2:L5"]
    assert evidence.about["prompt_levels"] == "L2:L5"


def test_self_stops_when_nothing_changes(volume):
    method = method_of().eval()
    calls = []

    def blank(images, context):
        calls.append(context.slices)
        classes = torch.zeros(len(images), 11, *images.shape[2:])
        classes[:, 0] = 1.0
        return {"classes": classes}

    method.evidence = blank
    run(method, volume)
    assert len(calls) == 3  # one pass in batches of two slices


def test_votes_of_the_neighbours():
    classes = np.zeros((11, 5, 20, 20), np.float32)
    classes[0] = 0.5
    l3, l5 = (SMALL.channel_of[i] for i in ids("L3", "L5"))
    classes[l3, [0, 1, 3], :10] = 1.0  # missed in slice 2
    classes[l5, 4, 12:] = 1.0  # seen in one slice only
    runs = sources.voted_runs(SMALL, classes, 4.0, 30.0)
    assert runs == [ids("L3"), ids("L3"), ids("L3"), (), ()]
    assert sources.voted_runs(SMALL, classes, 0.1, 30.0) == [()] * 5  # 200 pixels of 0.1 mm² are 20 mm²


def test_presence_is_read_in_one_pass(volume):
    method = method_of()
    with torch.no_grad():
        method.presence_head.weight.zero_()
        method.presence_head.bias.fill_(-5.0)
        method.presence_head.bias[[SMALL.channel_of[i] - 1 for i in ids("L1", "L2", "L3")]] = 5.0
    evidence = run(method, volume, prompt_source="presence")
    assert evidence.about["prompt_levels"] == "L1:L3"


def test_the_reference_is_read_by_nobody_but_the_oracle(volume):
    method = method_of()
    reference = np.zeros(volume.array.shape, np.int16)
    reference[:, :20, :30], reference[:, 20:40, :30] = ids("L4", "L5")
    with pytest.raises(ConfigError, match="reads the reference"):
        run(method, volume, prompt_source="oracle", reference=reference)
    with pytest.raises(ConfigError, match="needs the reference"):
        run(method, volume, prompt_source="oracle", allow_label_leak=True)
    told = run(method, volume, prompt_source="oracle", allow_label_leak=True, reference=reference)
    assert told.about["prompt_levels"] == "L4:L5"
    for source in ("generic", "self", "presence", "none"):
        with_it = run(method, volume, prompt_source=source, reference=reference, allow_label_leak=True)
        assert np.array_equal(with_it.classes, run(method, volume, prompt_source=source).classes)


# --- what a checkpoint carries ---------------------------------------------------------------------------------------


def write_checkpoint(method, path):
    document = {
        "method": method.config.model_dump(mode="json"),
        "preprocessing": Preprocessing(pixel_mm=2.0).model_dump(mode="json"),
    }
    save_checkpoint(path, method.export_state(method.state_dict()), document)
    return read_header(path)


def test_a_checkpoint_predicts_without_bank_or_text_model(bank_file, tmp_path, volume):
    trained = method_with_bank(bank_file)
    assert (trained.config.text_encoder, trained.config.text_width) == ("word vectors", 12)
    loaded = load_method(write_checkpoint(trained, tmp_path / "atm.safetensors"))
    assert loaded.text.bank is None
    texts = inference_grammar(SMALL, 3)
    for live, stored in zip(trained.text(texts), loaded.text(texts), strict=True):
        assert torch.allclose(live, stored, atol=2e-3)
    hints = Hints(visible=ids("L2", "L5"))
    a, b = run(trained, volume, hints).classes, run(loaded, volume, hints).classes
    assert np.abs(a - b).max() < 0.02
    assert not np.allclose(b, run(loaded, volume, Hints(visible=ids("L1", "L4"))).classes, atol=1e-5)


def test_an_empty_or_foreign_bank_is_refused(bank_file, tmp_path, volume):
    untrained = method_of(text_encoder="anything", text_width=12)
    with pytest.raises(ConfigError, match=r"prompt bank .* is empty"):
        run(untrained, volume)
    with pytest.raises(ConfigError, match="is empty"):
        untrained.training_losses(stripes())
    untrained.text.stored_digest += 1
    with pytest.raises(ConfigError, match="another version"):
        run(untrained, volume)
    with pytest.raises(ConfigError, match=r"no text bank is given.*text-bank"):
        make_config("atm-net", "small").with_resources({})
    with pytest.raises(ConfigError, match="for the scheme “lumbar11”"):
        make_config("atm-net", "small", scheme="spider").with_resources({"text_bank": str(bank_file)})
    write_bank(tmp_path / "empty.safetensors", [], WordVectors(), "lumbar11")
    with pytest.raises(ConfigError, match="is empty"):
        make_config("atm-net", "small", scheme="lumbar11").with_resources(
            {"text_bank": str(tmp_path / "empty.safetensors")}
        )
    (tmp_path / "no.safetensors").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="is not a text bank"):
        TextBank(tmp_path / "no.safetensors")
    with pytest.raises(ConfigError, match="is not a text bank"):
        TextBank(tmp_path / "missing.safetensors")


@pytest.mark.parametrize(
    "changes",
    [{"scheme": 5}, {"encoder": None}, {"width": "x"}, {"width": 7}, {"width": -1}, {"texts": 5}, {"texts": ["a"]},
     {"lengths": ["x"]}, {"lengths": [-1]}, {"lengths": [10**9]}, {"lengths": None}],
    ids=str,
)  # fmt: skip
def test_a_damaged_bank_is_said(bank_file, tmp_path, changes):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(bank_file, "pt") as file:
        ((key, text),) = file.metadata().items()
    damaged = tmp_path / "damaged.safetensors"
    for told in (json.dumps({**json.loads(text), **changes}), "[" * 100_000, "[]", "5"):
        save_file(load_file(bank_file), damaged, {key: told})
        with pytest.raises(ConfigError, match="is not a text bank, is damaged"):
            TextBank(damaged)
    save_file({"other": torch.zeros(2, 2)}, damaged, {key: text})
    with pytest.raises(ConfigError, match="is not a text bank, is damaged"):
        TextBank(damaged)


def test_a_bank_gives_back_what_the_encoder_said(bank_file):
    bank = TextBank(bank_file)
    text = Prompt(3, level_run(SMALL, *ids("L1", "L5")), "upper").text(SMALL)
    assert torch.allclose(bank.features(text), WordVectors().encode([text])[0], atol=2e-3)
    assert bank.features("").shape == (0, 12)
    assert bank.longest == max(len(t.split()) for t in training_grammar(SMALL))


def test_the_shipped_size_fits():
    config = make_config("atm-net", "small", text_width=384, text_length=340)
    size = sum(t.numel() * 2 for t in build_method(config).state_dict().values())
    assert size < 10e6


def test_it_trains_like_any_other_method_and_says_what_it_was_told(tmp_path):
    from SpineSegAILib.training.config import DataConfig, OptimizationConfig, TrainingConfig
    from SpineSegAILib.training.request import TrainingRequest
    from SpineSegAILib.training.trainer import run_training

    manifest = write_tiny_dataset(tmp_path, training=2)
    bank = tmp_path / "bank.safetensors"
    write_bank(bank, training_grammar(LUMBAR), WordVectors(), "lumbar-mr")
    values = {"batch": 2, "validate_every": 1000, "save_every": 4, "workers": 0, "mixed_precision": "no"}
    config = TrainingConfig(
        method=make_config("atm-net", "tiny", text_encoder="anything").model_dump(mode="json"),
        dataset=str(manifest),
        preprocessing=Preprocessing(pixel_mm=3.0),
        data=DataConfig(patch=(64, 64)),
        optimization=OptimizationConfig(steps=4, **values),
        resources={"text_bank": str(bank)},
    )
    finished = run_training(TrainingRequest(config, tmp_path / "run", device="cpu"))
    info = read_header(finished.last)
    assert info.metadata["method"]["text_encoder"] == "word vectors"
    assert str(tmp_path) not in json.dumps(info.metadata)
    bank.unlink()
    predictor = Predictor(info, "cpu")
    image = read_image(manifest.parent / "case2_image.nii.gz")
    result = predictor.segment(image, Hints(visible=ids("T12", "S1")))
    assert result.provenance["about"]["prompt_levels"] == "T12:S1"
    assert "label_leak" not in result.provenance
    predictor.segment(image, Hints(visible=ids("T12", "S1")), {"consistency": "off"})
    with pytest.raises(HintError, match="both ends"):  # one end acts by consistency alone
        predictor.segment(image, Hints(visible=(ids("T12", "S1")[0], None)), {"consistency": "off"})
    report = tmp_path / "report.json"
    arguments = ["evaluate", str(manifest), "--split", "validation", "--checkpoint", str(finished.last)]
    arguments += ["--output", str(report), "--device", "cpu", "--option", "prompt_source=oracle"]
    assert main([*arguments, "--quiet"]) == 2
    assert not report.exists()
    assert main([*arguments, "--quiet", "--allow-label-leak"]) == 0
    assert "given the reference" in json.loads(report.read_text(encoding="utf-8"))["label_leak"]


def test_the_control_for_language_needs_no_bank(tmp_path, volume):
    method = method_of()
    assert method.config.text_encoder == LEARNED_TABLE
    assert not method.config.needs_bank
    loaded = load_method(write_checkpoint(method, tmp_path / "table.safetensors"))
    evidence = run(loaded, volume, Hints(visible=ids("L2", "L5")))
    assert evidence.about["prompt_source"] == "range"


# --- text encoders ---------------------------------------------------------------------------------------------------


def test_a_bert_is_frozen_and_outside_the_network(tmp_path, text_packages):
    from SpineSegAILib.methods.text.encoders import make_encoder

    texts = training_grammar(SMALL)
    encoder = make_encoder("tiny_offline", texts)
    short, long = encoder.encode([texts[-1], max(texts, key=len)])
    assert short.shape[1] == long.shape[1] == encoder.width
    assert len(short) < len(long)
    assert not short.requires_grad
    assert not any(p.requires_grad for p in encoder.model.parameters())
    assert not encoder.model.training
    alone = encoder.encode([texts[-1]])[0]
    assert torch.allclose(alone, short, atol=1e-5)  # padding changes nothing
    assert torch.equal(make_encoder("tiny_offline", texts).encode([texts[-1]])[0], alone)
    bank = tmp_path / "bank.safetensors"
    made = ["text-bank", "--scheme", "lumbar11", "--encoder", "tiny_offline", "--output", str(bank), "--quiet"]
    assert main(made) == 0
    method = method_with_bank(bank)
    own = {id(p) for p in method.parameters()}
    assert not own & {id(p) for p in encoder.model.parameters()}
    assert (method.config.text_encoder, method.config.text_width) == ("tiny_offline", encoder.width)
    # A folder of a saved model is an encoder like any other, named after the folder.
    encoder.model.save_pretrained(tmp_path / "my-bert")
    encoder.tokenizer.save_pretrained(tmp_path / "my-bert")
    again = make_encoder(str(tmp_path / "my-bert"))
    assert again.name == "my-bert"
    assert torch.allclose(again.encode([texts[-1]])[0], alone, atol=1e-5)
    with pytest.raises(ConfigError, match=r"cannot be loaded.*hf download"):
        make_encoder(str(tmp_path / "nowhere"))
    # Weights that are pickled are not loaded.
    state = encoder.model.state_dict()
    (tmp_path / "my-bert" / "model.safetensors").unlink()
    torch.save(state, tmp_path / "my-bert" / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="published as a pickle alone"):
        make_encoder(str(tmp_path / "my-bert"))


def test_clip_reads_long_prompts_in_parts(text_packages):
    import open_clip

    from SpineSegAILib.methods.text.encoders import ClipEncoder

    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    model, tokenizer = open_clip.CLIP(32, vision, text), open_clip.get_tokenizer("ViT-B-32")
    encoder = ClipEncoder("open_clip", tokenizer, model)
    short, long = encoder.encode(["It contains background.", max(training_grammar(LUMBAR), key=len)])
    assert short.shape == (6, 32)
    assert len(long) > 77
    with torch.no_grad():
        whole = model.encode_text(tokenizer(["It contains background."]))[0]
    assert torch.allclose(short[-1] @ model.text_projection, whole, atol=1e-5)


def test_a_missing_package_is_named(monkeypatch):
    import sys

    from SpineSegAILib.methods.text.encoders import make_encoder

    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingPackageError, match="pip install transformers"):
        make_encoder("bio_clinicalbert")
    with pytest.raises(MissingPackageError, match="pip install open_clip"):
        make_encoder("open_clip")


def test_the_bank_command_refuses_what_makes_no_sense(tmp_path):
    assert main(["text-bank", "--output", str(tmp_path / "bank.pt")]) == 2
    assert main(["text-bank", "--method", "unet", "--output", str(tmp_path / "bank.safetensors")]) == 2
    assert not list(tmp_path.iterdir())
