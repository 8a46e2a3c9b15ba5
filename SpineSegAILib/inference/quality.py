"""Outline quality: how likely a reader's outline of a structure would agree with the one that was found.

Four things are looked at: how sure the network is of the structure's voxels, how well its slices (each of which a 2D
network sees by itself) agree with each other, whether the image has an edge where the outline runs, and whether size
and shape are those of its neighbors. A logistic function makes one number of them; its weights are fitted on labeled
cases and their damaged copies (`evaluation.quality`) and are stored with the checkpoint.

Two things no labeled case teaches, and are limits: what the image's border cuts is not a whole outline, however good
the part in view is; and an S1 without its upper back corner is broken, since no measurement can rest on it. Posterior
elements have no quality: readers drew those of a column as one, so that no case teaches what a good outline of one
vertebra's is.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator
from scipy import ndimage

from ..anatomy import KINDS, SACRUM_ID, STRUCTURES, Kind, LabelScheme, order_of
from ..consistency import LevelResult
from ..evidence import Evidence
from ..imaging import CanonicalVolume
from ..results import Segmentation
from ..results.measurement import sacrum_is_broken
from ..results.quality import BROKEN, CUT, cut_by_border
from .restore import channels_without_kind

FEATURES = ("unsure", "slices", "edge", "size", "ragged", "disc", "canal")
KIND_FEATURES = ("disc", "canal")
"""What the logistic function takes, see `describe`; and which of it says of what kind a structure is."""


class QualityModel(BaseModel):
    """Log odds of a good outline: `bias` plus the weighted features."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bias: float = Field(0.0, ge=-50, le=50, description="log odds where every feature is zero")
    weights: dict[str, float] = Field(default_factory=dict, description="log odds per unit of each feature")

    @field_validator("weights")
    @classmethod
    def _known(cls, value: dict[str, float]) -> dict[str, float]:
        for name, weight in value.items():
            if name not in FEATURES:
                raise ValueError(f"“{name}” is not a feature; available: {', '.join(FEATURES)}")
            if not abs(weight) <= 50:  # NaN is not, either
                raise ValueError(f"the weight of {name} is not a log-odds value")
        return value

    def quality(self, features: Mapping[str, float]) -> float:
        """0…1: the probability that the outline is good."""
        odds = self.bias + sum(weight * features[name] for name, weight in self.weights.items())
        return float(1 / (1 + np.exp(-np.clip(odds, -50, 50))))


QUALITY_PRIOR = QualityModel(
    bias=5.26,
    weights={
        "unsure": -0.6, "slices": -1.15, "edge": 0.0, "size": -1.42, "ragged": -0.56, "disc": -3.52, "canal": -1.61,
    },
)  # fmt: skip
"""Where a fit starts, and near which it stays where its outlines say little: fitted on 700 outlines of two
residual-encoder U-Nets in 60 cases and their copies with other contrasts, of which 102 were poor. The edge's contrast
said nothing there. Of other networks it says nothing: a checkpoint without a fit of its own tells no quality."""
NOT_FITTED = "No outline quality is given: it has not been fitted for this model."


def outline_quality(
    model: QualityModel, evidence: Evidence, levels: LevelResult, volume: CanonicalVolume, result: Segmentation
) -> dict[int, float]:
    """Quality of each structure of a result but posterior elements, by id.

    Args:
        model: of the checkpoint.
        evidence: what the network said.
        levels: what followed from it, on the same grid.
        volume: the image on that grid.
        result: the result on the image's own grid.
    """
    features = describe(evidence, levels.labels, volume)
    present = set(result.present)
    taught = {sid for sid in present if STRUCTURES[sid].kind is not Kind.POSTERIOR}
    quality = {sid: model.quality(found) for sid, found in features.items() if sid in taught}
    cut = cut_by_border(result.labels)
    quality = {sid: min(q, CUT) if sid in cut else q for sid, q in quality.items()}
    if SACRUM_ID in quality and sacrum_is_broken(result):
        quality[SACRUM_ID] = min(quality[SACRUM_ID], BROKEN)
    return {sid: round(q, 4) for sid, q in quality.items()}


def describe(evidence: Evidence, labels: np.ndarray, volume: CanonicalVolume) -> dict[int, dict[str, float]]:
    """The features of every structure of `labels` (D, H, W), by id; each is 0 for a usual good outline and rises with
    what speaks against it, but for the kinds.

    - ``unsure``: log of what the network's probability of the kind lacks to 1 on average, over 0.1;
    - ``slices``: Dice that is missing between neighboring slices in the middle of the structure, over 0.05;
    - ``edge``: log of the image's usual step across outlines over that along this one;
    - ``size``: how far its volume is from what its neighbors let expect, in natural-log units;
    - ``ragged``: share of it that is thinner than 4 mm in the sagittal plane, over 0.02; not of discs;
    - ``disc``, ``canal``: 1 for those, which are thin: what costs a vertebra little costs them much.
    """
    boxes = ndimage.find_objects(labels)
    ids = [sid for sid, box in enumerate(boxes, start=1) if box is not None and sid in STRUCTURES]
    channels = _Channels(evidence)
    spacing = np.array(evidence.spacing)
    margin = np.maximum(np.ceil(_AROUND_MM / spacing).astype(int), 1)
    margin[0] = 0  # the next slice is another outline
    found: dict[int, dict[str, float]] = {}
    sharpness: dict[int, float] = {}
    for sid in ids:
        box = tuple(
            slice(max(b.start - m, 0), min(b.stop + m, n))
            for b, m, n in zip(boxes[sid - 1], margin, labels.shape, strict=True)
        )
        mask = labels[box] == sid
        kind = STRUCTURES[sid].kind
        missing = 1.0 - float(channels.of(sid, box)[mask].mean())
        surface = mask & ~ndimage.binary_erosion(mask, _IN_PLANE, border_value=1)
        steps = _steps(volume.array[box], evidence.spacing)
        sharpness[sid] = float(steps[surface].mean()) if surface.any() else 0.0
        found[sid] = {
            "unsure": float(np.log(max(missing, 1e-3) / 0.1)),
            "slices": _between_slices(mask) / 0.05,
            "ragged": 0.0 if kind is Kind.DISC else _thin_share(mask, spacing) / 0.02,
            "disc": float(kind is Kind.DISC),
            "canal": float(kind in (Kind.CANAL, Kind.CORD)),
        }
    usual = float(np.median(list(sharpness.values()))) if sharpness else 1.0
    volumes = {sid: float((labels[boxes[sid - 1]] == sid).sum()) for sid in ids}
    for sid, features in found.items():
        features["edge"] = float(np.clip(np.log((usual + 1e-3) / (sharpness[sid] + 1e-3)), -2, 2))
        features["size"] = _beside_neighbours(sid, volumes)
    return found


_AROUND_MM = 4.0  # what blurs the edges
_THIN_MM = 4.0  # a third of the lowest crushed body; what is thinner is a spur of the outline
_IN_PLANE = np.zeros((3, 3, 3), bool)
_IN_PLANE[1] = ndimage.generate_binary_structure(2, 1)
_NEAR = 3  # levels up and down that a volume is compared with


class _Channels:
    """Probability of a structure's kind (of its class, where it has no kind) in a box."""

    def __init__(self, evidence: Evidence) -> None:
        self.scheme: LabelScheme = evidence.scheme
        self.classes = evidence.classes
        spinal = evidence.kinds is not None or set(evidence.scheme.kinds) - {0}
        self.kinds = evidence.kind_probabilities() if spinal else None
        self.by_class = {evidence.scheme.ids[channel - 1]: channel for channel in channels_without_kind(evidence)}

    def of(self, sid: int, box: tuple[slice, ...]) -> np.ndarray:
        if self.kinds is None or sid in self.by_class:
            assert self.classes is not None
            return self.classes[self.scheme.channel_of[sid]][box].astype(np.float32)
        kind = STRUCTURES[sid].kind.value
        if STRUCTURES[sid].is_vertebral:  # vertebra and sacrum are told apart by their level alone
            return self.kinds[KINDS.index("vertebra")][box] + self.kinds[KINDS.index("sacrum")][box]
        return self.kinds[KINDS.index(kind)][box]


def _steps(image: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Strength of the image's edges in the sagittal plane."""
    sigma = [0.0, *(1.0 / step for step in spacing[1:])]
    down, back = (ndimage.gaussian_filter(image, sigma, order=order, truncate=3.0) for order in ((0, 1, 0), (0, 0, 1)))
    return np.hypot(down, back)


def _between_slices(mask: np.ndarray) -> float:
    """1 − mean Dice of neighboring slices, over the middle half of those that have the structure."""
    areas = mask.sum((1, 2)).astype(float)
    inside = np.flatnonzero(areas)
    quarter = len(inside) // 4
    middle = inside[quarter : len(inside) - quarter]
    pairs = [(a, b) for a, b in pairwise(middle) if b == a + 1]
    if not pairs:
        return 0.0
    return 1.0 - float(np.mean([2 * (mask[a] & mask[b]).sum() / (areas[a] + areas[b]) for a, b in pairs]))


def _thin_share(mask: np.ndarray, spacing: np.ndarray) -> float:
    """Share of the mask that no disk of `_THIN_MM` inside it covers."""
    rows, columns = (max(round(_THIN_MM / step), 1) for step in spacing[1:])
    tile = np.ones((1, rows, columns), bool)
    padded = np.pad(mask, ((0, 0), (rows, rows), (columns, columns)), mode="edge")
    opened = ndimage.binary_opening(padded, tile)[:, rows:-rows, columns:-columns]
    return 1.0 - float((opened & mask).sum()) / float(mask.sum())


def _beside_neighbours(sid: int, volumes: Mapping[int, float]) -> float:
    """|log| of a volume over the median of its neighbors of the same kind; 0 where there are fewer than two."""
    structure = STRUCTURES[sid]
    if structure.order is None or structure.kind not in (Kind.VERTEBRA, Kind.DISC, Kind.SACRUM):
        return 0.0
    kinds = (Kind.DISC,) if structure.kind is Kind.DISC else (Kind.VERTEBRA,)
    near = [
        volume
        for other, volume in volumes.items()
        if other != sid and STRUCTURES[other].kind in kinds and STRUCTURES[other].order is not None
        and abs(order_of(other) - order_of(sid)) <= _NEAR
    ]  # fmt: skip
    return abs(float(np.log(volumes[sid] / np.median(near)))) if len(near) > 1 else 0.0
