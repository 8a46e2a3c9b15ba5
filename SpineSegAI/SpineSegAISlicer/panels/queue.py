"""The section of several volumes: segmented one after the other, or as the other series of a study."""

import qt
import slicer
from slicer.i18n import tr as _

from ..scene import other_series, volumes

NAME_COLUMN, STATE_COLUMN = 0, 1


class QueuePanel:
    """Behaviour of the section, on widgets that Qt Designer laid out.

    :param ui: the widgets, as `slicer.util.childWidgetVariables` gives them.
    :param parameters: `Parameters`.
    :param segmenting: `Segmenting`.
    :param messages: `Messages`.
    """

    def __init__(self, ui, parameters, segmenting, messages):
        self.ui = ui
        self.parameters = parameters
        self.segmenting = segmenting
        self.queue = segmenting.queue
        self.messages = messages
        ui.queueCollapsibleButton.connect("contentsCollapsed(bool)", self.update)
        ui.queueButton.connect("clicked(bool)", self._onQueue)
        ui.seriesButton.connect("clicked(bool)", self._onSeries)
        self.queue.changedCallbacks.append(self.update)

    def update(self):
        """Bring the section in line with the scene and the queue."""
        idle = not self.segmenting.isRunning
        self.ui.queueButton.enabled = idle
        self.ui.seriesButton.enabled = idle and self.parameters.outputVolume is not None
        if not self.ui.queueCollapsibleButton.collapsed:
            self._fillTable()

    def _fillTable(self):
        """Volumes of the scene with their state; ticks are kept."""
        table = self.ui.queueTable
        ticked = set(self._tickedVolumeIds())
        found = volumes.images()
        table.setRowCount(len(found))
        for row, node in enumerate(found):
            item = qt.QTableWidgetItem(node.GetName())
            item.setFlags(qt.Qt.ItemIsUserCheckable | qt.Qt.ItemIsEnabled)
            item.setCheckState(qt.Qt.Checked if node.GetID() in ticked else qt.Qt.Unchecked)
            item.setData(qt.Qt.UserRole, node.GetID())
            table.setItem(row, NAME_COLUMN, item)
            state = qt.QTableWidgetItem(self.queue.states.get(node.GetID(), ""))
            state.setToolTip(self.queue.states.get(node.GetID(), ""))
            table.setItem(row, STATE_COLUMN, state)
        table.resizeColumnToContents(NAME_COLUMN)

    def _tickedVolumeIds(self):
        table = self.ui.queueTable
        items = [table.item(row, NAME_COLUMN) for row in range(table.rowCount)]
        return [item.data(qt.Qt.UserRole) for item in items if item and item.checkState() == qt.Qt.Checked]

    def _onQueue(self):
        nodes = [slicer.mrmlScene.GetNodeByID(volumeId) for volumeId in self._tickedVolumeIds()]
        nodes = [node for node in nodes if node is not None]
        if not nodes:
            slicer.util.infoDisplay(_("Tick the volumes that are to be segmented."), windowTitle=_("SpineSegAI"))
            return
        self.segmenting.start(nodes)

    def _onSeries(self):
        source = self.parameters.outputVolume
        report = other_series.applyToOtherSeries(self.parameters.outputSegmentation, source)
        if not report:
            slicer.util.infoDisplay(
                _("“{volume}” has no other series in its study (see the module “Data”).").format(
                    volume=source.GetName()
                ),
                windowTitle=_("SpineSegAI"),
            )
            return
        for volumeNode, _segmentationNode, state in report:
            self.queue.states[volumeNode.GetID()] = state
        self.ui.queueCollapsibleButton.collapsed = False
        self.update()
        made = sum(1 for entry in report if entry[1] is not None)
        self.messages.say(_("Carried over to {count} of {all} other series.").format(count=made, all=len(report)))
