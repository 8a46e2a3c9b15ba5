"""Local repair: what is outside stays, shapes between slices are right, gaps stay open."""

from __future__ import annotations

import time

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from SpineSegAILib.anatomy import structure
from SpineSegAILib.correction import Correction
from SpineSegAILib.correction.voxels import array_axis, interpolate, replace_inside, smooth
from SpineSegAILib.errors import CorrectionError

L3, L4, DISC = (structure(name).id for name in ("L3", "L4", "L3/L4"))
SPACING = (3.0, 1.0, 1.0)


def image_of(values: np.ndarray, spacing=SPACING) -> sitk.Image:
    """Slices to the left, rows downwards, columns backwards."""
    image = sitk.GetImageFromArray(values.astype(np.int16))
    image.SetSpacing(spacing[::-1])
    image.SetOrigin((3.0, -5.0, 70.0))
    image.SetDirection((0, 0, 1, 1, 0, 0, 0, -1, 0))
    return image


def grid(shape=(21, 60, 60), spacing=SPACING):
    return np.meshgrid(*((np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij")


def ellipsoid(radii=(24.0, 15.0, 20.0), shift=(0.0, 0.0, 0.0), **more) -> np.ndarray:
    return sum(((x - d) / r) ** 2 for x, d, r in zip(grid(**more), shift, radii, strict=True)) <= 1


def dice(a, b) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def applied(correction: Correction, image: sitk.Image) -> np.ndarray:
    return correction.apply(sitk.GetArrayFromImage(image))


# --- regions ----------------------------------------------------------------------------------------------------------


def test_slicing_directions_of_any_orientation():
    image = image_of(np.zeros((5, 6, 7)))
    assert [array_axis(image, s) for s in ("sagittal", "axial", "coronal")] == [0, 1, 2]
    other = sitk.DICOMOrient(image, "LPS")
    assert [array_axis(other, s) for s in ("sagittal", "axial", "coronal")] == [2, 0, 1]
    with pytest.raises(CorrectionError, match="not a slice direction"):
        array_axis(image, "oblique")


@pytest.mark.parametrize("where", ["box", "slices"])
def test_outside_the_region_nothing_changes(where):
    rng = np.random.default_rng(3)
    before, new = (rng.choice([0, L3, L4, DISC], size=(5, 8, 9)) for _ in range(2))
    image = image_of(before)
    region = (
        (slice(1, 3), slice(2, 6), slice(0, 9))
        if where == "box"
        else np.isin(np.arange(5), [0, 3])[:, None, None] & np.ones(before.shape, bool)
    )
    inside = np.zeros(before.shape, bool)
    inside[region] = True
    after = applied(replace_inside(image, new, region), image)
    assert np.array_equal(after[~inside], before[~inside])
    assert np.array_equal(after[inside], new[inside])

    made = replace_inside(image, new, region, locked=[L4])
    after = applied(made, image)
    assert np.array_equal(after == L4, before == L4)
    assert np.array_equal(made.undo(before).apply(after), before)

    after = applied(replace_inside(image, new, region, structures=[DISC]), image)
    assert np.array_equal(np.isin(after, [L3, L4]), np.isin(before, [L3, L4]))
    assert np.array_equal((after == DISC)[inside], (np.where(np.isin(before, [L3, L4]), 0, new) == DISC)[inside])


def test_regions_that_cannot_be():
    image = image_of(np.full((5, 6, 7), L3))
    with pytest.raises(CorrectionError, match="another grid"):
        replace_inside(image, np.zeros((2, 2, 2)), (slice(0, 1),) * 3)
    with pytest.raises(CorrectionError, match="Every structure is locked"):
        replace_inside(image, np.zeros((5, 6, 7)), (slice(0, 1),) * 3, locked=[L3])
    with pytest.raises(CorrectionError, match="region is empty"):
        replace_inside(image, np.zeros((5, 6, 7)), np.zeros((5, 6, 7), bool))


# --- interpolation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lean", [0.0, 12.0])
def test_slices_between_corrected_ones(lean):
    z, y, x = grid()
    truth = ((y / 15) ** 2 + ((x - lean * z / 30) / 20) ** 2 <= 1 - (z / 60) ** 2) & (abs(z) <= 24)
    broken = truth.copy()
    keys = [2, 6, 10, 14, 18]
    for k in set(range(21)) - set(keys):
        broken[k] = np.roll(truth[k], 9, axis=0)
    image = image_of(np.where(broken, L3, 0))
    after = applied(interpolate(image, L3, "sagittal", keys), image)
    assert np.array_equal((after == L3)[keys], broken[keys])
    assert dice((after == L3)[2:19], truth[2:19]) > 0.985
    assert dice(broken[2:19], truth[2:19]) < 0.85


def test_gaps_are_filled_where_no_slices_are_named():
    body = ellipsoid()
    values = np.where(body, L3, 0)
    values[[7, 8, 12]] = 0
    image = image_of(values)
    assert dice(applied(interpolate(image, L3), image) == L3, body) > 0.98


def test_interpolation_leaves_others_alone():
    body = ellipsoid()
    values = np.where(body, L3, 0)
    values[9:12] = 0
    values[10, 20:40, 20:30] = L4
    image = image_of(values)
    made = interpolate(image, L3)
    after = applied(made, image)
    assert np.array_equal(after == L4, values == L4)
    assert (after[9] == L3).any()
    assert np.array_equal(made.undo(values).apply(after), values)


def test_what_cannot_be_interpolated():
    body = ellipsoid()
    image = image_of(np.where(body, L3, 0))
    for slices, message in (
        ([3], "no slice of L3 to interpolate"),
        ([9, 10], "no slice of L3 to interpolate"),
        ([0, 10], "L3 is not drawn on slice 0"),
        ([3, 99], "no slice 99"),
    ):
        with pytest.raises(CorrectionError, match=message):
            interpolate(image, L3, "sagittal", slices)
    with pytest.raises(CorrectionError, match="no slice of L3"):
        interpolate(image, L3)
    with pytest.raises(CorrectionError, match="L4 is not labeled"):
        interpolate(image, L4)
    with pytest.raises(CorrectionError, match="L3 is locked"):
        interpolate(image, L3, locked=[L3])


# --- smoothing --------------------------------------------------------------------------------------------------------


def test_rough_edges_become_smooth():
    rng = np.random.default_rng(0)
    body = ellipsoid(shape=(31, 60, 60), spacing=(1.5, 1.0, 1.0))
    rim = ndimage.binary_dilation(body) ^ ndimage.binary_erosion(body)
    rough = body ^ (rim & (rng.random(body.shape) < 0.4))
    image = image_of(np.where(rough, L3, 0), (1.5, 1.0, 1.0))
    after = applied(smooth(image, L3, 1.5), image) == L3
    assert after.sum() == rough.sum()
    assert dice(after, body) > 0.985 > 0.97 > dice(rough, body)
    assert ndimage.label(after)[1] == 1


@pytest.mark.parametrize("gap", [1, 2])
@pytest.mark.parametrize("mm", [1.0, 3.0])
def test_a_gap_stays_open(gap, mm):
    values = np.zeros((12, 60, 50))
    values[2:10, 5:27, 8:42] = L3
    values[2:10, 27 + gap : 50, 8:42] = L4
    values[4:6, 24:27, 12:20] = 0
    image = image_of(values)
    made = smooth(image, L3, mm)
    after = applied(made, image)
    assert made.patch is not None
    assert np.array_equal(after == L4, values == L4)
    near = ndimage.binary_dilation(values == L4, ndimage.generate_binary_structure(3, 1))
    assert not (near & (after == L3)).any()


def test_a_thin_disc_is_not_smoothed_away():
    values = np.zeros((12, 40, 50))
    values[2:10, 20:23, 8:42] = DISC
    image = image_of(values)
    after = applied(smooth(image, DISC, 1.5), image)
    assert (after == DISC).sum() == (values == DISC).sum()
    assert dice(after == DISC, values == DISC) > 0.8


def test_smoothing_by_nonsense():
    image = image_of(np.where(ellipsoid(), L3, 0))
    for mm in (0.0, -1.0, 11.0, float("nan")):
        with pytest.raises(CorrectionError, match="cannot be smoothed"):
            smooth(image, L3, mm)
    with pytest.raises(CorrectionError, match="L3 is locked"):
        smooth(image, L3, 1.0, locked=[L3])


def test_the_tools_are_quick_on_a_large_case():
    values = np.zeros((39, 305, 305), np.int16)
    values[8:30, 120:142, 120:148] = L3
    values[[12, 13, 20]] = 0
    image = image_of(values, (2.0, 1.25, 1.25))
    for tool in (lambda: smooth(image, L3, 2.0), lambda: interpolate(image, L3)):
        started = time.process_time()  # of this process alone: the machine may be busy
        tool().apply(values)
        assert time.process_time() - started < 0.6
