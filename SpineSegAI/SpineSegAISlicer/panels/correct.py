"""The Correct section: structures, level tools, Slicer's Segment Editor, and segmenting again with what is known.

Every tool is one click and one undo step. What a tool does to names and voxels is decided in the library
(`SpineSegAILib.correction`); `scene.corrections` carries it out on segments. Undo is the Segment Editor's, so strokes
and tools are taken back in the order in which they were made.
"""

import numpy as np
import qt
import slicer
import vtk
from slicer.i18n import tr as _

from SpineSegAILib import anatomy, correction
from SpineSegAILib.errors import CorrectionError, HintError, SpineSegAIError

from ..processes import dependencies
from ..scene import (
    correction_log,
    corrections,
    keypoints,
    labelmaps,
    markups,
    other_series,
    results,
    tables,
    views,
    volumes,
)
from ..scene.segments import structureOfSegment, structuresOfSegmentation
from . import structure_preview
from .structure_table import StructureTable

SCOPES = (("all", _("All levels")), ("above", _("Selected and above")), ("below", _("Selected and below")))
COUNTINGS = (
    ("L5", _("Five lumbar vertebrae")),
    ("L6", _("Six lumbar vertebrae (L6)")),
    ("T12", _("Twelve thoracic vertebrae")),
    ("T13", _("Thirteen thoracic vertebrae (T13)")),
)
SHORTCUTS = (
    ("Alt+Up", "_onPrevious"),
    ("Alt+Down", "_onNext"),
    ("Alt+End", "_onLeastCertain"),
    ("Ctrl+Z", "_onUndo"),
    ("Ctrl+Y", "_onRedo"),
)
UNDO_STEPS = 20
EDITOR_TAG = "SpineSegAI"
"""Singleton tag of our own Segment Editor node, so that Slicer's module keeps its settings."""

ADDING_EFFECTS = ("Paint", "Draw", "Level tracing", "Threshold")
"""Effects that only add voxels: they are kept off other segments. Others (Erase …) could do nothing with that mask."""

ERROR_STYLE = "background: #fff3cd; color: #664d03; border: 1px solid #e0c97f; padding: 4px; border-radius: 3px;"
DONE_STYLE = "color: palette(window-text);"


class CorrectionPanel:
    """Behaviour of the Correct section, on widgets that Qt Designer laid out.

    :param root: the widget of SpineSegAICorrect.ui.
    :param segmentPanel: `SegmentPanel`: its method, checkpoint and worker are used to segment again.
    """

    def __init__(self, root, segmentPanel, logic):
        self.root = root
        self.ui = slicer.util.childWidgetVariables(root)
        self.segmentPanel = segmentPanel
        self.logic = logic
        self.parameterNode = None
        self.segmentationNode = None
        self.picked = None  # (structure id, position in RAS) of the last click into the image
        self.anchors = {}  # structure id → position (RAS) of levels that are known to be right
        self.boxNode = None
        self._keeper = None
        self._observed = []
        self._beforeDrawing = None  # (k, j, i) structure ids as they were when an effect was chosen
        self._drawn = False  # a segment's voxels were changed by the Segment Editor
        self._ownStep = False
        self._updating = False
        self._editorNode = None
        self._effect = ""

        ui = self.ui
        self.editor = ui.segmentEditorWidget
        self.table = StructureTable(ui.structuresTable, self._onSelected, self.saveState)
        self.picker = markups.PointPicker(self._onPicked)
        for key, title in SCOPES:
            ui.scopeComboBox.addItem(title, key)
        ui.countingComboBox.addItem(_("as it is"), "")
        for key, title in COUNTINGS:
            ui.countingComboBox.addItem(title, key)
        ui.correctMessageLabel.visible = False
        self._refreshSoon = qt.QTimer()
        self._refreshSoon.setSingleShot(True)
        self._refreshSoon.setInterval(0)
        self._refreshSoon.connect("timeout()", self.refresh)
        self._connect()
        self._setUpEditor()
        self.shortcuts = []
        for keys, name in SHORTCUTS:
            shortcut = qt.QShortcut(qt.QKeySequence(keys), root)
            shortcut.connect("activated()", getattr(self, name))
            self.shortcuts.append(shortcut)
        segmentPanel.stateCallbacks.append(self.updateButtons)
        segmentPanel.beforeReplaceCallbacks.append(self._beforeReplace)

    def _connect(self):
        ui = self.ui
        ui.correctCollapsibleButton.connect("contentsCollapsed(bool)", self._refreshSoon.start)
        ui.correctSegmentationSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._onSegmentationChosen)
        for button, slot in (
            (ui.previousStructureButton, self._onPrevious),
            (ui.nextStructureButton, self._onNext),
            (ui.leastCertainButton, self._onLeastCertain),
            (ui.correctUndoButton, self._onUndo),
            (ui.correctRedoButton, self._onRedo),
            (ui.shiftUpButton, lambda: self._onShift("up")),
            (ui.shiftDownButton, lambda: self._onShift("down")),
            (ui.swapButton, self._onSwap),
            (ui.mergeButton, self._onMerge),
            (ui.splitButton, self._onSplit),
            (ui.deleteButton, self._onDelete),
            (ui.insertAboveButton, lambda: self._onInsert("below")),
            (ui.insertBelowButton, lambda: self._onInsert("above")),
            (ui.addAnchorButton, self._onAddAnchors),
            (ui.clearAnchorsButton, self._onClearAnchors),
            (ui.againButton, self._onAgain),
            (ui.boxButton, self._onBox),
            (ui.repairBoxButton, self._onRepairBox),
            (ui.repairSliceButton, self._onRepairSlice),
            (ui.interpolateButton, self._onInterpolate),
            (ui.smoothButton, self._onSmooth),
            (ui.carryButton, self._onCarry),
            (ui.refineButton, self._onRefine),
            (ui.remeasureButton, self._onMeasure),
            (ui.csvButton, self._onSaveTable),
        ):
            button.connect("clicked(bool)", slot)
        ui.againGroupBox.connect("toggled(bool)", self._showHints)
        ui.pickButton.connect("toggled(bool)", self._onPick)
        ui.keypointsCheckBox.connect("toggled(bool)", self._onKeyPoints)
        ui.levelComboBox.connect("currentIndexChanged(int)", self._onLevel)
        ui.countingComboBox.connect("currentIndexChanged(int)", self._onCounting)

    # --- life --------------------------------------------------------------------------------------------------------

    def setParameterNode(self, parameterNode):
        """Follow these choices from now on; None while a scene is closed."""
        self.parameterNode = parameterNode
        self.onParametersModified()

    def onParametersModified(self):
        """The output segmentation is what is corrected."""
        self.setSegmentationNode(self.parameterNode.outputSegmentation if self.parameterNode is not None else None)
        self._showHints()

    def enter(self):
        """The module is opened."""
        for shortcut in self.shortcuts:
            shortcut.setEnabled(True)
        self._selectEditorNode()
        self.editor.updateWidgetFromMRML()
        self.refresh()

    def exit(self):
        """Another module is opened: it must not be disturbed by our keys or by an effect of the editor."""
        for shortcut in self.shortcuts:
            shortcut.setEnabled(False)
        self._stopPicking()
        if self._editorNode is not None:
            self.editor.setActiveEffect(None)
        self.editor.removeViewObservations()

    def onSceneClose(self):
        """Everything in the scene goes away."""
        self._stopPicking()
        self.boxNode = None
        self.setSegmentationNode(None)
        self.editor.removeViewObservations()

    def onNodeRemoved(self):
        """Something was removed from the scene."""
        if self.segmentationNode is not None and self.segmentationNode.GetScene() is None:
            self.setSegmentationNode(None)
        if self.boxNode is not None and self.boxNode.GetScene() is None:
            self.boxNode = None

    def cleanup(self):
        """The panel goes away."""
        self.exit()
        self._refreshSoon.stop()
        self.setSegmentationNode(None)
        self._forgetEditorNode()

    # --- the segmentation --------------------------------------------------------------------------------------------

    def setSegmentationNode(self, node):
        """Correct this segmentation from now on; None for none."""
        if node is self.segmentationNode:
            return
        for caller, tag in self._observed:
            caller.RemoveObserver(tag)
        self._observed = []
        self.ui.keypointsCheckBox.checked = False
        self.segmentationNode = node
        self._keeper = None
        self.picked, self.anchors = None, {}
        self._beforeDrawing = None
        self.showMessage("")
        if node is not None:
            self._keeper = correction_log.LogKeeper(node)
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
        self._selectEditorNode()
        self.editor.setSegmentationNode(node)
        volumeNode = self.volumeNode()
        if volumeNode is not None:
            self.editor.setSourceVolumeNode(volumeNode)
        self._updating = True
        self.ui.correctSegmentationSelector.setCurrentNode(node)
        self._updating = False
        self.refresh()

    def volumeNode(self):
        """The volume that the segmentation was made on; None if there is none."""
        node = self.segmentationNode
        return volumes.segmentedVolume(node) if node is not None else None

    def _onSegmentationChosen(self, node):
        if self._updating or self.parameterNode is None or node is self.segmentationNode:
            return
        volumeNode = volumes.segmentedVolume(node) if node is not None else None
        with slicer.util.NodeModify(self.parameterNode):
            if volumeNode is not None:  # first, since another volume leaves its output
                self.parameterNode.inputVolume = volumeNode
            self.parameterNode.outputSegmentation = node
        if node is not None and self.parameterNode.outputSegmentation is not node:
            self.parameterNode.outputSegmentation = node

    def _onModified(self, caller=None, event=None):
        if not self._ownStep:
            self._refreshSoon.start()

    def _onVoxels(self, caller=None, event=None):
        if not self._ownStep:
            self._drawn = True
            self._refreshSoon.start()

    def refresh(self):
        """Bring the section in line with the segmentation."""
        if self._drawn and self.segmentPanel.hasPackages():  # else it is noted once they are there
            self._drawn = False
            self._noteDrawn()
        if self._keeper is not None:
            self._keeper.keep()
        if self.ui.correctCollapsibleButton.collapsed:
            return
        self.table.fill(self.segmentationNode)
        self._showSelection()
        self._fillSeries()
        self._showHints()
        self.updateButtons()

    def showMessage(self, text, isError=False):
        """A sentence at the top of the section."""
        label = self.ui.correctMessageLabel
        label.text = text
        label.visible = bool(text)
        label.setStyleSheet(ERROR_STYLE if isError else DONE_STYLE)

    def showError(self, error):
        """Why something could not be done, and what to do."""
        self.showMessage(str(error), isError=True)

    # --- undo --------------------------------------------------------------------------------------------------------

    def saveState(self):
        """Begin an undo step: a state that “Undo” comes back to."""
        self._keeper.keep()
        self.editor.saveStateForUndo()

    def _beforeReplace(self, segmentationNode):
        """Segments are about to be replaced."""
        if segmentationNode is self.segmentationNode:
            self.editor.setActiveEffect(None)  # else the new voxels were a stroke
            self._beforeDrawing = None
            self.saveState()

    def _onUndo(self):
        self._restore(self.editor.undo, _("Taken back."))

    def _onRedo(self):
        self._restore(self.editor.redo, _("Done again."))

    def _restore(self, restore, words):
        if self.segmentationNode is None or self.segmentPanel.isRunning:
            return
        self._ownStep = True
        try:
            before = self._times()
            self._keeper.keep()
            restore()
            changed = self._times() != before
            if changed:
                self._keeper.afterRestore()
                self.segmentationNode.Modified()
        finally:
            self._ownStep = False
        self.anchors = {}
        self._hideStaleKeypoints()
        self.showMessage(words if changed else _("There is nothing more to take back or to do again."))
        self.refresh()

    def _times(self):
        """When each segment was last changed: tells whether anything was restored."""
        segmentation = self.segmentationNode.GetSegmentation()
        return [(i, segmentation.GetSegment(i).GetMTime()) for i in segmentation.GetSegmentIDs()]

    # --- carrying out ------------------------------------------------------------------------------------------------

    def _labels(self):
        """Label image of the segmentation on its volume."""
        return labelmaps.checkedLabels(self.segmentationNode, self._requireVolume())

    def _requireVolume(self):
        volumeNode = self.volumeNode()
        if volumeNode is None:
            raise CorrectionError(
                _("The volume of “{name}” is not in the scene.").format(name=self.segmentationNode.GetName()),
                _("Load it, and set it as the segmentation's reference volume in the module “Segmentations”."),
            )
        return volumeNode

    def _selected(self, count=None):
        """The selected structures.

        :param count: how many are needed; None for one or more.
        :raises CorrectionError: other ones are selected.
        """
        selected = self.table.selected()
        if count is None and not selected:
            raise CorrectionError(_("No structure is selected."), _("Select it in the list, or pick it in the image."))
        if count is not None and len(selected) != count:
            raise CorrectionError(
                _("Select one structure for this; {count} are selected.").format(count=len(selected))
                if count == 1
                else _("Select two structures for this; {count} are selected.").format(count=len(selected)),
                _("Hold Ctrl to select a second one.") if count == 2 else "",
            )
        return selected

    def _do(self, make):
        """One click: plan a correction, carry it out as one undo step, say what was done.

        :param make: function of a `correction.Labelling` that returns a `correction.Correction`.
        :returns: the correction, or None if it could not be made, and the reader was told.
        """
        if not dependencies.ready():
            return None
        try:
            labelling = corrections.labellingOf(self.segmentationNode)
            self._refuseWhileRunning()
            step = make(labelling)
            volumeNode = None if step.only_names else self._requireVolume()
            selected = [step.mapping.get(i, i) for i in self.table.selected()]
            self._ownStep = True
            corrections.applyCorrection(self.segmentationNode, volumeNode, step, self.saveState)
        except SpineSegAIError as error:
            self.showError(error)
            return None
        finally:
            self._ownStep = False
        self.anchors = {step.mapping.get(i, i): point for i, point in self.anchors.items() if step.mapping.get(i, i)}
        self.picked = None
        if step.only_names:
            keypoints.renameInList(self.segmentationNode, step.mapping)
        self._hideStaleKeypoints()
        if self._beforeDrawing is not None:
            self._rememberBeforeDrawing(step)
        self.table.fill(self.segmentationNode)
        self.table.select([i for i in selected if i])
        self.refresh()
        self.showMessage(". ".join([step.words, *(note.rstrip(".") for note in step.notes)]) + ".")
        return step

    def _refuseWhileRunning(self):
        if self.segmentPanel.isRunning:
            raise CorrectionError(_("A segmentation is running."), _("Wait for it, or cancel it."))

    # --- level tools -------------------------------------------------------------------------------------------------

    def _scope(self):
        return self.ui.scopeComboBox.currentData

    def _side(self):
        """Who makes room: those above, unless those below were chosen to move."""
        return "below" if self._scope() == "below" else "above"

    def _onShift(self, to):
        scope = self._scope()

        def plan(labelling):
            if scope == "all":
                return correction.shift(labelling, to)
            return correction.shift(labelling, to, self._selected(1)[0], scope)

        self._do(plan)

    def _onLevel(self, index):
        level = self.ui.levelComboBox.currentData
        if index > 0 and not self._updating:
            self.setLevel(level)
            self.ui.levelComboBox.setCurrentIndex(0)

    def setLevel(self, level):
        """“This one is …” for the selected structure; it is an anchor from then on."""
        picked = self.picked
        step = self._do(lambda labelling: correction.set_level(labelling, self._selected(1)[0], level, self._scope()))
        if step is not None:
            self.anchors[level] = self._pointIn(level, picked)
            self._showHints()

    def _onCounting(self, index):
        to = self.ui.countingComboBox.currentData
        if index > 0:
            self._do(lambda labelling: correction.switch_counting(labelling, to, self._side()))
            self.ui.countingComboBox.setCurrentIndex(0)

    def _onSwap(self):
        self._do(lambda labelling: correction.swap(labelling, *self._selected(2)))

    def _onMerge(self):
        self._do(lambda labelling: correction.merge(labelling, *self._selected(2), direction=self._side()))

    def _onSplit(self):
        def plan(labelling):
            chosen = self._selected(1)[0]
            point = None
            if self.picked is not None and self.picked[0] == chosen:
                point = volumes.lps(self.picked[1])
            return correction.split(labelling, self._labels(), chosen, point=point, direction=self._side())

        self._do(plan)

    def _onDelete(self):
        self._do(lambda labelling: correction.delete(labelling, *self._selected()))

    def _onInsert(self, direction):
        step = self._do(lambda labelling: correction.insert(labelling, self._selected(1)[0], direction))
        if step is not None:
            self._drawMissing(step.missing)

    def _drawMissing(self, structureIds):
        """Empty segments for what is to be drawn, the first one ready in the Segment Editor."""
        segmentation = self.segmentationNode.GetSegmentation()
        self._ownStep = True
        try:
            with slicer.util.NodeModify(self.segmentationNode):
                corrections.addEmpty(self.segmentationNode, structureIds)
        finally:
            self._ownStep = False
        self.ui.editorGroupBox.collapsed = False
        self.refresh()
        self.table.select(structureIds)
        names = ", ".join(segmentation.GetSegment(i).GetName() for i in self.table.selectedSegments())
        self.showMessage(_("The name is free: draw {name} with the Segment Editor below.").format(name=names))
        self.editor.setActiveEffectByName("Paint")

    # --- review ------------------------------------------------------------------------------------------------------

    def _onPrevious(self):
        self.table.step(-1)

    def _onNext(self):
        self.table.step(1)

    def _onLeastCertain(self):
        if not self.table.selectLeastCertain():
            self.showMessage(_("No structure that is not locked has a confidence."))

    def _onSelected(self):
        """The reader chose a structure: everything looks at it."""
        selected = self.table.selected()
        if self.picked is not None and selected != [self.picked[0]]:
            self.picked = None
        segments = self.table.selectedSegments()
        if segments:
            self.editor.setCurrentSegmentID(segments[0])
        if selected:
            centre = labelmaps.centreOf(self.segmentationNode, selected[0])
            if centre is not None:
                views.lookAt(self.picked[1] if self.picked is not None else centre)
        self._showSelection()
        self.updateButtons()

    def _showSelection(self):
        selected = self.table.selected()
        label = self.ui.structurePreviewLabel
        pixmap = None
        if len(selected) == 1:
            pixmap = structure_preview.previewPixmap(self.volumeNode(), self.segmentationNode, selected[0])
        if pixmap is not None:
            label.setPixmap(pixmap)
        else:
            label.clear()
        self._fillLevels(selected[0] if len(selected) == 1 else None)

    def _fillLevels(self, structureId):
        """Names that the selected structure may get: vertebrae for a vertebra, discs for a disc."""
        combo = self.ui.levelComboBox
        names = []
        if structureId is not None and anatomy.STRUCTURES[structureId].order is not None:
            isVertebral = anatomy.STRUCTURES[structureId].is_vertebral
            known = [anatomy.STRUCTURES[i] for i in anatomy.sorted_ids(results.schemeOf(self.segmentationNode).ids)]
            names = [(s.name, s.id) for s in known if s.order is not None and s.is_vertebral == isVertebral]
        entries = [(_("choose…"), 0), *names]
        self._updating = True
        if entries != [(combo.itemText(i), combo.itemData(i)) for i in range(combo.count)]:
            combo.clear()
            for title, data in entries:
                combo.addItem(title, data)
        combo.setCurrentIndex(0)
        self._updating = False

    def _onPick(self, on):
        if on:
            self.picker.start()
            self.showMessage(_("Click a structure in any view."))
        else:
            self.picker.stop()

    def _stopPicking(self):
        self.picker.stop()
        self.ui.pickButton.checked = False

    def _onPicked(self, position):
        """The reader clicked into the image, or gave up (None)."""
        self._stopPicking()
        if position is not None:
            self.pick(position)
        else:
            self.showMessage("")

    def pick(self, position):
        """Select what lies at a position (RAS, mm).

        A click on background says so and changes nothing.
        """
        try:
            corrections.labellingOf(self.segmentationNode)
            labels = labelmaps.labelsFromSegmentation(self.segmentationNode, self._requireVolume())
            found = correction.structure_at(labels, volumes.lps(position))
        except SpineSegAIError as error:
            self.showError(error)
            return
        self.picked = (found, tuple(position))
        self.showMessage("")
        self.table.select([found])

    # --- segment again -----------------------------------------------------------------------------------------------

    def _pointIn(self, structureId, picked=None):
        return picked[1] if picked is not None else labelmaps.centreOf(self.segmentationNode, structureId)

    def _onAddAnchors(self):
        try:
            for structureId in self._selected():
                if anatomy.STRUCTURES[structureId].order is None:
                    raise HintError(
                        _("“{name}” has no level.").format(name=anatomy.STRUCTURES[structureId].name),
                        _("Select a vertebra or a disc."),
                    )
                picked = self.picked if self.picked is not None and self.picked[0] == structureId else None
                self.anchors[structureId] = self._pointIn(structureId, picked)
        except SpineSegAIError as error:
            self.showError(error)
        self._showHints()

    def _onClearAnchors(self):
        self.anchors = {}
        self._showHints()

    def _onKeyPoints(self, on):
        try:
            if on:
                corrections.labellingOf(self.segmentationNode)
                keypoints.showList(self.segmentationNode, self.volumeNode())
            elif self.segmentationNode is not None:
                keypoints.hideList(self.segmentationNode)
        except SpineSegAIError as error:
            self.ui.keypointsCheckBox.checked = False
            self.showError(error)

    def _movedKeypoints(self):
        return keypoints.movedKeypoints(self.segmentationNode) if self.ui.keypointsCheckBox.checked else {}

    def _hideStaleKeypoints(self):
        """Points of segments that have changed since are shown anew when they are asked for again."""
        if self.ui.keypointsCheckBox.checked and keypoints.isStale(self.segmentationNode):
            self.ui.keypointsCheckBox.checked = False

    def _showHints(self):
        """What the chosen method accepts is shown; the rest would be refused."""
        ui, method = self.ui, self.segmentPanel.method()
        if ui.againGroupBox.collapsed:  # unfolding it shows all that is in it
            return
        accepted = method.accepted_hints if method is not None else frozenset()
        ui.rangeHintLabel.visible = "visible" in accepted
        for widget in (ui.anchorHintLabel, ui.addAnchorButton, ui.clearAnchorsButton):
            widget.visible = "anchors" in accepted
        ui.keypointsCheckBox.visible = "keypoints" in accepted
        ui.priorCheckBox.visible = "prior" in accepted
        ui.subsetCheckBox.visible = "structures" in accepted
        top, bottom = (self.segmentPanel.ui.topLevelComboBox, self.segmentPanel.ui.bottomLevelComboBox)
        ui.rangeHintLabel.text = (
            _("In view: {top} to {bottom} (“Visible levels” above).").format(
                top=top.currentText if top.currentData else "…",
                bottom=bottom.currentText if bottom.currentData else "…",
            )
            if top.currentData or bottom.currentData
            else _("In view: not said (“Visible levels” above).")
        )
        names = ", ".join(anatomy.STRUCTURES[i].name for i in anatomy.sorted_ids(self.anchors))
        ui.anchorHintLabel.text = _("Known to be right: {levels}.").format(levels=names or _("none"))
        ui.clearAnchorsButton.enabled = bool(self.anchors)

    def _onAgain(self):
        from ..scene.segment_again import SegmentAgain

        if not dependencies.ready():
            return
        ui = self.ui
        accepted = self.segmentPanel.method().accepted_hints
        only = ()
        try:
            labelling = corrections.labellingOf(self.segmentationNode)
            self._refuseWhileRunning()
            labelling.require_unlocked(())
            self._refuseContradiction()
            if "structures" in accepted and ui.subsetCheckBox.checked:
                only = tuple(self._selected())
                labelling.require_unlocked(only)
            again = SegmentAgain(
                anchors=self.anchors if "anchors" in accepted else {},
                keypoints=self._movedKeypoints() if "keypoints" in accepted else {},
                prior=self._labels() if "prior" in accepted and ui.priorCheckBox.checked else None,
                only=only,
            )
            self._start(again)
        except SpineSegAIError as error:
            self.showError(error)

    def _refuseContradiction(self):
        """Levels said to be right must lie in the range that is said to be in view."""
        choices = self.segmentPanel.ui
        ends = [choices.topLevelComboBox.currentData, choices.bottomLevelComboBox.currentData]
        top, bottom = (anatomy.STRUCTURES[i] if i else None for i in ends)
        for structureId in anatomy.sorted_ids(self.anchors):
            s = anatomy.STRUCTURES[structureId]
            # A disc lies half a level below its vertebra; the one above the topmost vertebra may be in view.
            if (top and s.order < top.order - 0.5) or (bottom and s.order > bottom.order + 0.5):
                raise HintError(
                    _("{level} is said to be right, but “Visible levels” says {top} to {bottom}.").format(
                        level=s.name, top=top.name if top else "…", bottom=bottom.name if bottom else "…"
                    ),
                    _("Correct one of the two."),
                )

    def _start(self, again, volumeNode=None, outputNode=None):
        """:raises HintError: it cannot be segmented like this; nothing is started."""
        reasons = self.segmentPanel.reasonsAgainst(volumeNode or self._requireVolume())
        if reasons:
            raise HintError(" ".join(reasons))
        self.showMessage("")
        self.segmentPanel.start([volumeNode or self._requireVolume()], outputNode or self.segmentationNode, again=again)

    # --- repair ------------------------------------------------------------------------------------------------------

    def _onBox(self):
        try:
            corrections.labellingOf(self.segmentationNode)
            self.boxNode = markups.placeBox(self.segmentationNode, self._selected(), self.boxNode)
        except SpineSegAIError as error:
            self.showError(error)
        self.updateButtons()

    def _onRepairBox(self):
        try:
            self._repair(markups.boxOnGrid(self.boxNode, self._requireVolume()))
        except SpineSegAIError as error:
            self.showError(error)

    def _onRepairSlice(self):
        try:
            corrections.labellingOf(self.segmentationNode)
            axis, index = views.shownSlice(self._requireVolume())
            box = [slice(None)] * 3
            box[axis] = slice(index, index + 1)
            self._repair(tuple(box))
        except SpineSegAIError as error:
            self.showError(error)

    def _repair(self, box):
        """Segment again, and take over what is inside a box of the volume's array (k, j, i)."""
        from ..scene.segment_again import SegmentAgain

        if not dependencies.ready():
            return
        labelling = corrections.labellingOf(self.segmentationNode)
        self._refuseWhileRunning()
        labelling.require_unlocked(())
        # Levels outside stay, so the new result has to count like them.
        anchors = {i: self._pointIn(i) for i in labelling.vertebrae}
        self._start(SegmentAgain(anchors=anchors, box=box))

    def _onInterpolate(self):
        """Between the slices that were drawn on since the Segment Editor was used, or else between all that it has."""

        def plan(labelling):
            from SpineSegAILib.correction import voxels as editing

            chosen = self._selected(1)[0]
            labels = self._labels()
            axis = volumes.acquisitionAxis(self._requireVolume())
            slicing = next(name for name in editing.AXES if editing.array_axis(labels, name) == axis)
            return editing.interpolate(
                labels, chosen, slicing, self._slicesDrawnOn(chosen, labels, axis), locked=labelling.locked
            )

        self._do(plan)

    def _slicesDrawnOn(self, structureId, labels, axis):
        """Slices on which a structure is not as it was when drawing began; None if that is not known, or the same."""
        if self._beforeDrawing is None:
            return None
        now, before = correction.array_of(labels) == structureId, self._beforeDrawing == structureId
        others = tuple(a for a in range(3) if a != axis)
        drawn = (now != before).any(axis=others) & now.any(axis=others)
        return np.flatnonzero(drawn).tolist() or None

    def _onSmooth(self):
        def plan(labelling):
            from SpineSegAILib.correction import voxels as editing

            size = self.ui.smoothSpinBox.value
            return editing.smooth(self._labels(), self._selected(1)[0], size, locked=labelling.locked)

        self._do(plan)

    # --- Segment Editor ----------------------------------------------------------------------------------------------

    def _setUpEditor(self):
        editor = self.editor
        editor.maximumNumberOfUndoStates = UNDO_STEPS
        editor.segmentationNodeSelectorVisible = False
        editor.sourceVolumeNodeSelectorVisible = False
        editor.switchToSegmentationsButtonVisible = False
        editor.undoEnabled = False  # hides its buttons; ours also keep the log in line
        self._selectEditorNode()
        editor.setMRMLScene(slicer.mrmlScene)
        for selector in slicer.util.findChildren(editor, "SegmentationNodeComboBox"):
            selector.noneEnabled = True  # else it takes the first segmentation that comes, whatever ours is

    def _selectEditorNode(self):
        """Our Segment Editor node, made anew after the scene was closed."""
        node = slicer.mrmlScene.GetSingletonNode(EDITOR_TAG, "vtkMRMLSegmentEditorNode")
        if node is None:
            node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLSegmentEditorNode")
            node.UnRegister(None)
            node.SetSingletonTag(EDITOR_TAG)
            node = slicer.mrmlScene.AddNode(node)
        if node is self._editorNode:
            return
        self._forgetEditorNode()
        self._editorNode = node
        self._effect = None
        self._editorTag = node.AddObserver(vtk.vtkCommand.ModifiedEvent, self._onEffect)
        self.editor.setMRMLSegmentEditorNode(node)
        self._onEffect(node)

    def _forgetEditorNode(self):
        if self._editorNode is not None:
            self._editorNode.RemoveObserver(self._editorTag)
            self._editorNode = None

    def _onEffect(self, node, event=None):
        """Keep what an effect adds off the other segments; a mask that the reader chooses himself stays."""
        effect = node.GetActiveEffectName() or ""
        if effect == self._effect:
            return
        self._effect = effect
        kinds = slicer.vtkMRMLSegmentationNode
        adding = effect in ADDING_EFFECTS
        node.SetMaskMode(kinds.EditAllowedOutsideAllSegments if adding else kinds.EditAllowedEverywhere)
        node.SetOverwriteMode(node.OverwriteAllSegments)  # what it cannot touch it cannot overwrite; nothing overlaps

        if effect:
            self._rememberBeforeDrawing()

    def _rememberBeforeDrawing(self, step=None):
        """Keep the structures as they are, to tell later what was drawn by hand; after a change of names, rename."""
        if step is not None and step.only_names:
            self._beforeDrawing = correction.renamed(self._beforeDrawing, step.mapping)
        elif self.volumeNode() is not None:
            structures = structuresOfSegmentation(self.segmentationNode)
            held = {segmentId: structureId for structureId, segmentId in structures.items()}
            self._beforeDrawing = labelmaps.mergedArray(self.segmentationNode, held, self.volumeNode())

    def _noteDrawn(self):
        """A stroke of the Segment Editor goes into the log, once for several in a row on the same structure."""
        from SpineSegAILib.results.correction_log import painted

        node = self.segmentationNode
        segmentId = self.editor.currentSegmentID() if node is not None else None
        segment = node.GetSegmentation().GetSegment(segmentId) if segmentId else None
        structureId = structureOfSegment(segment) if segment is not None else None
        if structureId is None or not self._editorNode.GetActiveEffectName():
            return
        entry = painted([structureId], structuresOfSegmentation(node))
        try:
            entries = correction_log.readLog(node).entries
        except CorrectionError as error:  # damaged
            self.showError(error)
            return
        if not entries or (entries[-1].tool, entries[-1].structures) != (entry.tool, entry.structures):
            self._ownStep = True
            try:
                correction_log.addToLog(node, entry)
            finally:
                self._ownStep = False

    # --- other series ------------------------------------------------------------------------------------------------

    def _fillSeries(self):
        combo, volumeNode = self.ui.otherVolumeComboBox, self.volumeNode()
        found = []
        if volumeNode is not None:
            study = volumes.otherSeriesOfStudy(volumeNode)
            others = [node for node in volumes.images() if node is not volumeNode and node not in study]
            found = [(n.GetName(), n.GetID()) for n in study]
            found += [(_("{volume} (not of this study)").format(volume=n.GetName()), n.GetID()) for n in others]
        if found == [(combo.itemText(i), combo.itemData(i)) for i in range(combo.count)]:
            return
        chosen = combo.currentData
        combo.clear()
        for title, nodeId in found:
            combo.addItem(title, nodeId)
        combo.setCurrentIndex(max(0, combo.findData(chosen)) if found else -1)

    def _carry(self):
        """Carry the segments over to the chosen series; where there are some, that is an undo step of theirs.

        :returns: its volume node, its segmentation node, and whether segments were replaced.
        """
        corrections.labellingOf(self.segmentationNode)
        self._refuseWhileRunning()
        other = slicer.mrmlScene.GetNodeByID(self.ui.otherVolumeComboBox.currentData or "")
        if other is None:
            raise CorrectionError(_("There is no other series."), _("Load one of the same study."))
        source, volumeNode = self.segmentationNode, self._requireVolume()
        before = other_series.carriedTo(source, other)

        def saveState():
            correction_log.readLog(before)  # a damaged one is refused before anything is changed
            self._goTo(other, before)
            self._beforeReplace(before)

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
            self.showError(error)
            return
        words = _("Carried over to “{volume}”: check it, the patient may have moved.").format(volume=other.GetName())
        self.showMessage(words + (" " + _("“Undo” brings back what was there.") if replaced else ""))

    def _onRefine(self):
        from ..scene.segment_again import SegmentAgain

        if not dependencies.ready():
            return
        only = tuple(self.table.selected())
        try:
            other, carried, _replaced = self._carry()
        except SpineSegAIError as error:
            self.showError(error)
            return
        try:
            accepted = self.segmentPanel.method().accepted_hints
            labelling = corrections.labellingOf(carried)
            labelling.require_unlocked(())
            again = SegmentAgain(
                anchors={i: self._pointIn(i) for i in labelling.vertebrae} if "anchors" in accepted else {},
                prior=self._labels() if "prior" in accepted else None,
                only=tuple(i for i in only if i in labelling.present and i not in labelling.locked),
            )
            self._start(again, other, carried)
        except SpineSegAIError as error:
            self.showError(error)

    def _goTo(self, volumeNode, segmentationNode):
        with slicer.util.NodeModify(self.parameterNode):
            self.parameterNode.inputVolume = volumeNode
        self.parameterNode.outputSegmentation = segmentationNode
        self.setSegmentationNode(segmentationNode)
        views.centreViews(volumeNode, segmentationNode)

    # --- measure -----------------------------------------------------------------------------------------------------

    def _onMeasure(self):
        self.measure()

    def measure(self, onDone=None):
        """Measure the segments as they are now into the table node.

        :param onDone: called with the table node.
        """
        if not dependencies.ready():
            return
        try:
            corrections.labellingOf(self.segmentationNode)
            result = results.resultFromSegmentation(self.segmentationNode, self._requireVolume())
            labelmaps.refuseOverlap(self.segmentationNode, self._requireVolume())
        except SpineSegAIError as error:
            self.showError(error)
            return
        self.segmentPanel.measure(self.segmentationNode, result, onDone)

    def _onSaveTable(self):
        path = qt.QFileDialog.getSaveFileName(slicer.util.mainWindow(), _("Measurements"), "", _("Table (*.csv)"))
        if isinstance(path, tuple):  # PySide-style bindings give the filter as well
            path = path[0]
        if path:
            self.saveTable(path)

    def saveTable(self, path):
        """Measure, and write the table to a CSV file."""

        def write(tableNode):
            try:
                tables.writeTable(tableNode, path)
            except SpineSegAIError as error:
                self.showError(error)
            else:
                self.showMessage(_("Written to {path}.").format(path=path))

        self.measure(write)

    # --- buttons -----------------------------------------------------------------------------------------------------

    def updateButtons(self):
        """Enable what can be done now. Tools stay enabled where the reason against them is worth a sentence."""
        ui = self.ui
        there = self.segmentationNode is not None
        idle = there and not self.segmentPanel.isRunning
        tools = (
            ui.correctUndoButton, ui.correctRedoButton, ui.shiftUpButton, ui.shiftDownButton, ui.levelComboBox,
            ui.countingComboBox, ui.swapButton, ui.mergeButton, ui.splitButton, ui.deleteButton, ui.insertAboveButton,
            ui.insertBelowButton, ui.againButton, ui.boxButton, ui.repairSliceButton, ui.interpolateButton,
            ui.smoothButton, ui.remeasureButton, ui.csvButton, ui.addAnchorButton,
        )  # fmt: skip
        for widget in tools:
            widget.enabled = idle
        for widget in (ui.previousStructureButton, ui.nextStructureButton, ui.leastCertainButton, ui.pickButton):
            widget.enabled = there
        ui.repairBoxButton.enabled = idle and self.boxNode is not None
        for widget in (ui.carryButton, ui.refineButton):
            widget.enabled = idle and ui.otherVolumeComboBox.count > 0
        ui.correctSegmentationSelector.enabled = not self.segmentPanel.isRunning
        ui.segmentEditorWidget.enabled = idle
        if not there:
            self.showMessage(_("No segmentation is chosen: segment a volume, or choose one here."))
