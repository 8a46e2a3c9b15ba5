"""What is shown of a result and made of it: the level question, names in the views, files; the tabs it is shown in.

Runs in the host and inside Slicer.
"""

import unittest

from panel_case import PanelCase, make_checkpoint, make_volume, np, qt, slicer, vtk

ASKED = {"DOUBLE_ASK": "1"}


class ResultCase(PanelCase):
    def segment(self, **environment):
        self.volume = make_volume()
        self.openPanel(**environment)
        self.run_to_the_end()
        self.assertEqual(self.dialogs, [])

    def names(self):
        segmentation = self.output().GetSegmentation()
        return [segmentation.GetSegment(i).GetName().split()[0] for i in segmentation.GetSegmentIDs()]

    @property
    def cui(self):
        return self.widget.correctionPanel.ui


class QuestionTest(ResultCase):
    def test_the_level_question_is_answered_by_one_click(self):
        self.segment(**ASKED)
        before = self.names()
        for button in (self.ui.answerButton, self.cui.correctAnswerButton):
            self.assertFalse(button.isHidden())
            self.assertEqual(button.text, "Rename to T12 to L5")
        self.click(self.ui.answerButton)
        self.assertEqual(self.names()[0], "T12")
        self.assertEqual(self.names()[-1], "L5")
        self.assertTrue(self.ui.answerButton.isHidden())
        self.assertNotIn("or T12 to L5", self.ui.warningLabel.text)
        self.assertIn("levels are a guess", self.ui.warningLabel.text)  # the other warnings stay
        self.assertIn("Name them T12", self.ui.statusLabel.text)
        self.widget.tabs.show("correctTab")
        self.click(self.cui.correctUndoButton)
        self.assertEqual(self.names(), before)
        self.assertFalse(self.cui.correctAnswerButton.isHidden())
        self.click(self.cui.correctAnswerButton)
        self.assertEqual(self.names()[0], "T12")

    def test_without_a_question_there_is_no_button(self):
        self.segment()
        self.assertTrue(self.ui.answerButton.isHidden())
        self.assertTrue(self.cui.correctAnswerButton.isHidden())

    def test_an_answer_that_is_locked_out_says_why_where_it_was_clicked(self):
        from SpineSegAISlicer.scene.segments import segmentOf, setLocked

        self.segment(**ASKED)
        setLocked(segmentOf(self.output(), 23), True)
        before = self.names()
        self.click(self.ui.answerButton)
        self.assertIn("L4 is locked", self.ui.statusLabel.text)
        self.assertEqual(self.names(), before)

    def test_how_sure_the_levels_are_is_said_once_and_no_more_after_renaming(self):
        from SpineSegAISlicer.scene import result_attribute

        self.segment(**ASKED)
        label = self.ui.levelConfidenceLabel
        self.assertTrue(label.isHidden())  # this model does not tell
        for sure, words in ((0.985, "Level confidence: 98 %"), ("damaged", ""), (0.75, "Level confidence: 75 %")):
            result_attribute.write(self.output(), {**result_attribute.read(self.output()), "level_confidence": sure})
            self.widget.correctionPanel.refresh()
            self.assertEqual("" if label.isHidden() else label.text, words)
        self.click(self.ui.answerButton)
        self.assertTrue(label.isHidden())

    def test_an_edited_scene_asks_nothing(self):
        self.segment(**ASKED)
        from SpineSegAISlicer.scene import result_attribute

        document = result_attribute.read(self.output())
        document["alternatives"] = [{"names": "T12"}]
        result_attribute.write(self.output(), document)
        self.widget.correctionPanel.refresh()
        self.assertTrue(self.ui.answerButton.isHidden())


class LevelNamesTest(ResultCase):
    def written(self):
        """Name → position (RAS) of what is written in the views."""
        from SpineSegAISlicer.scene import level_names

        node = self.output().GetNodeReference(level_names.ROLE)
        if node is None or not node.GetDisplayVisibility():
            return {}
        found = {}
        for index in range(node.GetNumberOfControlPoints()):
            position = [0.0] * 3
            node.GetNthControlPointPositionWorld(index, position)
            found[node.GetNthControlPointLabel(index)] = position
        return found

    def test_names_are_written_at_the_vertebrae_and_follow_them(self):
        from SpineSegAISlicer.scene import labelmaps

        self.segment()
        self.assertEqual(self.written(), {})
        self.click(self.ui.levelNamesCheckBox)
        self.assertEqual(list(self.written()), ["L1", "L2", "L3", "L4", "L5", "S1"])
        np.testing.assert_allclose(self.written()["L4"], labelmaps.centreOf(self.output(), 23))
        at = self.written()["L4"]
        self.click(self.cui.shiftUpButton)
        self.assertEqual(list(self.written()), ["T12", "L1", "L2", "L3", "L4", "L5"])
        np.testing.assert_allclose(self.written()["L3"], at)
        self.widget.tabs.show("correctTab")
        self.click(self.cui.correctUndoButton)
        np.testing.assert_allclose(self.written()["L4"], at)
        self.widget.correctionPanel.review.table.select([20])
        self.click(self.cui.deleteButton)
        self.assertEqual(list(self.written()), ["L2", "L3", "L4", "L5", "S1"])
        self.click(self.ui.levelNamesCheckBox)
        self.assertEqual(self.written(), {})

    def test_another_result_has_its_own(self):
        self.segment()
        first = self.output()
        self.click(self.ui.levelNamesCheckBox)
        self.ui.outputSegmentationSelector.setCurrentNode(None)
        self.run_to_the_end()
        self.assertFalse(self.ui.levelNamesCheckBox.checked)
        self.ui.outputSegmentationSelector.setCurrentNode(first)
        self.assertTrue(self.ui.levelNamesCheckBox.checked)


class FilesTest(ResultCase):
    def test_a_saved_segmentation_can_be_loaded_again(self):
        from SpineSegAISlicer.scene.segments import structuresOfSegmentation

        self.segment()
        path = self.folder / "spine.seg.nrrd"
        self.widget.resultPanel.outputs.saveSegmentation(str(path))
        self.assertEqual(self.dialogs, [])
        back = slicer.util.loadSegmentation(str(path))
        self.assertEqual(set(structuresOfSegmentation(back)), set(structuresOfSegmentation(self.output())))

    def test_names_of_files_get_their_ending(self):
        self.segment()
        asked = self.widget.resultPanel.outputs._fileName
        for name, expected in (("a", "a.pdf"), ("b.PDF", "b.PDF"), ("c.html", "c.html"), ("", "")):
            self.patch(qt.QFileDialog, "getSaveFileName", lambda *_arguments, name=name: name)
            self.assertEqual(asked("Report", "PDF (*.pdf);;Web page (*.html)", ".pdf", ".html"), expected)


class LayoutManager:
    """As far as `scene.views` uses it."""

    threeDViewCount = 0
    mrmlSliceLogics = staticmethod(vtk.vtkCollection)

    def __init__(self, layout):
        self.layout = layout
        self.node = slicer.vtkMRMLLayoutNode()

    def layoutLogic(self):
        return self

    def GetLayoutNode(self):
        return self.node

    def setLayout(self, layout):
        self.layout = layout


class ViewsTest(ResultCase):
    def views(self, layout):
        manager, application = LayoutManager(layout), slicer.app

        class Application:
            def __getattr__(self, name):
                return (lambda: manager) if name == "layoutManager" else getattr(application, name)

        self.patch(slicer, "app", Application())
        return manager

    def test_a_result_is_shown_in_a_sagittal_layout(self):
        from SpineSegAISlicer.scene import views

        manager = self.views(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
        self.segment()
        self.assertEqual(manager.layout, views.SAGITTAL_LAYOUT)
        self.assertIn("Sagittal", manager.node.GetLayoutDescription(views.SAGITTAL_LAYOUT))
        manager.layout = slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView
        self.run_to_the_end()
        self.assertEqual(manager.layout, views.SAGITTAL_LAYOUT)

    def test_views_that_the_user_has_arranged_stay(self):
        chosen = slicer.vtkMRMLLayoutNode.SlicerLayoutOneUpRedSliceView
        manager = self.views(chosen)
        self.segment()
        self.assertEqual(manager.layout, chosen)

    def test_so_do_views_that_are_arranged_while_it_runs(self):
        usual = slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView
        manager = self.views(usual)
        make_volume()
        self.openPanel(DOUBLE_SECONDS="1")
        self.click(self.ui.applyButton)
        manager.layout = slicer.vtkMRMLLayoutNode.SlicerLayoutConventionalView
        self.waitUntilDone()
        self.assertEqual(manager.layout, slicer.vtkMRMLLayoutNode.SlicerLayoutConventionalView)


class TabsTest(ResultCase):
    def test_only_the_open_tab_takes_room(self):
        self.openPanel()
        low = self.widget.parent.sizeHint.height()
        self.segmentations()
        self.widget.tabs.show("trainTab")
        self.widget.datasetUi.datasetCollapsibleButton.collapsed = False
        self.widget.trainingUi.trainCollapsibleButton.collapsed = False
        self.widget.tabs.show("segmentTab")
        self.assertLessEqual(self.widget.parent.sizeHint.height(), low)

    def test_everything_fits_into_a_narrow_panel_and_the_main_path_into_a_screen(self):
        self.segment(**ASKED)
        for tab in ("segmentTab", "correctTab"):
            self.widget.tabs.show(tab)
            self.assertLessEqual(self.widget.parent.heightForWidth(380), 700, tab)
        self.ui.advancedCollapsibleButton.collapsed = self.ui.queueCollapsibleButton.collapsed = False
        for name in ("levels", "repair", "again", "series"):
            getattr(self.cui, f"{name}GroupBox").collapsed = False
        self.widget.datasetUi.datasetFolderLineEdit.text = str(self.folder)
        self.widget.datasetUi.datasetCollapsibleButton.collapsed = False
        self.widget.trainingUi.trainCollapsibleButton.collapsed = False
        for tab in ("segmentTab", "correctTab", "trainTab"):
            self.widget.tabs.show(tab)
            slicer.app.processEvents()
            self.assertLessEqual(self.widget.parent.minimumSizeHint.width(), 380, tab)

    def test_a_model_that_samples_and_a_run_fit_as_well(self):
        make_checkpoint(self.folder, "sampling", method="verdiff-net")
        make_volume()
        self.openPanel()
        self.chooseModelOf("verdiff-net")
        self.ui.advancedCollapsibleButton.collapsed = False
        train = self.widget.trainingUi
        train.trainCollapsibleButton.collapsed = False
        for button in (train.runStopButton, train.runResumeButton, train.runFolderButton, train.runPlotButton):
            button.visible = True  # as where there is a run
        data = self.widget.datasetUi
        data.datasetFolderLineEdit.text = str(self.folder)
        data.datasetCollapsibleButton.collapsed = False
        self.widget.parent.show()
        for tab in ("segmentTab", "trainTab"):
            self.widget.tabs.show(tab)
            slicer.app.processEvents()
            self.assertLessEqual(self.widget.parent.minimumSizeHint.width(), 380, tab)
        self.widget.parent.hide()

    def test_long_names_make_nothing_wider(self):
        self.segment()
        self.ui.advancedCollapsibleButton.collapsed = False
        self.output().SetName("A name as long as those that scanners give their series " * 3)
        self.volume.SetName(self.output().GetName())
        make_volume(self.volume.GetName() + "once more")
        for tab in ("segmentTab", "correctTab"):
            self.widget.tabs.show(tab)
            self.cui.seriesGroupBox.collapsed = False
            slicer.app.processEvents()
            self.assertLessEqual(self.widget.parent.minimumSizeHint.width(), 380, tab)

    def test_without_a_segmentation_correct_is_a_line(self):
        self.openPanel()
        self.widget.tabs.show("correctTab")
        self.assertTrue(self.cui.correctToolsWidget.isHidden())
        self.assertFalse(self.cui.correctEmptyLabel.isHidden())

    def test_without_another_series_copying_is_a_line(self):
        self.segment()
        self.widget.tabs.show("correctTab")
        cui = self.cui
        controls = (cui.otherVolumeLabel, cui.otherVolumeComboBox, cui.carryButton, cui.refineButton)
        cui.seriesGroupBox.collapsed = False
        self.assertFalse(cui.seriesEmptyLabel.isHidden())
        self.assertEqual({widget.isHidden() for widget in controls}, {True})
        make_volume("T1")
        self.widget.correctionPanel.refresh()
        self.assertTrue(cui.seriesEmptyLabel.isHidden())
        self.assertEqual({widget.isHidden() for widget in controls}, {False})

    def test_the_list_is_kept_up_to_date_in_its_tab_alone(self):
        self.segment()
        self.assertEqual(self.widget.correctionPanel.review.table.rows, [])
        self.widget.tabs.show("correctTab")
        self.assertEqual(len(self.widget.correctionPanel.review.table.rows), 11)


if __name__ == "__main__":
    unittest.main()
