"""Corrections by clicks: one structure follows to where a reader clicks, near the click.

A method that takes clicks (`Method.scenes`) is shown a small scene around them. Its answer counts only where something
changes by it, within a reach of the click that grows with the structure (`methods.clicking.reach_mm`), and in one
piece with what lies near it. Voxels that the structure gains its neighbor loses; those of locked ones stay. A canal
that was missed is longer than that: what is added to it continues, through free voxels, to where it ends.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from ..anatomy import Kind, scheme, structure
from ..checkpoints import CheckpointInfo, find_checkpoint, load_method
from ..errors import CheckpointError, CorrectionError
from ..hints import Point
from ..methods.catalog import CLICK_CHECKPOINT
from .step import Correction, LabeledStructures, Patch, apply_correction

if TYPE_CHECKING:
    import SimpleITK as sitk

    from ..imaging import Geometry
    from ..methods.base import Method
    from ..methods.clicking import SceneGrid
    from ..results import Segmentation

NEAR_MM = 8.0
"""A change that comes no nearer to a click than this is another one's business."""
LEAST_MM = 2.0
"""Radius of what changes around a click of which nothing else would come: a click always does something."""
CLEAR_CHANGE = 0.25
"""By how much a probability must change for a voxel to change: edges do not move because they were looked at."""
LONG = frozenset({Kind.CANAL, Kind.CORD, Kind.ARTERY, Kind.VEIN})
"""Kinds of structures that are longer than a click reaches: what was added of them is followed on to its end."""
FRONT = 0.55
"""Share of a click's reach beyond which what was added may be cut off, and not end there."""
MOST_FURTHER = 12
"""Scenes into which what was added is followed on."""
MOST_SCENES = 40
"""Scenes that are looked at for one correction: some seconds."""
_MOST_POINTS = 96
"""Clicks that are shown in a scene; of more, evenly many."""
_SHARED = 0.3
"""Clicks within this share of a scene's sides around a first one are answered together."""


@dataclass(frozen=True)
class Click:
    """“More of it here”, or “less of it there”.

    Attributes:
        structure_id: the structure that is to follow.
        point: where (LPS, mm).
        add: whether the structure should be there.
    """

    structure_id: int
    point: Point
    add: bool = True


def refine(
    image: sitk.Image,
    segmentation: Segmentation | None,
    clicks: Sequence[Click],
    *,
    locked: Collection[int] = (),
    earlier: Sequence[Click] = (),
    checkpoint: str | CheckpointInfo | None = None,
) -> Segmentation:
    """A segmentation after a reader's clicks.

    Args:
        image: that was segmented.
        segmentation: as it is; None to begin one with the structures that are clicked.
        clicks: those to follow, of one structure or several; a scribble is many.
        locked: ids of structures that keep every voxel and get none.
        earlier: clicks that were followed before: what they said still holds, and nothing changes for their sake.
        checkpoint: name, path or header of one that takes clicks; None for `CLICK_CHECKPOINT`.

    Raises:
        CorrectionError: see `click_correction`.
        CheckpointError: the checkpoint is not there, is damaged, or takes no clicks.
    """
    from ..results import Segmentation

    if segmentation is None:
        import SimpleITK as sitk

        empty = sitk.Image(image.GetSize(), sitk.sitkInt16)
        empty.CopyInformation(image)
        segmentation = Segmentation(empty, scheme("lumbar-mr"))
    method = load_click_method(checkpoint)
    correction = click_correction(image, segmentation.labels, clicks, method, locked=locked, earlier=earlier)
    return apply_correction(segmentation, correction)


def load_click_method(checkpoint: str | CheckpointInfo | None = None) -> Method:
    """A trained method that takes clicks, on the processor: what it looks at is small.

    Raises:
        CheckpointError: it is not there, is damaged, or takes no clicks.
    """
    info = checkpoint if isinstance(checkpoint, CheckpointInfo) else find_checkpoint(checkpoint or CLICK_CHECKPOINT)
    method = load_method(info)
    if method.scenes is None:
        raise CheckpointError(
            f"{info.name} segments images; it takes no clicks.", f"Use one for correction, such as {CLICK_CHECKPOINT}."
        )
    return method


def click_correction(
    image: sitk.Image,
    labels: sitk.Image,
    clicks: Sequence[Click],
    method: Method,
    *,
    locked: Collection[int] = (),
    earlier: Sequence[Click] = (),
) -> Correction:
    """What clicks come to; its patch is as small as the change.

    Args:
        image: that was segmented.
        labels: structure ids on its voxels.
        clicks, locked, earlier: see `refine`.
        method: `load_click_method`.

    Raises:
        CorrectionError: there are no clicks, or they are too many in too many places; one lies outside of the image, on
            a locked structure, or is of one; two contradict each other; what is to be removed from is not there; labels
            and image do not lie on the same voxels.
    """
    import SimpleITK as sitk

    from ..imaging import Geometry, as_it_lies
    from ..imaging.tags import DIRECTION_TAG

    if not Geometry.of(image).matches(Geometry.of(labels)):
        raise CorrectionError(
            "The segmentation does not lie on the voxels of the image.", "Choose the image that was segmented."
        )
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise CorrectionError("The image is in color.", "Choose a gray-scale image.")
    before = sitk.GetArrayFromImage(labels).astype(np.int16)
    grouped = _checked(labels, before, clicks, frozenset(locked))
    contradicted = {(c.structure_id, not c.add, _voxel(labels, c)) for c in clicks}
    kept = [c for c in earlier if (c.structure_id, c.add, _voxel(labels, c)) not in contradicted]
    pixels = sitk.GetArrayViewFromImage(image)
    after = before.copy()
    lying = as_it_lies(labels if labels.HasMetaDataKey(DIRECTION_TAG) else image)
    scenes = _Scenes(pixels, after, Geometry.of(labels), Geometry.of(lying), method, frozenset(locked))
    for sid, own in grouped.items():
        scenes.follow(sid, own, [c for c in kept if c.structure_id == sid])
    names = LabeledStructures.of(after)
    count = len(clicks)
    told = ", ".join(names.name(sid) for sid in grouped)
    return Correction(
        "click",
        f"Correct {told} by {count} click{'s' if count > 1 else ''}",
        patch=Patch.between(before, after),
        structures=tuple(grouped),
        details={"add": sum(c.add for c in clicks), "remove": sum(not c.add for c in clicks)},
    )


def _voxel(labels: sitk.Image, click: Click) -> tuple[int, ...]:
    """Index (z, y, x) of the voxel that a click lies in."""
    try:
        index = labels.TransformPhysicalPointToIndex([float(x) for x in click.point])
    except (OverflowError, RuntimeError):
        index = (-1, -1, -1)
    return tuple(index[::-1])


def _checked(
    labels: sitk.Image, values: np.ndarray, clicks: Sequence[Click], locked: frozenset[int]
) -> dict[int, list[Click]]:
    """The clicks by structure, in the order of their first ones.

    Raises:
        CorrectionError: see `click_correction`.
    """
    if not clicks:
        raise CorrectionError("There are no clicks.", "Click where a structure should be, or should not be.")
    grouped: dict[int, list[Click]] = {}
    wanted: dict[tuple[int, ...], Click] = {}
    for click in clicks:
        name = structure(click.structure_id).name
        at = ", ".join(f"{x:.0f}" if np.isfinite(x) and abs(x) < 1e6 else "?" for x in click.point)
        if click.structure_id in locked:
            raise CorrectionError(f"{name} is locked.", "Unlock it first.")
        voxel = _voxel(labels, click) if np.isfinite(click.point).all() else (-1, -1, -1)
        if not all(0 <= i < n for i, n in zip(voxel, values.shape, strict=True)):
            raise CorrectionError(f"The click at ({at}) lies outside of the image.", "Points are LPS millimeters.")
        there = int(values[voxel])
        if there in locked:
            raise CorrectionError(
                f"The click at ({at}) lies on {structure(there).name}, which is locked.", "Unlock it."
            )
        other = wanted.setdefault(voxel, click)
        if other.add != click.add and other.structure_id == click.structure_id:
            raise CorrectionError(
                f"{name} is to be added and removed at the same point, ({at}).", "Remove one of the two clicks."
            )
        if other.add and click.add and other.structure_id != click.structure_id:
            raise CorrectionError(
                f"{structure(other.structure_id).name} and {name} cannot both be at the same point, ({at}).",
                "Remove one of the two clicks.",
            )
        grouped.setdefault(click.structure_id, []).append(click)
    for sid, own in grouped.items():
        if not any(c.add for c in own) and not (values == sid).any():
            raise CorrectionError(
                f"{structure(sid).name} is not labeled: there is nothing to remove.", "Choose another structure."
            )
    return grouped


class _Scenes:
    """Looks at an image around clicks, and changes labels there.

    Args:
        pixels: the image (z, y, x).
        labels: structure ids, which are changed.
        geometry: of both, as their files tell it; clicks are its points.
        lying: how they lie, where that was found from the picture.
        method: that answers.
        locked: structures that stay as they are.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        labels: np.ndarray,
        geometry: Geometry,
        lying: Geometry,
        method: Method,
        locked: frozenset[int],
    ) -> None:
        from ..imaging.geometry import canonical_axes

        assert method.scenes is not None
        self.geometry, self.method, self.locked = geometry, method, locked
        self.grid: SceneGrid = method.scenes
        axes, flips = canonical_axes(lying)
        flip = tuple(slice(None, None, -1 if f else 1) for f in flips)
        # Views whose axes are slices, rows and columns: what is written to `labels` is written to the array given.
        self.pixels, self.labels = pixels.transpose(axes)[flip], labels.transpose(axes)[flip]
        self.axes, self.flips = axes, flips
        self.spacing = np.array(geometry.spacing[::-1])[list(axes)]
        self.held = list(locked)
        self.count = 0
        """Voxels of the structure that is being followed."""
        self.left = MOST_SCENES

    def index(self, clicks: Sequence[Click]) -> np.ndarray:
        """(n, 3) fractional slice, row and column of clicks."""
        g = self.geometry
        away = np.array([c.point for c in clicks], float).reshape(-1, 3) - g.origin
        found = (np.linalg.solve(g.matrix, away.T).T / g.spacing)[:, ::-1][:, list(self.axes)]
        return np.where(self.flips, np.array(self.labels.shape) - 1 - found, found)

    def follow(self, sid: int, clicks: Sequence[Click], earlier: Sequence[Click]) -> None:
        """Correct one structure by its clicks: those that lie near one another at once.

        Raises:
            CorrectionError: they lie in too many places.
        """
        self.count = int(np.count_nonzero(self.labels == sid))
        points, signs = self.index(clicks), np.array([1 if c.add else -1 for c in clicks])
        before, before_signs = self.index(earlier), np.array([1 if c.add else -1 for c in earlier], int)
        side = _SHARED * np.array(self.grid.shape) * self.grid.spacing
        left = np.ones(len(points), bool)
        while left.any():
            if self.left == 0:
                raise CorrectionError(
                    "There are clicks in too many places to follow them at once.", "Correct fewer places at a time."
                )
            self.left -= 1
            first = points[np.flatnonzero(left)[0]]
            now = left & (np.abs((points - first) * self.spacing) <= side).all(1)
            shown = np.concatenate([points[now], points[~now], before])
            shown_signs = np.concatenate([signs[now], signs[~now], before_signs])
            self._answer(sid, points[now], signs[now], shown, shown_signs)
            left &= ~now
        for point, sign in zip(points, signs, strict=True):  # what one scene undid in another
            at = np.clip(np.rint(point).astype(int), 0, np.array(self.labels.shape) - 1)
            if (self.labels[tuple(at)] == sid) == (sign > 0):
                continue
            box, _ = self._box(point)
            old = self.labels[box].copy()
            self._certain(sid, box, self.labels[box], old, np.isin(old, self.held), point[None], np.array([sign]))

    def _answer(self, sid: int, new: np.ndarray, new_signs: np.ndarray, shown: np.ndarray, signs: np.ndarray) -> None:
        """Look at one scene, and change what the clicks in it change.

        Args:
            new, new_signs: clicks to follow, as indices.
            shown, signs: all that is shown: these, the others of this time, and earlier ones.
        """
        reach, box, away, gained, lost = self._change(sid, new, shown, signs)
        old = self.labels[box]
        held = np.isin(old, self.held)
        result = np.where(gained, sid, np.where(lost, 0, old))
        self._certain(sid, box, result, old, held, new, new_signs)
        self.count += int(np.count_nonzero(result == sid)) - int(np.count_nonzero(old == sid))
        self.labels[box] = result
        adds = new[new_signs > 0]
        if len(adds) and structure(sid).kind in LONG:
            gained = _pieces_near(gained, self._distance(box, adds))
            self._follow_on(sid, _fronts(gained, away, reach, box, self.spacing), new, shown[signs < 0])

    def _follow_on(self, sid: int, fronts: list[np.ndarray], clicked: np.ndarray, forbidden: np.ndarray) -> None:
        """Add what continues where an addition came to the end of its reach: the rest of a canal that was missed.

        Args:
            fronts: indices of voxels where it may continue.
            clicked: around which there is nothing more to look for.
            forbidden: clicks where the structure is not to be.
        """
        from ..methods.clicking import REACH_MM

        seen = list(clicked)
        for _ in range(MOST_FURTHER):
            while fronts and min(np.linalg.norm((fronts[0] - at) * self.spacing) for at in seen) < REACH_MM:
                fronts.pop(0)
            if not fronts:
                return
            front = fronts.pop(0)
            seen.append(front)
            shown = np.concatenate([front[None], forbidden])
            signs = np.array([1] + [-1] * len(forbidden))
            reach, box, away, gained, _ = self._change(sid, front[None], shown, signs)
            # What a reader did not point at takes from no other structure, and does not leap over one.
            here = self.labels[box]
            gained &= here == 0
            pieces, _ = ndimage.label(gained | (here == sid), np.ones((3, 3, 3), bool))
            gained &= pieces == pieces[tuple(front - [side.start for side in box])]
            self.labels[box][gained] = sid
            self.count += int(np.count_nonzero(gained))
            fronts += _fronts(gained, away, reach, box, self.spacing)

    def _change(
        self, sid: int, new: np.ndarray, shown: np.ndarray, signs: np.ndarray
    ) -> tuple[float, tuple[slice, ...], np.ndarray, np.ndarray, np.ndarray]:
        """What clicks would change in the scene around them.

        Returns:
            their reach; the voxels of the scene; of these, mm to the nearest of the clicks, and which ones the
            structure gains and loses.
        """
        from ..methods.clicking import reach_mm

        center = new.mean(0)
        if self.spacing[0] > 0.5 * self.grid.spacing[0]:  # the slices of a thick stack, not what lies between
            center[0] = round(center[0])
        reach = reach_mm(self.count * float(self.spacing.prod()))
        box, weights = self._box(center)
        found, start = self._looked(sid, center, shown, signs, reach, weights)
        old = self.labels[box]
        away = self._distance(box, new)
        here, held = old == sid, np.isin(old, self.held)
        change = found - start
        gained = ~here & ~held & (found > 0.5) & (change > CLEAR_CHANGE)
        lost = here & (found < 0.5) & (change < -CLEAR_CHANGE)
        changed = _pieces_near((gained | lost) & (away <= reach), away)
        return reach, box, away, changed & gained, changed & lost

    def _box(self, center: np.ndarray) -> tuple[tuple[slice, ...], list[np.ndarray]]:
        """The voxels that a scene shows, and for each axis what they take of its positions: (voxels, positions)."""
        box, weights = [], []
        for at, mm, size, count, step in zip(
            center, self.spacing, self.labels.shape, self.grid.shape, self.grid.spacing, strict=True
        ):
            half = (count // 2 + 0.5) * step / mm
            low, high = max(int(np.ceil(at - half)), 0), min(int(np.floor(at + half)), size - 1)
            box.append(slice(low, high + 1))
            positions = (np.arange(low, high + 1) - at) * mm / step + count // 2
            weights.append(_linear(positions, count))
        return tuple(box), weights

    def _looked(
        self,
        sid: int,
        center: np.ndarray,
        points: np.ndarray,
        signs: np.ndarray,
        reach: float,
        weights: Sequence[np.ndarray],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Probability of the structure in the voxels of a scene, after and before the clicks."""
        import torch

        from ..methods.clicking import ClickScene, click_kind

        gray, drawn, inside = self._sampled(center)
        at = (points - center) * self.spacing / self.grid.spacing + np.array(self.grid.shape) // 2
        seen = ((at > -0.5) & (at < np.array(self.grid.shape) - 0.5)).all(1)
        at, signs = at[seen], signs[seen]
        if len(at) > _MOST_POINTS:
            some = np.linspace(0, len(at) - 1, _MOST_POINTS).astype(int)
            at, signs = at[some], signs[some]
        mask = drawn == sid
        scene = ClickScene(
            torch.from_numpy(gray)[None],
            torch.from_numpy(mask.astype(np.float32))[None],
            torch.from_numpy(((drawn > 0) & ~mask).astype(np.float32))[None],
            torch.from_numpy(at.astype(np.float32))[None],
            torch.from_numpy(signs.astype(np.float32))[None],
            torch.tensor([click_kind(sid)]),
            torch.tensor([reach], dtype=torch.float32),
            torch.from_numpy(inside)[None],
        )
        with torch.inference_mode():
            found = self.method.refined(scene)[0].float().numpy()
        return _separably(found, weights), _separably(mask.astype(np.float32), weights)

    def _sampled(self, center: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Gray values, labels and where the image has voxels, on a scene's grid."""
        cut, weights, nearest, within = [], [], [], []
        for axis, (at, mm, size, count, step) in enumerate(
            zip(center, self.spacing, self.labels.shape, self.grid.shape, self.grid.spacing, strict=True)
        ):
            positions = at + (np.arange(count) - count // 2) * step / mm
            width = max(1.0, step / mm) if axis else 1.0  # finer pixels are averaged; slices are picked
            low, high = (
                int(np.clip(x, 0, size - 1)) for x in (np.floor(positions[0] - width), np.ceil(positions[-1] + width))
            )
            cut.append(slice(low, high + 1))
            weights.append(_linear(np.clip(positions, 0, size - 1) - low, high + 1 - low, width))
            nearest.append(np.clip(np.floor(positions + 0.5).astype(int), 0, size - 1))
            within.append((positions >= -0.5) & (positions <= size - 0.5))
        gray = _separably(np.nan_to_num(self.pixels[tuple(cut)].astype(np.float32)), weights)
        z, y, x = within
        return gray, self.labels[np.ix_(*nearest)], z[:, None, None] & y[:, None] & x

    def _distance(self, box: tuple[slice, ...], points: np.ndarray) -> np.ndarray:
        """mm from the voxels of a box to the nearest of some points."""
        index = [np.arange(side.start, side.stop) for side in box]
        squared = np.full([len(i) for i in index], np.inf)
        for point in points[:: max(1, len(points) // _MOST_POINTS)]:
            z, y, x = (((i - at) * mm) ** 2 for i, at, mm in zip(index, point, self.spacing, strict=True))
            np.minimum(squared, z[:, None, None] + (y[:, None] + x)[None], out=squared)
        return np.sqrt(squared)

    def _certain(
        self,
        sid: int,
        box: tuple[slice, ...],
        result: np.ndarray,
        old: np.ndarray,
        held: np.ndarray,
        points: np.ndarray,
        signs: np.ndarray,
    ) -> None:
        """What is clicked on follows at least around the click, whatever the method says."""
        corner = np.array([side.start for side in box])
        for point, sign in zip(points, signs, strict=True):
            voxel = tuple(np.clip(np.rint(point).astype(int) - corner, 0, np.array(result.shape) - 1))
            if (result[voxel] == sid) == (sign > 0) or held[voxel]:
                continue
            ball = self._distance(box, point[None]) <= LEAST_MM
            ball[voxel] = True
            if sign > 0:
                result[ball & ~held] = sid
            else:
                result[ball & (result == sid)] = 0


def _pieces_near(mask: np.ndarray, away: np.ndarray) -> np.ndarray:
    """The connected pieces of a mask that come near a click.

    Args:
        away: mm to the nearest click.
    """
    pieces, count = ndimage.label(mask, np.ones((3, 3, 3), bool))
    if not count:
        return mask
    return np.concatenate([[False], ndimage.minimum(away, pieces, np.arange(1, count + 1)) <= NEAR_MM])[pieces]


def _fronts(
    gained: np.ndarray, away: np.ndarray, reach: float, box: tuple[slice, ...], spacing: np.ndarray
) -> list[np.ndarray]:
    """Indices, as far out as may be but not at the edge, of each piece of what was gained that lies far out in the
    reach, the largest first.

    Args:
        gained: (a, b, c) bool.
        away: mm from the click.
        reach: its reach (mm).
        box: the voxels that these are.
        spacing: of the voxels (mm).
    """
    pieces, count = ndimage.label(gained & (away > FRONT * reach), np.ones((3, 3, 3), bool))
    corner = np.array([side.start for side in box])
    places = ndimage.find_objects(pieces)
    found = []
    for number in np.argsort(np.bincount(pieces.ravel(), minlength=count + 1)[1:])[::-1][:MOST_FURTHER] + 1:
        place = places[number - 1]
        piece = np.pad(pieces[place] == number, 1)
        depth = ndimage.distance_transform_edt(piece, sampling=spacing)[1:-1, 1:-1, 1:-1]
        far = np.where(depth >= 0.5 * depth.max(), away[place], -1.0)
        found.append(corner + [side.start for side in place] + np.unravel_index(far.argmax(), far.shape))
    return found


def _linear(positions: np.ndarray, count: int, width: float = 1.0) -> np.ndarray:
    """(n, count) float32 weights of linear interpolation at fractional positions; rows sum to one.

    Args:
        width: half the base of the triangle; more than 1 averages.
    """
    positions = np.clip(positions, 0, count - 1)
    weights = np.maximum(0.0, 1.0 - np.abs(positions[:, None] - np.arange(count)) / width)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _separably(array: np.ndarray, weights: Sequence[np.ndarray]) -> np.ndarray:
    """(a, b, c) → each axis resampled by its (new, old) matrix.

    By torch, in as many threads as it was given. Those of NumPy wait for one another on a busy machine, and take four
    times as long for products as small as these.
    """
    import torch

    slices, rows, columns = map(torch.from_numpy, weights)
    values = torch.from_numpy(np.ascontiguousarray(array))
    planes = (slices @ values.flatten(1)).unflatten(1, values.shape[1:])
    return (rows @ planes @ columns.T).numpy()
