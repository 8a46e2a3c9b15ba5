"""How good a segmentation is: overlap, surface distance and whether the levels are right; over a case and a data set.

Conventions. A structure that is absent in both masks is skipped; one that is absent in exactly one has Dice and IoU 0
and no surface distances (NaN here, null in JSON), and how many these are is reported, since leaving them out flatters a
method that misses structures. Surfaces are the voxels of a mask with a 6-neighbour outside it, distances run between
voxel centres in mm, HD95 is the larger of the two directed 95th percentiles, ASD the mean over both surfaces.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from . import __version__
from .anatomy import ARTERY_ID, DISC_ID, STRUCTURES, VEIN_ID, VERTEBRA_ID, Kind, sorted_ids
from .datasets.manifest import Case, read_label, read_manifest
from .errors import Cancelled, ConfigError, DatasetError, ImageError
from .files import staged
from .imaging import Geometry, read_image
from .results import Segmentation

NAN = math.nan

# A structure cut by a crop is scored on what is left of it, unless that is too little to be recognised.
MINIMUM_LEFT = 0.3

VARIANTS: tuple[str, ...] = ("full", "top-third-off", "bottom-third-off", "zoom-1.3")
"""Copies of a case that a method should stand: as it is, cropped above, cropped below (no sacrum), and enlarged."""


@dataclass(frozen=True)
class StructureScore:
    """One annotated structure of one case.

    Attributes:
        id: of the structure.
        name: of the structure.
        group: ``"vertebrae"``, ``"discs"`` …, as in the averages.
        dice: level-strict: against the predicted structure of the same id.
        iou: likewise.
        hd95_mm: likewise; NaN if either mask is empty.
        asd_mm: likewise.
        matched_dice: against the predicted structure of the same group that overlaps it most, whatever its level.
        matched_id: that structure; None where nothing overlaps.
        level_right: whether that structure has this id; None where the level is not annotated, or not in the reference.
        reference_ml: volume of the reference.
        predicted_ml: volume of the prediction of this id.
        false_positive_ml: part of the latter that lies outside the reference.
    """

    id: int
    name: str
    group: str
    dice: float
    iou: float
    hd95_mm: float
    asd_mm: float
    matched_dice: float
    matched_id: int | None
    level_right: bool | None
    reference_ml: float
    predicted_ml: float
    false_positive_ml: float


@dataclass(frozen=True)
class UnscoredVolume:
    """A predicted structure that the reference says nothing about; only its volume is known.

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
class CaseReport:
    """What `evaluate_case` finds.

    Attributes:
        case: name of the case.
        source: where it comes from.
        variant: which copy of it.
        structures: scores, in anatomical order.
        unscored: predicted structures without a reference.
        not_offered: names of annotated structures that the checkpoint's scheme lacks; they are not scored.
        seconds: time of the prediction.
        failure: why there was no prediction; everything is then scored as missed.
        warnings: of the segmentation.
    """

    case: str
    source: str = ""
    variant: str = "full"
    structures: list[StructureScore] = field(default_factory=list)
    unscored: list[UnscoredVolume] = field(default_factory=list)
    not_offered: list[str] = field(default_factory=list)
    seconds: float = 0.0
    failure: str = ""
    warnings: list[str] = field(default_factory=list)

    @property
    def levels_right(self) -> bool | None:
        """True if every structure with a level was recognised as what it is; None if none has one."""
        known = [s.level_right for s in self.structures if s.level_right is not None]
        return all(known) if known else None


class Segmenter(Protocol):
    """What `evaluate_dataset` needs of a `Predictor`."""

    def segment(self, image: sitk.Image, **options: Any) -> Segmentation:
        """Segments one image."""


# --- two masks -------------------------------------------------------------------------------------------------------


def dice(reference: np.ndarray, prediction: np.ndarray) -> float:
    """Dice coefficient of two boolean masks; NaN if both are empty."""
    total = int(reference.sum()) + int(prediction.sum())
    return 2.0 * int((reference & prediction).sum()) / total if total else NAN


def surface_distances(
    reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Distances from each surface voxel of one mask to the nearest surface voxel of the other, both ways.

    Args:
        reference: boolean mask of any dimension.
        prediction: likewise, same shape.
        spacing: mm along the arrays' axes.

    Returns:
        Distances (mm) from the reference's surface to the prediction's, and back; empty if either mask is.
    """
    if not reference.any() or not prediction.any():
        return np.empty(0), np.empty(0)
    # Both surfaces lie in the box around both masks, so nothing outside it matters. A margin of one voxel is needed
    # for the erosion alone, and the erosion supplies it: beyond the array counts as outside, as does the image's edge.
    box = _box(reference | prediction)
    ours, theirs = _surface(reference[box]), _surface(prediction[box])
    to_theirs = ndimage.distance_transform_edt(~theirs, sampling=spacing)
    to_ours = ndimage.distance_transform_edt(~ours, sampling=spacing)
    return to_theirs[ours], to_ours[theirs]


def hd95_and_asd(reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]) -> tuple[float, float]:
    """95th percentile Hausdorff distance and average symmetric surface distance (mm); NaN if either mask is empty."""
    forth, back = surface_distances(reference, prediction, spacing)
    if not forth.size:
        return NAN, NAN
    hd95 = max(np.percentile(forth, 95), np.percentile(back, 95))
    return float(hd95), float(np.concatenate([forth, back]).mean())


def _surface(mask: np.ndarray) -> np.ndarray:
    return mask & ~ndimage.binary_erosion(mask)


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    return box


# --- one case --------------------------------------------------------------------------------------------------------


def evaluate_case(
    reference: sitk.Image,
    prediction: Segmentation | sitk.Image,
    annotated: Iterable[int],
    *,
    case: str = "",
    source: str = "",
    variant: str = "full",
    cut: Iterable[int] = (),
) -> CaseReport:
    """Scores one segmentation.

    Where either side does not tell levels (a generic vertebra or disc), structures of that group count as one.

    Args:
        reference: structure ids.
        prediction: structure ids in the same geometry.
        annotated: ids that the reference labels; it says nothing about all others.
        case: name for the report.
        source: likewise.
        variant: likewise.
        cut: annotated ids of which too little is in view to be scored.

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
    generics = {VERTEBRA_ID: "vertebrae", DISC_ID: "discs", ARTERY_ID: Kind.ARTERY.value, VEIN_ID: Kind.VEIN.value}
    for generic, group in generics.items():  # no level or side on one of the two: all of the kind together
        if generic in annotated or generic in (offered or ()) or (guess == generic).any():
            members = [sid for sid in STRUCTURES if _group(sid) == group]
            truth[np.isin(truth, members)] = generic
            guess[np.isin(guess, members)] = generic
            annotated = {generic if sid in members else sid for sid in annotated}
            cut -= set(members)
            offered = None if offered is None else {generic if sid in members else sid for sid in offered}

    spacing = reference.GetSpacing()[::-1]
    voxel_ml = math.prod(spacing) / 1000.0
    report = CaseReport(case, source, variant)
    if isinstance(prediction, Segmentation):
        report.warnings = list(prediction.warnings)
    for sid in sorted_ids(annotated - cut):
        if offered is not None and sid not in offered:
            report.not_offered.append(STRUCTURES[sid].name)
            continue
        score = _score(sid, truth, guess, spacing, voxel_ml)
        if score is not None:
            report.structures.append(score)
    outside = np.bincount(guess[truth == 0].ravel(), minlength=1)
    for sid in sorted_ids(int(v) for v in np.unique(guess) if v and (v not in annotated or v in cut)):
        volume = float(outside[sid]) * voxel_ml if sid < outside.size else 0.0
        reason = "cut by the crop" if sid in cut else "not annotated"
        report.unscored.append(UnscoredVolume(sid, STRUCTURES[sid].name, volume, reason))
    return report


def _score(
    sid: int, truth: np.ndarray, guess: np.ndarray, spacing: Sequence[float], voxel_ml: float
) -> StructureScore | None:
    """Score of one structure; None if it is in neither."""
    ours, theirs = truth == sid, guess == sid
    reference, predicted, both = int(ours.sum()), int(theirs.sum()), int((ours & theirs).sum())
    if not reference and not predicted:
        return None
    group = _group(sid)
    matched, matched_dice = None, 0.0
    values, counts = np.unique(guess[ours], return_counts=True)
    same = [(int(n), int(v)) for v, n in zip(values, counts, strict=True) if v and _group(int(v)) == group]
    if same:
        overlap, matched = max(same)
        matched_dice = 2.0 * overlap / (reference + int((guess == matched).sum()))
    hd95, asd = hd95_and_asd(ours, theirs, spacing)
    has_level = STRUCTURES[sid].order is not None
    return StructureScore(
        id=sid,
        name=STRUCTURES[sid].name,
        group=group,
        dice=2.0 * both / (reference + predicted),
        iou=both / (reference + predicted - both),
        hd95_mm=hd95,
        asd_mm=asd,
        matched_dice=matched_dice,
        matched_id=matched,
        level_right=matched == sid if has_level and reference else None,
        reference_ml=reference * voxel_ml,
        predicted_ml=predicted * voxel_ml,
        false_positive_ml=(predicted - both) * voxel_ml,
    )


def _group(sid: int) -> str:
    """The sacrum counts with the vertebrae: mistaking one for the other is an error of level."""
    kind = STRUCTURES[sid].kind
    plural = {Kind.VERTEBRA: "vertebrae", Kind.SACRUM: "vertebrae", Kind.DISC: "discs"}
    return plural.get(kind, kind.value)


# --- copies of a case ------------------------------------------------------------------------------------------------


def make_variant(image: sitk.Image, label: sitk.Image, variant: str) -> tuple[sitk.Image, sitk.Image]:
    """A copy of image and label that asks more of a method.

    ``top-third-off`` and ``bottom-third-off`` lose a third of the image's height; ``zoom-1.3`` has every spacing
    multiplied by 1.3, so that the anatomy is that much larger in mm (and so are distances measured in it).

    Raises:
        ConfigError: no such variant.
    """
    if variant not in VARIANTS:
        raise ConfigError(f"There is no variant “{variant}”.", f"Known: {', '.join(VARIANTS)}.")
    if variant == "full":
        return image, label
    if variant == "zoom-1.3":
        return _enlarged(image, 1.3), _enlarged(label, 1.3)
    return _without_third(image, variant), _without_third(label, variant)


def _enlarged(image: sitk.Image, factor: float) -> sitk.Image:
    larger = sitk.Image(image)
    larger.SetSpacing([factor * s for s in image.GetSpacing()])
    return larger


def _without_third(image: sitk.Image, variant: str) -> sitk.Image:
    upright = sitk.DICOMOrient(image, "PIR")  # y runs downwards
    height = upright.GetSize()[1]
    third = height // 3
    return upright[:, third:, :] if variant == "top-third-off" else upright[:, : height - third, :]


def _cut_ids(before: sitk.Image, after: sitk.Image) -> set[int]:
    """Ids of which some, but less than `MINIMUM_LEFT`, is left."""
    whole, left = (
        dict(zip(*np.unique(sitk.GetArrayViewFromImage(i), return_counts=True), strict=True)) for i in (before, after)
    )
    return {int(sid) for sid, count in whole.items() if sid and 0 < left.get(sid, 0) < MINIMUM_LEFT * count}


# --- a data set ------------------------------------------------------------------------------------------------------


def evaluate_dataset(
    dataset: str | Path,
    split: str,
    predictor: Segmenter,
    *,
    variants: Sequence[str] = ("full",),
    about: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    label_leak: bool = False,
    progress: Callable[[float, str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Segments and scores the labelled cases of a split.

    A case in which no segmentation can be made (`ImageError`) counts as missed, and the report says why.

    Args:
        dataset: a manifest.
        split: ``"validation"`` …
        predictor: what segments.
        variants: names of `VARIANTS`.
        about: what else to say in the report: checkpoint, device, command.
        options: run-time options of the method.
        label_leak: let the method read the reference (its option ``allow_label_leak``), to see what it would gain; the
            report says so.
        progress: called with a fraction and a sentence.
        cancelled: asked between cases.

    Returns:
        A JSON-able report; `format_report` shows it, `write_report` writes it.

    Raises:
        DatasetError: something in the data set is missing or inconsistent; no case of the split has labels.
        ConfigError: a variant is unknown.
        Cancelled: when `cancelled` says so.
    """
    for variant in variants:
        if variant not in VARIANTS:
            raise ConfigError(f"There is no variant “{variant}”.", f"Known: {', '.join(VARIANTS)}.")
    cases = [case for case in read_manifest(dataset).cases(split) if case.label is not None]
    if not cases:
        raise DatasetError(f"No “{split}” case of {dataset} has a label.", "Choose a split with labels.")
    reports: dict[str, list[CaseReport]] = {variant: [] for variant in variants}
    for number, case in enumerate(cases):
        image, label = read_image(case.image), read_label(case)
        if not Geometry.of(image).matches(Geometry.of(label)):
            raise DatasetError(f"{case.label} does not lie on the grid of {case.image}.", "Resample the label.")
        for turn, variant in enumerate(variants):
            if cancelled is not None and cancelled():
                raise Cancelled("The evaluation was cancelled.")
            if progress is not None:
                done = (number + turn / len(variants)) / len(cases)
                progress(done, f"{case.name}, {variant}")
            reports[variant].append(_evaluate_variant(case, image, label, variant, predictor, options, label_leak))
    if progress is not None:
        progress(1.0, "done")
    return {
        "format": 1,
        "dataset": Path(dataset).name,
        "split": split,
        "library": __version__,
        **(about or {}),
        **({"label_leak": "The method was told the reference: not a result on new images."} if label_leak else {}),
        "variants": {variant: summarize(found) for variant, found in reports.items()},
    }


def _evaluate_variant(
    case: Case,
    image: sitk.Image,
    label: sitk.Image,
    variant: str,
    predictor: Segmenter,
    options: Mapping[str, Any] | None,
    label_leak: bool,
) -> CaseReport:
    copy, reference = make_variant(image, label, variant)
    started = time.perf_counter()
    prediction: Segmentation | sitk.Image
    failure = ""
    try:
        # Only an evaluation that says so gives the reference away; its report is stamped.
        leak = {"reference": reference} if label_leak else {}
        prediction = predictor.segment(copy, options=dict(options or {}), **leak)
    except ImageError as error:
        failure = str(error)
        prediction = sitk.Image(reference.GetSize(), sitk.sitkInt16)
        prediction.CopyInformation(reference)
    seconds = time.perf_counter() - started
    cut = _cut_ids(label, reference) & set(case.annotated)
    report = evaluate_case(
        reference, prediction, case.annotated, case=case.name, source=case.source, variant=variant, cut=cut
    )
    report.seconds, report.failure = seconds, failure
    return report


# --- averages --------------------------------------------------------------------------------------------------------

_METRICS = ("dice", "iou", "hd95_mm", "asd_mm", "matched_dice")


def summarize(reports: Sequence[CaseReport]) -> dict[str, Any]:
    """Averages over cases, JSON-able: by group of structures, by source and group, by structure; and every case."""
    sources = sorted({r.source for r in reports})
    names = {s.id: s.name for r in reports for s in r.structures}
    return {
        "groups": _by_group(reports),
        "sources": {s or "unnamed": _by_group([r for r in reports if r.source == s]) for s in sources},
        "structures": {names[sid]: _average(reports, lambda s, sid=sid: s.id == sid) for sid in sorted_ids(names)},
        "false_positive_ml": _false_positives(reports),
        "failures": {r.case: r.failure for r in reports if r.failure},
        "seconds": _mean([r.seconds for r in reports]),
        "cases": [_jsonable({**asdict(r), "levels_right": r.levels_right}) for r in reports],
    }


def _by_group(reports: Sequence[CaseReport]) -> dict[str, Any]:
    groups = dict.fromkeys(s.group for r in reports for s in r.structures)
    return {group: _average(reports, lambda s, group=group: s.group == group) for group in groups}


def _average(reports: Sequence[CaseReport], wanted: Callable[[StructureScore], bool]) -> dict[str, Any]:
    """Means over all scored structures, and (`macro`) means over the structures' own means, as papers give them."""
    per_case = [[s for s in r.structures if wanted(s)] for r in reports]
    scores = [s for found in per_case for s in found]
    levels = [s.level_right for s in scores if s.level_right is not None]
    per_case_levels = [[s.level_right for s in found if s.level_right is not None] for found in per_case]
    by_structure = [[s for s in scores if s.id == sid] for sid in dict.fromkeys(s.id for s in scores)]
    return {
        "scored": len(scores),
        **{metric: _mean([getattr(s, metric) for s in scores]) for metric in _METRICS},
        "undefined_distances": sum(math.isnan(s.hd95_mm) for s in scores),
        "levels_right": sum(levels),
        "levels": len(levels),
        "cases_right": sum(all(found) for found in per_case_levels if found),
        "cases": sum(bool(found) for found in per_case_levels),
        "macro": {
            metric: _mean([_mean([getattr(s, metric) for s in one]) for one in by_structure]) for metric in _METRICS
        },
    }


def _false_positives(reports: Sequence[CaseReport]) -> dict[str, Any]:
    """For each structure that was predicted anywhere: its mean volume (mL) per case outside the reference."""
    scored: dict[int, list[float]] = {}
    unscored: dict[int, list[float]] = {}
    for report in reports:
        for s in report.structures:
            scored.setdefault(s.id, []).append(s.false_positive_ml)
        for u in report.unscored:
            unscored.setdefault(u.id, []).append(u.outside_ml)
    return {
        STRUCTURES[sid].name: {
            "mean_ml_per_case": sum(scored.get(sid, [])) / len(reports),
            "unscored_mean_ml_per_case": sum(unscored.get(sid, [])) / len(reports),
            "unscored_cases": len(unscored.get(sid, [])),
        }
        for sid in sorted_ids({*scored, *unscored})
    }


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean of what is defined; None if nothing is."""
    defined = [v for v in values if v is not None and not math.isnan(v)]
    return sum(defined) / len(defined) if defined else None


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _jsonable(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_jsonable(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


# --- out -------------------------------------------------------------------------------------------------------------


def write_report(report: Mapping[str, Any], path: str | Path) -> None:
    """Writes the report as JSON, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    with staged(path) as (temporary,):
        temporary.write_text(json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def format_report(report: Mapping[str, Any]) -> str:
    """The report as a table for people."""
    header = f"{'':28}{'n':>4}{'Dice':>8}{'IoU':>8}{'HD95':>8}{'ASD':>8}{'matched':>9}{'levels':>9}{'cases':>8}"
    lines: list[str] = [report["label_leak"]] if "label_leak" in report else []
    for variant, summary in report["variants"].items():
        lines += [f"{variant}", header]
        lines += [_row(group, row) for group, row in summary["groups"].items()]
        if len(summary["sources"]) > 1:
            for source, groups in summary["sources"].items():
                lines += [_row(f"  {source}: {group}", row) for group, row in groups.items()]
        lines += [_row(f"    {name}", row) for name, row in summary["structures"].items()]
        false = summary["false_positive_ml"]
        outside = [f"{n} {v['unscored_mean_ml_per_case']:.1f}" for n, v in false.items() if v["unscored_cases"]]
        if outside:
            lines.append(f"  predicted where nothing is annotated (mL per case): {', '.join(outside)}")
        lines += [f"  {case} failed: {why}" for case, why in summary["failures"].items()]
        for case in summary["cases"]:
            wrong = [
                f"{s['name']} as {STRUCTURES[s['matched_id']].name if s['matched_id'] else 'nothing'}"
                for s in case["structures"]
                if s["level_right"] is False
            ]
            if wrong:
                lines.append(f"  {case['case']}: {', '.join(wrong)}")
            if case["not_offered"]:
                lines.append(f"  {case['case']}: not in the scheme, not scored: {', '.join(case['not_offered'])}")
        lines.append("")
    lines.append("HD95 and ASD in mm; matched: Dice whatever the level; levels, cases: with the level right.")
    return "\n".join(lines)


def _row(name: str, row: Mapping[str, Any]) -> str:
    def number(key: str, digits: int) -> str:
        return "–" if row[key] is None else f"{row[key]:.{digits}f}"

    levels = f"{row['levels_right']}/{row['levels']}" if row["levels"] else "–"
    cases = f"{row['cases_right']}/{row['cases']}" if row["cases"] else "–"
    return (
        f"{name:28}{row['scored']:>4}{number('dice', 3):>8}{number('iou', 3):>8}{number('hd95_mm', 2):>8}"
        f"{number('asd_mm', 2):>8}{number('matched_dice', 3):>9}{levels:>9}{cases:>8}"
    )
