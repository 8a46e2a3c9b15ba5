"""What nnU-Net v2 is given and what is made of its predictions: `Testing/Benchmarks/nnunet.py`."""

import inspect
import itertools
import json
import runpy
import subprocess
import sys
import time
import types
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "Benchmarks"))

import nnunet
from tiny_data import VERTEBRAE, write_tiny_dataset

from SpineSegAILib.anatomy import structure
from SpineSegAILib.datasets.manifest import read_label, read_manifest
from SpineSegAILib.errors import ConfigError, DatasetError, MissingPackageError, SpineSegAIError

IDS = {structure(name).id: number for number, name in enumerate(VERTEBRAE, start=1)}


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


def test_raw_folder_and_split(manifest, tmp_path):
    prepared = nnunet.prepare(manifest, "validation", tmp_path)
    raw = tmp_path / "nnUNet_raw" / nnunet.DATASET
    table = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))
    assert table["labels"] == {"background": 0, **{n: i for i, n in enumerate(VERTEBRAE, start=1)}, "ignore": 7}
    assert table["numTraining"] == 3 and table["channel_names"] == {"0": "MR"}
    images, labels = (sorted(p.name for p in (raw / part).iterdir()) for part in ("imagesTr", "labelsTr"))
    assert images == ["scored_0000_0000.nii.gz", "train_0000_0000.nii.gz", "train_0001_0000.nii.gz"]
    assert [name.replace("_0000.nii.gz", ".nii.gz") for name in images] == labels
    assert [p.name for p in (raw / "imagesTs").iterdir()] == ["scored_0000_0000.nii.gz"]
    (split,) = json.loads(
        (tmp_path / "nnUNet_preprocessed" / nnunet.DATASET / "splits_final.json").read_text(encoding="utf-8")
    )
    assert split == {"train": ["train_0000", "train_0001"], "val": ["scored_0000"]}
    assert 0 < prepared.ignored < 0.5
    for name in ("train_0000", "train_0001"):
        image, label = (
            sitk.ReadImage(str(raw / f"imagesTr/{name}_0000.nii.gz")),
            sitk.ReadImage(str(raw / f"labelsTr/{name}.nii.gz")),
        )
        assert image.GetSize() == label.GetSize() and image.GetOrigin() == pytest.approx(label.GetOrigin())


def test_only_what_could_be_an_unannotated_structure_is_ignored(manifest):
    whole, partial = read_manifest(manifest).cases("training")
    full = sitk.GetArrayFromImage(nnunet.nnunet_label(whole, IDS, "ignore"))
    assert set(np.unique(full)) == {0, *IDS.values()}  # everything is annotated: nothing is unknown
    label = sitk.GetArrayFromImage(nnunet.nnunet_label(partial, IDS, "ignore"))
    drawn = sitk.GetArrayFromImage(sitk.DICOMOrient(read_label(partial), "PIR"))
    for sid, number in IDS.items():
        assert ((label == number) == (drawn == sid)).all()
    rows = np.flatnonzero((label == 7).any((0, 2)))
    top_of_drawn = np.flatnonzero((drawn > 0).any((0, 2)))[0]
    assert rows.size and rows[0] < top_of_drawn  # above L3 there are vertebrae that nobody drew
    assert (label == 0).mean() > 0.5
    left = sitk.GetArrayFromImage(nnunet.nnunet_label(partial, {structure("L5").id: 1}, "leave-out"))
    assert set(np.unique(left)) == {0, 1} and (left == 1).sum() == (drawn == structure("L5").id).sum()


def test_leaving_out_keeps_what_every_case_has(manifest, tmp_path):
    prepared = nnunet.prepare(manifest, "validation", tmp_path, "leave-out")
    assert prepared.ids == {structure(n).id: i for i, n in enumerate(("L3", "L4", "L5"), start=1)}
    table = json.loads((tmp_path / "nnUNet_raw" / nnunet.DATASET / "dataset.json").read_text(encoding="utf-8"))
    assert "ignore" not in table["labels"] and prepared.ignored == 0.0
    with pytest.raises(DatasetError, match="test"):
        nnunet.prepare(manifest, "test", tmp_path)


def test_plans_are_made_for_a_memory_and_by_a_planner():
    own, residual = "nnUNetPlans", "nnUNetResEncUNetMPlans"
    assert nnunet.plan_words(own, "P", None) == []
    assert nnunet.plan_words(nnunet.plans_for(own, 1), "P", 1) == [
        "-overwrite_plans_name", "nnUNetPlans_1GB", "-gpu_memory_target", "1",
    ]  # fmt: skip
    assert nnunet.plan_words(residual, "P", None) == ["-overwrite_plans_name", residual, "-pl", "P"]
    assert nnunet.plan_words(nnunet.plans_for(residual, 0.5), "P", 0.5)[2:] == ["-pl", "P", "-gpu_memory_target", "0.5"]


def test_a_folder_is_held_to_what_was_chosen_first(manifest, tmp_path):
    nnunet.prepare(manifest, "validation", tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    with pytest.raises(ConfigError, match="another split: validation, not training") as problem:
        nnunet.prepare(manifest, "training", tmp_path)
    assert problem.value.remedy == "Choose another folder."
    with pytest.raises(ConfigError, match="another unknown: ignore, not leave-out"):
        nnunet.prepare(manifest, "validation", tmp_path, "leave-out")
    fewer = json.loads(manifest.read_text(encoding="utf-8"))
    fewer["training"].pop()
    other = manifest.with_name("fewer.json")
    other.write_text(json.dumps(fewer), encoding="utf-8")
    with pytest.raises(ConfigError, match="another dataset"):
        nnunet.prepare(other, "validation", tmp_path)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    nnunet.prepare(manifest, "validation", tmp_path)


def test_predictions_come_back_to_the_grid_of_the_case(manifest, tmp_path):
    prepared = nnunet.prepare(manifest, "training", tmp_path)
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    for name, case in prepared.scored.items():  # a perfect prediction, upright as nnU-Net's images are
        label = nnunet.nnunet_label(case, prepared.ids, "leave-out")
        sitk.WriteImage(label, str(predictions / f"{name}.nii.gz"))
        back = nnunet.structure_labels(
            sitk.ReadImage(str(predictions / f"{name}.nii.gz")), prepared.ids, read_label(case)
        )
        assert (sitk.GetArrayFromImage(back) == sitk.GetArrayFromImage(read_label(case))).all()
    report = nnunet.score(prepared, predictions, "training", "Tiny", 10.0, 500.0)
    overall = report["variants"]["full"]["overall"]
    assert overall["dice"] == 1.0 and overall["scored"] == 9 and report["variants"]["full"]["seconds"] == 5.0


def test_our_cases_can_be_scored_without_what_was_left_out(manifest, tmp_path):
    prepared = nnunet.prepare(manifest, "training", tmp_path)
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    for name, case in prepared.scored.items():
        sitk.WriteImage(nnunet.nnunet_label(case, prepared.ids, "leave-out"), str(predictions / f"{name}.nii.gz"))
    whole = nnunet.score(prepared, predictions, "training", "Tiny", 1.0, 1.0)["variants"]["full"]
    fewer = nnunet._only(json.loads(json.dumps(whole)), {structure("L4").id: 1})
    assert set(fewer["structures"]) == {"L4"} and fewer["overall"]["scored"] == 2


@pytest.mark.skipif(find_spec("nnunetv2") is not None, reason="nnU-Net is installed here")
def test_without_nnunet_the_shell_says_how_to_get_it(manifest, tmp_path):
    with pytest.raises(MissingPackageError, match="pip install nnunetv2"):
        nnunet.require_nnunet()


def test_the_commands_are_told_where_things_are(tmp_path, monkeypatch):
    env = nnunet.environment(tmp_path, 0.5, 20)
    assert env["nnUNet_raw"] == str(tmp_path / "nnUNet_raw") and env["SPINESEGAI_SECONDS"] == "1800.0"
    assert (Path(env["nnUNet_extTrainer"]) / "timed_trainer.py").exists()
    assert f"class {nnunet.TRAINER}" in (Path(env["nnUNet_extTrainer"]) / "timed_trainer.py").read_text(
        encoding="utf-8"
    )
    seconds, peak = nnunet.run([sys.executable, "-c", "x = bytearray(60_000_000); import time; time.sleep(1.5)"])
    assert seconds > 0.5 and peak > 60
    with pytest.raises(SpineSegAIError, match="exit code 3"):
        nnunet.run([sys.executable, "-c", "raise SystemExit(3)"])


def test_the_trainer_ends_by_the_clock(monkeypatch, tmp_path):
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
    monkeypatch.setenv("SPINESEGAI_SECONDS", "0.3")
    monkeypatch.setenv("SPINESEGAI_ITERATIONS", "5")
    made = runpy.run_path(str(Path(nnunet.__file__).parent / "nnunet_trainer/timed_trainer.py"))[nnunet.TRAINER]
    trainer = made({}, "2d", 0, {}, "cpu")
    assert trainer.arguments == {"plans": {}, "configuration": "2d", "fold": 0, "dataset_json": {}, "device": "cpu"}
    trainer.run_training()
    assert trainer.ended and trainer.checked and 5 < len(trainer.rates) <= 30
    assert trainer.rates == sorted(trainer.rates, reverse=True) and trainer.rates[-1] < 0.005
    assert (tmp_path / "parameters.txt").read_text() == "3" and float((tmp_path / "seconds.txt").read_text()) >= 0.3


def test_the_whole_way_with_a_stand_in_for_its_commands(manifest, tmp_path, monkeypatch):
    """Its commands are replaced by ones that leave the files which it leaves: what is tried is all around them."""
    prepared = nnunet.prepare(manifest, "validation", tmp_path)
    results = tmp_path / "nnUNet_results" / nnunet.DATASET / f"{nnunet.TRAINER}__nnUNetPlans__2d" / "fold_0"
    asked, checkpoints = [], []
    for number in range(8):  # other methods that were run in this folder
        other = tmp_path / f"ours/other-{number}/seed35/run"
        other.mkdir(parents=True)
        (other / "last.safetensors").touch()

    def command(words, env=None):
        asked.append(words[0])
        if "--checkpoint" in words:
            checkpoints.append(words[words.index("--checkpoint") + 1])
        if words[0] == "nnUNetv2_train":
            results.mkdir(parents=True)
            (results / "checkpoint_final.pth").touch()
            (results / "parameters.txt").write_text("1000")
        elif words[0] == "nnUNetv2_predict":
            target = Path(words[words.index("-o") + 1])
            target.mkdir()
            for name, case in prepared.scored.items():
                sitk.WriteImage(nnunet.nnunet_label(case, prepared.ids, "leave-out"), str(target / f"{name}.nii.gz"))
        elif words[0] == sys.executable:
            subprocess.run([*words, "--help"], check=True, capture_output=True)  # the flags are known
        return 2.0, 300.0

    monkeypatch.setattr(nnunet, "run", command)
    monkeypatch.setattr(nnunet, "require_nnunet", lambda: None)
    words = ["nnunet.py", str(manifest), str(tmp_path), "--hours", "0.0003", "--preset", "tiny"]
    monkeypatch.setattr(sys, "argv", words)
    nnunet.main()
    table = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))
    ours, theirs = table["variants"]["full"]["rows"]
    assert theirs["name"] == nnunet.NAME and theirs["figures"]["Dice"] == 100.0 and theirs["parameters"] == 1000
    assert ours["scored"] == 6 and ours["figures"]["Dice"] < 100
    assert {d["name"] for d in table["variants"]["full"]["differences"]} == {nnunet.NAME}
    figures = json.loads((tmp_path / "one-volume.json").read_text(encoding="utf-8"))
    assert figures[nnunet.NAME] == {"seconds": 2.0, "peak_mb": 300.0} and "ours" in figures
    (page,) = ours["pages"]
    assert checkpoints == [str((tmp_path / page).with_name("run") / "last.safetensors")]
    done = len(asked)
    nnunet.main()
    assert asked[done:] == ["nnUNetv2_predict", sys.executable]  # only the measurement is done again
    for flag, value in (("--hours", "0.0006"), ("--configuration", "3d_fullres"), ("--plans", "others")):
        monkeypatch.setattr(sys, "argv", [*words, flag, value])
        with pytest.raises(ConfigError, match=f"another {flag[2:]}"):
            nnunet.main()
    assert len(asked) == done + 2
