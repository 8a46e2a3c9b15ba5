"""Where an undrawn structure may be: the column's corridor, not the abdomen."""

import numpy as np
import pytest

from SpineSegAILib.anatomy import CANAL_ID, DISC_ID, VERTEBRA_ID, scheme, structure
from SpineSegAILib.training.regions import code_label

SPACING = (4.0, 1.25, 1.25)
IDS = scheme("lumbar-mr").ids


def column(names: str, first_row: int = 40) -> np.ndarray:
    """Boxes of 20 rows, 6 rows apart, 27 columns deep; columns run from anterior to posterior."""
    label = np.zeros((14, 256, 160), np.int16)
    for number, name in enumerate(names.split()):
        top = first_row + 26 * number
        label[2:12, top : top + 20, 60:87] = structure(name).id
    return label


def allowed_at(coded, slice_, row, col):
    return coded.sets[coded.codes[slice_, row, col]]


@pytest.fixture(scope="module")
def t11_to_l5():
    names = "T11 T12 L1 L2 L3 L4 L5"
    return code_label(column(names), [structure(n).id for n in names.split()], IDS, SPACING)


def test_what_is_drawn_is_certain(t11_to_l5):
    assert allowed_at(t11_to_l5, 7, 50, 70) == {structure("T11").id}


def test_t10_may_lie_above_t11(t11_to_l5):
    allowed = allowed_at(t11_to_l5, 7, 20, 70)
    assert {0, structure("T10").id} <= allowed
    assert structure("S1").id not in allowed
    assert structure("T11").id not in allowed


def test_s1_may_lie_below_l5_and_behind_it(t11_to_l5):
    assert {0, structure("S1").id, structure("L5/S1").id} <= allowed_at(t11_to_l5, 7, 225, 75)
    assert structure("S1").id in allowed_at(t11_to_l5, 7, 245, 105)


def test_a_disc_may_lie_only_between_its_neighbours(t11_to_l5):
    between = allowed_at(t11_to_l5, 7, 40 + 23, 70)
    assert structure("T11/T12").id in between
    assert structure("L3/L4").id not in between


def test_a_false_canal_in_front_of_the_column_is_punished(t11_to_l5):
    assert allowed_at(t11_to_l5, 7, 120, 30) == {0}
    assert CANAL_ID in allowed_at(t11_to_l5, 7, 120, 95)


def test_far_to_the_side_nothing_is_unknown(t11_to_l5):
    assert allowed_at(t11_to_l5, 0, 20, 20) == {0}


def test_vertebrae_between_drawn_discs_are_unknown():
    names = "L1/L2 L2/L3 L3/L4 L4/L5 L5/S1"
    coded = code_label(column(names), [structure(n).id for n in names.split()], IDS, SPACING)
    assert structure("L3").id in allowed_at(coded, 7, 40 + 26 + 23, 70)


def test_structures_without_a_level():
    label = np.zeros((1, 64, 64), np.int16)
    label[0, 10:20, 20:40] = VERTEBRA_ID
    label[0, 22:26, 20:40] = DISC_ID
    coded = code_label(label, [VERTEBRA_ID, DISC_ID], IDS, (4.0, 1.0, 1.0))
    bone = allowed_at(coded, 0, 15, 30)
    assert structure("L3").id in bone
    assert structure("S1").id in bone
    assert 0 not in bone
    assert structure("L3/L4").id in allowed_at(coded, 0, 24, 30)
    assert allowed_at(coded, 0, 50, 50) == {0, CANAL_ID}  # no level drawn, so the canal could be anywhere


def test_everything_annotated_leaves_nothing_unknown():
    coded = code_label(column("L3 L4 L5"), IDS, IDS, SPACING)
    assert all(len(s) == 1 for s in coded.sets)
