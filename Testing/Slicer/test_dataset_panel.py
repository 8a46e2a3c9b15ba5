"""Clicking through the Dataset section: scenes in, what segments are, splits, ranking. Host and Slicer."""

import json
import unittest
from pathlib import Path

from panel_case import PanelCase, make_volume, np, slicer
from test_scenes import L4, L5, LUMBAR, a_result, make_segmentation


class DatasetCase(PanelCase):
    def openPanel(self, **environment):
        super().openPanel(**environment)
        self.set_folder = self.folder / "set"
        self.data.datasetFolderLineEdit.text = str(self.set_folder)
        self.data.datasetCollapsibleButton.collapsed = False
        return self.widget

    @property
    def data(self):
        return self.widget.datasetUi

    @property
    def dataset(self):
        return self.widget.datasetPanel

    def saveScene(self, name="one.mrb", segments=None, volume="T2", seed=0):
        slicer.mrmlScene.Clear(0)
        make_segmentation(make_volume(volume, seed=seed), segments or LUMBAR)
        path = self.folder / name
        self.assertTrue(slicer.mrmlScene.WriteToMRB(str(path)))
        slicer.mrmlScene.Clear(0)
        return str(path)

    def waitForProcess(self, seconds=120.0):
        self.waitUntil(lambda: not self.dataset.isRunning, seconds, "the process did not end")

    def mapping(self):
        """Rows of the table of names: (segment, taken as, because of, cases)."""
        table = self.data.mappingTable
        return [
            (
                table.item(r, 0).text(),
                table.cellWidget(r, 1).currentText,
                table.item(r, 2).text(),
                table.item(r, 3).text(),
            )
            for r in range(table.rowCount)
        ]

    def cases(self):
        """Rows of the table of cases: (case, split, structures)."""
        table = self.data.casesTable
        return [tuple(table.item(r, c).text() for c in range(3)) for r in range(table.rowCount)]

    def select(self, *names):
        table = self.data.casesTable
        table.clearSelection()
        for row in range(table.rowCount):
            for column in range(table.columnCount):
                table.item(row, column).setSelected(table.item(row, 0).text() in names)

    def manifest(self):
        return json.loads((self.set_folder / "dataset.json").read_text(encoding="utf-8"))


class AddingTest(DatasetCase):
    def test_without_a_folder_nothing_can_be_added(self):
        self.openPanel()
        self.assertTrue(self.data.addScenesButton.enabled)
        self.assertTrue(self.data.mappingGroupBox.isHidden())  # nothing is asked yet
        self.data.datasetFolderLineEdit.text = ""
        for button in (self.data.addScenesButton, self.data.addCaseButton, self.data.addImagesButton):
            self.assertFalse(button.enabled)

    def test_scenes_are_added_after_a_look_at_what_their_segments_are(self):
        paths = [self.saveScene("one.mrb"), self.saveScene("two.mrb", seed=1)]
        self.openPanel()
        self.dataset.addScenes(paths)
        self.assertTrue(self.dataset.isRunning)
        self.assertFalse(self.data.addScenesButton.enabled)
        self.waitForProcess()
        self.assertFalse(self.set_folder.exists())  # nothing before the reader agrees
        self.assertEqual(
            self.mapping(),
            [
                ("L4 vertebra", "L4", "name", "2"),
                ("L4-L5 disc", "L4/L5", "name", "2"),
                ("vertebra L5", "L5", "name", "2"),
            ],
        )
        self.assertIn("Annotated cases: 2.", self.data.mappingLabel.text)
        self.assertEqual(self.data.mappingAddButton.text, "Add 2 cases")
        self.assertFalse(self.data.extentComboBox.isHidden())  # the names do not say it
        self.data.extentComboBox.setCurrentIndex(self.data.extentComboBox.findData("whole"))
        self.click(self.data.mappingAddButton)
        self.waitForProcess()
        self.assertEqual(self.cases(), [("one_T2", "training", "L4–L5, L4/L5"), ("two_T2", "training", "L4–L5, L4/L5")])
        self.assertEqual([case["extent"] for case in self.manifest()["training"]], ["whole", "whole"])
        self.assertIn("Cases added: 2", self.data.datasetStatusLabel.text)
        self.assertFalse(self.dialogs)

    def test_what_is_not_understood_has_to_be_said(self):
        path = self.saveScene(segments={**LUMBAR, "my lesion": np.s_[4:6, 10:16, 15:25]})
        self.openPanel()
        self.dataset.addScenes([path])
        self.waitForProcess()
        self.assertEqual(self.mapping()[0][0], "my lesion")  # first of all
        self.assertEqual(self.mapping()[0][2], "not understood")
        self.assertFalse(self.data.mappingAddButton.enabled)
        self.assertIn("“my lesion”", self.data.mappingLabel.text)
        combo = self.data.mappingTable.cellWidget(0, 1)
        combo.setCurrentText("panel lesion")
        self.assertEqual(self.mapping()[0][2], "your own structure")
        self.assertTrue(self.data.mappingAddButton.enabled)
        self.click(self.data.mappingAddButton)
        self.waitForProcess()
        self.assertEqual(self.cases(), [("one_T2", "training", "L4–L5, L4/L5, panel lesion")])
        self.assertEqual(list(self.manifest()["custom"]), ["panel lesion"])
        self.dataset.addScenes([path])  # the next time it is known
        self.waitForProcess()
        self.assertIn(("my lesion", "panel lesion", "your mapping", "1"), self.mapping())

    def test_a_meaning_can_be_corrected(self):
        path = self.saveScene()
        self.openPanel()
        self.dataset.addScenes([path])
        self.waitForProcess()
        for row, target in ((0, "L3"), (1, "omit")):
            combo = self.data.mappingTable.cellWidget(row, 1)
            combo.setCurrentIndex(combo.findText(target))
        self.assertEqual(self.mapping()[0][2], "your mapping")
        self.click(self.data.mappingAddButton)
        self.waitForProcess()
        self.assertEqual(self.cases(), [("one_T2", "training", "L3, L5")])

    def test_cancel_adds_nothing(self):
        path = self.saveScene()
        self.openPanel()
        self.dataset.addScenes([path])
        self.click(self.data.datasetCancelButton)
        self.waitForProcess()
        self.assertIn("nothing was changed", self.data.datasetStatusLabel.text)
        self.dataset.addScenes([path])
        self.waitForProcess()
        self.click(self.data.mappingCancelButton)
        self.assertFalse(self.set_folder.exists())
        self.assertEqual(self.data.mappingTable.rowCount, 0)
        self.assertTrue(self.data.addScenesButton.enabled)

    def test_a_damaged_scene_is_named_and_the_others_are_added(self):
        path, bad = self.saveScene(), self.folder / "bad.mrb"
        bad.write_bytes(b"x")
        self.openPanel()
        self.dataset.addScenes([path, str(bad)])
        self.waitForProcess()
        self.assertIn("bad.mrb is damaged", self.data.mappingNotesLabel.text)
        self.click(self.data.mappingAddButton)
        self.waitForProcess()
        self.assertEqual(len(self.cases()), 1)
        self.assertIn("Omitted: bad.mrb is damaged", self.data.datasetStatusLabel.text)

    def test_a_folder_without_scenes_is_an_error(self):
        self.openPanel()
        (self.folder / "none").mkdir()
        self.dataset.addScenes([str(self.folder / "none")])
        self.waitForProcess()
        self.assertIn("There is no scene in", self.dialogs[0])
        self.assertTrue(self.data.addScenesButton.enabled)

    def test_the_current_case_is_added(self):
        from SpineSegAISlicer.scene import results

        volume = make_volume("Case 7")
        self.openPanel()
        node = results.segmentationFromResult(a_result(volume), volume)
        node.SetAttribute("SpineSegAI.CorrectionLog", '[{"tool": "shift"}]')
        self.widget._parameterNode.inputVolume = volume
        self.widget._parameterNode.outputSegmentation = node
        before = self.nodeIds()
        self.click(self.data.addCaseButton)
        self.waitForProcess()
        self.assertEqual({row[2] for row in self.mapping()}, {"made by SpineSegAI"})
        self.assertTrue(self.data.extentComboBox.isHidden())  # our tags say it
        temporary = self.dataset._temporary
        self.click(self.data.mappingAddButton)
        self.waitForProcess()
        self.assertEqual(self.cases(), [("Case_7", "training", "L4–L5, L4/L5")])
        entry = self.manifest()["training"][0]
        self.assertEqual((entry["extent"], entry["corrections"]), ("body", [{"tool": "shift"}]))
        self.assertEqual(self.nodeIds(), before)
        self.assertFalse(Path(temporary).exists())
        self.click(self.data.addCaseButton)  # the same again, corrected meanwhile
        self.waitForProcess()
        self.click(self.data.mappingAddButton)
        self.waitForProcess()
        self.assertEqual(len(self.cases()), 1)
        self.assertIn("Replaced", self.data.datasetStatusLabel.text)

    def test_a_case_that_cannot_be_added_says_why(self):
        volume = make_volume()
        self.openPanel()
        empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Empty")
        self.widget._parameterNode.inputVolume = volume
        self.widget._parameterNode.outputSegmentation = empty
        self.click(self.data.addCaseButton)
        self.assertIn("“Empty” has no segments", self.dialogs[0])
        self.assertFalse(self.dataset.isRunning)

    def test_the_segmentation_of_another_volume_is_added_only_if_the_reader_agrees(self):
        from SpineSegAISlicer.scene import results

        own, volume = make_volume("Case 7"), make_volume("Case 8")
        self.openPanel()
        node = results.segmentationFromResult(a_result(own), own)
        self.widget._parameterNode.inputVolume = volume
        self.widget._parameterNode.outputSegmentation = node
        asked = []
        self.patch(
            slicer.util, "confirmOkCancelDisplay", lambda text, *more, **named: asked.append(text) or len(asked) > 1
        )
        self.click(self.data.addCaseButton)
        self.assertFalse(self.dataset.isRunning)
        self.assertIn("was made on “Case 7”, not on “Case 8”", asked[0])
        self.click(self.data.addCaseButton)
        self.assertEqual((len(asked), self.dataset.isRunning), (2, True))

    def test_a_manifest_that_cannot_be_read_is_said(self):
        self.openPanel()
        other = self.folder / "other"
        other.mkdir()
        (other / "dataset.json").write_text("{", encoding="utf-8")
        self.data.datasetFolderLineEdit.text = str(other)
        self.assertIn("cannot be read", self.data.datasetStatusLabel.text)
        self.assertEqual(self.cases(), [])


class CommandTest(DatasetCase):
    def run_command(self, *arguments):
        from SpineSegAISlicer.processes.command_process import CommandProcess

        answers = []
        process = CommandProcess(arguments, answers.append, answers.append)
        process.start()
        return process, answers

    def test_a_command_that_fails_says_so_with_its_log(self):
        process, answers = self.run_command("no-such-command")
        self.waitUntil(lambda: answers, 60)
        self.assertEqual(answers[0].kind, "WorkerError")
        self.assertIn("exit code 2", answers[0].message)
        self.assertIn("no-such-command", answers[0].log)
        self.assertFalse(process.isRunning)

    def test_a_command_that_is_killed_says_so(self):
        process, answers = self.run_command("checkpoints", "--json")
        process._process.kill()
        self.waitUntil(lambda: answers, 60)
        self.assertIn("ended unexpectedly", answers[0].message)

    def test_an_answer_that_nobody_waits_for_is_dropped(self):
        process, answers = self.run_command("checkpoints", "--json")
        process.stop()
        self.waitUntil(lambda: not process.isRunning, 60)
        self.assertEqual(answers, [])


class CasesTest(DatasetCase):
    def fill(self, count=3):
        """A training set of `count` cases."""
        from SpineSegAILib.datasets.slicer_scene import read_scene
        from SpineSegAILib.datasets.training_set import TrainingSet

        paths = [self.saveScene(f"c{n}.mrb", {"L4": L4, "L5": L5}, seed=n) for n in range(count)]
        self.openPanel()
        TrainingSet(self.set_folder).add_scenes(map(read_scene, paths))
        self.dataset.refresh()

    def test_cases_move_between_splits_with_their_patient(self):
        self.fill()
        self.assertFalse(self.data.splitButton.enabled)
        name = next(case[0] for case in self.cases() if case[1] == "training")
        self.select(name)
        self.assertTrue(self.data.splitButton.enabled)
        combo = self.data.splitComboBox
        combo.setCurrentIndex(combo.findData("test"))
        self.click(self.data.splitButton)
        self.assertIn((name, "test", "L4–L5"), self.cases())
        self.assertIn("Cases moved: 1", self.data.datasetStatusLabel.text)

    def test_cases_are_removed_after_a_question(self):
        self.fill(2)
        answers = []
        self.patch(
            slicer.util, "confirmOkCancelDisplay", lambda text, *more, **named: answers.append(text) or len(answers) > 1
        )
        self.select("c0_T2")
        self.click(self.data.removeCaseButton)
        self.assertEqual(len(self.cases()), 2)
        self.select("c0_T2")
        self.click(self.data.removeCaseButton)
        self.assertEqual([case[0] for case in self.cases()], ["c1_T2"])
        self.assertEqual([p.name for p in (self.set_folder / "images").iterdir()], ["c1_T2.nii.gz"])

    def test_a_case_is_loaded_as_the_input_volume(self):
        self.fill(1)
        self.select("c0_T2")
        self.click(self.data.loadCaseButton)
        self.assertEqual(self.widget._parameterNode.inputVolume.GetName(), "c0_T2")

    def test_a_missing_file_is_said(self):
        self.fill(1)
        (self.set_folder / "labels" / "c0_T2.nii.gz").unlink()
        self.dataset.refresh()
        self.assertIn("is missing", self.data.casesTable.item(0, 3).text())

    def test_images_to_annotate_are_ranked_by_a_checkpoint(self):
        import SimpleITK as sitk

        from SpineSegAILib.phantoms.spine import PhantomSpec, make_phantom

        phantom = make_phantom(
            PhantomSpec(top="L2", bottom="S1", slices=3, slice_mm=12.0, pixel_mm=2.0), np.random.default_rng(0)
        )
        noise = sitk.GetImageFromArray(np.random.default_rng(1).normal(100, 20, (3, 60, 60)).astype(np.float32))
        noise.SetSpacing((2.0, 2.0, 12.0))
        noise.SetDirection((0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0))
        paths = []
        for name, image in (("phantom", phantom.image), ("noise", noise)):
            paths.append(str(self.folder / f"{name}.nii.gz"))
            sitk.WriteImage(image, paths[-1])
        self.openPanel()
        self.dataset._checkpoint = lambda: "lumbar-mr-resenc"
        self.dataset._device = lambda: "cpu"
        self.assertFalse(self.data.rankButton.enabled)
        self.dataset.addImages(paths)
        self.assertEqual([case[:2] for case in self.cases()], [("phantom", "to annotate"), ("noise", "to annotate")])
        self.assertTrue(self.data.rankButton.enabled)
        self.click(self.data.rankButton)
        self.assertTrue(self.data.datasetCancelButton.visible or self.dataset.isRunning)
        self.waitForProcess(240)
        self.assertFalse(self.dialogs)
        self.assertEqual([case[0] for case in self.cases()], ["noise", "phantom"])
        self.assertIn("uncertainty", self.data.casesTable.item(0, 2).text())
        self.assertTrue(self.data.casesTable.item(0, 3).text())
        self.assertIn("Annotate “noise” next", self.data.datasetStatusLabel.text)
        self.select("noise")
        self.assertFalse(self.data.splitButton.enabled)  # not annotated yet

    def test_the_folder_is_remembered(self):
        self.openPanel()
        self.widget.cleanup()
        self.widget = None
        super().openPanel()
        self.assertEqual(self.data.datasetFolderLineEdit.text, str(self.set_folder))


if __name__ == "__main__":
    unittest.main()
