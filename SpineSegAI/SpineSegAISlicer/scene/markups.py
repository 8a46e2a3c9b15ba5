"""Points and boxes that the reader places in the views: a picked point, a box around structures."""

import numpy as np
import slicer
from slicer.i18n import tr as _

from SpineSegAILib.errors import CorrectionError

from . import labelmaps, volumes

BOX_MARGIN_MM = 8.0
"""Around the structures that a box is placed for: room to drag, and to see the neighbors' edges."""


class PointPicker:
    """One click in any view.

    :param onPicked: called with the position (RAS, mm); with None if the reader gave up.
    """

    def __init__(self, onPicked):
        self._onPicked = onPicked
        self._node = None
        self._observed = ()

    def start(self):
        """From now on the next click is the point."""
        self.stop()
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", _("Picked point"))
        node.SetSaveWithScene(False)
        node.SetHideFromEditors(True)
        node.CreateDefaultDisplayNodes()
        self._node = node
        selection = slicer.app.applicationLogic().GetSelectionNode()
        interaction = slicer.app.applicationLogic().GetInteractionNode()
        selection.SetReferenceActivePlaceNodeClassName("vtkMRMLMarkupsFiducialNode")
        selection.SetActivePlaceNodeID(node.GetID())
        interaction.SetPlaceModePersistence(0)
        interaction.SetCurrentInteractionMode(interaction.Place)
        self._observed = (
            (node, node.AddObserver(node.PointPositionDefinedEvent, self._onPoint)),
            (interaction, interaction.AddObserver(interaction.InteractionModeChangedEvent, self._onMode)),
        )

    @property
    def node(self):
        """The point list that waits for the click; None if nothing is being picked."""
        return self._node

    def stop(self):
        """Give up, or tidy up after a click."""
        node, self._node = self._node, None
        if node is None:
            return
        for caller, tag in self._observed:
            caller.RemoveObserver(tag)
        self._observed = ()
        interaction = slicer.app.applicationLogic().GetInteractionNode()
        if interaction.GetCurrentInteractionMode() == interaction.Place:
            interaction.SetCurrentInteractionMode(interaction.ViewTransform)
        if node.GetScene() is not None:
            slicer.mrmlScene.RemoveNode(node)

    def _onPoint(self, caller, event):
        position = [0.0] * 3
        caller.GetNthControlPointPositionWorld(caller.GetNumberOfControlPoints() - 1, position)
        # The markup is still at work on this point: it goes away once it has finished.
        import qt

        qt.QTimer.singleShot(0, lambda: self._finish(caller, position))

    def _onMode(self, caller, event):
        """The mode ends with the click, too, before or after the point is there."""
        node = self._node
        if caller.GetCurrentInteractionMode() != caller.Place:
            import qt

            qt.QTimer.singleShot(0, lambda: self._giveUp(node, caller))

    def _giveUp(self, node, interaction):
        if node.GetNumberOfDefinedControlPoints() == 0 and interaction.GetCurrentInteractionMode() != interaction.Place:
            self._finish(node, None)

    def _finish(self, node, position):
        if node is self._node:
            self.stop()
            self._onPicked(position)


def placeBox(segmentationNode, structureIds, boxNode=None):
    """A box (`vtkMRMLMarkupsROINode`) around structures; the one that there is already is moved.

    :raises CorrectionError: the structures have no voxels.
    """
    bounds = []
    for structureId in structureIds:
        found = labelmaps.voxelsOf(segmentationNode, structureId)
        if found is not None:
            index, toWorld = found
            low, high = index.min(axis=0) - 0.5, index.max(axis=0) + 0.5
            corners = np.array(np.meshgrid(*zip(low, high, strict=True))).reshape(3, -1)
            bounds.append((toWorld @ np.vstack([corners, np.ones(8)]))[:3])
    if not bounds:
        raise CorrectionError(_("Select the structures that the box is for."))
    corners = np.hstack(bounds)
    low, high = corners.min(axis=1) - BOX_MARGIN_MM, corners.max(axis=1) + BOX_MARGIN_MM
    if boxNode is None:
        boxNode = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", _("Repair box"))
        boxNode.SetSaveWithScene(False)
        boxNode.CreateDefaultDisplayNodes()
    boxNode.SetCenterWorld(*((low + high) / 2))
    boxNode.SetSizeWorld(*(high - low))
    return boxNode


def boxOnGrid(boxNode, volumeNode):
    """The part of a volume's array (k, j, i) that a box covers, as a tuple of slices.

    :raises CorrectionError: the box lies outside the volume.
    """
    size, centre = [0.0] * 3, [0.0] * 3
    boxNode.GetSizeWorld(size)
    boxNode.GetCenterWorld(centre)
    signs = np.array(np.meshgrid((-1, 1), (-1, 1), (-1, 1))).reshape(3, -1)
    toWorld = slicer.util.arrayFromVTKMatrix(boxNode.GetObjectToWorldMatrix())
    axes = toWorld[:3, :3] / np.linalg.norm(toWorld[:3, :3], axis=0)
    corners = np.array(centre)[:, None] + axes @ (signs * np.array(size)[:, None] / 2)
    ijk = np.linalg.inv(volumes.ijkToWorldMatrix(volumeNode)) @ np.vstack([corners, np.ones(8)])
    low, high = np.rint(ijk[:3].min(axis=1)).astype(int), np.rint(ijk[:3].max(axis=1)).astype(int)
    parts = []
    for axis, count in enumerate(volumeNode.GetImageData().GetDimensions()):
        first, last = max(low[axis], 0), min(high[axis] + 1, count)
        if first >= last:
            raise CorrectionError(
                _("The box lies outside “{volume}”.").format(volume=volumeNode.GetName()),
                _("Drag it onto the spine."),
            )
        parts.append(slice(int(first), int(last)))
    return tuple(parts[::-1])
