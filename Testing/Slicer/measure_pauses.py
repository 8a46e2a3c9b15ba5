"""Measure how long the panel keeps the event loop waiting: opening, taking a result in, correcting, writing files.

In Slicer: ``Slicer --python-script Testing/Slicer/measure_pauses.py``, which empties the scene and stays open. In the
host: ``python Testing/Slicer/measure_pauses.py``. The volume is made up and the worker is the tests' double, so that
only what the panel itself does is measured. Two figures for each step: the longest pause by the clock, and the most
processor time of this process between two turns of the event loop, which other programs do not change.
"""

import sys
import tempfile
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from dicom_series import write_series
from panel_case import PanelCase, host, make_volume, qt, sagittal, slicer

SIZE = (39, 305, 305)
"""Slices, rows, columns of a usual lumbar MR."""

LIMIT_SECONDS = 0.2
"""No more than this by our own doing."""


class Heartbeat:
    """The longest pause of the event loop, by a timer that should fire every few milliseconds."""

    def __init__(self):
        self.clock = self.processor = 0.0  # seconds
        self._last = None
        self._timer = qt.QTimer()
        self._timer.setInterval(5)
        self._timer.connect("timeout()", self._beat)

    def _beat(self):
        now = time.perf_counter(), time.process_time()
        if self._last is not None:
            self.clock = max(self.clock, now[0] - self._last[0])
            self.processor = max(self.processor, now[1] - self._last[1])
        self._last = now

    def start(self):
        """Begin again; what is done before the next turn of the loop counts."""
        self.clock = self.processor = 0.0
        self._last = time.perf_counter(), time.process_time()
        self._timer.start()

    def stop(self):
        """End, with the pause that is under way."""
        self._beat()
        self._timer.stop()


class Pauses(PanelCase):
    """Goes the way of a user, step by step."""

    def runTest(self):
        """Measure, and print a table."""
        for name, (clock, processor) in self.measure().items():
            note = "" if processor <= LIMIT_SECONDS else f"  more than {LIMIT_SECONDS} s"
            print(f"{name:<24} {clock:6.2f} s by the clock, {processor:6.2f} s of processor time{note}", flush=True)

    def measure(self):
        """Step → the longest pause (seconds) by the clock, and in processor time."""
        self.pauses = {}
        slicer.mrmlScene.Clear(0)
        make_volume("Large", SIZE, sagittal((0.8, 0.8, 3.3), (-60.0, 120.0, 120.0)))
        self.step(
            "opening", lambda: self.openPanel(DOUBLE_SECONDS="0.3"), lambda: self.panel.device.answer is not None
        )  # warmed up
        self.step("segmenting", lambda: self.click(self.ui.applyButton), self.isIdle)
        self.step("segmenting again", lambda: self.click(self.ui.applyButton), self.isIdle)
        correct = self.widget.correctionPanel
        self.step("tab Correct", lambda: self.widget.tabs.show("correctTab"))
        self.step("selecting", lambda: correct.review.table.select([22]))
        self.step("shifting", lambda: self.click(correct.ui.shiftUpButton))
        self.step("taking back", lambda: self.click(correct.ui.correctUndoButton))
        self.step("click", self.clickOnL3, lambda: not correct.clicks.tool.isBusy)
        correct.review.table.select([22])
        self.step("box", lambda: self.click(correct.ui.boxButton))
        self.step("repair in the box", lambda: self.click(correct.ui.repairBoxButton), self.isIdle)
        self.step("level names", lambda: self.click(self.ui.levelNamesCheckBox))
        outputs, path = self.widget.resultPanel.outputs, str(self.folder / "report.html")
        self.step("report", lambda: outputs.saveReport(path), self.isWritten)
        series = write_series(self.widget.parameters.outputVolume, Path(tempfile.mkdtemp(dir=self.folder), "series"))
        self.widget.parameters.outputVolume.AddDefaultStorageNode()
        self.widget.parameters.outputVolume.GetStorageNode().SetFileName(str(series[0]))
        self.step("DICOM segmentation", lambda: outputs.saveDicomSeg(str(self.folder / "out.dcm")), self.isWritten)
        return self.pauses

    def clickOnL3(self):
        """Correct by a click at its edge, as the tool hears of it."""
        from SpineSegAISlicer.panels.clicking import Stroke
        from SpineSegAISlicer.scene import labelmaps

        correct = self.widget.correctionPanel
        correct.review.table.select([22])
        right, front, up = labelmaps.centreOf(correct.segmentationNode, 22)
        correct.clicks.tool.add(Stroke(((right, front, up + 14.0),), True))

    def isIdle(self):
        return not self.widget.segmenting.isRunning

    def isWritten(self):
        return not self.widget.measuring.isBusy

    def step(self, name, act, done=lambda: True):
        """Do something, and wait until it has happened and all that follows from it."""
        heartbeat = Heartbeat()
        heartbeat.start()
        act()
        self.waitUntil(done, 120)
        host.wait_until(lambda: False, 0.2)
        heartbeat.stop()
        self.assertEqual(self.dialogs, [])
        self.pauses[name] = heartbeat.clock, heartbeat.processor


if __name__ == "__main__":
    unittest.TextTestRunner().run(Pauses())
