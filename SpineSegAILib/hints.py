"""What the reader knows and a method may use. Points are physical, in LPS millimeters (SimpleITK's convention)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import SimpleITK as sitk

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Anchor:
    """“This one is L5”: a structure id and a physical point (LPS, mm) inside that structure."""

    structure_id: int
    point: Point


@dataclass(frozen=True)
class Hints:
    """Everything optional; an empty `Hints()` means that nothing is known.

    Attributes:
        visible: ids of the topmost and the lowest vertebra in view, e.g. T11 and S1; None for an end that is not known.
        anchors: structures whose level is known at a point.
        keypoints: centers of structures, id → point.
        prior: label image with structure ids to start from (any geometry that overlaps the input).
        locked: label image whose labeled voxels are kept as they are.
        structures: ids to return; empty for all.
    """

    visible: tuple[int | None, int | None] | None = None
    anchors: tuple[Anchor, ...] = ()
    keypoints: dict[int, Point] = field(default_factory=dict)
    prior: sitk.Image | None = None
    locked: sitk.Image | None = None
    structures: tuple[int, ...] = ()

    def given(self) -> set[str]:
        """Names of the hints that are filled in."""
        return {name for name in self.__dataclass_fields__ if getattr(self, name)}
