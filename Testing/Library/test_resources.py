"""The library finds the files that ship with it, installed or in a checkout."""

from pathlib import Path

import pytest

from SpineSegAILib.errors import SpineSegAIError
from SpineSegAILib.resources import resources_folder


def test_checkout():
    assert resources_folder() == Path(__file__).resolve().parents[2] / "Resources"


def test_installed_comes_before_a_neighbour(tmp_path):
    library = tmp_path / "SpineSegAILib"
    (tmp_path / "Resources" / "UI").mkdir(parents=True)  # Slicer's own, beside the library
    (library / "Resources" / "Checkpoints").mkdir(parents=True)
    assert resources_folder(library) == library / "Resources"


def test_incomplete_installation_is_named(tmp_path):
    (tmp_path / "Resources" / "UI").mkdir(parents=True)
    with pytest.raises(SpineSegAIError, match=r"in neither .*install"):
        resources_folder(tmp_path / "SpineSegAILib")
