"""A network over a whole preprocessed volume: slice by slice or window by window, in as many passes as it wants."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from types import EllipsisType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..anatomy import LabelScheme, laterality
from ..errors import Cancelled, ConfigError
from ..evidence import Evidence
from ..hints import Hints
from ..imaging import CanonicalVolume
from ..keypoints import KEYPOINT_REACH_MM, keypoint_indices
from ..methods.base import COORDINATE_SCALE_MM, Context, Method, coordinate_channels
from ..methods.options import number_option, switch_option, whole_option
from .features import evidence_and_features

Progress = Callable[[float, str], None]
Cancel = Callable[[], bool]
Index = tuple[EllipsisType | slice, ...]

AIR = -2.0
"""Preprocessed value outside the image."""

_MANY_CHANNELS = 8


def predict_volume(
    method: Method,
    volume: CanonicalVolume,
    device: torch.device,
    *,
    patch: tuple[int, ...] = (),
    hints: Hints | None = None,
    options: Mapping[str, Any] | None = None,
    prior: np.ndarray | None = None,
    reference: np.ndarray | None = None,
    features: bool = False,
    progress: Progress | None = None,
    cancelled: Cancel | None = None,
) -> Evidence:
    """Run a method over a whole preprocessed volume: slice by slice in 2D, in sliding windows in 3D.

    Args:
        patch: window of a 3D method, and of a 2D one whose `Tiling` is local; see `Tiling.whole_slices`.
        options: see `inference.OPTIONS`.
        prior: (D, H, W) channels of the scheme to start from, for methods that take `Hints.prior`.
        reference: (D, H, W) true structure ids, see `inference.Predictor.segment`.
        features: whether `Evidence.features` are wanted.

    Raises:
        Cancelled: the caller asked for it.
    """
    request = _Request(
        method,
        volume,
        device,
        hints=hints or Hints(),
        options=options or {},
        prior=None if prior is None else torch.from_numpy(prior),
        features=features,
        report=progress or (lambda fraction, message: None),
        cancelled=cancelled or (lambda: False),
    )
    if reference is not None:
        request.memory["reference"] = reference
    for sid in request.hints.keypoints:
        method.scheme.require(sid)
    with torch.inference_mode(), _autocast(device):
        maps = _by_slices(request, patch) if method.config.dims == 2 else _by_windows(request, patch)
    return Evidence(
        spacing=volume.spacing,
        scheme=method.output_scheme(request.hints),
        classes=maps.get("classes"),
        kinds=maps.get("kinds"),
        rank=maps.get("rank"),
        uncertainty=maps.get("uncertainty"),
        features=maps.get("features"),
        keypoints={
            **_centres(maps.get("keypoints"), method.scheme, volume),
            **keypoint_indices(request.hints.keypoints, volume),
        },
        about=request.about,
    )


def slices_per_pass(method: Method, device: torch.device, options: Mapping[str, Any]) -> int:
    """The option ``batch`` of a 2D method, or what suits the device.

    A GPU wants much to do at once. A processor is quicker with little: more does not fit its caches, and fetching that
    much memory anew for every layer took a fifth of the time (a third where there are several images per slice).
    """
    if "batch" in options:
        return max(1, whole_option(options, "batch", 1))
    return 8 if device.type != "cpu" else max(1, 2 // method.images_per_slice(options))


def stop_if(cancelled: Cancel) -> None:
    """Raises `Cancelled` if the caller asked for it."""
    if cancelled():
        raise Cancelled("Cancelled.")


@dataclass(frozen=True)
class _Request:
    """What there is to do, and what the method's `Context`s have in common."""

    method: Method
    volume: CanonicalVolume
    device: torch.device
    hints: Hints
    options: Mapping[str, Any]
    prior: Tensor | None
    features: bool
    report: Progress
    cancelled: Cancel
    memory: dict[Any, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def overlap(self) -> float:
        """Of neighbouring windows, as a share of their side: as the option says, else as the method wants it."""
        overlap = number_option(self.options, "overlap", self.method.tiling.overlap)
        if not 0 <= overlap < 1:
            raise ConfigError(f"The overlap {overlap:g} is not valid.", "It is a share from 0 to less than 1.")
        return overlap

    def evidence(self, stacked: Tensor, **context: Any) -> dict[str, Tensor]:
        """The method's evidence for (B, 1 + dims [+ 1], *spatial): image, coordinates and, where there is one, the
        prior's channels, which travel together through padding and windows."""
        dims = self.method.config.dims
        full = Context(
            stacked[:, 1 : 1 + dims],
            hints=self.hints,
            options=self.options,
            memory=self.memory,
            slice_mm=self.volume.spacing[0],
            prior=None if self.prior is None else stacked[:, 1 + dims].round().long(),
            about=self.about,
            **context,
        )
        if self.features:
            return evidence_and_features(self.method, stacked[:, :1], full)
        return self.method.evidence(stacked[:, :1], full)

    def ticker(self, start: float, share: float, message: str) -> Callable[[float], None]:
        """`Context.tick` for the share of all work that begins at `start`."""

        def tick(fraction: float) -> None:
            stop_if(self.cancelled)
            self.report(start + share * fraction, message)

        return tick


def _by_slices(request: _Request, patch: tuple[int, ...]) -> dict[str, np.ndarray]:
    method, volume, device = request.method, request.volume, request.device
    count, *shape = volume.array.shape
    tiling, passes = method.tiling, method.passes
    window = tiling.window or (patch if tiling.local else ())
    pads, inner = _padding(shape, tiling.divisors(2), window)
    coordinates = _padded_coordinates(shape, volume.spacing[1:], pads, device)
    images = torch.from_numpy(volume.array)
    size = slices_per_pass(method, device, request.options)
    placed = (
        _keypoints_per_slice(request.hints, volume, method.scheme, pads).to(device) if request.hints.keypoints else None
    )
    result: dict[str, np.ndarray] = {}
    for number in range(passes.count):
        final = number == passes.count - 1
        result = {}
        for start in range(0, count, size):
            stop = min(start + size, count)
            tick = request.ticker(
                (number + start / count) / passes.count,
                (stop - start) / count / passes.count,
                f"Slice {stop} of {count}",
            )
            stop_if(request.cancelled)
            chunk = F.pad(images[start:stop, None].to(device), pads, value=AIR)
            stacked = torch.cat([chunk, coordinates.expand(len(chunk), -1, -1, -1)], 1)
            if request.prior is not None:
                stacked = torch.cat([stacked, F.pad(request.prior[start:stop, None].to(chunk), pads)], 1)
            predict = partial(
                _place_points,
                partial(
                    request.evidence,
                    slices=tuple(range(start, stop)),
                    slice_count=count,
                    final=final,
                    tick=tick,
                ),
                None if placed is None else placed[start:stop],
            )
            maps = _windowed(predict, stacked, window, request.overlap) if window else predict(stacked, (0, 0))
            if (points := maps.pop("keypoints", None)) is not None:
                points[..., :2] -= torch.tensor(pads[0::2][::-1], device=points.device)
                found = result.setdefault("keypoints", np.empty((count, *points.shape[1:]), np.float32))
                found[start:stop] = points.cpu().numpy()
            for name, value in maps.items():
                value = value[inner].movedim(0, -3)  # slices become the third axis from the end
                if name not in result:
                    result[name] = np.empty((*value.shape[:-3], count, *shape), np.float32)
                result[name][..., start:stop, :, :] = value.float().cpu().numpy()
            tick(1.0)
        if not final and not passes.between(result, volume.spacing, request.memory):
            break
    return result


def _place_points(
    evidence: Callable[..., dict[str, Tensor]], keypoints: Tensor | None, part: Tensor, corner: tuple[int, ...]
) -> dict[str, Tensor]:
    """Evidence of a window that begins at `corner` of its slice; key points are those of the slice, in and out."""
    start = torch.tensor(corner, device=part.device)
    maps = evidence(part, corner=corner, keypoints=None if keypoints is None else keypoints - start)
    if "keypoints" in maps:
        points, strength = maps["keypoints"].split((len(corner), 1), -1)
        maps["keypoints"] = torch.cat([points + start, strength], -1)
    return maps


def _by_windows(request: _Request, patch: tuple[int, ...]) -> dict[str, np.ndarray]:
    method, volume = request.method, request.volume
    shape = list(volume.array.shape)
    divisors = method.tiling.divisors(3)
    window = (
        method.tiling.window or patch or tuple(_fitting(min(n, 96), d) for n, d in zip(shape, divisors, strict=True))
    )
    if method.tiling.whole_slices:
        window = (window[0], *(_fitting(n, d) for n, d in zip(shape[1:], divisors[1:], strict=True)))
    pads, inner = _padding(shape, (1, 1, 1), window)
    image = F.pad(torch.from_numpy(volume.array)[None, None], pads, value=AIR)
    coordinates = _padded_coordinates(shape, volume.spacing, pads, image.device)
    stacked = torch.cat([image, coordinates], 1)
    if request.prior is not None:
        stacked = torch.cat([stacked, F.pad(request.prior[None, None].to(image), pads)], 1)
    mirror = switch_option(request.options, "mirror", False)
    if mirror and any(laterality(i) for i in method.scheme.ids):
        raise ConfigError("These structures are left or right: the volume cannot be mirrored.", "Leave mirror off.")
    done, total = 0, (1 + mirror) * len(_window_places(stacked.shape[2:], window, request.overlap))

    def predict(part: Tensor, corner: tuple[int, ...]) -> dict[str, Tensor]:
        nonlocal done
        stop_if(request.cancelled)
        tick = request.ticker(done / total, 1 / total, f"Window {done + 1} of {total}")
        maps = request.evidence(part.to(request.device), tick=tick)
        done += 1
        tick(1.0)
        return maps

    maps = _windowed(predict, stacked, window, request.overlap)
    if mirror:
        turned = stacked.flip(2)
        turned[:, 1] *= -1  # positions are the mirrored volume's own
        for name, value in _windowed(predict, turned, window, request.overlap).items():
            maps[name] = (maps[name] + value.flip(-3)) / 2
    return {name: value[0][inner].numpy() for name, value in maps.items()}


def _windowed(
    predict: Callable[[Tensor, tuple[int, ...]], dict[str, Tensor]],
    data: Tensor,
    window: tuple[int, ...],
    overlap: float,
) -> dict[str, Tensor]:
    """Overlapping windows blended with Gaussian weights; maps without a channel axis keep their shape.

    Of ``keypoints``, which are no map, the strongest of all windows counts.

    The sum of weights is known beforehand, so windows add up to the result itself: no second copy of it. Maps of many
    channels are kept in half precision; probabilities lose 0.001 at most, and a volume of 24 classes half its memory.

    Args:
        predict: of a window and where it begins.
        data: (B, C, *spatial), no smaller than the window.
        overlap: of neighbouring windows, as a share of their side.
    """
    size = data.shape[2:]
    places = _window_places(size, window, overlap)
    importance = _importance_map(window)
    total = torch.zeros(tuple(size))
    for place in places:
        total[place] += importance
    result: dict[str, Tensor] = {}
    for place in places:
        weight = importance / total[place]
        within: Index = (..., *place)
        for name, value in predict(data[within], tuple(side.start for side in place)).items():
            value = value.to(data.device)
            if name == "keypoints":
                result[name] = _strongest(result[name], value) if name in result else value
                continue
            if name not in result:
                many = value.ndim == data.ndim and value.shape[1] > _MANY_CHANNELS
                shape = (*value.shape[: value.ndim - len(window)], *size)
                result[name] = torch.zeros(shape, dtype=torch.float16 if many else torch.float32, device=data.device)
            target = result[name]
            weights = weight.to(data.device)
            for sample in range(len(value)):  # image by image, channel by channel: no large temporary
                if value.ndim == data.ndim:
                    for channel in range(value.shape[1]):
                        target[sample, channel][place] += (value[sample, channel] * weights).to(target.dtype)
                else:
                    target[sample][place] += value[sample] * weights
    return result


def _strongest(one: Tensor, other: Tensor) -> Tensor:
    """Of two sets of key points (B, K, dims + 1), whichever is higher; NaN is not found."""
    heights = [torch.where(points[..., :1].isnan(), -torch.inf, points[..., -1:]) for points in (one, other)]
    return torch.where(heights[1] > heights[0], other, one)


def _window_places(shape: Sequence[int], window: Sequence[int], overlap: float) -> list[tuple[slice, ...]]:
    """Where windows lie: evenly spread, the first and last at the edges, no farther apart than the overlap allows."""
    starts = []
    for full, side in zip(shape, window, strict=True):
        steps = math.ceil((full - side) / max(1, side * (1 - overlap)))
        starts.append([round(i * (full - side) / max(steps, 1)) for i in range(steps + 1)])
    return [tuple(slice(a, a + n) for a, n in zip(corner, window, strict=True)) for corner in product(*starts)]


def _importance_map(window: Sequence[int]) -> Tensor:
    """Gaussian weight whose standard deviation is an eighth of the window, as nnU-Net's; never quite zero."""
    result = torch.ones(())
    for n in window:
        at = (torch.arange(n) - (n - 1) / 2) / (n / 8)
        result = result[..., None] * torch.exp(-0.5 * at**2)
    return result.clamp(min=1e-3)


def _keypoints_per_slice(hints: Hints, volume: CanonicalVolume, scheme: LabelScheme, pads: tuple[int, ...]) -> Tensor:
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


def _multiple(n: int, divisor: int) -> int:
    return math.ceil(n / divisor) * divisor


def _fitting(size: int, divisor: int) -> int:
    """The next side that a network takes; at its coarsest two voxels at least, since one has no spread to normalise
    by."""
    return _multiple(max(size, 2 * divisor if divisor > 1 else 1), divisor)


def _padding(
    shape: Sequence[int], divisors: Sequence[int], window: Sequence[int] = ()
) -> tuple[tuple[int, ...], Index]:
    """`F.pad` amounts that make sides divisible and no smaller than a window, equal on both sides, and the index of
    the last axes that undoes it."""
    pads: list[int] = []
    inner: list[EllipsisType | slice] = [...]
    for n, divisor, least in zip(shape, divisors, window or (0,) * len(shape), strict=True):
        extra = _fitting(max(n, least), divisor) - n
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


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(
        device.type, torch.float16 if device.type == "cuda" else torch.bfloat16, device.type == "cuda"
    )
