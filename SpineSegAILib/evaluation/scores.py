"""One case: the scores of each structure, and what was found of the whole column."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..anatomy import ARTERY_ID, DISC_ID, POSTERIOR_ID, STRUCTURES, VEIN_ID, VERTEBRA_ID, Kind, sorted_ids
from ..errors import DatasetError
from ..imaging import Geometry
from ..results import Segmentation
from ..results.quality import cut_by_border
from .masks import NAN, on_square_grid, pixel_distances, surface_measures
from .measurements import MeasuredPair

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MATCH_IOU = 0.5
"""Panoptic quality: above this, one predicted and one true segment can only be each other's (Kirillov et al., Panoptic
segmentation, CVPR 2019)."""


@dataclass(frozen=True)
class StructureScore:
    """One annotated structure of one case.

    Attributes:
        id: of the structure.
        name: of the structure.
        group: ``"vertebrae"``, ``"discs"`` …, as in the averages.
        dice: level-strict: against the predicted structure of the same id.
        iou: likewise.
        precision: likewise: share of the prediction that is right; 0 where nothing is predicted.
        hd95_mm: likewise; NaN if either mask is empty.
        asd_mm: likewise.
        surface_dice: likewise, at `masks.TOLERANCE_MM`; 0 if one mask is empty.
        hd95_px: likewise, slice by slice in pixels, see `masks.pixel_distances`.
        asd_px: likewise.
        one_sided_slices: slices that have one of the two masks, and so are omitted from the distances in pixels.
        matched_dice: against the predicted structure of the same group that overlaps it most, whatever its level.
        matched_iou: likewise.
        matched_hd95_mm: likewise; NaN where nothing overlaps.
        matched_asd_mm: likewise.
        matched_surface_dice: likewise; 0 where nothing overlaps.
        matched_id: that structure; None where nothing overlaps.
        level_right: whether that structure has this id; None where the level is not annotated, or not in the reference.
        reference_ml: volume of the reference.
        predicted_ml: volume of the prediction of this id.
        false_positive_ml: part of the latter that lies outside the reference.
        outline_quality: what the prediction says of the outline that overlaps most; NaN where it says nothing.
        cut: whether the image's border cuts that one within the sagittal plane.
    """

    id: int
    name: str
    group: str
    dice: float
    iou: float
    precision: float
    hd95_mm: float
    asd_mm: float
    surface_dice: float
    hd95_px: float
    asd_px: float
    one_sided_slices: int
    matched_dice: float
    matched_iou: float
    matched_hd95_mm: float
    matched_asd_mm: float
    matched_surface_dice: float
    matched_id: int | None
    level_right: bool | None
    reference_ml: float
    predicted_ml: float
    false_positive_ml: float
    outline_quality: float = NAN
    cut: bool = False


@dataclass(frozen=True)
class UnscoredVolume:
    """A predicted structure, or its pieces, that the reference says nothing about; only the volume is known.

    Attributes:
        id: of the structure.
        name: of the structure.
        outside_ml: its volume outside every reference mask.
        reason: ``"not annotated"`` or ``"cut by the crop"``.
    """

    id: int
    name: str
    outside_ml: float
    reason: str


@dataclass
class Panoptic:
    """How many segments of a group were found, whatever they are called.

    Attributes:
        found: pairs of a true and a predicted segment whose IoU is above `MATCH_IOU`.
        iou_sum: the sum of those.
        missed: true segments without a partner.
        spurious: predicted segments without a partner: those of annotated structures, and those which lie mostly on
            what is annotated.
        unknown: predicted segments without a partner, of structures and in places of which the reference says nothing;
            they count neither way.
    """

    found: int = 0
    iou_sum: float = 0.0
    missed: int = 0
    spurious: int = 0
    unknown: int = 0

    def __add__(self, other: Panoptic) -> Panoptic:
        return Panoptic(
            self.found + other.found,
            self.iou_sum + other.iou_sum,
            self.missed + other.missed,
            self.spurious + other.spurious,
            self.unknown + other.unknown,
        )

    def quality(self) -> dict[str, Any]:
        """Recognition quality (F1 of the segments), segmentation quality (mean IoU of the found ones), their product
        (`pq`), and the counts."""
        every = self.found + (self.missed + self.spurious) / 2
        return {
            "pq": self.iou_sum / every if every else None,
            "rq": self.found / every if every else None,
            "sq": self.iou_sum / self.found if self.found else None,
            "found": self.found,
            "missed": self.missed,
            "spurious": self.spurious,
            "unknown": self.unknown,
        }


@dataclass
class CaseReport:
    """What `evaluate_case` finds.

    Attributes:
        case: name of the case.
        source: where it comes from.
        variant: which copy of it.
        patient: whose it is; the case's name where not said.
        structures: scores, in anatomical order.
        unscored: predicted structures without a reference.
        not_offered: names of annotated structures that the checkpoint's scheme lacks; they are not scored.
        absent: names of annotated structures that neither the reference nor the prediction has; they are not scored.
        panoptic: by group.
        diagonal_mm: of the image: a distance that none of its structures' can exceed.
        seconds: time of the prediction.
        peak_mb: largest resident memory of the process meanwhile; None where not measured.
        device_peak_mb: likewise on the accelerator.
        failure: why there was no prediction; everything is then scored as missed.
        warnings: of the segmentation.
        measurements: of the copy as it is, where every level is right: an error of level is not an error of an outline.
    """

    case: str
    source: str = ""
    variant: str = "full"
    patient: str = ""
    structures: list[StructureScore] = field(default_factory=list)
    unscored: list[UnscoredVolume] = field(default_factory=list)
    not_offered: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    panoptic: dict[str, Panoptic] = field(default_factory=dict)
    diagonal_mm: float = NAN
    seconds: float = 0.0
    peak_mb: float | None = None
    device_peak_mb: float | None = None
    failure: str = ""
    warnings: list[str] = field(default_factory=list)
    measurements: list[MeasuredPair] = field(default_factory=list)

    @property
    def levels_right(self) -> bool | None:
        """True if every structure with a level was recognized as what it is; None if none has one."""
        rate = self.identification_rate
        return None if rate is None else rate == 1.0

    @property
    def identification_rate(self) -> float | None:
        """Share of the structures with a level that were recognized as what they are; None if none has one."""
        known = [s.level_right for s in self.structures if s.level_right is not None]
        return sum(known) / len(known) if known else None

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> CaseReport:
        """From a case of a written report (`summary.summarize`), in which what is not defined is null."""
        own = {f.name for f in fields(cls)}
        values = {key: value for key, value in document.items() if key in own}
        values["structures"] = [_restored(StructureScore, s) for s in document["structures"]]
        values["unscored"] = [_restored(UnscoredVolume, u) for u in document["unscored"]]
        values["measurements"] = [MeasuredPair(**pair) for pair in document.get("measurements", ())]
        values["panoptic"] = {group: Panoptic(**counts) for group, counts in document["panoptic"].items()}
        return _restored(cls, {k: v for k, v in values.items() if k not in ("levels_right", "identification_rate")})

    @property
    def unit(self) -> tuple[str, str]:
        """Whose case this is: what chance draws, where intervals are made."""
        return self.source, self.patient or self.case


_Made = TypeVar("_Made", bound="DataclassInstance")


def _restored(kind: type[_Made], values: Mapping[str, Any]) -> _Made:
    """An object of a dataclass; null is NaN where a number belongs."""
    numbers = {f.name for f in fields(kind) if f.type == "float"}
    return kind(**{k: NAN if v is None and k in numbers else v for k, v in values.items()})


def evaluate_case(
    reference: sitk.Image,
    prediction: Segmentation | sitk.Image,
    annotated: Iterable[int],
    *,
    case: str = "",
    source: str = "",
    variant: str = "full",
    patient: str = "",
    cut: Iterable[int] = (),
    grid: int | None = None,
) -> CaseReport:
    """Scores one segmentation.

    Where either side does not tell levels (a generic vertebra or disc), structures of that group count as one. If it is
    the prediction that does not, while the reference has some levels only, the prediction may have found others: levels
    that it does tell then stay themselves, and pieces of the generic one that touch none of the reference's are not
    scored, unless they lie mostly on other structures. This forgives a piece that is not a vertebra at all, as a level
    that is not annotated does elsewhere; what is omitted is in `unscored`.

    Args:
        reference: structure ids.
        prediction: structure ids in the same geometry.
        annotated: ids that the reference labels; it says nothing about all others.
        case: name for the report.
        source: likewise.
        variant: likewise.
        patient: likewise.
        cut: annotated ids of which too little is in view to be scored.
        grid: side of the square that slices are brought to before distances in pixels are measured
            (`masks.on_square_grid`); none: the image's own pixels.

    Raises:
        DatasetError: the two images have different geometries.
    """
    labels = prediction.labels if isinstance(prediction, Segmentation) else prediction
    if not Geometry.of(reference).matches(Geometry.of(labels)):
        raise DatasetError(
            f"The segmentation of {case or 'the case'} and its reference have different geometries.",
            "Resample one onto the other.",
        )
    truth = sitk.GetArrayFromImage(reference).astype(np.int16)
    guess = sitk.GetArrayFromImage(labels).astype(np.int16)
    offered = set(prediction.scheme.ids) if isinstance(prediction, Segmentation) else None
    annotated, cut = set(annotated), set(cut)
    generics = {
        VERTEBRA_ID: "vertebrae", DISC_ID: "discs", POSTERIOR_ID: "posterior elements",
        ARTERY_ID: Kind.ARTERY.value, VEIN_ID: Kind.VEIN.value,
    }  # fmt: skip
    beyond: dict[int, np.ndarray] = {}
    for generic, group in generics.items():  # no level or side on one of the two: all of the kind together
        if generic in annotated or generic in (offered or ()) or (guess == generic).any():
            members = {sid for sid in STRUCTURES if group_of(sid) == group}
            every = generic in annotated or members - {generic} <= annotated
            told = list(members if every else members & annotated | {generic})
            truth[np.isin(truth, told)] = generic
            guess[np.isin(guess, told)] = generic
            if not every and members & annotated:
                beyond[generic] = _beyond(generic, truth, guess)
                guess[beyond[generic]] = 0
            annotated = {generic if sid in members else sid for sid in annotated}
            cut -= members
            offered = None if offered is None else {generic if sid in members else sid for sid in offered}

    spacing = reference.GetSpacing()[::-1]
    voxel_ml = math.prod(spacing) / 1000.0
    axis = sagittal_axis(reference)
    report = CaseReport(case, source, variant, patient)
    report.diagonal_mm = math.hypot(*(n * s for n, s in zip(reference.GetSize(), reference.GetSpacing(), strict=True)))
    if isinstance(prediction, Segmentation):
        report.warnings = list(prediction.warnings)
    flat = [truth, guess] if grid is None else [on_square_grid(x, axis, grid) for x in (truth, guess)]
    scored = []
    for sid in sorted_ids(annotated - cut):
        if offered is not None and sid not in offered:
            report.not_offered.append(STRUCTURES[sid].name)
            continue
        scored.append(sid)
        score = _score(sid, truth, guess, spacing, voxel_ml, pixel_distances(flat[0] == sid, flat[1] == sid, axis))
        if score is None:
            report.absent.append(STRUCTURES[sid].name)
        else:
            report.structures.append(score)
    if isinstance(prediction, Segmentation) and prediction.outline_quality:
        at_border = cut_by_border(labels)
        report.structures = [
            replace(s, outline_quality=prediction.outline_quality.get(s.matched_id or 0, NAN),
                    cut=s.matched_id in at_border)
            for s in report.structures
        ]  # fmt: skip
    report.panoptic = _panoptic(truth, guess, scored)
    outside = np.bincount(guess[truth == 0].ravel(), minlength=1)
    for sid in sorted_ids(int(v) for v in np.unique(guess) if v and (v not in annotated or v in cut)):
        volume = float(outside[sid]) * voxel_ml if sid < outside.size else 0.0
        reason = "cut by the crop" if sid in cut else "not annotated"
        report.unscored.append(UnscoredVolume(sid, STRUCTURES[sid].name, volume, reason))
    for sid, pieces in beyond.items():
        if pieces.any():
            volume = int((pieces & (truth == 0)).sum()) * voxel_ml
            report.unscored.append(UnscoredVolume(sid, STRUCTURES[sid].name, volume, "not annotated"))
    return report


def _beyond(sid: int, truth: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """Where a structure's pieces lie that touch none of the reference's, and are not mostly on its other structures."""
    pieces, count = ndimage.label(guess == sid)
    on_its_own, on_known = (np.bincount(pieces[there], minlength=count + 1) for there in (truth == sid, truth > 0))
    beyond = (on_its_own == 0) & (on_known <= np.bincount(pieces.ravel()) / 2)
    beyond[0] = False
    return beyond[pieces]


def _score(
    sid: int,
    truth: np.ndarray,
    guess: np.ndarray,
    spacing: Sequence[float],
    voxel_ml: float,
    in_pixels: tuple[float, float, int],
) -> StructureScore | None:
    """Score of one structure; None if it is in neither.

    Args:
        in_pixels: of `masks.pixel_distances`.
    """
    ours, theirs = truth == sid, guess == sid
    reference, predicted, both = int(ours.sum()), int(theirs.sum()), int((ours & theirs).sum())
    if not reference and not predicted:
        return None
    group = group_of(sid)
    values, counts = np.unique(guess[ours], return_counts=True)
    same = [(int(n), int(v)) for v, n in zip(values, counts, strict=True) if v and group_of(int(v)) == group]
    overlap, matched_id = max(same, default=(0, None))
    strict = surface_measures(ours, theirs, spacing)
    matched = NAN, NAN, 0.0
    together = reference
    if matched_id is not None:
        partner = guess == matched_id
        together += int(partner.sum())
        matched = strict if matched_id == sid else surface_measures(ours, partner, spacing)
    hd95_px, asd_px, one_sided = in_pixels
    has_level = STRUCTURES[sid].order is not None
    return StructureScore(
        id=sid,
        name=STRUCTURES[sid].name,
        group=group,
        dice=2.0 * both / (reference + predicted),
        iou=both / (reference + predicted - both),
        precision=both / predicted if predicted else 0.0,
        hd95_mm=strict[0],
        asd_mm=strict[1],
        surface_dice=strict[2],
        hd95_px=hd95_px,
        asd_px=asd_px,
        one_sided_slices=one_sided,
        matched_dice=2.0 * overlap / together if overlap else 0.0,
        matched_iou=overlap / (together - overlap) if overlap else 0.0,
        matched_hd95_mm=matched[0],
        matched_asd_mm=matched[1],
        matched_surface_dice=matched[2],
        matched_id=matched_id,
        level_right=matched_id == sid if has_level and reference else None,
        reference_ml=reference * voxel_ml,
        predicted_ml=predicted * voxel_ml,
        false_positive_ml=(predicted - both) * voxel_ml,
    )


def _panoptic(truth: np.ndarray, guess: np.ndarray, scored: Sequence[int]) -> dict[str, Panoptic]:
    """Which segments were found, whatever their level; see `Panoptic`."""
    inside = (truth > 0) | (guess > 0)
    span = int(guess.max()) + 1  # a pair as one number is counted much faster
    pairs, counts = np.unique(truth[inside].astype(np.int32) * span + guess[inside], return_counts=True)
    overlap = {divmod(int(pair), span): int(n) for pair, n in zip(pairs, counts, strict=True)}
    true_size: dict[int, int] = {}
    guess_size: dict[int, int] = {}
    for (t, g), count in overlap.items():
        true_size[t] = true_size.get(t, 0) + count
        guess_size[g] = guess_size.get(g, 0) + count
    result = {group_of(sid): Panoptic() for sid in scored if sid in true_size or sid in guess_size}
    partners: set[int] = set()
    for sid in scored:
        if sid not in true_size:
            continue
        counted = result[group_of(sid)]
        for other, size in guess_size.items():
            common = overlap.get((sid, other), 0)
            iou = common / (true_size[sid] + size - common)
            if other and group_of(other) == group_of(sid) and iou > MATCH_IOU:
                partners.add(other)
                counted.found += 1
                counted.iou_sum += iou
                break
        else:
            counted.missed += 1
    for other, size in guess_size.items():
        if other and other not in partners and group_of(other) in result:
            on_known = sum(overlap.get((sid, other), 0) for sid in scored)
            if other in scored or on_known > size / 2:
                result[group_of(other)].spurious += 1
            else:
                result[group_of(other)].unknown += 1
    return result


def sagittal_axis(image: sitk.Image) -> int:
    """Axis of the image's array that runs from left to right; of a single slice, the one across it."""
    if 1 in image.GetSize():
        return 2 - image.GetSize().index(1)
    direction = np.abs(np.reshape(image.GetDirection(), (3, 3)))
    return 2 - int(direction[0].argmax())


def group_of(sid: int) -> str:
    """What a structure is averaged with. The sacrum counts with the vertebrae: mistaking one for the other is an error
    of level."""
    kind = STRUCTURES[sid].kind
    plural = {
        Kind.VERTEBRA: "vertebrae", Kind.SACRUM: "vertebrae", Kind.DISC: "discs", Kind.POSTERIOR: "posterior elements",
    }  # fmt: skip
    return plural.get(kind, kind.value)
