"""A network over a whole preprocessed volume: slice by slice or window by window, in as many passes as it wants."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..anatomy import LabelScheme, laterality
from ..errors import Cancelled, ConfigError
from ..evidence import Evidence
from ..hints import Hints
from ..imaging import AIR, CanonicalVolume
from ..keypoints import KEYPOINT_REACH_MM, keypoint_indices
from ..methods.base import Context, Method, between_slices, context_offsets
from ..methods.options import number_option, switch_option, whole_option
from .features import evidence_and_features
from .windows import fitting, multiple, padded_coordinates, padding, window_places, windowed

Progress = Callable[[float, str], None]
Cancel = Callable[[], bool]

GLANCE_MM = 16.0
"""Distance between the slices of a first glance (`Tiling.around_column`): two or three of them meet the column."""
_GLANCE_SHARE = 0.2  # of the request, for the progress
_COLUMN_MARGIN_MM = 30.0  # before and behind what the glance found
_LEAST_FOUND_MM2 = 300.0  # in a slice of the glance; a vertebral body alone has 900


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
    with torch.inference_mode(), _autocast(device), _asked_between_layers(request.cancelled):
        maps = _around_column(request, patch, _by_slices if method.config.dims == 2 else _by_windows)
    return Evidence(
        spacing=volume.spacing,
        scheme=method.scheme,
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
    much memory again for every layer took a fifth of the time (a third where there are several images per slice).
    """
    if "batch" in options:
        return max(1, whole_option(options, "batch", 1))
    return 8 if device.type != "cpu" else max(1, 2 // method.images_per_slice(options))


def stop_if(cancelled: Cancel) -> None:
    """Raises `Cancelled` if the caller asked for it."""
    if cancelled():
        raise Cancelled("Cancelled.")


@contextmanager
def _asked_between_layers(cancelled: Cancel) -> Iterator[None]:
    """Asks before every layer of every network: a slice may take seconds on a busy computer, a layer does not."""
    handle = torch.nn.modules.module.register_module_forward_pre_hook(lambda module, inputs: stop_if(cancelled))
    try:
        yield
    finally:
        handle.remove()


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
        """Of neighboring windows, as a share of their side: as the option says, else as the method wants it."""
        overlap = number_option(self.options, "overlap", self.method.tiling.overlap)
        if not 0 <= overlap < 1:
            raise ConfigError(f"The overlap {overlap:g} is not valid.", "It is a share from 0 to less than 1.")
        return overlap

    def evidence(self, stacked: Tensor, **context: Any) -> dict[str, Tensor]:
        """The method's evidence for (B, N + dims [+ 1], *spatial): images, coordinates and, where there is one, the
        prior's channels, which travel together through padding and windows."""
        dims, images = self.method.config.dims, 1 + 2 * len(self.method.tiling.context_mm)
        full = Context(
            stacked[:, images : images + dims],
            hints=self.hints,
            options=self.options,
            memory=self.memory,
            slice_mm=self.volume.spacing[0],
            prior=None if self.prior is None else stacked[:, images + dims].round().long(),
            about=self.about,
            **context,
        )
        if self.features:
            return evidence_and_features(self.method, stacked[:, :images], full)
        return self.method.evidence(stacked[:, :images], full)

    def ticker(self, start: float, share: float, message: str) -> Callable[[float], None]:
        """`Context.tick` for the share of all work that begins at `start`."""

        def tick(fraction: float) -> None:
            stop_if(self.cancelled)
            self.report(start + share * fraction, message)

        return tick


@dataclass(frozen=True)
class _View:
    """What of a volume is looked at, which part of all work that is, and in how many passes at most."""

    slices: range
    columns: slice
    begin: float = 0.0
    share: float = 1.0
    passes: int | None = None


_Look = Callable[[_Request, tuple[int, ...], _View], dict[str, np.ndarray]]


def _around_column(request: _Request, patch: tuple[int, ...], look: _Look) -> dict[str, np.ndarray]:
    """The method's maps of the whole volume, of which it may look at the surroundings of the column alone."""
    count, _, width = request.volume.array.shape
    everything = _View(range(count), slice(0, width))
    tiling, in_plane = request.method.tiling, request.method.config.dims == 2 or request.method.tiling.whole_slices
    if not (tiling.around_column and in_plane and patch and width > patch[-1]):
        return look(request, patch, everything)
    step = max(1, round(GLANCE_MM / request.volume.spacing[0]))
    few = range((count - 1) % step // 2, count, step)
    # What a method remembers of a glance is not about the volume that is looked at then.
    quick = {**request.method.validation_options, **request.options}
    glance = replace(request, options=quick, features=False, memory=dict(request.memory), about={})
    found = look(glance, patch, _View(few, slice(0, width), 0.0, _GLANCE_SHARE, passes=1))
    columns = _columns_of_spine(found, request, patch)
    part = look(request, patch, _View(range(count), columns, _GLANCE_SHARE, 1 - _GLANCE_SHARE))
    maps = {}
    for name, value in part.items():
        if name == "keypoints":
            maps[name] = value
            continue
        maps[name] = np.zeros((*value.shape[:-1], width), value.dtype)
        maps[name][..., columns] = value
        if name in ("kinds", "classes"):
            maps[name][0, ..., : columns.start] = maps[name][0, ..., columns.stop :] = 1.0
    return maps


def _columns_of_spine(maps: Mapping[str, np.ndarray], request: _Request, patch: tuple[int, ...]) -> slice:
    """From before the column to behind it, as far as a first glance tells; all columns where it saw none.

    A multiple of what the network takes, so that nothing has to be padded, and no less than it saw in training.
    """
    width = request.volume.array.shape[2]
    background = maps["kinds" if "kinds" in maps else "classes"][0]
    found = (background < 0.5).sum(1)  # (slices, columns)
    pixel = math.prod(request.volume.spacing[1:])
    found[found.sum(1) * pixel < _LEAST_FOUND_MM2] = 0
    if not found.any():
        return slice(0, width)
    share = np.cumsum(found.sum(0)) / found.sum()  # without the few pixels that lie elsewhere
    margin = _COLUMN_MARGIN_MM / request.volume.spacing[2]
    low, high = np.searchsorted(share, 0.01) - margin, np.searchsorted(share, 0.99) + 1 + margin
    size = max(math.ceil(high - low), patch[-1])
    size = min(width, multiple(size, request.method.tiling.divisors(request.method.config.dims)[-1]))
    start = min(max(round((low + high - size) / 2), 0), width - size)
    return slice(start, start + size)


def _by_slices(request: _Request, patch: tuple[int, ...], view: _View) -> dict[str, np.ndarray]:
    method, volume, device = request.method, request.volume, request.device
    tiling, passes = method.tiling, method.passes
    whole = volume.array.shape[1:]
    array, count = volume.array[:, :, view.columns], len(view.slices)
    shape = array.shape[1:]
    prior = None if request.prior is None else request.prior[:, :, view.columns]
    window = tiling.window or (patch if tiling.local else ())
    pads, inner = padding(shape, tiling.divisors(2), window)
    aside = (0.0, view.columns.start - (whole[1] - shape[1]) / 2)
    coordinates = padded_coordinates(shape, volume.spacing[1:], pads, device, aside)
    offsets = context_offsets(tiling.context_mm) / volume.spacing[0]
    size = slices_per_pass(method, device, request.options)
    corner = torch.tensor((pads[2], pads[0] - view.columns.start), device=device)
    placed = (
        _keypoints_per_slice(request.hints, volume, method.scheme).to(device) + corner
        if request.hints.keypoints
        else None
    )
    result: dict[str, np.ndarray] = {}
    most = view.passes or passes.count
    for number in range(most):
        final = number == most - 1
        result = {}
        for start in range(0, count, size):
            stop = min(start + size, count)
            slices = list(view.slices[start:stop])
            tick = request.ticker(
                view.begin + view.share * (number + start / count) / most,
                view.share * (stop - start) / count / most,
                f"Slice {slices[-1] + 1} of {len(array)}",
            )
            stop_if(request.cancelled)
            seen = between_slices(array, (np.array(slices)[:, None] + offsets).ravel())
            images = torch.from_numpy(seen).unflatten(0, (stop - start, len(offsets)))
            chunk = F.pad(images.to(device), pads, value=AIR)
            stacked = torch.cat([chunk, coordinates.expand(len(chunk), -1, -1, -1)], 1)
            if prior is not None:
                stacked = torch.cat([stacked, F.pad(prior[slices, None].to(chunk), pads)], 1)
            predict = partial(
                _place_points,
                partial(
                    request.evidence,
                    slices=tuple(slices),
                    slice_count=len(array),
                    final=final,
                    tick=tick,
                ),
                None if placed is None else placed[slices],
            )
            maps = windowed(predict, stacked, window, request.overlap) if window else predict(stacked, (0, 0))
            if (points := maps.pop("keypoints", None)) is not None:
                points[..., :2] -= corner.to(points.device)
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
    """Evidence of a window that begins at `corner` of its slice; keypoints are those of the slice, in and out."""
    start = torch.tensor(corner, device=part.device)
    maps = evidence(part, corner=corner, keypoints=None if keypoints is None else keypoints - start)
    if "keypoints" in maps:
        points, strength = maps["keypoints"].split((len(corner), 1), -1)
        maps["keypoints"] = torch.cat([points + start, strength], -1)
    return maps


def _by_windows(request: _Request, patch: tuple[int, ...], view: _View) -> dict[str, np.ndarray]:
    method, volume = request.method, request.volume
    everywhere = np.ix_(list(view.slices), range(volume.array.shape[1]), range(volume.array.shape[2])[view.columns])
    array, whole = volume.array[everywhere], volume.array.shape
    shape = list(array.shape)
    divisors = method.tiling.divisors(3)
    window = (
        method.tiling.window or patch or tuple(fitting(min(n, 96), d) for n, d in zip(shape, divisors, strict=True))
    )
    if method.tiling.whole_slices:
        window = (window[0], *(fitting(n, d) for n, d in zip(shape[1:], divisors[1:], strict=True)))
    pads, inner = padding(shape, (1, 1, 1), window)
    image = F.pad(torch.from_numpy(array)[None, None], pads, value=AIR)
    # The slices of a glance count as if they lay closer together: nothing else needs to know where they are.
    aside = (0.0, 0.0, view.columns.start - (whole[2] - shape[2]) / 2)
    coordinates = padded_coordinates(shape, volume.spacing, pads, image.device, aside)
    stacked = torch.cat([image, coordinates], 1)
    if request.prior is not None:
        prior = torch.from_numpy(request.prior.numpy()[everywhere])
        stacked = torch.cat([stacked, F.pad(prior[None, None].to(image), pads)], 1)
    mirror = switch_option(request.options, "mirror", False)
    if mirror and any(laterality(i) for i in method.scheme.ids):
        raise ConfigError("These structures are left or right: the volume cannot be mirrored.", "Turn mirror off.")
    done, total = 0, (1 + mirror) * len(window_places(stacked.shape[2:], window, request.overlap))

    def predict(part: Tensor, corner: tuple[int, ...]) -> dict[str, Tensor]:
        nonlocal done
        stop_if(request.cancelled)
        part_done = view.begin + view.share * done / total
        tick = request.ticker(part_done, view.share / total, f"Window {done + 1} of {total}")
        maps = request.evidence(part.to(request.device), tick=tick)
        done += 1
        tick(1.0)
        return maps

    maps = windowed(predict, stacked, window, request.overlap)
    if mirror:
        turned = stacked.flip(2)
        turned[:, 1] *= -1  # positions are the mirrored volume's own
        for name, value in windowed(predict, turned, window, request.overlap).items():
            maps[name] = (maps[name] + value.flip(-3)) / 2
    return {name: value[0][inner].numpy() for name, value in maps.items()}


def _keypoints_per_slice(hints: Hints, volume: CanonicalVolume, scheme: LabelScheme) -> Tensor:
    """(D, C − 1, 2) the reader's keypoints in the slices near them, NaN elsewhere."""
    result = np.full((volume.array.shape[0], scheme.channels - 1, 2), np.nan, np.float32)
    for sid, (at, row, column) in keypoint_indices(hints.keypoints, volume).items():
        near = abs(np.arange(len(result)) - at) * volume.spacing[0] <= KEYPOINT_REACH_MM
        result[near, scheme.channel_of[sid] - 1] = (row, column)
    return torch.from_numpy(result)


def _centres(
    found: np.ndarray | None, scheme: LabelScheme, volume: CanonicalVolume
) -> dict[int, tuple[float, float, float]]:
    """Structure id → (slice, row, column): the middle of the slices where it was found most clearly.

    Args:
        found: (D, C − 1, 3) row, column, strength; NaN where not found.
        scheme: what the channels mean.
        volume: points in its padding are omitted.
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


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(
        device.type, torch.float16 if device.type == "cuda" else torch.bfloat16, device.type == "cuda"
    )
