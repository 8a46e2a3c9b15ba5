"""DICOM segmentation objects (SEG), by highdicom: one coded segment per structure, on the slices of the series."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk

from .. import __version__
from ..anatomy import STRUCTURES, Code, terminology
from ..errors import MissingPackageError, OutputError
from ..files import atomic_write, check_suffix
from ..imaging import dicom
from ..imaging.checks import STACKS
from .segmentation import Segmentation

if TYPE_CHECKING:
    from pydicom import Dataset

    from ..imaging.dicom_headers import File, Frame

_SPINE = Code("421060004", "Spine")
_MAY_BE_BLANK = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
_MOST_OFF = 0.1  # voxels that a slice may lie beside the segmentation's: rounding of decimal strings in headers


def check_dicom_seg(source: str | Path) -> list[File]:
    """Checks that a DICOM segmentation can be made for an image.

    Returns:
        the files of its series.

    Raises:
        OutputError: the image is not a DICOM series of slices, or its files lack identifiers.
        ImageError: it cannot be read.
        MissingPackageError: highdicom is not installed.
    """
    source = Path(source)
    if not dicom.is_series(source):
        raise OutputError(
            f"{source.name} is not DICOM: a DICOM segmentation refers to the images of its study.",
            "Segment the DICOM series, or write a .seg.nrrd or .nii.gz.",
        )
    if find_spec("highdicom") is None:
        raise MissingPackageError(
            "A DICOM segmentation needs the package highdicom.", "Install it: pip install 'spinesegai[dicom]'."
        )
    files = dicom.series(source)
    frames = [frame for file in files for frame in file.frames]
    if files[0].modality not in STACKS or any(x is None for f in frames for x in (f.position, f.axes, f.spacing)):
        raise OutputError(
            f"{source.name} lacks the positions of its slices, which a DICOM segmentation needs.",
            "Write a .seg.nrrd or .nii.gz.",
        )
    for path in dict.fromkeys(file.path for file in files):
        _header(path)
    return files


def write_dicom_seg(result: Segmentation, source: str | Path, path: str | Path) -> Path:
    """Writes a binary DICOM SEG that refers to the series, in its study; empty frames are not stored.

    Args:
        result: segmentation of the series.
        source: its folder, or one of its files.
        path: ends with ``.dcm``.

    Raises:
        OutputError: see `check_dicom_seg`; or the source is another series, or the file cannot be written.
        MissingPackageError: highdicom is not installed.
    """
    path = Path(path)
    check_suffix(path, (".dcm",))
    made = _dicom_seg(result, check_dicom_seg(source))
    with atomic_write(path) as (place,):
        made.save_as(place)
    return path


def _dicom_seg(result: Segmentation, files: Sequence[File]) -> Any:
    import highdicom
    from pydicom.uid import generate_uid

    slices = [(file, frame) for file in files for frame in file.frames]
    index = [_slice_of(result.labels, frame, file) for file, frame in slices]
    if sorted(index) != list(range(result.labels.GetSize()[2])):
        raise _other_series(slices[0][0].path)
    if len({file.path for file, _ in slices}) == len(slices):  # a file per slice; else frames stay in their order
        slices = [slices[at] for at in np.argsort(index)]
        index.sort()
    step = round(result.labels.GetSpacing()[2], 6)
    headers = [_completed(_header(path), step) for path in dict.fromkeys(file.path for file, _ in slices)]
    present = result.present
    values = sitk.GetArrayFromImage(result.labels)[index]
    numbers = np.zeros(max(present, default=0) + 1, np.uint8)
    numbers[present] = np.arange(1, len(present) + 1)
    with warnings.catch_warnings():  # about headers that are not as strict as the standard
        warnings.simplefilter("ignore")
        return highdicom.seg.Segmentation(
            source_images=headers,
            pixel_array=numbers[values],
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[
                _segment(result, sid, number, present) for number, sid in enumerate(present, start=1)
            ],
            series_instance_uid=generate_uid(),
            series_number=int(headers[0].get("SeriesNumber") or 0) + 1000,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer="SpineSegAI",
            manufacturer_model_name="SpineSegAI",
            software_versions=__version__,
            device_serial_number="0",
            content_label="SPINE",
            content_description="Research use only",
            series_description="SpineSegAI: spine (research use only)",
        )


def _slice_of(labels: sitk.Image, frame: Frame, file: File) -> int:
    """Which slice of the segmentation a frame is.

    Raises:
        OutputError: none.
    """
    assert frame.position is not None  # `check_dicom_seg`
    x, y, z = labels.TransformPhysicalPointToContinuousIndex(frame.position.tolist())
    if max(abs(x), abs(y), abs(z - round(z))) > _MOST_OFF or file.size != labels.GetSize()[:2]:
        raise _other_series(file.path)
    return round(z)


def _other_series(path: Path) -> OutputError:
    return OutputError(f"The segmentation is not of the series of {path}.", "Give the series that was segmented.")


def _header(path: Path) -> Dataset:
    """A file's header.

    Raises:
        OutputError: it lacks what a segmentation has to refer to.
    """
    import pydicom

    header = pydicom.dcmread(path, stop_before_pixels=True)
    missing = [keyword for keyword in _NEEDED if not header.get(keyword)]
    if missing:
        raise OutputError(
            f"{path.name} lacks {', '.join(missing)}, which a DICOM segmentation refers to.",
            "Export the series again with its identifiers; anonymization may replace but not remove them.",
        )
    return header


def _completed(header: Dataset, step: float) -> Dataset:
    """The header with blanks for optional parts that it lacks; the distance of its slices is `step` (mm), as they lie:
    what headers say of it is often wrong."""
    for keyword in _MAY_BE_BLANK:
        if keyword not in header:
            setattr(header, keyword, "")
    if "SliceThickness" not in header:
        header.SliceThickness = step  # which highdicom asks for
    header.SpacingBetweenSlices = step
    return header


def _segment(result: Segmentation, sid: int, number: int, present: Sequence[int]) -> Any:
    import highdicom
    from highdicom.color import CIELabColor
    from pydicom.sr.codedict import codes

    concept, modifier = terminology.codes(sid, present, result.scheme.extent)
    known = result.provenance
    model = str(known.get("checkpoint") or "SpineSegAI")
    kind = highdicom.seg.SegmentAlgorithmTypeValues
    described = highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=result.name_of(sid, present)[:64],
        segmented_property_category=_coded(terminology.CATEGORY),
        segmented_property_type=_coded(concept),
        algorithm_type=kind.SEMIAUTOMATIC if result.corrections else kind.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=f"SpineSegAI {model}"[:64],
            family=codes.DCM.ArtificialIntelligence,
            version=__version__,
            source="SpineSegAI",
        ),
        tracking_uid=highdicom.UID(),
        tracking_id=STRUCTURES[sid].name[:64],
        anatomic_regions=[_coded(_SPINE)] if STRUCTURES[sid].order is not None else None,
        display_color=CIELabColor.from_rgb(*STRUCTURES[sid].color_255),
    )
    if modifier is not None:
        described.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [_coded(modifier)]
    return described


def _coded(code: Code) -> Any:
    from highdicom.sr import CodedConcept

    return CodedConcept(value=code.value, scheme_designator=code.scheme, meaning=code.meaning)
