"""Points and boxes that the reader places in the views: a picked point, key points, a box around structures."""

import numpy as np
import slicer
from slicer.i18n import tr as _

from SpineSegAILib.errors import CorrectionError

from . import corrections, nodes, volumes

BOX_MARGIN_MM = 8.0
"""Around the structures that a box is placed for: room to drag, and to see the neighbours' edges."""
MOVED_MM = 0.5
"""A key point that was moved by less was not moved on purpose."""


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


class KeyPoints:
    """The structures' key points as a point list, to be dragged."""

    def __init__(self):
        self.node = None
        self._placed = []  # (id of the control point, structure id, position in RAS)

    def show(self, segmentationNode):
        """A point per structure that has a level: as the method predicted it, or in the middle of the segment."""
        self.hide()
        points = keyPointsOf(segmentationNode)
        if not points:
            raise CorrectionError(_("There is no structure whose key point could be moved."), _("Segment first."))
        self.node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", _("Key points"))
        self.node.SetSaveWithScene(False)
        self.node.CreateDefaultDisplayNodes()
        from SpineSegAILib import anatomy

        for structureId, point in points.items():
            index = self.node.AddControlPointWorld(*point, anatomy.STRUCTURES[structureId].name)
            self._placed.append((self.node.GetNthControlPointID(index), structureId, point))

    def hide(self):
        """Remove the points."""
        if self.node is not None and self.node.GetScene() is not None:
            slicer.mrmlScene.RemoveNode(self.node)
        self.node, self._placed = None, []

    def moved(self):
        """Structure id → position (RAS, mm) of the points that the reader has moved; those deleted are left out."""
        if self.node is None or self.node.GetScene() is None:
            return {}
        found = {}
        for pointId, structureId, before in self._placed:
            index = self.node.GetNthControlPointIndexByID(pointId)
            if index < 0 or self.node.GetNthControlPointPositionStatus(index) != self.node.PositionDefined:
                continue
            position = [0.0] * 3
            self.node.GetNthControlPointPositionWorld(index, position)
            if np.linalg.norm(np.subtract(position, before)) > MOVED_MM:
                found[structureId] = tuple(position)
        return found


def keyPointsOf(segmentationNode):
    """Structure id → key point (RAS, mm) of the vertebrae and discs, top down."""
    from SpineSegAILib import anatomy

    found = {}
    segmentation = segmentationNode.GetSegmentation()
    for structureId, segmentId in nodes.structuresOfSegmentation(segmentationNode).items():
        if anatomy.STRUCTURES[structureId].order is None:
            continue
        text = nodes.tagOf(segmentation.GetSegment(segmentId), nodes.KEYPOINT_TAG)
        point = lps(map(float, text.split())) if text else corrections.centreOf(segmentationNode, structureId)
        if point is not None:
            found[structureId] = tuple(point)
    return found


def placeBox(segmentationNode, structureIds, boxNode=None):
    """A box (`vtkMRMLMarkupsROINode`) around structures; the one that there is already is moved.

    :raises CorrectionError: the structures have no voxels.
    """
    bounds = []
    segmentation = segmentationNode.GetSegmentation()
    structures = nodes.structuresOfSegmentation(segmentationNode)
    transform = volumes.worldTransform(segmentationNode)
    for structureId in structureIds:
        image = segmentation.GetSegment(structures[structureId]).GetRepresentation(nodes.LABELMAP)
        if image is None:
            continue
        held = np.argwhere(
            nodes.arrayOfImage(image) == segmentation.GetSegment(structures[structureId]).GetLabelValue()
        )
        if len(held):
            matrix = transform @ nodes.imageToWorld(image)
            first = np.array(image.GetExtent()[::2])
            low, high = held.min(axis=0)[::-1] + first - 0.5, held.max(axis=0)[::-1] + first + 0.5
            corners = np.array(np.meshgrid(*zip(low, high, strict=True))).reshape(3, -1)
            bounds.append((matrix @ np.vstack([corners, np.ones(8)]))[:3])
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


def acquisitionAxis(volumeNode):
    """Axis of a volume's array (k, j, i) across the slices that were acquired: the one with the largest spacing."""
    return 2 - int(np.argmax(np.linalg.norm(volumes.ijkToWorldMatrix(volumeNode)[:3, :3], axis=0)))


def shownSlice(volumeNode):
    """Axis of a volume's array (k, j, i) along which it was acquired, and the index of the slice that a view shows.

    :raises CorrectionError: no slice view is parallel to the slices of the volume.
    """
    matrix = volumes.ijkToWorldMatrix(volumeNode)
    axis = 2 - acquisitionAxis(volumeNode)
    normal = matrix[:3, axis] / np.linalg.norm(matrix[:3, axis])
    for view in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        toRas = slicer.util.arrayFromVTKMatrix(view.GetSliceToRAS())
        across = toRas[:3, 2] / np.linalg.norm(toRas[:3, 2])
        if abs(across @ normal) < 0.9:  # 25 degrees
            continue
        index = int(np.rint((np.linalg.inv(matrix) @ toRas[:, 3])[axis]))
        if 0 <= index < volumeNode.GetImageData().GetDimensions()[axis]:
            return 2 - axis, index
    raise CorrectionError(
        _("No slice view shows a slice of “{volume}” as it was acquired.").format(volume=volumeNode.GetName()),
        _("Choose a layout with a view along the slices (mostly the sagittal, yellow one) and go to the slice."),
    )


def lps(point):
    """RAS to LPS, or back."""
    x, y, z = point
    return (-x, -y, z)
