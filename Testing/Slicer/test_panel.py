"""Clicking through the panel: choices, the big button, the result. Runs in the host and inside Slicer."""

import os
import unittest

from panel_case import PanelCase, axial, centroid, make_checkpoint, make_view, make_volume, np, qt, sagittal, slicer


class OpeningTest(PanelCase):
    def test_everything_is_preselected(self):
        volume = make_volume()
        self.openPanel()
        self.assertIs(self.ui.inputVolumeSelector.currentNode(), volume)
        self.assertEqual(self.ui.modelComboBox.currentData, "double")
        self.assertEqual(self.ui.applyButton.text, "Segment spine")
        self.assertTrue(self.ui.applyButton.enabled, self.ui.applyButton.toolTip)

    def test_a_name_cannot_break_the_tooltip(self):
        volume = make_volume("a <b> c")
        volume.SetAndObserveImageData(None)
        self.openPanel()
        self.assertIn("a &lt;b&gt; c", self.ui.applyButton.toolTip)

    def test_without_a_volume_the_button_says_so(self):
        self.openPanel()
        self.assertFalse(self.ui.applyButton.enabled)
        self.assertIn("No volume is selected", self.ui.applyButton.toolTip)

    def test_a_volume_that_is_loaded_later_can_be_selected(self):
        self.openPanel()
        volume = make_volume()
        self.ui.inputVolumeSelector.setCurrentNode(volume)
        self.assertTrue(self.ui.applyButton.enabled, self.ui.applyButton.toolTip)

    def test_a_volume_that_is_loaded_later_is_preselected(self):
        self.openPanel()
        first = make_volume("First")
        self.waitUntil(lambda: self.ui.inputVolumeSelector.currentNode() is first)
        self.assertTrue(self.ui.applyButton.enabled, self.ui.applyButton.toolTip)
        make_volume("Second")
        slicer.app.processEvents()
        self.assertIs(self.ui.inputVolumeSelector.currentNode(), first)  # what is chosen stays
        self.ui.inputVolumeSelector.setCurrentNode(None)
        third = make_volume("Third")
        self.waitUntil(lambda: self.ui.inputVolumeSelector.currentNode() is third)

    def test_volumes_that_are_loaded_together_later_are_preselected(self):
        self.openPanel()
        slicer.mrmlScene.StartState(slicer.mrmlScene.BatchProcessState)
        volume = make_volume()
        slicer.mrmlScene.EndState(slicer.mrmlScene.BatchProcessState)
        self.waitUntil(lambda: self.ui.inputVolumeSelector.currentNode() is volume)
        self.assertTrue(self.ui.applyButton.enabled, self.ui.applyButton.toolTip)

    def test_a_file_that_is_loaded_later_is_preselected(self):
        from SpineSegAISlicer.scene import samples

        self.openPanel()
        volume = slicer.util.loadVolume(str(samples.samplePath()))
        self.waitUntil(lambda: self.ui.applyButton.enabled, message=self.ui.applyButton.toolTip)
        self.assertIs(self.ui.inputVolumeSelector.currentNode(), volume)

    def test_what_is_loaded_in_another_module_is_preselected_on_coming_back(self):
        self.openPanel()
        self.widget.exit()
        volume = make_volume()
        slicer.app.processEvents()
        self.assertIsNone(self.ui.inputVolumeSelector.currentNode())
        self.widget.enter()
        self.assertIs(self.ui.inputVolumeSelector.currentNode(), volume)

    def test_every_reason_is_listed(self):
        self.checkpoints = ()
        for path in self.folder.glob("*"):
            path.unlink()
        self.openPanel()
        self.assertIn("No volume is selected", self.ui.applyButton.toolTip)
        self.assertIn("There is no model", self.ui.applyButton.toolTip)

    def test_the_notice_names_research_use_and_the_five_lumbar_vertebrae(self):
        self.openPanel()
        self.assertIn("research use only", self.ui.noticeLabel.text)
        self.assertIn("five lumbar vertebrae unless L6 or T13 is seen", self.ui.noticeLabel.text)


class ChoosingTest(PanelCase):
    def test_models_say_what_they_are_for_and_by_which_method(self):
        from SpineSegAILib.checkpoints import DEFAULT_CHECKPOINT
        from SpineSegAILib.methods.catalog import METHODS

        make_checkpoint(self.folder, "xray", method="verdiff-net", scheme="vertebra", title="Radiographs (Verdiff-Net)",
                        preprocessing={"modality": "XR"})  # fmt: skip
        make_checkpoint(self.folder, "atm", method="atm-net", title="Lumbar MR (ATM-Net)")
        make_checkpoint(self.folder, DEFAULT_CHECKPOINT, title="Lumbar MR (residual-encoder U-Net)")
        make_checkpoint(self.folder, "click-refine", method="click-refine", title="Click to correct")
        make_checkpoint(self.folder, "sam", method="sam", title="Lumbar MR (SAM)")
        self.openPanel()
        combo = self.ui.modelComboBox
        for name in ("click-refine", "sam"):  # what segments nothing, and what is there to compare
            self.assertLess(combo.findData(name), 0)
        titles = {combo.itemData(i): combo.itemText(i) for i in range(combo.count)}
        self.assertEqual(titles["xray"], "Radiographs · Verdiff-Net")
        self.assertEqual(titles["atm"], "Lumbar MR · ATM-Net")
        self.assertEqual(titles[DEFAULT_CHECKPOINT], "Lumbar MR · recommended")
        self.assertEqual(titles["double"], "Double")  # as its maker called it
        tip = combo.itemData(combo.findData("atm"), qt.Qt.ToolTipRole)
        for part in (METHODS["atm-net"].summary, METHODS["atm-net"].citation):
            self.assertIn(part, tip)

    def test_every_shipped_model_has_a_short_title(self):
        from SpineSegAISlicer.panels.choices import modelTitle

        from SpineSegAILib.checkpoints import DEFAULT_CHECKPOINT, list_checkpoints
        from SpineSegAILib.methods.catalog import METHODS
        from SpineSegAILib.resources import resources_folder

        shipped = [info for info in list_checkpoints() if resources_folder() in info.path.parents]
        shipped = [info for info in shipped if METHODS[info.method].offered]
        titles = {info.name: modelTitle(info) for info in shipped}
        self.assertEqual(titles[DEFAULT_CHECKPOINT], "Lumbar MR · recommended")
        self.assertEqual(len(set(titles.values())), len(titles))
        for title in titles.values():
            self.assertRegex(title, r"^[\w ]+ · [\w-]+$")
            self.assertLessEqual(len(title), 28)  # more does not fit into a narrow panel

    def test_a_film_gets_the_model_for_films_unless_the_reader_chose_one(self):
        make_checkpoint(
            self.folder,
            "xray",
            method="verdiff-net",
            scheme="thoracolumbar-xr",
            title="Radiographs (Verdiff-Net)",
            preprocessing={"modality": "XR", "planes": ["single-slice"]},
        )
        slice_ = make_volume("slice", size=(1, 60, 60))
        film = make_volume("film", size=(1, 160, 60))
        self.openPanel()
        node, combo = self.widget._parameterNode, self.ui.modelComboBox
        node.inputVolume = slice_
        self.assertEqual(combo.currentData, "double")
        node.inputVolume = film
        self.assertEqual(combo.currentData, "xray")
        self.assertEqual(combo.currentText, "Radiographs · Verdiff-Net")
        self.assertTrue(self.ui.applyButton.enabled, self.ui.applyButton.toolTip)
        combo.setCurrentIndex(combo.findData("double"))
        self.assertEqual(node.checkpoint, "double")
        node.inputVolume = slice_
        node.inputVolume = film
        self.assertEqual(combo.currentData, "double")

    def test_the_modality_tells_films_that_are_not_high(self):
        from SpineSegAISlicer.scene import volumes

        wide, high = make_volume("wide", size=(1, 60, 90)), make_volume("high", size=(1, 160, 60))
        self.assertFalse(volumes.isFilm(wide) or volumes.isFilm(None) or volumes.isFilm(make_volume()))
        self.assertTrue(volumes.isFilm(high))
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
        name = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMSeriesModalityAttributeName()
        for node, modality in ((wide, "DX"), (high, "MR")):
            item = hierarchy.GetItemByDataNode(node) or hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)
            hierarchy.SetItemAttribute(item, name, modality)
        self.assertTrue(volumes.isFilm(wide))
        self.assertFalse(volumes.isFilm(high))

    def test_a_method_without_a_model_is_said_to_have_none(self):
        """As in a scene from a computer that had one."""
        make_volume()
        make_checkpoint(self.folder, "other", method="unet")
        self.openPanel()
        self.widget._parameterNode.method = "unet"
        self.assertEqual(self.ui.modelComboBox.currentData, "other")
        self.widget._parameterNode.method = "fcn"
        self.assertEqual(self.ui.modelComboBox.currentText, "FCN (no model)")
        self.assertIn("There is no model for FCN", self.ui.applyButton.toolTip)
        self.ui.modelComboBox.setCurrentIndex(self.ui.modelComboBox.findData("double"))
        self.assertTrue(self.ui.applyButton.enabled, self.ui.applyButton.toolTip)

    def test_a_checkpoint_file_brings_its_method(self):
        make_volume()
        elsewhere = self.folder / "elsewhere"
        elsewhere.mkdir()
        path = make_checkpoint(elsewhere, "mine", method="attention-unet")
        self.openPanel()
        self.panel.choices.useCheckpointFile(str(path))
        self.assertEqual(self.panel.choices.method().id, "attention-unet")
        self.assertEqual(self.ui.modelComboBox.currentData, str(path))
        self.assertTrue(self.ui.applyButton.enabled, self.ui.applyButton.toolTip)

    def test_the_header_of_a_file_is_read_again_only_when_the_file_has_changed(self):
        from SpineSegAISlicer.panels import choices

        elsewhere = self.folder / "elsewhere"
        elsewhere.mkdir()
        path = make_checkpoint(elsewhere, "mine", method="attention-unet")
        read, count = choices.read_header, []
        make_volume()
        self.openPanel()
        self.panel.choices.useCheckpointFile(str(path))
        self.patch(choices, "read_header", lambda file: (count.append(file), read(file))[1])
        for _ in range(3):
            self.panel.updateButtons()
            self.assertEqual(self.panel.choices.method().id, "attention-unet")
        self.assertEqual(count, [])
        make_checkpoint(elsewhere, "mine", method="unet", title="Another")
        os.utime(path, (1e9, 1e9))
        self.assertEqual(self.panel.choices.method().id, "unet")
        self.assertEqual(len(count), 1)
        path.unlink()
        self.assertIsNone(self.panel.choices.checkpoint())
        self.panel.update()
        self.assertIn("was not found", self.ui.applyButton.toolTip)

    def test_a_file_is_chosen_in_a_dialog_that_may_be_cancelled(self):
        elsewhere = self.folder / "elsewhere"
        elsewhere.mkdir()
        path = make_checkpoint(elsewhere, "mine", method="attention-unet")
        self.openPanel()
        for chosen, expected in (("", "double"), (str(path), str(path))):
            self.patch(qt.QFileDialog, "getOpenFileName", lambda *_arguments, chosen=chosen: chosen)
            self.click(self.ui.modelBrowseButton)
            self.assertEqual(self.ui.modelComboBox.currentData, expected)

    def test_a_checkpoint_file_of_a_method_that_is_not_offered_brings_it(self):
        path = make_checkpoint(self.folder, "compared", method="bisenet")
        self.openPanel()
        self.assertEqual(self.ui.modelComboBox.findData("compared"), -1)
        self.panel.choices.useCheckpointFile(str(path))
        self.assertEqual(self.panel.choices.checkpoint().method, "bisenet")

    def test_a_foreign_file_is_refused_with_the_reason(self):
        self.openPanel()
        path = self.folder / "model.pt"
        path.write_bytes(b"pickle")
        self.panel.choices.useCheckpointFile(str(path))
        self.assertIn("pickled file", self.dialogs[0])
        self.assertEqual(self.ui.modelComboBox.currentData, "double")

    def test_details_tell_structures_data_figures_and_licence(self):
        figures = {"dice": 0.912, "hd95_mm": 2.5, "levels_right": 40, "levels": 41}
        canal = {"dice": 0.9, "hd95_mm": 1.5, "levels_right": 0, "levels": 0}
        training = {"dataset": "three sources", "cases": ["a", "b"], "phantoms": 120, "steps": 900}
        make_checkpoint(
            self.folder,
            "known",
            training=training,
            validation={"original": {"vertebrae": figures, "canal": canal}, "cropped": {}},
            licence="the data's terms",
            unvalidated=["canal"],
        )
        make_checkpoint(self.folder, "own", training=training, validation={"vertebra_dice": 0.8125})
        (self.folder / "known.md").write_text("# Known")
        self.openPanel()
        combo = self.ui.modelComboBox
        combo.setCurrentIndex(combo.findData("known"))
        self.ui.modelDetailsButton.checked = True
        html = self.ui.modelDetailsBrowser.html
        for expected in ("T9 – S1", "11 discs", "spinal canal", "bodies", "three sources, 2 cases, 120 synthetic",
                         "Dice 0.912, HD95 2.5 mm, levels correctly identified: 40 of 41", "Residual-encoder U-Net",
                         "the data's terms", "known.md"):  # fmt: skip
            self.assertIn(expected, html.replace("&#x27;", "'"))
        self.assertIn("canal: Dice 0.9, HD95 1.5 mm", html)
        self.assertNotIn("0 of 0", html)
        combo.setCurrentIndex(combo.findData("own"))
        self.assertIn("vertebra dice: 0.812", self.ui.modelDetailsBrowser.html)

    def test_a_scene_that_was_closed_leaves_no_widget_connected(self):
        make_volume()
        self.openPanel()
        first = self.widget.logic.getParameterNode()
        for _ in range(2):
            self.widget.onSceneStartClose(None, None)
            self.widget.onSceneEndClose(None, None)
            self.widget.enter()
        wrapper = self.widget._parameterNode
        self.widget.setParameterNode(None)
        before = first.includeUnvalidated
        self.ui.unvalidatedCheckBox.checked = not before
        self.assertEqual((first.includeUnvalidated, wrapper.includeUnvalidated), (before, before))

    def test_a_panel_that_is_made_again_leaves_no_parameter_node_behind(self):
        """A wrapper that is collected before its node ends Slicer; the host says so."""
        import gc

        make_volume()
        for _ in range(2):
            self.openPanel()
            self.widget.logic.getParameterNode()
            self.widget.cleanup()
            self.widget = None
            gc.collect()
        self.openPanel()
        self.assertTrue(self.ui.applyButton.enabled, self.ui.applyButton.toolTip)

    def test_a_panel_whose_set_up_failed_can_be_left_and_closed(self):
        self.openPanel()
        widget = type(self.widget)(self.widget.parent)
        widget.enter()
        widget.exit()
        widget.cleanup()

    def test_unvalidated_structures_are_off_until_asked_for(self):
        make_volume()
        make_checkpoint(self.folder, "a", unvalidated=["canal"])
        self.openPanel()
        self.assertFalse(self.ui.unvalidatedCheckBox.checked)
        self.run_to_the_end()
        self.assertNotIn("canal", self.output().GetSegmentation().GetSegmentIDs())
        self.ui.unvalidatedCheckBox.checked = True
        self.run_to_the_end()
        segment = self.output().GetSegmentation().GetSegment("canal")
        self.assertEqual(segment.GetName(), "spinal canal (experimental)")

    def test_a_visible_range_reaches_the_worker(self):
        make_volume()
        self.openPanel()
        for combo, name in ((self.ui.topLevelComboBox, "L1"), (self.ui.bottomLevelComboBox, "S1")):
            combo.setCurrentIndex(combo.findText(name))
        self.run_to_the_end()
        from SpineSegAISlicer.scene import result_attribute

        self.assertIn("visible=(20, 26)", result_attribute.read(self.output())["provenance"]["hints"])

    def test_a_range_is_of_one_patient(self):
        first, series, second = make_volume("A"), make_volume("A, T1"), make_volume("B")
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
        study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "Study of A")
        for volume in (first, series):
            hierarchy.SetItemParent(hierarchy.GetItemByDataNode(volume), study)
        self.openPanel()
        node, hints = self.widget._parameterNode, self.panel.steering.hints
        self.assertIs(node.inputVolume, first)
        for combo, name in ((self.ui.topLevelComboBox, "T11"), (self.ui.bottomLevelComboBox, "S1")):
            combo.setCurrentIndex(combo.findText(name))
        self.assertEqual((hints(first).visible, hints(second).visible), ((18, 26), None))
        node.inputVolume = series
        self.assertEqual(self.ui.topLevelComboBox.currentText, "T11")
        self.assertEqual(hints(series).visible, (18, 26))
        node.inputVolume = second
        self.assertEqual(self.ui.topLevelComboBox.currentIndex, 0)
        self.assertEqual((node.topLevel, node.bottomLevel), (0, 0))
        self.assertIsNone(hints(second).visible)

    def test_a_range_that_is_given_before_there_is_a_volume_holds_for_the_one_that_comes(self):
        self.openPanel()
        self.ui.topLevelComboBox.setCurrentIndex(self.ui.topLevelComboBox.findText("T11"))
        self.widget._parameterNode.inputVolume = make_volume()
        self.assertEqual(self.ui.topLevelComboBox.currentText, "T11")

    def test_half_a_range_is_enough_and_one_upside_down_is_refused(self):
        volume = make_volume()
        self.openPanel()
        top, bottom = self.ui.topLevelComboBox, self.ui.bottomLevelComboBox
        top.setCurrentIndex(top.findText("L3"))
        self.assertTrue(self.ui.applyButton.enabled)  # one end may be all that is known
        self.assertEqual(self.panel.steering.hints(volume).visible, (22, None))
        bottom.setCurrentIndex(bottom.findText("L1"))
        self.assertIn("upside down", self.ui.applyButton.toolTip)
        self.assertFalse(self.ui.applyButton.enabled)
        bottom.setCurrentIndex(bottom.findText("S1"))
        self.assertTrue(self.ui.applyButton.enabled)


class SegmentingTest(PanelCase):
    def test_one_click_gives_named_coloured_coded_segments(self):
        volume = make_volume()
        self.openPanel()
        self.run_to_the_end()
        segmentation = self.output().GetSegmentation()
        self.assertEqual(
            list(segmentation.GetSegmentIDs()),
            ["L1", "L1/L2", "L2", "L2/L3", "L3", "L3/L4", "L4", "L4/L5", "L5", "L5/S1", "S1"],
        )
        self.assertEqual(segmentation.GetSegment("L4").GetName(), "L4 vertebra (body)")
        colors = [segmentation.GetSegment(i).GetColor() for i in ("L3", "L4", "L5")]
        self.assertEqual(len(set(colors)), 3)
        tag = slicer.vtkSegment.GetTerminologyEntryTagName()
        self.assertTrue(segmentation.GetSegment("L4").HasTag(tag))
        self.assertEqual(self.output().GetNodeReference("referenceImageGeometryRef"), volume)
        self.assertEqual(self.ui.applyButton.text, "Segment spine")
        self.assertIn("11 structures in", self.ui.statusLabel.text)
        self.assertFalse(self.dialogs)

    def test_warnings_are_shown_with_the_result(self):
        make_volume()
        self.openPanel()
        self.run_to_the_end()
        self.assertTrue(self.ui.warningLabel.visible or not self.ui.warningLabel.isHidden())
        self.assertIn("levels are a guess", self.ui.warningLabel.text)

    def test_while_it_runs_the_button_cancels_and_progress_is_shown(self):
        make_volume()
        self.openPanel(DOUBLE_SECONDS="3")
        self.click(self.ui.applyButton)
        self.assertEqual(self.ui.applyButton.text, "Cancel")
        self.waitUntil(lambda: self.ui.progressBar.value > 5)
        self.assertIn("Computing", self.ui.statusLabel.text)
        self.assertFalse(self.ui.modelComboBox.enabled)
        self.waitUntil(lambda: self.ui.elapsedLabel.text != "")
        self.waitUntilDone()
        self.assertTrue(self.ui.modelComboBox.enabled)

    def test_segmenting_again_updates_the_same_node(self):
        make_volume()
        self.openPanel()
        self.run_to_the_end()
        first = self.output()
        self.run_to_the_end()
        self.assertIs(self.output(), first)
        self.assertEqual(len(self.segmentations()), 1)

    def test_an_update_can_be_undone_in_one_step(self):
        make_volume()
        self.openPanel()
        self.run_to_the_end()
        segmentation = self.output().GetSegmentation()
        segmentation.GetSegment("L3").SetName("my L3")
        segmentation.RemoveSegment("L5")
        self.assertFalse(self.ui.undoButton.enabled)
        self.run_to_the_end()
        self.assertEqual(segmentation.GetSegment("L3").GetName(), "L3 vertebra (body)")
        self.assertTrue(self.ui.undoButton.enabled)
        self.click(self.ui.undoButton)
        self.assertEqual(segmentation.GetSegment("L3").GetName(), "my L3")
        self.assertIsNone(segmentation.GetSegment("L5"))
        self.assertFalse(self.ui.undoButton.enabled)

    def test_a_choice_of_new_segmentation_makes_a_second_one(self):
        make_volume()
        self.openPanel()
        self.run_to_the_end()
        self.ui.outputSegmentationSelector.setCurrentNode(None)
        self.run_to_the_end()
        self.assertEqual(len(self.segmentations()), 2)

    def test_another_input_volume_gets_an_output_of_its_own(self):
        make_volume("First")
        second = make_volume("Second")
        self.openPanel()
        self.run_to_the_end()
        first = self.output()
        self.ui.inputVolumeSelector.setCurrentNode(second)
        self.assertIsNone(self.output())
        self.run_to_the_end()
        self.assertEqual({n.GetName() for n in self.segmentations()}, {"First spine", "Second spine"})
        self.assertIsNot(self.output(), first)

    def test_the_second_click_loads_no_checkpoint(self):
        make_volume()
        self.openPanel()
        self.run_to_the_end()
        self.run_to_the_end()
        self.waitUntil(lambda: "LOADED" in self.ui.logText.plainText)
        self.assertEqual(self.ui.logText.plainText.count("LOADED"), 1)

    def test_opacity_follows_the_slider(self):
        make_volume()
        self.openPanel()
        self.run_to_the_end()
        self.ui.opacitySlider.value = 0.25
        self.assertAlmostEqual(self.output().GetDisplayNode().GetOpacity(), 0.25)

    def test_surfaces_are_made_when_asked(self):
        make_volume()
        self.openPanel()
        self.run_to_the_end()
        name = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
        self.assertFalse(self.output().GetSegmentation().ContainsRepresentation(name))
        self.assertTrue(self.ui.show3DButton.enabled)
        self.ui.show3DButton.setChecked(True)  # a click by a script opens its menu
        self.assertTrue(self.output().GetSegmentation().ContainsRepresentation(name))

    def test_views_are_centred_on_the_spine(self):
        make_volume()
        self.openPanel()
        self.run_to_the_end()
        sliceNode = make_view()
        self.click(self.ui.centerButton)
        from SpineSegAISlicer.scene import views

        self.assertAlmostEqual(
            sliceNode.GetSliceToRAS().GetElement(0, 3), views.centreOfSpine(self.output())[0], places=3
        )

    def test_measurements_become_a_table(self):
        make_volume()
        self.openPanel()
        self.run_to_the_end()
        self.click(self.ui.measureButton)
        self.waitUntil(lambda: slicer.util.getNodesByClass("vtkMRMLTableNode") or self.dialogs, 60)
        self.assertFalse(self.dialogs)
        table = slicer.util.getNodesByClass("vtkMRMLTableNode")[0]
        self.assertEqual(table.GetNumberOfRows(), 12)  # and the spine as a whole
        self.assertEqual(table.GetCellText(0, 0), "L1 vertebra (body)")
        columns = [table.GetColumnName(i) for i in range(table.GetNumberOfColumns())]
        self.assertIn("volume_ml", columns)
        self.click(self.ui.measureButton)
        self.waitUntil(lambda: self.ui.measureButton.enabled, 60)
        self.assertEqual(len(slicer.util.getNodesByClass("vtkMRMLTableNode")), 1)


class SeveralVolumesTest(PanelCase):
    def tick(self, *names):
        import qt

        self.ui.queueCollapsibleButton.collapsed = False
        table = self.ui.queueTable
        for row in range(table.rowCount):
            item = table.item(row, 0)
            item.setCheckState(qt.Qt.Checked if item.text() in names else qt.Qt.Unchecked)

    def state(self, name):
        table = self.ui.queueTable
        return next(table.item(r, 1).text() for r in range(table.rowCount) if table.item(r, 0).text() == name)

    def test_ticked_volumes_are_segmented_one_after_the_other(self):
        for name in ("A", "B", "C"):
            make_volume(name)
        self.openPanel()
        self.tick("A", "C")
        self.click(self.ui.queueButton)
        self.assertEqual(self.state("C"), "waiting")
        self.waitUntilDone()
        self.assertEqual({n.GetName() for n in self.segmentations()}, {"A spine", "C spine"})
        self.assertIn("done", self.state("A"))
        self.assertEqual(self.state("B"), "")

    def test_an_axial_stack_is_refused_with_the_reason_and_the_rest_goes_on(self):
        make_volume("A")
        make_volume("Axial", size=(12, 50, 50), ijkToRas=axial())
        self.openPanel()
        self.tick("A", "Axial")
        self.click(self.ui.queueButton)
        self.waitUntilDone()
        self.assertIn("an axial stack", self.state("Axial"))
        self.assertEqual([n.GetName() for n in self.segmentations()], ["A spine"])

    def asked(self):
        """Volume → request, of those that are segmented from now on."""
        requests, segment = {}, self.widget.client.segment

        def listen(request, **callbacks):
            requests[self.ui.statusLabel.text.split("“")[1].split("”")[0]] = request
            return segment(request, **callbacks)

        self.patch(self.widget.client, "segment", listen)
        return requests

    def film(self):
        """A film, and a model for films, which samples."""
        preprocessing = {"modality": "XR", "planes": ["single-slice"]}
        make_checkpoint(self.folder, "xray", "verdiff-net", "thoracolumbar-xr", preprocessing=preprocessing)
        return make_volume("Film", size=(1, 160, 60))

    def test_each_volume_gets_its_own_model_unless_the_reader_chose_one(self):
        volumes = [make_volume("A"), self.film(), make_volume("B")]
        self.openPanel()
        self.widget._parameterNode.inputVolume = volumes[-1]
        self.ui.topLevelComboBox.setCurrentIndex(self.ui.topLevelComboBox.findText("T11"))
        self.assertEqual(self.ui.modelComboBox.currentData, "double")
        requests = self.asked()
        self.tick("A", "Film", "B")
        self.click(self.ui.queueButton)
        self.waitUntilDone()
        models = {name: request.checkpoint for name, request in requests.items()}
        self.assertEqual(models, {"A": "double", "Film": "xray", "B": "double"})
        self.assertEqual([bool(requests[name].options) for name in ("A", "Film", "B")], [False, True, False])
        ranges = {name: request.hints.visible for name, request in requests.items()}
        self.assertEqual(ranges, {"A": None, "Film": None, "B": (18, None)})
        self.widget._parameterNode.checkpoint = "double"
        self.widget.segmenting.start(volumes)
        self.waitUntilDone()
        self.assertEqual({request.checkpoint for request in requests.values()}, {"double"})

    def test_a_model_for_films_says_what_it_requires(self):
        stack, film = make_volume("Stack"), self.film()
        self.openPanel()
        self.panel.warmUp()
        self.ui.modelComboBox.setCurrentIndex(self.ui.modelComboBox.findData("xray"))
        choices = self.panel.choices
        self.assertEqual(choices.reasonsAgainst(film), [])
        words = "“Stack” is a sagittal stack; this model requires a single slice (a localizer or a picture)."
        self.assertEqual(choices.reasonsAgainst(stack), [words])

    def test_cancel_stops_the_whole_queue(self):
        for name in ("A", "B"):
            make_volume(name)
        self.openPanel(DOUBLE_SECONDS="3")
        self.tick("A", "B")
        self.click(self.ui.queueButton)
        self.waitUntil(lambda: self.ui.progressBar.value > 0)
        self.click(self.ui.applyButton)
        self.waitUntilDone(3)
        self.assertEqual(self.segmentations(), [])
        self.assertEqual((self.state("A"), self.state("B")), ("cancelled", "cancelled"))

    def test_without_a_tick_nothing_can_be_started_and_one_click_ticks_all(self):
        self.openPanel()
        self.ui.queueCollapsibleButton.collapsed = False
        self.assertFalse(self.ui.queueEmptyLabel.isHidden())
        self.assertTrue(self.ui.queueTable.isHidden())
        make_volume("A")
        make_volume("B")
        self.tick()
        self.assertTrue(self.ui.queueEmptyLabel.isHidden())
        self.assertFalse(self.ui.queueButton.enabled)
        self.click(self.ui.tickAllButton)
        self.assertTrue(self.ui.queueButton.enabled)
        self.click(self.ui.queueButton)
        self.waitUntilDone()
        self.assertEqual({n.GetName() for n in self.segmentations()}, {"A spine", "B spine"})
        self.click(self.ui.tickAllButton)
        self.assertFalse(self.ui.queueButton.enabled)

    def study(self, *volumes):
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
        item = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "Study")
        for volume in volumes:
            hierarchy.SetItemParent(hierarchy.GetItemByDataNode(volume), item)
        return item

    def test_a_result_is_carried_to_the_other_series_of_the_study(self):
        t2 = make_volume("T2")
        t1 = make_volume("T1", size=(12, 50, 50), ijkToRas=sagittal((1.6, 1.4, 4.0), (-23.0, 38.0, 44.0)))
        stack = make_volume("Axial", size=(12, 50, 50), ijkToRas=axial())
        elsewhere = make_volume("Other patient")
        study = self.study(t2, t1, stack)
        self.openPanel()
        self.run_to_the_end()
        self.click(self.ui.seriesButton)
        self.assertFalse(self.dialogs)
        self.assertEqual({n.GetName() for n in self.segmentations()}, {"T2 spine", "T1 spine"})
        carried = next(n for n in self.segmentations() if n.GetName() == "T1 spine")
        for structure in (21, 23, 26):
            distance = np.linalg.norm(centroid(carried, structure, t1) - centroid(self.output(), structure, t2))
            self.assertLess(distance, 1.5, structure)  # slices are 4 mm apart and do not coincide
        self.assertEqual(carried.GetNodeReference("referenceImageGeometryRef"), t1)
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
        self.assertEqual(hierarchy.GetItemParent(hierarchy.GetItemByDataNode(carried)), study)
        self.assertIn("axial", self.state("Axial"))
        self.assertEqual(self.state("Other patient"), "")
        self.assertIsNotNone(elsewhere)

    def test_carried_again_the_same_segmentation_is_brought_up_to_date_unless_it_was_corrected(self):
        from SpineSegAISlicer.scene import corrections
        from SpineSegAISlicer.scene.segments import structuresOfSegmentation

        from SpineSegAILib import correction

        t2, t1 = make_volume("T2"), make_volume("T1")
        self.study(t2, t1)
        self.openPanel()
        self.run_to_the_end()

        def delete(node, volume, structureId):
            step = correction.delete(corrections.labellingOf(node), structureId)
            corrections.applyCorrection(node, volume, step)

        self.click(self.ui.seriesButton)
        carried = next(n for n in self.segmentations() if n is not self.output())
        delete(self.output(), t2, 22)
        self.click(self.ui.seriesButton)
        self.assertEqual(len(self.segmentations()), 2)
        self.assertEqual(set(structuresOfSegmentation(carried)), set(structuresOfSegmentation(self.output())))
        self.assertEqual(self.state("T1"), "copied")
        log = "SpineSegAI.CorrectionLog"
        self.assertEqual(carried.GetAttribute(log), self.output().GetAttribute(log))
        # As Slicer's own modules do, which note no step of ours.
        carried.GetSegmentation().RemoveSegment(structuresOfSegmentation(carried)[23])
        self.click(self.ui.seriesButton)
        self.assertEqual(len(self.segmentations()), 2)
        self.assertNotIn(23, structuresOfSegmentation(carried))
        self.assertIn("corrected since", self.state("T1"))
        self.assertIn("Copied to 0 of 1", self.ui.statusLabel.text)

    def test_a_segmentation_that_cannot_be_carried_is_said(self):
        from SpineSegAISlicer.processes import dependencies

        volume, other = make_volume("T2"), make_volume("T1")
        self.study(volume, other)
        self.openPanel()
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Tumor")
        node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        node.GetSegmentation().AddEmptySegment("a", "tumor")
        self.widget.parameters.write(inputVolume=volume, outputSegmentation=node)
        self.click(self.ui.seriesButton)
        self.assertIn("No segment of “Tumor” is a structure", self.dialogs[0])
        self.patch(dependencies, "ready", lambda more=(): False)
        self.click(self.ui.seriesButton)
        self.assertEqual(len(self.dialogs), 1)

    def test_what_is_hidden_from_users_is_no_other_series(self):
        from SpineSegAISlicer.scene.volumes import otherSeriesOfStudy

        t2, t1, helper = make_volume("T2"), make_volume("T1"), make_volume("Made by another module")
        self.study(t2, t1, helper)
        helper.SetHideFromEditors(True)
        self.assertEqual(otherSeriesOfStudy(t2), [t1])

    def test_a_volume_without_a_study_has_no_other_series(self):
        make_volume("A")
        make_volume("B")
        self.openPanel()
        self.run_to_the_end()
        self.click(self.ui.seriesButton)
        self.assertIn("no other series", self.dialogs[0])


class SavingTest(PanelCase):
    def test_choices_survive_saving_and_reloading_the_scene(self):
        make_checkpoint(self.folder, "second")
        make_volume()
        self.openPanel()
        self.ui.modelComboBox.setCurrentIndex(self.ui.modelComboBox.findData("second"))
        self.ui.deviceComboBox.setCurrentIndex(self.ui.deviceComboBox.findData("cpu"))
        self.ui.topLevelComboBox.setCurrentIndex(self.ui.topLevelComboBox.findText("T11"))
        self.ui.bottomLevelComboBox.setCurrentIndex(self.ui.bottomLevelComboBox.findText("S1"))
        self.run_to_the_end()
        self.ui.opacitySlider.value = 0.3
        names = {
            i: self.output().GetSegmentation().GetSegment(i).GetName()
            for i in self.output().GetSegmentation().GetSegmentIDs()
        }
        path = str(self.folder / "scene.mrb")
        self.assertTrue(slicer.mrmlScene.WriteToMRB(path))
        slicer.mrmlScene.Clear(0)
        self.assertEqual(self.ui.modelComboBox.currentData, "double")
        self.assertTrue(slicer.mrmlScene.ReadFromMRB(path))
        self.assertEqual(self.ui.modelComboBox.currentData, "second")
        self.assertEqual(self.ui.deviceComboBox.currentData, "cpu")
        self.assertEqual((self.ui.topLevelComboBox.currentText, self.ui.bottomLevelComboBox.currentText), ("T11", "S1"))
        self.assertAlmostEqual(self.ui.opacitySlider.value, 0.3)
        self.assertEqual(self.ui.inputVolumeSelector.currentNode().GetName(), "T2")
        again = self.output().GetSegmentation()
        self.assertEqual({i: again.GetSegment(i).GetName() for i in again.GetSegmentIDs()}, names)
        self.assertIn("levels are a guess", self.ui.warningLabel.text)

    def test_a_checkpoint_that_is_not_on_this_computer_is_named(self):
        make_volume()
        self.openPanel()
        self.widget._parameterNode.checkpoint = "from-another-computer"
        self.assertIn("from-another-computer", self.ui.modelComboBox.currentText)
        self.assertFalse(self.ui.applyButton.enabled)
        self.assertIn("from-another-computer", self.ui.applyButton.toolTip)


if __name__ == "__main__":
    unittest.main()
