"""Measuring a segmentation in the worker, into a table of the scene; a picture of it into a file."""

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
        try:
            self._job = self._client.measure(
                result,
                onDone=lambda columns, rows: self._onMeasured(segmentationNode, columns, rows, onDone),
                onError=lambda failure: self._onFailed(segmentationNode, failure),
            )
        except SpineSegAIError as error:
            self._messages.show(Failure.of(error))
        self._changed()

    def report(self, image, result, title, path, onDone):
        """Write a picture of a result.

        :param image: what was segmented.
        :param onDone: called without arguments.
        """

        def onWritten():
            self._changed()
            onDone()

        def onError(failure):
            self._changed()
            self._messages.show(failure)

        try:
            self._job = self._client.report(image, result, title, path, onDone=onWritten, onError=onError)
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
