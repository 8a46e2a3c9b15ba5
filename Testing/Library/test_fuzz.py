"""Inputs gone wrong, for some seconds a kind, driven by hypothesis; `Testing/Benchmarks/fuzz.py` runs longer."""

from __future__ import annotations

import contextlib
import random
import time

import pytest
from fuzzing import SUBJECTS, Fault, attempt, make_samples, place_for_input
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from SpineSegAILib.errors import ImageError

SECONDS = 6.0
"""Of each kind. A fault is shown as it was found: making it smaller takes longer than finding it."""
MOST = 150


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return make_samples(tmp_path_factory.mktemp("samples"))


class TimeIsUp(BaseException):
    """Ends hypothesis at once, as Ctrl-C does."""


@pytest.mark.parametrize("subject", SUBJECTS)
def test_inputs_gone_wrong_are_taken_or_refused_in_words(subject, samples, tmp_path):
    end = time.monotonic() + SECONDS
    outcomes = []

    @settings(max_examples=MOST, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=False))
    def one(rng):
        outcomes.append("fault")
        with place_for_input(tmp_path) as folder:
            outcomes[-1] = "taken" if attempt(subject, rng, samples, folder) else "refused"
        if time.monotonic() > end and "fault" not in outcomes:  # a fault is tried again, to be sure of it
            raise TimeIsUp

    with contextlib.suppress(TimeIsUp):
        one()
    assert outcomes


@pytest.mark.parametrize("what", ["a traceback", "a file left behind", "a refusal without a word"])
def test_faults_are_noticed(samples, tmp_path, monkeypatch, what):
    def subject(rng, samples, folder):
        if what == "a traceback":
            raise KeyError("x")
        if what == "a refusal without a word":
            raise ImageError("")
        (folder / "temporary" / "copy.nrrd").touch()

    monkeypatch.setitem(SUBJECTS, "image", subject)
    with pytest.raises(KeyError if what == "a traceback" else Fault), place_for_input(tmp_path) as folder:
        attempt("image", random.Random(0), samples, folder)
    assert not list(tmp_path.iterdir())
