"""The contract of a method: how it learns from a batch and what it says about an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..anatomy import LabelScheme
from ..errors import ConfigError
from ..hints import Hints
from .clicking import ClickScene, SceneGrid
from .config import MethodConfig
from .losses import decided_channel

COORDINATE_SCALE_MM = 128.0
"""Coordinates are distances from the center of the field of view in units of this."""


def coordinate_channels(shape: Sequence[int], spacing: Sequence[float], device: torch.device | None = None) -> Tensor:
    """(dims, *shape) distance from the center of the field of view in units of `COORDINATE_SCALE_MM`.

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
    n distances (`Tiling.context_mm`)."""
    return np.array([0.0, *(sign * mm for mm in distances for sign in (-1.0, 1.0))])


def between_slices(volume: np.ndarray, at: np.ndarray) -> np.ndarray:
    """(N, H, W) float32 slices of a (D, H, W) volume at fractional positions, interpolated linearly; beyond the ends
    the outermost slice continues."""
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
        image: (B, 1, *spatial) float; with `Tiling.context_mm` the slice and its neighbors (`context_offsets`).
        allowed: (B, C, *spatial) bool, the channels of the scheme that each voxel may be (see `losses`).
        rank: (B, *spatial) float, rank above the sacrum, NaN where not known.
        coordinates: (B, dims, *spatial) float, distance from the center of the field of view in units of 128 mm.
        keypoints: (B, C−1, dims) voxel positions of the structures' centers, NaN where not known; or None.
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

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with each of its tensors changed."""
        tensors = {f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        changed: dict[str, Any] = {name: change(value) for name, value in tensors.items()}
        if isinstance(self.prompt, ClickScene):
            changed["prompt"] = self.prompt.each(change)
        return replace(self, **changed)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))


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
        final: whether this is the last of the method's `passes`; the evidence of the last one counts.
        slice_mm: distance between slices.
        keypoints: (B, C−1, dims) voxel positions of centers that the reader placed, NaN where none; or None.
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


@dataclass(frozen=True)
class Tiling:
    """How a volume is cut into what a network sees at once.

    Attributes:
        divisor: the sides of the input are multiples of it; one for each axis where they differ.
        window: input size of a method that takes one size only; larger images are covered by overlapping windows.
        local: 2D: parts of the method look at the whole input, so slices are covered by windows of the size that it
            was trained on.
        whole_slices: 3D: windows divide a volume across slices only, where counting levels takes the whole height of an
            image.
        overlap: share of its side by which a window overlaps the next, where the option of this name does not say.
        context_mm: 2D: distances (mm) at which the method sees a slice's neighbors on either side (`context_offsets`).
        around_column: of a slice the method is shown what lies around the column alone, as in training; where that is,
            a first glance at a few whole slices tells. 3D: together with `whole_slices`.
    """

    divisor: int | tuple[int, ...] = 32
    window: tuple[int, ...] = ()
    local: bool = False
    whole_slices: bool = False
    overlap: float = 0.5
    context_mm: tuple[float, ...] = ()
    around_column: bool = False

    def divisors(self, dims: int) -> tuple[int, ...]:
        """`divisor` for each axis."""
        return self.divisor if isinstance(self.divisor, tuple) else (self.divisor,) * dims


def _always(maps: Mapping[str, np.ndarray], spacing: Sequence[float], memory: MutableMapping) -> bool:
    return True


@dataclass(frozen=True)
class Passes:
    """How often a 2D method sees the slices of a volume; see `Context.final`.

    Attributes:
        count: of passes at most.
        between: whether another pass is wanted, asked after each but the last with what `Method.evidence` said of the
            whole volume (name → (…, D, H, W)), mm along (slices, rows, columns), and the volume's memory: what is put
            there is in the next pass's `Context.memory`.
    """

    count: int = 1
    between: Callable[[Mapping[str, np.ndarray], Sequence[float], MutableMapping], bool] = _always


@dataclass(frozen=True)
class Readout:
    """What a network's features are, for those who look at them (`inference.features`).

    Attributes:
        layers: names of the modules that make classes or kinds out of the finest features there are, one for each
            network; features are what these modules read.
        options: run-time options under which the features come sooner and are the same.
    """

    layers: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


class TrainingHooks:
    """What a method may add to a training run; most add nothing.

    In order: `open_resources` opens the files that the run was given (`TrainingConfig.resources`). Where the run starts
    from a checkpoint, `remap_weights` renames its weights to this method's names, such as those of another method's
    network that it holds; what does not fit by name and shape is omitted. `prepare_training` is called before the
    first step of a new run, with the method's configuration in the starting checkpoint, or None. `export_state` says
    what a written checkpoint holds for these weights: they themselves, and what inference needs that they imply.

    Raises (`open_resources`, `prepare_training`):
        SpineSegAIError: a file or an encoder is missing or does not fit.
    """

    def open_resources(self, resources: Mapping[str, str]) -> None: ...

    def remap_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(state)

    def prepare_training(self, start: Mapping[str, Any] | None) -> None: ...

    def export_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(state)


class Method(nn.Module, TrainingHooks):
    """A network with its losses and its way of predicting.

    Subclasses implement `training_losses` and `evidence`. The rest says where they differ from a network that sees a
    slice, or a window of a volume, once.

    Attributes:
        tiling, passes, readout: see there.
        learns_from: what it is shown in training: ``"windows"`` of labeled images, or ``"clicks"`` on errors
            (`Batch.prompt` is a `ClickScene`, channel 1 of `Batch.allowed` its structure).
        scenes: of a method that takes clicks (`refined`).
        options: run-time options beyond `inference.OPTIONS`: name → what it does.
        validation_options: run-time options where time counts: for the validation during training, and for a first
            glance (`Tiling.around_column`).
    """

    tiling: Tiling = Tiling()
    passes: Passes = Passes()
    readout: Readout = Readout()
    learns_from: Literal["windows", "clicks"] = "windows"
    scenes: SceneGrid | None = None
    options: Mapping[str, str] = {}
    validation_options: Mapping[str, Any] = {}

    def __init__(self, config: MethodConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def scheme(self) -> LabelScheme:
        """The label scheme of the network."""
        return self.config.label_scheme

    def network_input(self, images: Tensor, coordinates: Tensor) -> Tensor:
        """Images and, if configured, coordinates: (B, N [+ dims], *spatial)."""
        return torch.cat([images, coordinates.to(images.dtype)], 1) if self.config.coordinates else images

    def training_losses(self, batch: Batch) -> dict[str, Tensor]:
        """The loss ``"total"`` and its parts, scalars."""
        raise NotImplementedError

    def evidence(self, images: Tensor, context: Context) -> dict[str, Tensor]:
        """What the network says: any of ``classes`` (B, C, *spatial) probabilities, ``kinds`` (B, K, *spatial)
        probabilities, ``rank`` (B, *spatial), ``uncertainty`` (B, *spatial); a 2D method also ``keypoints``
        (B, C−1, 3): row, column (voxels) and strength of each structure's center, NaN where not found."""
        raise NotImplementedError

    def refined(self, scene: ClickScene) -> Tensor:
        """(B, S, H, W) probability of the scene's structure after its clicks; as it was far from them.

        Raises:
            ConfigError: the method takes no clicks.
        """
        raise ConfigError(
            f"The method {self.config.method} takes no clicks.", "Choose a checkpoint for correction by clicks."
        )

    def images_per_slice(self, options: Mapping[str, Any]) -> int:
        """How many images a 2D method computes at once for a slice; several where it draws samples."""
        return 1
