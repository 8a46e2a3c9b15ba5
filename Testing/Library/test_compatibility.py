"""What earlier versions wrote is still read."""

import shutil
from pathlib import Path

import pytest

from SpineSegAILib.checkpoints import read_header
from SpineSegAILib.training import launcher
from SpineSegAILib.training.request import TrainingRequest
from SpineSegAILib.training.run import RunDirectory
from SpineSegAILib.training.trainer import run_training

RUN = Path(__file__).parent / "data/run_of_version_0.1"
AUTO, BF16 = (f'"mixed_precision": "{name}"' for name in ("auto", "bf16"))
"""What that meant where the run was recorded; processors differ in it."""
LOSSES = [5.66826, 5.4347]
"""Of steps 5 and 6, as version 0.1.0 had them in the same run."""


def test_a_run_of_the_first_version_is_listed_and_resumed_where_it_was(tmp_path):
    """It was stopped after four of six steps; its cache was thrown away since."""
    folder = tmp_path / "old"
    shutil.copytree(RUN, folder)
    for path in (folder / "run").glob("*.json"):
        text = path.read_text(encoding="utf-8").replace("FOLDER", str(folder))
        path.write_text(text.replace(AUTO, BF16), encoding="utf-8")
    run = RunDirectory(folder / "run")
    report = launcher.status(run.folder)
    assert (report.step, report.can_resume) == (4, True)
    events = []
    run_training(TrainingRequest(None, run.folder, resume=True, device="cpu", report=events.append))
    steps = {e["step"]: e["losses"]["total"] for e in events if e["event"] == "step"}
    assert [steps[5], steps[6]] == pytest.approx(LOSSES, rel=1e-3)
    assert read_header(run.last).metadata["training"]["steps"] == 6
    assert len({e["step"] for e in run.events() if e["event"] == "step"}) == 6  # the curve goes on without a gap
