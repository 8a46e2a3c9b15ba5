"""What is asked of the worker.

Each function gives the message as a function of the job's number and of the folder that its voxels are written into.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np


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


def refine(image, labels, clicks, earlier, locked, checkpoint=""):
    """Correct a segmentation's label image by `SpineSegAILib.correction.Click`s.

    :param earlier: clicks that were followed before.
    :param locked: ids of structures that stay as they are.
    :param checkpoint: name of the model that follows them; empty for ours.
    """
    from SpineSegAILib.worker.protocol import ClickMessage, RefineRequest, save_image

    def messages(some):
        return [ClickMessage(structure_id=click.structure_id, point=click.point, add=click.add) for click in some]

    def message(job, folder):
        return RefineRequest(
            job=job,
            image=save_image(image, folder / "image.npy"),
            labels=save_image(labels, folder / "labels.npy"),
            clicks=messages(clicks),
            earlier=messages(earlier),
            locked=sorted(locked),
            checkpoint=checkpoint,
        )

    return message


@dataclass(frozen=True)
class Refined:
    """The worker's answer to clicks.

    :param words: what was done.
    :param box: where it changes anything, as slices of the label array (k, j, i).
    :param labels: structure ids in the box; None where nothing changes.
    :param details: for the log.
    """

    words: str
    box: tuple
    labels: Any
    details: dict

    @classmethod
    def of(cls, event):
        """What a `RefineEvent` says, its file read."""
        if event.labels is None:
            return cls(event.words, (), None, event.details)
        labels = np.load(event.labels, allow_pickle=False)
        box = tuple(slice(first, first + size) for first, size in zip(event.corner, labels.shape, strict=True))
        return cls(event.words, box, labels, event.details)
