"""Random geometry and intensity on the training device, whole batches at a time, from per-sample generators.

One grid maps each voxel of the patch to the window that `data.SampleDataset` cut, so zoom, rotation, elastic
deformation
and the crop of the field of view cost one resampling. Works in 2D (rows, columns) and 3D (slices, rows, columns).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..anatomy import KINDS, Kind
from ..methods.base import COORDINATE_SCALE_MM, Batch, coordinate_channels
from . import films
from .config import AugmentationConfig

_MODES = {2: "bicubic", 3: "trilinear"}
_DISC, _CANAL = KINDS.index(Kind.DISC.value), KINDS.index(Kind.CANAL.value)


class Augmenter:
    """Turns windows into training batches.

    Args:
        patch: size of the network's input.
        config: strengths; None for the plain center of the window (validation losses, tests).
        seed: of the run; combined with each sample's number.
        padding: value of air.
    """

    def __init__(self, patch: Sequence[int], config: AugmentationConfig | None, seed: int, padding: float) -> None:
        self.patch = tuple(patch)
        self.dims = len(self.patch)
        self.config = config
        self.seed = seed
        self.padding = padding

    def __call__(self, raw: Mapping[str, Any], device: torch.device) -> Batch:
        """A batch of `data.SampleDataset` items (collated) → what the method sees."""
        image = raw["image"].to(device, non_blocking=True)
        codes = raw["codes"].to(device, non_blocking=True)
        spacing = raw["spacing"].numpy()
        generators = [np.random.default_rng([self.seed, int(n), 1]) for n in raw["number"]]
        plans = [self._plan(g, raw["box"][i].numpy(), spacing[i], image.shape[2:]) for i, g in enumerate(generators)]
        grid = self._grid(plans, generators, spacing, image.shape[2:], device)
        inside = torch.stack([self._inside(p, device) for p in plans])
        sampled = F.grid_sample(image - self.padding, grid, mode="bilinear", align_corners=True) + self.padding
        coded = F.grid_sample(codes.float(), grid, mode="nearest", align_corners=True).round().long()
        everywhere = torch.where(inside[:, None], coded, 0)
        coded = everywhere[:, 0]
        sampled = torch.where(inside[:, None], sampled, self.padding)
        table = raw["allowed"].to(device, non_blocking=True)
        which = torch.arange(len(plans), device=device).view(-1, *[1] * self.dims)
        allowed = table[which, coded].movedim(-1, 1).contiguous()
        rank = raw["rank"].to(device, non_blocking=True)[which, coded]
        if self.config is not None:
            kinds = raw["kinds"].to(device, non_blocking=True)[which[:, None], everywhere]
            sampled = self._intensity(sampled, kinds, inside[:, None], generators)
        coordinates = torch.stack([self._coordinates(p, spacing[i], device) for i, p in enumerate(plans)])
        position = raw["position"].to(device, torch.float32, non_blocking=True)
        keypoints = torch.stack([self._points(raw["keypoints"][i], p, grid[i], image) for i, p in enumerate(plans)])
        return Batch(sampled, allowed, rank, coordinates, keypoints, position=position)

    # --- geometry ------------------------------------------------------------------------------------------------

    def _plan(
        self, rng: np.random.Generator, box: np.ndarray, spacing: np.ndarray, window: Sequence[int]
    ) -> dict[str, Any]:
        """Matrix and center of the map patch → window, and the field of view in patch voxels."""
        size = np.array(self.patch, float)
        window_middle = (np.array(window, float) - 1) / 2
        image_middle = box.mean(1) - 0.5
        image_size = box[:, 1] - box[:, 0]
        scale = np.ones(self.dims)
        turn = np.eye(self.dims)
        c = self.config
        if c is not None:
            zoom = math.exp(rng.uniform(*np.log(c.zoom)))
            in_plane = zoom * np.exp(rng.uniform(-c.stretch, c.stretch, 2))
            scale[-2:] = in_plane
            angle = math.radians(rng.uniform(-c.rotation_deg, c.rotation_deg))
            if c.rotation_probability < 1 and rng.random() >= c.rotation_probability:
                angle = 0.0
            turn[-2:, -2:] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
            if c.mirror_probability and rng.random() < c.mirror_probability:
                scale[-1] *= -1.0
            if self.dims == 3 and c.mirror_left_right and rng.random() < 0.5:
                scale[0] = -1.0
        # patch offset (voxels) → millimeters → rotated → scaled back → window voxels
        to_window = np.diag(1 / spacing) @ turn @ np.diag(spacing / scale)
        # Where the image, zoomed, is larger than the patch, the patch keeps the window's center (the column);
        # where it is smaller, the image is centered, as inference pads it.
        spare = size - image_size * np.abs(scale)
        middle = np.where(spare >= 0, image_middle, window_middle)
        field_middle = np.linalg.solve(to_window, image_middle - middle) + (size - 1) / 2
        half = image_size * np.abs(scale) / 2
        low, high = field_middle - half, field_middle + half
        if c is not None and rng.random() < c.crop_probability:
            low, high = self._crop(rng, low, high, size)
            # What is left is centered where it is smaller than the patch, as inference pads it: else the place in the
            # patch would tell the levels, and a network that sees its place would learn that instead.
            offset = np.where(high - low < size, (low + high - size + 1) / 2, 0.0)
            middle = middle + to_window @ offset
            low, high = low - offset, high - offset
        return {"matrix": to_window, "middle": middle, "low": low, "high": high}

    def _crop(
        self, rng: np.random.Generator, low: np.ndarray, high: np.ndarray, size: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        c = self.config
        assert c is not None
        # Shares are of what is in the patch, so that a crop is seen and never takes everything.
        start, end = np.maximum(low, -0.5), np.minimum(high, size - 0.5)
        length = end - start
        low, high = low.copy(), high.copy()
        shares = {(-2, 0): c.crop_top, (-2, 1): c.crop_bottom, (-1, 0): c.crop_side, (-1, 1): c.crop_side}
        for (axis, side), share in shares.items():
            if rng.random() < 0.5:
                amount = rng.uniform(0, share) * length[axis]
                if side == 0:
                    low[axis] = start[axis] + amount
                else:
                    high[axis] = end[axis] - amount
        return low, high

    def _grid(
        self,
        plans: Sequence[Mapping[str, Any]],
        generators: Sequence[np.random.Generator],
        spacing: np.ndarray,
        window: Sequence[int],
        device: torch.device,
    ) -> Tensor:
        """(B, *patch, dims) normalized sampling positions, last axis (x, y[, z]) as `grid_sample` wants."""
        size = torch.tensor(self.patch, dtype=torch.float32, device=device)
        axes = [torch.arange(n, device=device, dtype=torch.float32) for n in self.patch]
        offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1) - (size - 1) / 2
        grids = []
        for plan, rng, mm in zip(plans, generators, spacing, strict=True):
            matrix = torch.as_tensor(plan["matrix"], dtype=torch.float32, device=device)
            at = offsets @ matrix.T + torch.as_tensor(plan["middle"], dtype=torch.float32, device=device)
            if self.config is not None and rng.random() < self.config.elastic_probability:
                at = at + self._elastic(rng, mm, device)
            scale = 2 / (torch.tensor(window, dtype=torch.float32, device=device) - 1).clamp(min=1)
            grids.append((at * scale - 1).flip(-1))
        return torch.stack(grids)

    def _elastic(self, rng: np.random.Generator, mm: np.ndarray, device: torch.device) -> Tensor:
        """(*patch, dims) smooth displacement in voxels; none across slices."""
        assert self.config is not None
        coarse = tuple(max(2, round(n / 40)) + 2 for n in self.patch)
        noise = torch.from_numpy(rng.normal(0, self.config.elastic_mm, (1, self.dims, *coarse)).astype(np.float32))
        field = F.interpolate(noise.to(device), self.patch, mode=_MODES[self.dims], align_corners=True)[0].movedim(
            0, -1
        )
        field = field / torch.as_tensor(mm, dtype=torch.float32, device=device)
        if self.dims == 3:
            field[..., 0] = 0
        return field

    def _points(self, points: Tensor, plan: Mapping[str, Any], grid: Tensor, image: Tensor) -> Tensor:
        """(K, dims) window positions → patch positions; NaN where not known or outside the field of view.

        The grid maps the other way, and smoothly: Newton's method with the matrix of the plan for the derivative.
        """
        device = image.device
        window = torch.tensor(image.shape[2:], dtype=torch.float32, device=device)
        last = torch.tensor(self.patch, dtype=torch.float32, device=device) - 1
        at_window = ((grid.flip(-1) + 1) / 2 * (window - 1)).movedim(-1, 0)[None]
        inverse = torch.as_tensor(np.linalg.inv(plan["matrix"]), dtype=torch.float32, device=device)
        middle = torch.as_tensor(plan["middle"], dtype=torch.float32, device=device)
        wanted = points.to(device)
        known = ~wanted.isnan().any(1)
        wanted = wanted.nan_to_num(0.0)
        result = (wanted - middle) @ inverse.T + last / 2
        for _ in range(6):
            start = result.clamp(min=0).minimum(last)  # the grid ends with the patch
            place = (start / last.clamp(min=1) * 2 - 1).flip(-1).view(1, *[1] * (self.dims - 1), -1, self.dims)
            found = F.grid_sample(at_window, place, mode="bilinear", align_corners=True).flatten(2)[0].T
            result = start + (wanted - found) @ inverse.T
        low, high = (torch.as_tensor(plan[k], dtype=torch.float32, device=device) for k in ("low", "high"))
        seen = (result >= low.clamp(min=-0.5)) & (result <= high.minimum(last + 0.5))
        return torch.where((seen.all(1) & known)[:, None], result, torch.nan)

    def _inside(self, plan: Mapping[str, Any], device: torch.device) -> Tensor:
        mask = torch.ones(self.patch, dtype=torch.bool, device=device)
        for axis, (low, high) in enumerate(zip(plan["low"], plan["high"], strict=True)):
            at = torch.arange(self.patch[axis], device=device)
            keep = (at >= low) & (at <= high)
            mask &= keep.view([-1 if a == axis else 1 for a in range(self.dims)])
        return mask

    def _coordinates(self, plan: Mapping[str, Any], spacing: np.ndarray, device: torch.device) -> Tensor:
        channels = coordinate_channels(self.patch, spacing.tolist(), device)
        centre = (plan["low"] + plan["high"]) / 2 - (np.array(self.patch) - 1) / 2
        shift = torch.as_tensor(centre * spacing / COORDINATE_SCALE_MM, dtype=torch.float32, device=device)
        return channels - shift.view(-1, *[1] * self.dims)

    # --- intensity -----------------------------------------------------------------------------------------------

    def _intensity(
        self, image: Tensor, kinds: Tensor, inside: Tensor, generators: Sequence[np.random.Generator]
    ) -> Tensor:
        """Contrast, bias field, blur, noise, alike in a slice and its neighbors but for the noise; air outside the
        field of view stays air."""
        result = [self._one(image[i], kinds[i], rng) for i, rng in enumerate(generators)]
        return torch.where(inside, torch.stack(result).clamp(-3, 3), self.padding)

    def _one(self, image: Tensor, kinds: Tensor, rng: np.random.Generator) -> Tensor:
        c = self.config
        assert c is not None
        unit = ((image + 2) / 4).clamp(0, 1)  # preprocessing puts the percentiles at −2 and 2
        if c.synthesis_probability and rng.random() < c.synthesis_probability:
            unit = _repainted(unit, kinds, rng)
        elif rng.random() < c.tissue_probability:
            unit = (unit * _tissue_gain(kinds, rng)).clamp(0, 1)
        if rng.random() < c.invert_probability:
            # Fluid dark and fat bright or the reverse, while air stays dark: inverted where the surroundings are body.
            body = ((_blur(unit, 3.0) - rng.uniform(0.08, 0.2)) * 30).sigmoid()
            unit = body * (1 - unit)
        if rng.random() < c.contrast_probability:
            unit = _curve(unit, rng)
        if rng.random() < c.gamma_probability:
            unit = unit ** math.exp(rng.uniform(-0.7, 0.7))
        if rng.random() < c.bias_probability:
            unit = unit * self._bias(rng, image.device)
        unit = films.marked(unit, c, rng)
        if rng.random() < c.low_resolution_probability:
            unit = self._coarser(unit, rng)
        if rng.random() < c.blur_probability:
            unit = _blur(unit, rng.uniform(0.5, 1.3))
        if rng.random() < c.noise_probability:
            noise = torch.from_numpy(rng.standard_normal(unit.shape, np.float32)).to(image.device)
            unit = (unit + noise * rng.uniform(0.01, 0.08)).abs()
        if c.level_probability < 1 and rng.random() >= c.level_probability:
            return unit * 4 - 2
        # A brighter spot elsewhere in the body moves the percentiles: vary what they are stretched to.
        return (unit * rng.uniform(*c.brightness) + rng.uniform(-c.offset, c.offset)) * 4 - 2

    def _bias(self, rng: np.random.Generator, device: torch.device) -> Tensor:
        coarse = (3,) * self.dims
        field = torch.from_numpy(rng.normal(0, 0.35, (1, 1, *coarse)).astype(np.float32)).to(device)
        return F.interpolate(field, self.patch, mode=_MODES[self.dims], align_corners=True)[0].exp()

    def _coarser(self, unit: Tensor, rng: np.random.Generator) -> Tensor:
        factor = rng.uniform(0.45, 0.85, 2)
        size = [*self.patch[:-2], *(max(8, round(n * f)) for n, f in zip(self.patch[-2:], factor, strict=True))]
        mode = "bilinear" if self.dims == 2 else "trilinear"
        small = F.interpolate(unit[None], size, mode=mode, align_corners=False)
        return F.interpolate(small, self.patch, mode=mode, align_corners=False)[0]


def _repainted(unit: Tensor, kinds: Tensor, rng: np.random.Generator) -> Tensor:
    """An image of the same anatomy as a sequence that does not exist would show it.

    All around the drawn structures gray values are exchanged by a curve that goes up and down as it likes, air staying
    dark. Each kind of drawn structure gets a mean of its own and keeps its texture, stronger, weaker or reversed; edges
    are soft, since voxels are shared, and bone may have a dark rim. Bone is bright or dark as a whole: vertebrae,
    sacrum and posterior elements differ little.

    Args:
        unit: (N, *spatial) in 0…1.
        kinds: (N, *spatial) index in `KINDS` of what is drawn; 0 for nothing.
    """
    knots = int(rng.integers(4, 9))
    values = torch.as_tensor(np.r_[0.0, rng.uniform(0.05, 1.0, knots)], dtype=unit.dtype, device=unit.device)
    body = ((_blur(unit, 2.0) - 0.06) * 40).sigmoid()  # air, and what is near its value, stays as it is
    result = _interpolated(unit, values) * body + unit * (1 - body)
    bone_mean, softness = rng.uniform(0.05, 1.0), rng.uniform(0.5, 1.0)
    for kind in (_CANAL, *(k for k in range(1, len(KINDS)) if k not in (_CANAL, _DISC)), _DISC):
        bone = kind not in (_CANAL, _DISC)
        mean = bone_mean + rng.normal(0, 0.06) if bone else rng.uniform(0.05, 1.0)
        gain = rng.choice((-1.0, 1.0), p=(0.25, 0.75)) * rng.uniform(0.2, 1.6)
        rim = rng.uniform(0.2, 0.9) if bone and rng.random() < 0.6 else 0.0
        mask = kinds == kind
        if not mask.any():
            continue
        share = _blur(mask.to(unit.dtype), softness)
        if rim:  # cortical bone, and the endplates, give no signal
            result = result * (1 - rim * (4 * share * (1 - share)).clamp(0, 1))
        painted = mean + gain * (unit - unit[mask].mean())
        if rim:
            painted = painted * (1 - rim * (4 * share * (1 - share)).clamp(0, 1))
        result = result * (1 - share) + painted.clamp(0, 1) * share
    return result.clamp(0, 1)


def _tissue_gain(kinds: Tensor, rng: np.random.Generator) -> Tensor:
    """(N, *spatial) factor that makes drawn bone and discs brighter or darker, with soft edges."""
    disc = kinds == _DISC
    gain = torch.ones(kinds.shape, device=kinds.device)
    for mask in ((kinds > 0) & ~disc & (kinds != _CANAL), disc):
        gain = torch.where(mask, math.exp(rng.uniform(-1.0, 0.8)), gain)
    return _blur(gain, 0.8)


def _curve(unit: Tensor, rng: np.random.Generator) -> Tensor:
    """A random piecewise linear intensity curve through (0, 0); steps mostly up, sometimes down."""
    knots = 6
    rise = rng.normal(0.2, 0.16, knots - 1)
    values = np.concatenate([[0.0], np.cumsum(rise)])
    values = np.clip((values - values.min()) / max(np.ptp(values), 1e-3), 0, 1)
    values[0] = 0.0  # air stays dark
    return _interpolated(unit, torch.as_tensor(values, dtype=unit.dtype, device=unit.device))


def _interpolated(unit: Tensor, table: Tensor) -> Tensor:
    """Values in 0…1 → those of a table of evenly spaced knots, linear in between."""
    position = unit * (len(table) - 1)
    low = position.floor().long().clamp(max=len(table) - 2)
    fraction = position - low
    return table[low] * (1 - fraction) + table[low + 1] * fraction


def _blur(unit: Tensor, sigma: float) -> Tensor:
    """In-plane Gaussian blur, sigma in voxels."""
    radius = max(1, math.ceil(3 * sigma))
    at = torch.arange(-radius, radius + 1, device=unit.device, dtype=unit.dtype)
    kernel = torch.exp(-0.5 * (at / sigma) ** 2)
    kernel = kernel / kernel.sum()
    planes = unit.reshape(-1, 1, *unit.shape[-2:])
    planes = F.conv2d(F.pad(planes, (0, 0, radius, radius), mode="replicate"), kernel.view(1, 1, -1, 1))
    planes = F.conv2d(F.pad(planes, (radius, radius, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1))
    return planes.reshape(unit.shape)
