"""What methods that correct are shown: a scene around a reader's clicks; and a simulated reader who makes them.

A scene is a small box of the image on a grid of its own, with one structure as it is drawn now, what else is drawn, and
the clicks on that structure: “more of it here”, “less of it there”. A scribble is many clicks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ..anatomy import STRUCTURES, Kind

CLICK_KINDS: tuple[str, ...] = ("any", *(kind.value for kind in Kind))
"""What a scene's structure may be; “any” for a structure of the reader's own."""

NEAR_MM, FAR_MM = 4.0, 24.0
"""How far from a click its two maps fall to zero: what it points at, and what it is about."""

REACH_MM, REACH_OF_RADIUS = 16.0, 1.2
"""A click changes nothing farther away than this and so many radii of the ball that is as large as its structure: the
whole of a vertebral body or of a disc, a level or so of the canal at a time."""

UNDRAWN_RADIUS_MM = 15.0
"""Radius of a structure that is not drawn yet: a small body's, or a disc's."""

_MIDDLING, _NEAR_EDGE = 0.7, 0.2
"""How often a careless reader clicks near the middle of an error, and near its edge; else anywhere in it."""
_LARGEST = 0.6
"""How often it is the largest error that is clicked on; else one by chance, the larger the likelier."""
_MISSED = 0.12
"""How often the hand slips by 1 to 2 mm, maybe out of the error."""


def click_kind(structure_id: int) -> int:
    """Index in `CLICK_KINDS` of a structure."""
    kind = STRUCTURES[structure_id].kind
    return 0 if kind is Kind.CUSTOM else CLICK_KINDS.index(kind.value)


def reach_mm(volume_mm3: float) -> float:
    """How far from a click a structure of this volume may change; 0 for one that is not drawn."""
    radius = (volume_mm3 * 3 / (4 * np.pi)) ** (1 / 3) if volume_mm3 else UNDRAWN_RADIUS_MM
    return REACH_MM + REACH_OF_RADIUS * radius


@dataclass(frozen=True)
class SceneGrid:
    """Which scenes a method takes.

    Attributes:
        shape: slices, rows and columns.
        spacing: mm along these.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]


@dataclass
class ClickScene:
    """Scenes of a batch, all on grids of one shape and spacing.

    Attributes:
        image: (B, S, H, W) gray values of any range; slices, rows, columns as on the canonical grid.
        mask: (B, S, H, W) float, 1 where the structure is drawn.
        others: (B, S, H, W) float, 1 where anything else is drawn.
        points: (B, K, 3) slice, row and column of the clicks, fractional.
        signs: (B, K) 1 where the structure is to be, −1 where not, 0 for no click.
        kind: (B,) long, index in `CLICK_KINDS`.
        reach: (B,) mm from a click to where nothing changes any more (`reach_mm`).
        inside: (B, S, H, W) bool, where the image has voxels.
    """

    image: Tensor
    mask: Tensor
    others: Tensor
    points: Tensor
    signs: Tensor
    kind: Tensor
    reach: Tensor
    inside: Tensor

    def each(self, change: Callable[[Tensor], Tensor]) -> ClickScene:
        """The scenes with each tensor changed."""
        return replace(self, **{f.name: change(getattr(self, f.name)) for f in fields(self)})

    def with_clicks(self, points: Tensor, signs: Tensor) -> ClickScene:
        """The scenes with these clicks, (B, n, 3) and (B, n), after those that they have."""
        return replace(self, points=torch.cat([self.points, points], 1), signs=torch.cat([self.signs, signs], 1))


def normalized(image: Tensor, inside: Tensor) -> Tensor:
    """(B, S, H, W) gray values of any range → about −1…1 by each scene's own 1st and 99th percentile; −1 outside.

    A scene is what a reader sees around the click, and its contrast is set by that alone, so that neither a bright coil
    elsewhere nor the rest of a large volume needs to be looked at.
    """
    result = torch.full_like(image, -1.0, dtype=torch.float32)
    for target, values, known in zip(result, image.float(), inside, strict=True):
        seen = values[known]
        if not len(seen):
            continue
        some = seen[:: max(1, len(seen) // 16384)]
        low, high = torch.quantile(some, torch.tensor([0.01, 0.99], device=some.device)).tolist()
        scaled = (seen - low) * (2 / max(high - low, 1e-6)) - 1
        target[known] = scaled.clamp(-1.5, 1.5)
    return result


def click_distances(scene: ClickScene, spacing: Sequence[float], sign: int = 0) -> Tensor:
    """(B, S, H, W) mm to the nearest click of a sign, or of any (0); infinite where there is none.

    Args:
        spacing: mm along slices, rows and columns.
    """
    shape = scene.image.shape[1:]
    axes = [torch.arange(n, device=scene.image.device, dtype=torch.float32) for n in shape]
    result = torch.full(scene.image.shape, torch.inf, device=scene.image.device)
    wanted = scene.signs != 0 if sign == 0 else scene.signs == sign
    for target, points, chosen in zip(result, scene.points.float(), wanted, strict=True):
        for point in points[chosen]:
            z, y, x = ((axis - at) * mm for axis, at, mm in zip(axes, point, spacing, strict=True))
            squared = z[:, None, None] ** 2 + (y[:, None] ** 2 + x[None] ** 2)[None]
            torch.minimum(target, squared, out=target)
    return result.sqrt()


def gate(scene: ClickScene, spacing: Sequence[float]) -> Tensor:
    """(B, S, H, W) share of a change that counts: 1 near a click, falling to 0 over the outer half of the reach."""
    reach = scene.reach.view(-1, 1, 1, 1)
    return ((reach - click_distances(scene, spacing)) / (0.5 * reach)).clamp(0, 1)


# --- a simulated reader ----------------------------------------------------------------------------------------------


def simulated_click(
    missing: np.ndarray, extra: np.ndarray, spacing: Sequence[float], rng: np.random.Generator, *, careful: bool = False
) -> tuple[np.ndarray, int] | None:
    """Where a reader who compares a mask with what it should be clicks next; None where nothing is wrong.

    Careless ones click mostly, not always, on the largest error, mostly near its middle, sometimes near its edge, and
    now and then a little beside it.

    Args:
        missing, extra: (S, H, W) bool, where the structure should be and is not, and the reverse.
        spacing: mm along the axes.
        careful: click in the middle of the largest error.

    Returns:
        slice, row and column, and 1 (“here too”) or −1 (“not here”).
    """
    pieces: list[tuple[int, int, np.ndarray, tuple[slice, ...]]] = []
    for sign, wrong in ((1, missing), (-1, extra)):
        labels, count = ndimage.label(wrong)
        if not count:
            continue
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        boxes = ndimage.find_objects(labels)
        for number in np.argsort(sizes[1:])[::-1][:8] + 1:
            pieces.append((int(sizes[number]), sign, labels[boxes[number - 1]] == number, boxes[number - 1]))
    if not pieces:
        return None
    sizes = np.sqrt([piece[0] for piece in pieces])
    largest = careful or rng.random() < _LARGEST
    chosen = int(sizes.argmax()) if largest else int(rng.choice(len(pieces), p=sizes / sizes.sum()))
    _, sign, piece, box = pieces[chosen]
    depth = ndimage.distance_transform_edt(np.pad(piece, 1), sampling=spacing)[1:-1, 1:-1, 1:-1][piece]
    way = 0.0 if careful else rng.random()
    if careful:
        weights = (depth == depth.max()).astype(float)
    elif way < _MIDDLING:
        weights = depth**2
    elif way < _MIDDLING + _NEAR_EDGE:
        weights = (depth <= np.quantile(depth, 0.3)).astype(float)
    else:
        weights = np.ones_like(depth)
    at = 0 if careful else int(rng.choice(len(weights), p=weights / weights.sum()))
    at = int(weights.argmax()) if careful else at
    point = np.argwhere(piece)[at] + [side.start for side in box]
    if not careful and rng.random() < _MISSED:
        angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(1.0, 2.0)
        point = point + np.array([0.0, np.sin(angle) * length / spacing[1], np.cos(angle) * length / spacing[2]])
        point = np.clip(np.rint(point), 0, np.array(missing.shape) - 1)
    return point.astype(float), sign


def simulated_scribble(
    wrong: np.ndarray, start: np.ndarray, spacing: Sequence[float], rng: np.random.Generator, most: int = 12
) -> np.ndarray:
    """(n, 3) points of a stroke from a click to somewhere else in the same error of its slice.

    Args:
        wrong: (S, H, W) bool, the errors of the click's sign.
        start: slice, row and column.
        most: points; one about every 2 mm.
    """
    plane = int(start[0])
    there = np.argwhere(wrong[plane])
    if not len(there):
        return start[None]
    end = there[int(rng.integers(len(there)))]
    length = float(np.hypot(*((end - start[1:]) * spacing[1:])))
    share = np.linspace(0, 1, int(min(most, 1 + length // 2)))
    rows_columns = np.rint(start[1:] + share[:, None] * (end - start[1:]))
    inside = wrong[plane][tuple(rows_columns.astype(int).T)]
    inside[0] = True
    kept = rows_columns[: int(np.argmin(inside)) if not inside.all() else len(inside)]  # until it leaves the error
    return np.column_stack([np.full(len(kept), float(plane)), kept])
