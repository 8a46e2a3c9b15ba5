"""Slicer's Python in processes of its own: one way to find it, start it, hear it and end it. Real processes."""

import shutil
import time
from pathlib import Path

import host
import psutil
import pytest
from SpineSegAISlicer.processes import python, training
from SpineSegAISlicer.processes.command_process import CommandProcess
from SpineSegAISlicer.processes.python import PythonProcess
from SpineSegAISlicer.processes.worker_client import WorkerClient

from SpineSegAILib.errors import MissingPackageError


class Heard:
    """A process and what it said."""

    def __init__(self, code, **environment):
        self.lines, self.log, self.ended = [], [], []
        self.process = PythonProcess(self.lines.append, self.log.append, self.ended.append)
        self.process.start(["-c", code], environment)

    def wait(self, seconds=20):
        assert host.wait_until(lambda: self.ended, seconds), "it did not end"
        return self.ended[0]


def test_lines_are_whole_however_they_come():
    heard = Heard(
        "import sys, time\n"
        "for part in ('on', 'e\\ntw', 'o\\nrest'): sys.stdout.write(part); sys.stdout.flush(); time.sleep(0.05)\n"
        "print('  log ä', file=sys.stderr); print(file=sys.stderr); sys.stderr.write('last'); sys.exit(3)"
    )
    assert heard.wait() == 3
    assert heard.lines == [b"one", b"two"] and heard.process.unfinishedLine == b"rest"
    assert heard.log == ["  log ä", "last"]
    assert not heard.process.isRunning


def test_what_every_process_is_given(monkeypatch):
    monkeypatch.setenv("ITK_AUTOLOAD_PATH", "/slicer/itk")
    monkeypatch.setenv("PYTHONPATH", "/slicer/python")
    code = "import os, sys, SpineSegAILib; print(*(os.environ[n] for n in sys.argv[1:]), sep='\\n')"
    names = ("PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONUTF8", "ITK_AUTOLOAD_PATH", "MORE")
    lines, ended = [], []
    process = PythonProcess(lines.append, print, ended.append)
    process.start(["-c", code, *names], {"MORE": "x"})
    assert host.wait_until(lambda: ended, 20)
    path, *others = [line.decode() for line in lines]
    assert path.endswith("/slicer/python") and others == ["1", "1", "", "x"]
    assert training.interpreter() == {"python": python.program(), "environment": python.variables()}


def test_a_process_that_is_forgotten_is_heard_no_more():
    heard = Heard("import sys, time\nprint('one', flush=True)\nfor line in sys.stdin: print('two', flush=True)")
    assert host.wait_until(lambda: heard.lines, 20)
    process = heard.process._process
    heard.process.stop(2000)
    assert host.wait_until(lambda: process.state() == 0 or process.state().value == 0, 10)
    assert heard.lines == [b"one"] and heard.ended == []


@pytest.mark.parametrize("way", ["kill", "terminate", "stop"])
def test_children_end_with_it(way, tmp_path):
    tidy = "signal.signal(signal.SIGTERM, lambda *_: (open(sys.argv[1], 'w').close(), sys.exit()))"
    child = f"import signal, sys, time\n{tidy}\nprint('ready', flush=True)\ntime.sleep(60)"
    command = f"[sys.executable, '-c', {child!r}, {str(tmp_path / 'tidy')!r}]"
    code = (
        f"import subprocess, sys\nchild = subprocess.Popen({command}, stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\nprint(child.pid, flush=True)\nchild.wait()"
    )
    heard = Heard(code)
    assert host.wait_until(lambda: heard.lines, 20)
    pid = int(heard.lines[0])
    heard.process.stop(100) if way == "stop" else getattr(heard.process, way)()
    end = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < end:
        time.sleep(0.05)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert Path(tmp_path / "tidy").exists() == (way == "terminate")  # asked, it tidies up
    assert host.wait_until(lambda: heard.ended or way == "stop", 10)


def test_without_slicers_python_everyone_says_the_same(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    said = []
    CommandProcess(["methods"], said.append, lambda failure: said.append((failure.message, failure.remedy))).start()
    for ask in (
        lambda: WorkerClient().describeDevice("cpu", onDone=None, onError=None),
        training.interpreter,
    ):
        with pytest.raises(MissingPackageError) as caught:
            ask()
        said.append((caught.value.message, caught.value.remedy))
    assert len(said) == 3 and len(set(said)) == 1
    assert "PythonSlicer" in said[0][0] and said[0][1]


def test_a_program_that_cannot_be_started_is_told(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: "/no/such/program")
    heard = Heard("")
    assert heard.wait() is None
    failures = []
    CommandProcess(["methods"], print, failures.append).start()
    assert host.wait_until(lambda: failures, 10)
    assert "could not be started" in failures[0].message
