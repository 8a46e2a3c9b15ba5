"""Clicks that correct: the mouse, the queue, the effect of the Segment Editor, the toggle of the tab, bad input."""

import unittest
from unittest import mock

import numpy as np
from click_stand_ins import Client, Clock, Hand, ScriptedEffect
from panel_case import make_view, slicer
from test_correction_panel import CorrectionCase

L3, L4, L5 = 22, 23, 24


def no_click_model():
    """As where the checkpoint that follows clicks is not installed."""
    return mock.patch("SpineSegAISlicer.panels.click_models.list_checkpoints", return_value=[])


class ClickCase(CorrectionCase):
    """A segmented volume, a view, a worker that answers when it is told to."""

    size = (10, 150, 60)

    def at(self, structureId, up=0.0):
        """A point (RAS, mm) in the middle of a structure, or so many mm above it."""
        from SpineSegAISlicer.scene import labelmaps

        return np.add(labelmaps.centreOf(self.node, structureId), (0.0, 0.0, up))

    def voxels(self, structureId):
        return int((self.array() == structureId).sum())


class MouseTest(unittest.TestCase):
    """Events of a view become strokes."""

    def setUp(self):
        from SpineSegAISlicer.panels.clicking import ClickMouse

        slicer.mrmlScene.Clear(0)
        self.view = make_view()
        self.strokes, self.ended = [], 0
        self.mouse = ClickMouse(self.strokes.append, lambda: setattr(self, "ended", self.ended + 1))
        self.hand = Hand(self.view, lambda interactor, event: self.mouse.process(interactor, event, self.view))

    def tearDown(self):
        slicer.mrmlScene.Clear(0)

    def test_a_click_adds_and_with_ctrl_it_removes(self):
        self.assertTrue(self.hand.click((0.0, 3.0, 5.0)))
        self.assertTrue(self.hand.click((0.0, 3.0, 5.0), control=True))
        self.assertEqual([stroke.add for stroke in self.strokes], [True, False])
        for stroke in self.strokes:
            np.testing.assert_allclose(stroke.points, [(0.0, 3.0, 5.0)], atol=1e-6)

    def test_a_drag_is_a_scribble_of_points_a_millimeter_apart(self):
        line = [(0.0, 0.3 * y, 5.0) for y in range(41)]
        self.hand.click(*line)
        (stroke,) = self.strokes
        self.assertEqual(len(stroke.points), 11)
        self.assertGreaterEqual(np.linalg.norm(np.diff(stroke.points, axis=0), axis=1).min(), 1.0 - 1e-6)

    def test_ctrl_that_is_pressed_while_drawing_changes_nothing(self):
        self.hand.moveTo((0.0, 0.0, 0.0))
        self.hand.event("LeftButtonPress")
        self.hand.press("Control_L")
        self.hand.interactor.control = True
        self.hand.moveTo((0.0, 5.0, 0.0))
        self.hand.event("LeftButtonRelease")
        self.assertEqual([stroke.add for stroke in self.strokes], [True])

    def test_the_sign_follows_the_key(self):
        self.assertFalse(self.mouse.isRemoving)
        self.hand.press("Control_L")
        self.assertTrue(self.mouse.isRemoving)
        self.hand.press("Control_L", down=False)
        self.assertFalse(self.mouse.isRemoving)
        self.hand.interactor.control = True  # it was pressed while another window was active
        self.hand.moveTo((0.0, 0.0, 0.0))
        self.assertTrue(self.mouse.isRemoving)

    def test_the_second_click_of_a_double_one_is_a_click(self):
        self.hand.click((0.0, 3.0, 5.0))
        self.assertTrue(self.hand.event("LeftButtonPress"))
        self.assertTrue(self.hand.event("LeftButtonDoubleClick"))  # as VTK has it: both come
        self.hand.event("LeftButtonRelease")
        self.assertEqual(len(self.strokes), 2)

    def test_what_views_are_moved_with_is_left_to_them(self):
        self.hand.interactor.shift = True
        self.assertFalse(self.hand.event("LeftButtonPress"))
        self.hand.interactor.shift = False
        for name in ("RightButtonPress", "MouseWheelForward", "MouseMove", "LeftButtonRelease"):
            self.assertFalse(self.hand.event(name), name)
        self.assertEqual(self.strokes, [])

    def test_escape_ends_and_gives_a_scribble_up(self):
        self.hand.event("LeftButtonPress")
        self.assertTrue(self.hand.press("Escape"))
        self.assertFalse(self.hand.event("LeftButtonRelease"))
        self.assertEqual((self.strokes, self.ended), ([], 1))
        self.assertFalse(self.hand.press("a"))


class ToolTest(ClickCase):
    """Strokes become undo steps, over a small stand-in of `scriptedEffect`."""

    def setUp(self):
        from SpineSegAISlicer.panels.clicking import ClickTool, EffectCase, Stroke

        super().setUp()
        self.open()
        self.Stroke = Stroke
        self.editorNode = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
        self.editorNode.SetAndObserveSegmentationNode(self.node)
        self.editorNode.SetAndObserveSourceVolumeNode(self.volume)
        self.editorNode.SetSelectedSegmentID(self.segmentId(L3))
        self.effect, self.client, self.clock = ScriptedEffect(self.editorNode), Client(), Clock()
        self.said = []
        case = EffectCase(self.effect, lambda text, isError: self.said.append((text, isError)))
        self.tool = ClickTool(case, lambda: self.client, self.clock)

    def stroke(self, *points, add=True):
        self.tool.add(self.Stroke(tuple(map(tuple, points)), add))

    def refused(self, *words):
        """The last thing that was said is an error with these words, and nothing was asked since."""
        text, isError = self.said[-1]
        self.assertTrue(isError, text)
        for word in words:
            self.assertIn(word, text)

    def test_one_click_is_one_undo_step_and_the_neighbor_loses(self):
        before, neighbor = self.voxels(L3), self.voxels(L4)
        self.stroke(self.at(L4))
        (asked,) = self.client.asked
        self.assertEqual([(c.structure_id, c.add) for c in asked.clicks], [(L3, True)])
        self.assertEqual((asked.earlier, asked.locked), ([], frozenset()))
        self.client.answer()
        self.assertGreater(self.voxels(L3), before)
        self.assertEqual(self.voxels(L3) - before, neighbor - self.voxels(L4))
        self.assertEqual((self.effect.saved, self.said[-1]), (1, ("Correct it by 1 click.", False)))
        self.assertEqual(self.log()[-1]["tool"], "click")
        self.effect.history.RestorePreviousState()
        self.assertEqual((self.voxels(L3), self.voxels(L4)), (before, neighbor))

    def test_removing(self):
        before = self.voxels(L3)
        self.stroke(self.at(L3), add=False)
        self.client.answer()
        self.assertEqual(before - self.voxels(L3), 125)

    def test_locked_structures_are_told_and_never_change(self):
        from SpineSegAISlicer.scene.segments import setLocked

        setLocked(self.segment(L4), True)
        neighbor = self.voxels(L4)
        self.stroke(self.at(L4))
        self.assertEqual(self.client.asked[-1].locked, frozenset({L4}))
        self.client.answer()
        self.assertEqual(self.voxels(L4), neighbor)
        setLocked(self.segment(L3), True)
        self.stroke(self.at(L3))
        self.refused("L3", "is locked")
        self.assertEqual(len(self.client.asked), 1)

    def test_what_is_locked_while_it_computes_keeps_its_voxels(self):
        from SpineSegAISlicer.scene.segments import setLocked

        self.stroke(self.at(L4))
        setLocked(self.segment(L4), True)
        neighbor = self.voxels(L4)
        self.client.answer()
        self.assertEqual(self.voxels(L4), neighbor)
        setLocked(self.segment(L4), False)
        self.stroke(self.at(L4))
        setLocked(self.segment(L3), True)
        self.client.answer()
        self.refused("locked while")
        self.assertEqual(self.voxels(L4), neighbor)

    def test_clicks_wait_for_each_other_and_each_sees_the_one_before(self):
        self.stroke(self.at(L4))
        self.stroke(self.at(L3), add=False)
        self.stroke(self.at(L5))
        self.assertEqual(len(self.client.asked), 1)
        self.client.answer()
        self.assertEqual(len(self.client.asked), 2)
        self.assertEqual([c.add for c in self.client.asked[1].earlier], [True])
        self.client.answer()
        self.client.answer()
        self.assertEqual([c.add for c in self.client.asked[2].earlier], [True, False])
        self.assertEqual((self.effect.saved, self.tool.isBusy), (3, False))
        self.assertEqual(len(self.log()), 3)

    def test_what_was_taken_back_holds_no_more(self):
        self.stroke(self.at(L4))
        self.client.answer()
        self.effect.history.RestorePreviousState()
        self.stroke(self.at(L5))
        self.assertEqual(self.client.asked[-1].earlier, [])
        self.client.answer()
        self.stroke(self.at(L3), add=False)
        self.assertEqual(len(self.client.asked[-1].earlier), 1)  # not the one that was taken back before it

    def test_earlier_clicks_stay_with_their_structure(self):
        self.stroke(self.at(L4))
        self.client.answer()
        self.editorNode.SetSelectedSegmentID(self.segmentId(L5))
        self.stroke(self.at(L5))
        self.assertEqual(self.client.asked[-1].earlier, [])
        self.client.answer()
        self.editorNode.SetSelectedSegmentID(self.segmentId(L3))
        self.press("shiftUpButton")  # L3 is L2 now
        self.stroke(self.at(L3))
        self.assertEqual({c.structure_id for c in self.client.asked[-1].earlier}, {L3 - 1})

    def test_earlier_clicks_stay_in_their_segmentation(self):
        self.stroke(self.at(L4))
        self.client.answer()
        other = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Another patient")
        other.CreateDefaultDisplayNodes()
        other.GetSegmentation().DeepCopy(self.node.GetSegmentation())
        other.SetReferenceImageGeometryParameterFromVolumeNode(self.volume)
        self.editorNode.SetAndObserveSegmentationNode(other)
        self.editorNode.SetSelectedSegmentID(self.segmentId(L3))
        self.stroke(self.at(L5))
        self.assertEqual(len(self.client.asked), 2)
        self.assertEqual(self.client.asked[-1].earlier, [])

    def test_earlier_clicks_do_not_hold_for_a_new_result(self):
        from SpineSegAISlicer.scene.segment_again import SegmentAgain

        self.stroke(self.at(L4))
        self.client.answer()
        SegmentAgain().place(self.result((L3, 123, L4), self.volume), self.volume, self.node, None)
        self.stroke(self.at(L4))
        self.assertEqual(self.client.asked[-1].earlier, [])
        self.client.answer()
        self.stroke(self.at(L3), add=False)
        self.assertEqual(len(self.client.asked[-1].earlier), 1)

    def test_a_note_while_it_takes_long(self):
        self.stroke(self.at(L4))
        ((milliseconds, _function),) = self.clock.waiting
        self.assertEqual(milliseconds, 300)
        self.clock.strike()
        self.assertEqual(self.said[-1], ("Correcting L3…", False))
        self.client.answer()
        self.stroke(self.at(L4))
        self.client.answer()
        count = len(self.said)
        self.clock.strike()  # the answer was quicker
        self.assertEqual(len(self.said), count)

    def test_nothing_to_change_is_said_and_is_no_step(self):
        self.stroke(self.at(L3))
        self.client.answer(labels=None)
        self.assertEqual(self.said[-1], ("Nothing changes: L3 is there already.", False))
        self.assertEqual((self.effect.saved, self.log()), (0, []))

    def test_other_changes_meanwhile_are_kept(self):
        self.stroke(self.at(L4))
        self.select(20, 21)
        self.press("swapButton")
        swapped = self.voxels(20), self.voxels(21)
        self.client.answer()
        self.assertEqual((self.voxels(20), self.voxels(21)), swapped)
        self.assertEqual([entry["tool"] for entry in self.log()], ["swap", "click"])

    def test_a_structure_that_is_another_one_meanwhile(self):
        self.stroke(self.at(L4))
        self.press("shiftUpButton")
        before = self.array()
        self.client.answer()
        self.refused("renamed", "Click again")
        np.testing.assert_array_equal(self.array(), before)

    def test_a_structure_that_is_gone_meanwhile(self):
        self.stroke(self.at(L4))
        self.stroke(self.at(L5))
        self.select(L3)
        self.press("deleteButton")
        self.client.answer()
        self.assertEqual([text for text, isError in self.said if isError and "is gone" in text], [self.said[-1][0]] * 2)
        self.assertEqual(len(self.client.asked), 1)

    def test_a_click_on_nothing_starts_an_empty_structure(self):
        from SpineSegAISlicer.scene import corrections

        point = self.at(L4)
        self.select(L4)
        self.press("deleteButton")
        corrections.addEmpty(self.node, [L4])
        self.editorNode.SetSelectedSegmentID(self.segmentId(L4))
        self.stroke(point)
        self.client.answer()
        self.assertEqual(self.voxels(L4), 125)

    def test_a_segment_is_what_it_is_called(self):
        """As in a session of the Segment Editor alone, in which nothing was segmented yet."""
        own = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "By hand")
        own.SetReferenceImageGeometryParameterFromVolumeNode(self.volume)
        segmentId = own.GetSegmentation().AddEmptySegment("", "L4")
        other = own.GetSegmentation().AddEmptySegment("", "Tumor")
        point = self.at(L4)
        self.node = own
        self.editorNode.SetAndObserveSegmentationNode(own)
        self.editorNode.SetSelectedSegmentID(other)
        self.stroke(point)
        self.refused("“Tumor” is not a structure", "such as L4")
        self.editorNode.SetSelectedSegmentID(segmentId)
        self.stroke(point)
        self.client.answer()
        self.assertEqual(self.voxels(L4), 125)

    # --- bad input ---------------------------------------------------------------------------------------------------

    def test_what_the_worker_refuses_is_told_and_the_next_one_is_asked(self):
        from SpineSegAISlicer.processes.failure import Failure

        self.stroke((1e4, 0.0, 0.0))
        self.stroke(self.at(L4))
        before = self.array()
        self.client.asked[0].onError(Failure("CorrectionError", "The click lies outside of the image.", "Look."))
        self.refused("outside of the image", "Look.")
        np.testing.assert_array_equal(self.array(), before)
        self.client.answer()
        self.assertEqual(self.effect.saved, 1)

    def test_nothing_selected_no_segmentation_no_volume(self):
        self.editorNode.SetSelectedSegmentID("")
        self.stroke(self.at(L4))
        self.refused("No segment is selected")
        self.editorNode.SetSelectedSegmentID(self.segmentId(L3))
        slicer.mrmlScene.RemoveNode(self.volume)
        self.stroke((0.0, 0.0, 0.0))
        self.refused("No volume is chosen")
        slicer.mrmlScene.RemoveNode(self.node)
        self.stroke((0.0, 0.0, 0.0))
        self.refused("There is no segmentation")
        self.assertEqual(self.client.asked, [])

    def test_segments_that_overlap(self):
        from test_correction_panel import LABELMAP

        both = slicer.vtkSegment()
        both.DeepCopy(self.segment(L4))
        both.SetName("L3/L4")
        image = slicer.vtkOrientedImageData()
        image.DeepCopy(self.segment(L4).GetRepresentation(LABELMAP))
        both.AddRepresentation(LABELMAP, image)
        both.SetTag("SpineSegAI.Structure", "122")
        self.node.GetSegmentation().RemoveSegment(self.segmentId(122))
        self.node.GetSegmentation().AddSegment(both, "L3/L4")
        self.stroke(self.at(L4))
        self.assertTrue(self.said[-1][1], self.said)
        self.assertEqual(self.client.asked, [])

    def test_the_scene_is_closed_meanwhile(self):
        self.stroke(self.at(L4))
        self.stroke(self.at(L5))
        count = len(self.said)
        slicer.mrmlScene.Clear(0)
        self.clock.strike()
        self.client.answer()
        self.assertEqual((len(self.said), len(self.client.asked)), (count, 1))
        self.assertFalse(self.tool.isBusy)

    def test_another_segmentation_is_edited_meanwhile(self):
        self.stroke(self.at(L4))
        before = self.array()
        self.editorNode.SetAndObserveSegmentationNode(None)
        self.client.answer()
        np.testing.assert_array_equal(self.array(), before)
        self.assertEqual(self.effect.saved, 0)

    def test_without_the_model_the_reason_is_said(self):
        with no_click_model():
            self.stroke(self.at(L4))
        self.refused("“click-refine”, is not installed")


class EffectTest(ClickCase):
    """The effect in Slicer's Segment Editor, and what it shows."""

    def setUp(self):
        super().setUp()
        self.open()
        self.editor = slicer.qMRMLSegmentEditorWidget()
        self.editorNode = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
        self.editor.setMRMLScene(slicer.mrmlScene)
        self.editor.setMRMLSegmentEditorNode(self.editorNode)
        self.editor.setSegmentationNode(self.node)
        self.editor.setSourceVolumeNode(self.volume)
        self.editor.setCurrentSegmentID(self.segmentId(L3))
        self.client = Client()
        self.patch(slicer.util, "getModuleWidget", lambda name: type("Widget", (), {"client": self.client}))
        self.editor.setActiveEffectByName("Spine click")
        self.effect = self.editor.activeEffect()
        self.view = self.slice_widget()
        self.hand = Hand(self.view.mrmlSliceNode(), self.process)

    def slice_widget(self, name="Test"):
        from host.editor_effects import qMRMLSliceWidget
        from host.pythonqt import wrap

        return wrap(qMRMLSliceWidget(make_view(name)))

    def process(self, interactor, event):
        return self.effect.self().processInteractionEvents(interactor, event, self.view)

    def label(self):
        return self.effect.self()._label.text

    def test_it_is_registered_once_and_has_one_name(self):
        from SpineSegAISlicer.panels.click_tools import registerEffect
        from SpineSegAISlicer.panels.clicking import EFFECT

        from SpineSegAI import registerClicks

        registerClicks()
        registerEffect()
        self.assertEqual(self.effect.name, EFFECT)
        self.assertEqual(self.label(), "")
        self.assertIn("Ctrl", self.effect.self().helpText())
        self.assertFalse(self.effect.self().icon().isNull())

    def test_a_click_in_any_view_corrects_and_is_undone_by_the_editor(self):
        before, point = self.voxels(L3), self.at(L4)
        self.assertTrue(self.hand.click(point))
        self.client.answer()
        self.assertGreater(self.voxels(L3), before)
        self.assertEqual(self.label(), "Correct it by 1 click.")
        self.editor.undo()
        self.assertEqual(self.voxels(L3), before)
        self.view = self.slice_widget("Axial")
        self.view.mrmlSliceNode().SetOrientation("Axial")
        self.view.mrmlSliceNode().JumpSliceByCentering(*point)
        Hand(self.view.mrmlSliceNode(), self.process).click(point)
        np.testing.assert_allclose(np.array(self.client.asked[-1].clicks[0].point) * [-1, -1, 1], point, atol=1e-3)

    def test_the_cursor_says_what_a_click_would_do(self):
        from host.pythonqt import unwrap

        cursors = unwrap(self.view.sliceView()).cursors
        self.hand.moveTo((0.0, 0.0, 0.0))
        self.hand.moveTo((0.0, 5.0, 0.0))
        self.hand.press("Control_L")
        self.hand.press("Control_L", down=False)
        images = [cursor.pixmap().toImage() for cursor in cursors]
        self.assertEqual(len(images), 3)  # set when it changes, not at every step of the mouse
        self.assertEqual(images[0], images[2])
        self.assertNotEqual(images[0], images[1])

    def test_a_scribble_is_seen_while_it_is_drawn(self):
        from host.pythonqt import unwrap

        actors = unwrap(self.effect).actors
        self.hand.moveTo(self.at(L4))
        self.hand.event("LeftButtonPress")
        for up in range(5):
            self.hand.moveTo(self.at(L4, float(up)))
        (actor,) = actors
        self.assertEqual(actor.GetMapper().GetInput().GetNumberOfCells(), 5)
        self.hand.event("LeftButtonRelease")
        self.assertEqual(actors, [])
        self.assertEqual(len(self.client.asked[-1].clicks), 5)

    def test_escape_ends_it(self):
        self.assertTrue(self.hand.press("Escape"))
        self.assertIsNone(self.editor.activeEffect())
        self.assertEqual(self.editorNode.GetActiveEffectName(), "")

    def test_three_dimensional_views_are_left_alone(self):
        self.view = slicer.qMRMLWidget()
        self.assertFalse(self.hand.click((0.0, 0.0, 0.0)))
        self.assertEqual(self.client.asked, [])

    def test_what_is_missing_is_said_when_it_is_chosen(self):
        self.editor.setActiveEffectByName("")
        with no_click_model():
            self.editor.setActiveEffectByName("Spine click")
        self.assertIn("is not installed", self.label())

    def test_the_effects_client_is_the_panels(self):
        widget = slicer.util.getModuleWidget("SpineSegAI")
        self.assertIs(widget.client, self.client)
        self.hand.click(self.at(L4))
        self.assertEqual(len(self.client.asked), 1)


class ToggleTest(ClickCase):
    """The toggle in the tab Correct."""

    def open(self, *arguments, **options):
        super().open(*arguments, **options)
        self.client = Client()
        self.correct.segmenting.queue.client.refine = self.client.refine
        self.editor = self.correct.editor.widget
        self.view = EffectTest.slice_widget(self)
        self.hand = Hand(self.view.mrmlSliceNode(), self.process)

    def process(self, interactor, event):
        effect = self.editor.activeEffect()
        return effect is not None and effect.self().processInteractionEvents(interactor, event, self.view)

    def toggle(self, on=True):
        self.assertTrue(self.cui.clickButton.enabled, self.cui.clickButton.toolTip)
        self.cui.clickButton.setChecked(on)

    def test_every_click_is_one_undo_step_with_log_and_message(self):
        self.open()
        self.select(L3)
        self.toggle()
        self.assertIn("Click where the selected structure should be", self.message())

        def act():
            self.hand.click(self.at(L4))
            self.client.answer()
            self.assertEqual(self.message(), "Correct it by 1 click.")

        self.assertUndoIsExact(act)
        self.assertEqual([entry["tool"] for entry in self.log()], ["click"])  # not as a stroke, too
        self.assertEqual(self.correct.review.table.selected(), [L3])

    def test_views_stay_where_they_are(self):
        self.open()
        self.select(L3)
        self.toggle()
        self.view.mrmlSliceNode().SetSliceOffset(7.0)
        self.hand.click(self.at(L3), control=True)
        self.client.answer()
        self.assertEqual(self.view.mrmlSliceNode().GetSliceOffset(), 7.0)

    def test_without_the_model_it_is_disabled_and_says_why(self):
        with no_click_model():
            self.open()
            self.assertFalse(self.cui.clickButton.enabled)
            self.assertIn("“click-refine”, is not installed", self.cui.clickButton.toolTip)
            self.editor.setActiveEffectByName("Spine click")  # by its button in the editor
            self.assertIn("“click-refine”, is not installed", self.message())
            self.editor.setActiveEffectByName("")
        self.correct.refresh()
        self.assertTrue(self.cui.clickButton.enabled)
        self.assertIn("Ctrl", self.cui.clickButton.toolTip)

    def other_model(self):
        """One of the user's own beside ours; its title is “Mine”."""
        from SpineSegAILib.checkpoints import find_checkpoint, load_tensors, save_checkpoint

        ours = find_checkpoint("click-refine")
        save_checkpoint(self.folder / "mine.safetensors", load_tensors(ours), {**ours.metadata, "title": "Mine"})

    def tearDown(self):
        from SpineSegAISlicer.panels.click_models import SETTING

        slicer.app.userSettings().remove(SETTING)
        super().tearDown()

    def test_there_is_no_choice_of_models_where_there_is_one(self):
        self.open()
        self.assertTrue(self.cui.clickModelComboBox.isHidden())
        self.select(L3)
        self.toggle()
        self.hand.click(self.at(L4))
        self.assertEqual(self.client.asked[-1].checkpoint, "click-refine")

    def test_another_model_is_chosen_once_for_tab_and_editor(self):
        self.other_model()
        self.open()
        combo = self.cui.clickModelComboBox
        self.assertFalse(combo.isHidden())
        self.assertEqual([combo.itemText(i) for i in range(combo.count)], ["Click to correct", "Mine"])
        self.assertEqual(combo.currentData, "click-refine")
        combo.setCurrentIndex(1)
        self.select(L3)
        self.toggle()
        self.hand.click(self.at(L4))
        self.assertEqual(self.client.asked[-1].checkpoint, "mine")
        other = self.editor.activeEffect().self()._combo
        self.assertEqual(other.currentData, "mine")
        other.setCurrentIndex(0)
        self.correct.refresh()
        self.assertEqual(combo.currentData, "click-refine")

    def test_a_chosen_model_that_is_gone_is_replaced_by_ours(self):
        self.other_model()
        self.open()
        self.cui.clickModelComboBox.setCurrentIndex(1)
        (self.folder / "mine.safetensors").unlink()
        self.correct.refresh()
        self.assertTrue(self.cui.clickModelComboBox.isHidden())
        self.select(L3)
        self.toggle()
        self.hand.click(self.at(L4))
        self.assertEqual(self.client.asked[-1].checkpoint, "click-refine")

    def test_esc_other_effects_other_tabs_and_other_modules_end_it(self):
        self.open()
        self.select(L3)
        for end in (
            lambda: self.hand.press("Escape"),
            self.correct.clicks.stop,  # the key while the panel has the focus
            lambda: self.editor.setActiveEffectByName("Paint"),
            lambda: self.widget.tabs.show("segmentTab"),
            self.widget.exit,
            lambda: self.cui.pickButton.setChecked(True),
        ):
            self.toggle()
            self.assertEqual(self.editor.mrmlSegmentEditorNode().GetActiveEffectName(), "Spine click")
            end()
            self.assertFalse(self.cui.clickButton.checked, end)
            self.assertNotEqual(self.editor.mrmlSegmentEditorNode().GetActiveEffectName(), "Spine click")
            self.correct.review.stopPicking()
            self.widget.tabs.show("correctTab")
            self.widget.enter()
        self.assertFalse(self.hand.click(self.at(L4)))

    def test_chosen_among_the_editors_effects_it_is_the_same(self):
        self.open()
        self.select(L3)
        self.editor.setActiveEffectByName("Spine click")
        self.assertTrue(self.cui.clickButton.checked)
        self.hand.click(self.at(L4))
        self.client.answer()
        self.assertEqual(self.message(), "Correct it by 1 click.")

    def test_what_is_taken_back_before_it_was_answered_never_comes(self):
        self.open()
        self.select(L3)
        self.toggle()
        self.hand.click(self.at(L4))
        self.client.answer()
        self.hand.click(self.at(L5))
        self.hand.click(self.at(L5))
        self.press("correctUndoButton")
        before = self.array()
        self.client.answer()
        np.testing.assert_array_equal(self.array(), before)
        self.assertEqual(len(self.client.asked), 2)
        self.hand.click(self.at(L5))
        self.assertEqual(len(self.client.asked), 3)

    def test_what_cannot_be_followed_is_said(self):
        self.open()
        self.toggle()
        self.hand.click(self.at(L4))
        self.assertIn("none is selected", self.message())
        self.select(L3, L4)
        self.hand.click(self.at(L4))
        self.assertIn("Select one structure", self.message())
        self.select(L3)
        self.tick(L3, 3)
        self.hand.click(self.at(L4))
        self.assertIn("L3", self.message())
        self.assertIn("is locked", self.message())
        self.assertEqual(self.client.asked, [])

    def test_without_a_segmentation_it_is_not_there(self):
        self.openPanel()
        self.widget.tabs.show("correctTab")
        self.assertFalse(self.widget.correctionPanel.ui.clickButton.enabled)

    def test_the_scene_is_closed_while_it_computes(self):
        self.open()
        self.select(L3)
        self.toggle()
        self.hand.click(self.at(L4))
        slicer.mrmlScene.Clear(0)
        self.client.answer()
        self.assertFalse(self.cui.clickButton.checked)

    def test_no_clicks_while_a_segmentation_runs(self):
        self.open(DOUBLE_SECONDS="5")
        self.select(L3)
        self.toggle()
        self.widget.segmentPanel.onApply()
        self.waitUntil(lambda: self.widget.segmenting.isRunning, 10)
        self.assertFalse(self.cui.clickButton.enabled or self.cui.clickButton.checked)
        self.widget.segmentPanel.onApply()
        self.waitUntilDone()


class WorkerTest(ClickCase):
    """From the mouse to the voxels, through the real worker and the model that comes along."""

    def test_a_click_reaches_the_voxels(self):
        self.open()
        self.select(L3)
        self.cui.clickButton.setChecked(True)
        view = EffectTest.slice_widget(self)
        effect = self.correct.editor.widget.activeEffect().self()
        hand = Hand(view.mrmlSliceNode(), lambda *event: effect.processInteractionEvents(*event, view))
        point = self.at(L4)
        view.mrmlSliceNode().JumpSliceByCentering(*point)
        before = self.snapshot()
        hand.click(point)
        hand.click((0.0, 1e4, 0.0))
        tool = self.correct.clicks.tool
        self.waitUntil(lambda: not tool.isBusy and self.log(), 120)
        self.assertIn("outside of the image", self.message())
        self.assertEqual([entry["words"] for entry in self.log()], ["Correct L3 by 1 click"])
        from SpineSegAISlicer.scene import labelmaps, volumes

        labels = labelmaps.labelsFromSegmentation(self.node, self.volume)
        self.assertEqual(labels[labels.TransformPhysicalPointToIndex(volumes.lps(point))], L3)
        self.press("correctUndoButton")
        self.assertEqual(self.snapshot(), before)


if __name__ == "__main__":
    unittest.main()
