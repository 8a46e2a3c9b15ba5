"""From `Evidence` to named instances: `resolve_levels`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..anatomy import (
    DISC_ID,
    KINDS,
    POSTERIOR_ID,
    STRUCTURES,
    VERTEBRA_ID,
    Kind,
)
from ..errors import HintError
from ..evidence import Evidence
from .column import BONE, DISC, POSTERIOR, Column
from .instances import canal_instances
from .likelihoods import check_hints
from .naming import name_column
from .result import Instance, LevelResult
from .settings import ConsistencySettings
from .shapes import components, coordinates

_DEFAULT = ConsistencySettings()


def resolve_levels(
    evidence: Evidence,
    *,
    anchors: Sequence[tuple[int, tuple[float, float, float]]] = (),
    visible: tuple[int | None, int | None] | None = None,
    locked: np.ndarray | None = None,
    settings: ConsistencySettings = _DEFAULT,
) -> LevelResult:
    """Instances along the spine, and one possible sequence of names for them.

    Schemes without levels only lose their islands. No instance at all is a result (empty labels), not an error.

    Args:
        evidence: class probabilities, or kinds with or without ranks.
        anchors: (structure id, (slice, row, column) index, fractional) of vertebrae or discs whose level is known; a
            point beside an instance counts for the nearest one within 15 mm.
        visible: topmost and lowest vertebra wholly in view; None for an end that is not known. No instance is named
            beyond them, except one more at either end that the image's edge cuts, and the sacrum below the last lumbar
            vertebra. A level at an end may be missing only where the image has room for it, and a warning says so.
        locked: (D, H, W) structure ids that the reader has drawn and named. They keep their names, whatever the network
            says, and the others are counted from them. What the network found of the same anatomy beside them gets
            their id, too (the caller gives these voxels to what is there otherwise); what reaches beyond them along
            the spine is a structure of its own.

    Raises:
        HintError: hints that contradict the image, the scheme or each other.
    """
    scheme = evidence.scheme
    spinal = {Kind.VERTEBRA, Kind.SACRUM, Kind.DISC, Kind.CANAL, Kind.POSTERIOR}
    if not any(s.kind in spinal for s in scheme.structures):
        return _without_spine(evidence, settings)
    column = Column.of(evidence, settings, locked)
    if any(s.order is not None for s in scheme.structures):
        return name_column(column, check_hints(scheme, anchors, visible), visible)
    if anchors or visible:
        raise HintError(f"The label scheme “{scheme.name}” has no levels to anchor.", "Omit the hint.")
    return _generic(column)


# --- schemes without levels ------------------------------------------------------------------------------------------


def _generic(column: Column) -> LevelResult:
    s = column.settings
    found: list[tuple[Instance, np.ndarray]] = []
    sizes = (
        (BONE, VERTEBRA_ID, column.minimum(s.min_bone_area, s.min_bone_depth)),
        (DISC, DISC_ID, column.minimum(s.min_disc_area, s.min_disc_depth)),
        (POSTERIOR, POSTERIOR_ID, column.minimum(s.min_posterior_area, s.min_disc_depth)),
    )
    for value, sid, least in sizes:
        if sid not in column.scheme.channel_of:
            continue
        kind = STRUCTURES[sid].kind.value
        channel = column.probability[KINDS.index(kind)].ravel()
        for index in components(column.kind == value):
            keep = sid if column.volume(index) >= least else 0
            confidence = float(channel[index].mean()) if keep else 0.0
            found.append((column.instance(kind, index, keep, confidence=confidence), index))
    found.sort(key=lambda f: (f[0].structure_id == 0, f[0].kind != "vertebra", f[0].centroid_mm[1]))
    found += canal_instances(column)
    return column.result(found, confidence=_generic_confidence(found))


def _generic_confidence(found: list[tuple[Instance, np.ndarray]]) -> dict[int, float]:
    result: dict[int, float] = {}
    for sid in {i.structure_id for i, _ in found} - {0}:
        group = [i for i, _ in found if i.structure_id == sid]
        volume = sum(i.volume_mm3 for i in group)
        result[sid] = float(sum(i.confidence * i.volume_mm3 for i in group) / volume)
    return result


def _without_spine(evidence: Evidence, settings: ConsistencySettings) -> LevelResult:
    """Arg-max of the classes without islands; for vessels and the like."""
    classes, scheme = evidence.classes, evidence.scheme
    if classes is None:
        raise ValueError(f"The scheme “{scheme.name}” has no kinds; class probabilities are needed")
    best = np.argmax(classes, axis=0)
    labels, pieces = np.zeros(best.shape, np.int16), np.zeros(best.shape, np.int16)
    voxel = float(np.prod(evidence.spacing))
    least = settings.min_other_volume
    instances: list[Instance] = []
    confidence: dict[int, float] = {}
    for s in scheme.structures:
        channel = scheme.channel_of[s.id]
        kept = [i for i in components(best == channel) if voxel * len(i) >= least]
        if not kept:
            continue
        index = np.concatenate(kept)
        labels.ravel()[index] = s.id
        pieces.ravel()[index] = len(instances) + 1
        mean = float(classes[channel].ravel()[index].mean())
        z, y, x = coordinates(index, best.shape, evidence.spacing).mean(axis=0).tolist()
        confidence[s.id] = mean
        instances.append(Instance(s.kind.value, s.id, (z, y, x), voxel * len(index), None, mean, None, False))
    return LevelResult(labels, instances, evidence.spacing, pieces, confidence=confidence)
