"""The panel's end of the worker: starts the process, talks to it without blocking, cancels, restarts.

Nothing here computes. Requests are lines into a process, events are lines out of it, and callbacks run on the main
thread from Qt's event loop, so Slicer stays usable throughout.
"""

import collections
import contextlib
import shutil
import tempfile
import time
import traceback
from pathlib import Path

import qt
from slicer.i18n import tr as _

from SpineSegAILib import __version__
from SpineSegAILib.errors import OutputError

from . import requests
from .failure import Failure
from .python import PythonProcess

SILENT_SECONDS = 2.0
"""A worker that was asked to stop, and has said nothing for so long, hangs: it is killed."""

CANCEL_SECONDS = 10.0
"""One that keeps talking, and has not stopped after this time, is killed as well."""

STOP_MILLISECONDS = 300
"""How long the worker may take to end when its input closes, as it does at once unless it computes."""

LOG_LINES = 500


class Job:
    """One request under way.

    :param read: makes the answer, a tuple, of the worker's event.
    :param onDone: called with the answer.
    :param onError: called with a `Failure`.
    :param onProgress: called with a fraction (0…1) and a sentence.
    """

    def __init__(self, number, read, onDone, onError, onProgress=None):
        self.number = number
        self.read = read
        self.onDone = onDone
        self.onError = onError
        self.onProgress = onProgress
        self.cancelledAt = None  # when it was asked to stop, on the clock of `time.monotonic`

    @property
    def cancelled(self):
        """Whether it was asked to stop."""
        return self.cancelledAt is not None

    def silence(self):
        """Nobody wants to hear of it any more."""
        self.onDone = self.onError = lambda *_answer: None
        self.onProgress = None


class WorkerClient:
    """Owns one worker process, started when first needed.

    :param arguments: what to run in Slicer's Python instead of ``-m SpineSegAILib.worker`` (tests).
    :param environment: more environment variables (tests).
    """

    def __init__(self, arguments=("-m", "SpineSegAILib.worker"), environment=None):
        self.logCallbacks = []
        self._arguments = list(arguments)
        self._environment = dict(environment or {})
        self._process = None
        self._ready = None
        self._folder = None
        self._log = collections.deque(maxlen=LOG_LINES)
        self._jobs = {}
        self._waiting = []  # lines that wait for the handshake
        self._number = 0
        self._heard = 0.0  # when the worker said anything last

    # --- requests ----------------------------------------------------------------------------------------------------

    def segment(self, request, onDone, onError, onProgress):
        """Segment what a `requests.SegmentationRequest` says; `onDone` gets a `SpineSegAILib.results.Segmentation`.

        :returns: the `Job`.
        :raises OutputError: the voxels cannot be handed over.
        """
        return self._ask(
            requests.segment(request), lambda event: (event.result.segmentation(),), onDone, onError, onProgress
        )

    def measure(self, result, onDone, onError):
        """Measure a `Segmentation`; `onDone` gets columns (`results.column.Column`) and rows.

        :returns: the `Job`.
        :raises OutputError: the voxels cannot be handed over.
        """
        return self._ask(requests.measure(result), lambda event: (event.columns, event.rows), onDone, onError)

    def report(self, onDone, onError, **about):
        """Write a report; `onDone` gets its path.

        :param about: see `requests.report`.
        :returns: the `Job`.
        :raises OutputError: the voxels cannot be handed over.
        """
        return self._ask(requests.report(**about), lambda event: (event.path,), onDone, onError)

    def dicomSeg(self, onDone, onError, **about):
        """Write a DICOM object; `onDone` gets its path and its UID.

        :param about: see `requests.dicomSeg`.
        :returns: the `Job`.
        :raises OutputError: the voxels cannot be handed over.
        """
        return self._ask(requests.dicomSeg(**about), lambda event: (event.path, event.uid), onDone, onError)

    def refine(self, onDone, onError, **about):
        """Correct a label image by clicks; `onDone` gets a `requests.Refined`.

        :param about: see `requests.refine`.
        :returns: the `Job`.
        :raises OutputError: the voxels cannot be handed over.
        """
        return self._ask(requests.refine(**about), lambda event: (requests.Refined.of(event),), onDone, onError)

    def describeDevice(self, device, onDone, onError):
        """Ask what a device is; `onDone` gets its id (``"cuda:0"``, ``"cpu"``) and its name. Warms the worker up."""
        from SpineSegAILib.worker.protocol import DeviceRequest

        self._ensureStarted()
        job = self._newJob(lambda event: (event.device, event.name), onDone, onError)
        self._send(DeviceRequest(job=job.number, device=device))
        return job

    def cancel(self, job):
        """Ask a job to stop, which it does between two layers of its network; the worker stays warm.

        One that hangs is killed, and started again by the next request.
        """
        from SpineSegAILib.worker.protocol import CancelRequest

        if not self.isAtWorkOn(job) or job.cancelled:
            return
        job.cancelledAt = time.monotonic()
        self._send(CancelRequest(job=job.number))
        self._watch(job)

    def isAtWorkOn(self, job):
        """Whether a job's answer is still to come."""
        return job is not None and self._jobs.get(job.number) is job

    def stop(self):
        """End the worker; jobs under way are dropped without a callback."""
        self._jobs.clear()
        self._waiting.clear()
        if self._process is not None:
            self._process.stop(STOP_MILLISECONDS)
        self._forgetProcess()

    @property
    def isRunning(self):
        """True while there is a worker process."""
        return self._process is not None

    @property
    def processId(self):
        """Process id of the worker once it has said hello, else None."""
        return self._ready.pid if self._ready is not None else None

    def logTail(self, lines=30):
        """The last lines that the worker logged."""
        return "\n".join(list(self._log)[-lines:])

    # --- process -----------------------------------------------------------------------------------------------------

    def _ensureStarted(self):
        if self._process is not None:
            return
        process = PythonProcess(self._onLine, self._addLog, self._onEnded)
        with _writing():
            folder = Path(tempfile.mkdtemp(prefix="SpineSegAI-"))
        try:
            process.start([*self._arguments, "--folder", str(folder)], self._environment)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._process, self._folder = process, folder
        self._addLog(_("Starting the segmentation process."))

    def _ask(self, message, read, onDone, onError, onProgress=None):
        """Hand voxels and a request over.

        :param message: function of the job's number, and the folder for its voxels, that gives the request.
        :param read: makes the answer, a tuple, of the worker's event.
        """
        self._ensureStarted()
        job = self._newJob(read, onDone, onError, onProgress)
        with self._handingOver(job) as folder:
            request = message(job.number, folder)
        self._send(request)
        return job

    def _newJob(self, read, onDone, onError, onProgress=None):
        self._number += 1
        job = self._jobs[self._number] = Job(self._number, read, onDone, onError, onProgress)
        return job

    def _send(self, message):
        line = message.model_dump_json().encode() + b"\n"
        if self._ready is None:
            self._waiting.append(line)
        elif self._process is not None:
            self._process.write(line)

    def _addLog(self, line):
        self._log.append(line)
        for callback in self.logCallbacks:
            callback(line)

    @contextlib.contextmanager
    def _handingOver(self, job):
        """The folder for a job's voxels; the job is forgotten if they cannot be written."""
        folder = self._folder / f"job{job.number}"
        try:
            with _writing():
                # The folder for all jobs may be gone: systems clean up what is temporary.
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                yield folder
        except BaseException:
            del self._jobs[job.number]
            self._removeFiles(job)
            raise

    def _removeFiles(self, job):
        if self._folder is not None:
            shutil.rmtree(self._folder / f"job{job.number}", ignore_errors=True)

    def _watch(self, job):
        """Look at a job that was asked to stop, until it has, or has to be killed."""
        if not self.isAtWorkOn(job):
            return
        until = min(max(job.cancelledAt, self._heard) + SILENT_SECONDS, job.cancelledAt + CANCEL_SECONDS)
        left = until - time.monotonic()
        if left > 0:
            qt.QTimer.singleShot(int(1000 * left) + 1, lambda: self._watch(job))
            return
        self._addLog(_("The segmentation process did not answer and was ended."))
        # Do not wait for the operating system: the reader does not.
        self._kill()
        self._failAll(Failure("WorkerError", _("Another running job was stopped as well."), log=self.logTail()))

    def _kill(self):
        self._process.kill()
        self._forgetProcess()

    def _forgetProcess(self):
        process, self._process = self._process, None
        self._ready = None
        if process is not None:
            process.forget()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _onEnded(self, exitCode):
        self._forgetProcess()
        if exitCode is None:
            message = _("The segmentation process could not be started.")
            remedy = _("Reinstall the extension, or look into the log.")
        else:
            self._addLog(_("The segmentation process ended (exit code {code}).").format(code=exitCode))
            message = _("The segmentation process ended unexpectedly (exit code {code}).").format(code=exitCode)
            remedy = _(
                "Try again. If it happens again, the computer may be short of memory: close other applications,"
                " or choose “CPU”."
            )
        self._failAll(Failure("WorkerError", message, remedy, self.logTail()))

    def _failAll(self, failure):
        jobs, self._jobs = self._jobs, {}
        self._waiting.clear()
        for job in jobs.values():
            job.onError(Failure.cancelled() if job.cancelled else failure)

    # --- events ------------------------------------------------------------------------------------------------------

    def _onLine(self, line):
        from SpineSegAILib.worker.protocol import EVENT

        self._heard = time.monotonic()
        if not line.strip():
            return
        try:
            event = EVENT.validate_json(line)
        except ValueError as error:
            self._addLog(f"Unexpected output of the segmentation process: {line[:200]!r} ({error})")
            self._refuse(_("The panel and the segmentation process are incompatible versions."))
            return
        if event.event == "ready":
            self._onReady(event)
        elif event.event == "error" and event.job is None:
            self._addLog(event.message)
        elif event.job in self._jobs:  # else dropped meanwhile
            self._onAnswer(self._jobs[event.job], event)

    def _onReady(self, event):
        from SpineSegAILib.worker.protocol import PROTOCOL

        if (event.protocol, event.version) != (PROTOCOL, __version__):
            self._refuse(
                _("The segmentation process is version {worker}, the panel is version {panel}.").format(
                    worker=event.version, panel=__version__
                ),
                _("Restart Slicer, so that both use the version that is installed now."),
            )
            return
        self._ready = event
        waiting, self._waiting = self._waiting, []
        for pending in waiting:
            self._process.write(pending)

    def _refuse(self, message, remedy=""):
        """A worker that cannot be talked to is ended."""
        log = self.logTail()
        self._kill()
        self._failAll(Failure("ProtocolError", message, remedy, log))

    def _onAnswer(self, job, event):
        if event.event == "progress":
            if job.onProgress is not None and not job.cancelled:
                job.onProgress(event.fraction, event.message)
            return
        del self._jobs[job.number]
        try:
            if job.cancelled:
                job.onError(Failure.cancelled())
            elif event.event == "error":
                job.onError(Failure(event.kind, event.message, event.remedy, event.traceback or self.logTail()))
            else:
                self._deliver(job, event)
        finally:
            self._removeFiles(job)

    @staticmethod
    def _deliver(job, event):
        try:
            answer = job.read(event)
        except Exception as error:  # whatever is wrong with its files, the job is over
            job.onError(
                Failure(
                    "InternalError",
                    _("The answer of the segmentation process cannot be read: {error}").format(error=error),
                    _("Try again; see that the disk that holds temporary files is not full."),
                    traceback.format_exc(),
                )
            )
            return
        job.onDone(*answer)


@contextlib.contextmanager
def _writing():
    """What the system says against writing files, as an error that the reader can act on."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            _("The image could not be passed to the segmentation process: {error}").format(error=error),
            _("Free some space on the disk that holds temporary files."),
        ) from error
