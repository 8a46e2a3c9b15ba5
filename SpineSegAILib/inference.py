"""From an image to a `Segmentation`: preprocessing, network, anatomical consistency, and exactly back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor
from torch.nn import functional as F

from .anatomy import KINDS, Kind, LabelScheme, laterality
from .checkpoints import CheckpointInfo, find_checkpoint, load_method, read_header, versions
from .consistency import LevelResult, nearest_level_maps, resolve_levels
from .errors import Cancelled, ConfigError, DeviceError, HintError
from .evidence import Evidence
from .hints import Hints
from .imaging import CanonicalVolume, Geometry, Preprocessing, back_to_source, back_to_source_many
from .keypoints import KEYPOINT_REACH_MM, keypoint_indices
from .methods.base import COORDINATE_SCALE_MM, Context, Method, coordinate_channels
from .methods.catalog import method_info
from .results import Segmentation

Progress = Callable[[float, str], None]
Cancel = Callable[[], bool]

OPTIONS: Mapping[str, str] = {
    "batch": "slices per pass of a 2D network (default 8)",
    "overlap": "share of overlap of a 3D network's windows (default 0.5)",
    "mirror": "3D: average with the pass over the left-right mirrored volume (default off)",
    "consistency": "off: the network's own classes, without anatomical consistency (for research)",
}
"""Run-time options that every method takes."""

_VERTEBRA, _DISC, _CANAL, _SACRUM = (KINDS.index(k.value) for k in (Kind.VERTEBRA, Kind.DISC, Kind.CANAL, Kind.SACRUM))

AIR = -2.0
"""Preprocessed value outside the image."""


def choose_device(name: str = "auto") -> torch.device:
    """The device of a name.

    Args:
        name: ``"auto"`` (CUDA where there is one, else CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.

    Raises:
        DeviceError: it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"“{name}” is not a device.", "Use auto, cpu, cuda, cuda:0 or mps.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"There is no device {name} here.", "Use --device auto or cpu.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("This computer has no MPS device.", "Use --device auto or cpu.")
    if device.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(f"Devices of type {device.type} are not supported.", "Use auto, cpu, cuda or mps.")
    return device


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
        self.method = load_method(read_header(self.info.path)).to(self.device)
        self.preprocessing = Preprocessing.model_validate(self.info.metadata["preprocessing"])
        self.patch = tuple(self.info.metadata.get("patch", ()))
        self.load_seconds = time.perf_counter() - started

    @property
    def scheme(self) -> LabelScheme:
        """The checkpoint's label scheme."""
        return self.info.scheme

    def segment(
        self,
        image: sitk.Image,
        hints: Hints | None = None,
        options: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        cancelled: Cancel | None = None,
    ) -> Segmentation:
        """Segment one image.

        Args:
            image: 3D scalar image in any orientation; a radiograph is one slice.
            hints: what the reader knows.
            options: `OPTIONS` and the method's own.
            progress: called with a fraction and a sentence.
            cancelled: asked often; True ends the work.

        Raises:
            ImageError: the image is not what the checkpoint takes.
            HintError: a hint does not fit, or the method does not take it.
            ConfigError: an option is unknown.
            Cancelled: the caller asked for it.
        """
        hints, options = hints or Hints(), dict(options or {})
        self._check(hints, options)
        clock = _Clock()
        report = progress or (lambda fraction, message: None)
        cancelled = cancelled or (lambda: False)

        with clock("preprocess"):
            report(0.0, "Preparing the image")
            volume = self.preprocessing.forward(image)
        with clock("network"):
            evidence, notes = self._evidence(volume, hints, options, report, cancelled)
        _stop_if(cancelled)
        with clock("consistency"):
            report(0.9, "Naming the levels")
            levels = self._levels(evidence, volume, hints, options)
        _stop_if(cancelled)
        with clock("back"):
            report(0.95, "Bringing the result to the image's grid")
            labels = labels_on_source(evidence, levels, volume)
            if hints.locked is not None:
                labels = _keep_locked(labels, hints.locked)
            if hints.structures:
                labels = _only(labels, hints.structures)
            uncertainty = None if evidence.uncertainty is None else back_to_source(evidence.uncertainty, volume)
        report(1.0, "Done")
        return Segmentation(
            labels=labels,
            scheme=self.scheme,
            confidence=dict(levels.confidence) if levels else {},
            warnings=[*notes, *(levels.warnings if levels else [])],
            unvalidated=self.info.unvalidated,
            provenance={
                "method": self.info.method,
                "checkpoint": self.info.name,
                "device": _device_name(self.device),
                "versions": versions(),
                "hints": sorted(hints.given()),
                "options": options,
                "seconds": clock.seconds,
            },
            uncertainty=uncertainty,
            keypoints=_points_by_level(evidence, levels, volume, hints),
        )

    def _check(self, hints: Hints, options: Mapping[str, Any]) -> None:
        info = method_info(self.info.method)
        refused = hints.given() - info.accepted_hints
        if refused:
            taken = ", ".join(sorted(info.accepted_hints))
            raise HintError(f"{info.title} does not take the hint “{sorted(refused)[0]}”.", f"It takes: {taken}.")
        for sid in hints.structures:
            self.scheme.require(sid)
        known = {*OPTIONS, *self.method.options}
        unknown = set(options) - known
        if unknown:
            raise ConfigError(
                f"{info.title} has no option “{sorted(unknown)[0]}”.", f"It has: {', '.join(sorted(known))}."
            )

    def _evidence(
        self, volume: CanonicalVolume, hints: Hints, options: dict[str, Any], report: Progress, cancelled: Cancel
    ) -> tuple[Evidence, list[str]]:
        """The network's pass, smaller and then on the CPU where memory runs out, which is said."""
        notes: list[str] = []
        batch = int(options.get("batch", 8))
        device = self.device
        while True:
            try:
                evidence = volume_evidence(
                    self.method, volume, device, patch=self.patch, hints=hints, options={**options, "batch": batch},
                    progress=lambda f, m: report(0.05 + 0.85 * f, m), cancelled=cancelled,
                )  # fmt: skip
                return evidence, notes
            except torch.OutOfMemoryError as error:
                if device.type == "cpu":
                    raise DeviceError(
                        "There is not enough memory for this volume.", "Crop it, or close programs."
                    ) from error
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

    def _levels(
        self, evidence: Evidence, volume: CanonicalVolume, hints: Hints, options: Mapping[str, Any]
    ) -> LevelResult | None:
        if str(options.get("consistency", "on")) == "off" or not set(evidence.scheme.kinds) - {0}:
            if evidence.classes is None:
                raise ConfigError(
                    "This checkpoint predicts kinds and ranks, which only become names by anatomical consistency.",
                    "Leave the option consistency on.",
                )
            return None
        anchors = [(a.structure_id, volume.index_of(a.point)) for a in hints.anchors]
        return resolve_levels(evidence, anchors=anchors, visible=hints.visible)


def volume_evidence(
    method: Method,
    volume: CanonicalVolume,
    device: torch.device,
    *,
    patch: tuple[int, ...] = (),
    hints: Hints | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    cancelled: Cancel | None = None,
) -> Evidence:
    """Run a method over a whole preprocessed volume: slice by slice in 2D, in sliding windows in 3D.

    Args:
        patch: window of a 3D method.
        options: see `OPTIONS`.

    Raises:
        Cancelled: the caller asked for it.
    """
    options = options or {}
    report = progress or (lambda fraction, message: None)
    cancelled = cancelled or (lambda: False)
    hints = hints or Hints()
    for sid in hints.keypoints:
        method.scheme.require(sid)
    placed = keypoint_indices(hints.keypoints, volume)
    with torch.inference_mode(), _autocast(device):
        run = _by_slices if method.config.dims == 2 else _by_windows
        maps = run(method, volume, device, patch, hints, options, report, cancelled)
    return Evidence(
        spacing=volume.spacing,
        scheme=method.answer(hints),
        classes=maps.get("classes"),
        kinds=maps.get("kinds"),
        rank=maps.get("rank"),
        uncertainty=maps.get("uncertainty"),
        keypoints={**_centres(maps.get("keypoints"), method.scheme, volume), **placed},
    )


def _by_slices(
    method: Method,
    volume: CanonicalVolume,
    device: torch.device,
    patch: tuple[int, ...],
    hints: Hints,
    options: Mapping[str, Any],
    report: Progress,
    cancelled: Cancel,
) -> dict[str, np.ndarray]:
    count, *shape = volume.array.shape
    pads, inner = _padding(shape, method.divisors, method.window)
    coordinates = _padded_coordinates(shape, volume.spacing[1:], pads, device)
    images = torch.from_numpy(volume.array)
    size = max(1, int(options.get("batch", 8)))
    memory: dict[Any, Any] = {}
    placed = _placed(hints, volume, method.scheme, pads).to(device) if hints.keypoints else None
    result: dict[str, np.ndarray] = {}
    for number, start in product(range(method.passes), range(0, count, size)):
        _stop_if(cancelled)
        final = number == method.passes - 1
        chunk = F.pad(images[start : start + size, None].to(device), pads, value=AIR)
        slices = tuple(range(start, start + len(chunk)))

        def predict(stacked: Tensor, slices: tuple[int, ...] = slices, final: bool = final) -> dict[str, Tensor]:
            points = None if placed is None else placed[list(slices)]
            context = Context(stacked[:, 1:], slices, count, hints, options, memory, final, volume.spacing[0], points)
            return method.evidence(stacked[:, :1], context)

        stacked = torch.cat([chunk, coordinates.expand(len(chunk), -1, -1, -1)], 1)
        maps = _windowed(predict, stacked, method.window, options) if method.window else predict(stacked)
        if (points := maps.pop("keypoints", None)) is not None and final:
            points[..., :2] -= torch.tensor(pads[0::2][::-1], device=points.device)
            found = result.setdefault("keypoints", np.empty((count, *points.shape[1:]), np.float32))
            found[start : start + len(chunk)] = points.cpu().numpy()
        for name, value in maps.items() if final else ():
            value = value[(..., *inner)].movedim(0, -3)  # slices become the third axis from the end
            if name not in result:
                result[name] = np.empty((*value.shape[:-3], count, *shape), np.float32)
            result[name][..., start : start + len(chunk), :, :] = value.float().cpu().numpy()
        done = min(start + size, count)
        report((number + done / count) / method.passes, f"Slice {done} of {count}")
    return result


def _placed(hints: Hints, volume: CanonicalVolume, scheme: LabelScheme, pads: tuple[int, ...]) -> Tensor:
    """(D, C − 1, 2) the reader's key points in the padded slices near them, NaN elsewhere."""
    result = np.full((volume.array.shape[0], scheme.channels - 1, 2), np.nan, np.float32)
    for sid, (at, row, column) in keypoint_indices(hints.keypoints, volume).items():
        near = abs(np.arange(len(result)) - at) * volume.spacing[0] <= KEYPOINT_REACH_MM
        result[near, scheme.channel_of[sid] - 1] = (row + pads[2], column + pads[0])
    return torch.from_numpy(result)


def _centres(
    found: np.ndarray | None, scheme: LabelScheme, volume: CanonicalVolume
) -> dict[int, tuple[float, float, float]]:
    """Structure id → (slice, row, column): the middle of the slices where it was found most clearly.

    Args:
        found: (D, C − 1, 3) row, column, strength; NaN where not found.
        scheme: what the channels mean.
        volume: points in its padding are left out.
    """
    result: dict[int, tuple[float, float, float]] = {}
    height, width = volume.array.shape[1:]
    for sid, points in zip(scheme.ids, found.swapaxes(0, 1) if found is not None else (), strict=False):
        strength = np.where(np.isnan(points[:, 0]), 0.0, points[:, 2])
        if strength.any():
            # Heatmaps fade towards the sides of a body; the slices of at least 0.7 times the height are its middle.
            clear = np.flatnonzero(strength >= 0.7 * strength.max())
            row, column = np.median(points[clear, :2], axis=0)
            if 0 <= row <= height - 1 and 0 <= column <= width - 1:
                result[sid] = (float(np.median(clear)), float(row), float(column))
    return result


def _points_by_level(
    evidence: Evidence, levels: LevelResult | None, volume: CanonicalVolume, hints: Hints
) -> dict[int, tuple[float, float, float]]:
    """Key points in LPS mm, named like the structures they lie in; the reader's stay as placed."""
    result = dict(hints.keypoints)
    for sid, index in evidence.keypoints.items():
        if levels is not None and sid not in hints.keypoints:
            at = tuple(min(max(round(i), 0), n - 1) for i, n in zip(index, levels.labels.shape, strict=True))
            sid = int(levels.labels[at]) or sid
        result.setdefault(sid, volume.point_of(index))
    return result


def _by_windows(
    method: Method,
    volume: CanonicalVolume,
    device: torch.device,
    patch: tuple[int, ...],
    hints: Hints,
    options: Mapping[str, Any],
    report: Progress,
    cancelled: Cancel,
) -> dict[str, np.ndarray]:
    shape = list(volume.array.shape)
    fitting = tuple(_multiple(min(n, 96), d) for n, d in zip(shape, method.divisors, strict=True))
    window = method.window or patch or fitting
    pads, inner = _padding(shape, (1, 1, 1), window)
    image = F.pad(torch.from_numpy(volume.array)[None, None], pads, value=AIR)
    coordinates = _padded_coordinates(shape, volume.spacing, pads, image.device)
    stacked = torch.cat([image, coordinates], 1)
    mirror = _is_on(options.get("mirror", "off"))
    if mirror and any(laterality(i) for i in method.scheme.ids):
        raise ConfigError("These structures are left or right: the volume cannot be mirrored.", "Leave mirror off.")
    done, total = 0, (1 + mirror) * len(_window_places(stacked.shape[2:], window, options))

    def predict(part: Tensor) -> dict[str, Tensor]:
        nonlocal done
        _stop_if(cancelled)
        part = part.to(device)
        maps = method.evidence(part[:, :1], Context(part[:, 1:], hints=hints, options=options))
        done += 1
        report(done / total, f"Window {done} of {total}")
        return maps

    maps = _windowed(predict, stacked, window, options)
    if mirror:
        turned = stacked.flip(2)
        turned[:, 1] *= -1  # positions are the mirrored volume's own
        for name, value in _windowed(predict, turned, window, options).items():
            maps[name] = (maps[name] + value.flip(-3)) / 2
    return {name: value[0][(..., *inner)].numpy() for name, value in maps.items()}


_MANY_CHANNELS = 8


def _windowed(
    predict: Callable[[Tensor], dict[str, Tensor]], data: Tensor, window: tuple[int, ...], options: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Overlapping windows blended with Gaussian weights; maps without a channel axis keep their shape.

    The sum of weights is known beforehand, so windows add up to the result itself: no second copy of it. Maps of many
    channels are kept in half precision; probabilities lose 0.001 at most, and a volume of 24 classes half its memory.

    Args:
        data: (B, C, *spatial), no smaller than the window.
    """
    size = data.shape[2:]
    places = _window_places(size, window, options)
    bump = _bump(window)
    total = torch.zeros(tuple(size))
    for place in places:
        total[place] += bump
    result: dict[str, Tensor] = {}
    for place in places:
        weight = bump / total[place]
        for name, value in predict(data[(..., *place)]).items():
            value = value.to(data.device)
            if name not in result:
                many = value.ndim == data.ndim and value.shape[1] > _MANY_CHANNELS
                shape = (*value.shape[: value.ndim - len(window)], *size)
                result[name] = torch.zeros(shape, dtype=torch.float16 if many else torch.float32, device=data.device)
            target = result[name]
            weights = weight.to(data.device)
            for sample in range(len(value)):  # image by image, channel by channel: no large temporary
                if value.ndim == data.ndim:
                    for channel in range(value.shape[1]):
                        target[(sample, channel, *place)] += (value[sample, channel] * weights).to(target.dtype)
                else:
                    target[(sample, *place)] += value[sample] * weights
    return result


def _window_places(shape: Sequence[int], window: Sequence[int], options: Mapping[str, Any]) -> list[tuple[slice, ...]]:
    """Where windows lie: evenly spread, the first and last at the edges, no farther apart than the overlap allows."""
    overlap = float(options.get("overlap", 0.5))
    if not 0 <= overlap < 1:
        raise ConfigError(f"The overlap {overlap:g} is not valid.", "It is a share from 0 to less than 1.")
    starts = []
    for full, side in zip(shape, window, strict=True):
        steps = math.ceil((full - side) / max(1, side * (1 - overlap)))
        starts.append([round(i * (full - side) / max(steps, 1)) for i in range(steps + 1)])
    return [tuple(slice(a, a + n) for a, n in zip(corner, window, strict=True)) for corner in product(*starts)]


def _bump(window: Sequence[int]) -> Tensor:
    """Gaussian weight whose standard deviation is an eighth of the window, as nnU-Net's; never quite zero."""
    result = torch.ones(())
    for n in window:
        at = (torch.arange(n) - (n - 1) / 2) / (n / 8)
        result = result[..., None] * torch.exp(-0.5 * at**2)
    return result.clamp(min=1e-3)


def _is_on(value: Any) -> bool:
    return str(value).lower() in ("on", "true", "yes", "1")


def labels_on_source(evidence: Evidence, levels: LevelResult | None, volume: CanonicalVolume) -> sitk.Image:
    """Structure ids on the input's voxels: probabilities are resampled and compared there, not labels.

    Args:
        evidence: the network's probabilities on the canonical grid.
        levels: which instance is which; None takes the arg-max over the classes.
        volume: the canonical grid and its source.
    """
    if levels is None:
        assert evidence.classes is not None
        ids = np.array([0, *evidence.scheme.ids], np.int16)
        return volume.source.image(ids[_winner(iter(evidence.classes), volume)])
    kinds = evidence.kind_probabilities()
    # Vertebrae and sacrum are one while shapes are found; which is which is a matter of levels.
    others = channels_without_kind(evidence)  # the cord, or what a scheme added by name: no level, no shape to find
    rest = [evidence.classes[channel] for channel in others]  # type: ignore[index]
    shapes = (kinds[0] - sum(rest), kinds[_VERTEBRA] + kinds[_SACRUM], kinds[_DISC], kinds[_CANAL])
    winner = _winner((*shapes, *rest), volume)
    maps = nearest_level_maps(levels)
    result = np.zeros(winner.shape, np.int16)
    for value, kind in enumerate((Kind.VERTEBRA, Kind.DISC, Kind.CANAL), start=1):
        ids = maps.get(kind.value)
        if ids is not None and ids.any():
            chosen = winner == value
            result[chosen] = back_to_source_many(ids[None], volume, order=0, dtype=np.int16)[0][chosen]
    for value, channel in enumerate(others, start=len(shapes)):
        result[winner == value] = evidence.scheme.ids[channel - 1]
    return volume.source.image(result)


def channels_without_kind(evidence: Evidence) -> list[int]:
    """Channels of structures that `KINDS` lacks; their probability is part of the background's there."""
    if evidence.classes is None or evidence.kinds is not None:
        return []
    return [channel for channel, kind in enumerate(evidence.scheme.kinds) if channel and kind == 0]


def _winner(probabilities: Iterable[np.ndarray], volume: CanonicalVolume) -> np.ndarray:
    """(z, y, x) uint8 index of the largest on the source's voxels; one map at a time, since many are large."""
    best, winner = None, None
    for index, probability in enumerate(probabilities):
        found = back_to_source_many(probability[None], volume)[0]
        if best is None or winner is None:
            best, winner = found, np.zeros(found.shape, np.uint8)
            continue
        winner[found > best] = index
        np.maximum(best, found, out=best)
    assert winner is not None
    return winner


def _multiple(n: int, divisor: int) -> int:
    return math.ceil(n / divisor) * divisor


def _padding(
    shape: Sequence[int], divisors: Sequence[int], window: Sequence[int] = ()
) -> tuple[tuple[int, ...], tuple[slice, ...]]:
    """`F.pad` amounts that make sides divisible and no smaller than a window, equal on both sides, and the slices that
    undo it."""
    pads: list[int] = []
    inner = []
    for n, divisor, least in zip(shape, divisors, window or (0,) * len(shape), strict=True):
        extra = _multiple(max(n, least), divisor) - n
        pads = [extra // 2, extra - extra // 2, *pads]  # F.pad counts from the last axis
        inner.append(slice(extra // 2, extra // 2 + n))
    return tuple(pads), tuple(inner)


def _padded_coordinates(
    shape: list[int], spacing: tuple[float, ...], pads: tuple[int, ...], device: torch.device
) -> Tensor:
    """(1, dims, *padded) coordinates whose zero stays at the centre of the image."""
    low = pads[0::2][::-1]
    high = pads[1::2][::-1]
    full = [n + a + b for n, a, b in zip(shape, low, high, strict=True)]
    channels = coordinate_channels(full, spacing, device)
    # The padded array's centre lies (high − low) / 2 voxels behind the image's.
    shift = [(b - a) / 2 * mm / COORDINATE_SCALE_MM for a, b, mm in zip(low, high, spacing, strict=True)]
    offset = torch.tensor(shift, dtype=torch.float32, device=device)
    return (channels + offset.view(-1, *[1] * len(full)))[None]


def _keep_locked(labels: sitk.Image, locked: sitk.Image) -> sitk.Image:
    """Locked voxels as they are; a locked structure's voxels elsewhere are given up."""
    if not Geometry.of(locked).matches(Geometry.of(labels)):
        raise HintError("The locked segmentation has another geometry than the image.", "Resample it to the image.")
    new, kept = sitk.GetArrayFromImage(labels), sitk.GetArrayViewFromImage(locked)
    new[np.isin(new, np.unique(kept[kept > 0]))] = 0
    new[kept > 0] = kept[kept > 0]
    result = sitk.GetImageFromArray(new)
    result.CopyInformation(labels)
    return result


def _only(labels: sitk.Image, ids: tuple[int, ...]) -> sitk.Image:
    array = sitk.GetArrayFromImage(labels)
    array[~np.isin(array, ids)] = 0
    result = sitk.GetImageFromArray(array)
    result.CopyInformation(labels)
    return result


def _stop_if(cancelled: Cancel) -> None:
    if cancelled():
        raise Cancelled("Cancelled.")


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(
        device.type, torch.float16 if device.type == "cuda" else torch.bfloat16, device.type == "cuda"
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


class _Clock:
    """Seconds per stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - started, 3)
