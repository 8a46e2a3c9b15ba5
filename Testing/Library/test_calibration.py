from dataclasses import replace

import numpy as np
import pytest

from SpineSegAILib.anatomy import KINDS, scheme
from SpineSegAILib.evidence import Evidence
from SpineSegAILib.inference.calibration import Calibration

SCHEME = scheme("lumbar-mr")


def evidence_of(kinds: np.ndarray) -> Evidence:
    return Evidence((4.0, 1.0, 1.0), SCHEME, kinds=kinds)


@pytest.fixture
def edge() -> Evidence:
    """Five slices in which a vertebra fades into background along the columns."""
    kinds = np.zeros((len(KINDS), 5, 4, 41), np.float32)
    kinds[1] = np.linspace(1, 0, 41, dtype=np.float32)
    kinds[0] = 1 - kinds[1]
    return evidence_of(kinds)


def test_nothing_to_do_changes_nothing(edge):
    assert Calibration().apply(edge) is edge
    assert Calibration(offsets={"vertebra": 0.0}).apply(edge) is edge


def test_an_offset_moves_the_edge_to_where_the_log_odds_equal_it(edge):
    moved = Calibration(offsets={"vertebra": 1.0}).apply(edge).kinds
    width = (moved[1] > moved[0])[0, 0].sum()
    assert width == np.sum(edge.kinds[1, 0, 0] > 1 / (1 + np.exp(-1.0)))
    assert np.allclose(moved.sum(0), 1, atol=1e-5)
    assert (edge.kinds[1, 0, 0] == np.linspace(1, 0, 41, dtype=np.float32)).all()  # the argument is as it was


def test_a_kind_without_an_offset_keeps_its_odds_against_background(edge):
    moved = Calibration(offsets={"disc": 2.0}).apply(edge).kinds
    assert np.allclose(moved, edge.kinds, atol=1e-6)


def test_neighbours_fill_a_slice_that_was_missed():
    kinds = np.zeros((len(KINDS), 5, 4, 4), np.float32)
    kinds[1] = 0.9
    kinds[1, 2] = 0.3
    kinds[0] = 1 - kinds[1]
    blended = Calibration(neighbour=0.3).apply(evidence_of(kinds)).kinds
    assert np.allclose(blended[1, 2], (0.3 + 2 * 0.3 * 0.9) / 1.6)
    assert np.allclose(blended[1, 0], 0.9)
    assert blended[1, 2, 0, 0] > blended[0, 2, 0, 0]


def test_classes_are_summed_to_kinds_once():
    classes = np.random.default_rng(0).random((len(SCHEME.structures) + 1, 2, 3, 4)).astype(np.float32)
    one = Evidence((4.0, 1.0, 1.0), SCHEME, classes=classes)
    assert one.kind_probabilities() is one.kind_probabilities()
    assert not one.kind_probabilities().flags.writeable
    other = replace(one, classes=classes[::-1].copy())
    assert not np.array_equal(other.kind_probabilities(), one.kind_probabilities())


def test_classes_follow_their_kind():
    classes = np.full((SCHEME.channels, 1, 2, 2), 0.01, np.float32)
    classes[0], classes[SCHEME.channel_of[23]] = 0.35, 0.41
    evidence = Evidence((4.0, 1.0, 1.0), SCHEME, classes=classes)
    changed = Calibration(offsets={"vertebra": 1.0}).apply(evidence).classes
    assert (changed.argmax(0) == 0).all()
    assert (classes.argmax(0) == SCHEME.channel_of[23]).all()


def test_unknown_fields_are_refused():
    with pytest.raises(ValueError, match="extra"):
        Calibration.model_validate({"shift": 1})
