"""Segmenting again with what the reader knows: levels that are right, keypoints, the segments as they are."""

from slicer.i18n import tr as _

from SpineSegAILib import anatomy
from SpineSegAILib.errors import HintError, SpineSegAIError

from ..processes import dependencies
from ..scene import corrections, keypoints, labelmaps
from ..scene.segment_again import SegmentAgain
from .part import Part


class HintTools(Part):
    """What the chosen method accepts is shown; the rest would be rejected."""

    def __init__(self, section):
        super().__init__(section)
        ui = self.ui
        self.anchors = {}  # structure id → position (RAS) of levels that are known to be right
        ui.addAnchorButton.connect("clicked(bool)", self._onAddAnchors)
        ui.clearAnchorsButton.connect("clicked(bool)", self._onClearAnchors)
        ui.againButton.connect("clicked(bool)", self._onAgain)
        ui.againGroupBox.connect("toggled(bool)", self.show)
        ui.keypointsCheckBox.connect("toggled(bool)", self._onKeypoints)

    def show(self):
        """Say what is known."""
        ui, choices = self.ui, self.section.choices
        if ui.againGroupBox.collapsed:  # unfolding it shows all that is in it
            return
        ui.rangeHintLabel.visible = choices.accepts("visible")
        for widget in (ui.anchorHintLabel, ui.addAnchorButton, ui.clearAnchorsButton):
            widget.visible = choices.accepts("anchors")
        ui.keypointsCheckBox.visible = choices.accepts("keypoints")
        ui.priorCheckBox.visible = choices.accepts("prior")
        ui.subsetCheckBox.visible = choices.accepts("structures")
        top, bottom = (anatomy.STRUCTURES[i].name if i else "…" for i in choices.visibleRange())
        ui.rangeHintLabel.text = (
            _("In view: {top} to {bottom} (“Visible levels” in the tab “Segment”).").format(top=top, bottom=bottom)
            if any(choices.visibleRange())
            else _("In view: not given (“Visible levels” in the tab “Segment”).")
        )
        names = ", ".join(anatomy.STRUCTURES[i].name for i in anatomy.sorted_ids(self.anchors))
        ui.anchorHintLabel.text = _("Confirmed levels: {levels}.").format(levels=names or _("none"))
        ui.clearAnchorsButton.enabled = bool(self.anchors)

    def setEnabled(self, there, idle):
        """Only without a segmentation under way."""
        self.ui.againButton.enabled = self.ui.addAnchorButton.enabled = idle

    def onCorrected(self, step):
        """What is known of structures goes with their names."""
        points = {step.mapping.get(i, i): point for i, point in self.anchors.items()}
        self.anchors = {i: point for i, point in points.items() if i}
        if step.only_names:
            keypoints.renameInList(self.section.segmentationNode, step.mapping)
        self._hideStaleKeypoints()

    def onRestored(self):
        """Which structures the anchors were is not known any more."""
        self.anchors = {}
        self._hideStaleKeypoints()

    def onLeft(self):
        """All this was known of another segmentation."""
        self.anchors = {}
        self.ui.keypointsCheckBox.checked = False

    # --- anchors -----------------------------------------------------------------------------------------------------

    def addAnchor(self, structureId, picked=None):
        """This level is right.

        :param picked: (id, position in RAS) of a click into it; its middle if not given.
        """
        self.anchors[structureId] = picked[1] if picked is not None else self._centreOf(structureId)
        self.show()

    def _centreOf(self, structureId):
        return labelmaps.centreOf(self.section.segmentationNode, structureId)

    def centresOf(self, structureIds):
        """Structure id → position (RAS) of its middle, as anchors."""
        return {structureId: self._centreOf(structureId) for structureId in structureIds}

    def _onAddAnchors(self):
        try:
            for structureId in self.section.review.selected():
                if not anatomy.STRUCTURES[structureId].is_counted:
                    raise HintError(
                        _("“{name}” has no level, or is not counted.").format(
                            name=anatomy.STRUCTURES[structureId].name
                        ),
                        _("Select a vertebra or a disc."),
                    )
                picked = self.section.review.picked
                self.addAnchor(structureId, picked if picked is not None and picked[0] == structureId else None)
        except SpineSegAIError as error:
            self.section.showError(error)

    def _onClearAnchors(self):
        self.anchors = {}
        self.show()

    # --- keypoints --------------------------------------------------------------------------------------------------

    def _onKeypoints(self, on):
        section = self.section
        try:
            if on:
                corrections.labellingOf(section.segmentationNode)
                keypoints.showList(section.segmentationNode, section.volumeNode())
            elif section.segmentationNode is not None:
                keypoints.hideList(section.segmentationNode)
        except SpineSegAIError as error:
            self.ui.keypointsCheckBox.checked = False
            section.showError(error)

    def _movedKeypoints(self):
        shown = self.section.choices.accepts("keypoints") and self.ui.keypointsCheckBox.checked
        return keypoints.movedKeypoints(self.section.segmentationNode) if shown else {}

    def _hideStaleKeypoints(self):
        """Points of segments that have changed since are shown again when they are asked for again."""
        if self.ui.keypointsCheckBox.checked and keypoints.isStale(self.section.segmentationNode):
            self.ui.keypointsCheckBox.checked = False

    # --- again -------------------------------------------------------------------------------------------------------

    def _onAgain(self):
        if not dependencies.ready():
            return
        section, accepts = self.section, self.section.choices.accepts
        only = ()
        try:
            labelling = corrections.labellingOf(section.segmentationNode)
            section.refuseWhileRunning()
            labelling.require_unlocked(())
            self._refuseContradiction()
            if accepts("structures") and self.ui.subsetCheckBox.checked:
                only = tuple(section.review.selected())
                labelling.require_unlocked(only)
            again = SegmentAgain(
                anchors=self.anchors if accepts("anchors") else {},
                keypoints=self._movedKeypoints(),
                prior=section.labels() if accepts("prior") and self.ui.priorCheckBox.checked else None,
                only=only,
            )
            section.segmentAgain(again)
        except SpineSegAIError as error:
            section.showError(error)

    def _refuseContradiction(self):
        """Levels said to be right must lie in the range that is said to be in view."""
        top, bottom = (anatomy.STRUCTURES[i] if i else None for i in self.section.choices.visibleRange())
        for structureId in anatomy.sorted_ids(self.anchors):
            s = anatomy.STRUCTURES[structureId]
            # A disc lies half a level below its vertebra; the one above the topmost vertebra may be in view.
            if (top and s.order < top.order - 0.5) or (bottom and s.order > bottom.order + 0.5):
                raise HintError(
                    _("{level} is confirmed, but “Visible levels” is {top} to {bottom}.").format(
                        level=s.name, top=top.name if top else "…", bottom=bottom.name if bottom else "…"
                    ),
                    _("Correct one of the two."),
                )
