"""The contract of a method: how it learns from a batch and what it says about an image."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..anatomy import LabelScheme
from ..errors import ConfigError
from ..hints import Hints
from .config import MethodConfig
from .losses import decided_channel

COORDINATE_SCALE_MM = 128.0
"""Coordinates are distances from the centre of the field of view in units of this."""


def is_on(value: Any) -> bool:
    """Whether a run-time option, which may come from the command line as text, is switched on."""
    return str(value).lower() in ("on", "true", "yes", "1")


def number_option(options: Mapping[str, Any], name: str, default: float) -> float:
    """A run-time option as a number.

    Raises:
        ConfigError: it is none.
    """
    value = options.get(name, default)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"The option {name} is “{value}”, not a number.", "Correct it.")
    return number


def whole_option(options: Mapping[str, Any], name: str, default: int) -> int:
    """A run-time option as a whole number.

    Raises:
        ConfigError: it is none.
    """
    value = options.get(name, default)
    try:
        number = float(value)
        if number.is_integer():
            return int(number)
    except (TypeError, ValueError):
        pass
    raise ConfigError(f"The option {name} is “{value}”, not a whole number of {name}.", "Correct it.")


def coordinate_channels(shape: Sequence[int], spacing: Sequence[float], device: torch.device | None = None) -> Tensor:
    """(dims, *shape) distance from the centre of the field of view in units of `COORDINATE_SCALE_MM`.

    Args:
        shape: voxels along each axis.
        spacing: mm along each axis.
    """
    axes = [
        (torch.arange(n, device=device, dtype=torch.float32) - (n - 1) / 2) * (s / COORDINATE_SCALE_MM)
        for n, s in zip(shape, spacing, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def context_offsets(distances: Sequence[float]) -> np.ndarray:
    """(1 + 2n,) mm across slices of a 2D method's image channels: the slice itself, then one to either side at each of
    n distances (`Method.context_mm`)."""
    return np.array([0.0, *(sign * mm for mm in distances for sign in (-1.0, 1.0))])


def between_slices(volume: np.ndarray, at: np.ndarray) -> np.ndarray:
    """(N, H, W) float32 slices of a (D, H, W) volume at fractional positions, interpolated linearly; beyond the ends
    the outermost slice goes on."""
    at = np.clip(at, 0, len(volume) - 1)
    low = np.floor(at).astype(int)
    result = volume[low].astype(np.float32)
    for target, below, share in zip(result, low, at - low, strict=True):
        if share > 0:
            target *= 1 - share
            target += share * volume[below + 1].astype(np.float32)
    return result


@dataclass
class Batch:
    """What a training step sees.

    Attributes:
        image: (B, 1, *spatial) float; with `Method.context_mm` the slice and its neighbours (`context_offsets`).
        allowed: (B, C, *spatial) bool, the channels of the scheme that each voxel may be (see `losses`).
        rank: (B, *spatial) float, rank above the sacrum, NaN where not known.
        coordinates: (B, dims, *spatial) float, distance from the centre of the field of view in units of 128 mm.
        keypoints: (B, C−1, dims) voxel positions of the structures' centres, NaN where not known; or None.
        prompt: whatever a method asked its data for; or None.
        progress: share of the training that is done.
        position: (B,) place of the slice (in 3D, of the slice the patch is around) in its stack, 0 at the patient's
            left, 1 at the right; or None.
    """

    image: Tensor
    allowed: Tensor
    rank: Tensor
    coordinates: Tensor
    keypoints: Tensor | None = None
    prompt: Any = None
    progress: float = 0.0
    position: Tensor | None = None

    @cached_property
    def label(self) -> Tensor:
        """(B, *spatial) long: the channel where exactly one is allowed, −1 elsewhere."""
        return decided_channel(self.allowed)

    @cached_property
    def known(self) -> Tensor:
        """(B, C, *spatial) bool: where the presence or absence of each channel may be taught."""
        return ~self.allowed | (self.allowed.sum(1, keepdim=True) == 1)

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device, non_blocking=True) for k, v in moved.items() if isinstance(v, Tensor)})


@dataclass
class Context:
    """What else a method may look at when it predicts.

    Attributes:
        coordinates: (B, dims, *spatial), as in `Batch`.
        slices: index of each image's slice, for methods that treat slices one by one.
        slice_count: number of slices in the volume.
        hints: what the reader knows.
        options: the method's run-time options.
        memory: a place to keep things between the batches and passes of one volume; ``"reference"`` is in it only when
            an evaluation gives the reference to a method that may read it.
        final: whether this is the last that a method's `passes` allow; the evidence of the last one counts.
        slice_mm: distance between slices.
        keypoints: (B, C−1, dims) voxel positions of centres that the reader placed, NaN where none; or None.
        prior: (B, *spatial) long, channels of the scheme to start from (`Hints.prior` on the network's grid); or None.
        corner: row and column of the slice where the images begin, for methods that see a slice in windows.
        tick: to be called now and then by methods that take long over a batch, with the fraction of it that is done;
            raises `Cancelled` if the caller asked for it.
        about: what the method wants to have stored with the result, JSON-able.
    """

    coordinates: Tensor
    slices: tuple[int, ...] = ()
    slice_count: int = 1
    hints: Hints = field(default_factory=Hints)
    options: Mapping[str, Any] = field(default_factory=dict)
    memory: dict[Any, Any] = field(default_factory=dict)
    final: bool = True
    slice_mm: float = 4.0
    keypoints: Tensor | None = None
    prior: Tensor | None = None
    corner: tuple[int, ...] = (0, 0)
    tick: Callable[[float], None] = lambda fraction: None
    about: dict[str, Any] = field(default_factory=dict)


class Method(nn.Module):
    """A network with its losses and its way of predicting.

    Subclasses implement `training_losses` and `evidence`. Sides of the input are multiples of `divisor`, which may
    differ between the axes.
    """

    divisor: int | tuple[int, ...] = 32
    window: tuple[int, ...] = ()
    """Input size of a method that takes one size only; larger images are covered by overlapping windows."""
    local: bool = False
    """2D: parts of the method look at the whole input, so slices are covered by windows of the size it learnt on."""
    whole_slices: bool = False
    """3D: windows divide a volume across slices only, where counting levels takes the whole height of an image."""
    overlap: float = 0.5
    """Share of its side by which a window overlaps the next, where the option of this name does not say."""
    around_column: bool = False
    """2D: of a slice the method is shown what lies around the column alone, as in training; where that is, a first
    glance at a few whole slices tells."""
    context_mm: tuple[float, ...] = ()
    """2D: distances (mm) at which the method sees a slice's neighbours, on either side (`context_offsets`)."""
    passes: int = 1
    """How often a 2D method may want to see a volume's slices; see `Context.final` and `between_passes`."""
    options: Mapping[str, str] = {}
    """Run-time options of this method beyond `inference.OPTIONS`: name → what it does."""
    validation_options: Mapping[str, Any] = {}
    """Run-time options for the validation during training, where time counts."""
    last_layers: tuple[str, ...] = ()
    """Names of the modules that make classes or kinds out of the finest features there are, one for each network; what
    they read is what `evidence_and_features` gives."""
    feature_options: Mapping[str, Any] = {}
    """Run-time options under which these features come sooner and are the same."""

    def __init__(self, config: MethodConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def scheme(self) -> LabelScheme:
        """The label scheme of the output."""
        return self.config.label_scheme

    @property
    def divisors(self) -> tuple[int, ...]:
        """`divisor` for each axis."""
        return self.divisor if isinstance(self.divisor, tuple) else (self.divisor,) * self.config.dims

    def network_input(self, images: Tensor, coordinates: Tensor) -> Tensor:
        """Images and, if configured, coordinates: (B, N [+ dims], *spatial)."""
        return torch.cat([images, coordinates.to(images.dtype)], 1) if self.config.coordinates else images

    def open_resources(self, resources: Mapping[str, str]) -> None:
        """Open the files that a training run gives to the method (`TrainingConfig.resources`), before its first step.

        Raises:
            ConfigError: one is missing or does not fit.
        """

    def adopted(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of a starting checkpoint under the names that this method gives them.

        Those whose name or shape does not fit are left out by the caller. A method that holds another one's network
        says here where it is.
        """
        return dict(state)

    def prepare_training(self, start: Mapping[str, Any] | None) -> None:
        """Called once before a new run's first step, after the weights of its starting checkpoint were taken over.

        Args:
            start: that checkpoint's method configuration; None without one.
        """

    def training_losses(self, batch: Batch) -> dict[str, Tensor]:
        """The loss ``"total"`` and its parts, scalars."""
        raise NotImplementedError

    def export_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a checkpoint holds for these weights: they themselves, and what inference needs that they imply."""
        return dict(state)

    def answer(self, hints: Hints) -> LabelScheme:
        """The scheme of the ``classes`` in `evidence`: a subset where a method computes only what was asked for."""
        return self.scheme

    def evidence(self, images: Tensor, context: Context) -> dict[str, Tensor]:
        """What the network says: any of ``classes`` (B, C, *spatial) probabilities, ``kinds`` (B, K, *spatial)
        probabilities, ``rank`` (B, *spatial), ``uncertainty`` (B, *spatial); a 2D method also ``keypoints``
        (B, C−1, 3): row, column (voxels) and strength of each structure's centre, NaN where not found."""
        raise NotImplementedError

    def evidence_and_features(self, images: Tensor, context: Context) -> dict[str, Tensor]:
        """`evidence`, and ``features`` (B, F, *spatial): what the `last_layers` read, those of several networks side by
        side, brought to the size of the images where it is smaller.

        Of layers that are run repeatedly the last time counts, and the mean of an image's samples. A pass in which none
        is run has no features.
        """
        read: dict[str, Tensor] = {}

        def keep(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            read[name] = inputs[0]

        hooks = [self.get_submodule(n).register_forward_pre_hook(partial(keep, n)) for n in self.last_layers]
        try:
            maps = self.evidence(images, context)
        finally:
            for hook in hooks:
                hook.remove()
        if not read:
            return maps
        mode = "bilinear" if self.config.dims == 2 else "trilinear"
        found = (x.float().unflatten(0, (len(images), -1)).mean(1) for x in read.values())
        whole = [F.interpolate(x, images.shape[2:], mode=mode, align_corners=False) for x in found]
        return {**maps, "features": torch.cat(whole, 1)}

    def images_per_slice(self, options: Mapping[str, Any]) -> int:
        """How many images a 2D method computes at once for a slice; several where it draws samples."""
        return 1

    def between_passes(self, maps: Mapping[str, np.ndarray], spacing: Sequence[float], memory: MutableMapping) -> bool:
        """Look at a whole volume after each of its `passes` but the last, and say whether the next one is wanted.

        Args:
            maps: what `evidence` said, (…, D, H, W).
            spacing: mm along (slices, rows, columns).
            memory: of the volume; what is put here is in the next pass's `Context.memory`.
        """
        return True
