"""Slicer's Python in processes of its own: where it is, what it is given, how it is heard and ended.

`sys.executable` is Slicer itself, and a Python thread gets no time while Slicer idles: whatever computes runs here.
"""

import logging
import os
import shutil
from pathlib import Path

import qt
from slicer.i18n import tr as _

from SpineSegAILib.errors import MissingPackageError

GRACE_MILLISECONDS = 500
"""How long a process that is asked to end may tidy up."""


def program():
    """Path of Slicer's Python.

    :raises MissingPackageError: there is none on the path.
    """
    found = shutil.which("PythonSlicer")
    if found is None:
        raise MissingPackageError(
            _("Slicer's Python (PythonSlicer) is not found."), _("Reinstall Slicer, or start it by its launcher.")
        )
    return found


def variables():
    """Environment variables of every Python process of ours, in addition to Slicer's."""
    import SpineSegAILib

    paths = [str(Path(SpineSegAILib.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    return {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
        "ITK_AUTOLOAD_PATH": "",  # Slicer's own ITK readers do not fit the SimpleITK that the process loads
    }


class PythonProcess:
    """One process. Callbacks run on the main thread, from Qt's event loop.

    :param onLine: called with each whole line of its standard output (bytes).
    :param onLogLine: called with each line of its standard error (text) that is not empty.
    :param onEnded: called with the exit code, after the last line; with None if it could not be started.
    """

    def __init__(self, onLine, onLogLine, onEnded):
        self._onLine, self._onLogLine, self._onEnded = onLine, onLogLine, onEnded
        self._output = self._errors = b""
        self._process = None

    def start(self, arguments, environment=()):
        """Start Slicer's Python.

        :param arguments: of its command line.
        :param environment: more environment variables, name → value.
        :raises MissingPackageError: see `program`.
        """
        executable = program()
        given = qt.QProcessEnvironment.systemEnvironment()
        for name, value in {**variables(), **dict(environment)}.items():
            given.insert(name, value)
        process = self._process = qt.QProcess()
        process.setProcessEnvironment(given)
        process.connect("readyReadStandardOutput()", self._readOutput)
        process.connect("readyReadStandardError()", self._readErrors)
        process.connect("finished(int,QProcess::ExitStatus)", lambda code, status: self._finished(code))
        process.connect("errorOccurred(QProcess::ProcessError)", self._failed)
        process.start(executable, [str(argument) for argument in arguments])

    @property
    def isRunning(self):
        """True from `start` until the end was reported, or `forget`."""
        return self._process is not None

    @property
    def unfinishedLine(self):
        """What its standard output said after the last whole line (bytes)."""
        return self._output

    def write(self, line):
        """Bytes for its standard input."""
        self._process.write(line)

    # --- the end -----------------------------------------------------------------------------------------------------

    def terminate(self):
        """Ask it and its children to tidy up and end; what has not ended some time later is killed."""
        process = self._process
        if process is not None:
            children = _children(process)
            _tell(children, "terminate")
            process.terminate()
            qt.QTimer.singleShot(GRACE_MILLISECONDS, lambda: (_tell(children, "kill"), process.kill()))

    def kill(self):
        """End it and its children at once."""
        if self._process is not None:
            _kill(self._process)

    def stop(self, patience):
        """Close its input, and kill it if it does not end by itself; nothing is reported any more.

        :param patience: how long it may take (ms).
        """
        process = self._process
        if process is None:
            return
        self.forget()
        process.closeWriteChannel()
        if not process.waitForFinished(patience):
            _kill(process)
            process.waitForFinished(1000)

    def forget(self):
        """Hear nothing of it any more, not even its end."""
        process, self._process = self._process, None
        if process is not None:
            _keepUntilItEnds(process)

    def _finished(self, exitCode):
        if self._process is None:
            return
        self._readOutput()
        self._readErrors()
        if self._errors:
            self._log(self._errors)
        if self._process is not None:  # its last words may have been the end of it
            self.forget()
            self._onEnded(exitCode)

    def _failed(self, error):
        if self._process is not None and error == qt.QProcess.FailedToStart:  # else "finished" follows
            self.forget()
            self._onEnded(None)

    # --- what it says ------------------------------------------------------------------------------------------------

    def _readOutput(self):
        if self._process is None:
            return
        # The pipe gives bytes as they come: half a line, or three.
        *lines, self._output = (self._output + self._process.readAllStandardOutput().data()).split(b"\n")
        for line in lines:
            if self._process is not None:  # a line may be the end of it
                self._onLine(line)

    def _readErrors(self):
        if self._process is None:
            return
        *lines, self._errors = (self._errors + self._process.readAllStandardError().data()).split(b"\n")
        for line in lines:
            self._log(line)

    def _log(self, line):
        text = line.decode("utf-8", "replace").rstrip()
        if text:
            self._onLogLine(text)


def _kill(process):
    _tell(_children(process), "kill")
    process.kill()


def _children(process):
    """Processes that a process has started: PythonSlicer is a launcher that has one."""
    try:
        import psutil

        return psutil.Process(process.processId()).children(recursive=True)
    except Exception as error:  # already gone, or psutil absent: the launcher's end closes their input
        logging.debug(f"SpineSegAI: children of a process: {error}")
        return []


def _tell(children, what):
    for child in children:
        try:
            getattr(child, what)()
        except Exception as error:  # already gone
            logging.debug(f"SpineSegAI: {what} {child}: {error}")


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
