"""The tab Correct: one segmentation, its structures, and the tools that change them.

Every tool is one click and one undo step. What a tool does to names and voxels is decided in the library
(`SpineSegAILib.correction`); `scene.corrections` carries it out on segments. Undo is the Segment Editor's, so strokes
and tools are undone in the order in which they were made. Each group of tools has a file of its own; all of them
work on this section: its segmentation, its selection, its message.
"""

import contextlib

import qt
import slicer
import vtk
from slicer.i18n import tr as _

from SpineSegAILib.errors import CorrectionError, HintError, SpineSegAIError

from ..processes import dependencies
from ..scene import corrections, labelmaps, volumes
from .click_tools import ClickTools
from .editor_bridge import EditorBridge
from .hint_tools import HintTools
from .level_tools import LevelTools
from .repair_tools import RepairTools
from .review import Review
from .series_tools import SeriesTools
from .undo_tools import UndoTools
from .warnings_box import WARNING_STYLE, WarningsBox


class CorrectionPanel:
    """Behavior of the section, on widgets that Qt Designer laid out.

    :param root: the widget of SpineSegAICorrect.ui.
    :param parameters: `Parameters`.
    :param choices: `Choices`: what to segment again with.
    :param segmenting: `Segmenting`.
    """

    def __init__(self, root, parameters, choices, segmenting):
        self.root = root
        self.ui = slicer.util.childWidgetVariables(root)
        self.parameters = parameters
        self.choices = choices
        self.segmenting = segmenting
        self.segmentationNode = None
        self.isShown = False  # whether the tab is open: only then the list is kept up to date
        self.refreshedCallbacks = []  # called after the segments may have changed
        self._observed = []
        self._ownStep = False
        self._updating = False

        self.parts = ()  # while they are made
        self.editor = EditorBridge(self)
        self.undo = UndoTools(self)
        self.review = Review(self)
        self.clicks = ClickTools(self)
        self.levels = LevelTools(self)
        self.hints = HintTools(self)
        self.repair = RepairTools(self)
        self.series = SeriesTools(self)
        self.parts = (
            *(self.undo, self.review, self.editor, self.clicks, self.levels),  # the editor follows the list
            *(self.hints, self.repair, self.series),
        )

        ui = self.ui
        ui.correctMessageLabel.visible = False
        self.warnings = WarningsBox(ui.correctWarningLabel, ui.correctAnswerButton)
        self.warnings.answerCallbacks.append(self.levels.choose)
        self._refreshSoon = qt.QTimer()
        self._refreshSoon.setSingleShot(True)
        self._refreshSoon.setInterval(0)
        self._refreshSoon.connect("timeout()", self.refresh)
        ui.correctSegmentationSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._onSegmentationChosen)
        self.shortcuts = []
        for keys, slot in (
            ("Alt+Up", self.review.previous),
            ("Alt+Down", self.review.next),
            ("Alt+End", self.review.leastCertain),
            ("Ctrl+Z", self.undo.undo),
            ("Ctrl+Y", self.undo.redo),
        ):
            shortcut = qt.QShortcut(qt.QKeySequence(keys), root)
            shortcut.connect("activated()", slot)
            self.shortcuts.append(shortcut)
        segmenting.queue.changedCallbacks.append(self.updateButtons)
        segmenting.beforeReplaceCallbacks.append(self.beforeReplace)

    # --- life --------------------------------------------------------------------------------------------------------

    def onParametersModified(self):
        """The output segmentation is what is corrected."""
        self.setSegmentationNode(self.parameters.outputSegmentation)
        self.hints.show()
        self.updateButtons()

    def enter(self):
        """The module is opened."""
        for shortcut in self.shortcuts:
            shortcut.setEnabled(True)
        for part in self.parts:
            part.enter()
        self.refresh()

    def exit(self):
        """Another module is opened: it must not be disturbed by our keys or by an effect of the editor."""
        for shortcut in self.shortcuts:
            shortcut.setEnabled(False)
        for part in self.parts:
            part.exit()

    def onSceneClose(self):
        """Everything in the scene goes away."""
        self.review.stopPicking()
        self.setSegmentationNode(None)
        self.editor.onSceneClose()

    def onNodeRemoved(self):
        """Something was removed from the scene."""
        if self.segmentationNode is not None and self.segmentationNode.GetScene() is None:
            self.setSegmentationNode(None)
        self.repair.onNodeRemoved()

    def cleanup(self):
        """The panel goes away."""
        self.exit()
        self._refreshSoon.stop()
        self.setSegmentationNode(None)
        self.editor.cleanup()

    # --- the segmentation --------------------------------------------------------------------------------------------

    def setSegmentationNode(self, node):
        """Correct this segmentation from now on; None for none."""
        if node is self.segmentationNode:
            return
        for caller, tag in self._observed:
            caller.RemoveObserver(tag)
        self._observed = []
        for part in self.parts:
            part.onLeft()
        self.segmentationNode = node
        self.undo.setSegmentationNode(node)
        self.showMessage("")
        if node is not None:
            for event, slot in (
                (vtk.vtkCommand.ModifiedEvent, self._onModified),
                (slicer.vtkMRMLDisplayableNode.DisplayModifiedEvent, self._onModified),
                (slicer.vtkSegmentation.SegmentAdded, self._onModified),
                (slicer.vtkSegmentation.SegmentRemoved, self._onModified),
                (slicer.vtkSegmentation.SegmentModified, self._onModified),
                (slicer.vtkSegmentation.SegmentsOrderModified, self._onModified),
                (slicer.vtkSegmentation.SourceRepresentationModified, self._onVoxels),
            ):
                self._observed.append((node, node.AddObserver(event, slot)))
        self.editor.setSegmentationNode(node, self.volumeNode())
        self._updating = True
        self.ui.correctSegmentationSelector.setCurrentNode(node)
        self._updating = False
        self.refresh()

    def volumeNode(self):
        """The volume that the segmentation was made on; None if there is none."""
        node = self.segmentationNode
        return volumes.segmentedVolume(node) if node is not None else None

    def requireVolume(self):
        """The same.

        :raises CorrectionError: there is none.
        """
        volumeNode = self.volumeNode()
        if volumeNode is None:
            raise CorrectionError(
                _("The volume of “{name}” is not in the scene.").format(name=self.segmentationNode.GetName()),
                _("Load it, and set it as the segmentation's reference volume in the module “Segmentations”."),
            )
        return volumeNode

    def labels(self):
        """Label image of the segmentation on its volume.

        :raises CorrectionError: segments overlap, or the volume is gone.
        """
        return labelmaps.checkedLabels(self.segmentationNode, self.requireVolume())

    def _onSegmentationChosen(self, node):
        parameters = self.parameters.node
        if self._updating or parameters is None or node is self.segmentationNode:
            return
        volumeNode = volumes.segmentedVolume(node) if node is not None else None
        if volumeNode is not None:
            self.parameters.write(inputVolume=volumeNode, outputSegmentation=node)
        else:
            self.parameters.write(outputSegmentation=node)
        if node is not None and parameters.outputSegmentation is not node:  # another volume leaves its output
            parameters.outputSegmentation = node

    def _onModified(self, caller=None, event=None):
        if not self._ownStep:
            self._refreshSoon.start()

    def _onVoxels(self, caller=None, event=None):
        if not self._ownStep:
            self.editor.isDrawnOn = True
            self._refreshSoon.start()

    # --- shown -------------------------------------------------------------------------------------------------------

    def refresh(self):
        """Bring the section in line with the segmentation."""
        self.editor.noteDrawn()
        self.undo.keep()
        if self.isShown:
            for part in self.parts:
                part.show()
        self.updateButtons()
        for callback in self.refreshedCallbacks:
            callback()

    def setShown(self, shown):
        """The tab was opened, or another one."""
        self.isShown = shown
        if shown:
            self.refresh()
        else:
            self.review.stopPicking()
            self.clicks.stop()
            self.editor.rest()

    def onSelected(self):
        """The reader chose a structure: everything looks at it."""
        for part in self.parts:
            part.onSelected()
        self.updateButtons()

    def showMessage(self, text, isError=False):
        """A sentence below the level tools."""
        label = self.ui.correctMessageLabel
        label.text = text
        label.visible = bool(text)
        label.setStyleSheet(WARNING_STYLE if isError else "")

    def showError(self, error):
        """Why something could not be done, and what to do."""
        self.showMessage(str(error), isError=True)

    def updateButtons(self):
        """Enable what can be done now. Tools stay enabled where the reason against them is worth a sentence."""
        there = self.segmentationNode is not None
        idle = there and not self.segmenting.isRunning
        self.ui.correctSegmentationSelector.enabled = not self.segmenting.isRunning
        for part in self.parts:
            part.setEnabled(there, idle)
        self.ui.correctToolsWidget.visible = there
        self.ui.correctEmptyLabel.visible = not there
        self.warnings.show(self.segmentationNode, idle)

    # --- changed -----------------------------------------------------------------------------------------------------

    def beforeReplace(self, segmentationNode):
        """Segments are about to be replaced, as one undo step."""
        if segmentationNode is self.segmentationNode:
            self.editor.stopDrawing()  # else the new voxels were a stroke
            self.undo.saveState()

    @contextlib.contextmanager
    def ownStep(self):
        """While the section changes segments itself, it need not look at them."""
        self._ownStep = True
        try:
            yield
        finally:
            self._ownStep = False

    def do(self, make):
        """One click: plan a correction, carry it out as one undo step, say what was done.

        :param make: function of a `correction.LabeledStructures` that returns a `correction.Correction`.
        :returns: the correction, or None if it could not be made, and the user knows why.
        """
        if not dependencies.ready():
            return None
        try:
            labelling = corrections.labellingOf(self.segmentationNode)
            self.refuseWhileRunning()
            self.review.table.fill(self.segmentationNode)  # what is selected is what the segments are now
            step = make(labelling)
            self.carryOut(step)
        except SpineSegAIError as error:
            self.showError(error)
            return None
        self.review.look()
        return step

    def carryOut(self, step):
        """Carry out a `correction.Correction` as one undo step, and say what was done.

        :raises SpineSegAIError: it cannot be carried out; nothing was changed.
        """
        volumeNode = None if step.only_names else self.requireVolume()
        with self.ownStep():
            corrections.applyCorrection(self.segmentationNode, volumeNode, step, self.undo.saveState)
        for part in self.parts:
            part.onCorrected(step)
        self.review.table.fill(self.segmentationNode)  # the selection stays on its segments, whatever they are called
        self.refresh()
        self.showMessage(". ".join([step.words, *(note.rstrip(".") for note in step.notes)]) + ".")

    def refuseWhileRunning(self):
        """:raises CorrectionError: a segmentation is running, whose result is made for the segments as they are."""
        if self.segmenting.isRunning:
            raise CorrectionError(_("A segmentation is running."), _("Wait for it, or cancel it."))

    def segmentAgain(self, again, volumeNode=None, outputNode=None):
        """Segment a volume again, with more hints.

        :param again: `SegmentAgain`.
        :param volumeNode: the segmentation's own if not given.
        :param outputNode: the segmentation if not given.
        :raises HintError: it cannot be segmented like this; nothing is started.
        """
        volumeNode = volumeNode or self.requireVolume()
        reasons = self.choices.reasonsAgainst(volumeNode)
        if reasons:
            raise HintError(" ".join(reasons))
        self.showMessage("")
        self.segmenting.start([volumeNode], outputNode or self.segmentationNode, again=again)
