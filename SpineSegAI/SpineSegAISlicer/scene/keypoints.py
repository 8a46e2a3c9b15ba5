"""Keypoints: each structure's center as its method found it, in one list that can be dragged, and back as hints.

They are kept on the segments (`KEYPOINT_TAG`) and move with them. A segmentation has one list, which lies under its
volume's transform; a point's label is the name of the structure whose center it is.
"""

import json

import numpy as np
import slicer
from slicer.i18n import tr as _

from SpineSegAILib import anatomy
from SpineSegAILib.errors import CorrectionError, HintError, SpineSegAIError

from . import labelmaps, volumes
from .segments import KEYPOINT_TAG, structuresOfSegmentation, tagOf

ROLE = "SpineSegAI.KeyPoints"
"""Node reference of a segmentation to its list."""

PLACED_ATTRIBUTE = "SpineSegAI.KeyPointsPlaced"
"""Of a list: structure id → position (RAS, mm) where its point was put, as JSON."""

MOVED_MM = 0.5
"""A point that was moved by less was not moved on purpose."""


def predictedKeypoints(segmentationNode):
    """Structure id → point (LPS, mm) that the method found with the result; empty if it finds none."""
    segmentation = segmentationNode.GetSegmentation()
    structures = structuresOfSegmentation(segmentationNode)
    texts = {s: tagOf(segmentation.GetSegment(segmentId), KEYPOINT_TAG) for s, segmentId in structures.items()}
    found = {structureId: tuple(map(float, text.split())) for structureId, text in texts.items() if text}
    return {structureId: volumes.pointToWorld(segmentationNode, point) for structureId, point in found.items()}


def keypointsOf(segmentationNode):
    """Structure id → keypoint (RAS, mm) of the vertebrae and discs, top down.

    As the method predicted it, or in the middle of the segment.
    """
    predicted, found = predictedKeypoints(segmentationNode), {}
    for structureId in anatomy.sorted_ids(structuresOfSegmentation(segmentationNode)):
        if not anatomy.STRUCTURES[structureId].is_counted:
            continue
        point = predicted.get(structureId)
        position = volumes.lps(point) if point is not None else labelmaps.centreOf(segmentationNode, structureId)
        if position is not None:
            found[structureId] = tuple(position)
    return found


def listOf(segmentationNode):
    """A segmentation's list; None if none was made."""
    return segmentationNode.GetNodeReference(ROLE)


def showList(segmentationNode, volumeNode):
    """Show a segmentation's list, made if need be. Points stay where they were dragged until the segments change.

    :param volumeNode: the volume that the segmentation was made on.
    :returns: the `vtkMRMLMarkupsFiducialNode`.
    :raises CorrectionError: no structure has a keypoint.
    """
    points = keypointsOf(segmentationNode)
    if not points:
        raise CorrectionError(_("There is no structure whose keypoint could be moved."), _("Segment first."))
    node = listOf(segmentationNode)
    if node is None:
        name = _("{segmentation} keypoints").format(segmentation=segmentationNode.GetName())
        node = slicer.mrmlScene.AddNewNodeByClass(
            "vtkMRMLMarkupsFiducialNode", slicer.mrmlScene.GenerateUniqueName(name)
        )
        node.CreateDefaultDisplayNodes()
        segmentationNode.SetNodeReferenceID(ROLE, node.GetID())
    if _placed(node) != points:
        _fill(node, points, volumeNode)
    node.SetDisplayVisibility(True)
    return node


def hideList(segmentationNode):
    """Take the list out of the views; it stays in the scene."""
    node = listOf(segmentationNode)
    if node is not None:
        node.SetDisplayVisibility(False)


def _fill(node, points, volumeNode):
    with slicer.util.NodeModify(node):
        transformNode = volumeNode.GetParentTransformNode() if volumeNode is not None else None
        node.SetAndObserveTransformNodeID(transformNode.GetID() if transformNode else None)
        node.RemoveAllControlPoints()
        for structureId, position in points.items():
            node.AddControlPointWorld(list(position), anatomy.STRUCTURES[structureId].name)
        _setPlaced(node, points)


def _placed(node):
    """Structure id → position where its point was put; empty for a list that an earlier version filled."""
    try:
        document = json.loads(node.GetAttribute(PLACED_ATTRIBUTE) or "{}")
        return {int(structureId): tuple(position) for structureId, position in document.items()}
    except (AttributeError, TypeError, ValueError):  # someone edited it
        return {}


def _setPlaced(node, points):
    node.SetAttribute(PLACED_ATTRIBUTE, json.dumps(points))


def isStale(segmentationNode):
    """True if the segments have changed since their list was filled."""
    node = listOf(segmentationNode)
    return node is not None and _placed(node) != keypointsOf(segmentationNode)


def renameInList(segmentationNode, mapping):
    """Let the points follow structures that get other names.

    :param mapping: structure id → its new one, 0 for a structure that goes.
    """
    node = listOf(segmentationNode)
    if node is None:
        return
    names = {
        anatomy.STRUCTURES[old].name: anatomy.STRUCTURES[new].name if new else None for old, new in mapping.items()
    }
    with slicer.util.NodeModify(node):
        for index in reversed(range(node.GetNumberOfControlPoints())):
            label = node.GetNthControlPointLabel(index)
            name = names.get(label, label)
            if name is None:
                node.RemoveNthControlPoint(index)
            elif name != label:
                node.SetNthControlPointLabel(index, name)
        renamed = {mapping.get(i, i): position for i, position in _placed(node).items()}
        _setPlaced(node, {i: renamed[i] for i in anatomy.sorted_ids(i for i in renamed if i)})


def keypointsFromNode(node):
    """Structure id → point (LPS, mm) of a markups list.

    :raises HintError: a label is not a structure's name, or two are the same.
    """
    found = {}
    for index in range(node.GetNumberOfControlPoints()):
        if node.GetNthControlPointPositionStatus(index) != slicer.vtkMRMLMarkupsNode.PositionDefined:
            continue
        label = node.GetNthControlPointLabel(index)
        try:
            structureId = anatomy.structure(label).id
        except SpineSegAIError:
            raise HintError(
                _("The keypoint “{label}” of “{list}” is not named after a structure.").format(
                    label=label, list=node.GetName()
                ),
                _("Rename it to the vertebra or disc whose center it is, such as L4 or L4/L5, or delete it."),
            ) from None
        if structureId in found:
            raise HintError(
                _("“{list}” has two keypoints called “{label}”.").format(list=node.GetName(), label=label),
                _("Keep one point for each structure."),
            )
        position = [0.0, 0.0, 0.0]
        node.GetNthControlPointPositionWorld(index, position)
        found[structureId] = volumes.lps(position)
    return found


def movedKeypoints(segmentationNode):
    """Structure id → point (LPS, mm) of those that were dragged in a segmentation's list; deleted ones are omitted.

    :raises HintError: see `keypointsFromNode`.
    """
    node = listOf(segmentationNode)
    if node is None:
        return {}
    placed = _placed(node)
    return {
        structureId: point
        for structureId, point in keypointsFromNode(node).items()
        if structureId in placed and np.linalg.norm(np.subtract(volumes.lps(point), placed[structureId])) > MOVED_MM
    }
