"""Undo and redo of corrections and strokes, in the order in which they were made."""

from slicer.i18n import tr as _

from ..scene.correction_log import LogKeeper
from .part import Part


class UndoTools(Part):
    """The Segment Editor's history of segments, with what is said of them kept in line."""

    def __init__(self, section):
        super().__init__(section)
        self._keeper = None
        self.ui.correctUndoButton.connect("clicked(bool)", self.undo)
        self.ui.correctRedoButton.connect("clicked(bool)", self.redo)

    def setEnabled(self, there, idle):
        """Only without a segmentation under way, and where there is something."""
        self.ui.correctUndoButton.enabled = idle and self.section.editor.canUndo()
        self.ui.correctRedoButton.enabled = idle and self.section.editor.canRedo()

    def setSegmentationNode(self, node):
        """Keep this segmentation's history from now on; None for none."""
        self._keeper = LogKeeper(node) if node is not None else None

    def keep(self):
        """What is said of the segments now belongs to them as they are now."""
        if self._keeper is not None:
            self._keeper.keep()

    def saveState(self):
        """Begin a step: a state that `undo` comes back to."""
        self.keep()
        self.section.editor.saveState()

    def undo(self):
        """Take back the last step or stroke."""
        self._restore(self.section.editor.undo, _("Undone."))

    def redo(self):
        """Redo the step that was undone last."""
        self._restore(self.section.editor.redo, _("Redone."))

    def _restore(self, restore, words):
        section = self.section
        if section.segmentationNode is None or section.segmenting.isRunning:
            return
        with section.ownStep():
            before = self._times()
            self.keep()
            restore()
            changed = self._times() != before
            if changed:
                self._keeper.afterRestore()
                section.segmentationNode.Modified()
        for part in section.parts:
            part.onRestored()
        section.showMessage(words if changed else _("Nothing to undo or redo."))
        section.refresh()

    def _times(self):
        """When each segment was last changed: tells whether anything was restored."""
        segmentation = self.section.segmentationNode.GetSegmentation()
        return [(i, segmentation.GetSegment(i).GetMTime()) for i in segmentation.GetSegmentIDs()]
