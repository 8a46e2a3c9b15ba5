"""What a run knows of its data: the manifest as it was at the start, with checksums of the files.

Readers keep working with their files while a run trains. The run reads each case once, into its cache; what it needs
again later, it takes from there. A file that has to be read again must still be what it was.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..anatomy import CUSTOM_IDS, STRUCTURES
from ..datasets.manifest import Case, Manifest, of_dataset, read_manifest, refuse_leaks
from ..errors import DatasetError, SpineSegAIError
from ..files import checksum, read_json
from .run import RunDirectory, read_saved, replace_json

_SPLITS = ("training", "validation")
_KEY = "checksums"


@dataclass(frozen=True)
class Snapshot:
    """A manifest and what its files held at the start of the run.

    Attributes:
        manifest: training and validation cases, with absolute paths.
        checksums: file or folder → SHA-256 of what was in it.
    """

    manifest: Manifest
    checksums: Mapping[str, str]

    def stamp(self, case: Case) -> list[Any]:
        """What a preprocessed case depends on. Structures by name: numbers of a reader's own ones may differ."""
        files = [self.checksums[str(path)] for path in case.files]
        points = sorted((STRUCTURES[sid].name, point) for sid, point in case.keypoints.items())
        values = {value: STRUCTURES[sid].name if sid else "" for value, sid in (case.label_values or {}).items()}
        return [*files, [STRUCTURES[sid].name for sid in case.annotated], points, sorted(values.items())]

    def verify(self, case: Case) -> None:
        """Make sure that a case's files may be read again.

        Raises:
            DatasetError: one of them is gone, or holds something else than at the start.
        """
        for path in case.files:
            if not path.exists():
                raise DatasetError(
                    f"{path} is gone, and the run has no whole copy of it.",
                    "Put it back, or start a new run without it.",
                )
            if checksum(path, DatasetError) != self.checksums[str(path)]:
                raise DatasetError(
                    f"{path} has changed since the run began, and the run has no whole copy of what it was.",
                    "Put the old file back, or start a new run (--from its checkpoint).",
                )

    def changes(self) -> list[Path]:
        """Files that are gone or hold something else than at the start."""
        paths = [path for split in _SPLITS for case in self.manifest.splits.get(split, ()) for path in case.files]
        return [
            path for path in paths if not path.exists() or checksum(path, DatasetError) != self.checksums[str(path)]
        ]


def take_snapshot(manifests: Sequence[Manifest], run: RunDirectory) -> Snapshot:
    """Write a run's ``dataset.json``: a manifest like any other, of absolute paths and with checksums.

    Args:
        manifests: the dataset, and those that are mixed in.

    Raises:
        DatasetError: a file cannot be read, or an image or patient is in two splits.
    """
    tables = [read_json(manifest.path, DatasetError) for manifest in manifests]
    result = {key: value for key, value in tables[0].items() if key not in ("test", "unlabelled")}
    sums: dict[str, str] = {}
    for split in _SPLITS:
        result[split] = []
        for entry, case in _mixed(manifests, tables, split):
            result[split].append(entry)
            sums |= {str(path): checksum(path, DatasetError) for path in case.files}
    for table in tables[1:]:
        custom = result.setdefault("custom", {})
        for name in table.get("custom", {}):
            if name not in custom:
                custom[name] = next(i for i in CUSTOM_IDS if i not in custom.values())
    result["name"] = " + ".join(manifest.name for manifest in manifests)
    replace_json(run.dataset_file, {**result, _KEY: sums})
    return read_snapshot(run)


def refuse_shared(manifests: Sequence[Manifest]) -> None:
    """Make sure that manifests can be mixed.

    Raises:
        DatasetError: an image or patient of one's training is in another one's validation.
    """
    tables = [read_json(manifest.path, DatasetError) for manifest in manifests]
    refuse_leaks(
        {s: [replace(c, patient=entry["patient"]) for entry, c in _mixed(manifests, tables, s)] for s in _SPLITS},
        ", ".join(str(manifest.path) for manifest in manifests),
    )


def _mixed(
    manifests: Sequence[Manifest], tables: Sequence[Mapping[str, Any]], split: str
) -> Iterator[tuple[dict[str, Any], Case]]:
    """The entries of a split of all manifests, which say everything themselves, with their cases."""
    for number, (manifest, table) in enumerate(zip(manifests, tables, strict=True), start=1):
        for entry, case in zip(table.get(split, ()), manifest.splits.get(split, ()), strict=True):
            entry = entry if isinstance(entry, dict) else {}
            yield {**entry, **_explicit(of_dataset(case, number), mixed_in=number > 1)}, case


def _explicit(case: Case, mixed_in: bool) -> dict[str, Any]:
    """What an entry must say itself: where its files are, and, in another manifest, what that one said for all."""
    said: dict[str, Any] = {"image": str(case.image), "patient": case.patient}
    if case.label:
        said["label"] = str(case.label)
    if case.label_whole:
        said["label_whole"] = str(case.label_whole)
    if case.keypoints:
        said["keypoints"] = {STRUCTURES[i].name: list(point) for i, point in case.keypoints.items()}
    if mixed_in:
        values = case.label_values or {sid: sid for sid in case.annotated}
        said["annotated"] = [STRUCTURES[sid].name for sid in case.annotated]
        said["label_values"] = {str(v): STRUCTURES[sid].name if sid else "background" for v, sid in values.items()}
        if case.extent is not None:
            said["extent"] = case.extent.value
    return said


def read_snapshot(run: RunDirectory) -> Snapshot:
    """A run's ``dataset.json``; its files need not be there any more.

    Raises:
        DatasetError: it is damaged.
    """
    sums = read_saved(run.dataset_file).get(_KEY)
    damaged = DatasetError(f"{run.dataset_file} is damaged.", "Start a new run from the checkpoint of this one.")
    if not isinstance(sums, dict):
        raise damaged
    manifest = read_manifest(run.dataset_file, must_exist=False)
    if any(str(path) not in sums for cases in manifest.splits.values() for case in cases for path in case.files):
        raise damaged
    return Snapshot(manifest, sums)


def keep_case(case: Case, snapshot: Snapshot, folder: Path) -> Case:
    """A validation case whose files are copies that the run owns.

    Args:
        folder: the run's cache.

    Raises:
        DatasetError: there is no copy yet, or a damaged one, and the files are not what they were.
    """
    import SimpleITK as sitk

    from ..datasets.manifest import read_drawn, read_label
    from ..files import atomic_write
    from ..imaging import read_image

    key = hashlib.sha256(json.dumps(["validation", *snapshot.stamp(case)], default=str).encode()).hexdigest()[:12]
    places = [folder / f"{case.name}-{key}.{part}.nrrd" for part in ("image", "label")]
    values = case.label_values if case.label_whole is None else None  # a label that was put together has ids
    copy = replace(case, image=places[0], label=places[1], label_whole=None, label_values=values)
    if not _is_whole(copy):
        snapshot.verify(case)
        folder.mkdir(parents=True, exist_ok=True)
        images = read_image(case.image), read_drawn(case) if case.label_whole is None else read_label(case)
        with atomic_write(*places) as parts:
            for image, part in zip(images, parts, strict=True):
                sitk.WriteImage(image, str(part), useCompression=True)
    return copy


def _is_whole(copy: Case) -> bool:
    """Whether the copies of a case are there and can be read."""
    from ..datasets.manifest import read_drawn
    from ..imaging import read_image

    if copy.label is None or not (copy.image.exists() and copy.label.exists()):
        return False
    try:
        read_image(copy.image)
        read_drawn(copy)
    except SpineSegAIError:
        return False
    return True


def keep_inputs(resources: Mapping[str, str], run: RunDirectory) -> dict[str, str]:
    """The files that a method needs to learn, as copies that the run owns; folders stay where they are.

    Raises:
        DatasetError: one is missing.
    """
    kept = {}
    for name, original in resources.items():
        source = Path(original)
        if source.is_dir():
            kept[name] = original
            continue
        copy = run.inputs / f"{name}{source.suffix}"
        if not copy.exists():
            if not source.is_file():
                raise DatasetError(f"{source} does not exist.", f"The method needs it ({name}).")
            _copy(source, copy)
        kept[name] = str(copy)
    return kept


def keep_start(checkpoint: Path, run: RunDirectory) -> None:
    """Copy the checkpoint that a run starts from."""
    _copy(checkpoint, run.start)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    part = target.with_name(f".{target.name}")
    shutil.copyfile(source, part)
    part.replace(target)
