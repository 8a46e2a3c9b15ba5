"""What goes wrong around a segmentation: killed workers, vanished files and nodes, hasty clicks. Runs in Slicer too."""

import json
import os
import shutil
import signal
import sys
import tempfile
import time
import unittest

from panel_case import PanelCase, axial, linear_transform, make_checkpoint, make_volume, np, slicer, vtk


class FaultTest(PanelCase):
    def startRunning(self, **environment):
        """A volume, the panel, and a computation that is well under way."""
        volume = make_volume()
        self.openPanel(**{"DOUBLE_SECONDS": "20", **environment})
        self.before = self.nodeIds()
        self.click(self.ui.applyButton)
        self.waitUntil(lambda: self.ui.progressBar.value > 0)
        return volume

    def assertReady(self):
        """The panel is as before the click."""
        self.assertFalse(self.widget.segmenting.isRunning)
        self.assertEqual(self.ui.applyButton.text, "Segment spine")
        self.assertTrue(self.ui.progressBar.isHidden())

    # --- bad input ---------------------------------------------------------------------------------------------------

    def test_unfit_volumes_disable_the_button_with_the_reason(self):
        self.openPanel()
        empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Empty")
        warped = make_volume("Warped")
        transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "Warp")
        transform.SetAndObserveTransformFromParent(vtk.vtkThinPlateSplineTransform())
        warped.SetAndObserveTransformNodeID(transform.GetID())
        for node, reason in ((empty, "no voxels"), (warped, "Harden the transform")):
            self.ui.inputVolumeSelector.setCurrentNode(node)
            self.assertFalse(self.ui.applyButton.enabled)
            self.assertIn(reason, self.ui.applyButton.toolTip)

    def test_colour_volumes_are_not_offered_and_refused_when_given(self):
        colour = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "Photo")
        slicer.util.updateVolumeFromArray(colour, np.zeros((2, 5, 5, 3), np.uint8))
        self.openPanel()
        self.assertEqual(self.ui.inputVolumeSelector.nodeCount(), 0)
        self.widget._parameterNode.inputVolume = colour
        self.panel.updateButtons()
        self.assertFalse(self.ui.applyButton.enabled)

    def test_a_stack_of_the_wrong_plane_is_refused(self):
        make_volume("Axial", size=(12, 50, 50), ijkToRas=axial())
        self.openPanel()
        self.panel.warmUp()
        self.assertFalse(self.ui.applyButton.enabled)
        self.assertIn("an axial stack; this model requires a sagittal stack", self.ui.applyButton.toolTip)

    def test_one_slice_goes_to_checkpoints_that_say_so(self):
        planes = {"modality": "MR", "planes": ["sagittal", "isotropic"]}
        make_checkpoint(self.folder, "volumes", preprocessing=planes)
        make_volume("Slice", size=(1, 60, 50))
        self.openPanel()
        self.panel.warmUp()
        self.assertTrue(self.ui.applyButton.enabled, self.ui.applyButton.toolTip)
        self.ui.modelComboBox.setCurrentIndex(self.ui.modelComboBox.findData("volumes"))
        self.assertIn("a single slice", self.ui.applyButton.toolTip)

    def test_oblique_volumes_under_a_transform_are_overlaid(self):
        from SpineSegAISlicer.scene import labelmaps, volumes

        turn = np.eye(4)
        turn[:2, :2] = [[0.96, -0.28], [0.28, 0.96]]
        volume = make_volume()
        volume.SetAndObserveTransformNodeID(linear_transform(turn).GetID())
        self.openPanel()
        self.run_to_the_end()
        import SimpleITK as sitk

        image = volumes.imageFromVolume(volume)
        back = labelmaps.labelsFromSegmentation(self.output(), volume)
        labels, voxels = sitk.GetArrayViewFromImage(back), sitk.GetArrayViewFromImage(image)
        np.testing.assert_array_equal(labels[:, :50] > 0, voxels[:, :50] > voxels.min())
        self.assertIs(self.output().GetParentTransformNode(), volume.GetParentTransformNode())

    # --- the worker --------------------------------------------------------------------------------------------------

    def test_a_killed_worker_is_a_message_and_the_next_click_works(self):
        self.startRunning()
        pid = self.widget.client.processId
        self.widget.client._environment["DOUBLE_SECONDS"] = "0.1"
        os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))
        self.waitUntilDone(10)
        self.assertEqual(len(self.dialogs), 1)
        self.assertIn("ended unexpectedly", self.dialogs[0])
        self.assertIn("short of memory", self.dialogs[0])
        self.assertEqual(self.nodeIds(), self.before)
        self.assertReady()
        self.run_to_the_end()
        self.assertEqual(len(self.segmentations()), 1)

    def test_cancel_acts_within_a_second_and_leaves_the_scene_as_it_was(self):
        self.startRunning()
        begun = time.monotonic()
        self.click(self.ui.applyButton)
        self.waitUntilDone(5)
        seconds = time.monotonic() - begun
        print(f"cancel, obedient worker: {seconds:.2f} s")
        self.assertLess(seconds, 1.0)
        self.assertEqual(self.nodeIds(), self.before)
        self.assertIn("Cancelled", self.ui.statusLabel.text)
        self.assertFalse(self.dialogs)
        self.assertReady()

    def test_a_worker_that_does_not_obey_is_killed(self):
        """It says that it is alive; so it is given the time that a large slice may take, but not for ever."""
        from SpineSegAISlicer.processes.worker_client import CANCEL_SECONDS

        self.assertKilled(CANCEL_SECONDS, DOUBLE_STUBBORN="1", DOUBLE_SECONDS="120")

    @unittest.skipUnless(hasattr(signal, "SIGSTOP"), "a process cannot be stopped on this system")
    def test_a_worker_that_says_nothing_any_more_is_killed_sooner(self):
        from SpineSegAISlicer.processes.worker_client import SILENT_SECONDS

        self.assertKilled(SILENT_SECONDS, stopped=True)

    def assertKilled(self, after, stopped=False, **environment):
        self.startRunning(**environment)
        pid = self.widget.client.processId
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        begun = time.monotonic()
        self.click(self.ui.applyButton)
        self.waitUntilDone(60)
        seconds = time.monotonic() - begun
        print(f"cancel, killed after {seconds:.2f} s")
        self.assertGreater(seconds, after - 0.5)
        self.assertLess(seconds, after + 3.0)
        self.assertEqual(self.nodeIds(), self.before)
        self.assertFalse(self.dialogs)
        self.waitUntil(lambda: not running(pid), 5, "the worker is still there")
        self.widget.client._environment.pop("DOUBLE_STUBBORN", None)
        self.widget.client._environment.update(DOUBLE_SECONDS="0.1")
        self.run_to_the_end()
        self.assertEqual(len(self.segmentations()), 1)

    def test_a_worker_that_was_ended_says_nothing_of_the_device(self):
        from SpineSegAISlicer.processes.failure import Failure

        make_volume()
        self.openPanel()
        asked = []
        self.patch(self.widget.client, "describeDevice", lambda _asked, onDone, onError: asked.append(onError))
        self.panel.warmUp()
        asked[0](Failure("WorkerError", "Another running job was stopped as well."))  # e.g. canceled while starting
        self.assertIsNone(self.panel.device.answer)
        self.assertTrue(self.ui.deviceLabel.isHidden())
        self.run_to_the_end()
        self.assertEqual(len(asked), 2)

    def test_a_worker_without_torch_says_so(self):
        folder = self.folder / "broken" / "torch"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("raise ImportError('DLL load failed', name='torch')")
        make_volume()
        self.worker = ("-c", f"import sys; sys.path.insert(0, {str(folder.parent)!r}); "
                       "from SpineSegAILib.worker.process import main; sys.exit(main())")  # fmt: skip
        self.openPanel()
        self.click(self.ui.applyButton)
        self.waitUntilDone(60)
        self.assertIn("torch cannot be loaded", self.dialogs[0])
        self.assertReady()

    def test_a_worker_that_cannot_start_says_so(self):
        make_volume()
        self.worker = ("-c", "raise SystemExit(3)")
        self.openPanel()
        self.click(self.ui.applyButton)
        self.waitUntilDone(20)
        self.assertIn("exit code 3", self.dialogs[0])

    def test_a_worker_of_another_version_is_refused(self):
        make_volume()
        ready = json.dumps({"event": "ready", "protocol": 999, "version": "9.9", "pid": 1})
        self.worker = ("-c", f"import sys; print({ready!r}, flush=True); sys.stdin.read()")
        self.openPanel()
        self.click(self.ui.applyButton)
        self.waitUntilDone(20)
        self.assertIn("version 9.9", self.dialogs[0])
        self.assertIn("Restart Slicer", self.dialogs[0])

    def test_a_worker_that_talks_nonsense_is_ended(self):
        make_volume()
        self.worker = ("-c", "import sys; print('hello', flush=True); sys.stdin.read()")
        self.openPanel()
        self.click(self.ui.applyButton)
        self.waitUntilDone(20)
        self.assertIn("incompatible versions", self.dialogs[0])

    def test_an_error_shows_message_and_remedy(self):
        make_volume()
        self.openPanel(DOUBLE_FAIL="DeviceError")
        self.click(self.ui.applyButton)
        self.waitUntilDone()
        self.assertEqual(self.dialogs, ["It went wrong on purpose.\n\nDo something else."])
        self.assertEqual(self.segmentations(), [])
        self.assertReady()

    def test_a_full_disk_is_a_message(self):
        from SpineSegAILib.worker import protocol as worker_protocol

        make_volume()
        self.openPanel()

        def full(image, path):
            raise OSError(28, "No space left on device")

        self.patch(worker_protocol, "save_image", full)
        self.click(self.ui.applyButton)
        self.assertIn("No space left", self.dialogs[0])
        self.assertReady()
        self.waitUntil(lambda: self.widget.client._jobs == {}, 60, "the job is still waited for")

    def test_measuring_with_a_full_disk_is_a_message(self):
        from SpineSegAILib.worker import protocol as worker_protocol

        make_volume()
        self.openPanel()
        self.run_to_the_end()

        def full(image, path):
            raise OSError(28, "No space left on device")

        self.patch(worker_protocol, "save_image", full)
        self.click(self.ui.measureButton)
        self.assertIn("No space left on device", self.dialogs[0])
        self.assertTrue(self.ui.measureButton.enabled)

    def test_no_folder_for_temporary_files_is_a_message(self):
        make_volume()
        self.openPanel()
        self.patch(tempfile, "tempdir", str(self.folder / "gone"))
        self.click(self.ui.applyButton)
        self.assertIn("No such file or directory", self.dialogs[0])
        self.assertReady()

    def test_temporary_files_that_were_cleaned_away_are_made_again(self):
        self.startRunning(DOUBLE_SECONDS="1")
        shutil.rmtree(self.widget.client._folder)
        self.waitUntilDone()
        self.assertEqual((self.dialogs, len(self.segmentations())), ([], 1))
        shutil.rmtree(self.widget.client._folder)
        self.click(self.ui.measureButton)
        self.waitUntil(lambda: slicer.util.getNodesByClass("vtkMRMLTableNode"), 60)
        self.assertEqual(self.dialogs, [])

    def failOnce(self, owner, name, error):
        """Let a function fail the first time."""
        function, errors = getattr(owner, name), [error]

        def failing(*arguments, **named):
            if errors:
                raise errors.pop()
            return function(*arguments, **named)

        self.patch(owner, name, failing)

    def segmentTwo(self):
        """Two volumes, of which the first one fails."""
        self.openPanel()
        self.widget.segmenting.start([make_volume("First"), make_volume("Second")])
        self.waitUntilDone()
        self.assertEqual([node.GetName() for node in self.segmentations()], ["Second spine"])
        self.assertReady()

    def test_an_answer_that_cannot_be_read_is_a_message_and_the_next_volume_is_segmented(self):
        from SpineSegAILib.worker import protocol as worker_protocol

        self.failOnce(worker_protocol, "load_image", ValueError("cannot reshape array"))
        self.segmentTwo()
        self.assertIn("cannot be read: cannot reshape array", self.ui.logText.plainText)

    def test_a_defect_is_a_message_and_the_next_volume_is_segmented(self):
        from SpineSegAISlicer.scene import results

        self.failOnce(results, "segmentationFromResult", RuntimeError("never thought of"))
        self.segmentTwo()
        for words in ("RuntimeError: never thought of", "Traceback"):
            self.assertIn(words, self.ui.logText.plainText)

    def test_the_worker_ends_with_the_panel(self):
        self.startRunning()
        pid = self.widget.client.processId
        folder = self.widget.client._folder
        self.widget.cleanup()
        self.widget = None
        self.waitUntil(lambda: not running(pid), 5, "the worker is still there")
        self.assertFalse(folder.exists())

    # --- files and nodes that vanish ---------------------------------------------------------------------------------

    def test_a_checkpoint_deleted_between_selection_and_click(self):
        make_volume()
        self.openPanel()
        self.assertTrue(self.ui.applyButton.enabled)
        for path in self.folder.glob("*.safetensors"):
            path.unlink()
        self.click(self.ui.applyButton)
        self.waitUntilDone(5)
        self.assertIn("was not found", self.dialogs[0])
        self.assertEqual(self.segmentations(), [])
        self.assertReady()

    def test_the_scene_closed_during_a_run(self):
        self.startRunning()
        slicer.mrmlScene.Clear(0)
        self.assertReady()
        time.sleep(1.2)
        slicer.app.processEvents()
        self.assertEqual(self.segmentations(), [])
        self.assertFalse(self.dialogs)
        self.widget.client._environment.update(DOUBLE_SECONDS="0.1")
        make_volume("After")
        self.widget._parameterNode.inputVolume = self.widget.logic.firstVolume()
        self.widget.client.stop()
        self.run_to_the_end()
        self.assertEqual(len(self.segmentations()), 1)

    def test_the_scene_closed_while_measuring(self):
        from SpineSegAISlicer.processes.failure import Failure
        from SpineSegAISlicer.scene import results

        def measure(volume):
            self.widget._parameterNode.inputVolume = volume
            self.widget._parameterNode.outputSegmentation = results.segmentationFromResult(result, volume)
            self.click(self.ui.measureButton)
            return self.output().GetID()

        first = make_volume("First")
        self.openPanel()
        self.run_to_the_end()
        result = results.resultFromSegmentation(self.output(), first)
        slicer.mrmlScene.Clear(0)
        nodeId = measure(make_volume("First"))
        slicer.mrmlScene.Clear(0)
        second = make_volume("Second")
        node = results.segmentationFromResult(result, second)
        self.assertEqual(node.GetID(), nodeId)
        self.assertFalse(self.ui.measureButton.enabled)
        self.waitUntil(lambda: self.widget.client._jobs == {}, 60, "the table was not measured")
        self.assertEqual(slicer.util.getNodesByClass("vtkMRMLTableNode"), [])
        self.assertFalse(self.ui.measureButton.enabled)
        measure(second)
        slicer.mrmlScene.Clear(0)
        self.widget.client._failAll(Failure("WorkerError", "It ended."))
        self.assertEqual(self.dialogs, [])

    def test_the_volume_removed_during_a_run(self):
        volume = self.startRunning()
        slicer.mrmlScene.RemoveNode(volume)
        self.waitUntilDone(3)
        self.assertIn("removed from the scene", self.ui.statusLabel.text)
        self.assertEqual(self.segmentations(), [])
        self.assertFalse(self.dialogs)

    def test_the_output_removed_during_a_run(self):
        make_volume()
        self.openPanel(DOUBLE_SECONDS="0.6")
        self.run_to_the_end()
        self.click(self.ui.applyButton)
        self.waitUntil(lambda: self.ui.progressBar.value > 0)
        slicer.mrmlScene.RemoveNode(self.output())
        self.waitUntilDone()
        self.assertEqual(len(self.segmentations()), 1)
        self.assertFalse(self.dialogs)

    def test_the_volume_changed_during_a_run(self):
        volume = self.startRunning(DOUBLE_SECONDS="0.6")
        slicer.util.updateVolumeFromArray(volume, np.ones((3, 4, 5), np.int16))
        self.waitUntilDone()
        self.assertIn("segment it again", self.dialogs[0])
        self.assertEqual(self.segmentations(), [])

    def test_two_clicks_in_a_row_start_one_run(self):
        from SpineSegAISlicer.panels import segment

        self.patch(segment, "DOUBLE_CLICK_SECONDS", 0.5)
        make_volume()
        self.openPanel(DOUBLE_SECONDS="0.8")
        self.click(self.ui.applyButton)
        self.click(self.ui.applyButton)
        self.assertTrue(self.widget.segmenting.isRunning)
        self.waitUntilDone()
        self.assertEqual(len(self.segmentations()), 1)

    def test_without_python_slicer_it_says_so(self):
        make_volume()
        self.openPanel()
        self.patch(shutil, "which", lambda name: None)
        self.click(self.ui.applyButton)
        self.assertIn("PythonSlicer", self.dialogs[0])
        self.assertReady()

    def test_declining_the_packages_changes_nothing(self):
        from SpineSegAISlicer.processes import dependencies

        make_volume()
        self.openPanel()

        def declined(_more=()):
            raise dependencies.NotInstalled("The packages were not installed, so nothing was done.")

        self.patch(dependencies, "ensure", declined)
        self.click(self.ui.applyButton)
        self.assertIn("not installed", self.dialogs[0])
        self.assertReady()


def running(pid):
    """True while a process is there and no zombie."""
    if sys.platform == "linux":
        try:
            return open(f"/proc/{pid}/stat", encoding="utf-8").read().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False
    import psutil

    return psutil.pid_exists(pid)


if __name__ == "__main__":
    unittest.main()
