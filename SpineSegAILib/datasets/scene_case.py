"""What a scene holds, ready for a training set: cases, their segments, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..anatomy import Extent
from ..hints import Point
from ..imaging import Geometry
from ..results.segment_names import CUSTOM, IGNORE, Placement


@dataclass
class SceneSegment:
    """One segment of a case.

    Attributes:
        name: as the reader sees it.
        placement: what it is taken as.
        layer: (z, y, x) on the volume's voxels; segments that do not overlap share one.
        value: this segment's in its layer.
    """

    name: str
    placement: Placement
    layer: np.ndarray
    value: int

    @property
    def mask(self) -> np.ndarray:
        """(z, y, x) bool."""
        return self.layer == self.value

    @cached_property
    def voxels(self) -> int:
        """How many of the volume's voxels it has."""
        return int(np.count_nonzero(self.mask))

    @property
    def is_drawn(self) -> bool:
        """Whether it goes into the case."""
        return self.voxels > 0 and self.placement.target not in ("", IGNORE)


@dataclass
class SceneCase:
    """One volume of a scene and what is annotated in it.

    Attributes:
        scene: the scene's file name.
        volume: the volume's name in the scene.
        patient: pseudonym made of the DICOM patient, else the scene's name.
        image: the volume where it lies in the world.
        segments: of all its segmentations.
        keypoints: target → point (LPS, mm).
        extent: whether vertebrae are bodies or whole, where the segments say.
        corrections: the correction log, or None.
        notes: sentences for the reader.
    """

    scene: str
    volume: str
    patient: str
    image: sitk.Image
    segments: list[SceneSegment] = field(default_factory=list)
    keypoints: dict[str, Point] = field(default_factory=dict)
    extent: Extent | None = None
    corrections: Any = None
    notes: list[str] = field(default_factory=list)

    @property
    def unplaced(self) -> list[str]:
        """Names of the segments that nothing is known of."""
        return [s.name for s in self.segments if s.voxels and not s.placement.target]

    @property
    def drawn(self) -> list[SceneSegment]:
        """The segments that go into the case, in drawing order: structures of the reader's own on top of anatomy,
        since a tumor lies inside a vertebra; else as Slicer draws them, the last one on top."""
        chosen = [s for s in self.segments if s.is_drawn]
        return sorted(chosen, key=lambda s: s.placement.target.startswith(CUSTOM))

    @property
    def targets(self) -> list[str]:
        """What is annotated."""
        return list(dict.fromkeys(s.placement.target for s in self.drawn))

    def label(self, ids: Mapping[str, int]) -> sitk.Image:
        """The segments as one int16 label image on the image's voxels.

        Args:
            ids: target → structure id.
        """
        values = np.zeros(self.image.GetSize()[::-1], np.int16)
        for segment in self.drawn:
            values[segment.mask] = ids[segment.placement.target]
        return Geometry.of(self.image).image(values)

    @cached_property
    def fingerprint(self) -> str:
        """Of the voxels, whatever the order of their axes: the same volume in another scene has the same."""
        return fingerprint(self.image)

    @property
    def is_annotated(self) -> bool:
        """Whether there is anything to learn from."""
        return bool(self.drawn or self.keypoints)


@dataclass
class SceneReport:
    """What a scene holds.

    Attributes:
        path: the scene.
        cases: its volumes, annotated or not.
        problems: why annotations in it cannot be used, a sentence each.
        notes: what was omitted without harm.
    """

    path: Path
    cases: list[SceneCase] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def fingerprint(image: sitk.Image) -> str:
    """SHA-1 of the voxels in a common order of axes: programs turn axes round as they load."""
    return sitk.Hash(sitk.DICOMOrient(image, "LPS"))
