"""A training set on disk: a folder with ``dataset.json``, ``images/`` and ``labels/``, to which cases can be added.

Everything is written beside its place and moved there when all of it is whole; the manifest goes last, so that it
never names a file that is not there. What else the manifest holds is kept.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import SimpleITK as sitk

from ..anatomy import BUILT_IN, CUSTOM_IDS, STRUCTURES, Extent, sorted_ids, structure
from ..errors import DatasetError, OutputError, SpineSegAIError
from ..files import atomic_write, checksum, free_name, read_json, real_path
from ..results.segment_names import CUSTOM
from .adding import Adding, Drawn, adding_to
from .entries import (
    CaseRow,
    case_row,
    check_entry,
    header_of,
    is_labelled,
    is_own,
    key_of,
    name_of,
    patient_of,
    relative,
    spacing_of,
)
from .manifest import SPLITS, own_structure
from .scene_summary import SceneSummary

if TYPE_CHECKING:
    from .scene_case import SceneCase, SceneReport

MANIFEST = "dataset.json"
UNLABELLED = "unlabelled"
ALL_SPLITS = (*SPLITS, UNLABELLED)
NAMES = "segment_names"
"""Key of the manifest: the reader's meaning of segment names, kept for the next scenes."""

Report = Callable[[float, str], None]


class TrainingSet:
    """A manifest that can be changed.

    Args:
        path: the folder, or a manifest in it. What is not there is made when something is added.

    Attributes:
        notes: sentences for a reader about the last import: what was omitted, and why.

    Raises:
        DatasetError: there is a manifest that cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        self.path = path if path.suffix == ".json" else path / MANIFEST
        self.table: dict[str, Any] = {}
        self.notes: list[str] = []
        self._seen = self._written()
        if self.path.exists():
            self.table = read_json(self.path, DatasetError)
            if not isinstance(self.table, dict) or not all(
                isinstance(self.table.get(split, []), list) for split in ALL_SPLITS
            ):
                raise DatasetError(f"{self.path} is not a dataset file.", "Choose another folder.")
            for split in ALL_SPLITS:
                for number, entry in enumerate(self.table.get(split, []), start=1):
                    check_entry(entry, f"entry {number} of {split} in {self.path}")
            own = self.table.get("custom", {})
            if not isinstance(own, dict) or not all(type(value) is int for value in own.values()):
                raise DatasetError(f"“custom” in {self.path} is not a table of numbers.", "Choose another folder.")

    @property
    def folder(self) -> Path:
        """What the paths in the manifest are relative to."""
        return self.path.parent

    @property
    def names(self) -> dict[str, str]:
        """The reader's meaning of segment names, from earlier imports."""
        kept = self.table.get(NAMES, {})
        return {str(key): str(value) for key, value in kept.items()} if isinstance(kept, dict) else {}

    @property
    def customs(self) -> list[str]:
        """Structures of the reader's own."""
        return list(self.table.get("custom", {}))

    def entries(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(split, entry) of every case."""
        for split in ALL_SPLITS:
            for entry in self.table.get(split, []):
                yield split, entry if isinstance(entry, dict) else {"image": str(entry)}

    def rows(self) -> list[CaseRow]:
        """The cases for a reader, with what is doubtful about each."""
        return [case_row(self.folder, self.table, split, entry) for split, entry in self.entries()]

    # --- changes -----------------------------------------------------------------------------------------------------

    def add_scenes(
        self,
        reports: Iterable[SceneReport],
        *,
        count: int = 0,
        split: str | None = None,
        validation_share: float = 0.2,
        extent: Extent | None = None,
        patient: str | None = None,
        names: Mapping[str, str] | None = None,
        ignore_unknown: bool = False,
        skip_problems: bool = False,
        unlabelled: bool = False,
        progress: Report | None = None,
    ) -> SceneSummary:
        """Adds the cases of scenes. A case of the same volume, whatever scene it came from, is replaced.

        Args:
            reports: of `slicer_scene.read_scene`; taken one at a time.
            count: how many there are, for the progress.
            split: for all of them; by default patients are dealt out, those who are known stay where they are.
            validation_share: of the new patients, for validation.
            extent: of vertebrae, where the segments do not say.
            patient: of all cases; by default what the scene says.
            names: the reader's meaning of names, kept for next time.
            ignore_unknown: omit segments that could not be placed.
            skip_problems: omit what cannot be read.
            unlabelled: keep volumes without annotation, to be annotated next.

        Raises:
            DatasetError: a scene or case cannot be used, a segment could not be placed, a patient would be in two
                splits, or nothing is left; nothing is written.
            OutputError: the folder cannot be written.
        """
        summary = SceneSummary()
        report_progress = progress or (lambda fraction, message: None)
        with adding_to(self) as adding:
            for number, report in enumerate(reports):
                report_progress(number / max(count, 1), f"{report.path.name}")
                summary.take(report)
                for case in report.cases:
                    if case.unplaced and not ignore_unknown:
                        continue
                    if not case.is_annotated and not unlabelled:
                        continue
                    try:
                        self._add_case(adding, case, summary, extent=extent, patient=patient, split=split)
                    except SpineSegAIError as error:
                        summary.problems.append(str(error))
            self._refuse(summary, ignore_unknown, skip_problems)
            if not adding.all:
                raise DatasetError(
                    "Nothing is annotated in these scenes.", "Segment a volume, or name points after structures."
                )
            self._deal(adding.new, split, validation_share)
            if names:
                self.table[NAMES] = {**self.names, **names}
            adding.commit()
        report_progress(1.0, "Done")
        return summary

    def add_entries(
        self,
        entries: Sequence[dict[str, Any]],
        *,
        splits: Mapping[str, str] | None = None,
        validation_share: float = 0.2,
    ) -> None:
        """Adds cases whose files stay where they are; a case with the same image is replaced.

        Args:
            entries: of a manifest, with absolute paths; a label may be `Drawn`.
            splits: patient → split, where the dataset says. Where it does not, a patient stays where he was.
            validation_share: of the patients who are new, and of whom it says nothing.
        """
        was = {patient_of(e): of for of, e in self.entries() if of in SPLITS}
        with adding_to(self) as adding:
            for entry in entries:
                drawn = entry["label"] if isinstance(entry.get("label"), Drawn) else None
                for key in ("image", "label"):
                    if key in entry and not (drawn and key == "label"):
                        entry[key] = relative(entry[key], self.folder)
                own = ""
                for split in ALL_SPLITS:
                    same = [
                        e for e in self.table.get(split, []) if isinstance(e, dict) and e["image"] == entry["image"]
                    ]
                    for former in same:
                        self.table[split].remove(former)
                        label = str(former.get("label", ""))
                        own = label if re.fullmatch(r"labels/[^/\\]+", label) else own
                if drawn:
                    entry["label"] = adding.keep(drawn, own)
                adding.new.append(entry)
            for entry in [e for e in adding.new if (splits or {}).get(e["patient"])]:
                self._put(entry, (splits or {})[entry["patient"]])
            self._deal([e for e in adding.new if not (splits or {}).get(e["patient"])], None, validation_share, was)
            adding.commit()

    def add_images(self, images: Iterable[str | Path]) -> list[str]:
        """Keeps images that are to be annotated; they stay where they are.

        Returns:
            Names of those that were not there yet.

        Raises:
            DatasetError: one does not exist or is not an image.
        """
        known = {real_path(self.folder / str(e.get("image", ""))) for _, e in self.entries()}
        with adding_to(self) as adding:
            for image in map(Path, images):
                spacing = spacing_of(image)
                if spacing is None:
                    raise DatasetError(
                        f"{image} was not found or is not an image.", "Choose NIfTI, NRRD or MetaImage files."
                    )
                if real_path(image) not in known:
                    entry = {"image": relative(image, self.folder), "patient": name_of(image.name), "source": "image"}
                    adding.new.append({**entry, "spacing_mm": list(spacing), "size": list(header_of(image).GetSize())})
            self._deal(adding.new, None, 0.0)
            adding.commit()
        return [name_of(entry) for entry in adding.new]

    def remove(self, keys: Iterable[str]) -> None:
        """Takes cases out, and deletes their files if they are the training set's own.

        Args:
            keys: of the cases (`CaseRow.key`).
        """
        wanted = set(keys)
        gone = [entry for _, entry in self.entries() if key_of(entry) in wanted]
        for split in ALL_SPLITS:
            kept = [e for e in self.table.get(split, []) if key_of(e) not in wanted]
            if split in self.table:
                self.table[split] = kept
        self.save()
        self._delete(gone)

    def set_split(self, keys: Iterable[str], split: str) -> list[str]:
        """Moves cases, and with each all other cases of its patient, who may be in one split only.

        Args:
            keys: of the cases (`CaseRow.key`).
            split: where to.

        Returns:
            Keys of all that moved.

        Raises:
            DatasetError: the split is none, or an unlabeled case would be trained on.
        """
        if split not in SPLITS:
            raise DatasetError(f"“{split}” is not a split.", f"Use {', '.join(SPLITS)}.")
        wanted = set(keys)
        bare = [name_of(entry) for of, entry in self.entries() if of == UNLABELLED and key_of(entry) in wanted]
        if bare:
            raise DatasetError(f"{bare[0]} is not annotated yet.", "Annotate it and add it as a case.")
        patients = {patient_of(entry) for _, entry in self.entries() if key_of(entry) in wanted}
        moved = []
        for of in SPLITS:
            for entry in list(self.table.get(of, [])):
                if of != split and patient_of(entry) in patients:
                    self.table[of].remove(entry)
                    self.table.setdefault(split, []).append(entry)
                    moved.append(key_of(entry))
        self.save()
        return moved

    def set_scores(self, scores: Mapping[str, Mapping[str, Any]]) -> None:
        """Keeps the ranking of unlabeled cases with them: key → scores."""
        for split, entry in self.entries():
            if split == UNLABELLED and key_of(entry) in scores:
                entry["ranking"] = dict(scores[key_of(entry)])
        self.save()

    def save(self) -> None:
        """Writes the manifest, whole or not at all.

        Raises:
            OutputError: it cannot be written, or see `refuse_changed`.
        """
        self.refuse_changed()
        self.table = _ordered(self.table)
        with atomic_write(self.path) as (part,):
            part.write_text(json.dumps(self.table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        self._seen = self._written()

    def refuse_changed(self) -> None:
        """Raises:
        OutputError: the manifest is not what it was when it was read: what another program added would be lost.
        """
        if self._written() != self._seen:
            raise OutputError(f"{self.path} was changed by another program meanwhile.", "Do it once more.")

    def _written(self) -> str | None:
        """What tells the manifest's content from others; None where there is none."""
        return checksum(self.path, DatasetError) if self.path.is_file() else None

    # --- adding ------------------------------------------------------------------------------------------------------

    def _add_case(
        self,
        adding: Adding,
        case: SceneCase,
        summary: SceneSummary,
        *,
        extent: Extent | None,
        patient: str | None,
        split: str | None,
    ) -> None:
        origin = f"{case.scene}: {case.volume}"
        twin = next((e for e in adding.all if e["image_hash"] == case.fingerprint), None)
        if twin:
            raise DatasetError(
                f"The volume “{case.volume}” of {case.scene} is in {twin['origin']}, too.", "Choose one of the two."
            )
        former = next(((s, e) for s, e in self.entries() if self._is_same_image(e, case)), None)
        if former and not case.is_annotated:
            return  # what is there knows more, or as much
        name = name_of(former[1]) if former and is_own(former[1]) else self._free_name(case, adding)
        entry: dict[str, Any] = {
            "image": f"images/{name}.nii.gz",
            "patient": patient or case.patient,
            "source": "slicer",
            "origin": origin,
            "image_hash": case.fingerprint,
            "spacing_mm": [round(s, 4) for s in case.image.GetSpacing()],
        }
        kept = split or (former[0] if former and former[0] in SPLITS else None)
        if kept:
            self._refuse_two_splits(entry, kept, replaced=former[1] if former else None)
        adding.write(case.image, entry["image"])
        if case.drawn:
            ids = {target: self.id_of(target) for target in case.targets}
            entry["label"] = f"labels/{name}.nii.gz"
            entry["annotated"] = [STRUCTURES[i].name for i in sorted_ids(ids.values())]
            said = case.extent or extent
            if said and any(STRUCTURES[i].is_vertebral for i in ids.values()):
                entry["extent"] = said.value
            adding.write(case.label({t: self._value_of(i) for t, i in ids.items()}), entry["label"])
        if case.keypoints:
            entry["keypoints"] = {target: [round(v, 3) for v in at] for target, at in case.keypoints.items()}
        if case.corrections is not None:
            entry["corrections"] = case.corrections
        if case.notes:
            entry["notes"] = case.notes
        if former:
            self.table[former[0]].remove(former[1])
            summary.replaced.append(name_of(former[1]))
        adding.all.append(entry)
        if former and former[0] in SPLITS and not split:
            self.table[former[0]].append(entry)
        else:
            adding.new.append(entry)

    def _is_same_image(self, entry: dict[str, Any], case: SceneCase) -> bool:
        """Whether an entry is of this case's volume. Of images that lie elsewhere, those alone are read that may be."""
        from .scene_case import fingerprint

        if "image_hash" not in entry and entry.get("size"):
            if sorted(entry["size"]) != sorted(case.image.GetSize()):
                return False
            try:
                entry["image_hash"] = fingerprint(sitk.ReadImage(str(self.folder / entry["image"])))
            except RuntimeError:
                return False
        return entry.get("image_hash") == case.fingerprint

    def id_of(self, target: str) -> int:
        """Structure id of a target; one of the reader's own is declared in the manifest."""
        if not target.startswith(CUSTOM):
            return structure(target).id
        name = target[len(CUSTOM) :]
        own = self.table.setdefault("custom", {})
        known = {key.casefold(): value for key, value in own.items()}
        if name.casefold() in known:
            return own_structure(name, known[name.casefold()])
        sid = own_structure(name)
        taken = set(own.values())
        own[STRUCTURES[sid].name] = next(i for i in (sid, *CUSTOM_IDS) if i not in taken)
        return sid

    def _value_of(self, structure_id: int) -> int:
        """Value in label files: a structure of the reader's own has the manifest's."""
        return structure_id if structure_id in BUILT_IN else self.table["custom"][_declared(self.table, structure_id)]

    def _free_name(self, case: SceneCase, adding: Adding) -> str:
        stem = Path(case.scene).stem
        wanted = (
            re.sub(r"[^\w-]+", "_", stem if stem == case.volume else f"{stem}_{case.volume}").strip("_")[:80] or "case"
        )
        return free_name(wanted, map(name_of, (*(entry for _, entry in self.entries()), *adding.new)), "_")

    def _refuse(self, summary: SceneSummary, ignore_unknown: bool, skip_problems: bool) -> None:
        unplaced = summary.unplaced
        if unplaced and not ignore_unknown:
            names = ", ".join(f"“{name}”" for name in unplaced)
            first = unplaced[0]
            raise DatasetError(
                f"It is not known which structure these segments are: {names}.",
                f'Use --map "{first}=L4", "{first}=custom:{first.lower()}" or "{first}=ignore".',
            )
        if summary.problems and not skip_problems:
            more = f" (and {len(summary.problems) - 1} more)" if len(summary.problems) > 1 else ""
            raise DatasetError(f"{summary.problems[0]}{more}", "Or omit such parts with --skip-problems.")
        if not summary.cases:
            raise DatasetError(
                " ".join(summary.problems) or "There is no volume in these scenes.",
                "Choose scenes with annotated volumes.",
            )

    def _refuse_two_splits(
        self, entry: Mapping[str, Any], split: str, replaced: Mapping[str, Any] | None = None
    ) -> None:
        for of, other in self.entries():
            if of in SPLITS and of != split and patient_of(other) == patient_of(entry) and other is not replaced:
                raise DatasetError(
                    f"The patient {entry['patient']} of {entry.get('origin') or entry['image']} is already in {of}.",
                    f"A patient may be in one split only: add the case to {of}, or move the patient first.",
                )

    def _deal(
        self,
        entries: Sequence[dict[str, Any]],
        split: str | None,
        share: float,
        was: Mapping[tuple[str, str], str] | None = None,
    ) -> None:
        """Puts new cases into splits, all of a patient into one; the same patients always fall the same way.

        Args:
            was: where patients were whose cases are being replaced.
        """
        known = {**(was or {}), **{patient_of(e): of for of, e in self.entries() if of in SPLITS}}
        new = sorted(
            {patient_of(e) for e in entries if patient_of(e) not in known and is_labelled(e)},
            key=_number,
        )
        held = set(new[: round(share * len(new))])
        if not held and "training" in known.values():  # a case at a time: each by itself is less than its share
            held = {patient for patient in new if _number(patient) < share}
        for entry in entries:
            patient = patient_of(entry)
            dealt = known.get(patient) or ("validation" if patient in held else "training")
            self._put(entry, UNLABELLED if not is_labelled(entry) else split or dealt)

    def _put(self, entry: dict[str, Any], split: str) -> None:
        if split in SPLITS:
            self._refuse_two_splits(entry, split)
        self.table.setdefault(split, []).append(entry)

    def _delete(self, entries: Iterable[Mapping[str, Any]]) -> None:
        used = {str(e.get(key)) for _, e in self.entries() for key in ("image", "label")}
        for entry in entries:
            for key, folder in (("image", "images"), ("label", "labels")):
                own = str(entry.get(key, ""))
                if own not in used and re.fullmatch(rf"{folder}/[^/\\]+", own):
                    (self.folder / own).unlink(missing_ok=True)


def _number(patient: tuple[str, str]) -> float:
    """0…1, by chance, and always the same for a patient."""
    return int.from_bytes(hashlib.sha256(repr(patient).encode()).digest()[:8], "big") / 2**64


def _declared(table: Mapping[str, Any], structure_id: int) -> str:
    name = STRUCTURES[structure_id].name.casefold()
    return next(key for key in table["custom"] if key.casefold() == name)


def _ordered(table: Mapping[str, Any]) -> dict[str, Any]:
    """Decathlon's keys: its count of cases is kept right."""
    result = dict(table)
    result.setdefault("training", [])
    result["numTraining"] = len(result["training"])
    lists = {key: result.pop(key) for key in ALL_SPLITS if key in result}
    return {**result, **lists}
