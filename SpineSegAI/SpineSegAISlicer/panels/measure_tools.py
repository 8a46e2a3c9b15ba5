"""Measuring the segments as they are now, into the scene and into a file."""

import qt
import slicer
from slicer.i18n import tr as _

from SpineSegAILib.errors import SpineSegAIError

from ..processes import dependencies
from ..scene import corrections, labelmaps, results, tables
from .part import Part


class MeasureTools(Part):
    """Corrected segments, which may overlap: that is refused.

    :param measuring: `Measuring`.
    """

    def __init__(self, section, measuring):
        super().__init__(section)
        self._measuring = measuring
        self.ui.remeasureButton.connect("clicked(bool)", self._onMeasure)
        self.ui.csvButton.connect("clicked(bool)", self._onSaveTable)

    def setEnabled(self, there, idle):
        """Only without a segmentation under way."""
        self.ui.remeasureButton.enabled = self.ui.csvButton.enabled = idle

    def _onMeasure(self):
        self.measure()

    def measure(self, onDone=None):
        """Measure the segments as they are now into the table node.

        :param onDone: called with the table node.
        """
        if not dependencies.ready():
            return
        section = self.section
        try:
            corrections.labellingOf(section.segmentationNode)
            result = results.resultFromSegmentation(section.segmentationNode, section.requireVolume())
            labelmaps.refuseOverlap(section.segmentationNode, section.requireVolume())
        except SpineSegAIError as error:
            section.showError(error)
            return
        self._measuring.measure(section.segmentationNode, result, onDone)

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
                self.section.showError(error)
            else:
                self.section.showMessage(_("Written to {path}.").format(path=path))

        self.measure(write)
