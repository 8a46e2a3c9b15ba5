"""The run directory: what a training run writes and others read. Torch-free, so the panel can watch.

``config.json`` what was asked · ``events.jsonl`` one line per report (step, losses, validation, messages) ·
``status.json``
state and heartbeat · ``last.safetensors`` and ``best.safetensors`` checkpoints · ``state/`` what a resume needs ·
``stop`` a file whose presence asks the run to finish its step, save and end.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from ..errors import TrainingError
from .config import TrainingConfig

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 120.0
"""A run without a heartbeat for this long has died."""


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    handle, part = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=1, ensure_ascii=False)
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


class RunDirectory:
    """A run's files.

    Args:
        folder: the run directory.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.config_file = self.folder / "config.json"
        self.events_file = self.folder / "events.jsonl"
        self.status_file = self.folder / "status.json"
        self.last = self.folder / "last.safetensors"
        self.best = self.folder / "best.safetensors"
        self.state = self.folder / "state"
        self.stop_file = self.folder / "stop"
        self._last_beat = 0.0

    # --- for the run itself ----------------------------------------------------------------------------------------

    def create(self, config: TrainingConfig) -> None:
        """Start a new run.

        Raises:
            TrainingError: the folder holds a run already, or cannot be written.
        """
        if self.config_file.exists():
            raise TrainingError(
                f"{self.folder} already holds a run.", "Resume it with --resume, or choose another folder."
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.config_file, config.model_dump(mode="json"))
        except OSError as error:
            raise TrainingError(
                f"The run cannot be written to {self.folder}: {error.strerror}.", "Choose another folder."
            ) from error

    def claim(self) -> None:
        """Make sure that no living process writes to this run, and remove an old stop request.

        Raises:
            TrainingError: another process is at work.
        """
        status = self.status()
        if status.get("state") == "running" and self.is_alive(status) and status.get("pid") != os.getpid():
            raise TrainingError(
                f"{self.folder} is being written by process {status['pid']}.", "Wait for it, or stop it first."
            )
        self.stop_file.unlink(missing_ok=True)

    def event(self, kind: str, **values: Any) -> None:
        """Append one line to the events."""
        line = json.dumps({"time": round(time.time(), 3), "event": kind, **values}, ensure_ascii=False)
        with self.events_file.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def truncate_events(self, step: int) -> None:
        """On resume: forget reports of steps that were done after the saved state and will be done again."""
        kept = [e for e in self.events() if e.get("step", 0) <= step]
        part = self.events_file.with_suffix(".part")
        part.write_text("".join(json.dumps(e, ensure_ascii=False) + "\n" for e in kept), encoding="utf-8")
        os.replace(part, self.events_file)

    def beat(self, state: str, *, force: bool = False, **values: Any) -> None:
        """Write the status, at most every `HEARTBEAT_SECONDS` unless forced."""
        now = time.time()
        if force or now - self._last_beat >= HEARTBEAT_SECONDS:
            self._last_beat = now
            write_json(self.status_file, {"state": state, "pid": os.getpid(), "heartbeat": now, **values})

    @property
    def stop_requested(self) -> bool:
        """True once somebody asked the run to stop."""
        return self.stop_file.exists()

    # --- for those who watch -----------------------------------------------------------------------------------------

    def config(self) -> TrainingConfig:
        """What was asked.

        Raises:
            TrainingError: this is no run directory, or its configuration is damaged.
        """
        try:
            return TrainingConfig.model_validate_json(self.config_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise TrainingError(f"{self.folder} holds no run.", "Start one without --resume.") from None
        except ValueError as error:
            raise TrainingError(f"{self.config_file} is damaged: {error}.", "Start a new run.") from None

    def status(self) -> dict[str, Any]:
        """The last status; empty if there is none."""
        try:
            return json.loads(self.status_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def is_alive(self, status: dict[str, Any] | None = None) -> bool:
        """True if the run's process exists and its heartbeat is fresh."""
        import psutil

        status = self.status() if status is None else status
        fresh = time.time() - status.get("heartbeat", 0.0) < STALE_SECONDS
        return fresh and psutil.pid_exists(int(status.get("pid", -1)))

    def events(self) -> list[dict[str, Any]]:
        """All whole lines of the events; a line cut short by a crash is left out."""
        found = []
        if self.events_file.exists():
            for line in self.events_file.read_text(encoding="utf-8").splitlines():
                try:
                    found.append(json.loads(line))
                except ValueError:
                    continue
        return found

    def request_stop(self) -> None:
        """Ask the run to finish its step, save and end."""
        self.stop_file.touch()
