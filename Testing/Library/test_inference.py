"""From image to segmentation: exact geometry, the same steps as in training, cancelling, memory, hints."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from SpineSegAILib.anatomy import KINDS, STRUCTURES, structure
from SpineSegAILib.checkpoints import read_header, save_checkpoint
from SpineSegAILib.errors import Cancelled, ConfigError, DeviceError, HintError, ImageError, SpineSegAIError
from SpineSegAILib.hints import Anchor, Hints
from SpineSegAILib.imaging import SAGITTAL_DIRECTION, CanonicalVolume, Geometry, Preprocessing
from SpineSegAILib.imaging.geometry import like
from SpineSegAILib.inference import Predictor, choose_device
from SpineSegAILib.inference import predictor as predictor_module
from SpineSegAILib.inference.quality import QUALITY_PRIOR
from SpineSegAILib.inference.sliding_window import predict_volume
from SpineSegAILib.methods.base import Context, Method, Tiling, between_slices, coordinate_channels
from SpineSegAILib.methods.catalog import build_method, make_config
from SpineSegAILib.phantoms.spine import PhantomSpec, make_phantom


@pytest.fixture(scope="module")
def phantom():
    spec = PhantomSpec(top="T12", bottom="S1", slices=7, slice_mm=6.0, pixel_mm=1.5, contrast="t2", noise=0.0)
    return make_phantom(spec, np.random.default_rng(2))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    torch.manual_seed(0)
    config = make_config("resenc-unet", "tiny")
    path = tmp_path_factory.mktemp("inference") / "tiny.safetensors"
    metadata = {
        "method": config.model_dump(mode="json"),
        "preprocessing": Preprocessing(pixel_mm=2.0).model_dump(mode="json"),
        "unvalidated": ["canal"],
    }
    save_checkpoint(path, build_method(config).state_dict(), metadata)
    return read_header(path)


class Oracle(Method):
    """Says of each voxel what the phantom's labels say, looked up by the image's gray value (the label itself)."""

    def __init__(self) -> None:
        super().__init__(make_config("resenc-unet", "tiny"))
        self.seen: list[tuple[int, ...]] = []
        self.grids: list[tuple[tuple[int, ...], float]] = []

    def evidence(self, images, context):
        self.seen.append(context.slices)
        self.grids.append((tuple(images.shape[2:]), context.slice_mm))
        ids = ((images[:, 0] + 2) / 4 * 130).round().long()  # preprocessing put 0…130 onto −2…2
        if "reference" in context.memory:  # told: where the grid is another one, gray values are mixtures
            told = torch.from_numpy(context.memory["reference"][list(context.slices)]).long()
            margin = [(n - m) // 2 for n, m in zip(images.shape[2:], told.shape[1:], strict=True)]
            ids = torch.zeros_like(ids)
            ids[:, margin[0] : margin[0] + told.shape[1], margin[1] : margin[1] + told.shape[2]] = told
        kinds = torch.zeros(len(ids), len(KINDS), *ids.shape[1:])
        rank = torch.zeros(ids.shape)
        from SpineSegAILib.anatomy import STRUCTURES, ranks

        table = ranks()
        for sid in ids.unique().tolist():
            kind = KINDS.index(STRUCTURES[sid].kind.value) if sid in STRUCTURES else 0
            kinds[:, kind][ids == sid] = 1.0
            rank[ids == sid] = table.get(sid, 0.0)
        return {"kinds": kinds, "rank": rank}


def as_picture(labels: sitk.Image) -> sitk.Image:
    """The label image as an intensity image whose range is 0…130, in two corner voxels."""
    array = sitk.GetArrayFromImage(labels).astype(np.float32)
    array.flat[0], array.flat[-1] = 0, 130
    picture = sitk.GetImageFromArray(array)
    picture.CopyInformation(labels)
    return picture


@pytest.fixture
def oracle(tiny):
    predictor = Predictor(tiny, "cpu")
    predictor.method = Oracle().eval()
    predictor.preprocessing = Preprocessing(pixel_mm=1.5, low=0.0, high=100.0)
    predictor.quality_model = QUALITY_PRIOR
    return predictor


def test_a_perfect_network_gives_back_the_labels(oracle, phantom):
    result = oracle.segment(as_picture(phantom.labels))
    truth, found = (sitk.GetArrayFromImage(i) for i in (phantom.labels, result.labels))
    assert Geometry.of(result.labels) == Geometry.of(phantom.labels)
    for name in ("L1", "L3", "L5", "L2/L3", "L5/S1", "S1"):
        a, b = truth == structure(name).id, found == structure(name).id
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.97, name
    assert result.provenance["seconds"].keys() == {"preprocess", "network", "consistency", "back", "quality"}
    assert structure("canal").id in result.unvalidated


def test_what_must_be_there_and_was_not_found_is_said(oracle, phantom):
    picture = as_picture(phantom.labels)
    assert not any("not found" in sentence for sentence in oracle.segment(picture).warnings)
    array = sitk.GetArrayFromImage(picture)
    array[np.isin(array, [structure(name).id for name in ("T12/L1", "L2/L3", "canal")])] = 0
    blind = like(picture, array)
    assert [w for w in oracle.segment(blind).warnings if "not found" in w] == [
        "The discs T12/L1, L2/L3 were not found, though the vertebrae above and below were: fused, beside the slices, "
        "or missed.",
        "The spinal canal was not found: beside the slices, or missed.",
    ]
    for names in (("L2", "L3", "L2/L3"), ("L2/L3",)):
        some = Hints(structures=tuple(structure(name).id for name in names))
        assert [w for w in oracle.segment(blind, some).warnings if "not found" in w] == [
            "The disc L2/L3 was not found, though the vertebrae above and below were: fused, beside the slices, or "
            "missed."
        ]
    bodies = Hints(structures=tuple(structure(name).id for name in ("L2", "L3")))
    assert not any("not found" in sentence for sentence in oracle.segment(blind, bodies).warnings)


@pytest.mark.parametrize("fits", [True, False])
def test_at_which_scale_vertebrae_were_segmented_is_said(oracle, phantom, monkeypatch, fits):
    """Where a hint does not fit at their own scale, it is an adult's."""
    once, scales = oracle._levels, []

    def levels(evidence, volume, *rest):
        scales.append(volume.geometry.spacing[1] / oracle.preprocessing.pixel_mm)
        if len(scales) > 1 and not fits:
            raise HintError("The anchor L3 lies outside.", "Move it.")
        return once(evidence, volume, *rest)

    monkeypatch.setattr(oracle, "_levels", levels)
    monkeypatch.setattr(predictor_module, "relative_size", lambda _: 0.6 if len(scales) == 1 else 1.0)
    l3 = structure("L3").id
    hints = Hints(anchors=(Anchor(l3, phantom.keypoints[l3]),))
    result = oracle.segment(as_picture(phantom.labels), hints, reference=phantom.labels)
    (said,) = (w for w in result.warnings if "times as large" in w)
    assert scales == pytest.approx([1.0, 0.6], abs=0.01) and "about 0.6 times as large as an adult's, " in said
    assert ("and were segmented at this scale." in said) is fits
    assert ("but were segmented as an adult's. " in said) is not fits
    assert said.endswith("At their scale a hint does not fit: The anchor L3 lies outside.") is not fits
    assert result.provenance["scale"] == (0.6 if fits else 1.0)


def test_every_slice_is_seen_once(oracle, phantom):
    oracle.segment(as_picture(phantom.labels), options={"batch": 3})
    assert [i for chunk in oracle.method.seen for i in chunk] == list(range(7))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.tuples(st.integers(3, 9), st.integers(30, 60), st.integers(30, 60)),
    spacing=st.tuples(st.floats(3.0, 6.0), st.floats(0.6, 2.5), st.floats(0.6, 2.5)),
    angle=st.floats(-0.5, 0.5),
    order=st.permutations([0, 1, 2]),
    flips=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_the_result_has_the_input_s_geometry_always(tiny, size, spacing, angle, order, flips):
    rng = np.random.default_rng(1)
    array = rng.normal(100, 20, size).astype(np.float32)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing[::-1])
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
    base = np.array([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    image.SetDirection((turn @ base).ravel().tolist())
    image.SetOrigin((11.0, -7.5, 230.0))
    image = sitk.Flip(sitk.PermuteAxes(image, order), flips)
    result = Predictor(tiny, "cpu").segment(image)
    assert result.labels.GetSize() == image.GetSize()
    assert result.labels.GetOrigin() == image.GetOrigin()
    assert result.labels.GetSpacing() == image.GetSpacing()
    assert result.labels.GetDirection() == image.GetDirection()


def test_coordinates_do_not_depend_on_padding():
    """A voxel's position is relative to the image, however the sides are padded to fit the network."""

    class Echo(Method):
        def evidence(self, images: torch.Tensor, context: Context):
            return {"rank": context.coordinates[:, 0] * 128, "uncertainty": context.coordinates[:, 1] * 128}

    volume = Preprocessing(pixel_mm=1.5).apply(plain_image((4, 45, 70)))
    evidence = predict_volume(Echo(make_config("resenc-unet", "tiny")), volume, torch.device("cpu"))
    expected = coordinate_channels(volume.array.shape[1:], volume.spacing[1:]).numpy() * 128
    assert np.allclose(evidence.rank[2], expected[0], atol=1e-3)
    assert np.allclose(evidence.uncertainty[2], expected[1], atol=1e-3)


def plain_image(shape, spacing=(4.0, 1.5, 1.5)) -> sitk.Image:
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(100, 20, shape).astype(np.float32))
    image.SetSpacing(spacing[::-1])
    image.SetDirection((0.0, 0.0, -1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0))
    return image


@pytest.mark.parametrize("method_id", ["unetr", "segresnet"])
def test_windows_cover_what_a_method_cannot_take_at_once(method_id, tmp_path):
    dims = 2 if method_id == "unetr" else 3
    window = (64, 64) if dims == 2 else (8, 64, 64)
    extra = {"window": window} if method_id == "unetr" else {}
    config = make_config(method_id, "tiny", dims=dims, **extra)
    metadata = {
        "method": config.model_dump(mode="json"),
        "preprocessing": Preprocessing(pixel_mm=1.5).model_dump(mode="json"),
        "patch": list(window),
    }
    save_checkpoint(tmp_path / "c.safetensors", build_method(config).state_dict(), metadata)
    image = plain_image((6, 90, 80))
    options = {"mirror": "on"} if dims == 3 else {}
    predictor = Predictor(tmp_path / "c.safetensors", "cpu")
    result = predictor.segment(image, options=options)
    assert result.labels.GetSize() == image.GetSize()
    with pytest.raises(ConfigError, match="option overlap is “much”"):
        predictor.segment(image, options={"overlap": "much"})
    if dims == 2:  # it would be without effect
        with pytest.raises(ConfigError, match="option mirror is for 3D ones"):
            predictor.segment(image, options={"mirror": "on"})


def test_raw_classes_without_consistency(tmp_path):
    config = make_config("unet", "tiny")
    metadata = {
        "method": config.model_dump(mode="json"),
        "preprocessing": Preprocessing(pixel_mm=2.0).model_dump(mode="json"),
    }
    save_checkpoint(tmp_path / "c.safetensors", build_method(config).state_dict(), metadata)
    predictor = Predictor(tmp_path / "c.safetensors", "cpu")
    image = plain_image((3, 50, 50))
    raw = predictor.segment(image, options={"consistency": "off"})
    assert len(raw.present) > 3  # an untrained network says anything
    assert raw.level_confidence is None and raw.alternatives == []


def test_consistency_cannot_be_left_out_where_names_come_from_it(tiny):
    predictor, told = Predictor(tiny, "cpu"), []
    with pytest.raises(ConfigError, match="only become names"):
        predictor.segment(
            plain_image((3, 40, 40)), options={"consistency": "off"}, progress=lambda f, message: told.append(message)
        )
    assert told == []  # before any work


def test_cancel_and_progress(tiny):
    predictor = Predictor(tiny, "cpu")
    told: list[float] = []
    predictor.segment(plain_image((9, 40, 40)), options={"batch": 2}, progress=lambda f, m: told.append(f))
    assert told == sorted(told)
    assert told[0] == 0.0
    assert told[-1] == 1.0
    calls = {"n": 0}

    def cancelled() -> bool:
        calls["n"] += 1
        return calls["n"] > 2

    with pytest.raises(Cancelled):
        predictor.segment(plain_image((9, 40, 40)), options={"batch": 2}, cancelled=cancelled)


def test_cancel_is_asked_between_the_layers_of_a_pass(tiny):
    """All slices in one pass: on a busy computer that takes seconds, which nobody wants to wait for."""
    predictor = Predictor(tiny, "cpu")
    layers: list[torch.nn.Module] = []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, inputs, output: layers.append(module))
    try:
        options = {"batch": 64}
        predictor.segment(plain_image((9, 40, 40)), options=options)
        whole = len(layers)
        layers.clear()
        with pytest.raises(Cancelled):
            predictor.segment(plain_image((9, 40, 40)), options=options, cancelled=lambda: len(layers) >= 5)
    finally:
        handle.remove()
    assert 5 <= len(layers) < whole // 2


def test_out_of_memory_is_retried_smaller(tiny, monkeypatch):
    predictor = Predictor(tiny, "cpu")
    predictor.device = torch.device("meta")  # anything that is not the CPU
    original = predictor.method.evidence
    sizes: list[int] = []

    def greedy(images, context):
        sizes.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(images, context)

    monkeypatch.setattr(predictor.method, "evidence", greedy)
    monkeypatch.setattr(predictor.method, "to", lambda device: predictor.method)
    monkeypatch.setattr("SpineSegAILib.inference.predictor.predict_volume", _on_cpu(predict_volume))
    result = predictor.segment(plain_image((6, 40, 40)))
    assert sizes[0] == 6
    assert max(sizes[-3:]) == 2
    assert not any("CPU" in w for w in result.warnings)


def test_out_of_memory_ends_on_the_cpu_and_says_so(tiny, monkeypatch):
    predictor = Predictor(tiny, "cpu")
    predictor.device = torch.device("meta")
    original, devices = predict_volume, []

    def full(method, volume, device, **kwargs):
        devices.append((device.type, moved[:]))
        if device.type != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(method, volume, device, **kwargs)

    moved: list[str] = []
    monkeypatch.setattr("SpineSegAILib.inference.predictor.predict_volume", full)
    monkeypatch.setattr(predictor.method, "to", lambda device: moved.append(device.type))
    result = predictor.segment(plain_image((6, 40, 40)))
    # 8, 4, 2 and 1 slices, then the CPU, where the weights have to be, too, until the pass is done.
    assert devices == [("meta", [])] * 4 + [("cpu", ["cpu"])]
    assert moved == ["cpu", "meta"]
    assert any("CPU" in w for w in result.warnings)


@pytest.mark.parametrize("name", ("lumbar-mr-resenc", "lumbar-mr-la-caf"))
def test_a_tiny_image_passes_and_is_doubted(name):
    array = np.random.default_rng(0).normal(100, 20, (3, 18, 20)).astype(np.float32)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.25, 1.25, 4.0))
    image.SetDirection(SAGITTAL_DIRECTION)
    result = Predictor(name, "cpu").segment(image)
    assert result.labels.GetSize() == (20, 18, 3)
    assert any("too little for a vertebra" in w for w in result.warnings)


@pytest.mark.parametrize("error", (RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()))
def test_no_memory_at_all_is_an_error_with_a_remedy(tiny, monkeypatch, error):
    predictor = Predictor(tiny, "cpu")

    def full(*_, **__):
        raise error

    monkeypatch.setattr("SpineSegAILib.inference.predictor.predict_volume", full)
    with pytest.raises(DeviceError, match="not enough memory"):
        predictor.segment(plain_image((6, 40, 40)))
    monkeypatch.setattr("SpineSegAILib.inference.predictor.predict_volume", lambda *_, **__: [][0])
    with pytest.raises(IndexError):  # what is not foreseen stays what it is
        predictor.segment(plain_image((6, 40, 40)))


def _on_cpu(original):
    return lambda method, volume, device, **kwargs: original(method, volume, torch.device("cpu"), **kwargs)


def test_hints_that_a_method_does_not_take_are_refused(tiny):
    predictor = Predictor(tiny, "cpu")
    image = plain_image((3, 40, 40))
    with pytest.raises(HintError, match="keypoints"):
        predictor.segment(image, Hints(keypoints={24: (0.0, 0.0, 0.0)}))
    with pytest.raises(HintError, match="prior"):
        predictor.segment(image, Hints(prior=image))
    with pytest.raises(ConfigError, match="no option “stepz”"):
        predictor.segment(image, options={"stepz": 3})


def enlarged(image: sitk.Image, factor: float) -> sitk.Image:
    larger = sitk.Image(image)
    larger.SetSpacing([factor * mm for mm in image.GetSpacing()])
    return larger


@pytest.mark.parametrize("factor", [0.65, 1.4])
def test_vertebrae_of_unusual_size_are_looked_at_once_more(oracle, phantom, factor):
    labels = enlarged(phantom.labels, factor)
    image = as_picture(labels)
    result = oracle.segment(image, reference=labels)
    grids = {shape for shape, _ in oracle.method.grids}
    assert len(grids) == 2, "the second look has another pixel size"
    assert result.provenance["scale"] == pytest.approx(factor, rel=0.12)
    assert any("the image's spacing is wrong" in warning for warning in result.warnings)
    # What the network met then is what it meets in the image of usual size.
    assert oracle.method.grids[-1][1] == pytest.approx(6.0 * factor / result.provenance["scale"], rel=0.01)
    assert Geometry.of(result.labels).matches(Geometry.of(image))
    truth, mine = (sitk.GetArrayViewFromImage(i) for i in (phantom.labels, result.labels))
    assert ((truth == mine) | (truth == 0)).mean() > 0.99


@pytest.mark.parametrize("factor", [0.3, 3.0])
def test_what_is_far_too_small_or_large_is_not_looked_at_again(oracle, phantom, factor):
    labels = enlarged(phantom.labels, factor)
    result = oracle.segment(as_picture(labels), reference=labels)
    assert result.provenance["scale"] == 1.0 and len({shape for shape, _ in oracle.method.grids}) == 1


def test_an_option_that_is_no_number_is_named(tiny):
    with pytest.raises(ConfigError, match="option batch is “much”"):
        Predictor(tiny, "cpu").segment(plain_image((3, 40, 40)), options={"batch": "much"})


def test_the_scale_can_be_given(oracle, phantom):
    labels = enlarged(phantom.labels, 1.4)
    image = as_picture(labels)
    result = oracle.segment(image, options={"scale": "1"}, reference=labels)
    assert result.provenance["scale"] == 1.0 and not result.warnings
    assert len({shape for shape, _ in oracle.method.grids}) == 1
    oracle.method.grids.clear()
    assert oracle.segment(image, options={"scale": 1.4}, reference=labels).provenance["scale"] == 1.4
    assert len({shape for shape, _ in oracle.method.grids}) == 1
    for wrong in ("large", 0, -1, 40):
        with pytest.raises(ConfigError, match="scale"):
            oracle.segment(image, options={"scale": wrong})


def test_points_do_not_depend_on_the_scale(phantom):
    preprocessing = Preprocessing(pixel_mm=1.5)
    for scale in (0.7, 1.0, 1.4):
        volume = preprocessing.apply(phantom.image, scale)
        point = volume.point_of((2.0, 11.0, 7.0))
        assert volume.index_of(point) == pytest.approx((2.0, 11.0, 7.0))
        assert np.multiply(volume.spacing, scale) == pytest.approx(volume.geometry.spacing[::-1])


def test_an_anchor_names_everything_else(oracle, phantom):
    shifted = Anchor(structure("L4").id, phantom.keypoints[structure("L3").id])
    result = oracle.segment(as_picture(phantom.labels), Hints(anchors=(shifted,)))
    found = sitk.GetArrayFromImage(result.labels)
    truth = sitk.GetArrayFromImage(phantom.labels)
    assert (found[truth == structure("L2").id] == structure("L3").id).mean() > 0.95


def test_locked_structures_and_subsets(oracle, phantom):
    truth = sitk.GetArrayFromImage(phantom.labels)
    drawn = np.zeros_like(truth)
    _, rows, columns = (int(c) for c in np.mean(np.nonzero(truth == structure("L3").id), axis=1))
    drawn[2:4, rows - 6 : rows + 6, columns - 9 : columns + 9] = structure("L3").id
    locked = sitk.GetImageFromArray(drawn)
    locked.CopyInformation(phantom.labels)
    result = oracle.segment(as_picture(phantom.labels), Hints(locked=locked))
    found = sitk.GetArrayFromImage(result.labels)
    assert np.array_equal(found == structure("L3").id, drawn > 0)
    assert structure("L2").id in result.present
    only = oracle.segment(as_picture(phantom.labels), Hints(structures=(structure("L4").id,)))
    assert only.present == [structure("L4").id]


def relabelled(image, **names):
    """Label image of some of a phantom's structures, under other names."""
    truth = sitk.GetArrayFromImage(image)
    drawn = np.zeros_like(truth)
    for true, name in names.items():
        drawn[truth == structure(true).id] = structure(name).id
    locked = sitk.GetImageFromArray(drawn)
    locked.CopyInformation(image)
    return locked


def test_a_locked_structure_names_everything_else(oracle, phantom):
    locked = relabelled(phantom.labels, L3="L2")
    found = sitk.GetArrayFromImage(oracle.segment(as_picture(phantom.labels), Hints(locked=locked)).labels)
    truth, kept = sitk.GetArrayFromImage(phantom.labels), sitk.GetArrayFromImage(locked)
    assert np.array_equal(found == structure("L2").id, kept > 0)
    for true, name in (("L4", "L3"), ("L2", "L1"), ("L4/L5", "L3/L4")):
        assert (found[truth == structure(true).id] == structure(name).id).mean() > 0.95


def test_voxels_beyond_a_locked_structure_go_to_what_is_there_otherwise(oracle, phantom):
    truth = sitk.GetArrayFromImage(phantom.labels)
    body = truth == structure("L3").id
    cut = body.copy()
    rows = np.flatnonzero(body.any(axis=(0, 2)))
    cut[:, rows[-4] :] = False  # the reader took the lowest rows away
    locked = sitk.GetImageFromArray(np.where(cut, structure("L3").id, 0).astype(np.int16))
    locked.CopyInformation(phantom.labels)
    plain = oracle.method.evidence

    def doubtful(images, context):
        maps = plain(images, context)
        kinds = maps["kinds"]
        bone, disc = kinds[:, KINDS.index("vertebra")], kinds[:, KINDS.index("disc")]
        disc += 0.3 * bone
        bone *= 0.7
        return maps

    oracle.method.evidence = doubtful
    found = sitk.GetArrayFromImage(oracle.segment(as_picture(phantom.labels), Hints(locked=locked)).labels)
    assert np.array_equal(found == structure("L3").id, cut)
    taken = body & ~cut
    assert (found[taken] == structure("L3/L4").id).mean() > 0.8
    assert not np.isin(found[taken], [structure("L4").id, structure("L2").id]).any()


def test_everything_locked_is_refused(oracle, phantom):
    locked = relabelled(phantom.labels, L3="L3", L4="L4")
    hints = Hints(locked=locked, structures=(structure("L3").id, structure("L4").id))
    with pytest.raises(HintError, match="Every structure is locked"):
        oracle.segment(as_picture(phantom.labels), hints)
    foreign = sitk.Image(phantom.labels)
    foreign[0, 0, 0] = 77
    with pytest.raises(HintError, match="the value 77, which is not a structure"):
        oracle.segment(as_picture(phantom.labels), Hints(locked=foreign))


def test_a_corrected_result_names_another_series(oracle, phantom):
    from SpineSegAILib.inference.level_transfer import level_anchor

    names = {"L1": "T12", "L2": "L1", "L3": "L2", "L4": "L3", "L5": "L4"}
    corrected = relabelled(phantom.labels, **names)
    other = as_picture(phantom.labels)[8:, 5:, :]  # another field of view of the same patient
    anchor = level_anchor(corrected, other)
    assert anchor.structure_id in {structure(n).id for n in names.values()}
    result = oracle.segment(other, Hints(anchors=(anchor,)))
    found, truth = (sitk.GetArrayFromImage(i) for i in (result.labels, phantom.labels[8:, 5:, :]))
    for true, name in names.items():
        assert (found[truth == structure(true).id] == structure(name).id).mean() > 0.9, true

    away = sitk.Image(other)
    away.SetOrigin((5000.0, 0.0, 0.0))
    with pytest.raises(HintError, match="no vertebra inside this image"):
        level_anchor(corrected, away)


def test_locked_labels_of_another_geometry_are_refused(oracle, phantom):
    other = phantom.labels[:, :, 1:]
    with pytest.raises(HintError, match="geometry"):
        oracle.segment(as_picture(phantom.labels), Hints(locked=other))


def test_devices():
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in ("cpu", "cuda")
    for name in ("gpu", "cuda:99", "xla"):
        with pytest.raises(DeviceError):
            choose_device(name)


def test_an_axial_stack_is_refused(tiny):
    axial = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(6, 60, 60)).astype(np.float32))
    axial.SetSpacing((1.0, 1.0, 6.0))
    with pytest.raises(ImageError, match="axial"):
        Predictor(tiny, "cpu").segment(axial)


class Lookout(Method):
    """Finds the brightest pixel, and sees class 1 at the reader's keypoint alone. Looks at the whole input."""

    tiling = Tiling(16, local=True)

    def __init__(self) -> None:
        super().__init__(make_config("resenc-unet", "tiny", scheme="lumbar11"))
        self.shapes: set[tuple[int, ...]] = set()

    def evidence(self, images, context):
        self.shapes.add(tuple(images.shape[2:]))
        height, width = images.shape[2:]
        best = images.flatten(1).argmax(1)
        points = torch.full((len(images), self.scheme.channels - 1, 3), torch.nan)
        points[:, 0] = torch.stack([best // width, best % width, images.flatten(1).amax(1)], 1)
        classes = torch.zeros(len(images), self.scheme.channels, height, width)
        classes[:, 0] = 1.0
        if context.keypoints is not None:
            row, column = context.keypoints[0, 0].round().long().tolist()
            if 0 <= row < height and 0 <= column < width:
                classes[:, :2, row, column] = torch.tensor([0.0, 1.0])
        return {"classes": classes, "keypoints": points}


def test_a_method_that_looks_at_the_whole_input_sees_windows_of_the_size_it_learnt_on():
    volume = Preprocessing(pixel_mm=1.5).apply(plain_image((2, 90, 80)))
    volume.array[:] = 0.0
    volume.array[:, 71, 13] = 2.0
    method = Lookout()
    first = method.scheme.ids[0]
    found = predict_volume(method, volume, torch.device("cpu"), patch=(64, 48)).keypoints[first]
    assert method.shapes == {(64, 48)}
    assert found[1:] == (71, 13)  # of the slice, not of the window
    hints = Hints(keypoints={first: volume.point_of((1, 20, 60))})
    told = predict_volume(method, volume, torch.device("cpu"), patch=(64, 48), hints=hints)
    assert np.argwhere(told.classes[1] > 0.5).tolist() == [[0, 20, 60], [1, 20, 60]]
    predict_volume(method, volume, torch.device("cpu"))  # nothing is said of a size
    assert method.shapes == {(64, 48), (96, 80)}


class Mirror(Method):
    """Gives back the slices that it is shown."""

    tiling = Tiling(context_mm=(4.0,))

    def __init__(self) -> None:
        super().__init__(make_config("resenc-unet", "tiny"))

    def evidence(self, images, context):
        assert context.coordinates.shape[1] == 2
        return {"classes": images}


@pytest.mark.parametrize(("slices", "slice_mm"), [(7, 2.0), (7, 4.0), (5, 10.0), (2, 4.4), (1, 4.0)])
def test_a_network_sees_the_slices_beside_each(slices, slice_mm):
    image = sitk.GetImageFromArray(np.random.default_rng(0).uniform(0, 1, (slices, 32, 40)).astype(np.float32))
    image.SetSpacing((2.0, 2.0, slice_mm))
    image.SetDirection(SAGITTAL_DIRECTION)
    volume = Preprocessing(pixel_mm=2.0).apply(image)
    shown = predict_volume(Mirror().eval(), volume, torch.device("cpu"), options={"batch": 3}).classes
    at = np.arange(slices)[:, None] + np.array([0.0, -4.0, 4.0]) / slice_mm
    for channel in range(3):
        assert np.allclose(shown[channel], between_slices(volume.array, at[:, channel]), atol=1e-6)


class Glance(Method):
    """Says vertebra where the image is bright, and gives back where it was told to be."""

    tiling = Tiling(8, around_column=True)

    def __init__(self) -> None:
        super().__init__(make_config("resenc-unet", "tiny"))
        self.seen: list[tuple[int, tuple[int, ...]]] = []

    def evidence(self, images, context):
        self.seen.append((len(images), tuple(images.shape[2:])))
        bone = (images[:, :1] > 0).float()
        return {"kinds": torch.cat([1 - bone, bone], 1), "rank": context.coordinates[:, 1]}


def bright_column(low: int, high: int) -> CanonicalVolume:
    array = np.full((12, 64, 200), -2.0, np.float32)
    array[3:9, 4:60, low:high] = 2.0
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.0, 1.0, 4.0))
    image.SetDirection(SAGITTAL_DIRECTION)
    return Preprocessing(pixel_mm=1.0, low=0.0, high=100.0).apply(image)


@pytest.mark.parametrize(("low", "high"), [(80, 110), (0, 30), (175, 200)])
def test_a_network_is_shown_the_column_and_knows_where_it_is(low, high):
    volume, method = bright_column(low, high), Glance().eval()
    found = predict_volume(method, volume, torch.device("cpu"), patch=(64, 64), options={"batch": 12})
    glance, look = method.seen
    assert glance == (3, (64, 200)) and look[0] == 12 and look[1][0] == 64 and look[1][1] in (64, 88, 96)
    assert np.array_equal(found.kinds[1] > 0.5, volume.array > 0)
    assert np.allclose(found.kinds.sum(0), 1)
    shown = np.flatnonzero(found.rank[0, 0])
    expected = (np.arange(200) - 99.5) / 128  # millimeters from the middle of the whole image
    assert np.allclose(found.rank[5, 20, shown], expected[shown], atol=1e-6)


def test_where_a_glance_finds_nothing_all_is_looked_at():
    volume, method = bright_column(100, 102), Glance().eval()  # too little to be a column
    found = predict_volume(method, volume, torch.device("cpu"), patch=(64, 64), options={"batch": 12})
    assert [size for _, size in method.seen] == [(64, 200), (64, 200)]
    assert np.array_equal(found.kinds[1] > 0.5, volume.array > 0)
    narrow = Glance().eval()
    predict_volume(narrow, bright_column(80, 110), torch.device("cpu"), patch=(64, 256), options={"batch": 12})
    assert narrow.seen == [(12, (64, 200))]


@pytest.fixture(scope="module")
def second_generation(tmp_path_factory):
    """Neighboring slices, what lies around the column alone, posterior elements; untrained."""
    torch.manual_seed(0)
    config = make_config("resenc-unet", "tiny", scheme="lumbar-mr-posterior", context_mm=(4.0,), around_column=True)
    metadata = {
        "method": config.model_dump(mode="json"),
        "preprocessing": Preprocessing(pixel_mm=2.0).model_dump(mode="json"),
        "patch": [32, 16],
    }
    path = tmp_path_factory.mktemp("second") / "tiny.safetensors"
    save_checkpoint(path, build_method(config).state_dict(), metadata)
    return Predictor(read_header(path), "cpu")


@pytest.mark.parametrize(("slices", "slice_mm"), [(1, 4.0), (2, 4.0), (5, 4.0), (4, 10.0), (30, 0.9)])
def test_stacks_of_few_slices_and_of_wide_gaps(second_generation, oracle, slices, slice_mm):
    spec = PhantomSpec(top="L3", bottom="S1", slices=max(slices, 3), slice_mm=slice_mm, pixel_mm=1.5, noise=0.0)
    phantom = make_phantom(spec, np.random.default_rng(3))
    first = (phantom.image.GetSize()[2] - slices) // 2
    image, labels = (i[:, :, first : first + slices] for i in (phantom.image, phantom.labels))
    assert image.GetSize()[2] == slices and image.GetSpacing()[2] == pytest.approx(slice_mm)
    result = second_generation.segment(image)
    assert Geometry.of(result.labels) == Geometry.of(image)
    assert set(result.present) <= set(second_generation.scheme.ids)
    if slice_mm < oracle.preprocessing.min_slice_mm:
        return  # the oracle reads gray values, which are mixtures then
    found = sitk.GetArrayFromImage(oracle.segment(as_picture(labels)).labels)
    truth, l4 = sitk.GetArrayFromImage(labels), structure("L4").id
    assert 2 * ((truth == l4) & (found == l4)).sum() / ((truth == l4).sum() + (found == l4).sum()) > 0.9


def test_hints_that_name_what_the_scheme_lacks(second_generation, phantom, tiny):
    lumbar = Predictor(tiny, "cpu")
    middle = phantom.image.TransformContinuousIndexToPhysicalPoint([n / 2 for n in phantom.image.GetSize()])
    arch = structure("L4 posterior elements").id
    with pytest.raises(SpineSegAIError, match="L4 posterior elements is not in the label scheme “lumbar-mr”"):
        lumbar.segment(phantom.image, Hints(structures=(arch,)))
    for anchored in (arch, structure("T3").id):
        with pytest.raises(HintError, match="An anchor is not valid"):
            lumbar.segment(phantom.image, Hints(anchors=(Anchor(anchored, middle),)))
    with pytest.raises(HintError, match="is not counted"):
        second_generation.segment(phantom.image, Hints(anchors=(Anchor(arch, middle),)))
    array = np.zeros(phantom.image.GetSize()[::-1], np.int16)
    array[2:5, 40:60, 60:80] = arch
    locked = sitk.GetImageFromArray(array)
    locked.CopyInformation(phantom.image)
    kept = sitk.GetArrayFromImage(lumbar.segment(phantom.image, Hints(locked=locked)).labels)
    assert (kept[array > 0] == arch).all()  # what the reader drew stays, whatever the model knows


def test_a_true_range_is_obeyed_on_a_real_case(real_lumbar_mr):
    """Its own count is T11 to L5, or was; the reader sees T12 to S1."""
    image = sitk.ReadImage(str(real_lumbar_mr.parent / "myo_05_image.nii.gz"))
    t12, s1 = structure("T12").id, structure("S1").id
    result = Predictor(device="cpu").segment(image, Hints(visible=(t12, s1)))
    found = [STRUCTURES[sid].name for sid in result.present if STRUCTURES[sid].is_vertebral]
    assert found == ["T12", "L1", "L2", "L3", "L4", "L5", "S1"]
    assert not [a for a in result.alternatives if a.question] and not any(
        "not recognized" in w for w in result.warnings
    )
    assert set(result.outline_quality) == {i for i in result.present if STRUCTURES[i].kind.value != "posterior"}
    assert all(0 <= quality <= 1 for quality in result.outline_quality.values())
