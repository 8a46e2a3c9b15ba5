"""Training runs of the scripts that make shipped checkpoints."""

from __future__ import annotations

from pathlib import Path

from SpineSegAILib.training.config import TrainingConfig
from SpineSegAILib.training.run import RunDirectory
from SpineSegAILib.training.trainer import TrainingRequest, run_training


def train_or_resume(config: TrainingConfig, folder: Path, cache: Path) -> RunDirectory:
    """Train, or what is left of it where the folder holds the run; every event is printed.

    Args:
        cache: folder of preprocessed cases.
    """
    run = RunDirectory(folder)
    if run.status().get("state") not in ("stopped", "finished"):
        resume = run.config_file.exists()
        report = lambda event: print(event, flush=True)  # noqa: E731
        run_training(TrainingRequest(config, run.folder, resume, cache=cache, report=report))
    return run
