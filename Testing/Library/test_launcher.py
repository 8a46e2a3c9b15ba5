"""Runs in processes of their own: started, watched, stopped, killed and resumed, by their directory alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_data import write_tiny_dataset

from SpineSegAILib.errors import TrainingError
from SpineSegAILib.training import launcher
from SpineSegAILib.training.config import TrainingConfig
from SpineSegAILib.training.launcher import Devices, EventReader, State
from SpineSegAILib.training.processes import ProcessId
from SpineSegAILib.training.run import RunDirectory, replace_json

ROOT = Path(__file__).parents[2]
CPU = Devices("cpu")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    return write_tiny_dataset(tmp_path_factory.mktemp("tiny"), training=2)


def words(manifest: Path, *more: str) -> list[str]:
    """What `spinesegai train` is told for a run that goes on until it is stopped."""
    settings = {
        "data.patch": "[64,64]", "preprocessing.pixel_mm": "3", "optimization.batch": "2", "optimization.workers": "0",
        "optimization.report_every": "1", "optimization.save_every": "5", "optimization.validate_every": "50",
    }  # fmt: skip
    flags = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return [str(manifest), "--preset", "tiny", "--steps", "100000", *flags, *more]


def wait_for(condition, folder: Path, seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, launcher.log_tail(folder)
        time.sleep(0.05)


def test_a_run_outlives_who_started_it_and_can_be_stopped_killed_and_resumed(manifest, tmp_path):
    folder = tmp_path / "runs" / "first"
    code = (
        "import json, sys\n"
        "from SpineSegAILib.training.launcher import Devices, start\n"
        "report = start(sys.argv[1], json.loads(sys.argv[2]), devices=Devices('cpu'))\n"
        "print(report.state.value)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(folder), json.dumps(words(manifest))]
    started = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=60)
    assert started.stdout.strip() == "starting", started.stderr
    # Whoever started it is gone.
    run = RunDirectory(folder)
    reader = EventReader(run)
    wait_for(lambda: launcher.status(folder, reader.events()).step >= 3, folder)
    report = launcher.status(folder, reader.events())
    assert report.state is State.RUNNING
    assert report.steps == 100000
    assert report.steps_per_second > 0
    assert report.seconds_left > 0
    assert report.loss > 0
    assert not report.can_resume
    with pytest.raises(TrainingError, match="already holds a run"):
        launcher.start(folder, words(manifest))
    with pytest.raises(TrainingError, match="is running"):
        launcher.resume(folder)

    launcher.stop(folder)
    wait_for(lambda: launcher.status(folder).state is State.STOPPED, folder)
    wait_for(lambda: not run.owner(), folder)
    with pytest.raises(TrainingError, match="not running"):
        launcher.stop(folder)
    report = launcher.status(folder)
    assert report.can_resume
    assert report.checkpoint == run.last

    stopped_at = report.step
    assert launcher.resume(folder, devices=CPU).state is State.STARTING
    wait_for(lambda: launcher.status(folder, reader.events()).step > stopped_at + 3, folder)
    os.kill(run.owner().pid, signal.SIGKILL)
    wait_for(lambda: not launcher.status(folder).state.is_active, folder)
    report = launcher.status(folder)
    assert report.state is State.DIED
    assert "gone without a word" in report.message
    assert report.can_resume
    steps = [e["step"] for e in reader.events() if e["event"] == "step"]
    assert steps == sorted(set(steps)), "no step was reported twice"
    assert "--resume" in launcher.log_tail(folder)


def test_a_run_that_cannot_begin_says_why(manifest, tmp_path):
    folder = tmp_path / "run"
    launcher.start(folder, words(manifest, "--set", "data.patch=[50,64]"), devices=CPU)
    wait_for(lambda: not launcher.status(folder).state.is_active, folder)
    report = launcher.status(folder)
    assert report.state is State.FAILED
    assert "multiples of" in report.message
    assert not report.can_resume
    assert "Start it again" in report.obstacle
    with pytest.raises(TrainingError, match="cannot be resumed"):
        launcher.resume(folder)


def test_a_checkpoint_is_offered_once_and_takes_nobodys_place(tmp_path, monkeypatch):
    home = tmp_path / "home"
    monkeypatch.setattr(Path, "home", classmethod(lambda cls: home))
    folder = tmp_path / "mine"
    run = RunDirectory(folder)
    folder.mkdir()
    replace_json(run.config_file, {"name": "Mine"})
    run.last.write_bytes(b"first")
    assert launcher.offer(folder) is None  # it has not ended
    replace_json(run.status_file, {"state": "stopped", "heartbeat": time.time()})
    other = home / "SpineSegAI/Checkpoints/mine.safetensors"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"somebody else's")
    made = launcher.offer(folder)
    assert made.name == "mine-2.safetensors"
    assert made.read_bytes() == b"first"
    assert other.read_bytes() == b"somebody else's"
    assert launcher.offer(folder) is None
    run.last.write_bytes(b"second, after a resume")
    os.utime(run.last, (time.time() + 5, time.time() + 5))
    assert launcher.offer(folder) == made
    assert made.read_bytes() == b"second, after a resume"


def test_commands_for_several_devices():
    assert Devices("cuda").command("python") == ["python"]
    every = Devices("cuda", every=True).command("python")
    assert every[1:3] == ["-m", "torch.distributed.run"]
    assert every[-1] == "--nproc-per-node=gpu"
    two = Devices("cuda", (0, 3), every=True)
    assert two.command("python")[-1] == "--nproc-per-node=2"
    assert two.environment() == {"CUDA_VISIBLE_DEVICES": "0,3"}


def test_a_run_folder_that_cannot_be_made_is_a_message(manifest, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrainingError, match="cannot be written"):
        RunDirectory(tmp_path / "file/run").create(TrainingConfig(method={}, dataset=str(manifest)))


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="holds no run"):
        launcher.status(tmp_path)


# --- the lock --------------------------------------------------------------------------------------------------------


@pytest.fixture
def sleeper():
    """A process that lives and does nothing."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    yield process
    process.kill()
    process.wait()


def test_two_processes_cannot_write_to_one_run(tmp_path, sleeper):
    run = RunDirectory(tmp_path)
    replace_json(run.lock_file, ProcessId.of(sleeper.pid).as_dict())
    with pytest.raises(TrainingError, match=f"written by process {sleeper.pid}"):
        run.claim()
    sleeper.kill()  # not waited for: it stays in the table of processes
    deadline = time.monotonic() + 10
    while run.is_alive():
        assert time.monotonic() < deadline
    run.claim()
    assert run.owner().is_me
    run.release()
    assert not run.lock_file.exists()


def test_of_processes_that_start_at_once_one_has_the_run(manifest, tmp_path):
    """Four processes that wait for the same moment and then all want the same new folder."""
    code = (
        "import sys, time\n"
        "from SpineSegAILib.errors import TrainingError\n"
        "from SpineSegAILib.training.config import TrainingConfig\n"
        "from SpineSegAILib.training.run import RunDirectory\n"
        "run = RunDirectory(sys.argv[1])\n"
        "config = TrainingConfig(method={}, dataset='d', name=sys.argv[3])\n"
        "time.sleep(max(float(sys.argv[2]) - time.time(), 0))\n"
        "try:\n"
        "    run.create(config)\n"
        "    print(run.config().name == sys.argv[3], flush=True)\n"
        "    time.sleep(3)\n"
        "except TrainingError as error:\n"
        "    print(error.message)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(tmp_path / "run"), str(time.time() + 8)]
    processes = [
        subprocess.Popen([*command, f"n{n}"], env=environment, stdout=subprocess.PIPE, text=True, encoding="utf-8")
        for n in range(4)
    ]
    said = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert said.count("True") == 1, said
    assert all("being written by" in words or "already holds" in words for words in said if words != "True"), said


def test_a_number_that_was_given_to_another_process_does_not_lock(tmp_path, sleeper):
    run = RunDirectory(tmp_path)
    earlier = ProcessId.of(sleeper.pid).as_dict()
    replace_json(run.lock_file, {**earlier, "started": earlier["started"] - 60})
    run.claim()
    assert run.owner().is_me


def test_a_lock_of_another_machine_counts_while_it_shows_signs_of_life(tmp_path):
    run = RunDirectory(tmp_path)
    replace_json(run.lock_file, {"pid": 1, "started": 1.0, "host": "elsewhere"})
    replace_json(run.status_file, {"state": "running", "pid": 1, "heartbeat": time.time() - 30})
    with pytest.raises(TrainingError, match="on elsewhere"):
        run.claim()
    replace_json(run.status_file, {"state": "running", "pid": 1, "heartbeat": time.time() - 300})
    run.claim()
    assert run.owner().is_me


def test_a_lock_without_content_is_respected_until_it_is_old(tmp_path):
    run = RunDirectory(tmp_path)
    run.lock_file.touch()
    with pytest.raises(TrainingError, match="another process"):
        run.claim()
    os.utime(run.lock_file, (time.time() - 60, time.time() - 60))
    run.claim()
    assert run.owner().is_me


def test_an_old_request_to_stop_is_not_meant_for_the_next_process(tmp_path):
    run = RunDirectory(tmp_path)
    run.request_stop()
    os.utime(run.stop_file, (1e9, 1e9))
    run.claim()
    assert not run.stop_requested
    run.request_stop()  # while it is starting
    run.claim()
    assert run.stop_requested


# --- what is seen from outside ---------------------------------------------------------------------------------------


def watched(folder: Path, **status) -> RunDirectory:
    run = RunDirectory(folder)
    replace_json(run.config_file, {"name": "Run", "optimization": {"steps": 100, "hours": 1.0}})
    run.claim()
    now = time.time()
    me = ProcessId.of().as_dict()
    replace_json(run.status_file, {"state": "running", **me, "heartbeat": now, "progressed": now, "step": 7, **status})
    return run


def test_a_run_that_shows_no_sign_of_life_has_stalled(tmp_path):
    watched(tmp_path, heartbeat=time.time() - 600)
    report = launcher.status(tmp_path)
    assert report.state is State.STALLED
    assert "10 min" in report.message


def test_a_run_that_does_not_get_on_has_stalled(tmp_path):
    watched(tmp_path, progressed=time.time() - 3 * 3600)
    report = launcher.status(tmp_path)
    assert report.state is State.STALLED
    assert "3 h" in report.message


def test_a_clock_that_was_set_back_is_no_stall(tmp_path):
    watched(tmp_path, heartbeat=time.time() + 7200, progressed=time.time() + 7200)
    assert launcher.status(tmp_path).state is State.RUNNING


def test_time_left_is_by_steps_or_hours_whichever_ends_sooner(tmp_path):
    run = watched(tmp_path)
    run.event("step", step=10, losses={"total": 1.0}, steps_per_second=0.5, elapsed=20.0)
    assert launcher.status(tmp_path).seconds_left == pytest.approx(180)
    assert launcher.status(tmp_path).progress == pytest.approx(0.1)
    run.event("step", step=11, losses={"total": 1.0}, steps_per_second=0.001, elapsed=3000.0)
    assert launcher.status(tmp_path).seconds_left == pytest.approx(600)
    assert launcher.status(tmp_path).progress == pytest.approx(3000 / 3600)


def test_time_left_ends_where_the_run_is_told_to_stop(tmp_path):
    run = watched(tmp_path)
    run.event("step", step=10, losses={"total": 1.0}, steps_per_second=0.5, elapsed=20.0)
    config = json.loads(run.config_file.read_text(encoding="utf-8"))
    config["optimization"] |= {"stop_steps": 20, "stop_hours": 0.5}
    run.config_file.write_text(json.dumps(config), encoding="utf-8")
    report = launcher.status(tmp_path)
    assert report.steps == 20 and report.seconds_left == pytest.approx(20) and report.progress == pytest.approx(0.5)


def test_events_are_read_as_they_come(tmp_path):
    run = RunDirectory(tmp_path)
    reader = EventReader(run)
    assert reader.events() == []
    run.event("step", step=1)
    with run.events_file.open("a", encoding="utf-8") as file:
        file.write('{"event": "st')
    assert [e["step"] for e in reader.events()] == [1]
    with run.events_file.open("a", encoding="utf-8") as file:
        file.write('ep", "step": 2}\n')
    assert [e["step"] for e in reader.events()] == [1, 2]
    run.truncate_events(1)
    run.event("step", step=2, again=True)
    assert [e.get("again") for e in reader.events()] == [None, True]


def test_the_log_shows_the_latest_state_of_a_progress_bar(tmp_path):
    RunDirectory(tmp_path).log_file.write_bytes(b"a\n 10%\r 20%\r 30%\nlast\n")
    assert launcher.log_tail(tmp_path) == "a\n 30%\nlast"
    assert launcher.log_tail(tmp_path, 1) == "last"


ODD = ["", "{", "[]", "5", '"x"', "null", "[" * 100_000, "{}", "\0", '{"event": 5}', '{"event": "step"}',
       '{"event": "step", "step": "x", "losses": {"total": 1}, "elapsed": 1, "steps_per_second": 1}',
       '{"event": "step", "step": 1, "losses": [], "elapsed": 1, "steps_per_second": 1}',
       '{"event": "step", "step": 1, "losses": {"total": "x"}, "elapsed": 1, "steps_per_second": 1}',
       '{"event": "step", "step": 1, "losses": {"total": 1}, "elapsed": 1e999, "steps_per_second": 0}',
       '{"event": "validation", "scores": 5}', '{"event": "validation"}', '{"event": "error", "message": [1]}',
       '{"optimization": []}', '{"optimization": {"steps": "x", "hours": []}, "name": [1]}',
       '{"optimization": {"steps": -1, "hours": -5}}', '{"pid": "x", "started": 1, "host": "h"}',
       '{"pid": 1e400, "started": 1, "host": "h"}', '{"pid": -4, "started": 1, "host": "h"}',
       '{"pid": 99999999999, "started": 1, "host": "h"}', 
       '{"state": [], "heartbeat": "x", "progressed": {}, "step": null}',
       '{"state": "preparing", "heartbeat": 1e999, "total": "x"}', '{"state": "preparing", "total": 5, "step": 1e308}',
       '{"time": "x"}', '{"time": 1e999}']  # fmt: skip
FILES = ("config.json", "events.jsonl", "status.json", "lock.json", "launch.json", "state/state.safetensors", "log.txt")


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_of_a_run_stop_no_list(tmp_path, name):
    whole = {
        "config.json": '{"name": "mine", "optimization": {"steps": 10}}',
        "events.jsonl": '{"event": "step", "step": 3, "losses": {"total": 0.5}, "elapsed": 4, "steps_per_second": 1}\n',
        "status.json": '{"state": "running", "heartbeat": 1, "progressed": 1, "step": 3}',
    }
    for number, text in enumerate([*ODD, None]):
        folder = tmp_path / str(number)
        (folder / "state").mkdir(parents=True)
        for file, content in whole.items():
            (folder / file).write_text(content)
        if text is None:
            (folder / name).unlink(missing_ok=True)
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(text.encode() + b"\xff\n")
            (folder / name).write_text(text + "\n")
        report = launcher.status(folder)
        assert isinstance(report.step, int) and 0 <= report.progress <= 1 and isinstance(report.message, str)
        assert launcher.status(folder, EventReader(RunDirectory(folder)).events()) == report
        launcher.log_tail(folder)


def test_a_run_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for folder in (tmp_path / "loop" / "run", tmp_path / ("x" * 300)):
        with pytest.raises(TrainingError):
            launcher.status(folder)
