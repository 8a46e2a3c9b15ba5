"""Public datasets in the folders that they are published in, and nnU-Net's, as cases of a manifest.

Files stay where they are. Sources of the layouts and label values: SPIDER (Zenodo 10159290; van der Graaf et al.,
Scientific Data 2024), MRSpineSeg (spinesegmentation-challenge.com, “Data description”), VerSe (osf.io/4skx2, “subject
based structure”), CTSpine1K (github.com/MIRACLE-Center/CTSpine1K), PARSE 2022 (parse2022.grand-challenge.org: a folder
per patient), nnU-Net v2 (documentation/dataset_format.md). The Spinal Disease Dataset has keypoints in the place of
masks (`spinal_disease`), the films of AASCE corners of vertebrae (`aasce`).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..anatomy import STRUCTURES, VALUE_MAPS, Extent, sorted_ids, structure
from ..errors import DatasetError, ImageError
from ..files import read_json, read_text, real_path
from ..imaging import read_file, read_geometry
from ..results.segment_names import CUSTOM, IGNORE, place
from . import aasce, spinal_disease
from .manifest import Case, refuse_other_grid
from .training_set import Report, TrainingSet

_IMAGES = (".nii.gz", ".nii", ".mha", ".nrrd")


@dataclass
class _Found:
    """What a reader finds in a folder.

    Attributes:
        pairs: (image, label, patient).
        splits: patient → split, where the dataset says.
        values: value in the label files → target (`segment_names`), or the name of one of `anatomy.VALUE_MAPS`.
    """

    pairs: list[tuple[Path, Path, str]]
    values: str | Mapping[int, str]
    splits: dict[str, str] = field(default_factory=dict)
    modality: str = "MR"
    extent: Extent | None = Extent.WHOLE


def import_dataset(
    kind: str,
    folder: str | Path,
    output: str | Path,
    *,
    validation_share: float = 0.2,
    extent: Extent | None = None,
    table: Mapping[str, str] | None = None,
    progress: Report | None = None,
) -> TrainingSet:
    """Adds a public dataset's labeled cases to a training set; its files stay where they are.

    Args:
        kind: one of `NAMES`.
        folder: of the dataset.
        output: folder or manifest of the training set.
        validation_share: of the patients, where the dataset has no split of its own.
        extent: of the vertebral masks of an nnU-Net folder.
        table: the reader's meaning of an nnU-Net folder's label names.

    Raises:
        DatasetError: the folder is not of that kind, a file is missing or damaged, a label value or name has no
            meaning, or a patient would be in two splits; nothing is written.
        OutputError: the training set cannot be written.
    """
    folder = Path(folder)
    if kind not in NAMES:
        raise DatasetError(f"“{kind}” is not a dataset format.", f"Available: {', '.join(NAMES)}.")
    if not folder.is_dir():
        raise DatasetError(f"There is no folder {folder}.", "Check the path.")
    if kind == aasce.SOURCE:
        return _import_films(folder, TrainingSet(output), validation_share)
    if kind == spinal_disease.SOURCE:
        return _import_spinal_disease(folder, TrainingSet(output), validation_share)
    found = FORMATS[kind](folder)
    if not found.pairs:
        raise DatasetError(f"There are no labeled cases of {kind} in {folder}.", _LAYOUTS[kind])
    target = TrainingSet(output)
    entries = []
    values, needs_table = _meaning(found.values, table or {}, target)
    for number, (image, label, patient) in enumerate(found.pairs):
        if progress:
            progress(number / len(found.pairs), image.name)
        _refuse_other_grid(image, label)
        entry: dict[str, Any] = {
            "image": real_path(image),
            "label": real_path(label),
            "annotated": _annotated(label, values),
            "patient": patient,
            "source": kind if kind != "nnunet" else folder.name,
            "label_values": {str(v): name for v, name in values.items()} if needs_table else found.values,
        }
        said = found.extent or extent
        if said:
            entry["extent"] = said.value
        if not entry["annotated"]:
            continue  # a mask without anything in it teaches nothing
        entries.append(entry)
    if not entries:
        raise DatasetError(f"All label images in {folder} are empty.", "Check the download.")
    target.table.setdefault("name", folder.name)
    target.table.setdefault("modality", {"0": found.modality})
    target.add_entries(entries, splits=found.splits, validation_share=validation_share)
    return target


def _import_spinal_disease(folder: Path, target: TrainingSet, validation_share: float) -> TrainingSet:
    """Keypoints teach and are not scored, so that only cases with masks are dealt to training and validation."""
    entries = spinal_disease.spinal_disease_entries(folder)
    if not entries:
        raise DatasetError(f"There are no cases of {spinal_disease.SOURCE} in {folder}.", _LAYOUTS["spinal-disease"])
    target.table.setdefault("name", folder.name)
    target.table.setdefault("modality", {"0": "MR"})
    splits = {entry["patient"]: "training" for entry in entries if "label" not in entry}
    target.add_entries(entries, splits=splits, validation_share=validation_share)
    return target


def _import_films(folder: Path, target: TrainingSet, validation_share: float) -> TrainingSet:
    films = aasce.read_films(folder)
    if not films.entries:
        raise DatasetError(f"There are no films of {aasce.SOURCE} in {folder}.", _LAYOUTS[aasce.SOURCE])
    target.table.setdefault("name", folder.name)
    target.table.setdefault("modality", {"0": "XR"})
    target.add_entries(films.entries, splits=films.splits, validation_share=validation_share)
    target.notes = films.notes
    return target


def _refuse_other_grid(image: Path, label: Path) -> None:
    """Raises:
    DatasetError: a label lies elsewhere than its image, by the measure that training and evaluation have.
    """
    grids = read_geometry(image), read_geometry(label)
    if grids[0] is not None and grids[1] is not None:
        refuse_other_grid(grids[0], grids[1], Case(image, label))


def _meaning(
    values: str | Mapping[int, str], table: Mapping[str, str], target: TrainingSet
) -> tuple[dict[int, str], bool]:
    """Value → structure name (empty for what is omitted), and whether the manifest has to spell it out."""
    if isinstance(values, str):
        return {v: STRUCTURES[i].name for v, i in VALUE_MAPS[values].items()}, False
    meaning, unknown = {}, []
    for value, name in values.items():
        placement = place(name, {}, table, target.customs)
        if not placement.target:
            unknown.append(name)
        elif placement.target == IGNORE:
            meaning[value] = "background"
        elif placement.target.startswith(CUSTOM):
            meaning[value] = STRUCTURES[target.id_of(placement.target)].name
        else:
            meaning[value] = placement.target
    if unknown:
        first = unknown[0]
        raise DatasetError(
            f"It is not known which structures these labels are: {', '.join(f'“{n}”' for n in unknown)}.",
            f'Use --map "{first}=L4" or "{first}=custom:{first.lower()}".',
        )
    return meaning, True


def _annotated(label: Path, values: Mapping[int, str]) -> list[str]:
    """Names of the structures that a label file holds.

    Raises:
        DatasetError: it cannot be read, or holds a value without a meaning.
    """
    try:
        found = np.unique(sitk.GetArrayFromImage(read_file(label)))
    except ImageError as error:
        raise DatasetError(f"The label image {label} cannot be read: {error.message}", error.remedy) from None
    present = [v for v in found.tolist() if v]
    stray = [v for v in present if v not in values]
    if stray:
        listed = ", ".join(f"{v:g}" for v in stray[:5])
        raise DatasetError(f"{label} has values that mean nothing there: {listed}.", "Is it a file of this dataset?")
    names = {values[int(v)] for v in present} - {"background"}
    return [STRUCTURES[i].name for i in sorted_ids(structure(name).id for name in names)]


# --- readers ---------------------------------------------------------------------------------------------------------


def _spider(folder: Path) -> _Found:
    """``images/1_t1.mha``, ``masks/1_t1.mha``; ``overview.csv`` says which patients are for validation."""
    images = _files(folder / "images")
    pairs = [
        (image, folder / "masks" / image.name, stem.split("_")[0])
        for stem, image in images.items()
        if (folder / "masks" / image.name).exists()
    ]
    return _Found(pairs, "spider", _spider_splits(folder / "overview.csv"))


def _spider_splits(overview: Path) -> dict[str, str]:
    if not overview.exists():
        return {}
    text = read_text(overview, DatasetError)
    try:
        rows = list(csv.DictReader(text.splitlines(), delimiter=";" if ";" in text.partition("\n")[0] else ","))
    except csv.Error as error:
        raise DatasetError(f"{overview} is damaged: {error}.", "Download it again, or remove it.") from None
    names = {"training": "training", "train": "training", "validation": "validation", "val": "validation"}
    found = {}
    for row in rows:
        case = row.get("new_file_name") or ""
        split = names.get((row.get("subset") or "").strip().lower())
        if case and split:
            found[case.split("_")[0]] = split
    return found


def _mrspineseg(folder: Path) -> _Found:
    """``train/MR/Case1.nii.gz``, ``train/Mask/mask_case1.nii.gz``."""
    base = next((f for f in (folder, folder / "train", folder / "MRI_train" / "train") if (f / "MR").is_dir()), folder)
    masks = {stem.lower().removeprefix("mask_"): path for stem, path in _files(base / "Mask").items()}
    return _Found(
        [(image, masks[stem.lower()], stem) for stem, image in _files(base / "MR").items() if stem.lower() in masks],
        "mrspineseg",
    )


def _verse(folder: Path) -> _Found:
    """``…training/rawdata/sub-verse004/sub-verse004_ct.nii.gz``, ``…/derivatives/sub-verse004/…_seg-vert_msk.nii.gz``;
    the folder is one split, or holds the splits."""
    pairs: list[tuple[Path, Path, str]] = []
    splits: dict[str, str] = {}
    for raw in [folder / "rawdata", *sorted(folder.glob("*/rawdata"))]:
        name = raw.parent.name.lower()
        split = "validation" if "validation" in name else "training" if "training" in name else ""
        if "test" in name and not split:
            split = "test"
        for image in _visible(raw.glob("sub-*/*_ct.nii.gz")):
            mask = raw.parent / "derivatives" / image.parent.name / f"{_stem(image)[: -len('_ct')]}_seg-vert_msk.nii.gz"
            if mask.exists():
                pairs.append((image, mask, image.parent.name))
                if split:
                    former = splits.setdefault(image.parent.name, split)
                    _refuse_second_split(image.parent.name, former, split, folder)
    return _Found(pairs, "verse", splits, "CT")


def _ctspine1k(folder: Path) -> _Found:
    """``data/colon/1.nii.gz``, ``label/colon/1_seg.nii.gz`` (or ``raw_data/volumes``, ``raw_data/labels``); the split
    in ``data_split.txt``, whose public test cases are for validation."""
    layouts = (("data", "label"), ("volumes", "labels"), ("raw_data/volumes", "raw_data/labels"))
    data, labels = next(
        ((folder / d, folder / m) for d, m in layouts if (folder / d).is_dir() and (folder / m).is_dir()),
        (folder / "data", folder / "label"),
    )
    pairs = []
    for mask in _visible(labels.rglob("*_seg.nii.gz")):
        stem = _stem(mask).removesuffix("_seg")
        beside = data / mask.parent.relative_to(labels)
        found = [beside / f"{stem}{end}" for end in ("_ct.nii.gz", ".nii.gz")]
        pairs += [(image, mask, stem) for image in found if image.exists()][:1]
    listing = next((p for p in (folder / "data_split.txt", *folder.glob("*/data_split.txt")) if p.exists()), None)
    splits = _ctspine1k_splits(listing, {image.name: stem for image, _, stem in pairs}) if listing else {}
    return _Found(pairs, "verse", splits, "CT")


def _ctspine1k_splits(listing: Path, patients: Mapping[str, str]) -> dict[str, str]:
    """Lists of image names under the headings trainset, test_public and test_private."""
    names = {"trainset:": "training", "test_public:": "validation", "test_private:": "test"}
    splits: dict[str, str] = {}
    split = ""
    for line in map(str.strip, read_text(listing, DatasetError).splitlines()):
        split = names.get(line, split)
        if line in patients and split:
            patient = patients[line]
            _refuse_second_split(patient, splits.setdefault(patient, split), split, listing)
    return splits


def _parse(folder: Path) -> _Found:
    """``PA000005/image/PA000005.nii.gz``, ``PA000005/label/PA000005.nii.gz``: 1 is the pulmonary artery, of both sides
    and with its trunk. Veins are not labeled, hence not known."""
    base = next((f for f in (folder, folder / "train") if any(f.glob("*/label"))), folder)
    pairs = []
    for label in _visible(base.glob("*/label/*.nii.gz")):
        image = label.parents[1] / "image" / label.name
        if image.exists():
            pairs.append((image, label, label.parents[1].name))
    return _Found(pairs, {1: "pulmonary artery"}, {}, "CT", None)


def _nnunet(folder: Path) -> _Found:
    """``dataset.json``, ``imagesTr/case_0000.nii.gz``, ``labelsTr/case.nii.gz``: the first channel is taken."""
    path = folder / "dataset.json"
    try:
        table = read_json(path, DatasetError)
    except DatasetError as error:
        raise DatasetError(error.message, _LAYOUTS["nnunet"]) from None
    table = table if isinstance(table, dict) else {}
    labels, ending = table.get("labels"), table.get("file_ending", ".nii.gz")
    channels = table.get("channel_names") or table.get("modality") or {}
    if not (isinstance(labels, dict) and isinstance(channels, dict) and re.fullmatch(r"\.[\w.]+", str(ending))):
        raise DatasetError(f"{path} is not nnU-Net's.", _LAYOUTS["nnunet"])
    values: dict[int, str] = {}
    for key, entry in labels.items():
        name, value = (key, entry) if not key.isdecimal() else (entry, key)
        if isinstance(value, list):
            raise DatasetError(
                f"The label “{name}” of {folder.name} is a region of several.", "Give each label a name."
            )
        try:
            number = int(value)
        except (TypeError, ValueError, OverflowError):
            raise DatasetError(
                f"The label “{name}” in {path} has the value {value!r}.", "Values are numbers."
            ) from None
        if number:
            values[number] = str(name)
    if len(channels) > 1:
        raise DatasetError(
            f"The cases of {folder.name} have {len(channels)} channels: {', '.join(map(str, channels.values()))}.",
            "SpineSegAI takes one image per case; make a dataset of one of them.",
        )
    pairs = []
    for mask in _visible((folder / "labelsTr").glob(f"*{ending}")):
        case = mask.name.removesuffix(ending)
        image = folder / "imagesTr" / f"{case}_0000{ending}"
        if not image.exists():
            raise DatasetError(f"The label {mask.name} has no image {image.name}.", "Is the folder complete?")
        pairs.append((image, mask, case))
    channel = str(next(iter(channels.values()), "MR"))
    return _Found(pairs, values, {}, "CT" if channel.upper() == "CT" else "MR", None)


FORMATS: Mapping[str, Callable[[Path], _Found]] = {
    "spider": _spider,
    "mrspineseg": _mrspineseg,
    "verse": _verse,
    "ctspine1k": _ctspine1k,
    "parse": _parse,
    "nnunet": _nnunet,
}
"""Readers of images with masks by name."""

NAMES = (*FORMATS, spinal_disease.SOURCE, aasce.SOURCE)
"""Every format that can be imported."""

_LAYOUTS = {
    "spider": "It has the folders images and masks with files such as 1_t2.mha.",
    "mrspineseg": "It has the folders MR (Case1.nii.gz) and Mask (mask_case1.nii.gz).",
    "verse": "It has the folders rawdata and derivatives, or folders such as dataset-verse20training with these.",
    "ctspine1k": "It has the folders data and label, or raw_data/volumes and raw_data/labels.",
    "spinal-disease": "It has files such as lumbar_train150_annotation.json, and folders of studies.",
    "aasce": "It has the folders labels/training (filenames.csv, landmarks.csv, angles.csv) and data/training, or a "
    "landmarks.json beside its films.",
    "parse": "It has a folder per patient with image/NAME.nii.gz and label/NAME.nii.gz.",
    "nnunet": "It has a dataset.json and the folders imagesTr and labelsTr.",
}


def _files(folder: Path) -> dict[str, Path]:
    """Images of a folder by their name without suffix, numbers in order."""
    found = [p for p in _visible(folder.glob("*")) if p.name.lower().endswith(_IMAGES)]
    number = lambda p: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", p.name)]  # noqa: E731
    return {_stem(path): path for path in sorted(found, key=number)}


def _visible(paths: Iterable[Path]) -> list[Path]:
    """Paths by name, without what macOS leaves beside files on other disks (``._case.nii.gz``)."""
    return sorted(path for path in paths if not path.name.startswith("."))


def _stem(path: Path) -> str:
    return re.sub(r"(\.nii)?\.[A-Za-z]+$", "", path.name)


def _refuse_second_split(patient: str, first: str, second: str, where: Path) -> None:
    if first != second:
        raise DatasetError(
            f"The patient {patient} is in both {first} and {second} of {where}.", "Split the data by patient."
        )
