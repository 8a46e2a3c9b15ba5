"""What DICOM files say about their images, frame by frame.

They are read with pydicom: ITK passes on neither the functional groups, in which multi-frame files tell where each
frame lies, nor whether a file tells a position or a pixel size at all.
"""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ImageError
from ..files import check_name
from .headers import check_size, first_bytes

if TYPE_CHECKING:
    from pydicom import Dataset

DIFFERENCES = {
    "EffectiveEchoTime": "echo time (ms)", "EchoTime": "echo time (ms)", "EchoNumbers": "echo number",
    "InversionTimes": "inversion time (ms)", "InversionTime": "inversion time (ms)", "FlipAngle": "flip angle",
    "DiffusionBValue": "b-value", "TemporalPositionIndex": "time point", "TemporalPositionIdentifier": "time point",
    "NominalCardiacTriggerDelayTime": "trigger delay (ms)", "TriggerTime": "trigger time (ms)",
    "ComplexImageComponent": "kind of value", "FrameType": "kind of image", "ImageType": "kind of image",
    "StackID": "stack", "AcquisitionNumber": "acquisition", "AcquisitionTime": "acquisition time",
    "FrameAcquisitionDateTime": "acquisition time", "DimensionIndexValues": "dimension index",
}  # fmt: skip
"""Attributes by which images at one place may differ, the most telling first, and what to call them."""
_TAGS = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesDescription", "Modality", "Rows", "Columns",
    "NumberOfFrames", "SamplesPerPixel", "BitsAllocated", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "BodyPartExamined", "ViewPosition",
    "MediaStorageSOPClassUID", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", *DIFFERENCES,
)  # fmt: skip
_UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
_DEFLATED, _MOST_INFLATED = b"1.2.840.10008.1.2.1.99", 2**29
_MOST_COMPRESSED = 5000
"""No codec of DICOM makes pixels smaller than this; a header that claims more is damaged, and takes memory."""
_DIRECTORY = "1.2.840.10008.1.3.10"
_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"


@dataclass(frozen=True)
class Frame:
    """One slice.

    Attributes:
        number: of the frame in its file, from 0.
        position: of its first pixel, LPS, mm; None where the file does not say.
        axes: (3, 2) directions of its rows (along x) and columns (along y); None where the file does not say.
        spacing: mm along x and y; None where the file does not say.
        rescale: slope and intercept, where every frame has its own.
        told: what it says of `DIFFERENCES`.
    """

    number: int
    position: np.ndarray | None
    axes: np.ndarray | None
    spacing: tuple[float, float] | None
    rescale: tuple[float, float] | None
    told: dict[str, str]


@dataclass(frozen=True)
class File:
    """What the header of one file says.

    Attributes:
        path: the file.
        kind: its SOP class.
        modality: DICOM's word, or nothing.
        size: columns and rows.
        frames: none where the file is not an image.
        series, instance: their UIDs.
        description: of the series.
        body_part, view: DICOM's words, or nothing.
        samples: values per pixel.
        is_plain: whether pixels are not compressed.
    """

    path: Path
    kind: str
    modality: str
    size: tuple[int, int] = (0, 0)
    frames: tuple[Frame, ...] = ()
    series: str = ""
    instance: str = ""
    description: str = ""
    body_part: str = ""
    view: str = ""
    samples: int = 1
    is_plain: bool = True

    @property
    def name(self) -> str:
        """What to call it in a list."""
        return self.description or self.modality or "no description"


def is_dicom(start: bytes) -> bool:
    """Whether a file is DICOM, by its first bytes; also one without the preamble that the standard demands."""
    if start[128:132] == b"DICM":
        return True
    return len(start) > 8 and start[:4] in (b"\x08\0\0\0", b"\x08\0\x05\0", b"\x08\0\x08\0", b"\x02\0\0\0")


def images(paths: Iterable[Path]) -> list[File]:
    """The DICOM images among files; reports, segmentations and what is not DICOM are passed over."""
    found = []
    for path in paths:
        if path.is_file() and os.access(path, os.R_OK) and is_dicom(first_bytes(path, 256)):
            check_name(path, ImageError)
            file = _described(path)
            if file.frames and file.kind != _SEGMENTATION:
                found.append(file)
    return found


def read_header(path: Path) -> File:
    """What a file says about its image.

    Raises:
        ImageError: the file is not an image, and why; or it is damaged or incomplete.
    """
    file = _described(path)
    if file.kind == _DIRECTORY:
        raise ImageError(
            f"{path.name} is a DICOMDIR: the list of what is on a disc, not an image.",
            "Give the folder, or one file of the series in it.",
        )
    if file.kind == _SEGMENTATION:
        raise ImageError(f"{path.name} is a segmentation (DICOM SEG), not an image.", "Choose the image.")
    if not file.frames:
        raise ImageError(
            f"{path.name} is a DICOM file without an image ({file.modality or 'of an unknown kind'}).",
            "Choose a file of an image series.",
        )
    return file


def _described(path: Path) -> File:
    import pydicom

    _refuse_bomb(path)
    with warnings.catch_warnings():  # about values that we do not need, or that are said below
        warnings.simplefilter("ignore")
        try:
            return _file(path, pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=list(_TAGS)))
        except ImageError:
            raise
        except Exception as error:  # pydicom raises whatever its parsing meets, then or as values are asked for
            raise ImageError(f"{path} cannot be read: its DICOM header is damaged.", "Export it again.") from error


def _file(path: Path, dataset: Dataset) -> File:
    kind = str(dataset.file_meta.get("MediaStorageSOPClassUID") or dataset.get("SOPClassUID") or "")
    modality = str(dataset.get("Modality") or "").strip()
    if "Rows" not in dataset:
        return File(path, kind, modality)
    count, samples = int(dataset.get("NumberOfFrames") or 1), int(dataset.get("SamplesPerPixel") or 1)
    size = (int(dataset.Columns), int(dataset.Rows))
    check_size((*size, count), path.name, samples)
    plain = dataset.file_meta.get("TransferSyntaxUID", _UNCOMPRESSED[0]) in _UNCOMPRESSED
    whole = size[0] * size[1] * count * samples * int(dataset.get("BitsAllocated") or 8) // 8
    if path.stat().st_size < (whole if plain else max(whole // _MOST_COMPRESSED, 8 * count)):
        raise ImageError(f"{path} cannot be read: it is incomplete.", "Export or copy it again.")
    told = len(dataset.get("PerFrameFunctionalGroupsSequence") or ())
    if told not in (0, count) and kind != _SEGMENTATION:
        raise ImageError(
            f"{path.name} contradicts itself: it has {count} frames by its header, and describes {told}.",
            "Export it again.",
        )
    return File(
        path,
        kind,
        modality,
        size=size,
        frames=tuple(_frames(dataset, count)),
        series=str(dataset.get("SeriesInstanceUID") or ""),
        instance=str(dataset.get("SOPInstanceUID") or ""),
        description=str(dataset.get("SeriesDescription") or "").strip(),
        body_part=str(dataset.get("BodyPartExamined") or "").strip(),
        view=str(dataset.get("ViewPosition") or "").strip(),
        samples=samples,
        is_plain=plain,
    )


def _refuse_bomb(path: Path) -> None:
    """Raises:
    ImageError: the file is deflated whole, as DICOM allows, and is huge once it is inflated.
    """
    start = first_bytes(path, 1024)
    if _DEFLATED not in start:
        return
    length = 0
    stream = zlib.decompressobj(-15)
    begin = 144 + int.from_bytes(start[140:144], "little")  # behind the group of the file's own description
    with path.open("rb") as file:
        file.seek(begin)
        try:
            while (
                length < _MOST_INFLATED and not stream.eof and (piece := stream.unconsumed_tail or file.read(1 << 20))
            ):
                length += len(stream.decompress(piece, 1 << 20))
        except zlib.error:
            return  # whoever reads it says what is wrong
    if length >= _MOST_INFLATED:
        raise ImageError(f"{path.name} is too large once it is decompressed.", "Export it without compression.")


def _frames(dataset: Dataset, count: int) -> list[Frame]:
    """What is said of each frame, by its own functional groups, by those that all share, or by the file."""
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
    frames = []
    for number in range(count):
        groups = [g for g in (own[number] if number < len(own) else None, shared) if g is not None]
        items = [element.value[0] for group in groups for element in group if element.VR == "SQ" and element.value]
        places = [*items, dataset]
        position = _numbers(places, "ImagePositionPatient", 3)
        axes = _numbers(places, "ImageOrientationPatient", 6)
        spacing = next(
            filter(
                None,
                (_numbers(places, f"{kind}Spacing", 2) for kind in ("Pixel", "ImagerPixel", "NominalScannedPixel")),
            ),
            None,
        )
        slope, intercept = _numbers(items, "RescaleSlope", 1), _numbers(items, "RescaleIntercept", 1)
        if count > 1 and not items:
            position = None  # the file's is the first frame's
        frames.append(
            Frame(
                number=number,
                position=None if position is None else np.array(position),
                axes=None if axes is None else np.reshape(axes, (2, 3)).T,
                spacing=None if spacing is None else (spacing[1], spacing[0]),
                rescale=(slope[0], intercept[0]) if slope and intercept else None,
                told={key: str(value) for key in DIFFERENCES if (value := _value(places, key)) not in (None, "")},
            )
        )
    return frames


def _value(places: Sequence[Dataset], keyword: str) -> Any:
    return next((place[keyword].value for place in places if keyword in place), None)


def _numbers(places: Sequence[Dataset], keyword: str, count: int) -> list[float] | None:
    value = _value(places, keyword)
    values = [value] if count == 1 else value
    if value in (None, "") or len(values) != count:
        return None
    found = [float(v) for v in values]
    return found if all(np.isfinite(found)) and (not keyword.endswith("Spacing") or min(found) > 0) else None
