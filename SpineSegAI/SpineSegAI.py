"""SpineSegAI in 3D Slicer: module, parameter node, widget, logic, test. What they do is in `SpineSegAISlicer`."""

import os
import sys
from typing import Annotated

import qt
import slicer
import vtk
from slicer import vtkMRMLMarkupsFiducialNode, vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

try:
    import SpineSegAILib
except ImportError:  # a source checkout used as additional module path: the library lies beside this folder
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    import SpineSegAILib

OLDEST_PYTHON = (3, 10)
"""This file alone has to be understood by older ones, to say so."""

WARM_UP_MILLISECONDS = 500
"""After the panel has opened: late enough not to slow the opening down."""


class SpineSegAI(ScriptedLoadableModule):
    """What Slicer's module list shows."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = "SpineSegAI"
        parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        parent.dependencies = ["Markups", "Segmentations", "SubjectHierarchy", "Tables"]
        parent.contributors = ["SpineSegAI contributors"]
        parent.helpText = _(
            "Segments vertebrae, discs and spinal canal, one named segment per structure. Select a volume and click"
            " “Segment spine”.<br><b>For research use only, not for diagnosis.</b> Numbering assumes five lumbar"
            " vertebrae unless L6 or T13 is seen: check the levels."
        )
        parent.acknowledgementText = _(
            "SpineSegAI {version}. The methods are published ones; each names its source when the mouse rests on it."
        ).format(version=SpineSegAILib.__version__)
        if sys.version_info < OLDEST_PYTHON:
            return
        slicer.app.connect("startupCompleted()", registerSampleData)
        slicer.app.connect("startupCompleted()", registerTerminology)


def registerSampleData():
    """Add the lumbar phantom to the module “Sample Data”."""
    from SpineSegAISlicer.scene import samples

    samples.register()


def registerTerminology():
    """Let Slicer's terminology selector know the structures."""
    from SpineSegAILib.anatomy.terminology import TERMINOLOGY_FILE
    from SpineSegAILib.resources import resources_folder

    slicer.modules.terminologies.logic().LoadTerminologyFromFile(
        str(resources_folder() / "Terminology" / TERMINOLOGY_FILE)
    )


@parameterNodeWrapper
class SpineSegAIParameterNode:
    """The panel's choices, saved with the scene.

    inputVolume - what to segment.
    outputSegmentation - where the segments go; a new node if not set.
    method - id in the catalogue; empty for the default.
    checkpoint - name, or path of a file from elsewhere; empty for the first one of the method.
    device - auto, cpu, cuda or mps.
    topLevel, bottomLevel - structure ids of the ends of the visible range; 0 if not given.
    keypoints - centres of structures, named after them; for methods that take key points.
    samples, steps, preview - of methods that sample: masks drawn and steps of each, 0 for as many as the checkpoint was
        made for; or only what they would start from.
    priorSegmentation - what such a method starts from; its own mask if not set.
    includeUnvalidated - also segment what the checkpoint learnt from generated images alone.
    opacity - of the segments.
    """

    inputVolume: vtkMRMLScalarVolumeNode
    outputSegmentation: vtkMRMLSegmentationNode
    method: str = ""
    checkpoint: str = ""
    device: str = "auto"
    topLevel: int = 0
    bottomLevel: int = 0
    samples: Annotated[int, WithinRange(0, 50)] = 0
    steps: Annotated[int, WithinRange(0, 1000)] = 0
    preview: bool = False
    keypoints: vtkMRMLMarkupsFiducialNode
    priorSegmentation: vtkMRMLSegmentationNode
    includeUnvalidated: bool = False
    opacity: Annotated[float, WithinRange(0.0, 1.0)] = 0.6


class SpineSegAIWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Wires the sections to the scene; each section's behaviour is in a file of its own."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self.segmentPanel = None
        self.datasetPanel = None
        self.trainingPanel = None
        self.correctionPanel = None
        self._parameterNode = None
        self._parameterNodeGuiTag = None
        self._isEntered = True  # a widget is made when its module is opened

    def setup(self):
        """Called when the module is opened for the first time."""
        ScriptedLoadableModuleWidget.setup(self)
        from SpineSegAISlicer.panels.segment import SegmentPanel

        uiWidget = slicer.util.loadUI(self.resourcePath("UI/SpineSegAI.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = SpineSegAILogic()
        self.segmentPanel = SegmentPanel(self.ui, self.logic)
        self.ui.tryLabel.connect("linkActivated(QString)", self.onTry)
        self.setupCorrection(uiWidget.layout())
        self.setupDataset(uiWidget.layout())
        self.setupTraining(uiWidget.layout())

        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self.onSceneEndImport)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.NodeRemovedEvent, self.onNodeRemoved)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.NodeAddedEvent, self.onNodeAdded)
        self.initializeParameterNode()
        qt.QTimer.singleShot(WARM_UP_MILLISECONDS, self.segmentPanel.warmUp)

    def setupCorrection(self, layout):
        """The Correct section, above the queue."""
        from SpineSegAISlicer.panels.correct import CorrectionPanel

        uiWidget = slicer.util.loadUI(self.resourcePath("UI/SpineSegAICorrect.ui"))
        layout.insertWidget(layout.indexOf(self.ui.queueCollapsibleButton), uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.correctionPanel = CorrectionPanel(uiWidget, self.segmentPanel, self.logic)

    def setupDataset(self, layout):
        """The Training set section, above the log."""
        from SpineSegAISlicer.panels.dataset import DatasetPanel

        uiWidget = slicer.util.loadUI(self.resourcePath("UI/SpineSegAIDataset.ui"))
        layout.insertWidget(layout.indexOf(self.ui.logCollapsibleButton), uiWidget)
        self.datasetUi = slicer.util.childWidgetVariables(uiWidget)
        self.datasetPanel = DatasetPanel(
            self.datasetUi,
            checkpoint=lambda: self.ui.checkpointComboBox.currentData,
            device=lambda: self.ui.deviceComboBox.currentData,
        )

    def setupTraining(self, layout):
        """The Train section, above the log."""
        from SpineSegAISlicer.panels.train import TrainingPanel

        uiWidget = slicer.util.loadUI(self.resourcePath("UI/SpineSegAITrain.ui"))
        layout.insertWidget(layout.indexOf(self.ui.logCollapsibleButton), uiWidget)
        self.trainingUi = slicer.util.childWidgetVariables(uiWidget)
        self.trainingPanel = TrainingPanel(
            self.trainingUi,
            dataset=lambda: self.datasetPanel.path,
            onCheckpoint=self.segmentPanel.refreshCheckpoints,
        )

    def cleanup(self):
        """Called when the module is unloaded or Slicer ends."""
        self.setParameterNode(None)
        self.removeObservers()
        if self.datasetPanel is not None:
            self.datasetPanel.cleanup()
        if self.trainingPanel is not None:
            self.trainingPanel.cleanup()
        if self.segmentPanel is not None:
            self.segmentPanel.cleanup()
        if self.correctionPanel is not None:
            self.correctionPanel.cleanup()

    def enter(self):
        """Called each time the module is opened."""
        if self.trainingPanel is None:  # the set-up failed, and said why
            return
        self._isEntered = True
        self.initializeParameterNode()
        self.segmentPanel.refreshCheckpoints()
        self.correctionPanel.enter()

    def exit(self):
        """Called each time another module is opened; a segmentation under way goes on."""
        self._isEntered = False
        if self.correctionPanel is not None:
            self.correctionPanel.exit()

    def onSceneStartClose(self, caller, event):
        """The scene is about to be emptied."""
        self.segmentPanel.onSceneClose()
        self.correctionPanel.onSceneClose()
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
            self.segmentPanel.onNodeRemoved()
            self.correctionPanel.onNodeRemoved()

    def onNodeAdded(self, caller, event):
        """Anything was added to the scene."""
        if self._parameterNode is not None and not slicer.mrmlScene.IsBatchProcessing():
            self.segmentPanel.updateQueueTable()

    def initializeParameterNode(self):
        """Observe the scene's parameter node, and preselect a volume."""
        if self._parameterNode is None:
            self.setParameterNode(self.logic.getParameterNode())
        if self._parameterNode.inputVolume is None:
            self._parameterNode.inputVolume = self.logic.firstVolume()

    def setParameterNode(self, parameterNode):
        """Connect the widgets to a parameter node; None disconnects them."""
        if self._parameterNode is not None:
            self._parameterNode.disconnectGui(self._parameterNodeGuiTag)
            self.removeObserver(
                self._parameterNode.parameterNode, vtk.vtkCommand.ModifiedEvent, self.onParametersModified
            )
        self._parameterNode = parameterNode
        if parameterNode is not None:
            # Not `connectGui`, whose tag Slicer loses (its issue 7547): then nothing could ever be disconnected.
            self._parameterNodeGuiTag = parameterNode.connectParametersToGui(
                {name: w for w in vars(self.ui).values() if (name := w.property("SlicerParameterName"))}
            )
            self.addObserver(parameterNode.parameterNode, vtk.vtkCommand.ModifiedEvent, self.onParametersModified)
        for panel in (self.segmentPanel, self.datasetPanel, self.correctionPanel):
            if panel is not None:
                panel.setParameterNode(parameterNode)

    def onParametersModified(self, caller=None, event=None):
        """A choice was changed, in the panel or by a script."""
        self.segmentPanel.onParametersModified()
        self.datasetPanel.updateButtons()
        self.correctionPanel.onParametersModified()

    def onTry(self, link=None):
        """Load the sample and segment it."""
        from SpineSegAISlicer.scene import samples

        if self.segmentPanel.isRunning:
            return
        with slicer.util.tryWithErrorDisplay(_("The sample could not be loaded.")):
            self._parameterNode.inputVolume = samples.load()
            self._parameterNode.outputSegmentation = None
            self.segmentPanel.onApply()

    def onReload(self):
        """Developer's reload: the package and the library are read again together with this file."""
        for name in list(sys.modules):
            if name.split(".")[0] in ("SpineSegAISlicer", "SpineSegAILib"):
                del sys.modules[name]
        super().onReload()


if sys.version_info < OLDEST_PYTHON:

    class SpineSegAIWidget(ScriptedLoadableModuleWidget):
        """What an older Slicer shows instead of the panel."""

        def setup(self):
            """Called when the module is opened for the first time."""
            ScriptedLoadableModuleWidget.setup(self)
            label = qt.QLabel(
                _("SpineSegAI needs Slicer 5.10 or newer: this one has Python {there}, not {needed} or newer.").format(
                    there=".".join(map(str, sys.version_info[:2])), needed=".".join(map(str, OLDEST_PYTHON))
                )
            )
            label.wordWrap = True
            self.layout.addWidget(label)
            self.layout.addStretch(1)


class SpineSegAILogic(ScriptedLoadableModuleLogic):
    """What can be done without the panel, for scripts."""

    def getParameterNode(self):
        """The scene's parameter node, typed."""
        return SpineSegAIParameterNode(super().getParameterNode())

    @staticmethod
    def firstVolume():
        """The first image of the scene, or None: neither a colour picture nor a label map."""
        from SpineSegAISlicer.scene import volumes

        return next(iter(volumes.images()), None)

    @staticmethod
    def segment(
        volumeNode,
        checkpoint=None,
        device="auto",
        hints=None,
        options=None,
        includeUnvalidated=False,
        segmentationNode=None,
        progress=None,
    ):
        """Segment a volume and wait for it: one named, coloured, coded segment per structure.

        Runs in this process and blocks until done; the panel uses a process of its own instead. Example::

            volumeNode = slicer.util.loadVolume("lumbar.nii.gz")
            segmentationNode = SpineSegAILogic().segment(volumeNode)
            slicer.util.saveNode(segmentationNode, "lumbar.seg.nrrd")

        :param volumeNode: scalar volume, sagittal or isotropic, may be under a linear transform.
        :param checkpoint: name or path; the default checkpoint if not given.
        :param device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``.
        :param hints: `SpineSegAILib.hints.Hints`, e.g. ``Hints(visible=(18, 26))`` for T11 to S1.
        :param options: options of the method, name → value.
        :param includeUnvalidated: also structures that the checkpoint learnt from generated images alone.
        :param segmentationNode: node to update; its locked segments stay as they are. A new one if not given.
        :param progress: function of a fraction (0…1) and a sentence.
        :returns: the segmentation node.
        :raises SpineSegAILib.errors.SpineSegAIError: with a message and a remedy, for every foreseeable failure.
        """
        from SpineSegAISlicer.scene import results, uncertainty, volumes

        from SpineSegAILib.hints import Hints
        from SpineSegAILib.results import refuse_nothing, validated
        from SpineSegAILib.worker.process import default_predictor

        hints = hints or Hints()
        image = volumes.imageFromVolume(volumeNode)
        predictor = default_predictor(checkpoint, device)
        result = predictor.segment(image, hints=hints, options=options or {}, progress=progress)
        refuse_nothing(result, _("No spine was found in “{volume}”.").format(volume=volumeNode.GetName()))
        if not includeUnvalidated:
            result = validated(result, hints.locked, _("Say includeUnvalidated=True to see it"))
        segmentationNode = results.segmentationFromResult(result, volumeNode, segmentationNode)
        uncertainty.mapFromResult(result, volumeNode, segmentationNode)
        return segmentationNode

    @staticmethod
    def measure(segmentationNode, volumeNode):
        """Measure a segmentation as it is now, corrections included.

        :param volumeNode: the volume that it belongs to.
        :returns: a table node, one row per structure.
        """
        from SpineSegAISlicer.scene import results, tables

        from SpineSegAILib.results.measurement_table import measurement_table

        columns, rows = measurement_table(results.resultFromSegmentation(segmentationNode, volumeNode))
        return tables.tableFromMeasurements(columns, rows, segmentationNode)

    @staticmethod
    def warningsOf(segmentationNode):
        """Sentences that the reader should see, e.g. that the sacrum is not visible and levels are a guess."""
        from SpineSegAISlicer.scene import result_attribute

        return result_attribute.read(segmentationNode).get("warnings", [])

    @staticmethod
    def applyToOtherSeries(segmentationNode, volumeNode):
        """Carry a segmentation, by position, to the other series of its volume's study: a starting point there.

        :returns: for each other series its volume node, the new segmentation node (or None), and a sentence.
        """
        from SpineSegAISlicer.scene import other_series

        return other_series.applyToOtherSeries(segmentationNode, volumeNode)


class SpineSegAITest(ScriptedLoadableModuleTest):
    """The short test that every installation can run: “Reload and Test”. The long ones are in Testing/Slicer."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        self.setUp()
        self.test_result_becomes_segments()

    def test_result_becomes_segments(self):
        """A made-up result becomes named segments at the right place, and can be read back."""
        import numpy as np
        import SimpleITK as sitk
        from SpineSegAISlicer.scene import labelmaps, results, volumes

        from SpineSegAILib.anatomy import SCHEMES
        from SpineSegAILib.results import Segmentation

        self.delayDisplay("From a result to segments and back")
        volumeNode = slicer.util.addVolumeFromArray(np.arange(8 * 20 * 10, dtype=np.int16).reshape(8, 20, 10))
        labels = np.zeros((8, 20, 10), np.int16)
        labels[2:6, 2:6, 2:8] = 23
        labels[2:6, 8:12, 2:8] = 24
        image = sitk.GetImageFromArray(labels)
        image.CopyInformation(volumes.imageFromVolume(volumeNode))
        node = results.segmentationFromResult(Segmentation(labels=image, scheme=SCHEMES["lumbar-mr"]), volumeNode)
        self.assertEqual(list(node.GetSegmentation().GetSegmentIDs()), ["L4", "L5"])
        back = sitk.GetArrayFromImage(labelmaps.labelsFromSegmentation(node, volumeNode))
        self.assertTrue((back == labels).all())
        self.delayDisplay("Test passed")
