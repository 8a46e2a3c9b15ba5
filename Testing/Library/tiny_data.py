"""A dataset of small phantoms, partly annotated, for tests that train; and a network that knows nothing."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from SpineSegAILib.anatomy import structure
from SpineSegAILib.phantoms.films import FilmSpec, make_film
from SpineSegAILib.phantoms.spine import PhantomSpec, make_phantom

SHARED_DATA = Path(__file__).parents[2].parent / "shared/data"
"""Real cases, where there are any: tests that need them are skipped elsewhere."""
VERTEBRAE = ("T12", "L1", "L2", "L3", "L4", "L5")
TILTS = {"T2": 4.0, "T6": -18.0, "T11": 24.0, "L4": -9.0}
"""Of vertebrae of `write_films`, degrees."""


def write_tiny_dataset(folder: Path, training: int = 3) -> Path:
    """`training` cases plus one for validation, T12 to L5 annotated; returns the manifest's path."""
    folder.mkdir(parents=True, exist_ok=True)
    lists: dict[str, list] = {"training": [], "validation": []}
    for number in range(training + 1):
        rng = np.random.default_rng(number)
        spec = PhantomSpec(top="T12", bottom="S1", slices=5, slice_mm=7.0, pixel_mm=2.0, contrast="t2")
        phantom = make_phantom(spec, rng)
        labels = sitk.GetArrayFromImage(phantom.labels)
        labels[~np.isin(labels, [structure(n).id for n in VERTEBRAE])] = 0
        label = sitk.GetImageFromArray(labels)
        label.CopyInformation(phantom.labels)
        sitk.WriteImage(phantom.image, folder / f"case{number}_image.nii.gz")
        sitk.WriteImage(label, folder / f"case{number}_label.nii.gz")
        entry = {
            "image": f"case{number}_image.nii.gz",
            "label": f"case{number}_label.nii.gz",
            "annotated": list(VERTEBRAE),
            "source": "a" if number % 2 else "b",
            "patient": f"patient {number}",
        }
        lists["training" if number < training else "validation"].append(entry)
    path = folder / "dataset.json"
    path.write_text(json.dumps({"name": "Tiny", "modality": {"0": "MR"}, "extent": "body", **lists}))
    return path


def write_tiny_checkpoint(path: Path, unvalidated: Sequence[str] = ("canal",)) -> Path:
    """A checkpoint of the default method, very small and untrained; returns its path."""
    import torch

    from SpineSegAILib.checkpoints import save_checkpoint
    from SpineSegAILib.imaging import Preprocessing
    from SpineSegAILib.methods.catalog import DEFAULT_METHOD, build_method, make_config

    torch.manual_seed(0)
    config = make_config(DEFAULT_METHOD, "tiny")
    metadata = {
        "title": "Tiny",
        "method": config.model_dump(mode="json"),
        "preprocessing": Preprocessing(pixel_mm=2.0).model_dump(mode="json"),
        "patch": [64, 64],
        "unvalidated": list(unvalidated),
    }
    save_checkpoint(path, build_method(config).state_dict(), metadata)
    return path


def pixels(film) -> np.ndarray:
    """(17, 4, 2) column and row of a film's corners."""
    index = film.image.TransformPhysicalPointToContinuousIndex
    return np.array([[index(point)[:2] for point in quad] for quad in film.corners.values()])


def write_films(folder: Path, count: int = 4, order: str | None = None) -> Path:
    """Synthetic films in the published layout; of the film `order` two vertebrae change places in the tables."""
    for part, letters in (("training", "abc"[: count - 1]), ("test", "d")):
        tables = folder / "labels" / part
        tables.mkdir(parents=True)
        (folder / "data" / part).mkdir(parents=True)
        names, landmarks, angles = [], [], []
        for number, letter in enumerate(letters):
            film = make_film(FilmSpec(rows=128, columns=64 + 4 * number, tilts=TILTS), np.random.default_rng(number))
            name = f"sunhl-1th-01-Mar-2017-{310 + number + 10 * (part == 'test')} {letter} ap.jpg"
            array = sitk.GetArrayFromImage(film.image)[0]
            sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / "data" / part / name))
            corners = pixels(film) / array.shape[::-1]
            if letter == order:
                corners[[4, 5]] = corners[[5, 4]]
            names.append([name])
            landmarks.append(corners.reshape(-1, 2).T.ravel().tolist())
            angles.append([42.0, 22.0, 33.0])
        for file, rows in (("filenames", names), ("landmarks", landmarks), ("angles", angles)):
            with (tables / f"{file}.csv").open("w", newline="", encoding="utf-8") as stream:
                csv.writer(stream).writerows(rows)
    return folder
