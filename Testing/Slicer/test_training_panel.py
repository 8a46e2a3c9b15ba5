"""Clicking through the Train section, with real runs in processes of their own. In the host and inside Slicer."""

import os
import signal
import sys
import unittest
from pathlib import Path
from types import SimpleNamespace

from panel_case import PanelCase, slicer

sys.path.insert(0, str(Path(__file__).parents[1] / "Library"))


class TrainingCase(PanelCase):
    """A panel, a tiny dataset, and a home of its own for runs and checkpoints."""

    def setUp(self):
        super().setUp()
        from SpineSegAISlicer.panels import choices, runs
        from tiny_data import write_tiny_dataset

        from SpineSegAILib.checkpoints import list_checkpoints

        for name in ("HOME", "USERPROFILE"):
            self.set(os.environ, name, str(self.folder))
        self.set(os.environ, "SPINESEGAI_CHECKPOINTS", "")
        self.set(os.environ, "OMP_NUM_THREADS", "1")
        self.patch(choices, "list_checkpoints", list_checkpoints)
        self.patch(runs, "POLL_MILLISECONDS", 200)
        data = self.folder / "data"
        data.mkdir()
        self.dataset = write_tiny_dataset(data, training=2)
        self.start = self.writeStart()

    def writeStart(self):
        """A tiny checkpoint to train further: small images, quick steps."""
        import torch

        from SpineSegAILib.checkpoints import save_checkpoint, user_checkpoints_folder
        from SpineSegAILib.imaging import Preprocessing
        from SpineSegAILib.methods.catalog import build_method, make_config

        torch.manual_seed(0)
        config = make_config("resenc-unet", "tiny")
        metadata = {
            "title": "Tiny start",
            "method": config.model_dump(mode="json"),
            "preprocessing": Preprocessing(pixel_mm=3.0).model_dump(mode="json"),
            "patch": [64, 64],
        }
        path = user_checkpoints_folder() / "start.safetensors"
        path.parent.mkdir(parents=True)
        save_checkpoint(path, build_method(config).state_dict(), metadata)
        return path

    def openTraining(self, steps=100000, name="mine"):
        """The unfolded section with everything chosen."""
        self.openPanel()
        train = self.train
        train.trainCollapsibleButton.collapsed = False
        train.trainDatasetPathLineEdit.currentPath = str(self.dataset)
        train.trainStartComboBox.setCurrentIndex(train.trainStartComboBox.findData(str(self.start)))
        train.trainStepsSpinBox.value = steps
        train.trainNameLineEdit.text = name
        train.trainDeviceComboBox.setCurrentIndex(train.trainDeviceComboBox.findData("cpu"))
        self.addCleanup(self.endRuns)

    @property
    def train(self):
        return self.widget.trainingUi

    @property
    def training(self):
        return self.widget.trainingPanel

    def state(self):
        report = self.training.runs.report()
        return report.state.value if report else None

    def endRuns(self):
        """No process outlives a test."""
        from SpineSegAILib.training.run import RunDirectory

        for folder in (self.folder / "SpineSegAI/Runs").glob("*"):
            owner = RunDirectory(folder).owner()
            if owner is not None and owner.is_alive:
                os.kill(owner.pid, signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)

    def row(self, row=0):
        return [self.train.runsTable.item(row, column).text() for column in range(4)]


class ChoosingTest(TrainingCase):
    def test_the_first_run_of_a_fresh_slicer_has_a_preset(self):
        from SpineSegAISlicer.processes.training import launcher

        self.openTraining()
        self.train.trainStartComboBox.setCurrentIndex(self.train.trainStartComboBox.findData(""))
        self.train.trainPresetComboBox.clear()  # as it is until the packages come, which the click installs
        started = []
        self.patch(launcher(), "start", lambda _folder, arguments, **_more: started.append(arguments))
        self.click(self.train.trainStartButton)
        self.assertEqual(started[0][started[0].index("--preset") + 1], "small")

    def test_a_disabled_button_says_why(self):
        self.openPanel()
        self.assertFalse(self.train.trainStartButton.enabled)
        self.assertIn("No dataset is chosen", self.train.trainStartButton.toolTip)
        self.train.trainDatasetPathLineEdit.currentPath = str(self.folder / "no.json")
        self.assertIn("no.json does not exist", self.train.trainStartButton.toolTip)
        self.train.trainDatasetPathLineEdit.currentPath = str(self.dataset)
        self.assertTrue(self.train.trainStartButton.enabled, self.train.trainStartButton.toolTip)
        self.train.trainNameLineEdit.text = "../elsewhere"
        self.assertIn("cannot be the name of a folder", self.train.trainStartButton.toolTip)
        self.train.trainNameLineEdit.text = ""
        self.assertIn("no name", self.train.trainStartButton.toolTip)
        self.train.trainNameLineEdit.text = "right"
        self.train.trainAlsoPathLineEdit.currentPath = str(self.folder / "no.json")
        self.assertFalse(self.train.trainStartButton.enabled)
        self.train.trainAlsoPathLineEdit.currentPath = ""
        self.assertTrue(self.train.trainStartButton.enabled, self.train.trainStartButton.toolTip)

    def test_the_training_set_that_was_made_is_proposed(self):
        self.openPanel()
        field = self.widget.datasetUi.datasetFolderLineEdit
        before, field.text = field.text, str(self.dataset.parent)
        self.addCleanup(lambda: setattr(field, "text", before))  # the panel remembers it
        self.train.trainCollapsibleButton.collapsed = False
        self.assertEqual(self.train.trainDatasetPathLineEdit.currentPath, str(self.dataset))
        self.assertTrue(self.train.trainStartButton.enabled, self.train.trainStartButton.toolTip)

    def test_a_checkpoint_brings_method_and_structures(self):
        self.openTraining()
        self.assertFalse(self.train.trainMethodComboBox.isVisibleTo(self.train.trainCollapsibleButton))
        self.train.trainAddLineEdit.text = "T10, cord"
        self.train.trainAlsoPathLineEdit.currentPath = str(self.folder / "old.json")
        self.assertIn("old.json does not exist", self.train.trainStartButton.toolTip)
        words = self.training.arguments()
        self.assertEqual(words[words.index("--from") + 1], str(self.start))
        self.assertEqual([words[i + 1] for i, w in enumerate(words) if w == "--add-structure"], ["T10", "cord"])
        self.assertEqual(words[words.index("--also") + 1], str(self.folder / "old.json"))
        self.assertNotIn("--method", words)

    def test_from_the_beginning_everything_is_chosen(self):
        self.openTraining(name="")
        self.train.trainStartComboBox.setCurrentIndex(self.train.trainStartComboBox.findData(""))
        self.assertTrue(self.train.trainMethodComboBox.isVisibleTo(self.train.trainCollapsibleButton))
        self.assertEqual(self.train.trainNameLineEdit.text, "resenc-unet")
        # What corrects segmentations is not trained to make them, nor to be started from.
        self.assertLess(self.train.trainMethodComboBox.findData("click-refine"), 0)
        starts = self.train.trainStartComboBox
        self.assertFalse([i for i in range(starts.count) if "click-refine" in (starts.itemData(i) or "")])
        self.train.trainMethodComboBox.setCurrentIndex(self.train.trainMethodComboBox.findData("unet"))
        self.train.trainPresetComboBox.setCurrentIndex(self.train.trainPresetComboBox.findData("tiny"))
        self.train.trainSchemeComboBox.setCurrentIndex(self.train.trainSchemeComboBox.findData("lumbar11"))
        self.train.trainHoursSpinBox.value = 1.5
        words = self.training.arguments()
        for flag, value in (("--method", "unet"), ("--preset", "tiny"), ("--hours", "1.5")):
            self.assertEqual(words[words.index(flag) + 1], value)
        self.assertIn("method.scheme=lumbar11", words)
        self.assertNotIn("--from", words)


class RunningTest(TrainingCase):
    def test_a_run_is_started_watched_and_its_checkpoint_offered(self):
        self.openTraining(steps=40)
        self.assertTrue(self.train.trainStartButton.enabled, self.train.trainStartButton.toolTip)
        self.click(self.train.trainStartButton)
        self.assertEqual(self.dialogs, [])
        self.assertEqual(self.state(), "starting")
        self.assertEqual(self.row()[:2], ["mine", "starting"])
        self.assertFalse(self.train.runResumeButton.enabled)
        self.train.runPlotButton.checked = True
        self.train.runLogCollapsibleButton.collapsed = False
        self.waitUntil(lambda: self.state() == "finished", 600, self.train.runLogText.plainText)
        self.assertEqual(self.row()[1:3], ["finished", "100 %"])
        self.assertIn("step 40 of 40", self.train.runStatusLabel.text)
        self.assertIn("steps/s", self.train.runStatusLabel.text)
        self.assertFalse(self.train.runResumeButton.enabled)
        self.assertIn("finished", self.train.runResumeButton.toolTip)
        self.assertIn("finished at step 40", self.train.runLogText.plainText)
        # Pictures and plots.
        for label in (self.train.runCurvesLabel, self.train.runPreviewLabel):
            self.assertGreater(label.pixmap.width(), 100)
        loss, _scores = self.training.runs.plots.charts()  # the start and the end were validated
        table = loss.GetNthPlotSeriesNode(0).GetTableNode().GetTable()
        self.assertEqual([table.GetValue(i, 0).ToInt() for i in range(table.GetNumberOfRows())], [20, 40])
        self.assertGreater(table.GetValue(0, 1).ToDouble(), 0)
        self.train.runPlotButton.checked = False
        self.assertFalse(self.training.runs.plots.isShown)
        self.assertEqual(slicer.util.getNodesByClass("vtkMRMLPlotSeriesNode"), [])
        # The checkpoint is there, in the Segment section and to train further.
        self.assertGreaterEqual(self.ui.modelComboBox.findData("mine"), 0)
        offered = self.folder / "SpineSegAI/Checkpoints/mine.safetensors"
        self.assertTrue(offered.is_file())
        self.assertGreaterEqual(self.train.trainStartComboBox.findData(str(offered)), 0)
        offered.unlink()
        self.training.runs.poll()
        self.assertFalse(offered.exists(), "what the reader deletes stays deleted")

    def test_stop_and_resume_and_a_process_that_dies(self):
        self.openTraining()
        self.click(self.train.trainStartButton)
        self.waitUntil(lambda: self.training.runs.report().loss is not None, 600)
        self.assertEqual(self.state(), "running")
        self.assertIn("left", self.train.runStatusLabel.text)
        self.click(self.train.runStopButton)
        self.waitUntil(lambda: self.state() == "stopped", 300)
        self.assertGreaterEqual(self.ui.modelComboBox.findData("mine"), 0)
        self.waitUntil(lambda: self.train.runResumeButton.enabled)
        stopped = self.training.runs.report().step
        self.click(self.train.runResumeButton)
        self.assertEqual(self.dialogs, [])
        self.waitUntil(lambda: self.training.runs.report().step > stopped, 180)
        self.endRuns()
        self.waitUntil(lambda: self.state() == "died", 60)
        self.assertIn("gone without a word", self.train.runStatusLabel.text)
        self.assertTrue(self.train.runResumeButton.enabled)

    def test_a_run_that_cannot_begin_says_why(self):
        self.openTraining()
        self.start.unlink()
        self.click(self.train.trainStartButton)
        self.waitUntil(lambda: self.state() == "failed", 120)
        self.assertIn("start.safetensors does not exist", self.train.runStatusLabel.text)
        self.assertFalse(self.train.runResumeButton.enabled)


class CurvesTest(PanelCase):
    @staticmethod
    def events(steps, validations):
        """What a run has said after so many reports."""
        said = [{"event": "step", "step": 10 * n, "losses": {"total": 1 / n}} for n in range(1, steps + 1)]
        return said + [
            {"event": "validation", "step": 10 * n, "scores": {"level_dice": 0.5}} for n in range(1, validations + 1)
        ]

    def rows(self, plots):
        return [c.GetNthPlotSeriesNode(0).GetTableNode().GetTable().GetNumberOfRows() for c in plots.charts()]

    def test_nothing_is_plotted_before_it_has_points(self):
        from SpineSegAISlicer.panels.training_plots import CurvePlots

        plots, shown = CurvePlots(), []
        logic = SimpleNamespace(ShowChartInLayout=lambda chart: shown.append(chart.GetTitle()))
        self.patch(slicer, "modules", SimpleNamespace(plots=SimpleNamespace(logic=lambda: logic)))
        self.patch(slicer, "app", SimpleNamespace(layoutManager=object))
        plots.show("mine", self.events(1, 1))
        self.assertTrue(plots.isShown)
        self.assertEqual((self.rows(plots), shown), ([], []))
        self.assertEqual(slicer.util.getNodesByClass("vtkMRMLPlotSeriesNode"), [])
        plots.update(self.events(2, 1))
        self.assertEqual((self.rows(plots), shown), ([2], ["mine: Loss"]))
        plots.update(self.events(5, 2))
        self.assertEqual((self.rows(plots), shown), ([5, 2], ["mine: Loss"]))
        plots.remove()
        self.assertFalse(plots.isShown)
        self.assertEqual(slicer.util.getNodesByClass("vtkMRMLPlotChartNode"), [])

    def test_another_scene_s_charts_are_not_taken_for_ours(self):
        from SpineSegAISlicer.panels.training_plots import CurvePlots

        plots = CurvePlots()
        plots.show("mine", self.events(2, 2))
        self.assertTrue(plots.isShown)
        ids = [chart.GetID() for chart in plots.charts()]
        slicer.mrmlScene.Clear(0)
        theirs = [slicer.mrmlScene.AddNewNodeByClass("vtkMRMLPlotChartNode") for _id in ids]
        self.assertEqual([chart.GetID() for chart in theirs], ids)
        self.assertFalse(plots.isShown)
        plots.remove()
        self.assertEqual(slicer.util.getNodesByClass("vtkMRMLPlotChartNode"), theirs)


class ElsewhereTest(TrainingCase):
    def elsewhere(self):
        """A run on another machine that shares the folder."""
        import time

        from SpineSegAILib.training.run import RunDirectory, replace_json

        run = RunDirectory(self.folder / "elsewhere")
        run.folder.mkdir()
        replace_json(run.config_file, {"name": "Their run", "optimization": {"steps": 1000}})
        owner = {"pid": 1, "started": 1.0, "host": "another machine"}
        replace_json(run.lock_file, owner)
        now = time.time()
        replace_json(run.status_file, {"state": "running", **owner, "heartbeat": now, "progressed": now})
        run.event("step", step=250, losses={"total": 0.5}, steps_per_second=2.0, elapsed=125.0)
        return run

    def test_a_run_elsewhere_is_watched_and_asked_to_stop(self):
        run = self.elsewhere()
        self.openPanel()
        self.train.trainCollapsibleButton.collapsed = False
        self.training.runs.watch(run.folder)
        self.assertEqual(self.row()[:3], ["Their run", "running", "25 %"])
        self.assertIn("6 min left", self.train.runStatusLabel.text)
        run.event("step", step=500, losses={"total": 0.25}, steps_per_second=2.0, elapsed=250.0)
        self.training.runs.poll()
        self.assertIn("loss 0.250", self.train.runStatusLabel.text)
        self.click(self.train.runStopButton)
        self.assertTrue(run.stop_requested)
        self.assertEqual(self.state(), "stopping")

    def test_a_folder_without_a_run_is_refused(self):
        self.openPanel()
        self.training.runs.watch(self.folder)
        self.assertIn("holds no run", self.dialogs[0])

    def test_the_folder_of_a_run_is_opened(self):
        import qt

        opened = []
        self.patch(qt, "QDesktopServices", type("Services", (), {"openUrl": staticmethod(opened.append)}))
        run = self.elsewhere()
        self.openPanel()
        self.training.runs.watch(run.folder)
        self.train.trainCollapsibleButton.collapsed = False
        self.click(self.train.runFolderButton)
        self.assertTrue(opened[0].toLocalFile().endswith("elsewhere"))


if __name__ == "__main__":
    unittest.main()
