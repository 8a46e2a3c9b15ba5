"""Films that are not what they seem: negatives, cropped ones, two in one picture, lateral and chest films."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from SpineSegAILib.anatomy import STRUCTURES, scheme
from SpineSegAILib.checkpoints import save_checkpoint
from SpineSegAILib.consistency import resolve_levels
from SpineSegAILib.datasets import read_manifest
from SpineSegAILib.errors import ImageError
from SpineSegAILib.evidence import Evidence
from SpineSegAILib.imaging import Preprocessing, as_volume
from SpineSegAILib.imaging.checks import plausibility_warnings, refuse_lateral
from SpineSegAILib.imaging.tags import BODY_PART_TAG, MODALITY_TAG, SERIES_TAG, VIEW_TAG
from SpineSegAILib.inference import Predictor
from SpineSegAILib.inference.films import NEGATIVE, refuse_two_columns
from SpineSegAILib.methods.catalog import build_method, make_config
from SpineSegAILib.phantoms.films import FilmSpec, make_film, random_film
from SpineSegAILib.results.measurement import measure_all

sys.path.insert(0, str(Path(__file__).parents[1] / "Benchmarks"))
import films

SCHEME = scheme("thoracolumbar-xr")
TILTS = {"T2": 4.0, "T6": -18.0, "T11": 24.0, "L4": -9.0}


def film(**fields):
    return make_film(FilmSpec(**{"tilts": TILTS, "noise": 2.0, **fields}), np.random.default_rng(0))


class Network:
    """Stands for a network that knows vertebrae of synthetic films by their place, if they are bright and as large as
    in a whole film."""

    def __init__(self, made):
        self.labels = made.labels
        self.seen = []

    def __call__(self, predictor, volume, *_, **__):
        labels = predictor.preprocessing.apply_to_labels(self.labels, volume)
        found = labels > 0
        around = volume.array[(volume.array > -1.9) & ~found]
        bright = bool(found.any()) and volume.array[found].mean() > around.mean()
        self.seen.append((bright, volume.array.shape[1]))
        channel = np.zeros(labels.shape, int)
        for sid, c in SCHEME.channel_of.items():
            channel[labels == sid] = c
        classes = np.full((SCHEME.channels, *labels.shape), 0.001, np.float32)
        np.put_along_axis(classes, channel[np.newaxis], 0.98 if bright else 0.55, 0)
        classes[0] = np.where(found, 1 - classes[1:].sum(0), classes[0])
        return Evidence(volume.spacing, SCHEME, classes=classes)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    config = make_config("verdiff-net", "tiny", scheme=SCHEME.name)
    preprocessing = Preprocessing(pixel_mm=2.0, height_mm=500.0, modality="XR", planes=("single-slice",))
    path = tmp_path_factory.mktemp("films") / "films.safetensors"
    metadata = {
        "method": config.model_dump(mode="json"),
        "preprocessing": preprocessing.model_dump(mode="json"),
        "patch": [256, 128],
    }
    save_checkpoint(path, build_method(config).state_dict(), metadata)
    return Predictor(str(path), "cpu")


def segment(predictor, monkeypatch, made, image=None, **options):
    network = Network(made)
    monkeypatch.setattr(Predictor, "_evidence", lambda self, *args, **kw: network(self, *args, **kw))
    return predictor.segment(made.image if image is None else image, options=options), network


def dice(found, made):
    a, b = (sitk.GetArrayFromImage(x) for x in (found.labels, made.labels))
    return float(2 * ((a == b) & (b > 0)).sum() / ((a > 0).sum() + (b > 0).sum()))


def test_a_film_is_segmented_and_measured(predictor, monkeypatch):
    made = film()
    found, network = segment(predictor, monkeypatch, made)
    assert dice(found, made) > 0.9 and len(network.seen) == 1
    expected = ("pixel size", "No outline quality is given")
    assert not [warning for warning in found.warnings if not any(words in warning for words in expected)]
    assert measure_all(found)[-1]["cobb_main_deg"] == pytest.approx(42, abs=2.5)


def test_a_negative_is_told_and_segmented_as_such(predictor, monkeypatch):
    made = film(inverted=True)
    found, network = segment(predictor, monkeypatch, made)
    assert NEGATIVE in found.warnings and dice(found, made) > 0.9
    assert [bright for bright, _ in network.seen] == [False, True, True]


def test_a_cropped_film_is_looked_at_again_at_its_scale_and_nothing_is_said_of_spacing(predictor, monkeypatch):
    made = film(crop=(0.45, 0.0))
    found, network = segment(predictor, monkeypatch, made)
    assert [rows for _, rows in network.seen] == [250, pytest.approx(145, abs=20)]
    assert found.provenance["scale"] > 1.5 and dice(found, made) > 0.85
    assert not any("adult" in warning for warning in found.warnings)


def test_two_films_in_one_picture_are_refused(predictor, monkeypatch):
    made = film()
    image, labels = (sitk.GetArrayFromImage(x) for x in (made.image, made.labels))
    twice = replace(
        made,
        image=as_volume(sitk.GetImageFromArray(np.concatenate([image, image], 2)[0]), "film"),
        labels=as_volume(sitk.GetImageFromArray(np.concatenate([labels, labels], 2)[0]), "film"),
    )
    with pytest.raises(ImageError, match="two spines beside each other"):
        segment(predictor, monkeypatch, twice)


def test_ribs_and_specks_beside_a_column_are_no_second_one():
    made = film()
    volume = Preprocessing(pixel_mm=2.0, height_mm=500.0, planes=("single-slice",)).apply(made.image)
    labels = Preprocessing(height_mm=500.0, planes=("single-slice",)).apply_to_labels(made.labels, volume)
    found = labels > 0
    found[0, 40:60, 5:15] = found[0, 100:104, 5:30] = found[0, 60:64, -12:-8] = True
    classes = np.stack([~found, found]).astype(np.float32)
    refuse_two_columns(Evidence(volume.spacing, scheme("vertebra"), classes=classes), volume)


def test_vertebrae_as_high_as_wide_are_doubted_as_a_lateral_film(predictor, monkeypatch):
    made = film(tilts={})
    narrow = [sitk.GetArrayFromImage(x)[0][:, ::2] for x in (made.image, made.labels)]
    squeezed = replace(
        made, **dict(zip(("image", "labels"), (as_volume(sitk.GetImageFromArray(a), "f") for a in narrow), strict=True))
    )
    found, _ = segment(predictor, monkeypatch, squeezed)
    assert any("lateral film" in warning for warning in found.warnings)


def test_a_wide_picture_and_one_with_few_vertebrae_are_doubted(predictor, monkeypatch):
    made = film(columns=500, crop=(0.0, 0.8))
    found, _ = segment(predictor, monkeypatch, made)
    assert any("wide for a film" in warning for warning in found.warnings)
    assert any("vertebrae were found" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    "tags, lateral",
    [
        ({VIEW_TAG: "LL"}, True), ({VIEW_TAG: "LATERAL"}, True), ({SERIES_TAG: "LS lat"}, True),
        ({VIEW_TAG: "AP", SERIES_TAG: "LS lat"}, False), ({SERIES_TAG: "LS AP + lateral"}, False), ({}, False),
        ({SERIES_TAG: "WS ganz collateral"}, False),
    ],
)  # fmt: skip
def test_a_lateral_film_is_refused_by_its_header(predictor, tags, lateral):
    image = film().image
    for tag, value in tags.items():
        image.SetMetaData(tag, value)
    if lateral:
        with pytest.raises(ImageError, match="lateral film"):
            predictor.segment(image)
    else:
        refuse_lateral(image)


def test_a_chest_film_is_doubted_by_its_header():
    image = film(pixel_mm=0.5).image
    image.SetMetaData(MODALITY_TAG, "DX")
    assert plausibility_warnings(image, "XR") == []
    image.SetMetaData(BODY_PART_TAG, "CHEST")
    assert "CHEST" in plausibility_warnings(image, "XR")[0]


def test_the_benchmark_scores_a_perfect_result_as_such(predictor, monkeypatch, tmp_path):
    made = film(rows=1024, columns=480)
    network = Network(made)
    monkeypatch.setattr(Predictor, "_evidence", lambda self, *args, **kw: network(self, *args, **kw))
    for name, image in (("image", made.image), ("label", made.labels)):
        sitk.WriteImage(sitk.GetImageFromArray(sitk.GetArrayFromImage(image)[0]), str(tmp_path / f"{name}.png"))
    corners = {STRUCTURES[sid].name: quad for sid, quad in made.corners.items()}
    entry = {"image": "image.png", "label": "label.png", "annotated": list(corners), "corners": corners}
    manifest = tmp_path / "dataset.json"
    manifest.write_text(json.dumps({"validation": [entry]}), encoding="utf-8")
    (case,) = read_manifest(manifest).cases("validation")
    found = films.score(predictor, case, {})
    assert found["dice"] == found["dice_any_level"] > 0.9 and found["levels_right"] == found["levels"] == 17
    assert found["corner_share"] < 0.004 and found["cobb_given"]
    assert np.allclose(found["cobb"], found["cobb_true"], atol=5.0)
    wrong = {**found, "cobb": [a + 10 for a in found["cobb"]], "levels_right": 16}
    total = films.summary([*3 * [found], *3 * [wrong], {"case": "x", "failure": "no"}])
    assert total["films"] == 7 and total["failed"] == 1 and total["films_right"] == 0.5
    assert total["cobb_all"]["mean_absolute_error"][0] == pytest.approx(5.0, abs=1.5)
    assert total["cobb_given"]["films"] == 6 and total["main_given"][0] == 6
    few = films.summary([found, wrong])
    assert few["main_given"][0] == 2 and "cobb_given" not in few


def test_a_shifted_result_counts_as_wrong_levels_with_right_outlines():
    reference = np.zeros((40, 10), int)
    for number in range(4):
        reference[10 * number + 1 : 10 * number + 8, 2:8] = 8 + number
    strict, matched, right, pairs = films.outline_scores(np.where(reference > 0, reference + 1, 0), reference)
    assert strict == [0.0] * 4 and matched == [1.0] * 4 and right == 0
    assert pairs == {8: 9, 9: 10, 10: 11, 11: 12}


@pytest.mark.parametrize("seed", range(6))
def test_all_levels_of_a_column_are_named_whose_vertebrae_touch_or_lie_far_aside(seed):
    """T1 is half as high as L5, so that one usual height would join the upper ones and part the lower ones."""
    rng = np.random.default_rng(seed)
    tilts = {"T2": 6, "T5": -30, "T10": 38, "L3": -30, "L5": 0} if seed % 2 else random_film(rng).tilts
    made = make_film(FilmSpec(tilts=tilts, columns=330), rng)
    preprocessing = Preprocessing(pixel_mm=1.75, height_mm=550.0, modality="XR", planes=("single-slice",))
    volume = preprocessing.apply(made.image)
    labels = preprocessing.apply_to_labels(made.labels, volume)
    rows = np.arange(labels.shape[1])[:, np.newaxis]
    for upper, lower in ((9, 10), (12, 13), (15, 16), (19, 20), (22, 23)):  # grown together
        middle = [int(np.nonzero(labels[0] == sid)[1].mean()) for sid in (upper, lower)]
        bridge = slice(min(middle) - 4, max(middle) + 5)
        ends = np.nonzero(labels[0] == upper)[0].max(), np.nonzero(labels[0] == lower)[0].min()
        part = (rows >= min(ends) - 1) & (rows <= max(ends) + 1) & (labels[0] == 0)
        labels[0][:, bridge][part[:, bridge]] = upper
    classes = np.full((SCHEME.channels, *labels.shape), 0.01, np.float32)
    channel = np.zeros(labels.shape, int)
    for sid, c in SCHEME.channel_of.items():
        channel[labels == sid] = c
    np.put_along_axis(classes, channel[np.newaxis], 0.83, 0)
    found = resolve_levels(Evidence(volume.spacing, SCHEME, classes=classes))
    assert [i.structure_id for i in found.instances if i.structure_id] == list(SCHEME.ids)
    assert (found.labels == labels)[labels > 0].mean() > 0.95
    assert not [warning for warning in found.warnings if "missing" in warning]
