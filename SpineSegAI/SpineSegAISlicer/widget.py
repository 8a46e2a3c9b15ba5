"""The panel: its three tabs, wired to the scene and to each other."""

import sys

import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleWidget
from slicer.util import VTKObservationMixin

WARM_UP_MILLISECONDS = 500
"""After the panel has opened: late enough not to slow the opening down."""


class SpineSegAIWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Makes the sections and tells them of the scene; each section's behavior is in a file of its own."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self.parameters = None
        self.client = None
        self.segmentPanel = None
        self.resultPanel = None
        self.queuePanel = None
        self.correctionPanel = None
        self.datasetPanel = None
        self.trainingPanel = None
        self.tabs = None
        self.messages = None
        self._parameterNode = None
        self._parameterNodeGuiTag = None
        self._shown = None  # choices as the sections show them
        self._isEntered = True  # a widget is made when its module is opened

    # --- set-up ------------------------------------------------------------------------------------------------------

    def setup(self):
        """Called when the module is opened for the first time."""
        ScriptedLoadableModuleWidget.setup(self)
        from .logic import SpineSegAILogic
        from .panels.tabs import Tabs

        uiWidget = slicer.util.loadUI(self.resourcePath("UI/SpineSegAI.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = SpineSegAILogic()
        self._setUpSegment()
        self.ui.tryLabel.connect("linkActivated(QString)", self.onTry)
        self._setUpCorrect()
        self._setUpTraining()
        self.tabs = Tabs(self.ui.tabWidget)
        self.tabs.changedCallbacks.append(self.onTab)

        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self.onSceneEndImport)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.NodeRemovedEvent, self.onNodeRemoved)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.NodeAddedEvent, self.onNodeAdded)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndBatchProcessEvent, self.onNodeAdded)
        self.initializeParameterNode()
        qt.QTimer.singleShot(WARM_UP_MILLISECONDS, self.segmentPanel.warmUpInSteps)

    def _setUpSegment(self):
        """The tab Segment: the input, the result, and several volumes."""
        from .panels.measuring import Measuring
        from .panels.messages import Messages
        from .panels.parameters import Parameters
        from .panels.queue import QueuePanel
        from .panels.result import ResultPanel
        from .panels.segment import SegmentPanel
        from .processes import worker_client

        ui = self.ui
        messages = self.messages = Messages(ui.statusLabel, ui.logText)
        self.parameters = Parameters()
        self.client = worker_client.WorkerClient()
        self.client.logCallbacks.append(messages.log)
        self.segmentPanel = SegmentPanel(ui, self.parameters, self.client, messages)
        self.choices, self.segmenting = self.segmentPanel.choices, self.segmentPanel.segmenting
        self.measuring = Measuring(self.client, messages)
        self.resultPanel = ResultPanel(ui, self.parameters, self.choices, self.segmenting, self.measuring, messages)
        self.queuePanel = QueuePanel(ui, self.parameters, self.segmenting, messages)

    def _setUpCorrect(self):
        """The tab Correct."""
        from .panels.correct import CorrectionPanel

        uiWidget = slicer.util.loadUI(self.resourcePath("UI/SpineSegAICorrect.ui"))
        self.ui.correctTab.layout().addWidget(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.correctionPanel = CorrectionPanel(uiWidget, self.parameters, self.choices, self.segmenting)
        self.correctionPanel.refreshedCallbacks.append(self.resultPanel.onSegments)
        self.resultPanel.warnings.answerCallbacks.append(self.onAnswer)

    def _setUpTraining(self):
        """The tab Train: the dataset, and runs."""
        from .panels.dataset import DatasetPanel
        from .panels.train import TrainingPanel

        device = self.segmentPanel.device
        self.datasetUi, self.trainingUi = (self._addSection(name) for name in ("SpineSegAIDataset", "SpineSegAITrain"))
        self.datasetPanel = DatasetPanel(
            self.datasetUi,
            self.parameters,
            checkpoint=lambda: self.choices.checkpointName,
            device=lambda: device.chosen,
        )
        self.trainingPanel = TrainingPanel(
            self.trainingUi,
            dataset=lambda: self.datasetPanel.path,
            onCheckpoint=self.segmentPanel.refreshCheckpoints,
        )
        self.ui.trainTab.layout().addStretch(1)

    def _addSection(self, name):
        uiWidget = slicer.util.loadUI(self.resourcePath(f"UI/{name}.ui"))
        self.ui.trainTab.layout().addWidget(uiWidget)
        return slicer.util.childWidgetVariables(uiWidget)

    # --- life --------------------------------------------------------------------------------------------------------

    def cleanup(self):
        """Called when the module is unloaded or Slicer ends."""
        self.setParameterNode(None)
        self.removeObservers()
        for panel in (self.datasetPanel, self.trainingPanel, self.segmentPanel, self.correctionPanel):
            if panel is not None:
                panel.cleanup()
        if self.client is not None:
            self.client.stop()

    def enter(self):
        """Called each time the module is opened."""
        if self.trainingPanel is None:  # the set-up failed, and said why
            return
        self._isEntered = True
        self.initializeParameterNode()
        self.segmentPanel.refreshCheckpoints()
        self.correctionPanel.enter()

    def exit(self):
        """Called each time another module is opened; a segmentation under way continues."""
        self._isEntered = False
        if self.correctionPanel is not None:
            self.correctionPanel.exit()

    def onReload(self):
        """Developer's reload: the package and the library are read again together with this module's file."""
        for name in list(sys.modules):
            if name.split(".")[0] in ("SpineSegAISlicer", "SpineSegAILib"):
                del sys.modules[name]
        super().onReload()

    # --- the scene ---------------------------------------------------------------------------------------------------

    def onSceneStartClose(self, caller, event):
        """The scene is about to be emptied."""
        for panel in (self.segmentPanel, self.resultPanel, self.correctionPanel):
            panel.onSceneClose()
        self.setParameterNode(None)

    def onSceneEndClose(self, caller, event):
        """The scene is empty."""
        if self._isEntered:
            self.initializeParameterNode()

    def onSceneEndImport(self, caller, event):
        """A scene was loaded, maybe with a panel's choices in it."""
        self.setParameterNode(None)
        self.initializeParameterNode()

    def onNodeRemoved(self, caller, event):
        """Anything was removed from the scene."""
        if self._parameterNode is not None and not slicer.mrmlScene.IsClosing():
            for panel in (self.segmentPanel, self.resultPanel, self.correctionPanel):
                panel.onNodeRemoved()
            self.queuePanel.update()

    def onNodeAdded(self, caller, event):
        """Anything was added to the scene, or several things at once."""
        if self._parameterNode is not None and not slicer.mrmlScene.IsBatchProcessing():
            self.queuePanel.update()
            if self._parameterNode.inputVolume is None and self._isEntered:
                qt.QTimer.singleShot(0, self._preselectNewest)  # a volume gets its voxels after it was added

    # --- choices -----------------------------------------------------------------------------------------------------

    def initializeParameterNode(self):
        """Observe the scene's parameter node, and preselect a volume."""
        if self._parameterNode is None:
            self.setParameterNode(self.logic.getParameterNode())
        if self._parameterNode.inputVolume is None:
            self._parameterNode.inputVolume = self.logic.firstVolume()

    def _preselectNewest(self):
        """What was loaded while nothing was chosen is what the reader wants to segment."""
        if self._parameterNode is not None and self._parameterNode.inputVolume is None:
            self._parameterNode.inputVolume = next(reversed(self.logic.volumes()), None)

    def setParameterNode(self, parameterNode):
        """Connect the widgets to a parameter node; None disconnects them."""
        if self._parameterNode is not None:
            self._parameterNode.disconnectGui(self._parameterNodeGuiTag)
            self.removeObserver(
                self._parameterNode.parameterNode, vtk.vtkCommand.ModifiedEvent, self.onParametersModified
            )
        self._parameterNode = parameterNode
        if self.parameters is not None:
            self.parameters.node = parameterNode
        if parameterNode is not None:
            # Not `connectGui`, whose tag Slicer loses (its issue 7547): then nothing could ever be disconnected.
            self._parameterNodeGuiTag = parameterNode.connectParametersToGui(
                {name: w for w in vars(self.ui).values() if (name := w.property("SlicerParameterName"))}
            )
            self.addObserver(parameterNode.parameterNode, vtk.vtkCommand.ModifiedEvent, self.onParametersModified)
            self._shown = self._choicesNow()
            self._update()
        if self.datasetPanel is not None:
            self.datasetPanel.updateButtons()
        if self.correctionPanel is not None:
            self.correctionPanel.onParametersModified()

    def onParametersModified(self, caller=None, event=None):
        """A choice was changed, in the panel or by a script."""
        self.resultPanel.applyOpacity()
        choices = self._choicesNow()
        if choices != self._shown:  # else only the opacity, which is a slider and may change often
            volumeBefore = self._shown["inputVolume"]
            self._shown = choices
            if choices["inputVolume"] != volumeBefore:
                self._leaveOtherVolume(volumeBefore, choices["inputVolume"])
            self._update()
        self.datasetPanel.updateButtons()
        self.correctionPanel.onParametersModified()

    def _update(self):
        for panel in (self.segmentPanel, self.resultPanel, self.queuePanel):
            panel.update()

    def _choicesNow(self):
        """What the sections show of the parameter node; nodes by their ids."""
        names = ("method", "checkpoint", "device", "topLevel", "bottomLevel", "samples", "steps", "preview")
        nodes = ("inputVolume", "outputSegmentation")
        choices = {name: getattr(self._parameterNode, name) for name in names}
        for name in nodes:
            node = getattr(self._parameterNode, name)
            choices[name] = node.GetID() if node is not None else None
        return choices

    def _leaveOtherVolume(self, before, volumeId):
        """With another input volume, the last result is not an output any more: nobody wants one case over another.

        What was known of the patient is not, either; the levels in view stay for other series of the same study.
        """
        from .scene import volumes

        parameters, volumeNode = self._parameterNode, self._parameterNode.inputVolume
        series = volumes.otherSeriesOfStudy(volumeNode) if volumeNode is not None else []
        if before is not None and slicer.mrmlScene.GetNodeByID(before) not in series:
            parameters.topLevel = parameters.bottomLevel = 0
        for name in ("keypoints", "priorSegmentation"):  # another patient's
            if getattr(parameters, name) is not None:
                setattr(parameters, name, None)
        output = parameters.outputSegmentation
        reference = (
            output.GetNodeReferenceID(output.GetReferenceImageGeometryReferenceRole()) if output is not None else None
        )
        if reference is not None and reference != volumeId:
            parameters.outputSegmentation = None

    def onTab(self):
        """Another tab was opened."""
        self.correctionPanel.setShown(self.tabs.current == "correctTab")

    def onAnswer(self, alternative):
        """Beside the result, the other naming was chosen: a correction like any other, told where it was clicked."""
        self.correctionPanel.levels.choose(alternative)
        self.messages.say(self.correctionPanel.ui.correctMessageLabel.text)

    def onTry(self, link=None):
        """Load the sample and segment it."""
        from .scene import samples

        if self.segmenting.isRunning:
            return
        with slicer.util.tryWithErrorDisplay(_("The sample could not be loaded.")):
            self._parameterNode.inputVolume = samples.load()
            self._parameterNode.outputSegmentation = None
            self.segmentPanel.onApply()
