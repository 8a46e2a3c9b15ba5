"""Training data: cases preprocessed once into memory-mapped files, samples drawn from them.

A sample depends on the seed and its number alone, so a run can stop anywhere, go on with another number of
processes, and see the same samples in the same order.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage
from torch.utils.data import Dataset, Sampler

from ..anatomy import GENERIC_IDS, KINDS, STRUCTURES, Kind, LabelScheme, laterality, ranks
from ..datasets.manifest import Case, read_case
from ..errors import DatasetError, HintError
from ..files import read_json
from ..hints import Point
from ..imaging import Preprocessing, read_image
from ..keypoints import KEYPOINT_REACH_MM, keypoint_indices
from ..methods.base import between_slices, context_offsets
from ..phantoms.spine import make_phantom, random_spec
from ..phantoms.vessels import make_vessels, random_vessels
from .config import DataConfig
from .regions import code_label

if TYPE_CHECKING:
    from .snapshot import Snapshot

_CACHE_VERSION = 6
_ARRAYS = ("image.npy", "codes.npy")
MAX_CODES = 96
"""Rows of the table of voxel sets that travels with every sample."""


@dataclass
class CachedCase:
    """A preprocessed case on disk.

    Attributes:
        folder: holds ``image.npy`` (float16, (D, H, W)), ``codes.npy`` (uint8) and ``case.json``.
        source: where the case comes from; ``"phantom"`` for synthetic ones.
        labelled_slices: those with labels or, in a weak case, near keypoints.
        weak: whether there are keypoints but no masks.
        centres: (structure id, slice, row, column, pixels) of every mask in every slice.
        keypoints: structure id → (slice, row, column) of the annotated keypoints.
    """

    folder: Path
    source: str

    def __post_init__(self) -> None:
        meta = read_json(self.folder / "case.json", DatasetError)
        self.name: str = meta["name"]
        self.spacing: tuple[float, float, float] = tuple(meta["spacing"])
        self.sets: list[list[int]] = meta["sets"]
        self.labelled_slices: list[int] = meta["labelled_slices"]
        self.weak: bool = meta["weak"]
        self.centres: list[tuple[int, int, float, float, int]] = [tuple(c) for c in meta["centres"]]
        self.keypoints: dict[int, tuple[float, float, float]] = {int(i): tuple(p) for i, p in meta["keypoints"].items()}
        self.center: tuple[float, float, float] = tuple(meta["center"])
        self.checks: dict[str, int] = dict(meta.get("checks", {}))  # of earlier versions, none

    @property
    def image(self) -> np.ndarray:
        """(D, H, W) float16, memory-mapped."""
        return np.load(self.folder / "image.npy", mmap_mode="r")

    @property
    def codes(self) -> np.ndarray:
        """(D, H, W) uint8, memory-mapped."""
        return np.load(self.folder / "codes.npy", mmap_mode="r")

    @property
    def is_whole(self) -> bool:
        """Whether its arrays are there, and as large as they say."""
        try:
            image, codes = self.image, self.codes
        except (OSError, EOFError, ValueError):
            return False
        kinds = image.dtype == np.float16 and codes.dtype == np.uint8
        return kinds and image.ndim == 3 and codes.shape == image.shape

    def tables(self, scheme: LabelScheme) -> tuple[np.ndarray, np.ndarray]:
        """Per code: (MAX_CODES, C) bool allowed channels, and (MAX_CODES,) float32 rank, NaN where there is none."""
        allowed = np.zeros((MAX_CODES, scheme.channels), bool)
        allowed[:, 0] = True
        rank = np.full(MAX_CODES, np.nan, np.float32)
        if self.weak:  # it has no opinion on masks, not even of the air around it: the loss is exactly 0
            return np.ones_like(allowed), rank
        present = {i for s in self.sets if len(s) == 1 for i in s}
        rank_of = ranks(present)
        for code, ids in enumerate(self.sets):
            channels: set[int] = set()
            for i in ids:
                channels |= possible_channels(scheme, i)
            allowed[code] = False
            allowed[code, list(channels)] = True
            if len(ids) == 1 and ids[0] in rank_of:
                rank[code] = rank_of[ids[0]]
        return allowed, rank

    def kinds(self) -> np.ndarray:
        """(MAX_CODES,) uint8: per code the index in `KINDS` of what is drawn there; 0 for nothing, or not one kind."""
        result = np.zeros(MAX_CODES, np.uint8)
        for code, ids in enumerate(self.sets):
            kinds = {STRUCTURES[i].kind.value if i else "" for i in ids}
            if len(kinds) == 1 and (kind := kinds.pop()) in KINDS:
                result[code] = KINDS.index(kind)
        return result

    def points(self, scheme: LabelScheme, slice_index: int | None = None) -> np.ndarray:
        """Centers of the structures, from the masks, else from the annotated keypoints.

        Args:
            scheme: which structures.
            slice_index: for one slice; an annotated keypoint counts for slices within `KEYPOINT_REACH_MM`.

        Returns:
            (C − 1, 2) row and column in the slice, or (C − 1, 3) in the volume; NaN where not known.
        """
        result = np.full((scheme.channels - 1, 3), np.nan, np.float32)
        for sid, point in self.keypoints.items():
            near = slice_index is None or abs(point[0] - slice_index) * self.spacing[0] <= KEYPOINT_REACH_MM
            if near and sid in scheme.channel_of:
                result[scheme.channel_of[sid] - 1] = point
        pieces: dict[int, list[tuple[float, ...]]] = {}
        for sid, at, row, column, pixels in self.centres:
            if slice_index in (None, at) and sid in scheme.channel_of:
                pieces.setdefault(sid, []).append((at, row, column, pixels))
        for sid, found in pieces.items():
            *index, pixels = np.array(found).T
            result[scheme.channel_of[sid] - 1] = np.average(np.stack(index), axis=1, weights=pixels)
        return result if slice_index is None else result[:, 1:]


def possible_channels(scheme: LabelScheme, structure_id: int) -> set[int]:
    """Channels that a voxel of a structure may be; 0 is background.

    A vertebra, disc or posterior element that the scheme has no channel for (T8 at the top of a tall image) is
    undecided: neither background nor any certain level of its kind.
    """
    if structure_id == 0:
        return {0}
    channel = scheme.channel_for(structure_id)
    kind = STRUCTURES[structure_id].kind
    if structure_id in GENERIC_IDS and not channel:  # a level or side that is not known
        return {scheme.channel_of[i] for i in scheme.members(structure_id)} or {0}
    if channel or kind not in (Kind.VERTEBRA, Kind.SACRUM, Kind.DISC, Kind.POSTERIOR):
        return {channel}
    return {0, *(scheme.channel_of[i] for i in scheme.of_kind(kind))}


def cache_case(
    case: Case, preprocessing: Preprocessing, scheme: LabelScheme, folder: Path, snapshot: Snapshot | None = None
) -> CachedCase:
    """Preprocess a case of a manifest, or take it from the cache if nothing has changed.

    Args:
        snapshot: what a run knew of its data at the start: the case is as it was then, whatever became of its files.

    Raises:
        DatasetError: a keypoint lies outside the image; the labels are not on its grid; the files are not what they
            were in the snapshot.
    """

    def load() -> tuple[sitk.Image, sitk.Image | None, Sequence[int]]:
        if snapshot is not None:
            snapshot.verify(case)
        image, label = read_case(case) if case.label else (read_image(case.image), None)
        return image, label, case.annotated

    if snapshot is not None:
        stamp = snapshot.stamp(case)
    else:
        stamp = [str(case.image.resolve()), case.image.stat().st_mtime_ns, case.annotated]
        stamp += [sorted(case.keypoints.items()), case.label_values]
        for path in (case.label, case.label_whole):
            stamp += [str(path.resolve()), path.stat().st_mtime_ns] if path else []
    return _cached(case.name, case.source or "data", stamp, load, preprocessing, scheme, folder, case.keypoints)


def cache_phantom(
    number: int, seed: int, preprocessing: Preprocessing, scheme: LabelScheme, folder: Path
) -> CachedCase:
    """Make synthetic image `number` of a seed, or take it from the cache: vessels for schemes of vessels, else a spine.

    All that such an image can show is labeled; what it never shows (a structure that a scheme added) is unknown there.
    """
    vessels = bool(scheme.of_kind(Kind.ARTERY, Kind.VEIN))
    shown = (Kind.ARTERY, Kind.VEIN) if vessels else (Kind.VERTEBRA, Kind.SACRUM, Kind.DISC, Kind.CANAL)
    annotated = tuple(s.id for s in STRUCTURES.values() if s.kind in shown)

    def load() -> tuple[sitk.Image, sitk.Image | None, Sequence[int]]:
        rng = np.random.default_rng([seed, number])
        phantom = make_vessels(random_vessels(rng), rng) if vessels else make_phantom(random_spec(rng), rng)
        return phantom.image, phantom.labels, annotated

    return _cached(f"phantom_{seed}_{number}", "phantom", [seed, number], load, preprocessing, scheme, folder)


def _cached(
    name: str,
    source: str,
    stamp: Sequence[Any],
    load: Callable[[], tuple[sitk.Image, sitk.Image | None, Sequence[int]]],
    preprocessing: Preprocessing,
    scheme: LabelScheme,
    folder: Path,
    keypoints: Mapping[int, Point] | None = None,
) -> CachedCase:
    key = json.dumps([_CACHE_VERSION, name, stamp, preprocessing.model_dump(), scheme.ids], default=str)
    target = folder / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if found := _kept(target, source):
        return found
    image, label_image, annotated = load()
    volume = preprocessing.apply(image)
    if label_image is not None:
        label = preprocessing.apply_to_labels(label_image, volume)
    else:
        label = np.zeros(volume.array.shape, np.int16)
    coded = code_label(label, annotated, scheme.ids, volume.spacing)
    if len(coded.sets) > MAX_CODES:
        raise DatasetError(f"{name} has more than {MAX_CODES} kinds of regions.", "Annotate whole runs of levels.")
    try:
        points = keypoint_indices(keypoints or {}, volume)
    except HintError as error:
        raise DatasetError(f"{name}: {error.message}", error.remedy) from None
    drawn = np.argwhere(label > 0)
    weak = not len(drawn) and bool(points)
    labelled = (label > 0).any((1, 2))
    if weak:
        drawn = np.array(list(points.values()))
        slices = np.arange(len(label))
        labelled = (abs(drawn[:, :1] - slices) * volume.spacing[0] <= KEYPOINT_REACH_MM).any(0)
    meta = {
        "name": name,
        "spacing": volume.spacing,
        "sets": [sorted(s) for s in coded.sets],
        "labelled_slices": np.flatnonzero(labelled).tolist(),
        "weak": weak,
        "centres": _centres(label, set(annotated)),
        "keypoints": points,
        "center": (drawn.mean(0) if len(drawn) else np.array(label.shape) / 2).tolist(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder))
    np.save(part / "image.npy", volume.array.astype(np.float16))
    np.save(part / "codes.npy", coded.codes)
    meta["checks"] = {name: _check_sum(part / name) for name in _ARRAYS}
    (part / "case.json").write_text(json.dumps(meta), encoding="utf-8")
    try:
        os.replace(part, target)
    except OSError:  # another process was quicker
        shutil.rmtree(part, ignore_errors=True)
    return CachedCase(target, source)


def _kept(target: Path, source: str) -> CachedCase | None:
    """The case in the cache; None if it is not there, or damaged: then it is taken away, to be made again."""
    if not target.exists():
        return None
    try:
        case = CachedCase(target, source)
        if case.is_whole and all(_check_sum(target / name) == value for name, value in case.checks.items()):
            return case
    except (DatasetError, OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    os.replace(target, aside / target.name)  # whoever reads it keeps what it has open
    shutil.rmtree(aside, ignore_errors=True)
    return None


def _check_sum(path: Path) -> int:
    """CRC-32 of a file: tells damage, not intent."""
    result = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            result = zlib.crc32(block, result)
    return result


def _centres(label: np.ndarray, annotated: set[int]) -> list[tuple[int, int, float, float, int]]:
    """(structure id, slice, row, column, pixels) of each annotated mask of known level in each slice."""
    found = []
    for sid, box in enumerate(ndimage.find_objects(label.astype(np.int32)), start=1):
        if box is None or sid not in annotated or not STRUCTURES[sid].is_counted:
            continue
        mask = label[box] == sid
        for offset, plane in enumerate(mask):
            where = np.argwhere(plane)
            if len(where):
                row, column = np.add(where.mean(0), (box[1].start, box[2].start))
                found.append((sid, box[0].start + offset, float(row), float(column), len(where)))
    return found


class SampleDataset(Dataset[dict[str, Any]]):
    """Windows around the spine, a pure function of (seed, index).

    Each item holds ``image`` (N, *window) float32: the slice and, for a method with `Tiling.context_mm`, those beside
    it, ``codes`` (N, *window) uint8, the first of them the target, ``allowed`` (MAX_CODES, C) bool, ``rank``
    (MAX_CODES,) float32, ``kinds`` (MAX_CODES,) uint8 (`CachedCase.kinds`), ``box`` (dims, 2) float32: the image's
    extent inside the window (voxels), ``keypoints`` (C − 1, dims) float32: positions in the window, NaN where not
    known, ``position``: place of the drawn slice in its stack (0 to 1), and ``number``: the index, from which the
    augmentation draws. The window is larger than the patch, for zoom and rotation.

    Where there are cases with masks and weak ones, with keypoints alone, every run of samples has `weak_share` of the
    latter, so the batches are mixed evenly and how many weak cases there are does not change how often the others come.

    Args:
        cases: the training set.
        scheme: the network's label scheme.
        config: what to draw.
        seed: of the run.
        padding: value of air.
        margin: window size over patch size.
        context_mm: 2D: distances of the neighboring slices that the method sees (`Tiling.context_mm`).
    """

    def __init__(
        self,
        cases: Sequence[CachedCase],
        scheme: LabelScheme,
        config: DataConfig,
        seed: int,
        padding: float,
        margin: float = 1.5,
        context_mm: Sequence[float] = (),
    ) -> None:
        if not cases:
            raise DatasetError("There are no cases to train on.", "Add cases to the “training” list of the dataset.")
        self.cases = list(cases)
        self.config = config
        self.seed = seed
        self.padding = padding
        self.context_mm = tuple(context_mm)
        self.mirror = config.augmentation.mirror_left_right and not any(map(laterality, scheme.ids))
        self.dims = len(config.patch)
        in_plane = tuple(math.ceil(s * margin) for s in config.patch[-2:])
        self.window = in_plane if self.dims == 2 else (config.patch[0], *in_plane)
        self.scheme = scheme
        self.tables = [(*c.tables(scheme), c.kinds()) for c in self.cases]
        full, weak = ([i for i, c in enumerate(self.cases) if c.weak is flag] for flag in (False, True))
        self.weak_share = config.weak_share if full and weak else float(bool(weak))
        self.mixtures = {flag: Mixture(self.cases, which, config) for flag, which in ((False, full), (True, weak))}

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, index])
        weak = math.floor((index + 1) * self.weak_share) > math.floor(index * self.weak_share)
        which = self.mixtures[weak].draw(rng)
        case = self.cases[which]
        image, codes = case.image, case.codes
        shape = image.shape
        if case.labelled_slices and (case.weak or rng.random() < self.config.labelled_share):
            slice_index = int(rng.choice(case.labelled_slices))
        else:
            slice_index = int(rng.integers(shape[0]))
        position = (slice_index + 0.5) / shape[0]
        # A window around the column, shifted at random; where the image is smaller than the window it is centered.
        center, spread = self._center(case, slice_index, rng)
        start = []
        for axis, size in zip((1, 2), self.window[-2:], strict=True):
            room = shape[axis] - size
            middle = center[axis] + rng.uniform(-spread, spread) * size
            start.append(round(min(max(middle - size / 2, 0), room)) if room > 0 else -((size - shape[axis]) // 2))
        if self.dims == 3:
            depth, room = self.window[0], shape[0] - self.window[0]
            low = round(min(max(slice_index - depth / 2, 0), room)) if room > 0 else -((depth - shape[0]) // 2)
            start = [low, *start]
        else:
            at = self._slices(case, slice_index, rng)
            image, shape = self._drawn(image, at, rng), shape[1:]
            codes = codes[np.clip(np.rint(at).astype(int), 0, len(codes) - 1)]
        points = case.points(self.scheme, slice_index if self.dims == 2 else None) - np.array(start, np.float32)
        image, codes = image.reshape(-1, *shape), codes.reshape(-1, *shape)
        window_image = np.full((len(image), *self.window), self.padding, np.float32)
        window_codes = np.zeros((len(codes), *self.window), np.uint8)
        source_box, target_box = [], []
        for low, size, full in zip(start, self.window, shape, strict=True):
            source_box.append(slice(max(low, 0), min(low + size, full)))
            target_box.append(slice(max(-low, 0), max(-low, 0) + source_box[-1].stop - source_box[-1].start))
        window_image[(slice(None), *target_box)] = image[(slice(None), *source_box)]
        window_codes[(slice(None), *target_box)] = codes[(slice(None), *source_box)]
        allowed, rank, kinds = self.tables[which]
        # The extent of the *whole* image in window coordinates: positions are relative to it even if it sticks out.
        box = [(-low, -low + full) for low, full in zip(start, shape, strict=True)]
        return {
            "image": torch.from_numpy(window_image),
            "codes": torch.from_numpy(window_codes),
            "allowed": torch.from_numpy(allowed),
            "rank": torch.from_numpy(rank),
            "kinds": torch.from_numpy(kinds),
            "box": torch.tensor(box, dtype=torch.float32),
            "keypoints": torch.from_numpy(points),
            "spacing": torch.tensor(case.spacing[-self.dims :], dtype=torch.float32),
            "number": index,
            "position": position,
        }

    def _slices(self, case: CachedCase, slice_index: int, rng: np.random.Generator) -> np.ndarray:
        """Where in the stack the slices of a sample lie, the drawn one first; fractional.

        The neighbors to the left may be those to the right: a spine looks like its mirror image. Their distance varies
        a little, as that of slices does, and now and then there are none: then the slice stands for them, as inference
        lets it in a stack of one.
        """
        offsets = context_offsets(self.context_mm) / case.spacing[0]
        if len(offsets) > 1:
            side = rng.choice((-1.0, 1.0)) if self.mirror else 1.0
            offsets = offsets * (0.0 if rng.random() < self.config.lone_share else rng.uniform(0.75, 1.25) * side)
        return np.clip(slice_index + offsets, 0, len(case.image) - 1)

    def _drawn(self, image: np.ndarray, at: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(N, H, W) float32 slices there, now and then mixed with those to one side of them, as thick ones are."""
        side = int(rng.choice((-1, 1)))
        share = rng.uniform(0.1, 0.5) if rng.random() < self.config.blend_share else 0.0
        drawn = between_slices(image, at)
        return (1 - share) * drawn + share * between_slices(image, at + side) if share else drawn

    def _center(
        self, case: CachedCase, slice_index: int, rng: np.random.Generator
    ) -> tuple[tuple[float, float, float], float]:
        """Where a window is put, and by which share of its size it may stray."""
        if self.config.focus == "column":
            return case.center, 0.2
        drawn = [code for code, ids in enumerate(case.sets) if 0 not in ids]
        at = np.argwhere(np.isin(case.codes[slice_index], drawn)) if slice_index in case.labelled_slices else ()
        if len(at):
            row, column = at[rng.integers(len(at))].tolist()
            return (slice_index, row, column), 0.25
        row, column = (rng.uniform(0, n) for n in case.image.shape[1:])
        return (slice_index, row, column), 0.0


class Mixture:
    """Draws a case: first its source, by weight, then one of the source's.

    Args:
        cases: all of them.
        which: numbers of those that are drawn.
        config: how often a source is drawn, and synthetic images.
    """

    def __init__(self, cases: Sequence[CachedCase], which: Sequence[int], config: DataConfig) -> None:
        self.by_source: dict[str, list[int]] = {}
        for index in which:
            self.by_source.setdefault(cases[index].source, []).append(index)
        real = {s: config.source_weights.get(s, math.sqrt(len(i))) for s, i in self.by_source.items() if s != "phantom"}
        total = sum(real.values())
        phantom = config.phantom_share if "phantom" in self.by_source and real else float("phantom" in self.by_source)
        self.sources = [*real, *(["phantom"] if phantom else [])]
        self.weights = [w / total * (1 - phantom) for w in real.values()] + ([phantom] if phantom else [])

    def draw(self, rng: np.random.Generator) -> int:
        """Index of a case."""
        source = self.sources[rng.choice(len(self.sources), p=self.weights)]
        return int(rng.choice(self.by_source[source]))


class StepSampler(Sampler[list[int]]):
    """Batches of one process: of step s, the numbers s·B + rank·b … of the global batch B, b = B / processes."""

    def __init__(self, first_step: int, steps: int, global_batch: int, rank: int = 0, processes: int = 1) -> None:
        self.first_step, self.steps, self.global_batch = first_step, steps, global_batch
        self.local = global_batch // processes
        self.rank = rank

    def __len__(self) -> int:
        return max(self.steps - self.first_step, 0)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first_step, self.steps):
            first = step * self.global_batch + self.rank * self.local
            yield list(range(first, first + self.local))
