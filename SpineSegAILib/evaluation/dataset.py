"""A dataset: every labeled case of a split segmented and scored, with the time and memory that it took."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import SimpleITK as sitk

from .. import __version__
from ..anatomy import STRUCTURES, Extent, LabelScheme
from ..datasets.manifest import (
    Case,
    case_digest,
    learned_from,
    of_dataset,
    read_case,
    read_label,
    read_manifest,
    refuse_other_grid,
)
from ..errors import Cancelled, DatasetError, DeviceError, HintError, ImageError
from ..hints import Hints
from ..imaging import read_geometry
from ..results import Segmentation
from .measurements import compare_measurements
from .scores import CaseReport, evaluate_case
from .summary import case_document, summarize
from .variants import cut_ids, make_variant, require_variant

_SAMPLE_SECONDS = 0.02


@dataclass(frozen=True)
class HintMaker:
    """What a user would say of a case.

    Attributes:
        make: of a case's image and reference.
        about: a sentence for the report: what the hints were made of.
    """

    make: Callable[[sitk.Image, sitk.Image], Hints]
    about: str = "Each case was given with hints made of its reference."


class Segmenter(Protocol):
    """What `evaluate_dataset` needs of a `Predictor`."""

    @property
    def scheme(self) -> LabelScheme:
        """The structures that it can find; what it does not offer is not missed where it fails."""

    def segment(
        self, image: sitk.Image, *, options: Mapping[str, Any] | None = None, reference: sitk.Image | None = None
    ) -> Segmentation:
        """Segments one image; `reference` is given only where the method may read it."""


@dataclass(frozen=True)
class Seen:
    """What a watcher of an evaluation is shown.

    Attributes:
        image: what was segmented.
        reference: its structure ids.
        prediction: the result; None where none could be made.
        report: its scores.
        number: place among all copies of all cases, from 1.
        total: how many there are.
    """

    image: sitk.Image
    reference: sitk.Image
    prediction: Segmentation | None
    report: CaseReport
    number: int = 1
    total: int = 1


def evaluate_dataset(
    dataset: str | Path | Sequence[str | Path],
    split: str,
    predictor: Segmenter,
    *,
    variants: Sequence[str] = ("full",),
    about: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    label_leak: bool = False,
    hints: HintMaker | None = None,
    trained_on: Collection[str] = (),
    grid: int | None = None,
    watch: Callable[[Seen], None] | None = None,
    limit: int | None = None,
    kept: MutableMapping[str, Any] | None = None,
    progress: Callable[[float, str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Segments and scores the labeled cases of a split.

    A case in which no segmentation can be made (its image cannot be used, memory does not do, or what is found does
    not fit the hints) counts as missed, and the report says why.

    Args:
        dataset: a manifest, or several whose cases are scored together.
        split: ``"validation"`` …
        predictor: what segments.
        variants: names of `VARIANTS`.
        about: what else to say in the report: checkpoint, device, command.
        options: run-time options of the method.
        label_leak: let the method read the reference (its option ``allow_label_leak``), to see what it would gain; the
            report says so.
        hints: what a user would say of a case; the report says where that comes from.
        trained_on: what the method learned from (`learned_from`); the report says which of it was scored.
        grid: of distances in pixels, see `evaluate_case`; the report says so.
        watch: shown each case that is segmented and its result, as `worst.WorstCases` wants them.
        limit: no more than this many cases, the first ones; the report says so.
        kept: what an earlier call found, with the same arguments but for the data, by `case_key`; these cases are not
            segmented again. What this one finds is added, but for failures.
        progress: called with a fraction and a sentence.
        cancelled: asked between cases.

    Returns:
        A JSON-able report; `format_report` shows it, `write_report` writes it.

    Raises:
        DatasetError: something in the dataset is missing or inconsistent; no case of the split has labels.
        ConfigError: a variant is unknown.
        Cancelled: when `cancelled` says so.
    """
    for variant in variants:
        require_variant(variant)
    datasets = [dataset] if isinstance(dataset, (str, Path)) else list(dataset)
    cases, extents = _labelled(datasets, split)
    left_out = max(len(cases) - limit, 0) if limit is not None else 0
    cases, extents = cases[: len(cases) - left_out], extents[: len(cases) - left_out]
    for case in cases:  # before hours of work
        image_grid = read_geometry(case.image)
        label_grid = read_geometry(case.label) if case.label is not None else None
        if image_grid is not None and label_grid is not None:
            refuse_other_grid(image_grid, label_grid, case)
    reports: dict[str, list[CaseReport]] = {variant: [] for variant in variants}
    for number, case in enumerate(cases):
        keys = {} if kept is None else {variant: case_key(case, variant) for variant in variants}
        before = {variant: kept[key] for variant, key in keys.items() if kept is not None and key in kept}
        if len(before) < len(variants):
            image, label, unusable = _read(case)
        for turn, variant in enumerate(variants):
            if variant in before:
                reports[variant].append(CaseReport.from_document(before[variant]))
                continue
            if cancelled is not None and cancelled():
                raise Cancelled("The evaluation was canceled.")
            if progress is not None:
                done = (number + turn / len(variants)) / len(cases)
                progress(done, f"{case.name}, {variant}")
            seen = _evaluate_variant(case, image, label, variant, predictor, options, label_leak, hints, unusable, grid)
            reports[variant].append(seen.report)
            if kept is not None and not seen.report.failure:
                kept[keys[variant]] = case_document(seen.report)
            if watch is not None:
                place = number * len(variants) + turn + 1
                watch(replace(seen, number=place, total=len(cases) * len(variants)))
    if progress is not None:
        progress(1.0, "done")
    return {
        "format": 1,
        "dataset": ", ".join(Path(d).name for d in datasets),
        "split": split,
        "library": __version__,
        **(about or {}),
        **({"label_leak": "The method was given the reference: not a result on new images."} if label_leak else {}),
        **({"hints": hints.about} if hints else {}),
        **_cautions(cases, extents, predictor.scheme.extent, trained_on),
        **({"grid": f"Distances in pixels are those of slices resized to {grid} × {grid}."} if grid else {}),
        **({"left_out": f"{left_out} cases of the split were not looked at."} if left_out else {}),
        "variants": {variant: summarize(found) for variant, found in reports.items()},
    }


def case_key(case: Case, variant: str) -> str:
    """What tells one copy of a case, with what its files hold, from all others."""
    annotated = [(sid, STRUCTURES[sid].name) for sid in case.annotated]  # numbers of a reader's own ones may differ
    return case_digest(case, case.name, case.source, case.patient, annotated, variant)


def _labelled(datasets: Sequence[str | Path], split: str) -> tuple[list[Case], list[Extent | None]]:
    """The labeled cases of a split, and the extent of their vertebrae.

    Raises:
        DatasetError: a manifest is not valid, or has no such case.
    """
    cases: list[Case] = []
    extents: list[Extent | None] = []
    for number, dataset in enumerate(datasets, start=1):
        manifest = read_manifest(dataset)
        found = [case for case in manifest.cases(split) if case.label is not None]
        if not found:
            raise DatasetError(f"No “{split}” case of {dataset} has a label.", "Choose a split with labels.")
        cases += [of_dataset(case, number) for case in found]
        extents += [case.extent or manifest.extent for case in found]
    return cases, extents


def _cautions(
    cases: Sequence[Case], extents: Sequence[Extent | None], extent: Extent | None, trained_on: Collection[str]
) -> dict[str, str]:
    """What makes scores say less than they seem to.

    Args:
        extents: of the cases' vertebrae, as they were drawn.
        extent: of the method's vertebrae.
    """
    found = {}
    if seen := [case.name for case in learned_from(cases, trained_on)]:
        found["seen"] = (
            f"{len(seen)} of {len(cases)} scored cases were in the training data, and show nothing about new "
            f"images: {', '.join(seen[:5])}{' …' if len(seen) > 5 else ''}."
        )
    if extent is not None:
        drawn = [e for e in extents if e is not None and e is not extent]
        words = {Extent.BODY: "vertebral bodies", Extent.WHOLE: "whole vertebrae"}
        if drawn:
            found["extent"] = (
                f"The method finds {words[extent]}, and there are cases with {words[drawn[0]]} drawn: overlaps and "
                "distances of these vertebrae say little."
            )
    return found


def _read(case: Case) -> tuple[sitk.Image, sitk.Image, str]:
    """A case's image and labels; where the image cannot be used, an empty one and why.

    Raises:
        DatasetError: the labels cannot be used, or do not fit the image.
    """
    try:
        return (*read_case(case), "")
    except ImageError as error:
        label = read_label(case)
        empty = sitk.Image(label.GetSize(), sitk.sitkInt16)
        empty.CopyInformation(label)
        return empty, label, str(error)


def _evaluate_variant(
    case: Case,
    image: sitk.Image,
    label: sitk.Image,
    variant: str,
    predictor: Segmenter,
    options: Mapping[str, Any] | None,
    label_leak: bool,
    hints: HintMaker | None,
    unusable: str = "",
    grid: int | None = None,
) -> Seen:
    copy, reference = make_variant(image, label, variant)
    result: Segmentation | None = None
    failure = unusable
    with _Cost() as cost:
        try:
            # Only an evaluation that says so gives the reference away; its report is stamped.
            told: dict[str, Any] = {"reference": reference} if label_leak else {}
            if hints is not None:
                told["hints"] = hints.make(copy, reference)
            if not unusable:
                result = predictor.segment(copy, options=dict(options or {}), **told)
        except (ImageError, DeviceError) as error:
            failure = str(error)
        except HintError as error:  # what was found does not fit what is true
            if hints is None:
                raise
            failure = str(error)
    prediction = result
    if prediction is None:
        blank = sitk.Image(reference.GetSize(), sitk.sitkInt16)
        blank.CopyInformation(reference)
        prediction = Segmentation(blank, predictor.scheme)
    report = evaluate_case(
        reference,
        prediction,
        case.annotated,
        case=case.name,
        source=case.source,
        variant=variant,
        patient=case.patient,
        cut=cut_ids(label, reference) & set(case.annotated),
        grid=grid,
    )
    report.seconds, report.peak_mb, report.device_peak_mb = cost.seconds, cost.peak_mb, cost.device_peak_mb
    report.failure = failure
    if result is not None and variant == "full" and report.levels_right is not False:
        report.measurements = compare_measurements(reference, result, case.annotated)
    return Seen(copy, reference, result, report)


class _Cost:
    """Time and memory of what is done inside.

    Attributes:
        seconds: wall time.
        peak_mb: largest resident memory of the process, looked at 50 times a second.
        device_peak_mb: most that torch had allocated on a CUDA device; None where there is none.
    """

    def __enter__(self) -> _Cost:
        import psutil

        self.seconds, self.peak_mb, self.device_peak_mb = 0.0, 0.0, None
        self._process, self._ended = psutil.Process(), threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._cuda = None
        if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
            self._cuda = sys.modules["torch"].cuda
            self._cuda.reset_peak_memory_stats()
        self._look()
        self._thread.start()
        self._started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._started
        self._ended.set()
        self._thread.join()
        self._look()
        if self._cuda is not None:
            self.device_peak_mb = self._cuda.max_memory_allocated() / 2**20

    def _sample(self) -> None:
        while not self._ended.wait(_SAMPLE_SECONDS):
            self._look()

    def _look(self) -> None:
        self.peak_mb = max(self.peak_mb, self._process.memory_info().rss / 2**20)
