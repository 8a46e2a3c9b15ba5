"""Entries of a manifest: what each says of its case, and the row that the panel's table shows of it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from ..anatomy import Kind, structure
from ..errors import DatasetError, SpineSegAIError
from ..files import real_path
from ..results.segment_names import CUSTOM, parse_target


@dataclass
class CaseRow:
    """A case as the panel's table shows it.

    Attributes:
        key: what `TrainingSet` knows it by: its image, as the manifest names it.
        split: of `ALL_SPLITS`.
        structures: for a reader, ``"L1–L5, 4 discs, canal"``.
        spacing: mm, or None if not known.
        warnings: sentences.
    """

    key: str
    name: str
    patient: str
    split: str
    structures: str
    spacing: tuple[float, ...] | None
    warnings: list[str] = field(default_factory=list)
    image: Path = Path()
    scores: Mapping[str, Any] = field(default_factory=dict)


def check_entry(entry: Any, where: str) -> None:
    """Checks that an entry can be listed; what it says of its case is checked where the case is read.

    Raises:
        DatasetError: one of its parts is something else than manifests have there.
    """
    entry = {"image": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
        raise DatasetError(f"{where} names no image.", 'Write {"image": …, "label": …, "annotated": […]}.')
    for key, (is_right, what) in _FORMS.items():
        if entry.get(key) is not None and not is_right(entry[key]):
            raise DatasetError(f"“{key}” in {where} is not {what}.", "Correct it, or create the dataset again.")


def _list_of(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(type(item) in kinds for item in value)


_FORMS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "label": (lambda value: isinstance(value, str), "the name of a file"),
    "annotated": (_list_of(str), "a list of names"),
    "keypoints": (lambda value: isinstance(value, (str, dict)), "a table of points or the name of a file"),
    "corners": (lambda value: isinstance(value, dict), "a table of points"),
    "notes": (_list_of(str), "a list of sentences"),
    "spacing_mm": (_list_of(int, float), "a list of numbers"),
    "size": (_list_of(int), "a list of numbers"),
    "ranking": (lambda value: isinstance(value, dict), "a table"),
}


def case_row(folder: Path, table: Mapping[str, Any], split: str, entry: Mapping[str, Any]) -> CaseRow:
    image = folder / str(entry.get("image", ""))
    warnings = [str(note) for note in entry.get("notes") or ()]
    for key in ("image", "label"):
        if entry.get(key) and not (folder / str(entry[key])).exists():
            warnings.insert(0, f"The {key} file {entry[key]} is missing.")
    if entry.get("keypoints") and not entry.get("label"):
        warnings.append("Keypoints alone, no masks: for methods that learn from weak cases.")
    if not (entry.get("extent") or table.get("extent")) and _has_vertebrae(entry):
        warnings.append("It is not specified whether vertebrae are bodies or whole.")
    if entry.get("corrections"):
        warnings.append("Corrected by hand.")
    spacing = entry.get("spacing_mm") or spacing_of(image)
    return CaseRow(
        key=key_of(entry),
        name=name_of(entry),
        patient=patient_of(entry)[1],
        split=split,
        structures=structures_in_words(entry.get("annotated") or list(entry.get("keypoints") or ())),
        spacing=tuple(spacing) if spacing else None,
        warnings=warnings,
        image=image,
        scores=entry.get("ranking") or {},
    )


def structures_in_words(names: Iterable[str]) -> str:
    """``"T12–L5, S1, 5 discs, canal, tumor"``."""
    found = []
    own = []
    for name in names:
        try:
            found.append(structure(parse_target(name).removeprefix(CUSTOM)))
        except SpineSegAIError:
            own.append(str(name).removeprefix(CUSTOM))
    parts: list[str] = []
    levels = sorted((s for s in found if s.is_vertebral and s.order is not None), key=lambda s: s.order or 0.0)
    runs: list[list[Any]] = []
    for s in levels:
        step = (s.order or 0.0) - (runs[-1][-1].order or 0.0) if runs else 0.0
        gap = step == 1 or (step == 2 and {runs[-1][-1].name, s.name} in ({"T12", "L1"}, {"L5", "S1"}))
        runs[-1].append(s) if runs and gap else runs.append([s])
    parts += [run[0].name if len(run) == 1 else f"{run[0].name}–{run[-1].name}" for run in runs]
    discs = [s for s in found if s.kind is Kind.DISC and s.order is not None]
    parts += [discs[0].name] if len(discs) == 1 else [f"{len(discs)} discs"] if discs else []
    posterior = [s for s in found if s.kind is Kind.POSTERIOR and s.order is not None]
    if posterior:
        parts.append(posterior[0].name if len(posterior) == 1 else f"posterior elements of {len(posterior)}")
    parts += [s.name for s in found if s.order is None]
    return ", ".join([*parts, *own])


def key_of(entry: Any) -> str:
    return str(entry.get("image", "") if isinstance(entry, dict) else entry)


def name_of(entry: Any) -> str:
    """A case's name: that of its image, without suffixes."""
    image = key_of(entry)
    return re.sub(r"(\.nii)?\.[A-Za-z0-9]+$", "", image.replace("\\", "/").rsplit("/", 1)[-1])


def patient_of(entry: Any) -> tuple[str, str]:
    """(source, patient): the same number means another person elsewhere."""
    entry = entry if isinstance(entry, dict) else {"image": str(entry)}
    return str(entry.get("source", "")), str(entry.get("patient") or name_of(entry))


def is_labelled(entry: Mapping[str, Any]) -> bool:
    return bool(entry.get("label") or entry.get("keypoints"))


def _has_vertebrae(entry: Mapping[str, Any]) -> bool:
    names = entry.get("annotated") if entry.get("label") else None
    for name in names or ():
        try:
            if structure(name).is_vertebral:
                return True
        except SpineSegAIError:
            continue
    return False


def is_own(entry: Mapping[str, Any]) -> bool:
    """Whether the image is a file that the training set made."""
    return str(entry.get("image", "")).startswith("images/")


def header_of(image: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(image))
    reader.ReadImageInformation()
    return reader


def spacing_of(image: Path) -> tuple[float, ...] | None:
    try:
        return tuple(round(s, 4) for s in header_of(image).GetSpacing())
    except RuntimeError:
        return None


def relative(path: str | Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(real_path(path), real_path(folder))).as_posix()
    except ValueError:  # another drive
        return str(real_path(path))
