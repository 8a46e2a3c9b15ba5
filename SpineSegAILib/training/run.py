"""The run directory: what a training run writes and others read. Torch-free, so the panel can watch.

``config.json`` what was asked · ``dataset.json`` the cases as they were at the start, with checksums ·
``events.jsonl`` one line per report (step, losses, validation, messages) · ``status.json`` state and heartbeat ·
``inputs/`` copies of the starting checkpoint and of what the method needs to learn ·
``last.safetensors`` and ``best.safetensors`` checkpoints · ``state/`` what a resume needs · ``curves.png`` and
``preview.png`` pictures of the progress · ``lock.json`` the process that writes here · ``log.txt`` what a detached run
printed · ``stop`` a file whose presence asks the run to finish its step, save and end.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import TrainingError, problems
from ..files import read_json, write_json
from .processes import ProcessId

if TYPE_CHECKING:  # the panel watches runs without what a configuration needs
    from .config import TrainingConfig

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 120.0
"""A process of another machine without a heartbeat for this long counts as dead; one of this machine, as stalled."""
CLAIM_SECONDS = 10.0
"""How old a lock without content is when whoever made it must have died in between."""
BALLAST_BYTES = 1 << 16
"""Kept free for a run's last words on a full disk."""


def replace_json(path: Path, value: Any) -> None:
    """Writes a document to a file that others read meanwhile: whole or not at all."""
    handle, part = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        write_json(Path(part), value)
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def read_saved(path: Path) -> dict[str, Any]:
    """A JSON object; empty if it is missing or damaged."""
    try:
        found = read_json(path, TrainingError)
    except TrainingError:
        return {}
    return found if isinstance(found, dict) else {}


_NUMBERS = ("time", "heartbeat", "progressed", "step", "total", "done", "elapsed", "steps_per_second")
"""Keys of events, of the status and of what a launch leaves, whose values are numbers."""


def with_numbers(saved: Mapping[str, Any]) -> dict[str, Any]:
    """What was saved, without values that should be numbers and are not: a file may be anybody's, or damaged."""
    return {key: value for key, value in saved.items() if key not in _NUMBERS or _is_number(value)}


def parse_event(line: str | bytes) -> dict[str, Any] | None:
    """An event out of its line; None if that is cut short or damaged."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not isinstance(event.get("event"), str) or with_numbers(event) != event:
        return None
    tables = [event[key] for key in ("losses", "scores") if key in event]
    if not all(isinstance(t, dict) and all(v is None or _is_plain(v) for v in t.values()) for t in tables):
        return None
    return event


def _is_plain(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_plain(value) and abs(value) < 1e300  # neither NaN nor infinite


_HALF_WRITTEN = re.compile(
    r"\.(lock\.\d+|events\.part|((config|dataset|status|launch|start|parts)\.json|(last|best|state|bad_batch\w*)\.safetensors"
    r"|(curves|preview)\.png)(\..+)?)"
)
"""Names under which files of a run are written before they take their own."""


def _is_half_written(path: Path) -> bool:
    """Whether a process that was killed left it; nothing else that is hidden is ours."""
    return _HALF_WRITTEN.fullmatch(path.name) is not None


def _names(folder: Path) -> list[str]:
    """Of what is in a folder; none where there is none."""
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return []


class RunDirectory:
    """A run's files.

    Args:
        folder: the run directory.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.config_file = self.folder / "config.json"
        self.dataset_file = self.folder / "dataset.json"
        self.events_file = self.folder / "events.jsonl"
        self.status_file = self.folder / "status.json"
        self.lock_file = self.folder / "lock.json"
        self.log_file = self.folder / "log.txt"
        self.launch_file = self.folder / "launch.json"
        self.last = self.folder / "last.safetensors"
        self.best = self.folder / "best.safetensors"
        self.state = self.folder / "state"
        self.state_file = self.state / "state.safetensors"
        self.inputs = self.folder / "inputs"
        self.start = self.inputs / "start.safetensors"
        self.curves = self.folder / "curves.png"
        self.preview = self.folder / "preview.png"
        self.stop_file = self.folder / "stop"
        self._ballast = self.state / "ballast"
        self._status: dict[str, Any] = {}
        self._writing = threading.Lock()

    # --- for the run itself ----------------------------------------------------------------------------------------

    def create(self, config: TrainingConfig) -> None:
        """Start a new run, and claim it: of several processes that try at once, one succeeds.

        Raises:
            TrainingError: the folder holds a run already, or files of the names that a run's have, or cannot be
                written.
        """
        taken = TrainingError(
            f"{self.folder} already holds a run.", "Resume it with --resume, or choose another folder."
        )
        if self.config_file.exists():
            raise taken
        self._refuse_what_is_not_of_a_run()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.claim()
            if self.config_file.exists():
                self.release()
                raise taken
            replace_json(self.config_file, config.model_dump(mode="json"))
        except OSError as error:
            raise self._not_writable(error) from error

    def claim(self) -> None:
        """Make this process the one that writes here, and tidy up after one that died.

        Raises:
            TrainingError: another process is at work, or the folder cannot be written.
        """
        try:
            self._lock()
            started = ProcessId.of().started + _boot_time()
            if self.stop_file.exists() and self.stop_file.stat().st_mtime < started:
                self.stop_file.unlink(missing_ok=True)  # it was meant for a process before this one
            self.state.mkdir(exist_ok=True)
            for folder in (self.folder, self.state):
                for left in filter(_is_half_written, folder.glob(".*")):
                    shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
            self._ballast.write_bytes(b"\0" * BALLAST_BYTES)
        except OSError as error:
            self.release()
            raise self._not_writable(error) from error

    def _refuse_what_is_not_of_a_run(self) -> None:
        """Raises:
        TrainingError: a new run would take, or write over, a file that is there.
        """
        written = (self.dataset_file, self.events_file, self.last, self.best, self.curves, self.preview)
        kept = [path for path in written if path.exists()]
        kept += [folder for folder in (self.inputs, self.state) if set(_names(folder)) - {self._ballast.name}]
        if kept:
            raise TrainingError(
                f"{self.folder} holds {kept[0].name}, which a new run would write over.",
                "Choose a new or empty folder.",
            )

    def _not_writable(self, error: OSError) -> TrainingError:
        return TrainingError(
            f"The run cannot be written to {self.folder}: {error.strerror}.", "Free space, or check its permissions."
        )

    def _lock(self) -> None:
        me = json.dumps(ProcessId.of().as_dict())
        while True:
            try:
                with self.lock_file.open("x", encoding="utf-8") as file:
                    file.write(me)
                return
            except FileExistsError:
                owner = self.owner()
                if owner is not None and owner.is_me:
                    return
                if self.is_alive():
                    raise self._taken() from None
            # A dead process's lock is moved away, which only one of several can do, and looked at once more: another
            # process may have put its own there meanwhile.
            moved = self.lock_file.with_name(f".lock.{os.getpid()}")
            try:
                os.replace(self.lock_file, moved)
            except FileNotFoundError:
                continue
            if ProcessId.read(read_saved(moved)) != owner:
                os.replace(moved, self.lock_file)
                raise self._taken()
            moved.unlink()

    def _taken(self) -> TrainingError:
        owner = self.owner()
        who = (
            "another process"
            if owner is None
            else f"process {owner.pid}" + ("" if owner.is_here else f" on {owner.host}")
        )
        return TrainingError(f"{self.folder} is being written by {who}.", "Wait for it, or stop it first.")

    def release(self) -> None:
        """The run has ended: others may write here, and a request to stop has been heard."""
        owner = self.owner()
        if owner is not None and owner.is_me:
            self.stop_file.unlink(missing_ok=True)
            self.lock_file.unlink(missing_ok=True)

    def make_room(self) -> None:
        """Give up what was kept free for a full disk."""
        self._ballast.unlink(missing_ok=True)

    def event(self, kind: str, **values: Any) -> None:
        """Append one line to the events."""
        line = json.dumps({"time": round(time.time(), 3), "event": kind, **values}, ensure_ascii=False)
        with self.events_file.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def truncate_events(self, step: int) -> None:
        """On resume: forget reports of steps that were done after the saved state and will be done again."""
        kept = [e for e in self.events() if e.get("step", 0) <= step]
        part = self.events_file.with_name(".events.part")
        part.write_text("".join(json.dumps(e, ensure_ascii=False) + "\n" for e in kept), encoding="utf-8")
        os.replace(part, self.events_file)

    def beat(self, state: str, *, force: bool = False, **values: Any) -> None:
        """Say what the run is doing. The file is written now if it is something else, or forced; else by the heartbeat.

        Raises:
            OSError: it cannot be written.
        """
        with self._writing:
            new = force or state != self._status.get("state")
            self._status = {"state": state, "progressed": time.time(), **values}
            if new:
                self._write_status()

    def _write_status(self) -> None:
        replace_json(self.status_file, {**self._status, **ProcessId.of().as_dict(), "heartbeat": time.time()})

    @contextmanager
    def beating(self, also: Callable[[], Any] = lambda: None) -> Iterator[None]:
        """Write the status every few seconds, whatever the run is busy with.

        Args:
            also: done with every beat.
        """
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(HEARTBEAT_SECONDS):
                also()
                with self._writing, suppress(OSError):  # a full disk: the run itself will notice and say so
                    self._write_status()

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """No heartbeat is being written inside: a good moment to copy the process."""
        with self._writing:
            yield

    @property
    def stop_requested(self) -> bool:
        """True once somebody asked the run to stop."""
        return self.stop_file.exists()

    # --- for those who watch -----------------------------------------------------------------------------------------

    def config(self) -> TrainingConfig:
        """What was asked.

        Raises:
            TrainingError: this is not a run directory, or its configuration is damaged.
        """
        from pydantic import ValidationError

        from .config import TrainingConfig

        try:
            return TrainingConfig.model_validate_json(self.config_file.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise TrainingError(f"{self.folder} holds no run.", "Start one without --resume.") from None
        except OSError as error:
            raise TrainingError(
                f"{self.config_file} cannot be read: {error.strerror}.", "Check the path and its permissions."
            ) from None
        except ValidationError as error:
            raise TrainingError(f"{self.config_file} is damaged: {problems(error)}.", "Start a new run.") from None
        except ValueError as error:
            raise TrainingError(f"{self.config_file} is damaged: {error}.", "Start a new run.") from None

    def status(self) -> dict[str, Any]:
        """The last status; empty if there is none."""
        return with_numbers(read_saved(self.status_file))

    def owner(self) -> ProcessId | None:
        """The process that holds the lock, or held it when it died."""
        return ProcessId.read(read_saved(self.lock_file))

    def is_alive(self) -> bool:
        """True if a process writes here: for one of another machine, if it has shown signs of life lately."""
        owner = self.owner()
        if owner is None:  # no lock, or one that is being written right now
            with suppress(OSError):
                return time.time() - self.lock_file.stat().st_mtime < CLAIM_SECONDS
            return False
        return owner.is_alive if owner.is_here else self.silence() < STALE_SECONDS

    def silence(self) -> float:
        """Seconds since the last heartbeat; infinite without one."""
        return max(time.time() - self.status().get("heartbeat", float("-inf")), 0.0)

    def events(self) -> list[dict[str, Any]]:
        """All whole lines of the events; a line cut short by a crash is omitted."""
        try:
            lines = self.events_file.read_bytes().split(b"\n")
        except OSError:
            return []
        return [event for line in lines if (event := parse_event(line)) is not None]

    def request_stop(self) -> None:
        """Ask the run to finish its step, save and end."""
        self.stop_file.touch()


def _boot_time() -> float:
    import psutil

    return psutil.boot_time()
