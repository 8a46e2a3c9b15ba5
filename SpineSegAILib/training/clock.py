"""How long a run has worked: hours of training do not pass while the computer sleeps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

LONGEST_GAP_SECONDS = 60.0
"""The clock is looked at every few seconds; a longer gap means that the process stood still (sleep, suspension)."""


class WorkClock:
    """Counts the seconds in which the process ran.

    Some systems' steady clock continues during sleep, others' does not: gaps are omitted on all of them.

    Args:
        now: seconds of a steady clock.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._last = now()
        self._worked = 0.0
        self._lock = threading.Lock()

    def seconds(self) -> float:
        """Worked so far. To be called at least once a minute, whatever the run is busy with."""
        with self._lock:
            now = self._now()
            gap = now - self._last
            self._last = now
            if 0 < gap <= LONGEST_GAP_SECONDS:
                self._worked += gap
            return self._worked
