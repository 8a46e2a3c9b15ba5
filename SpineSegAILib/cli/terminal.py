"""The terminal: progress and notes on standard error, tables and JSON on standard output, and signals."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from ..training.run import RunDirectory

Progress = Callable[[float, str], None]
"""Is called with the fraction that is done and a sentence."""

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


@contextmanager
def progress_bar(quiet: bool, lines: bool = False, *, by_item: bool = False) -> Iterator[Progress]:
    """A bar, if standard error is a terminal; or with `lines` a JSON line for each report.

    Args:
        by_item: where it is not a terminal, print a line as each item begins: what a message has before its colon.
    """
    if lines:
        yield lambda fraction, message: print(
            json.dumps({"progress": round(fraction, 4), "message": message}), file=sys.stderr, flush=True
        )
        return
    if by_item and not quiet and not sys.stderr.isatty():
        current = ""

        def say(fraction: float, message: str) -> None:
            nonlocal current
            item = message.partition(":")[0]
            if item != current:
                current = item
                print(f"{fraction:4.0%} {item}", file=sys.stderr, flush=True)

        yield say
        return
    from tqdm import tqdm

    form = "{percentage:3.0f}%|{bar:30}| {elapsed} {desc}"
    with tqdm(total=1.0, bar_format=form, file=sys.stderr, leave=False, disable=True if quiet else None) as bar:

        def report(fraction: float, message: str) -> None:
            bar.set_description_str(message, refresh=False)
            bar.n = min(max(bar.n, fraction), 1.0)
            bar.refresh()

        yield report


@contextmanager
def training_progress(quiet: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A bar for the steps of a training run (lines, where that is not a terminal), a line for each other event."""
    from tqdm import tqdm

    with tqdm(unit="step", file=sys.stderr, disable=True if quiet else None) as bar:

        def report(event: dict[str, Any]) -> None:
            if event["event"] == "step" and bar.disable and not quiet:  # into a file: lines instead of a bar
                loss, speed = event["losses"]["total"], event["steps_per_second"]
                print(f"step {event['step']}: loss {loss:.3f}, {speed:.2f} steps/s", file=sys.stderr, flush=True)
            elif event["event"] == "step":
                bar.set_postfix_str(f"loss {event['losses']['total']:.3f}", refresh=False)
                bar.update(event["step"] - bar.n)
            elif not quiet:
                rest = {k: v for k, v in event.items() if k not in ("event", "elapsed")}
                words = ", ".join(f"{k} {v}" for k, v in {**rest.pop("scores", {}), **rest}.items())
                tqdm.write(f"{event['event']}: {words}", file=sys.stderr)

        yield report


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

    def interrupt(*_: object) -> None:
        nonlocal asked
        if os.getpid() != main_process:  # a data loader's copy of this: the terminal signals all, one of them acts
            return
        if asked or not run.folder.is_dir():
            raise KeyboardInterrupt
        asked = True
        run.request_stop()

    with _handling(["SIGINT", "SIGTERM", "SIGHUP"], interrupt):
        yield
    if asked:
        print(f"spinesegai: stopped and saved; {to_resume}", file=sys.stderr)
        raise KeyboardInterrupt
