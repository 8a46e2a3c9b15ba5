"""LA-CAF: what its text, adapters, fusion, heads and masks must do, whatever the weights."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from tiny_data import write_tiny_dataset
from torch.nn import functional as F

from SpineSegAILib import anatomy
from SpineSegAILib.anatomy import STRUCTURES, extended, scheme, structure, structures
from SpineSegAILib.checkpoints import load_method, read_header, save_checkpoint
from SpineSegAILib.cli import main
from SpineSegAILib.errors import ConfigError, MissingPackageError, SchemeError
from SpineSegAILib.hints import Hints
from SpineSegAILib.imaging import Preprocessing
from SpineSegAILib.inference import Predictor
from SpineSegAILib.inference.sliding_window import predict_volume
from SpineSegAILib.methods.base import Batch, Context, coordinate_channels
from SpineSegAILib.methods.catalog import build_method, make_config
from SpineSegAILib.methods.la_caf import embeddings
from SpineSegAILib.methods.la_caf.losses import masked_sigmoid_loss
from SpineSegAILib.methods.la_caf.network import dynamic_heads, head_sizes, scalar_gain
from SpineSegAILib.methods.text import encoders
from SpineSegAILib.methods.text.bank import TextBank, write_bank
from SpineSegAILib.results import Segmentation
from SpineSegAILib.training.config import TrainingConfig
from SpineSegAILib.training.request import TrainingRequest
from SpineSegAILib.training.trainer import run_training

SIZES = (8, 16, 16)
AV = scheme("pulmonary-av")
RELEASED_WORDS = ("right artery", "left artery", "right vein", "left vein")


@pytest.fixture(autouse=True)
def no_added_structures_are_left():
    """Structures that a scheme adds are known to the whole process; not so to the next test."""
    yield
    for added in set(STRUCTURES) - anatomy.BUILT_IN:
        del structures._BY_NAME[structures._STRUCTURES.pop(added).name.lower()]


def tiny(**values):
    torch.manual_seed(values.pop("seed", 0))
    return build_method(make_config("la-caf", "tiny", **{"scheme": "pulmonary-av", **values}))


def random_image(batch=1, sizes=SIZES, seed=1):
    return torch.randn(batch, 1, *sizes, generator=torch.Generator().manual_seed(seed))


def coordinates(batch=1, sizes=SIZES):
    return coordinate_channels(sizes, (2.0,) * 3)[None].expand(batch, -1, -1, -1, -1)


def logits_of(method, images=None, **kwargs):
    images = random_image() if images is None else images
    return method(images, coordinates(len(images), tuple(images.shape[2:])), **kwargs)[0]


def batch_of(channels=AV.channels, batch=2, sizes=SIZES, seed=2):
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(0, channels, (batch, *sizes), generator=g)
    allowed = F.one_hot(label, channels).movedim(-1, 1).bool()
    image = label[:, None] / channels + 0.05 * torch.randn((batch, 1, *sizes), generator=g)
    return Batch(image, allowed, torch.full(label.shape, float("nan")), coordinates(batch, sizes))


def unknown(batch, channel, images=slice(None)):
    """The batch where a class was not annotated: what it was, and all background, may be it."""
    allowed = batch.allowed.clone()
    was = allowed[images, channel] | allowed[images, 0]
    allowed[images, channel] = was
    allowed[images, 0] = was
    return Batch(batch.image, allowed, batch.rank, batch.coordinates)


# --- text ---


def test_text_vectors_never_learn_and_everything_else_does():
    method = tiny()
    before = method.embeddings.clone()
    optimizer = torch.optim.AdamW(method.parameters(), 1e-2, weight_decay=0.1)
    learning = {id(p) for group in optimizer.param_groups for p in group["params"]}
    buffers = dict(method.named_buffers())
    assert all(id(buffers[f"classes.{i}.embedding"]) not in learning for i in AV.ids)
    method.training_losses(batch_of())["total"].backward()
    for part in ("backbone", "classes", "image_adapter", "cross_attention", "to_head", "controller"):
        gradients = [p.grad for p in getattr(method, part).parameters()]
        assert any(g is not None and g.abs().sum() > 0 for g in gradients), part
    optimizer.step()
    assert torch.equal(method.embeddings, before)
    assert not any("clip" in name.lower() for name in method.state_dict())


def test_text_vectors_are_in_the_checkpoint_and_need_no_encoder_there(tmp_path, monkeypatch):
    method = tiny()
    metadata = {"method": method.config.model_dump(mode="json"), "preprocessing": {}}
    metadata["method"]["text_encoder"] = "open_clip:nowhere:nothing"
    save_checkpoint(tmp_path / "c.safetensors", method.state_dict(), metadata)
    monkeypatch.setattr(embeddings, "load_open_clip", lambda *_: pytest.fail("CLIP was loaded"))
    loaded = load_method(read_header(tmp_path / "c.safetensors"))
    assert torch.allclose(loaded.embeddings, method.embeddings, atol=1e-3)
    assert torch.isfinite(logits_of(loaded)).all()


def test_prompts_are_sentences_of_the_class_and_modality():
    prompts = make_config("la-caf", scheme="pulmonary-av").prompts
    assert list(prompts.values()) == [f"A computerized tomography of a {v}" for v in RELEASED_WORDS]
    whole = make_config("la-caf", scheme="pulmonary-av", short_names=False).prompts
    assert whole[201] == "A computerized tomography of a right pulmonary artery"
    prompts = make_config("la-caf", scheme="lumbar-mr").prompts
    assert prompts[structure("L3").id] == "A magnetic resonance imaging of the L3 vertebra"
    assert prompts[structure("L4/L5").id] == "A magnetic resonance imaging of the L4/L5 intervertebral disc"
    assert len(set(prompts.values())) == len(prompts)


def test_the_offline_encoder_is_the_same_everywhere_and_tells_sentences_apart():
    texts = ["the L3 vertebra", "the L4 vertebra", "the spinal canal"]
    a, b = embeddings.hashed(64)(texts), embeddings.hashed(64)(texts)
    assert np.array_equal(a, b)
    unit = a / np.linalg.norm(a, axis=1, keepdims=True)
    likeness = unit @ unit.T
    assert likeness[0, 1] > likeness[0, 2]
    assert likeness[0, 1] < 0.95
    assert np.abs(a).max() < 20


class Hashed:
    """An encoder for banks: one vector per sentence."""

    name, width = "hashed", 64

    def encode(self, texts):
        return list(torch.from_numpy(embeddings.hashed(64)(texts))[:, None])


def test_a_bank_gives_what_was_put_in_and_refuses_the_rest(tmp_path):
    path = tmp_path / "bank.safetensors"
    prompts = make_config("la-caf", scheme="pulmonary-av").text_prompts()
    assert len(prompts) == 8  # short names and whole ones
    write_bank(path, prompts, Hashed(), "pulmonary-av")
    found, exact = embeddings.read_bank(path)(prompts[::-1]), embeddings.hashed(64)(prompts)[::-1]
    assert np.allclose(found, exact, rtol=1e-3, atol=1e-3)  # half precision
    with pytest.raises(ConfigError, match="lacks “the moon”"):
        embeddings.read_bank(path)(["the moon"])
    with pytest.raises(ConfigError, match="not a text bank"):
        embeddings.read_bank(tmp_path / "nothing.safetensors")
    method = tiny(text_encoder=f"bank:{path}")
    with pytest.raises(ConfigError, match="no entry in the prompt bank"):
        logits_of(method)
    method.prepare_training(None)
    assert torch.allclose(method.embeddings, tiny().embeddings, atol=5e-3)


def test_encoders_that_cannot_be_had_say_how_to_get_them(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingPackageError) as error:
        embeddings.encoder("open_clip:ViT-B-32:openai", 512)(["a"])
    assert "pip install open_clip_torch" in error.value.remedy
    with pytest.raises(ConfigError, match="not a text encoder"):
        embeddings.encoder("word2vec", 512)
    with pytest.raises(ConfigError, match="vectors of shape"):
        embeddings.encode_prompts(["a"], embeddings.hashed(32), 64)
    with pytest.raises(ConfigError, match="zero, all the same, or not numbers"):
        embeddings.encode_prompts(["a"], lambda texts: np.zeros((1, 64)), 64)


def test_clip_s_text_towers_fit(tmp_path, monkeypatch, text_packages):
    """open_clip's and transformers' own classes with tiny random weights, from safetensors files alone."""
    import open_clip
    import transformers
    from safetensors.torch import save_file

    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16}
    monkeypatch.setitem(
        open_clip.factory._MODEL_CONFIGS, "tiny", {"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}
    )
    torch.manual_seed(0)
    model = open_clip.create_model("tiny", pretrained=None)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "clip.safetensors")
    torch.save(model.state_dict(), tmp_path / "clip.pt")
    prompts = make_config("la-caf", scheme="pulmonary-av").text_prompts()
    found = embeddings.encoder(f"open_clip:tiny:{tmp_path / 'clip.safetensors'}", 64)(prompts)
    with torch.inference_mode():
        assert np.allclose(found, model.eval().encode_text(open_clip.get_tokenizer("tiny")(prompts)), atol=1e-5)
    with pytest.raises(ConfigError, match="a pickle, which is never opened"):
        embeddings.encoder(f"open_clip:tiny:{tmp_path / 'clip.pt'}", 64)(prompts)

    config = transformers.CLIPTextConfig(
        vocab_size=99, hidden_size=32, intermediate_size=64, projection_dim=64, num_hidden_layers=1,
        num_attention_heads=2, eos_token_id=1, bos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    tower = transformers.CLIPTextModelWithProjection(config)
    tokenizer = encoders.tiny_offline_encoder(prompts).tokenizer
    for name, safe in (("safe", True), ("pickle", False)):
        tower.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        if not safe:
            torch.save(tower.state_dict(), tmp_path / name / "pytorch_model.bin")
            (tmp_path / name / "model.safetensors").unlink()
    assert embeddings.encoder(f"clip:{tmp_path / 'safe'}", 64)(prompts).shape == (8, 64)
    with pytest.raises(ConfigError, match=r"as a pickle alone.*save_pretrained"):
        embeddings.encoder(f"clip:{tmp_path / 'pickle'}", 64)(prompts)


def test_what_all_sentences_share_is_taken_off_once_and_for_all():
    method = tiny(scheme="lumbar-mr")
    assert method.embeddings.mean(0).abs().max() < 0.1
    released = tiny(scheme="lumbar-mr", center_text=False)
    likeness = [torch.corrcoef(m.embeddings).fill_diagonal_(0).max() for m in (method, released)]
    assert likeness[0] < 0.6 < likeness[1]
    grown = tiny(scheme="lumbar-mr+cord")
    grown.load_state_dict(method.state_dict(), strict=False)
    grown.classes["60"].embedding.zero_()
    grown.prepare_training(method.config.model_dump())
    assert torch.equal(grown.embeddings[:24], method.embeddings)
    assert torch.equal(grown.text_center, method.text_center)
    assert grown.embeddings[24].any()
    other = tiny(scheme="lumbar-mr+cord")
    other.load_state_dict(method.state_dict(), strict=False)
    other.prepare_training({**method.config.model_dump(), "text_encoder": "open_clip:a:b"})
    assert not torch.equal(other.embeddings[:24], method.embeddings)  # vectors of another encoder are not mixed in


# --- fusion and heads ---


def test_another_text_changes_its_own_class_and_with_cross_attention_no_other():
    method = tiny().eval()
    before = logits_of(method)
    method.set_embeddings({202: -method.embeddings[1]})
    after = logits_of(method)
    changed = (after - before).abs().flatten(2).amax((0, 2))
    assert changed[1] > 1e-4
    assert changed[[0, 2, 3]].max() == 0
    released = tiny(fusion="released").eval()
    before = logits_of(released)
    released.set_embeddings({202: -released.embeddings[1]})
    changed = (logits_of(released) - before).abs().flatten(2).amax((0, 2))
    assert changed[1] > 1e-4
    assert changed[[0, 2, 3]].max() > 0


def test_what_a_text_finds_is_added_to_it_or_stands_alone():
    for alone in (False, True):
        method = tiny(attention_norm=alone).eval()
        block = method.cross_attention
        _, bottleneck = method.backbone(method.network_input(random_image(), coordinates()))
        text, whole = method.text(AV.ids), method.image_adapter(bottleneck)
        with torch.no_grad():
            found = block(text, bottleneck, whole, None)
            block.attention.out_proj.weight.zero_()
            block.attention.out_proj.bias.zero_()
            nothing = block(text, bottleneck, whole, None)
        assert not torch.allclose(found, nothing, atol=1e-3)
        expected = torch.zeros_like(nothing) if alone else block.norm(text)[None]
        assert torch.allclose(nothing, expected, atol=1e-5)


def test_heads_depend_more_on_the_image_where_the_text_is_not_added():
    """Generated parameters of two images, apart as a share of how far two classes' are apart."""
    shares = []
    for alone in (False, True):
        method = tiny(attention_norm=alone).eval()
        both = torch.cat([random_image(seed=1), 3 * random_image(seed=2).abs()])
        with torch.inference_mode():
            _, bottleneck = method.backbone(method.network_input(both, coordinates(2)))
            heads = method.controller(method.fuse(AV.ids, bottleneck))
        shares.append(float((heads[0] - heads[1]).norm() / (heads[:, 1:] - heads[:, :-1]).norm()))
    assert shares[1] > 2 * shares[0]


def test_an_adapter_is_what_is_released():
    """``ReLU(W2 · GELU(W1 · E))``, with biases as released or without."""
    for biases in (True, False):
        method = tiny(adapter_biases=biases)
        first, second = (layer for layer in method.classes["201"].adapter if isinstance(layer, torch.nn.Linear))
        assert (first.bias is not None) == (second.bias is not None) == biases
        with torch.no_grad():
            hidden = F.gelu(first(method.embeddings[0]))
            assert (hidden < 0).any()  # which a ReLU would not give
            assert torch.allclose(method.text([201])[0], F.relu(second(hidden)), atol=1e-6)


def test_the_image_adapter_reads_places_and_its_alternative_the_mean():
    adapter, mean = tiny().image_adapter, tiny(image_map="pool").image_adapter
    x = torch.rand(1, 16, 12, 12, 12, generator=torch.Generator().manual_seed(0))
    moved = x.flip(2)
    with torch.no_grad():
        assert torch.allclose(mean(x), mean(moved), atol=1e-5)
        assert not torch.allclose(adapter(x), adapter(moved), atol=1e-3)
        y = F.relu(adapter.norm(x))
        for _ in range(3):
            y = adapter.axis[2](F.gelu(adapter.axis[0](y)))[..., 0]
        assert torch.allclose(adapter(x), adapter.project(F.relu(y)), atol=1e-5)


@pytest.mark.parametrize("fusion", ["xattn", "released"])
def test_permuting_the_classes_permutes_the_output(fusion):
    method = tiny(fusion=fusion).eval()
    before = logits_of(method)
    order = [2, 0, 3, 1]
    after = logits_of(method, ids=[AV.ids[i] for i in order])
    assert torch.allclose(after, before[:, order], atol=1e-5)
    turned = tiny(fusion=fusion).eval()
    state = method.state_dict()
    for position, other in enumerate(order):  # the same by moving embeddings and adapters
        mine, theirs = f"classes.{AV.ids[position]}.", f"classes.{AV.ids[other]}."
        moved = {k.replace(theirs, mine): v for k, v in method.state_dict().items() if k.startswith(theirs)}
        state = {**state, **moved}
    turned.load_state_dict(state)
    assert torch.allclose(logits_of(turned), before[:, order], atol=1e-5)


def collinear(fused, image_vector):
    """Largest sine of the angle between the rows of (k, w) and a vector."""
    cosine = F.cosine_similarity(fused, image_vector.expand_as(fused), dim=-1).abs().clamp(max=1)
    return float((1 - cosine.detach() ** 2).sqrt().max())


def test_the_released_fusion_is_a_scalar_gain_and_cross_attention_is_not():
    sines = {}
    for fusion in ("released", "xattn"):
        method = tiny(fusion=fusion, concat=False).eval()
        _, bottleneck = method.backbone(method.network_input(random_image(), coordinates()))
        fused = method.fuse(AV.ids, bottleneck)[0]
        assert fused.shape == (4, method.config.fusion_width)
        sines[fusion] = collinear(fused, method.image_adapter(bottleneck))
    assert sines["released"] < 1e-3
    assert sines["xattn"] > 0.5


def test_the_scalar_gain_is_the_release_s_matrix_product():
    text = torch.rand(5, 7, generator=torch.Generator().manual_seed(0))
    vector = torch.randn(3, generator=torch.Generator().manual_seed(1))
    similarity = text @ text.T
    mixing = (similarity - similarity.min()) / (similarity.max() - similarity.min())
    assert torch.allclose(mixing @ vector.expand(5, 3), scalar_gain(text)[:, None] * vector, atol=1e-5)
    assert scalar_gain(text[:1]).tolist() == [1.0]  # min-max of one number would be 0/0


def test_heads_have_153_weights_and_are_separate_convolutions():
    assert sum(head_sizes(8)) == 153
    assert tiny().controller.out_features == 153
    g = torch.Generator().manual_seed(0)
    features, parameters = torch.randn(2, 8, 3, 4, 5, generator=g), torch.randn(2, 3, 153, generator=g)
    together = dynamic_heads(features, parameters)
    for b in range(2):
        for c in range(3):
            w1, b1, w2, b2, w3, b3 = parameters[b, c].split(head_sizes(8))
            x = F.relu(F.conv3d(features[b : b + 1], w1.view(8, 8, 1, 1, 1), b1))
            x = F.relu(F.conv3d(x, w2.view(8, 8, 1, 1, 1), b2))
            x = F.conv3d(x, w3.view(1, 8, 1, 1, 1), b3)
            assert torch.allclose(together[b, c], x[0, 0], atol=1e-4)


def test_a_head_depends_on_the_image_it_is_for():
    method = tiny().eval()
    both = torch.cat([random_image(seed=1), random_image(seed=2)])
    assert torch.allclose(logits_of(method, both)[1], logits_of(method, both[1:])[0], atol=1e-4)
    _, bottleneck = method.backbone(method.network_input(both, coordinates(2)))
    fused = method.fuse(AV.ids, bottleneck)
    assert (fused[0] - fused[1]).abs().max() > 1e-4


def test_the_paper_s_backbone_has_its_size():
    method = build_method(make_config("la-caf", scheme="pulmonary-av", text_encoder="hashed"))
    assert method.config.input_channels == 1  # no coordinates
    assert sum(p.numel() for p in method.backbone.parameters()) / 1e6 == pytest.approx(19.1, abs=0.2)
    assert method.tiling.divisors(3) == (8, 8, 8)
    assert build_method(make_config("la-caf", text_encoder="hashed")).tiling.divisors(3) == (2, 8, 8)


@pytest.mark.parametrize(
    "flags",
    [
        {"text_map": "linear", "image_map": "pool", "fusion": "none"},
        {"image_map": "pool", "fusion": "none"},
        {"image_map": "pool", "concat": False},
        {"image_map": "pool"},
        {"fusion": "released"},
        {"use_clip_visual": True},
        {"use_clip_visual": True, "attention_norm": True},
        {"rank_weight": 0.5},
    ],
    ids=lambda f: " ".join(f"{k}={v}" for k, v in f.items()),
)
def test_every_row_of_the_ablation_learns_and_predicts(flags):
    method = tiny(**flags)
    batch = batch_of(batch=1)
    method.training_losses(batch)["total"].backward()
    assert all(p.grad is not None for p in method.controller.parameters())
    unused = [n for n, p in method.named_parameters() if p.grad is None]
    assert not unused
    with torch.inference_mode():
        maps = method.eval().evidence(batch.image, Context(batch.coordinates))
    assert maps["classes"].shape == (1, 5, *SIZES)


def test_swin_unetr_makes_features_too():
    sizes = (32, 32, 64)
    method = tiny(backbone="swinunetr", widths=(12, 24), coordinates=False).eval()
    with torch.inference_mode():
        maps = method.evidence(random_image(sizes=sizes), Context(coordinates(sizes=sizes)))
    assert maps["classes"].shape == (1, 5, *sizes)
    assert method.tiling.divisors(3) == (32, 32, 32)


def test_clip_s_view_of_slices_matters_where_it_is_switched_on():
    method = tiny(use_clip_visual=True).eval()
    before = logits_of(method)
    method._clip_visual = lambda slices: torch.zeros(len(slices), 64)
    assert (logits_of(method) - before).abs().max() > 1e-5
    with pytest.raises(ConfigError, match="use_clip_visual"):
        make_config("la-caf", "tiny", use_clip_visual=True, fusion="released")


def test_bad_configurations_are_refused():
    with pytest.raises(ConfigError, match="attention_heads"):
        make_config("la-caf", "tiny", attention_heads=5)
    with pytest.raises(ConfigError, match="template"):
        make_config("la-caf", "tiny", template="the spine")
    with pytest.raises(ConfigError):
        make_config("la-caf", "tiny", dims=2)
    with pytest.raises(SchemeError, match="canal"):
        make_config("la-caf", "tiny", scheme="pulmonary-av", only=("canal",))


# --- half-labeled data ---


def test_the_loss_is_cross_entropy_and_dice():
    batch = batch_of()
    logits = torch.randn(2, 4, *SIZES, generator=torch.Generator().manual_seed(0))
    truth = batch.allowed[:, 1:].float()
    p = logits.sigmoid()
    axes = (2, 3, 4)
    bce = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(axes)
    sums = p.sum(axes) + truth.sum(axes) + 1
    for smooth in (True, False):
        losses = masked_sigmoid_loss(logits, batch.allowed, smooth_overlap=smooth)
        dice = 1 - (2 * (p * truth).sum(axes) + smooth) / sums
        assert losses["bce"].item() == pytest.approx(bce.mean().item(), rel=1e-5)
        assert losses["dice"].item() == pytest.approx(dice.mean().item(), rel=1e-5)
        assert losses["total"].item() == pytest.approx((bce + dice).mean().item(), rel=1e-5)


def test_an_absent_class_costs_what_is_predicted_of_it_or_as_released_always_one():
    allowed = torch.zeros(1, 2, 2, 2, 2, dtype=torch.bool)
    allowed[:, 0] = True
    for smooth in (True, False):
        logits = torch.full((1, 1, 2, 2, 2), -4.0, requires_grad=True)
        dice = masked_sigmoid_loss(logits, allowed, smooth_overlap=smooth)["dice"]
        dice.backward()
        assert (dice.item() < 0.2) == smooth
        assert bool((logits.grad > 0).all()) == smooth


def test_the_released_preset_is_the_release():
    config = make_config("la-caf", "released")
    assert (config.fusion, config.dice_smooth, config.adapter_biases) == ("released", "denominator", True)
    assert not (config.coordinates or config.center_text or config.mask_unlabelled)
    o = config.recipe["optimization"]
    assert (o["steps"], o["batch"], o["learning_rate"], o["weight_decay"]) == (125_625, 4, 8e-4, 1e-5)


# --- weights of others ---


def published(widths=(64, 128, 256, 512), seed=0):
    """A file of the Universal Model's names and shapes, for its U-Net."""
    g = torch.Generator().manual_seed(seed)
    tensors = {}

    def layer(name, *shape):
        tensors[f"module.{name}.weight"] = torch.randn(shape, generator=g)
        tensors[f"module.{name}.bias"] = torch.randn(shape[0], generator=g)

    def norm(name, width):
        layer(name, width)
        tensors[f"module.{name}.running_mean"] = torch.zeros(width)
        tensors[f"module.{name}.num_batches_tracked"] = torch.tensor(7)

    inputs = 1
    for width in widths:
        for number, (a, b) in enumerate(((inputs, width // 2), (width // 2, width))):
            layer(f"backbone.down_tr{width}.ops.{number}.conv1", b, a, 3, 3, 3)
            norm(f"backbone.down_tr{width}.ops.{number}.bn1", b)
        inputs = width
    for width in widths[-2::-1]:
        layer(f"backbone.up_tr{width}.up_conv", inputs, inputs, 2, 2, 2)
        for number, a in enumerate((inputs + width, width)):
            layer(f"backbone.up_tr{width}.ops.{number}.conv1", width, a, 3, 3, 3)
            norm(f"backbone.up_tr{width}.ops.{number}.bn1", width)
        inputs = width
    layer("backbone.out_tr.final_conv", 32, widths[0], 1, 1, 1)
    norm("precls_conv.0", widths[0])
    layer("precls_conv.2", 8, widths[0], 1, 1, 1)
    norm("GAP.0", widths[-1])
    layer("GAP.3", 256, widths[-1], 1, 1, 1)
    layer("controller", 153, 512, 1, 1, 1)
    layer("text_to_vision", 256, 512)
    tensors["module.organ_embedding"] = torch.randn(32, 512, generator=g)
    return tensors


def test_universal_model_weights_are_taken_where_they_belong(tmp_path):
    from safetensors.torch import save_file

    tensors = published()
    save_file(tensors, tmp_path / "unet.safetensors")
    method = build_method(make_config("la-caf", scheme="pulmonary-av", text_encoder="hashed", text_map="linear"))
    before = {k: v.clone() for k, v in method.state_dict().items()}
    method.open_resources({"universal_model": str(tmp_path / "unet.safetensors")})
    after = method.state_dict()
    changed = {k for k in after if not torch.equal(before[k], after[k])}
    assert {k for k in after if k.startswith(("backbone.", "to_head."))} <= changed
    assert {"controller.weight", "image_adapter.project.weight", "text_projection.bias"} <= changed
    assert not any(k.startswith("classes.") for k in changed)
    # The same network of the published parts, put together again: encoder level 1, and a head's layers in its order.
    x = torch.randn(1, 64, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    y = x
    for number in (0, 1):
        name = f"module.backbone.down_tr128.ops.{number}"
        y = F.conv3d(y, tensors[f"{name}.conv1.weight"], tensors[f"{name}.conv1.bias"], padding=1)
        y = F.relu(F.instance_norm(y, weight=tensors[f"{name}.bn1.weight"], bias=tensors[f"{name}.bn1.bias"]))
    with torch.inference_mode():
        assert torch.allclose(method.backbone.down[1](x), y, atol=1e-3)
        vector = torch.randn(1, 1, 512, generator=torch.Generator().manual_seed(2))
        rows = F.linear(vector, tensors["module.controller.weight"].flatten(1), tensors["module.controller.bias"])
        w1, w2, w3, b1, b2, b3 = rows[0, 0].split((64, 64, 8, 8, 8, 1))
        z = torch.randn(1, 8, 2, 2, 2, generator=torch.Generator().manual_seed(3))
        expected = z
        for w, b in ((w1, b1), (w2, b2), (w3, b3)):
            expected = F.conv3d(expected, w.view(-1, 8, 1, 1, 1), b)
            expected = F.relu(expected) if len(b) > 1 else expected
        assert torch.allclose(dynamic_heads(z, method.controller(vector)), expected, atol=1e-2, rtol=1e-3)


def test_foreign_weights_that_cannot_be_taken_are_refused(tmp_path):
    from safetensors.torch import save_file

    method = tiny()
    (tmp_path / "unet.pth").write_bytes(b"\x80\x02not a safetensors file")
    with pytest.raises(ConfigError, match=r"safetensors.*torch\.load\('unet\.pth'"):
        method.open_resources({"universal_model": str(tmp_path / "unet.pth")})
    save_file(published((64, 128)), tmp_path / "unet.safetensors")
    with pytest.raises(ConfigError, match=r"Nothing in .* fits"):
        method.open_resources({"universal_model": str(tmp_path / "unet.safetensors")})


def test_what_is_unknown_gets_no_gradient():
    g = torch.Generator().manual_seed(0)
    batch = unknown(batch_of(), channel=2, images=slice(1, 2))
    logits = torch.randn(2, 4, *SIZES, generator=g, requires_grad=True)
    masked_sigmoid_loss(logits, batch.allowed)["total"].backward()
    grey = batch.allowed[1, 2] & (batch.allowed[1].sum(0) > 1)
    assert grey.any()
    assert logits.grad[1, 1][grey].abs().max() == 0  # unknown voxels
    assert logits.grad[1, 1][~grey].abs().min() > 0  # a false artery inside a vein is still punished
    assert logits.grad[0, 1].abs().min() > 0


def test_a_class_that_is_wholly_unknown_gets_no_gradient_anywhere():
    method = tiny()
    batch = batch_of()
    allowed = batch.allowed.clone()
    allowed[:, :3] = True  # any voxel may be background or one of the first two structures
    logits = torch.randn(2, 4, *SIZES, requires_grad=True)
    batch = Batch(batch.image, allowed, batch.rank, batch.coordinates)
    masked_sigmoid_loss(logits, batch.allowed)["total"].backward()
    assert logits.grad[:, :2].abs().max() == 0
    assert logits.grad[:, 2:].abs().max() > 0
    method.training_losses(batch)["total"].backward()
    for sid, learns in zip(AV.ids, (False, False, True, True), strict=True):
        total = sum(float(p.grad.abs().sum()) for p in method.classes[str(sid)].parameters())
        assert (total > 0) == learns, sid


def test_a_batch_of_which_nothing_is_known_costs_nothing():
    method = tiny(rank_weight=0.5)
    batch = batch_of()
    batch = Batch(batch.image, torch.ones_like(batch.allowed), batch.rank, batch.coordinates)
    losses = method.training_losses(batch)
    assert {k: v.item() for k, v in losses.items()} == dict.fromkeys(losses, 0.0)
    losses["total"].backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in method.parameters())


def test_the_release_takes_unlabelled_for_background():
    batch = unknown(batch_of(), channel=2)
    logits = torch.zeros(2, 4, *SIZES, requires_grad=True)
    masked_sigmoid_loss(logits, batch.allowed, mask_unlabelled=False)["total"].backward()
    grey = batch.allowed[:, 2] & (batch.allowed.sum(1) > 1)
    assert (logits.grad[:, 1][grey] > 0).all()  # pushed down


def test_a_vessel_of_unknown_side_teaches_the_union():
    allowed = torch.zeros(1, 5, 1, 1, 2, dtype=torch.bool)
    allowed[0, 1:3, ..., 0] = True  # an artery, right or left
    allowed[0, 0, ..., 1] = True
    logits = torch.tensor([[1.0, -2.0, 0.5, 0.0], [0.0] * 4]).T.reshape(1, 4, 1, 1, 2).clone().requires_grad_()
    losses = masked_sigmoid_loss(logits, allowed)
    p = logits.detach()[0, :2, 0, 0, 0].sigmoid()
    expected = -torch.log(1 - (1 - p).prod()) / 5  # one of five terms: four classes and the union
    assert losses["one_of"].item() == pytest.approx(float(expected), abs=1e-5)
    losses["total"].backward()
    assert (logits.grad[0, :2, 0, 0, 0] < 0).all()  # either may rise
    assert (logits.grad[0, 2:, 0, 0, 0] > 0).all()  # no vein
    for value in (-80.0, 80.0):
        extreme = torch.full((1, 4, 1, 1, 2), value, requires_grad=True)
        masked_sigmoid_loss(extreme, allowed)["total"].backward()
        assert torch.isfinite(extreme.grad).all()


def test_masking_beats_taking_the_unlabelled_for_background():
    """Half of the structures hidden in half of the cases: the mechanism, on features that decide everything."""
    g = torch.Generator().manual_seed(0)
    label = torch.randint(0, 3, (8, 1, 1, 200), generator=g)
    features = F.one_hot(label, 3).movedim(-1, 1).float()
    full = F.one_hot(label, 3).movedim(-1, 1).bool()
    hidden = full.clone()
    was = full[2:, 1] | full[2:, 0]  # class 1 is drawn in two of eight cases
    hidden[2:, 1], hidden[2:, 0] = was, was
    scores = {}
    for mask in (True, False):
        head = torch.nn.Conv3d(3, 2, 1)
        optimizer = torch.optim.Adam(head.parameters(), 0.1)
        for _ in range(80):
            optimizer.zero_grad()
            masked_sigmoid_loss(head(features), hidden, mask_unlabelled=mask)["total"].backward()
            optimizer.step()
        found = head(features)[:, 0] > 0
        scores[mask] = float(2 * (found & full[:, 1]).sum() / (found.sum() + full[:, 1].sum()))
    assert scores[True] > 0.99
    assert scores[False] < 0.6


# --- what it says ---


def test_background_follows_from_the_sigmoids():
    method = tiny().eval()
    image = random_image()
    with torch.inference_mode():
        sigmoids = logits_of(method, image).sigmoid()[0]
        classes = method.evidence(image, Context(coordinates()))["classes"][0]
    assert torch.allclose(classes.sum(0), torch.ones(SIZES), atol=1e-5)
    rule = torch.where(sigmoids.amax(0) > 0.5, sigmoids.argmax(0) + 1, 0)  # the paper's
    assert torch.equal(classes.argmax(0), rule)
    odds = sigmoids / (1 - sigmoids)
    assert torch.allclose(classes[1:], odds / (1 + odds.sum(0)), atol=1e-4)


def test_heads_can_be_computed_alone():
    method = tiny(scheme="lumbar-mr").eval()
    wanted = tuple(structure(n).id for n in ("L4", "L3"))
    image = random_image()
    with torch.inference_mode():
        whole, part = logits_of(method, image), logits_of(method, image, ids=wanted)
    channels = [method.scheme.channel_of[i] - 1 for i in wanted]
    assert torch.allclose(part, whole[:, channels], atol=1e-5)


def picture(shape, spacing=(4.0, 1.5, 1.5)):
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(100, 20, shape).astype(np.float32))
    image.SetSpacing(spacing[::-1])
    image.SetDirection((0.0, 0.0, -1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0))
    return image


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    method = tiny(scheme="lumbar-mr", foreground_prior=0.5)
    metadata = {
        "method": method.config.model_dump(mode="json"),
        "preprocessing": Preprocessing(pixel_mm=2.0).model_dump(mode="json"),
        "patch": [8, 32, 32],
    }
    path = tmp_path_factory.mktemp("la-caf") / "tiny.safetensors"
    save_checkpoint(path, method.state_dict(), metadata)
    return path


def test_predictions_of_any_shape_and_subset(checkpoint):
    predictor = Predictor(checkpoint, "cpu")
    for shape in ((3, 20, 44), (10, 50, 33), (1, 40, 40)):  # thinner and smaller than the window, too
        image = picture(shape)
        result = predictor.segment(image, options={"consistency": "off"})
        assert result.labels.GetSize() == image.GetSize()
        assert result.present
    with pytest.raises(SchemeError):
        predictor.segment(picture((3, 20, 20)), Hints(structures=(201,)))


def test_a_structure_asked_for_alone_is_what_it_is_among_all(checkpoint):
    """All heads compete for a voxel, and names are counted along the whole column, whoever asked for what."""
    predictor, image = Predictor(checkpoint, "cpu"), picture((10, 50, 33))
    for options in ({"consistency": "off"}, {}):
        whole = predictor.segment(image, options=options)
        wanted = whole.present[len(whole.present) // 2]
        only = predictor.segment(image, Hints(structures=(wanted,)), options)
        assert only.present == [wanted]
        drawn, alone = (sitk.GetArrayFromImage(result.labels) for result in (whole, only))
        np.testing.assert_array_equal(alone, np.where(drawn == wanted, wanted, 0))
        assert only.level_confidence == whole.level_confidence


def test_shuffled_texts_change_the_result(checkpoint):
    predictor = Predictor(checkpoint, "cpu")
    image = picture((8, 32, 32))
    plain, shuffled, neighbour = (
        sitk.GetArrayFromImage(predictor.segment(image, options={"consistency": "off", **o}).labels)
        for o in ({}, {"text": "shuffled"}, {"text": "neighbour"})
    )
    for other in (shuffled, neighbour):
        assert (plain != other).mean() > 0.1
    assert (shuffled != neighbour).any()


def test_many_classes_of_a_volume_are_held_in_half_precision(checkpoint):
    method = load_method(read_header(checkpoint))
    volume = Preprocessing(pixel_mm=1.5).apply(picture((10, 50, 44)))
    evidence = predict_volume(method, volume, torch.device("cpu"), patch=(8, 32, 32))
    assert evidence.classes.dtype == np.float16
    assert evidence.classes.shape == (25, *volume.array.shape)
    assert np.abs(evidence.classes.astype(np.float32).sum(0) - 1).max() < 0.01


def test_sided_structures_are_never_mirrored():
    method = tiny().eval()
    volume = Preprocessing(pixel_mm=1.5).apply(picture((8, 32, 32)))
    with pytest.raises(ConfigError, match="left or right"):
        predict_volume(method, volume, torch.device("cpu"), patch=SIZES, options={"mirror": "on"})


def test_one_class_alone():
    for fusion in ("xattn", "released"):
        method = tiny(scheme="vertebra", fusion=fusion)
        losses = method.training_losses(batch_of(channels=2))
        losses["total"].backward()
        assert torch.isfinite(losses["total"])
        with torch.inference_mode():
            classes = method.eval().evidence(random_image(), Context(coordinates()))["classes"]
        assert classes.shape[1] == 2


def test_no_class_at_all_is_refused():
    with pytest.raises(SchemeError, match="No structure"):
        AV.subset(())


# --- learning ---


def test_it_overfits_one_case_and_tells_the_classes_apart_by_their_text():
    method = tiny()
    label = torch.zeros(1, *SIZES, dtype=torch.long)
    image = torch.zeros(1, 1, *SIZES)
    for number, (rows, columns) in enumerate([(0, 0), (0, 8), (8, 0), (8, 8)]):
        box = (slice(None), slice(1, 7), slice(rows + 1, rows + 6), slice(columns + 1, columns + 6))
        label[box] = number + 1
        image[:, 0][box] = 1.0
    allowed = F.one_hot(label, 5).movedim(-1, 1).bool()
    batch = Batch(image, allowed, torch.full(label.shape, float("nan")), coordinate_channels(SIZES, (8.0,) * 3)[None])
    optimizer = torch.optim.AdamW(method.parameters(), 3e-3)
    for _ in range(50):
        optimizer.zero_grad()
        method.training_losses(batch)["total"].backward()
        optimizer.step()
    with torch.inference_mode():
        method.eval()
        plain = method.evidence(image, Context(batch.coordinates))["classes"].argmax(1)
        shuffled = method.evidence(image, Context(batch.coordinates, options={"text": "neighbour"}))["classes"].argmax(
            1
        )
    inside = label > 0
    assert (plain == label).float().mean() > 0.98
    assert (shuffled == label)[inside].float().mean() < 0.2  # text decides which head is whose


def like_the_default(context_mm=(), **values):
    """A tiny default method, and a LA-CAF whose backbone is made like it and starts from its weights."""
    shape = {"widths": (6, 8, 12), "blocks": (1, 1, 2)}
    torch.manual_seed(3)
    config = make_config("resenc-unet", "tiny", scheme="lumbar-mr", context_mm=context_mm, **shape)
    teacher = build_method(config).eval()
    mine = tiny(scheme="lumbar-mr", backbone="resenc", **shape, **values).eval()
    fitting = mine.remap_weights(teacher.state_dict())
    taken = [name for name in fitting if name in mine.state_dict()]
    assert len(taken) == len([name for name in teacher.state_dict() if name.startswith("network.")])
    mine.load_state_dict({**mine.state_dict(), **{name: fitting[name] for name in taken}})
    return teacher, mine


@pytest.mark.parametrize("context_mm", [(), (4.0,)], ids=["slices alone", "with neighbors"])
def test_slice_by_slice_it_starts_as_the_default_network(context_mm):
    """One that was shown neighbors, too, sees what it sees in a stack of one slice."""
    teacher, mine = like_the_default(context_mm)
    image, sizes = random_image(2, (3, 16, 20)), (3, 16, 20)
    where = coordinates(2, sizes)
    with torch.inference_mode():
        features, bottleneck = mine.backbone(mine.network_input(image, where))
        for number in range(sizes[0]):
            seen = image[:, :, number].expand(-1, 1 + 2 * len(context_mm), -1, -1)
            own = teacher.network_input(seen, where[:, 1:, number])
            found = teacher.network(own)
            assert torch.allclose(features[:, :6, number], found[0], atol=1e-5)
            assert torch.allclose(bottleneck[:, :, number], found[-1], atol=1e-5)


def test_slices_then_learn_from_their_neighbours():
    _, mine = like_the_default()
    sizes = (4, 16, 16)
    image = random_image(1, sizes)
    other = image.clone()
    other[:, :, 2] += 1.0
    where = coordinates(1, sizes)

    def changed():
        with torch.inference_mode():
            before, after = (mine.backbone(mine.network_input(i, where))[0] for i in (image, other))
        return [bool((before[:, :, n] != after[:, :, n]).any()) for n in range(4)]

    assert changed() == [False, False, True, False]
    mine.training_losses(batch_of(mine.scheme.channels, 1, sizes))["total"].backward()
    across = [p for name, p in mine.named_parameters() if "_across" in name]
    assert len(across) == 10 and all(p.grad.abs().sum() > 0 for p in across)
    with torch.no_grad():
        for p in across:
            p -= 0.1 * p.grad.sign()
    assert changed()[1:] == [True, True, True]


def test_a_slice_by_slice_network_takes_windows_of_any_depth():
    _, mine = like_the_default()
    for sizes in ((1, 16, 16), (5, 16, 24)):
        assert logits_of(mine, random_image(1, sizes)).shape == (1, 24, *sizes)
    assert mine.tiling.divisors(3) == (1, 4, 4)
    with pytest.raises(ConfigError, match="same length"):
        make_config("la-caf", "slices", blocks=(1, 2))


def test_the_shipped_bank_holds_a_vector_per_sentence(tmp_path, text_packages):
    bank = tmp_path / "bank.safetensors"
    assert main(["text-bank", "--method", "la-caf", "--encoder", "tiny_offline", "--output", str(bank), "--quiet"]) == 0
    config = make_config("la-caf", "tiny", scheme="lumbar-mr", text_encoder=f"bank:{bank}").with_resources({})
    assert config.text_width == TextBank(bank).width != 64
    method = build_method(config)
    method.prepare_training(None)
    assert len({tuple(row.tolist()) for row in method.embeddings}) == 24


def test_a_checkpoint_names_the_encoder_of_its_bank_not_where_the_file_lay(tmp_path):
    bank, manifest = tmp_path / "somewhere/mine.safetensors", write_tiny_dataset(tmp_path, training=1)
    bank.parent.mkdir()
    config = make_config("la-caf", "tiny", scheme="lumbar-mr", text_encoder=f"bank:{bank}")
    write_bank(bank, config.text_prompts(), Hashed(), "lumbar-mr")
    training = TrainingConfig(
        method=config.model_dump(mode="json"),
        dataset=str(manifest),
        preprocessing=Preprocessing(pixel_mm=4.0),
        data={"patch": (4, 16, 16)},
        optimization={"steps": 1, "batch": 1, "validate_every": 10, "workers": 0},
    )
    run = run_training(TrainingRequest(training, tmp_path / "run", device="cpu"))
    header = json.dumps(read_header(run.last).metadata)
    assert str(tmp_path) not in header and "mine" not in header
    assert read_header(run.last).metadata["method"]["text_encoder"] == "bank:hashed.safetensors"


def test_the_bank_may_lie_elsewhere_when_training_goes_on(tmp_path):
    """The vectors stay where they are of the same encoder, whatever the file is called."""
    config = make_config("la-caf", "tiny", scheme="pulmonary-av")
    for name in ("old", "new"):
        write_bank(tmp_path / f"{name}.safetensors", config.text_prompts(), Hashed(), "pulmonary-av")
    first, second = (tiny(text_encoder=f"bank:{tmp_path / name}.safetensors") for name in ("old", "new"))
    first.prepare_training(None)
    kept = {sid: torch.randn(64) for sid in AV.ids}
    first.set_embeddings(kept)
    second.load_state_dict(first.state_dict())
    second.prepare_training(first.config.as_published().model_dump())
    assert all(torch.equal(row, kept[sid]) for row, sid in zip(second.embeddings, AV.ids, strict=True))
    second.prepare_training({**first.config.model_dump(), "text_encoder": "bank:another.safetensors"})
    assert not any(torch.equal(row, kept[sid]) for row, sid in zip(second.embeddings, AV.ids, strict=True))


def test_the_recipes_fit_their_presets():
    for preset in ("paper", "small", "slices"):
        for name in ("pulmonary-av", "lumbar-mr") if preset != "slices" else ("lumbar-mr",):
            config = make_config("la-caf", preset, scheme=name)
            training = TrainingConfig(method=config.model_dump(mode="json"), dataset="d", **config.recipe)
            assert not any(n % d for n, d in zip(training.data.patch, config.divisor, strict=True))
    assert make_config("la-caf", scheme="pulmonary-av").recipe["data"]["patch"] == (96, 96, 96)
    for preset in ("small", "slices"):
        small = build_method(make_config("la-caf", preset, text_encoder="hashed"))
        assert sum(t.numel() for t in small.state_dict().values()) * 2 < 10e6  # bytes as float16


# --- adding a structure by name ---


def test_schemes_grow_by_name():
    grown = scheme("lumbar-mr+cord+left kidney=310")
    assert grown.ids == (*scheme("lumbar-mr").ids, 60, 310)
    assert structure("left kidney").id == 310
    assert scheme("lumbar-mr+left kidney=310").channel_of[310] == 25
    for bad in ("lumbar-mr+L4", "lumbar-mr+nothing known", "lumbar-mr+spleen=12", "lumbar-mr+spleen=310", "no+cord"):
        with pytest.raises(SchemeError):
            scheme(bad)
    with pytest.raises(TypeError):
        STRUCTURES[999] = structure("L4")


_READ_IN_ANOTHER_PROCESS = """
import sys
from SpineSegAILib.results import read_segmentation
result = read_segmentation(sys.argv[1])
print(result.present, [result.name_of(i) for i in result.present], result.scheme.name)
"""


@pytest.mark.parametrize("suffix", [".nii.gz", ".seg.nrrd"])
def test_files_know_the_structures_that_a_scheme_added(suffix, tmp_path):
    import subprocess
    import sys

    grown = scheme("lumbar-mr+left kidney=310")
    array = np.zeros((4, 8, 8), np.int16)
    array[1:3, 1:3, 1:3], array[1:3, 4:6, 4:6] = 310, structure("L4").id
    result = Segmentation(sitk.GetImageFromArray(array), grown)
    result.write(tmp_path / f"a{suffix}")
    command = [sys.executable, "-c", _READ_IN_ANOTHER_PROCESS, str(tmp_path / f"a{suffix}")]
    said = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout
    assert "310" in said
    assert "left kidney" in said
    assert grown.name in said


def test_a_new_structure_learns_alone_and_leaves_the_others_as_they_were():
    old = tiny(scheme="lumbar-mr").eval()
    new = tiny(scheme="lumbar-mr+cord", only=("cord",), seed=5)
    missing = new.load_state_dict(old.state_dict(), strict=False).missing_keys
    assert all(name.startswith("classes.60.") for name in missing)
    before = logits_of(old)
    optimizer = torch.optim.AdamW([p for p in new.parameters() if p.requires_grad], 1e-2, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        new.training_losses(batch_of(channels=new.scheme.channels))["total"].backward()
        optimizer.step()
    with torch.inference_mode():
        after = logits_of(new.eval())
    assert torch.allclose(after[:, :24], before, atol=1e-5)  # products of another size round otherwise
    moved = [p for p in new.parameters() if p.requires_grad]
    assert moved and all(p.grad.abs().sum() > 0 for p in moved)


def test_the_command_adds_a_structure_to_a_checkpoint(checkpoint, tmp_path, capsys):
    manifest = write_tiny_dataset(tmp_path, training=1)
    table = json.loads(manifest.read_text(encoding="utf-8"))
    for split in ("training", "validation"):  # the same masks under a new name
        for case in table[split]:
            path = tmp_path / case["label"]
            label = sitk.ReadImage(str(path))
            sitk.WriteImage(sitk.Cast(label == structure("L3").id, sitk.sitkInt16) * 300, str(path))
            case["annotated"] = ["third lumbar mark"]
    manifest.write_text(json.dumps(table))
    run = tmp_path / "run"
    command = ["train", str(manifest), "--output", str(run), "--quiet", "--device", "cpu", "--steps", "1"]
    for setting in ("mixed_precision=no", "batch=1", "workers=0"):
        command += ["--set", f"optimization.{setting}"]
    command += ["--set", "data.patch=[4,32,32]"]
    assert main([*command, "--add-structure", "third lumbar mark"]) == 2
    assert "--from" in capsys.readouterr().err
    added = ["--add-structure", "third lumbar mark", "--from", str(checkpoint)]
    assert main([*command, *added, "--set", 'method.only=["third lumbar mark"]']) == 0
    info = read_header(run / "last.safetensors")
    assert info.scheme.ids == (*scheme("lumbar-mr").ids, 300)
    assert not {300, structure("L3").id} & info.unvalidated
    old, new = load_method(read_header(checkpoint)), load_method(info)
    assert torch.allclose(logits_of(old.eval()), logits_of(new.eval())[:, :24], atol=1e-2)
    assert new.classes["300"].embedding.any()
    result = Predictor(info, "cpu").segment(picture((4, 40, 40)), Hints(structures=(300,)))
    assert set(result.present) <= {300}


def test_a_structures_own_voxels_can_count_more():
    logits, allowed = torch.zeros(1, 1, 2, 2, 2), torch.zeros(1, 2, 2, 2, 2, dtype=torch.bool)
    allowed[:, 0], allowed[0, :, 0, 0, 0] = True, torch.tensor([False, True])  # one voxel of eight is the structure
    plain, weighted = (masked_sigmoid_loss(logits, allowed, positive_weight=w) for w in (1.0, 9.0))
    assert plain["bce"].item() == pytest.approx(np.log(2))
    assert weighted["bce"].item() == pytest.approx(np.log(2) * (7 + 9) / 8)
    assert weighted["dice"] == plain["dice"]


def test_slicewise_networks_see_whole_slices_whatever_they_learnt_on():
    method = build_method(
        make_config(
            "la-caf", "slices", text_encoder="hashed", text_width=64, widths=(4, 8, 8), blocks=(1, 1, 1),
            adapter_width=8, fusion_width=16, attention_heads=2,
        )
    ).eval()  # fmt: skip
    seen = []
    forward = method.evidence
    method.evidence = lambda images, context: seen.append(tuple(images.shape[2:])) or forward(images, context)
    image = sitk.GetImageFromArray(np.random.default_rng(0).standard_normal((5, 37, 22)).astype(np.float32))
    image.SetSpacing((1.5, 1.5, 4.0))
    image.SetDirection((0, 0, 1, 1, 0, 0, 0, -1, 0))
    volume = Preprocessing(pixel_mm=1.5).apply(image)
    evidence = predict_volume(method, volume, torch.device("cpu"), patch=(2, 16, 16))
    depth, *size = volume.array.shape
    assert set(seen) == {(2, *(-(-n // 4) * 4 for n in size))}
    assert evidence.classes.shape == (method.scheme.channels, depth, *size)


def test_a_bank_can_hold_a_structure_of_ones_own():
    named = extended("lumbar-mr", ["psoas muscle", "aorta"])
    prompts = make_config("la-caf", "slices", scheme=named).text_prompts()
    assert len(prompts) == 26 and prompts[-1] == "A magnetic resonance imaging of the aorta"
    assert extended("lumbar-mr", []) == "lumbar-mr"
    with pytest.raises(SchemeError):
        extended("lumbar-mr", ["L4"])
