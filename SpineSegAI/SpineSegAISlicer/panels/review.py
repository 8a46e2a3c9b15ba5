"""The list of structures: looking at one after the other, picking one in the image."""

from slicer.i18n import tr as _

from SpineSegAILib import correction
from SpineSegAILib.errors import CorrectionError, SpineSegAIError

from ..scene import corrections, labelmaps, markups, views, volumes
from . import structure_preview
from .part import Part
from .structure_table import StructureTable


class Review(Part):
    """The table, the preview of the selected structure, and what selects."""

    def __init__(self, section):
        super().__init__(section)
        ui = self.ui
        self.picked = None  # (structure id, position in RAS) of the last click into the image
        self.table = StructureTable(ui.structuresTable, self._onTable, section.undo.saveState)
        self.picker = markups.PointPicker(self._onPicked)
        ui.previousStructureButton.connect("clicked(bool)", self.previous)
        ui.nextStructureButton.connect("clicked(bool)", self.next)
        ui.leastCertainButton.connect("clicked(bool)", self.leastCertain)
        ui.pickButton.connect("toggled(bool)", self._onPick)

    def show(self):
        """Bring the table in line with the segmentation."""
        self.table.fill(self.section.segmentationNode)
        self._showPreview()

    def setEnabled(self, there, idle):
        """Looking is possible while something runs."""
        ui = self.ui
        for widget in (ui.previousStructureButton, ui.nextStructureButton, ui.leastCertainButton, ui.pickButton):
            widget.enabled = there

    def onSelected(self):
        """Look at what was selected."""
        if self.picked is not None and self.table.selected() != [self.picked[0]]:
            self.picked = None
        self.look()
        self._showPreview()

    def look(self):
        """Move the views to what is selected."""
        selected = self.table.selected()
        centre = labelmaps.centreOf(self.section.segmentationNode, selected[0]) if selected else None
        if centre is not None:
            views.lookAt(self.picked[1] if self.picked is not None else centre)

    def onCorrected(self, step):
        """What was picked may be something else now."""
        self.picked = None

    def onLeft(self):
        """What was picked was another segmentation's."""
        self.picked = None

    def selected(self, count=None):
        """Ids of the selected structures.

        :param count: how many are needed; None for one or more.
        :raises CorrectionError: other ones are selected.
        """
        selected = self.table.selected()
        if count is None and not selected:
            raise CorrectionError(_("No structure is selected."), _("Select it in the list, or pick it in the image."))
        if count is not None and len(selected) != count:
            there = {0: _("none is selected"), 1: _("one is selected")}
            said = there.get(len(selected), _("{count} are selected").format(count=len(selected)))
            raise CorrectionError(
                _("Select one structure for this; {said}.").format(said=said)
                if count == 1
                else _("Select two structures for this; {said}.").format(said=said),
                _("Hold Ctrl to select a second one.") if count == 2 else "",
            )
        return selected

    def _onTable(self):
        self.section.onSelected()

    def _showPreview(self):
        selected, label = self.table.selected(), self.ui.structurePreviewLabel
        pixmap = None
        if len(selected) == 1:
            section = self.section
            pixmap = structure_preview.previewPixmap(section.volumeNode(), section.segmentationNode, selected[0])
        if pixmap is not None:
            label.setPixmap(pixmap)
        else:
            label.clear()

    # --- one after the other -----------------------------------------------------------------------------------------

    def previous(self):
        """Select the structure above."""
        self.table.step(-1)

    def next(self):
        """Select the structure below."""
        self.table.step(1)

    def leastCertain(self):
        """Select the structure with the poorest outline; called again, the next one."""
        if not self.table.selectLeastCertain():
            self.section.showMessage(_("No unlocked structure has an outline quality."))

    # --- picked in the image -----------------------------------------------------------------------------------------

    def _onPick(self, on):
        if on:
            self.section.clicks.stop()  # a click is one or the other
            self.picker.start()
            self.section.showMessage(_("Click a structure in any view."))
        else:
            self.picker.stop()

    def exit(self):
        """A click in another module is not for us."""
        self.stopPicking()

    def stopPicking(self):
        """Wait for no click any more."""
        self.picker.stop()
        self.ui.pickButton.checked = False

    def _onPicked(self, position):
        """The reader clicked into the image, or gave up (None)."""
        self.stopPicking()
        if position is not None:
            self.pick(position)
        else:
            self.section.showMessage("")

    def pick(self, position):
        """Select what lies at a position (RAS, mm).

        A click on background says so and changes nothing.
        """
        section = self.section
        try:
            corrections.labellingOf(section.segmentationNode)
            labels = labelmaps.labelsFromSegmentation(section.segmentationNode, section.requireVolume())
            found = correction.structure_at(labels, volumes.lps(position))
        except SpineSegAIError as error:
            section.showError(error)
            return
        self.picked = (found, tuple(position))
        section.showMessage("")
        self.table.select([found])
