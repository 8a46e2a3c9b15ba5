"""Slice, 3D and table views: what they show, and where they look."""

import numpy as np
import slicer
from slicer.i18n import tr as _

from SpineSegAILib.errors import CorrectionError

from . import volumes

SAGITTAL_LAYOUT = 5525
"""Number of our layout among Slicer's: any that no other extension uses."""

SAGITTAL_LAYOUT_XML = """<layout type="horizontal" split="true">
 <item splitSize="650"><view class="vtkMRMLSliceNode" singletontag="Yellow">
  <property name="orientation" action="default">Sagittal</property>
  <property name="viewlabel" action="default">Y</property>
  <property name="viewcolor" action="default">#EDD54C</property>
 </view></item>
 <item splitSize="350"><layout type="vertical" split="true">
  <item><view class="vtkMRMLViewNode" singletontag="1">
   <property name="viewlabel" action="default">1</property>
  </view></item>
  <item><view class="vtkMRMLSliceNode" singletontag="Red">
   <property name="orientation" action="default">Axial</property>
   <property name="viewlabel" action="default">R</property>
   <property name="viewcolor" action="default">#F34A33</property>
  </view></item>
 </layout></item>
</layout>
"""
"""A large sagittal view beside the 3D and the axial view."""


def arrangement():
    """Layout and slices that are shown: equal as long as nobody has changed them. None where there are no views."""
    layoutManager = slicer.app.layoutManager()
    if layoutManager is None:
        return None
    nodes = slicer.util.getNodesByClass("vtkMRMLSliceNode")
    slices = {node.GetID(): (node.GetOrientation(), node.GetSliceOffset()) for node in nodes}
    return layoutManager.layout, slices


def showResult(volumeNode, segmentationNode, before):
    """Show a new result in a sagittal layout, the spine centered, and a film alone in the view along it.

    Nothing changes if the user has arranged the views himself.

    :param before: `arrangement` when the segmentation was started.
    """
    layoutNode = slicer.vtkMRMLLayoutNode
    usual = (layoutNode.SlicerLayoutFourUpView, layoutNode.SlicerLayoutConventionalView)
    if before is None or before[0] not in usual or arrangement() != before:
        return
    layoutManager = slicer.app.layoutManager()
    across = volumes.singleSliceAxis(volumeNode)
    if across is not None:
        alone = (
            layoutNode.SlicerLayoutOneUpYellowSliceView,
            layoutNode.SlicerLayoutOneUpGreenSliceView,
            layoutNode.SlicerLayoutOneUpRedSliceView,
        )
        layoutManager.setLayout(alone[across])
        centreViews(volumeNode, segmentationNode)
        return
    node = layoutManager.layoutLogic().GetLayoutNode()
    if not node.IsLayoutDescription(SAGITTAL_LAYOUT):
        node.AddLayoutDescription(SAGITTAL_LAYOUT, SAGITTAL_LAYOUT_XML)
    layoutManager.setLayout(SAGITTAL_LAYOUT)
    centreViews(volumeNode, segmentationNode)


def centreOfSpine(segmentationNode):
    """World position (RAS, mm) to look at: the middle of the structures' common box."""
    bounds = [0.0] * 6
    segmentationNode.GetRASBounds(bounds)
    return [(bounds[2 * axis] + bounds[2 * axis + 1]) / 2 for axis in range(3)]


def centreViews(volumeNode, segmentationNode):
    """Show the volume in the slice views, and jump to the spine in all of them; a film is shown whole."""
    isFlat = volumes.singleSliceAxis(volumeNode) is not None
    slicer.util.setSliceViewerLayers(background=volumeNode, fit=True, rotateToVolumePlane=isFlat)
    centre = centreOfSpine(segmentationNode)
    kinds = slicer.vtkMRMLSliceNode
    jump = kinds.OffsetJumpSlice if isFlat else kinds.CenteredJumpSlice
    kinds.JumpAllSlices(slicer.mrmlScene, *centre, jump)
    layoutManager = slicer.app.layoutManager()
    if layoutManager is not None:
        for index in range(layoutManager.threeDViewCount):
            layoutManager.threeDWidget(index).threeDView().resetFocalPoint()


def lookAt(position):
    """Move all slice views to a world position (RAS, mm), and turn the 3D views' cameras about it from now on."""
    slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *position, slicer.vtkMRMLSliceNode.CenteredJumpSlice)
    for cameraNode in slicer.util.getNodesByClass("vtkMRMLCameraNode"):
        camera = cameraNode.GetCamera()
        shift = np.subtract(position, camera.GetFocalPoint())
        camera.SetPosition(*np.add(camera.GetPosition(), shift))
        camera.SetFocalPoint(*position)
        cameraNode.ResetClippingRange()


def shownSlice(volumeNode):
    """Axis of a volume's array (k, j, i) along which it was acquired, and the index of the slice that a view shows.

    :raises CorrectionError: no slice view is parallel to the slices of the volume.
    """
    matrix = volumes.ijkToWorldMatrix(volumeNode)
    axis = 2 - volumes.acquisitionAxis(volumeNode)
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


def showTable(tableNode):
    """Show a table in the layout's table view, where there are views; in a layout that has one."""
    layoutManager = slicer.app.layoutManager()
    if layoutManager is None:
        return
    layoutManager.setLayout(slicer.modules.tables.logic().GetLayoutWithTable(layoutManager.layout))
    selection = slicer.app.applicationLogic().GetSelectionNode()
    selection.SetActiveTableID(tableNode.GetID())
    slicer.app.applicationLogic().PropagateTableSelection()
