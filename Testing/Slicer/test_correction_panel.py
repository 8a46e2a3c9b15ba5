"""Clicking through the Correct section: every tool, its undo, its bad input. Runs in the host and inside Slicer."""

import hashlib
import json
import time
import unittest
from pathlib import Path

from panel_case import PanelCase, host, make_checkpoint, make_view, make_volume, np, qt, sagittal, slicer

LABELMAP = "Binary labelmap"
NAME, CONFIDENCE, SHOWN, LOCKED, UNCERTAINTY = range(5)
"""Columns of the list."""

LUMBAR = (18, 118, 19, 119, 20, 120, 21, 121, 22, 122, 23, 123, 24, 124, 26)
"""T11 to S1 with the discs between them."""


class CorrectionCase(PanelCase):
    """A segmented volume, open in the section."""

    size = (10, 150, 60)

    def setUp(self):
        super().setUp()
        self.volume = make_volume("T2", self.size)

    def open(self, ids=LUMBAR, quality=None, keypoints=None, **environment):
        """The panel with a result of these structures, from top to bottom."""
        from SpineSegAISlicer.scene import results

        if self.widget is None:
            self.openPanel(**environment)
            self.widget.tabs.show("correctTab")
        self.node = results.segmentationFromResult(self.result(ids, self.volume, quality, keypoints), self.volume)
        self.parameters = self.widget._parameterNode
        self.parameters.inputVolume = self.volume
        self.parameters.outputSegmentation = self.node
        self.correct.refresh()

    def result(self, ids, volume, quality=None, keypoints=None):
        import SimpleITK as sitk
        from SpineSegAISlicer.scene import volumes

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
        quality = quality if quality is not None else {i: 0.9 for i in ids}
        return Segmentation(made, SCHEMES["lumbar-mr"], outline_quality=quality, keypoints=keypoints or {})

    @property
    def correct(self):
        return self.widget.correctionPanel

    @property
    def cui(self):
        return self.correct.ui

    def press(self, name):
        """Click a button of the section."""
        button = getattr(self.cui, name)
        self.waitUntil(lambda: button.enabled, 5, f"{name} is disabled")  # what Slicer tells comes with the next event
        button.click()

    def choose(self, name, data):
        """Choose an entry of a combo box, as a reader does."""
        combo = getattr(self.cui, name)
        index = combo.findData(data)
        self.assertGreaterEqual(index, 0, f"{data} is not in {name}")
        combo.setCurrentIndex(index)

    def select(self, *ids):
        """Click rows of the table, with Ctrl held for all but the first."""
        table = self.cui.structuresTable
        table.clearSelection()
        for index, row in enumerate(self.correct.review.table.rows):
            if row.structureId in ids:
                table.item(index, 0).setSelected(True)

    def tick(self, structureId, column, on=True):
        for index, row in enumerate(self.correct.review.table.rows):
            if row.structureId == structureId:
                self.cui.structuresTable.item(index, column).setCheckState(qt.Qt.Checked if on else qt.Qt.Unchecked)

    def names(self):
        segmentation = self.node.GetSegmentation()
        return [segmentation.GetSegment(i).GetName() for i in segmentation.GetSegmentIDs()]

    def segment(self, structureId):
        """The segment that is a structure now."""
        return self.node.GetSegmentation().GetSegment(self.segmentId(structureId))

    def segmentId(self, structureId):
        from SpineSegAISlicer.scene.segments import structuresOfSegmentation

        return structuresOfSegmentation(self.node)[structureId]

    def array(self, volume=None, node=None):
        import SimpleITK as sitk
        from SpineSegAISlicer.scene import labelmaps

        return sitk.GetArrayFromImage(labelmaps.labelsFromSegmentation(node or self.node, volume or self.volume))

    def snapshot(self):
        """Everything that undo has to bring back, voxels segment by segment."""
        from SpineSegAISlicer.scene import correction_log, labelmaps, result_attribute
        from SpineSegAISlicer.scene.segments import KEYPOINT_TAG, LOCKED_TAG, STRUCTURE_TAG, UNCERTAINTY_TAG, tagOf

        from SpineSegAILib.anatomy.terminology import CONFIDENCE_TAG, SCHEME_TAG, UNVALIDATED_TAG

        segmentation = self.node.GetSegmentation()
        segments = []
        for segmentId in segmentation.GetSegmentIDs():
            segment = segmentation.GetSegment(segmentId)
            tags = (
                "TerminologyEntry",
                STRUCTURE_TAG,
                correction_log.STEP_TAG,
                *(CONFIDENCE_TAG, UNVALIDATED_TAG, SCHEME_TAG),
                *(KEYPOINT_TAG, UNCERTAINTY_TAG, LOCKED_TAG),
            )
            segments.append((segmentId, segment.GetName(), segment.GetColor(), *(tagOf(segment, tag) for tag in tags)))
        held = tuple(
            hashlib.sha1(labelmaps.mergedArray(self.node, {i: 1}, self.volume).tobytes()).hexdigest()
            for i in segmentation.GetSegmentIDs()
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


class UndoTest(CorrectionCase):
    def offered(self):
        return self.cui.correctUndoButton.enabled, self.cui.correctRedoButton.enabled

    def test_undo_and_redo_are_offered_where_there_is_something(self):
        self.open()
        self.assertEqual(self.offered(), (False, False))
        self.press("shiftUpButton")
        self.assertEqual(self.offered(), (True, False))
        self.press("correctUndoButton")
        self.assertEqual(self.offered(), (False, True))
        self.press("correctRedoButton")
        self.assertEqual(self.offered(), (True, False))
        self.press("correctUndoButton")
        self.select(21, 22)
        self.press("swapButton")  # what was taken back is gone
        self.assertEqual(self.offered(), (True, False))
        self.correct.setSegmentationNode(None)
        self.assertEqual(self.offered(), (False, False))
        self.correct.setSegmentationNode(self.node)
        self.assertEqual(self.offered(), (False, False))

    def test_a_stroke_can_be_taken_back_at_once(self):
        self.open()
        self.select(22)
        editor = self.correct.editor.widget
        editor.setActiveEffectByName("Paint")
        editor.saveStateForUndo()
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(self.node, "L3", self.volume)
        slicer.util.updateSegmentBinaryLabelmapFromArray(np.roll(mask, 2), self.node, "L3", self.volume)
        self.waitUntil(lambda: self.offered() == (True, False))


class TableTest(CorrectionCase):
    def test_structures_are_listed_in_anatomical_order_with_colour_and_quality(self):
        self.open(quality={20: 0.93, 21: 0.31})
        table, rows = self.cui.structuresTable, self.correct.review.table.rows
        self.assertEqual([row.structureId for row in rows], list(LUMBAR))
        self.assertEqual(table.rowCount, len(LUMBAR))
        self.assertEqual(table.item(4, 0).text(), "L1 vertebra")
        self.assertEqual(table.item(4, 0).toolTip(), "L1 vertebra (body)")
        self.assertEqual(table.item(4, 1).text(), "93 %")
        color = self.node.GetSegmentation().GetSegment("L1").GetColor()
        self.assertAlmostEqual(table.item(4, 0).data(qt.Qt.DecorationRole).redF(), color[0], places=2)

    def test_visibility_and_lock_are_ticked_in_the_table(self):
        from SpineSegAISlicer.scene.segments import isLocked

        self.open()
        self.tick(20, 2, on=False)
        self.assertFalse(self.node.GetDisplayNode().GetSegmentVisibility("L1"))
        self.tick(21, 3)
        self.assertTrue(isLocked(self.node.GetSegmentation().GetSegment("L2")))
        self.tick(21, 3, on=False)
        self.assertFalse(isLocked(self.node.GetSegmentation().GetSegment("L2")))

    def test_a_change_from_elsewhere_is_shown(self):
        self.open()
        self.node.GetSegmentation().GetSegment("L3").SetName("third")
        self.waitUntil(lambda: self.cui.structuresTable.item(8, 0).text() == "third")

    def test_selecting_moves_the_slice_views_and_shows_a_preview(self):
        from SpineSegAISlicer.scene import labelmaps

        view = make_view()
        camera = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLCameraNode")
        self.open()
        self.select(22)
        centre = labelmaps.centreOf(self.node, 22)
        toRas = view.GetSliceToRAS()
        self.assertTrue(np.allclose([toRas.GetElement(i, 3) for i in range(3)], centre, atol=1e-3))
        self.assertTrue(np.allclose(camera.GetFocalPoint(), centre, atol=1e-3))
        self.assertFalse(self.cui.structurePreviewLabel.pixmap.isNull())
        self.assertEqual(self.correct.editor.widget.currentSegmentID(), "L3")

    def test_a_click_on_a_tool_draws_the_preview_once(self):
        from SpineSegAISlicer.panels import structure_preview

        self.open()
        drawn, draw = [], structure_preview.previewPixmap
        self.patch(structure_preview, "previewPixmap", lambda *asked: (drawn.append(asked[2]), draw(*asked))[1])
        self.correct.review.table.select([22])
        for name, structure in (("shiftUpButton", 21), ("smoothButton", 21), ("splitButton", 21)):
            drawn.clear()
            self.press(name)
            slicer.app.processEvents()
            self.assertEqual(drawn, [structure], f"{name}: {self.message()}")
            self.assertFalse(self.cui.structurePreviewLabel.pixmap.isNull())

    def test_the_preview_shows_the_structure_in_its_colour_in_the_middle(self):
        from SpineSegAISlicer.panels import structure_preview

        self.open()
        picture = structure_preview.previewArray(self.volume, self.node, 22).astype(int)
        middle = picture[65:75, 65:75].mean(axis=(0, 1))
        corner = picture[:5, -5:].mean(axis=(0, 1))
        self.assertGreater(np.ptp(middle), 10)
        self.assertLess(np.ptp(corner), 3)

    def test_the_preview_of_a_film_shows_the_film(self):
        import SimpleITK as sitk
        from SpineSegAISlicer.panels import structure_preview
        from SpineSegAISlicer.scene import results, volumes

        from SpineSegAILib.anatomy import SCHEMES
        from SpineSegAILib.results import Segmentation

        lateral = [[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]]
        frontal = [[-1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]]
        picture = np.diag([-1.0, -1, 1, 1])  # a file that does not tell its plane
        for matrix in (lateral, frontal, picture):
            film = make_volume("Film", size=(1, 300, 100), ijkToRas=np.array(matrix, float))
            labels = np.zeros((1, 300, 100), np.int16)
            labels[:, 100:130, 30:70] = 23
            labels[:, 110:130, 50:70] = 0  # an L: what is above and what is to the left are known
            image = sitk.GetImageFromArray(labels)
            image.CopyInformation(volumes.imageFromVolume(film))
            node = results.segmentationFromResult(Segmentation(image, SCHEMES["thoracolumbar-xr"]), film)
            shown = np.ptp(structure_preview.previewArray(film, node, 23).astype(int), axis=2) > 0
            rows, columns = (np.flatnonzero(shown.any(axis=axis)) for axis in (1, 0))
            self.assertAlmostEqual(len(rows), 60, delta=3)  # 30 mm
            self.assertAlmostEqual(len(columns), 80, delta=3)
            self.assertTrue(shown[rows[0] + 5, columns[-1] - 5] and shown[rows[-1] - 5, columns[0] + 5])
            self.assertFalse(shown[rows[-1] - 5, columns[-1] - 5])

    def test_thirty_rows_are_filled_quickly(self):
        from SpineSegAILib.anatomy import SCHEMES, sorted_ids

        ids = sorted_ids([*SCHEMES["lumbar-mr"].ids[:-1], *range(10, 16)])
        self.open(ids)
        self.assertGreaterEqual(self.cui.structuresTable.rowCount, 29)
        self.correct.review.table.rows = []
        started = time.process_time()
        self.correct.review.table.fill(self.node)
        whole = time.process_time() - started
        self.node.GetSegmentation().GetSegment("L3").SetName("third")
        started = time.process_time()
        self.correct.review.table.fill(self.node)
        one = time.process_time() - started
        print(f"table of {len(ids)} rows: {1000 * whole:.0f} ms; one row again: {1000 * one:.1f} ms")
        self.assertLess(whole, 0.1)


class LevelToolsTest(CorrectionCase):
    def test_all_levels_are_shifted_up_with_one_click(self):
        self.open()
        voxels = self.array()
        self.assertUndoIsExact(lambda: self.press("shiftUpButton"))
        self.assertEqual(self.names()[:3], ["T10 vertebra (body)", "T10/T11 disc", "T11 vertebra (body)"])
        self.assertEqual(self.names()[-1], "L5 vertebra (body)")
        self.assertEqual(self.node.GetSegmentation().GetSegmentIDs()[-1], self.segmentId(24))
        self.assertTrue(((self.array() == 24) == (voxels == 26)).all())

    def test_the_segments_images_are_not_touched_by_a_change_of_names(self):
        self.open()
        segment, segmentId, image = self.segment(23), self.segmentId(23), self.segment(23).GetRepresentation(LABELMAP)
        time_ = image.GetMTime()
        self.press("shiftUpButton")
        self.assertIs(self.segment(22), segment)
        self.assertEqual(self.segmentId(22), segmentId)
        self.assertIs(segment.GetRepresentation(LABELMAP), image)
        self.assertEqual(image.GetMTime(), time_)

    def test_surfaces_and_visibility_stay_with_the_segment(self):
        self.open()
        self.node.CreateClosedSurfaceRepresentation()
        surface = self.segment(23).GetRepresentation("Closed surface")
        self.tick(23, SHOWN, on=False)
        self.press("shiftUpButton")
        self.assertIs(self.segment(22).GetRepresentation("Closed surface"), surface)
        visible = self.node.GetDisplayNode().GetSegmentVisibility
        self.assertEqual([visible(self.segmentId(i)) for i in (21, 22, 23)], [True, False, True])

    def test_only_segments_whose_voxels_change_are_written(self):
        """Each that is written is drawn again in all views of Slicer."""
        self.open()
        images = {i: self.segment(i).GetRepresentation(LABELMAP) for i in LUMBAR}
        for structureId in (22, 20, 23):
            self.select(structureId)
            self.press("smoothButton")
        written = {i for i in LUMBAR if self.segment(i).GetRepresentation(LABELMAP) is not images[i]}
        self.assertTrue({20, 22, 23} <= written)
        self.assertTrue(written <= {20, 22, 23, 119, 120, 121, 122, 123}, written)  # and what is beside them
        self.assertLessEqual(self.node.GetSegmentation().GetNumberOfLayers(), 2)

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
        self.assertEqual(
            self.names()[::2], [f"{n} vertebra (body)" for n in ("T11", "T12", "L1", "L2", "L3", "L4", "L5")]
        )
        self.assertEqual(self.correct.review.table.selected(), [24])
        self.assertIn("L4 is L5", self.message())

    def test_picked_in_the_image_it_is_the_same(self):
        from SpineSegAISlicer.scene import labelmaps

        self.open(ids=(17, 117, 18, 118, 19, 119, 20, 120, 21, 121, 22, 122, 23))
        position = labelmaps.centreOf(self.node, 23)
        self.press("pickButton")
        node = self.correct.review.picker.node
        interaction = slicer.app.applicationLogic().GetInteractionNode()
        self.assertEqual(interaction.GetCurrentInteractionMode(), interaction.Place)
        node.AddControlPointWorld(*position)
        self.waitUntil(lambda: self.correct.review.table.selected() == [23])
        self.assertFalse(self.cui.pickButton.checked)
        self.assertEqual(interaction.GetCurrentInteractionMode(), interaction.ViewTransform)
        self.assertIsNone(slicer.mrmlScene.GetFirstNodeByName("Picked point"))
        self.choose("levelComboBox", 24)
        self.assertIn("L5 vertebra (body)", self.names())

    def test_a_pick_that_the_reader_gives_up_leaves_nothing(self):
        self.open()
        interaction = slicer.app.applicationLogic().GetInteractionNode()
        self.press("pickButton")
        interaction.SetCurrentInteractionMode(interaction.ViewTransform)  # the arrow in the toolbar
        self.waitUntil(lambda: not self.cui.pickButton.checked)
        self.assertIsNone(slicer.mrmlScene.GetFirstNodeByName("Picked point"))
        self.assertEqual(self.message(), "")
        self.press("pickButton")  # and once more
        self.assertEqual(interaction.GetCurrentInteractionMode(), interaction.Place)
        self.assertIsNotNone(self.correct.review.picker.node)

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
        from SpineSegAISlicer.scene import labelmaps

        voxels = self.array()
        x, y, z = labelmaps.centreOf(self.node, 22)

        def act():
            self.correct.review.pick((x, y, z + 4))
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
        self.assertEqual(self.correct.editor.widget.currentSegmentID(), self.segmentId(22))
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

    def test_codes_and_quality_follow_the_names(self):
        from SpineSegAISlicer.scene import results
        from SpineSegAISlicer.scene.segments import tagOf

        self.open(quality={22: 0.42}, keypoints={22: (1.0, 2.0, 3.0)})
        self.press("shiftUpButton")
        segment = self.segment(21)
        self.assertEqual(tagOf(segment, "SpineSegAI.OutlineQuality"), "0.4200")
        self.assertIn("L2", tagOf(segment, "TerminologyEntry"))
        result = results.resultFromSegmentation(self.node, self.volume)
        self.assertEqual((result.outline_quality, result.keypoints), ({21: 0.42}, {21: (1.0, 2.0, 3.0)}))
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
            lambda: (self.select(18), self.press("deleteButton")),
        ):
            step()
            states.append(self.snapshot())
        for state in reversed(states[:-1]):
            self.press("correctUndoButton")
            self.assertEqual(self.snapshot(), state)
        self.assertEqual(self.log(), [])
        self.assertFalse(self.cui.correctUndoButton.enabled)
        self.correct.undo.undo()  # by the key
        self.assertIn("Nothing to undo or redo", self.message())
        for state in states[1:]:
            self.press("correctRedoButton")
            self.assertEqual(self.snapshot(), state)
        self.assertFalse(self.cui.correctRedoButton.enabled)
        self.assertEqual([entry["tool"] for entry in self.log()], ["shift", "swap", "merge", "delete"])

    def test_the_log_survives_saving_the_scene(self):
        from SpineSegAISlicer.scene import correction_log

        self.open()
        self.press("shiftUpButton")
        self.select(20, 21)
        self.press("swapButton")
        path = str(self.folder / "scene.mrml")
        slicer.mrmlScene.SetURL(path)
        slicer.mrmlScene.Commit(path)
        text = Path(path).read_text(encoding="utf-8")
        self.assertIn("SpineSegAI.CorrectionLog", text)
        self.assertEqual(len(correction_log.readLog(self.node).entries), 2)


class SelectionTest(CorrectionCase):
    """What is highlighted is what tools act on, whatever it is called meanwhile."""

    def highlighted(self):
        """The one row that looks selected: its text."""
        table = self.cui.structuresTable
        (row,) = [row for row in range(table.rowCount) if table.item(row, NAME).isSelected()]
        return table.item(row, NAME).text()

    def assertSelected(self, structureId, segmentId):
        from SpineSegAILib.anatomy import STRUCTURES

        self.assertEqual(self.correct.review.table.selected(), [structureId])
        self.assertEqual(self.correct.editor.widget.currentSegmentID(), segmentId)
        self.assertIn(STRUCTURES[structureId].name, self.highlighted())

    def test_it_follows_its_segment_through_undo_and_redo(self):
        self.open()
        self.select(23)
        segmentId = self.segmentId(23)
        for button, structureId in (
            ("shiftUpButton", 22), ("correctUndoButton", 23), ("correctRedoButton", 22), ("shiftUpButton", 21),
            ("correctUndoButton", 22), ("correctUndoButton", 23),
        ):  # fmt: skip
            self.press(button)
            self.assertSelected(structureId, segmentId)

    def test_shifted_taken_back_and_deleted_it_is_the_one_that_was_selected(self):
        self.open()
        voxels = self.array()
        self.select(23)
        for button in ("shiftUpButton", "correctUndoButton", "deleteButton"):
            self.press(button)
        voxels[voxels == 23] = 0
        self.assertTrue((self.array() == voxels).all())
        self.assertEqual(self.correct.review.table.selected(), [])
        self.press("correctUndoButton")
        self.press("shiftDownButton")
        self.assertEqual(len(self.names()), len(LUMBAR))

    def test_after_a_step_by_somebody_else_tools_know_what_is_selected(self):
        """A script, or the Segment Editor's own key, takes a step back: the next click comes before any event."""
        self.open()
        self.select(23)
        self.press("shiftUpButton")
        self.correct.editor.widget.undo()
        self.cui.deleteButton.click()
        self.assertNotIn("L4 vertebra (body)", self.names())
        self.assertIn("L3 vertebra (body)", self.names())

    def test_what_is_chosen_by_the_editors_keys_is_highlighted(self):
        self.open()
        self.assertEqual(self.correct.review.table.selected(), [])  # the editor's own first choice is nobody's
        self.select(23)
        self.correct.editor.widget.setCurrentSegmentID(self.segmentId(20))
        self.assertSelected(20, self.segmentId(20))

    def test_what_was_split_off_is_taken_back_and_nothing_else_is_drawn_on(self):
        self.open(ids=(20, 120, 21, 121, 22, 122, 23))
        self.select(22)
        self.press("splitButton")
        new = next(i for i in (21, 22) if self.segmentId(i) not in ("L1", "L2", "L3", "L4"))
        self.select(new)
        self.assertSelected(new, self.segmentId(new))
        self.press("correctUndoButton")
        table, editor = self.correct.review.table, self.correct.editor.widget
        self.assertIn(editor.currentSegmentID(), [*table.selectedSegments(), ""])


class ReviewTest(CorrectionCase):
    def test_the_keyboard_goes_from_structure_to_structure(self):
        self.open()
        keys = [s.key.toString() for s in self.correct.shortcuts]
        self.assertEqual(keys, ["Alt+Up", "Alt+Down", "Alt+End", "Ctrl+Z", "Ctrl+Y"])
        self.press("nextStructureButton")
        self.assertEqual(self.correct.review.table.selected(), [18])
        self.press("nextStructureButton")
        self.assertEqual(self.correct.review.table.selected(), [118])
        self.press("previousStructureButton")
        self.press("previousStructureButton")
        self.assertEqual(self.correct.review.table.selected(), [26])

    def test_shortcuts_are_there_only_while_the_module_is_open(self):
        self.open()
        self.widget.exit()
        self.assertFalse(any(s.enabled for s in self.correct.shortcuts))
        self.widget.enter()
        self.assertTrue(all(s.enabled for s in self.correct.shortcuts))

    def test_the_least_certain_first_and_locked_ones_not(self):
        self.open(quality={18: 0.9, 21: 0.2, 22: 0.4, 23: 0.6})
        self.tick(22, 3)
        seen = []
        for _ in range(4):
            self.press("leastCertainButton")
            seen += self.correct.review.table.selected()
        self.assertEqual(seen, [21, 23, 18, 21])

    def test_a_lock_can_be_taken_back(self):
        self.open()
        self.assertUndoIsExact(lambda: self.tick(22, 3))


class EditorTest(CorrectionCase):
    def paint(self, structureId, where, value=1, effect="Paint"):
        """What a stroke of the Segment Editor does."""
        self.select(structureId)
        editor = self.correct.editor.widget
        editor.setActiveEffectByName(effect)
        editor.saveStateForUndo()
        segmentId = editor.currentSegmentID()
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(self.node, segmentId, self.volume)
        mask[where] = value
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask, self.node, segmentId, self.volume)
        self.correct.refresh()

    def test_the_editor_has_the_case_and_keeps_off_other_segments(self):
        kinds = slicer.vtkMRMLSegmentationNode
        self.open()
        editor = self.correct.editor.widget
        node = editor.mrmlSegmentEditorNode()
        self.assertIs(node.GetSegmentationNode(), self.node)
        self.assertIs(node.GetSourceVolumeNode(), self.volume)
        self.assertEqual(node.GetSingletonTag(), "SpineSegAI")
        editor.setActiveEffectByName("Paint")
        self.assertEqual(node.GetMaskMode(), kinds.EditAllowedOutsideAllSegments)
        editor.setActiveEffectByName("Erase")
        self.assertEqual(node.GetMaskMode(), kinds.EditAllowedEverywhere)
        self.assertEqual(node.GetOverwriteMode(), node.OverwriteAllSegments)
        self.widget.exit()
        self.assertFalse(node.GetActiveEffectName())

    def test_strokes_are_logged_once_and_taken_back_in_order_with_tools(self):
        self.open()
        self.press("shiftUpButton")
        shifted = self.snapshot()
        self.paint(21, np.s_[4, 2:4, 20:30])
        self.paint(21, np.s_[5, 2:4, 20:30])
        self.assertEqual([entry["tool"] for entry in self.log()], ["shift", "paint"])
        self.assertEqual(self.log()[-1]["structures"], ["L2"])
        self.press("correctUndoButton")
        self.press("correctUndoButton")
        self.assertEqual(self.snapshot(), shifted)

    def test_a_segment_that_is_removed_in_the_editor_does_not_take_the_log_along(self):
        self.open()
        self.press("shiftUpButton")
        self.correct.editor.widget.saveStateForUndo()
        segmentation = self.node.GetSegmentation()
        segmentation.RemoveSegment(segmentation.GetNthSegmentID(0))
        self.press("correctUndoButton")
        self.assertEqual([entry["tool"] for entry in self.log()], ["shift"])
        self.press("correctUndoButton")
        self.assertEqual(self.log(), [])

    def test_undoing_a_replacement_is_a_step_like_others(self):
        from SpineSegAISlicer.scene import results

        self.open()
        self.press("shiftUpButton")
        replaced = self.snapshot()
        self.press("againButton")
        self.waitUntilDone(180)
        results.updateSummary(self.node)  # as undo leaves it
        result = self.snapshot()
        self.select(22)
        self.press("deleteButton")
        self.paint(21, np.s_[4, 2:4, 20:30])
        corrected = self.snapshot()
        self.assertEqual([entry["tool"] for entry in self.log()], ["shift", "segment-again", "delete", "paint"])
        self.click(self.ui.undoButton)
        slicer.app.processEvents()
        self.assertEqual(self.snapshot(), replaced)
        self.select(20, 21)
        self.press("swapButton")
        swapped = self.snapshot()
        states = [replaced, corrected, None, result, replaced]
        for state in states:
            self.press("correctUndoButton")
            if state:
                self.assertEqual(self.snapshot(), state)
        for state in [*states[-2::-1], swapped]:
            self.press("correctRedoButton")
            if state:
                self.assertEqual(self.snapshot(), state)

    def test_slices_between_those_drawn_on_are_interpolated(self):
        self.open()
        self.paint(22, np.s_[2, 63:66, 4:8])
        self.paint(22, np.s_[6, 63:66, 4:8])
        self.assertEqual(self.array()[4, 64, 5], 0)
        self.press("interpolateButton")
        self.assertIn("between 2 sagittal slices", self.message())
        array = self.array()
        self.assertEqual(array[4, 64, 6], 22)
        self.press("correctUndoButton")
        self.assertEqual(self.array()[4, 64, 5], 0)

    def test_smoothing_is_one_step(self):
        self.open()
        self.cui.smoothSpinBox.value = 3.0
        self.assertUndoIsExact(lambda: (self.select(22), self.press("smoothButton")))
        self.assertIn("Smooth L3 by 3 mm", self.message())

    def test_a_new_scene_gets_a_new_editor_node(self):
        self.open()
        slicer.mrmlScene.Clear(0)
        self.assertIsNone(self.correct.segmentationNode)
        self.volume = make_volume("Next", self.size)
        self.open()
        self.press("shiftUpButton")
        self.assertIs(self.correct.editor.widget.mrmlSegmentEditorNode().GetScene(), slicer.mrmlScene)

    def test_drawing_ends_with_a_run_and_with_the_tab(self):
        self.open(DOUBLE_SECONDS="1.0")
        node = self.correct.editor.widget.mrmlSegmentEditorNode()
        self.select(22)
        self.correct.editor.startDrawing()
        self.assertEqual(node.GetActiveEffectName(), "Paint")
        self.widget.tabs.show("segmentTab")
        self.assertFalse(node.GetActiveEffectName())
        self.widget.tabs.show("correctTab")
        self.correct.editor.startDrawing()
        self.press("againButton")
        self.assertTrue(self.widget.segmenting.isRunning)
        self.assertFalse(node.GetActiveEffectName())
        self.waitUntilDone(180)
        self.assertEqual([entry["tool"] for entry in self.log()], ["segment-again"])

    def test_the_panel_opens_after_a_scene_that_was_saved_while_drawing(self):
        self.open()
        self.select(22)
        self.correct.editor.startDrawing()
        path = str(self.folder / "drawing.mrb")
        self.assertTrue(slicer.mrmlScene.WriteToMRB(path))
        self.widget.cleanup()
        host.release(self.widget)
        slicer.mrmlScene.Clear(1)
        self.assertTrue(slicer.mrmlScene.ReadFromMRB(path))
        saved = slicer.mrmlScene.GetSingletonNode("SpineSegAI", "vtkMRMLSegmentEditorNode")
        self.assertEqual(saved.GetSelectedSegmentID(), "L3")
        self.openPanel()
        self.node, self.volume = self.output(), self.ui.inputVolumeSelector.currentNode()
        self.assertEqual((self.node.GetName(), self.volume.GetName()), ("T2 spine", "T2"))
        self.assertTrue(self.ui.applyButton.enabled, self.ui.applyButton.toolTip)
        self.widget.tabs.show("correctTab")
        self.select(22)
        self.press("deleteButton")
        self.assertNotIn("L3", list(self.node.GetSegmentation().GetSegmentIDs()))
        self.press("correctUndoButton")
        self.assertIn("L3", list(self.node.GetSegmentation().GetSegmentIDs()))
        self.press("shiftUpButton")
        self.assertEqual(self.log()[-1]["tool"], "shift")
        self.assertIsNotNone(self.widget.trainingPanel)


class AgainTest(CorrectionCase):
    def hintsSeen(self):
        return json.loads(self.node.GetAttribute("SpineSegAI.Result"))["provenance"]["hints"]

    def again(self, button="againButton"):
        self.press(button)
        self.assertTrue(self.widget.segmenting.isRunning, self.message())
        self.waitUntilDone(180)
        self.assertEqual(self.dialogs, [])

    def test_only_hints_that_the_method_accepts_are_offered(self):
        make = {"verdiff-net": "priorCheckBox", "scar-net": "keypointsCheckBox"}
        self.open()
        self.cui.againGroupBox.collapsed = False
        for method in ("resenc-unet", *make):
            self.widget._parameterNode.method = method
            for other, name in make.items():
                self.assertEqual(getattr(self.cui, name).isHidden(), other != method, (method, name))
            self.assertFalse(self.cui.addAnchorButton.isHidden())

    def test_anchors_go_to_the_worker_and_locked_structures_stay(self):
        self.open()
        self.tick(22, 3)
        locked = self.array() == 22
        self.cui.againGroupBox.collapsed = False
        self.select(24)
        self.press("addAnchorButton")
        self.assertIn("L5", self.cui.anchorHintLabel.text)
        before = self.snapshot()
        self.again()
        self.assertIn("Anchor(structure_id=24", self.hintsSeen())
        array = self.array()
        self.assertTrue(((array == 22) == locked).all())
        self.assertEqual(self.log()[-1]["tool"], "segment-again")
        self.press("correctUndoButton")
        self.assertEqual(self.snapshot(), before)

    def test_only_the_selected_structures_are_replaced(self):
        self.open()
        before = self.array()
        self.select(23)
        self.cui.subsetCheckBox.checked = True
        self.again()
        after = self.array()
        others = ~np.isin(before, (0, 23))
        self.assertTrue((after[others] == before[others]).all())
        self.assertFalse(((after == 23) == (before == 23)).all())
        self.assertEqual(len(self.names()), len(LUMBAR))

    def test_moved_key_points_and_the_corrected_segments_are_hints(self):
        from SpineSegAISlicer.scene import keypoints

        make_checkpoint(self.folder, "points", method="scar-net")
        make_checkpoint(self.folder, "diffusion", method="verdiff-net")
        self.open(keypoints={22: (5.0, -10.0, 0.0)})
        self.widget._parameterNode.method = "scar-net"
        self.cui.keypointsCheckBox.checked = True
        points = keypoints.listOf(self.node)
        self.assertEqual(points.GetNumberOfControlPoints(), len(LUMBAR))
        index = [points.GetNthControlPointLabel(i) for i in range(len(LUMBAR))].index("L3")
        self.assertTrue(np.allclose(points.GetNthControlPointPositionWorld(index), (-5, 10, 0)))
        points.SetNthControlPointPositionWorld(index, -5.0, 10.0, 3.0)
        self.again()
        self.assertIn("keypoints={22: (5.0, -10.0, 3.0)}", self.hintsSeen())
        self.widget._parameterNode.method = "verdiff-net"
        self.cui.priorCheckBox.checked = True
        self.again()
        self.assertNotIn("prior=None", self.hintsSeen())

    def test_the_button_and_the_box_show_the_same_points(self):
        make_checkpoint(self.folder, "points", method="scar-net")
        self.open(keypoints={22: (5.0, -10.0, 0.0)})
        self.widget._parameterNode.method = "scar-net"
        self.click(self.ui.keypointsButton)
        points = self.widget._parameterNode.keypoints
        self.assertEqual(points.GetNumberOfControlPoints(), len(LUMBAR))
        index = points.GetControlPointIndexByLabel("L3")
        points.SetNthControlPointPositionWorld(index, -5.0, 10.0, 3.0)
        self.cui.keypointsCheckBox.checked = True
        self.assertEqual(slicer.util.getNodesByClass("vtkMRMLMarkupsFiducialNode"), [points])
        self.assertTrue(np.allclose(points.GetNthControlPointPositionWorld(index), (-5, 10, 3)), "the drag is lost")
        self.assertTrue(points.GetDisplayVisibility())
        self.cui.keypointsCheckBox.checked = False
        self.assertFalse(points.GetDisplayVisibility())

    def test_key_points_follow_their_structures_and_go_where_these_have_changed(self):
        from SpineSegAISlicer.scene import keypoints

        self.open(ids=(22, 122, 23, 123, 24), keypoints={22: (5.0, -10.0, 0.0)})
        self.cui.keypointsCheckBox.checked = True
        points = keypoints.listOf(self.node)
        points.SetNthControlPointPositionWorld(0, -5.0, 10.0, 3.0)
        self.press("shiftUpButton")
        labels = [points.GetNthControlPointLabel(i) for i in range(points.GetNumberOfControlPoints())]
        self.assertEqual(labels, ["L2", "L2/L3", "L3", "L3/L4", "L4"])
        self.assertEqual(keypoints.movedKeypoints(self.node), {21: (5.0, -10.0, 3.0)})
        self.assertTrue(self.cui.keypointsCheckBox.checked)
        self.press("correctUndoButton")
        self.assertFalse(self.cui.keypointsCheckBox.checked)
        self.cui.keypointsCheckBox.checked = True
        self.assertEqual(points.GetNthControlPointLabel(0), "L3")
        self.assertEqual(keypoints.movedKeypoints(self.node), {})

    def test_deleted_key_points_leave_the_others_where_they_are(self):
        from SpineSegAISlicer.scene import keypoints

        self.open(ids=(22, 122, 23, 123, 24))
        self.cui.keypointsCheckBox.checked = True
        points = keypoints.listOf(self.node)
        points.SetNthControlPointPositionWorld(2, -5.0, 10.0, 3.0)
        points.RemoveNthControlPoint(0)
        points.UnsetNthControlPointPosition(points.GetControlPointIndexByLabel("L5"))
        self.assertEqual(keypoints.movedKeypoints(self.node), {23: (5.0, -10.0, 3.0)})

    def test_a_box_is_repaired_and_nothing_outside(self):
        self.open()
        self.assertFalse(self.cui.repairBoxButton.enabled)
        self.select(22)
        self.press("boxButton")
        before, state = self.array(), self.snapshot()
        inside = np.zeros(before.shape, bool)
        from SpineSegAISlicer.scene import markups

        inside[markups.boxOnGrid(self.correct.repair.boxNode, self.volume)] = True
        self.assertTrue(inside[before == 22].all())
        self.assertFalse(inside.all())
        self.again("repairBoxButton")
        self.assertEqual(slicer.util.getNodesByClass("vtkMRMLMarkupsROINode"), [])  # its work is done
        self.assertFalse(self.cui.repairBoxButton.enabled)
        after = self.array()
        self.assertTrue((after[~inside] == before[~inside]).all())
        self.assertFalse((after[inside] == before[inside]).all())
        self.press("correctUndoButton")
        self.assertEqual(self.snapshot(), state)

    def test_the_box_goes_with_the_module_and_with_the_segmentation(self):
        self.open()
        for leave in (self.widget.exit, lambda: self.correct.setSegmentationNode(None)):
            self.select(22)
            self.press("boxButton")
            self.assertEqual(len(slicer.util.getNodesByClass("vtkMRMLMarkupsROINode")), 1)
            leave()
            self.assertEqual(slicer.util.getNodesByClass("vtkMRMLMarkupsROINode"), [])
            self.widget.enter()
            self.assertFalse(self.cui.repairBoxButton.enabled)

    def test_the_box_stays_while_its_repair_failed(self):
        self.open(DOUBLE_FAIL="DeviceError")
        self.select(22)
        self.press("boxButton")
        self.press("repairBoxButton")
        self.waitUntilDone(180)
        self.assertEqual(len(self.dialogs), 1)
        self.assertTrue(self.cui.repairBoxButton.enabled)

    def test_the_shown_slice_is_repaired_alone(self):
        self.open()
        make_view()
        self.select(22)
        before = self.array()
        self.again("repairSliceButton")
        changed = np.flatnonzero((self.array() != before).any(axis=(1, 2)))
        self.assertEqual(len(changed), 1)

    def test_the_segmentation_removed_while_it_is_segmented_again(self):
        self.open(DOUBLE_SECONDS="20.0")
        self.press("againButton")
        self.assertTrue(self.widget.segmenting.isRunning)
        slicer.mrmlScene.RemoveNode(self.node)
        self.waitUntilDone(10)
        self.assertEqual((self.dialogs, self.segmentations()), ([], []))
        self.assertIn("its segmentation was removed from the scene", self.ui.statusLabel.text)
        self.assertTrue(self.ui.applyButton.enabled, self.ui.applyButton.toolTip)

    def test_tools_wait_for_a_segmentation_that_runs(self):
        self.open(DOUBLE_SECONDS="1.0")
        self.press("againButton")
        self.assertFalse(self.cui.shiftUpButton.enabled)
        self.waitUntilDone(180)
        self.assertTrue(self.cui.shiftUpButton.enabled)


class OtherSeriesTest(CorrectionCase):
    def open(self, **options):
        super().open(**options)
        self.other = make_volume("T1", (12, 120, 50), sagittal((1.5, 1.25, 3.5), (-20.0, 30.0, 40.0)))
        self.correct.refresh()

    def test_segments_are_carried_over_and_locked_ones_there_stay(self):
        from SpineSegAISlicer.scene.segments import setLocked

        self.open()
        self.assertIn("T1", self.cui.otherVolumeComboBox.currentText)
        self.press("carryButton")
        carried = self.correct.segmentationNode
        self.assertIsNot(carried, self.node)
        self.assertIs(self.widget._parameterNode.inputVolume, self.other)
        self.assertIn("Copied to", self.message())
        names = [carried.GetSegmentation().GetSegment(i).GetName() for i in carried.GetSegmentation().GetSegmentIDs()]
        self.assertEqual(names, self.names())
        segment = carried.GetSegmentation().GetSegment("L3")
        setLocked(segment, True)
        kept = self.array(self.other, carried) == 22
        self.cui.correctSegmentationSelector.setCurrentNode(self.node)
        self.assertIs(self.correct.segmentationNode, self.node)
        self.select(21, 22)
        self.press("swapButton")
        self.press("carryButton")
        self.assertIs(self.correct.segmentationNode, carried)
        self.assertTrue(((self.array(self.other, carried) == 22) == kept).all())

    def test_carrying_over_again_can_be_undone(self):
        self.open()
        self.press("carryButton")
        carried = self.correct.segmentationNode
        first = self.array(self.other, carried)
        self.select(21, 22)
        self.press("deleteButton")
        corrected, log = self.array(self.other, carried), carried.GetAttribute("SpineSegAI.CorrectionLog")
        self.cui.correctSegmentationSelector.setCurrentNode(self.node)
        self.press("carryButton")
        self.assertIs(self.correct.segmentationNode, carried)
        self.assertTrue((self.array(self.other, carried) == first).all())
        self.assertIn("“Undo” brings back", self.message())
        self.press("correctUndoButton")
        self.assertTrue((self.array(self.other, carried) == corrected).all())
        self.assertEqual(carried.GetAttribute("SpineSegAI.CorrectionLog"), log)
        self.press("correctRedoButton")
        self.assertTrue((self.array(self.other, carried) == first).all())

    def test_what_was_carried_over_is_known_after_loading_into_another_scene(self):
        from SpineSegAISlicer.scene import other_series

        self.open()
        self.press("carryButton")
        self.assertIs(other_series.carriedTo(self.node, self.other), self.correct.segmentationNode)
        path = str(self.folder / "scene.mrb")
        self.assertTrue(slicer.mrmlScene.WriteToMRB(path))
        slicer.mrmlScene.Clear(0)
        third = make_volume("Third")  # has the id that the first one had
        self.assertTrue(slicer.mrmlScene.ReadFromMRB(path, False))
        node, other = slicer.util.getNode("T2 spine"), slicer.util.getNode("T1")
        self.assertIs(other_series.carriedTo(node, other), slicer.util.getNode("T1 spine"))
        self.assertIsNone(other_series.carriedTo(node, third))

    def test_carried_over_and_refined(self):
        self.open()
        self.tick(22, 3)
        self.press("refineButton")
        self.waitUntilDone(180)
        carried = self.correct.segmentationNode
        self.assertEqual(self.dialogs, [])
        from SpineSegAISlicer.scene.segments import isLocked

        self.assertTrue(isLocked(carried.GetSegmentation().GetSegment("L3")))
        hints = json.loads(carried.GetAttribute("SpineSegAI.Result"))["provenance"]["hints"]
        self.assertIn("Anchor(structure_id=24", hints)


class MeasureTest(CorrectionCase):
    def test_corrected_segments_are_measured_into_a_table_and_a_file(self):
        self.open(ids=(22, 122, 23, 123, 24))
        self.press("shiftUpButton")
        path = self.folder / "table.csv"
        self.widget.resultPanel.outputs.saveTable(str(path))
        self.waitUntil(lambda: path.exists() or self.dialogs, 60)
        self.assertEqual(self.dialogs, [])
        rows = [line.split(",") for line in path.read_text(encoding="utf-8").splitlines()]
        self.assertEqual([row[0] for row in rows[1:]], [*self.names(), "whole spine"])
        volume = rows[0].index("volume_ml")
        voxels = (self.array() == 21).sum() * 1.25 * 1.0 * 4.0 / 1000
        self.assertAlmostEqual(float(rows[1][volume]), voxels, delta=0.051)
        self.assertIsNotNone(self.node.GetNodeReference("SpineSegAI.Measurements"))


class BadInputTest(CorrectionCase):
    def refused(self, act, *words):
        before = self.snapshot()
        act()
        for word in words:
            self.assertIn(word, self.message())
        self.assertEqual(self.snapshot(), before)

    def test_no_segmentation_chosen(self):
        self.openPanel()
        self.assertIn("Segment a volume first", self.cui.correctEmptyLabel.text)
        self.assertFalse(self.cui.correctEmptyLabel.isHidden())
        self.assertFalse(self.cui.nextStructureButton.enabled)
        self.assertFalse(self.cui.shiftUpButton.enabled)

    def test_a_segmentation_of_somebody_else(self):
        self.openPanel()
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "theirs")
        node.CreateDefaultDisplayNodes()
        node.GetSegmentation().AddEmptySegment("liver", "liver")
        node.SetReferenceImageGeometryParameterFromVolumeNode(self.volume)
        self.widget._parameterNode.outputSegmentation = node
        self.press("shiftUpButton")
        self.assertIn("No segment of “theirs”", self.message())

    def test_shifted_beyond_the_end_of_the_scheme(self):
        self.open(ids=(16, 116, 17, 117, 18))
        self.refused(lambda: self.press("shiftUpButton"), "T9 would become T8", "lumbar-mr")

    def test_a_pick_on_background(self):
        self.open()
        self.refused(lambda: self.correct.review.pick((-10.0, 28.0, 38.0)), "only background")
        self.refused(lambda: self.correct.review.pick((500.0, 0.0, 0.0)), "outside the image")

    def test_hints_that_contradict_each_other(self):
        self.open()
        self.widget._parameterNode.topLevel, self.widget._parameterNode.bottomLevel = 20, 24
        self.correct.hints.anchors = {26: (0.0, 0.0, 0.0)}
        self.refused(lambda: self.press("againButton"), "S1", "L1 to L5")
        self.assertFalse(self.widget.segmenting.isRunning)
        self.correct.hints.anchors = {}
        self.widget._parameterNode.topLevel, self.widget._parameterNode.bottomLevel = 24, 20
        self.refused(lambda: self.press("againButton"), "upside down")

    def test_segments_that_overlap(self):
        self.open()
        segmentation = self.node.GetSegmentation()
        segmentation.SeparateSegmentLabelmap("L3")
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(self.node, "L3", self.volume)
        mask[4, :100] = 1
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask, self.node, "L3", self.volume)
        self.assertGreater(segmentation.GetNumberOfLayers(), 1)
        self.select(20, 21)
        self.refused(lambda: self.press("mergeButton"), "overlap in", "L3")
        self.click(self.ui.measureButton)
        self.assertIn("overlap in", self.dialogs[0])

    def test_a_segment_renamed_by_hand(self):
        self.open()
        self.node.GetSegmentation().GetSegment("L4").SetName("L5 vertebra")
        self.refused(lambda: self.press("shiftUpButton"), "renamed by hand", "L4")

    def test_everything_locked(self):
        make_view()
        self.open()
        for structureId in LUMBAR:
            self.tick(structureId, 3)
        for button in ("shiftUpButton", "againButton", "repairSliceButton"):
            self.refused(lambda button=button: self.press(button), "Every structure is locked")
        self.assertFalse(self.widget.segmenting.isRunning)

    def test_a_damaged_log_is_no_reason_not_to_open(self):
        self.open()
        self.correct.setSegmentationNode(None)
        self.node.SetAttribute("SpineSegAI.CorrectionLog", "[{")
        self.correct.setSegmentationNode(self.node)
        self.assertTrue(self.correct.review.table.rows)
        self.refused(lambda: self.press("shiftUpButton"), "The correction log is damaged")

    def test_too_few_or_too_many_selected(self):
        self.open()
        self.refused(lambda: self.press("deleteButton"), "No structure is selected")
        self.select(20)
        self.refused(lambda: self.press("swapButton"), "Select two structures for this; one is selected.", "Ctrl")
        self.select(20, 120)
        self.refused(lambda: self.press("swapButton"), "different kinds")
        self.choose("scopeComboBox", "above")
        self.refused(lambda: self.press("shiftUpButton"), "Select one structure for this; 2 are selected.")
        self.select()
        self.refused(lambda: self.press("shiftUpButton"), "none is selected")

    def test_the_volume_is_gone(self):
        self.open()
        slicer.mrmlScene.RemoveNode(self.volume)
        self.widget._parameterNode.outputSegmentation = self.node
        self.select(20, 21)
        self.press("mergeButton")
        self.assertIn("is not in the scene", self.message())


class SpeedTest(CorrectionCase):
    size = (39, 305, 305)

    def test_every_tool_answers_within_a_third_of_a_second(self):
        """Processor time, the best of three: other programs are none of our doing. Nothing here waits."""
        self.volume.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(sagittal((0.8, 0.8, 3.3), (-60.0, 120.0, 120.0))))
        self.open(ids=(17, 117, *LUMBAR, 61))
        self.tick(61, 3)
        self.press("shiftUpButton")
        self.press("correctUndoButton")  # the first use loads what is needed
        tools = {
            "shift": lambda: self.press("shiftUpButton"),
            "this one is": lambda: (self.select(23), self.choose("levelComboBox", 22)),
            "swap": lambda: (self.select(22, 23), self.press("swapButton")),
            "merge": lambda: (self.select(22, 23), self.press("mergeButton")),
            "split": lambda: (self.select(22), self.press("splitButton")),
            "delete": lambda: (self.select(17, 117), self.press("deleteButton")),
            "missing": lambda: (self.select(22), self.press("insertBelowButton")),
            "counting": lambda: self.choose("countingComboBox", "L6"),
            "smooth": lambda: (self.select(22), self.press("smoothButton")),
        }
        seconds, undo = {}, {}
        for name, act in tools.items():
            before = self.snapshot()
            seconds[name] = undo[name] = 9.0
            for _ in range(3):
                started = time.process_time()
                act()
                seconds[name] = min(seconds[name], time.process_time() - started)
                self.assertNotEqual(self.log(), [], f"{name}: {self.message()}")
                started = time.process_time()
                self.press("correctUndoButton")
                undo[name] = min(undo[name], time.process_time() - started)
                self.assertEqual(self.snapshot(), before, name)
        started = time.process_time()
        self.press("nextStructureButton")
        seconds["next structure"] = time.process_time() - started
        print(f"39×305×305, {len(LUMBAR) + 3} segments:", ", ".join(f"{k} {v:.2f} s" for k, v in seconds.items()))
        print("undo:", ", ".join(f"{k} {v:.2f} s" for k, v in undo.items()))
        # 0.3 s is the aim; the time of all threads is counted, on machines of any speed, so the guard is wider.
        self.assertLess(max(*seconds.values(), *undo.values()), 0.6)


if __name__ == "__main__":
    unittest.main()
