"""The short test that every installation can run: “Reload and Test”. The long ones are in Testing/Slicer."""

import slicer
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleTest


class SpineSegAITest(ScriptedLoadableModuleTest):
    """A result becomes segments, and segments a result."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        self.setUp()
        self.test_result_becomes_segments()

    def test_result_becomes_segments(self):
        """A made-up result becomes named segments at the right place, and can be read back."""
        import numpy as np
        import SimpleITK as sitk

        from SpineSegAILib.anatomy import SCHEMES
        from SpineSegAILib.results import Segmentation

        from .scene import labelmaps, results, volumes

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
