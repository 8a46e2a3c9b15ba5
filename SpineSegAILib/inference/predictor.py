"""Predictor: a checkpoint applied to an image."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from ..anatomy import STRUCTURES, LabelScheme
from ..checkpoints import CheckpointInfo, find_checkpoint, load_method, read_header, versions
from ..consistency import LevelResult, relative_size, resolve_levels
from ..errors import ConfigError, HintError, is_out_of_memory
from ..evidence import Evidence
from ..hints import Hints
from ..imaging import CanonicalVolume, back_to_source, carry_tags, orientation_is_known, scale_is_known
from ..imaging.checks import refuse_lateral
from ..imaging.geometry import ids_in
from ..methods.catalog import method_info
from ..methods.options import number_option, switch_option, whole_option
from ..results import Segmentation
from .cleaning import clean
from .device import choose_device, device_name, memory_in_words
from .doubts import doubts, not_found, not_told
from .films import NEGATIVE, film_doubts, is_negative, negative, refuse_two_columns
from .metadata import read_metadata
from .quality import NOT_FITTED, outline_quality
from .restore import around_locked, labels_on_source, restricted
from .second_look import SMALL, Look, as_found, better_turn, is_large, small_size
from .sliding_window import Cancel, Progress, predict_volume, slices_per_pass, stop_if

OPTIONS: Mapping[str, str] = {
    "batch": "slices per pass of a 2D network (default 8 on a GPU, 2 on a processor)",
    "overlap": "share of overlap of a network's windows (default 0.5, or the method's own)",
    "mirror": "3D: average with the pass over the left-right mirrored volume (default off)",
    "scale": "size of the anatomy over an adult's (by default found in a first pass, where it differs much)",
    "consistency": "off: the network's own classes, without anatomical consistency (for research)",
}
"""Run-time options that every method takes."""

USUAL_SIZES = (0.83, 1.15)
"""Vertebrae that are this many times as large as an adult's are segmented as they are: training met such sizes."""

SCALES = (0.4, 2.5)
"""Vertebrae of such sizes are looked at again, at their scale; what seems smaller or larger was not a vertebra."""


class Predictor:
    """A checkpoint on a device, ready for one image after another.

    Args:
        checkpoint: name, path or header; None for the default.
        device: see `choose_device`.

    Raises:
        CheckpointError, DeviceError: it cannot be loaded there.
    """

    def __init__(self, checkpoint: str | Path | CheckpointInfo | None = None, device: str = "auto") -> None:
        started = time.perf_counter()
        self.info = checkpoint if isinstance(checkpoint, CheckpointInfo) else find_checkpoint(checkpoint)
        self.device = choose_device(device)
        metadata = read_metadata(self.info)
        self.method = load_method(read_header(self.info.path)).to(self.device)
        self.preprocessing, self.calibration, self.patch = metadata.preprocessing, metadata.calibration, metadata.patch
        self.quality_model = metadata.outline_quality
        self.load_seconds = time.perf_counter() - started

    @property
    def scheme(self) -> LabelScheme:
        """The checkpoint's label scheme."""
        return self.info.scheme

    @memory_in_words()
    def segment(
        self,
        image: sitk.Image,
        hints: Hints | None = None,
        options: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        cancelled: Cancel | None = None,
        *,
        reference: sitk.Image | None = None,
    ) -> Segmentation:
        """Segment one image.

        Args:
            image: 3D scalar image in any orientation; a radiograph is one slice.
            hints: what the reader knows.
            options: `OPTIONS` and the method's own.
            progress: called with a fraction and a sentence.
            cancelled: asked often; True ends the work.
            reference: the true labels, for the evaluation of methods that may use them (option
                ``allow_label_leak``); never given otherwise. The result's provenance says ``label_leak``.

        Raises:
            ImageError: the image is not what the checkpoint takes.
            HintError: a hint does not fit, or the method does not take it.
            ConfigError: an option is unknown.
            DeviceError: there is not enough memory.
            Cancelled: the caller asked for it.
        """
        hints, options = hints or Hints(), dict(options or {})
        self._check(hints, options)
        clock = _Clock()
        report = progress or _report_nothing
        cancelled = cancelled or (lambda: False)

        def one_pass(scale: float, start: float, share: float) -> _Pass:
            def ahead(fraction: float, message: str) -> None:
                report(start + share * fraction, message)

            with clock("preprocess"):
                ahead(0.0, "Preparing the image")
                volume = self.preprocessing.apply(image, scale)
                volume = negative(volume) if inverted else volume
                prior = None if hints.prior is None else self._prior(hints.prior, volume)
            with clock("network"):
                drawn = None if reference is None else self.preprocessing.apply_to_labels(reference, volume)
                evidence = self._evidence(volume, prior, drawn, hints, options, ahead, cancelled, notes)
            stop_if(cancelled)
            with clock("consistency"):
                ahead(1.0, "Naming the levels")
                evidence = self.calibration.apply(evidence)
                levels = self._levels(evidence, volume, hints, options)
            stop_if(cancelled)
            return _Pass(scale, volume, evidence, levels)

        def see(volume: CanonicalVolume) -> tuple[Evidence, LevelResult | None]:
            with clock("network"):
                evidence = self._evidence(volume, None, None, Hints(), options, _report_nothing, cancelled, notes)
            stop_if(cancelled)
            evidence = self.calibration.apply(evidence)
            return evidence, self._levels(evidence, volume, Hints(), {})

        notes: list[str] = []
        if not orientation_is_known(image) and self._sees_columns:
            image, found = as_found(image, self.preprocessing, see)
            notes += found
        if self._sees_films:
            refuse_lateral(image)
        inverted = False
        given = _scale(options)
        seen = one_pass(given or 1.0, 0.0, 0.9)
        if self._sees_films and seen.look is not None and is_negative(seen.volume, see, seen.look):
            inverted = True
            notes.append(NEGATIVE)
            seen = one_pass(given or 1.0, 0.0, 0.9)
        unaided = self._sees_columns and reference is None and not hints.given() - {"structures"}
        look = seen.look if unaided else None
        size = seen.size
        if look is not None and given is None:
            size = small_size(lambda scale: self.preprocessing.apply(image, scale), see, look) or size
        if given is None and size is not None and _worth_another_pass(size):
            scale = why = ""
            try:
                again = one_pass(size, 0.9, 0.05)
            except HintError as error:  # they did for the first one
                scale, why = "but were segmented as an adult's", f" At their scale a hint does not fit: {error.message}"
            else:
                # What was taken for a column may not be one: then a second look finds none of the usual size either.
                if again.size is not None and _usual(again.size):
                    seen, scale = again, "and were segmented at this scale"
            if scale and not self._sees_films:  # whose pixels tell no size
                other = "they are cervical ones and all names are wrong, or " if size < SMALL else ""
                notes.append(
                    f"The vertebrae are about {size:.1f} times as large as an adult's, {scale}. If that is not so, "
                    f"{other}the image's spacing is wrong, and with it every measurement.{why}"
                )
        volume, evidence, levels = seen.volume, seen.evidence, seen.levels
        if unaided and (look := seen.look) is not None:
            turn = better_turn(volume, see, look)
            notes += [] if turn is None else [turn.doubt]
        if self._sees_films:
            refuse_two_columns(evidence, volume)
            notes += film_doubts(volume, levels, seen.look)
        notes += doubts(image, volume, levels, self.preprocessing.modality)
        with clock("back"):
            report(0.95, "Bringing the result to the image's grid")
            labels = labels_on_source(evidence, levels, volume)
            if levels is not None:
                labels = clean(labels, self.scheme.extent)
            if hints.locked is not None:
                labels = around_locked(labels, hints.locked, evidence, levels, volume)
            if levels is not None:
                notes += not_found(ids_in(labels), self.scheme, hints.structures)
            if hints.structures:
                labels = restricted(labels, hints.structures)
            carry_tags(image, labels)
            uncertainty = None
            if evidence.uncertainty is not None:
                uncertainty = carry_tags(image, back_to_source(evidence.uncertainty, volume))
        result = Segmentation(
            labels=labels,
            scheme=self.scheme,
            level_confidence=levels.level_confidence if levels else None,
            alternatives=list(levels.alternatives) if levels else [],
            warnings=[*dict.fromkeys(notes), *(levels.warnings if levels else [])],
            unvalidated=self.info.unvalidated,
            provenance={
                "method": self.info.method,
                "checkpoint": self.info.name,
                "device": device_name(self.device),
                "versions": versions(),
                "hints": sorted(hints.given()),
                "options": options,
                "seconds": clock.seconds,
                "scale": round(seen.scale, 3),
                **not_told(labels),
                **({} if uncertainty is None else {"uncertainty": _mean_per_structure(uncertainty, labels)}),
                **({"about": evidence.about} if evidence.about else {}),
                **({"label_leak": True} if reference is not None else {}),
            },
            uncertainty=uncertainty,
            keypoints=_points_by_level(evidence, levels, volume, hints),
            scale_known=scale_is_known(image),
        )
        if levels is not None and self.quality_model is None:
            result.warnings.append(NOT_FITTED)
        elif levels is not None and self.quality_model is not None:
            with clock("quality"):
                report(0.98, "Judging the outlines")
                quality = outline_quality(self.quality_model, evidence, levels, volume, result)
            drawn_by_reader = set() if hints.locked is None else set(ids_in(hints.locked))
            result.outline_quality = {sid: q for sid, q in quality.items() if sid not in drawn_by_reader}
        report(1.0, "Done")
        return result

    @property
    def _sees_columns(self) -> bool:
        """Whether it names levels of a spine that is seen from the side."""
        return "sagittal" in self.preprocessing.planes and any(s.order is not None for s in self.scheme.structures)

    @property
    def _sees_films(self) -> bool:
        """Whether it names levels in films from the front."""
        return self.preprocessing.modality == "XR" and any(s.order is not None for s in self.scheme.structures)

    @memory_in_words()
    def predict_evidence(
        self,
        volume: CanonicalVolume,
        *,
        options: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        name: bool = True,
    ) -> tuple[Evidence, LevelResult | None]:
        """What the network says about a preprocessed volume, and which levels follow from it: `segment` without its
        end, for those who weigh the evidence (`ranking`).

        Args:
            options: as in `segment`.
            name: whether levels are wanted; None also for schemes without them.
        """
        report, options = progress or (lambda fraction, message: None), dict(options or {})
        evidence = self._evidence(volume, None, None, Hints(), options, report, lambda: False, [])
        evidence = self.calibration.apply(evidence)
        return evidence, self._levels(evidence, volume, Hints(), options) if name else None

    @memory_in_words()
    def features(self, volume: CanonicalVolume, options: Mapping[str, Any] | None = None) -> np.ndarray:
        """(F, D, H, W) what the network's last layers read of a preprocessed volume (`Method.readout`).

        Args:
            options: as in `segment`.

        Raises:
            ConfigError: an option is unknown.
        """
        options = {**(options or {}), **self.method.readout.options}
        self._check(Hints(), options)
        evidence = self._evidence(
            volume, None, None, Hints(), options, lambda *_: None, lambda: False, [], features=True
        )
        assert evidence.features is not None
        return evidence.features

    def _check(self, hints: Hints, options: Mapping[str, Any]) -> None:
        info = method_info(self.info.method)
        refused = hints.given() - info.accepted_hints
        if refused:
            taken = ", ".join(sorted(info.accepted_hints))
            raise HintError(f"{info.title} does not take the hint “{sorted(refused)[0]}”.", f"It takes: {taken}.")
        for sid in hints.structures:
            self.scheme.require(sid)
        if hints.locked is not None:
            _check_locked(hints.locked, hints.structures or self.scheme.ids)
        known = {*OPTIONS, *self.method.options}
        unknown = set(options) - known
        if unknown:
            raise ConfigError(
                f"{info.title} has no option “{sorted(unknown)[0]}”.", f"It has: {', '.join(sorted(known))}."
            )
        # Read in the course of the work, some after the network's minutes or not at all: what is wrong is said before.
        self._names_levels(hints, options)
        if switch_option(options, "mirror", False) and self.method.config.dims == 2:
            raise ConfigError(
                f"The checkpoint {self.info.name} sees single slices: the option mirror is for 3D ones.",
                "Omit it.",
            )
        whole_option(options, "batch", 1, least=1)
        overlap = number_option(options, "overlap", 0.5)
        if not 0 <= overlap < 1:
            raise ConfigError(f"The overlap {overlap:g} is not valid.", "It is a share from 0 to less than 1.")
        _scale(options)

    def _prior(self, prior: sitk.Image, volume: CanonicalVolume) -> np.ndarray:
        """Channels of the scheme (D, H, W) of a segmentation to start from, whatever its grid."""
        ids = self.preprocessing.apply_to_labels(prior, volume)
        table = {sid: self.scheme.channel_for(sid) if sid in STRUCTURES else 0 for sid in np.unique(ids).tolist()}
        channels = np.zeros(ids.shape, np.int16)
        for sid, channel in table.items():
            channels[ids == sid] = channel
        if not channels.any():
            raise HintError(
                "The prior segmentation shows none of the checkpoint's structures inside the image.",
                f"Choose one of the same patient and space, with structures of the scheme “{self.scheme.name}”.",
            )
        return channels

    def _evidence(
        self,
        volume: CanonicalVolume,
        prior: np.ndarray | None,
        reference: np.ndarray | None,
        hints: Hints,
        options: dict[str, Any],
        report: Progress,
        cancelled: Cancel,
        notes: list[str],
        features: bool = False,
    ) -> Evidence:
        """The network's pass, smaller and then on the CPU where memory runs out, which is said in `notes`."""
        device = self.device
        batch = slices_per_pass(self.method, device, options)
        try:
            while True:
                try:
                    return predict_volume(
                        self.method, volume, device, patch=self.patch, hints=hints,
                        options={**options, "batch": batch}, prior=prior, reference=reference, features=features,
                        progress=report, cancelled=cancelled,
                    )  # fmt: skip
                except (RuntimeError, MemoryError) as error:
                    if device.type == "cpu" or not is_out_of_memory(error):
                        raise
                    torch.cuda.empty_cache()
                    if batch > 1:
                        batch = batch // 2
                        continue
                    notes.append(f"The device {device} ran out of memory: this was computed on the CPU.")
                    device = torch.device("cpu")
                    self.method.to(device)
        finally:
            if device != self.device:
                self.method.to(self.device)

    def _names_levels(self, hints: Hints, options: Mapping[str, Any]) -> bool:
        """Whether structures get their names by anatomical consistency.

        Raises:
            ConfigError: it is switched off, and the network does not name them.
            HintError: it is switched off, and a hint acts by it.
        """
        if switch_option(options, "consistency", True) and set(self.scheme.kinds) - {0}:
            return True
        if not self.method.config.predicts_classes:
            raise ConfigError(
                "This checkpoint predicts kinds and ranks, which only become names by anatomical consistency.",
                "Turn the option consistency on.",
            )
        reads_range = "visible" in method_info(self.info.method).hints  # with both ends
        if hints.anchors or (hints.visible and (not reads_range or None in hints.visible)):
            raise HintError(
                "Anchors and the visible range act by anatomical consistency, which is switched off.",
                ("Give both ends of the range" if reads_range and not hints.anchors else "Omit the hint")
                + ", or turn the option consistency on.",
            )
        return False

    def _levels(
        self, evidence: Evidence, volume: CanonicalVolume, hints: Hints, options: Mapping[str, Any]
    ) -> LevelResult | None:
        if not self._names_levels(hints, options):
            return None
        anchors = [(a.structure_id, volume.index_of(a.point)) for a in hints.anchors]
        locked = None
        if hints.locked is not None and any(s.order is not None for s in self.scheme.structures):
            locked = self.preprocessing.apply_to_labels(hints.locked, volume)
        return resolve_levels(evidence, anchors=anchors, visible=hints.visible, locked=locked)


def _points_by_level(
    evidence: Evidence, levels: LevelResult | None, volume: CanonicalVolume, hints: Hints
) -> dict[int, tuple[float, float, float]]:
    """Keypoints in LPS mm, named like the structures they lie in; the reader's stay as placed."""
    result = dict(hints.keypoints)
    for sid, index in evidence.keypoints.items():
        if levels is not None and sid not in hints.keypoints:
            at = tuple(min(max(round(i), 0), n - 1) for i, n in zip(index, levels.labels.shape, strict=True))
            sid = int(levels.labels[at]) or sid
        result.setdefault(sid, volume.point_of(index))
    return result


def _check_locked(locked: sitk.Image, wanted: Iterable[int]) -> None:
    """Locked structures are ours, and something is left to find.

    Raises:
        HintError: an id is unknown, or all that is wanted is locked.
    """
    ids = set(ids_in(locked))
    foreign = ids - set(STRUCTURES)
    if foreign:
        raise HintError(
            f"The locked segmentation holds the value {min(foreign)}, which is not a structure.", "Relabel it first."
        )
    if ids and ids >= set(wanted):
        raise HintError("Every structure is locked: there is nothing left to segment.", "Unlock what is to change.")


@dataclass(frozen=True)
class _Pass:
    """What one pass found, taking the anatomy to be `scale` times its usual size."""

    scale: float
    volume: CanonicalVolume
    evidence: Evidence
    levels: LevelResult | None

    @property
    def size(self) -> float | None:
        """Of the vertebrae, over an adult's, after scaling."""
        return relative_size(self.levels) if self.levels else None

    @cached_property
    def look(self) -> Look | None:
        """How well a spine was recognized; None where there is too little to look at."""
        return Look.of(self.evidence, self.levels) if self.levels and is_large(self.volume) else None


def _report_nothing(fraction: float, message: str) -> None:
    pass


def _usual(size: float) -> bool:
    return USUAL_SIZES[0] <= size <= USUAL_SIZES[1]


def _worth_another_pass(size: float) -> bool:
    return not _usual(size) and SCALES[0] <= size <= SCALES[1]


def _scale(options: Mapping[str, Any]) -> float | None:
    """The option's value; None where it is to be found."""
    if options.get("scale", "auto") == "auto":
        return None
    remedy = "Give auto, or a number from 0.2 to 5: 1 is an adult."
    scale = number_option(options, "scale", 1.0, remedy)
    if not 0.2 <= scale <= 5:
        raise ConfigError(f"The scale {scale:g} is not valid.", remedy)
    return scale


def _mean_per_structure(values: sitk.Image, labels: sitk.Image) -> dict[str, float]:
    """Mean of an image inside each structure, by name."""
    array, ids = sitk.GetArrayViewFromImage(values), sitk.GetArrayViewFromImage(labels)
    return {STRUCTURES[i].name: round(float(array[ids == i].mean()), 4) for i in np.unique(ids).tolist() if i}


class _Clock:
    """Seconds per stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - started, 3)
