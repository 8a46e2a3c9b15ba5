"""The Dataset section: cases in, what their segments are, splits, and which case to annotate next.

Reading scenes and ranking run in processes of their own (`command_process`); the panel shows what they found, asks, and
edits the manifest. Nothing is added before the reader has seen what every segment is taken as.
"""

import contextlib
import json
import shutil
import tempfile
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from SpineSegAILib.errors import SpineSegAIError

from ..processes import dependencies
from ..processes.command_process import CommandProcess
from ..processes.failure import Failure
from ..scene.volumes import segmentedVolume
from .case_list import CaseList
from .messages import Messages
from .scene_mapping import SceneMapping

SETTING = "SpineSegAI/TrainingSet"
"""Slicer remembers the last folder under this name."""


class DatasetPanel:
    """Behavior of the section, on widgets that Qt Designer laid out.

    :param ui: the widgets, as `slicer.util.childWidgetVariables` gives them.
    :param parameters: `Parameters`: the case that is open.
    :param checkpoint: function that gives the name or path of the checkpoint to rank with, empty if there is none.
    :param device: function that gives the device to rank on.
    """

    def __init__(self, ui, parameters, checkpoint, device):
        self.ui = ui
        self.parameters = parameters
        self.messages = Messages(ui.datasetStatusLabel)
        self.mapping = SceneMapping(ui)
        self._checkpoint, self._device = checkpoint, device
        self._process = None
        self._scenes = []  # what the reader is asked about
        self._temporary = None
        self.cases = CaseList(self)
        ui.datasetProgressBar.visible = ui.datasetCancelButton.visible = False
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

    def updateButtons(self):
        """Enable what can be done now; the tooltip of what cannot be done says why."""
        ui, free = self.ui, not self.isRunning and not self.mapping.isAsking
        ready = bool(self.path) and free
        for button in (ui.addScenesButton, ui.addSceneFolderButton, ui.addImagesButton):
            button.enabled = ready
        ui.addCaseButton.enabled = ready and self.parameters.inputVolume is not None
        self.cases.setEnabled(ready)
        ui.rankButton.enabled = ready and bool(self.cases.waiting) and bool(self._checkpoint())
        ui.datasetFolderLineEdit.enabled = ui.datasetFolderButton.enabled = free
        ui.datasetProgressBar.visible = ui.datasetCancelButton.visible = self.isRunning
        ui.mappingGroupBox.visible = self.mapping.isAsking
        ui.datasetWidget.visible = bool(self.path)
        ui.datasetEmptyLabel.visible = not self.path

    def refresh(self, *_collapsed):
        """Read the manifest again and show its cases. Nothing while the section is folded."""
        if self.ui.datasetCollapsibleButton.collapsed:
            return
        rows = []
        if self.path and not dependencies.areInstalled():
            self.messages.say(
                _(
                    "Cases are shown once the Python packages are installed: “Segment spine” or “Add current case” "
                    "asks for it."
                )
            )
        elif self.path:
            try:
                rows = self.trainingSet().rows()
            except SpineSegAIError as error:
                self.messages.say(f"{error.message} {error.remedy}")
        self.cases.show(rows)
        self.updateButtons()

    def trainingSet(self):
        """The library's `TrainingSet` of the folder."""
        from SpineSegAILib.datasets.training_set import TrainingSet

        return TrainingSet(self.path)

    # --- folder ------------------------------------------------------------------------------------------------------

    def _onFolder(self, *_text):
        slicer.app.userSettings().setValue(SETTING, self.path)
        self.messages.say("")
        self.refresh()
        self.updateButtons()

    def _onChooseFolder(self):
        folder = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), _("Dataset"), self.path)
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
        with self.showingErrors():
            names = self.trainingSet().add_images(paths)
            self.messages.say(_("Images to annotate added: {count}.").format(count=len(names)))
        self.refresh()

    def addCurrentCase(self, *_checked):
        """Add the input volume with its output segmentation."""
        from ..scene import current_case

        parameters = self.parameters
        if not _belongTogether(parameters.inputVolume, parameters.outputSegmentation):
            return
        self._forgetTemporary()
        self._temporary = tempfile.mkdtemp(prefix="SpineSegAI-case-")
        with self.showingErrors():
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
        if self.mapping.isAsking or not self._ready():
            return
        self._scenes = [str(path) for path in paths]
        self._run(["import-scenes", *self._scenes, "--output", self.path, "--list", "--json"], self._onListed)
        self.messages.say(_("Reading scenes…"))

    def _onListed(self, document):
        self.messages.say("")
        self.mapping.ask(document, self.trainingSet().customs)
        self.updateButtons()

    def _onConfirmed(self):
        table, extent = self.mapping.answers(), self.mapping.extent()
        self.mapping.forget()
        folder = tempfile.mkdtemp(prefix="SpineSegAI-names-")
        mapping = Path(folder, "names.json")
        mapping.write_text(json.dumps(table), encoding="utf-8")
        self._run(
            ["import-scenes", *self._scenes, "--output", self.path, "--mapping", mapping, "--skip-problems",
             "--unlabelled", "--json", *(["--extent", extent] if extent else [])],
            self._onAdded,
            finally_=lambda: shutil.rmtree(folder, ignore_errors=True),
        )  # fmt: skip
        self.messages.say(_("Adding cases…"))

    def _onAdded(self, document):
        self._forgetTemporary()
        count, replaced = len(document["cases"]), len(document["replaced"])
        text = _("Cases added: {count}.").format(count=count - replaced)
        if replaced:
            text += " " + _("Replaced, since they were there before: {count}.").format(count=replaced)
        if document["problems"]:
            text += " " + _("Omitted: {problems}").format(problems=" ".join(document["problems"]))
        self.messages.say(text)
        self.refresh()

    def _onRejected(self):
        self.mapping.forget()
        self._forgetTemporary()
        self.messages.say(_("Nothing was added."))
        self.updateButtons()

    def _forgetTemporary(self):
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None

    # --- which next --------------------------------------------------------------------------------------------------

    def _onRank(self):
        waiting = {str(row.image.resolve()): row for row in self.cases.waiting}
        if not waiting or not self._ready():
            return
        command = ["rank", *waiting, "--checkpoint", self._checkpoint(), "--device", self._device(), "--json"]
        self._run(command, lambda document: self._onRanked(waiting, document))
        self.messages.say(_("Looking at images: {count}…").format(count=len(waiting)))

    def _onRanked(self, waiting, document):
        with self.showingErrors():
            scores = {}
            for entry in document["ranking"]:
                kept = {name: value for name, value in entry.items() if name != "image"}
                scores[waiting[entry["image"]].key] = {**kept, "checkpoint": document["checkpoint"]}
            self.trainingSet().set_scores(scores)
            first = waiting[document["ranking"][0]["image"]].name
            self.messages.say(_("Annotate “{name}” next: the model is least certain of it.").format(name=first))
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
            self.mapping.forget()
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
            self.messages.say(message)

    def _onCancel(self):
        if self._process is not None:
            self.messages.say(_("Cancelling…"))
            self._process.cancel()

    def cleanup(self):
        """The panel goes away."""
        if self._process is not None:
            self._process.stop()
            self._process = None
        self._forgetTemporary()

    # --- messages ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def showingErrors(self):
        """A block in which an error that the reader can act on is shown, and what follows the block continues."""
        try:
            yield
        except SpineSegAIError as error:
            self._showFailure(Failure.of(error))

    def _showFailure(self, failure):
        if failure.isCancelled:
            self.messages.say(_("Cancelled; nothing was changed."))
        else:
            self.messages.show(failure)


def _belongTogether(volumeNode, segmentationNode):
    """Whether a segmentation is one of a volume, or else the reader says that it fits."""
    own = segmentedVolume(segmentationNode) if segmentationNode is not None else None
    if own is None or own is volumeNode:
        return True
    question = _("“{segmentation}” was made on “{own}”, not on “{volume}”. Add it as the segmentation of “{volume}”?")
    names = {"segmentation": segmentationNode.GetName(), "own": own.GetName(), "volume": volumeNode.GetName()}
    return slicer.util.confirmOkCancelDisplay(question.format(**names), _("SpineSegAI"))


def _fileNames(title, filters):
    return list(qt.QFileDialog.getOpenFileNames(slicer.util.mainWindow(), title, "", filters))
