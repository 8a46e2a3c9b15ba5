"""Whole vertebrae as a view of bodies and posterior elements."""

import numpy as np
import pytest
import SimpleITK as sitk

from SpineSegAILib.anatomy import Extent, scheme, structure
from SpineSegAILib.errors import ConfigError
from SpineSegAILib.results import Segmentation, read_segmentation, whole_vertebrae

BODY, ARCH, CORD = structure("L4").id, structure("L4 posterior elements").id, structure("cord").id


def result(name: str = "lumbar-mr-posterior+cord") -> Segmentation:
    labels = np.zeros((4, 30, 60), np.int16)
    labels[:, 5:25, 5:25] = BODY
    labels[0, 5:15, 27:40] = ARCH  # a pedicle, two pixels behind the body
    labels[1:, 5:25, 40:50] = ARCH
    labels[:, 2:28, 30:34] = np.where(labels[:, 2:28, 30:34] == 0, CORD, labels[:, 2:28, 30:34])
    labels[1:, 26:29, 45:55] = structure("L5 posterior elements").id  # its body is out of view
    image = sitk.GetImageFromArray(labels)
    return Segmentation(
        image,
        scheme(name),
        outline_quality={BODY: 0.9, ARCH: 0.8},
        unvalidated=frozenset({ARCH, structure("T9 posterior elements").id, structure("T9").id}),
    )


def test_a_vertebra_and_its_posterior_elements_become_one():
    before = result()
    whole = whole_vertebrae(before)
    labels = sitk.GetArrayFromImage(whole.labels)
    assert {int(i) for i in np.unique(labels) if i} == {BODY, CORD}
    assert (labels[1:, 5:25, 40:50] == BODY).all() and (labels[0, 5:15, 27:40] != 0).all()
    assert (labels[0, 5:15, 25:27] == BODY).all()  # the gap between two outlines
    assert (labels[1:, 5:25, 25:30] == 0).all()  # the room before the canal is no gap
    assert whole.scheme.extent is Extent.WHOLE and CORD in whole.scheme.ids
    assert whole.name_of(BODY) == "L4 vertebra" and before.name_of(BODY) == "L4 vertebra (body)"
    assert whole.outline_quality == {BODY: 0.9} and whole.unvalidated == {structure("T9").id}
    assert whole.warnings == ["The posterior elements of L4 are experimental."]
    assert (sitk.GetArrayViewFromImage(before.labels) == ARCH).any()  # a view: what it is made of stays


def test_a_view_is_read_back_as_what_it_is(tmp_path):
    path = tmp_path / "whole.seg.nrrd"
    whole_vertebrae(result()).write(path)
    read = read_segmentation(path)
    assert read.scheme.extent is Extent.WHOLE and read.name_of(BODY) == "L4 vertebra"


def test_whole_stays_whole_and_bodies_alone_cannot_become_it():
    whole = whole_vertebrae(result())
    assert whole_vertebrae(whole) is whole
    with pytest.raises(ConfigError, match="need posterior elements"):
        whole_vertebrae(result("lumbar-mr").without([ARCH, structure("L5 posterior elements").id]))
