"""Recipes: stages that start from one another, sources of several kinds, continued where they were stopped."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from tiny_data import write_tiny_dataset

from SpineSegAILib.anatomy import STRUCTURES, structure
from SpineSegAILib.checkpoints import read_header
from SpineSegAILib.cli import main
from SpineSegAILib.datasets import completion, pictures
from SpineSegAILib.datasets.completion import Segmenter, complete_dataset, find_teacher, sacral_points
from SpineSegAILib.datasets.manifest import Case, read_label, read_manifest
from SpineSegAILib.errors import ConfigError, DatasetError, HintError, OutputError
from SpineSegAILib.imaging.geometry import ids_in, like
from SpineSegAILib.inference import Predictor
from SpineSegAILib.methods.catalog import METHODS, make_config
from SpineSegAILib.methods.text.bank import write_bank
from SpineSegAILib.phantoms.spine import PhantomSpec, make_phantom
from SpineSegAILib.training import recipe as recipes
from SpineSegAILib.training.recipe import Recipe, RecipeRequest, read_recipe, run_recipe, stage_config
from SpineSegAILib.training.request import checked_method
from SpineSegAILib.training.run import RunDirectory

TINY = {
    "preprocessing": {"pixel_mm": 3.0},
    "data": {"patch": [64, 64]},
    "optimization": {"steps": 2, "batch": 2, "workers": 0, "warmup": 0, "ema": 0.0},
}


def tiny_recipe(**values) -> Recipe:
    stages = [{"name": "one"}, {"name": "two", "set": {"optimization": {"steps": 5, "stop_steps": 3}, "seed": 7}}]
    return Recipe.model_validate(
        {
            "title": "Tiny",
            "method": "resenc-unet",
            "preset": "tiny",
            "sources": [{"manifest": "tiny/dataset.json"}],
            "set": TINY,
            "stages": stages,
            **values,
        }
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "tiny").mkdir()
    write_tiny_dataset(folder / "tiny", training=2)
    return folder


@pytest.fixture
def slices(tmp_path):
    """A picture of three bodies with the discs between them and one above."""
    folder = tmp_path / "slices"
    folder.mkdir()
    mask = np.zeros((64, 32), np.uint8)
    for top in (10, 26, 42):
        mask[top : top + 10, 8:24] = 2
        mask[top - 5 : top - 1, 8:24] = 1
    noise = np.random.default_rng(0).integers(0, 60, mask.shape)  # else it would be taken for a label map
    image = (mask * 80 + noise).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(image), str(folder / "a_image.png"))
    sitk.WriteImage(sitk.GetImageFromArray(mask), str(folder / "a_label.png"))
    return folder


class OneNumber:
    """A text encoder that needs nothing."""

    name, width = "one number", 1

    def encode(self, texts):
        return [torch.ones(1, 1) for _ in texts]


@pytest.mark.parametrize("name", sorted(recipes.shipped_recipes()))
def test_every_shipped_recipe_is_valid_down_to_its_last_stage(name, tmp_path):
    recipe = read_recipe(name)
    given = {resource: str(tmp_path / f"{resource}.safetensors") for resource in recipe.resources}
    if given:
        prompts = make_config(recipe.method, recipe.preset)
        write_bank(given["text_bank"], prompts.text_prompts(), OneNumber(), prompts.scheme)
    for stage in recipe.stages:
        config = stage_config(recipe, stage, [tmp_path / "a.json", tmp_path / "b.json"], given, None)
        assert config.method["method"] == recipe.method in METHODS
        assert config.also == (str(tmp_path / "b.json"),)
        checked_method(config)
    assert config.name == recipe.title


def test_a_patch_that_a_later_stage_does_not_take_is_refused_before_anything_is_written(data, tmp_path):
    stages = [{"name": "one"}, {"name": "two", "set": {"data": {"patch": [64, 41]}}}]
    with pytest.raises(ConfigError, match="multiples"):
        run_recipe(RecipeRequest(tiny_recipe(stages=stages), data, tmp_path / "run", device="cpu"))
    assert not (tmp_path / "run").exists()


def test_stages_start_from_one_another_and_what_is_done_is_not_done_again(data, tmp_path):
    request = RecipeRequest(tiny_recipe(), data, tmp_path / "run", device="cpu")
    result = run_recipe(request)
    second = RunDirectory(tmp_path / "run/two")
    assert result == second.last
    assert second.config().start_from == str(tmp_path / "run/one/last.safetensors")
    assert second.status()["state"] == "finished" and second.status()["step"] == 3  # of a schedule of five
    assert read_header(result).metadata["title"] == "Tiny"
    before = result.stat().st_mtime_ns
    assert run_recipe(request) == result and result.stat().st_mtime_ns == before


def test_a_stage_that_was_stopped_is_resumed(data, tmp_path):
    trained = []

    def interrupted(request):
        trained.append(request.resume)
        request.output.mkdir(parents=True, exist_ok=True)
        (request.output / "config.json").write_text(request.config.model_dump_json())

    request = RecipeRequest(tiny_recipe(), data, tmp_path / "run", train=interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_recipe(request)
    assert trained == [False, True]


def began(request):
    """Stands in for a training that has ended."""
    request.output.mkdir(parents=True, exist_ok=True)
    (request.output / "config.json").write_text(request.config.model_dump_json())
    (request.output / "status.json").write_text('{"state": "finished"}')


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"set": TINY | {"seed": 3}}, "seed"),
        ({"method": "unet", "preset": None}, "method.method"),
        ({"sources": [{"manifest": "tiny/dataset.json"}, {"manifest": "other/dataset.json"}]}, "sources"),
        ({"stages": [{"name": "one", "weights": "best"}, {"name": "two"}]}, "start"),
    ],
)
def test_a_stage_that_has_begun_is_not_taken_for_one_that_the_recipe_has_now(change, named, data, tmp_path):
    stages = {"stages": [{"name": "one"}, {"name": "two"}]}
    run_recipe(RecipeRequest(tiny_recipe(**stages), data, tmp_path / "run", train=began))
    with pytest.raises(ConfigError, match=named) as refused:
        run_recipe(RecipeRequest(tiny_recipe(**stages | change), data, tmp_path / "run", train=began))
    assert "--output" in refused.value.remedy


def test_what_does_not_change_a_stage_keeps_it(data, tmp_path):
    run_recipe(RecipeRequest(tiny_recipe(), data, tmp_path / "run", train=began))
    (tmp_path / "run").rename(tmp_path / "moved")
    (tmp_path / "elsewhere").symlink_to(data)  # its data, too
    more = [*tiny_recipe().model_dump()["stages"], {"name": "three"}]
    said = TINY | {"optimization": TINY["optimization"] | {"workers": 1}}
    trained = []
    request = RecipeRequest(
        tiny_recipe(title="Other", set=said, stages=more), tmp_path / "elsewhere", tmp_path / "moved",
        train=lambda request: (trained.append(request.output.name), began(request)),
    )  # fmt: skip
    run_recipe(request)
    assert trained == ["three"]


def test_sources_in_folders_of_one_name_are_told_apart(slices, data, tmp_path, monkeypatch):
    for place in ("a/films", "b/films"):
        shutil.copytree(slices, tmp_path / place)
    shutil.copytree(data / "tiny", tmp_path / "c/films")
    sources = [{"pictures": {"folder": f, "structure": "vertebra"}} for f in ("a/films", "b/films")]
    sources += [{"manifest": "c/films/dataset.json"}, {"manifest": "c/films/dataset.json"}]
    recipe = tiny_recipe(sources=sources, complete="stub", stages=[{"name": "one", "completed": True}])
    monkeypatch.setattr(completion, "find_teacher", lambda *_: Stub("S1"))
    trained = []
    run_recipe(RecipeRequest(recipe, tmp_path, tmp_path / "run", train=lambda r: (trained.append(r.config), began(r))))
    used = [Path(p).parent.relative_to(tmp_path / "run") for p in (trained[0].dataset, *trained[0].also)]
    assert len(set(used)) == 4 and {p.name for p in (tmp_path / "run/data").iterdir()} == {"films", "films-2"}


def test_weights_that_were_put_in_place_of_a_stage_are_taken(data, tmp_path):
    (tmp_path / "run/one").mkdir(parents=True)
    (tmp_path / "run/one/status.json").write_text('{"state": "finished"}')
    trained = []
    run_recipe(
        RecipeRequest(tiny_recipe(), data, tmp_path / "run", train=lambda r: (trained.append(r.config), began(r)))
    )
    assert [config.start_from for config in trained] == [str(tmp_path / "run/one/last.safetensors")]


def test_levels_of_single_slices_are_counted_upwards(slices, tmp_path):
    manifest = read_manifest(pictures.import_levelled_slices(slices, tmp_path / "out", ["a"], 1.25, "S1"))
    (case,) = manifest.cases("training")
    label = read_label(case)
    assert label.GetSpacing()[:2] == (1.25, 1.25)
    array = sitk.GetArrayFromImage(label)[0]
    found = [STRUCTURES[int(array[row, 16])].name for row in (5, 10, 21, 26, 37, 42)]
    assert found == ["L3/L4", "L4", "L4/L5", "L5", "L5/S1", "S1"]
    with pytest.raises(DatasetError, match="lacks the picture b"):
        pictures.import_levelled_slices(slices, tmp_path / "out2", ["b"], 1.25, "S1")


def test_pictures_of_one_structure_are_dealt_to_the_splits(slices, tmp_path):
    for name in "bcde":
        for kind in ("image", "label"):
            (slices / f"{name}_{kind}.png").write_bytes((slices / f"a_{kind}.png").read_bytes())
    manifest = read_manifest(pictures.import_labelled_pictures(slices, tmp_path / "out", "vertebra"))
    assert [len(manifest.splits[s]) for s in ("training", "validation", "test")] == [3, 1, 1]
    values = np.unique(sitk.GetArrayFromImage(read_label(manifest.cases("test")[0])))
    assert values.tolist() == [0, structure("vertebra").id]
    (slices / "a_label.png").unlink()
    with pytest.raises(DatasetError, match="has no mask"):
        pictures.import_labelled_pictures(slices, tmp_path / "out2", "vertebra")


def test_what_nobody_drew_is_completed_and_what_was_drawn_stays(data, tiny_checkpoint, tmp_path):
    said = []
    predictor = Predictor(tiny_checkpoint, device="cpu")
    path = complete_dataset(
        data / "tiny/dataset.json", tmp_path / "out", Segmenter(predictor), lambda *step: said.append(step)
    )
    manifest, original = read_manifest(path), read_manifest(data / "tiny/dataset.json")
    assert len(said) == 2 and "completed by tiny" in manifest.name
    for new, old in zip(manifest.cases("training"), original.cases("training"), strict=True):
        drawn, completed = (sitk.GetArrayFromImage(read_label(case)) for case in (old, new))
        assert np.array_equal(completed[drawn > 0], drawn[drawn > 0])
        assert set(old.annotated) < set(new.annotated)
        assert structure("canal").id not in new.annotated  # its teacher knows it from synthetic images alone
    assert manifest.cases("validation")[0].annotated == original.cases("validation")[0].annotated


class Stub:
    """A teacher that adds one voxel of a structure."""

    def __init__(self, name):
        self.name, self.key, self.id = name, name, structure(name).id

    def can_add(self, case):
        return [self.id]

    def completed(self, case):
        labels = read_label(case)
        labels[0, 0, 0] = self.id
        return labels


def test_completing_writes_over_no_other_dataset(tmp_path):
    dataset = write_tiny_dataset(tmp_path / "own", training=1)
    other = write_tiny_dataset(tmp_path / "other", training=1)
    before = dataset.read_bytes()
    for folder in (dataset.parent, other.parent):
        with pytest.raises(OutputError, match="would be written over"):
            complete_dataset(dataset, folder, Stub("S1"))
    assert dataset.read_bytes() == before == other.read_bytes()
    assert complete_dataset(dataset, tmp_path / "new", Stub("S1")) == complete_dataset(
        dataset, tmp_path / "new", Stub("S1")
    )


def test_a_case_is_completed_again_for_another_checkpoint_or_label(tmp_path):
    dataset = write_tiny_dataset(tmp_path / "data", training=1)

    def drawn(teacher):
        (case,) = read_manifest(complete_dataset(dataset, tmp_path / "out", Stub(teacher))).cases("training")
        return {STRUCTURES[i].name for i in ids_in(read_label(case))}

    assert "S1" in drawn("S1")
    assert "S1" not in drawn("canal") and "canal" in drawn("canal")
    label = tmp_path / "data/case0_label.nii.gz"
    without = sitk.ChangeLabel(sitk.ReadImage(str(label)), {float(structure("L3").id): 0.0})
    sitk.WriteImage(without, str(label))  # corrected
    assert "L3" not in drawn("canal")


@pytest.mark.parametrize("by_name", [True, False])
def test_completed_labels_are_read_whatever_values_the_manifest_tells(tmp_path, by_name):
    dataset = write_tiny_dataset(tmp_path / "data", training=1)
    table = json.loads(dataset.read_text(encoding="utf-8"))
    numbers = {name: number for number, name in enumerate(("L1", "L2", "L3", "L4", "L5", "T12"), start=1)}
    for path in (tmp_path / "data").glob("*_label.nii.gz"):
        change = {float(structure(name).id): float(number) for name, number in numbers.items()}
        sitk.WriteImage(sitk.ChangeLabel(sitk.ReadImage(str(path)), change), str(path))
    values = {str(number): name for name, number in numbers.items()}
    for entry in table["training"] + table["validation"]:
        del entry["annotated"]
    more = {"labels": {"background": 0, **numbers}} if by_name else {"labels": values, "label_values": values}
    dataset.write_text(json.dumps({**table, **more}), encoding="utf-8")
    before, after = read_manifest(dataset), read_manifest(complete_dataset(dataset, tmp_path / "out", Stub("S1")))
    drawn = [sitk.GetArrayFromImage(read_label(m.cases("training")[0])) for m in (before, after)]
    assert np.array_equal(drawn[0][1:], drawn[1][1:]) and drawn[1][0, 0, 0] == structure("S1").id
    assert after.cases("validation")[0].annotated == before.cases("validation")[0].annotated


@pytest.fixture(scope="module")
def lacks_s1(tmp_path_factory):
    """A synthetic case in which all but S1 is drawn; and S1."""
    folder = tmp_path_factory.mktemp("lacks_s1")
    phantom = make_phantom(PhantomSpec(), np.random.default_rng(0))
    labels = sitk.GetArrayFromImage(phantom.labels)
    s1 = labels == structure("S1").id
    labels[s1] = 0
    drawn = like(phantom.labels, labels)
    sitk.WriteImage(phantom.image, str(folder / "image.nii.gz"))
    sitk.WriteImage(drawn, str(folder / "label.nii.gz"))
    return Case(folder / "image.nii.gz", folder / "label.nii.gz", annotated=tuple(ids_in(drawn))), s1


def test_s1_is_completed_by_clicks_below_the_disc(lacks_s1):
    case, s1 = lacks_s1
    drawn = read_label(case)
    points = sacral_points(drawn)
    assert len(points) == 4 and all(s1[drawn.TransformPhysicalPointToIndex(point)[::-1]] for point in points)
    teacher = find_teacher("click-refine")
    assert teacher.can_add(case) == [structure("S1").id]
    before, after = sitk.GetArrayFromImage(drawn), sitk.GetArrayFromImage(teacher.completed(case))
    assert np.array_equal(after[before > 0], before[before > 0])
    found = after == structure("S1").id
    assert 2 * (found & s1).sum() / (found.sum() + s1.sum()) > 0.8
    assert not teacher.can_add(replace(case, annotated=(structure("L5").id,)))  # nothing says where it would lie
    assert not teacher.can_add(replace(case, annotated=(*case.annotated, structure("S1").id)))


def test_s1_is_below_the_disc_of_a_slice_whose_header_says_axial(lacks_s1):
    case, s1 = lacks_s1
    drawn = read_label(case)
    middle = s1.shape[0] // 2
    flat = drawn[:, :, middle : middle + 1]
    flat.SetDirection(np.eye(3).ravel().tolist())
    points = [flat.TransformPhysicalPointToIndex(point)[::-1] for point in sacral_points(flat)]
    assert all(s1[middle : middle + 1][point] for point in points)


def test_an_s1_that_the_image_cuts_off_or_of_no_size_is_not_taken(lacks_s1, tmp_path):
    case, s1 = lacks_s1
    image, label = sitk.ReadImage(str(case.image)), read_label(case)
    rows = int(np.quantile(np.argwhere(s1)[:, 1], 0.15))  # they run downwards

    def written(folder, change):
        folder.mkdir()
        for given, name in ((image, "image"), (label, "label")):
            sitk.WriteImage(change(given, name), str(folder / f"{name}.nii.gz"))
        return replace(case, image=folder / "image.nii.gz", label=folder / "label.nii.gz")

    cut = written(tmp_path / "cut", lambda given, name: given[:, :rows])
    with pytest.raises(HintError, match="differently from click to click"):
        find_teacher("click-refine").completed(cut)

    def no_l5(given, name):
        array = sitk.GetArrayFromImage(given)
        l5 = np.argwhere(array == structure("L5").id)
        if name == "label":  # a sliver of it, in the middle slice
            off = np.arange(len(array)) != int(np.median(l5[:, 0]))
            array[off[:, None, None] & (array == structure("L5").id)] = 0
        return like(given, array)

    with pytest.raises(HintError, match="size"):
        find_teacher("click-refine").completed(written(tmp_path / "sliver", no_l5))


def test_a_sacrum_without_its_disc_is_nowhere(lacks_s1):
    drawn = read_label(lacks_s1[0])
    with pytest.raises(HintError, match="hardly there"):
        sacral_points(like(drawn, np.zeros_like(sitk.GetArrayFromImage(drawn))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": [{"name": "a"}, {"name": "a"}]}, "two stages have the same name"),
        ({"stages": [{"name": "a", "completed": True}]}, "names no checkpoint"),
        ({"sources": [{}]}, "name one of manifest"),
        ({"sources": []}, "sources"),
        ({"stages": [{"name": "a", "hours": 3}]}, "hours"),
    ],
)
def test_recipes_that_cannot_be(change, message, tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(tiny_recipe().model_dump(mode="json") | change))
    with pytest.raises(ConfigError, match=message):
        read_recipe(path)


def test_a_missing_recipe_or_resource_is_named(data, tmp_path):
    with pytest.raises(ConfigError, match="no recipe nobody"):
        read_recipe("nobody")
    request = RecipeRequest(tiny_recipe(resources=["text_bank"]), data, tmp_path)
    with pytest.raises(ConfigError, match="needs the file “text_bank”"):
        run_recipe(request)


def test_the_shell_trains_a_recipe_completes_calibrates_and_publishes(data, tmp_path, capsys):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(tiny_recipe().model_dump_json())
    run = str(tmp_path / "run")
    assert main(["train", "--recipe", str(recipe), str(data), "--output", run, "--device", "cpu", "--quiet"]) == 0
    checkpoint = str(tmp_path / "run/two/last.safetensors")
    dataset = str(data / "tiny/dataset.json")
    assert main(["complete", dataset, "--output", str(tmp_path / "c"), "--checkpoint", checkpoint, "--quiet"]) == 0
    # by a network that knows nothing: as drawn
    completed = json.loads((tmp_path / "c/dataset.json").read_text(encoding="utf-8"))
    assert completed["training"][0]["annotated"] == ["T12", "L1", "L2", "L3", "L4", "L5"]
    assert (tmp_path / "c" / completed["training"][0]["label"]).resolve() == data / "tiny/case0_label.nii.gz"
    calibrated = str(tmp_path / "calibrated.safetensors")
    words = ["calibrate", checkpoint, dataset, "--output", calibrated, "--device", "cpu"]
    assert main(words) == 0 and "without calibration" in capsys.readouterr().err
    assert {"calibration", "outline_quality"} <= set(read_header(calibrated).metadata)
    notes = tmp_path / "notes.md"
    notes.write_text("## What it is for\n")
    words = ["publish", calibrated, dataset, "--output", str(tmp_path / "p"), "--name", "mine", "--notes", str(notes)]
    assert main([*words, "--row", "mirrored: batch=1", "--recipe", "the command", "--quiet"]) == 0
    card = (tmp_path / "p/mine.md").read_text(encoding="utf-8")
    assert "## What it is for" in card and "the command" in card and "mirrored" in card


def test_the_shell_says_what_does_not_go_with_a_recipe(data, tmp_path, capsys):
    def refused(*words):
        assert main(["train", *words, "--output", str(tmp_path / "run")]) == 2
        return capsys.readouterr().err

    recipe = ("--recipe", "lumbar-mr-resenc")
    assert "--steps cannot be given" in refused(str(data), *recipe, "--steps", "3")
    assert "is not a folder with datasets" in refused(str(data / "nowhere"), *recipe)
    assert "needs the file “text_bank”" in refused(str(data), "--recipe", "lumbar-mr-la-caf")
    assert "--resource is for recipes" in refused(str(data / "tiny/dataset.json"), "--resource", "a=b")
    assert main(["calibrate", "lumbar-mr-resenc", str(data / "tiny/dataset.json"), "--output", "a.txt"]) == 2
    words = ["publish", "lumbar-mr-resenc", str(data / "tiny/dataset.json"), "--name", "a", "--output", str(tmp_path)]
    capsys.readouterr()
    assert main([*words, "--row", "nothing"]) == 2 and "cannot be read" in capsys.readouterr().err
    assert main([*words, "--notes", str(tmp_path / "no.md")]) == 2
    assert not (tmp_path / "run").exists()
