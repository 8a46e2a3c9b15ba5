"""The Segment section: choices, the big button, progress, and what can be done with the result.

The panel computes nothing. It reads the parameter node, hands volumes to the worker one after the other, and turns
answers into nodes. Whatever can go wrong arrives as a `Failure` and is shown with its remedy.
"""

import importlib
import time
import traceback
from html import escape
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from SpineSegAILib import anatomy
from SpineSegAILib.checkpoints import SUFFIX, list_checkpoints, read_header
from SpineSegAILib.errors import HintError, SpineSegAIError
from SpineSegAILib.methods.catalog import DEFAULT_METHOD, METHODS

from ..processes import dependencies, run_times
from ..processes.worker_client import Failure, WorkerClient
from ..scene import keypoints, uncertainty, volumes
from .checkpoint_details import detailsHtml

DOUBLE_CLICK_SECONDS = 0.5
"""The second click of a double click must not cancel what the first one started."""

PROGRESS_SECONDS, PROGRESS_SHARE = 2.0, 0.1
"""How much of a job must be done before the rest of its time is foretold: its first steps are slower."""

DEVICES = (("auto", _("Automatic")), ("cpu", "CPU"), ("cuda", "NVIDIA GPU (CUDA)"), ("mps", "Apple GPU (MPS)"))
GROUPS = (("system", _("Systems")), ("baseline", _("Baselines")))
PLANES = {
    "axial": _("an axial stack"),
    "coronal": _("a coronal stack"),
    "sagittal": _("a sagittal stack"),
    "isotropic": _("an isotropic volume"),
    "single-slice": _("a single slice (a localizer or a picture)"),
}
WARNING_STYLE = "background: #fff3cd; color: #664d03; border: 1px solid #e0c97f; padding: 4px; border-radius: 3px;"
CPU_STYLE = "color: #c62828;"

NAME_COLUMN, STATE_COLUMN = 0, 1


class SegmentPanel:
    """Behaviour of the Segment section, on widgets that Qt Designer laid out.

    :param ui: the widgets, as `slicer.util.childWidgetVariables` gives them.
    :param logic: `SpineSegAILogic`.
    """

    def __init__(self, ui, logic):
        self.ui = ui
        self.logic = logic
        self.client = WorkerClient()
        self.client.logCallbacks.append(self.addLog)
        self.parameterNode = None
        self.queue = []  # volume node ids that wait
        self.job = None
        self.jobVolumeId = None
        self.jobOutputId = None
        self._startedAt = 0.0
        self._firstProgress = self._lastProgress = None  # (time, fraction) of the running job
        self._jobHints = None
        self._steering = ()  # as `_steeringNow` when the run began
        self._jobOptions = {}
        self._updating = False
        self._history = None
        self._device = None  # (asked, id, name): what the worker said
        self._warm = False
        self._queueStates = {}
        self._inputVolumeId = None
        self._choices = None
        self._overlay = uncertainty.Overlay()
        self._again = None  # `SegmentAgain` of the Correct section, while it runs
        self.stateCallbacks = []  # called when what can be done may have changed
        self.beforeReplaceCallbacks = []  # called with a segmentation node before its segments are replaced

        self._clock = qt.QTimer()
        self._clock.setInterval(250)
        self._clock.connect("timeout()", self._showElapsed)

        self._checkpoints = list_checkpoints()
        self._fillMethods()
        for device, title in DEVICES:
            ui.deviceComboBox.addItem(title, device)
        for widget in (ui.progressBar, ui.elapsedLabel, ui.statusLabel, ui.warningLabel):
            widget.visible = False
        ui.warningLabel.setStyleSheet(WARNING_STYLE)
        ui.checkpointDetailsBrowser.visible = False
        ui.resultCollapsibleButton.visible = False

        ui.methodComboBox.connect("currentIndexChanged(int)", self._onMethod)
        ui.checkpointComboBox.connect("currentIndexChanged(int)", self._onCheckpoint)
        ui.checkpointBrowseButton.connect("clicked(bool)", self._onBrowse)
        ui.checkpointDetailsButton.connect("toggled(bool)", self._showDetails)
        ui.deviceComboBox.connect("currentIndexChanged(int)", self._onDevice)
        ui.topLevelComboBox.connect("currentIndexChanged(int)", self._onLevels)
        ui.bottomLevelComboBox.connect("currentIndexChanged(int)", self._onLevels)
        ui.applyButton.connect("clicked(bool)", self.onApply)
        ui.uncertaintyCheckBox.connect("clicked(bool)", self._onUncertainty)
        ui.centreButton.connect("clicked(bool)", self._onCentre)
        ui.measureButton.connect("clicked(bool)", self._onMeasure)
        ui.undoButton.connect("clicked(bool)", self._onUndo)
        ui.keypointsButton.connect("clicked(bool)", self._onKeypoints)
        ui.queueCollapsibleButton.connect("contentsCollapsed(bool)", self.updateQueueTable)
        ui.queueButton.connect("clicked(bool)", self._onQueue)
        ui.seriesButton.connect("clicked(bool)", self._onSeries)

    # --- parameter node ----------------------------------------------------------------------------------------------

    def setParameterNode(self, parameterNode):
        """Show these choices from now on; None while a scene is closed."""
        self.parameterNode = parameterNode
        if parameterNode is not None:
            self._inputVolumeId, self._choices = self._currentInputId(), None
            self.updateFromParameterNode()

    def updateFromParameterNode(self):
        """Bring the hand-wired widgets in line with the parameter node, and the button with everything."""
        if self.parameterNode is None or self._updating:
            return
        self._updating = True
        try:
            ui, parameters = self.ui, self.parameterNode
            method = parameters.method if parameters.method in METHODS else DEFAULT_METHOD
            ui.methodComboBox.setCurrentIndex(ui.methodComboBox.findData(method))
            self._fillCheckpoints(method, parameters.checkpoint)
            ui.deviceComboBox.setCurrentIndex(max(0, ui.deviceComboBox.findData(parameters.device)))
            self._fillLevels()
            ui.topLevelComboBox.setCurrentIndex(max(0, ui.topLevelComboBox.findData(parameters.topLevel)))
            ui.bottomLevelComboBox.setCurrentIndex(max(0, ui.bottomLevelComboBox.findData(parameters.bottomLevel)))
        finally:
            self._updating = False
        self._showDetails()
        self._showDevice()
        self._showSampling()
        self._showPrior()
        self.ui.keypointsLabel.visible = self.ui.keypointsSelector.visible = self._takesKeypoints()
        self._showResult()
        self.updateButtons()
        self.updateQueueTable()

    def _write(self, **values):
        """Into the parameter node, which then updates the panel."""
        if self.parameterNode is None or self._updating:
            return
        with slicer.util.NodeModify(self.parameterNode):
            for name, value in values.items():
                if getattr(self.parameterNode, name) != value:
                    setattr(self.parameterNode, name, value)

    # --- choices -----------------------------------------------------------------------------------------------------

    def _fillMethods(self):
        combo = self.ui.methodComboBox
        for group, title in GROUPS:
            members = [info for info in METHODS.values() if info.group == group]
            if not members:
                continue
            combo.addItem(title)
            combo.model().item(combo.count - 1).setEnabled(False)
            for info in members:
                combo.addItem(info.title, info.id)
                tip = f"<b>{info.title}</b><br>{info.summary}<br><i>{info.citation}</i>"
                combo.setItemData(combo.count - 1, tip, qt.Qt.ToolTipRole)

    def refreshCheckpoints(self):
        """Look for checkpoint files again: some may have come since, e.g. from a training run."""
        self._checkpoints = list_checkpoints()
        self.updateFromParameterNode()

    def _fillCheckpoints(self, method, wanted):
        combo = self.ui.checkpointComboBox
        combo.clear()
        known = [info for info in self._checkpoints if info.method == method]
        for info in known:
            combo.addItem(info.title, info.name)
            combo.setItemData(combo.count - 1, str(info.path), qt.Qt.ToolTipRole)
        if wanted and wanted not in [info.name for info in known]:
            info = self._checkpointInfo(wanted)
            if info is None:
                combo.addItem(_("{name} (not found)").format(name=Path(wanted).name), wanted)
            elif info.method == method:
                combo.addItem(info.title, wanted)
                combo.setItemData(combo.count - 1, wanted, qt.Qt.ToolTipRole)
        combo.setCurrentIndex(max(0, combo.findData(wanted)) if combo.count else -1)

    def _checkpointInfo(self, nameOrPath):
        """What is known of a checkpoint, read from its header; None if it cannot be read."""
        for info in self._checkpoints:
            if info.name == nameOrPath:
                return info if info.path.is_file() else None
        try:
            return read_header(nameOrPath) if nameOrPath.endswith(SUFFIX) else None
        except SpineSegAIError:
            return None

    def checkpoint(self):
        """The chosen checkpoint's `CheckpointInfo`, or None."""
        return self._checkpointInfo(self.ui.checkpointComboBox.currentData or "")

    def method(self):
        """The chosen method's catalogue entry."""
        return METHODS.get(self.ui.methodComboBox.currentData)

    def _onMethod(self):
        if not self._updating and self.method() is not None:
            self._write(method=self.method().id, checkpoint="")

    def _onCheckpoint(self):
        if not self._updating:
            self._write(checkpoint=self.ui.checkpointComboBox.currentData or "")

    def _onBrowse(self):
        path = qt.QFileDialog.getOpenFileName(
            slicer.util.mainWindow(), _("Checkpoint"), "", _("SpineSegAI checkpoints (*{suffix})").format(suffix=SUFFIX)
        )
        if isinstance(path, tuple):  # PySide-style bindings give the filter as well
            path = path[0]
        if path:
            self.useCheckpointFile(path)

    def useCheckpointFile(self, path):
        """Choose a checkpoint file, and its method with it."""
        try:
            info = read_header(path)
            if info.method not in METHODS:
                raise SpineSegAIError(
                    _("{name} was made for the method “{method}”, which this version does not have.").format(
                        name=info.path.name, method=info.method
                    ),
                    _("Update SpineSegAI."),
                )
        except SpineSegAIError as error:
            self._showFailure(Failure(error.kind, error.message, error.remedy))
            return
        self._write(method=info.method, checkpoint=str(path))

    def _showDetails(self):
        shown = self.ui.checkpointDetailsButton.checked
        self.ui.checkpointDetailsBrowser.visible = shown
        if shown:
            info = self.checkpoint()
            self.ui.checkpointDetailsBrowser.setHtml(detailsHtml(info) if info else _("No checkpoint is chosen."))

    def _fillLevels(self):
        """Vertebrae of the checkpoint's scheme, top down, if its method takes a visible range."""
        info, method = self.checkpoint(), self.method()
        levels = [s for s in info.scheme.structures if s.is_vertebral and s.order is not None] if info else []
        takes = bool(levels) and method is not None and "visible" in method.accepted_hints
        levels.sort(key=lambda s: s.order)
        for combo in (self.ui.topLevelComboBox, self.ui.bottomLevelComboBox):
            combo.clear()
            combo.addItem(_("not given"), 0)
            for structure in levels if takes else ():
                combo.addItem(structure.name, structure.id)
        self.ui.visibleLabel.enabled = takes
        self.ui.unvalidatedCheckBox.visible = bool(info and info.unvalidated)
        if info and info.unvalidated:
            names = ", ".join(anatomy.STRUCTURES[i].name for i in anatomy.sorted_ids(info.unvalidated))
            self.ui.unvalidatedCheckBox.toolTip = _(
                "Also segment what this checkpoint learnt from generated images alone, without a real example: {names}."
                " The segments are called “(unvalidated)”."
            ).format(names=names)

    def _onLevels(self):
        if not self._updating:
            self._write(
                topLevel=self.ui.topLevelComboBox.currentData or 0,
                bottomLevel=self.ui.bottomLevelComboBox.currentData or 0,
            )

    def hints(self, volumeNode, steering=()):
        """`SpineSegAILib.hints.Hints` from the panel: visible range, key points, what is locked in the output.

        :param steering: as `_steeringNow` had it when the run began; as it is now if not given.
        """
        import SimpleITK as sitk

        from SpineSegAILib.hints import Hints

        from ..scene import labelmaps

        top, bottom = self.ui.topLevelComboBox.currentData, self.ui.bottomLevelComboBox.currentData
        output = slicer.mrmlScene.GetNodeByID(self.jobOutputId) if self.jobOutputId else None
        volumeId, keypointsId, priorId = steering or self._steeringNow()
        if volumeNode is None or volumeNode.GetID() != volumeId:  # others that wait in line get none of another volume
            keypointsId = priorId = ""
        prior, lockedInPrior = self._prior(priorId, volumeNode)
        locked = labelmaps.lockedLabels(output, volumeNode) if output is not None else None
        if lockedInPrior is not None:
            free = None if locked is None else sitk.Cast(locked == 0, locked.GetPixelID())
            locked = lockedInPrior if locked is None else locked + lockedInPrior * free
        hints = Hints(
            visible=(top or None, bottom or None) if top or bottom else None,
            keypoints=self._keypoints(keypointsId),
            prior=prior,
            locked=locked,
        )
        return self._again.hints(hints) if self._again is not None else hints

    def _steeringNow(self):
        """Ids of the chosen volume, of its key points and of the segmentation to start from; empty if not chosen.

        A result that comes while others wait is shown, and its volume is the chosen one then: so a run keeps these.
        """
        parameters = self.parameterNode
        chosen = (parameters.inputVolume, parameters.keypoints, parameters.priorSegmentation)
        return tuple(node.GetID() if node is not None else "" for node in chosen)

    def _takesKeypoints(self):
        method = self.method()
        return method is not None and "keypoints" in method.accepted_hints

    def _keypoints(self, nodeId):
        """Those of a list; empty without one, or if the method takes none.

        :raises HintError: it was removed while the volume waited.
        """
        if not nodeId or not self._takesKeypoints():
            return {}
        return keypoints.keypointsFromNode(self._steeringNode(nodeId))

    def _takesPrior(self):
        method = self.method()
        return method is not None and "prior" in method.accepted_hints

    def _showPrior(self):
        method, takes = self.method(), self._takesPrior()
        self.ui.priorLabel.enabled = takes
        self.ui.priorSelector.enabled = takes and not self.isRunning
        self.ui.priorSelector.toolTip = (
            _(
                "Refine a segmentation that SpineSegAI made, as it was or corrected by you. It takes the place of the"
                " mask that the method would start from. Locked segments stay as they are."
            )
            if takes
            else _("{method} starts from nothing but the image; methods that refine a mask can start from one.").format(
                method=method.title if method is not None else _("No method")
            )
        )

    def _prior(self, nodeId, volumeNode):
        """The segmentation to start from and what is locked in it, as label images; None without one.

        :raises HintError: it was removed while the volume waited.
        """
        from ..scene import labelmaps

        if not nodeId or not self._takesPrior():
            return None, None
        if self._again is not None:  # the Correct section has its own say
            return None, None
        node = self._steeringNode(nodeId)
        return labelmaps.labelsFromSegmentation(node, volumeNode), labelmaps.lockedLabels(node, volumeNode)

    @staticmethod
    def _steeringNode(nodeId):
        node = slicer.mrmlScene.GetNodeByID(nodeId)
        if node is None:
            raise HintError(
                _("What this volume was to be segmented with was removed from the scene while it waited."),
                _("Choose other key points or another segmentation to start from, or none, and segment it again."),
            )
        return node

    # --- sampling ----------------------------------------------------------------------------------------------------

    def _sampling(self):
        """Names of the options that say how masks are drawn; empty for methods that draw none."""
        method = self.method()
        return method.sampling if method is not None else ()

    def options(self):
        """The method's run-time options, from the panel."""
        parameters, shown = self.parameterNode, self._sampling()
        if not shown:
            return {}
        if "preview" in shown and parameters.preview:
            return {"preview": "on"}
        usual = self._usualSampling()
        return {name: getattr(parameters, name) or usual[name] for name in ("samples", "steps") if name in shown}

    def _usualSampling(self):
        """Samples and steps that the checkpoint was made for, or else the method; for methods that sample."""
        info, fields = self.checkpoint(), self.method().config_class().model_fields
        said = info.metadata["method"] if info is not None else {}
        return {name: said.get(name, fields[name].default) for name in ("samples", "steps")}

    def hasPackages(self):
        """Whether configs can be read: on a fresh Slicer they cannot."""
        return self._warm or not dependencies.missingPackages()

    def _showSampling(self):
        ui, shown = self.ui, self._sampling()
        if shown and self.hasPackages():
            usual = self._usualSampling()
            ui.samplesSpinBox.specialValueText = _("{count} (default)").format(count=usual["samples"])
            ui.stepsSpinBox.specialValueText = _("{count} steps (default)").format(count=usual["steps"])
        for name, widgets in (
            ("samples", (ui.samplesLabel, ui.samplesSpinBox)),
            ("steps", (ui.stepsLabel, ui.stepsSpinBox)),
            ("preview", (ui.previewCheckBox,)),
        ):
            for widget in widgets:
                widget.visible = name in shown
        drawn = not self.isRunning and not ("preview" in shown and self.parameterNode.preview)
        ui.samplesSpinBox.enabled = ui.stepsSpinBox.enabled = drawn
        ui.previewCheckBox.enabled = not self.isRunning
        self._showEstimate()

    def _showEstimate(self):
        """How long a run with these settings will take, as far as the last one tells."""
        if self.parameterNode is None:  # the worker may say what the device is after the scene was closed
            return
        label = self.ui.estimateLabel
        label.visible = bool(self._sampling())
        label.text = ""
        volumeNode, info = self.parameterNode.inputVolume, self.checkpoint()
        if not self._sampling() or info is None or volumeNode is None or volumeNode.GetImageData() is None:
            return
        if not self.hasPackages():
            return
        seconds = None
        asked = self.ui.deviceComboBox.currentData
        if self._device is not None and self._device[0] == asked and self._device[1] is not None:
            _asked, device, name = self._device
            known = name if device.startswith("cuda") else device
            work = self._work(volumeNode, info)
            seconds = run_times.estimate(known, str(info.path), work, self._evaluations(self.options()))
        label.text = (
            _("The time is known after the first run on this device.")
            if seconds is None
            else _("About {time} on this device.").format(time=run_times.words(seconds))
        )
        label.toolTip = _(
            "As the last run on this device with this checkpoint went. Starting the process is not in it."
        )

    @staticmethod
    def _evaluations(options):
        return 0 if "preview" in options else options["samples"] * options["steps"]

    @staticmethod
    def _work(volumeNode, info):
        from SpineSegAILib.imaging import Preprocessing

        preprocessing = Preprocessing.model_validate(info.metadata.get("preprocessing", {}))
        return volumes.sliceArea(volumeNode, preprocessing.min_slice_mm)

    def _learnTime(self, volumeNode, result):
        info, seconds = self.checkpoint(), result.provenance.get("seconds", {})
        if self._jobOptions and info is not None and "network" in seconds:
            device, evaluations = result.provenance.get("device"), self._evaluations(self._jobOptions)
            run_times.learn(device, str(info.path), self._work(volumeNode, info), evaluations, seconds)

    # --- device ------------------------------------------------------------------------------------------------------

    def _onDevice(self):
        if not self._updating:
            self._write(device=self.ui.deviceComboBox.currentData)
            self.askDevice()

    def warmUp(self):
        """Load in the background what the first click would wait for. Called some time after the panel has opened."""
        if self._warm or self.parameterNode is None or dependencies.missingPackages():
            return
        self._warm = True
        importlib.import_module("SpineSegAILib.worker.protocol")
        self.askDevice()
        self.updateButtons()

    def askDevice(self):
        """Let the worker say what the chosen device really is."""
        if not self._warm:
            return
        asked = self.ui.deviceComboBox.currentData
        try:
            self.client.describeDevice(
                asked,
                onDone=lambda device, name: self._onDeviceKnown(asked, device, name),
                onError=lambda failure: self._onDeviceKnown(asked, None, failure.message),
            )
        except SpineSegAIError as error:
            self._onDeviceKnown(asked, None, error.message)
        except OSError as error:
            self._onDeviceKnown(asked, None, str(error))

    def _onDeviceKnown(self, asked, device, name):
        self._device = (asked, device, name)
        self._showDevice()
        self._showEstimate()

    def _showDevice(self):
        label = self.ui.deviceLabel
        asked = self.ui.deviceComboBox.currentData
        if self._device is None or self._device[0] != asked:
            label.text, label.toolTip = "", _("Shown once the segmentation process has started.")
            label.setStyleSheet("")
            return
        _asked, device, name = self._device
        label.text = name
        if device is None:
            label.toolTip = _("This device cannot be used: {reason}").format(reason=name)
            label.setStyleSheet(CPU_STYLE)
        elif device == "cpu":
            label.text = _("CPU ({name}): slow").format(name=name)
            label.toolTip = _("No graphics card is used: a volume takes seconds to minutes.")
            label.setStyleSheet(CPU_STYLE)
        else:
            label.toolTip = device
            label.setStyleSheet("")

    # --- the button --------------------------------------------------------------------------------------------------

    @property
    def isRunning(self):
        """True while a volume is being segmented or waits for it."""
        return self.job is not None or bool(self.queue)

    def reasonsAgainst(self, volumeNode):
        """Every reason why this volume cannot be segmented with the current choices; empty if it can."""
        reasons = []
        try:
            volumes.checkVolume(volumeNode)
        except SpineSegAIError as error:
            reasons.append(str(error))
        method, info = self.method(), self.checkpoint()
        if method is None:
            reasons.append(_("No method is selected."))
        elif info is None and self.ui.checkpointComboBox.count == 0:
            reasons.append(
                _("There is no checkpoint for {method}: browse for one, train one, or choose another method.").format(
                    method=method.title
                )
            )
        elif info is None:
            reasons.append(
                _("The checkpoint “{name}” is not there any more: choose another one.").format(
                    name=Path(self.ui.checkpointComboBox.currentData or "").name
                )
            )
        top, bottom = self.ui.topLevelComboBox.currentData, self.ui.bottomLevelComboBox.currentData
        if top and bottom and anatomy.STRUCTURES[top].order > anatomy.STRUCTURES[bottom].order:
            reasons.append(_("The visible range is upside down: the topmost vertebra comes first."))
        if not reasons and self._warm and info is not None:
            accepted = info.metadata.get("preprocessing", {}).get("planes")
            refused = volumes.refusedPlane(volumeNode, accepted) if accepted else None
            if refused:
                reasons.append(
                    _("“{volume}” is {plane}; this checkpoint takes {accepted}.").format(
                        volume=volumeNode.GetName(),
                        plane=PLANES[refused],
                        accepted=_(" or ").join(PLANES[p] for p in accepted if p != "single-slice"),
                    )
                )
        return reasons

    def updateButtons(self):
        """Enable what can be done now; a disabled button says in its tooltip why."""
        if self.parameterNode is None:
            return
        button = self.ui.applyButton
        if self.isRunning:
            button.text = _("Cancel")
            button.toolTip = _("Stop the segmentation; the scene stays as it is.")
            button.enabled = not (self.job is not None and self.job.cancelled)
        else:
            reasons = self.reasonsAgainst(self.parameterNode.inputVolume)
            button.text = _("Segment spine")
            button.enabled = not reasons
            button.toolTip = (
                "<ul>" + "".join(f"<li>{escape(reason)}</li>" for reason in reasons) + "</ul>"
                if reasons
                else _("Segment the spine in this volume.")
            )
        ui = self.ui
        for widget in (ui.inputVolumeSelector, ui.methodComboBox, ui.checkpointBrowseButton, ui.deviceComboBox,
                       ui.unvalidatedCheckBox, ui.outputSegmentationSelector, ui.tryLabel):  # fmt: skip
            widget.enabled = not self.isRunning
        for combo, least in ((ui.checkpointComboBox, 1), (ui.topLevelComboBox, 2), (ui.bottomLevelComboBox, 2)):
            combo.enabled = not self.isRunning and combo.count >= least
        self._showSampling()
        self._showPrior()
        self._updateQueueButtons()
        for callback in self.stateCallbacks:
            callback()

    def onApply(self):
        """The big button: start, or cancel."""
        if self.isRunning:
            if time.monotonic() - self._startedAt > DOUBLE_CLICK_SECONDS:
                self.cancel()
            return
        volumeNode = self.parameterNode.inputVolume
        output = self.parameterNode.outputSegmentation
        self.start([volumeNode], output)

    def start(self, volumeNodes, outputNode=None, again=None):
        """Segment volumes one after the other.

        :param outputNode: segmentation to update; only with a single volume.
        :param again: `SegmentAgain`: more hints, and what of the result is taken over.
        """
        if not dependencies.ready():
            return
        # An installation takes minutes, in which the scene may change.
        volumeNodes = [node for node in volumeNodes if node is not None and node.GetScene() is not None]
        if outputNode is not None and outputNode.GetScene() is None:
            outputNode = None
        if not volumeNodes or self.isRunning:
            return
        if not self._warm:
            self._warm = True
            self.askDevice()
        self._again = again
        self._steering = self._steeringNow()
        self._startedAt = time.monotonic()
        self.queue = [node.GetID() for node in volumeNodes]
        for volumeId in self.queue:
            self._queueStates[volumeId] = _("waiting")
        self.jobOutputId = outputNode.GetID() if outputNode is not None and len(volumeNodes) == 1 else None
        self._clock.start()
        self._next()

    def _next(self):
        """Begin with the next volume that waits; tidy up when none does."""
        while self.queue and self.job is None:
            volumeId = self.queue.pop(0)
            volumeNode = slicer.mrmlScene.GetNodeByID(volumeId)
            if volumeNode is None:
                continue
            reasons = self.reasonsAgainst(volumeNode)
            if reasons:
                self._queueStates[volumeId] = _("refused: {reasons}").format(reasons=" ".join(reasons))
                self._showFailure(Failure("ImageError", " ".join(reasons)), quiet=bool(self.queue))
                continue
            self._begin(volumeNode)
        if self.job is None:
            self._clock.stop()
            self.ui.progressBar.visible = False
            self.ui.elapsedLabel.visible = False
            self.updateButtons()
            self.updateQueueTable()

    def _begin(self, volumeNode):
        self.ui.progressBar.value = 0
        self.ui.progressBar.visible = True
        self.ui.elapsedLabel.visible = True
        self.setStatus(_("Segmenting “{volume}”…").format(volume=volumeNode.GetName()))
        volumeId = volumeNode.GetID()
        try:
            image = volumes.imageFromVolume(volumeNode)
            self._jobHints, self._jobOptions = self.hints(volumeNode, self._steering), self.options()
            self._firstProgress = self._lastProgress = None
            self.job = self.client.segment(
                image,
                self.ui.checkpointComboBox.currentData,
                self.ui.deviceComboBox.currentData,
                self._jobHints,
                self._jobOptions,
                self.parameterNode.includeUnvalidated,
                onDone=lambda result: self._onResult(volumeId, result),
                onError=lambda failure: self._onFailure(volumeId, failure),
                onProgress=self._onProgress,
            )
        except SpineSegAIError as error:
            self._queueStates[volumeId] = error.message
            self._showFailure(Failure(error.kind, error.message, error.remedy))
            return
        except OSError as error:
            self._queueStates[volumeId] = str(error)
            self._showFailure(self._notHandedOver(error))
            return
        self.jobVolumeId = volumeId
        self._queueStates[volumeId] = _("running")
        self.updateButtons()
        self.updateQueueTable()

    @staticmethod
    def _notHandedOver(error):
        return Failure(
            "OutputError",
            _("The voxels cannot be handed over: {error}").format(error=error),
            _("Free some space on the disk that holds temporary files."),
        )

    def cancel(self, quietly=False):
        """Stop everything that runs or waits; the scene stays as it is.

        :param quietly: without a word, since the scene goes away.
        """
        self.queue.clear()
        for volumeId, state in self._queueStates.items():
            if state == _("waiting"):
                self._queueStates[volumeId] = _("cancelled")
        job = self.job
        if job is None:
            return
        if quietly:
            job.onDone = job.onProgress = None
            job.onError = lambda failure: None
            self.client.cancel(job)
            self._jobOver()
            self._next()
        else:
            self.setStatus(_("Cancelling…"))
            self.client.cancel(job)
            self.updateButtons()

    def _jobOver(self):
        self.job = None
        self.jobVolumeId = None

    def _onProgress(self, fraction, message):
        if fraction > 0:
            self._lastProgress = (time.monotonic(), fraction)
            self._firstProgress = self._firstProgress or self._lastProgress
        self.ui.progressBar.value = int(100 * fraction)
        if message:
            self.setStatus(message)

    def _onResult(self, volumeId, result):
        from ..scene import results
        from ..scene.segment_again import SegmentAgain

        outputNode = slicer.mrmlScene.GetNodeByID(self.jobOutputId) if self.jobOutputId else None
        self._jobOver()
        volumeNode = slicer.mrmlScene.GetNodeByID(volumeId)
        if volumeNode is None:
            self._onRemoved(volumeId)
            return
        try:
            history = results.UndoHistory(outputNode) if outputNode is not None else None

            def saveState():
                history.saveState()
                for callback in self.beforeReplaceCallbacks:
                    callback(outputNode)

            again = self._again
            if again is None and outputNode is not None:
                again = SegmentAgain(prior=self._jobHints.prior)
            place = again.place if again is not None else results.segmentationFromResult
            segmentationNode = place(result, volumeNode, outputNode, saveState)
            uncertainty.mapFromResult(result, volumeNode, segmentationNode)
        except SpineSegAIError as error:
            self._onFailure(volumeId, Failure(error.kind, error.message, error.remedy))
            return
        except Exception as error:  # a defect: those that wait go on all the same
            failure = Failure(
                "InternalError",
                f"{type(error).__name__}: {error}",
                _("This is a defect of SpineSegAI; please report it with the log."),
                traceback.format_exc(),
            )
            self.addLog(failure.log)
            self._onFailure(volumeId, failure)
            return
        self._history = history
        self._learnTime(volumeNode, result)
        self.jobOutputId = None
        self._queueStates[volumeId] = _("done") + (_(", with warnings") if result.warnings else "")
        self._write(inputVolume=volumeNode, outputSegmentation=segmentationNode)
        self._applyOpacity()
        self._showResult()
        seconds = time.monotonic() - self._startedAt
        self.setStatus(_("{count} structures in {seconds:.1f} s.").format(count=len(result.present), seconds=seconds))
        self._next()

    def _onFailure(self, volumeId, failure):
        self._jobOver()
        self._queueStates[volumeId] = failure.message
        if failure.isCancelled:
            self._queueStates[volumeId] = _("cancelled")
            self.setStatus(_("Cancelled; nothing was changed."))
        else:
            self._showFailure(failure, quiet=bool(self.queue))
        self._next()

    def _onRemoved(self, volumeId):
        self._queueStates.pop(volumeId, None)
        self.setStatus(_("The volume was removed from the scene; its segmentation was dropped."))
        self._next()

    # --- the scene ---------------------------------------------------------------------------------------------------

    def onSceneClose(self):
        """Everything in the scene goes away: drop what runs."""
        self.cancel(quietly=True)
        self._history = None
        self._overlay = uncertainty.Overlay()
        self._queueStates.clear()
        self.setStatus("")

    def onNodeRemoved(self):
        """A node was removed: if it was the one being segmented, drop the job."""
        if self.jobVolumeId is not None and slicer.mrmlScene.GetNodeByID(self.jobVolumeId) is None:
            job, volumeId = self.job, self.jobVolumeId
            job.onError = lambda failure: None
            job.onDone = None
            self.client.cancel(job)
            self._jobOver()
            self._onRemoved(volumeId)
        if self._history is not None and self._history.segmentationNode.GetScene() is None:
            self._history = None
        self._showUncertainty()
        self.updateButtons()
        self.updateQueueTable()

    def cleanup(self):
        """The panel goes away: end the worker."""
        self.cancel(quietly=True)
        self._clock.stop()
        self.client.stop()

    # --- the result --------------------------------------------------------------------------------------------------

    def _output(self):
        return self.parameterNode.outputSegmentation if self.parameterNode is not None else None

    def _outputVolume(self):
        """The volume that the output segmentation was made on; None without an output, or if the volume is gone."""
        output = self._output()
        return volumes.segmentedVolume(output) if output is not None else None

    def _showResult(self):
        node = self._output()
        self.ui.resultCollapsibleButton.visible = node is not None
        self.ui.show3DButton.setSegmentationNode(node)
        self.ui.keypointsButton.visible = bool(node is not None and keypoints.predictedKeypoints(node))
        warnings = self.logic.warningsOf(node) if node is not None else []
        self.ui.warningLabel.visible = bool(warnings)
        self.ui.warningLabel.text = "\n".join("⚠ " + warning for warning in warnings)
        self.ui.undoButton.enabled = self._history is not None and self._history.segmentationNode is node
        if not self.ui.undoButton.enabled:
            self.ui.undoButton.toolTip = _("Nothing to bring back: the last result replaced no segments.")
        else:
            self.ui.undoButton.toolTip = _("Bring back the segments that the last result replaced.")
        self._showUncertainty()

    def _showUncertainty(self):
        """The tick is there for what has a map; a map of anything else is not left in the views."""
        node, box = uncertainty.mapOf(self._output(), self._outputVolume()), self.ui.uncertaintyCheckBox
        if self._overlay.isOn and (node is None or not self._overlay.shows(node)):
            self._overlay.hide()
        box.enabled = node is not None
        box.checked = node is not None and self._overlay.shows(node)
        box.toolTip = (
            _("Lay over the image how unsure the method is: yellow a little, red much.")
            if node is not None
            else _("These segments have no map of uncertainty: only methods that draw several samples make one.")
        )

    def _onUncertainty(self, shown):
        if shown:
            self._overlay.show(uncertainty.mapOf(self._output(), self._outputVolume()))
        else:
            self._overlay.hide()
        self._showUncertainty()

    def onParametersModified(self):
        """Called when the parameter node was changed, by the panel or by anything else."""
        self._applyOpacity()
        parameters, output = self.parameterNode, self._output()
        choices = (
            *(parameters.method, parameters.checkpoint, parameters.device, parameters.topLevel, parameters.bottomLevel),
            *(parameters.samples, parameters.steps, parameters.preview),
            *(self._currentInputId(), output.GetID() if output is not None else None),
        )
        if choices != self._choices:  # else only the opacity, which is a slider and may change often
            self._choices = choices
            self._leaveOutputOfAnotherVolume()
            self.updateFromParameterNode()

    def _currentInputId(self):
        volumeNode = self.parameterNode.inputVolume
        return volumeNode.GetID() if volumeNode is not None else None

    def _leaveOutputOfAnotherVolume(self):
        """With another input volume, the last result is no output any more: nobody wants one case over another."""
        volumeId, before = self._currentInputId(), self._inputVolumeId
        self._inputVolumeId = volumeId
        if volumeId != before and self.parameterNode.keypoints is not None:
            self.parameterNode.keypoints = None  # another patient's
        if volumeId != before and self.parameterNode.priorSegmentation is not None:
            self.parameterNode.priorSegmentation = None
        output = self._output()
        if volumeId == before or output is None:
            return
        reference = output.GetNodeReferenceID(output.GetReferenceImageGeometryReferenceRole())
        if reference is not None and reference != volumeId:
            self.parameterNode.outputSegmentation = None

    def _applyOpacity(self):
        node = self._output()
        if node is not None and node.GetDisplayNode() is not None:
            displayNode = node.GetDisplayNode()
            if displayNode.GetOpacity() != self.parameterNode.opacity:
                displayNode.SetOpacity(self.parameterNode.opacity)

    def _onCentre(self):
        from ..scene import views

        views.centreViews(self._outputVolume(), self._output())

    def _onKeypoints(self):
        node = keypoints.showList(self._output(), self._outputVolume())
        if self._takesKeypoints():
            self._write(keypoints=node)
        self.setStatus(_("Key points are in “{list}”: drag any, then segment again.").format(list=node.GetName()))

    def _onUndo(self):
        for callback in self.beforeReplaceCallbacks:  # what was corrected since can be brought back, too
            callback(self._history.segmentationNode)
        self._history.undo()
        self._history = None
        self.setStatus(_("The segments are as they were before the last result."))
        self._showResult()

    def _onMeasure(self):
        from ..scene import results

        if not dependencies.ready():
            return
        node = self._output()
        try:
            self.measure(node, results.resultFromSegmentation(node, self._outputVolume()))
        except SpineSegAIError as error:
            self._onMeasureFailed(Failure(error.kind, error.message, error.remedy))

    def measure(self, node, result, onDone=None):
        """Measure a result in the worker, into the table node of its segmentation.

        :param onDone: called with the table node.
        """
        try:
            self.ui.measureButton.enabled = False
            self.client.measure(
                result,
                onDone=lambda columns, rows: self._onMeasured(node, columns, rows, onDone),
                onError=lambda failure: self._onMeasureFailed(failure, node),
            )
        except SpineSegAIError as error:
            self._onMeasureFailed(Failure(error.kind, error.message, error.remedy))
        except OSError as error:
            self._onMeasureFailed(self._notHandedOver(error))

    def _onMeasured(self, node, columns, rows, onDone=None):
        from ..scene import tables, views

        self._updateQueueButtons()
        if node.GetScene() is None:  # removed; its id may be that of another one since
            return
        tableNode = tables.tableFromMeasurements(columns, rows, node)
        views.showTable(tableNode)
        self.setStatus(_("Measured into the table “{table}”.").format(table=tableNode.GetName()))
        if onDone is not None:
            onDone(tableNode)

    def _onMeasureFailed(self, failure, node=None):
        self._updateQueueButtons()
        if node is None or node.GetScene() is not None:
            self._showFailure(failure)

    # --- several volumes ---------------------------------------------------------------------------------------------

    def updateQueueTable(self):
        """Volumes of the scene with their state; ticks are kept. Nothing while the section is folded."""
        if self.ui.queueCollapsibleButton.collapsed:
            return
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
            state = qt.QTableWidgetItem(self._queueStates.get(node.GetID(), ""))
            state.setToolTip(self._queueStates.get(node.GetID(), ""))
            table.setItem(row, STATE_COLUMN, state)
        table.resizeColumnToContents(NAME_COLUMN)
        self._updateQueueButtons()

    def _tickedVolumeIds(self):
        table = self.ui.queueTable
        items = [table.item(row, NAME_COLUMN) for row in range(table.rowCount)]
        return [item.data(qt.Qt.UserRole) for item in items if item and item.checkState() == qt.Qt.Checked]

    def _updateQueueButtons(self):
        self.ui.queueButton.enabled = not self.isRunning
        ready = self._outputVolume() is not None and not self.isRunning
        for button in (self.ui.seriesButton, self.ui.measureButton, self.ui.centreButton):
            button.enabled = ready

    def _onQueue(self):
        nodes = [slicer.mrmlScene.GetNodeByID(volumeId) for volumeId in self._tickedVolumeIds()]
        nodes = [node for node in nodes if node is not None]
        if not nodes:
            slicer.util.infoDisplay(_("Tick the volumes that are to be segmented."), windowTitle=_("SpineSegAI"))
            return
        self.start(nodes)

    def _onSeries(self):
        source = self._outputVolume()
        report = self.logic.applyToOtherSeries(self._output(), source)
        if not report:
            slicer.util.infoDisplay(
                _("“{volume}” has no other series in its study (see the module “Data”).").format(
                    volume=source.GetName()
                ),
                windowTitle=_("SpineSegAI"),
            )
            return
        for volumeNode, _segmentationNode, state in report:
            self._queueStates[volumeNode.GetID()] = state
        self.ui.queueCollapsibleButton.collapsed = False
        self.updateQueueTable()
        made = sum(1 for entry in report if entry[1] is not None)
        self.setStatus(_("Carried over to {count} of {all} other series.").format(count=made, all=len(report)))

    # --- messages ----------------------------------------------------------------------------------------------------

    def setStatus(self, text):
        """One line under the button."""
        self.ui.statusLabel.text = text
        self.ui.statusLabel.visible = bool(text)

    def addLog(self, line):
        """A line for the log section."""
        self.ui.logText.appendPlainText(line)

    def _showElapsed(self):
        seconds = int(time.monotonic() - self._startedAt)
        text, left = f"{seconds // 60}:{seconds % 60:02d}", self._secondsLeft()
        if left is not None:
            text = _("{elapsed}, about {time} left").format(elapsed=text, time=run_times.words(left))
        self.ui.elapsedLabel.text = text

    def _secondsLeft(self):
        """What is left of a job if it goes on as it went; None while too little is done to say."""
        if self._firstProgress is None:
            return None
        (begun, first), (now, fraction) = self._firstProgress, self._lastProgress
        if now - begun < PROGRESS_SECONDS or fraction - first < PROGRESS_SHARE:
            return None
        return max(0.0, now + (now - begun) * (1 - fraction) / (fraction - first) - time.monotonic())

    def _showFailure(self, failure, quiet=False):
        self.setStatus(failure.message)
        self.addLog(f"{failure.kind}: {failure.message} {failure.remedy}".rstrip())
        if quiet:
            return
        text = failure.message + ("\n\n" + failure.remedy if failure.remedy else "")
        details = {"detailedText": failure.log} if failure.log else {}
        slicer.util.errorDisplay(text, windowTitle=_("SpineSegAI"), **details)
