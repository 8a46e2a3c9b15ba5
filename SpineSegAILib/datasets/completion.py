"""Completes partly labeled cases with another checkpoint's results: the structures that nobody drew (self-training).

A softmax over levels learns slowly from masks that stop at L5: nothing says where S1 lies, nor what the vertebra above
the last one drawn is. A checkpoint that was trained on the same cases knows. It is given the levels that were drawn;
its results are taken only where nothing was drawn, and only for structures that it learned from more than synthetic
images. What was drawn stays as it was drawn; so does a case in which the two do not fit.

A checkpoint that corrects by clicks completes S1: it has seen many bodies, and only needs to know where this one lies.
That is below the disc L5/S1. It is clicked on in a few places together, and counts where the answers to each of these
alone agree with that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..anatomy import SACRUM_ID, STRUCTURES, structure
from ..checkpoints import CheckpointInfo, find_checkpoint
from ..correction import Click, click_correction, load_click_method
from ..errors import CheckpointError, CorrectionError, DatasetError, HintError, OutputError
from ..files import atomic_write, checksum, read_json
from ..hints import Anchor, Hints, Point
from ..imaging import as_it_lies, read_image
from ..imaging.geometry import ids_in, index_to_lps, like
from ..inference import Predictor
from ..keypoints import centres_of
from ..methods.catalog import method_info
from .manifest import Case, case_digest, moved, read_label, read_manifest, values_of

_MARK = "; completed by "
"""In the names of the manifests that are made here."""
_L5, _L5_S1 = structure("L5").id, structure("L5/S1").id
_CLICKS = ((0.33, 0.0), (0.45, 0.0), (0.36, -0.18), (0.36, 0.18))
"""Where S1 is clicked on: below the center of the disc, and along the disc; in lengths of the disc."""
_AGREE, _AT_LEAST = 0.8, 0.7
"""Dice of the answers to single clicks with that to all: of all but one, and of the last."""
_OF_L5 = (0.4, 1.4)
"""How large S1 may be, times L5 in the same image; 0.5 to 1.1 in the slabs of SPIDER."""


class Teacher(Protocol):
    """What completes cases."""

    name: str
    key: str
    """What tells it from others of its name."""

    def can_add(self, case: Case) -> list[int]:
        """Ids of the structures that it would add to a case; none where it cannot tell."""

    def completed(self, case: Case) -> sitk.Image:
        """The drawn labels, and the structures that it adds where nothing is drawn.

        Raises:
            HintError: what it finds does not fit what was drawn.
        """


def find_teacher(checkpoint: str | CheckpointInfo, device: str = "auto") -> Teacher:
    """A checkpoint by name or path, or the header of one, as a teacher.

    Raises:
        CheckpointError: it is not there, or damaged.
    """
    info = checkpoint if isinstance(checkpoint, CheckpointInfo) else find_checkpoint(checkpoint)
    if method_info(info.method).group == "correction":
        return ClickedSacrum(info)
    return Segmenter(Predictor(info, device=device))


def complete_dataset(
    dataset: Path, output: Path, teacher: Teacher, report: Callable[[float, str], None] = lambda *_: None
) -> Path:
    """Write completed labels of the `training` split and a manifest for them; finished cases are not done again.

    Args:
        dataset: manifest. Its other splits are listed as they are.
        output: folder of the new manifest.
        teacher: that knows the others.
        report: called with the share of cases done and the case's name.

    Returns:
        the new manifest.

    Raises:
        DatasetError, ImageError: from what the manifest names.
        OutputError: the folder holds another dataset.
    """
    target = output / "dataset.json"
    if target.exists() and (target.samefile(dataset) or _MARK not in str(read_json(target, DatasetError).get("name"))):
        raise OutputError(f"{target} would be written over.", "Choose a new folder, or that of an earlier try.")
    output.mkdir(parents=True, exist_ok=True)
    cases = read_manifest(dataset).cases("training")
    table = moved(read_json(dataset, DatasetError), dataset.parent, output)
    for number, (entry, case) in enumerate(zip(table["training"], cases, strict=True)):
        if case.label is None:
            continue
        report(number / len(cases), case.name)
        added = teacher.can_add(case)
        if not added:
            continue
        annotated = [STRUCTURES[i].name for i in (*case.annotated, *added)]
        path = output / f"{case.name}_completed-{_key(case, annotated, teacher)}.nii.gz"
        if not path.exists():
            try:
                labels = teacher.completed(case)
            except HintError as error:  # what it finds does not fit the levels that were drawn
                report(number / len(cases), f"{case.name} stays as it was drawn: {error.message}")
                continue
            with atomic_write(path) as (place,):
                sitk.WriteImage(labels, str(place), useCompression=True)
        # What is written holds structure ids, of both files; the values that the manifest tells for all are others'.
        entry.pop("label_whole", None)
        entry |= {"label": path.name, "annotated": annotated, "label_values": values_of((*case.annotated, *added))}
    table["name"] = f"{table.get('name', dataset.parent.name)}{_MARK}{teacher.name}"
    with atomic_write(target) as (place,):
        place.write_text(json.dumps(table, indent=1), encoding="utf-8")
    return target


def _key(case: Case, annotated: Sequence[str], teacher: Teacher) -> str:
    """What a completed label depends on."""
    return case_digest(case, teacher.key, *annotated)[:12]


class Segmenter:
    """A checkpoint that segments images."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.name, self.key = predictor.info.name, checksum(predictor.info.path, CheckpointError)
        self.known = set(predictor.scheme.ids) - set(predictor.info.unvalidated)

    def can_add(self, case: Case) -> list[int]:
        return sorted(self.known - set(case.annotated))

    def completed(self, case: Case) -> sitk.Image:
        drawn = read_label(case)
        hints = Hints(anchors=tuple(Anchor(i, p) for i, p in centres_of(drawn).items()))
        found = self.predictor.segment(read_image(case.image), hints=hints).labels
        labels, theirs = sitk.GetArrayFromImage(drawn).astype(np.int16), sitk.GetArrayFromImage(found)
        return like(
            drawn, np.where((labels == 0) & np.isin(theirs, self.can_add(case)), theirs, labels).astype(np.int16)
        )


class ClickedSacrum:
    """A checkpoint that corrects by clicks: it adds S1 where the disc above it was drawn."""

    def __init__(self, info: CheckpointInfo) -> None:
        self.method = load_click_method(info)
        self.name, self.key = info.name, checksum(info.path, CheckpointError)

    def can_add(self, case: Case) -> list[int]:
        return [SACRUM_ID] if _L5_S1 in case.annotated and SACRUM_ID not in case.annotated else []

    def completed(self, case: Case) -> sitk.Image:
        drawn, image = read_label(case), read_image(case.image)
        labels = sitk.GetArrayFromImage(drawn).astype(np.int16)
        locked = ids_in(drawn)

        def answer(*clicks: Click) -> np.ndarray:
            try:
                found = click_correction(image, like(drawn, labels), clicks, self.method, locked=locked)
            except CorrectionError:  # outside of the image, or on what was drawn
                return np.zeros(labels.shape, bool)
            return found.apply(labels) == SACRUM_ID

        clicks = [Click(SACRUM_ID, point) for point in sacral_points(drawn)]
        answers = [answer(click) for click in clicks]
        pieces, count = ndimage.label(answer(*clicks))
        sizes = np.bincount(pieces.ravel(), minlength=2)[1:]
        found = pieces == 1 + int(sizes.argmax()) if count else np.zeros(labels.shape, bool)
        agreement = sorted(2 * (a & found).sum() / max(a.sum() + found.sum(), 1) for a in answers)
        if agreement[0] < _AT_LEAST or agreement[1] < _AGREE:
            raise HintError("S1 comes out differently from click to click.", "Draw it.")
        size = found.sum() / max((labels == _L5).sum(), 1)
        if _L5 in case.annotated and not _OF_L5[0] <= size <= _OF_L5[1]:
            raise HintError(f"S1 comes out {size:.1f} times the size of L5.", "Draw it.")
        labels[found] = SACRUM_ID
        return like(drawn, labels)


def sacral_points(labels: sitk.Image) -> list[Point]:
    """Points (LPS, mm) in the body of S1, by the disc L5/S1 of a label image: below it, as the disc lies.

    Raises:
        HintError: the disc is not there, or too small to lie anyhow.
    """
    voxels = np.argwhere(sitk.GetArrayViewFromImage(labels) == _L5_S1)[:, ::-1]
    if len(voxels) < 20:
        raise HintError("The disc L5/S1 is hardly there.", "Draw it.")
    lying = as_it_lies(labels)
    disc = np.c_[voxels, np.ones(len(voxels))] @ index_to_lps(lying)[:3].T
    across, center = float(np.median(disc[:, 0])), disc[:, 1:].mean(0)
    _, axes = np.linalg.eigh(np.cov((disc[:, 1:] - center).T))  # in the sagittal plane: the thin direction first
    down, along = axes.T
    down = down if down[1] < 0 else -down
    low, high = np.percentile((disc[:, 1:] - center) @ along, (2, 98))
    points = (center + (high - low) * (depth * down + aside * along) for depth, aside in _CLICKS)
    indices = [lying.TransformPhysicalPointToContinuousIndex((across, float(y), float(z))) for y, z in points]
    return [labels.TransformContinuousIndexToPhysicalPoint(index) for index in indices]
