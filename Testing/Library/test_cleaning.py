"""Islands and spikes are taken out of labels by their size; everything else stays as it is."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from SpineSegAILib.anatomy import Extent, structure
from SpineSegAILib.inference.cleaning import clean
from SpineSegAILib.phantoms.spine import PhantomSpec, make_phantom

SPACING = (4.0, 1.0, 1.0)  # slices, rows, columns
L4, S1, DISC, CANAL = (structure(n).id for n in ("L4", "S1", "L4/L5", "canal"))


def image(values: np.ndarray, spacing=SPACING, direction: str = "PIR") -> sitk.Image:
    made = sitk.GetImageFromArray(values)
    made.SetSpacing(spacing[::-1])
    made.SetDirection((0, 0, -1, 1, 0, 0, 0, -1, 0))
    return sitk.DICOMOrient(made, direction)


def spine() -> np.ndarray:
    """A body, a disc, and S1 as a wedge with a sharp upper back corner."""
    values = np.zeros((12, 100, 60), np.int16)
    values[2:10, 5:30, 15:45] = L4
    values[2:10, 32:38, 14:46] = DISC
    for row in range(40, 70):
        values[2:10, row, 15 : 45 - (row - 40) // 2] = S1
    return values


def cleaned(values: np.ndarray, **more) -> np.ndarray:
    made = image(values, **more)
    return sitk.GetArrayFromImage(sitk.DICOMOrient(clean(made, Extent.BODY), "PIR"))


@pytest.mark.parametrize("direction", ["PIR", "LPS", "RSA"])
def test_islands_go_by_their_size_and_the_rest_stays(direction):
    values = spine()
    noisy = values.copy()
    noisy[4:6, 80:90, 20:30] = S1  # 800 mm³ below S1, which is one piece
    noisy[4:6, 75:79, 50:55] = L4  # 160 mm³
    noisy[6, 95:97, 5:8] = DISC
    assert (cleaned(noisy, direction=direction) == values).all()


def test_halves_of_a_disc_stay_and_a_sacrum_is_one_piece():
    values = spine()
    values[:, 32:38, 28:32] = 0  # the disc falls into a front and a back part
    assert (cleaned(values) == values).all()
    values[4:8, 75:90, 20:35] = S1  # 3,600 mm³: S2
    assert not (cleaned(values)[:, 75:90] == S1).any()


def test_spikes_of_single_voxels_go_and_corners_stay():
    values = spine()
    noisy = values.copy()
    noisy[5, 30:34, 20] = L4  # downwards, four millimeters, in one slice and one column
    noisy[5, 0:5, 20:26] = L4  # one slice rises above its neighbors: a spike where the coronal plane cuts it
    noisy[10, 20, 20:30] = L4  # a single row in a slice beside the body
    after = cleaned(noisy)
    assert (after[2:10, 5:30, 15:45] == L4).all() and (after == S1)[values == S1].all()
    assert ((after == L4) == (values == L4)).all()


def test_a_rough_edge_is_no_spike():
    values = spine()
    rough = values.copy()
    rough[3, 30, 15:45] = L4  # one row more in one slice
    rough[6, 5, 15:45] = 0  # and one less
    assert (cleaned(rough) == rough).all()


def test_what_is_thin_by_nature_stays():
    values = spine()
    values[5, 5:95, 50:52] = CANAL
    values[:, 95:98] = 0
    assert (cleaned(values) == values).all()


def test_a_single_slice_is_no_spike():
    single = np.zeros((1, 60, 60), np.int16)
    single[0, 10:30, 10:40] = L4
    assert (cleaned(single) == single).all()


def whole_vertebra() -> tuple[np.ndarray, np.ndarray]:
    """L4 with pedicles, laminae and a spinous process in slices of 4.4 mm; and where the processes are."""
    spacing = np.array((4.4, 0.8, 0.8))
    z, y, x = np.meshgrid(*[np.arange(n) * s for n, s in zip((15, 100, 160), spacing, strict=True)], indexing="ij")
    aside = abs(z - 7 * 4.4)
    body = (aside < 22) & (abs(y - 40) < 13) & (abs(x - 30) < 16)
    pedicles = (abs(aside - 13) < 4.5) & (abs(y - 34) < 5) & (x > 44) & (x < 58)
    laminae = (abs(0.9 * aside + 0.9 * (x - 70)) < 4) & (abs(y - 42) < 9) & (x > 50) & (x < 72)
    spinous = (aside < 3) & (abs(y - (44 + (x - 68) / 4)) < 9) & (x > 66) & (x < 98)
    processes = (pedicles | laminae | spinous) & ~body
    return np.where(body | processes, L4, 0).astype(np.int16), processes


def test_whole_vertebrae_keep_their_processes():
    values, processes = whole_vertebra()
    made = image(values, (4.4, 0.8, 0.8))
    whole, body = (sitk.GetArrayFromImage(sitk.DICOMOrient(clean(made, e), "PIR")) for e in (Extent.WHOLE, Extent.BODY))
    assert (whole == values).all()
    assert (body == L4)[processes].mean() < 0.8, "of bodies they are spikes and islands"
    values[2:4, 90:92, 2:6] = L4  # 45 mm³
    assert not (sitk.GetArrayFromImage(clean(image(values, (4.4, 0.8, 0.8)), Extent.WHOLE))[2:4, 90:92, 2:6]).any()


@pytest.mark.parametrize("seed", range(3))
def test_good_labels_stay_voxel_by_voxel(seed):
    phantom = make_phantom(
        PhantomSpec(top="T12", listhesis={"L5": 8.0}, wedge={"L1": 0.4}), np.random.default_rng(seed)
    )
    before = sitk.GetArrayFromImage(phantom.labels)
    changed = sitk.GetArrayFromImage(clean(phantom.labels, Extent.BODY)) != before
    assert changed.sum() < 0.0005 * (before > 0).sum()
