"""The panel in a Slicer that has none of our packages yet. A program of its own, since what is imported stays so."""

import importlib.metadata
import sys
import unittest

ABSENT = {"torch", "monai", "pydantic", "safetensors", "einops", "psutil", "scipy", "accelerate"}


class Absent:
    """Finds, before anything else does, that these packages are not there."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    @staticmethod
    def version(name, real=importlib.metadata.version):
        if name in ABSENT:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)


sys.meta_path.insert(0, Absent())
importlib.metadata.version = Absent.version

from panel_case import PanelCase, make_checkpoint, make_volume, np, slicer  # noqa: E402


class FreshSlicerTest(PanelCase):
    def setUp(self):
        from host.pythonqt import ERRORS
        from SpineSegAISlicer.processes import dependencies

        ensure = dependencies.ensure
        super().setUp()
        self.patch(dependencies, "ensure", ensure)
        self.asked = []
        self.patch(slicer.util, "confirmOkCancelDisplay", lambda text, *_named, **_more: self.asked.append(text))
        self.errors = ERRORS
        self.patch(sys, "excepthook", lambda *error: self.errors.append(repr(error[1])))  # observers end here
        self.errors.clear()

    def tearDown(self):
        super().tearDown()
        self.assertEqual(self.errors, [])

    def segmentation(self):
        """Two vertebrae, as if loaded from a file: never segmented here."""
        from SpineSegAISlicer.scene import labelmaps
        from SpineSegAISlicer.scene.segments import nameSegment, structuresOfSegmentation

        volume = make_volume()
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Loaded")
        node.CreateDefaultDisplayNodes()
        node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        labels = np.zeros((10, 60, 50), np.int16)
        labels[3:6, 10:20, 10:20], labels[3:6, 25:35, 10:20] = 23, 24
        segmentation = node.GetSegmentation()
        labelmaps.writeVoxels(node, labels, [23, 24], volume)
        for structureId, segmentId in structuresOfSegmentation(node).items():
            nameSegment(segmentation.GetSegment(segmentId), structureId, (23, 24), None, False)
        return node

    def test_methods_that_sample_can_be_chosen(self):
        make_checkpoint(self.folder, "sampling", method="verdiff-net")
        make_volume()
        self.openPanel()
        self.chooseModelOf("verdiff-net")
        self.assertEqual(self.ui.modelComboBox.currentData, "sampling")
        self.assertTrue(self.ui.applyButton.enabled, self.ui.applyButton.toolTip)
        self.assertEqual((self.ui.samplesSpinBox.specialValueText, self.ui.estimateLabel.text), ("", ""))

    def test_a_segmentation_can_be_looked_at(self):
        node = self.segmentation()
        self.openPanel()
        self.widget.tabs.show("correctTab")
        correct = self.widget.correctionPanel
        correct.ui.correctSegmentationSelector.setCurrentNode(node)
        self.assertIs(correct.editor.widget.segmentationNode(), node)
        self.assertEqual([row.structureId for row in correct.review.table.rows], [23, 24])
        self.widget.cleanup()
        self.openPanel()  # with the choice in the scene
        self.widget.tabs.show("correctTab")
        self.assertEqual(len(self.widget.correctionPanel.review.table.rows), 2)
        self.assertEqual(self.asked, [])

    def test_drawing_and_taking_back_need_nothing(self):
        node = self.segmentation()
        node.SetAttribute("SpineSegAI.CorrectionLog", '{"entries": [{"tool": "shift"}]}')
        self.openPanel()
        self.widget.tabs.show("correctTab")
        correct = self.widget.correctionPanel
        correct.ui.correctSegmentationSelector.setCurrentNode(node)
        correct.ui.structuresTable.selectRow(0)
        correct.editor.widget.setActiveEffectByName("Paint")
        correct.editor.widget.saveStateForUndo()
        segmentId, volume = correct.editor.widget.currentSegmentID(), correct.volumeNode()
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, segmentId, volume)
        slicer.util.updateSegmentBinaryLabelmapFromArray(np.roll(mask, 2), node, segmentId, volume)
        correct.refresh()
        correct.ui.correctUndoButton.click()
        self.assertEqual(correct.ui.correctMessageLabel.text, "Undone.")
        self.assertIn("shift", node.GetAttribute("SpineSegAI.CorrectionLog"))
        self.assertEqual(self.asked, [])

    def test_whatever_needs_packages_asks_for_them(self):
        node = self.segmentation()
        make_volume("Another")
        self.openPanel()
        self.widget.tabs.show("correctTab")
        correct = self.widget.correctionPanel
        correct.ui.correctSegmentationSelector.setCurrentNode(node)
        correct.ui.structuresTable.selectRow(0)
        correct.ui.boxButton.click()
        for button in (
            *(correct.ui.shiftUpButton, correct.ui.swapButton, correct.ui.smoothButton, correct.ui.interpolateButton),
            *(correct.ui.againButton, correct.ui.repairBoxButton, correct.ui.carryButton, correct.ui.refineButton),
            *(self.ui.csvButton, self.ui.reportButton, self.ui.measureButton, self.ui.applyButton),
            self.ui.cobbCheckBox,
        ):
            self.asked.clear()
            self.dialogs.clear()
            self.assertTrue(button.enabled, button.text)
            button.click()
            self.assertEqual(len(self.asked), 1, button.text)
            self.assertIn("so nothing was done", self.dialogs[0])
            self.assertEqual(self.errors, [], button.text)

    def test_a_training_set_is_listed_later(self):
        self.openPanel()
        data = self.widget.datasetUi
        data.datasetCollapsibleButton.collapsed = False
        data.datasetFolderLineEdit.text = str(self.folder)
        self.assertIn("Python packages", data.datasetStatusLabel.text)
        data.datasetFolderLineEdit.text = ""
        self.assertTrue(data.datasetStatusLabel.isHidden())


if __name__ == "__main__":
    unittest.main()
