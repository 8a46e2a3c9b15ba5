"""The Training set section: cases in, what their segments are, splits, and which case to annotate next.

Reading scenes and ranking run in processes of their own (`command_process`); the panel shows what they found, asks, and
edits the manifest. Nothing is added before the reader has seen what every segment is taken as.
"""

import json
import shutil
import tempfile
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from SpineSegAILib import anatomy
from SpineSegAILib.errors import SpineSegAIError

from . import dependencies
from .command_process import CommandProcess
from .worker_client import Failure

SETTING = "SpineSegAI/TrainingSet"
"""Slicer remembers the last folder under this name."""

SEGMENT, TARGET, REASON, COUNT = range(4)
CASE, SPLIT, STRUCTURES, NOTES, SPACING, PATIENT = range(6)
ROW_PIXELS = 24

SPLITS = (("training", _("training")), ("validation", _("validation")), ("test", _("test")))
EXTENTS = (("", _("not said")), ("body", _("vertebral bodies")), ("whole", _("whole vertebrae")))
REASONS = {
    "table": _("said by you"),
    "tag": _("made by SpineSegAI"),
    "terminology": _("terminology"),
    "name": _("name"),
    "": _("not understood"),
}
UNKNOWN_STYLE = "background: #fff3cd; color: #664d03;"
IGNORE, CUSTOM = "ignore", "custom:"


class DatasetPanel:
    """Behaviour of the section, on widgets that Qt Designer laid out.

    :param ui: the widgets, as `slicer.util.childWidgetVariables` gives them.
    :param checkpoint: function that gives the name or path of the checkpoint to rank with, empty if there is none.
    :param device: function that gives the device to rank on.
    """

    def __init__(self, ui, checkpoint, device):
        self.ui = ui
        self.parameterNode = None
        self._checkpoint, self._device = checkpoint, device
        self._process = None
        self._scenes = []  # what the reader is asked about
        self._found = None  # document of the listing
        self._choices = []  # (segment name, combo box, target that was found)
        self._asksExtent = False
        self._temporary = None
        self._rows = []

        for split, title in SPLITS:
            ui.splitComboBox.addItem(title, split)
        for extent, title in EXTENTS:
            ui.extentComboBox.addItem(title, extent)
        for table in (ui.casesTable, ui.mappingTable):
            table.wordWrap = False
            table.verticalHeader().setDefaultSectionSize(ROW_PIXELS)
        for widget in (ui.mappingGroupBox, ui.datasetProgressBar, ui.datasetCancelButton, ui.datasetStatusLabel):
            widget.visible = False
        folder = slicer.app.userSettings().value(SETTING)
        ui.datasetFolderLineEdit.text = folder or ""

        ui.datasetCollapsibleButton.connect("contentsCollapsed(bool)", self.refresh)
        ui.datasetFolderLineEdit.connect("textChanged(QString)", self._onFolder)
        ui.datasetFolderButton.connect("clicked(bool)", self._onChooseFolder)
        ui.addCaseButton.connect("clicked(bool)", self.addCurrentCase)
        ui.addScenesButton.connect("clicked(bool)", self._onAddScenes)
        ui.addSceneFolderButton.connect("clicked(bool)", self._onAddSceneFolder)
        ui.addImagesButton.connect("clicked(bool)", self._onAddImages)
        ui.mappingAddButton.connect("clicked(bool)", self._onConfirmed)
        ui.mappingCancelButton.connect("clicked(bool)", self._onRejected)
        ui.casesTable.connect("itemSelectionChanged()", self.updateButtons)
        ui.splitButton.connect("clicked(bool)", self._onSplit)
        ui.loadCaseButton.connect("clicked(bool)", self._onLoad)
        ui.removeCaseButton.connect("clicked(bool)", self._onRemove)
        ui.rankButton.connect("clicked(bool)", self._onRank)
        ui.datasetCancelButton.connect("clicked(bool)", self._onCancel)
        self.updateButtons()

    # --- state -------------------------------------------------------------------------------------------------------

    @property
    def path(self):
        """The training set's folder; empty if none is chosen."""
        return self.ui.datasetFolderLineEdit.text.strip()

    @property
    def isRunning(self):
        """True while scenes are read, cases are added or images are ranked."""
        return self._process is not None

    def setParameterNode(self, parameterNode):
        """Take the current case from these choices; None while a scene is closed."""
        self.parameterNode = parameterNode
        self.updateButtons()

    def updateButtons(self):
        """Enable what can be done now; the tooltip of what cannot be done says why."""
        ui, ready = self.ui, bool(self.path) and not self.isRunning and self._found is None
        parameters = self.parameterNode
        hasCase = parameters is not None and parameters.inputVolume is not None
        for button in (ui.addScenesButton, ui.addSceneFolderButton, ui.addImagesButton):
            button.enabled = ready
        ui.addCaseButton.enabled = ready and hasCase
        selected = [self._rows[n] for n in self._selected()]
        labelled = bool(selected) and all(row.split != "unlabelled" for row in selected)
        ui.splitButton.enabled = ui.splitComboBox.enabled = ready and labelled
        ui.removeCaseButton.enabled = ready and bool(selected)
        ui.loadCaseButton.enabled = ready and len(selected) == 1
        waiting = [row for row in self._rows if row.split == "unlabelled"]
        ui.rankButton.enabled = ready and bool(waiting) and bool(self._checkpoint())
        ui.datasetFolderLineEdit.enabled = ui.datasetFolderButton.enabled = not self.isRunning and self._found is None
        ui.datasetProgressBar.visible = ui.datasetCancelButton.visible = self.isRunning
        ui.mappingGroupBox.visible = self._found is not None

    def refresh(self, *_collapsed):
        """Read the manifest again and show its cases. Nothing while the section is folded."""
        if self.ui.datasetCollapsibleButton.collapsed:
            return
        self._rows = []
        if self.path and dependencies.missingPackages():
            self.setStatus(_("Cases are shown once the Python packages are installed, as “Add” and “Segment” do."))
        elif self.path:
            try:
                self._rows = self._ordered(self._trainingSet().rows())
            except SpineSegAIError as error:
                self.setStatus(f"{error.message} {error.remedy}")
        self._fillCases()
        self.updateButtons()

    def _trainingSet(self):
        from SpineSegAILib.datasets.training_set import TrainingSet

        return TrainingSet(self.path)

    @staticmethod
    def _ordered(rows):
        """Splits as they are; of the cases to annotate, the least certain first."""
        waiting = [row for row in rows if row.split == "unlabelled"]
        waiting.sort(key=lambda row: -(row.scores.get("uncertainty") or -1.0))
        return [row for row in rows if row.split != "unlabelled"] + waiting

    def _fillCases(self):
        table = self.ui.casesTable
        table.clearSelection()
        table.setRowCount(len(self._rows))
        titles = dict(SPLITS)
        for number, row in enumerate(self._rows):
            notes, structures = list(row.warnings), row.structures
            if row.scores.get("uncertainty") is not None:
                structures = _("uncertainty {value:.2f}").format(value=row.scores["uncertainty"])
            if row.scores.get("reason"):
                notes.insert(0, row.scores["reason"])
            spacing = " × ".join(f"{s:.2f}".rstrip("0").rstrip(".") for s in row.spacing) if row.spacing else ""
            texts = {
                CASE: row.name,
                SPLIT: titles.get(row.split, _("to annotate")),
                STRUCTURES: structures,
                NOTES: " ".join(notes),
                SPACING: spacing,
                PATIENT: row.patient,
            }
            for column, text in texts.items():
                item = qt.QTableWidgetItem(text)
                item.setToolTip("\n".join(notes) if column == NOTES else text)
                item.setFlags(qt.Qt.ItemIsSelectable | qt.Qt.ItemIsEnabled)
                table.setItem(number, column, item)
        for column in (CASE, SPLIT, STRUCTURES, SPACING):
            table.resizeColumnToContents(column)
        table.setColumnWidth(NOTES, 160)

    def _selected(self):
        """Numbers of the selected rows."""
        table = self.ui.casesTable
        rows = range(min(table.rowCount, len(self._rows)))
        return [n for n in rows if table.item(n, CASE) is not None and table.item(n, CASE).isSelected()]

    def setStatus(self, text):
        """A sentence under the buttons."""
        self.ui.datasetStatusLabel.text = text
        self.ui.datasetStatusLabel.visible = bool(text)

    # --- folder ------------------------------------------------------------------------------------------------------

    def _onFolder(self, *_text):
        slicer.app.userSettings().setValue(SETTING, self.path)
        self.setStatus("")
        self.refresh()
        self.updateButtons()

    def _onChooseFolder(self):
        folder = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), _("Training set"), self.path)
        if folder:
            self.ui.datasetFolderLineEdit.text = folder

    # --- cases in ----------------------------------------------------------------------------------------------------

    def _onAddScenes(self):
        paths = _fileNames(_("Annotated scenes"), _("Scenes (*.mrb *.mrml)"))
        if paths:
            self.addScenes(paths)

    def _onAddSceneFolder(self):
        folder = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), _("Folder with scenes"))
        if folder:
            self.addScenes([folder])

    def _onAddImages(self):
        paths = _fileNames(_("Images to annotate"), _("Images (*.nii.gz *.nii *.nrrd *.mha)"))
        if paths:
            self.addImages(paths)

    def addImages(self, paths):
        """Add images that are still to be annotated."""
        if not self._ready():
            return
        with self._showingErrors():
            names = self._trainingSet().add_images(paths)
            self.setStatus(_("Images to annotate added: {count}.").format(count=len(names)))
        self.refresh()

    def addCurrentCase(self, *_checked):
        """Add the input volume with its output segmentation."""
        from . import current_case

        parameters = self.parameterNode
        self._forgetTemporary()
        self._temporary = tempfile.mkdtemp(prefix="SpineSegAI-case-")
        with self._showingErrors():
            try:
                scene = current_case.write(parameters.inputVolume, parameters.outputSegmentation, self._temporary)
            except OSError as error:
                raise SpineSegAIError(
                    str(error), _("Free some space on the disk that holds temporary files.")
                ) from error
            self.addScenes([scene])
            return
        self._forgetTemporary()

    def addScenes(self, paths):
        """Look what is in scenes or folders of them, then ask; nothing is added before the reader agrees."""
        if self._found is not None or not self._ready():
            return
        self._scenes = [str(path) for path in paths]
        self._run(["import-scenes", *self._scenes, "--output", self.path, "--list", "--json"], self._onListed)
        self.setStatus(_("Reading scenes…"))

    def _onListed(self, document):
        self._found = document
        self.setStatus("")
        self._fillMapping()
        self._updateMapping()
        self.updateButtons()

    def _fillMapping(self):
        """A row for each name and meaning; what is not understood comes first."""
        groups = {}
        for case in self._found["cases"]:
            for segment in case["segments"]:
                if segment["voxels"]:
                    key = (segment["name"], segment["target"], segment["how"])
                    groups[key] = groups.get(key, 0) + 1
        rows = sorted(groups.items(), key=lambda entry: bool(entry[0][1]))
        table = self.ui.mappingTable
        table.setRowCount(len(rows))
        self._choices = []
        for number, ((name, target, how), count) in enumerate(rows):
            for column, text in ((SEGMENT, name), (REASON, REASONS.get(how, how)), (COUNT, str(count))):
                item = qt.QTableWidgetItem(text)
                item.setFlags(qt.Qt.ItemIsEnabled)
                table.setItem(number, column, item)
            combo = self._targetComboBox(target)
            table.setCellWidget(number, TARGET, combo)
            self._choices.append((name, combo, target))
            combo.connect("currentIndexChanged(int)", self._updateMapping)
            combo.connect("editTextChanged(QString)", self._updateMapping)
        table.resizeColumnToContents(SEGMENT)
        table.setColumnWidth(TARGET, 130)
        table.setColumnWidth(REASON, 120)

    def _targetComboBox(self, target):
        combo = qt.QComboBox()
        combo.editable = True
        combo.addItem(_("? choose"), "")
        combo.addItem(_("leave out"), IGNORE)
        customs = self._trainingSet().customs
        if target.startswith(CUSTOM) and target[len(CUSTOM) :] not in customs:
            customs = [*customs, target[len(CUSTOM) :]]
        for name in customs:
            combo.addItem(name, f"{CUSTOM}{name}")
        for structureId in anatomy.sorted_ids(anatomy.BUILT_IN):
            structure = anatomy.STRUCTURES[structureId]
            if structure.kind.value not in ("artery", "vein"):
                combo.addItem(structure.name, structure.name)
        combo.setCurrentIndex(max(0, combo.findData(target)))
        return combo

    def _target(self, combo):
        """What a row's reader chose or typed; a name that is no structure is one of the reader's own."""
        from SpineSegAILib.results.segment_names import parse_target

        text = combo.currentText.strip()
        index = combo.findText(text)
        if index >= 0:
            return combo.itemData(index)
        for attempt in (text, f"{CUSTOM}{text}"):
            try:
                return parse_target(attempt)
            except SpineSegAIError:
                continue
        return ""

    def _updateMapping(self, *_index):
        """Say what will be added, and whether anything is missing."""
        ui, document = self.ui, self._found
        missing = []
        chosen = {}
        for number, (name, combo, found) in enumerate(self._choices):
            target = self._target(combo)
            chosen[name, found] = target
            unknown = not target
            if unknown:
                missing.append(name)
            combo.setStyleSheet(UNKNOWN_STYLE if unknown else "")
            item = ui.mappingTable.item(number, REASON)
            if item is not None and target != found:
                own = target.startswith(CUSTOM)
                item.setText(REASONS[""] if unknown else _("your own structure") if own else REASONS["table"])
        cases = [c for c in document["cases"] if c["keypoints"] or self._targets(c, chosen)]
        bare = len(document["cases"]) - len(cases)
        parts = [_("Annotated cases: {count}.").format(count=len(cases))]
        if bare:
            parts.append(_("Volumes without annotation, kept as cases to annotate: {count}.").format(count=bare))
        if missing:
            names = ", ".join(f"“{name}”" for name in dict.fromkeys(missing))
            parts.append(_("Choose what these are, or leave them out: {names}.").format(names=names))
        ui.mappingLabel.text = " ".join(parts)
        self._asksExtent = any(not c["extent"] and _hasVertebrae(self._targets(c, chosen)) for c in cases)
        ui.extentLabel.visible = ui.extentComboBox.visible = self._asksExtent
        notes = [*document["problems"], *document["notes"], *(n for c in document["cases"] for n in c["notes"])]
        ui.mappingNotesLabel.text = "\n".join("⚠ " + note for note in dict.fromkeys(notes))
        ui.mappingNotesLabel.visible = bool(notes)
        ui.mappingAddButton.enabled = not missing and bool(document["cases"])
        count = len(document["cases"])
        ui.mappingAddButton.text = _("Add case") if count == 1 else _("Add {count} cases").format(count=count)

    @staticmethod
    def _targets(case, chosen):
        """What a case's segments are taken as now."""
        targets = [chosen.get((s["name"], s["target"]), s["target"]) for s in case["segments"] if s["voxels"]]
        return [target for target in targets if target not in ("", IGNORE)]

    def _onConfirmed(self):
        table = {name: self._target(combo) for name, combo, found in self._choices if self._target(combo) != found}
        extent = self.ui.extentComboBox.currentData if self._asksExtent else ""
        self._forgetMapping()
        folder = tempfile.mkdtemp(prefix="SpineSegAI-names-")
        mapping = Path(folder, "names.json")
        mapping.write_text(json.dumps(table), encoding="utf-8")
        self._run(
            ["import-scenes", *self._scenes, "--output", self.path, "--mapping", mapping, "--skip-problems",
             "--unlabelled", "--json", *(["--extent", extent] if extent else [])],
            self._onAdded,
            finally_=lambda: shutil.rmtree(folder, ignore_errors=True),
        )  # fmt: skip
        self.setStatus(_("Adding cases…"))

    def _onAdded(self, document):
        self._forgetTemporary()
        count, replaced = len(document["cases"]), len(document["replaced"])
        text = _("Cases added: {count}.").format(count=count - replaced)
        if replaced:
            text += " " + _("Replaced, since they were there before: {count}.").format(count=replaced)
        if document["problems"]:
            text += " " + _("Left out: {problems}").format(problems=" ".join(document["problems"]))
        self.setStatus(text)
        self.refresh()

    def _onRejected(self):
        self._forgetMapping()
        self._forgetTemporary()
        self.setStatus(_("Nothing was added."))
        self.updateButtons()

    def _forgetMapping(self):
        self._found, self._choices = None, []
        self.ui.mappingTable.setRowCount(0)

    def _forgetTemporary(self):
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None

    # --- cases that are there ----------------------------------------------------------------------------------------

    def _onSplit(self):
        keys = [self._rows[n].key for n in self._selected()]
        with self._showingErrors():
            moved = self._trainingSet().set_split(keys, self.ui.splitComboBox.currentData)
            others = len(set(moved) - set(keys))
            text = _("Cases moved: {count}.").format(count=len(moved))
            if others:
                text += " " + _("Of these, other cases of the same patients: {count}.").format(count=others)
            self.setStatus(text)
        self.refresh()

    def _onRemove(self):
        keys = [self._rows[n].key for n in self._selected()]
        question = _("Remove from the training set: {count}. Files that it made for them are deleted.")
        if not slicer.util.confirmOkCancelDisplay(question.format(count=len(keys)), _("SpineSegAI")):
            return
        with self._showingErrors():
            self._trainingSet().remove(keys)
            self.setStatus(_("Cases removed: {count}.").format(count=len(keys)))
        self.refresh()

    def _onLoad(self):
        (number,) = self._selected()
        row = self._rows[number]
        with slicer.util.tryWithErrorDisplay(_("The image could not be loaded.")):
            node = slicer.util.loadVolume(str(row.image), {"name": row.name})
            if self.parameterNode is not None:
                self.parameterNode.inputVolume = node

    # --- which next --------------------------------------------------------------------------------------------------

    def _onRank(self):
        waiting = {str(row.image.resolve()): row for row in self._rows if row.split == "unlabelled"}
        if not waiting or not self._ready():
            return
        command = ["rank", *waiting, "--checkpoint", self._checkpoint(), "--device", self._device(), "--json"]
        self._run(command, lambda document: self._onRanked(waiting, document))
        self.setStatus(_("Looking at images: {count}…").format(count=len(waiting)))

    def _onRanked(self, waiting, document):
        with self._showingErrors():
            scores = {}
            for entry in document["ranking"]:
                kept = {name: value for name, value in entry.items() if name != "image"}
                scores[waiting[entry["image"]].key] = {**kept, "checkpoint": document["checkpoint"]}
            self._trainingSet().set_scores(scores)
            first = waiting[document["ranking"][0]["image"]].name
            self.setStatus(_("Annotate “{name}” next: the checkpoint is least sure of it.").format(name=first))
        self.refresh()

    # --- processes ---------------------------------------------------------------------------------------------------

    def _ready(self):
        """Whether a process may be started: packages are there, nothing else runs."""
        if self.isRunning or not self.path:
            return False
        return dependencies.ready()

    def _run(self, arguments, onDone, finally_=None):
        def over():
            self._process = None
            if finally_ is not None:
                finally_()

        def done(document):
            over()
            onDone(document)
            self.updateButtons()

        def failed(failure):
            over()
            self._forgetTemporary()
            self._forgetMapping()
            self._showFailure(failure)
            self.refresh()
            self.updateButtons()

        self.ui.datasetProgressBar.value = 0
        self._process = CommandProcess([*arguments, "--progress-lines"], done, failed, self._onProgress)
        self._process.start()
        self.updateButtons()

    def _onProgress(self, fraction, message):
        self.ui.datasetProgressBar.value = int(100 * fraction)
        if message:
            self.setStatus(message)

    def _onCancel(self):
        if self._process is not None:
            self.setStatus(_("Cancelling…"))
            self._process.cancel()

    def cleanup(self):
        """The panel goes away."""
        if self._process is not None:
            self._process.stop()
            self._process = None
        self._forgetTemporary()

    # --- messages ----------------------------------------------------------------------------------------------------

    def _showingErrors(self):
        return _ShowingErrors(self)

    def _showFailure(self, failure):
        if failure.isCancelled:
            self.setStatus(_("Cancelled; nothing was changed."))
            return
        self.setStatus(failure.message)
        text = failure.message + ("\n\n" + failure.remedy if failure.remedy else "")
        details = {"detailedText": failure.log} if failure.log else {}
        slicer.util.errorDisplay(text, windowTitle=_("SpineSegAI"), **details)


class _ShowingErrors:
    """Shows an error that the reader can act on, and goes on after the block."""

    def __init__(self, panel):
        self._panel = panel

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _traceback):
        if isinstance(error, SpineSegAIError):
            self._panel._showFailure(Failure(error.kind, error.message, error.remedy))
            return True
        return False


def _hasVertebrae(targets):
    return any(not t.startswith(CUSTOM) and anatomy.structure(t).is_vertebral for t in targets)


def _fileNames(title, filters):
    paths = qt.QFileDialog.getOpenFileNames(slicer.util.mainWindow(), title, "", filters)
    if isinstance(paths, tuple) and len(paths) == 2 and not isinstance(paths[0], str):
        paths = paths[0]  # PySide-style bindings give the filter as well
    return list(paths)
