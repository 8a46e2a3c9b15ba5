"""Repairing a part: segmented again in a box or on a slice, interpolated, smoothed."""

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

    def forgetBox(self):
        """Everything in the scene goes away."""
        self.boxNode = None

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
            self._repair(markups.boxOnGrid(self.boxNode, self.section.requireVolume()))
        except SpineSegAIError as error:
            self.section.showError(error)

    def _onRepairSlice(self):
        try:
            corrections.labellingOf(self.section.segmentationNode)
            axis, index = views.shownSlice(self.section.requireVolume())
            box = [slice(None)] * 3
            box[axis] = slice(index, index + 1)
            self._repair(tuple(box))
        except SpineSegAIError as error:
            self.section.showError(error)

    def _repair(self, box):
        """Segment again, and take over what is inside a box of the volume's array (k, j, i)."""
        if not dependencies.ready():
            return
        section = self.section
        labelling = corrections.labellingOf(section.segmentationNode)
        section.refuseWhileRunning()
        labelling.require_unlocked(())
        # Levels outside stay, so the new result has to count like them.
        section.segmentAgain(SegmentAgain(anchors=section.hints.centresOf(labelling.vertebrae), box=box))

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
