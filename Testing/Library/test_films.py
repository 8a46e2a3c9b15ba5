"""Films of the spine from the front: synthetic ones, the importer of real ones, what is drawn over them in training."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from tiny_data import TILTS, pixels, write_films

from SpineSegAILib.anatomy import scheme, structure
from SpineSegAILib.checkpoints import find_checkpoint
from SpineSegAILib.cli import main
from SpineSegAILib.datasets import read_label, read_manifest
from SpineSegAILib.datasets.public_sets import import_dataset
from SpineSegAILib.datasets.training_set import TrainingSet
from SpineSegAILib.errors import DatasetError, HintError, OutputError
from SpineSegAILib.imaging import Preprocessing
from SpineSegAILib.imaging.quads import filled_quadrangles, is_quadrangle
from SpineSegAILib.inference import Predictor
from SpineSegAILib.keypoints import CORNERS, parse_corners
from SpineSegAILib.phantoms.films import FilmSpec, make_film, random_film
from SpineSegAILib.training.augmentation import Augmenter
from SpineSegAILib.training.config import AugmentationConfig, flatten
from SpineSegAILib.training.films import marked
from SpineSegAILib.training.recipe import RecipeRequest, read_recipe, run_recipe

IDS = scheme("thoracolumbar-xr").ids
# --- synthetic films -------------------------------------------------------------------------------------------------


def test_a_synthetic_film_has_the_tilts_that_it_was_asked_for():
    film = make_film(FilmSpec(tilts=TILTS), np.random.default_rng(0))
    corners = pixels(film)
    across = corners[:, [1, 3]].mean(1) - corners[:, [0, 2]].mean(1)
    found = dict(zip(IDS, np.degrees(np.arctan2(across[:, 1], across[:, 0])), strict=True))
    for name, tilt in TILTS.items():
        assert found[structure(name).id] == pytest.approx(tilt, abs=1e-6)
    assert min(found, key=found.get) == structure("T6").id and max(found, key=found.get) == structure("T11").id
    assert film.tilts == pytest.approx(found, abs=1e-6)


def test_its_mask_lies_between_its_corners_and_bone_is_bright():
    film = make_film(FilmSpec(tilts=TILTS), np.random.default_rng(0))
    labels, image = (sitk.GetArrayFromImage(x)[0] for x in (film.labels, film.image))
    assert list(np.unique(labels)) == [0, *IDS]
    for sid, quad in zip(IDS, pixels(film), strict=True):
        rows, columns = np.nonzero(labels == sid)
        assert np.allclose([columns.mean(), rows.mean()], quad.mean(0), atol=0.5)
        x, y = quad[[0, 1, 3, 2]].T
        area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
        assert len(rows) == pytest.approx(area, rel=0.04)
    beside = np.roll(labels > 0, 40, axis=1) & (labels == 0)
    assert image[labels > 0].mean() > image[beside].mean() + 20


def test_it_may_be_cropped_inverted_and_tell_its_pixel_size():
    plain = make_film(FilmSpec(noise=0), np.random.default_rng(0))
    cut = make_film(FilmSpec(noise=0, crop=(0.2, 0.1), inverted=True, pixel_mm=0.8), np.random.default_rng(0))
    rows = sitk.GetArrayFromImage(plain.image)[0][round(0.2 * 512) : round(0.9 * 512)]
    assert np.abs(255 - rows.astype(int) - sitk.GetArrayFromImage(cut.image)[0]).max() <= 1
    assert len(cut.corners) < len(plain.corners)
    assert cut.image.GetSpacing()[:2] == (0.8, 0.8) and not cut.image.GetMetaDataKeys()
    assert plain.image.HasMetaDataKey("SpineSegAI_ScaleUnknown")


def test_random_films_differ():
    specs = [random_film(np.random.default_rng(seed)) for seed in range(4)]
    assert len({str(spec.tilts) for spec in specs}) == 4
    assert all(is_quadrangle(quad) for spec in specs for quad in pixels(make_film(spec, np.random.default_rng(0))))


# --- quadrangles and corners -----------------------------------------------------------------------------------------


def test_quadrangles_are_told_from_crossed_ones():
    square = np.array([(1.0, 1.0), (5.0, 1.0), (1.0, 4.0), (5.0, 4.0)])
    assert is_quadrangle(square)
    assert not is_quadrangle(square[[1, 0, 2, 3]]) and not is_quadrangle(square[[2, 3, 0, 1]])
    filled = filled_quadrangles((8, 8), {9: square, 10: square + 100})
    assert filled.sum() == 9 * 5 * 4 and filled[1, 1] == filled[4, 5] == 9


@pytest.mark.parametrize(
    "table, said",
    [
        ({"T1/T2": [[0, 0, 0]] * 4}, "not a vertebra"),
        ({"L4": [[0, 0, 0]] * 3}, "four corners"),
        ({"L4": [[0, 0, 0]] * 3 + [[0, "x", 0]]}, "not a point"),
        ({"Q4": [[0, 0, 0]] * 4}, "Q4"),
    ],
)
def test_corners_that_make_no_sense_are_refused(table, said):
    with pytest.raises(HintError, match=said):
        parse_corners(table, name="here")


def test_corners_are_read_in_their_order():
    found = parse_corners({"L4": [[0, n, 0] for n in range(len(CORNERS))]}, name="here")
    assert found == {structure("L4").id: ((0, 0, 0), (0, 1, 0), (0, 2, 0), (0, 3, 0))}


# --- the importer ----------------------------------------------------------------------------------------------------


def test_films_of_one_name_keep_their_own_masks_and_a_failed_import_changes_none(tmp_path, monkeypatch):
    first = import_dataset("aasce", write_films(tmp_path / "a"), tmp_path / "out", validation_share=0.0)
    masks = {path.name: path.read_bytes() for path in (tmp_path / "out/labels").iterdir()}

    def full(*_):
        raise OSError(28, "no space left")

    with monkeypatch.context() as patched, pytest.raises(OutputError):
        patched.setattr(TrainingSet, "refuse_changed", full)
        import_dataset("aasce", write_films(tmp_path / "b"), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    for _ in range(2):  # the second time, they are replaced
        import_dataset("aasce", tmp_path / "b", tmp_path / "out", validation_share=0.0)
    files = {path.name: path.read_bytes() for path in (tmp_path / "out/labels").iterdir()}
    assert masks.items() < files.items() and len(files) == 2 * len(masks)
    labels = [entry["label"] for _, entry in TrainingSet(first.path).entries()]
    assert len(set(labels)) == len(labels) == len(files)


def test_published_films_become_cases_with_corners_and_masks(tmp_path):
    target = import_dataset("aasce", write_films(tmp_path / "set"), tmp_path / "out", validation_share=0.34)
    manifest = read_manifest(target.path)
    assert manifest.modality == "XR" and {s: len(c) for s, c in manifest.splits.items()} == {
        "training": 2, "validation": 1, "test": 1,
    }  # fmt: skip
    assert not target.notes
    case = next(c for cases in manifest.splits.values() for c in cases if c.patient == "310")
    assert case.annotated == IDS and tuple(case.corners) == IDS
    film = make_film(FilmSpec(rows=128, columns=64, tilts=TILTS), np.random.default_rng(0))
    assert np.allclose(list(case.corners.values()), list(film.corners.values()), atol=0.01)
    assert np.array_equal(sitk.GetArrayFromImage(read_label(case)), sitk.GetArrayFromImage(film.labels))
    entry = next(e for _, e in target.entries() if e["patient"] == "310")
    assert entry["cobb_angles"] == [42.0, 22.0, 33.0]


def test_vertebrae_out_of_order_are_put_in_order_and_their_angles_are_not_believed(tmp_path, capsys):
    write_films(tmp_path / "set", order="b")
    assert main(["import-dataset", str(tmp_path / "set"), "--format", "aasce", "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert "1 films without their published angles" in printed.err and "311 b ap" in printed.err
    table = json.loads((tmp_path / "out" / "dataset.json").read_text(encoding="utf-8"))
    entries = {e["patient"]: e for split in ("training", "validation") for e in table.get(split, ())}
    assert "cobb_angles" not in entries["311"] and "cobb_angles" in entries["310"]
    rows = [-np.mean(quad, 0)[2] for quad in entries["311"]["corners"].values()]
    assert rows == sorted(rows)


def test_doubtful_films_are_left_out_and_said(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    film = make_film(FilmSpec(rows=128, columns=64, tilts=TILTS), np.random.default_rng(0))
    cases = []
    for name, flags, mended, broken in (
        ("a", [], False, ""), ("b", ["odd"], False, ""), ("c", ["order"], True, ""), ("d", [], False, "crossed"),
        ("e", [], False, "twice"),
    ):  # fmt: skip
        sitk.WriteImage(
            sitk.GetImageFromArray(sitk.GetArrayFromImage(film.image)[0]), str(folder / f"{name}_image.png")
        )
        corners = pixels(film)
        if broken == "crossed":
            corners[3] = corners[3][[1, 0, 2, 3]]
        if broken == "twice":
            corners[16] = corners[15] + 1
        cases.append(
            {"case": name, "size": [64, 128], "study": name, "split": "training", "flags": flags, "mended": mended,
             "corners_TL_TR_BL_BR": corners.tolist(), "cobb_angles": [1, 2, 3]}
        )  # fmt: skip
    (folder / "landmarks.json").write_text(json.dumps({"cases": cases}), encoding="utf-8")
    target = import_dataset("aasce", folder, tmp_path / "out")
    assert [e["patient"] for _, e in target.entries()] == ["a", "c"]
    assert any("3 films omitted (doubtful corners): b_image, d_image, e_image" in note for note in target.notes)
    assert "cobb_angles" not in next(e for _, e in target.entries() if e["patient"] == "c")


def test_a_patient_with_a_film_for_test_is_not_trained_on(tmp_path):
    folder = write_films(tmp_path / "set")
    for part in ("data", "labels"):
        base = folder / part / "test"
        if part == "data":
            next(base.iterdir()).rename(base / "sunhl-1th-02-Mar-2017-310 d ap.jpg")
        else:
            (base / "filenames.csv").write_text("sunhl-1th-02-Mar-2017-310 d ap.jpg\n", encoding="utf-8")
    target = import_dataset("aasce", folder, tmp_path / "out", validation_share=0.0)
    assert sorted((split, e["patient"]) for split, e in target.entries()) == [
        ("test", "310"), ("training", "311"), ("training", "312"),
    ]  # fmt: skip
    assert any("another film of the patient is for test" in note for note in target.notes)


@pytest.mark.parametrize("file", ["filenames.csv", "landmarks.csv", "angles.csv"])
def test_tables_that_do_not_go_together_are_refused(tmp_path, file):
    folder = write_films(tmp_path / "set")
    path = folder / "labels" / "training" / file
    path.write_text("\n".join(path.read_text(encoding="utf-8").splitlines()[:1]), encoding="utf-8")
    with pytest.raises(DatasetError, match="rows"):
        import_dataset("aasce", folder, tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()


# --- training --------------------------------------------------------------------------------------------------------


def test_every_film_counts_as_equally_high():
    one = make_film(FilmSpec(rows=256, columns=120), np.random.default_rng(0))
    other = make_film(FilmSpec(rows=400, columns=200, pixel_mm=0.4), np.random.default_rng(0))
    preprocessing = Preprocessing(pixel_mm=2.0, height_mm=500.0, modality="XR", planes=("single-slice",))
    for film in (one, other):
        volume = preprocessing.apply(film.image)
        assert volume.array.shape[1] == 250 and volume.spacing[1] == pytest.approx(2.0, abs=0.02)
        middle = volume.point_of((0, 124.5, (volume.array.shape[2] - 1) / 2))
        size, centre = film.image.GetSize(), film.image.TransformContinuousIndexToPhysicalPoint
        assert np.allclose(middle, centre([(n - 1) / 2 for n in size]))
    twice = preprocessing.apply(one.image, scale=2.0)
    assert twice.array.shape[1] == 125 and twice.spacing[1] == pytest.approx(2.0, abs=0.02)


@pytest.mark.parametrize("what", ["metal_probability", "border_probability", "letters_probability"])
def test_what_lies_on_films_is_drawn_over_some_of_an_image(what):
    config = AugmentationConfig(**{what: 1.0})
    unit = torch.full((1, 96, 64), 0.4)
    changed = [(marked(unit, config, np.random.default_rng(seed)) != unit).float().mean() for seed in range(20)]
    assert max(changed) > 0.002 and max(changed) < 0.7 and np.mean(changed) > 0.002
    assert torch.equal(unit, torch.full((1, 96, 64), 0.4))
    assert torch.equal(marked(unit, AugmentationConfig(), np.random.default_rng(0)), unit)


def test_mirrored_samples_keep_their_labels_on_their_bone():
    config = AugmentationConfig.none().model_copy(update={"mirror_probability": 1.0})
    image, codes = torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    image[0, 0, 10:14, 5:9], codes[0, 0, 10:14, 5:9] = 1.0, 1
    allowed = torch.zeros(1, 96, 2, dtype=torch.bool)
    allowed[:, 0, 0] = allowed[:, 1, 1] = True
    raw = {
        "image": image, "codes": codes, "allowed": allowed, "rank": torch.full((1, 96), torch.nan),
        "kinds": torch.zeros(1, 96, dtype=torch.uint8), "box": torch.tensor([[[0.0, 32.0], [0.0, 32.0]]]),
        "keypoints": torch.tensor([[[11.5, 6.5]]]), "spacing": torch.ones(1, 2), "number": torch.tensor([0]),
        "position": torch.tensor([0.5]),
    }  # fmt: skip
    batch = Augmenter((32, 32), config, 0, -2.0)(raw, torch.device("cpu"))
    rows, columns = torch.nonzero(batch.label[0] == 1, as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 13, 23, 26)
    assert (batch.image[0, 0] > 0.5).nonzero().tolist() == torch.stack([rows, columns], 1).tolist()
    assert torch.allclose(batch.keypoints[0, 0], torch.tensor([11.5, 24.5]), atol=0.01)


def test_the_shipped_recipe_trains_from_end_to_end(tmp_path):
    data = tmp_path / "data"
    write_films(data / "xray_aasce")
    (data / "xray").mkdir()
    for number in range(3):
        film = make_film(random_film(np.random.default_rng(number), rows=96, columns=64), np.random.default_rng(0))
        levels = np.where((found := sitk.GetArrayFromImage(film.labels)[0]) > 0, found - IDS[0] + 1, 0).astype(np.uint8)
        picture = sitk.GetImageFromArray(sitk.GetArrayFromImage(film.image)[0])
        sitk.WriteImage(picture, str(data / "xray" / f"{number}_image.png"))
        sitk.WriteImage(sitk.GetImageFromArray(levels), str(data / "xray" / f"{number}_label.png"))
    recipe = read_recipe("xray-verdiff-net")
    small = {"preprocessing": {"pixel_mm": 8.0}, "data": {"patch": [64, 32]}, "optimization": {"batch": 2, "steps": 2}}
    own = {"prior_widths": [4, 8], "prior_blocks": [1, 1], "widths": [4, 8], "msfm_width": 4, "attention_levels": 0}
    table = recipe.model_dump()
    for stage in table["stages"]:
        for key, value in (("optimization.hours", None), *flatten({**small, "method": own})):
            path = key.split(".")
            place = stage["set"]
            for part in path[:-1]:
                place = place.setdefault(part, {})
            place[path[-1]] = value
    result = run_recipe(RecipeRequest(type(recipe).model_validate(table), data, tmp_path / "run", device="cpu"))
    info = find_checkpoint(str(result))
    assert info.scheme.name == "thoracolumbar-xr"
    training = json.loads((tmp_path / "run" / "prior-2" / "dataset.json").read_text(encoding="utf-8"))["training"]
    assert {case["source"] for case in training} == {"aasce", "xray"}
    film = make_film(random_film(np.random.default_rng(9), rows=128), np.random.default_rng(9))
    found = Predictor(info, "cpu").segment(film.image)
    assert found.labels.GetSize() == film.image.GetSize() and not found.scale_known
