"""What `resolve_levels` returns, and how its names are taken to another grid."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from ..anatomy import STRUCTURES, Kind
from ..results import Alternative
from .settings import ConsistencySettings


@dataclass(frozen=True)
class Instance:
    """One vertebra, disc, canal or vessel.

    Attributes:
        kind: ``"vertebra"``, ``"sacrum"``, ``"disc"``, ``"canal"`` …
        structure_id: its level; 0 for what was omitted (it has no voxels in `LevelResult.labels`).
        centroid_mm: position along (slices, rows, columns) from the center of the grid's first voxel.
        volume_mm3: of its voxels.
        rank: median rank that the network gave it, or None.
        confidence: 0…1; of the level for vertebrae and discs, of the voxels for the rest.
        runner_up: the next most probable level, or None.
        touches_border: reaches the first or last row or column, so that it may be cut.
    """

    kind: str
    structure_id: int
    centroid_mm: tuple[float, float, float]
    volume_mm3: float
    rank: float | None
    confidence: float
    runner_up: int | None
    touches_border: bool


@dataclass
class LevelResult:
    """What `resolve_levels` returns.

    Attributes:
        labels: (D, H, W) int16 structure ids, 0 background.
        instances: top down, vertebrae first, then discs, then the rest; those omitted have `structure_id` 0.
        spacing: mm along (slices, rows, columns).
        pieces: (D, H, W) int16; voxel value i + 1 belongs to `instances[i]`, omitted or not.
        sequence: for a reader, e.g. ``"T11 T12 L1 (L2) L3"``, a missing level in brackets.
        confidence: structure id → 0…1.
        margin: log odds of the sequence to the second-best one, at most 20.
        alternatives: other namings that read differently, best first.
        warnings: sentences for the reader.
    """

    labels: np.ndarray
    instances: list[Instance]
    spacing: tuple[float, float, float]
    pieces: np.ndarray
    sequence: str = ""
    confidence: dict[int, float] = field(default_factory=dict)
    margin: float = 20.0
    alternatives: list[Alternative] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def level_confidence(self) -> float | None:
        """0…1, that all names are right; that of the least certain level. None where nothing has a level."""
        levelled = [c for sid, c in self.confidence.items() if STRUCTURES[sid].is_counted]
        return min(levelled, default=None)


def nearest_level_maps(result: LevelResult, reach: float = ConsistencySettings.reach) -> dict[str, np.ndarray]:
    """For each kind a (D, H, W) int16 map: every voxel's nearest instance of this kind, as a structure id.

    For carrying names to a grid where the kinds were decided again: take the kind there and the level here (nearest
    neighbor). 0 where no instance lies within `reach` mm, or where the nearest one was omitted. Vertebra and
    sacrum share one map, since which of the two bones it is, is decided here.

    Args:
        result: of `resolve_levels`.
        reach: mm; at least one and a half voxels are looked at in any direction.
    """
    bone = (Kind.VERTEBRA.value, Kind.SACRUM.value)
    groups: dict[str, list[int]] = {}
    for number, instance in enumerate(result.instances, start=1):
        groups.setdefault(bone[0] if instance.kind in bone else instance.kind.split(" ")[0], []).append(number)
    maps = {kind: _nearest(result, numbers, reach) for kind, numbers in groups.items()}
    if bone[0] in maps:
        maps[bone[1]] = maps[bone[0]]
    return maps


def _nearest(result: LevelResult, numbers: list[int], reach: float) -> np.ndarray:
    pieces, spacing = result.pieces, result.spacing
    level = np.zeros(pieces.shape, np.int16)
    distance = np.full(pieces.shape, np.inf, np.float32)
    margin = [max(int(np.ceil(reach / step)), 1) for step in spacing]
    boxes = ndimage.find_objects(pieces)
    for number in numbers:
        instance, box = result.instances[number - 1], boxes[number - 1] if number <= len(boxes) else None
        if box is None:
            continue
        grown = tuple(
            slice(max(b.start - m, 0), min(b.stop + m, n)) for b, m, n in zip(box, margin, pieces.shape, strict=True)
        )
        mine = pieces[grown] == number
        if instance.structure_id == 0 and instance.kind.endswith("islands"):
            # Scattered specks: their own voxels and the next ones only, else one box would span the volume.
            own = ndimage.binary_dilation(mine) & (distance[grown] > 0)
            level[grown][own], distance[grown][own] = 0, 0
            continue
        far = ndimage.distance_transform_edt(~mine, sampling=spacing)
        nearer = (far < distance[grown]) & (far <= max(reach, 1.5 * max(spacing)))
        level[grown][nearer] = instance.structure_id
        distance[grown][nearer] = far[nearer]
    return level
