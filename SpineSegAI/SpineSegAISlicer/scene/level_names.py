"""Level names written at the vertebrae, in slice views and in 3D: a locked list of points that follows the segments."""

import slicer
from slicer.i18n import tr as _

from SpineSegAILib import anatomy

from . import labelmaps
from .segments import structuresOfSegmentation

ROLE = "SpineSegAI.LevelNames"
"""Node reference of a segmentation to its list."""

GLYPH_PERCENT, TEXT_PERCENT = 0.5, 4.0
"""Of the view's size: the name matters, the point only says where it belongs."""


def show(segmentationNode, shown):
    """Write the names, or take them out of the views."""
    node = segmentationNode.GetNodeReference(ROLE)
    if node is None:
        if not shown:
            return
        node = _make(segmentationNode)
    node.SetDisplayVisibility(bool(shown))
    update(segmentationNode)


def areShown(segmentationNode):
    """Whether the names are in the views."""
    node = segmentationNode.GetNodeReference(ROLE)
    return node is not None and bool(node.GetDisplayVisibility())


def update(segmentationNode):
    """Bring shown names in line with the segments; names alone are changed where no vertebra has moved."""
    if not areShown(segmentationNode):
        return
    node = segmentationNode.GetNodeReference(ROLE)
    named = []
    for structureId in anatomy.sorted_ids(structuresOfSegmentation(segmentationNode)):
        structure = anatomy.STRUCTURES[structureId]
        centre = labelmaps.centreOf(segmentationNode, structureId) if structure.is_vertebral else None
        if centre is not None:
            named.append((structure.name, centre))
    with slicer.util.NodeModify(node):
        if node.GetNumberOfControlPoints() != len(named):
            node.RemoveAllControlPoints()
            for name, centre in named:
                node.AddControlPointWorld(centre, name)
            return
        for index, (name, centre) in enumerate(named):
            node.SetNthControlPointLabel(index, name)
            node.SetNthControlPointPositionWorld(index, *centre)


def _make(segmentationNode):
    name = _("{segmentation} level names").format(segmentation=segmentationNode.GetName())
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", slicer.mrmlScene.GenerateUniqueName(name))
    node.SetLocked(True)
    node.SetSaveWithScene(False)
    node.SetHideFromEditors(True)
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    display.SetGlyphScale(GLYPH_PERCENT)
    display.SetTextScale(TEXT_PERCENT)
    display.SetPointLabelsVisibility(True)
    display.SetPropertiesLabelVisibility(False)
    display.SetSelectedColor(1.0, 1.0, 1.0)
    display.SetSliceProjection(True)  # also on slices beside the middle of a vertebra
    display.SetSliceProjectionOpacity(1.0)
    display.SetSliceProjectionUseFiducialColor(True)
    display.SetOccludedVisibility(True)  # the points lie inside the surfaces
    display.SetOccludedOpacity(1.0)
    segmentationNode.SetNodeReferenceID(ROLE, node.GetID())
    return node
