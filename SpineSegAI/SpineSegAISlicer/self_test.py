"""The test that every installation can run: “Reload and Test”. The long ones are in Testing/Slicer."""

import tempfile
import time
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleTest

PATIENCE_SECONDS = 300
"""For the sample on a slow computer, the start of the segmentation process included."""


class SpineSegAITest(ScriptedLoadableModuleTest):
    """From a result to segments and back; and the way of a user, from the sample to a saved scene."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        for test in (self.test_result_becomes_segments, self.test_the_way_of_a_user):
            self.setUp()
            test()

    def test_result_becomes_segments(self):
        """A made-up result becomes named segments at the right place, and can be read back."""
        import numpy as np
        import SimpleITK as sitk

        from SpineSegAILib.anatomy import SCHEMES
        from SpineSegAILib.results import Segmentation

        from .scene import labelmaps, results, volumes

        self.delayDisplay(_("From a result to segments and back"))
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
        self.delayDisplay(_("Test passed"))

    def test_the_way_of_a_user(self):
        """Open, load, click, look at the result, shift the levels, undo, save, close, load again."""
        from .processes import dependencies
        from .scene import samples

        if not dependencies.areInstalled():
            self.delayDisplay(_("Install the Python packages first: click “Segment spine”, then test again"))
            self.fail(_("Python packages are missing"))
        self.delayDisplay(_("Opening the panel and loading the sample"))
        widget = self.makeWidget()
        try:
            widget.initializeParameterNode()
            parameters = widget.parameters
            parameters.write(inputVolume=samples.load())
            self.assertTrue(widget.ui.applyButton.enabled, widget.ui.applyButton.toolTip)

            self.delayDisplay(_("Segmenting"))
            widget.ui.applyButton.click()
            self.waitUntil(lambda: not widget.segmenting.isRunning)
            self.assertIsNotNone(parameters.outputSegmentation, widget.ui.statusLabel.text)
            levels = self.names(parameters.outputSegmentation)
            self.assertIn("L3", levels)

            self.delayDisplay(_("Shifting the levels, and back"))
            widget.tabs.show("correctTab")
            correct = widget.correctionPanel
            correct.review.table.select([23])
            correct.ui.shiftUpButton.click()
            self.assertNotEqual(self.names(parameters.outputSegmentation), levels)
            self.assertEqual(correct.review.table.selected(), [22])
            correct.ui.correctUndoButton.click()
            self.assertEqual(self.names(parameters.outputSegmentation), levels)
            self.assertEqual(correct.review.table.selected(), [23])

            self.delayDisplay(_("Saving, closing and loading the scene"))
            with tempfile.TemporaryDirectory(prefix="SpineSegAI-test-") as folder:
                path = str(Path(folder, "scene.mrb"))
                self.assertTrue(slicer.mrmlScene.WriteToMRB(path))
                slicer.mrmlScene.Clear(0)
                self.assertIsNone(parameters.outputSegmentation)
                self.assertTrue(slicer.mrmlScene.ReadFromMRB(path))
            self.assertEqual(self.names(parameters.outputSegmentation), levels)
        finally:
            widget.cleanup()
        self.delayDisplay(_("Test passed"))

    @staticmethod
    def makeWidget():
        """A panel of its own, as Slicer makes it when the module is opened."""
        from .widget import SpineSegAIWidget

        frame = slicer.qMRMLWidget()
        frame.setLayout(qt.QVBoxLayout())
        frame.setMRMLScene(slicer.mrmlScene)
        widget = SpineSegAIWidget(frame)
        widget.setup()
        return widget

    @staticmethod
    def names(segmentationNode):
        """Short names of the segments, top down."""
        segmentation = segmentationNode.GetSegmentation()
        return [segmentation.GetSegment(i).GetName().split()[0] for i in segmentation.GetSegmentIDs()]

    def waitUntil(self, condition):
        """Let Slicer continue until something has happened."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            self.assertLess(time.monotonic(), end, _("It did not happen in time"))
            slicer.app.processEvents()
            time.sleep(0.01)
