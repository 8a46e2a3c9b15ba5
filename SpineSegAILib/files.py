"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import OutputError, SpineSegAIError


def stem_and_suffix(path: str | Path) -> tuple[str, str]:
    """File name without and with its suffix, double ones kept together: ``("case", ".nii.gz")``, ``("case", ".seg.nrrd")``."""
    name = Path(path).name
    lower = name.lower()
    for double in (".nii.gz", ".seg.nrrd"):
        if lower.endswith(double):
            return name[: -len(double)], double
    suffix = Path(name).suffix
    return name.removesuffix(suffix), suffix.lower()


@contextmanager
def written_whole(*paths: str | Path, overwrite: bool = True) -> Iterator[tuple[Path, ...]]:
    """Yields temporary files to write to; they take their final names together when the block ends without an error.

    The temporary files lie in the folders of the final ones and have the same suffixes. Missing folders are made. After an
    error nothing is left behind, neither file nor folder.

    Args:
        paths: final names.
        overwrite: whether files that are there may be replaced.

    Raises:
        OutputError: for whatever keeps the files from being written; the message names the file and the remedy.
    """
    finals = tuple(Path(p) for p in paths)
    temporary: list[Path] = []
    made: list[Path] = []
    placed: list[Path] = []
    try:
        for final in finals:
            if final.is_dir():
                raise OutputError(f"“{final}” is a folder.", "Give a file name.")
            if final.exists() and not overwrite:
                raise OutputError(f"“{final}” exists already.", "Choose another name, or allow it to be replaced.")
            made += _make_folders(final.parent)
            stem, suffix = stem_and_suffix(final)
            handle, name = tempfile.mkstemp(prefix=f".{stem[:40]}-", suffix=suffix, dir=final.parent)
            os.close(handle)
            temporary.append(Path(name))
        yield tuple(temporary)
        for source, final in zip(temporary, finals, strict=True):
            os.chmod(source, 0o666 & ~_umask())  # mkstemp makes files that only their owner can read
            existed = final.exists()
            os.replace(source, final)
            if not existed:
                placed.append(final)
    except BaseException as error:
        for leftover in (*temporary, *placed):
            leftover.unlink(missing_ok=True)
        for folder in reversed(made):
            try:
                folder.rmdir()
            except OSError:  # somebody else has put a file there meanwhile: theirs to keep
                break
        if isinstance(error, SpineSegAIError):
            raise
        if isinstance(error, (OSError, RuntimeError)):  # SimpleITK reports failed writing as RuntimeError
            raise OutputError(*_explained(error, finals)) from error
        raise


def _make_folders(folder: Path) -> list[Path]:
    """Makes a folder and those above it; returns the ones that were not there, outermost first."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    made: list[Path] = []
    try:
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            made.append(path)
    except OSError:
        for path in reversed(made):
            path.rmdir()
        raise
    return made


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _explained(error: Exception, finals: tuple[Path, ...]) -> tuple[str, str]:
    names = " and ".join(f"“{final}”" for final in finals)
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk is full: {names} could not be written.", "Make room, or choose another folder."
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"No permission to write {names}.", "Choose a folder that you may write to."
    if number in (errno.ENOTDIR, errno.ENOENT, errno.EEXIST):
        return f"{names} could not be written: the folder cannot be made.", "Choose another folder."
    reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[-1:] or "unknown reason"
    reason = reason if isinstance(reason, str) else reason[0]
    return f"{names} could not be written: {reason}.", "Check the free space of the disk and that the folder can be written to."
