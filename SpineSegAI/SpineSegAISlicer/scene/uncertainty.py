"""How uncertain a method is of each voxel, as a volume node that can be laid over the image.

A volume has one map: a new result fills it again. A map belongs to a segmentation as long as both were made by the same
result, which the map's copy of the structures' means tells: after an undo it no longer does. A map's value is the
standard deviation of what a voxel is: √(p (1 − p)), where p is the chance that it belongs to another structure than it
was given.
"""

import json

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

from . import labelmaps, result_attribute
from .results import placeInStudyOf
from .segments import structuresOfSegmentation
from .volumes import UNCERTAINTY_ATTRIBUTE, ijkToWorldMatrix, isUncertaintyMap

ROLE = "SpineSegAI.Uncertainty"
"""Node reference of a volume to its map."""

LEAST_CHANCE, MOST_CHANCE = 0.2, 0.5
"""What is shown: from one chance in five that a voxel belongs to another structure, to even chances. All edges are less
certain than the inside; below a fifth there is nothing to look at."""

WINDOW = tuple((p * (1 - p)) ** 0.5 for p in (LEAST_CHANCE, MOST_CHANCE))
"""The same as standard deviations: 0.4 to 0.5."""

SURROUNDINGS_MM = 10.0
"""A map is shown as far from the structures; elsewhere, methods are uncertain of skin and bowel."""

OVERLAY_OPACITY = 0.7
"""The image shows through, and edges can still be seen."""


def mapFromResult(result, volumeNode, segmentationNode):
    """A scalar volume with a result's uncertainty, on its volume's voxels; the volume's own map is filled again.

    Also of a result of which only some structures were asked for: the map is of all voxels.

    :param result: `SpineSegAILib.results.Segmentation`.
    :param segmentationNode: where the result was placed.
    :returns: the `vtkMRMLScalarVolumeNode`; None if the result has no map, or if only a box of it was taken over.
    """
    means = result.provenance.get("uncertainty")
    if result.uncertainty is None or _meansOf(segmentationNode) != means:
        return None
    import SimpleITK as sitk

    node = volumeNode.GetNodeReference(ROLE)
    if node is None:
        name = slicer.mrmlScene.GenerateUniqueName(_("{volume} uncertainty").format(volume=volumeNode.GetName()))
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScalarVolumeNode")
        node.UnRegister(None)
        node.SetName(name)
        node.SetAttribute(UNCERTAINTY_ATTRIBUTE, json.dumps(means))  # whoever hears of the node must know what it is
        node = slicer.mrmlScene.AddNode(node)
        node.CreateDefaultDisplayNodes()
        _setDisplay(node.GetDisplayNode())
    with slicer.util.NodeModify(node):
        values = sitk.GetArrayFromImage(result.uncertainty)
        values[~_surroundings(segmentationNode, volumeNode)] = 0
        slicer.util.updateVolumeFromArray(node, values)
        matrix = vtk.vtkMatrix4x4()
        volumeNode.GetIJKToRASMatrix(matrix)
        node.SetIJKToRASMatrix(matrix)
        node.SetAttribute(UNCERTAINTY_ATTRIBUTE, json.dumps(means))
        placeInStudyOf(node, volumeNode)
    volumeNode.SetNodeReferenceID(ROLE, node.GetID())
    return node


def _setDisplay(displayNode):
    # Yellow to red: seen on gray, and one of the tables that Slicer makes itself.
    warm = slicer.vtkSlicerColorLogic.GetColorTableNodeID(slicer.vtkMRMLColorTableNode.Warm1)
    displayNode.SetAndObserveColorNodeID(warm)
    displayNode.SetAutoWindowLevel(False)
    displayNode.SetWindowLevelMinMax(*WINDOW)
    displayNode.SetAutoThreshold(False)
    displayNode.SetThreshold(WINDOW[0], 1.0)
    displayNode.SetApplyThreshold(True)


def _surroundings(segmentationNode, volumeNode):
    """Where a map is shown: boxes around every voxel of a structure, as a boolean array (k, j, i)."""
    segments = dict.fromkeys(structuresOfSegmentation(segmentationNode).values(), 1)
    near = labelmaps.mergedArray(segmentationNode, segments, volumeNode) > 0
    for axis, mm in enumerate(np.linalg.norm(ijkToWorldMatrix(volumeNode)[:3, :3], axis=0)[::-1]):
        reach = round(SURROUNDINGS_MM / mm)
        # A voxel is near if the running count of structure voxels grows within reach on both sides of it.
        wide = np.pad(near, [(reach + 1, reach) if a == axis else (0, 0) for a in range(3)])
        count = np.moveaxis(np.cumsum(wide, axis=axis, dtype=np.int32), axis, 0)
        near = np.moveaxis(count[2 * reach + 1 :] > count[: -2 * reach - 1], 0, axis)
    return near


def mapOf(segmentationNode, volumeNode):
    """The map that belongs to a segmentation on its volume; None if there is none."""
    node = volumeNode.GetNodeReference(ROLE) if volumeNode is not None and segmentationNode is not None else None
    if node is None or not isUncertaintyMap(node):
        return None
    return node if json.loads(node.GetAttribute(UNCERTAINTY_ATTRIBUTE)) == _meansOf(segmentationNode) else None


def _meansOf(segmentationNode):
    """Structure name → mean uncertainty, as the segmentation's result has it; None without."""
    return result_attribute.read(segmentationNode).get("provenance", {}).get("uncertainty")


class Overlay:
    """A map as the foreground of the slice views, and what was there before."""

    def __init__(self):
        self._before = {}  # id of a composite node → (id of its foreground, opacity)
        self._mapId = ""

    @staticmethod
    def shows(node):
        """True if any slice view has this volume as its foreground."""
        return any(composite.GetForegroundVolumeID() == node.GetID() for composite in _composites())

    def show(self, node):
        """Lay a map over the images."""
        self._mapId = node.GetID()
        for composite in _composites():
            before = slicer.mrmlScene.GetNodeByID(composite.GetForegroundVolumeID() or "")
            if before is None or not isUncertaintyMap(before):
                opacity = composite.GetForegroundOpacity()
                self._before[composite.GetID()] = (composite.GetForegroundVolumeID(), opacity)
            composite.SetForegroundVolumeID(node.GetID())
            composite.SetForegroundOpacity(OVERLAY_OPACITY)

    def hide(self):
        """Give the views their foregrounds back; one that shows something else by now is left alone."""
        removed = slicer.mrmlScene.GetNodeByID(self._mapId) is None
        for composite in _composites():
            shown = slicer.mrmlScene.GetNodeByID(composite.GetForegroundVolumeID() or "")
            emptied = shown is None and removed and composite.GetID() in self._before  # with the map, not by the reader
            if emptied or (shown is not None and isUncertaintyMap(shown)):
                before, opacity = self._before.get(composite.GetID(), (None, 0.0))
                there = slicer.mrmlScene.GetNodeByID(before or "")
                composite.SetForegroundVolumeID(before if there is not None else None)
                composite.SetForegroundOpacity(opacity)
        self._before = {}

    @property
    def isOn(self):
        """True from `show` to `hide`."""
        return bool(self._before)


def _composites():
    return slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
