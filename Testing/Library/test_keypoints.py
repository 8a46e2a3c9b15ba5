"""Keypoint files: our own table, and Slicer's markups."""

import json

import pytest

from SpineSegAILib.errors import HintError
from SpineSegAILib.keypoints import read_keypoints


def write(folder, content):
    path = folder / "points.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def markups(system, *points):
    controls = [{"label": label, "position": position, **more} for label, position, more in points]
    return {"markups": [{"type": "Fiducial", "coordinateSystem": system, "controlPoints": controls}]}


def test_table(tmp_path):
    assert read_keypoints(write(tmp_path, {"L4": [1, 2, 3.5], "l4/l5": [4, 5, 6]})) == {23: (1, 2, 3.5), 123: (4, 5, 6)}


@pytest.mark.parametrize(
    ("system", "point"),
    [("LPS", [1, 2, 3]), ("1", [1, 2, 3]), ("RAS", [-1, -2, 3]), ("ras", [-1, -2, 3]), (0, [-1, -2, 3])],
)
def test_markups_of_slicer(tmp_path, system, point):
    placed, preview = ("L4", point, {}), ("L5", [0, 0, 0], {"positionStatus": "preview"})
    assert read_keypoints(write(tmp_path, markups(system, placed, preview))) == {23: (1, 2, 3)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read"),
        ([1, 2], "no table"),
        ({}, "no keypoints"),
        ({"L9": [1, 2, 3]}, "“L9” is not a structure"),
        ({"L4": [1, 2]}, "not a point"),
        ({"L4": "here"}, "not a point"),
        ('{"L4": [1, 2, NaN]}', "not a finite point"),
        ({"S1": [1, 2, 3], "sacrum": [1, 2, 3]}, "two keypoints"),
        ({"markups": [{"controlPoints": [{"label": "L4"}]}]}, "not a markups file"),
        ({"markups": 3}, "not a markups file"),
        (markups("IJK", ("L4", [1, 2, 3], {})), "“IJK”, which is unknown"),
    ],
)
def test_names_what_is_wrong(tmp_path, content, words):
    with pytest.raises(HintError, match=words):
        read_keypoints(write(tmp_path, content))


def test_missing_file(tmp_path):
    with pytest.raises(HintError, match="does not exist"):
        read_keypoints(tmp_path / "no.json")
