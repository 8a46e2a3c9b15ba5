"""What a method learns from that corrects by clicks: errors as they occur, and a simulated reader's clicks on them.

Errors are those of other checkpoints on the same images and on degraded copies of them, found once and kept in the
cache, and damage made on purpose (`damage`). A structure that nobody drew in a case is never one to correct there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage
from torch.nn import functional as F
from torch.utils.data import Dataset, default_collate

from ..anatomy import GENERIC_IDS, STRUCTURES, Kind, Structure
from ..checkpoints import find_checkpoint
from ..datasets.manifest import Case
from ..errors import CheckpointError, DatasetError, SpineSegAIError
from ..files import atomic_write
from ..imaging import Preprocessing, read_image
from ..imaging.geometry import like
from ..methods.base import Batch, Method, between_slices
from ..methods.clicking import ClickScene, click_kind, reach_mm, simulated_click, simulated_scribble
from .config import DataConfig
from .damage import damaged
from .data import CachedCase, Mixture
from .snapshot import checksum

_MARGIN = (4, 32, 32)
"""Slices, rows and columns by which the box that errors are drawn in is larger than the window that is learned from."""
_TRIES = 12
"""Boxes that are looked at for an error to click on."""
_POINTS = 12
"""Points of a click or scribble that travel with a sample."""
_PREDICTED, _FAULTLESS = 0.55, 0.03
"""How often an error is another checkpoint's, and how often there is none and the reader clicks all the same."""
_ANONYMOUS = 0.12
"""How often the network is not told what kind of structure it corrects: it may be one of the reader's own."""
_SCRIBBLES = 0.15
VALIDATION_CLICKS = (1, 3, 5)
"""After how many clicks a validation scores."""
_VALIDATED = 60
"""Scenes of a validation."""
_KIND_WEIGHTS = {Kind.VERTEBRA: 3.0, Kind.DISC: 3.0, Kind.CANAL: 1.5}
"""How often a kind is corrected relative to others, with weight 1."""


# --- other checkpoints' errors ---------------------------------------------------------------------------------------


def degraded(image: sitk.Image, rng: np.random.Generator) -> sitk.Image:
    """A copy as a worse scanner would have made it: noise, blur, a bias field, another contrast."""
    array = sitk.GetArrayFromImage(image).astype(np.float32)
    low, high = np.percentile(array, (0.5, 99.5))
    unit = np.clip((array - low) / max(float(high - low), 1e-6), 0, 1)
    coarse = rng.normal(0, 0.5, (3, 3, 3))
    unit = unit * np.exp(ndimage.zoom(coarse, np.array(unit.shape) / 3, order=1))
    unit = unit ** np.exp(rng.uniform(-0.7, 0.7))
    pixels = [rng.uniform(0.5, 1.8) / mm for mm in image.GetSpacing()[::-1]]
    unit = ndimage.gaussian_filter(unit, pixels)
    unit = np.abs(unit + rng.normal(0, rng.uniform(0.03, 0.12), unit.shape).astype(np.float32))
    return like(image, unit.astype(np.float32) * 1000)


def cached_errors(
    case: Case,
    cached: CachedCase,
    preprocessing: Preprocessing,
    checkpoints: Mapping[str, str],
    folder: Path,
    find: Callable[[str, sitk.Image], sitk.Image],
) -> list[Path]:
    """What other checkpoints find in a case and in a degraded copy of it, on the grid of its cache; made if need be.

    Args:
        checkpoints: name → checksum.
        folder: of the label maps.
        find: what the checkpoint of a name finds in an image.
    """
    wanted: dict[Path, tuple[str, bool]] = {}
    for name, check in checkpoints.items():
        for worse in (False, True):
            key = hashlib.sha256(f"{cached.folder.name} {check}".encode()).hexdigest()[:12]
            wanted[folder / f"{cached.name}-{name}{'-degraded' if worse else ''}-{key}.npz"] = (name, worse)
    missing = {path: what for path, what in wanted.items() if not path.exists()}
    if missing:
        image = read_image(case.image)
        volume = preprocessing.apply(image)
        rng = np.random.default_rng(int(hashlib.sha256(case.name.encode()).hexdigest()[:8], 16))
        worse_image = degraded(image, rng)
        folder.mkdir(parents=True, exist_ok=True)
        for path, (name, worse) in missing.items():
            try:
                found = find(name, worse_image if worse else image)
                labels = preprocessing.apply_to_labels(found, volume)
            except SpineSegAIError:  # nothing found in so bad an image: all is missing
                labels = np.zeros(volume.array.shape, np.int16)
            with atomic_write(path) as (part,), part.open("wb") as file:
                np.savez_compressed(file, labels=labels.astype(np.int16))
    return list(wanted)


# --- samples ---------------------------------------------------------------------------------------------------------


@dataclass
class _Place:
    """A structure of a case that may be corrected.

    Attributes:
        structure: which.
        code: of the voxels that are certainly it.
        maybe: codes of those that may be it.
        box: of all of them.
    """

    structure: Structure
    code: int
    maybe: tuple[int, ...]
    box: tuple[slice, ...]


@dataclass
class ClickCase:
    """A case with what is to be corrected in it.

    Attributes:
        cached: image and labels.
        errors: label maps of other checkpoints on the same grid.
        places: structures that are annotated.
    """

    cached: CachedCase
    errors: list[Path] = field(default_factory=list)
    places: list[_Place] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.source = self.cached.source
        boxes = ndimage.find_objects(np.asarray(self.cached.codes), max_label=max(len(self.cached.sets) - 1, 1))
        for code, ids in enumerate(self.cached.sets):
            if not code or len(ids) != 1 or not ids[0] or ids[0] in GENERIC_IDS or boxes[code - 1] is None:
                continue
            maybe = tuple(c for c, some in enumerate(self.cached.sets) if ids[0] in some and c != code)
            self.places.append(_Place(STRUCTURES[ids[0]], code, maybe, boxes[code - 1]))

    def choose(self, rng: np.random.Generator) -> _Place:
        """One of the places: first its kind, then which."""
        kinds = sorted({place.structure.kind for place in self.places})
        weights = np.array([_KIND_WEIGHTS.get(kind, 1.0) for kind in kinds])
        kind = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
        there = [place for place in self.places if place.structure.kind is kind]
        return there[int(rng.integers(len(there)))]


class ClickDataset(Dataset[dict[str, Any]]):
    """Scenes with a first click, a pure function of (seed, index).

    Each item holds the fields of a `ClickScene`, without the batch's axis, and ``truth`` and ``known`` (S, H, W) bool:
    the structure as it should be, and where that is known.

    Args:
        cases: the training set; those without a structure to correct are omitted.
        window: slices, rows and columns of a scene.
        spacing: mm along these.
        config: what to draw.
        seed: of the run.
        vary: whether geometry and gray values vary.
    """

    def __init__(
        self,
        cases: Sequence[ClickCase],
        window: Sequence[int],
        spacing: Sequence[float],
        config: DataConfig,
        seed: int,
        *,
        vary: bool = True,
    ) -> None:
        self.cases = [case for case in cases if case.places]
        if not self.cases:
            raise DatasetError("No structure is labeled that could be corrected.", "Add cases with masks.")
        self.window, self.spacing = np.array(window), tuple(spacing)
        self.seed, self.vary = seed, vary
        self.mixture = Mixture([case.cached for case in self.cases], range(len(self.cases)), config)

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, index, 7])
        for _ in range(_TRIES - 1):
            if (found := self._scene(rng)) is not None:
                return found
        found = None
        while found is None:
            found = self._scene(rng, made=True)
        return found

    def _scene(self, rng: np.random.Generator, made: bool = False) -> dict[str, Any] | None:
        """One sample; None where there is nothing to correct.

        Args:
            made: only damage made on purpose.
        """
        case = self.cases[self.mixture.draw(rng)]
        place = case.choose(rng)
        predicted = bool(case.errors) and not made and rng.random() < _PREDICTED
        found = None
        if case.errors:
            with np.load(case.errors[int(rng.integers(len(case.errors)))]) as stored:
                found = stored["labels"]
        image, codes, labels, inside = self._box(case, place, found, rng)
        truth = codes == place.code
        known = inside & ~np.isin(codes, place.maybe)
        if not truth.any():
            return None
        drawn = [c for c, ids in enumerate(case.cached.sets) if c and 0 not in ids and c != place.code]
        if predicted:
            start = labels == _called(labels, truth)
            others = (labels > 0) & ~start
        else:
            others = (np.isin(codes, drawn) | (labels > 0)) & ~truth
            start = truth
            if rng.random() >= _FAULTLESS:
                start, others = damaged(truth, others, self.spacing, rng)
        low, high = np.array(_MARGIN) // 2, np.array(truth.shape) - np.array(_MARGIN) // 2
        middle = np.zeros_like(truth)
        middle[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
        missing, extra = truth & ~start & known & middle, start & ~truth & known & middle
        wrong = int(missing.sum()) + int(extra.sum())
        if start is truth:  # a click where all is right
            missing = extra = truth & middle
        elif wrong * np.prod(self.spacing) < 60:  # less than anyone clicks on
            return None
        clicked = simulated_click(missing, extra & ~missing, self.spacing, rng)
        if clicked is None:
            return None
        point, sign = clicked
        stroke = point[None]
        if rng.random() < _SCRIBBLES:
            stroke = simulated_scribble(missing if sign > 0 else extra, point, self.spacing, rng, _POINTS)
        corner = np.rint(stroke.mean(0)).astype(int) - self.window // 2 + rng.integers(-3, 4, 3) * [0, 1, 1]
        corner = np.clip(corner, 0, np.array(truth.shape) - self.window)
        view = tuple(slice(a, a + n) for a, n in zip(corner, self.window, strict=True))
        points = np.zeros((_POINTS, 3), np.float32)
        signs = np.zeros(_POINTS, np.float32)
        points[: len(stroke)], signs[: len(stroke)] = stroke - corner, sign
        volume = float(start.sum() * np.prod(self.spacing))
        kind = 0 if self.vary and rng.random() < _ANONYMOUS else click_kind(place.structure.id)
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image[view])),
            "mask": torch.from_numpy(start[view].astype(np.float32)),
            "others": torch.from_numpy(others[view].astype(np.float32)),
            "points": torch.from_numpy(points),
            "signs": torch.from_numpy(signs),
            "kind": kind,
            "reach": np.float32(reach_mm(volume)),
            "inside": torch.from_numpy(inside[view].copy()),
            "truth": torch.from_numpy(truth[view].copy()),
            "known": torch.from_numpy(known[view].copy()),
        }

    def _box(
        self, case: ClickCase, place: _Place, found: np.ndarray | None, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Image, codes, another checkpoint's labels and where the image has voxels, in a box around the structure."""
        cached, vary = case.cached, self.vary
        image, codes = cached.image, cached.codes
        size = self.window + _MARGIN
        center = np.array([(side.start + side.stop - 1) / 2 for side in place.box])
        span = np.array([side.stop - side.start for side in place.box]) * cached.spacing
        if (span[1:] > 0.8 * self.window[1:] * self.spacing[1:]).any():  # a canal: somewhere along it
            plane = int(rng.integers(place.box[0].start, place.box[0].stop))
            there = np.argwhere(codes[plane] == place.code)
            center = np.array([plane, *there[int(rng.integers(len(there)))]], float) if len(there) else center
        step = self.spacing[0] / cached.spacing[0] * (rng.uniform(0.7, 1.3) if vary else 1.0)
        stray = rng.uniform(-8, 8, 3) / cached.spacing if vary else 0.0
        center = center + stray
        if cached.spacing[0] > 0.5 * self.spacing[0]:  # the slices of a thick stack are looked at, not in between
            center[0] = round(center[0])
        zs = center[0] + (np.arange(size[0]) - size[0] // 2) * step * (-1 if vary and rng.random() < 0.5 else 1)
        within = (zs >= -0.5) & (zs <= len(image) - 0.5)
        nearest = np.clip(np.rint(zs).astype(int), 0, len(image) - 1)
        zoom = np.exp(rng.uniform(-0.25, 0.25)) if vary else 1.0
        angle = np.radians(rng.uniform(-12, 12)) if vary else 0.0
        half = np.ceil(0.75 * size[1:] * self.spacing[1:] / cached.spacing[1:] * max(zoom, 1.0)).astype(int) + 2
        low = np.floor(center[1:]).astype(int) - half
        high = low + 2 * half + 1
        cut = tuple(slice(max(a, 0), min(b, n)) for a, b, n in zip(low, high, image.shape[1:], strict=True))
        first = np.array([side.start for side in cut])
        shape = np.array([max(side.stop - side.start, 1) for side in cut])
        y, x = (
            (np.arange(n) - n // 2) * mm * zoom / pixel
            for n, mm, pixel in zip(size[1:], self.spacing[1:], cached.spacing[1:], strict=True)
        )
        rows = center[1] - first[0] + y[:, None] * np.cos(angle) - x[None] * np.sin(angle)
        columns = center[2] - first[1] + y[:, None] * np.sin(angle) + x[None] * np.cos(angle)
        inside = (rows >= -0.5) & (rows <= shape[0] - 0.5) & (columns >= -0.5) & (columns <= shape[1] - 0.5)
        inside = within[:, None, None] & inside[None]
        scale = 2 / np.maximum(shape - 1, 1)
        grid = torch.from_numpy(np.stack([columns * scale[1] - 1, rows * scale[0] - 1], -1)[None].astype(np.float32))
        planes = between_slices(image[(slice(None), *cut)], zs)
        if vary and rng.random() < 0.15:  # as thick slices are
            planes = 0.7 * planes + 0.3 * between_slices(image[(slice(None), *cut)], zs + rng.choice((-1, 1)))
        sampled = F.grid_sample(
            torch.from_numpy(planes)[None], grid, mode="bilinear", padding_mode="border", align_corners=True
        )[0].numpy()
        maps = [codes[(slice(None), *cut)][nearest]]
        maps.append(np.zeros_like(maps[0], np.int16) if found is None else found[(slice(None), *cut)][nearest])
        coded, labels = (
            F.grid_sample(
                torch.from_numpy(m.astype(np.float32))[None], grid, mode="nearest", padding_mode="border",
                align_corners=True,
            )[0].numpy().astype(np.int16)
            for m in maps
        )  # fmt: skip
        coded, labels = np.where(inside, coded, 0), np.where(inside, labels, 0)
        return (_varied(sampled, rng) if vary else sampled), coded, labels, inside


def _called(labels: np.ndarray, truth: np.ndarray) -> int:
    """What another checkpoint calls a structure: the label that covers most of it; −1 where it found nothing there."""
    there = labels[truth]
    counts = np.bincount(there[there > 0]) if (there > 0).any() else np.zeros(1)
    best = int(counts.argmax())
    return best if counts[best] > 0.1 * len(there) else -1


def _varied(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gray values (−2…2) of another contrast, with a bias field, noise and blur."""
    unit = np.clip((image + 2) / 4, 0, 1)
    if rng.random() < 0.12:
        unit = np.where(unit > 0.06, 1 - unit, unit)
    if rng.random() < 0.3:
        knots = np.cumsum(np.abs(rng.normal(0.2, 0.16, 6)))
        unit = np.interp(unit, np.linspace(0, 1, 6), (knots - knots[0]) / max(knots[-1] - knots[0], 1e-3))
    if rng.random() < 0.5:
        unit = unit ** np.exp(rng.uniform(-0.6, 0.6))
    if rng.random() < 0.4:
        coarse = torch.from_numpy(rng.normal(0, 0.35, (1, 1, 3, 3)).astype(np.float32))
        unit = unit * F.interpolate(coarse, unit.shape[1:], mode="bicubic", align_corners=True)[0].exp().numpy()
    if rng.random() < 0.25:
        unit = ndimage.gaussian_filter(unit, (0, *rng.uniform(0.3, 1.3, 2)))
    if rng.random() < 0.4:
        unit = np.abs(unit + rng.standard_normal(unit.shape, np.float32) * rng.uniform(0.01, 0.08))
    return (unit * 4 - 2).astype(np.float32)


# --- for the trainer -------------------------------------------------------------------------------------------------


def click_batch(raw: Mapping[str, Any], device: torch.device) -> Batch:
    """Collated items of a `ClickDataset` → what the method sees."""
    told = {key: value.to(device, non_blocking=True) for key, value in raw.items()}
    truth, known = told.pop("truth"), told.pop("known")
    scene = ClickScene(**told)
    allowed = torch.stack([~truth | ~known, truth | ~known], 1)
    nothing = scene.image.new_zeros(len(truth), 0)
    return Batch(scene.image, allowed, nothing, nothing, prompt=scene)


class ClickMaterial:
    """A training set of clicks; see `material.Material`.

    Args:
        method: that learns.
        config: what to draw.
        seed: of the run.
        training, validation: cases.
    """

    criterion = "dice_after_3"

    def __init__(
        self,
        method: Method,
        config: DataConfig,
        seed: int,
        training: Sequence[ClickCase],
        validation: Sequence[ClickCase],
    ) -> None:
        self.cases = [case.cached for case in training]
        assert method.scenes is not None  # it learns from them
        self.spacing = method.scenes.spacing
        self.dataset = ClickDataset(training, config.patch, self.spacing, config, seed)
        self.augment = click_batch
        self.validation: list[Mapping[str, Any]] = []
        if any(case.places for case in validation):
            kept = ClickDataset(validation, config.patch, self.spacing, config, 1, vary=False)
            self.validation = [kept[number] for number in range(_VALIDATED)]

    def score(self, method: Method, case: Mapping[str, Any], device: torch.device) -> tuple[dict[str, float], None]:
        """Dice of a scene before and after a simulated reader's clicks."""
        batch = click_batch(default_collate([case]), device)
        scene: ClickScene = batch.prompt
        truth, known = batch.label[0] == 1, batch.known[0, 1]
        rng = np.random.default_rng(int(scene.points.abs().sum() * 100))
        scores = {"dice_before": _dice(scene.mask[0] > 0.5, truth, known)}
        for number in range(1, max(VALIDATION_CLICKS) + 1):
            with torch.inference_mode():
                answer = method.refined(scene) > 0.5
            scene.mask = answer.float()
            if number in VALIDATION_CLICKS:
                scores[f"dice_after_{number}"] = _dice(answer[0], truth, known)
            missing, extra = (truth & ~answer[0] & known), (answer[0] & ~truth & known)
            clicked = simulated_click(missing.cpu().numpy(), extra.cpu().numpy(), self.spacing, rng)
            if clicked is not None:
                point = scene.points.new_tensor(clicked[0])[None, None]
                scene = scene.with_clicks(point, scene.signs.new_full((1, 1), clicked[1]))
        return scores, None


def _dice(found: torch.Tensor, truth: torch.Tensor, known: torch.Tensor) -> float:
    both = float((found & truth & known).sum())
    return 2 * both / max(float((found & known).sum() + (truth & known).sum()), 1.0)


def make_click_material(
    method: Method,
    config: DataConfig,
    preprocessing: Preprocessing,
    seed: int,
    training: Sequence[tuple[Case | None, CachedCase]],
    validation: Sequence[tuple[Case, CachedCase]],
    folder: Path,
    beat: Callable[[int, int], None],
) -> ClickMaterial:
    """The training set, with what the checkpoints in `DataConfig.mistakes_of` find in its cases.

    Args:
        training: cases with what is cached of them; no case for synthetic images, which no checkpoint is tried on.
        folder: of the run's cache.
        beat: told how many cases are done, and of how many, before everything that takes long; it may raise.
    """
    from ..inference import Predictor

    checkpoints = {name: checksum(find_checkpoint(name).path, CheckpointError) for name in config.mistakes_of}
    loaded: dict[str, Predictor] = {}

    made: list[ClickCase] = []
    total = len(training) + len(validation)

    def find(name: str, image: sitk.Image) -> sitk.Image:
        beat(len(made), total)
        predictor = loaded.get(name) or loaded.setdefault(name, Predictor(name, "cpu"))
        return predictor.segment(image, options=predictor.method.validation_options).labels

    for case, cached in [*training, *validation]:
        errors = []
        if case is not None and case.label is not None:
            errors = cached_errors(case, cached, preprocessing, checkpoints, folder / "mistakes", find)
        made.append(ClickCase(cached, errors))
        beat(len(made), total)
    return ClickMaterial(method, config, seed, made[: len(training)], made[len(training) :])
