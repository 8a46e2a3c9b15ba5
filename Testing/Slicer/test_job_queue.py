"""The queue of volumes alone: no widget, no node, no process. Who computes and who watches are handed in."""

from types import SimpleNamespace

import pytest
from SpineSegAISlicer.processes import job_queue
from SpineSegAISlicer.processes.failure import Failure
from SpineSegAISlicer.processes.job_queue import JobQueue, Pace
from SpineSegAISlicer.processes.worker_client import Job

from SpineSegAILib.errors import HintError, ImageError


class Client:
    """Answers when the test says so."""

    def __init__(self):
        self.asked, self.jobs, self.cancelled = [], [], []

    def segment(self, request, onDone, onError, onProgress):
        self.asked.append(request)
        self.jobs.append(Job(len(self.jobs), None, onDone, onError, onProgress))
        return self.jobs[-1]

    def cancel(self, job):
        job.cancelledAt = 0.0
        self.cancelled.append(job)

    def answer(self, warnings=()):
        self.jobs[-1].onDone(SimpleNamespace(warnings=list(warnings)))


class Task:
    def __init__(self, key, reasons=(), error=None, placing=None):
        self.key, self.there, self.placed = key, True, []
        self._reasons, self._error, self._placing = list(reasons), error, placing

    def isThere(self):
        return self.there

    def reasonsAgainst(self):
        return self._reasons

    def request(self):
        if self._error is not None:
            raise self._error
        return f"request of {self.key}"

    def place(self, result):
        if self._placing is not None:
            raise self._placing
        self.placed.append(result)


class Watcher:
    """Writes down what it is told."""

    def __init__(self):
        self.heard = []

    def onBegin(self, task):
        self.heard.append(("begin", task.key))

    def onProgress(self, fraction, message):
        self.heard.append(("progress", fraction, message))

    def onPlaced(self, task, result):
        self.heard.append(("placed", task.key))

    def onCancelled(self):
        self.heard.append(("cancelled",))

    def onFailed(self, failure, quiet):
        self.heard.append(("failed", failure.kind, failure.message, quiet))

    def onRemoved(self):
        self.heard.append(("removed",))

    def onIdle(self):
        self.heard.append(("idle",))


@pytest.fixture
def queue():
    return JobQueue(Client(), Watcher())


def heard(queue):
    said, queue.watcher.heard = queue.watcher.heard, []
    return said


def test_volumes_are_segmented_one_after_the_other(queue):
    tasks = [Task("a"), Task("b")]
    queue.start(tasks)
    assert queue.isRunning and queue.states == {"a": "running", "b": "waiting"}
    assert queue.client.asked == ["request of a"]
    queue.client.jobs[0].onProgress(0.5, "half")
    queue.client.answer()
    assert queue.states == {"a": "done", "b": "running"} and len(tasks[0].placed) == 1
    queue.client.answer(["check the levels"])
    assert not queue.isRunning and queue.states["b"] == "done, with warnings"
    assert heard(queue) == [
        ("begin", "a"), ("progress", 0.5, "half"), ("placed", "a"), ("begin", "b"), ("placed", "b"), ("idle",),
    ]  # fmt: skip


def test_what_cannot_be_segmented_is_passed_over_and_only_the_last_reason_is_a_dialog(queue):
    queue.start([Task("a", ["It is axial.", "It is empty."]), Task("b"), Task("c", ["It is axial."])])
    assert queue.states["a"] == "not segmented: It is axial. It is empty." and queue.states["b"] == "running"
    queue.client.answer()
    assert not queue.isRunning
    assert [entry for entry in heard(queue) if entry[0] == "failed"] == [
        ("failed", "ImageError", "It is axial. It is empty.", True), ("failed", "ImageError", "It is axial.", False),
    ]  # fmt: skip


def test_what_cannot_be_asked_for_does_not_hold_up_the_others(queue):
    gone = HintError("Its keypoints are gone.", "Choose others.")
    queue.start([Task("a", error=gone), Task("b"), Task("c", error=gone)])
    assert queue.states == {"a": "Its keypoints are gone.", "b": "running", "c": "waiting"}
    assert ("failed", "HintError", "Its keypoints are gone.", True) in heard(queue)  # a dialog would hold them up
    queue.client.answer()
    assert ("failed", "HintError", "Its keypoints are gone.", False) in heard(queue)


def test_a_failure_is_told_and_the_next_one_begins(queue):
    queue.start([Task("a"), Task("b")])
    queue.client.jobs[0].onError(Failure("DeviceError", "Out of memory.", "Use the CPU."))
    assert queue.states == {"a": "Out of memory.", "b": "running"}
    assert ("failed", "DeviceError", "Out of memory.", True) in heard(queue)


@pytest.mark.parametrize("error", [ImageError("It was changed."), RuntimeError("never thought of")])
def test_an_answer_that_cannot_be_placed_is_told_even_if_that_is_a_bug(queue, error):
    queue.start([Task("a", placing=error), Task("b")])
    queue.client.answer()
    assert queue.states["b"] == "running" and str(error) in queue.states["a"]
    kind = "ImageError" if isinstance(error, ImageError) else "InternalError"
    assert any(entry[:2] == ("failed", kind) for entry in heard(queue))


def test_a_bug_comes_with_its_traceback():
    try:
        raise RuntimeError("never thought of")
    except RuntimeError as error:
        failure = Failure.of(error)
    assert failure.message == "RuntimeError: never thought of" and "Traceback" in failure.log
    assert "bug in SpineSegAI" in failure.remedy


def test_cancel_stops_what_runs_and_what_waits(queue):
    queue.start([Task("a"), Task("b")])
    queue.cancel()
    assert queue.isCancelling and queue.isRunning and queue.states == {"a": "running", "b": "cancelled"}
    queue.client.jobs[0].onError(Failure.cancelled())
    assert not queue.isRunning and queue.states["a"] == "cancelled"
    assert heard(queue)[1:] == [("cancelled",), ("idle",)]


def test_cancelled_quietly_nothing_is_told_and_a_late_answer_is_dropped(queue):
    task = Task("a")
    queue.start([task])
    queue.cancel(quietly=True)
    assert not queue.isRunning and queue.client.cancelled == [queue.client.jobs[0]]
    queue.client.answer()
    queue.client.jobs[0].onError(Failure.cancelled())
    assert task.placed == [] and heard(queue) == [("begin", "a"), ("idle",)]


def test_a_volume_removed_while_it_runs_is_dropped_and_the_next_one_begins(queue):
    first, second = Task("a"), Task("b")
    queue.start([first, second])
    queue.dropWhatIsGone()  # something else was removed
    assert queue.states["a"] == "running"
    first.there = False
    queue.dropWhatIsGone()
    assert queue.states == {"b": "running"} and queue.client.cancelled == [queue.client.jobs[0]]
    second.there = False
    queue.client.answer()  # it was removed, and nobody said so
    assert second.placed == [] and not queue.isRunning
    assert [entry for entry in heard(queue) if entry == ("removed",)] == [("removed",)] * 2


def test_a_volume_removed_while_it_waits_is_passed_over(queue):
    tasks = [Task("a"), Task("b"), Task("c")]
    queue.start(tasks)
    tasks[1].there = False
    queue.client.answer()
    assert queue.client.asked == ["request of a", "request of c"]


def test_every_change_is_told(queue):
    changes = []
    queue.changedCallbacks.append(lambda: changes.append(queue.isRunning))
    queue.start([Task("a")])
    queue.cancel()
    queue.client.jobs[0].onError(Failure.cancelled())
    assert changes == [True, True, False]


def test_what_is_left_is_foretold_once_enough_is_done(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(job_queue, "time", SimpleNamespace(monotonic=lambda: now[0]))
    pace = Pace()
    assert pace.left() is None
    pace.noteProgress(0.1)
    now[0] = 101.0
    pace.noteProgress(0.3)
    assert pace.left() is None  # too early
    now[0] = 104.0
    pace.noteProgress(0.5)
    assert pace.left() == pytest.approx(5.0) and pace.elapsed() == pytest.approx(4.0)
    now[0] = 106.0
    assert pace.left() == pytest.approx(3.0)  # as the clock runs
    pace.beginJob()
    assert pace.left() is None and pace.elapsed() == pytest.approx(6.0)
