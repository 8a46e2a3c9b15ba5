"""What the issue of the panel demands of its speed, measured; the numbers are printed (pytest -s)."""

import gc
import os
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

import measure_pauses
from measure_pauses import LIMIT_SECONDS, SIZE, Heartbeat
from pace import slowness
from panel_case import PanelCase, host, make_volume, np, sagittal

OPENING = """
import sys, time
sys.path.insert(0, {folder!r})
import host
host.start()
import slicer
from panel_case import make_volume, open_widget
make_volume()
started = time.process_time()
from SpineSegAI import SpineSegAIWidget
widget = open_widget(SpineSegAIWidget)
seconds = time.process_time() - started
print(seconds, *sorted(set(sys.modules) & {{"torch", "monai", "scipy", "pydantic", "SimpleITK"}}))
widget.cleanup()
"""


class SpeedTest(PanelCase):
    def large(self):
        return make_volume("Large", SIZE, sagittal((0.8, 0.8, 3.3), (-60.0, 120.0, 120.0)))

    def test_the_event_loop_is_not_blocked_while_the_worker_computes(self):
        self.large()
        self.openPanel(DOUBLE_SECONDS="1.5")
        self.panel.warmUp()
        self.waitUntil(lambda: self.panel.device.answer is not None, 60)
        heartbeat = Heartbeat()
        self.click(self.ui.applyButton)
        heartbeat.start()
        self.waitUntil(lambda: self.ui.progressBar.value > 90)
        heartbeat.stop()
        self.waitUntilDone()
        print(f"event loop, longest pause while the worker computes: {1000 * heartbeat.processor:.0f} ms")
        self.assertLess(heartbeat.processor, 0.1 * slowness())

    def test_handing_over_and_taking_in_take_less_than_a_second(self):
        """Processor time, the best of three: other programs are none of our doing. Nothing here waits."""
        import SimpleITK as sitk
        from SpineSegAISlicer.scene import results, volumes

        from SpineSegAILib.anatomy import SCHEMES
        from SpineSegAILib.results import Segmentation
        from SpineSegAILib.worker.protocol import ResultMessage, load_image, save_image

        volume = self.large()
        started = time.process_time()
        image = load_image(save_image(volumes.imageFromVolume(volume), self.folder / "image.npy"))
        handed = time.process_time() - started
        ids = SCHEMES["lumbar-mr"].ids[:20]
        labels = np.zeros(SIZE, np.int16)
        for structure, rows in zip(ids, np.array_split(np.arange(20, 285), len(ids)), strict=True):
            labels[5:34, rows, 80:220] = structure
        made = sitk.GetImageFromArray(labels)
        made.CopyInformation(image)
        message = ResultMessage.of(Segmentation(labels=made, scheme=SCHEMES["lumbar-mr"]), self.folder, "result")
        best = {"reading": 9.0, "20 segments": 9.0, "update": 9.0}
        for _ in range(3):
            started = time.process_time()
            result = message.segmentation()
            best["reading"] = min(best["reading"], time.process_time() - started)
            started = time.process_time()
            node = results.segmentationFromResult(result, volume)
            best["20 segments"] = min(best["20 segments"], time.process_time() - started)
            self.assertEqual(node.GetSegmentation().GetNumberOfSegments(), 20)
            started = time.process_time()
            results.segmentationFromResult(result, volume, node)
            best["update"] = min(best["update"], time.process_time() - started)
        print(f"39×305×305: handing over {handed:.2f} s,", ", ".join(f"{k} {v:.2f} s" for k, v in best.items()))
        self.assertLess(handed + best["reading"] + max(best["20 segments"], best["update"]), 1.0 * slowness())

    def test_a_second_click_costs_little_beyond_the_network(self):
        """Processor time of the panel and the worker together: other programs are none of our doing."""
        import psutil

        def used():
            worker = psutil.Process(self.widget.client.processId).cpu_times()
            return time.process_time() + worker.user + worker.system

        self.large()
        self.openPanel(DOUBLE_SECONDS="0.3")  # asleep, not at work
        self.run_to_the_end()
        seconds = []
        for _ in range(2):
            started = used()
            self.run_to_the_end()
            seconds.append(used() - started)
        print(f"second click, beyond the network: {min(seconds):.2f} s")
        self.assertLess(min(seconds), 1.5 * slowness())
        self.assertEqual(self.ui.logText.plainText.count("LOADED"), 1)


class PausesTest(measure_pauses.Pauses):
    """Processor time, the best of a few tries: other programs are none of our doing."""

    def runTest(self):
        gc.collect()
        gc.freeze()  # nor is what earlier tests left behind: each search for garbage goes through all of it
        self.addCleanup(gc.unfreeze)
        best: dict[str, float] = {}
        limit = LIMIT_SECONDS * slowness()
        for _ in range(4):
            for name, (_clock, processor) in self.measure().items():
                best[name] = min(best.get(name, processor), processor)
            if max(best.values()) <= limit:
                break
            limit = max(limit, LIMIT_SECONDS * slowness())
            self.widget.cleanup()
            host.release(self.widget)
        print("event loop, longest pauses:", ", ".join(f"{name} {1000 * s:.0f} ms" for name, s in best.items()))
        self.assertEqual({name: s for name, s in best.items() if s > limit}, {})


class OpeningTest(unittest.TestCase):
    def test_opening_is_quick_and_imports_nothing_heavy(self):
        folder = str(Path(__file__).parent)
        best, loaded = 9.0, []
        compiled = tempfile.TemporaryDirectory()
        self.addCleanup(compiled.cleanup)
        # Compiled once and kept, as Slicer's Python does, whatever the environment of the tests says.
        env = {**os.environ, "PYTHONPYCACHEPREFIX": compiled.name}
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        limit = 0.3 * slowness()
        for _ in range(6):  # the first one reads and compiles files
            command = [sys.executable, "-c", OPENING.format(folder=folder)]
            done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True, env=env)
            seconds, *loaded = done.stdout.split()
            best = min(best, float(seconds))
            if best < limit:
                break
            limit = max(limit, 0.3 * slowness())
        print(f"opening the module: {best:.2f} s of processor time")
        self.assertEqual(loaded, [])
        self.assertLess(best, limit)


if __name__ == "__main__":
    unittest.main()
