"""Long commands speak, can be stopped, and go on where they were when they are repeated."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import SimpleITK as sitk
from test_cli import ROOT, case, dataset, phantom, run, train_words, trainable  # noqa: F401  (fixtures)

from SpineSegAILib.anatomy import scheme
from SpineSegAILib.checkpoints import find_checkpoint
from SpineSegAILib.cli.kept import Kept
from SpineSegAILib.cli.train import _print_how_to_use
from SpineSegAILib.errors import OutputError
from SpineSegAILib.inference.ranking import Scores
from SpineSegAILib.results import Segmentation
from SpineSegAILib.training.data import cache_case
from SpineSegAILib.training.run import RunDirectory


def blocks() -> sitk.Image:
    """Structure ids on a small sagittal grid: L4 above L5."""
    values = np.zeros((3, 24, 16), np.int16)
    values[:, 3:10, 3:13], values[:, 13:20, 3:13] = 23, 24
    labels = sitk.GetImageFromArray(values)
    labels.SetSpacing((3.0, 3.0, 5.0))
    labels.SetDirection((0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0))
    return labels


@pytest.fixture
def three_cases(tmp_path) -> Path:
    """A dataset of three cases, all alike but for a voxel that holds twice the case's number and one."""
    values = np.random.default_rng(0).uniform(10, 99, (3, 24, 16))  # else it would be taken for a label map
    entries = []
    sitk.WriteImage(blocks(), str(tmp_path / "label.nii.gz"))
    for number in range(3):
        values[0, 0, 0] = 2 * number + 1
        image = sitk.GetImageFromArray(values.astype(np.float32))
        image.CopyInformation(blocks())
        sitk.WriteImage(image, str(tmp_path / f"c{number}.nii.gz"))
        entries.append({"image": f"c{number}.nii.gz", "label": "label.nii.gz", "annotated": ["L4", "L5"]})
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"validation": entries}), encoding="utf-8")
    return path


@pytest.fixture
def network(monkeypatch):
    """Stands in for the network: it notes the numbers of the cases in `shown`, and is interrupted at `stop_at`."""

    class Network:
        scheme = scheme("lumbar-mr")
        device = "cpu"
        shown: ClassVar[list[int]] = []
        stop_at: int | None = None

        def __init__(self, info, device):
            pass

        def segment(self, image, options):
            number = (int(image[0, 0, 0]) - 1) // 2
            if number == self.stop_at:
                raise KeyboardInterrupt
            self.shown.append(number)
            labels = blocks()
            labels[5 : 7 + number, 5, 1] = 0  # results differ a little
            return Segmentation(labels, self.scheme, outline_quality={24: 1 / 3})

    def score(image, network, path, progress):
        network.segment(image, {})
        return Scores(path, levels=1 / (3 + network.shown[-1]), reason="as it is")

    monkeypatch.setattr("SpineSegAILib.inference.Predictor", Network)
    monkeypatch.setattr("SpineSegAILib.inference.ranking.score", score)
    return Network


def evaluation(manifest: Path, checkpoint: Path, *more) -> list:
    report = manifest.with_name("report.json")
    return ["evaluate", manifest, "--split", "validation", "-m", checkpoint, "-o", report, *more]


def told(path: Path) -> dict:
    """A report without what no two runs have alike."""
    report = json.loads(path.read_text(encoding="utf-8"))
    for variant in report["variants"].values():
        for timed in (variant, *variant["cases"]):
            for key in ("seconds", "peak_mb"):
                assert timed.pop(key) is not None
    return report


def test_an_evaluation_goes_on_where_it_was_stopped(three_cases, network, tiny_checkpoint, capsys):
    words = evaluation(three_cases, tiny_checkpoint, "--html", three_cases.with_name("r.html"), "--worst", "1")
    report, page = three_cases.with_name("report.json"), three_cases.with_name("r.html")
    assert run(*words) == 0 and network.shown == [0, 1, 2]
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[")]
    assert (
        lines[0].startswith("[1/3] c0: Dice 0.99")
        and "all levels correct" in lines[0]
        and lines[2].startswith("[3/3] c2")
    )
    whole, pictures = told(report), page.read_text(encoding="utf-8").count("data:image")
    report.unlink()

    network.shown.clear()
    network.stop_at = 2
    assert run(*words) == 130
    assert "2 are done and kept in report.json.partial. Run the same command again" in capsys.readouterr().err
    assert not report.exists()
    network.stop_at = None
    network.shown.clear()
    assert run(*words) == 0
    assert len(network.shown) == 2 and set(network.shown) == {1, 2}, "the worst one is segmented again, for its picture"
    assert told(report) == whole and page.read_text(encoding="utf-8").count("data:image") == pictures
    assert not report.with_name("report.json.partial").exists()


@pytest.mark.parametrize("changed", ["image", "label", "patient", "checkpoint", "option", "nothing"])
def test_what_has_changed_is_scored_again(three_cases, network, tiny_checkpoint, changed, tmp_path_factory):
    checkpoint = Path(shutil.copy(tiny_checkpoint, tmp_path_factory.mktemp("checkpoint") / "mine.safetensors"))
    network.stop_at = 2
    assert run(*evaluation(three_cases, checkpoint)) == 130
    network.stop_at = None
    more: list[str] = []
    table = json.loads(three_cases.read_text(encoding="utf-8"))
    if changed == "image":
        image = sitk.ReadImage(str(three_cases.with_name("c1.nii.gz")))
        image[5, 5, 1] = 77
        sitk.WriteImage(image, str(three_cases.with_name("c1.nii.gz")))
    elif changed == "label":
        labels = sitk.ReadImage(str(three_cases.with_name("label.nii.gz")))
        labels[3, 3, 0] = 0
        sitk.WriteImage(labels, str(three_cases.with_name("label.nii.gz")))
    elif changed == "patient":
        table["validation"][0]["patient"] = "seven"
        three_cases.write_text(json.dumps(table), encoding="utf-8")
    elif changed == "checkpoint":
        from SpineSegAILib.checkpoints import load_tensors, read_header, save_checkpoint

        info = read_header(checkpoint)
        save_checkpoint(checkpoint, load_tensors(info), {**info.metadata, "title": "another"})
    elif changed == "option":
        more = ["--option", "batch=3"]
    network.shown.clear()
    assert run(*evaluation(three_cases, checkpoint, *more)) == 0
    wanted = {"image": [1, 2], "patient": [0, 2], "nothing": [2]}
    assert network.shown == wanted.get(changed, [0, 1, 2])


def test_a_ranking_goes_on_where_it_was_stopped(three_cases, network, tiny_checkpoint, capsys):
    table = three_cases.with_name("r.csv")
    images = [three_cases.with_name(f"c{n}.nii.gz") for n in range(3)]
    words = ["rank", *images, "-m", tiny_checkpoint]
    assert run(*words, "-o", table) == 0
    whole = table.read_bytes()
    assert "[2/3] " in (shown := capsys.readouterr()).err and "c1.nii.gz: uncertainty 0.25, as it is" in shown.err
    table.unlink()
    network.stop_at = 1
    assert run(*words, "-o", table) == 130
    assert "1 are done and kept in r.csv.partial" in capsys.readouterr().err
    network.stop_at = None
    network.shown.clear()
    assert run(*words, "-o", table) == 0 and network.shown == [1, 2] and table.read_bytes() == whole
    assert not table.with_name("r.csv.partial").exists()


def test_findings_outlive_a_line_cut_short_and_are_not_confused(tmp_path):
    output = tmp_path / "r.json"
    kept = Kept(output, "model", {"a": 1})
    kept["x"], kept["y"] = {"dice": 0.1}, 2
    path = tmp_path / "r.json.partial"
    path.write_bytes(path.read_bytes()[:-9])  # killed while it wrote
    again = Kept(output, "model", {"a": 1})
    assert dict(again) == {"x": {"dice": 0.1}}
    again["z"] = 3
    assert dict(Kept(output, "model", {"a": 1})) == {"x": {"dice": 0.1}, "z": 3}
    assert not Kept(output, "another model", {"a": 1})
    path.write_text("a person's notes\n", encoding="utf-8")
    with pytest.raises(OutputError, match="not an unfinished result"):
        Kept(output, "model")
    nowhere = Kept(None, "model")
    nowhere["x"] = 1
    assert dict(nowhere) == {"x": 1} and len(list(tmp_path.iterdir())) == 1


# --- a request to end, to the whole group of processes, as `timeout` and batch systems make it ---


STOPPED_AT_THE_LAST = """
import sys, time
import SimpleITK as sitk
from SpineSegAILib import cli, inference
from SpineSegAILib.anatomy import scheme
from SpineSegAILib.results import Segmentation

class Slow:
    scheme = scheme("lumbar-mr")
    device = "cpu"
    def __init__(self, *_, **__): self.shown = 0
    def segment(self, image, **__):
        self.shown += 1
        if self.shown == 3:
            print("working", flush=True)
            time.sleep(60)
        return Segmentation(sitk.ReadImage(sys.argv[1]), self.scheme)

inference.Predictor = Slow
sys.exit(cli.main(sys.argv[2:]))
"""


def ended_by_the_group(command, ready) -> tuple[int, str]:
    """Exit code, and what was said, of a command that is asked to end once it is `ready`."""
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )
    try:
        ready(process)
        os.killpg(process.pid, signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, err


@pytest.mark.parametrize("command", ["evaluate", "segment"])
def test_what_is_done_is_kept_when_the_group_is_ended(three_cases, tiny_checkpoint, command):
    folder = three_cases.parent
    images = [folder / f"c{n}.nii.gz" for n in range(3)]
    many = ["segment", *images, "-o", folder / "out", "-m", tiny_checkpoint]
    words = evaluation(three_cases, tiny_checkpoint) if command == "evaluate" else many
    program = [sys.executable, "-c", STOPPED_AT_THE_LAST, folder / "label.nii.gz", *words]
    code, err = ended_by_the_group(program, lambda process: process.stdout.readline())
    assert code == 130 and "interrupted" in err and "Traceback" not in err and "[2/3]" in err
    if command == "evaluate":
        assert len((folder / "report.json.partial").read_text(encoding="utf-8").split()) > 2
    else:
        rows = (folder / "out/spinesegai-results.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(row)["status"] for row in rows] == ["done", "done"]
        there = {p.name for p in (folder / "out").iterdir()}
        assert there == {"c0.seg.nrrd", "c1.seg.nrrd", "spinesegai-results.csv", "spinesegai-results.jsonl"}


def test_a_start_that_nothing_was_better_than_stays_the_best(trainable, tiny_checkpoint, capsys):  # noqa: F811
    words = train_words(trainable, "--steps", "1", "--set", "optimization.learning_rate=9")
    words.remove("--preset"), words.remove("tiny")
    assert run(*words, "--from", tiny_checkpoint) == 0
    said, best = capsys.readouterr().out, trainable.parent / "run/best.safetensors"
    assert f"No step was better than the checkpoint that it started from: {best} is that one." in said
    assert f"to use it: spinesegai segment IMAGE --model {best}" in said


def test_a_run_that_is_stopped_while_it_prepares_has_no_checkpoint_and_says_so(trainable, capsys, monkeypatch):  # noqa: F811
    folder = trainable.parent / "run"

    def cache(*about):
        RunDirectory(folder).request_stop()  # as the panel does
        return cache_case(*about)

    monkeypatch.setattr("SpineSegAILib.training.trainer.cache_case", cache)
    assert run(*train_words(trainable, "--steps", "1")) == 0
    said = capsys.readouterr().out
    assert "stopped before its first step" in said and f"--resume --output {folder}" in said and "to use it" not in said


def test_what_a_checkpoint_is_used_with_is_said(tiny_checkpoint, capsys):
    _print_how_to_use(tiny_checkpoint)
    _print_how_to_use(find_checkpoint("click-refine").path)
    segmenting, correcting = capsys.readouterr().out.splitlines()
    assert "spinesegai segment IMAGE --model" in segmenting
    assert "spinesegai refine SEGMENTATION IMAGE --model" in correcting


def test_training_is_saved_when_the_group_is_ended(trainable, tiny_checkpoint):  # noqa: F811
    """And it validates its start, and says what is left."""
    folder = trainable.parent / "run"
    size = ["--set", "data.patch=[64,64]", "--set", "optimization.batch=2", "--set", "optimization.report_every=2"]
    words = ["train", trainable, "--from", tiny_checkpoint, "-o", folder, "--device", "cpu", *size]
    program = [sys.executable, "-m", "SpineSegAILib", *words, "--steps", "100000", "--set", "optimization.workers=2"]

    def ready(process) -> None:
        events = folder / "events.jsonl"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if events.exists() and '"step", "step": 2' in events.read_text(encoding="utf-8"):
                return
            time.sleep(0.1)

    code, err = ended_by_the_group(program, ready)
    assert code == 130 and "stopped and saved; resume with --resume" in err and "Traceback" not in err, err
    assert json.loads((folder / "status.json").read_text(encoding="utf-8"))["state"] == "stopped"
    assert f"its weights are those of {tiny_checkpoint}" in err
    assert "validation of the start: " in err and "level dice" in err
    assert " of 100000: loss " in err and " left" in err and "message" not in err
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    (start,) = (e for e in events if e["event"] == "validation" and e["step"] == 0)
    from SpineSegAILib.checkpoints import read_header

    best = read_header(folder / "best.safetensors").metadata
    assert best["training"]["steps"] == 0 and best["validation"]["level_dice"] == pytest.approx(
        start["scores"]["level_dice"], abs=1e-3
    )
