"""The Spinal Disease Dataset (Tianchi 79463): sagittal MR with the centers of vertebrae and discs, without masks.

Its form: folders of DICOM files, each study's in one folder, and JSON lists (``lumbar_train150_annotation.json``) with
one entry per study, which names the DICOM instance that was annotated and gives (column, row) pixels in it::

    [{"studyUid": …, "data": [{"seriesUid": …, "instanceUid": …, "annotation": [{"data": {"point": [
        {"coord": [252, 79], "tag": {"identification": "L1-L2", "disc": "v1"}, "zIndex": 5}, …]}}]}]}]

DGMSNet's authors publish masks of the middle slices of its two test parts (github.com/pangshumao/DGMSNet),
``in/mask/Case417.nii.gz``, and their program copies the slices to ``in/MR/Case417.dcm``. The masks lie in no space;
they are taken as lying on the pixels of their slice.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..anatomy import structure
from ..errors import DatasetError, SpineSegAIError
from ..files import read_json, real_path
from ..hints import Point
from ..imaging import read_file
from .adding import Drawn

SOURCE = "spinal-disease"


_MASK_VALUES = dict(enumerate(("L1", "L2", "L3", "L4", "L5", "L1/L2", "L2/L3", "L3/L4", "L4/L5", "L5/S1"), start=1))


def spinal_disease_entries(folder: Path) -> list[dict[str, Any]]:
    """Entries of a manifest, with absolute paths: studies with keypoints, and slices with masks where these are.

    Args:
        folder: of the dataset, with the annotations and the studies' folders.

    Raises:
        DatasetError: there is nothing, an annotation is not of that form or names an instance that is not there, or a
            mask is not of its slice's size.
    """
    annotations = sorted(folder.glob("*_annotation.json"))
    entries: dict[str, dict[str, Any]] = {}
    files = _files_of_instances(folder) if annotations else {}
    for annotation in annotations:
        for entry in _studies(annotation, files, folder):
            entries.setdefault(entry["patient"], entry)  # DGMSNet's program joins the lists to one more
    return [*entries.values(), *_masked(folder / "in")]


def _studies(annotation: Path, files: Mapping[str, Path], folder: Path) -> list[dict[str, Any]]:
    try:
        studies = read_json(annotation, DatasetError)
        wanted = [(str(s["studyUid"]), s["data"][0]["instanceUid"], _points(s["data"][0])) for s in studies]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise DatasetError(
            f"{annotation} is not an annotation of the Spinal Disease Dataset ({error!r}).",
            "Download it again, or take it out of the folder.",
        ) from None
    entries = []
    for study, instance, points in wanted:
        if instance not in files:
            raise DatasetError(f"The annotated image {instance} is not in {folder}.", "Is the folder complete?")
        path = files[instance]
        entries.append(
            {
                "image": real_path(path),
                "keypoints": _physical(points, path, f"{annotation}, study {study}"),
                "patient": study,
                "source": SOURCE,
            }
        )
    return entries


def _masked(folder: Path) -> list[dict[str, Any]]:
    """Cases of the slices that DGMSNet's authors drew."""
    entries = []
    for mask in sorted(path for path in (folder / "mask").glob("Case*.nii.gz") if not path.name.startswith(".")):
        name = mask.name.removesuffix(".nii.gz")
        path = folder / "MR" / f"{name}.dcm"
        if not path.exists():
            continue
        image, drawn = sitk.ReadImage(str(path)), sitk.GetArrayFromImage(read_file(mask)).squeeze()
        if drawn.shape != image.GetSize()[1::-1]:
            raise DatasetError(
                f"{mask} has {drawn.shape[::-1]} pixels, its slice {path.name} {image.GetSize()[:2]}.",
                "Are both from the same release?",
            )
        values = [int(v) for v in np.unique(drawn) if v]
        if stray := [v for v in values if v not in _MASK_VALUES]:
            raise DatasetError(f"{mask} has the value {stray[0]}, which means nothing there.", "Download it again.")
        entries.append(
            {
                "image": real_path(path),
                "label": Drawn(f"{SOURCE}-{name}", ".nii.gz", partial(_on_slice, mask, path)),
                "annotated": [_MASK_VALUES[v] for v in values],
                "label_values": {str(v): name for v, name in _MASK_VALUES.items()},
                "patient": name,
                "source": SOURCE,
                "extent": "body",
            }
        )
    return entries


def _on_slice(mask: Path, path: Path) -> sitk.Image:
    """A mask on the grid of its slice."""
    label = sitk.GetImageFromArray(sitk.GetArrayFromImage(read_file(mask)).squeeze()[None].astype(np.uint8))
    label.CopyInformation(sitk.ReadImage(str(path)))
    return label


def _points(entry: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """(name, column, row) of every annotated point."""
    return [
        (p["tag"]["identification"].replace("-", "/"), float(p["coord"][0]), float(p["coord"][1]))
        for p in entry["annotation"][0]["data"]["point"]
    ]


def _files_of_instances(folder: Path) -> dict[str, Path]:
    """SOP instance UID → file."""
    found: dict[str, Path] = {}
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    for path in sorted(path for path in folder.rglob("*.dcm") if not path.name.startswith(".")):
        reader.SetFileName(str(path))
        try:
            reader.ReadImageInformation()
            found[reader.GetMetaData("0008|0018").strip(" \0")] = path
        except RuntimeError:  # not an image: of no concern unless it is one that was annotated
            continue
    return found


def _physical(points: list[tuple[str, float, float]], path: Path, where: str) -> dict[str, Point]:
    """Structure name → LPS mm, of pixels of one DICOM file."""
    image = sitk.ReadImage(str(path))
    found: dict[str, Point] = {}
    for name, column, row in points:
        try:
            known = structure(name).name
        except SpineSegAIError:
            raise DatasetError(f"{where}: “{name}” is not a known structure.", "Correct the annotation.") from None
        if known in found:
            raise DatasetError(f"{where}: two points are called {known}.", "Correct the annotation.")
        found[known] = image.TransformContinuousIndexToPhysicalPoint((column, row, 0.0))
    if not found:
        raise DatasetError(f"{where}: there are no points.", "Take the study out of the annotation.")
    return found
