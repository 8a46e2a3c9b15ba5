"""The result: warnings, how the segments are shown, what replaced them."""

from slicer.i18n import tr as _

from SpineSegAILib.errors import SpineSegAIError

from ..processes import dependencies
from ..processes.failure import Failure
from ..scene import cobb_lines, keypoints, level_names, result_attribute, uncertainty, views
from .outputs import Outputs
from .warnings_box import WarningsBox


class ResultPanel:
    """Behavior of the section, on widgets that Qt Designer laid out.

    :param ui: the widgets, as `slicer.util.childWidgetVariables` gives them.
    :param parameters: `Parameters`.
    :param choices: `Choices`.
    :param segmenting: `Segmenting`.
    :param measuring: `Measuring`.
    :param messages: `Messages`.
    """

    def __init__(self, ui, parameters, choices, segmenting, measuring, messages):
        self.ui = ui
        self.parameters = parameters
        self.choices = choices
        self.segmenting = segmenting
        self.messages = messages
        self.outputs = Outputs(ui, parameters, measuring, messages)
        self.warnings = WarningsBox(ui.warningLabel, ui.answerButton)
        self._history = None  # `UndoHistory` of the segments that the last result replaced
        self._overlay = uncertainty.Overlay()
        self._cobb = cobb_lines.CobbLines(self._showAngles)
        ui.resultCollapsibleButton.visible = False
        ui.uncertaintyLegendLabel.text = _("Yellow: one voxel in five may belong elsewhere. Red: every second one.")
        for button, slot in (
            (ui.uncertaintyCheckBox, self._onUncertainty),
            (ui.levelNamesCheckBox, self._onLevelNames),
            (ui.cobbCheckBox, self._onCobb),
            (ui.centerButton, self._onCenter),
            (ui.undoButton, self._onUndo),
            (ui.keypointsButton, self._onKeypoints),
        ):
            button.connect("clicked(bool)", slot)
        segmenting.placedCallbacks.append(self._onPlaced)
        segmenting.queue.changedCallbacks.append(self.update)
        measuring.changedCallbacks.append(self.update)

    # --- shown -------------------------------------------------------------------------------------------------------

    def update(self):
        """Bring the section in line with the result that is chosen."""
        if self.parameters.node is None:
            return
        ui, node = self.ui, self.parameters.outputSegmentation
        ui.resultCollapsibleButton.visible = node is not None
        ui.show3DButton.setSegmentationNode(node)
        ui.keypointsButton.visible = bool(node is not None and keypoints.predictedKeypoints(node))
        undoable = self._history is not None and self._history.segmentationNode is node
        ui.undoButton.visible = ui.undoButton.enabled = undoable
        idle = not self.segmenting.isRunning
        ui.centerButton.enabled = self.parameters.outputVolume is not None and idle
        self.outputs.update(idle)
        self.applyOpacity()
        self.onSegments()
        self._showUncertainty()

    def onSegments(self):
        """The segments may have other names, or be others, than before."""
        node = self.parameters.outputSegmentation
        self.warnings.show(node, not self.segmenting.isRunning)
        sure = result_attribute.levelConfidenceOf(node) if node is not None else None
        self.ui.levelConfidenceLabel.visible = sure is not None
        if sure is not None:
            self.ui.levelConfidenceLabel.text = _("Level confidence: {percent} %").format(percent=round(100 * sure))
        if node is not None:
            level_names.update(node)
        self.ui.levelNamesCheckBox.checked = node is not None and level_names.areShown(node)
        self._updateCobb()

    def applyOpacity(self):
        """Show the segments as opaque as was chosen."""
        node = self.parameters.outputSegmentation
        displayNode = node.GetDisplayNode() if node is not None else None
        if displayNode is not None and displayNode.GetOpacity() != self.parameters.node.opacity:
            displayNode.SetOpacity(self.parameters.node.opacity)

    def _map(self):
        """The map of uncertainty of the result; None if it has none."""
        return uncertainty.mapOf(self.parameters.outputSegmentation, self.parameters.outputVolume)

    def _showUncertainty(self):
        """The tick is there for what has a map; a map of anything else is not left in the views."""
        node, box = self._map(), self.ui.uncertaintyCheckBox
        if self._overlay.isOn and (node is None or not self._overlay.shows(node)):
            self._overlay.hide()
        box.visible = box.enabled = node is not None
        box.checked = node is not None and self._overlay.shows(node)
        self.ui.uncertaintyLegendLabel.visible = box.checked

    # --- the scene ---------------------------------------------------------------------------------------------------

    def onSceneClose(self):
        """Everything in the scene goes away."""
        self._history = None
        self._overlay = uncertainty.Overlay()
        self._cobb.forget()

    def onNodeRemoved(self):
        """A node was removed."""
        self._cobb.tidy()
        if self._history is not None and self._history.segmentationNode.GetScene() is None:
            self._history = None
        self.update()

    def _onPlaced(self, task):
        self._history = task.history
        views.showResult(task.volumeNode, task.segmentationNode, task.viewsBefore)

    # --- clicks ------------------------------------------------------------------------------------------------------

    def _onUncertainty(self, shown):
        if shown:
            self._overlay.show(self._map())
        else:
            self._overlay.hide()
        self._showUncertainty()

    def _onLevelNames(self, shown):
        level_names.show(self.parameters.outputSegmentation, shown)

    def _onCobb(self, shown):
        node = self.parameters.outputSegmentation
        if not shown:
            self._cobb.hide(node)
        elif dependencies.ready():
            try:
                notes = self._cobb.show(node, self.parameters.outputVolume)
            except SpineSegAIError as error:
                self.messages.show(Failure.of(error))
            else:
                self.messages.say(" ".join(notes))
        self._updateCobb()

    def _updateCobb(self):
        """The tick is there for films; lines follow the segments."""
        node, volumeNode, box = self.parameters.outputSegmentation, self.parameters.outputVolume, self.ui.cobbCheckBox
        box.visible = cobb_lines.isFilm(node, volumeNode)
        if node is not None and volumeNode is not None and dependencies.areInstalled():  # else they stay as saved
            try:
                self._cobb.update(node, volumeNode)
            except SpineSegAIError:  # nothing is left of it
                self._cobb.hide(node)
        box.checked = node is not None and self._cobb.areShown(node)
        self._showAngles()

    def _showAngles(self):
        """The angles of the lines as they lie now."""
        node, label = self.parameters.outputSegmentation, self.ui.cobbLabel
        angles = self._cobb.angles(node) if node is not None else {}
        label.text = _("Cobb angles: {angles}").format(
            angles=", ".join(f"{curve} {angle:.0f}°" for curve, angle in angles.items())
        )
        label.visible = bool(angles)

    def _onCenter(self):
        views.centreViews(self.parameters.outputVolume, self.parameters.outputSegmentation)

    def _onKeypoints(self):
        try:
            node = keypoints.showList(self.parameters.outputSegmentation, self.parameters.outputVolume)
        except SpineSegAIError as error:
            self.messages.show(Failure.of(error))
            return
        if self.choices.accepts("keypoints"):
            self.parameters.write(keypoints=node)
        self.messages.say(_("Keypoints are in “{list}”: drag any, then segment again.").format(list=node.GetName()))

    def _onUndo(self):
        for callback in self.segmenting.beforeReplaceCallbacks:  # what was corrected since can be brought back, too
            callback(self._history.segmentationNode)
        self._history.undo()
        self._history = None
        self.messages.say(_("The segments are as they were before the last result."))
        self.update()
