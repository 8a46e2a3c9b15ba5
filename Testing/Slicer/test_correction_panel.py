"""Clicking through the Correct section: every tool, its undo, its bad input. Runs in the host and inside Slicer."""

import json
import time
import unittest
from pathlib import Path

from panel_case import PanelCase, make_volume, np, qt, sagittal, slicer

LUMBAR = (18, 118, 19, 119, 20, 120, 21, 121, 22, 122, 23, 123, 24, 124, 26)
"""T11 to S1 with the discs between them."""


class CorrectionCase(PanelCase):
    """A segmented volume, open in the section."""

    size = (10, 150, 60)

    def setUp(self):
        super().setUp()
        self.volume = make_volume("T2", self.size)

    def open(self, ids=LUMBAR, confidence=None, keypoints=None, **environment):
        """The panel with a result of these structures, from top to bottom."""
        from SpineSegAISlicer import nodes

        self.openPanel(**environment)
        self.node = nodes.segmentationFromResult(self.result(ids, self.volume, confidence, keypoints), self.volume)
        self.parameters = self.widget._parameterNode
        self.parameters.inputVolume = self.volume
        self.parameters.outputSegmentation = self.node
        self.correct.refresh()

    def result(self, ids, volume, confidence=None, keypoints=None):
        import SimpleITK as sitk
        from SpineSegAISlicer import volumes

        from SpineSegAILib.anatomy import SCHEMES
        from SpineSegAILib.results import Segmentation

        image = volumes.imageFromVolume(volume)
        labels = np.zeros(image.GetSize()[::-1], np.int16)
        rows = np.array_split(np.arange(6, labels.shape[1] - 6), len([i for i in ids if i != 61]))
        for structureId, band in zip([i for i in ids if i != 61], rows, strict=True):
            labels[2:-2, band, 8:-20] = structureId
        if 61 in ids:
            labels[2:-2, 6:-6, -15:-8] = 61
        made = sitk.GetImageFromArray(labels)
        made.CopyInformation(image)
        confidence = confidence if confidence is not None else {i: 0.9 for i in ids}
        return Segmentation(made, SCHEMES["lumbar-mr"], confidence, keypoints=keypoints or {})

    @property
    def correct(self):
        return self.widget.correctionPanel

    @property
    def cui(self):
        return self.correct.ui

    def press(self, name):
        """Click a button of the section."""
        button = getattr(self.cui, name)
        self.assertTrue(button.enabled, f"{name} is disabled")
        button.click()

    def choose(self, name, data):
        """Choose an entry of a combo box, as a reader does."""
        combo = getattr(self.cui, name)
        index = combo.findData(data)
        self.assertGreaterEqual(index, 0, f"{data} is not in {name}")
        combo.setCurrentIndex(index)
        combo.activated.emit(index) if hasattr(combo.activated, "emit") else combo.emit("activated(int)", index)

    def select(self, *ids):
        """Click rows of the table, with Ctrl held for all but the first."""
        table = self.cui.structuresTable
        table.clearSelection()
        for index, row in enumerate(self.correct.table.rows):
            if row.structureId in ids:
                table.item(index, 0).setSelected(True)

    def tick(self, structureId, column, on=True):
        for index, row in enumerate(self.correct.table.rows):
            if row.structureId == structureId:
                self.cui.structuresTable.item(index, column).setCheckState(qt.Qt.Checked if on else qt.Qt.Unchecked)

    def names(self):
        segmentation = self.node.GetSegmentation()
        return [segmentation.GetSegment(i).GetName() for i in segmentation.GetSegmentIDs()]

    def array(self, volume=None, node=None):
        import SimpleITK as sitk
        from SpineSegAISlicer import nodes

        return sitk.GetArrayFromImage(nodes.labelsFromSegmentation(node or self.node, volume or self.volume))

    def snapshot(self):
        """Everything that undo has to bring back, voxels segment by segment."""
        from SpineSegAISlicer import correction_nodes, nodes, result_attribute

        segmentation = self.node.GetSegmentation()
        segments = []
        for segmentId in segmentation.GetSegmentIDs():
            segment = segmentation.GetSegment(segmentId)
            tags = ("TerminologyEntry", nodes.STRUCTURE_TAG, correction_nodes.STEPS_TAG, *correction_nodes.FOLLOWING_TAGS)
            segments.append(
                (segmentId, segment.GetName(), segment.GetColor(), *(nodes.tagOf(segment, tag) for tag in tags))
            )
        held = tuple(
            nodes.mergedArray(self.node, {i: 1}, self.volume).tobytes() for i in segmentation.GetSegmentIDs()
        )
        return segments, held, *(self.node.GetAttribute(name) for name in result_attribute.ATTRIBUTES)

    def message(self):
        label = self.cui.correctMessageLabel
        return label.text if not label.isHidden() else ""

    def log(self):
        return json.loads(self.node.GetAttribute("SpineSegAI.CorrectionLog") or '{"entries": []}')["entries"]

    def assertUndoIsExact(self, act):
        """`act` changes something; undo brings back everything, redo the change, undo everything again."""
        before = self.snapshot()
        act()
        after = self.snapshot()
        self.assertNotEqual(before, after, self.message())
        self.press("correctUndoButton")
        self.assertEqual(self.snapshot(), before)
        self.press("correctRedoButton")
        self.assertEqual(self.snapshot(), after)
        self.press("correctUndoButton")
        self.assertEqual(self.snapshot(), before)
        act()
        self.assertEqual(self.names(), [row[1] for row in after[0]])


class TableTest(CorrectionCase):
    def test_structures_are_listed_in_anatomical_order_with_colour_and_confidence(self):
        self.open(confidence={20: 0.93, 21: 0.31})
        table, rows = self.cui.structuresTable, self.correct.table.rows
        self.assertEqual([row.structureId for row in rows], list(LUMBAR))
        self.assertEqual(table.rowCount, len(LUMBAR))
        self.assertEqual(table.item(4, 0).text(), "L1 vertebra (body)")
        self.assertEqual(table.item(4, 1).text(), "93 %")
        color = self.node.GetSegmentation().GetSegment("L1").GetColor()
        self.assertAlmostEqual(table.item(4, 0).data(qt.Qt.DecorationRole).redF(), color[0], places=2)

    def test_visibility_and_lock_are_ticked_in_the_table(self):
        from SpineSegAISlicer import nodes

        self.open()
        self.tick(20, 2, on=False)
        self.assertFalse(self.node.GetDisplayNode().GetSegmentVisibility("L1"))
        self.tick(21, 3)
        self.assertTrue(nodes.isLocked(self.node.GetSegmentation().GetSegment("L2")))
        self.tick(21, 3, on=False)
        self.assertFalse(nodes.isLocked(self.node.GetSegmentation().GetSegment("L2")))

    def test_a_change_from_elsewhere_is_shown(self):
        self.open()
        self.node.GetSegmentation().GetSegment("L3").SetName("third")
        self.waitUntil(lambda: self.cui.structuresTable.item(8, 0).text() == "third")

    def test_selecting_moves_the_slice_views_and_shows_a_preview(self):
        from SpineSegAISlicer import correction_nodes

        view = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceNode")
        camera = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLCameraNode")
        view.SetLayoutName("Yellow")
        self.open()
        self.select(22)
        centre = correction_nodes.centreOf(self.node, 22)
        toRas = view.GetSliceToRAS()
        self.assertTrue(np.allclose([toRas.GetElement(i, 3) for i in range(3)], centre, atol=1e-3))
        self.assertTrue(np.allclose(camera.GetFocalPoint(), centre, atol=1e-3))
        self.assertFalse(self.cui.structurePreviewLabel.pixmap.isNull())
        self.assertEqual(self.correct.editor.currentSegmentID(), "L3")

    def test_the_preview_shows_the_structure_in_its_colour_in_the_middle(self):
        from SpineSegAISlicer import structure_preview

        self.open()
        picture = structure_preview.previewArray(self.volume, self.node, 22).astype(int)
        middle = picture[65:75, 65:75].mean(axis=(0, 1))
        corner = picture[:5, -5:].mean(axis=(0, 1))
        self.assertGreater(np.ptp(middle), 10)
        self.assertLess(np.ptp(corner), 3)

    def test_thirty_rows_are_filled_quickly(self):
        from SpineSegAILib.anatomy import SCHEMES, sorted_ids

        ids = sorted_ids([*SCHEMES["lumbar-mr"].ids[:-1], *range(10, 16)])
        self.open(ids)
        self.assertGreaterEqual(self.cui.structuresTable.rowCount, 29)
        self.correct.table.rows = []
        started = time.process_time()
        self.correct.table.fill(self.node)
        whole = time.process_time() - started
        self.node.GetSegmentation().GetSegment("L3").SetName("third")
        started = time.process_time()
        self.correct.table.fill(self.node)
        one = time.process_time() - started
        print(f"table of {len(ids)} rows: {1000 * whole:.0f} ms; one row anew: {1000 * one:.1f} ms")
        self.assertLess(whole, 0.1)


class LevelToolsTest(CorrectionCase):
    def test_all_levels_are_shifted_up_with_one_click(self):
        self.open()
        voxels = self.array()
        self.assertUndoIsExact(lambda: self.press("shiftUpButton"))
        self.assertEqual(self.names()[:3], ["T10 vertebra (body)", "T10/T11 disc", "T11 vertebra (body)"])
        self.assertEqual(self.names()[-1], "L5 vertebra (body)")
        self.assertEqual(list(self.node.GetSegmentation().GetSegmentIDs())[-1], "L5")
        self.assertTrue(((self.array() == 24) == (voxels == 26)).all())

    def test_the_segments_images_are_not_touched_by_a_change_of_names(self):
        self.open()
        image = self.node.GetSegmentation().GetSegment("L4").GetRepresentation("Binary labelmap")
        time_ = image.GetMTime()
        self.press("shiftUpButton")
        self.assertIs(self.node.GetSegmentation().GetSegment("L3").GetRepresentation("Binary labelmap"), image)
        self.assertEqual(image.GetMTime(), time_)

    def test_surfaces_move_with_the_names(self):
        self.open()
        self.node.CreateClosedSurfaceRepresentation()
        surface = self.node.GetSegmentation().GetSegment("L4").GetRepresentation("Closed surface")
        self.press("shiftUpButton")
        self.assertIs(self.node.GetSegmentation().GetSegment("L3").GetRepresentation("Closed surface"), surface)

    def test_those_above_are_shifted_alone(self):
        self.open()
        self.select(20)
        self.choose("scopeComboBox", "above")
        self.assertUndoIsExact(lambda: (self.select(20), self.press("shiftUpButton")))
        self.assertEqual(self.names()[:7:2], [f"{n} vertebra (body)" for n in ("T10", "T11", "T12", "L2")])

    def test_this_one_is_l5_and_everything_follows(self):
        self.open(ids=(17, 117, 18, 118, 19, 119, 20, 120, 21, 121, 22, 122, 23))
        self.select(23)
        self.assertUndoIsExact(lambda: (self.select(23), self.choose("levelComboBox", 24)))
        self.assertEqual(self.names()[::2], [f"{n} vertebra (body)" for n in "T11 T12 L1 L2 L3 L4 L5".split()])
        self.assertEqual(self.correct.table.selected(), [24])
        self.assertIn("L4 is L5", self.message())

    def test_picked_in_the_image_it_is_the_same(self):
        from SpineSegAISlicer import correction_nodes

        self.open(ids=(17, 117, 18, 118, 19, 119, 20, 120, 21, 121, 22, 122, 23))
        position = correction_nodes.centreOf(self.node, 23)
        self.press("pickButton")
        node = self.correct.picker.node
        interaction = slicer.app.applicationLogic().GetInteractionNode()
        self.assertEqual(interaction.GetCurrentInteractionMode(), interaction.Place)
        node.AddControlPointWorld(*position)
        self.waitUntil(lambda: self.correct.table.selected() == [23])
        self.assertFalse(self.cui.pickButton.checked)
        self.assertEqual(interaction.GetCurrentInteractionMode(), interaction.ViewTransform)
        self.assertIsNone(slicer.mrmlScene.GetFirstNodeByName("Picked point"))
        self.choose("levelComboBox", 24)
        self.assertIn("L5 vertebra (body)", self.names())

    def test_swap(self):
        self.open()
        voxels = self.array()
        self.assertUndoIsExact(lambda: (self.select(21, 22), self.press("swapButton")))
        self.assertTrue(((self.array() == 21) == (voxels == 22)).all())

    def test_merge(self):
        self.open()
        voxels = self.array()
        self.assertUndoIsExact(lambda: (self.select(21, 22), self.press("mergeButton")))
        self.assertTrue(((self.array() == 22) == np.isin(voxels, (21, 121, 22))).all())
        self.assertTrue(((self.array() == 21) == (voxels == 20)).all())

    def test_split_at_the_picked_point(self):
        self.open(ids=(20, 120, 21, 121, 22, 122, 23))
        from SpineSegAISlicer import correction_nodes

        voxels = self.array()
        x, y, z = correction_nodes.centreOf(self.node, 22)

        def act():
            self.correct.pick((x, y, z + 4))
            self.press("splitButton")

        self.assertUndoIsExact(act)
        array = self.array()
        self.assertTrue((np.isin(array, (21, 22)) >= (voxels == 22)).all())
        self.assertGreater((array == 22).sum(), (array == 21).sum())

    def test_delete(self):
        self.open()
        voxels = self.array()
        self.assertUndoIsExact(lambda: (self.select(18, 118), self.press("deleteButton")))
        self.assertEqual(self.names()[0], "T12 vertebra (body)")
        voxels[np.isin(voxels, (18, 118))] = 0
        self.assertTrue((self.array() == voxels).all())

    def test_a_missing_one_gets_a_free_name_and_is_ready_to_be_drawn(self):
        self.open()
        self.select(22)
        self.press("insertBelowButton")
        self.assertIn("L3 vertebra (body)", self.names())
        self.assertEqual((self.array() == 22).sum(), 0)
        self.assertEqual(self.correct.editor.currentSegmentID(), "L3")
        self.assertFalse(self.cui.editorGroupBox.collapsed)
        self.assertIn("draw L3", self.message())
        names = self.names()
        self.assertEqual(names[0], "T10 vertebra (body)")
        self.press("correctUndoButton")
        self.assertEqual(self.names()[0], "T11 vertebra (body)")
        self.assertEqual(self.names().count("L3 vertebra (body)"), 1)

    def test_counting_with_l6_and_back(self):
        self.open()
        names = self.names()
        self.assertUndoIsExact(lambda: self.choose("countingComboBox", "L6"))
        self.assertIn("L6 vertebra (body)", self.names())
        self.assertIn("L5/L6 disc", self.names())
        self.choose("countingComboBox", "L5")
        self.assertEqual(self.names(), names)

    def test_codes_and_confidence_follow_the_names(self):
        from SpineSegAISlicer import nodes

        self.open(confidence={22: 0.42}, keypoints={22: (1.0, 2.0, 3.0)})
        self.press("shiftUpButton")
        segment = self.node.GetSegmentation().GetSegment("L2")
        self.assertEqual(nodes.tagOf(segment, "SpineSegAI.Confidence"), "0.4200")
        self.assertIn("L2", nodes.tagOf(segment, "TerminologyEntry"))
        result = nodes.resultFromSegmentation(self.node, self.volume)
        self.assertEqual((result.confidence, result.keypoints), ({21: 0.42}, {21: (1.0, 2.0, 3.0)}))
        summary = json.loads(self.node.GetAttribute("SpineSegAI.Result"))
        self.assertEqual(summary["keypoints_lps_mm"], {"21": [1.0, 2.0, 3.0]})
        self.assertEqual([s["id"] for s in summary["structures"]], [17, 117, *LUMBAR[:-3], 24])

    def test_segments_of_the_readers_own_stay(self):
        self.open()
        before = self.array()
        own = slicer.util.arrayFromVolume(self.volume) * 0
        own[4:6, 2:4, 2:5] = 1
        segmentation = self.node.GetSegmentation()
        segmentId = segmentation.AddEmptySegment("lesion", "lesion")
        slicer.util.updateSegmentBinaryLabelmapFromArray(own.astype(np.uint8), self.node, segmentId, self.volume)
        self.press("shiftUpButton")
        self.select(20, 21)
        self.press("mergeButton")
        held = slicer.util.arrayFromSegmentBinaryLabelmap(self.node, "lesion", self.volume)
        self.assertTrue((held == own).all())
        self.assertEqual(segmentation.GetSegmentIDs()[-1], "lesion")
        self.assertTrue(((self.array() > 0) == (before > 0)).all())

    def test_many_steps_are_taken_back_one_by_one(self):
        self.open()
        states = [self.snapshot()]
        for step in (
            lambda: self.press("shiftUpButton"),
            lambda: (self.select(20, 21), self.press("swapButton")),
            lambda: (self.select(22, 23), self.press("mergeButton")),
            lambda: (self.select(17), self.press("deleteButton")),
        ):
            step()
            states.append(self.snapshot())
        for state in reversed(states[:-1]):
            self.press("correctUndoButton")
            self.assertEqual(self.snapshot(), state)
        self.assertEqual(self.log(), [])
        self.press("correctUndoButton")
        self.assertIn("nothing more", self.message())
        for state in states[1:]:
            self.press("correctRedoButton")
            self.assertEqual(self.snapshot(), state)
        self.assertEqual([entry["tool"] for entry in self.log()], ["shift", "swap", "merge", "delete"])

    def test_the_log_survives_saving_the_scene(self):
        from SpineSegAISlicer import correction_nodes

        self.open()
        self.press("shiftUpButton")
        self.select(20, 21)
        self.press("swapButton")
        slicer.util.saveNode(self.node, str(self.folder / "saved.seg.nrrd"))
        path = str(self.folder / "scene.mrml")
        slicer.mrmlScene.SetURL(path)
        slicer.mrmlScene.Commit(path)
        text = Path(path).read_text(encoding="utf-8")
        self.assertIn("SpineSegAI.CorrectionLog", text)
        self.assertEqual(len(correction_nodes.readLog(self.node).entries), 2)


if __name__ == "__main__":
    unittest.main()
