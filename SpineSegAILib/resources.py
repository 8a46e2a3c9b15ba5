"""Where the files that ship with the library are: checkpoints, terminology, samples."""

from __future__ import annotations

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
