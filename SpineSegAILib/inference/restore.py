"""From evidence on the network's grid to labels on the source's voxels, around what is locked."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import SimpleITK as sitk

from ..anatomy import KINDS, STRUCTURES, Kind
from ..consistency import LevelResult, nearest_level_maps
from ..errors import HintError
from ..evidence import Evidence
from ..imaging import CanonicalVolume, Geometry, resample_to_source
from ..imaging.geometry import like

_VERTEBRA, _SACRUM = KINDS.index(Kind.VERTEBRA.value), KINDS.index(Kind.SACRUM.value)


def labels_on_source(evidence: Evidence, levels: LevelResult | None, volume: CanonicalVolume) -> sitk.Image:
    """Structure ids on the input's voxels: probabilities are resampled and compared there, not labels.

    Args:
        evidence: the network's probabilities on the canonical grid.
        levels: which instance is which; None takes the arg-max over the classes.
        volume: the canonical grid and its source.
    """
    if levels is None:
        names = np.array([0, *evidence.scheme.ids], np.int16)
        return volume.source.image(names[_winner(evidence.class_probabilities(), volume)])
    kinds = evidence.kind_probabilities()
    # Vertebrae and sacrum are one while shapes are found; which is which is a matter of levels.
    others = channels_without_kind(evidence)  # the cord, or what a scheme added by name: no level, no shape to find
    rest = [evidence.class_probabilities()[channel] for channel in others]
    shapes = _shapes(kinds)
    winner = _winner((kinds[0] - sum(rest), *shapes.values(), *rest), volume)
    maps = nearest_level_maps(levels)
    result = np.zeros(winner.shape, np.int16)
    for value, kind in enumerate(shapes, start=1):
        ids = maps.get(kind)
        if ids is not None and ids.any():
            chosen = winner == value
            result[chosen] = resample_to_source(ids[None], volume, order=0, dtype=np.int16)[0][chosen]
    for value, channel in enumerate(others, start=1 + len(shapes)):
        result[winner == value] = evidence.scheme.ids[channel - 1]
    return volume.source.image(result)


def _shapes(kinds: np.ndarray) -> dict[str, np.ndarray]:
    """Probability of each kind that has a shape of its own, by its name; vertebra and sacrum as one."""
    found = dict(zip(KINDS[1:], kinds[1:], strict=False))
    found[Kind.VERTEBRA.value] = kinds[_VERTEBRA] + kinds[_SACRUM]
    del found[Kind.SACRUM.value]
    return found


def channels_without_kind(evidence: Evidence) -> list[int]:
    """Channels of structures that `KINDS` lacks; their probability is part of the background's there."""
    if evidence.classes is None or evidence.kinds is not None:
        return []
    return [channel for channel, kind in enumerate(evidence.scheme.kinds) if channel and kind == 0]


def _winner(probabilities: Iterable[np.ndarray], volume: CanonicalVolume) -> np.ndarray:
    """(z, y, x) uint8 index of the largest on the source's voxels; one map at a time, since many are large."""
    best, winner = None, None
    for index, probability in enumerate(probabilities):
        found = resample_to_source(probability[None], volume)[0]
        if best is None or winner is None:
            best, winner = found, np.zeros(found.shape, np.uint8)
            continue
        winner[found > best] = index
        np.maximum(best, found, out=best)
    assert winner is not None
    return winner


def around_locked(
    labels: sitk.Image,
    locked: sitk.Image,
    evidence: Evidence,
    levels: LevelResult | None,
    volume: CanonicalVolume,
) -> sitk.Image:
    """Locked voxels as they are; what the network gives a locked structure beyond them goes to what is likeliest
    there otherwise."""
    if not Geometry.of(locked).matches(Geometry.of(labels)):
        raise HintError("The locked segmentation has another geometry than the image.", "Resample it to the image.")
    new, kept = sitk.GetArrayFromImage(labels), sitk.GetArrayViewFromImage(locked)
    ids = np.unique(kept[kept > 0])
    freed = np.isin(new, ids) & (kept == 0)
    if freed.any():
        given_up = new[freed]
        new[freed] = 0
        new[freed] = _otherwise(given_up, freed, set(ids.tolist()), evidence, levels, volume)
    new[kept > 0] = kept[kept > 0]
    return like(labels, new)


def _otherwise(
    given_up: np.ndarray,
    where: np.ndarray,
    locked: set[int],
    evidence: Evidence,
    levels: LevelResult | None,
    volume: CanonicalVolume,
) -> np.ndarray:
    """(n,) ids of the second choice for voxels that may not be what they are taken for.

    A vertebra's voxels may become disc, canal or background, not part of another vertebra: that one has its own.

    Args:
        given_up: (n,) ids that the voxels had.
        where: the voxels on the source's grid.
        locked: ids that may not be given.
    """
    candidates: list[tuple[np.ndarray, np.ndarray | int, str]]
    if levels is None:
        names = (0, *evidence.scheme.ids)
        classes = zip(evidence.class_probabilities(), names, strict=True)
        candidates = [(p, sid, "") for p, sid in classes if sid not in locked]
    else:
        kinds, maps = evidence.kind_probabilities(), nearest_level_maps(levels)
        others = channels_without_kind(evidence)
        rest = [(evidence.class_probabilities()[c], evidence.scheme.ids[c - 1], "") for c in others]
        candidates = [(kinds[0] - sum(p for p, _, _ in rest), 0, ""), *rest]
        candidates += [(p, maps[kind], kind) for kind, p in _shapes(kinds).items() if kind in maps]
    groups = {i: "vertebra" if STRUCTURES[i].is_vertebral else STRUCTURES[i].kind.value for i in locked}
    best = np.full(given_up.shape, -1.0, np.float32)
    result = np.zeros(given_up.shape, np.int16)
    for probability, name, kind in candidates:
        value = resample_to_source(np.asarray(probability, np.float32)[None], volume)[0][where]
        if isinstance(name, np.ndarray):
            ids = resample_to_source(name[None], volume, order=0, dtype=np.int16)[0][where]
        else:
            ids = np.full(given_up.shape, name, np.int16)
        ids[np.isin(ids, list(locked))] = 0
        same_kind = np.isin(given_up, [sid for sid, group in groups.items() if group == kind])
        better = ~same_kind & (value > best)
        result[better], best[better] = ids[better], value[better]
    return result


def restricted(labels: sitk.Image, ids: tuple[int, ...]) -> sitk.Image:
    array = sitk.GetArrayFromImage(labels)
    array[~np.isin(array, ids)] = 0
    return like(labels, array)
