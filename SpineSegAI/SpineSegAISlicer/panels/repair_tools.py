"""Repairing a part: segmented again in a box or on a slice, interpolated, smoothed."""

import slicer

from SpineSegAILib.errors import SpineSegAIError

from ..processes import dependencies
from ..scene import corrections, markups, views, volumes
from ..scene.segment_again import SegmentAgain
from .part import Part


class RepairTools(Part):
    """What lies outside of the part stays as it is."""

    def __init__(self, section):
        super().__init__(section)
        ui = self.ui
        self.boxNode = None
        self._repair = None  # the `SegmentAgain` of the box, while it runs
        section.segmenting.placedCallbacks.append(self._onPlaced)
        for button, slot in (
            (ui.boxButton, self._onBox),
            (ui.repairBoxButton, self._onRepairBox),
            (ui.repairSliceButton, self._onRepairSlice),
            (ui.interpolateButton, self._onInterpolate),
            (ui.smoothButton, self._onSmooth),
        ):
            button.connect("clicked(bool)", slot)

    def setEnabled(self, there, idle):
        """The box is repaired once it is there."""
        ui = self.ui
        for widget in (ui.boxButton, ui.repairSliceButton, ui.interpolateButton, ui.smoothButton):
            widget.enabled = idle
        ui.repairBoxButton.enabled = idle and self.boxNode is not None

    def onNodeRemoved(self):
        """Something was removed from the scene."""
        if self.boxNode is not None and self.boxNode.GetScene() is None:
            self.boxNode = None

    def onLeft(self):
        """The box was for another segmentation."""
        self.removeBox()

    def exit(self):
        """In another module the box would be in the way of the mouse."""
        self.removeBox()

    def removeBox(self):
        """Take the box out of the views."""
        node, self.boxNode = self.boxNode, None
        if node is not None and node.GetScene() is not None:
            slicer.mrmlScene.RemoveNode(node)

    def _onPlaced(self, task):
        """The box goes once its work is done."""
        if self._repair is not None and task.again is self._repair:
            self.removeBox()
        self._repair = None

    # --- segmented again ---------------------------------------------------------------------------------------------

    def _onBox(self):
        section = self.section
        try:
            corrections.labellingOf(section.segmentationNode)
            self.boxNode = markups.placeBox(section.segmentationNode, section.review.selected(), self.boxNode)
        except SpineSegAIError as error:
            section.showError(error)
        section.updateButtons()

    def _onRepairBox(self):
        try:
            self._repair = self._start(markups.boxOnGrid(self.boxNode, self.section.requireVolume()))
        except SpineSegAIError as error:
            self.section.showError(error)

    def _onRepairSlice(self):
        try:
            corrections.labellingOf(self.section.segmentationNode)
            axis, index = views.shownSlice(self.section.requireVolume())
            box = [slice(None)] * 3
            box[axis] = slice(index, index + 1)
            self._start(tuple(box))
        except SpineSegAIError as error:
            self.section.showError(error)

    def _start(self, box):
        """Segment again, and take over what is inside a box of the volume's array (k, j, i).

        :returns: the `SegmentAgain`; None if it was not started.
        """
        if not dependencies.ready():
            return None
        section = self.section
        labelling = corrections.labellingOf(section.segmentationNode)
        section.refuseWhileRunning()
        labelling.require_unlocked(())
        # Levels outside stay, so the new result has to count like them.
        again = SegmentAgain(anchors=section.hints.centresOf(labelling.vertebrae), box=box)
        section.segmentAgain(again)
        return again

    # --- interpolated, smoothed --------------------------------------------------------------------------------------

    def _onInterpolate(self):
        """Between the slices that were drawn on since the Segment Editor was used, or else between all that it has."""

        def plan(labelling):
            from SpineSegAILib.correction import voxels

            section = self.section
            chosen = section.review.selected(1)[0]
            labels = section.labels()
            axis = volumes.acquisitionAxis(section.requireVolume())
            slicing = next(name for name in voxels.AXES if voxels.array_axis(labels, name) == axis)
            drawn = section.editor.slicesDrawnOn(chosen, labels, axis)
            return voxels.interpolate(labels, chosen, slicing, drawn, locked=labelling.locked)

        self.section.do(plan)

    def _onSmooth(self):
        def plan(labelling):
            from SpineSegAILib.correction import voxels

            chosen, size = self.section.review.selected(1)[0], self.ui.smoothSpinBox.value
            return voxels.smooth(self.section.labels(), chosen, size, locked=labelling.locked)

        self.section.do(plan)
