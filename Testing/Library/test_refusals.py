"""What the operating system refuses is said in words, whichever command met it."""

from __future__ import annotations

import json

import pytest
import SimpleITK as sitk

from SpineSegAILib import cli
from SpineSegAILib.errors import DatasetError, PathError
from SpineSegAILib.files import real_path

CHECKPOINT = "lumbar-mr-resenc"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").write_text("x")
    sitk.WriteImage(sitk.Image([8, 8, 8], sitk.sitkInt16), str(tmp_path / "image.nii.gz"))
    return tmp_path


def places(folder, suffix: str) -> list[str]:
    """Paths that cannot be: behind links in a circle, too long in two ways, inside a file."""
    names = ("loop/a", "n" * 300, "/".join(["m" * 200] * 30), "file/a")
    return [f"{folder}/{name}{suffix}" for name in names]


COMMANDS = [
    ("segment {} --output {folder}/o.nii.gz", ".nii.gz"),
    ("segment {folder}/image.nii.gz --output {}", ".nii.gz"),
    ("segment {folder}/image.nii.gz --output {folder}/o.nii.gz --lock {}", ".nii.gz"),
    ("segment {folder}/image.nii.gz --output {folder}/o.nii.gz --json {}", ".json"),
    ("segment {folder}/image.nii.gz --output {folder}/o.nii.gz --checkpoint {}", ".safetensors"),
    ("relabel {} --output {folder}/o.nii.gz --shift up", ".nii.gz"),
    ("evaluate {} --split test --output {folder}/r.json", ".json"),
    ("train {} --output {folder}/run", ".json"),
    ("train {folder}/none.json --from {} --output {folder}/run", ".safetensors"),
    ("train --resume --output {}", ""),
    ("train {folder} --recipe {} --output {folder}/run", ".toml"),
    ("import-scenes {} --output {folder}/set", ".mrb"),
    ("import-scenes {folder}/none.mrb --output {}", ""),
    ("import-dataset {} --format spider --output {folder}/set", ""),
    ("complete {} --output {folder}/set", ".json"),
    ("compare {} {folder}/c", ".toml"),
    ("text-bank --encoder tiny_offline --output {}", ".safetensors"),
    ("phantom --output {}", ".nii.gz"),
    ("publish lumbar-mr-resenc {folder}/none.json --name x --output {}", ""),
    ("rank {}", ".nii.gz"),
]


@pytest.mark.parametrize(("words", "suffix"), COMMANDS, ids=[words.split(" --output")[0] for words, _ in COMMANDS])
def test_paths_that_cannot_be_are_sentences(folder, capsys, words, suffix):
    for place in places(folder, suffix):
        before = set(folder.iterdir())
        assert cli.main([word.format(place, folder=folder) for word in words.split()]) == 2, place[-30:]
        err = capsys.readouterr().err
        assert err.startswith("spinesegai: ") and "Traceback" not in err
        assert set(folder.iterdir()) == before


@pytest.mark.parametrize(
    "words",
    ["segment  --output o.nii.gz", "segment i.nii.gz --output ", "train --resume --output ", "rank ",
     "import-scenes  --output s", "segment i.nii.gz --output o.nii.gz --lock ", "publish a d --name x --output "],
)  # fmt: skip
def test_an_empty_path_is_not_the_current_folder(folder, monkeypatch, capsys, words):
    monkeypatch.chdir(folder)
    before = set(folder.iterdir())
    assert cli.main(words.split(" ")) == 2
    assert "It is empty" in capsys.readouterr().err and set(folder.iterdir()) == before


def test_a_run_folder_of_somebody_else_is_left_alone(folder, capsys):
    assert cli.main(["train", "--resume", "--output", str(folder / "file")]) == 2
    assert "holds no run" in capsys.readouterr().err and (folder / "file").read_text(encoding="utf-8") == "x"
    (folder / "config.json").write_text("{}", encoding="utf-8")
    assert cli.main(["train", "--resume", "--output", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "is damaged: " in said and "dataset" in said and "pydantic" not in said


def test_a_refusal_in_the_middle_of_the_work_is_a_sentence_and_json(folder, capsys, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(folder / "secret"))

    monkeypatch.setattr("SpineSegAILib.checkpoints.checkpoint_folders", refuse)
    assert cli.main(["checkpoints", "--json"]) == 2
    out, err = capsys.readouterr()
    assert f"spinesegai: {folder / 'secret'} cannot be used: Permission denied." in err
    assert json.loads(out)["error"]["kind"] == PathError.__name__


def test_a_lack_of_memory_is_a_sentence(capsys, monkeypatch):
    def refuse(*_, **__):
        raise MemoryError("Unable to allocate 478. TiB")

    monkeypatch.setattr("SpineSegAILib.checkpoints.checkpoint_folders", refuse)
    assert cli.main(["checkpoints"]) == 2
    assert "spinesegai: There is not enough memory for this." in capsys.readouterr().err


def test_a_phantom_finer_than_memory_allows_is_refused(tmp_path, capsys):
    for value in ("pixel_mm=0.0001", "slice_mm=1e-9", "pixel_mm=inf", "pixel_mm=nan"):
        assert cli.main(["phantom", "--output", str(tmp_path / "p.nii.gz"), "--spec", value]) == 2
        assert "--spec is not valid" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_home_that_may_not_be_entered_stops_nothing(folder, capsys, monkeypatch):
    for home in ("loop", "file", "n" * 300):
        monkeypatch.setenv("HOME", str(folder / home))
        assert cli.main(["checkpoints"]) == 0
        assert CHECKPOINT in capsys.readouterr().out


def test_a_manifest_with_impossible_paths(folder):
    from SpineSegAILib.datasets import read_manifest

    for name in ("a\0b.nii.gz", "n" * 300, "loop/a.nii.gz", "file/a.nii.gz"):
        (folder / "d.json").write_text(json.dumps({"training": [{"image": name}]}))
        with pytest.raises(DatasetError, match=r"does not exist|cannot be used"):
            read_manifest(folder / "d.json")
        read_manifest(folder / "d.json", must_exist=False) if "\0" not in name else None


def test_the_real_path_of_links_in_a_circle(folder):
    assert real_path(folder / "loop" / "a").name == "a" and real_path(folder / "file") == (folder / "file").resolve()
