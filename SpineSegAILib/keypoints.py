"""Keypoints: the centers of structures, and corners of vertebrae in films, in LPS millimeters. Their files, and where
they lie in a volume."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .anatomy import STRUCTURES, structure
from .errors import HintError, SpineSegAIError
from .files import read_json
from .hints import Point

if TYPE_CHECKING:
    import SimpleITK as sitk

    from .imaging import CanonicalVolume

KEYPOINT_REACH_MM = 15.0
"""A center stands for the slices up to this far to either side: half the width of a small vertebral body."""

CORNERS = ("upper left", "upper right", "lower left", "lower right")
"""A vertebra's corners in a film, in the order in which they are kept; left and right are the picture's."""

Corners = tuple[Point, Point, Point, Point]
"""Positions of `CORNERS` (LPS, mm)."""

_FLIPPED = {"LPS": False, "1": False, "RAS": True, "0": True}
"""Coordinate systems of markups files, by name or by Slicer's number, and whether they are RAS."""


def keypoint_indices(keypoints: Mapping[int, Point], volume: CanonicalVolume) -> dict[int, Point]:
    """Structure id → fractional (slice, row, column) on the canonical grid.

    Raises:
        HintError: a structure has no center to speak of (the canal), or a point lies outside the image.
    """
    found: dict[int, Point] = {}
    for sid, point in keypoints.items():
        name = STRUCTURES[sid].name
        if not STRUCTURES[sid].is_counted:
            raise HintError(f"The {name} has no center.", "Keypoints are of vertebrae and discs of known level.")
        index = volume.index_of(point)
        if not all(-0.5 <= i <= n - 0.5 for i, n in zip(index, volume.array.shape, strict=True)):
            where = ", ".join(f"{v:.1f}" for v in point)
            raise HintError(
                f"The keypoint of {name} ({where}) lies outside the image.",
                "Coordinates are LPS millimeters; in RAS the first two have the other sign.",
            )
        found[sid] = index
    return found


def centres_of(label: sitk.Image) -> dict[int, Point]:
    """Centroids (LPS, mm) of the vertebrae and discs of a label image, so that masks can serve as keypoints."""
    import SimpleITK as sitk

    shapes = sitk.LabelShapeStatisticsImageFilter()
    shapes.Execute(sitk.Cast(label, sitk.sitkInt32))
    ids = [i for i in shapes.GetLabels() if i in STRUCTURES and STRUCTURES[i].is_counted]
    return {i: shapes.GetCentroid(i) for i in ids}


def parse_keypoints(table: Mapping[str, Any], *, name: str) -> dict[int, Point]:
    """Keypoints from ``{"L4": [x, y, z], …}`` (LPS, mm) or from the content of a Slicer markups file.

    Args:
        table: the decoded JSON.
        name: what to call it in an error.

    Raises:
        HintError: a structure is unknown or named twice, or a point is not three finite numbers.
    """
    found: dict[int, Point] = {}
    for key, position in _entries(table, name):
        try:
            sid = structure(key).id
        except SpineSegAIError as error:
            raise HintError(f"{name}: {error.message}", error.remedy) from None
        if sid in found:
            raise HintError(f"{name} has two keypoints called “{key}”.", "Keep one point for each structure.")
        found[sid] = _point(position, f"{name}, {key}")
    if not found:
        raise HintError(f"{name} holds no keypoints.", 'Write {"L4": [x, y, z]} with LPS millimeters.')
    return found


def parse_corners(table: Mapping[str, Any], *, name: str) -> dict[int, Corners]:
    """Corners from ``{"L4": [[x, y, z], …], …}``, four points (LPS, mm) for each vertebra in the order of `CORNERS`.

    Args:
        table: the decoded JSON.
        name: what to call it in an error.

    Raises:
        HintError: a structure is not a vertebra or named twice, or has not four points of three finite numbers.
    """
    found: dict[int, Corners] = {}
    for key, positions in table.items():
        try:
            vertebra = structure(key)
        except SpineSegAIError as error:
            raise HintError(f"{name}: {error.message}", error.remedy) from None
        if not vertebra.is_vertebral or not vertebra.is_counted or vertebra.id in found:
            raise HintError(
                f"{name}: “{key}” is not a vertebra, or is there twice.", "Give the corners of each vertebra once."
            )
        if not isinstance(positions, (list, tuple)) or len(positions) != len(CORNERS):
            raise HintError(f"{name}: {key} does not have four corners.", f"Write four points: {', '.join(CORNERS)}.")
        a, b, c, d = (_point(position, f"{name}, {key}") for position in positions)
        found[vertebra.id] = (a, b, c, d)
    return found


def read_keypoints(path: str | Path) -> dict[int, Point]:
    """Keypoints of a JSON file: ``{"L4": [x, y, z]}`` in LPS mm, or a Slicer markups file (``.mrk.json``).

    Raises:
        HintError: the file is missing, is not JSON, or holds something else.
    """
    return parse_keypoints(_load(Path(path)), name=str(path))


def read_control_points(path: str | Path) -> list[tuple[str, Point]]:
    """Label and position (LPS, mm) of every point of such a file, whatever its label says.

    Raises:
        HintError: as `read_keypoints`, but for the labels.
    """
    return [(label, _point(at, f"{path}, {label}")) for label, at in _entries(_load(Path(path)), str(path))]


def _load(path: Path) -> dict[str, Any]:
    table = read_json(path, HintError)
    if not isinstance(table, dict):
        raise HintError(f"{path} holds no table of keypoints.", 'Write {"L4": [x, y, z]} with LPS millimeters.')
    return table


def _entries(table: Mapping[str, Any], name: str) -> list[tuple[str, Any]]:
    if "markups" not in table:
        return list(table.items())
    entries: list[tuple[str, Any]] = []
    try:
        for markup in table["markups"]:
            # Slicer writes LPS unless told otherwise; RAS differs in the sign of the first two coordinates.
            system = str(markup.get("coordinateSystem", "LPS")).upper()
            if system not in _FLIPPED:
                raise HintError(
                    f"{name} has coordinates in the system “{system}”, which is unknown.", "Save it in LPS or RAS."
                )
            flip = _FLIPPED[system]
            for control in markup.get("controlPoints", ()):
                if control.get("positionStatus", "defined") != "defined":
                    continue
                x, y, z = control["position"]
                entries.append((str(control["label"]), (-x, -y, z) if flip else (x, y, z)))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise HintError(f"{name} is not a markups file that can be read: {error!r}.", "Save it again.") from None
    return entries


def _point(value: Any, name: str) -> Point:
    try:
        x, y, z = (float(v) for v in value)
    except (TypeError, ValueError):
        raise HintError(f"{name}: “{value}” is not a point.", "A point is x, y, z in LPS millimeters.") from None
    if not all(map(math.isfinite, (x, y, z))):
        raise HintError(f"{name}: “{value}” is not a finite point.", "A point is x, y, z in LPS millimeters.")
    return (x, y, z)
