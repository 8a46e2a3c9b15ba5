"""Slicer's Segment Editor inside the section: its node, its undo, and what was drawn with it."""

import numpy as np
import slicer
import vtk

from SpineSegAILib import correction
from SpineSegAILib.errors import CorrectionError, ImageError

from ..processes import dependencies
from ..scene import correction_log, labelmaps
from ..scene.segments import structureOfSegment, structuresOfSegmentation
from .part import Part

UNDO_STEPS = 20
EDITOR_TAG = "SpineSegAI"
"""Singleton tag of our own Segment Editor node, so that Slicer's module keeps its settings."""

ADDING_EFFECTS = ("Paint", "Draw", "Level tracing", "Threshold")
"""Effects that only add voxels: they are kept off other segments. Others (Erase …) could do nothing with that mask."""


class EditorBridge(Part):
    """Keeps the editor on the section's segmentation, and the section in the know of strokes."""

    def __init__(self, section):
        super().__init__(section)
        widget = self.widget = self.ui.segmentEditorWidget
        self.isDrawnOn = False  # a segment's voxels were changed by the editor, which is not noted yet
        self._before = None  # (k, j, i) structure ids as they were when an effect was chosen
        self._node = None
        self._tag = None
        self._effect = ""
        self._segmentId = ""  # the editor's segment when it was looked at last
        # Whether a segmentation is taken, of which the editor chooses a segment by itself, or a saved scene's node.
        self._isTaking = True
        widget.maximumNumberOfUndoStates = UNDO_STEPS
        widget.segmentationNodeSelectorVisible = False
        widget.sourceVolumeNodeSelectorVisible = False
        widget.switchToSegmentationsButtonVisible = False
        widget.undoEnabled = False  # hides its buttons; ours also keep the log in line
        self._selectNode()
        widget.setMRMLScene(slicer.mrmlScene)
        for selector in slicer.util.findChildren(widget, "SegmentationNodeComboBox"):
            selector.noneEnabled = True  # else it takes the first segmentation that comes, whatever ours is
        self._isTaking = False

    def setEnabled(self, there, idle):
        """Nothing is drawn while something runs, not with the effect that is at work, either."""
        self.widget.enabled = idle
        if not idle:
            self.rest()

    def show(self):
        """The editor draws on what is selected in the list, also after undo and redo; on nothing where nothing is."""
        segments = self.section.review.table.selectedSegments()
        if self.widget.currentSegmentID() not in (segments or [""]):
            self.widget.setCurrentSegmentID(segments[0] if segments else "")
        self._segmentId = self.widget.currentSegmentID()

    def onSelected(self):
        """The same."""
        self.show()

    # --- life --------------------------------------------------------------------------------------------------------

    def enter(self):
        """The module is opened."""
        self._isTaking = True
        self._selectNode()
        self.widget.updateWidgetFromMRML()
        self._isTaking = False

    def exit(self):
        """Another module is opened: no effect of ours is at work there."""
        self.rest()
        self.widget.removeViewObservations()

    def onSceneClose(self):
        """Everything in the scene goes away."""
        self.widget.removeViewObservations()

    def cleanup(self):
        """The panel goes away."""
        self._forgetNode()

    def setSegmentationNode(self, node, volumeNode):
        """Edit this segmentation from now on; None for none."""
        self._before = None
        self._isTaking = True
        self._selectNode()
        self.widget.setSegmentationNode(node)
        if volumeNode is not None:
            self.widget.setSourceVolumeNode(volumeNode)
        self._isTaking = False

    def _selectNode(self):
        """Our Segment Editor node, made again after the scene was closed."""
        node = slicer.mrmlScene.GetSingletonNode(EDITOR_TAG, "vtkMRMLSegmentEditorNode")
        if node is None:
            node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLSegmentEditorNode")
            node.UnRegister(None)
            node.SetSingletonTag(EDITOR_TAG)
            node = slicer.mrmlScene.AddNode(node)
        if node is self._node:
            return
        self._forgetNode()
        self._node = node
        self._effect = None
        self._tag = node.AddObserver(vtk.vtkCommand.ModifiedEvent, self._onNode)
        self.widget.setMRMLSegmentEditorNode(node)
        self._onNode(node)

    def _forgetNode(self):
        if self._node is not None:
            self._node.RemoveObserver(self._tag)
            self._node = None

    # --- undo --------------------------------------------------------------------------------------------------------

    def saveState(self):
        """A state that `undo` comes back to."""
        self.widget.saveStateForUndo()

    def canUndo(self):
        """Whether there is a state before."""
        return self._offers("UndoButton")

    def canRedo(self):
        """Whether there is a state after."""
        return self._offers("RedoButton")

    def _offers(self, name):
        """The editor does not say what its history holds, but its own buttons, which are hidden here, follow that."""
        return all(button.isEnabledTo(self.widget) for button in slicer.util.findChildren(self.widget, name))

    def undo(self):
        """The state before."""
        self.widget.undo()

    def redo(self):
        """The state after, once `undo` was called."""
        self.widget.redo()

    # --- drawing -----------------------------------------------------------------------------------------------------

    def startDrawing(self):
        """Let the reader draw on the selected segment."""
        self.ui.editorGroupBox.collapsed = False
        self.widget.setActiveEffectByName("Paint")

    def rest(self):
        """No effect is at work in the views; what was drawn with it is still known."""
        if self._node is not None and self._node.GetActiveEffectName():
            self.widget.setActiveEffect(None)

    def stopDrawing(self):
        """No effect any more; what changes from now on was not drawn."""
        self.widget.setActiveEffect(None)
        self._before = None

    def _onNode(self, node, event=None):
        self._onEffect(node)
        segmentId, before = node.GetSelectedSegmentID() or "", self._segmentId
        self._segmentId = segmentId
        if segmentId != before and not self._isTaking:
            self._follow()

    def _follow(self):
        """What the user chose in the editor, by its keys, is what the list highlights: there is one selection."""
        table = self.section.review.table
        table.fill(self.section.segmentationNode)
        if self._segmentId and self._segmentId not in table.selectedSegments():
            table.selectSegment(self._segmentId)

    def _onEffect(self, node):
        """Keep what an effect adds off the other segments; a mask that the user chooses stays."""
        effect = node.GetActiveEffectName() or ""
        if effect == self._effect:
            return
        self._effect = effect
        kinds = slicer.vtkMRMLSegmentationNode
        adding = effect in ADDING_EFFECTS
        node.SetMaskMode(kinds.EditAllowedOutsideAllSegments if adding else kinds.EditAllowedEverywhere)
        node.SetOverwriteMode(node.OverwriteAllSegments)  # what it cannot touch it cannot overwrite; nothing overlaps
        if effect:
            self._remember()
        for part in self.section.parts:
            part.onEffect(effect)

    def _remember(self):
        """Keep the structures as they are, to tell later what was drawn by hand."""
        segmentationNode, volumeNode = self.section.segmentationNode, self.section.volumeNode()
        if volumeNode is not None:
            held = {segmentId: i for i, segmentId in structuresOfSegmentation(segmentationNode).items()}
            try:
                self._before = labelmaps.mergedArray(segmentationNode, held, volumeNode)
            except ImageError:  # under a non-linear transform: they can be drawn on, but not compared
                self._before = None

    def onCorrected(self, step):
        """What a tool changed was not drawn."""
        if self._before is None:
            return
        if step.only_names:
            self._before = correction.remap_labels(self._before, step.mapping)
        else:
            self._remember()

    def noteDrawn(self):
        """A stroke goes into the log, once for several in a row on the same structure."""
        if not self.isDrawnOn or not dependencies.areInstalled():  # then it is noted once they are
            return
        from SpineSegAILib.results.correction_log import painted

        self.isDrawnOn = False
        node = self.section.segmentationNode
        segmentId = self.widget.currentSegmentID() if node is not None else None
        segment = node.GetSegmentation().GetSegment(segmentId) if segmentId else None
        structureId = structureOfSegment(segment) if segment is not None else None
        if structureId is None or not self._node.GetActiveEffectName():
            return
        entry = painted([structureId], structuresOfSegmentation(node))
        try:
            entries = correction_log.readLog(node).entries
        except CorrectionError as error:  # damaged
            self.section.showError(error)
            return
        if not entries or (entries[-1].tool, entries[-1].structures) != (entry.tool, entry.structures):
            with self.section.ownStep():
                correction_log.addToLog(node, entry)

    def slicesDrawnOn(self, structureId, labels, axis):
        """Slices on which a structure is not as it was when drawing began; None if that is not known, or the same.

        :param labels: label image of the segmentation as it is now.
        :param axis: of its array, across the slices.
        """
        if self._before is None:
            return None
        now, before = correction.array_of(labels) == structureId, self._before == structureId
        others = tuple(a for a in range(3) if a != axis)
        drawn = (now != before).any(axis=others) & now.any(axis=others)
        return np.flatnonzero(drawn).tolist() or None
