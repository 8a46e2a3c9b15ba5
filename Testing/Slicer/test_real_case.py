"""Real checkpoints in real worker processes, from the click to the saved scene. Also runs inside Slicer."""

import unittest
from pathlib import Path
from typing import ClassVar

from panel_case import PanelCase, centroid, image_centroid, np, slicer

REAL_CASE = Path(__file__).parents[2].parent / "shared/data/lumbar_mr/chu_08_image.nii.gz"
DEFAULT = "lumbar-mr-resenc"


class RealWorkerCase(PanelCase):
    """The panel as users have it: the worker is `SpineSegAILib.worker`, checkpoints are those that ship."""

    worker = ("-m", "SpineSegAILib.worker")
    environment: ClassVar = {"OMP_NUM_THREADS": "2"}
    checkpoints = ()

    def listCheckpoints(self):
        from SpineSegAILib.checkpoints import list_checkpoints

        return list_checkpoints()


class TinyCheckpointTest(RealWorkerCase):
    """A checkpoint that knows nothing: everything is real but the meaning of the result."""

    def setUp(self):
        super().setUp()
        import torch

        from SpineSegAILib.checkpoints import save_checkpoint
        from SpineSegAILib.imaging import Preprocessing
        from SpineSegAILib.methods.catalog import DEFAULT_METHOD, build_method, make_config

        torch.manual_seed(0)
        config = make_config(DEFAULT_METHOD, "tiny")
        self.path = self.folder / "tiny.safetensors"
        metadata = {
            "title": "Tiny",
            "method": config.model_dump(mode="json"),
            "preprocessing": Preprocessing(pixel_mm=2.0).model_dump(mode="json"),
            "patch": [64, 64],
        }
        save_checkpoint(self.path, build_method(config).state_dict(), metadata)

    def test_the_sample_is_segmented_by_one_click_on_the_link(self):
        self.openPanel()
        self.widget._parameterNode.checkpoint = str(self.path)
        self.widget.onTry("#try")
        self.assertEqual(self.ui.inputVolumeSelector.currentNode().GetName(), "SpineSegAI synthetic lumbar spine")
        self.waitUntilDone(120)
        self.assertFalse(self.dialogs, self.dialogs)
        self.assertEqual(len(self.segmentations()), 1)
        self.assertIn(" s.", self.ui.statusLabel.text + " s.")
        self.waitUntil(lambda: self.ui.deviceLabel.text != "" or self.panel.device.answer is None)

    def test_the_device_is_named_and_after_a_run_its_time(self):
        self.openPanel()
        self.ui.deviceComboBox.setCurrentIndex(self.ui.deviceComboBox.findData("cpu"))
        self.panel.warmUp()
        self.waitUntil(lambda: self.ui.deviceLabel.text != "", 60)
        self.assertRegex(self.ui.deviceLabel.text, r"^CPU \(\d+ threads?\)$")
        self.assertEqual(self.ui.deviceLabel.styleSheet, "")
        self.widget._parameterNode.checkpoint = str(self.path)
        self.assertEqual(self.ui.estimateLabel.text, "")
        self.widget.onTry("#try")
        self.waitUntilDone(120)
        self.assertRegex(self.ui.estimateLabel.text, r"^About \d+ (s|min) on this device\.$")

    def test_the_same_by_a_script(self):
        from SpineSegAISlicer.scene import samples

        from SpineSegAI import SpineSegAILogic

        volume = samples.load()
        seen = []
        node = SpineSegAILogic().segment(
            volume, checkpoint=str(self.path), device="cpu", progress=lambda fraction, message: seen.append(fraction)
        )
        self.assertTrue(node.IsA("vtkMRMLSegmentationNode"))
        self.assertEqual(seen[-1], 1.0)
        self.assertIs(SpineSegAILogic().segment(volume, str(self.path), "cpu", segmentationNode=node), node)


class EverySystemTest(RealWorkerCase):
    """The published systems that ship, chosen in the box and run by the button, on the sample."""

    def segmentWith(self, method):
        """The sample by a system. Returns where L4 is, and where it should be (RAS, mm)."""
        import SimpleITK as sitk
        from SpineSegAISlicer.scene import samples

        self.openPanel()
        self.widget._parameterNode.inputVolume = samples.load()
        self.ui.deviceComboBox.setCurrentIndex(self.ui.deviceComboBox.findData("cpu"))
        self.chooseModelOf(method)
        self.assertEqual(self.panel.choices.checkpoint().method, method)
        self.click(self.ui.applyButton)
        self.waitUntilDone(600)
        self.assertEqual(self.dialogs, [])
        truth = sitk.ReadImage(str(samples.samplePath()).replace(".nii.gz", "_label.nii.gz"))
        return centroid(self.output(), 23, self.widget._parameterNode.inputVolume), image_centroid(truth, 23)

    def test_atm_net(self):
        found, truth = self.segmentWith("atm-net")
        self.assertLess(np.linalg.norm(found - truth), 5.0)

    def test_la_caf(self):
        found, truth = self.segmentWith("la-caf")
        self.assertLess(np.linalg.norm(found - truth), 5.0)

    def test_a_level_that_is_said_to_be_right_is_obeyed(self):
        """By hand: everything a level higher, this one is right, segment again."""
        where, _truth = self.segmentWith("resenc-unet")
        volume = self.widget._parameterNode.inputVolume
        self.widget.tabs.show("correctTab")
        correct = self.widget.correctionPanel
        self.click(correct.ui.shiftUpButton)
        correct.ui.againGroupBox.collapsed = False
        correct.review.table.select([22])
        self.click(correct.ui.addAnchorButton)
        self.assertIn("L3", correct.ui.anchorHintLabel.text)
        self.click(correct.ui.againButton)
        self.waitUntilDone(600)
        self.assertEqual(self.dialogs, [])
        self.assertLess(np.linalg.norm(centroid(self.output(), 22, volume) - where), 5.0)


class DefaultCheckpointTest(RealWorkerCase):
    """What users get: needs the default checkpoint, and the shared data for the real case."""

    def setUp(self):
        super().setUp()
        if DEFAULT not in [info.name for info in self.listCheckpoints()]:
            self.skipTest(f"the checkpoint {DEFAULT} is not here")

    def segment(self, volume):
        self.openPanel()
        self.ui.inputVolumeSelector.setCurrentNode(volume)
        self.assertEqual(self.ui.modelComboBox.currentData, DEFAULT)
        self.ui.deviceComboBox.setCurrentIndex(self.ui.deviceComboBox.findData("cpu"))
        self.assertTrue(self.ui.applyButton.enabled, self.ui.applyButton.toolTip)
        self.click(self.ui.applyButton)
        self.waitUntilDone(180)
        self.assertFalse(self.dialogs, self.dialogs)

    def test_the_sample_gets_its_levels_right(self):
        import SimpleITK as sitk
        from SpineSegAISlicer.scene import labelmaps, samples

        volume = samples.load()
        self.segment(volume)
        truth = sitk.ReadImage(str(samples.samplePath()).replace(".nii.gz", "_label.nii.gz"))
        found = labelmaps.labelsFromSegmentation(self.output(), volume)
        for structure in (20, 21, 22, 23, 24):
            distance = np.linalg.norm(image_centroid(found, structure) - image_centroid(truth, structure))
            self.assertLess(distance, 5.0, structure)

    def test_a_real_case_survives_saving_as_a_bundle(self):
        import SimpleITK as sitk
        from SpineSegAISlicer.scene import labelmaps

        if not REAL_CASE.exists():
            self.skipTest("the shared lumbar MR data are not here")
        volume = slicer.util.loadVolume(str(REAL_CASE))
        self.segment(volume)
        before = self.describe(self.output())
        self.assertLessEqual({"L1", "L2", "L3", "L4", "L5"}, set(before))
        labels = sitk.GetArrayFromImage(labelmaps.labelsFromSegmentation(self.output(), volume))
        path = str(self.folder / "case.mrb")
        self.assertTrue(slicer.mrmlScene.WriteToMRB(path))
        slicer.mrmlScene.Clear(0)
        self.assertTrue(slicer.mrmlScene.ReadFromMRB(path))
        self.assertEqual(self.describe(self.output()), before)
        again = labelmaps.labelsFromSegmentation(self.output(), self.ui.inputVolumeSelector.currentNode())
        np.testing.assert_array_equal(sitk.GetArrayViewFromImage(again), labels)

    @staticmethod
    def describe(node):
        """Segment id → name, color, terminology, structure."""
        import vtk
        from SpineSegAISlicer.scene.segments import structureOfSegment

        segmentation, described = node.GetSegmentation(), {}
        for segmentId in segmentation.GetSegmentIDs():
            segment = segmentation.GetSegment(segmentId)
            entry = vtk.mutable("")
            segment.GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), entry)
            color = tuple(round(c, 3) for c in segment.GetColor())
            described[segmentId] = (segment.GetName(), color, entry.get(), structureOfSegment(segment))
        return described


if __name__ == "__main__":
    unittest.main()
