"""nnU-Net v2 as a row of a comparison: what it is given, and what is made of its predictions."""

import inspect
import itertools
import json
import runpy
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from tiny_data import VERTEBRAE, write_tiny_dataset

from SpineSegAILib.anatomy import VERTEBRA_ID, scheme, structure
from SpineSegAILib.cli import main
from SpineSegAILib.comparison.config import ComparisonConfig
from SpineSegAILib.comparison.nnunet import dataset as data
from SpineSegAILib.comparison.nnunet import program
from SpineSegAILib.comparison.nnunet.program import TRAINER, Nnunet, NnunetSettings, require_nnunet
from SpineSegAILib.comparison.parts import Work
from SpineSegAILib.comparison.run import describe, plan, run_comparison
from SpineSegAILib.comparison.tables import markdown, tabulate
from SpineSegAILib.datasets.manifest import read_label, read_manifest
from SpineSegAILib.errors import ConfigError, DatasetError, MissingPackageError, SpineSegAIError

SCHEME = scheme("lumbar-mr")
CHANNELS = sorted(SCHEME.channel_of[structure(name).id] for name in VERTEBRAE)
NUMBERS = {channel: number for number, channel in enumerate(CHANNELS, start=1)}
NUMBER_OF = {structure(name).id: NUMBERS[SCHEME.channel_of[structure(name).id]] for name in VERTEBRAE}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Two training cases; the second has L3 to L5 annotated alone, and lies in another orientation."""
    path = write_tiny_dataset(tmp_path_factory.mktemp("data"), training=2)
    table = json.loads(path.read_text(encoding="utf-8"))
    case = table["training"][1]
    case["annotated"] = ["L3", "L4", "L5"]
    label = sitk.ReadImage(str(path.parent / case["label"]))
    array = sitk.GetArrayFromImage(label)
    array[~np.isin(array, [structure(n).id for n in case["annotated"]])] = 0
    partial = sitk.GetImageFromArray(array)
    partial.CopyInformation(label)
    image = sitk.ReadImage(str(path.parent / case["image"]))
    for name, picture in ((case["label"], partial), (case["image"], image)):
        sitk.WriteImage(sitk.DICOMOrient(picture, "RAS"), str(path.parent / name))
    path.write_text(json.dumps(table), encoding="utf-8")
    return path


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


# --- its dataset ---


def test_raw_folder_and_split(manifest, tmp_path):
    prepared = data.prepare(manifest, SCHEME, tmp_path, "test")
    raw = tmp_path / "nnUNet_raw" / data.DATASET
    table = read(raw / "dataset.json")
    names = {SCHEME.structures[c - 1].name: n for c, n in NUMBERS.items()}
    assert table["labels"] == {"background": 0, **names, "ignore": 7} and set(names) == set(VERTEBRAE)
    assert table["numTraining"] == 3 and table["channel_names"] == {"0": "MR"}
    images, labels = (sorted(p.name for p in (raw / part).iterdir()) for part in ("imagesTr", "labelsTr"))
    assert images == ["train_0000_0000.nii.gz", "train_0001_0000.nii.gz", "watched_0000_0000.nii.gz"]
    assert [name.replace("_0000.nii.gz", ".nii.gz") for name in images] == labels
    (split,) = read(tmp_path / "nnUNet_preprocessed" / data.DATASET / "splits_final.json")
    assert split == {"train": ["train_0000", "train_0001"], "val": ["watched_0000"]}
    assert 0 < prepared.ignored < 0.5 and prepared.training == {
        "train_0000": "case0_image", "train_0001": "case1_image",
    }  # fmt: skip
    for name in prepared.training:
        image, label = (
            sitk.ReadImage(str(raw / f"imagesTr/{name}_0000.nii.gz")),
            sitk.ReadImage(str(raw / f"labelsTr/{name}.nii.gz")),
        )
        assert image.GetSize() == label.GetSize() and image.GetOrigin() == pytest.approx(label.GetOrigin())
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert data.prepare(manifest, SCHEME, tmp_path, "test") == prepared
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_scored_cases_are_not_shown_to_its_training(manifest, tmp_path):
    data.prepare(manifest, SCHEME, tmp_path, "validation")
    (split,) = read(tmp_path / "nnUNet_preprocessed" / data.DATASET / "splits_final.json")
    assert split == {"train": ["train_0000", "train_0001"], "val": ["train_0000", "train_0001"]}
    assert len(list((tmp_path / "nnUNet_raw" / data.DATASET / "imagesTr").iterdir())) == 2


def test_only_what_could_be_an_unannotated_structure_is_ignored(manifest):
    whole, partial = read_manifest(manifest).cases("training")
    full = sitk.GetArrayFromImage(data.nnunet_label(whole, SCHEME, NUMBERS))
    drawn = sitk.GetArrayFromImage(sitk.DICOMOrient(read_label(whole), "PIR"))
    for sid, number in NUMBER_OF.items():
        assert ((full == number) == (drawn == sid)).all()
    assert ((full == 7) & (drawn > 0)).sum() == 0
    label = sitk.GetArrayFromImage(data.nnunet_label(partial, SCHEME, NUMBERS))
    drawn = sitk.GetArrayFromImage(sitk.DICOMOrient(read_label(partial), "PIR"))
    for sid, number in NUMBER_OF.items():
        assert ((label == number) == (drawn == sid)).all()
    rows = np.flatnonzero((label == 7).any((0, 2)))
    assert rows.size and rows[0] < np.flatnonzero((drawn > 0).any((0, 2)))[0]  # above L3 are vertebrae that nobody drew
    assert (label == 7).sum() > (full == 7).sum() and (label == 0).mean() > 0.3


def test_it_tells_apart_what_the_other_rows_do(manifest, tmp_path):
    """With a scheme of one structure, every vertebra is that one, and nothing beside the drawn run is known."""
    binary = scheme("vertebra")
    prepared = data.prepare(manifest, binary, tmp_path, "test")
    assert prepared.numbers == {1: 1}
    assert read(tmp_path / "nnUNet_raw" / data.DATASET / "dataset.json")["labels"]["vertebra"] == 1
    whole, _ = read_manifest(manifest).cases("training")
    label = data.nnunet_label(whole, binary, prepared.numbers)
    drawn = sitk.GetArrayFromImage(sitk.DICOMOrient(read_label(whole), "PIR"))
    assert ((sitk.GetArrayFromImage(label) == 1) == (drawn > 0)).all()
    back = data.structure_labels(label, binary, prepared.numbers, read_label(whole))
    assert set(np.unique(sitk.GetArrayFromImage(back))) <= {0, VERTEBRA_ID}


def test_what_it_cannot_learn_from_is_said(manifest, tmp_path):
    with pytest.raises(DatasetError, match="pulmonary-av"):
        data.prepare(manifest, scheme("pulmonary-av"), tmp_path, "test")
    bare = read(manifest)
    for entry in bare["training"]:
        del entry["label"], entry["annotated"]
    (manifest.parent / "bare.json").write_text(json.dumps(bare), encoding="utf-8")
    with pytest.raises(DatasetError, match="no labeled training cases"):
        data.prepare(manifest.parent / "bare.json", SCHEME, tmp_path, "test")


def test_predictions_come_back_to_the_grid_of_the_case(manifest, tmp_path):
    for case in read_manifest(manifest).cases("training"):  # a perfect prediction, upright as nnU-Net's images are
        label = sitk.DICOMOrient(read_label(case), "PIR")
        numbered = sitk.ChangeLabel(label, {float(sid): float(n) for sid, n in NUMBER_OF.items()})
        sitk.WriteImage(sitk.Cast(numbered, sitk.sitkUInt8), str(tmp_path / "p.nii.gz"))
        found = data.structure_labels(sitk.ReadImage(str(tmp_path / "p.nii.gz")), SCHEME, NUMBERS, read_label(case))
        assert (sitk.GetArrayFromImage(found) == sitk.GetArrayFromImage(read_label(case))).all()


# --- its commands ---


def test_without_nnunet_the_comparison_says_how_to_get_it(manifest, tiny_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(program, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="“nnU-Net v2”") as problem:
        require_nnunet("nnU-Net v2")
    assert "pip install nnunetv2" in problem.value.remedy and "--without “nnU-Net v2”" in problem.value.remedy
    path = tmp_path / "c.json"
    path.write_text(comparison(manifest, tiny_checkpoint).model_dump_json(exclude_none=True), encoding="utf-8")
    words = ["compare", str(path), str(tmp_path / "out"), "--device", "cpu", "--quiet"]
    assert main(words) == 2 and "pip install nnunetv2" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())  # said before anything was done
    assert main([*words, "--without", "Theirs"]) == 0
    assert read(tmp_path / "out/table.json")["missing"] == ["Theirs"]


def test_plans_are_made_for_a_memory_and_by_a_planner():
    residual = {"plans": "nnUNetResEncUNetMPlans", "planner": "P"}
    assert NnunetSettings().plan_words == []
    assert NnunetSettings(memory_gb=1).plan_words == [
        "-overwrite_plans_name", "nnUNetPlans_1GB", "-gpu_memory_target", "1",
    ]  # fmt: skip
    assert NnunetSettings(**residual).plan_words == ["-overwrite_plans_name", residual["plans"], "-pl", "P"]
    assert NnunetSettings(**residual, memory_gb=0.5).plan_words[2:] == ["-pl", "P", "-gpu_memory_target", "0.5"]


def test_the_commands_are_told_where_things_are(tmp_path):
    nnunet = Nnunet(tmp_path, NnunetSettings(), "cpu", 1800.0, None, lambda sentence: None)
    env = nnunet.environment()
    assert env["nnUNet_raw"] == str(tmp_path / "nnUNet_raw") and env["SPINESEGAI_SECONDS"] == "1800.0"
    assert "SPINESEGAI_STEPS" not in env and env["SPINESEGAI_ITERATIONS"] == "50"
    trainer = Path(env["nnUNet_extTrainer"]) / "timed_trainer.py"
    assert f"class {TRAINER}" in trainer.read_text(encoding="utf-8")
    log = tmp_path / "log.txt"
    python = sys.executable
    seconds, peak = program.run(
        [python, "-c", "x = bytearray(60_000_000); import time; time.sleep(1.2); print('said')"], env, log
    )
    assert seconds > 0.5 and peak > 60 and log.read_text(encoding="utf-8").endswith("said\n")
    with pytest.raises(SpineSegAIError, match="exit code 3") as problem:
        program.run([python, "-c", "raise SystemExit(3)"], env, log)
    assert str(log) in problem.value.remedy


@pytest.mark.parametrize(("seconds", "steps"), [("0.3", ""), ("", "12")])
def test_the_trainer_ends_by_the_clock_or_after_its_steps(seconds, steps, monkeypatch, tmp_path):
    """Over a stand-in that treats its arguments as nnU-Net's own class does: by the names that they have."""

    class Base:
        def __init__(self, plans, configuration, fold, dataset_json, device=None):
            given = locals()
            self.arguments = {name: given[name] for name in inspect.signature(self.__init__).parameters}
            self.network, self.initial_lr, self.output_folder = torch.nn.Linear(2, 1), 0.01, str(tmp_path)
            self.optimizer = torch.optim.SGD(self.network.parameters(), self.initial_lr)
            self.dataloader_train = self.dataloader_val = itertools.repeat(None)
            self.rates, self.checked, self.ended = [], 0, False

        def train_step(self, batch):
            self.rates.append(self.optimizer.param_groups[0]["lr"])
            time.sleep(0.01)

        def validation_step(self, batch):
            self.checked += 1

        def on_train_end(self):
            self.ended = True

        def __getattr__(self, name):
            if not name.startswith("on_"):
                raise AttributeError(name)
            return lambda *_: None

    module = types.ModuleType("nnunetv2.training.nnUNetTrainer.nnUNetTrainer")
    module.nnUNetTrainer = Base
    for name in ("nnunetv2", "nnunetv2.training", "nnunetv2.training.nnUNetTrainer"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for name, value in (("SECONDS", seconds), ("STEPS", steps), ("ITERATIONS", "5")):
        monkeypatch.delenv(f"SPINESEGAI_{name}", raising=False)
        if value:
            monkeypatch.setenv(f"SPINESEGAI_{name}", value)
    path = Path(program.__file__).parent / "trainer/timed_trainer.py"
    trainer = runpy.run_path(str(path))[TRAINER]({}, "2d", 0, {}, "cpu")
    assert trainer.arguments == {"plans": {}, "configuration": "2d", "fold": 0, "dataset_json": {}, "device": "cpu"}
    trainer.run_training()
    assert trainer.ended and trainer.checked and (len(trainer.rates) == 12 if steps else 5 < len(trainer.rates) <= 30)
    assert trainer.rates == sorted(trainer.rates, reverse=True) and trainer.rates[-1] < 0.005
    assert (tmp_path / "parameters.txt").read_text(encoding="utf-8") == "3"
    clock = read(tmp_path / "clock.json")
    assert clock["steps"] == len(trainer.rates) and clock["seconds"] > 0
    again = runpy.run_path(str(path))[TRAINER]({}, "2d", 0, {}, "cpu")  # nothing is left of the budget
    again.run_training()
    assert again.rates == [] and again.ended


# --- as a row ---


def comparison(manifest: Path, ours: Path | None = None, **more) -> ComparisonConfig:
    entries = [
        {"name": "Ours", "checkpoint": str(ours)},
        {"name": "Theirs", "program": "nnunet-v2", "set": {"memory_gb": 1, "configuration": "2d"}, "share": 2.0},
    ]
    table = {"title": "T", "dataset": str(manifest), "split": "validation", "budget": {"steps": 2}}
    return ComparisonConfig.model_validate({**table, "entries": entries, **more})


@pytest.fixture
def stand_in(monkeypatch):
    """Its commands are replaced by ones that leave the files which it leaves: what is tried is all around them."""
    asked = []

    def command(words, env, log):
        asked.append((words, env))
        preprocessed, results = Path(env["nnUNet_preprocessed"]), Path(env["nnUNet_results"])
        if words[0] == "nnUNetv2_train":
            assert (preprocessed / data.DATASET / "splits_final.json").exists()
            plans = words[words.index("-p") + 1]
            folder = results / data.DATASET / f"{TRAINER}__{plans}__{words[2]}" / "fold_0"
            folder.mkdir(parents=True)
            (folder / "parameters.txt").write_text("1000")
            (folder / "clock.json").write_text(json.dumps({"seconds": 7.2, "steps": int(env["SPINESEGAI_STEPS"])}))
            (folder / "checkpoint_final.pth").touch()
        elif words[0] == "nnUNetv2_predict":
            images, target = (Path(words[words.index(flag) + 1]) for flag in ("-i", "-o"))
            target.mkdir(parents=True)
            for image in sorted(images.iterdir()):  # the truth of the case, as far as it is in the image
                (case,) = read_manifest(images_of["manifest"]).cases("validation")
                upright, truth = sitk.ReadImage(str(image)), read_label(case)
                truth = sitk.Resample(truth, upright, sitk.Transform(), sitk.sitkNearestNeighbor)
                numbered = sitk.ChangeLabel(truth, {float(sid): float(n) for sid, n in NUMBER_OF.items()})
                name = image.name.replace("_0000.nii.gz", ".nii.gz")
                sitk.WriteImage(sitk.Cast(numbered, sitk.sitkUInt8), str(target / name))
        return 3.0, 400.0

    images_of = {}
    monkeypatch.setattr(program, "run", command)
    monkeypatch.setattr("SpineSegAILib.comparison.nnunet.part.require_nnunet", lambda row: None)
    return asked, images_of


def test_it_is_trained_and_scored_like_the_other_rows(manifest, tiny_checkpoint, tmp_path, stand_in):
    asked, images_of = stand_in
    images_of["manifest"] = manifest
    config = comparison(manifest, tiny_checkpoint, variants=["full", "top-third-off"], grid=64)
    said = []
    work = Work(tmp_path, "cpu", say=said.append)
    found = run_comparison(config, work)
    assert [words[0] for words, _ in asked] == [
        "nnUNetv2_plan_and_preprocess", "nnUNetv2_train", "nnUNetv2_predict", "nnUNetv2_predict",
    ]  # fmt: skip
    assert asked[1][1]["SPINESEGAI_STEPS"] == "4"  # its share of the budget
    # Images of another split are never taken for these.
    assert {Path(words[words.index("-i") + 1]).parent.name for words, _ in asked[2:]} == {"validation"}
    ours, theirs = found
    assert theirs["method"] == "nnU-Net v2" and theirs["preset"] == "2d, nnUNetPlans_1GB" and theirs["steps"] == 4
    assert theirs["seen"] == [] and theirs["hours"] == pytest.approx(0.002) and not theirs["named_by_us"]
    for variant in config.variants:
        summary = theirs["report"]["variants"][variant]
        assert summary["overall"]["dice"] == 1.0 and summary["seconds"] == 3.0 and summary["peak_mb"] == 400
    assert (tmp_path / theirs["pages"][0]).exists() and ours["named_by_us"]
    row = tabulate(config, describe(config, work), found)["variants"]["full"]["rows"][1]
    assert row["figures"]["Dice"] == 100 and row["parameters"] == 1000
    text = markdown(tabulate(config, describe(config, work), found))
    assert "its own classes" in text and "slices resized to 64 × 64" in text
    assert run_comparison(config, work) == found and len(asked) == 4  # nothing is done again
    assert any("ignored" in sentence for sentence in said) and any("nnUNetv2_train" in s for s in said)


def test_another_setting_is_another_training(manifest, tmp_path):
    def folder(**settings):
        entries = [{"name": "Theirs", "program": "nnunet-v2", "set": settings}]
        (part,) = plan(comparison(manifest, entries=entries), Work(tmp_path, "cpu"))
        return part.folder

    found = {folder(), folder(configuration="3d_fullres"), folder(memory_gb=2), folder(plans="others")}
    assert len(found) == 4 and folder() in found
    with pytest.raises(ConfigError, match="folds") as problem:
        folder(folds=3)
    assert "memory_gb" in problem.value.remedy
    (whole,) = plan(
        comparison(manifest, budget={}, entries=[{"name": "T", "program": "nnunet-v2"}]), Work(tmp_path, "cpu")
    )
    assert whole.steps == 250_000 and whole.seconds is None  # without a budget, its own thousand epochs
    with pytest.raises(ValueError, match="takes settings"):
        comparison(manifest, entries=[{"name": "T", "program": "nnunet-v2", "options": {"batch": 2}}])
