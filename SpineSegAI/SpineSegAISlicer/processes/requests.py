"""What is asked of the worker.

Each function gives the message as a function of the job's number and of the folder that its voxels are written into.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SegmentationRequest:
    """What is asked of the worker for one volume.

    :param image: SimpleITK image.
    :param checkpoint: name or path.
    :param device: ``"auto"``, ``"cpu"``, ``"cuda"`` …
    :param hints: `SpineSegAILib.hints.Hints`.
    :param options: run-time options of the method, name → value.
    :param includeUnvalidated: also experimental structures.
    """

    image: Any
    checkpoint: str
    device: str
    hints: Any
    options: dict
    includeUnvalidated: bool


def segment(request):
    """Segment what a `SegmentationRequest` says."""
    from SpineSegAILib.worker.protocol import HintsMessage, SegmentRequest, save_image

    def message(job, folder):
        return SegmentRequest(
            job=job,
            image=save_image(request.image, folder / "image.npy"),
            checkpoint=str(request.checkpoint),
            device=request.device,
            hints=HintsMessage.of(request.hints, folder),
            options=request.options,
            include_unvalidated=request.includeUnvalidated,
        )

    return message


def measure(result):
    """Measure a `SpineSegAILib.results.Segmentation`."""
    from SpineSegAILib.worker.protocol import MeasureRequest, ResultMessage

    def message(job, folder):
        return MeasureRequest(job=job, result=ResultMessage.of(result, folder, "result"))

    return message


def report(image, result, path, title, source, patient):
    """Write a report of a `Segmentation` of an image.

    :param path: ends with .html or .pdf.
    :param title: name of the image.
    :param source: its file.
    :param patient: whether what its DICOM says of the patient is shown.
    """
    from SpineSegAILib.worker.protocol import ReportRequest, ResultMessage, save_image

    def message(job, folder):
        return ReportRequest(
            job=job,
            image=save_image(image, folder / "image.npy"),
            result=ResultMessage.of(result, folder, "result"),
            title=title,
            source=str(source),
            path=str(path),
            patient=patient,
        )

    return message


def dicomSeg(result, source, path):
    """Write a `Segmentation` as DICOM object.

    :param source: a file of the series that was segmented.
    :param path: ends with .dcm; None for one that is removed once the answer was taken.
    """
    from SpineSegAILib.worker.protocol import DicomSegRequest, ResultMessage

    def message(job, folder):
        return DicomSegRequest(
            job=job,
            result=ResultMessage.of(result, folder, "result"),
            source=str(source),
            path=str(path or folder / "segmentation.dcm"),
        )

    return message
