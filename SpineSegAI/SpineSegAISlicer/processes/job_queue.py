"""Volumes that are segmented one after the other: who is next, who runs, what became of each, Cancel.

No widget and no node is known here. What is asked for a volume and where its answer goes is the task's matter; who
computes is a client; to whom is reported is a watcher. All three are handed in.
"""

import time
from typing import Any, Protocol

from slicer.i18n import tr as _

from SpineSegAILib.errors import SpineSegAIError

from .failure import Failure

PROGRESS_SECONDS, PROGRESS_SHARE = 2.0, 0.1
"""How much of a job must be done before the rest of its time is foretold: its first steps are slower."""


class Client(Protocol):
    """Who computes: `WorkerClient`, or a stand-in. Callbacks come later, from the event loop."""

    def segment(self, request: Any, onDone: Any, onError: Any, onProgress: Any) -> Any:
        """Begin, and return a job; it can be `silence`d."""

    def cancel(self, job: Any) -> None:
        """Ask a job to stop; its `onError` gets a `Failure` that says so."""


class Task(Protocol):
    """One volume to segment: `panels.segmenting.SegmentTask`.

    :param key: of the volume; what became of it is kept under this.
    """

    key: str

    def isThere(self) -> bool:
        """Whether what it is about is still in the scene: the volume, and what is to be changed."""

    def reasonsAgainst(self) -> list[str]:
        """Sentences why it cannot be segmented; empty if it can."""

    def request(self) -> Any:
        """What the client is asked. May raise a `SpineSegAIError`."""

    def place(self, result: Any) -> None:
        """Put the answer into the scene. May raise a `SpineSegAIError`."""


class Watcher(Protocol):
    """To whom is reported: the panel."""

    def onBegin(self, task: Task) -> None:
        """A task is about to begin."""

    def onProgress(self, fraction: float, message: str) -> None:
        """The running one has got on."""

    def onPlaced(self, task: Task, result: Any) -> None:
        """Its answer is in the scene."""

    def onCancelled(self) -> None:
        """It was stopped, as the reader wanted."""

    def onFailed(self, failure: Failure, quiet: bool) -> None:
        """It has no result. :param quiet: others wait, who are not to be held up by a dialog."""

    def onRemoved(self) -> None:
        """What it was about was removed from the scene."""

    def onIdle(self) -> None:
        """Nothing runs and nothing waits any more."""


class JobQueue:
    """See above. The panels share one.

    :param client: `Client`.
    :param watcher: `Watcher`.
    """

    def __init__(self, client, watcher):
        self.client = client
        self.watcher = watcher
        self.changedCallbacks = []  # called when something began, ended, or is being canceled
        self.states = {}  # key → what became of it, in words
        self.task = None  # the running one
        self.pace = Pace()
        self._job = None
        self._waiting = []

    @property
    def isRunning(self):
        """True while a volume is being segmented or waits for it."""
        return self.task is not None or bool(self._waiting)

    @property
    def isCancelling(self):
        """True while the running job has been asked to stop."""
        return self._job is not None and self._job.cancelled

    def start(self, tasks):
        """Segment volumes one after the other; not while others are."""
        self.pace = Pace()
        self._waiting = list(tasks)
        for task in self._waiting:
            self.states[task.key] = _("waiting")
        self._next()

    def cancel(self, quietly=False):
        """Stop everything that runs or waits; the scene stays as it is.

        :param quietly: without a word, since the scene goes away.
        """
        for task in self._waiting:
            self.states[task.key] = _("cancelled")
        self._waiting.clear()
        if self.task is None:
            return
        if quietly:
            self._abandon()
            self._next()
        else:
            self.client.cancel(self._job)
            self._changed()

    def dropWhatIsGone(self):
        """Something was removed from the scene: the job that it was for has no use any more."""
        if self.task is not None and not self.task.isThere():
            self._removed(self._abandon())

    # --- one after the other -----------------------------------------------------------------------------------------

    def _next(self):
        while self._waiting and self.task is None:
            task = self._waiting.pop(0)
            if task.isThere():
                self._begin(task)
        if self.task is None:
            self.watcher.onIdle()
        self._changed()

    def _begin(self, task):
        reasons = task.reasonsAgainst()
        if reasons:
            self.states[task.key] = _("not segmented: {reasons}").format(reasons=" ".join(reasons))
            self.watcher.onFailed(Failure("ImageError", " ".join(reasons)), quiet=bool(self._waiting))
            return
        self.watcher.onBegin(task)
        self.pace.beginJob()
        try:
            self._job = self.client.segment(
                task.request(),
                onDone=lambda result: self._onResult(task, result),
                onError=lambda failure: self._onFailure(task, failure),
                onProgress=self._onProgress,
            )
        except SpineSegAIError as error:
            self.states[task.key] = error.message
            self.watcher.onFailed(Failure.of(error), quiet=bool(self._waiting))
            return
        self.task = task
        self.states[task.key] = _("running")

    def _abandon(self):
        task, job = self.task, self._job
        self.task = self._job = None
        job.silence()
        self.client.cancel(job)
        return task

    def _changed(self):
        for callback in self.changedCallbacks:
            callback()

    # --- what the client says ----------------------------------------------------------------------------------------

    def _onProgress(self, fraction, message):
        self.pace.noteProgress(fraction)
        self.watcher.onProgress(fraction, message)

    def _onResult(self, task, result):
        self.task = self._job = None
        if not task.isThere():
            self._removed(task)
            return
        try:
            task.place(result)
        except Exception as error:  # even a bug: those that wait go on all the same
            self._onFailure(task, Failure.of(error))
            return
        self.states[task.key] = _("done") + (_(", with warnings") if result.warnings else "")
        self.watcher.onPlaced(task, result)
        self._next()

    def _onFailure(self, task, failure):
        self.task = self._job = None
        if failure.isCancelled:
            self.states[task.key] = _("cancelled")
            self.watcher.onCancelled()
        else:
            self.states[task.key] = failure.message
            self.watcher.onFailed(failure, quiet=bool(self._waiting))
        self._next()

    def _removed(self, task):
        self.states.pop(task.key, None)
        self.watcher.onRemoved()
        self._next()


class Pace:
    """How long things take, and how much is left if they continue as they went."""

    def __init__(self):
        self._started = time.monotonic()
        self.beginJob()

    def beginJob(self):
        """Another job begins; the clock runs on."""
        self._first = self._last = None  # (time, fraction)

    def noteProgress(self, fraction):
        """The job has got on."""
        if fraction > 0:
            self._last = (time.monotonic(), fraction)
            self._first = self._first or self._last

    def elapsed(self):
        """Seconds since the first one began."""
        return time.monotonic() - self._started

    def left(self):
        """Seconds that are left of the job; None while too little is done to say."""
        if self._first is None:
            return None
        (begun, first), (now, fraction) = self._first, self._last
        if now - begun < PROGRESS_SECONDS or fraction - first < PROGRESS_SHARE:
            return None
        return max(0.0, now + (now - begun) * (1 - fraction) / (fraction - first) - time.monotonic())
