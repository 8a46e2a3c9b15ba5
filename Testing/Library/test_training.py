"""Training as a user meets it: a process that can be killed at any moment and goes on as if nothing had happened."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from tiny_data import write_tiny_dataset

from SpineSegAILib.checkpoints import load_tensors, read_header, save_checkpoint
from SpineSegAILib.datasets.manifest import learned_from, read_manifest
from SpineSegAILib.errors import ConfigError, DatasetError, TrainingError
from SpineSegAILib.imaging import Preprocessing
from SpineSegAILib.inference import Predictor
from SpineSegAILib.methods.catalog import make_config
from SpineSegAILib.training import launcher
from SpineSegAILib.training.averaging import load_matching
from SpineSegAILib.training.config import DataConfig, OptimizationConfig, TrainingConfig
from SpineSegAILib.training.data import cache_case
from SpineSegAILib.training.request import TrainingRequest
from SpineSegAILib.training.run import RunDirectory
from SpineSegAILib.training.schedule import make_optimizer
from SpineSegAILib.training.trainer import _Trainer, run_training

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    return write_tiny_dataset(tmp_path_factory.mktemp("tiny"), training=2)


def config_for(manifest: Path, steps: int, **optimization) -> TrainingConfig:
    values = {"batch": 4, "validate_every": 1000, "save_every": 4, "workers": 0, "warmup": 2, "mixed_precision": "no"}
    return TrainingConfig(
        name="Tiny run",
        method=make_config("resenc-unet", "tiny").model_dump(mode="json"),
        dataset=str(manifest),
        preprocessing=Preprocessing(pixel_mm=3.0),
        data=DataConfig(patch=(64, 64)),
        optimization=OptimizationConfig(steps=steps, **{**values, **optimization}),
    )


def losses_of(run: RunDirectory) -> dict[int, float]:
    return {e["step"]: e["losses"]["total"] for e in run.events() if e["event"] == "step"}


def run_here(config, folder, **request) -> RunDirectory:
    cache = Path(config.dataset).parent / "cache"
    return run_training(TrainingRequest(config, folder, device="cpu", cache=cache, **request))


def test_a_run_learns_validates_and_leaves_a_checkpoint_that_segments(manifest, tmp_path):

    run = run_here(config_for(manifest, 30, learning_rate=5e-3, report_every=10), tmp_path / "run")
    losses = list(losses_of(run).values())
    assert losses[-1] < losses[0]
    assert run.status()["state"] == "finished"
    assert run.curves.read_bytes().startswith(b"\x89PNG")
    assert run.preview.read_bytes().startswith(b"\x89PNG")
    scores = [e["scores"] for e in run.events() if e["event"] == "validation"]
    assert scores
    assert 0 <= scores[-1]["level_dice"] <= 1
    info = read_header(run.best)
    assert info.method == "resenc-unet"
    assert "canal" in info.metadata["unvalidated"]
    assert "L4" not in info.metadata["unvalidated"]
    assert info.metadata["training"]["steps"] == 30
    image = sitk.ReadImage(str(manifest.parent / "case2_image.nii.gz"))
    result = Predictor(run.last, "cpu").segment(image)
    assert result.labels.GetSize() == image.GetSize()


def test_weight_decay_is_decoupled_or_the_papers_regularization():
    """One step of a network with no gradient of its own: only what decays moves."""

    def moved(optimizer: str) -> tuple[float, float]:
        torch.manual_seed(0)
        network = torch.nn.Linear(2, 2)
        before = [p.detach().clone() for p in network.parameters()]
        made = make_optimizer(OptimizationConfig(optimizer=optimizer, weight_decay=0.1, learning_rate=0.01), network)
        sum(0 * p.sum() for p in network.parameters()).backward()
        made.step()
        weight, bias = (b - a.detach() for a, b in zip(network.parameters(), before, strict=True))
        return float((weight / before[0]).mean()), float(bias.abs().max())

    share, bias = moved("adamw")
    assert share == pytest.approx(0.01 * 0.1, rel=1e-3) and bias == 0
    share, bias = moved("adam")  # Adam divides the L2 gradient by its own size: every parameter moves by the rate
    assert bias == pytest.approx(0.01, rel=1e-3)


def test_no_limit_of_the_gradient_is_no_limit(manifest, tmp_path):
    """With plain Adam, too: both are what papers say."""
    free = run_here(config_for(manifest, 4, clip=0.0, optimizer="adam", report_every=1), tmp_path / "free")
    bound = run_here(config_for(manifest, 4, clip=1e-6, optimizer="adam", report_every=1), tmp_path / "bound")
    assert losses_of(free)[1] == losses_of(bound)[1] and losses_of(free)[4] != losses_of(bound)[4]


def start_process(config: TrainingConfig, folder: Path, processes: int = 1, **request) -> subprocess.Popen:
    """A training run in a process of its own, as the launcher or torchrun starts it."""
    script = folder.parent / f"{folder.name}.py"
    script.write_text(
        "import json, sys\n"
        "from pathlib import Path\n"
        "from SpineSegAILib.training.config import TrainingConfig\n"
        "from SpineSegAILib.training.trainer import TrainingRequest, run_training\n"
        "values = json.loads(sys.argv[1])\n"
        "config = TrainingConfig.model_validate(values['config']) if values['config'] else None\n"
        "if values['file_limit']:\n"
        "    import resource\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (values['file_limit'], resource.RLIM_INFINITY))\n"
        "folder, cache = Path(values['folder']), Path(values['cache'])\n"
        "run_training(TrainingRequest(config, folder, values['resume'], 'cpu', cache))\n"
    )
    values = {
        "config": None if request.get("resume") else config.model_dump(mode="json"),
        "folder": str(folder),
        "resume": bool(request.get("resume")),
        "cache": str(Path(config.dataset).parent / "cache"),
        "file_limit": request.get("file_limit"),
    }
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*launcher, str(script), json.dumps(values)], env=environment)


def saved_step(run: RunDirectory) -> int:
    from safetensors import safe_open

    path = run.state / "state.safetensors"
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        return int(file.metadata()["step"])


def wait_for(condition, process: subprocess.Popen, seconds: float = 300.0) -> None:
    """Wait while the process runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.003)


@pytest.fixture
def one_thread():
    """As in the processes that are started: sums over more threads round differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_killed_at_any_moment_the_losses_continue_identically(manifest, tmp_path, one_thread):
    """Every step is saved, so that most of the time is saving: kills meet half-written files."""
    config = config_for(manifest, 40, report_every=1, save_every=1)
    straight = losses_of(run_here(config, tmp_path / "straight"))
    run = RunDirectory(tmp_path / "killed")
    rng = random.Random(1)
    for attempt, goal in enumerate((3, 12, 20)):
        process = start_process(config, run.folder, resume=attempt > 0)
        wait_for(lambda goal=goal: saved_step(run) >= goal, process)
        time.sleep(rng.uniform(0.0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not run.is_alive()
        assert launcher.status(run.folder).state is launcher.State.DIED
        assert launcher.status(run.folder).can_resume
    resumed = losses_of(run_here(config, run.folder, resume=True))
    assert resumed == straight
    assert not [path for path in run.state.iterdir() if path.name.startswith(".")], "left-overs were not tidied up"


def test_a_run_leaves_alone_what_is_hidden_in_its_folder_and_not_its_own(manifest, tmp_path):
    folder = tmp_path / "project"
    kept = [folder / ".git" / "HEAD", folder / ".bashrc", folder / ".config", folder / "state" / ".venv" / "x"]
    left = [folder / ".status.json.k3j2", folder / ".last.safetensors.ab" / "last.safetensors", folder / ".events.part"]
    for path in [*kept[:3], *left]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    run = RunDirectory(folder)
    run.create(config_for(manifest, 1))
    run.release()
    kept[3].parent.mkdir(parents=True)
    kept[3].write_text("mine")
    run.claim()
    run.release()
    assert all(path.read_text() == "mine" for path in kept) and not any(path.exists() for path in left)


@pytest.mark.parametrize("name", ["dataset.json", "best.safetensors", "inputs/mine.txt", "state/mine.txt"])
def test_a_new_run_writes_over_nothing(manifest, tmp_path, name):
    path = tmp_path / "project" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(TrainingError, match="which a new run would write over"):
        RunDirectory(tmp_path / "project").create(config_for(manifest, 1))
    assert path.read_text() == "mine" and [p.name for p in path.parent.iterdir()] == [path.name]


def test_killed_before_anything_was_saved_it_starts_from_the_beginning(manifest, tmp_path):
    start = run_here(config_for(manifest, 2), tmp_path / "start").last
    config = config_for(manifest, 4, report_every=1).model_copy(update={"start_from": str(start)})
    straight = losses_of(run_here(config, tmp_path / "straight"))
    run = RunDirectory(tmp_path / "killed")
    run.create(config)
    assert losses_of(run_here(config, run.folder, resume=True)) == straight


def test_a_checkpoint_trained_further_keeps_its_calibration(manifest, tmp_path):
    first = read_header(run_here(config_for(manifest, 2), tmp_path / "first").last)
    assert "calibration" not in first.metadata
    fitted = {
        "calibration": {"offsets": {"vertebra": 0.25}},
        "outline_quality": {"bias": 1.0, "weights": {"unsure": -2.0}},
    }
    start = tmp_path / "start.safetensors"
    save_checkpoint(start, load_tensors(first), {**first.metadata, **fitted})
    config = config_for(manifest, 2).model_copy(update={"start_from": str(start)})
    run = run_here(config, tmp_path / "further")
    assert Predictor(run.last, "cpu").calibration.offsets == {"vertebra": 0.25}
    for path in (run.last, run.best):  # how far outlines can be trusted is another matter once they move
        metadata = read_header(path).metadata
        assert ("outline_quality" in metadata) == (metadata["training"]["steps"] == 0)
    wider = config.model_copy(update={"preprocessing": config.preprocessing.model_copy(update={"pixel_mm": 2.5})})
    assert "calibration" not in read_header(run_here(wider, tmp_path / "wider").last).metadata


def test_what_was_learned_from_is_known_whatever_it_is_called(tmp_path):
    """Files of two datasets have the same names; the mixture names them apart."""
    manifests = [write_tiny_dataset(tmp_path / name) for name in "AB"]
    for number, path in enumerate(manifests):
        table = json.loads(path.read_text(encoding="utf-8"))
        for entry in (*table["training"], *table["validation"]):
            entry.pop("source", None)
            entry.pop("patient", None)
            image = path.parent / entry["image"]
            sitk.WriteImage(sitk.ReadImage(str(image)) + float(number), str(image))
        path.write_text(json.dumps(table), encoding="utf-8")
    config = config_for(manifests[0], 1).model_copy(update={"also": (str(manifests[1]),)})
    first = read_header(run_here(config, tmp_path / "run").last)
    further = config_for(manifests[0], 1).model_copy(update={"start_from": str(first.path)})
    second = read_header(run_here(further, tmp_path / "further").last)
    for info in (first, second):
        for path in manifests:
            cases = read_manifest(path)
            assert learned_from(cases.cases("training"), info.trained_on) == list(cases.cases("training"))
            assert learned_from(cases.cases("validation"), info.trained_on) == []
    named = frozenset(case.name for case in read_manifest(manifests[0]).cases("training"))
    assert learned_from(read_manifest(manifests[0]).cases("training"), named)  # of a checkpoint that tells names alone


def test_two_processes_learn_what_one_does(manifest, tmp_path):
    config = config_for(manifest, 6, report_every=1)
    one = run_here(config, tmp_path / "one")
    process = start_process(config, tmp_path / "two", processes=2)
    assert process.wait(timeout=300) == 0
    two = RunDirectory(tmp_path / "two")
    assert [e["event"] for e in two.events()].count("finished") == 1
    # The loss looks at the whole batch (Dice), of which each process has a half: equal but for that.
    a, b = losses_of(one), losses_of(two)
    assert a.keys() == b.keys()
    assert max(abs(a[step] - b[step]) / a[step] for step in a) < 0.05
    scores = [[e["scores"] for e in run.events() if e["event"] == "validation"] for run in (one, two)]
    assert scores[0][0].keys() == scores[1][0].keys()


def test_processes_wait_for_the_one_that_prepares_the_cases(manifest, tmp_path):
    """Of many cases, or with other checkpoints' errors on them, that takes longer than the half hour of PyTorch."""
    request = TrainingRequest(config_for(manifest, 1), tmp_path / "run", device="cpu")
    trainer = _Trainer(request.config, RunDirectory(request.output), request)
    assert trainer.accelerator.init_handler.timeout.days >= 1


def test_stop_is_heard_by_all_processes(manifest, tmp_path):
    config = config_for(manifest, 100_000, report_every=1)
    run = RunDirectory(tmp_path / "run")
    process = start_process(config, run.folder, processes=2)
    wait_for(lambda: losses_of(run), process)
    run.request_stop()
    assert process.wait(timeout=120) == 0
    assert run.status()["state"] == "stopped"
    assert saved_step(run) == run.status()["step"] > 0
    assert not run.is_alive()


def test_stop_saves_and_resume_goes_on(manifest, tmp_path):
    config = config_for(manifest, 30)
    run = RunDirectory(tmp_path / "run")
    run.folder.mkdir()

    def stop_soon(event):
        if event["event"] == "step":
            run.request_stop()

    config = config.model_copy(update={"optimization": config.optimization.model_copy(update={"report_every": 3})})
    run_here(config, run.folder, report=stop_soon)
    assert run.status()["state"] == "stopped"
    assert saved_step(run) == run.status()["step"] < 30
    run_here(config, run.folder, resume=True)
    assert run.status()["state"] == "finished"
    assert saved_step(run) == 30


def test_a_run_that_is_stopped_while_it_prepares_goes_on_with_what_is_cached(manifest, tmp_path, monkeypatch):
    run, seen = RunDirectory(tmp_path / "run"), []

    def cache(case, *rest):
        seen.append(case.name)
        run.request_stop()
        return cache_case(case, *rest)

    monkeypatch.setattr("SpineSegAILib.training.trainer.cache_case", cache)
    config = config_for(manifest, 4)
    run_here(config, run.folder)
    assert run.status()["state"] == "stopped" and len(seen) == 1
    assert run.events()[-1]["event"] == "stopped" and not run.last.exists()
    monkeypatch.undo()
    run_here(config, run.folder, resume=True)
    assert run.status()["state"] == "finished" and saved_step(run) == 4


def test_bad_requests_are_refused(manifest, tmp_path):
    config = config_for(manifest, 2)
    run_here(config, tmp_path / "run")
    with pytest.raises(TrainingError, match="already holds a run"):
        run_here(config, tmp_path / "run")
    with pytest.raises(TrainingError, match="holds no run"):
        run_training(TrainingRequest(None, tmp_path / "nothing", resume=True))
    uneven = config.model_copy(update={"data": DataConfig(patch=(50, 64))})
    with pytest.raises(ConfigError, match="multiples of"):
        run_here(uneven, tmp_path / "uneven")
    flat = config.model_copy(update={"data": DataConfig(patch=(8, 64, 64))})
    with pytest.raises(ConfigError, match="not 2D"):
        run_here(flat, tmp_path / "flat")
    whole = config.model_copy(update={"method": make_config("unet", "tiny", scheme="spider").model_dump(mode="json")})
    with pytest.raises(ConfigError, match="extent"):
        run_here(whole, tmp_path / "whole")
    document = json.loads(manifest.read_text(encoding="utf-8"))
    del document["extent"]
    document["validation"][0]["extent"] = "whole"
    mixed = manifest.with_name("mixed.json")
    mixed.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ConfigError, match="has masks of vertebral extent “whole”"):
        run_here(config.model_copy(update={"dataset": str(mixed)}), tmp_path / "mixed")


def test_a_loss_that_is_not_a_number_ends_the_run_and_keeps_the_batch(manifest, tmp_path, monkeypatch):
    from SpineSegAILib.methods.resenc_unet.network import ResEncUNetMethod

    original = ResEncUNetMethod.training_losses

    def broken(self, batch):
        losses = original(self, batch)
        return {**losses, "total": losses["total"] * float("nan")}

    monkeypatch.setattr(ResEncUNetMethod, "training_losses", broken)
    with pytest.raises(TrainingError, match="not a number"):
        run_here(config_for(manifest, 3), tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    assert run.status()["state"] == "failed"
    from safetensors.torch import load_file

    batch = load_file(run.state / "bad_batch.safetensors")
    assert batch["image"].shape == (4, 1, 64, 64)
    assert launcher.status(run.folder).can_resume


def out_of_memory_above(samples: int, monkeypatch) -> None:
    """A device that holds no more than so many samples."""
    import torch

    from SpineSegAILib.methods.resenc_unet.network import ResEncUNetMethod

    original = ResEncUNetMethod.training_losses

    def limited(self, batch):
        if len(batch.image) > samples:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return original(self, batch)

    monkeypatch.setattr(ResEncUNetMethod, "training_losses", limited)


def test_out_of_memory_halves_the_batch_and_says_so(manifest, tmp_path, monkeypatch):
    config = config_for(manifest, 6, report_every=1)
    whole = losses_of(run_here(config, tmp_path / "whole"))
    out_of_memory_above(2, monkeypatch)
    run = run_here(config, tmp_path / "run")
    notes = [e["message"] for e in run.events() if e["event"] == "note"]
    assert len(notes) == 1
    assert "batches of 4 are computed in 2 parts" in notes[0]
    parts = losses_of(run)
    assert max(abs(parts[step] - whole[step]) / whole[step] for step in whole) < 0.05


def test_out_of_memory_with_a_single_sample_says_what_to_do(manifest, tmp_path, monkeypatch):
    out_of_memory_above(0, monkeypatch)
    with pytest.raises(TrainingError, match=r"one sample at a time.*smaller patch"):
        run_here(config_for(manifest, 2), tmp_path / "run")
    report = launcher.status(tmp_path / "run")
    assert report.state is launcher.State.FAILED
    assert "Out of memory" in report.message


def test_a_full_disk_leaves_what_was_saved_and_says_so(manifest, tmp_path):
    """A real process that may write no file larger than the first save: the second one fails half-way."""
    config = config_for(manifest, 12, report_every=1)
    straight = run_here(config, tmp_path / "straight")
    run = RunDirectory(tmp_path / "run")
    limit = int(straight.state_file.stat().st_size * 0.8)
    process = start_process(config, run.folder, file_limit=limit)
    assert process.wait(timeout=300) != 0
    report = launcher.status(run.folder)
    assert report.state is launcher.State.FAILED
    assert "could not read or write its files" in report.message
    assert "File too large" in report.message
    assert "what was saved last is whole" in report.message
    assert report.can_resume
    assert saved_step(run) == 0
    assert losses_of(run_here(config, run.folder, resume=True)) == losses_of(straight)


@pytest.fixture
def own_data(tmp_path) -> Path:
    (tmp_path / "data").mkdir()
    return write_tiny_dataset(tmp_path / "data", training=2)


def stopped_run(config: TrainingConfig, folder: Path) -> RunDirectory:
    """A run that was stopped after four steps, with a cache of its own."""
    run = RunDirectory(folder)
    run_training(TrainingRequest(config, folder, device="cpu", report=lambda e: stop_at(run, e, 4)))
    assert run.status()["state"] == "stopped"
    return run


def stop_at(run: RunDirectory, event, step: int) -> None:
    if event["event"] == "step" and event["step"] >= step - 1:
        run.request_stop()


def test_a_run_goes_on_without_the_files_it_has_read(own_data, tmp_path):
    config = config_for(own_data, 8, report_every=1)
    straight = losses_of(run_here(config, tmp_path / "straight"))
    run = stopped_run(config, tmp_path / "run")
    (own_data.parent / "case0_image.nii.gz").unlink()
    (own_data.parent / "case2_label.nii.gz").write_bytes(b"changed")
    own_data.unlink()
    run_training(TrainingRequest(None, run.folder, resume=True, device="cpu"))
    assert losses_of(run) == straight
    (note,) = [e["message"] for e in run.events() if e["event"] == "note"]
    assert note.startswith("2 files are gone or have changed")
    assert [e for e in run.events() if e["event"] == "validation"]


def test_a_run_goes_on_where_a_link_lies_in_the_place_of_its_data(own_data, tmp_path):
    run = stopped_run(config_for(own_data, 6, report_every=1), tmp_path / "run")
    own_data.parent.rename(tmp_path / "elsewhere")
    own_data.parent.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    run_training(TrainingRequest(None, run.folder, resume=True, device="cpu"))
    assert run.status()["state"] == "finished" and not [e for e in run.events() if e["event"] == "note"]


@pytest.mark.parametrize("change, said", [("unlink", "is gone"), ("write", "has changed since the run began")])
def test_a_run_that_must_read_changed_data_again_says_so(own_data, tmp_path, change, said):
    run = stopped_run(config_for(own_data, 8, report_every=1), tmp_path / "run")
    shutil.rmtree(run.folder / "cache")
    label = own_data.parent / "case1_label.nii.gz"
    if change == "unlink":
        label.unlink()
    else:
        shutil.copy(own_data.parent / "case0_label.nii.gz", label)
    with pytest.raises(DatasetError, match=f"case1_label.*{said}"):
        run_training(TrainingRequest(None, run.folder, resume=True, device="cpu"))
    report = launcher.status(run.folder)
    assert report.state is launcher.State.FAILED
    assert said in report.message


def spoil_cache(folder: Path, kind: str) -> None:
    """Damages the first preprocessed case, or the copies of the validation case."""
    case = sorted(path.parent for path in folder.glob("*/case.json"))[0]
    match kind:
        case "text":
            (case / "case.json").write_text("{")
        case "deep text":
            (case / "case.json").write_text("[" * 100_000)
        case "no text":
            (case / "case.json").unlink()
        case "other text":
            (case / "case.json").write_text("[]")
        case "half an image":
            data = (case / "image.npy").read_bytes()
            (case / "image.npy").write_bytes(data[: len(data) // 2])
        case "other codes":
            np.save(case / "codes.npy", np.zeros((2, 2, 2), np.uint8))
        case "no codes":
            (case / "codes.npy").unlink()
        case "one bit":
            data = bytearray((case / "image.npy").read_bytes())
            data[-100] ^= 64
            (case / "image.npy").write_bytes(data)
        case "a file":
            shutil.rmtree(case)
            case.write_text("x")
        case "validation":
            for copy in folder.glob("*.nrrd"):
                copy.write_bytes(copy.read_bytes()[:300])


@pytest.mark.parametrize(
    "kind",
    ["text", "deep text", "no text", "other text", "half an image", "other codes", "no codes", "one bit", "a file",
     "validation"],
)  # fmt: skip
def test_a_damaged_cache_is_made_again(own_data, tmp_path, kind):
    config = config_for(own_data, 6, report_every=1)
    straight = losses_of(run_here(config, tmp_path / "straight"))
    run = stopped_run(config, tmp_path / "run")
    spoil_cache(run.folder / "cache", kind)
    run_training(TrainingRequest(None, run.folder, resume=True, device="cpu"))
    assert losses_of(run) == straight
    assert not list((run.folder / "cache").glob(".*"))


@pytest.mark.parametrize("kind", ["half an image", "validation"])
def test_a_damaged_cache_of_data_that_are_gone_is_said_truly(own_data, tmp_path, kind):
    run = stopped_run(config_for(own_data, 8, report_every=1), tmp_path / "run")
    spoil_cache(run.folder / "cache", kind)
    for image in own_data.parent.glob("*_image.nii.gz"):
        image.unlink()
    with pytest.raises(DatasetError, match="is gone, and the run has no whole copy of it"):
        run_training(TrainingRequest(None, run.folder, resume=True, device="cpu"))


def test_a_damaged_list_of_cases_is_said(own_data, tmp_path):
    run = stopped_run(config_for(own_data, 8, report_every=1), tmp_path / "run")
    table = json.loads(run.dataset_file.read_text(encoding="utf-8"))
    table["checksums"].popitem()
    run.dataset_file.write_text(json.dumps(table))
    with pytest.raises(DatasetError, match=r"dataset\.json is damaged"):
        run_training(TrainingRequest(None, run.folder, resume=True, device="cpu"))


def test_a_cache_that_vanishes_is_named(own_data, tmp_path):
    config = config_for(own_data, 50, report_every=1)
    run = RunDirectory(tmp_path / "run")

    def delete(event):
        if event["event"] == "step":
            shutil.rmtree(run.folder / "cache")

    with pytest.raises(DatasetError, match=r"preprocessed case .* is gone or damaged"):
        run_training(TrainingRequest(config, run.folder, device="cpu", report=delete))
    assert losses_of(run)
    request = TrainingRequest(None, run.folder, resume=True, device="cpu", report=lambda e: stop_at(run, e, 3))
    assert run_training(request).status()["state"] == "stopped"


def test_a_damaged_state_is_refused_with_a_sentence(manifest, tmp_path):
    run = stopped_run(config_for(manifest, 8, report_every=1), tmp_path / "run")
    whole = run.state_file.read_bytes()
    run.state_file.write_bytes(whole[: len(whole) // 2])
    report = launcher.status(run.folder)
    assert not report.can_resume
    assert "damaged" in report.obstacle
    with pytest.raises(TrainingError, match="damaged"):
        run_here(config_for(manifest, 8), run.folder, resume=True)


def test_hours_do_not_pass_while_the_computer_sleeps(manifest, tmp_path, monkeypatch):
    from SpineSegAILib.training import trainer
    from SpineSegAILib.training.clock import WorkClock

    asleep = [0.0]
    monkeypatch.setattr(trainer, "WorkClock", lambda: WorkClock(lambda: time.monotonic() + asleep[0]))

    def sleep(event):
        if event["event"] == "step":
            asleep[0] += 8 * 3600

    run = run_here(config_for(manifest, 5, report_every=1, hours=1.0), tmp_path / "run", report=sleep)
    assert run.status()["state"] == "finished"
    assert max(losses_of(run)) == 5
    assert run.status()["elapsed"] < 600


def test_the_heartbeat_does_not_mind_a_clock_that_is_set_back(tmp_path, monkeypatch):
    from SpineSegAILib.training import run as module

    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.02)
    run = RunDirectory(tmp_path)
    run.claim()
    with run.beating():
        run.beat("running", force=True)
        monkeypatch.setattr(module.time, "time", lambda: 1000.0)
        deadline = time.monotonic() + 5
        while run.status()["heartbeat"] != 1000.0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    monkeypatch.undo()
    assert run.is_alive()  # its process is there, whatever the time is


def test_fine_tuning_takes_over_what_fits(manifest, tmp_path):
    from SpineSegAILib.methods.catalog import build_method

    run = run_here(config_for(manifest, 2), tmp_path / "run")
    other = build_method(make_config("resenc-unet", "tiny", output="classes"))
    taken = load_matching(other, str(run.last))
    assert 0 < taken < len(other.state_dict())
    with pytest.raises(ConfigError, match="Nothing"):
        load_matching(build_method(make_config("segresnet", "tiny")), str(run.last))


def test_a_run_can_take_over_an_encoder_alone(manifest, tmp_path):
    """Then it begins without a score, and what its structures were worth before says nothing."""
    first = run_here(config_for(manifest, 2), tmp_path / "first")
    parts = {"start_from": str(first.last), "start_parts": ("network.encoder.*",), "seed": 36}
    config = config_for(manifest, 1, ema=0.0).model_copy(update=parts)
    run = run_here(config, tmp_path / "run")
    assert [e["event"] for e in run.events()][:2] == ["start", "step"]  # no validation of what is random
    assert json.loads((run.state / "start.json").read_text(encoding="utf-8"))["validated"] == []
    start, after = (load_tensors(read_header(path)) for path in (first.last, run.last))
    # One step of warmup changes little: what was taken is where it was, what was not began elsewhere.
    apart = {k: float((after[k].float() - v.float()).abs().max()) for k, v in start.items() if v.dim() > 1}
    taken = {k for k in apart if k.startswith("network.encoder.")}
    assert taken and max(apart[k] for k in taken) < 0.01
    assert min(apart[k] for k in apart.keys() - taken if k.startswith("network.decoder.")) > 0.01
    with pytest.raises(ConfigError, match="Nothing"):
        run_here(config.model_copy(update={"start_parts": ("absent.*",)}), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_half_written_events_are_passed_over(tmp_path):
    run = RunDirectory(tmp_path)
    run.event("step", step=1)
    with run.events_file.open("a") as file:
        file.write('{"event": "st')
    assert [e["step"] for e in run.events()] == [1]


def test_another_data_set_is_mixed_in(manifest, own_data, tmp_path):
    """One whose label values have another meaning, which it says for all of its cases at once."""
    import json

    table = json.loads(own_data.read_text(encoding="utf-8"))
    for split in ("training", "validation"):
        for case in table[split]:
            path = str(own_data.parent / case["label"])
            label = sitk.ReadImage(path)
            sitk.WriteImage(sitk.ChangeLabel(label, {24: 1, 23: 2, 22: 3, 21: 4, 20: 5, 19: 6}), path)
            del case["annotated"]
    labels = {"1": "L5", "2": "L4", "3": "L3", "4": "L2", "5": "L1", "6": "T12"}
    own_data.write_text(json.dumps({**table, "labels": labels}), encoding="utf-8")
    config = config_for(manifest, 2).model_copy(update={"also": (str(own_data),)})
    run = run_here(config, tmp_path / "run")
    info = read_header(run.last)
    assert info.metadata["training"]["dataset"] == "Tiny + Tiny"
    assert len(info.metadata["training"]["cases"]) == 4
    assert "L4" not in info.metadata["unvalidated"]
    # The labels mean the same: the run's copies of both validation cases agree.
    from SpineSegAILib.datasets.manifest import read_label
    from SpineSegAILib.training.snapshot import read_snapshot

    one, other = (sitk.GetArrayFromImage(read_label(c)) for c in read_snapshot(run).manifest.cases("validation"))
    assert (one == other).all()
    assert set(one.flat) > {0, 24}


def test_a_case_that_another_data_set_validates_is_refused_before_there_is_a_run(manifest, tmp_path):
    table = json.loads(manifest.read_text(encoding="utf-8"))
    other = manifest.with_name("other.json")
    other.write_text(json.dumps({**table, "training": table["validation"], "validation": []}), encoding="utf-8")
    config = config_for(manifest, 2).model_copy(update={"also": (str(other),)})
    with pytest.raises(DatasetError, match="is in both training and validation of"):
        run_here(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_cases_without_labels_teach_nothing(manifest, tmp_path):
    table = json.loads(manifest.read_text(encoding="utf-8"))
    bare = manifest.with_name("bare.json")
    bare.write_text(json.dumps({**table, "training": [e["image"] for e in table["training"]]}), encoding="utf-8")
    with pytest.raises(DatasetError, match="there is nothing to learn from"):
        run_here(config_for(bare, 2), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_keep_saves_the_mean_of_before_and_after(manifest, tmp_path):
    start = run_here(config_for(manifest, 2), tmp_path / "start").last
    config = config_for(manifest, 4, ema=0.0, learning_rate=1e-2).model_copy(update={"start_from": str(start)})
    kept = config.model_copy(update={"optimization": config.optimization.model_copy(update={"keep": 0.25})})
    before, after, mean = (
        load_tensors(read_header(path))
        for path in (start, run_here(config, tmp_path / "all").last, run_here(kept, tmp_path / "mean").last)
    )
    start.unlink()  # the run has a copy
    moved = 0.0
    for name, value in mean.items():
        assert float((value - before[name].lerp(after[name], 0.75)).abs().max()) < 2e-3, name
        moved = max(moved, float((after[name] - before[name]).abs().max()))
    assert moved > 2e-2
    again = RunDirectory(tmp_path / "mean")
    again.state_file.unlink()
    resumed = load_tensors(read_header(run_here(kept, again.folder, resume=True).last))
    assert all(float((resumed[name] - value).abs().max()) < 1e-3 for name, value in mean.items())
