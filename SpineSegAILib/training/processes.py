"""Which process is at work: a number alone does not say, since numbers are given out again."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

_SAME_START_SECONDS = 3.0
"""Systems round the times of boot and start differently on each call; two processes of one number start further
apart."""


@dataclass(frozen=True)
class ProcessId:
    """A process of this or another machine.

    Attributes:
        pid: its number.
        started: seconds between the machine's start and the process's. Unlike the time of day, it stays what it is
            when the clock is set.
        host: the machine.
    """

    pid: int
    started: float
    host: str

    @classmethod
    def of(cls, pid: int | None = None) -> ProcessId:
        """A process of this machine; this one, if no number is given.

        Raises:
            psutil.NoSuchProcess: it has ended already.
        """
        import psutil

        process = psutil.Process(pid)
        return cls(process.pid, round(process.create_time() - psutil.boot_time(), 2), platform.node())

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> ProcessId | None:
        """From what `as_dict` gave; None if that is not there."""
        try:
            found = cls(int(values["pid"]), float(values["started"]), str(values["host"]))
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        return found if 0 < found.pid < 2**31 else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @property
    def is_here(self) -> bool:
        """Whether it is a process of this machine."""
        return self.host == platform.node()

    @property
    def is_me(self) -> bool:
        """Whether it is this process."""
        return self.is_here and self.pid == os.getpid() and self.is_alive

    @property
    def is_alive(self) -> bool:
        """Whether it still runs; always False for processes of other machines, of which nothing is known here."""
        import psutil

        if not self.is_here:
            return False
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            return abs(process.create_time() - psutil.boot_time() - self.started) < _SAME_START_SECONDS
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:  # it is somebody else's, and there
            return True
