"""Other series: the segments copied by position, and refined there."""

import slicer
from slicer.i18n import tr as _

from SpineSegAILib.errors import CorrectionError, SpineSegAIError

from ..processes import dependencies
from ..scene import correction_log, corrections, other_series, views, volumes
from ..scene.segment_again import SegmentAgain
from .part import Part


class SeriesTools(Part):
    """Series of the same study come first; others are said to be of another one."""

    def __init__(self, section):
        super().__init__(section)
        self.ui.carryButton.connect("clicked(bool)", self._onCarry)
        self.ui.refineButton.connect("clicked(bool)", self._onRefine)
        self.ui.seriesGroupBox.connect("toggled(bool)", self._showWhatThereIs)

    def show(self):
        """Offer the other volumes of the scene."""
        combo, volumeNode = self.ui.otherVolumeComboBox, self.section.volumeNode()
        found = []
        if volumeNode is not None:
            study = volumes.otherSeriesOfStudy(volumeNode)
            others = [node for node in volumes.images() if node is not volumeNode and node not in study]
            found = [(n.GetName(), n.GetID()) for n in study]
            found += [(_("{volume} (not of this study)").format(volume=n.GetName()), n.GetID()) for n in others]
        if found != [(combo.itemText(i), combo.itemData(i)) for i in range(combo.count)]:
            chosen = combo.currentData
            combo.clear()
            for title, nodeId in found:
                combo.addItem(title, nodeId)
            combo.setCurrentIndex(max(0, combo.findData(chosen)) if found else -1)
        self._showWhatThereIs()

    def _showWhatThereIs(self):
        """Where there is no other series, a line says so in place of buttons that do nothing."""
        ui, some = self.ui, self.ui.otherVolumeComboBox.count > 0
        if ui.seriesGroupBox.collapsed:  # unfolding it shows all that is in it
            return
        ui.seriesEmptyLabel.visible = not some
        for widget in (ui.otherVolumeLabel, ui.otherVolumeComboBox, ui.carryButton, ui.refineButton):
            widget.visible = some

    def setEnabled(self, there, idle):
        """Only where there is another series."""
        self.ui.carryButton.enabled = self.ui.refineButton.enabled = idle and self.ui.otherVolumeComboBox.count > 0

    def _carry(self):
        """Carry the segments over to the chosen series; where there are some, that is an undo step of theirs.

        :returns: its volume node, its segmentation node, and whether segments were replaced.
        """
        section = self.section
        corrections.labellingOf(section.segmentationNode)
        section.refuseWhileRunning()
        other = slicer.mrmlScene.GetNodeByID(self.ui.otherVolumeComboBox.currentData or "")
        if other is None:
            raise CorrectionError(_("There is no other series."), _("Load one of the same study."))
        source, volumeNode = section.segmentationNode, section.requireVolume()
        before = other_series.carriedTo(source, other)

        def saveState():
            correction_log.readLog(before)  # a damaged one is refused before anything is changed
            self._goTo(other, before)
            section.beforeReplace(before)

        carried = other_series.carryTo(source, volumeNode, other, saveState)
        if before is not None:
            correction_log.logCarried(carried, volumeNode)
        self._goTo(other, carried)
        return other, carried, before is not None

    def _onCarry(self):
        if not dependencies.ready():
            return
        try:
            other, _carried, replaced = self._carry()
        except SpineSegAIError as error:
            self.section.showError(error)
            return
        words = _("Copied to “{volume}”: check it, the patient may have moved.").format(volume=other.GetName())
        self.section.showMessage(words + (" " + _("“Undo” brings back what was there.") if replaced else ""))

    def _onRefine(self):
        if not dependencies.ready():
            return
        section, accepts = self.section, self.section.choices.accepts
        only = tuple(section.review.table.selected())
        try:
            other, carried, _replaced = self._carry()
            labelling = corrections.labellingOf(carried)
            labelling.require_unlocked(())
            again = SegmentAgain(
                anchors=section.hints.centresOf(labelling.vertebrae) if accepts("anchors") else {},
                prior=section.labels() if accepts("prior") else None,
                only=tuple(i for i in only if i in labelling.present and i not in labelling.locked),
            )
            section.segmentAgain(again, other, carried)
        except SpineSegAIError as error:
            section.showError(error)

    def _goTo(self, volumeNode, segmentationNode):
        section = self.section
        section.parameters.write(inputVolume=volumeNode)  # first, since another volume leaves its output
        section.parameters.write(outputSegmentation=segmentationNode)
        section.setSegmentationNode(segmentationNode)
        views.centreViews(volumeNode, segmentationNode)
