"""What commands say on standard error while they work."""

from __future__ import annotations

import sys

import pytest

from SpineSegAILib.cli import terminal


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test sets."""
    now = [1000.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_of_progress_each_minute(clock, capsys):
    with terminal.progress_bar(quiet=False) as report:
        for second in range(200):
            clock[0] = 1000.0 + second
            report(second / 400, f"case {second}")
    assert capsys.readouterr().err.splitlines() == [" 15% case 60", " 30% case 120", " 45% case 180"]


def test_progress_never_goes_back(clock, capsys):
    with terminal.progress_bar(quiet=False) as report:
        report(0.9, "first pass")
        clock[0] += 60
        report(0.1, "second pass")
        clock[0] += 60
        report(1.5, "done")
    assert capsys.readouterr().err.splitlines() == [" 90% second pass", "100% done"]


def test_nothing_is_said_of_short_or_quiet_work(clock, capsys):
    with terminal.progress_bar(quiet=False) as report:
        clock[0] += 59
        report(1.0, "done")
    with terminal.progress_bar(quiet=True) as report:
        clock[0] += 600
        report(0.5, "half")
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with terminal.progress_bar(quiet=False) as report:
        clock[0] += 1
        report(0.5, "half")
    assert " 50%|" in capsys.readouterr().err
