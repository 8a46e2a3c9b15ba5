"""The Train section: what to train on, from where, for how long; and the start."""

import re
from pathlib import Path

import qt
from slicer.i18n import tr as _

from SpineSegAILib.anatomy import SCHEMES
from SpineSegAILib.checkpoints import list_checkpoints
from SpineSegAILib.errors import SpineSegAIError
from SpineSegAILib.methods.catalog import DEFAULT_METHOD, METHODS

from ..processes.training import interpreter, launcher, modified, runsFolder
from .choices import modelTitle
from .runs import RunList, attempt
from .segment import listed

DEVICES = (
    ("auto", _("Automatic")),
    ("cpu", "CPU"),
    ("cuda", _("NVIDIA GPU (CUDA)")),
    ("cuda:all", _("All NVIDIA GPUs")),
)


class TrainingPanel:
    """Behavior of the Train section, on widgets that Qt Designer laid out.

    :param ui: the widgets, as `slicer.util.childWidgetVariables` gives them.
    :param dataset: function that gives the folder of the training set that the reader works on, empty if there is none.
    :param onCheckpoint: called when a run has left a new checkpoint among the user's.
    """

    def __init__(self, ui, dataset=lambda: "", onCheckpoint=lambda: None):
        self.ui = ui
        self.dataset = dataset
        self._onCheckpoint = onCheckpoint
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
        ui.trainCollapsibleButton.connect("contentsCollapsed(bool)", self.onOpened)
        self.runs = RunList(ui, self.devices, self._onNewCheckpoint, self.updateButtons)
        if not ui.trainCollapsibleButton.collapsed:  # else when it is opened: all this takes a while
            self.refreshCheckpoints()
            self._onMethod()
        self._onStartCheckpoint()

    def cleanup(self):
        """The panel goes away; runs continue."""
        self.runs.cleanup()

    # --- choices -----------------------------------------------------------------------------------------------------

    def _fillMethods(self):
        combo = self.ui.trainMethodComboBox
        for info in (info for info in METHODS.values() if info.offered):
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
            if info.method in METHODS and METHODS[info.method].group == "correction":
                continue  # here one learns to segment
            combo.addItem(modelTitle(info), str(info.path))
            combo.setItemData(combo.count - 1, f"<b>{info.title}</b><br>{info.path}", qt.Qt.ToolTipRole)
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
        if launcher() is not None:
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
        """What `spinesegai train` is given."""
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
            reasons.append(_("No dataset is chosen."))
        else:
            reasons += self._datasetProblems(path)
        also = self.ui.trainAlsoPathLineEdit.currentPath
        if also:
            reasons += self._datasetProblems(also)
        if not name:
            reasons.append(_("The resulting model has no name."))
        elif not re.fullmatch(r"[\w][\w .-]*", name):
            reasons.append(_("“{name}” cannot be the name of a folder: use letters, digits and “-”.").format(name=name))
        elif (runsFolder() / name / "config.json").exists():
            reasons.append(_("There is a run called “{name}” already: choose another name.").format(name=name))
        return reasons

    def _datasetProblems(self, path):
        """What is wrong with a manifest; looked at again when the file has changed."""
        from SpineSegAILib.datasets.manifest import read_manifest

        changed = modified(Path(path))
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
        return launcher().Devices(kind, every=bool(every))

    def updateButtons(self):
        """Enable what can be done now; a disabled button says in its tooltip why."""
        button, reasons = self.ui.trainStartButton, self.reasonsAgainst()
        button.enabled = not reasons
        button.toolTip = (
            listed(reasons) if reasons else _("Train in a separate process, which continues when Slicer is closed.")
        )

    def onStart(self):
        """Start a run with these choices."""
        folder = runsFolder() / self.ui.trainNameLineEdit.text.strip()

        def begin():
            if not self.ui.trainPresetComboBox.count:  # the packages that tell presets were installed just now
                self._onMethod()
            launcher().start(folder, self.arguments(), devices=self.devices(), **interpreter())

        if attempt(begin):
            self.runs.select(folder)
            self._suggestName()

    def onOpened(self, collapsed=False):
        """The section was folded or unfolded."""
        if not collapsed:
            manifest = Path(self.dataset(), "dataset.json")
            if self.dataset() and manifest.is_file() and not self.ui.trainDatasetPathLineEdit.currentPath:
                self.ui.trainDatasetPathLineEdit.currentPath = str(manifest)
            self.refreshCheckpoints()
            self._onMethod()
            self.runs.poll()

    def _onNewCheckpoint(self):
        self.refreshCheckpoints()
        self._onCheckpoint()
