"""What several tests share. Nothing here depends on the machine: users' own checkpoints are out of sight."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from tiny_data import SHARED_DATA, write_tiny_checkpoint

os.environ.setdefault("MPLBACKEND", "Agg")  # before anything imports matplotlib

# The same examples on every machine: a test that passes today passes tomorrow.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def no_checkpoints_of_the_user(monkeypatch, tmp_path_factory):
    """Checkpoints come from the checkout and from what a test adds."""
    monkeypatch.setattr(Path, "home", classmethod(lambda cls: tmp_path_factory.getbasetemp() / "home"))
    monkeypatch.delenv("SPINESEGAI_CHECKPOINTS", raising=False)


@pytest.fixture(autouse=True)
def no_accelerator_of_another_test():
    """A process may train with one precision only; each test counts as a process of its own."""
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module", autouse=True)
def no_structures_of_another_file():
    """Structures of a user's own are known to the whole process; each file of tests counts as one of its own."""
    from SpineSegAILib.anatomy import structures

    before = dict(structures._STRUCTURES), dict(structures._BY_NAME)
    yield
    for known, kept in zip((structures._STRUCTURES, structures._BY_NAME), before, strict=True):
        known.clear()
        known.update(kept)


@pytest.fixture(scope="session")
def text_packages() -> None:
    """transformers and open_clip can be imported.

    Both import torchvision, which on a torch for CPUs alone fails, since the published one was built with CUDA: its
    operators are not there to be described. Where that is so they are declared here; none of them is ever called.
    """
    from importlib import import_module

    import torch

    try:
        import_module("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)  # operators last as long as it does
        for name in [m for m in sys.modules if m.partition(".")[0] in ("torchvision", "transformers", "open_clip")]:
            del sys.modules[name]
        import_module("torchvision")


_KEPT: list[object] = []


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """A checkpoint of the default method, very small and untrained."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny.safetensors")


@pytest.fixture
def real_lumbar_mr() -> Path:
    """Manifest of the real lumbar MR cases; the test is skipped where they are absent."""
    path = SHARED_DATA / "lumbar_mr/dataset.json"
    if not path.exists():
        pytest.skip("the shared lumbar MR data are not here")
    return path
