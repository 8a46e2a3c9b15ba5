"""nnU-Net's commands: what they are given, and what they took."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, Field

from ...errors import MissingPackageError, SpineSegAIError
from .dataset import DATASET, NUMBER, write_with_folder

TRAINER = "SpineSegAITimedTrainer"
OWN_PLANS = "nnUNetPlans"
OWN_STEPS = 1000 * 250
"""Iterations of nnU-Net's own training: epochs times the length of one."""


class NnunetSettings(BaseModel):
    """What nnU-Net is given, as `set` of its entry; it has no seed, and chooses all else itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    configuration: str = Field("2d", description="2d, 3d_fullres …")
    plans: str = Field(OWN_PLANS, description="name of its plans, such as nnUNetResEncUNetMPlans")
    planner: str = Field("nnUNetPlannerResEncM", description="makes other plans than nnUNetPlans")
    memory_gb: float | None = Field(
        None, gt=0, description="what its plan is made for; by default its own 8, on a processor a step per minute"
    )
    iterations: int = Field(50, ge=1, description="steps between two of its validations (its own 250 are long there)")

    @property
    def plans_name(self) -> str:
        """nnU-Net wants another name where the memory is not what it usually takes."""
        return f"{self.plans}_{self.memory_gb:g}GB" if self.memory_gb else self.plans

    @property
    def plan_words(self) -> list[str]:
        """Options that make plans of this name."""
        words = [] if self.plans_name == OWN_PLANS else ["-overwrite_plans_name", self.plans_name]
        words += [] if self.plans == OWN_PLANS else ["-pl", self.planner]
        return words + (["-gpu_memory_target", f"{self.memory_gb:g}"] if self.memory_gb else [])


def require_nnunet(row: str) -> None:
    """Looks whether nnU-Net can be run.

    Args:
        row: name of the entry.

    Raises:
        MissingPackageError: it is not installed, and how to get it.
    """
    if find_spec("nnunetv2") is None or shutil.which("nnUNetv2_train", path=_path()) is None:
        raise MissingPackageError(
            f"nnU-Net v2, which “{row}” runs, is not installed in this environment.",
            f"pip install nnunetv2; or omit the row: --without “{row}”.",
        )


class Nnunet:
    """nnU-Net in a folder.

    Args:
        folder: of all that it writes.
        settings: of the entry.
        device: ``"cpu"`` or ``"cuda"``.
        seconds: how long it may train; None for no limit.
        steps: how many steps; None for no limit.
        say: told which command is run.
    """

    def __init__(
        self,
        folder: Path,
        settings: NnunetSettings,
        device: str,
        seconds: float | None,
        steps: int | None,
        say: Callable[[str], None],
    ) -> None:
        self.folder, self.settings, self.device, self.say = folder.resolve(), settings, device, say
        self.seconds, self.steps = seconds, steps

    @property
    def results(self) -> Path:
        """Where its training leaves its files."""
        name = f"{TRAINER}__{self.settings.plans_name}__{self.settings.configuration}"
        return self.folder / "nnUNet_results" / DATASET / name / "fold_0"

    @property
    def checkpoint(self) -> Path:
        """What its training ends with."""
        return self.results / "checkpoint_final.pth"

    def train(self) -> None:
        """Plans, preprocesses and trains, as far as that is not done."""
        s, planned = self.settings, self.folder / "planned.json"
        if not planned.exists():
            words = ["-d", NUMBER, "-c", s.configuration, "--verify_dataset_integrity", "-np", "2", *s.plan_words]
            seconds, _ = self.run(["nnUNetv2_plan_and_preprocess", *words])
            write_with_folder({"seconds": seconds}, planned)
        if not self.checkpoint.exists():
            words = [NUMBER, s.configuration, "0", "-tr", TRAINER, "-p", s.plans_name, "-device", self.device]
            words += ["--c"] if (self.results / "checkpoint_latest.pth").exists() else []
            self.run(["nnUNetv2_train", *words])

    def predict(self, images: Path, target: Path) -> tuple[float, float]:
        """Segments a folder of images; seconds, and the memory (MB) of all its processes together."""
        s = self.settings
        words = ["-i", str(images), "-o", str(target), "-d", NUMBER, "-c", s.configuration, "-f", "0"]
        words += ["-tr", TRAINER, "-p", s.plans_name, "-device", self.device, "-npp", "1", "-nps", "1"]
        return self.run(["nnUNetv2_predict", *words])

    def run(self, command: Sequence[str]) -> tuple[float, float]:
        """Runs a command, its words in ``log.txt``."""
        self.say(" ".join(command))
        return run(command, self.environment(), self.folder / "log.txt")

    def environment(self) -> dict[str, str]:
        """What its commands are given beside their words."""
        folders = {name: str(self.folder / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        limits = {"SPINESEGAI_SECONDS": self.seconds, "SPINESEGAI_STEPS": self.steps}
        return {
            **os.environ, **folders, "PATH": _path(), "nnUNet_compile": "f",
            "nnUNet_extTrainer": str(Path(__file__).parent / "trainer"),
            "SPINESEGAI_ITERATIONS": str(min(self.settings.iterations, self.steps or self.settings.iterations)),
            **{name: str(value) for name, value in limits.items() if value is not None},
        }  # fmt: skip


def run(command: Sequence[str], env: Mapping[str, str], log: Path) -> tuple[float, float]:
    """Runs a command; seconds and the largest memory (MB) of it and its children together.

    Args:
        log: what the command says is added to it.

    Raises:
        SpineSegAIError: it failed.
    """
    started, peak = time.perf_counter(), 0.0
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as words:
        words.write(f"$ {' '.join(command)}\n".encode())
        words.flush()
        process = subprocess.Popen(command, env=dict(env), stdout=words, stderr=subprocess.STDOUT)
    ended = threading.Event()

    def look() -> None:
        nonlocal peak
        while not ended.wait(0.5):  # looking costs time, too
            with suppress(psutil.Error):
                peak = max(peak, sum(p.memory_info().rss for p in _family(process.pid)) / 2**20)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        code = process.wait()
    except BaseException:
        for member in reversed(_family(process.pid)):
            with suppress(psutil.Error):
                member.kill()
        raise
    finally:
        ended.set()
        thread.join()
    if code:
        raise SpineSegAIError(f"{command[0]} failed with exit code {code}.", f"Its own message is at the end of {log}.")
    return time.perf_counter() - started, peak


def _family(pid: int) -> list[psutil.Process]:
    try:
        whole = psutil.Process(pid)
        return [whole, *whole.children(recursive=True)]
    except psutil.Error:
        return []


def _path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
