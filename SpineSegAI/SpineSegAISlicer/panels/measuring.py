"""What the worker makes of a segmentation: measurements in a table of the scene, a report, a DICOM object."""

from slicer.i18n import tr as _

from SpineSegAILib.errors import SpineSegAIError

from ..processes.failure import Failure
from ..scene import tables, views


class Measuring:
    """What the sections share to measure.

    :param client: `WorkerClient`.
    :param messages: `Messages`.
    """

    def __init__(self, client, messages):
        self._client = client
        self._messages = messages
        self._job = None
        self.changedCallbacks = []  # called when something is being measured, or no more

    @property
    def isBusy(self):
        """True while something is being measured."""
        return self._client.isAtWorkOn(self._job)

    def measure(self, segmentationNode, result, onDone=None):
        """Measure a result into the table node of its segmentation, and show that.

        :param result: the `Segmentation` that the node shows.
        :param onDone: called with the table node.
        """
        self._ask(
            self._client.measure,
            result=result,
            onDone=lambda columns, rows: self._onMeasured(segmentationNode, columns, rows, onDone),
            onError=lambda failure: self._onFailed(segmentationNode, failure),
        )

    def report(self, onDone, **about):
        """Write a report.

        :param onDone: called with the path.
        :param about: see `requests.report`.
        """
        self._write(self._client.report, onDone, about)

    def dicomSeg(self, onDone, **about):
        """Write a DICOM segmentation.

        :param onDone: called with the path and the UID.
        :param about: see `requests.dicomSeg`.
        """
        self._write(self._client.dicomSeg, onDone, about)

    def _write(self, write, onDone, about):
        def onWritten(*what):
            self._changed()
            onDone(*what)

        def onError(failure):
            self._changed()
            self._messages.show(failure)

        self._ask(write, onDone=onWritten, onError=onError, **about)

    def _ask(self, ask, **about):
        try:
            self._job = ask(**about)
        except SpineSegAIError as error:
            self._messages.show(Failure.of(error))
        self._changed()

    def _onMeasured(self, segmentationNode, columns, rows, onDone):
        self._changed()
        if segmentationNode.GetScene() is None:  # removed; its id may be that of another one since
            return
        tableNode = tables.tableFromMeasurements(columns, rows, segmentationNode)
        views.showTable(tableNode)
        self._messages.say(_("Measured into the table “{table}”.").format(table=tableNode.GetName()))
        if onDone is not None:
            onDone(tableNode)

    def _onFailed(self, segmentationNode, failure):
        self._changed()
        if segmentationNode.GetScene() is not None:
            self._messages.show(failure)

    def _changed(self):
        for callback in self.changedCallbacks:
            callback()
