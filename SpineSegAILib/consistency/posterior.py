"""Posterior elements named after the vertebrae that they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..anatomy import STRUCTURES, Kind, level_chain, posterior_of
from .column import POSTERIOR, Column
from .result import Instance
from .sequence import Level
from .shapes import Piece, components

_PURE = 0.8  # a component that is so much one vertebra's is wholly its own


def posterior_instances(
    column: Column, named: Sequence[tuple[Piece, Level]], vertebrae: Mapping[int, Instance]
) -> list[tuple[Instance, np.ndarray]]:
    """One instance for the posterior elements of each vertebra, and what of them belongs to none.

    A voxel goes to the vertebra whose rank it has and beside whose lower half it lies; components that are nearly all
    one vertebra's are wholly its own. Above the topmost vertebra in view the next one's spinous process may hang down.

    Args:
        named: vertebrae and their levels, top down.
        vertebrae: their instances by id; the posterior elements are as certain of their level as they are.
    """
    if not column.scheme.of_kind(Kind.POSTERIOR):
        return []
    s = column.settings
    found: list[tuple[Instance, np.ndarray]] = []
    locked = [i for i in np.unique(column.locked).tolist() if i and STRUCTURES[i].kind is Kind.POSTERIOR]
    for sid in locked:
        index = np.flatnonzero(column.locked == sid)
        found.append((column.instance(Kind.POSTERIOR.value, index, sid, confidence=1.0), index))
    least = column.minimum(s.min_posterior_area, s.min_disc_depth)
    parts = components((column.kind == POSTERIOR) & (column.locked == 0))
    stray = [i for i in parts if column.volume(i) < least]
    pieces = [i for i in parts if column.volume(i) >= least]
    if pieces and named:
        ids, claimed = _owners(column, pieces, named)
        for sid in dict.fromkeys(ids):
            index = np.concatenate([i for i, owner in zip(claimed, ids, strict=True) if owner == sid])
            posterior = posterior_of(sid) if sid else None
            new = column.output_id(posterior.id) if posterior else 0
            if new in locked:  # what the reader drew of it stands; the rest is nobody's
                new = 0
            bone = vertebrae.get(sid)
            confidence = bone.confidence if bone and new else 0.0
            found.append((column.instance(Kind.POSTERIOR.value, index, new, confidence=confidence), index))
    else:
        stray += pieces
    if stray:
        index = np.concatenate(stray)
        found.append((column.instance(f"{Kind.POSTERIOR.value} islands", index, 0), index))
    return found


def _owners(
    column: Column, pieces: Sequence[np.ndarray], named: Sequence[tuple[Piece, Level]]
) -> tuple[list[int], list[np.ndarray]]:
    """Vertebra (its id, 0 for none) of each part, and the parts: whole components or what of them is one vertebra's."""
    s, pitch = column.settings, column.sizes.pitch
    middle = np.array([piece.middle(s.near_axis) for piece, _ in named])
    rank = np.array([level.rank if p.median_rank is None else p.median_rank for p, level in named], float)
    ids = [level.id for _, level in named]
    chain = [v.id for v in level_chain(ids)]
    top = chain.index(ids[0])
    if top:  # the one above, whose body may be out of view
        ids, middle, rank = [chain[top - 1], *ids], np.r_[middle[0] - pitch, middle], np.r_[rank[0] + 1, rank]
    bottom = chain.index(ids[-1])
    if bottom < len(chain) - 1:  # and the one below: the sacrum's crest is nobody's
        ids, middle, rank = [*ids, chain[bottom + 1]], np.r_[middle, middle[-1] + pitch], np.r_[rank, rank[-1] - 1]
    at = middle + s.posterior_below * pitch
    owners: list[int] = []
    parts: list[np.ndarray] = []
    for index in pieces:
        arc, radial = column.axis.project(column.points(index))
        away = np.abs(arc[:, None] - at) / pitch
        seen = column.voxel_ranks(index, (Kind.POSTERIOR,))
        cost = away if seen is None else np.abs(seen[:, None] - rank) + 0.5 * away
        owner = cost.argmin(1)
        if np.median(radial) > s.posterior_reach or np.median(away.min(1)) > 1.5:
            owners.append(0)
            parts.append(index)
            continue
        counts = np.bincount(owner, minlength=len(ids))
        if counts.max() >= _PURE * len(index):
            owner[:] = counts.argmax()
        for number in np.unique(owner).tolist():
            owners.append(ids[number])
            parts.append(index[owner == number])
    return owners, parts
