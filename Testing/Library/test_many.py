"""Many images in one call: what is found, where results go, what is skipped, and that a failure is a row."""

from __future__ import annotations

import csv
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from test_cli import case, phantom, predictor, run  # noqa: F401  (fixtures)

from SpineSegAILib.errors import ImageError
from SpineSegAILib.imaging import find_images
from SpineSegAILib.results import read_segmentation
from SpineSegAILib.results.bids import derivative


@pytest.fixture
def study(tmp_path, phantom) -> Path:  # noqa: F811
    """A folder with images in sub-folders, one of them damaged, and what is no image."""
    folder = tmp_path / "Bücher, alt"
    (folder / "a").mkdir(parents=True)
    (folder / "b").mkdir()
    for name in ("a/T2.nii.gz", "b/T2.nii.gz", "b/T2.nrrd", "b/T2_label.nii.gz"):
        sitk.WriteImage(phantom.labels if "label" in name else phantom.image, str(folder / name))
    (folder / "a/damaged.nii.gz").write_bytes(b"not an image")
    for n in range(20):
        (folder / f"note{n}.txt").write_text("nothing")
    return folder


def table(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "spinesegai-results.csv").open(encoding="utf-8") as file:
        return {str(Path(row["image"]).name): row for row in csv.DictReader(file)}


def results_in(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and "results" not in p.name}


def test_a_folder_is_segmented_and_a_damaged_image_is_a_row(study, tiny_checkpoint, predictor, capsys):  # noqa: F811
    out = study / "results"  # inside of the input
    words = ["segment", study, "-o", out, "-m", tiny_checkpoint, "--device", "cpu"]
    wanted = {"a/T2.seg.nrrd", "b/T2_gz.seg.nrrd", "b/T2_nrrd.seg.nrrd"}
    assert run(*words, "--measurements", out / "all.csv") == 2
    assert results_in(out) == wanted | {"all.csv"}
    rows = table(out)
    assert [rows[n]["status"] for n in ("T2.nrrd", "damaged.nii.gz")] == ["done", "failed"]
    assert "damaged" in rows["damaged.nii.gz"]["error"] and rows["T2.nrrd"]["levels"] == "L2–S1"
    assert rows["T2.nrrd"]["device"] == "cpu" and rows["T2.nrrd"]["warnings"].startswith("The levels are a guess.")
    said = capsys.readouterr()
    assert "3 done, 0 skipped, 1 failed" in said.out and "1 of 4 images could not be segmented" in said.err
    lines = (out / "spinesegai-results.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["status"] for line in lines].count("done") == 3
    measured = (out / "all.csv").read_text(encoding="utf-8")
    # again: what exists is skipped, and stays in the tables
    times = {name: (out / name).stat().st_mtime_ns for name in wanted}
    (study / "a/damaged.nii.gz").unlink()
    assert run(*words, "--measurements", out / "all.csv") == 0
    assert times == {name: (out / name).stat().st_mtime_ns for name in wanted}
    assert {row["status"] for row in table(out).values()} == {"skipped"} and table(out)["T2.nrrd"]["levels"] == "L2–S1"
    assert (out / "all.csv").read_text(encoding="utf-8") == measured
    assert run(*words, "--overwrite", "--preview") == 0
    assert results_in(out) == wanted | {"all.csv"} | {n.replace(".seg.nrrd", ".png") for n in wanted}
    assert times != {name: (out / name).stat().st_mtime_ns for name in wanted}


def test_the_model_is_loaded_once_and_the_next_image_is_read_meanwhile(
    study, tiny_checkpoint, predictor, monkeypatch  # noqa: F811
):  # fmt: skip
    from SpineSegAILib import imaging, inference

    loaded, second_is_read = [], threading.Event()
    once, read = inference.Predictor, imaging.read_image

    class Counting(once):
        def __init__(self, *words, **named):
            super().__init__(*words, **named)
            loaded.append(1)

        def segment(self, *words, **named):
            assert second_is_read.wait(10), "nothing was read while this computed"
            return super().segment(*words, **named)

    def reading(path):
        image = read(path)
        if path.parent.name == "b":
            second_is_read.set()
        return image

    monkeypatch.setattr("SpineSegAILib.inference.Predictor", Counting)
    monkeypatch.setattr("SpineSegAILib.imaging.read_image", reading)
    images = [study / "a/T2.nii.gz", study / "b/T2.nii.gz"]
    assert run("segment", *images, "-o", study / "new", "-m", tiny_checkpoint, "--quiet") == 0
    assert loaded == [1] and results_in(study / "new") == {"a/T2.seg.nrrd", "b/T2.seg.nrrd"}


def test_an_unforeseen_error_does_not_stop_the_rest(study, tiny_checkpoint, predictor, monkeypatch):  # noqa: F811
    from SpineSegAILib.inference import Predictor

    def segment(self, image, **named):
        if image.GetSize() not in seen:
            seen.append(image.GetSize())
            raise ZeroDivisionError("nobody thought of this")
        return whole(self, image, **named)

    seen, whole = [], Predictor.segment
    monkeypatch.setattr(Predictor, "segment", segment)
    images = [study / "a/T2.nii.gz", study / "b/T2.nii.gz"]
    assert run("segment", *images, "-o", study / "new", "-m", tiny_checkpoint, "--quiet") == 2
    lines = (study / "new/spinesegai-results.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["status"] for line in lines] == ["failed", "done"]
    assert "ZeroDivisionError: nobody thought of this" in lines[0]


def test_someone_s_corrections_are_not_replaced_unasked(study, tiny_checkpoint, predictor):  # noqa: F811
    words = ["segment", study / "a", "-o", study / "new", "-m", tiny_checkpoint, "--quiet"]
    (study / "a/damaged.nii.gz").unlink()
    assert run(*words) == 0
    there = study / "new/T2.seg.nrrd"
    assert run("relabel", there, "-o", study / "r.seg.nrrd", "--shift", "up", "--quiet") == 0
    (study / "r.seg.nrrd").replace(there)
    corrected = there.read_bytes()
    assert run(*words, "--preview") == 2, "the picture is missing, so it would be computed again"
    assert there.read_bytes() == corrected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--anchor", "L5@0,0,0"], "--anchor is about one image"),
        (["-o", "one.nii.gz"], "Give a folder"),
        (["--preview", "one.png"], "Use --preview without a name"),
    ],
)
def test_what_is_about_one_image_is_refused(study, tiny_checkpoint, predictor, capsys, words, said):  # noqa: F811
    assert run("segment", study, "-m", tiny_checkpoint, *words) == 2
    assert said in " ".join(capsys.readouterr().err.split()) and "hints" not in predictor


def test_a_folder_of_500_mixed_files(tmp_path, phantom, tiny_checkpoint, predictor, capsys):  # noqa: F811
    """Every file that may be an image is a row, nothing else is; results inside of the input are no input."""
    folder = tmp_path / "Dateien, größer – 日本"
    for n in range(10):
        (folder / f"p{n}").mkdir(parents=True)
    small = phantom.image[:, :, :2]
    for n in range(500):
        place = folder / f"p{n % 10}"
        if n % 100 == 7:
            sitk.WriteImage(small, str(place / f"Wirbel, säule {n}.nii.gz"))
        elif n % 100 == 8:
            (place / f"broken {n}.nrrd").write_bytes(b"NRRD0005\nencoding: raw\n")
        elif n % 3:
            (place / f"notes {n}.{('txt', 'csv', 'json', 'xlsx', 'py')[n % 5]}").write_bytes(b"x" * n)
        else:
            (place / f"file{n}").write_bytes(bytes([n % 256]) * n)
    out = folder / "results"
    words = ["segment", folder, "-o", out, "-m", tiny_checkpoint, "--format", "nii.gz", "--json", out / "all.json"]
    assert run(*words) == 2
    assert "5 done, 0 skipped, 5 failed" in capsys.readouterr().out
    assert {row["status"] for name, row in table(out).items() if name.startswith("Wirbel")} == {"done"}
    assert run(*words) == 2
    assert "0 done, 5 skipped, 5 failed" in capsys.readouterr().out
    assert len(table(out)) == 10


def test_a_folder_that_cannot_be_written_to_is_a_row(study, tiny_checkpoint, predictor, monkeypatch, capsys):  # noqa: F811
    import os

    from SpineSegAILib import files

    protected = str(study / "a")
    access = os.access  # an administrator, as tests may be run by, can write everywhere
    monkeypatch.setattr(files.os, "access", lambda path, mode: str(path) != protected and access(path, mode))
    (study / "a/damaged.nii.gz").unlink()
    assert run("segment", study, "-m", tiny_checkpoint, "--json", study / "all.json") == 2
    found = json.loads((study / "all.json").read_text(encoding="utf-8"))
    assert (found["done"], found["failed"]) == (2, 1)
    rows = {Path(row["image"]).relative_to(study).as_posix(): row for row in found["results"]}
    assert rows["a/T2.nii.gz"]["status"] == "failed" and "cannot be written to" in rows["a/T2.nii.gz"]["error"]
    assert rows["b/T2.nrrd"]["status"] == "done" and (study / "b/T2_nrrd.seg.nrrd").exists()
    assert run("segment", study / "a", "-o", study / "elsewhere", "-m", tiny_checkpoint, "--quiet") == 0


def test_bids_names(tmp_path, phantom, tiny_checkpoint, predictor):  # noqa: F811
    raw = tmp_path / "raw"
    for name in (
        "sub-01/ses-a/anat/sub-01_ses-a_acq-sag_T2w.nii.gz",
        "sub-01/ses-a/anat/sub-01_ses-a_acq-sag_T1w.nii.gz",
    ):
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(phantom.image, str(raw / name))
    (raw / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.8.0"}')
    out = raw / "derivatives/spinesegai"
    assert run("segment", raw, "-o", out, "-m", tiny_checkpoint, "--quiet") == 0
    stems = {f"sub-01/ses-a/anat/sub-01_ses-a_acq-sag_seg-spine_desc-{s}_dseg" for s in ("T1w", "T2w")}
    assert results_in(out) == {"dataset_description.json", *(f"{s}{e}" for s in stems for e in (".nii.gz", ".json"))}
    described = json.loads((out / "dataset_description.json").read_text(encoding="utf-8"))
    assert described["DatasetType"] == "derivative" and described["GeneratedBy"][0]["Name"] == "SpineSegAI"
    found = read_segmentation(out / f"{min(stems)}.nii.gz")
    assert np.array_equal(sitk.GetArrayFromImage(found.labels), sitk.GetArrayFromImage(phantom.labels))
    assert run("segment", raw, "-o", raw, "-m", tiny_checkpoint, "--quiet") == 2, "raw data are no derivatives"
    assert derivative(Path("other/T2.nii.gz")) is None and derivative(Path("sub-02_T2w.nii.gz")) is None


def test_what_is_found_in_folders(study):
    assert [p.relative_to(study).as_posix() for p in find_images([study])] == [
        "a/T2.nii.gz", "a/damaged.nii.gz", "b/T2.nii.gz", "b/T2.nrrd",
    ]  # fmt: skip
    named = study / "b/T2_label.nii.gz"
    assert find_images([named]) == [named], "what is named is taken as it is"
    with pytest.raises(ImageError, match="no file or folder"):
        find_images([study / "gone"])
