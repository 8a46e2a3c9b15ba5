"""The networks that correct by clicks: U-Nets of 2D convolutions whose slices look at their neighbors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ConfigError
from ..base import Batch, Context, Method, Tiling, coordinate_channels
from ..clicking import (
    CLICK_KINDS,
    FAR_MM,
    NEAR_MM,
    ClickScene,
    SceneGrid,
    click_distances,
    gate,
    normalized,
    simulated_click,
    simulated_scribble,
)
from ..resenc_unet.network import FIRST_LAYERS, ResEncUNet
from .config import ClickRefineConfig

_CHANNELS = 8
"""Image, where it has voxels, mask, other masks; a near and a far map of the clicks of either sign."""
_TRUST = 3.0
"""Logit of the mask as it is: the network says what changes."""
_SCRIBBLES, _FORGOTTEN = 0.15, 0.25
"""Training: how often a click is a scribble, and how often the earlier clicks are forgotten with a new one."""


class Block(nn.Module):
    """Two 3×3 convolutions within slices, and one between that mixes each slice with its two neighbors."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.mix = nn.Conv2d(3 * outputs, outputs, 1, bias=False)
        self.norm_mix = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1, bias=False) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, slices: int) -> Tensor:
        """(B·S, C, H, W) → the same, of other channels."""
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        stack = y.unflatten(0, (-1, slices))
        edge = torch.zeros_like(stack[:, :1])
        around = [torch.cat([edge, stack[:, :-1]], 1), stack, torch.cat([stack[:, 1:], edge], 1)]
        y = y + F.relu(self.norm_mix(self.mix(torch.cat(around, 2).flatten(0, 1))))
        return F.relu(self.norm2(self.conv2(y)) + self.skip(x), inplace=True)


class ClickUNet(nn.Module):
    """(B, C, S, H, W) maps and (B,) kinds → (B, S, H, W) logits.

    A U-Net on pixels of twice the size, four of the maps' in the channels of one; what it says is brought to their own
    edges by two convolutions over the maps themselves.
    """

    def __init__(self, inputs: int, widths: tuple[int, ...], fine: int = 8) -> None:
        super().__init__()
        self.kind = nn.Embedding(len(CLICK_KINDS), widths[-1])
        self.encoder = nn.ModuleList(
            Block(4 * inputs if level == 0 else widths[level - 1], width) for level, width in enumerate(widths)
        )
        self.up = nn.ModuleList(
            nn.Conv2d(widths[level + 1], width, 1, bias=False) for level, width in enumerate(widths[:-1])
        )
        self.decoder = nn.ModuleList(Block(width, width) for width in widths[:-1])
        self.fine = nn.Conv2d(widths[0], 4 * fine, 1)
        self.edge = nn.Conv2d(fine + inputs, fine, 3, padding=1)
        self.head = nn.Conv2d(2 * fine, 1, 3, padding=1, bias=False)
        nn.init.zeros_(self.head.weight)  # an untrained one changes nothing

    def forward(self, maps: Tensor, kind: Tensor) -> Tensor:
        slices = maps.shape[2]
        maps = maps.transpose(1, 2).flatten(0, 1)
        x = F.pixel_unshuffle(maps, 2)
        features: list[Tensor] = []
        for level, block in enumerate(self.encoder):
            x = block(F.max_pool2d(x, 2) if level else x, slices)
            features.append(x)
        x = x + self.kind(kind).repeat_interleave(slices, 0)[:, :, None, None]
        for level in reversed(range(len(self.decoder))):
            x = F.interpolate(self.up[level](x), scale_factor=2, mode="nearest")
            x = self.decoder[level](x + features[level], slices)
        x = F.relu(F.pixel_shuffle(self.fine(x), 2))
        x = torch.cat([x, F.relu(self.edge(torch.cat([x, maps], 1)))], 1)
        return self.head(x)[:, 0].unflatten(0, (-1, slices))


class _Mix(nn.Module):
    """Adds to each slice what it makes of itself and its two neighbors; nothing at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.read = nn.Conv2d(3 * width, width, 1)
        self.norm = nn.InstanceNorm2d(width, affine=True)
        self.say = nn.Conv2d(width, width, 1, bias=False)
        nn.init.zeros_(self.say.weight)

    def forward(self, x: Tensor, slices: int) -> Tensor:
        """(B·S, C, H, W) → the same."""
        around = torch.cat([*_neighbors(x, slices), x], 1)
        return x + self.say(F.relu(self.norm(self.read(around))))


def _neighbors(x: Tensor, slices: int) -> tuple[Tensor, Tensor]:
    """(B·S, C, H, W) → the slice before each, and the one after; the outermost continue."""
    stack = x.unflatten(0, (-1, slices))
    before, after = torch.cat([stack[:, :1], stack[:, :-1]], 1), torch.cat([stack[:, 1:], stack[:, -1:]], 1)
    return before.flatten(0, 1), after.flatten(0, 1)


class ClickResEnc(nn.Module):
    """(B, C, S, H, W) maps and (B,) kinds → (B, S, H, W) logits, by the finer half of the default method's network.

    A scene's slices are as far apart as the neighbors that the default network is shown beside a slice, and its pixels
    as large as that one's: with its weights (`ClickRefine.remap_weights`) it knows bodies, discs and canal from the
    first step, and has to learn what clicks mean.

    Args:
        inputs: maps; the first is the image, −1…1.
        widths, blocks: channels and residual blocks per resolution, finest first.
        spacing: mm along slices, rows and columns.
    """

    def __init__(
        self, inputs: int, widths: tuple[int, ...], blocks: tuple[int, ...], spacing: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.spacing = spacing[1:]
        self.network = ResEncUNet(2, 3 + 2 + inputs - 1, widths, blocks)  # the slice, two neighbors, coordinates
        self.kind = nn.Embedding(len(CLICK_KINDS), widths[-1])
        self.kind_head = nn.Embedding(len(CLICK_KINDS), widths[0])
        self.encoder_mix = nn.ModuleList(_Mix(width) for width in widths)
        self.decoder_mix = nn.ModuleList(_Mix(width) for width in widths[:-1])
        self.head = nn.Conv2d(widths[0], 1, 3, padding=1, bias=False)
        for weight in (self.kind.weight, self.kind_head.weight, self.head.weight):
            nn.init.zeros_(weight)  # an untrained one changes nothing

    def forward(self, maps: Tensor, kind: Tensor) -> Tensor:
        slices = maps.shape[2]
        maps = maps.transpose(1, 2).flatten(0, 1)
        image = 2 * maps[:, :1]  # the default network's range
        place = coordinate_channels(maps.shape[2:], self.spacing, maps.device).to(maps.dtype)
        place = place.expand(len(maps), -1, -1, -1)
        x = torch.cat([image, *_neighbors(image, slices), place, maps[:, 1:]], 1)
        kind = kind.repeat_interleave(slices, 0)
        encoded = self.network.encode(x, lambda level, y: self.encoder_mix[level](y, slices))
        encoded[-1] = encoded[-1] + self.kind(kind)[:, :, None, None]
        x = self.network.decode(encoded, lambda level, y: self.decoder_mix[level](y, slices))[0]
        own = (self.kind_head(kind)[:, None] @ x.flatten(2)).unflatten(2, x.shape[2:])
        return (self.head(x) + own)[:, 0].unflatten(0, (-1, slices))


class ClickRefine(Method):
    """The method: shown scenes (`clicking.ClickScene`), not whole images."""

    learns_from = "clicks"

    def __init__(self, config: ClickRefineConfig) -> None:
        super().__init__(config)
        self.config: ClickRefineConfig = config
        self.tiling = Tiling((1, *[config.divisor] * 2), window=config.window)
        self.scenes = SceneGrid(config.window, config.spacing)
        self.network: ClickUNet | ClickResEnc
        if config.backbone == "resenc":
            blocks = config.blocks or (2,) * len(config.widths)
            self.network = ClickResEnc(_CHANNELS, config.widths, blocks, config.spacing)
        else:
            self.network = ClickUNet(_CHANNELS, config.widths)

    def remap_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Also the network of the default method; what it was never shown weighs nothing at first."""
        state = dict(state)
        if self.config.backbone != "resenc" or "network.encoder.0.0.conv1.weight" not in state:
            return state
        state = {f"network.{name}": value for name, value in state.items() if name.startswith("network.")}
        mine = self.state_dict()
        for name in (f"network.network.{layer}" for layer in FIRST_LAYERS):
            known = state[name]
            unseen = mine[name].shape[1] - known.shape[1]
            if unseen > 0:
                state[name] = torch.cat([known, known.new_zeros(len(known), unseen, *known.shape[2:])], 1)
        return state

    def forward(self, scene: ClickScene) -> Tensor:
        """(B, S, H, W) logits of the structure, regardless of how far the clicks are."""
        maps = [normalized(scene.image, scene.inside), scene.inside.float(), scene.mask.float(), scene.others.float()]
        for sign in (1, -1):
            away = click_distances(scene, self.config.spacing, sign)
            maps += [(1 - away / NEAR_MM).clamp(0, 1), (1 - away / FAR_MM).clamp(0, 1)]
        change = self.network(torch.stack(maps, 1), scene.kind)
        return change + _TRUST * (2 * scene.mask.float() - 1)

    def refined(self, scene: ClickScene) -> Tensor:
        """(B, S, H, W) probability of the structure: as it was far from the clicks."""
        share = gate(scene, self.config.spacing)
        return scene.mask + share * (self(scene).sigmoid() - scene.mask)

    def training_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy and Dice of the answer to the last of one to `rounds` clicks, within their reach.

        All but the last are answered first without a gradient, as they would be when a reader corrects on: the next
        click is made on an error of the network's own.
        """
        scene: ClickScene = batch.prompt
        truth, known = batch.label == 1, batch.known[:, 1]
        rng = np.random.default_rng(int(torch.randint(2**31, ())))  # the trainer seeds it for each step
        count = len(truth)
        # The round whose answer is learned from: half as often the second as the first, and so on.
        chance = 0.5 ** np.arange(self.config.rounds)
        last = 1 + rng.choice(self.config.rounds, count, p=chance / chance.sum())
        for number in range(1, int(last.max())):
            going_on = np.flatnonzero(last > number)
            with torch.no_grad():
                part = scene.each(itemgetter(going_on))
                answer = (self.refined(part) > 0.5).float()
            mask, signs = scene.mask.clone(), scene.signs.clone()
            mask[going_on] = answer
            for index in going_on:
                if rng.random() < _FORGOTTEN:
                    signs[index] = 0
            scene = replace(scene, mask=mask, signs=signs)
            scene = self._clicked(scene, truth, known, going_on, rng)
        near = gate(scene, self.config.spacing) > 0
        near &= known
        logits = self(scene).float()
        target = truth.float()
        entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        # Half of the weight lies where something is wrong, or is said to be: most of a scene is right as it is.
        wrong = (truth != (scene.mask > 0.5)) | ((logits > 0) != truth)
        weight = near.float() * (1 + 9 * wrong.float())
        ce = (entropy * weight).sum() / weight.sum().clamp(min=1)
        said = logits.sigmoid() * near
        both = (said * target).sum((1, 2, 3))
        whole = said.sum((1, 2, 3)) + (target * near).sum((1, 2, 3))
        dice = (1 - (2 * both + 10) / (whole + 10)).mean()
        return {"total": ce + dice, "cross_entropy": ce, "dice": dice}

    def _clicked(
        self, scene: ClickScene, truth: Tensor, known: Tensor, which: np.ndarray, rng: np.random.Generator
    ) -> ClickScene:
        """The scenes with the next click of a simulated reader in those of `which` that have an error left."""
        strokes: dict[int, tuple[np.ndarray, int]] = {}
        for index in which.tolist():
            mask, right = scene.mask[index] > 0.5, truth[index]
            missing = (right & ~mask & known[index]).cpu().numpy()
            extra = (mask & ~right & known[index]).cpu().numpy()
            found = simulated_click(missing, extra, self.config.spacing, rng)
            if found is None:
                continue
            point, sign = found
            stroke = point[None]
            if rng.random() < _SCRIBBLES:
                stroke = simulated_scribble(missing if sign > 0 else extra, point, self.config.spacing, rng)
            strokes[index] = (stroke, sign)
        longest = max((len(stroke) for stroke, _ in strokes.values()), default=0)
        points = scene.points.new_zeros(len(scene.points), longest, 3)
        signs = scene.signs.new_zeros(len(scene.points), longest)
        for index, (stroke, sign) in strokes.items():
            points[index, : len(stroke)] = torch.as_tensor(stroke, dtype=points.dtype, device=points.device)
            signs[index, : len(stroke)] = sign
        return scene.with_clicks(points, signs) if longest else scene

    def evidence(self, images: Tensor, context: Context) -> dict[str, Tensor]:
        """Raises:
        ConfigError: it corrects what is there, and does not segment.
        """
        raise ConfigError(
            "This checkpoint corrects a segmentation by clicks; it does not segment by itself.",
            "Choose another checkpoint to segment with; correct with `spinesegai refine`.",
        )


def build(config: Any) -> ClickRefine:
    """The method of a configuration."""
    return ClickRefine(config)
