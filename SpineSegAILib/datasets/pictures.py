"""Folders of pictures with masks (``NAME_image.png`` and ``NAME_label.png``) as datasets of one-slice volumes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..anatomy import disc_below, level_chain, structure
from ..errors import DatasetError
from ..files import atomic_write
from ..imaging import read_file, read_image
from ..imaging.geometry import like

SPLITS = ("training", "training", "training", "validation", "test")
"""Of every five pictures, in the order of their names, three are trained on."""
SLICE_MM = 4.0
"""Thickness that a single slice is given: what lumbar stacks usually have."""
SMALLEST_PIXELS = 20
"""Smaller pieces of a mask are stray dots."""
_DISC, _BODY = 1, 2  # of the masks of `import_levelled_slices`


def import_labelled_pictures(
    folder: Path, output: Path, name: str, splits: Sequence[str] = SPLITS, *, levels: bool = False
) -> Path:
    """Pictures whose masks show one kind of structure, each as a one-slice volume.

    Args:
        folder: holds the pictures and their masks; whatever is not 0 in a mask is the structure.
        output: folder for the volumes and the manifest.
        name: of the structure; with `levels` the vertebra that the value 1 stands for.
        splits: of the pictures by turns.
        levels: whether the values of the masks count vertebrae downwards.

    Returns:
        the manifest.

    Raises:
        DatasetError: the folder holds no such pictures, or a picture has no mask.
    """
    shown = structure(name)
    table: dict[str, Any] = {
        "name": folder.name, "extent": "body", "labels": {"background": 0, shown.name: shown.id},
        **{split: [] for split in dict.fromkeys(splits)},
    }  # fmt: skip
    for number, (case, image, mask) in enumerate(_pairs(folder)):
        if levels:
            label, names = _counted(mask, name)
            table["labels"] |= {one: structure(one).id for one in names}
        else:
            label, names = np.where(mask > 0, shown.id, 0).astype(np.int16), [shown.name]
        entry = _write(case, image, label, names, folder.name, output)
        table[splits[number % len(splits)]].append(entry)
    return _write_manifest(table, output)


def import_levelled_slices(folder: Path, output: Path, names: Iterable[str], pixel_mm: float, lowest: str) -> Path:
    """Midline slices with masks of discs (1) and vertebral bodies (2) without levels, leveled by counting upwards.

    Args:
        folder: holds the pictures and their masks.
        output: folder for the volumes and the manifest.
        names: which pictures: those that show the column from `lowest` upwards without a gap.
        pixel_mm: pixel size, which pictures do not tell.
        lowest: the lowest vertebra that is drawn in each.

    Returns:
        the manifest; all its cases are for training.

    Raises:
        DatasetError: the folder holds no such pictures.
    """
    table: dict[str, Any] = {"name": folder.name, "extent": "body", "labels": {"background": 0}, "training": []}
    wanted = set(names)
    for case, image, mask in _pairs(folder):
        if case not in wanted:
            continue
        wanted.discard(case)
        label, annotated = _levelled(mask, lowest)
        image.SetSpacing((pixel_mm, pixel_mm, SLICE_MM))
        table["labels"] |= {name: structure(name).id for name in annotated}
        table["training"].append(_write(case, image, label, annotated, folder.name, output))
    if wanted:
        raise DatasetError(f"{folder} lacks the picture {sorted(wanted)[0]}.", "Check the folder.")
    return _write_manifest(table, output)


def _counted(mask: np.ndarray, first: str) -> tuple[np.ndarray, list[str]]:
    """Structure ids of a mask whose values count vertebrae downwards, and the names of what it shows."""
    chain = level_chain()
    downward = chain[chain.index(structure(first)) :]
    values = [int(value) for value in np.unique(mask) if value]
    if values and values[-1] > len(downward):
        raise DatasetError(f"A mask has the value {values[-1]}, and {first} is value 1.", "Are the values levels?")
    label = np.zeros(mask.shape, np.int16)
    for value in values:
        label[mask == value] = downward[value - 1].id
    return label, [downward[value - 1].name for value in values]


def _levelled(mask: np.ndarray, lowest: str) -> tuple[np.ndarray, list[str]]:
    """Structure ids of a mask, and the names of what it shows."""
    label = np.zeros(mask.shape, np.int16)
    upward = level_chain()[::-1]
    upward = upward[upward.index(structure(lowest)) :]
    bodies = _pieces(mask == _BODY)
    rows = [np.argwhere(piece)[:, 0].mean() for piece in bodies]
    for vertebra, piece in zip(upward, bodies, strict=False):
        label[piece] = vertebra.id
    names = [vertebra.name for vertebra in upward[: len(bodies)]]
    for piece in _pieces(mask == _DISC):
        row = np.argwhere(piece)[:, 0].mean()
        above = next((n for n, at in enumerate(rows) if n and at < row), len(bodies))
        disc = disc_below(upward[above])
        assert disc is not None  # nobody's slices reach C1
        label[piece] = disc.id
        names.append(disc.name)
    return label, names


def _pieces(mask: np.ndarray) -> list[np.ndarray]:
    """Connected pieces from the bottom of the image upwards."""
    labels, count = ndimage.label(mask)
    pieces = [labels == i for i in range(1, count + 1) if (labels == i).sum() >= SMALLEST_PIXELS]
    return sorted(pieces, key=lambda p: -np.argwhere(p)[:, 0].mean())


def _pairs(folder: Path) -> Iterator[tuple[str, sitk.Image, np.ndarray]]:
    """Name, image and mask (rows, columns) of every picture, in the order of their names."""
    found = sorted(path for path in folder.glob("*_image.*") if not path.name.startswith("."))
    images = [path for path in found if path.suffix.lower() in (".png", ".jpg", ".jpeg")]
    if not images:
        raise DatasetError(f"{folder} holds no pictures called NAME_image.png.", "Check the folder.")
    for path in images:
        name = path.name.rsplit("_image.", 1)[0]
        drawn = folder / f"{name}_label.png"
        if not drawn.exists():
            raise DatasetError(f"{path} has no mask {drawn.name} beside it.", "Add it, or remove the picture.")
        yield name, read_image(path), sitk.GetArrayFromImage(read_file(drawn))


def _write(
    case: str, image: sitk.Image, label: np.ndarray, annotated: Sequence[str], source: str, output: Path
) -> dict[str, Any]:
    """Write a case's volumes; its manifest entry."""
    output.mkdir(parents=True, exist_ok=True)
    names = [f"{source}_{case}_{kind}.nii.gz" for kind in ("image", "label")]
    with atomic_write(*(output / name for name in names)) as places:
        for place, volume in zip(places, (image, like(image, label.reshape(1, *label.shape))), strict=True):
            sitk.WriteImage(volume, str(place))
    return {"image": names[0], "label": names[1], "annotated": list(annotated), "source": source}


def _write_manifest(table: dict[str, Any], output: Path) -> Path:
    path = output / "dataset.json"
    with atomic_write(path) as (place,):
        place.write_text(json.dumps(table, indent=1), encoding="utf-8")
    return path
