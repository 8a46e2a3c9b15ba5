"""The panel's end of the worker: starts the process, talks to it without blocking, cancels, restarts.

Nothing here computes. Requests are lines into a `QProcess`, events are lines out of it, and callbacks run on the main
thread from Qt's event loop, so Slicer stays usable throughout.
"""

import collections
import contextlib
import logging
import os
import shutil
import tempfile
import traceback
from pathlib import Path

import qt
from slicer.i18n import tr as _

from SpineSegAILib import __version__

CANCEL_SECONDS = 0.7
"""How long the worker may take to stop by itself; then it is killed, so that Cancel acts within a second."""

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
        self.cancelled = False


class Failure:
    """Why a job has no result: kind (the error's class), message, remedy, and the end of the log."""

    def __init__(self, kind, message, remedy="", log=""):
        self.kind = kind
        self.message = message
        self.remedy = remedy
        self.log = log

    @property
    def isCancelled(self):
        return self.kind == "Cancelled"


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
        self._output = b""
        self._log = collections.deque(maxlen=LOG_LINES)
        self._jobs = {}
        self._waiting = []  # lines that wait for the handshake
        self._number = 0

    # --- requests ----------------------------------------------------------------------------------------------------

    def segment(self, image, checkpoint, device, hints, options, includeUnvalidated, onDone, onError, onProgress):
        """Segment a SimpleITK image; `onDone` gets a `SpineSegAILib.results.Segmentation`.

        :param checkpoint: name or path.
        :param hints: `SpineSegAILib.hints.Hints`.
        :param options: run-time options of the method, name → value.
        :param includeUnvalidated: also the structures that the checkpoint learnt from phantoms alone.
        :returns: the `Job`.
        """
        from SpineSegAILib.worker.protocol import HintsMessage, SegmentRequest, save_image

        self._ensureStarted()
        job = self._newJob(lambda event: (event.result.segmentation(),), onDone, onError, onProgress)
        with self._handingOver(job) as folder:
            request = SegmentRequest(
                job=job.number,
                image=save_image(image, folder / "image.npy"),
                checkpoint=str(checkpoint),
                device=device,
                hints=HintsMessage.of(hints, folder),
                options=options,
                include_unvalidated=includeUnvalidated,
            )
        self._send(request)
        return job

    def measure(self, result, onDone, onError):
        """Measure a `Segmentation`; `onDone` gets columns (`worker_protocol.Column`) and rows."""
        from SpineSegAILib.worker.protocol import MeasureRequest, ResultMessage

        self._ensureStarted()
        job = self._newJob(lambda event: (event.columns, event.rows), onDone, onError)
        with self._handingOver(job) as folder:
            request = MeasureRequest(job=job.number, result=ResultMessage.of(result, folder, "result"))
        self._send(request)
        return job

    def describeDevice(self, device, onDone, onError):
        """Ask what a device is; `onDone` gets its id (``"cuda:0"``, ``"cpu"``) and its name. Warms the worker up."""
        from SpineSegAILib.worker.protocol import DeviceRequest

        self._ensureStarted()
        job = self._newJob(lambda event: (event.device, event.name), onDone, onError)
        self._send(DeviceRequest(job=job.number, device=device))
        return job

    def cancel(self, job):
        """Ask a job to stop; a worker that does not obey is killed (and started again by the next request)."""
        from SpineSegAILib.worker.protocol import CancelRequest

        if job.number not in self._jobs or job.cancelled:
            return
        job.cancelled = True
        self._send(CancelRequest(job=job.number))
        qt.QTimer.singleShot(int(CANCEL_SECONDS * 1000), lambda: self._killIfStubborn(job))

    def stop(self):
        """End the worker; jobs under way are dropped without a callback."""
        self._jobs.clear()
        self._waiting.clear()
        if self._process is not None:
            self._process.closeWriteChannel()
            if not self._process.waitForFinished(300):
                self._kill()
                self._process.waitForFinished(1000)
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
        program = shutil.which("PythonSlicer")
        if program is None:
            from SpineSegAILib.errors import MissingPackageError

            raise MissingPackageError(
                _("Slicer's Python (PythonSlicer) is not found."), _("Reinstall Slicer, or start it by its launcher.")
            )
        self._folder = Path(tempfile.mkdtemp(prefix="SpineSegAI-"))
        environment = qt.QProcessEnvironment.systemEnvironment()
        import SpineSegAILib

        paths = [str(Path(SpineSegAILib.__file__).resolve().parents[1]), environment.value("PYTHONPATH", "")]
        environment.insert("PYTHONPATH", os.pathsep.join(p for p in paths if p))
        environment.insert("PYTHONUNBUFFERED", "1")
        # Slicer's own ITK readers do not fit the SimpleITK that the process loads.
        environment.insert("ITK_AUTOLOAD_PATH", "")
        for name, value in self._environment.items():
            environment.insert(name, value)
        process = qt.QProcess()
        process.setProcessEnvironment(environment)
        # A process that was killed may still say something after the next one has been started: each says who it is.
        process.connect("readyReadStandardOutput()", lambda: self._readOutput(process))
        process.connect("readyReadStandardError()", lambda: self._readLog(process))
        process.connect("finished(int,QProcess::ExitStatus)", lambda code, status: self._onFinished(process, code))
        process.connect("errorOccurred(QProcess::ProcessError)", lambda error: self._onProcessError(process, error))
        self._process = process
        self._output = b""
        self._addLog(_("Starting the segmentation process."))
        process.start(program, [*self._arguments, "--folder", str(self._folder)])

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

    def _readOutput(self, process):
        if process is not self._process:
            return
        # The pipe gives bytes as they come: half a line, or three.
        *lines, self._output = (self._output + process.readAllStandardOutput().data()).split(b"\n")
        for line in lines:
            if line.strip():
                self._onLine(line)

    def _readLog(self, process):
        if process is not self._process:
            return
        text = process.readAllStandardError().data().decode("utf-8", "replace")
        for line in text.splitlines():
            if line.strip():
                self._addLog(line.rstrip())

    def _addLog(self, line):
        self._log.append(line)
        for callback in self.logCallbacks:
            callback(line)

    def _onLine(self, line):
        from SpineSegAILib.worker.protocol import EVENT, PROTOCOL

        try:
            event = EVENT.validate_json(line)
        except ValueError as error:
            self._addLog(f"Unexpected output of the segmentation process: {line[:200]!r} ({error})")
            self._failAll("ProtocolError", _("The segmentation process and the panel do not understand each other."))
            self._kill()
            return
        if event.event == "ready":
            if (event.protocol, event.version) != (PROTOCOL, __version__):
                self._failAll(
                    "ProtocolError",
                    _("The segmentation process is version {worker}, the panel is version {panel}.").format(
                        worker=event.version, panel=__version__
                    ),
                    _("Restart Slicer, so that both use the version that is installed now."),
                )
                self._kill()
                return
            self._ready = event
            waiting, self._waiting = self._waiting, []
            for pending in waiting:
                self._process.write(pending)
            return
        if event.event == "error" and event.job is None:
            self._addLog(event.message)
            return
        job = self._jobs.get(event.job)
        if job is None:
            return  # dropped meanwhile
        if event.event == "progress":
            if job.onProgress is not None and not job.cancelled:
                job.onProgress(event.fraction, event.message)
            return
        del self._jobs[event.job]
        try:
            if job.cancelled:
                job.onError(Failure("Cancelled", _("Cancelled.")))
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
    def _handingOver(self, job):
        """The folder for a job's voxels; the job is forgotten if they cannot be written."""
        folder = self._folder / f"job{job.number}"
        try:
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

    def _onFinished(self, process, exitCode):
        if process is not self._process:
            return
        self._readOutput(process)
        self._readLog(process)
        if process is not self._process:  # its last words were the end of it
            return
        self._addLog(_("The segmentation process ended (exit code {code}).").format(code=exitCode))
        self._forgetProcess()
        self._failAll(
            "WorkerError",
            _("The segmentation process ended unexpectedly (exit code {code}).").format(code=exitCode),
            _(
                "Try again. If it happens again, the computer may be short of memory: close other programs,"
                " or choose “CPU”."
            ),
        )

    def _onProcessError(self, process, error):
        if process is not self._process or error != qt.QProcess.FailedToStart:
            return  # "finished" follows
        self._forgetProcess()
        self._failAll(
            "WorkerError",
            _("The segmentation process could not be started."),
            _("Reinstall the extension, or look into the log."),
        )

    def _failAll(self, kind, message, remedy=""):
        jobs, self._jobs = self._jobs, {}
        self._waiting.clear()
        log = self.logTail()
        for job in jobs.values():
            if job.cancelled:
                job.onError(Failure("Cancelled", _("Cancelled.")))
            else:
                job.onError(Failure(kind, message, remedy, log))

    def _killIfStubborn(self, job):
        if self._jobs.get(job.number) is not job:
            return
        self._addLog(_("The segmentation process did not stop in time and was ended."))
        self._kill()
        # Do not wait for the operating system: the reader does not.
        self._forgetProcess()
        self._failAll("WorkerError", _("Another computation was ended with it."))

    def _kill(self):
        """End the process with its children: on Windows and Linux, PythonSlicer is a launcher that has one."""
        if self._process is None:
            return
        try:
            import psutil

            for child in psutil.Process(self._process.processId()).children(recursive=True):
                child.kill()
        except Exception as error:  # already gone, or psutil absent: the launcher's end closes the worker's input
            logging.debug(f"SpineSegAI: children of the worker: {error}")
        self._process.kill()

    def _forgetProcess(self):
        process, self._process = self._process, None
        self._ready = None
        self._output = b""
        if process is not None:
            _keepUntilItEnds(process)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


_kept = []


def _keepUntilItEnds(process):
    """Hold a QProcess that nobody needs: it must outlive what it runs, and must not vanish in its own signal."""
    _kept.append(process)

    def letGo(*_arguments):
        qt.QTimer.singleShot(0, lambda: _kept.remove(process) if process in _kept else None)

    if process.state() == qt.QProcess.NotRunning:
        letGo()
    else:
        process.connect("finished(int,QProcess::ExitStatus)", letGo)
