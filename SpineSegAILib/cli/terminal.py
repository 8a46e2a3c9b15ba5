"""The terminal: progress and notes on standard error, tables and JSON on standard output, and signals."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from ..training.run import RunDirectory

Progress = Callable[[float, str], None]
"""Is called with the fraction that is done and a sentence."""

SECONDS_BETWEEN_LINES = 60.0
"""How often, where standard error is not a terminal."""

# --- standard output -------------------------------------------------------------------------------------------------


def print_json(value: Any) -> None:
    """Prints a document; in ASCII, since the terminal's encoding may be any."""
    print(json.dumps(value, indent=1, allow_nan=False))


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Prints rows of cells in columns; the first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_written(paths: Iterable[str | Path | None]) -> None:
    """Prints which files were written."""
    for path in filter(None, paths):
        print(f"wrote {path}")


# --- standard error --------------------------------------------------------------------------------------------------


def print_note(sentence: str, file: TextIO | None = None) -> None:
    """Prints what a user should know though all went well."""
    print(f"note: {sentence}", file=file or sys.stderr)


def print_line(line: str) -> None:
    """Prints what has been done so far, above a bar if there is one."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()


@contextmanager
def progress_bar(quiet: bool, lines: bool = False) -> Iterator[Progress]:
    """A bar, if standard error is a terminal, else a line now and then; or with `lines` a JSON line for each report."""
    if lines:
        yield lambda fraction, message: print(
            json.dumps({"progress": round(fraction, 4), "message": message}), file=sys.stderr, flush=True
        )
        return
    if not quiet and not sys.stderr.isatty():
        yield _now_and_then()
        return
    from tqdm import tqdm

    form = "{percentage:3.0f}%|{bar:30}| {elapsed} {desc}"
    with tqdm(total=1.0, bar_format=form, file=sys.stderr, leave=False, disable=quiet) as bar:

        def report(fraction: float, message: str) -> None:
            bar.set_description_str(message, refresh=False)
            bar.n = min(max(bar.n, fraction), 1.0)
            bar.refresh()

        yield report


def _now_and_then() -> Progress:
    """Progress as lines, for a log: none where the work is done before the first is due."""
    last, most = time.monotonic(), 0.0

    def report(fraction: float, message: str) -> None:
        nonlocal last, most
        most = max(most, min(fraction, 1.0))
        if (now := time.monotonic()) - last >= SECONDS_BETWEEN_LINES:
            last = now
            print_line(f"{most:4.0%} {message}")

    return report


@contextmanager
def training_progress(quiet: bool, run: RunDirectory) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A bar for the steps of a training run (lines, where that is not a terminal), a line for each other event."""
    from ..training.launcher import EventReader, status

    started = time.monotonic()
    reader = EventReader(run)
    with progress_bar(quiet) as show:

        def report(event: dict[str, Any]) -> None:
            if quiet:
                return
            if event["event"] == "step":
                now = status(run.folder, reader.events())
                left = "" if now.seconds_left is None else f", {duration(now.seconds_left)} left"
                words = f"step {now.step} of {now.steps}: loss {event['losses']['total']:.3f}{left}"
                if sys.stderr.isatty():
                    show(now.progress, words)
                else:
                    print_line(words)
            else:
                print_line(_in_words(event, time.monotonic() - started))

        yield report


def duration(seconds: float) -> str:
    """For a reader: ``"40 s"``, ``"25 min"``, ``"3 h 20 min"``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _in_words(event: dict[str, Any], seconds: float) -> str:
    """An event of a training run, but for steps, as a line.

    Args:
        seconds: since this process began with the run.
    """
    kind, step = event["event"], event.get("step", 0)
    if kind == "validation":
        where = f"step {step}" if step else "the start"
        scores = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in event["scores"].items())
        return f"validation of {where}: {scores}"
    if kind == "resume":
        return f"continues at step {step}" if step else "continues from the beginning"
    if kind in ("finished", "stopped"):
        return f"{kind} at step {step}; it took {duration(seconds)} with preparation and validation"
    return str(event.get("message", kind))


# --- signals ---------------------------------------------------------------------------------------------------------


@contextmanager
def _handling(names: Iterable[str], handler: Callable[..., None]) -> Iterator[None]:
    """Signals go to this handler, those that the system knows; in a thread other than the main one, Python has them
    stay as they are. A terminal that is closed (SIGHUP) stays without effect for a command that `nohup` started."""
    here = threading.current_thread() is threading.main_thread()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)] if here else []
    if "SIGHUP" in names and here and hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        numbers.remove(signal.SIGHUP)
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def termination_as_interruption() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a terminal that is closed, raise `KeyboardInterrupt`, as Ctrl-C does, so that temporary
    files are removed."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with _handling(["SIGTERM", "SIGHUP"], interrupt):
        yield


@contextmanager
def stop_on_interrupt(run: RunDirectory, to_resume: str) -> Iterator[None]:
    """The first Ctrl-C lets a training run save and end after its step; the second one ends it at once.

    A request to end (SIGTERM) and a terminal that is closed (SIGHUP) count as Ctrl-C.

    Args:
        run: of the training.
        to_resume: how to continue; printed when the run was stopped.

    Raises:
        KeyboardInterrupt: the run was stopped.
    """
    asked = False
    main_process = os.getpid()

    def interrupt(number: int, _: object) -> None:
        nonlocal asked
        if os.getpid() != main_process:  # a data loader's copy of this: the terminal signals all, one of them acts
            return
        # Who ends a group of processes, as `timeout` and `torchrun` do, may signal twice.
        if not run.folder.is_dir() or (asked and number == signal.SIGINT):
            raise KeyboardInterrupt
        asked = True
        run.request_stop()

    with _handling(["SIGINT", "SIGTERM", "SIGHUP"], interrupt):
        yield
    if asked:
        print(f"spinesegai: stopped and saved; {to_resume}", file=sys.stderr)
        raise KeyboardInterrupt
