"""Segmentations as 3D Slicer keeps them in an NRRD file: layers of voxels, and what the header says of each segment."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError
from ..imaging import read_file
from ..imaging.geometry import like
from ..imaging.headers import read_header

_FRACTIONAL = "Fractional labelmap"
_MANY = 8  # values in a layer of one segment that are not its: so many are no forgotten segments, but fractions


@dataclass(frozen=True)
class StoredSegment:
    """A segment as the header has it.

    Attributes:
        name: as the reader sees it; the id where there is none.
        layer: number of its layer.
        value: this segment's in its layer.
        tags: of Slicer and of those who extend it.
    """

    name: str
    layer: int
    value: int
    tags: Mapping[str, str]


@dataclass(frozen=True)
class StoredSegmentation:
    """What such a file holds.

    Attributes:
        image: scalar or vector image; a component is a layer, segments that do not overlap share one.
        segments: in the file's order.
        keys: key → value of the header.
    """

    image: sitk.Image
    segments: tuple[StoredSegment, ...]
    keys: Mapping[str, str]

    @property
    def layers(self) -> list[np.ndarray]:
        """(z, y, x) each, in the file's geometry."""
        return layers_of(self.image)

    @property
    def orphans(self) -> dict[int, list[int]]:
        """Layer → values in it that belong to no segment."""
        found = {}
        for number, layer in enumerate(self.layers):
            known = [s.value for s in self.segments if s.layer == number]
            stray = sorted(set(np.unique(layer).tolist()) - {0, *known})
            if stray:
                found[number] = stray
        return found


def has_segments(path: Path) -> bool:
    """Whether an NRRD file is a segmentation of Slicer's; other files, and those that cannot be read, are none."""
    if path.suffix.lower() != ".nrrd":
        return False
    try:
        header = read_header(path)
    except (ImageError, OSError):
        header = None  # whoever reads it says what is wrong
    if header is None:
        return path.name.lower().endswith(".seg.nrrd")
    keys = header.metadata
    return any(re.fullmatch(r"Segment\d{1,5}_ID|Segmentation_MasterRepresentation", key) for key in keys)


def read_stored(path: Path) -> StoredSegmentation:
    """The layers and segments of a file. Fractions are taken as voxels from half of their range on.

    Raises:
        ImageError: it is damaged, keeps its voxels elsewhere, or holds fractions of an unknown range.
    """
    header = read_header(path)
    if header is None:
        raise damaged(path)
    keys = header.metadata
    image = read_file(path, inline=True)
    if image.GetDimension() != 3:
        raise damaged(path)
    segments = _described(keys, path)
    layers = image.GetNumberOfComponentsPerPixel()
    if any(s.layer >= layers for s in segments):
        raise damaged(path)
    if _is_fractional(keys):
        image = _thresholded(image, _half_of_range(keys, path))
        segments = tuple(StoredSegment(s.name, s.layer, 1, s.tags) for s in segments)
    stored = StoredSegmentation(image, segments, keys)
    _refuse_fractions(stored, path)
    return stored


def layers_of(image: sitk.Image) -> list[np.ndarray]:
    """The components of an image, (z, y, x) each."""
    array = sitk.GetArrayFromImage(image)
    return list(np.moveaxis(array, -1, 0)) if array.ndim == 4 else [array]


def damaged(path: Path) -> ImageError:
    return ImageError(f"“{path.name}” cannot be read as a Slicer segmentation: it is damaged.", "Create it again.")


def _described(keys: Mapping[str, str], path: Path) -> tuple[StoredSegment, ...]:
    numbers = sorted(int(m[1]) for key in keys if (m := re.fullmatch(r"Segment(\d{1,5})_ID", key)))
    # Before 4.11, Slicer wrote a layer for each segment and no values.
    old = not any(f"Segment{n}_LabelValue" in keys for n in numbers)

    def value(number: int, what: str, otherwise: str) -> str:
        return keys.get(f"Segment{number}_{what}", otherwise)

    found = []
    for n in numbers:
        tags = (entry.partition(":") for entry in value(n, "Tags", "").split("|") if ":" in entry)
        try:
            layer, label = int(value(n, "Layer", str(n if old else 0))), int(value(n, "LabelValue", "1"))
        except ValueError:
            raise damaged(path) from None
        name = value(n, "Name", "") or value(n, "ID", "")
        found.append(StoredSegment(name, max(layer, 0), label, {key.strip(): text for key, _, text in tags}))
    return tuple(found)


# --- fractions -------------------------------------------------------------------------------------------------------


def _is_fractional(keys: Mapping[str, str]) -> bool:
    stored = (keys.get(f"Segmentation_{which}Representation", "") for which in ("Master", "Source"))
    contained = keys.get("Segmentation_ContainedRepresentationNames", "")
    return _FRACTIONAL in stored or [name for name in contained.split("|") if name] == [_FRACTIONAL]


def _half_of_range(keys: Mapping[str, str], path: Path) -> float:
    """The middle of the range of fractions, which is one for all segments.

    Raises:
        ImageError: the header does not say it.
    """
    said = {value for key, value in keys.items() if re.fullmatch(r"(?:Segment(?:ation|\d+)_)?ScalarRange", key)}
    numbers = re.findall(r"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?", said.pop()) if len(said) == 1 else []
    if len(numbers) != 2 or float(numbers[0]) >= float(numbers[1]):
        raise _fractions(path)
    return (float(numbers[0]) + float(numbers[1])) / 2


def _thresholded(image: sitk.Image, half: float) -> sitk.Image:
    array = (sitk.GetArrayViewFromImage(image) >= half).astype(np.uint8)
    if array.ndim == 3:
        return like(image, array)
    made = sitk.GetImageFromArray(array, isVector=True)
    made.CopyInformation(image)
    return made


def _refuse_fractions(stored: StoredSegmentation, path: Path) -> None:
    """Raises:
    ImageError: voxels are not whole numbers, or of many values that belong to no segment.
    """
    if not stored.segments:
        return
    whole = "int" in stored.image.GetPixelIDTypeAsString()
    if not whole and not all(np.array_equal(layer, np.round(layer)) for layer in stored.layers):
        raise _fractions(path)
    alone = {n for n in range(len(stored.layers)) if sum(s.layer == n for s in stored.segments) == 1}
    if any(len(values) > _MANY and layer in alone for layer, values in stored.orphans.items()):
        raise _fractions(path)


def _fractions(path: Path) -> ImageError:
    return ImageError(
        f"“{path.name}” is a fractional labelmap: its voxels are fractions of segments.",
        "Make “Binary labelmap” its source representation (module “Segmentations”) and save it again.",
    )


def conversion_parameter(keys: Mapping[str, str], name: str) -> str:
    """The value of one of the parameters that Slicer keeps for conversions; empty if there is none."""
    entries: Sequence[list[str]] = [
        entry.split("|") for entry in keys.get("Segmentation_ConversionParameters", "").split("&")
    ]
    return next((parts[1] for parts in entries if len(parts) >= 2 and parts[0] == name), "")
