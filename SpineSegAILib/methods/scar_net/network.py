"""SCAR-Net: spine segmentation based on cross attention and recognition-assisted label fusion.

Two networks of the same structure and separate weights. The recognition network R draws a heatmap per structure, whose
peaks are keypoints, and makes the convolution kernels of the segmentation network S out of its own features. Cases
with keypoints alone teach R, and through the kernels S is better for it.

Unsettled in the paper and decided here: how the keypoints steer the attention (`recognition.weight_map`), the loss
(`losses`), what label fusion fuses (`label_fusion`), and the "enhanced" low-level feature (`encoder.Decoder`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import HintError
from ..base import COORDINATE_SCALE_MM, Batch, Context, Method, Passes, Readout, Tiling
from ..blocks import rank_map
from ..losses import marginal_cross_entropy, partial_dice_loss, rank_loss
from ..options import switch_option
from .attention import MCCA
from .config import ScarNetConfig
from .encoder import Decoder, Encoder
from .label_fusion import disagreement, fuse
from .losses import heatmap_error, supervised
from .recognition import (
    STRIDE,
    AdaptiveTransformer,
    DynamicKernels,
    Steering,
    heatmaps,
    neighbourhood,
    peaks,
    point_maps,
    weight_map,
)

NEIGHBOURHOOD_MM = 8.0
"""Slices up to this far to either side vote on a slice's keypoints: two of the usual 4 mm slices."""

_OPTIONS = {
    "weight_map": "off: keypoints do not steer the attention (for research)",
    "mcca": "off: the two feature maps are added instead of fused by attention (for research)",
    "rank": "off: the auxiliary rank head is ignored (for research)",
}


@dataclass
class Recognition:
    """What the recognition network passes on.

    Attributes:
        maps: (B, K, H, W) heatmaps.
        kernels: (B, C, 7, 7) of the adaptive layer.
        gate: (B, 1, H/4, W/4), or None.
        rank: (B, H, W), or None.
    """

    maps: Tensor
    kernels: Tensor
    gate: Tensor | None
    rank: Tensor | None = None


class ScarNet(nn.Module):
    """The recognition and the segmentation network.

    Args:
        config: the configuration. H and W of the inputs are multiples of 16.
    """

    def __init__(self, config: ScarNetConfig) -> None:
        super().__init__()
        channels = config.features
        self.recognition_encoder = Encoder(config)
        self.recognition_decoder = Decoder(config, len(config.point_channels))
        self.kernels = DynamicKernels(channels)
        self.recognition_rank = _rank_head(channels) if config.rank_weight else None
        self.gate = nn.Conv2d(config.stages[1], 1, 1) if config.gate_low_features else None
        self.encoder = Encoder(config)
        self.adaptive = AdaptiveTransformer(
            channels, config.heads, config.norm, config.adaptive == "transformer", config.weight_queries,
            len(config.point_channels) if config.mark_points else 0,
        )  # fmt: skip
        self.fusion = (
            MCCA(channels, config.mcca_residual, config.channel_convolutions, config.gamma) if config.use_mcca else None
        )
        self.decoder = Decoder(config, config.label_scheme.channels, config.fine_channels)
        self.rank_head = _rank_head(channels) if config.rank_weight else None

    def recognize(self, x: Tensor, *, ranked: bool = False) -> Recognition:
        """(B, inputs, H, W) → heatmaps, kernels and gate; while learning also the rank, if there is a head for it."""
        fine, low, high = self.recognition_encoder(x)
        gate = None if self.gate is None else self.gate(low).sigmoid()
        rank = None
        if ranked and self.recognition_rank is not None:
            rank = rank_map(self.recognition_rank(high), x.shape[2:])
        return Recognition(self.recognition_decoder(fine, low, high), self.kernels(high), gate, rank)

    def segment(
        self, x: Tensor, kernels: Tensor, gate: Tensor | None, steering: Steering | None, *, fused: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Logits (B, classes, H, W), and rank (B, H, W) where there is a head for it.

        Args:
            x: (B, inputs, H, W).
            kernels: (B, C, 7, 7).
            gate: (B, 1, H/4, W/4), or None.
            steering: what the keypoints say, or None for nothing.
            fused: False adds the two feature maps in spite of MCCA.
        """
        fine, low, high = self.encoder(x)
        semantic = self.adaptive(high, kernels, steering)
        mixed = self.fusion(high, semantic) if self.fusion is not None and fused else high + semantic
        logits = self.decoder(fine, low, mixed, gate)
        return logits, None if self.rank_head is None else rank_map(self.rank_head(mixed), x.shape[2:])


def _rank_head(channels: int) -> nn.Module:
    """Reads the rank off high-level features, which teaches them to count (our addition); see `rank_map`."""
    return nn.Sequential(OrderedDict(project=nn.Conv2d(channels, 1, 1)))  # `project` is its name in checkpoints


class ScarNetMethod(Method):
    """SCAR-Net and DGMSNet, one network or, with `ScarNetConfig.ralf_ensemble`, several whose labels are fused.

    At inference each sagittal slice takes the keypoints of its neighborhood, so there is a first pass over the volume
    that only recognizes. Keypoints of the reader replace those found.

    The dynamic kernels are pooled from the whole input, which attention also spans: what was learned on windows of one
    size does not transfer to larger images, so those are seen in such windows.
    """

    def __init__(self, config: ScarNetConfig) -> None:
        super().__init__(config)
        self.config: ScarNetConfig = config
        self.tiling = Tiling(STRIDE, local=True, context_mm=config.context_mm, around_column=config.around_column)
        self.networks = nn.ModuleList(ScarNet(config) for _ in config.heatmap_weights)
        self.readout = Readout(tuple(f"networks.{number}.decoder.head" for number in range(len(self.networks))))
        self.channels = list(config.point_channels)
        self.orders = [float(self.scheme.structures[i].order or 0) for i in self.channels]
        self.steered = config.adaptive == "transformer"
        self.passes = Passes(2 if self.steered else 1)
        has = {"weight_map": self.steered, "mcca": config.use_mcca, "rank": config.rank_weight > 0}
        self.options = {name: text for name, text in _OPTIONS.items() if has[name]}

    # --- training --------------------------------------------------------------------------------------------------

    def _network(self, number: int) -> ScarNet:
        network = self.networks[number]
        assert isinstance(network, ScarNet)
        return network

    def training_losses(self, batch: Batch) -> dict[str, Tensor]:
        weights = enumerate(self.config.heatmap_weights)
        every = [self._losses(self._network(number), weight, batch) for number, weight in weights]
        # Networks of an ensemble share nothing: the sum trains each as if it were alone.
        return {name: torch.stack([losses[name] for losses in every]).sum() for name in every[0]}

    def _losses(self, network: ScarNet, heatmap_weight: float, batch: Batch) -> dict[str, Tensor]:
        config = self.config
        x = self.network_input(batch.image, batch.coordinates)
        spacing = pixel_spacing(batch.coordinates)
        points = self._annotated(batch)
        recognition = network.recognize(x, ranked=True)
        seen = _every(config.loss_stride)
        allowed = batch.allowed[seen]
        target = heatmaps(points, spacing, x.shape[2:], config.heatmap_mm)[seen]
        error = heatmap_error(recognition.maps[seen], target, ~allowed[:, [i + 1 for i in self.channels]])

        steering = None
        if self.steered:
            used, _ = self._found(recognition.maps.detach())
            if batch.progress < config.true_until:  # early on, what is found leads nowhere
                told = torch.rand(len(x), 1, 1, device=x.device) < config.true_points
                used = torch.where(told & ~points.isnan(), points, used)
            steering = self._steering(used, spacing, x.shape[2:])
        # Nothing is asked of weak cases' segmentation. In a batch of them alone all is allowed and the loss exactly 0:
        # one image still passes, since distributed training needs a gradient.
        rows = supervised(allowed).nonzero()[:, 0]
        if not len(rows):
            rows = rows.new_zeros(1)
        # Batch norm sees as many images as in the ancestor where weak ones pass, too.
        everyone = config.weak_statistics and config.norm == "batch"
        passed = torch.arange(len(x), device=x.device) if everyone else rows
        gate = None if recognition.gate is None else recognition.gate[passed]
        steering = None if steering is None else steering.of(passed)
        logits, rank = network.segment(x[passed], recognition.kernels[passed], gate, steering)
        if everyone:
            logits, rank = logits[rows], None if rank is None else rank[rows]
        logits, allowed = logits[seen], allowed[rows]
        losses = {"cross_entropy": marginal_cross_entropy(logits, allowed), "heatmaps": error}
        losses["total"] = losses["cross_entropy"] + heatmap_weight * error
        if config.dice_weight:
            losses["dice"] = partial_dice_loss(logits, allowed)
            losses["total"] = losses["total"] + config.dice_weight * losses["dice"]
        if rank is not None and recognition.rank is not None:
            losses["rank"] = rank_loss(rank[seen], batch.rank[rows][seen])
            losses["rank"] = losses["rank"] + rank_loss(recognition.rank[seen], batch.rank[seen])
            losses["total"] = losses["total"] + config.rank_weight * losses["rank"]
        return losses

    def _annotated(self, batch: Batch) -> Tensor:
        if batch.keypoints is None:
            return torch.full((len(batch.image), len(self.channels), 2), torch.nan, device=batch.image.device)
        return batch.keypoints[:, self.channels].float()

    def _found(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K, 2) keypoints, NaN where the peak is too low; and (B, K) heights."""
        points, heights = peaks(maps)
        return torch.where(heights[..., None] >= self.config.least_peak, points, torch.nan), heights

    def _steering(self, points: Tensor, spacing: Tensor, shape: torch.Size) -> Steering:
        coarse = [n // STRIDE for n in shape]
        weight = weight_map(points, spacing, coarse, self.orders, self.config)
        places = point_maps(points, spacing, coarse, self.config.weight_mm) if self.config.mark_points else None
        return Steering(weight, places)

    # --- inference -------------------------------------------------------------------------------------------------

    def evidence(self, images: Tensor, context: Context) -> dict[str, Tensor]:
        if context.keypoints is not None and not self.steered and len(self.networks) == 1:
            raise HintError(
                "Keypoints do not steer this checkpoint: its network has no attention to weigh.",
                "Omit them, or use a checkpoint whose adaptive layer is a transformer.",
            )
        x = self.network_input(images, context.coordinates)
        on = {name: switch_option(context.options, name, True) for name in _OPTIONS}
        if context.final:
            parts = [self._member(number, x, context, on) for number in range(len(self.networks))]
            return self._fused(parts, pixel_spacing(context.coordinates))
        for number in range(len(self.networks)):
            looked = self._look(number, x)
            kept = context.memory.setdefault(number, {})
            looked["points"] = looked["points"] + torch.tensor(context.corner, device=x.device)
            for place, index in enumerate(context.slices):
                kept[context.corner, index] = {name: None if v is None else v[place] for name, v in looked.items()}
        return {}

    def _look(self, number: int, x: Tensor) -> dict[str, Any]:
        recognition = self._network(number).recognize(x)
        points, heights = self._found(recognition.maps)
        return {"kernels": recognition.kernels, "gate": recognition.gate, "points": points, "heights": heights}

    def _member(self, number: int, x: Tensor, context: Context, on: Mapping[str, bool]) -> dict[str, Tensor]:
        kept = context.memory.get(number)
        if kept is None:
            looked = self._look(number, x)
            points = looked["points"]
        else:
            each = [kept[context.corner, index] for index in context.slices]
            looked = {name: None if v is None else torch.stack([e[name] for e in each]) for name, v in each[0].items()}
            corner = torch.tensor(context.corner, device=x.device)
            looked["points"] = looked["points"] - corner
            points = self._agreed(number, context)[list(context.slices)].to(x.device) - corner
        found = looked["points"]
        heights = looked["heights"]
        if context.keypoints is not None:
            hinted = context.keypoints[:, self.channels].to(points)
            given = ~hinted.isnan()
            points, found = torch.where(given, hinted, points), torch.where(given, hinted, found)
            heights = torch.where(given[..., 0], 1.0, heights)
        steering = None
        if self.steered and on["weight_map"]:
            steering = self._steering(points, pixel_spacing(context.coordinates), x.shape[2:])
        logits, rank = self._network(number).segment(x, looked["kernels"], looked["gate"], steering, fused=on["mcca"])
        maps = {"classes": logits.float().softmax(1), "points": found, "heights": heights}
        if rank is not None and on["rank"]:
            maps["rank"] = rank.float()
        return maps

    def _agreed(self, number: int, context: Context) -> Tensor:
        """(D, K, 2) keypoints in the slices that neighboring slices agree on, worked out once per volume."""
        key = ("agreed", number)
        if key not in context.memory:
            kept = context.memory[number]
            corners = list(dict.fromkeys(corner for corner, _ in kept))
            points, heights = (
                np.stack(
                    [[kept[c, i][name].float().cpu().numpy() for i in range(context.slice_count)] for c in corners]
                )
                for name in ("points", "heights")
            )
            # Of the windows, the one that is surest of a structure.
            best = np.where(np.isnan(points[..., 0]), 0.0, heights).argmax(0)[None]
            points = np.take_along_axis(points, best[..., None], 0)[0]
            heights = np.take_along_axis(heights, best, 0)[0]
            agreed = neighbourhood(points, heights, context.slice_mm, NEIGHBOURHOOD_MM)
            context.memory[key] = torch.from_numpy(agreed)
        return context.memory[key]

    def _fused(self, parts: list[dict[str, Tensor]], spacing: Tensor) -> dict[str, Tensor]:
        if len(parts) == 1:
            maps = dict(parts[0])
        else:
            classes, points = (torch.stack([p[name] for p in parts]) for name in ("classes", "points"))
            channels = [i + 1 for i in self.channels]
            apart = [disagreement(c, p, spacing, channels) for c, p in zip(classes, points, strict=True)]
            fused, best = fuse(classes, torch.stack(apart))
            each = torch.arange(len(best), device=best.device)
            maps = {name: torch.stack([p[name] for p in parts])[best, each] for name in parts[0] if name != "classes"}
            maps["classes"] = fused
        points, heights = maps.pop("points"), maps.pop("heights")
        keypoints = torch.full((len(points), self.scheme.channels - 1, 3), torch.nan, device=points.device)
        keypoints[:, self.channels] = torch.cat([points, heights[..., None]], -1).float()
        return {**maps, "keypoints": keypoints}


def _every(stride: int) -> tuple[Any, ...]:
    """Index of every `stride`-th row and column, from a random one on."""
    row, column = torch.randint(stride, (2,)).tolist()
    return (..., slice(row, None, stride), slice(column, None, stride))


def pixel_spacing(coordinates: Tensor) -> Tensor:
    """(B, 2) mm per row and column, read off the coordinate channels (B, 2, H, W)."""
    down = coordinates[:, 0, 1, 0] - coordinates[:, 0, 0, 0]
    across = coordinates[:, 1, 0, 1] - coordinates[:, 1, 0, 0]
    return torch.stack([down, across], 1).float() * COORDINATE_SCALE_MM


def build(config: ScarNetConfig) -> ScarNetMethod:
    """The method of a configuration."""
    return ScarNetMethod(config)
