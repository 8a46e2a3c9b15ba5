"""Films with scoliosis as SpineWeb's dataset 16 and the AASCE challenge of 2019 have them: corners of T1 to L5.

Two layouts are read. As published, ``labels/training`` and ``labels/test`` each hold ``filenames.csv``,
``landmarks.csv`` (a row per film: 68 columns, then 68 rows, as shares of the film's width and height; per vertebra
upper left, upper right, lower left, lower right) and ``angles.csv`` (three Cobb angles), with the films in
``data/training`` and ``data/test``; the number before the letter in ``sunhl-1th-01-Mar-2017-313 B AP.jpg`` is the
study. A folder with a ``landmarks.json`` has the same in pixels, with splits and known defects::

    {"cases": [{"case": "tr001", "size": [273, 768], "study": "162", "split": "training", "flags": [], "mended": false,
                "corners_TL_TR_BL_BR": [[[130.5, 26.0], …], …], "cobb_angles": [41.1, 14.6, 40.1]}]}

Whose film it is, the study tells. Not all published corners are right: in some films vertebrae are out of order, and
the published angles follow them. Films whose vertebrae can be put in order are kept, without these angles; others are
omitted.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..anatomy import STRUCTURES, scheme
from ..errors import DatasetError, ImageError
from ..files import read_json, read_text, real_path
from ..imaging import read_image
from ..imaging.quads import filled_quadrangles, is_quadrangle
from .adding import Drawn

SOURCE = "aasce"
_IDS = scheme("thoracolumbar-xr").ids
_FILMS = (".jpg", ".jpeg", ".png")
_APART = 0.6  # of their heights, between neighbors; where it is less, one vertebra was drawn twice
_BEYOND = 0.02  # of a side; corners were seen to lie this far outside


@dataclass
class Films:
    """What a folder holds.

    Attributes:
        entries: of a manifest, with absolute paths and drawn labels.
        splits: patient → split, where the set says.
        notes: sentences for a reader about what was omitted, and why.
    """

    entries: list[dict[str, Any]] = field(default_factory=list)
    splits: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Film:
    path: Path
    study: str
    split: str
    corners: np.ndarray  # (17, 4, 2) column and row in pixels, or shares of the sides
    shares: bool
    angles: tuple[float, ...]
    flags: tuple[str, ...] = ()
    mended: bool = False


def read_films(folder: Path) -> Films:
    """The films of a folder in either layout, and their masks.

    Raises:
        DatasetError: a table is damaged, or a film is missing, cannot be read or has another size than said.
    """
    films = list(_listed(folder) if (folder / "landmarks.json").exists() else _published(folder))
    result = Films()
    left_out: dict[str, list[str]] = {}
    without_angles: list[str] = []
    tested = {film.study for film in films if film.split == "test"}
    for film in films:
        name = film.path.stem
        if film.split != "test" and film.study in tested:
            left_out.setdefault("another film of the patient is for test", []).append(name)
            continue
        image = _film(film.path)
        size = _size(image)
        mended = _mended(film.corners * np.array(size) if film.shares else film.corners, size)
        if mended is None or (film.flags and not film.mended):
            left_out.setdefault("doubtful corners", []).append(name)
            continue
        ordered, changed = mended
        doubted = changed or film.mended
        if doubted:
            without_angles.append(name)
        result.entries.append(_entry(film, image, ordered, doubted))
        if film.split:
            result.splits[film.study] = film.split
    result.notes = [f"{len(names)} films omitted ({why}): {_some(names)}." for why, names in left_out.items()]
    if without_angles:
        result.notes.append(
            f"{len(without_angles)} films without their published angles, since their vertebrae were out of order: "
            f"{_some(without_angles)}."
        )
    return result


def _entry(film: _Film, image: sitk.Image, corners: np.ndarray, doubted: bool) -> dict[str, Any]:
    mask = Drawn(f"{SOURCE}-{film.path.stem}", ".png", partial(_mask, _size(image), corners))
    entry = {
        "image": real_path(film.path),
        "label": mask,
        "annotated": [STRUCTURES[i].name for i in _IDS],
        "corners": {
            STRUCTURES[sid].name: [
                [round(v, 3) for v in image.TransformContinuousIndexToPhysicalPoint((column, row, 0.0))]
                for column, row in quad
            ]
            for sid, quad in zip(_IDS, corners.tolist(), strict=True)
        },
        "patient": film.study,
        "source": SOURCE,
        "extent": "body",
    }
    return entry if doubted else {**entry, "cobb_angles": [round(angle, 3) for angle in film.angles]}


def _mask(size: tuple[int, int], corners: np.ndarray) -> sitk.Image:
    return sitk.GetImageFromArray(filled_quadrangles(size[::-1], dict(zip(_IDS, corners, strict=True))))


def _mended(corners: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, bool] | None:
    """Corners with the vertebrae in order, and whether they were not; None if no column of quadrangles."""
    order = np.argsort(corners.mean(1)[:, 1], kind="stable")
    ordered = corners[order]
    beyond = _BEYOND * np.array(size)
    inside = (ordered > -beyond).all() and (ordered < np.array(size) + beyond).all()
    if not inside or not all(is_quadrangle(quad) for quad in ordered):
        return None
    heights = np.linalg.norm(ordered[:, 2:].mean(1) - ordered[:, :2].mean(1), axis=1)
    apart = np.linalg.norm(np.diff(ordered.mean(1), axis=0), axis=1)
    if (apart < _APART * (heights[1:] + heights[:-1]) / 2).any():
        return None
    return ordered, bool((order != np.arange(len(order))).any())


def _size(image: sitk.Image) -> tuple[int, int]:
    """Columns and rows of a picture that was read as one slice."""
    columns, rows, _ = image.GetSize()
    return columns, rows


def _film(path: Path) -> sitk.Image:
    try:
        return read_image(path)
    except ImageError as error:
        raise DatasetError(f"The film {path} cannot be read: {error.message}", error.remedy) from None


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")


# --- layouts ---------------------------------------------------------------------------------------------------------


def _listed(folder: Path) -> Iterator[_Film]:
    path = folder / "landmarks.json"
    table = read_json(path, DatasetError)
    try:
        for case in table["cases"]:
            film = _named(folder, case["case"], f"{case['case']}_image")
            columns, rows = _size(_film(film))
            if [columns, rows] != list(case["size"]):
                raise DatasetError(
                    f"{film} has {columns} by {rows} pixels, and {path.name} says {case['size']}.",
                    "Take both from the same release.",
                )
            yield _Film(
                film, str(case["study"]), _split(case.get("split")), _shaped(case["corners_TL_TR_BL_BR"]), False,
                tuple(map(float, case["cobb_angles"])), tuple(case.get("flags", ())), bool(case.get("mended")),
            )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{path} is damaged ({error!r}).", "Copy it again.") from None


def _published(folder: Path) -> Iterator[_Film]:
    base = next((f for f in (folder, folder / "boostnet_labeldata") if (f / "labels").is_dir()), folder)
    for part in ("training", "test"):
        tables = base / "labels" / part
        if not (tables / "filenames.csv").exists():
            continue
        names = [row[0] for row in _rows(tables / "filenames.csv")]
        landmarks, angles = _rows(tables / "landmarks.csv"), _rows(tables / "angles.csv")
        if not len(names) == len(landmarks) == len(angles):
            raise DatasetError(
                f"The tables in {tables} have {len(names)}, {len(landmarks)} and {len(angles)} rows.",
                "Take all three from the same release.",
            )
        for name, row, three in zip(names, landmarks, angles, strict=True):
            try:
                columns, rows = np.array(row, float).reshape(2, -1)
                corners, cobb = _shaped(np.stack([columns, rows], 1)), tuple(map(float, three))
            except ValueError:
                raise DatasetError(
                    f"{tables} has no 68 corners and three angles for {name}.", "Download it again."
                ) from None
            film = _named(base / "data" / part, name, Path(name).stem)
            # The letter after it tells the films of a study apart.
            found = re.search(r"(\d+)\s*[a-z]?\s*(ap)?\s*$", Path(name).stem.strip(), re.I)
            yield _Film(film, found[1] if found else film.stem, "test" if part == "test" else "", corners, True, cobb)


def _rows(path: Path) -> list[list[str]]:
    try:
        return [row for row in csv.reader(read_text(path, DatasetError).splitlines()) if any(row)]
    except csv.Error as error:
        raise DatasetError(f"{path} is damaged: {error}.", "Download it again.") from None


def _shaped(corners: Any) -> np.ndarray:
    """(17, 4, 2).

    Raises:
        ValueError: they are not as many.
    """
    result = np.array(corners, float).reshape(-1, 4, 2)
    if len(result) != len(_IDS) or not np.isfinite(result).all():
        raise ValueError(f"{len(result)} vertebrae")
    return result


def _split(name: Any) -> str:
    return str(name) if name in ("training", "validation", "test") else ""


def _named(folder: Path, said: str, stem: str) -> Path:
    """The film of this name, whatever its suffix.

    Raises:
        DatasetError: there is none.
    """
    paths = (folder / f"{stem}{end}" for suffix in _FILMS for end in (suffix, suffix.upper()))
    found = next((path for path in paths if path.exists()), None)
    if found is None:
        raise DatasetError(f"The film {said} is not in {folder}.", "Is the folder complete?")
    return found
