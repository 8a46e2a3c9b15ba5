"""Files of key points: the centres of structures in LPS millimetres."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .anatomy import structure
from .errors import HintError, SpineSegAIError
from .hints import Point


def parse_keypoints(table: Mapping[str, Any], *, name: str) -> dict[int, Point]:
    """Key points from ``{"L4": [x, y, z], …}`` (LPS, mm) or from the content of a Slicer markups file.

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
            raise HintError(f"{name} has two key points called “{key}”.", "Keep one point for each structure.")
        found[sid] = _point(position, f"{name}, {key}")
    if not found:
        raise HintError(f"{name} holds no key points.", 'Write {"L4": [x, y, z]} with LPS millimetres.')
    return found


def read_keypoints(path: str | Path) -> dict[int, Point]:
    """Key points of a JSON file: ``{"L4": [x, y, z]}`` in LPS mm, or a Slicer markups file (``.mrk.json``).

    Raises:
        HintError: the file is missing, is not JSON, or holds something else.
    """
    path = Path(path)
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HintError(f"The key point file {path} does not exist.", "Check the path.") from None
    except (OSError, ValueError) as error:
        raise HintError(f"{path} cannot be read as key points: {error}.", "It must be a JSON file.") from None
    if not isinstance(table, dict):
        raise HintError(f"{path} holds no table of key points.", 'Write {"L4": [x, y, z]} with LPS millimetres.')
    return parse_keypoints(table, name=str(path))


def _entries(table: Mapping[str, Any], name: str) -> list[tuple[str, Any]]:
    if "markups" not in table:
        return list(table.items())
    entries: list[tuple[str, Any]] = []
    try:
        for markup in table["markups"]:
            # Slicer writes LPS unless told otherwise; RAS differs in the sign of the first two coordinates.
            flip = markup.get("coordinateSystem", "LPS") in ("RAS", "0", 0)
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
        raise HintError(f"{name}: “{value}” is not a point.", "A point is x, y, z in LPS millimetres.") from None
    if not all(map(math.isfinite, (x, y, z))):
        raise HintError(f"{name}: “{value}” is not a finite point.", "A point is x, y, z in LPS millimetres.")
    return (x, y, z)
