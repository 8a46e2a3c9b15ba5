"""A command of SpineSegAI's command line in a process of its own, so that Slicer stays usable meanwhile.

The command is given ``--json`` and ``--progress-lines``: one JSON document on its standard output, progress as JSON
lines on standard error. Callbacks run on the main thread, from Qt's event loop.
"""

import collections
import json

from slicer.i18n import tr as _

from SpineSegAILib.errors import SpineSegAIError

from .failure import Failure
from .python import PythonProcess

LOG_LINES = 30
STOP_MILLISECONDS = 1000


class CommandProcess:
    """One run of ``python -m SpineSegAILib …``.

    :param arguments: of the command line, e.g. ``["rank", "a.nii.gz"]``.
    :param onDone: called with the document that the command printed (a dictionary; empty if none).
    :param onError: called with a `Failure`.
    :param onProgress: called with a fraction (0…1) and a sentence.
    """

    def __init__(self, arguments, onDone, onError, onProgress=None):
        self._arguments = arguments
        self._onDone, self._onError, self._onProgress = onDone, onError, onProgress
        self._output = []
        self._log = collections.deque(maxlen=LOG_LINES)
        self._process = PythonProcess(self._output.append, self._onLogLine, self._onEnded)
        self._cancelled = False

    @property
    def isRunning(self):
        """True from `start` until a callback was called."""
        return self._process.isRunning

    def start(self):
        """Start the process; the callbacks report what becomes of it."""
        try:
            self._process.start(["-m", "SpineSegAILib", *self._arguments])
        except SpineSegAIError as error:
            self._onError(Failure.of(error))

    def cancel(self):
        """End the process with its children; it leaves nothing half-written behind."""
        self._cancelled = True
        self._process.terminate()

    def stop(self):
        """The same without a callback, since nobody waits any more."""
        self._onDone = self._onError = lambda _answer: None
        self._onProgress = None
        self._process.terminate()
        self._process.stop(STOP_MILLISECONDS)

    def _onLogLine(self, line):
        try:
            progress = json.loads(line)
            fraction, message = progress["progress"], progress["message"]
        except (ValueError, TypeError, KeyError):
            self._log.append(line)
            return
        if self._onProgress is not None and not self._cancelled:
            self._onProgress(fraction, message)

    def _onEnded(self, exitCode):
        if exitCode is None:
            self._onError(Failure("WorkerError", _("The process could not be started."), _("Reinstall the extension.")))
            return
        if self._cancelled:
            self._onError(Failure.cancelled())
            return
        text = b"\n".join([*self._output, self._process.unfinishedLine])
        try:
            document = json.loads(text.decode("utf-8")) if text.strip() else {}
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
                    _("Try again; if it happens again, close other applications: the computer may be short of memory."),
                    log,
                )
            )
