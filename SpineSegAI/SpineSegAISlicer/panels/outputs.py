"""What is made of a result: a table, a report, a DICOM segmentation, the file of the segments."""

import contextlib
import re
from dataclasses import replace

import qt
import slicer
from slicer.i18n import tr as _

from SpineSegAILib.errors import SpineSegAIError

from ..processes import dependencies
from ..processes.failure import Failure
from ..scene import dicom, labelmaps, results, tables, volumes


class Outputs:
    """Behavior of the buttons, on widgets that Qt Designer laid out.

    :param ui: the widgets, as `slicer.util.childWidgetVariables` gives them.
    :param parameters: `Parameters`.
    :param measuring: `Measuring`.
    :param messages: `Messages`.
    """

    def __init__(self, ui, parameters, measuring, messages):
        self.ui = ui
        self.parameters = parameters
        self.measuring = measuring
        self.messages = messages
        self._volumeId = ""  # whose patient may be shown
        for button, slot in (
            (ui.measureButton, self._onMeasure),
            (ui.csvButton, self._onSaveTable),
            (ui.reportButton, self._onSaveReport),
            (ui.dicomSegButton, self._onSaveDicomSeg),
            (ui.saveButton, self._onSaveSegmentation),
        ):
            button.connect("clicked(bool)", slot)

    def update(self, idle):
        """Enable what can be done.

        :param idle: nothing is being segmented.
        """
        ui, volumeNode = self.ui, self.parameters.outputVolume
        for button in (ui.measureButton, ui.csvButton, ui.reportButton, ui.dicomSegButton):
            button.enabled = idle and volumeNode is not None and not self.measuring.isBusy
        ui.saveButton.enabled = idle
        volumeId = volumeNode.GetID() if volumeNode is not None else ""
        if volumeId != self._volumeId:  # asked for each patient again
            self._volumeId = volumeId
            ui.patientCheckBox.checked = False
        ui.patientCheckBox.visible = volumeNode is not None and dicom.isFromDicom(volumeNode)

    def _result(self):
        """What the segmentation shows now; None if it cannot be read, and the user knows why."""
        node, volumeNode = self.parameters.outputSegmentation, self.parameters.outputVolume
        if volumeNode is None:  # removed while packages were installed or a file was chosen
            self.messages.say(_("The result or its volume was removed from the scene."))
            return None
        with self._showingErrors():
            labelmaps.refuseOverlap(node, volumeNode)
            return results.resultFromSegmentation(node, volumeNode)
        return None

    @contextlib.contextmanager
    def _showingErrors(self):
        """A block in which an error that the user can act on is shown, and ends it."""
        try:
            yield
        except SpineSegAIError as error:
            self.messages.show(Failure.of(error))

    # --- table -------------------------------------------------------------------------------------------------------

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

    def _onSaveTable(self):
        if dependencies.ready():  # before anyone looks for a folder in vain
            path = self._fileName(_("Measurements"), _("Table (*.csv)"), ".csv")
            if path:
                self.saveTable(path)

    def saveTable(self, path):
        """Measure, and write the table to a CSV file."""
        self.measure(lambda tableNode: self._writeTable(tableNode, path))

    def _writeTable(self, tableNode, path):
        with self._showingErrors():
            tables.writeTable(tableNode, path)
            self._written(path)

    # --- report ------------------------------------------------------------------------------------------------------

    def _onSaveReport(self):
        if dependencies.ready(dependencies.REPORT_PACKAGES):
            path = self._fileName(_("Report"), _("PDF (*.pdf)") + ";;" + _("Web page (*.html)"), ".pdf", ".html")
            if path:
                self.saveReport(path)

    def saveReport(self, path):
        """Measure, and write a report.

        :param path: ends with .pdf or .html.
        """
        if not dependencies.ready(dependencies.REPORT_PACKAGES):
            return
        result, volumeNode = self._result(), self.parameters.outputVolume
        if result is None:
            return
        with self._showingErrors():
            image = volumes.imageFromVolume(volumeNode)
            self.messages.say(_("Writing the report…"))
            self.measuring.report(
                self._written,
                image=image,
                result=result,
                path=path,
                title=volumeNode.GetName(),
                source=dicom.fileOf(volumeNode) or volumeNode.GetName(),
                patient=self.ui.patientCheckBox.checked and dicom.isFromDicom(volumeNode),
            )

    # --- DICOM segmentation ------------------------------------------------------------------------------------------

    def _onSaveDicomSeg(self):
        with self._showingErrors():
            dicom.seriesFileOf(self.parameters.outputVolume)  # before anyone is asked for packages in vain
            if not dependencies.ready(dependencies.DICOM_SEG_PACKAGES):
                return
            if dicom.database() is not None:
                self.saveDicomSeg()
                return
            path = self._fileName(_("DICOM segmentation"), _("DICOM (*.dcm)"), ".dcm")
            if path:
                self.saveDicomSeg(path)

    def saveDicomSeg(self, path=None):
        """Write a DICOM segmentation into the study of the series that was segmented.

        :param path: ends with .dcm; None to add it to Slicer's DICOM database.
        """
        if not dependencies.ready(dependencies.DICOM_SEG_PACKAGES):
            return
        result, volumeNode = self._result(), self.parameters.outputVolume
        if result is None:
            return
        with self._showingErrors():
            source = dicom.seriesFileOf(volumeNode)
            stored = replace(result, labels=volumes.asStored(result.labels, volumeNode))
            self.messages.say(_("Writing the DICOM segmentation…"))
            done = self._addToDatabase if path is None else lambda path, _uid: self._written(path)
            self.measuring.dicomSeg(done, result=stored, source=source, path=path)

    def _addToDatabase(self, path, uid):
        with self._showingErrors():
            dicom.add(path, uid)
            self.messages.say(_("Saved as DICOM segmentation in the study: see the module “DICOM”."))

    # --- segments ----------------------------------------------------------------------------------------------------

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

    # --- files -------------------------------------------------------------------------------------------------------

    def _fileName(self, title, kinds, *suffixes):
        """Where the user wants a file; empty if nowhere. A name without one of the endings gets the first."""
        node = self.parameters.outputSegmentation
        if node is None:  # removed while packages were installed
            return ""
        name = re.sub(r'[/\\:*?"<>|]', "_", node.GetName()) + suffixes[0]
        path = qt.QFileDialog.getSaveFileName(slicer.util.mainWindow(), title, name, kinds)
        return path if not path or path.lower().endswith(suffixes) else path + suffixes[0]

    def _written(self, path):
        self.messages.say(_("Written to {path}.").format(path=path))
