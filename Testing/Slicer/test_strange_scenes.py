"""Scenes and computers that are not as the panel would like them. Runs in the host and inside Slicer."""

import csv
import locale
import re
import unittest

from panel_case import PanelCase, make_volume, np, qt, slicer


class TwoScenesTest(PanelCase):
    def test_two_panels_of_two_scenes_know_nothing_of_each_other(self):
        make_volume("First")
        first = self.openPanel(DOUBLE_ASK="1")
        self.ui.topLevelComboBox.setCurrentIndex(self.ui.topLevelComboBox.findText("L1"))
        self.run_to_the_end()
        self.run_to_the_end()  # so that there is something to undo
        first.tabs.show("correctTab")
        first.correctionPanel.review.table.select([23])
        first.correctionPanel.hints.addAnchor(23)
        outputId, volumeId = self.output().GetID(), first._parameterNode.inputVolume.GetID()
        path = str(self.folder / "first.mrb")
        self.assertTrue(slicer.mrmlScene.WriteToMRB(path))
        first.cleanup()
        slicer.mrmlScene.Clear(0)

        volume = make_volume("Second", size=(8, 60, 40))
        second = self.openPanel()
        self.assertIs(second._parameterNode.inputVolume, volume)
        self.assertEqual(volume.GetID(), volumeId)  # ids come again: nothing may be found by them
        self.assertEqual(second.ui.topLevelComboBox.currentData, 0)
        self.run_to_the_end()
        self.assertEqual(self.output().GetID(), outputId)
        self.assertEqual(self.output().GetName(), "Second spine")
        self.assertFalse(second.ui.undoButton.enabled)
        self.assertTrue(second.ui.answerButton.isHidden())
        self.assertEqual(second.correctionPanel.hints.anchors, {})
        self.assertEqual(second.correctionPanel.review.table.selected(), [])
        self.assertNotEqual(first.ui.statusLabel.text, second.ui.statusLabel.text)  # the first one hears no more

        second.tabs.show("correctTab")
        second.correctionPanel.review.table.select([22])
        second.correctionPanel.hints.addAnchor(22)
        slicer.mrmlScene.Clear(0)
        self.assertTrue(slicer.mrmlScene.ReadFromMRB(path))
        self.assertEqual(self.output().GetName(), "First spine")
        self.assertEqual(second.ui.topLevelComboBox.currentText, "L1")
        self.assertFalse(second.ui.answerButton.isHidden())
        self.assertFalse(second.ui.undoButton.enabled)
        self.assertFalse(second.correctionPanel.ui.correctUndoButton.enabled)
        self.assertEqual(second.correctionPanel.hints.anchors, {})
        self.run_to_the_end()
        self.assertEqual(len(self.segmentations()), 1)
        self.assertEqual(self.dialogs, [])


class OtherNodesTest(PanelCase):
    def test_a_segmentation_renamed_by_hand_is_still_the_result(self):
        volume = make_volume()
        self.openPanel(DOUBLE_SECONDS="0.5")
        self.run_to_the_end()
        node = self.output()
        node.SetName("Mrs. Miller / lumbar: 1?")
        self.click(self.ui.applyButton)
        self.waitUntil(lambda: self.ui.progressBar.value > 0)
        node.GetSegmentation().GetSegment("L4").SetName("mine")
        volume.SetName("renamed, too")
        self.waitUntilDone()
        self.assertIs(self.output(), node)
        self.assertEqual(node.GetName(), "Mrs. Miller / lumbar: 1?")
        self.assertEqual(len(self.segmentations()), 1)
        self.assertEqual(node.GetSegmentation().GetSegment("L4").GetName(), "L4 vertebra (body)")
        proposed = []
        self.patch(qt.QFileDialog, "getSaveFileName", lambda _parent, _title, name, _kinds: proposed.append(name) or "")
        self.click(self.ui.saveButton)
        self.assertEqual(len(proposed), 1)
        self.assertFalse(set(proposed[0]) & set('/\\:*?"<>|'), proposed[0])
        self.click(self.ui.measureButton)
        self.waitUntil(lambda: slicer.util.getNodesByClass("vtkMRMLTableNode"), 120)
        self.assertEqual(self.dialogs, [])

    def test_a_segmentation_of_another_module_keeps_what_it_has(self):
        volume = make_volume()
        foreign = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Somebody's")
        foreign.CreateDefaultDisplayNodes()
        foreign.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        segmentId = foreign.GetSegmentation().AddEmptySegment("Segment_1", "tumor")
        mask = np.zeros((10, 60, 50), np.uint8)
        mask[4:6, 20:24, 20:24] = 1
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask, foreign, segmentId, volume)
        self.openPanel()
        self.ui.outputSegmentationSelector.setCurrentNode(foreign)
        for tab in ("segmentTab", "correctTab", "trainTab"):
            self.widget.tabs.show(tab)
        self.assertFalse(self.ui.resultCollapsibleButton.isHidden())
        self.run_to_the_end()
        self.assertIs(self.output(), foreign)
        self.assertEqual(foreign.GetSegmentation().GetSegment(segmentId).GetName(), "tumor")
        kept = slicer.util.arrayFromSegmentBinaryLabelmap(foreign, segmentId, volume)
        np.testing.assert_array_equal(kept > 0, mask > 0)
        self.assertIn("L4", foreign.GetSegmentation().GetSegmentIDs())
        self.click(self.ui.undoButton)
        self.assertEqual(list(foreign.GetSegmentation().GetSegmentIDs()), [segmentId])
        self.assertEqual(self.dialogs, [])

    def test_references_to_nodes_of_other_kinds_are_none(self):
        """As in a scene that was edited by hand, or by another module."""
        volume = make_volume()
        table = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", "Table")
        self.openPanel()
        self.run_to_the_end()
        node = self.widget._parameterNode.parameterNode
        for role in ("inputVolume", "outputSegmentation", "keypoints", "priorSegmentation"):
            node.SetNodeReferenceID(role, table.GetID())
            self.widget.correctionPanel.refresh()
        self.assertIsNone(self.output())
        self.widget.enter()
        self.assertIs(self.widget._parameterNode.inputVolume, volume)  # preselected again
        self.run_to_the_end()
        self.assertEqual(len(self.segmentations()), 2)
        self.assertEqual(self.dialogs, [])


class DecimalCommaTest(PanelCase):
    """As on a computer that is set to German."""

    def setUp(self):
        super().setUp()
        before = qt.QLocale()
        qt.QLocale.setDefault(qt.QLocale("de_DE"))
        self.addCleanup(qt.QLocale.setDefault, before)
        numeric = locale.setlocale(locale.LC_NUMERIC)
        self.addCleanup(locale.setlocale, locale.LC_NUMERIC, numeric)
        for name in ("de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8", "German_Germany.1252"):
            try:
                locale.setlocale(locale.LC_NUMERIC, name)
                break
            except locale.Error:  # not installed: Qt's is set in any case
                pass

    def test_from_the_click_to_the_saved_table_and_scene(self):
        from SpineSegAISlicer.scene import labelmaps

        volume = make_volume()
        self.openPanel()
        self.ui.opacitySlider.value = 0.25
        self.run_to_the_end()
        self.assertAlmostEqual(self.output().GetDisplayNode().GetOpacity(), 0.25)
        self.click(self.ui.levelNamesCheckBox)
        centre = labelmaps.centreOf(self.output(), 23)
        path = self.folder / "table.csv"
        self.widget.resultPanel.outputs.saveTable(str(path))
        self.waitUntil(path.exists, 120)
        header, *rows = csv.reader(path.read_text(encoding="utf-8-sig").splitlines())
        self.assertEqual({len(row) for row in rows}, {len(header)})
        cells = [cell for row in rows for cell in row]
        self.assertTrue([cell for cell in cells if re.fullmatch(r"-?\d+\.\d+", cell)], cells)
        self.assertEqual([cell for cell in cells if re.fullmatch(r"-?\d+,\d+", cell)], [])
        scene = str(self.folder / "scene.mrb")
        self.assertTrue(slicer.mrmlScene.WriteToMRB(scene))
        slicer.mrmlScene.Clear(0)
        self.assertTrue(slicer.mrmlScene.ReadFromMRB(scene))
        self.assertAlmostEqual(self.widget._parameterNode.opacity, 0.25)
        np.testing.assert_allclose(labelmaps.centreOf(self.output(), 23), centre)
        spacing = self.widget._parameterNode.inputVolume.GetSpacing()
        np.testing.assert_allclose(spacing, (1.25, 1.0, 4.0))
        self.assertIsNotNone(volume)
        self.assertEqual(self.dialogs, [])

    def test_a_size_is_typed_with_a_comma(self):
        make_volume()
        self.openPanel()
        self.run_to_the_end()
        self.widget.tabs.show("correctTab")
        correct = self.widget.correctionPanel
        box = correct.ui.smoothSpinBox
        box.setLocale(qt.QLocale())
        self.assertIn("2,0", box.text)
        box.value = 2.5
        self.assertIn("2,5", box.text)
        correct.review.table.select([23])
        asked = []
        from SpineSegAILib.correction import voxels

        smooth = voxels.smooth
        self.patch(voxels, "smooth", lambda labels, structure, size, **named: (
            asked.append(size), smooth(labels, structure, size, **named))[1])  # fmt: skip
        self.click(correct.ui.smoothButton)
        self.assertEqual(asked, [2.5])
        self.assertNotIn("cannot", correct.ui.correctMessageLabel.text)


if __name__ == "__main__":
    unittest.main()
