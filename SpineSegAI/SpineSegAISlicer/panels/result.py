"""The Result section: warnings, how the segments are shown, and what can be done with them."""

from slicer.i18n import tr as _

from SpineSegAILib.errors import SpineSegAIError

from ..processes import dependencies
from ..processes.failure import Failure
from ..scene import keypoints, result_attribute, results, uncertainty, views

WARNING_STYLE = "background: #fff3cd; color: #664d03; border: 1px solid #e0c97f; padding: 4px; border-radius: 3px;"


class ResultPanel:
    """Behaviour of the section, on widgets that Qt Designer laid out.

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
        self.measuring = measuring
        self.messages = messages
        self._history = None  # `UndoHistory` of the segments that the last result replaced
        self._overlay = uncertainty.Overlay()
        ui.warningLabel.setStyleSheet(WARNING_STYLE)
        ui.warningLabel.visible = ui.resultCollapsibleButton.visible = False
        ui.uncertaintyCheckBox.connect("clicked(bool)", self._onUncertainty)
        ui.centreButton.connect("clicked(bool)", self._onCentre)
        ui.measureButton.connect("clicked(bool)", self._onMeasure)
        ui.undoButton.connect("clicked(bool)", self._onUndo)
        ui.keypointsButton.connect("clicked(bool)", self._onKeypoints)
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
        warnings = result_attribute.warningsOf(node) if node is not None else []
        ui.warningLabel.visible = bool(warnings)
        ui.warningLabel.text = "\n".join("⚠ " + warning for warning in warnings)
        ui.undoButton.enabled = self._history is not None and self._history.segmentationNode is node
        ui.undoButton.toolTip = (
            _("Bring back the segments that the last result replaced.")
            if ui.undoButton.enabled
            else _("Nothing to bring back: the last result replaced no segments.")
        )
        ready = self.parameters.outputVolume is not None and not self.segmenting.isRunning
        ui.centreButton.enabled = ready
        ui.measureButton.enabled = ready and not self.measuring.isBusy
        self.applyOpacity()
        self._showUncertainty()

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
        box.enabled = node is not None
        box.checked = node is not None and self._overlay.shows(node)
        box.toolTip = (
            _("Lay over the image how unsure the method is: yellow a little, red much.")
            if node is not None
            else _("These segments have no map of uncertainty: only methods that draw several samples make one.")
        )

    # --- the scene ---------------------------------------------------------------------------------------------------

    def onSceneClose(self):
        """Everything in the scene goes away."""
        self._history = None
        self._overlay = uncertainty.Overlay()

    def onNodeRemoved(self):
        """A node was removed."""
        if self._history is not None and self._history.segmentationNode.GetScene() is None:
            self._history = None
        self.update()

    def _onPlaced(self, task):
        self._history = task.history

    # --- clicks ------------------------------------------------------------------------------------------------------

    def _onUncertainty(self, shown):
        if shown:
            self._overlay.show(self._map())
        else:
            self._overlay.hide()
        self._showUncertainty()

    def _onCentre(self):
        views.centreViews(self.parameters.outputVolume, self.parameters.outputSegmentation)

    def _onKeypoints(self):
        try:
            node = keypoints.showList(self.parameters.outputSegmentation, self.parameters.outputVolume)
        except SpineSegAIError as error:
            self.messages.show(Failure.of(error))
            return
        if self.choices.accepts("keypoints"):
            self.parameters.write(keypoints=node)
        self.messages.say(_("Key points are in “{list}”: drag any, then segment again.").format(list=node.GetName()))

    def _onUndo(self):
        for callback in self.segmenting.beforeReplaceCallbacks:  # what was corrected since can be brought back, too
            callback(self._history.segmentationNode)
        self._history.undo()
        self._history = None
        self.messages.say(_("The segments are as they were before the last result."))
        self.update()

    def _onMeasure(self):
        if not dependencies.ready():
            return
        node = self.parameters.outputSegmentation
        try:
            result = results.resultFromSegmentation(node, self.parameters.outputVolume)
        except SpineSegAIError as error:
            self.messages.show(Failure.of(error))
            return
        self.measuring.measure(node, result)
