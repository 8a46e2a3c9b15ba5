"""The Spinal Disease Dataset (Tianchi 79463): sagittal MR with the centres of vertebrae and discs, without masks.

Its form: folders of DICOM files, each study's in one folder, and a JSON list with one entry per study, which names the
DICOM instance that was annotated and gives (column, row) pixels in it::

    [{"studyUid": …, "data": [{"seriesUid": …, "instanceUid": …, "annotation": [{"data": {"point": [
        {"coord": [252, 79], "tag": {"identification": "L1-L2", "disc": "v1"}, "zIndex": 5}, …]}}]}]}]
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from ..anatomy import structure
from ..errors import DatasetError, SpineSegAIError
from ..files import atomic_write, read_json, real_path
from ..hints import Point

SOURCE = "spinal-disease"


def import_spinal_disease(annotation: str | Path, images: str | Path, output: str | Path) -> Path:
    """Write a manifest whose training cases have key points and no masks.

    Args:
        annotation: the JSON file, such as ``lumbar_train150_annotation.json``.
        images: folder with the studies' folders.
        output: the manifest to write; it refers to the DICOM files where they are.

    Raises:
        DatasetError: the annotation is not of that form, or names an instance that is not there.
    """
    annotation, images, output = Path(annotation), Path(images), Path(output)
    try:
        studies = read_json(annotation, DatasetError)
        wanted = [(str(s["studyUid"]), s["data"][0]["instanceUid"], _points(s["data"][0])) for s in studies]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise DatasetError(
            f"{annotation} is not an annotation of the Spinal Disease Dataset ({error!r}).",
            "Give the file whose name ends in _annotation.json.",
        ) from None
    files = _files_of_instances(images)
    cases = []
    for study, instance, points in wanted:
        if instance not in files:
            raise DatasetError(f"The annotated image {instance} is not in {images}.", "Is the folder complete?")
        path = files[instance]
        cases.append(
            {
                "image": os.path.relpath(real_path(path), real_path(output.parent)),
                "keypoints": _physical(points, path, f"{annotation}, study {study}"),
                "patient": study,
                "source": SOURCE,
            }
        )
    table = {"name": "Spinal Disease Dataset", "modality": {"0": "MR"}, "training": cases}
    with atomic_write(output) as (part,):
        part.write_text(json.dumps(table, indent=1), encoding="utf-8")
    return output


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
