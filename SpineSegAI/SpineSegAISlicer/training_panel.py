"""The Train section: choose, start, and watch training runs.

A run is a process of its own that writes to a folder; the panel looks into that folder now and then and knows nothing
else of it. So runs go on when Slicer is closed, and those that were started elsewhere can be watched as well.
"""

import re
import shutil
import time
from html import escape
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from SpineSegAILib.anatomy import SCHEMES
from SpineSegAILib.checkpoints import list_checkpoints
from SpineSegAILib.errors import SpineSegAIError
from SpineSegAILib.methods.catalog import DEFAULT_METHOD, METHODS
from SpineSegAILib.resources import user_folder

from . import dependencies
from .training_plots import CurvePlots

POLL_MILLISECONDS = 2000
DEVICES = (
    ("auto", _("Automatic")),
    ("cpu", "CPU"),
    ("cuda", _("NVIDIA GPU (CUDA)")),
    ("cuda:all", _("All NVIDIA GPUs")),
)
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


def runsFolder():
    """Where runs that are started here write to."""
    return user_folder() / "Runs"


class TrainingPanel:
    """Behaviour of the Train section, on widgets that Qt Designer laid out.

    :param ui: the widgets, as `slicer.util.childWidgetVariables` gives them.
    :param dataset: function that gives the folder of the training set that the reader works on, empty if there is none.
    :param onCheckpoint: called when a run has left a new checkpoint among the user's.
    """

    def __init__(self, ui, dataset=lambda: "", onCheckpoint=lambda: None):
        self.ui = ui
        self.dataset = dataset
        self.onCheckpoint = onCheckpoint
        self.plots = CurvePlots()
        self.watched = []  # folders of runs elsewhere
        self._reports = {}  # folder → (when its files were changed last, report)
        self._order = []  # folders as in the table
        self._selected = None
        self._reader = None
        self._pictures = {}
        self._launcher = None
        self._updating = False
        self._suggested = ""
        self._problems = {}  # path of a manifest → (when it was changed last, what is wrong with it)

        self._fillMethods()
        for scheme in SCHEMES.values():
            ui.trainSchemeComboBox.addItem(scheme.title, scheme.name)
        for device, title in DEVICES:
            ui.trainDeviceComboBox.addItem(title, device)

        for field in (ui.trainDatasetPathLineEdit, ui.trainAlsoPathLineEdit):
            field.connect("currentPathChanged(QString)", self.updateButtons)
            field.connect("validInputChanged(bool)", self.updateButtons)  # nothing else is said when it is cleared
        ui.trainStartComboBox.connect("currentIndexChanged(int)", self._onStartCheckpoint)
        ui.trainMethodComboBox.connect("currentIndexChanged(int)", self._onMethod)
        ui.trainNameLineEdit.connect("textChanged(QString)", self.updateButtons)
        ui.trainStartButton.connect("clicked(bool)", self.onStart)
        ui.runsTable.connect("itemSelectionChanged()", self._onSelected)
        ui.runStopButton.connect("clicked(bool)", self.onStop)
        ui.runResumeButton.connect("clicked(bool)", self.onResume)
        ui.runFolderButton.connect("clicked(bool)", self.onOpenFolder)
        ui.runWatchButton.connect("clicked(bool)", self.onWatch)
        ui.runPlotButton.connect("toggled(bool)", self.onPlot)
        ui.trainCollapsibleButton.connect("contentsCollapsed(bool)", self.onOpened)
        if not ui.trainCollapsibleButton.collapsed:  # else when it is opened: all this takes a while
            self.refreshCheckpoints()
            self._onMethod()
        self._onStartCheckpoint()
        self._showRun()

        self._timer = qt.QTimer()
        self._timer.setInterval(POLL_MILLISECONDS)
        self._timer.connect("timeout()", self.poll)
        self._timer.start()

    def cleanup(self):
        """The panel goes away; runs go on."""
        self._timer.stop()

    # --- choices -----------------------------------------------------------------------------------------------------

    def _fillMethods(self):
        combo = self.ui.trainMethodComboBox
        for info in METHODS.values():
            combo.addItem(info.title, info.id)
            combo.setItemData(combo.count - 1, f"<b>{info.title}</b><br>{info.summary}", qt.Qt.ToolTipRole)
        combo.setCurrentIndex(combo.findData(DEFAULT_METHOD))

    def refreshCheckpoints(self):
        """Look again for checkpoints to start from; the default one is preselected."""
        combo = self.ui.trainStartComboBox
        before = combo.currentData if combo.count else None
        self._updating = True
        combo.clear()
        for info in list_checkpoints():
            combo.addItem(info.title, str(info.path))
            combo.setItemData(combo.count - 1, str(info.path), qt.Qt.ToolTipRole)
        combo.addItem(_("Nothing (random weights)"), "")
        index = combo.findData(before) if before is not None else 0
        combo.setCurrentIndex(max(index, 0))
        self._updating = False
        self._onStartCheckpoint()

    def _onStartCheckpoint(self):
        """A checkpoint brings method, preset and structures; only without one they are chosen."""
        if self._updating:
            return
        ui, begins = self.ui, not self.ui.trainStartComboBox.currentData
        for name in ("trainMethod", "trainPreset", "trainScheme"):
            getattr(ui, name + "Label").visible = begins
            getattr(ui, name + "ComboBox").visible = begins
        ui.trainAddLabel.visible = ui.trainAddLineEdit.visible = not begins
        if ui.trainNameLineEdit.text in ("", self._suggested):  # the reader has not chosen one
            self._suggestName()
        self.updateButtons()

    def _onMethod(self):
        """The presets of the method, if what they are made of is installed."""
        combo = self.ui.trainPresetComboBox
        combo.clear()
        if self.launcher() is not None:
            method = METHODS[self.ui.trainMethodComboBox.currentData]
            for name in method.config_class().presets(method.id):
                combo.addItem(name, name)
            combo.setCurrentIndex(max(combo.findData("small"), 0))
        self.updateButtons()

    def suggestedName(self):
        """A name that no run has."""
        path = self.ui.trainStartComboBox.currentData
        stem = f"{Path(path).stem}-tuned" if path else self.ui.trainMethodComboBox.currentData
        name, number = stem, 1
        while (runsFolder() / name).exists():
            number += 1
            name = f"{stem}-{number}"
        return name

    def _suggestName(self):
        self._suggested = self.ui.trainNameLineEdit.text = self.suggestedName()

    def arguments(self):
        """What `spinesegai train` is told."""
        ui = self.ui
        words = [ui.trainDatasetPathLineEdit.currentPath]
        words += ["--steps", str(ui.trainStepsSpinBox.value), "--phantoms", str(ui.trainPhantomsSpinBox.value)]
        if ui.trainAlsoPathLineEdit.currentPath:
            words += ["--also", ui.trainAlsoPathLineEdit.currentPath]
        if ui.trainHoursSpinBox.value > 0:
            words += ["--hours", str(ui.trainHoursSpinBox.value)]
        if ui.trainStartComboBox.currentData:
            words += ["--from", ui.trainStartComboBox.currentData]
            for name in ui.trainAddLineEdit.text.split(","):
                if name.strip():
                    words += ["--add-structure", name.strip()]
        else:
            words += ["--method", ui.trainMethodComboBox.currentData]
            words += ["--set", "method.scheme=" + ui.trainSchemeComboBox.currentData]
            if ui.trainPresetComboBox.currentData:
                words += ["--preset", ui.trainPresetComboBox.currentData]
        return words

    def reasonsAgainst(self):
        """Every reason why training cannot start; empty if it can."""
        reasons = []
        path, name = self.ui.trainDatasetPathLineEdit.currentPath, self.ui.trainNameLineEdit.text.strip()
        if not path:
            reasons.append(_("No data set is chosen."))
        else:
            reasons += self._datasetProblems(path)
        also = self.ui.trainAlsoPathLineEdit.currentPath
        if also:
            reasons += self._datasetProblems(also)
        if not name:
            reasons.append(_("The checkpoint that results has no name."))
        elif not re.fullmatch(r"[\w][\w .-]*", name):
            reasons.append(_("“{name}” cannot be the name of a folder: use letters, digits and “-”.").format(name=name))
        elif (runsFolder() / name / "config.json").exists():
            reasons.append(_("There is a run called “{name}” already: choose another name.").format(name=name))
        return reasons

    def _datasetProblems(self, path):
        """What is wrong with a manifest; looked at again when the file has changed."""
        from SpineSegAILib.datasets.manifest import read_manifest

        changed = _modified(Path(path))
        if self._problems.get(path, (None,))[0] != changed:
            try:
                read_manifest(path).cases("training")
                self._problems[path] = (changed, [])
            except SpineSegAIError as error:
                self._problems[path] = (changed, [str(error)])
        return self._problems[path][1]

    def devices(self):
        """What to compute on."""
        kind, _colon, every = self.ui.trainDeviceComboBox.currentData.partition(":")
        return self.launcher().Devices(kind, every=bool(every))

    def updateButtons(self):
        """Enable what can be done now; a disabled button says in its tooltip why."""
        button, reasons = self.ui.trainStartButton, self.reasonsAgainst()
        button.enabled = not reasons
        button.toolTip = (
            "<ul>" + "".join(f"<li>{escape(reason)}</li>" for reason in reasons) + "</ul>"
            if reasons
            else _("Train in a process of its own, which goes on when Slicer is closed.")
        )
        report = self.report()
        self.ui.runStopButton.enabled = report is not None and report.state.is_active
        self.ui.runResumeButton.enabled = report is not None and report.can_resume
        self.ui.runResumeButton.toolTip = (
            report.obstacle if report is not None and report.obstacle else _("Go on where the run was saved last.")
        )
        self.ui.runFolderButton.enabled = self.ui.runPlotButton.enabled = report is not None

    # --- what the buttons do -----------------------------------------------------------------------------------------

    def launcher(self):
        """The library's launcher; None while the packages that it needs are not installed."""
        if self._launcher is None and not dependencies.missingPackages():
            from SpineSegAILib.training import launcher

            self._launcher = launcher
        return self._launcher

    def onStart(self):
        """Start a run with these choices."""
        folder = runsFolder() / self.ui.trainNameLineEdit.text.strip()
        if self._try(lambda: self.launcher().start(folder, self.arguments(), devices=self.devices(), **self._python())):
            self._select(folder)
            self._suggestName()

    def onResume(self):
        """Go on with the selected run."""
        folder = self._selected
        if self._try(lambda: self.launcher().resume(folder, devices=self.devices(), **self._python())):
            self.poll()

    def onStop(self):
        """Ask the selected run to save and end."""
        if self._try(lambda: self.launcher().stop(self._selected), packages=()):
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
        if self._try(lambda: self.launcher().status(folder), packages=()):
            if folder not in self.watched and folder.parent != runsFolder():
                self.watched.append(folder)
            self._select(folder)

    def onPlot(self, shown):
        """Show the curves of the selected run in Slicer's plot views, or take them away."""
        if shown and self._reader is not None:
            self.plots.show(self.report().name, self._reader.events())
        else:
            self.plots.remove()

    def _try(self, action, packages=dependencies.TRAINING_PACKAGES):
        """Do what needs packages; False if it failed, which the reader has been told."""
        try:
            dependencies.ensure(packages)
            action()
        except (SpineSegAIError, dependencies.NotInstalled) as error:
            slicer.util.errorDisplay(str(error), windowTitle=_("SpineSegAI"))
            return False
        return True

    @staticmethod
    def _python():
        """Slicer's Python, and what it must not take over from Slicer."""
        program = shutil.which("PythonSlicer")
        if program is None:
            raise SpineSegAIError(
                _("Slicer's Python (PythonSlicer) is not found."), _("Reinstall Slicer, or start it by its launcher.")
            )
        return {"python": program, "environment": {"ITK_AUTOLOAD_PATH": ""}}

    # --- watching ----------------------------------------------------------------------------------------------------

    def report(self):
        """How the selected run is doing; None if none is selected."""
        held = self._reports.get(self._selected)
        return held[1] if held else None

    def onOpened(self, collapsed=False):
        """The section was folded or unfolded."""
        if not collapsed:
            manifest = Path(self.dataset(), "dataset.json")
            if self.dataset() and manifest.is_file() and not self.ui.trainDatasetPathLineEdit.currentPath:
                self.ui.trainDatasetPathLineEdit.currentPath = str(manifest)
            self.refreshCheckpoints()
            self._onMethod()
            self.poll()

    def poll(self):
        """Look at the runs. Costs next to nothing when nothing runs and nobody looks."""
        folded = self.ui.trainCollapsibleButton.collapsed
        if self.launcher() is None or (folded and not self._active()):
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
                report = self.launcher().status(folder, events)
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
                made.append(self.launcher().offer(folder))
            except SpineSegAIError as error:
                slicer.util.errorDisplay(str(error), windowTitle=_("SpineSegAI"))
        if any(made):
            self.refreshCheckpoints()
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
        for column in range(3):
            table.resizeColumnToContents(column)
        self._updating = False

    def _select(self, folder):
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

            self._reader = self.launcher().EventReader(RunDirectory(folder))
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
        if report is None:
            return
        ui.runStatusLabel.text = _describe(report)
        ui.runStatusLabel.setStyleSheet(f"color: {TROUBLE_COLOR};" if report.state.value in TROUBLE else "")
        if not ui.runLogCollapsibleButton.collapsed:
            tail = self.launcher().log_tail(report.folder)
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


def _lastChange(folder):
    """When something that decides on the state of a run was written last."""
    names = ("status.json", "launch.json", "lock.json", "config.json", "best.safetensors", "last.safetensors")
    return tuple(_modified(folder / name) for name in names)


def _begun(folder):
    return max(_modified(folder / "launch.json"), _modified(folder / "config.json"))


def _modified(path):
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


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
