"""The list of training runs: watched, stopped, resumed.

A run is a process of its own that writes to a folder; the panel looks into that folder now and then and knows nothing
else of it. So runs continue when Slicer is closed, and those that were started elsewhere can be watched as well.
"""

import time
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from SpineSegAILib.errors import SpineSegAIError

from ..processes import dependencies
from ..processes.training import interpreter, launcher, modified, runsFolder
from .training_plots import CurvePlots

POLL_MILLISECONDS = 2000
STATES = {
    "starting": _("starting"),
    "preparing": _("reading data"),
    "running": _("running"),
    "validating": _("validating"),
    "stopping": _("stopping"),
    "stalled": _("stalled"),
    "finished": _("finished"),
    "stopped": _("stopped"),
    "failed": _("failed"),
    "died": _("died"),
}
"""What is shown for each state of a run."""
TROUBLE = ("stalled", "failed", "died")
TROUBLE_COLOR = "#c62828"
PICTURE_WIDTH = 640
"""Pictures are shown no wider than this (pixels)."""


class RunList:
    """Behavior of the table and of what is shown of the selected run, on widgets that Qt Designer laid out.

    :param ui: the widgets, as `slicer.util.childWidgetVariables` gives them.
    :param devices: function that gives the `launcher.Devices` to resume on.
    :param onCheckpoint: called when a run has left a new checkpoint among the user's.
    :param onShown: called when what is shown is up to date, every now and then.
    """

    def __init__(self, ui, devices, onCheckpoint, onShown):
        self.ui = ui
        self.devices = devices
        self.onCheckpoint = onCheckpoint
        self.onShown = onShown
        self.plots = CurvePlots()
        self.watched = []  # folders of runs elsewhere
        self._reports = {}  # folder → (when its files were changed last, report)
        self._order = []  # folders as in the table
        self._selected = None
        self._reader = None
        self._pictures = {}
        self._updating = False
        header = ui.runsTable.horizontalHeader()
        header.setSectionResizeMode(0, qt.QHeaderView.Stretch)  # the name; its tooltip has it whole
        for column in (1, 2, 3):
            header.setSectionResizeMode(column, qt.QHeaderView.ResizeToContents)
        ui.runsTable.connect("itemSelectionChanged()", self._onSelected)
        ui.runStopButton.connect("clicked(bool)", self.onStop)
        ui.runResumeButton.connect("clicked(bool)", self.onResume)
        ui.runFolderButton.connect("clicked(bool)", self.onOpenFolder)
        ui.runWatchButton.connect("clicked(bool)", self.onWatch)
        ui.runPlotButton.connect("toggled(bool)", self.onPlot)
        self._showRun()
        self._timer = qt.QTimer()
        self._timer.setInterval(POLL_MILLISECONDS)
        self._timer.connect("timeout()", self.poll)
        self._timer.start()

    def cleanup(self):
        """The panel goes away; runs continue."""
        self._timer.stop()

    # --- what the buttons do -----------------------------------------------------------------------------------------

    def onResume(self):
        """Go on with the selected run."""
        folder = self._selected
        if attempt(lambda: launcher().resume(folder, devices=self.devices(), **interpreter())):
            self.poll()

    def onStop(self):
        """Ask the selected run to save and end."""
        if attempt(lambda: launcher().stop(self._selected), packages=()):
            self.poll()

    def onOpenFolder(self):
        """Show the files of the selected run."""
        qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(self._selected)))

    def onWatch(self):
        """Choose a run that was started elsewhere."""
        folder = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), _("Folder of the run"), "")
        if folder:
            self.watch(folder)

    def watch(self, folder):
        """Add a run that was started elsewhere to the list."""
        folder = Path(folder)
        if attempt(lambda: launcher().status(folder), packages=()):
            if folder not in self.watched and folder.parent != runsFolder():
                self.watched.append(folder)
            self.select(folder)

    def onPlot(self, shown):
        """Show the curves of the selected run in Slicer's plot views, or take them away."""
        if shown and self._reader is not None:
            self.plots.show(self.report().name, self._reader.events())
        else:
            self.plots.remove()

    # --- watching ----------------------------------------------------------------------------------------------------

    def report(self):
        """How the selected run is doing; None if none is selected."""
        held = self._reports.get(self._selected)
        return held[1] if held else None

    def updateButtons(self):
        """Enable what can be done with the selected run."""
        report = self.report()
        self.ui.runStopButton.enabled = report is not None and report.state.is_active
        self.ui.runResumeButton.enabled = report is not None and report.can_resume
        self.ui.runResumeButton.toolTip = (
            report.obstacle if report is not None and report.obstacle else _("Continue where the run was saved last.")
        )
        self.ui.runFolderButton.enabled = self.ui.runPlotButton.enabled = report is not None

    def poll(self):
        """Look at the runs. Costs next to nothing when nothing runs and nobody looks."""
        folded = self.ui.trainCollapsibleButton.collapsed
        if launcher() is None or (folded and not self._active()):
            return
        ended = self._readReports()
        if ended:
            self._offerCheckpoints(ended)
        if not folded:
            self._fillTable()
            self._showRun()

    def _active(self):
        return [folder for folder, (_stamp, report) in self._reports.items() if report.state.is_active]

    def _readReports(self):
        """Read what may have changed; returns the runs that have ended and may have left a checkpoint."""
        root = runsFolder()
        found = [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
        reports, ended = {}, []
        for folder in [*found, *self.watched]:
            stamp = _lastChange(folder)
            held = self._reports.get(folder)
            if held is not None and held[0] == stamp and not held[1].state.is_active:
                reports[folder] = held
                continue
            try:
                events = self._reader.events() if folder == self._selected and self._reader else None
                report = launcher().status(folder, events)
            except SpineSegAIError:
                continue  # not a run, or not any more
            reports[folder] = (stamp, report)
            if not report.state.is_active:
                ended.append(folder)
        self._reports = reports
        self._order = sorted(reports, key=_begun, reverse=True)
        if self._selected not in reports:
            self._choose(self._order[0] if self._order else None)
        return ended

    def _offerCheckpoints(self, folders):
        """New checkpoints appear in the Segment section at once."""
        made = []
        for folder in folders:
            try:
                made.append(launcher().offer(folder))
            except SpineSegAIError as error:
                slicer.util.errorDisplay(str(error), windowTitle=_("SpineSegAI"))
        if any(made):
            self.onCheckpoint()

    def _fillTable(self):
        table = self.ui.runsTable
        self._updating = True
        table.setRowCount(len(self._order))
        for row, folder in enumerate(self._order):
            report = self._reports[folder][1]
            progress = f"{100 * report.progress:.0f} %"
            dice = report.scores.get("level_dice")
            texts = (report.name, STATES[report.state.value], progress, "" if dice is None else f"{dice:.3f}")
            for column, text in enumerate(texts):
                item = table.item(row, column)
                if item is None:
                    item = qt.QTableWidgetItem()
                    table.setItem(row, column, item)
                if item.text() != text:
                    item.setText(text)
            table.item(row, 0).setToolTip(str(folder))
            if folder == self._selected and table.currentRow() != row:
                table.selectRow(row)
        self._updating = False

    def select(self, folder):
        """Show a run."""
        self._choose(folder)
        self.poll()

    def _choose(self, folder):
        if folder == self._selected:
            return
        self._selected = folder
        self._reader = None
        self._pictures.clear()
        if folder is not None:
            from SpineSegAILib.training.run import RunDirectory

            self._reader = launcher().EventReader(RunDirectory(folder))
        if self.ui.runPlotButton.checked:
            self.ui.runPlotButton.checked = False

    def _onSelected(self):
        row = self.ui.runsTable.currentRow()
        if not self._updating and 0 <= row < len(self._order):
            self._choose(self._order[row])
            self._showRun()

    def _showRun(self):
        """The selected run: a line or two, pictures, the end of its log."""
        ui, report = self.ui, self.report()
        for widget in (ui.runStatusLabel, ui.runLogCollapsibleButton):
            widget.visible = report is not None
        for widget in (ui.runsTable, ui.runStopButton, ui.runResumeButton, ui.runFolderButton, ui.runPlotButton):
            widget.visible = bool(self._order)
        self._showPicture(ui.runCurvesLabel, "curves.png")
        self._showPicture(ui.runPreviewLabel, "preview.png")
        self.updateButtons()
        self.onShown()
        if report is None:
            return
        ui.runStatusLabel.text = _describe(report)
        ui.runStatusLabel.setStyleSheet(f"color: {TROUBLE_COLOR};" if report.state.value in TROUBLE else "")
        if not ui.runLogCollapsibleButton.collapsed:
            tail = launcher().log_tail(report.folder)
            if ui.runLogText.plainText != tail:
                ui.runLogText.setPlainText(tail)
                ui.runLogText.verticalScrollBar().setValue(ui.runLogText.verticalScrollBar().maximum)
        if self.plots.isShown:
            self.plots.update(self._reader.events())

    def _showPicture(self, label, name):
        path = self._selected / name if self._selected is not None else None
        label.visible = path is not None and path.is_file()
        if not label.visible and (path is None or not path.is_file()):
            return
        width = min(max(self.ui.trainCollapsibleButton.width - 24, 200), PICTURE_WIDTH)
        stamp = (path, path.stat().st_mtime_ns, width)
        if self._pictures.get(name) == stamp:
            return
        pixmap = qt.QPixmap(str(path))
        if not pixmap.isNull():
            label.setPixmap(pixmap.scaledToWidth(width, qt.Qt.SmoothTransformation))
            self._pictures[name] = stamp


def attempt(action, packages=dependencies.TRAINING_PACKAGES):
    """Do what needs packages.

    :returns: False if it failed, which the reader has been told.
    """
    try:
        dependencies.ensure(packages)
        action()
    except (SpineSegAIError, dependencies.NotInstalled) as error:
        slicer.util.errorDisplay(str(error), windowTitle=_("SpineSegAI"))
        return False
    return True


def _lastChange(folder):
    """When something that decides on the state of a run was written last."""
    names = ("status.json", "launch.json", "lock.json", "config.json", "best.safetensors", "last.safetensors")
    return tuple(modified(folder / name) for name in names)


def _begun(folder):
    return max(modified(folder / "launch.json"), modified(folder / "config.json"))


def _describe(report):
    """State, progress and speed in a line; the reason of trouble in the next."""
    parts = [STATES[report.state.value]]
    if report.steps:
        parts.append(_("step {step:,} of {steps:,}").format(step=report.step, steps=report.steps))
    if report.steps_per_second:
        parts.append(_("{speed:.2f} steps/s").format(speed=report.steps_per_second))
    if report.seconds_left is not None:
        parts.append(_("{time} left").format(time=_duration(report.seconds_left)))
    if report.loss is not None:
        parts.append(_("loss {loss:.3f}").format(loss=report.loss))
    if "level_dice" in report.scores:
        parts.append(_("Dice {dice:.3f}").format(dice=report.scores["level_dice"]))
    line = " · ".join(parts)
    lines = [line[:1].upper() + line[1:], report.message]
    if report.obstacle and report.state.value in TROUBLE:
        lines.append(_("It cannot be resumed: {reason}").format(reason=report.obstacle))
    return "\n".join(line for line in lines if line)


def _duration(seconds):
    if seconds < 90:
        return _("{seconds:.0f} s").format(seconds=seconds)
    if seconds < 5400:
        return _("{minutes:.0f} min").format(minutes=seconds / 60)
    return time.strftime("%H:%M h", time.gmtime(seconds)) if seconds < 86400 else f"{seconds / 86400:.1f} d"
