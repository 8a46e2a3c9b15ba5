"""Output files are written whole or not at all, and the file that was named is the one that is read."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path, PurePath
from typing import Any

from .errors import MissingPackageError, OutputError, SpineSegAIError, one_of

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
"""File types that an image can be written to."""

SEGMENTATION_SUFFIXES = (".seg.nrrd", *IMAGE_SUFFIXES)
"""File types that a segmentation can be written to and read from."""


def stem_and_suffix(path: str | Path) -> tuple[str, str]:
    """File name without and with its suffix, double ones kept together: ``("case", ".nii.gz")``."""
    name = Path(path).name
    for double in (".nii.gz", ".seg.nrrd"):
        if name.lower().endswith(double):
            return name[: -len(double)], double
    suffix = Path(name).suffix
    return name.removesuffix(suffix), suffix.lower()


def real_path(path: str | Path) -> Path:
    """The absolute path without links; links in a circle stay, where `Path.resolve` fails."""
    return Path(os.path.realpath(path))


def check_suffix(path: str | Path, suffixes: Sequence[str]) -> None:
    """Checks that a file's name says one of these types; upper and lower case alike.

    Raises:
        OutputError: the name ends otherwise, or is nothing but the suffix.
    """
    stem, suffix = stem_and_suffix(path)
    if suffix not in suffixes or not stem:
        raise OutputError(f"Unsupported file extension: {path}.", f"Use {one_of(suffixes)}.")


def check_name(path: str | Path, failure: type[SpineSegAIError]) -> None:
    """Checks that a file and its folders have names that every library can take: ITK ends the process at others.

    Args:
        failure: class of the error.

    Raises:
        failure: a name is not UTF-8.
    """
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode("utf-8", "replace")
        raise failure(f"The name of {shown} is not UTF-8.", "Rename the file, or the folder that it is in.") from None


def free_name(wanted: str, taken: Iterable[str], mark: str = "-", suffix: str = "") -> str:
    """The wanted name, with a number where it is taken. Windows and macOS take “a” and “A” for one file."""
    known = {name.casefold() for name in taken}
    names = (f"{wanted}{number}{suffix}" for number in chain([""], (f"{mark}{n}" for n in count(2))))
    return next(name for name in names if name.casefold() not in known)


def check_writable(path: str | Path) -> None:
    """Finds out early whether a file may be written.

    A missing folder is made when the file is written.

    Raises:
        OutputError: the folder cannot be written to or made, the path is a folder, or a name cannot be used.
    """
    check_name(path, OutputError)
    path = Path(path)
    try:
        if path.is_dir():
            raise OutputError(f"{path} is a folder.", "Give the name of a file in it.")
        folder = next(parent for parent in real_path(path.parent / "file").parents if os.path.lexists(parent))
        if not folder.is_dir():
            raise OutputError(f"{folder} is not a folder.", "Choose another folder.")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(f"The folder {folder} cannot be written to.", "Choose another folder.")
        if path.exists() and not os.access(path, os.W_OK):
            raise OutputError(f"{path} is write-protected.", "Choose another name.")
    except OSError as error:  # too long a name, a folder that may not be entered, links in a circle
        raise OutputError(f"{path} cannot be written: {error.strerror}.", "Choose another name or folder.") from None


@contextmanager
def atomic_write(*paths: str | Path) -> Iterator[list[Path]]:
    """Places to write to; what is there takes the real names only if the block ends without an error.

    Each file is written into a private folder beside its destination, under its own name; companions that its writer
    puts beside it (a sidecar) move along. Missing folders are made. An error leaves nothing behind and what was there
    before as it was.

    Raises:
        OutputError: a destination cannot be written, or the disk is full.
    """
    targets = [Path(path) for path in paths]
    folders: list[Path] = []
    made: list[Path] = []
    try:
        try:
            for target in targets:
                check_writable(target)
                missing = [folder for folder in target.parents if not folder.exists()]
                target.parent.mkdir(parents=True, exist_ok=True)
                made += missing
                folders.append(Path(tempfile.mkdtemp(prefix=f".{target.name[:40]}.", dir=target.parent)))
            yield [folder / target.name for folder, target in zip(folders, targets, strict=True)]
            for folder, target in zip(folders, targets, strict=True):
                for written in sorted(folder.iterdir()):
                    _to_disk(written)
                    os.replace(written, target.parent / written.name)
        except OSError as error:
            raise OutputError(f"Writing failed: {error}.", "Is the disk full, or the folder protected?") from error
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        for folder in sorted(made, key=lambda folder: len(folder.parts), reverse=True):
            with suppress(OSError):  # is not empty: all went well
                folder.rmdir()


def _to_disk(path: Path) -> None:
    """Make sure that the name is not taken before the content has arrived, should the power fail in between."""
    if path.is_file():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def known_checksum(path: Path, failure: type[SpineSegAIError]) -> str:
    """`checksum`; of files that keep their size and date, computed once by a process.

    Raises:
        failure: it cannot be read.
    """
    try:
        files = sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]
        state = tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    except OSError:
        return checksum(path, failure)
    if state not in _known_checksums:
        _known_checksums[state] = checksum(path, failure)
    return _known_checksums[state]


_known_checksums: dict[tuple[tuple[str, int, int], ...], str] = {}


def checksum(path: Path, failure: type[SpineSegAIError]) -> str:
    """SHA-256 of a file, or of all files of a folder with their names.

    Args:
        failure: class of the error.

    Raises:
        failure: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        is_folder = path.is_dir()
        for file in sorted(f for f in path.rglob("*") if f.is_file()) if is_folder else [path]:
            if is_folder:
                digest.update(str(file.relative_to(path)).encode() + b"\0")
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    except OSError as error:
        raise failure(f"{path} cannot be read: {error.strerror}.", "Check the file.") from error
    return digest.hexdigest()


def jsonable(value: Any) -> Any:
    """The same with plain Python types, so that any provenance can be written; NaN and infinity become null."""
    if isinstance(value, dict):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [jsonable(v) for v in value]
    if hasattr(value, "tolist"):  # numpy's arrays and scalars
        return jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, PurePath):
        return value.as_posix()
    return str(value)


def write_json(path: Path, value: Any) -> None:
    """Writes a document to a file."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_csv_rows(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Writes a table, its first row the heading. Missing values are empty cells.

    Text that a spreadsheet would take for a formula, such as the name of a file called ``=1+1``, gets an apostrophe
    before it.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([_harmless(cell) for cell in row] for row in rows)


def _harmless(cell: Any) -> Any:
    if not isinstance(cell, str) or not re.match(r"\s*[=+\-@＝＋－＠]", cell):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell  # a negative number


LARGEST_TEXT_BYTES = 64 * 2**20
"""Of a JSON or TOML file: the largest real ones are reports of some megabytes."""


def read_json(path: str | Path, failure: type[SpineSegAIError]) -> Any:
    """What a JSON file holds; a byte-order mark is not part of it.

    Args:
        failure: class of the error.

    Raises:
        failure: the file is missing, too large, not UTF-8, not JSON, or nested too deeply.
    """
    return parse_json(read_text(path, failure), str(path), failure)


def parse_json(text: str, name: str, failure: type[SpineSegAIError]) -> Any:
    """What JSON text holds.

    Args:
        name: what to call it in an error.
        failure: class of the error.

    Raises:
        failure: see `read_json`.
    """
    try:
        return json.loads(text.removeprefix("\ufeff"))
    except RecursionError:
        raise failure(f"{name} cannot be read: it is nested too deeply.", "Create the file again.") from None
    except ValueError as error:
        raise failure(
            f"{name} cannot be read: it is not valid JSON ({error}).", "Correct it, or create it again."
        ) from None


def read_table(path: str | Path, failure: type[SpineSegAIError]) -> dict[str, Any]:
    """The table in a TOML file, or in a JSON file if its name ends so.

    Raises:
        failure: see `read_json`; or it holds something else than a table.
        MissingPackageError: TOML needs Python 3.11.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        table = read_json(path, failure)
    else:
        try:
            import tomllib
        except ImportError:
            raise MissingPackageError(
                "TOML needs Python 3.11.", "Use it, or write the configuration as JSON."
            ) from None
        try:
            table = tomllib.loads(read_text(path, failure))
        except RecursionError:
            raise failure(f"{path} cannot be read: it is nested too deeply.", "Create the file again.") from None
        except ValueError as error:
            raise failure(
                f"{path} cannot be read: it is not valid TOML ({error}).", "Correct it; JSON needs the suffix .json."
            ) from None
    if not isinstance(table, dict):
        raise failure(f"{path} does not hold a table.", "Write names and values.")
    return table


def read_text(path: str | Path, failure: type[SpineSegAIError]) -> str:
    """What a text file holds; a byte-order mark is not part of it.

    Args:
        failure: class of the error.

    Raises:
        failure: the file is missing, too large, or not UTF-8.
    """
    path = Path(path)
    try:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "is not a file" if path.exists() else "does not exist"
            raise failure(f"{path} {what}.", "Check the path.")
        if path.stat().st_size > LARGEST_TEXT_BYTES:
            raise failure(f"{path} is too large ({path.stat().st_size / 1e6:.0f} MB).", "Check the path.")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise failure(f"{path} cannot be read: it is not text in UTF-8.", "Save it as UTF-8.") from None
    except OSError as error:
        raise failure(f"{path} cannot be read: {error.strerror}.", "Check the path and its permissions.") from None
