"""Cases on their way into a training set: all of them get there, or nothing changes."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import SimpleITK as sitk

from ..errors import OutputError
from ..files import free_name, real_path

if TYPE_CHECKING:
    from .training_set import TrainingSet

_STALE_SECONDS = 86_400.0  # no import takes a day


@dataclass(frozen=True)
class Drawn:
    """A label image that a training set is to keep, made when it is written.

    Attributes:
        name: wanted, without the suffix.
        suffix: with its dot.
        draw: makes the image.
    """

    name: str
    suffix: str
    draw: Callable[[], sitk.Image]


@dataclass
class Adding:
    """New cases on their way into a training set."""

    owner: TrainingSet
    place: Path
    new: list[dict[str, Any]] = field(default_factory=list)  # that have no split yet
    all: list[dict[str, Any]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def write(self, image: sitk.Image, name: str) -> None:
        """An image into the waiting place, looked at again: some writers do not notice a full disk."""
        target = self.place / name
        target.parent.mkdir(exist_ok=True)
        try:
            sitk.WriteImage(image, str(target), useCompression=True)
            written = sitk.ReadImage(str(target))
            whole = sitk.Hash(written) == sitk.Hash(image)
        except RuntimeError:
            whole = False
        if not whole:
            raise OutputError(f"{name} could not be written whole.", "Is the disk full, or the folder protected?")
        self.files.append(name)

    def keep(self, drawn: Drawn, former: str = "") -> str:
        """A drawn label into the waiting place.

        Args:
            former: file of the set that it replaces.

        Returns:
            its name in the training set, which no other file has.
        """
        there = [path.name for path in (self.owner.folder / "labels").glob("*")]
        taken = (*there, *(Path(file).name for file in self.files))
        name = former or f"labels/{free_name(drawn.name, taken, suffix=drawn.suffix)}"
        self.write(drawn.draw(), name)
        return name

    def commit(self) -> None:
        """Files first, the manifest last.

        Raises:
            OutputError: see `TrainingSet.save`.
        """
        self.owner.refuse_changed()
        for name in self.files:
            target = self.owner.folder / name
            target.parent.mkdir(exist_ok=True)
            os.replace(self.place / name, target)
        self.owner.table.setdefault("name", real_path(self.owner.folder).name)
        self.owner.save()


@contextmanager
def adding_to(owner: TrainingSet) -> Iterator[Adding]:
    """A place for new files; they and the manifest take their places with `commit`, or nothing changes."""
    before = json.dumps(owner.table)
    made = [folder for folder in (owner.folder, *owner.folder.parents) if not folder.exists()]
    adding = None
    try:
        try:
            owner.folder.mkdir(parents=True, exist_ok=True)
            for left in owner.folder.glob(".adding-*"):  # by a process that was killed
                if left.stat().st_mtime < time.time() - _STALE_SECONDS:
                    shutil.rmtree(left, ignore_errors=True)
            adding = Adding(owner, Path(tempfile.mkdtemp(prefix=".adding-", dir=owner.folder)))
            yield adding
        except OSError as error:
            raise OutputError(
                f"The training set {owner.folder} cannot be written: {error.strerror or error}.",
                "Is the disk full, or the folder protected?",
            ) from error
    except BaseException:
        owner.table = json.loads(before)
        raise
    finally:
        if adding is not None:
            shutil.rmtree(adding.place, ignore_errors=True)
        for folder in made:  # empty ones alone can be removed
            try:
                folder.rmdir()
            except OSError:
                break
