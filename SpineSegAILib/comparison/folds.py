"""Datasets of a comparison: folds by patient, the cases that are never scored, and cases with less supervision."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import SimpleITK as sitk

from ..anatomy import STRUCTURES
from ..datasets.manifest import SPLITS, Case, case_digest, moved, read_label, read_manifest, values_of
from ..errors import ConfigError, DatasetError, one_of
from ..files import atomic_write, read_json
from ..imaging.geometry import like
from ..keypoints import centres_of

Supervision = Literal["full", "half-structures", "two-thirds", "two-thirds-and-keypoints"]
"""What of the training cases is labeled: all; of every second case half of the structures; all of two thirds of the
cases; and of the other third the centers of the masks alone."""


@dataclass(frozen=True)
class Fold:
    """One part of a cross-validation.

    Attributes:
        number: 0, 1 …
        training: manifest of the cases to train on.
        left_out: manifest of the cases to score, as its `validation` split.
    """

    number: int
    training: Path
    left_out: Path


def write_folds(manifest: Path, split: str, count: int, sources: Sequence[str], output: Path) -> list[Fold]:
    """Deal the cases of a split to folds by patient; every case that may be scored is held out once.

    What else there is of a patient, such as a series with keypoints alone, is not trained on where he is scored.

    Args:
        manifest: nothing of its other splits is read.
        sources: only cases from these are held out and scored, the others always trained on; empty for all.
        output: folder of the manifests.

    Raises:
        DatasetError: fewer patients than folds, or none of these sources.
    """
    cases = read_manifest(manifest).cases(split)
    scored = [_is_scored(case, sources) for case in cases]
    patients = list(dict.fromkeys((c.source, c.patient) for c, s in zip(cases, scored, strict=True) if s))
    if sources and not patients:
        there = ", ".join(sorted({case.source for case in cases if case.label is not None})) or "no named source"
        raise DatasetError(
            f"Cases of {one_of(sources)} are scored (scored_sources), and {manifest} has none: its labeled ones are of "
            f"{there}.",
            "Give another dataset, or name its sources in a configuration of your own.",
        )
    if len(patients) < count:
        raise DatasetError(f"{len(patients)} patients cannot be dealt to {count} folds.", "Choose fewer folds.")
    fold_of = {patient: number % count for number, patient in enumerate(patients)}
    found = []
    for number in range(count):
        theirs = [fold_of.get((c.source, c.patient)) == number for c in cases]
        left_out = [s and own for s, own in zip(scored, theirs, strict=True)]
        kept = [not own for own in theirs]
        found.append(
            Fold(
                number,
                _write_part(manifest, split, cases, kept, "training", output / f"fold{number}-training.json"),
                _write_part(manifest, split, cases, left_out, "validation", output / f"fold{number}-left-out.json"),
            )
        )
    return found


def write_never_scored(manifest: Path, split: str, sources: Sequence[str], output: Path) -> Path:
    """A manifest of the cases of patients whom no fold holds out.

    Raises:
        ConfigError: there are none.
    """
    cases = read_manifest(manifest).cases(split)
    held = {(case.source, case.patient) for case in cases if _is_scored(case, sources)}
    kept = [(case.source, case.patient) not in held for case in cases]
    if not any(kept):
        raise ConfigError(
            "Every case is scored: there is none to learn from once for all folds.",
            "Name the sources that are scored (scored_sources).",
        )
    return _write_part(manifest, split, cases, kept, "training", output / "never-scored.json")


def with_supervision(manifest: Path, supervision: Supervision, output: Path) -> Path:
    """A manifest whose training cases are labeled in part.

    Args:
        output: folder of the manifest and of what it names.
    """
    if supervision == "full":
        return manifest
    output.mkdir(parents=True, exist_ok=True)
    cases = read_manifest(manifest).cases("training")
    table = moved(read_json(manifest, DatasetError), manifest.parent, output)
    entries = []
    for number, (entry, case) in enumerate(zip(table["training"], cases, strict=True)):
        if supervision == "half-structures":
            entries.append(_half(entry, case, number, output) if number % 2 else entry)
        elif number % 3 or (case.label is None and supervision == "two-thirds-and-keypoints"):
            entries.append(entry)
        elif supervision == "two-thirds-and-keypoints":
            bare = {k: v for k, v in entry.items() if k not in ("label", "label_whole", "annotated")}
            points = {STRUCTURES[i].name: list(p) for i, p in centres_of(read_label(case)).items()}
            entries.append({**bare, "keypoints": points})
    path = output / f"{manifest.stem}-{supervision}.json"
    with atomic_write(path) as (place,):
        place.write_text(json.dumps({**table, "training": entries}, indent=1), encoding="utf-8")
    return path


def _is_scored(case: Case, sources: Sequence[str]) -> bool:
    return case.label is not None and (not sources or case.source in sources)


def _write_part(
    manifest: Path, split: str, cases: Sequence[Case], kept: Sequence[bool], as_split: str, path: Path
) -> Path:
    """A manifest of some of a split's cases, as another split.

    Where an entry does not say its patient, the case's name among all others tells it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    table = moved(read_json(manifest, DatasetError), manifest.parent, path.parent)
    told = zip(table[split], cases, kept, strict=True)
    chosen = [{**entry, "patient": case.patient} for entry, case, keep in told if keep]
    text = json.dumps({**table, **{s: [] for s in SPLITS}, as_split: chosen}, indent=1)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        with atomic_write(path) as (place,):
            place.write_text(text, encoding="utf-8")
    return path


def _half(entry: dict[str, Any], case: Case, number: int, output: Path) -> dict[str, Any]:
    """The case with every second of its structures, from the first or the second on by turns; one alone stays."""
    if case.label is None:
        return entry
    shown = list(case.annotated)[number // 2 % 2 :: 2] or list(case.annotated)
    names = [STRUCTURES[i].name for i in shown]
    key = case_digest(case, *names)[:12]  # folds differ in turns
    path = output / f"{case.name}_half-{key}.nii.gz"
    if not path.exists():
        label = read_label(case)
        array = sitk.GetArrayFromImage(label)
        with atomic_write(path) as (place,):
            sitk.WriteImage(like(label, np.where(np.isin(array, shown), array, 0).astype(np.int16)), str(place))
    kept = {k: v for k, v in entry.items() if k != "label_whole"}  # the mask holds all of it
    return {**kept, "label": path.name, "annotated": names, "label_values": values_of(shown)}
