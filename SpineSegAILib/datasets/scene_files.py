"""The files of a Slicer scene, from an archive (.mrb) or a folder (.mrml), without trusting either.

What a scene says of its files is somebody else's text. A name is looked up inside the archive, or inside the scene's
own folder, and nowhere else; an archive's members are unpacked one at a time, under names of our own, up to a limit.
"""

from __future__ import annotations

import errno
import lzma
import os
import posixpath
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from ..errors import DatasetError
from ..files import real_path

SCENE_SUFFIXES = (".mrb", ".mrml")

MAX_DOCUMENT_BYTES = 64 * 2**20
"""Of the XML: a scene with thousands of nodes has a few megabytes."""
MAX_FILE_BYTES = 4 * 2**30
"""Of one file, unpacked: twice the largest volume that is accepted."""
MAX_MEMBERS = 20_000
_CHUNK = 1 << 20
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError),
    *(NotImplementedError, RuntimeError, ValueError, OverflowError),
)
"""What reading an archive raises that is damaged, encrypted, or packed in an unusual way."""


class SceneFiles:
    """One scene's XML, and the files that it names.

    Args:
        path: what the reader gave, for messages.
        folder: temporary, for what is unpacked.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self.path = path
        self._folder = folder

    def document(self) -> bytes:
        """The scene's XML.

        Raises:
            DatasetError: it is missing, damaged or too large.
        """
        raise NotImplementedError

    def file(self, reference: str) -> Path:
        """The file on this disk that a reference in the scene means.

        Args:
            reference: as in the XML: percent-encoded, relative to the scene.

        Raises:
            DatasetError: it lies outside of the scene, is not there, or is too large.
        """
        raise NotImplementedError

    def _outside(self, reference: str) -> DatasetError:
        return DatasetError(
            f"The scene {self.path.name} names a file outside of it: {reference}.",
            "Save it in Slicer as .mrb, which holds all files.",
        )

    def _too_large(self, name: str, limit: int) -> DatasetError:
        return DatasetError(
            f"{name} in {self.path.name} is larger than {limit / 2**20:.0f} MB, or claims to be.",
            "Crop the volume in Slicer and save the scene again.",
        )


class _Folder(SceneFiles):
    """A .mrml file; its files may lie anywhere inside `root`."""

    def __init__(self, path: Path, folder: Path, root: Path) -> None:
        super().__init__(path, folder)
        self._root = real_path(root)

    def document(self) -> bytes:
        if self.path.stat().st_size > MAX_DOCUMENT_BYTES:
            raise self._too_large(self.path.name, MAX_DOCUMENT_BYTES)
        return self.path.read_bytes()

    def file(self, reference: str) -> Path:
        name = unquote(reference)
        if "://" in name or "\0" in name:
            raise self._outside(reference)
        path = real_path(self.path.parent / name)  # follows links, so that they cannot lead outside either
        if not path.is_relative_to(self._root):
            raise self._outside(reference)
        if not path.is_file():
            raise DatasetError(f"The scene {self.path.name} names {name}, which is not there.", "Save it again.")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise self._too_large(name, MAX_FILE_BYTES)
        return path


class _Archive(SceneFiles):
    """A .mrb file."""

    def __init__(self, path: Path, folder: Path, archive: zipfile.ZipFile) -> None:
        super().__init__(path, folder)
        self._archive = archive
        self._members: dict[str, zipfile.ZipInfo] = {}
        self._unpacked: dict[str, Path] = {}
        members = archive.infolist()
        if len(members) > MAX_MEMBERS:
            raise DatasetError(
                f"{path.name} has {len(members)} members, too many for a Slicer scene.",
                "Give a .mrb or .mrml file that Slicer saved.",
            )
        for member in members:
            if _escapes(member.filename):
                raise DatasetError(
                    f"{path.name} has a member that points outside of the archive: {member.filename}.",
                    "It was not made by Slicer; do not use it.",
                )
            if not member.is_dir():
                self._members[posixpath.normpath(member.filename)] = member
        scenes = sorted((n for n in self._members if n.lower().endswith(".mrml")), key=lambda n: n.count("/"))
        if not scenes:
            raise DatasetError(f"{path.name} holds no scene (.mrml).", "Save the scene in Slicer as .mrb again.")
        self._scene = scenes[0]

    def document(self) -> bytes:
        if self._members[self._scene].file_size > MAX_DOCUMENT_BYTES:
            raise self._too_large(self._scene, MAX_DOCUMENT_BYTES)
        with self._reading(self._scene) as stream:
            data = stream.read(MAX_DOCUMENT_BYTES + 1)
        if len(data) > MAX_DOCUMENT_BYTES:
            raise self._too_large(self._scene, MAX_DOCUMENT_BYTES)
        return data

    def file(self, reference: str) -> Path:
        name = unquote(reference).replace("\\", "/")
        if "://" in name or _escapes(posixpath.join(posixpath.dirname(self._scene), name)):
            raise self._outside(reference)
        member = posixpath.normpath(posixpath.join(posixpath.dirname(self._scene), name))
        if member not in self._members:
            raise DatasetError(f"{self.path.name} does not hold {name}, which its scene names.", "Save it again.")
        if member not in self._unpacked:
            self._unpacked[member] = self._unpack(member)
        return self._unpacked[member]

    def _unpack(self, name: str) -> Path:
        """Writes a member into a folder of its own, so that no file can pass for a companion of another."""
        declared = self._members[name].file_size
        if declared > MAX_FILE_BYTES:
            raise self._too_large(name, MAX_FILE_BYTES)
        free = shutil.disk_usage(self._folder).free
        if declared > free:
            raise DatasetError(
                f"There is no room to unpack {name} of {self.path.name}: {declared / 2**30:.1f} GB are needed, "
                f"{free / 2**30:.1f} GB are free in {self._folder.parent}.",
                "Free some space, or set TMPDIR to another disk.",
            )
        target = Path(tempfile.mkdtemp(dir=self._folder)) / f"file{_suffix(name)}"
        written = 0
        with self._reading(name) as stream, target.open("wb") as file:
            while chunk := stream.read(_CHUNK):
                written += len(chunk)
                if written > MAX_FILE_BYTES:
                    raise self._too_large(name, MAX_FILE_BYTES)
                file.write(chunk)
        return target

    @contextmanager
    def _reading(self, name: str) -> Iterator:
        try:
            with self._archive.open(self._members[name]) as stream:
                yield stream
        except (*_DAMAGE, OSError) as error:
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # the disk's
                raise
            raise DatasetError(
                f"{self.path.name} is damaged or encrypted: {name} cannot be read ({error}).", "Save the scene again."
            ) from None


@contextmanager
def open_scene(path: str | Path, root: str | Path | None = None) -> Iterator[SceneFiles]:
    """A scene's files, while the block runs.

    Args:
        path: .mrb or .mrml.
        root: folder that files of a .mrml may lie in; the scene's own if not given.

    Raises:
        DatasetError: it is missing, damaged, or no scene; a member of the archive points outside of it.
    """
    path = Path(path)
    if path.suffix.lower() not in SCENE_SUFFIXES:
        raise DatasetError(f"{path.name} is not a Slicer scene.", "Give a .mrb or .mrml file, or a folder of them.")
    with tempfile.TemporaryDirectory(prefix="spinesegai-scene-", ignore_cleanup_errors=True) as folder:
        try:
            if path.suffix.lower() == ".mrml":
                path.open("rb").close()
                yield _Folder(path, Path(folder), Path(root) if root else path.parent)
                return
            archive = zipfile.ZipFile(path)
        except FileNotFoundError:
            raise DatasetError(f"The scene {path} does not exist.", "Check the path.") from None
        except _DAMAGE:
            raise DatasetError(
                f"{path.name} is damaged: it is not an archive.", "Save or copy the scene again."
            ) from None
        except OSError as error:
            raise DatasetError(f"{path} cannot be read: {error.strerror}.", "Check the file.") from None
        with archive:
            yield _Archive(path, Path(folder), archive)


def find_scenes(paths: list[Path]) -> list[tuple[Path, Path]]:
    """Scene files, and those in folders and their sub-folders: (scene, folder that its files may lie in).

    Raises:
        DatasetError: a path does not exist, or a folder holds no scene.
    """
    found: list[tuple[Path, Path]] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(
                Path(folder, name)
                for folder, _, names in os.walk(path)  # does not follow links to folders
                for name in names
                if name.lower().endswith(SCENE_SUFFIXES) and not name.startswith(".")
            )
            if not inside:
                raise DatasetError(f"There is no scene in {path}.", "Scenes are .mrb and .mrml files.")
            found += [(scene, path) for scene in inside]
        elif path.exists():
            found.append((path, path.parent))
        else:
            raise DatasetError(f"The scene {path} does not exist.", "Check the path.")
    return list(dict.fromkeys(found))


def _escapes(name: str) -> bool:
    """Whether a member's name would lead out of the folder that it is unpacked in."""
    name = name.replace("\\", "/")
    return (
        name.startswith("/")
        or re.match(r"[A-Za-z]:", name) is not None
        or "\0" in name
        or posixpath.normpath(name).split("/")[0] == ".."
    )


def _suffix(name: str) -> str:
    """``.seg.nrrd`` of ``Data/Seg.seg.nrrd``: letters and digits only."""
    found = re.search(r"(\.(seg|nii|mrk))?\.[A-Za-z0-9]{1,8}$", name)
    return found.group().lower() if found else ""
