"""Methods that draw samples: their uncertainty in the views, their time, and what they start from.

Runs in the host and inside Slicer.
"""

import unittest

from panel_case import PanelCase, linear_transform, make_checkpoint, make_volume, np, slicer


class SamplingCase(PanelCase):
    def setUp(self):
        super().setUp()
        make_checkpoint(self.folder, "sampled", method="verdiff-net")
        make_checkpoint(self.folder, "noise", method="ddpm")

    def openSampling(self, method="verdiff-net", **environment):
        self.openPanel(**environment)
        self.choose(method)

    def choose(self, method):
        self.chooseModelOf(method)

    def provenance(self):
        """What the worker was told, and said."""
        from SpineSegAISlicer.scene import result_attribute

        return result_attribute.read(self.output())["provenance"]

    def maps(self):
        from SpineSegAISlicer.scene.volumes import isUncertaintyMap

        return [n for n in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") if isUncertaintyMap(n)]


class UncertaintyTest(SamplingCase):
    def view(self, foreground=None, opacity=0.0):
        """A slice view's layers."""
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceCompositeNode")
        node.SetForegroundVolumeID(foreground.GetID() if foreground else None)
        node.SetForegroundOpacity(opacity)
        return node

    def test_the_map_lies_on_the_volume_and_is_displayed_as_one(self):
        volume = make_volume()
        matrix = np.eye(4)
        matrix[:3, 3] = (5.0, -3.0, 11.0)
        volume.SetAndObserveTransformNodeID(linear_transform(matrix).GetID())
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
        study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "Study")
        hierarchy.SetItemParent(hierarchy.GetItemByDataNode(volume), study)
        self.openSampling()
        self.run_to_the_end()
        (node,) = self.maps()
        self.assertEqual(node.GetName(), "T2 uncertainty")
        self.assertIs(node.GetParentTransformNode(), volume.GetParentTransformNode())
        self.assertEqual(hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)), study)
        from SpineSegAISlicer.scene.volumes import ijkToWorldMatrix

        np.testing.assert_allclose(ijkToWorldMatrix(node), ijkToWorldMatrix(volume))
        values = slicer.util.arrayFromVolume(node)
        self.assertEqual(values.shape, slicer.util.arrayFromVolume(volume).shape)
        self.assertEqual(float(values[:, 1:4].max()), 0.0)  # above the first band, where the double is sure
        self.assertGreater(float(values.max()), 0.3)
        display = node.GetDisplayNode()
        np.testing.assert_allclose((display.GetWindowLevelMin(), display.GetWindowLevelMax()), (0.4, 0.5))
        self.assertTrue(display.GetApplyThreshold())
        self.assertAlmostEqual(display.GetLowerThreshold(), 0.4)  # less is not shown at all
        self.assertGreaterEqual(display.GetUpperThreshold(), 0.5)
        self.assertEqual(display.GetColorNodeID(), "vtkMRMLColorTableNodeWarm1")

    def test_segmenting_again_fills_the_same_map(self):
        make_volume()
        self.openSampling()
        self.run_to_the_end()
        (node,) = self.maps()
        slicer.util.arrayFromVolume(node)[:] = 0
        slicer.util.arrayFromVolumeModified(node)
        self.run_to_the_end()
        self.assertEqual(self.maps(), [node])
        self.assertGreater(float(slicer.util.arrayFromVolume(node).max()), 0.3)

    def test_cancelling_leaves_the_scene_as_it_was(self):
        make_volume()
        self.openSampling()
        self.run_to_the_end()
        before, values = self.nodeIds(), slicer.util.arrayFromVolume(self.maps()[0]).copy()
        self.widget.client.stop()
        self.widget.client._environment["DOUBLE_SECONDS"] = "30"
        self.ui.stepsSpinBox.value = 7
        self.click(self.ui.applyButton)
        self.waitUntil(lambda: self.ui.progressBar.value > 0)
        self.click(self.ui.applyButton)
        self.waitUntilDone(10)
        self.assertEqual(self.nodeIds(), before)
        np.testing.assert_array_equal(slicer.util.arrayFromVolume(self.maps()[0]), values)

    def test_a_tick_lays_it_over_the_image_and_gives_back_what_was_there(self):
        volume = make_volume()
        other = make_volume("Other")
        free, taken = self.view(), self.view(other, 0.4)
        self.openSampling()
        self.assertFalse(self.ui.uncertaintyCheckBox.enabled)
        self.run_to_the_end()
        self.assertTrue(self.ui.uncertaintyCheckBox.enabled)
        self.assertFalse(self.ui.uncertaintyCheckBox.checked)
        self.assertIsNone(free.GetForegroundVolumeID())  # on demand only
        self.click(self.ui.uncertaintyCheckBox)
        (node,) = self.maps()
        for view in (free, taken):
            self.assertEqual(view.GetForegroundVolumeID(), node.GetID())
            self.assertGreater(view.GetForegroundOpacity(), 0.3)
        self.run_to_the_end()
        self.assertTrue(self.ui.uncertaintyCheckBox.checked)  # of the new result, too
        self.click(self.ui.uncertaintyCheckBox)
        self.assertIsNone(free.GetForegroundVolumeID())
        self.assertEqual(taken.GetForegroundVolumeID(), other.GetID())
        self.assertAlmostEqual(taken.GetForegroundOpacity(), 0.4)
        self.assertIs(self.widget._parameterNode.inputVolume, volume)

    def test_another_case_is_not_covered_by_it(self):
        make_volume()
        other = make_volume("Other", seed=1)
        view = self.view()
        self.openSampling()
        self.run_to_the_end()
        self.click(self.ui.uncertaintyCheckBox)
        self.assertIsNotNone(view.GetForegroundVolumeID())
        self.ui.inputVolumeSelector.setCurrentNode(other)
        self.assertIsNone(view.GetForegroundVolumeID())
        self.assertFalse(self.ui.uncertaintyCheckBox.enabled)

    def test_a_result_without_samples_has_none_and_undo_leaves_none(self):
        make_volume()
        view = self.view()
        self.openSampling()
        self.run_to_the_end()
        self.click(self.ui.uncertaintyCheckBox)
        self.ui.samplesSpinBox.value = 1
        self.run_to_the_end()
        self.assertFalse(self.ui.uncertaintyCheckBox.enabled)
        self.assertTrue(self.ui.uncertaintyCheckBox.isHidden())
        self.assertIsNone(view.GetForegroundVolumeID())
        self.click(self.ui.undoButton)  # the segments that the map was made with
        self.assertTrue(self.ui.uncertaintyCheckBox.enabled)

    def test_a_removed_map_gives_back_what_was_there(self):
        make_volume()
        other = make_volume("Other")
        free, taken = self.view(), self.view(other, 0.4)
        self.openSampling()
        self.run_to_the_end()
        self.click(self.ui.uncertaintyCheckBox)
        slicer.mrmlScene.RemoveNode(self.maps()[0])
        self.assertIsNone(free.GetForegroundVolumeID())
        self.assertEqual(free.GetForegroundOpacity(), 0.0)
        self.assertEqual(taken.GetForegroundVolumeID(), other.GetID())
        self.assertAlmostEqual(taken.GetForegroundOpacity(), 0.4)

    def test_a_view_that_was_emptied_since_stays_empty(self):
        make_volume()
        view = self.view(make_volume("Other"), 0.4)
        self.openSampling()
        self.run_to_the_end()
        self.click(self.ui.uncertaintyCheckBox)
        for other in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):  # Slicer has some of its own
            other.SetForegroundVolumeID(None)
        self.ui.samplesSpinBox.value += 1  # the panel looks at the views again
        self.assertFalse(self.ui.uncertaintyCheckBox.checked)
        self.assertIsNone(view.GetForegroundVolumeID())

    def test_a_removed_map_is_no_choice_any_more(self):
        make_volume()
        self.openSampling()
        self.run_to_the_end()
        slicer.mrmlScene.RemoveNode(self.maps()[0])
        self.assertFalse(self.ui.uncertaintyCheckBox.enabled)
        self.run_to_the_end()
        self.assertEqual(len(self.maps()), 1)

    def test_it_survives_saving_and_is_no_image_to_segment(self):
        make_volume()
        view = self.view()
        self.openSampling()
        self.run_to_the_end()
        path = str(self.folder / "scene.mrb")
        self.click(self.ui.uncertaintyCheckBox)
        self.assertTrue(slicer.mrmlScene.WriteToMRB(path))
        slicer.mrmlScene.Clear(0)
        self.assertTrue(slicer.mrmlScene.ReadFromMRB(path))
        self.assertTrue(self.ui.uncertaintyCheckBox.enabled)
        view = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")[0]
        self.assertTrue(self.ui.uncertaintyCheckBox.checked)
        self.click(self.ui.uncertaintyCheckBox)
        self.assertIsNone(view.GetForegroundVolumeID())
        self.ui.queueCollapsibleButton.collapsed = False
        self.assertEqual(self.ui.queueTable.rowCount, 1)
        self.ui.inputVolumeSelector.setCurrentNode(self.maps()[0])
        self.assertFalse(self.ui.applyButton.enabled)
        self.assertIn("is an uncertainty map", self.ui.applyButton.toolTip)

    def test_a_map_that_a_script_makes_is_not_listed_as_a_volume_either(self):
        import SimpleITK as sitk
        from SpineSegAISlicer.scene import results, uncertainty, volumes

        from SpineSegAILib.anatomy import SCHEMES
        from SpineSegAILib.results import Segmentation

        volume = make_volume()
        self.openPanel()
        self.ui.queueCollapsibleButton.collapsed = False
        image = volumes.imageFromVolume(volume)
        result = Segmentation(
            labels=sitk.Cast(image > 100, sitk.sitkInt16) * 23,
            scheme=SCHEMES["lumbar-mr"],
            uncertainty=sitk.Cast(image > 150, sitk.sitkFloat32),
            provenance={"uncertainty": {"L4": 0.5}},
        )
        made = uncertainty.mapFromResult(result, volume, results.segmentationFromResult(result, volume))
        self.assertEqual(self.maps(), [made])
        table = self.ui.queueTable
        self.assertEqual([table.item(row, 0).text() for row in range(table.rowCount)], ["T2"])

    def test_the_table_of_structures_tells_the_means_and_they_follow_their_segments(self):
        from SpineSegAISlicer.panels.structure_table import UNCERTAINTY

        make_volume()
        self.openPanel()
        table = self.widget.correctionPanel.review.table
        self.run_to_the_end()
        self.widget.tabs.show("correctTab")
        self.waitUntil(lambda: table.rows)
        self.assertTrue(table.table.isColumnHidden(UNCERTAINTY))
        self.choose("verdiff-net")
        self.run_to_the_end()
        self.waitUntil(lambda: any(row.uncertainty for row in table.rows))
        self.assertFalse(table.table.isColumnHidden(UNCERTAINTY))
        means = self.provenance()["uncertainty"]
        shown = {row.structureId: table.table.item(i, UNCERTAINTY).text() for i, row in enumerate(table.rows)}
        self.assertEqual(shown[23], f"{means['L4']:.2f}")
        self.assertNotEqual(shown[23], shown[20])
        self.click(self.widget.correctionPanel.ui.shiftUpButton)
        self.waitUntil(lambda: {r.structureId for r in table.rows} != set(shown))
        moved = {row.structureId: table.table.item(i, UNCERTAINTY).text() for i, row in enumerate(table.rows)}
        self.assertEqual(moved[22], shown[23])


class TimeTest(SamplingCase):
    def estimate(self):
        return self.ui.estimateLabel.text

    def openWarm(self, method="verdiff-net"):
        self.openSampling(method)
        self.panel.warmUp()
        self.waitUntil(lambda: self.panel.device.answer is not None, 60)

    def test_defaults_are_the_checkpoint_s(self):
        make_checkpoint(self.folder, "quick", method="verdiff-net", config={"samples": 3, "steps": 2})
        self.openSampling()
        checkpoints = self.ui.modelComboBox
        for name, samples, steps in (("sampled", 5, 20), ("quick", 3, 2)):
            checkpoints.setCurrentIndex(checkpoints.findData(name))
            self.assertEqual(self.panel.sampling.options(), {"samples": samples, "steps": steps})
            self.assertEqual(self.ui.samplesSpinBox.text, f"{samples} samples")
            self.assertEqual(self.ui.stepsSpinBox.text, f"{steps} steps")
        for box, most in ((self.ui.samplesSpinBox, 50), (self.ui.stepsSpinBox, 1000)):
            self.assertEqual((box.minimum, box.maximum), (0, most))  # the least, 0, shows the default
        self.ui.stepsSpinBox.value = 4
        self.assertEqual(self.panel.sampling.options(), {"samples": 3, "steps": 4})

    def test_only_methods_that_sample_ask_how(self):
        make_checkpoint(self.folder, "unsampled", "verdiff-net", config={"stage": "prior"})  # nothing to sample with
        make_volume()
        self.openSampling()
        widgets = (self.ui.samplesSpinBox, self.ui.stepsSpinBox, self.ui.previewCheckBox, self.ui.estimateLabel)
        self.assertEqual([w.isHidden() for w in widgets], [False] * 4)
        self.choose("ddpm")  # has no prior to preview
        self.assertEqual([w.isHidden() for w in widgets], [False, False, True, False])
        self.ui.modelComboBox.setCurrentIndex(self.ui.modelComboBox.findData("unsampled"))
        self.assertEqual([w.isHidden() for w in widgets], [True] * 4)
        self.assertEqual(self.panel.sampling.options(), {})
        self.choose("resenc-unet")
        self.assertEqual([w.isHidden() for w in widgets], [True] * 4)
        self.run_to_the_end()
        self.assertEqual(self.provenance()["options"], {})

    def test_the_choice_reaches_the_method_and_is_saved(self):
        make_volume()
        self.openSampling()
        self.ui.samplesSpinBox.value, self.ui.stepsSpinBox.value = 3, 8
        self.run_to_the_end()
        self.assertEqual(self.provenance()["options"], {"samples": 3, "steps": 8})
        self.ui.previewCheckBox.checked = True
        self.assertFalse(self.ui.stepsSpinBox.enabled)
        self.run_to_the_end()
        self.assertEqual(self.provenance()["options"], {"preview": "on"})
        self.choose("ddpm")
        self.assertTrue(self.ui.stepsSpinBox.enabled)
        self.assertEqual(self.panel.sampling.options(), {"samples": 3, "steps": 8})
        self.assertEqual(self.widget._parameterNode.steps, 8)

    def test_the_time_is_that_of_the_last_run_and_follows_the_settings(self):
        make_volume()  # 10 slices: the double says 1 s and 0.01 s for each step of each sample
        self.openWarm()
        self.assertIn("after the first run", self.estimate())
        self.run_to_the_end()
        self.assertEqual(self.estimate(), "About 2 s on this device.")
        self.ui.stepsSpinBox.value, self.ui.samplesSpinBox.value = 40, 10
        self.assertEqual(self.estimate(), "About 5 s on this device.")
        self.ui.stepsSpinBox.value = 400
        self.assertEqual(self.estimate(), "About 40 s on this device.")
        self.ui.samplesSpinBox.value = 50
        self.assertEqual(self.estimate(), "About 4 min on this device.")
        self.ui.previewCheckBox.checked = True  # another network
        self.assertIn("after the first run", self.estimate())
        self.run_to_the_end()
        self.assertEqual(self.estimate(), "About 1 s on this device.")

    def test_twice_the_slices_take_twice_the_time_and_other_checkpoints_their_own(self):
        make_volume()
        longer = make_volume("Longer", size=(20, 60, 50))
        make_checkpoint(self.folder, "second", method="verdiff-net")
        self.openWarm()
        self.ui.modelComboBox.setCurrentIndex(self.ui.modelComboBox.findData("sampled"))
        self.run_to_the_end()
        self.ui.inputVolumeSelector.setCurrentNode(longer)
        self.assertEqual(self.estimate(), "About 4 s on this device.")
        self.ui.modelComboBox.setCurrentIndex(self.ui.modelComboBox.findData("second"))
        self.assertIn("after the first run", self.estimate())

    def test_the_device_may_be_told_after_the_scene_was_closed_in_another_module(self):
        self.openSampling()
        answers = []
        self.patch(self.widget.client, "describeDevice", lambda asked, onDone, onError: answers.append(onDone))
        self.panel.warmUp()
        self.widget.exit()
        slicer.mrmlScene.Clear(0)
        answers[0]("cpu", "a processor")
        self.assertIn("a processor", self.ui.deviceLabel.text)
        make_volume()
        self.widget.enter()
        self.choose("verdiff-net")
        self.assertIn("after the first run", self.estimate())

    def test_a_run_says_how_much_is_left(self):
        make_volume()
        self.openSampling(DOUBLE_SECONDS="8")
        self.click(self.ui.applyButton)
        self.waitUntil(lambda: "left" in self.ui.elapsedLabel.text, 30)
        self.assertRegex(self.ui.elapsedLabel.text, r"^0:\d\d, about [1-6] s left$")


class RadiographTest(SamplingCase):
    def test_a_picture_loaded_as_one_slice_is_segmented(self):
        volume = make_volume("X-ray", size=(1, 150, 70), ijkToRas=np.diag([-1.0, -1.0, 1.0, 1.0]))
        self.openSampling()
        self.assertTrue(self.ui.applyButton.enabled, self.ui.applyButton.toolTip)
        self.panel.warmUp()
        self.run_to_the_end()
        self.waitUntil(lambda: "About" in self.ui.estimateLabel.text, 30)
        self.assertEqual(slicer.util.arrayFromVolume(self.maps()[0]).shape, (1, 150, 70))
        from SpineSegAISlicer.scene import labelmaps, volumes

        back = labelmaps.labelsFromSegmentation(self.output(), volume)
        self.assertEqual(back.GetSize(), (70, 150, 1))
        self.assertAlmostEqual(volumes.sliceArea(volume, 2.0), 150 * 70)

    def test_a_checkpoint_for_stacks_says_that_it_takes_none(self):
        make_checkpoint(
            self.folder, "sampled", method="verdiff-net", preprocessing={"modality": "MR", "planes": ["sagittal"]}
        )
        make_volume("X-ray", size=(1, 150, 70), ijkToRas=np.diag([-1.0, -1.0, 1.0, 1.0]))
        self.openSampling()
        self.panel.warmUp()
        self.assertFalse(self.ui.applyButton.enabled)
        self.assertIn("a single slice", self.ui.applyButton.toolTip)


class StartingFromTest(SamplingCase):
    def test_a_segmentation_can_take_the_prior_s_place(self):
        make_volume()
        self.openPanel()
        self.run_to_the_end()
        drawn = self.output()
        self.assertTrue(self.ui.priorSelector.isHidden())
        self.choose("ddpm")
        self.assertTrue(self.ui.priorSelector.isHidden())
        self.choose("verdiff-net")
        self.assertFalse(self.ui.priorSelector.isHidden())
        self.ui.outputSegmentationSelector.setCurrentNode(None)
        self.assertIn("prior=None", self.run_and_tell())
        self.ui.outputSegmentationSelector.setCurrentNode(None)
        self.ui.priorSelector.setCurrentNode(drawn)
        self.assertIn("prior=<SimpleITK", self.run_and_tell())
        self.choose("resenc-unet")  # the choice stays, but is not sent where it would be refused
        self.assertIn("prior=None", self.run_and_tell())

    def run_and_tell(self):
        self.run_to_the_end()
        self.assertFalse(self.dialogs)
        return self.provenance()["hints"]

    def test_the_prior_is_what_the_reader_drew_and_locked_segments_go_with_it(self):
        import SimpleITK as sitk
        from SpineSegAISlicer.scene import labelmaps
        from SpineSegAISlicer.scene.segments import setLocked

        volume = make_volume()
        self.openPanel()
        self.run_to_the_end()
        drawn = self.output()
        segmentation = drawn.GetSegmentation()
        segmentation.RemoveSegment("L1")
        setLocked(segmentation.GetSegment("L3"), True)
        self.choose("verdiff-net")
        self.ui.priorSelector.setCurrentNode(drawn)
        self.ui.outputSegmentationSelector.setCurrentNode(None)
        hints = self.panel.steering.hints(volume)
        expected = sitk.GetArrayFromImage(labelmaps.labelsFromSegmentation(drawn, volume))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(hints.prior), expected)
        self.assertNotIn(20, expected)
        self.assertEqual(set(np.unique(sitk.GetArrayFromImage(hints.locked))), {0, 22})

    def test_what_is_locked_in_either_is_kept(self):
        import SimpleITK as sitk
        from SpineSegAISlicer.scene.segments import setLocked

        volume = make_volume()
        self.openPanel()
        self.run_to_the_end()
        first = self.output()
        self.ui.outputSegmentationSelector.setCurrentNode(None)
        self.run_to_the_end()
        second = self.output()
        setLocked(first.GetSegmentation().GetSegment("L3"), True)
        setLocked(second.GetSegmentation().GetSegment("L5"), True)
        self.choose("verdiff-net")
        self.ui.priorSelector.setCurrentNode(first)
        locked = sitk.GetArrayFromImage(self.panel.steering.hints(volume, second).locked)
        self.assertEqual(set(np.unique(locked)), {0, 22, 24})

    def test_another_volume_starts_from_the_image_again(self):
        make_volume()
        other = make_volume("Other", seed=1)
        self.openSampling()
        self.run_to_the_end()
        self.ui.priorSelector.setCurrentNode(self.output())
        self.ui.inputVolumeSelector.setCurrentNode(other)
        self.assertIsNone(self.widget._parameterNode.priorSegmentation)

    def test_a_volume_that_waits_still_starts_from_it(self):
        chosen, other = make_volume(), make_volume("Other", seed=1)
        self.openSampling()
        self.run_to_the_end()
        self.ui.priorSelector.setCurrentNode(self.output())
        hints, segment = {}, self.widget.client.segment

        def listen(request, **callbacks):
            hints[self.ui.statusLabel.text] = request.hints
            return segment(request, **callbacks)

        self.patch(self.widget.client, "segment", listen)
        self.widget.segmenting.start([other, chosen])
        self.waitUntilDone()
        self.assertIsNone(hints["Segmenting “Other”…"].prior)
        self.assertIsNotNone(hints["Segmenting “T2”…"].prior)

    def test_what_was_removed_while_a_volume_waited_is_missed(self):
        chosen, other = make_volume(), make_volume("Other", seed=1)
        self.openSampling()
        self.run_to_the_end()
        self.ui.priorSelector.setCurrentNode(self.output())
        self.widget.segmenting.start([other, chosen])
        slicer.mrmlScene.RemoveNode(self.output())
        self.waitUntilDone()
        self.assertIn("were removed while it was queued", self.dialogs[0])
        self.assertEqual([node.GetName() for node in self.segmentations()], ["Other spine"])

    def test_refining_a_segmentation_in_place_is_noted_in_its_log(self):
        from SpineSegAISlicer.scene import correction_log

        make_volume()
        self.openSampling()
        self.run_to_the_end()
        self.ui.priorSelector.setCurrentNode(self.output())
        self.run_to_the_end()
        self.assertIs(correction_log.readLog(self.output()).entries[-1].details["prior"], True)

    def test_no_more_is_promised_than_is_accepted(self):
        make_volume()
        self.openSampling()
        self.assertIn("made by SpineSegAI", self.ui.priorSelector.toolTip)
        self.assertNotIn("drew", self.ui.priorSelector.toolTip)

    def test_a_segmentation_of_nothing_is_refused_with_the_reason(self):
        make_volume()
        self.openSampling()
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Drawn")
        before = self.nodeIds()
        self.ui.priorSelector.setCurrentNode(node)
        self.click(self.ui.applyButton)
        self.waitUntilDone()
        self.assertIn("“Drawn”", self.dialogs[0])
        self.assertEqual(self.nodeIds(), before)


if __name__ == "__main__":
    unittest.main()
