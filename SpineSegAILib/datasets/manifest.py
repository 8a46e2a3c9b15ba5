"""Manifests: which images belong to a dataset, where their labels are, and what is labeled in each.

The file is a Medical Segmentation Decathlon ``dataset.json`` with a few more keys, all optional. For the dataset:
``extent`` (``body`` or ``whole``), ``label_values`` (a name of `anatomy.VALUE_MAPS`, or a table value → name),
``custom`` (name → label value of structures of the reader's own), ``unlabelled`` (images without labels, which
nothing here reads). For a case: ``annotated`` (names of the structures labeled in it; everything else is unknown
there, not absent), ``source``, ``patient``, ``label_whole`` (a second label file, of whole vertebrae, where ``label``
has bodies: what it has beyond them are posterior elements), ``keypoints``, ``corners`` (of vertebrae in films), and its
own ``extent`` and ``label_values``. Paths are relative to the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..anatomy import (
    BUILT_IN,
    CUSTOM_IDS,
    POSTERIOR_ID,
    STRUCTURES,
    VALUE_MAPS,
    Extent,
    custom_structure,
    posterior_of,
    sorted_ids,
    structure,
)
from ..errors import DatasetError, ImageError, SpineSegAIError
from ..files import known_checksum, read_json, real_path
from ..hints import Point
from ..keypoints import Corners, parse_corners, parse_keypoints, read_keypoints

if TYPE_CHECKING:
    import numpy as np
    import SimpleITK as sitk

    from ..imaging import Geometry

SPLITS = ("training", "validation", "test")
"""Lists of cases that a manifest may have."""
UNLEVELLED = 254
"""Value in a label file of whole vertebrae for posterior elements whose level was not determined."""
_IMAGE_KEY = "sha256:"
_SMALLEST_POSTERIOR_MM3 = 750.0  # a spinous process alone has 3,000; less is the edge of a body that was drawn twice


@dataclass(frozen=True)
class Case:
    """One image and what is known about it.

    Attributes:
        image: file, or folder with a DICOM series.
        label: file with structure ids; None where there are only keypoints, or nothing.
        label_whole: file with whole vertebrae where `label` has bodies (see `read_label`); or None.
        annotated: ids of the structures labeled here, in anatomical order; all others are unknown, not absent.
        source: where the case comes from; empty if not said.
        patient: cases of one patient must share a split; the case's name where not said.
        extent: whether vertebrae are bodies or whole; None if not said.
        keypoints: structure id → center (LPS, mm).
        corners: vertebra's id → its corners in a film (LPS, mm), in the order of `keypoints.CORNERS`.
        label_values: value in the label file → structure id; None where they are the same.
        name: the image's file name without its suffixes: ``chu_08_image``; with its folders', where others are alike.
    """

    image: Path
    label: Path | None
    annotated: tuple[int, ...] = ()
    source: str = ""
    patient: str = ""
    extent: Extent | None = None
    keypoints: Mapping[int, Point] = field(default_factory=dict)
    label_values: Mapping[int, int] | None = None
    name: str = ""
    label_whole: Path | None = None
    corners: Mapping[int, Corners] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        """All that it is read from: image and label files."""
        return [path for path in (self.image, self.label, self.label_whole) if path is not None]

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", _stem(self.image))


@dataclass(frozen=True)
class Manifest:
    """A dataset: its cases by split.

    Attributes:
        path: the file it was read from.
        name: title of the dataset.
        modality: ``"MR"``, ``"CT"`` …, empty if not said.
        extent: of the dataset as a whole; None if not said.
        splits: ``"training"`` … → its cases.
        custom: ids of structures of the reader's own, in this process.
    """

    path: Path
    name: str
    modality: str
    extent: Extent | None
    splits: Mapping[str, tuple[Case, ...]]
    custom: tuple[int, ...] = ()

    def cases(self, split: str) -> tuple[Case, ...]:
        """The cases of one split.

        Raises:
            DatasetError: the manifest has no such split, or it is empty.
        """
        found = self.splits.get(split, ())
        if not found:
            listed = ", ".join(f"{name} ({len(cases)})" for name, cases in self.splits.items() if cases)
            raise DatasetError(f"{self.path} has no “{split}” cases.", f"It has: {listed or 'none at all'}.")
        return found


def read_manifest(path: str | Path, *, must_exist: bool = True) -> Manifest:
    """Reads a manifest and checks that everything it names is there.

    Args:
        must_exist: whether the images and labels have to be there.

    Raises:
        DatasetError: the file is missing or not JSON; a case names a file that is missing, a structure or a set of
            label values that is unknown; the same image or patient is in two splits.
    """
    path = Path(path)
    table = _load(path)
    extent = _extent(table.get("extent"), str(path))
    custom = custom_values(table, path)
    values = _table_values(table, path)
    default_annotated = tuple(sorted_ids(set(values.names.values())))
    splits: dict[str, tuple[Case, ...]] = {}
    for split in SPLITS:
        entries = table.get(split, [])
        if not isinstance(entries, list):
            raise DatasetError(f"“{split}” in {path} is not a list.", "Write a list of cases.")
        splits[split] = tuple(
            _case(entry, f"{path}, {split} case {number}", path.parent, extent, values, default_annotated, must_exist)
            for number, entry in enumerate(entries, start=1)
        )
    splits = _told_apart(splits)
    if not any(splits.values()):
        raise DatasetError(f"{path} lists no cases.", f"It needs one of: {', '.join(SPLITS)}.")
    refuse_leaks(splits, path)
    modality = table.get("modality", {})
    modality = next(iter(modality.values()), "") if isinstance(modality, dict) else modality
    return Manifest(
        path, str(table.get("name", path.parent.name)), str(modality), extent, splits, tuple(custom.values())
    )


def read_cases(manifests: Iterable[str | Path], split: str) -> list[Case]:
    """The cases of a split of several manifests.

    Raises:
        DatasetError: one of the manifests is not valid, or has no such case.
    """
    return [case for manifest in manifests for case in read_manifest(manifest).cases(split)]


def of_dataset(case: Case, number: int) -> Case:
    """A case of one of several datasets (1, 2 …) that are taken together. A patient who is named after the file alone
    is another one than that of a like file of another dataset."""
    unnamed = number > 1 and not case.source and case.patient == case.name
    return replace(case, patient=f"{number}/{case.patient}") if unnamed else case


def learned_from(cases: Iterable[Case], trained_on: Collection[str]) -> list[Case]:
    """Those of some cases that a method has learned from.

    Args:
        trained_on: `image_key` of what it learned from; or names of cases, which tell less: files of two datasets may
            have the same one, and a mixture of datasets names them apart.
    """
    keyed = any(key.startswith(_IMAGE_KEY) for key in trained_on)
    return [
        case
        for case in cases
        if case.name in trained_on or (keyed and image_key(known_checksum(case.image, DatasetError)) in trained_on)
    ]


def image_key(sum_of_file: str) -> str:
    """What tells an image from others, whatever it is called: the beginning of its file's SHA-256."""
    return f"{_IMAGE_KEY}{sum_of_file[:16]}"


def moved(table: dict[str, Any], before: Path, after: Path) -> dict[str, Any]:
    """A manifest's table with its paths relative to another folder."""
    for split in SPLITS:
        table[split] = [{"image": entry} if isinstance(entry, str) else dict(entry) for entry in table.get(split, [])]
        for entry in table[split]:
            for key in ("image", "label", "label_whole", "keypoints"):
                if isinstance(entry.get(key), str) and entry[key]:
                    entry[key] = os.path.relpath(real_path(before / entry[key]), real_path(after))
    return table


def values_of(ids: Iterable[int]) -> dict[str, str]:
    """``label_values`` of a label file that holds structure ids: numbers of a reader's own ones may differ later."""
    return {str(i): STRUCTURES[i].name for i in ids}


def case_digest(case: Case, *more: Any) -> str:
    """What tells a case's image and labels, and what else is given, from all others: of what its files hold now, and
    what the values mean. Numbers of a reader's own structures may differ."""
    files = [known_checksum(path, DatasetError) for path in case.files]
    values = {value: STRUCTURES[sid].name if sid else "" for value, sid in (case.label_values or {}).items()}
    return hashlib.sha256(json.dumps([*files, sorted(values.items()), *more]).encode()).hexdigest()


def custom_values(table: Mapping[str, Any], path: Path) -> dict[int, int]:
    """Label value → structure id of the structures of the reader's own that a manifest declares; they are known from
    then on. The two differ where another dataset or checkpoint took the number first.

    Raises:
        DatasetError: the declaration is not a table of names and numbers.
    """
    declared = table.get("custom", {})
    found: dict[int, int] = {}
    try:
        for name, value in declared.items():
            if value not in CUSTOM_IDS or value in found:
                raise ValueError(value)
            found[value] = own_structure(name, value)
    except (AttributeError, TypeError, ValueError, SpineSegAIError):
        span = f"{CUSTOM_IDS[0]} to {CUSTOM_IDS[-1]}"
        raise DatasetError(
            f"“custom” in {path} is not valid.", f'Write {{"tumor": {CUSTOM_IDS[0]}}}, with numbers from {span}.'
        ) from None
    return found


def own_structure(name: str, wanted: int | None = None) -> int:
    """Id of a structure of the reader's own, by its name: the one that it has, the wanted one, or the next free one.

    By default a number is wanted that follows from the name, so that the same name mostly gets the same number in data
    sets that know nothing of one another.

    Raises:
        SchemeError: the name is one of anatomy's, or no name.
        DatasetError: there are too many.
    """
    if wanted is None:
        wanted = CUSTOM_IDS[zlib.crc32(name.strip().casefold().encode()) % len(CUSTOM_IDS)]
    try:
        known = structure(name)
    except SpineSegAIError:
        free = next((i for i in (wanted, *CUSTOM_IDS) if i not in STRUCTURES), None)
        if free is None:
            raise DatasetError(
                f"There are already {len(CUSTOM_IDS)} structures like “{name}”.", "Remove some."
            ) from None
        return custom_structure(name, free).id
    return custom_structure(known.name, known.id if known.id not in BUILT_IN else wanted).id


def read_label(case: Case) -> sitk.Image:
    """The case's label image as int16 structure ids, its values translated.

    Raises:
        DatasetError: there is none, it cannot be read, it holds values that are not structures, or structures that
            `annotated` does not list.
    """
    import numpy as np
    import SimpleITK as sitk

    from ..imaging import Geometry

    image = read_drawn(case)
    raw = sitk.GetArrayViewFromImage(image)
    present = np.unique(raw)
    ids = np.array([_translate(value, case) for value in present.tolist()], np.int16)
    stray = sorted_ids({int(i) for i in ids if i} - set(case.annotated))
    if stray:
        names = ", ".join(STRUCTURES[i].name for i in stray)
        raise DatasetError(f"{case.label} holds {names}, which “annotated” does not list.", "Add it there.")
    array = np.stack([ids[np.searchsorted(present, part)] for part in raw])
    if case.label_whole is not None:
        whole = read_drawn(replace(case, label=case.label_whole))
        refuse_other_grid(Geometry.of(image), Geometry.of(whole), case)
        _add_posterior(array, sitk.GetArrayViewFromImage(whole), math.prod(image.GetSpacing()), case)
    label = sitk.GetImageFromArray(array)
    label.CopyInformation(image)
    return label


def _add_posterior(label: np.ndarray, whole: np.ndarray, voxel_mm3: float, case: Case) -> None:
    """Puts the posterior elements, which `whole` has beyond the bodies, into a label array.

    What it gives to a vertebra beyond its body are that one's posterior elements; slivers along a body's edge, and what
    it gives to `UNLEVELLED` or a level that is not annotated, are posterior elements of unknown level.
    """
    import numpy as np

    beyond = np.where(label == 0, whole, 0)
    for value, count in zip(*np.unique(beyond[beyond > 0], return_counts=True), strict=True):
        sid = (case.label_values or {}).get(int(value), int(value))
        named = posterior_of(sid)
        if named is None and int(value) != UNLEVELLED:
            continue  # a disc, or the canal: drawn once more
        certain = named is not None and named.id in case.annotated and count * voxel_mm3 >= _SMALLEST_POSTERIOR_MM3
        label[beyond == value] = named.id if certain and named else POSTERIOR_ID


def read_drawn(case: Case) -> sitk.Image:
    """The case's label image with the values that its file has; a picture as one slice, as its image is read.

    Raises:
        DatasetError: there is none, or it cannot be read.
    """
    from ..imaging import as_volume, read_file, whole_numbers

    if case.label is None:
        raise DatasetError(f"The case {case.name} has no label image.", "Take it out of this split.")
    try:
        image = read_file(case.label)
    except ImageError as error:
        raise DatasetError(f"The label image {case.label} cannot be read: {error.message}", error.remedy) from None
    try:
        return whole_numbers(as_volume(image, case.label.name), case.label.name)
    except ImageError as error:
        raise DatasetError(error.message, "Labels are one whole number per voxel, in the space of the image.") from None


def read_case(case: Case) -> tuple[sitk.Image, sitk.Image]:
    """The case's image, and its labels on the same voxels (`read_label`).

    Raises:
        ImageError: the image cannot be used.
        DatasetError: the labels cannot, or lie elsewhere.
    """
    from ..imaging import Geometry, read_image

    image, label = read_image(case.image), read_label(case)
    refuse_other_grid(Geometry.of(image), Geometry.of(label), case)
    return image, label


def refuse_other_grid(image: Geometry, label: Geometry, case: Case) -> None:
    """Raises:
    DatasetError: labels do not lie where their image does.
    """
    if not image.matches(label):
        raise DatasetError(
            f"{case.label} does not lie on the grid of {case.image}.",
            "Resample the label to the image; if its header alone is wrong, copy the image's.",
        )


def _translate(value: float, case: Case) -> int:
    """Structure id of a value in the case's label file."""
    number = round(value)
    if number != value or number < 0:
        raise DatasetError(
            f"{case.label} holds the value {value:g}, which is not a label.", "Labels are whole numbers."
        )
    if number == 0:
        return 0
    found = number if case.label_values is None else case.label_values.get(number, -1)
    if found and found not in STRUCTURES:
        raise DatasetError(
            f"{case.label} holds the value {number}, which is not a structure.",
            "Name the meaning of its values with “label_values” in the manifest.",
        )
    return found


@dataclass(frozen=True)
class _Values:
    """The dataset's own table of label values."""

    names: Mapping[int, int]  # value → structure id, of the manifest's `labels`
    default: Mapping[int, int] | None


def _load(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise DatasetError(f"{path} is a folder.", "Give the path of the dataset.json inside it.")
    table = read_json(path, DatasetError)
    if not isinstance(table, dict):
        raise DatasetError(f"{path} is not a dataset file.", "It must hold a JSON object with “training”.")
    return table


def _table_values(table: Mapping[str, Any], path: Path) -> _Values:
    """What `labels` (Decathlon: value → name; nnU-Net: name → value) and `label_values` say of the files' values."""
    labels = table.get("labels", {})
    if not isinstance(labels, dict):
        raise DatasetError(f"“labels” in {path} is not a table.", 'Write {"background": 0, "L5": 24}.')
    names: dict[int, int] = {}
    for key, entry in labels.items():
        name, value = (entry, key) if isinstance(entry, str) else (key, entry)
        try:
            number = int(value)
        except (TypeError, ValueError, OverflowError):
            raise DatasetError(f"“labels” in {path}: “{value}” is not a label value.", "Values are numbers.") from None
        if number:
            names[number] = _structure(name, f"“labels” in {path}")
    named = _value_map(table.get("label_values"), str(path))
    if named is None and any(value != sid for value, sid in names.items()):
        named = names
    custom = custom_values(table, path)
    if named is None and any(value != sid for value, sid in custom.items()):
        named = {**{i: i for i in BUILT_IN}, **custom}
    return _Values(names, named)


def _case(
    entry: Any,
    where: str,
    folder: Path,
    extent: Extent | None,
    values: _Values,
    default: tuple[int, ...],
    must_exist: bool = True,
) -> Case:
    if isinstance(entry, str):  # Decathlon's test cases
        entry = {"image": entry}
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
        raise DatasetError(f"{where} names no image.", 'Write {"image": …, "label": …, "annotated": […]}.')
    image = _existing(entry["image"], folder, where, must_exist)
    label = _existing(entry["label"], folder, where, must_exist) if entry.get("label") else None
    annotated = entry.get("annotated")
    if annotated is None:
        ids = default if label else ()
    elif isinstance(annotated, list):
        ids = tuple(sorted_ids({_structure(name, where) for name in annotated}))
    else:
        raise DatasetError(f"“annotated” in {where} is not a list.", 'Write ["L4", "L5"].')
    whole = _existing(entry["label_whole"], folder, where, must_exist) if label and entry.get("label_whole") else None
    if whole:
        own = (posterior_of(i) for i in ids if STRUCTURES[i].is_vertebral)
        ids = tuple(sorted_ids({*ids, POSTERIOR_ID, *(p.id for p in own if p)}))
    if label and not ids:
        raise DatasetError(f"{where} has a label, but the annotated structures are not listed.", "Add “annotated”.")
    return Case(
        image=image,
        label=label,
        annotated=ids,
        source=str(entry.get("source", "")),
        patient=str(entry.get("patient") or ""),
        extent=_extent(entry.get("extent"), where) or extent,
        keypoints=_keypoints(entry.get("keypoints"), folder, where),
        label_values=_value_map(entry.get("label_values"), where) or values.default,
        label_whole=whole,
        corners=_corners(entry.get("corners"), where),
    )


def _existing(name: str, folder: Path, where: str, must_exist: bool = True) -> Path:
    path = folder / name
    try:
        if must_exist and not path.exists():
            raise DatasetError(f"{where}: {path} does not exist.", "Correct the path, or take the case out.")
    except (OSError, ValueError) as error:  # too long, may not be looked at, holds a null character
        raise DatasetError(f"{where}: {name!r} cannot be used: {error}.", "Correct the path.") from None
    return real_path(path) if must_exist else path  # a link may lie by now where a run's data were


def _structure(name: Any, where: str) -> int:
    try:
        return structure(name).id
    except (SpineSegAIError, TypeError, ValueError):
        raise DatasetError(f"{where}: “{name}” is not a known structure.", "Names are L4, L4/L5, S1 …") from None


def _extent(value: Any, where: str) -> Extent | None:
    if value is None:
        return None
    try:
        return Extent(value)
    except ValueError:
        raise DatasetError(f"{where}: “extent” is “{value}”.", "It must be body or whole.") from None


def _value_map(name: Any, where: str) -> Mapping[int, int] | None:
    if name is None:
        return None
    if isinstance(name, dict):
        try:
            return {int(v): 0 if label == "background" else _structure(label, where) for v, label in name.items()}
        except ValueError:
            raise DatasetError(
                f"{where}: “label_values” has a value that is not a number.", 'Write {"1": "L5"}.'
            ) from None
    if not isinstance(name, str) or name not in VALUE_MAPS:
        raise DatasetError(f"{where}: “label_values” is “{name}”.", f"Available: {', '.join(VALUE_MAPS)}.")
    return VALUE_MAPS[name]


def _keypoints(value: Any, folder: Path, where: str) -> Mapping[int, Point]:
    if value is None:
        return {}
    try:
        if isinstance(value, str):
            return read_keypoints(folder / value)
        if isinstance(value, dict):
            return parse_keypoints(value, name=where)
    except SpineSegAIError as error:
        raise DatasetError(error.message, error.remedy) from None
    raise DatasetError(f"“keypoints” in {where} is neither a file nor a table.", 'Write {"L4": [x, y, z]}.')


def _corners(value: Any, where: str) -> Mapping[int, Corners]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise DatasetError(
            f"“corners” in {where} is not a table.", 'Write {"L4": [[x, y, z], …]}, four points for each.'
        )
    try:
        return parse_corners(value, name=where)
    except SpineSegAIError as error:
        raise DatasetError(error.message, error.remedy) from None


def _stem(path: Path) -> str:
    name = path.name
    for suffix in (".nii.gz", ".seg.nrrd", path.suffix):
        if suffix and name.endswith(suffix):
            return name[: -len(suffix)]
    return name


def _told_apart(splits: Mapping[str, tuple[Case, ...]]) -> dict[str, tuple[Case, ...]]:
    """The cases, named after their folders, too, as far as images would have one name (``p1/t2.nii.gz``,
    ``p2/t2.nii.gz``); and a patient each, where none was said."""
    names = {case.image: case.name for cases in splits.values() for case in cases}
    for depth in range(2, max((len(image.parts) for image in names), default=0)):
        often = Counter(names.values())
        alike = [image for image, name in names.items() if often[name] > 1]
        for image in alike:
            names[image] = "_".join([*image.parts[1:][-depth:-1], _stem(image)])
        if not alike:
            break

    def named(case: Case) -> Case:
        name = names[case.image]
        return replace(case, name=name, patient=case.patient or name)

    return {split: tuple(map(named, cases)) for split, cases in splits.items()}


def refuse_leaks(splits: Mapping[str, Iterable[Case]], where: str | Path) -> None:
    """A file or patient in two splits would make every figure too good.

    Raises:
        DatasetError: there is one.
    """
    seen: dict[tuple[str, str], str] = {}
    for split, cases in splits.items():
        for case in cases:
            patient = f"{case.source}/{case.patient}"
            for what, key in (("image", str(case.image)), ("patient", patient)):
                first = seen.setdefault((what, key), split)
                if first != split:
                    raise DatasetError(
                        f"The {what} {key} is in both {first} and {split} of {where}.", "Split the data by patient."
                    )
