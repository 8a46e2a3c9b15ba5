"""A command of SpineSegAI's command line in a process of its own, so that Slicer stays usable meanwhile.

The command is given ``--json`` and ``--progress-lines``: one JSON document on its standard output, progress as JSON
lines on standard error. Callbacks run on the main thread, from Qt's event loop.
"""

import json
import logging
import os
import shutil
from pathlib import Path

import qt
from slicer.i18n import tr as _

from .worker_client import Failure

LOG_LINES = 30


class CommandProcess:
    """One run of ``python -m SpineSegAILib …``.

    :param arguments: of the command line, e.g. ``["rank", "a.nii.gz"]``.
    :param onDone: called with the document that the command printed (a dictionary; empty if none).
    :param onError: called with a `Failure`.
    :param onProgress: called with a fraction (0…1) and a sentence.
    """

    def __init__(self, arguments, onDone, onError, onProgress=None):
        self._arguments = [str(a) for a in arguments]
        self._onDone, self._onError, self._onProgress = onDone, onError, onProgress
        self._output, self._errors, self._log = b"", b"", []
        self._process = None
        self._cancelled = False

    @property
    def isRunning(self):
        """True from `start` until a callback was called."""
        return self._process is not None

    def start(self):
        """Start the process; what becomes of it is told by the callbacks."""
        program = shutil.which("PythonSlicer")
        if program is None:
            self._onError(
                Failure("WorkerError", _("Slicer's Python (PythonSlicer) is not found."), _("Reinstall Slicer."))
            )
            return
        process = qt.QProcess()
        process.setProcessEnvironment(pythonEnvironment())
        process.connect("readyReadStandardOutput()", self._readOutput)
        process.connect("readyReadStandardError()", self._readErrors)
        process.connect("finished(int,QProcess::ExitStatus)", lambda code, status: self._onFinished(code))
        process.connect("errorOccurred(QProcess::ProcessError)", self._onProcessError)
        self._process = process
        process.start(program, ["-m", "SpineSegAILib", *self._arguments])

    def cancel(self):
        """End the process with its children; it leaves nothing half-written behind."""
        self._cancelled = True
        self._kill()

    def stop(self):
        """The same without a callback, since nobody waits any more."""
        self._onDone = self._onError = lambda _answer: None
        self._onProgress = None
        self._kill()
        if self._process is not None:
            self._process.waitForFinished(1000)

    def _readOutput(self):
        if self._process is not None:
            self._output += self._process.readAllStandardOutput().data()

    def _readErrors(self):
        if self._process is None:
            return
        # The pipe gives bytes as they come: half a line, or three.
        *lines, self._errors = (self._errors + self._process.readAllStandardError().data()).split(b"\n")
        for line in lines:
            self._onLine(line.decode("utf-8", "replace").strip())

    def _onLine(self, line):
        try:
            progress = json.loads(line)
            fraction, message = progress["progress"], progress["message"]
        except (ValueError, TypeError, KeyError):
            if line:
                self._log = [*self._log[1 - LOG_LINES :], line]
            return
        if self._onProgress is not None and not self._cancelled:
            self._onProgress(fraction, message)

    def _onProcessError(self, error):
        if error == qt.QProcess.FailedToStart:  # else "finished" follows
            self._over()
            self._onError(Failure("WorkerError", _("The process could not be started."), _("Reinstall the extension.")))

    def _onFinished(self, exitCode):
        if self._process is None:
            return
        self._readOutput()
        self._readErrors()
        self._over()
        if self._cancelled:
            self._onError(Failure("Cancelled", _("Cancelled.")))
            return
        try:
            document = json.loads(self._output.decode("utf-8")) if self._output.strip() else {}
        except ValueError:
            document = None
        if exitCode == 0 and document is not None:
            self._onDone(document)
            return
        log = "\n".join(self._log)
        if isinstance(document, dict) and "error" in document:
            error = document["error"]
            self._onError(Failure(error["kind"], error["message"], error["remedy"], log))
        else:
            self._onError(
                Failure(
                    "WorkerError",
                    _("The process ended unexpectedly (exit code {code}).").format(code=exitCode),
                    _("Try again; if it happens again, close other programs: the computer may be short of memory."),
                    log,
                )
            )

    def _over(self):
        process, self._process = self._process, None
        if process is not None:
            # It must not vanish in its own signal.
            qt.QTimer.singleShot(0, lambda: process.deleteLater())

    def _kill(self):
        if self._process is None:
            return
        try:
            import psutil

            for child in psutil.Process(self._process.processId()).children(recursive=True):
                child.terminate()  # the launcher's child tidies up
            psutil.wait_procs(psutil.Process(self._process.processId()).children(recursive=True), timeout=0.5)
        except Exception as error:  # already gone, or psutil absent
            logging.debug(f"SpineSegAI: children of the command: {error}")
        if self._process is not None:
            self._process.terminate()
            if not self._process.waitForFinished(500) and self._process is not None:
                self._process.kill()


def pythonEnvironment():
    """Environment of a Python process of ours: it finds the library, and none of Slicer's ITK plugins."""
    import SpineSegAILib

    environment = qt.QProcessEnvironment.systemEnvironment()
    paths = [str(Path(SpineSegAILib.__file__).resolve().parents[1]), environment.value("PYTHONPATH", "")]
    environment.insert("PYTHONPATH", os.pathsep.join(p for p in paths if p))
    environment.insert("PYTHONUNBUFFERED", "1")
    environment.insert("PYTHONUTF8", "1")
    # Slicer's own ITK readers do not fit the SimpleITK that the process loads.
    environment.insert("ITK_AUTOLOAD_PATH", "")
    return environment
