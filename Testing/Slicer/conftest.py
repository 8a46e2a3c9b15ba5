"""Starts the host before any test of this folder is imported. Where it cannot start, one test says why."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "Library"))
sys.path.insert(0, str(Path(__file__).parent))

import host

try:
    host.start()
    collect_ignore = []
except host.MissingHostPackage:
    collect_ignore = [
        path.name for path in Path(__file__).parent.glob("test_*.py") if path.name != "test_environment.py"
    ]


@pytest.fixture(autouse=True)
def no_checkpoints_of_the_user(monkeypatch, tmp_path):
    """Checkpoints come from the checkout and from what a test adds."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SPINESEGAI_CHECKPOINTS", raising=False)
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def no_exception_in_a_slot():
    """PythonQt prints exceptions in slots and goes on; here they fail the test."""
    if "qt" not in sys.modules:
        yield
        return
    from host.pythonqt import ERRORS

    ERRORS.clear()
    yield
    errors, ERRORS[:] = list(ERRORS), []
    assert not errors, "exception in a slot:\n" + "\n".join(errors)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """A real checkpoint of the default method, very small and untrained."""
    from tiny_data import write_tiny_checkpoint

    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny.safetensors", unvalidated=())
