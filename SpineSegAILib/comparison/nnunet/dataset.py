"""The dataset as nnU-Net wants it, and its predictions as structures.

nnU-Net has no marginal loss: to it, what is not drawn is background. It can ignore voxels, though, and is
told to wherever our own losses allow several classes (`training.regions`): ours still learn there that it is one of
them, nnU-Net learns nothing there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ...anatomy import LabelScheme
from ...datasets.manifest import Case, read_case, read_label, read_manifest
from ...errors import DatasetError, ImageError
from ...evaluation.variants import make_variant
from ...files import atomic_write, read_json, write_json
from ...imaging import read_image
from ...results import Segmentation
from ...training.data import possible_channels
from ...training.regions import code_label

NUMBER = "901"
DATASET = f"Dataset{NUMBER}_SpineSegAI"


@dataclass(frozen=True)
class Prepared:
    """The dataset as nnU-Net knows it.

    Attributes:
        numbers: channel of the scheme → nnU-Net's label, from 1 on: what is annotated in any training case.
        training: nnU-Net's name → the case's.
        ignored: share of the voxels of the training cases that are ignored.
    """

    numbers: Mapping[int, int]
    training: Mapping[str, str]
    ignored: float


def prepare(manifest: Path, scheme: LabelScheme, folder: Path, scored_split: str) -> Prepared:
    """Writes ``nnUNet_raw`` and our split, unless that is done.

    While it trains, nnU-Net looks at the validation cases, or if those are scored, or there are none, at the training
    cases themselves; it chooses nothing by them.

    Args:
        manifest: what to train on.
        scheme: the structures to tell apart.
        folder: of all that nnU-Net writes.
        scored_split: of the manifest; its cases are not shown to nnU-Net.

    Raises:
        DatasetError: no training case has a label.
    """
    done = folder / "prepared.json"
    if done.exists():
        table = read_json(done, DatasetError)
        return Prepared({int(c): n for c, n in table["numbers"].items()}, table["training"], table["ignored"])
    known = read_manifest(manifest)
    training = {f"train_{n:04d}": c for n, c in enumerate(known.cases("training")) if c.label}
    if not training:
        raise DatasetError(f"{manifest} has no labeled training cases.", "nnU-Net learns from masks alone.")
    others = known.splits.get("validation", ()) if scored_split != "validation" else ()
    watched = {f"watched_{n:04d}": c for n, c in enumerate(others) if c.label}
    told = [possible_channels(scheme, sid) for case in training.values() for sid in case.annotated]
    channels = sorted({channel for one in told if len(one) == 1 for channel in one if channel})
    if not channels:
        raise DatasetError(f"No training case of {manifest} has a structure of the scheme “{scheme.name}” annotated.")
    numbers = {channel: number for number, channel in enumerate(channels, start=1)}
    raw = folder / "nnUNet_raw" / DATASET
    shares = []
    for name, case in {**training, **watched}.items():
        label = nnunet_label(case, scheme, numbers)
        write_image(upright(read_image(case.image)), raw / "imagesTr" / f"{name}_0000.nii.gz")
        write_image(label, raw / "labelsTr" / f"{name}.nii.gz")
        shares.append(float((sitk.GetArrayViewFromImage(label) == len(numbers) + 1).mean()))
    names = {scheme.structures[channel - 1].name: number for channel, number in numbers.items()}
    modality = known.modality if known.modality == "CT" else "MR"  # it normalizes CT otherwise
    table = {
        "channel_names": {"0": modality},
        "labels": {"background": 0, **names, "ignore": len(numbers) + 1},
        "numTraining": len(shares),
        "file_ending": ".nii.gz",
    }
    write_with_folder(table, raw / "dataset.json")
    splits = [{"train": list(training), "val": list(watched or training)}]
    write_with_folder(splits, folder / "nnUNet_preprocessed" / DATASET / "splits_final.json")
    prepared = Prepared(numbers, {n: c.name for n, c in training.items()}, float(np.mean(shares[: len(training)])))
    write_with_folder(asdict(prepared), done)
    return prepared


def nnunet_label(case: Case, scheme: LabelScheme, numbers: Mapping[int, int]) -> sitk.Image:
    """A case's label with nnU-Net's numbers, upright; one more than the last where our losses allow several."""
    label = upright(read_label(case))
    array = sitk.GetArrayFromImage(label)
    coded = code_label(array, case.annotated, scheme.ids, label.GetSpacing()[::-1])
    table = np.full(len(coded.sets), len(numbers) + 1, np.uint8)
    for code, ids in enumerate(coded.sets):
        channels = {channel for sid in ids for channel in possible_channels(scheme, sid)}
        if len(channels) == 1:
            table[code] = numbers.get(channels.pop(), 0)
    image = sitk.GetImageFromArray(table[coded.codes])
    image.CopyInformation(label)
    return image


def structure_labels(
    prediction: sitk.Image, scheme: LabelScheme, numbers: Mapping[int, int], like: sitk.Image
) -> sitk.Image:
    """What nnU-Net predicted, as structure ids on the grid of the image that it was given."""
    table = np.zeros(max(numbers.values()) + 1, np.int16)
    for channel, number in numbers.items():
        table[number] = scheme.ids[channel - 1]
    image = sitk.GetImageFromArray(table[sitk.GetArrayFromImage(prediction)])
    image.CopyInformation(prediction)
    # The same voxels in another order; NIfTI rounds where they are.
    return sitk.Resample(image, like, sitk.Transform(), sitk.sitkNearestNeighbor, 0, sitk.sitkInt16)


def write_scored(manifest: Path, split: str, variant: str, folder: Path, limit: int | None) -> dict[str, str]:
    """Writes the images that are to be segmented.

    Returns:
        what the image holds (`fingerprint`) → nnU-Net's name.
    """
    found = {}
    cases = [case for case in read_manifest(manifest).cases(split) if case.label is not None]
    for number, case in enumerate(cases[:limit]):
        try:
            image, label = read_case(case)
        except ImageError:
            continue  # the evaluation will say so
        image, _ = make_variant(image, label, variant)
        name = f"scored_{number:04d}"
        write_image(upright(image), folder / f"{name}_0000.nii.gz")
        found[fingerprint(image)] = name
    return found


class StoredPredictions:
    """Gives back, image by image, what nnU-Net predicted for a folder of them (`evaluation.dataset.Segmenter`).

    Args:
        scheme: of the numbers' channels.
        numbers: of `Prepared`.
        names: of `write_scored`.
        folder: of the predictions.
    """

    def __init__(self, scheme: LabelScheme, numbers: Mapping[int, int], names: Mapping[str, str], folder: Path) -> None:
        self.scheme = scheme.subset([scheme.ids[channel - 1] for channel in numbers])
        self._whole, self._numbers, self._names, self._folder = scheme, numbers, names, folder

    def segment(
        self, image: sitk.Image, *, options: Mapping[str, Any] | None = None, reference: sitk.Image | None = None
    ) -> Segmentation:
        """The prediction of one of the images."""
        prediction = sitk.ReadImage(str(self._folder / f"{self._names[fingerprint(image)]}.nii.gz"))
        return Segmentation(structure_labels(prediction, self._whole, self._numbers, image), self.scheme)


def fingerprint(image: sitk.Image) -> str:
    """What tells an image from others, wherever it is kept."""
    geometry = image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()
    voxels = np.ascontiguousarray(sitk.GetArrayViewFromImage(image))
    return hashlib.sha256(repr(geometry).encode() + voxels.tobytes()).hexdigest()


def upright(image: sitk.Image) -> sitk.Image:
    """Slices from left to right, rows downwards, columns backwards: the order that `code_label` wants."""
    return sitk.DICOMOrient(image, "PIR")


def write_image(image: sitk.Image, path: Path) -> None:
    """Writes it unless it is there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as (part,):
            sitk.WriteImage(image, str(part))


def write_with_folder(value: Any, path: Path) -> None:
    """Writes it, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as (part,):
        write_json(part, value)
