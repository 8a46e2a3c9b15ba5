"""Where an undrawn structure may be: the column's corridor, not the abdomen."""

import numpy as np
import pytest

from SpineSegAILib.anatomy import CANAL_ID, DISC_ID, POSTERIOR_ID, VERTEBRA_ID, scheme, structure
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


POSTERIOR_IDS = scheme("lumbar-mr-posterior").ids
BEHIND = 130  # a column where spinous processes are


def posterior(name: str) -> int:
    return structure(f"{name} posterior elements").id


def test_undrawn_posterior_elements_may_lie_anywhere_behind_the_bodies():
    names = "T11 T12 L1 L2 L3 L4 L5"
    coded = code_label(column(names), [structure(n).id for n in names.split()], POSTERIOR_IDS, SPACING)
    assert {0, posterior("L3"), posterior("T11")} <= allowed_at(coded, 7, 120, BEHIND)
    assert posterior("L3") in allowed_at(coded, 0, 120, BEHIND)  # a transverse process, beside the bodies
    assert {posterior("L3"), CANAL_ID} <= allowed_at(coded, 7, 120, 95)
    assert allowed_at(coded, 7, 120, 30) == {0}  # before the column there are none
    assert allowed_at(coded, 7, 50, 70) == {structure("T11").id}


@pytest.mark.parametrize("levels", ["named", "unknown"])
def test_drawn_posterior_elements_leave_unknown_what_lies_above_and_below(levels):
    names = "L1 L2 L3 L4 L5"
    label = column(names)
    annotated = [structure(n).id for n in names.split()]
    label[4:10, 95:110, 120:140] = posterior("L2") if levels == "named" else POSTERIOR_ID
    annotated += [posterior(n) for n in names.split()] if levels == "named" else [POSTERIOR_ID]
    coded = code_label(label, annotated, POSTERIOR_IDS, SPACING)
    drawn = allowed_at(coded, 7, 100, 130)
    assert drawn == {posterior("L2")} if levels == "named" else {posterior("L2"), posterior("L5")} < drawn
    assert 0 not in drawn
    assert not {posterior(n) for n in names.split()} & allowed_at(coded, 7, 120, BEHIND)  # between them nothing is
    assert {0, posterior("T12")} <= allowed_at(coded, 7, 20, BEHIND)
    assert {0, posterior("L6")} <= allowed_at(coded, 7, 200, BEHIND)  # the sacrum's crest is of that kind, too


def test_everything_annotated_leaves_nothing_unknown():
    coded = code_label(column("L3 L4 L5"), IDS, IDS, SPACING)
    assert all(len(s) == 1 for s in coded.sets)


@pytest.mark.parametrize(
    ("extra", "above", "disc", "below"), [("L6", "L5", "L5/S1", "S1"), ("T13", "T12", "T12/L1", "L1")]
)
def test_between_neighbors_that_are_drawn_with_their_disc_is_no_other_vertebra(extra, above, disc, below):
    label = column(f"{above} {below}")
    names = [above, disc, below]
    annotated = [structure(n).id for n in names]

    def anywhere(label):
        return set().union(*code_label(label, annotated, POSTERIOR_IDS, SPACING).sets)

    parts = {structure(extra).id, posterior(extra)}
    assert parts <= anywhere(label)
    label[2:12, 61:65, 60:87] = structure(disc).id
    assert not parts & anywhere(label)
