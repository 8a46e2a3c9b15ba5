"""The result: warnings, how the segments are shown, what can be made of them, and files."""

import re

import qt
import slicer
from slicer.i18n import tr as _

from SpineSegAILib.errors import SpineSegAIError

from ..processes import dependencies
from ..processes.failure import Failure
from ..scene import keypoints, labelmaps, level_names, results, tables, uncertainty, views, volumes
from .warnings_box import WarningsBox


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
        self.warnings = WarningsBox(ui.warningLabel, ui.answerButton)
        self._history = None  # `UndoHistory` of the segments that the last result replaced
        self._overlay = uncertainty.Overlay()
        ui.resultCollapsibleButton.visible = False
        ui.uncertaintyLegendLabel.text = _("Yellow: one voxel in five may belong elsewhere. Red: every second one.")
        for button, slot in (
            (ui.uncertaintyCheckBox, self._onUncertainty),
            (ui.levelNamesCheckBox, self._onLevelNames),
            (ui.centerButton, self._onCenter),
            (ui.measureButton, self._onMeasure),
            (ui.csvButton, self._onSaveTable),
            (ui.reportButton, self._onSaveReport),
            (ui.saveButton, self._onSaveSegmentation),
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
        ready = self.parameters.outputVolume is not None and idle
        ui.centerButton.enabled = ready
        for button in (ui.measureButton, ui.csvButton, ui.reportButton):
            button.enabled = ready and not self.measuring.isBusy
        ui.saveButton.enabled = idle
        self.applyOpacity()
        self.onSegments()
        self._showUncertainty()

    def onSegments(self):
        """The segments may have other names, or be others, than before."""
        node = self.parameters.outputSegmentation
        self.warnings.show(node, not self.segmenting.isRunning)
        if node is not None:
            level_names.update(node)
        self.ui.levelNamesCheckBox.checked = node is not None and level_names.areShown(node)

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

    def onNodeRemoved(self):
        """A node was removed."""
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

    # --- measured, written -------------------------------------------------------------------------------------------

    def _onMeasure(self):
        self.measure()

    def measure(self, onDone=None):
        """Measure the segments as they are now, corrections included, into the table node.

        :param onDone: called with the table node.
        """
        if not dependencies.ready():
            return
        result = self._result()
        if result is not None:
            self.measuring.measure(self.parameters.outputSegmentation, result, onDone)

    def _result(self):
        """What the segmentation shows now; None if it cannot be told, and the user knows why."""
        node = self.parameters.outputSegmentation
        try:
            if self.parameters.outputVolume is not None:
                labelmaps.refuseOverlap(node, self.parameters.outputVolume)
            return results.resultFromSegmentation(node, self.parameters.outputVolume)
        except SpineSegAIError as error:
            self.messages.show(Failure.of(error))
            return None

    def _onSaveTable(self):
        if dependencies.ready():  # before anyone looks for a folder in vain
            path = self._fileName(_("Measurements"), _("Table (*.csv)"), ".csv")
            if path:
                self.saveTable(path)

    def saveTable(self, path):
        """Measure, and write the table to a CSV file."""
        self.measure(lambda tableNode: self._writing(path, lambda: tables.writeTable(tableNode, path)))

    def _onSaveReport(self):
        if dependencies.ready(dependencies.REPORT_PACKAGES):
            path = self._fileName(_("Report"), _("Picture (*.png)"), ".png")
            if path:
                self.saveReport(path)

    def saveReport(self, path):
        """Write a picture of the result with its levels and warnings."""
        if not dependencies.ready(dependencies.REPORT_PACKAGES):
            return
        result, volumeNode = self._result(), self.parameters.outputVolume
        if result is not None:
            self.measuring.report(
                volumes.imageFromVolume(volumeNode), result, volumeNode.GetName(), path, lambda: self._written(path)
            )

    def _onSaveSegmentation(self):
        path = self._fileName(_("Segmentation"), _("Segmentation (*.seg.nrrd)"), ".seg.nrrd")
        if path:
            self.saveSegmentation(path)

    def saveSegmentation(self, path):
        """Write the segmentation to a file that Slicer and this module read again."""
        if slicer.util.saveNode(self.parameters.outputSegmentation, path):
            self._written(path)
        else:
            self.messages.show(
                Failure("OutputError", _("{path} cannot be written.").format(path=path), _("Choose another folder."))
            )

    def _fileName(self, title, kinds, suffix):
        name = re.sub(r'[/\\:*?"<>|]', "_", self.parameters.outputSegmentation.GetName()) + suffix
        path = qt.QFileDialog.getSaveFileName(slicer.util.mainWindow(), title, name, kinds)
        if isinstance(path, tuple):  # PySide-style bindings give the filter as well
            path = path[0]
        return path if not path or path.lower().endswith(suffix) else path + suffix

    def _writing(self, path, write):
        try:
            write()
        except SpineSegAIError as error:
            self.messages.show(Failure.of(error))
        else:
            self._written(path)

    def _written(self, path):
        self.messages.say(_("Written to {path}.").format(path=path))
