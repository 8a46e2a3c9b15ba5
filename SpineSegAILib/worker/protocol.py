"""What the worker and its client say to each other: JSON lines, one message a line.

Requests go to the worker's standard input, events come from its standard output. Voxels do not travel in the messages;
they lie in raw ``.npy`` files in a private temporary folder, and a message names the file with its geometry.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import SimpleITK as sitk
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from ..anatomy import STRUCTURES
from ..errors import CorrectionError, HintError, ImageError
from ..hints import Anchor, Hints, Point
from ..imaging.geometry import ids_in
from ..results import Segmentation
from ..results.column import Column

if TYPE_CHECKING:
    from ..correction import Click

PROTOCOL = 4
"""Raised whenever a message changes its meaning; both ends refuse another number."""


Job = Annotated[int, Field(ge=0, lt=2**53)]
"""A number that the client chooses."""


class Message(BaseModel):
    """Base of all messages; an unknown field is an error, since it means two versions that do not fit."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ImageFile(Message):
    """A scalar volume in a ``.npy`` file, axes (z, y, x); geometry in LPS millimeters as SimpleITK has it."""

    path: str
    spacing: Point
    origin: Point
    direction: tuple[float, float, float, float, float, float, float, float, float]


def save_image(image: sitk.Image, path: Path) -> ImageFile:
    """Write an image's voxels to `path` (``.npy``) and describe it."""
    np.save(path, sitk.GetArrayViewFromImage(image))
    return ImageFile(
        path=str(path), spacing=image.GetSpacing(), origin=image.GetOrigin(), direction=image.GetDirection()
    )


def load_image(file: ImageFile) -> sitk.Image:
    """The image that `save_image` wrote.

    Raises:
        ImageError: the file is gone or damaged, or is not such an image.
    """
    try:
        array = np.load(file.path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray) or array.ndim != 3 or not array.size:
            raise ValueError("it is not a volume")
        if not all(math.isfinite(x) for x in (*file.spacing, *file.origin, *file.direction)) or min(file.spacing) <= 0:
            raise ValueError("its geometry is not valid")
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(file.spacing)
        image.SetOrigin(file.origin)
        image.SetDirection(file.direction)
    except (OSError, EOFError, ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        raise ImageError(f"The voxels in {file.path} cannot be read: {error}.", "Try again.") from None
    return image


class HintsMessage(Message):
    """`hints.Hints`, with its images in files."""

    visible: tuple[int | None, int | None] | None = None
    anchors: tuple[tuple[int, Point], ...] = ()
    keypoints: dict[int, Point] = {}
    prior: ImageFile | None = None
    locked: ImageFile | None = None
    structures: tuple[int, ...] = ()

    @classmethod
    def of(cls, hints: Hints, folder: Path) -> HintsMessage:
        """The message for these hints; their images are written into `folder`."""
        return cls(
            visible=hints.visible,
            anchors=tuple((a.structure_id, a.point) for a in hints.anchors),
            keypoints=hints.keypoints,
            prior=save_image(hints.prior, folder / "prior.npy") if hints.prior is not None else None,
            locked=save_image(hints.locked, folder / "locked.npy") if hints.locked is not None else None,
            structures=hints.structures,
        )

    def hints(self) -> Hints:
        """The hints themselves.

        Raises:
            HintError: one names no structure, or its point is none.
            ImageError: an image of theirs cannot be read.
        """
        named = (*self.keypoints, *self.structures, *(sid for sid, _ in self.anchors), *(self.visible or ()))
        for sid in named:
            if sid is not None and sid not in STRUCTURES:
                raise HintError(f"{sid} is not a structure.", "Use structure ids, as in L5 24.")
        for sid in self.visible or ():
            if sid is not None and not (STRUCTURES[sid].is_vertebral and STRUCTURES[sid].order is not None):
                raise HintError(f"{STRUCTURES[sid].name} is not a vertebra.", "A visible range is of vertebrae.")
        for point in (*self.keypoints.values(), *(point for _, point in self.anchors)):
            if not all(map(math.isfinite, point)):
                raise HintError(f"{point} is not a point.", "A point is x, y, z in LPS millimeters.")
        return Hints(
            visible=self.visible,
            anchors=tuple(Anchor(structure, point) for structure, point in self.anchors),
            keypoints=dict(self.keypoints),
            prior=load_image(self.prior) if self.prior else None,
            locked=load_image(self.locked) if self.locked else None,
            structures=self.structures,
        )


class ResultMessage(Message):
    """`results.Segmentation`: its images in files, the rest as `Segmentation.to_document` has it."""

    labels: ImageFile
    document: dict[str, Any]
    uncertainty: ImageFile | None = None

    @classmethod
    def of(cls, result: Segmentation, folder: Path, name: str) -> ResultMessage:
        """The message for this result; its images are written into `folder` under `name`."""
        uncertain = result.uncertainty
        return cls(
            labels=save_image(result.labels, folder / f"{name}-labels.npy"),
            document=result.to_document(),
            uncertainty=save_image(uncertain, folder / f"{name}-uncertainty.npy") if uncertain is not None else None,
        )

    def segmentation(self) -> Segmentation:
        """The result itself.

        Raises:
            ImageError: its voxels cannot be read, or its document is damaged.
        """
        uncertain = load_image(self.uncertainty) if self.uncertainty else None
        result = Segmentation.from_document(load_image(self.labels), self.document, uncertainty=uncertain)
        foreign = [v for v in ids_in(result.labels) if v not in STRUCTURES]
        if foreign:
            raise ImageError(f"The segmentation holds the value {foreign[0]}, which is not a structure.", "Try again.")
        return result


# --- requests --------------------------------------------------------------------------------------------------------


class SegmentRequest(Message):
    """Segment `image` with `checkpoint` (a name or a file).

    Experimental structures of the checkpoint are omitted unless `include_unvalidated`.
    """

    op: Literal["segment"] = "segment"
    job: Job
    image: ImageFile
    checkpoint: str
    device: str = "auto"
    hints: HintsMessage = HintsMessage()
    options: dict[str, Any] = {}
    include_unvalidated: bool = False


class MeasureRequest(Message):
    """Measure a segmentation, which may have been corrected since it was made."""

    op: Literal["measure"] = "measure"
    job: Job
    result: ResultMessage


class ReportRequest(Message):
    """Write a report of a segmentation of `image` (`results.report`) to `path`, which ends with .html or .pdf.

    Attributes:
        title: name of the image.
        source: its file; what its DICOM says of the study is shown.
        patient: and of the patient.
    """

    op: Literal["report"] = "report"
    job: Job
    image: ImageFile
    result: ResultMessage
    title: str
    source: str
    path: str
    patient: bool = False


class DicomSegRequest(Message):
    """Write a segmentation as DICOM object (`results.dicom_seg`) to `path`.

    Attributes:
        source: a file of the series that was segmented.
    """

    op: Literal["dicom-seg"] = "dicom-seg"
    job: Job
    result: ResultMessage
    source: str
    path: str


class ClickMessage(Message):
    """`correction.Click`."""

    structure_id: int
    point: Point
    add: bool = True

    def click(self) -> Click:
        """The click itself.

        Raises:
            CorrectionError: it names no structure.
        """
        from ..correction import Click

        if self.structure_id not in STRUCTURES:
            raise CorrectionError(f"{self.structure_id} is not a structure.", "Use structure ids, as in L5 24.")
        return Click(self.structure_id, self.point, self.add)


class RefineRequest(Message):
    """Correct a segmentation's `labels` of `image` by clicks (`correction.click_correction`).

    Attributes:
        clicks: those to follow; `earlier` were followed before.
        locked: structures that stay as they are.
        checkpoint: name or file of one that takes clicks; empty for the one that comes with SpineSegAI.
    """

    op: Literal["refine"] = "refine"
    job: Job
    image: ImageFile
    labels: ImageFile
    clicks: tuple[ClickMessage, ...]
    earlier: tuple[ClickMessage, ...] = ()
    locked: tuple[int, ...] = ()
    checkpoint: str = ""


class DeviceRequest(Message):
    """What is `device` really? Loads torch, so that the first segmentation need not."""

    op: Literal["device"] = "device"
    job: Job
    device: str = "auto"


class CancelRequest(Message):
    """Stop job `job`; it answers with an error of kind ``Cancelled``. Of no effect when the job is over."""

    op: Literal["cancel"] = "cancel"
    job: Job


Request = Annotated[
    SegmentRequest | MeasureRequest | ReportRequest | DicomSegRequest | RefineRequest | DeviceRequest | CancelRequest,
    Field(discriminator="op"),
]
REQUEST: TypeAdapter[Any] = TypeAdapter(Request)

# --- events ----------------------------------------------------------------------------------------------------------


class ReadyEvent(Message):
    """First line of every worker: who it is."""

    event: Literal["ready"] = "ready"
    protocol: int
    version: str
    pid: int


class ProgressEvent(Message):
    event: Literal["progress"] = "progress"
    job: Job
    fraction: float
    message: str


class SegmentEvent(Message):
    """Answer to `SegmentRequest`."""

    event: Literal["segmentation"] = "segmentation"
    job: Job
    result: ResultMessage


class MeasureEvent(Message):
    """Answer to `MeasureRequest`: a row per structure."""

    event: Literal["measurements"] = "measurements"
    job: Job
    columns: tuple[Column, ...]
    rows: tuple[tuple[bool | int | float | str | None, ...], ...]


class WrittenEvent(Message):
    """Answer to `ReportRequest` and `DicomSegRequest`: the file is there.

    Attributes:
        uid: of a DICOM object (SOP instance).
    """

    event: Literal["written"] = "written"
    job: Job
    path: str
    uid: str = ""


class RefineEvent(Message):
    """Answer to `RefineRequest`: the labels of the box that changed.

    Attributes:
        words: what was done, for the log and the undo step.
        corner: first voxel (z, y, x) of the box in the label array.
        labels: ``.npy`` file of its int16 structure ids (z, y, x); None where nothing changed.
        structures: ids that gained or lost voxels.
        details: for the log.
    """

    event: Literal["refined"] = "refined"
    job: Job
    words: str
    corner: tuple[int, int, int] = (0, 0, 0)
    labels: str | None = None
    structures: tuple[int, ...] = ()
    details: dict[str, Any] = {}


class DeviceEvent(Message):
    """Answer to `DeviceRequest`.

    Attributes:
        device: ``"cuda:0"``, ``"mps"`` or ``"cpu"``.
        name: what it is called, e.g. the graphics card's model, or the number of CPU threads.
    """

    event: Literal["device"] = "device"
    job: Job
    device: str
    name: str


class ErrorEvent(Message):
    """A job failed, or (without a job) the worker.

    Attributes:
        kind: class of the error, e.g. ``"CheckpointError"``, ``"Cancelled"``; ``"InternalError"`` for a defect.
        traceback: for the log; only of defects.
    """

    event: Literal["error"] = "error"
    job: Job | None
    kind: str
    message: str
    remedy: str = ""
    traceback: str = ""


Event = Annotated[
    ReadyEvent | ProgressEvent | SegmentEvent | MeasureEvent | WrittenEvent | RefineEvent | DeviceEvent | ErrorEvent,
    Field(discriminator="event"),
]
EVENT: TypeAdapter[Any] = TypeAdapter(Event)
