"""How slow this processor is, so that limits of time mean the same everywhere."""

import time

import numpy as np

USUAL_SECONDS = 0.035
"""Processor time of `_work` at which a limit counts as it is written."""


def slowness() -> float:
    """By what to multiply limits: 1 on a usual processor and on faster ones, 2 where everything takes twice as long.
    Measured anew by each call, since other programs take away caches."""
    return max(1.0, min(_work() for _ in range(5)) / USUAL_SECONDS)


def _work() -> float:
    """Seconds of processor time for some Python and some numpy, about half each, as in the panel."""
    started = time.process_time()
    names: dict[str, int] = {}
    for number in range(60_000):
        key = f"{number % 997}"
        names[key] = names.get(key, 0) + number
    voxels = np.arange(1_500_000, dtype=np.int16) % 23
    for label in range(60):
        np.flatnonzero(voxels == label)
    return time.process_time() - started
