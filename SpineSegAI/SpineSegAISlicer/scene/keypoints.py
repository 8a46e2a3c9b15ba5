"""Key points as a markups list: what a method found, shown so that it can be dragged, and read back as a hint.

A point is its label: the name of the structure whose centre it is. Positions are world positions, like those of
results; a list lies under its volume's transform, so the two move together.
"""

import slicer
from slicer.i18n import tr as _

from SpineSegAILib import anatomy
from SpineSegAILib.errors import HintError, SpineSegAIError

from . import result_attribute

ROLE = "SpineSegAI.KeyPoints"
"""Node reference of a segmentation to its list."""


def keypointsOfResult(segmentationNode):
    """Structure id → point (LPS, mm) that the method found with the result; empty if it finds none."""
    points = result_attribute.read(segmentationNode).get("keypoints_lps_mm", {})
    return {int(structureId): tuple(point) for structureId, point in points.items()}


def keypointsNode(segmentationNode, volumeNode):
    """A markups list of the result's key points, top down; the segmentation's own list is filled anew.

    :param volumeNode: the volume that the segmentation was made on.
    :returns: the `vtkMRMLMarkupsFiducialNode`.
    """
    node = segmentationNode.GetNodeReference(ROLE)
    if node is None:
        name = _("{segmentation} key points").format(segmentation=segmentationNode.GetName())
        node = slicer.mrmlScene.AddNewNodeByClass(
            "vtkMRMLMarkupsFiducialNode", slicer.mrmlScene.GenerateUniqueName(name)
        )
        node.CreateDefaultDisplayNodes()
        segmentationNode.SetNodeReferenceID(ROLE, node.GetID())
    points = keypointsOfResult(segmentationNode)
    with slicer.util.NodeModify(node):
        transformNode = volumeNode.GetParentTransformNode() if volumeNode is not None else None
        node.SetAndObserveTransformNodeID(transformNode.GetID() if transformNode else None)
        node.RemoveAllControlPoints()
        for structureId in anatomy.sorted_ids(points):
            left, posterior, superior = points[structureId]
            node.AddControlPointWorld([-left, -posterior, superior], anatomy.STRUCTURES[structureId].name)
    return node


def keypointsFromNode(node):
    """Structure id → point (LPS, mm) of a markups list.

    :raises HintError: a label is no structure's name, or two are the same.
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
                _("The key point “{label}” of “{list}” is not named after a structure.").format(
                    label=label, list=node.GetName()
                ),
                _("Rename it to the vertebra or disc whose centre it is, such as L4 or L4/L5, or delete it."),
            ) from None
        if structureId in found:
            raise HintError(
                _("“{list}” has two key points called “{label}”.").format(list=node.GetName(), label=label),
                _("Keep one point for each structure."),
            )
        position = [0.0, 0.0, 0.0]
        node.GetNthControlPointPositionWorld(index, position)
        found[structureId] = (-position[0], -position[1], position[2])
    return found
