"""Training as a user meets it: a process that can be killed at any moment and goes on as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_data import write_tiny_dataset

from SpineSegAILib.checkpoints import read_header
from SpineSegAILib.errors import ConfigError, TrainingError
from SpineSegAILib.imaging import Preprocessing
from SpineSegAILib.inference import Predictor
from SpineSegAILib.methods.catalog import make_config
from SpineSegAILib.training.config import DataConfig, OptimizationConfig, TrainingConfig
from SpineSegAILib.training.run import RunDirectory
from SpineSegAILib.training.trainer import TrainingRequest, load_matching, run_training

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
    import SimpleITK as sitk

    run = run_here(config_for(manifest, 30, learning_rate=5e-3, report_every=10), tmp_path / "run")
    losses = list(losses_of(run).values())
    assert losses[-1] < losses[0]
    assert run.status()["state"] == "finished"
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
        "folder, cache = Path(values['folder']), Path(values['cache'])\n"
        "run_training(TrainingRequest(config, folder, values['resume'], 'cpu', cache))\n"
    )
    values = {
        "config": None if request.get("resume") else config.model_dump(mode="json"),
        "folder": str(folder),
        "resume": bool(request.get("resume")),
        "cache": str(Path(config.dataset).parent / "cache"),
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


def test_after_kill_9_the_losses_continue_identically(manifest, tmp_path):
    config = config_for(manifest, 16, report_every=1)
    straight = losses_of(run_here(config, tmp_path / "straight"))
    run = RunDirectory(tmp_path / "killed")
    process = start_process(config, run.folder)
    deadline = time.monotonic() + 120
    while saved_step(run) < 4:
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not run.is_alive()
    resumed = losses_of(run_here(config, run.folder, resume=True))
    assert resumed.keys() == straight.keys()
    assert resumed == straight


def test_two_processes_learn_what_one_does(manifest, tmp_path):
    config = config_for(manifest, 6, report_every=1, ema=0.0)
    one = losses_of(run_here(config, tmp_path / "one"))
    process = start_process(config, tmp_path / "two", processes=2)
    assert process.wait(timeout=240) == 0
    run = RunDirectory(tmp_path / "two")
    assert [e["event"] for e in run.events()].count("finished") == 1
    # Each process reports the mean over its half of the batch; the weights they reach must agree.
    from SpineSegAILib.checkpoints import load_tensors

    a = load_tensors(read_header(RunDirectory(tmp_path / "one").last))
    b = load_tensors(read_header(run.last))
    assert len(one) == 6
    assert max(float((a[k] - b[k]).abs().max()) for k in a) < 0.05


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
    assert (run.state / "bad_batch.safetensors").exists()


def test_fine_tuning_takes_over_what_fits(manifest, tmp_path):
    from SpineSegAILib.methods.catalog import build_method

    run = run_here(config_for(manifest, 2), tmp_path / "run")
    other = build_method(make_config("resenc-unet", "tiny", output="classes"))
    taken = load_matching(other, str(run.last))
    assert 0 < taken < len(other.state_dict())
    with pytest.raises(ConfigError, match="Nothing"):
        load_matching(build_method(make_config("segresnet", "tiny")), str(run.last))


def test_half_written_events_are_passed_over(tmp_path):
    run = RunDirectory(tmp_path)
    run.event("step", step=1)
    with run.events_file.open("a") as file:
        file.write('{"event": "st')
    assert [e["step"] for e in run.events()] == [1]
