"""Starts training in a process of its own that outlives the one that asked for it, and says how runs are doing.

Nothing here imports torch. A run is watched through its directory alone, so it does not matter who started it, or
where: a panel that was closed meanwhile, a shell, another machine that shares the folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from ..checkpoints import SUFFIX, safetensors_header, user_checkpoints_folder
from ..errors import CheckpointError, OutputError, SpineSegAIError, TrainingError
from ..files import atomic_write, real_path
from .processes import ProcessId
from .run import STALE_SECONDS, RunDirectory, parse_event, read_saved, replace_json, with_numbers

PROGRESS_SECONDS = 1800.0
"""A run that lives but has not got on for this long has stalled: no step, no case, no validation takes longer."""
_OF_STEPS = ("step", "elapsed", "steps_per_second", "losses")
LOG_BYTES = 20_000
"""Of the end of the log, for `log_tail`."""

_children: list[subprocess.Popen] = []
"""Started here; looked at now and then, so that the ended ones leave the table of processes."""


class State(str, Enum):
    """What a run is doing, or how it ended."""

    STARTING = "starting"
    PREPARING = "preparing"
    RUNNING = "running"
    VALIDATING = "validating"
    STOPPING = "stopping"
    STALLED = "stalled"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    DIED = "died"

    @property
    def is_active(self) -> bool:
        """Whether a process is at work."""
        return self in _ACTIVE


_ACTIVE = {State.STARTING, State.PREPARING, State.RUNNING, State.VALIDATING, State.STOPPING, State.STALLED}


@dataclass(frozen=True)
class RunReport:
    """How a run is doing.

    Attributes:
        folder: the run directory.
        name: of the checkpoint that results.
        state: what it is doing.
        message: why it failed, died or stalled, or what it is preparing; may be empty.
        obstacle: why it cannot be resumed; empty if it can, or still runs.
        step, steps: done, and in all.
        progress: share that is done, by steps or hours, whichever is more.
        steps_per_second: on average; None before the first report.
        seconds_left: by steps or hours, whichever ends sooner; None if not known or not running.
        loss: the latest; None before the first report.
        scores: of the latest validation.
        checkpoint: the best so far, else the last; None before there is one.
    """

    folder: Path
    name: str
    state: State
    message: str = ""
    obstacle: str = ""
    step: int = 0
    steps: int = 0
    progress: float = 0.0
    steps_per_second: float | None = None
    seconds_left: float | None = None
    loss: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    checkpoint: Path | None = None

    @property
    def can_resume(self) -> bool:
        """Whether `resume` continues where the run was."""
        return not self.state.is_active and not self.obstacle


@dataclass(frozen=True)
class Devices:
    """What a run computes on.

    Attributes:
        kind: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        cards: numbers of the graphics cards to use, e.g. (0, 1); all that are visible if empty.
        every: one process for each card that may be used; else one process in all.
    """

    kind: str = "auto"
    cards: tuple[int, ...] = ()
    every: bool = False

    def command(self, python: str) -> list[str]:
        """The beginning of the command line, up to the module."""
        if not self.every:
            return [python]
        count = str(len(self.cards)) if self.cards else "gpu"
        return [python, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]

    def environment(self) -> dict[str, str]:
        """Environment variables that choose the cards."""
        return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, self.cards))} if self.cards else {}


# --- start, stop, resume ---------------------------------------------------------------------------------------------


def start(
    folder: str | Path,
    arguments: Sequence[str],
    *,
    devices: Devices | None = None,
    python: str = sys.executable,
    environment: Mapping[str, str] | None = None,
) -> RunReport:
    """Start a new run in a process of its own, which continues when this one ends.

    Args:
        folder: run directory; made if it is not there.
        arguments: of ``spinesegai train``, without ``--output`` and ``--device``.
        devices: what to compute on.
        python: the interpreter.
        environment: more environment variables.

    Raises:
        TrainingError: the folder holds a run already or cannot be written, or the process cannot be started.
    """
    run = RunDirectory(folder)
    if run.config_file.exists() or _launched(run):
        raise TrainingError(f"{run.folder} already holds a run.", "Resume it, or choose another name.")
    return _spawn(run, list(arguments), devices or Devices(), python, environment)


def resume(
    folder: str | Path,
    *,
    devices: Devices | None = None,
    python: str = sys.executable,
    environment: Mapping[str, str] | None = None,
) -> RunReport:
    """Go on with a run that was stopped, failed or died, in a process of its own.

    Raises:
        TrainingError: it still runs, or cannot continue; says why.
    """
    report = status(folder)
    if report.state.is_active:
        raise TrainingError(f"{report.folder} is running.", "Wait for it, or stop it first.")
    if report.obstacle:
        raise TrainingError(f"{report.name} cannot be resumed: {report.obstacle}")
    return _spawn(RunDirectory(folder), ["--resume"], devices or Devices(), python, environment)


def stop(folder: str | Path) -> None:
    """Ask a run to finish its step, save and end, wherever it runs.

    Raises:
        TrainingError: it is not running, or the folder cannot be written.
    """
    report = status(folder)
    if not report.state.is_active:
        raise TrainingError(f"{report.name} is not running.", "There is nothing to stop.")
    try:
        RunDirectory(folder).request_stop()
    except OSError as error:
        raise TrainingError(
            f"{report.folder} cannot be written: {error.strerror}.", "Free space, or end its process."
        ) from None


def _spawn(
    run: RunDirectory, arguments: list[str], devices: Devices, python: str, environment: Mapping[str, str] | None
) -> RunReport:
    library = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(p for p in (library, os.environ.get("PYTHONPATH", "")) if p)
    variables = {
        **os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", "MPLBACKEND": "Agg",
        **devices.environment(), **(environment or {}),
    }  # fmt: skip
    command = [*devices.command(python), "-m", "SpineSegAILib", "train", *arguments]
    command += ["--output", str(real_path(run.folder)), "--device", devices.kind]
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        run.stop_file.unlink(missing_ok=True)
        with run.log_file.open("a", encoding="utf-8") as log:
            log.write(f"\n{time.strftime('%Y-%m-%d %H:%M:%S')} {subprocess.list2cmdline(command)}\n")
            log.flush()
            process = _detached(command, variables, log)
        _children.append(process)
        # Whoever watches knows the process before it has said anything; on some systems, a launcher of Python's.
        replace_json(run.launch_file, {**ProcessId.of(process.pid).as_dict(), "time": time.time()})
    except OSError as error:
        raise TrainingError(
            f"The training process could not be started: {error}.", f"Can {run.folder} be written?"
        ) from error
    return status(run.folder)


def _detached(command: list[str], environment: Mapping[str, str], log: Any) -> subprocess.Popen:
    """A process that neither the end of this one nor its terminal's takes along."""
    settings: dict[str, Any] = {
        "stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT, "env": environment, "close_fds": True,
    }  # fmt: skip
    if sys.platform != "win32":
        return subprocess.Popen(command, start_new_session=True, **settings)
    flags = subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP
    try:
        return subprocess.Popen(command, creationflags=flags | subprocess.CREATE_BREAKAWAY_FROM_JOB, **settings)
    except PermissionError:  # the job that this process belongs to does not let anybody go
        return subprocess.Popen(command, creationflags=flags, **settings)


# --- watch -----------------------------------------------------------------------------------------------------------


class EventReader:
    """Reads a run's events as they come: each call of `events` costs no more than what is new.

    Args:
        run: the run directory.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._file = run.events_file
        self._events: list[dict[str, Any]] = []
        self._offset = 0
        self._inode = 0

    def events(self) -> list[dict[str, Any]]:
        """All events so far."""
        try:
            with self._file.open("rb") as file:
                about = os.fstat(file.fileno())
                if about.st_ino != self._inode or about.st_size < self._offset:  # a resume wrote the file again
                    self._events, self._offset, self._inode = [], 0, about.st_ino
                file.seek(self._offset)
                *lines, _rest = file.read().split(b"\n")
        except OSError:
            return self._events
        for line in lines:
            self._offset += len(line) + 1
            if (event := parse_event(line)) is not None:  # else cut short by a crash
                self._events.append(event)
        return self._events


def status(folder: str | Path, events: Sequence[Mapping[str, Any]] | None = None) -> RunReport:
    """How a run is doing, from its directory alone.

    Args:
        events: of an `EventReader` that watches the run; read here if not given.

    Raises:
        TrainingError: the folder holds no run.
    """
    run = RunDirectory(folder)
    try:
        there = run.config_file.exists() or run.launch_file.exists()
    except OSError as error:
        raise TrainingError(f"{run.folder} cannot be read: {error.strerror}.", "Check its permissions.") from None
    if not there:
        raise TrainingError(f"{run.folder} holds no run.", "Choose the folder that a run writes to.")
    config = read_saved(run.config_file)
    events = run.events() if events is None else events
    state, message = _state(run, events)
    steps = [e for e in events if e.get("event") == "step" and all(key in e for key in _OF_STEPS)]
    steps = [e for e in steps if "total" in e["losses"]]
    step = int(max([run.status().get("step", 0), *(e["step"] for e in steps[-1:])]))
    wanted = config.get("optimization")
    wanted = wanted if isinstance(wanted, dict) else {}
    total, hours = _least(wanted, "steps", "stop_steps"), _least(wanted, "hours", "stop_hours")
    speed = steps[-1]["steps_per_second"] if steps else None
    limit = 3600 * (hours or float("inf"))
    elapsed = steps[-1]["elapsed"] if steps else 0.0
    left = min((total - step) / speed, limit - elapsed) if state.is_active and speed else None
    validations = [e for e in events if e.get("event") == "validation" and "scores" in e]
    return RunReport(
        folder=run.folder,
        name=str(config.get("name") or run.folder.name),
        state=state,
        message=message,
        obstacle="" if state.is_active else _obstacle(run, state),
        step=step,
        steps=int(total),
        progress=1.0 if state is State.FINISHED else min(max(step / max(total, 1), elapsed / limit), 1.0),
        steps_per_second=speed,
        seconds_left=None if left is None else max(left, 0.0),
        loss=steps[-1]["losses"]["total"] if steps else None,
        scores=validations[-1]["scores"] if validations else {},
        checkpoint=next((path for path in (run.best, run.last) if path.exists()), None),
    )


def log_tail(folder: str | Path, lines: int = 30) -> str:
    """The last lines that a run printed; of a progress bar, only the latest state."""
    try:
        with RunDirectory(folder).log_file.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - LOG_BYTES, 0))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    shown = [line.rstrip("\r").rsplit("\r", 1)[-1].rstrip() for line in text.split("\n")]
    return "\n".join([line for line in shown if line][-lines:])


def offer(folder: str | Path) -> Path | None:
    """Put the checkpoint of a run that has ended among the user's checkpoints, where segmenting finds it.

    Does so once per checkpoint: what the user deletes or renames there afterwards stays that way.

    Returns:
        the new file; None if there is nothing new.

    Raises:
        OutputError: it cannot be written.
    """
    report = status(folder)
    if report.state not in (State.FINISHED, State.STOPPED) or report.checkpoint is None:
        return None
    note = report.folder / "offered.json"
    made = report.checkpoint.stat().st_mtime_ns
    before = read_saved(note)
    if before.get("made") == made:
        return None
    target = user_checkpoints_folder() / f"{report.folder.name}{SUFFIX}"
    number = 1
    while target.exists() and before.get("file") != str(target):  # somebody else's
        number += 1
        target = target.with_name(f"{report.folder.name}-{number}{SUFFIX}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as (part,):
            shutil.copyfile(report.checkpoint, part)
        replace_json(note, {"made": made, "file": str(target)})
    except OSError as error:
        raise OutputError(
            f"{target} cannot be written: {error.strerror}.", "Free space, or check the folder."
        ) from None
    return target


def _begun(path: Path) -> float:
    run = RunDirectory(path)
    return max((f.stat().st_mtime for f in (run.config_file, run.launch_file) if f.exists()), default=0.0)


def _launched(run: RunDirectory) -> bool:
    """Whether a process that was started for the run lives, maybe without having said anything yet."""
    for child in list(_children):
        if child.poll() is not None:
            _children.remove(child)
    launched = ProcessId.read(read_saved(run.launch_file))
    return launched is not None and launched.is_alive


def _state(run: RunDirectory, events: Sequence[Mapping[str, Any]]) -> tuple[State, str]:
    said = run.status()
    if not run.is_alive():
        launch = with_numbers(read_saved(run.launch_file))
        if _launched(run) and said.get("heartbeat", 0.0) < launch.get("time", 0.0):
            return State.STARTING, ""
        return _ending(run, said, events)
    silence = run.silence()
    owner = run.owner()
    if said.get("pid") != (owner.pid if owner else None):
        return State.STARTING, ""  # it has the lock and not yet said anything
    if silence > STALE_SECONDS:
        return State.STALLED, f"Its process is running, but has not reported for {_duration(silence)}."
    still = time.time() - said.get("progressed", 0.0)
    if still > PROGRESS_SECONDS:
        return State.STALLED, f"It has not got on for {_duration(still)}."
    if run.stop_requested:
        return State.STOPPING, "It finishes its step and saves."
    doing = next((state for state in State if state.value == said.get("state")), State.RUNNING)
    if doing is State.PREPARING and said.get("total"):
        return doing, f"Case {said.get('done', 0)} of {said['total']}"
    return doing, str(said.get("message", ""))


def _ending(run: RunDirectory, said: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> tuple[State, str]:
    launched = with_numbers(read_saved(run.launch_file)).get("time", 0.0)
    if said.get("state") in ("finished", "stopped") and said.get("heartbeat", 0.0) >= launched:
        return State(said["state"]), ""
    last = events[-1] if events else {}
    if said.get("heartbeat", 0.0) >= launched and (said.get("state") == "failed" or last.get("event") == "error"):
        return State.FAILED, str(said.get("message") or last.get("message", ""))
    words = log_tail(run.folder, 2)
    if said.get("heartbeat", 0.0) < launched or not said:  # it ended before it had begun: its last words say why
        return State.FAILED, words or "Its process ended before it began."
    owner = run.owner()
    who = f"Its process ({owner.pid})" if owner else "Its process"
    return State.DIED, f"{who} is gone without a word: killed, out of memory, or the computer was switched off."


def _obstacle(run: RunDirectory, state: State) -> str:
    """Why a run that has ended cannot continue; empty if it can."""
    if state is State.FINISHED:
        return "It is finished. Start a new run from its checkpoint to train on."
    if not run.config_file.exists():
        return "It ended before it had begun. Start it again."
    try:
        run.config()
    except SpineSegAIError as error:
        return error.message
    if run.state_file.exists() and not _is_whole(run.state_file):
        return f"What it saved ({run.state_file}) is damaged. Start a new run from its checkpoint."
    if not os.access(run.folder, os.W_OK):
        return f"{run.folder} cannot be written."
    return ""


def _is_whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says, and holds something."""
    try:
        header, _ = safetensors_header(path)
    except CheckpointError:
        return False
    return any(name != "__metadata__" for name in header)


def _least(table: Mapping[str, Any], *keys: str) -> float:
    """The smallest of the numbers of a configuration; 0 where there is none."""
    return min(filter(None, (_amount(table, key) for key in keys)), default=0)


def _amount(table: Mapping[str, Any], key: str) -> float:
    """A number of a configuration; 0 where there is none, or no sensible one."""
    value = table.get(key)
    return value if isinstance(value, (int, float)) and 0 <= value < 1e12 else 0


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h"
