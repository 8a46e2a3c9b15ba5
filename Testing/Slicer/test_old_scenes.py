"""Scenes saved by earlier versions still open, and can be worked on. Runs in the host and inside Slicer.

`data/first_version.mrb` was saved by version 0.1: a tiny volume with a result of which levels were shifted up, L3
locked, a list of key points with L2 dragged, and a map of uncertainty. SCAR-Net, T12 to S1 in view, and the list are
chosen.
"""

import json
import unittest
from pathlib import Path

from panel_case import PanelCase, make_checkpoint, np, qt, slicer

FIRST_VERSION = Path(__file__).parent / "data/first_version.mrb"
LEVELS = ["T12", "T12/L1", "L1", "L1/L2", "L2", "L2/L3", "L3", "L3/L4", "L4", "L4/L5", "L5", "canal"]


class FirstVersionTest(PanelCase):
    checkpoints = ("points",)

    def setUp(self):
        super().setUp()
        make_checkpoint(self.folder, "points", method="scar-net")
        self.openPanel()
        self.assertTrue(slicer.mrmlScene.ReadFromMRB(str(FIRST_VERSION)))
        self.cui = self.widget.correctionPanel.ui
        self.widget.tabs.show("correctTab")
        self.widget.correctionPanel.refresh()

    def segmentIds(self):
        return list(self.output().GetSegmentation().GetSegmentIDs())

    def labels(self):
        return {
            segmentId: slicer.util.arrayFromSegmentBinaryLabelmap(self.output(), segmentId, self.volume())
            for segmentId in self.segmentIds()
        }

    def volume(self):
        return self.ui.inputVolumeSelector.currentNode()

    def log(self):
        return [
            entry["tool"] for entry in json.loads(self.output().GetAttribute("SpineSegAI.CorrectionLog"))["entries"]
        ]

    def rows(self):
        table = self.cui.structuresTable
        return [(table.item(row, 0).text(), table.item(row, 1).text()) for row in range(table.rowCount)]

    def test_choices_are_as_they_were(self):
        self.assertEqual(self.volume().GetName(), "T2")
        self.assertEqual(self.ui.modelComboBox.currentData, "points")
        self.assertEqual((self.ui.topLevelComboBox.currentText, self.ui.bottomLevelComboBox.currentText), ("T12", "S1"))
        self.assertAlmostEqual(self.output().GetDisplayNode().GetOpacity(), 0.5)
        self.assertTrue(self.ui.applyButton.enabled, self.ui.applyButton.toolTip)

    def test_the_result_is_found_with_all_that_was_said_of_it(self):
        self.assertEqual(self.output().GetName(), "T2 spine")
        self.assertEqual(self.segmentIds(), LEVELS)
        self.assertIn("sacrum is not visible", self.ui.warningLabel.text)
        self.assertEqual(self.rows()[0], ("T12 vertebra", ""))
        self.assertEqual(self.rows()[-1], ("spinal canal (unvalidated)", ""))
        self.cui.structuresTable.selectRow(0)
        levels = [self.cui.levelComboBox.itemText(i) for i in range(self.cui.levelComboBox.count)]
        self.assertEqual((levels[1], levels[-1]), ("T9", "S1"))  # of the scheme that the result was made with
        self.assertTrue(not self.ui.uncertaintyCheckBox.isHidden())
        self.assertEqual(self.log(), ["shift"])

    def names(self):
        segmentation = self.output().GetSegmentation()
        return [segmentation.GetSegment(i).GetName().split()[0] for i in self.segmentIds()]

    def locked(self, segmentId):
        return self.output().GetSegmentation().GetSegment(segmentId).HasTag("SpineSegAI.Locked")

    def test_the_lock_still_holds(self):
        self.click(self.cui.shiftDownButton)
        self.assertIn("L3 is locked", self.cui.correctMessageLabel.text)
        self.assertEqual((self.segmentIds(), self.log()), (LEVELS, ["shift"]))

    def test_levels_are_shifted_and_the_shift_undone(self):
        self.cui.structuresTable.item(6, 3).setCheckState(qt.Qt.Unchecked)
        before = self.labels()
        self.click(self.cui.shiftDownButton)
        names = self.names()
        self.assertEqual(names[:2] + names[-2:], ["L1", "L1/L2", "S1", "spinal"])
        self.assertEqual(self.segmentIds(), LEVELS)  # the same segments, under other names
        self.assertEqual(self.log(), ["shift", "shift"])
        self.assertEqual(names[LEVELS.index("L3")], "L4")
        np.testing.assert_array_equal(self.labels()["L3"], before["L3"])
        self.click(self.cui.correctUndoButton)
        self.assertEqual((self.segmentIds(), self.log()), (LEVELS, ["shift"]))
        self.assertEqual(self.names()[:2], ["T12", "T12/L1"])
        for segmentId, array in self.labels().items():
            np.testing.assert_array_equal(array, before[segmentId])

    def test_the_key_points_are_there_where_the_reader_dragged_them(self):
        node = self.ui.keypointsSelector.currentNode()
        self.assertEqual(node.GetName(), "T2 spine key points")
        position = [0.0] * 3
        node.GetNthControlPointPositionWorld(node.GetControlPointIndexByLabel("L2"), position)
        self.assertEqual(position, [-14.0, 16.0, 24.0])
        self.run_to_the_end()
        self.assertEqual(self.dialogs, [])
        hints = json.loads(self.output().GetAttribute("SpineSegAI.Result"))["provenance"]["hints"]
        self.assertIn("visible=(19, 26)", hints)
        self.assertIn("21: (14.0, -16.0, 24.0)", hints)
        self.assertIn("22: (14.0, -16.0, 12.0)", hints)
        self.assertTrue(self.locked("L3"))


if __name__ == "__main__":
    unittest.main()
