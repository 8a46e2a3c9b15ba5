"""Features of structures: those that the last layers read, averaged where the reference says; picture and number."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from tiny_data import VERTEBRAE, write_tiny_dataset
from torch import nn

from SpineSegAILib.anatomy import structure
from SpineSegAILib.cli import main
from SpineSegAILib.datasets import read_manifest
from SpineSegAILib.errors import ConfigError, DatasetError, MissingPackageError, OutputError
from SpineSegAILib.evaluation.embedding import (
    FEWEST,
    StructureVectors,
    collect_vectors,
    place,
    silhouette,
    write_embedding,
)
from SpineSegAILib.evaluation.on_grid import load_labelled
from SpineSegAILib.imaging import Preprocessing
from SpineSegAILib.inference import Predictor
from SpineSegAILib.inference.features import evidence_and_features
from SpineSegAILib.inference.sliding_window import predict_volume
from SpineSegAILib.methods.base import Context, Method, Readout, Tiling, coordinate_channels
from SpineSegAILib.methods.catalog import METHODS, build_method, make_config

CPU = torch.device("cpu")
CASES = [
    (m.id, d) for m in METHODS.values() if m.group != "correction" for d in m.dims if m.package != "sam"
]  # it is shown what to segment


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """One validation case, T12 to L5 annotated."""
    return write_tiny_dataset(tmp_path_factory.mktemp("data"), training=0)


@pytest.fixture
def cases(dataset):
    return read_manifest(dataset).cases("validation")


@pytest.fixture
def predictor(tiny_checkpoint):
    return Predictor(tiny_checkpoint, "cpu")


class Known(Method):
    """Features are the image, its square and the vertical coordinate."""

    readout = Readout(("head",))

    def __init__(self, dims: int = 2) -> None:
        super().__init__(make_config("resenc-unet", "tiny", dims=dims))
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        self.head = conv(3, self.scheme.channels, 1)

    def evidence(self, images, context):
        features = torch.cat([images, images**2, context.coordinates[:, -2:-1]], 1)
        return {"classes": self.head(features).softmax(1)}


def clusters(names: str, each: int = 5, apart: float = 20.0) -> StructureVectors:
    """Vectors that lie around a place of their own for each structure."""
    rng = np.random.default_rng(0)
    ids = np.repeat([structure(n).id for n in names.split()], each)
    values = rng.normal(size=(len(ids), 6)) + apart * rng.normal(size=(len(names.split()), 6)).repeat(each, 0)
    return StructureVectors(values.astype(np.float32), ids, ("a",) * len(ids), np.arange(len(ids)) % each)


# --- features ---


@pytest.mark.parametrize(("method_id", "dims"), CASES)
def test_every_method_has_features_on_the_volume_s_grid(method_id, dims, text_packages):
    torch.manual_seed(0)
    extra = {"window": (64, 64) if dims == 2 else (16, 48, 32)} if method_id == "unetr" else {}
    method = build_method(make_config(method_id, "tiny", dims=dims, scheme="lumbar11", **extra)).eval()
    array = np.random.default_rng(0).normal(size=(3, 42, 38)).astype(np.float32)
    image = sitk.DICOMOrient(sitk.GetImageFromArray(array), "PIR")
    volume = Preprocessing(pixel_mm=1.0).apply(image)
    few = {name: 2 for name in ("samples", "steps") if name in method.options}
    evidence = predict_volume(method, volume, CPU, options={**few, **method.readout.options}, features=True)
    assert evidence.features is not None and evidence.features.shape[1:] == volume.array.shape
    spread = evidence.features.astype(np.float32).std((2, 3)).max(1)
    assert np.isfinite(evidence.features).all() and (spread > 0).mean() > 0.5, "hardly a feature depends on the place"
    assert not any(module._forward_pre_hooks for module in method.modules())


@pytest.mark.parametrize(
    "method_id", ["resenc-unet", "atm-net", "attention-unet", "unetr", "segresnet", "swin-unetr", "dynunet"]
)
def test_the_answer_is_made_of_the_features(method_id):
    torch.manual_seed(0)
    extra = {"window": (64, 64)} if method_id == "unetr" else {}
    method = build_method(make_config(method_id, "tiny", **extra)).eval()
    context = Context(coordinate_channels((64, 64), (2.0, 2.0))[None])
    with torch.inference_mode():
        maps = evidence_and_features(method, torch.randn(1, 1, 64, 64), context)
        made = method.get_submodule(*method.readout.layers)(maps["features"]).softmax(1)
    assert torch.allclose(made, maps.get("kinds", maps.get("classes")), atol=1e-5)


def test_samples_are_averaged_and_networks_put_side_by_side():
    class Sampling(Known):
        readout = Readout(("head", "other"))

        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Identity()

        def evidence(self, images, context):
            self.head(torch.stack([images, 3 * images], 1).flatten(0, 1).expand(-1, 3, -1, -1))  # two samples of each
            self.other(images[..., ::2, ::2])
            return {}

    images = torch.rand(2, 1, 4, 4)
    images[:, :, 1::2], images[..., 1::2] = images[:, :, ::2], images[..., ::2]  # a pixel is the same as its neighbors
    features = evidence_and_features(Sampling(), images, Context(torch.zeros(2, 2, 4, 4)))["features"]
    assert torch.allclose(features[:, :3], 2 * images.expand(-1, 3, -1, -1)) and features.shape == (2, 4, 4, 4)
    assert torch.allclose(features[:, 3:].mean((2, 3)), images.mean((2, 3)))


# --- vectors ---


@pytest.mark.parametrize(
    ("dims", "local", "patch"),
    [(2, False, ()), (2, True, (32, 32)), (3, False, (4, 32, 32))],
    ids=["2D", "windows", "3D"],
)
def test_a_vector_is_the_mean_over_the_structure(cases, predictor, dims, local, patch):
    predictor.method, predictor.patch = Known(dims), patch
    predictor.method.tiling = Tiling(local=local)
    vectors = collect_vectors(predictor, cases)
    (case,) = load_labelled(cases, predictor.preprocessing)
    rows = case.volume.array.shape[1]
    vertical = (np.arange(rows) - (rows - 1) / 2) * case.volume.spacing[1] / 128
    expected = {}
    for index, (image, label) in enumerate(zip(case.volume.array, case.label, strict=True)):
        for sid in map(int, set(label.flat) - {0}):
            inside = list(zip(*np.nonzero(label == sid), strict=True))
            at = [(image[p], image[p] ** 2, vertical[p[0]]) for p in inside]
            expected[index, sid] = np.mean(at, 0)
    assert {sid for _, sid in expected} == {structure(n).id for n in VERTEBRAE} and len(expected) >= FEWEST
    assert list(zip(vectors.slices.tolist(), vectors.ids.tolist(), strict=True)) == sorted(expected)
    assert np.allclose(vectors.values, [expected[key] for key in sorted(expected)], atol=1e-4)
    assert set(vectors.cases) == {cases[0].name}


@pytest.fixture
def alone(cases, tmp_path_factory):
    """The same case with L3 labeled alone."""
    path, sid = tmp_path_factory.mktemp("alone") / "label.nii.gz", structure("L3").id
    label = sitk.ReadImage(str(cases[0].label))
    sitk.WriteImage(sitk.Cast(label == sid, sitk.sitkInt16) * sid, str(path))
    return replace(cases[0], label=path, annotated=(sid,))


def test_masks_elsewhere_do_not_matter(cases, alone, predictor):
    """The network does not see the reference: without the other structures, one has the same vectors."""
    seen = collect_vectors(predictor, cases)
    thrice = collect_vectors(predictor, [alone, alone, alone])
    values = seen.values[seen.ids == structure("L3").id]
    assert len(values) > 1 and np.array_equal(thrice.values, np.tile(values, (3, 1)))
    assert set(thrice.ids.tolist()) == {structure("L3").id}


def test_too_few_vectors_are_refused(cases, alone, predictor):
    with pytest.raises(DatasetError, match=rf"give 0 vectors.* needs {FEWEST}"):
        collect_vectors(predictor, [replace(cases[0], label=None)])
    with pytest.raises(DatasetError, match=r"give [1-5] vectors"):
        collect_vectors(predictor, [alone])


def test_an_image_that_the_checkpoint_does_not_take_is_left_out(cases, predictor, tmp_path):
    image = sitk.ReadImage(str(cases[0].image))
    sitk.WriteImage(image * 0, str(tmp_path / "empty.nii.gz"))
    empty = replace(cases[0], image=tmp_path / "empty.nii.gz")
    assert set(collect_vectors(predictor, [empty, *cases]).cases) == {cases[0].name}
    with pytest.raises(DatasetError, match="give 0 vectors"):
        collect_vectors(predictor, [empty])


def test_an_unknown_option_is_refused(cases, predictor):
    with pytest.raises(ConfigError, match="no option “speed”"):
        collect_vectors(predictor, cases, options={"speed": 9})


# --- picture and number ---


def test_silhouette_tells_structures_that_lie_apart():
    vectors = clusters("L3 L4 L5 L4/L5")
    found = silhouette(vectors)
    assert found["structures"] > 0.8 > found["kinds"]  # vertebrae lie as far from each other as from the disc
    mixed = StructureVectors(vectors.values, np.roll(vectors.ids, 2), vectors.cases, vectors.slices)
    assert silhouette(mixed)["structures"] < 0.3
    assert silhouette(clusters("L3 L4"))["kinds"] is None
    assert silhouette(clusters("L3 L4 L5 L4/L5 L3/L4", each=1))["structures"] is None


def test_the_picture_is_written_and_repeatable(tmp_path):
    vectors = clusters("L1 L2 L3 S1 L1/L2 canal cord", each=4)
    written = [write_embedding(vectors, tmp_path / name, title="Tiny, test") for name in ("a.png", "b.png")]
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    size = sitk.ReadImage(str(tmp_path / "a.png")).GetSize()
    assert min(size) > 600
    assert written[0] == written[1] == {"vectors": 28, "silhouette": silhouette(vectors)}
    json.dumps(written, allow_nan=False)
    places = place(vectors)
    centres = np.stack([places[vectors.ids == i].mean(0) for i in dict.fromkeys(vectors.ids.tolist())])
    nearest = np.linalg.norm(places[:, None] - centres, axis=2).argmin(1)
    assert (nearest == np.arange(28) // 4).all()
    assert np.isfinite(place(clusters("L3 L4", each=FEWEST // 2))).all()


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(OutputError, match="is not a folder"):
        write_embedding(clusters("L3 L4"), "/dev/null/a.png")
    assert not list(tmp_path.iterdir())


def test_without_scikit_learn(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    for use in (silhouette, place):
        with pytest.raises(MissingPackageError, match="pip install scikit-learn"):
            use(clusters("L3 L4"))


# --- command line ---


def evaluate(dataset, checkpoint, folder, *more) -> int:
    words = ["--split", "validation", "--checkpoint", checkpoint, "--output", folder / "report.json", "--quiet", *more]
    return main([str(word) for word in ("evaluate", dataset, *words)])


def test_evaluate_writes_picture_and_silhouette(dataset, tiny_checkpoint, tmp_path):
    assert evaluate(dataset, tiny_checkpoint, tmp_path, "--embedding", tmp_path / "e.png") == 0
    assert {p.name for p in tmp_path.iterdir()} == {"report.json", "e.png"}
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["embedding"]["vectors"] >= FEWEST and -1 <= report["embedding"]["silhouette"]["structures"] <= 1
    assert report["embedding"]["silhouette"]["kinds"] is None and report["variants"]["full"]["cases"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--embedding", "e.jpg"], "Use .png"),
        (["--embedding", "/dev/null/e.png"], "is not a folder"),
        (["--embedding", "e.png", "--allow-label-leak"], "Omit --allow-label-leak"),
    ],
)
def test_evaluate_refuses(dataset, tiny_checkpoint, tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert evaluate(dataset, tiny_checkpoint, tmp_path, *words) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_evaluate_says_early_what_is_not_installed(dataset, tiny_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setattr("SpineSegAILib.inference.Predictor", None)  # not even the checkpoint is loaded
    assert evaluate(dataset, tiny_checkpoint, tmp_path, "--embedding", tmp_path / "e.png") == 2
    assert "pip install scikit-learn" in capsys.readouterr().err and not list(tmp_path.iterdir())
