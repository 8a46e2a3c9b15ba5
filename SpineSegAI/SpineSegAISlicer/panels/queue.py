"""The section of several volumes: segmented one after the other, or as the other series of a study."""

import qt
import slicer
from slicer.i18n import tr as _

from SpineSegAILib.errors import SpineSegAIError

from ..processes import dependencies
from ..processes.failure import Failure
from ..scene import other_series, volumes

NAME_COLUMN, STATE_COLUMN = 0, 1


class QueuePanel:
    """Behavior of the section, on widgets that Qt Designer laid out.

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
        header = ui.queueTable.horizontalHeader()
        header.setSectionResizeMode(NAME_COLUMN, qt.QHeaderView.Stretch)
        header.setSectionResizeMode(STATE_COLUMN, qt.QHeaderView.ResizeToContents)
        ui.queueCollapsibleButton.connect("contentsCollapsed(bool)", self.update)
        ui.queueTable.connect("cellChanged(int,int)", self._updateButtons)
        ui.tickAllButton.connect("clicked(bool)", self._onTickAll)
        ui.queueButton.connect("clicked(bool)", self._onQueue)
        ui.seriesButton.connect("clicked(bool)", self._onSeries)
        self.queue.changedCallbacks.append(self.update)

    def update(self):
        """Bring the section in line with the scene and the queue."""
        if not self.ui.queueCollapsibleButton.collapsed:
            self._fillTable()
        self._updateButtons()

    def _updateButtons(self):
        ui, idle, some = self.ui, not self.segmenting.isRunning, self.ui.queueTable.rowCount > 0
        ui.queueEmptyLabel.visible = not some
        for widget in (ui.queueTable, ui.tickAllButton, ui.queueButton):
            widget.visible = some
        ui.tickAllButton.enabled = idle
        ui.queueButton.enabled = idle and bool(self._tickedVolumeIds())
        ui.seriesButton.enabled = idle and self.parameters.outputVolume is not None

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

    def _tickedVolumeIds(self):
        table = self.ui.queueTable
        items = [table.item(row, NAME_COLUMN) for row in range(table.rowCount)]
        return [item.data(qt.Qt.UserRole) for item in items if item and item.checkState() == qt.Qt.Checked]

    def _onQueue(self):
        nodes = [slicer.mrmlScene.GetNodeByID(volumeId) for volumeId in self._tickedVolumeIds()]
        self.segmenting.start([node for node in nodes if node is not None])

    def _onTickAll(self):
        table = self.ui.queueTable
        items = [table.item(row, NAME_COLUMN) for row in range(table.rowCount)]
        all_ = len(self._tickedVolumeIds()) == len(items)
        for item in items:
            item.setCheckState(qt.Qt.Unchecked if all_ else qt.Qt.Checked)

    def _onSeries(self):
        if not dependencies.ready():
            return
        source = self.parameters.outputVolume
        if source is None:  # removed while packages were installed
            return
        try:
            report = other_series.applyToOtherSeries(self.parameters.outputSegmentation, source)
        except SpineSegAIError as error:
            self.messages.show(Failure.of(error))
            return
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
        self.messages.say(_("Copied to {count} of {all} other series.").format(count=made, all=len(report)))
