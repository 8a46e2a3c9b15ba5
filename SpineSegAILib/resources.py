"""Where files are: those that ship with the library (checkpoints, terminology, samples), and the user's own."""

from __future__ import annotations

import tempfile
from pathlib import Path

from .errors import SpineSegAIError

_HERE = Path(__file__).resolve().parent


def resources_folder(library: Path = _HERE) -> Path:
    """The `Resources` folder: inside an installed library, beside the library in a source checkout.

    Args:
        library: the folder of the package; given only in tests.

    Raises:
        SpineSegAIError: the folder is in neither place, or holds no checkpoints and no terminology.
    """
    candidates = (library / "Resources", library.parent / "Resources")
    for folder in candidates:
        # Slicer's module folder may have a Resources of its own: ours is known by what is in it.
        if any((folder / part).is_dir() for part in ("Checkpoints", "Terminology")):
            return folder
    raise SpineSegAIError(
        f"The files that belong to SpineSegAI are in neither {candidates[0]} nor {candidates[1]}.",
        "The installation is incomplete: install the package or the extension again.",
    )


def user_folder() -> Path:
    """Where a user's own checkpoints and training runs are; may not exist yet.

    In the home folder; where there is none (a container's user without a name), beside temporary files.
    """
    try:
        home = Path.home()
    except (RuntimeError, OSError):  # no HOME and no entry in the list of users
        home = Path(tempfile.gettempdir())
    return home / "SpineSegAI"
