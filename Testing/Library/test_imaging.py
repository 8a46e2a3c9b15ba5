"""Geometry there and back, intensities, and what is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_data import SHARED_DATA

from SpineSegAILib.errors import ImageError
from SpineSegAILib.imaging import (
    Geometry,
    Preprocessing,
    back_to_source,
    check_image,
    plane,
    plausibility_warnings,
    read_file,
    read_image,
    resample_to_source,
)
from SpineSegAILib.imaging.checks import refuse_lateral
from SpineSegAILib.imaging.geometry import ids_in, like
from SpineSegAILib.imaging.tags import VIEW_TAG, tag_of

ANY_PLANE = ("sagittal", "axial", "coronal", "isotropic", "single-slice")
AXIS_CODES = ["PIR", "LPS", "RAS", "ASL", "SAL", "IPR", "LIP", "RSA", "PSL", "AIR"]


def volume(size=(12, 14, 8), spacing=(1.0, 1.0, 4.0), code="PIR", seed=0, oblique=(0.0, 0.0, 0.0), origin=(0, 0, 0)):
    """A smooth random image; size and spacing are those of the PIR axes, before the axes are reordered to `code`."""
    rng = np.random.default_rng(seed)
    image = sitk.GetImageFromArray(rng.normal(100, 20, size[::-1]).astype(np.float32))
    image.SetSpacing(spacing)
    euler = sitk.Euler3DTransform()
    euler.SetRotation(*oblique)
    pir = np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]], float)
    image.SetDirection((np.array(euler.GetMatrix()).reshape(3, 3) @ pir).ravel().tolist())
    image.SetOrigin(origin)
    return image if code == "PIR" else sitk.DICOMOrient(image, code)


def blob(image: sitk.Image, center_fraction=0.5, radius_mm=9.0) -> sitk.Image:
    """A ball in the middle of an image's field of view, as a label image."""
    size = np.array(image.GetSize(), float)
    center = np.array(image.TransformContinuousIndexToPhysicalPoint(((size - 1) * center_fraction).tolist()))
    z, y, x = np.indices(image.GetSize()[::-1])
    index = np.stack([x, y, z], -1) * image.GetSpacing()
    points = index @ np.array(image.GetDirection()).reshape(3, 3).T + image.GetOrigin()
    label = sitk.GetImageFromArray((np.linalg.norm(points - center, axis=-1) < radius_mm).astype(np.int16) * 22)
    label.CopyInformation(image)
    return label


geometries = st.fixed_dictionaries(
    {
        "size": st.tuples(*[st.integers(2, 24)] * 3),
        "spacing": st.tuples(*[st.floats(0.3, 6.0)] * 3),
        "code": st.sampled_from(AXIS_CODES),
        "oblique": st.tuples(*[st.floats(-0.6, 0.6).map(lambda a: round(a, 6))] * 3),
        "origin": st.tuples(*[st.floats(-300, 300)] * 3),
    }
)


@settings(max_examples=60, deadline=None)
@given(geometries, st.floats(0.5, 3.0), st.floats(0.5, 5.0))
def test_the_way_back_has_the_sources_geometry_whatever_it_is(geometry, pixel_mm, slice_mm):
    image = volume(**geometry)
    canonical = Preprocessing(pixel_mm=pixel_mm, min_slice_mm=slice_mm, planes=ANY_PLANE).apply(image)
    labels = back_to_source(np.zeros(canonical.array.shape), canonical, order=0, dtype=np.int16)
    for got in (labels, back_to_source(canonical.array, canonical)):
        assert Geometry.of(got) == Geometry.of(image)
    assert canonical.array.dtype == np.float32
    assert canonical.array.min() >= -2 and canonical.array.max() <= 2


@settings(max_examples=40, deadline=None)
@given(geometries, st.floats(0.5, 3.0), st.floats(0.5, 5.0))
def test_nothing_moves_by_resampling(geometry, pixel_mm, slice_mm):
    """Both grids have the same center, and points and indices agree with SimpleITK's own image of the volume."""
    image = volume(**geometry)
    canonical = Preprocessing(pixel_mm=pixel_mm, min_slice_mm=slice_mm, planes=ANY_PLANE).apply(image)

    def center(i):
        return np.array(i.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in i.GetSize()]))

    assert np.allclose(center(image), center(canonical.image), atol=1e-6)
    point = image.TransformContinuousIndexToPhysicalPoint([0.3, 1.2, 0.9])
    index = canonical.index_of(point)
    assert np.allclose(index[::-1], canonical.image.TransformPhysicalPointToContinuousIndex(point), atol=1e-6)
    assert np.allclose(canonical.point_of(index), point)


@pytest.mark.parametrize("code", AXIS_CODES)
def test_labels_survive_the_canonical_grid(code):
    image = volume(size=(60, 70, 14), spacing=(0.9, 0.9, 3.5), code=code, oblique=(0.1, -0.2, 0.15), origin=(5, -7, 90))
    label = blob(image)
    preprocessing = Preprocessing(pixel_mm=0.7)
    canonical = preprocessing.apply(image)
    array = preprocessing.apply_to_labels(label, canonical)
    back = back_to_source(array, canonical, order=0, dtype=np.int16)
    before, after = (sitk.GetArrayFromImage(x) == 22 for x in (label, back))
    assert 2 * (before & after).sum() / (before.sum() + after.sum()) > 0.97
    # Its center on the canonical grid is the ball's center.
    center = canonical.point_of(np.argwhere(array == 22).mean(axis=0))
    stats = sitk.LabelShapeStatisticsImageFilter()
    stats.Execute(sitk.Cast(label, sitk.sitkUInt8))
    assert np.linalg.norm(np.subtract(center, stats.GetCentroid(22))) < 0.45


@pytest.mark.parametrize("code", AXIS_CODES)
def test_the_canonical_grid_does_not_depend_on_the_stored_orientation(code):
    preprocessing = Preprocessing(pixel_mm=0.8)
    reference = preprocessing.apply(volume(oblique=(0.2, 0.1, -0.3)))
    canonical = preprocessing.apply(volume(oblique=(0.2, 0.1, -0.3), code=code))
    assert np.array_equal(canonical.array, reference.array)
    assert canonical.geometry.matches(reference.geometry)


def test_the_canonical_axes_run_to_the_right_downwards_and_backwards():
    image = volume(size=(30, 30, 10), code="RAS")
    canonical = Preprocessing().apply(image)
    index = np.array(canonical.index_of((0.0, 0.0, 0.0)))
    for axis, lps in enumerate([(-4.0, 0, 0), (0, 0, -1.0), (0, 1.0, 0)]):
        step = np.array(canonical.index_of(lps)) - index
        assert np.allclose(step, np.eye(3)[axis])


def test_a_label_on_another_grid_is_brought_to_the_images():
    image = volume(size=(60, 70, 14), spacing=(0.9, 0.9, 3.5))
    fine = volume(size=(110, 120, 40), spacing=(0.5, 0.5, 1.25), code="LPS")
    label = blob(fine)
    canonical = Preprocessing(pixel_mm=0.9).apply(image)
    array = Preprocessing(pixel_mm=0.9).apply_to_labels(label, canonical)
    volume_mm3 = (array == 22).sum() * np.prod(canonical.spacing)
    assert volume_mm3 == pytest.approx((sitk.GetArrayViewFromImage(label) == 22).sum() * 0.5 * 0.5 * 1.25, rel=0.1)


def test_many_channels_go_back_as_one_does():
    canonical = Preprocessing(pixel_mm=1.5).apply(volume(size=(30, 40, 6), code="LPS"))
    arrays = np.random.default_rng(1).random((3, *canonical.array.shape)).astype(np.float32)
    many = resample_to_source(arrays, canonical)
    for one, array in zip(many, arrays, strict=True):
        assert np.array_equal(one, sitk.GetArrayFromImage(back_to_source(array, canonical)))


def test_resampling_is_linear_where_it_can_be_and_smooths_where_it_must():
    size = (64, 64, 3)
    ramp = np.broadcast_to(np.arange(64, dtype=np.float32), size[::-1]).copy()
    image = volume(size=size)
    ramp_image = sitk.GetImageFromArray(ramp)
    ramp_image.CopyInformation(image)
    preprocessing = Preprocessing(pixel_mm=0.5, low=0, high=100)
    canonical = preprocessing.apply(ramp_image)
    inner = canonical.array[1, 10, 8:-8]
    assert np.allclose(np.diff(inner), 4 / 63 / 2, atol=1e-5)
    stripes = sitk.GetImageFromArray(np.broadcast_to(np.arange(64) % 2, size[::-1]).astype(np.float32))
    stripes.CopyInformation(image)
    coarse = Preprocessing(pixel_mm=2.4, low=0, high=100).apply(stripes).array
    assert np.abs(coarse[:, :, 2:-2]).max() < 0.4  # the stripes average out instead of folding into false ones


def test_thin_slices_are_brought_to_the_minimum_spacing():
    canonical = Preprocessing(pixel_mm=1.0, min_slice_mm=2.0).apply(volume(size=(20, 20, 40), spacing=(1, 1, 1)))
    assert canonical.array.shape == (20, 20, 20) and canonical.spacing == pytest.approx((2, 1, 1))


def test_hounsfield_window():
    image = volume()
    array = np.full(image.GetSize()[::-1], -1000.0, np.float32)
    array[2], array[3], array[4] = 200, 500, 3000
    ct = sitk.GetImageFromArray(array)
    ct.CopyInformation(image)
    got = Preprocessing(intensity="hu", low=-100, high=500, modality="CT").apply(ct).array
    assert np.allclose([got[0, 5, 5], got[2, 5, 5], got[3, 5, 5], got[4, 5, 5]], [-2, 0, 2, 2])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("value", [1e300, -1e39, 3.4e38])
def test_a_voxel_beyond_all_others_spoils_no_slice(value, dtype):
    image = volume(size=(40, 50, 6))
    plain = sitk.GetArrayFromImage(image).astype(dtype)
    array = plain.copy()
    array[3, 20, 20:22] = np.clip(value, float(np.finfo(dtype).min), float(np.finfo(dtype).max))
    for pixel_mm in (1.0, 1.25, 0.8):
        one, other = (Preprocessing(pixel_mm=pixel_mm).apply(like(image, a)).array for a in (array, plain))
        assert np.isfinite(one).all() and (abs(one - other) > 0.05).mean() < 0.01


def test_forward_does_not_change_its_input_and_may_be_written_to():
    image = volume(size=(10, 10, 4), spacing=(1, 1, 4))
    before = sitk.GetArrayFromImage(image)
    canonical = Preprocessing(pixel_mm=1.0).apply(image)
    canonical.array[...] = 7
    assert np.array_equal(before, sitk.GetArrayFromImage(image))


def test_preprocessing_is_json():
    preprocessing = Preprocessing(pixel_mm=0.9, intensity="hu", low=-200, high=800)
    assert Preprocessing.model_validate_json(preprocessing.model_dump_json()) == preprocessing
    for wrong in ({"low": 5, "high": 5}, {"high": 120}, {"pixel_mm": 0}, {"pixels": 1}):
        with pytest.raises(ValueError):
            Preprocessing(**wrong)


# --- planes and refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [
        ((1, 1, 4), "sagittal"),
        ((1, 4, 1), "axial"),
        ((4, 1, 1), "coronal"),
        ((1, 1, 1.3), "isotropic"),
        ((0.3, 0.3, 1), "isotropic"),
    ],
)
@pytest.mark.parametrize("code", ["PIR", "LPS", "RSA"])
def test_plane(spacing, expected, code):
    assert plane(volume(spacing=spacing, code=code, oblique=(0.2, 0.3, -0.2))) == expected


def test_an_axial_stack_is_refused_by_name():
    with pytest.raises(ImageError, match="axial"):
        Preprocessing().apply(volume(spacing=(1, 4, 1)))
    assert Preprocessing(planes=("axial",)).apply(volume(spacing=(1, 4, 1))).array.shape[1] == 56


def changed(**kwargs):
    image = volume()
    if "value" in kwargs:
        image[3, 3, 3] = kwargs["value"]
    if "spacing" in kwargs:
        image.SetSpacing(kwargs["spacing"])
    if "direction" in kwargs:
        image.SetDirection(kwargs["direction"])
    return image


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (changed(value=float("nan")), "not finite"),
        (changed(value=float("inf")), "not finite"),
        (changed(spacing=(1, 1, 80.0)), "80 mm"),
        (changed(spacing=(0.001, 1, 1)), "0.001"),
        (changed(direction=(1, 0.3, 0, 0, 1, 0, 0, 0, 1)), "not perpendicular"),
        (sitk.Image([8, 8, 8], sitk.sitkInt16), "same everywhere"),
        (sitk.Image([8, 8], sitk.sitkVectorUInt8, 3), "3 values per pixel"),
        (sitk.Image([4, 4, 4, 5], sitk.sitkInt16), "4 dimensions"),
        (sitk.Image([4, 4, 4], sitk.sitkComplexFloat32), "complex"),
    ],
)
def test_unusable_images_are_refused_with_the_reason(image, words):
    with pytest.raises(ImageError, match=words) as error:
        check_image(image, name="exam")
    assert "exam" in error.value.message and error.value.remedy


def test_a_fourth_dimension_of_one_is_no_obstacle():
    assert check_image(sitk.JoinSeries(volume())).GetSize() == (12, 14, 8)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_files_are_read_as_they_were_written(tmp_path, suffix):
    image = volume(code="LPS", oblique=(0.1, 0.2, 0.3), origin=(10, -20, 30))
    sitk.WriteImage(image, str(tmp_path / f"exam{suffix}"))
    assert Geometry.of(read_image(tmp_path / f"exam{suffix}")).matches(Geometry.of(image))


def test_a_picture_is_one_slice_with_rows_downwards(tmp_path):
    pixels = np.zeros((20, 30), np.uint8)
    pixels[2, 25] = 200
    for name, array in (("grey.png", pixels), ("grey_in_color.png", np.repeat(pixels[..., None], 3, -1))):
        sitk.WriteImage(sitk.GetImageFromArray(array, isVector=array.ndim == 3), str(tmp_path / name))
        image = read_image(tmp_path / name)
        canonical = Preprocessing(low=0, high=100).apply(image)
        assert plane(image) == "single-slice" and canonical.array.shape == (1, 20, 30)
        assert canonical.array[0, 2, 25] == canonical.array.max()
    rng = np.random.default_rng(1)
    xray = np.repeat(rng.integers(60, 90, (64, 48, 1)), 3, -1) + rng.integers(-3, 4, (64, 48, 3))  # as JPEG leaves it
    sitk.WriteImage(sitk.GetImageFromArray(xray.astype(np.uint8), isVector=True), str(tmp_path / "grey.jpg"))
    assert read_image(tmp_path / "grey.jpg").GetNumberOfComponentsPerPixel() == 1
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=True), str(tmp_path / "color.png"))
    with pytest.raises(ImageError, match=r"color\.png has 3 values per pixel"):
        read_image(tmp_path / "color.png")


@pytest.mark.parametrize("code", ["LPS", "RAS", "PIR", "LIP"])
def test_single_slices_of_any_plane_go_there_and_back(code):
    for axis in range(3):
        size = [16, 18, 20]
        size[axis] = 1
        image = volume(size=tuple(size), code=code)
        canonical = Preprocessing(pixel_mm=0.8).apply(image)
        assert canonical.array.shape[0] == 1
        assert Geometry.of(back_to_source(canonical.array, canonical)) == Geometry.of(image)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ImageError, match="no file or folder"):
        read_image(tmp_path / "missing.nii.gz")
    (tmp_path / "empty.nii.gz").touch()
    with pytest.raises(ImageError, match="empty"):
        read_image(tmp_path / "empty.nii.gz")
    (tmp_path / "text.nii.gz").write_text("this is no image")
    with pytest.raises(ImageError, match=r"text\.nii\.gz cannot be read"):
        read_image(tmp_path / "text.nii.gz")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ImageError, match="no DICOM series"):
        read_image(tmp_path / "folder")


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.nrrd", "a.mha", "a.png", "a.jpg"])
def test_files_that_were_cut_off_are_refused(tmp_path, name):
    picture = name.endswith(("png", "jpg"))
    image = volume(size=(60, 60, 20))
    sitk.WriteImage(sitk.Cast(image[:, :, 5], sitk.sitkUInt8) if picture else image, str(tmp_path / name))
    assert read_image(tmp_path / name).GetNumberOfPixels() >= 60 * 60
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(ImageError, match=f"{name} cannot be read"):
        read_image(tmp_path / name)


def test_a_sheared_file_is_refused(tmp_path):
    sitk.WriteImage(volume(), str(tmp_path / "a.nii"))
    data = bytearray((tmp_path / "a.nii").read_bytes())
    struct.pack_into("<2h", data, 252, 0, 1)  # qform and sform codes
    struct.pack_into("<12f", data, 280, 1, 0.4, 0, 0, 0, 1, 0, 0, 0, 0, 4, 0)
    (tmp_path / "a.nii").write_bytes(data)
    with pytest.raises(ImageError, match="not perpendicular"):
        read_image(tmp_path / "a.nii")


# --- DICOM --------------------------------------------------------------------------------------------------------


def write_series(folder: Path, uid: str, description: str, image: sitk.Image, skip=(), modality="MR", origins=None):
    """Write slices as DICOM files in shuffled order of names."""
    folder.mkdir(exist_ok=True, parents=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    image = sitk.Cast(image, sitk.sitkInt16)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    for k in range(image.GetSize()[2]):
        if k in skip:
            continue
        piece = image[:, :, k]
        origin = image.TransformIndexToPhysicalPoint((0, 0, k if origins is None else origins[k]))
        piece = sitk.JoinSeries(piece)
        tags = {
            "0008|0060": modality,
            "0008|103e": description,
            "0008|0016": "1.2.840.10008.5.1.4.1.1.4",
            "0008|0018": f"1.2.3.{uid}.{k + 1}",
            "0020|000d": "1.2.3.1",
            "0020|000e": f"1.2.3.{uid}",
            "0020|0013": str(k),
            "0020|0032": "\\".join(f"{v:.6f}" for v in origin),
            "0020|0037": "\\".join(f"{v:.8f}" for v in (*direction[:, 0], *direction[:, 1])),
            "0028|0030": "\\".join(f"{v:.6f}" for v in image.GetSpacing()[1::-1]),
        }
        for key, value in tags.items():
            piece.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{uid}_{(k * 7) % 11:02d}.dcm"))
        writer.Execute(piece)


@pytest.fixture
def mr():
    return volume(size=(16, 18, 9), spacing=(0.9, 0.9, 4.4), oblique=(0.05, 0.1, -0.08), origin=(30, -80, 100))


def test_a_dicom_series_is_one_volume(tmp_path, mr):
    write_series(tmp_path / "exam" / "series", "5", "T2 sag", mr)
    for path in (tmp_path / "exam", tmp_path / "exam" / "series", next((tmp_path / "exam" / "series").iterdir())):
        got = read_image(path)
        canonical, reference = (Preprocessing(pixel_mm=0.9).apply(i) for i in (got, sitk.Cast(mr, sitk.sitkInt16)))
        assert np.allclose(canonical.array, reference.array)
        assert Geometry.of(canonical.image).matches(Geometry.of(reference.image))


def test_several_series_are_listed_and_one_can_be_chosen_by_a_file(tmp_path, mr):
    write_series(tmp_path, "5", "T2 sag", mr)
    write_series(tmp_path, "6", "T1 sag", mr * 2)
    with pytest.raises(ImageError, match=r"T1 sag.*T2 sag") as error:
        read_image(tmp_path)
    assert "one file of the series" in error.value.remedy
    image = read_image(next(tmp_path.glob("6_*")))
    assert image.GetSize()[2] == 9 and sitk.GetArrayViewFromImage(image).mean() > 150


def test_a_missing_slice_is_noticed(tmp_path, mr):
    write_series(tmp_path, "5", "T2 sag", mr, skip=(4,))
    with pytest.raises(ImageError, match=r"T2 sag.*gaps"):
        read_image(tmp_path)


def test_a_tilted_gantry_is_noticed(tmp_path, mr):
    image = sitk.Cast(mr, sitk.sitkInt16)
    for k in range(9):  # every slice a series of one, moved in its own plane
        moved = image[:, :, k : k + 1]
        side = np.array(image.GetDirection()).reshape(3, 3)[:, 1]
        moved.SetOrigin((np.array(moved.GetOrigin()) + 0.6 * k * side).tolist())
        write_series(tmp_path / str(k), "5", "tilted", moved)
    together = tmp_path / "all"
    together.mkdir()
    for k in range(9):
        data = (tmp_path / str(k) / "5_00.dcm").read_bytes()
        (together / f"{k}.dcm").write_bytes(data.replace(b"1.2.3.5.1", f"1.2.3.5.{k + 1}".encode()))
    with pytest.raises(ImageError, match=r"tilted.* shifted against each other by up to 4.8 mm"):
        read_image(together)


def test_the_file_that_was_asked_for_is_read_whatever_lies_beside_it(tmp_path):
    one, other = volume(), volume(seed=1)
    sitk.WriteImage(one, str(tmp_path / "a.nii.gz"))
    sitk.WriteImage(other, str(tmp_path / "a.nii"))
    for found in (read_image(tmp_path / "a.nii.gz"), read_file(tmp_path / "a.nii.gz")):
        assert np.array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(one))
    assert np.array_equal(sitk.GetArrayFromImage(read_image(tmp_path / "a.nii")), sitk.GetArrayFromImage(other))


def test_doubts_about_the_modality_and_the_view(tmp_path):
    image = volume(size=(40, 50, 6))
    assert (
        plausibility_warnings(image, "MR")
        == plausibility_warnings(image, "CT")
        == plausibility_warnings(image, "")
        == []
    )
    hounsfield = sitk.Cast(image, sitk.sitkInt16) - 1050 * sitk.Cast(image > 110, sitk.sitkInt16)
    assert (
        "seems to be CT" in plausibility_warnings(hounsfield, "MR")[0] and plausibility_warnings(hounsfield, "CT") == []
    )
    write_series(tmp_path / "ct", "5", "bone", image, modality="CT")
    write_series(tmp_path / "xr", "6", "lateral", image[:, :, :1], modality="DX")
    ct, radiograph = read_image(tmp_path / "ct"), read_image(next((tmp_path / "xr").iterdir()))
    assert "Choose a checkpoint for CT" in plausibility_warnings(ct, "MR")[0]
    assert (
        "seems to be radiographs" in plausibility_warnings(radiograph, "MR")[0]
        and plausibility_warnings(radiograph, "XR") == []
    )
    assert plausibility_warnings(read_image(tmp_path / "ct"), "any") == []
    image.SetSpacing((0.1, 0.1, 4.0))
    assert "shows 5 by 4 mm" in plausibility_warnings(image, "MR")[0]


def test_echoes_in_one_series_are_noticed(tmp_path, mr):
    write_series(tmp_path, "5", "two echoes", mr, origins=[0, 0, 1, 1, 2, 2, 3, 3, 4])
    with pytest.raises(ImageError, match="several images at one place"):
        read_image(tmp_path)


def test_a_localizer_is_noticed(tmp_path, mr):
    write_series(tmp_path, "5", "localizer", mr)
    axial = sitk.DICOMOrient(volume(size=(16, 6, 18)), "LPS")
    write_series(tmp_path / "more", "5", "localizer", axial)
    with pytest.raises(ImageError, match="localizer"):
        read_image(tmp_path)


def test_a_radiograph_is_one_slice_with_rows_downwards(tmp_path):
    pixels = np.zeros((1, 20, 30), np.int16)
    pixels[0, 2, 25] = 200
    image = sitk.GetImageFromArray(pixels)
    image.SetSpacing((0.5, 0.5, 1))
    write_series(tmp_path, "5", "lumbar AP", image, modality="DX")
    canonical = Preprocessing(pixel_mm=0.5, low=0, high=100).apply(read_image(tmp_path))
    assert canonical.array.shape == (1, 20, 30) and canonical.array[0, 2, 25] == canonical.array.max()


@pytest.mark.parametrize("view", ["LL", "AP", None])
def test_from_where_a_radiograph_was_taken_is_read(tmp_path, view):
    image = sitk.Cast(volume(size=(30, 20, 1)), sitk.sitkInt16)
    write_series(tmp_path, "5", "whole spine", image, modality="DX")
    (path,) = tmp_path.iterdir()
    dataset = pydicom.dcmread(path)
    if view is not None:
        dataset.ViewPosition = view
        dataset.save_as(path)
    read = read_image(path)
    assert tag_of(read, VIEW_TAG) == (view or "")
    if view == "LL":
        with pytest.raises(ImageError, match=r"“LL”.* lateral film"):
            refuse_lateral(read)
    else:
        refuse_lateral(read)


def test_a_radiograph_in_which_dense_is_dark_is_turned_round(tmp_path):
    image = sitk.Cast(volume(size=(30, 20, 1)), sitk.sitkInt16)
    found = []
    for name in ("MONOCHROME2", "MONOCHROME1"):
        write_series(tmp_path / name, "5", "lateral", image, modality="DX")
        (file,) = (tmp_path / name).iterdir()
        file.write_bytes(file.read_bytes().replace(b"MONOCHROME2", name.encode()))
        found.append(sitk.GetArrayFromImage(read_image(file)).astype(int))
    usual, other = found
    assert np.ptp(usual + other) == 0 and np.ptp(other) > 100, "ITK does it; our networks rely on it"


@pytest.mark.parametrize(("value", "share"), [(-32768, 0.03), (-32768, 0.4), (32767, 0.03)])
def test_padding_does_not_take_part_in_the_contrast(value, share):
    image = sitk.Cast(volume(size=(40, 50, 6)), sitk.sitkInt16)
    array = sitk.GetArrayFromImage(image)
    wide = int(share * array.shape[2])
    array[:, :, :wide] = value
    padded = sitk.GetImageFromArray(array)
    padded.CopyInformation(image)
    plain, found = (Preprocessing(pixel_mm=1.0).apply(i).array for i in (image, padded))
    inside = plain[..., : -wide - 1] if plain[0, 0, 0] == found[0, 0, 0] else plain[..., wide + 1 :]
    assert abs(inside).max() <= 2.0
    same = np.isclose(plain, found, atol=0.25)
    assert same.mean() > 0.95 * (1 - share), "what is not padding looks as it would without"
    assert plausibility_warnings(padded, "MR") == []


def test_values_that_a_scanner_measured_are_no_padding():
    rng = np.random.default_rng(0)
    air = np.where(rng.random((6, 40, 40)) < 0.4, 0, rng.gamma(3, 80, (6, 40, 40))).astype(np.float32)
    binary = (rng.random((6, 40, 40)) < 0.5).astype(np.float32)
    for array in (air, binary):
        found = Preprocessing(pixel_mm=1.0, min_slice_mm=1.0).apply(volume_of(array)).array
        low, high = np.percentile(array, (0.5, 99.5))
        wanted = np.clip(4 * (array - low) / (high - low) - 2, -2, 2)
        assert sorted(found.ravel()) == pytest.approx(sorted(wanted.ravel()), abs=1e-4)


def volume_of(array: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetDirection(volume().GetDirection())
    return image


def test_an_image_larger_than_life_is_refused():
    with pytest.raises(ImageError, match="3150 by 1000 mm, more than any patient") as error:
        Preprocessing().apply(volume(size=(100, 315, 3), spacing=(10, 10, 10)))
    assert "spacing" in error.value.remedy


def test_a_single_slice_says_what_it_was_taken_for(tmp_path):
    axial, sagittal = (volume(size=size, code="LPS") for size in ((40, 1, 44), (40, 44, 1)))
    assert "By its header this single slice is axial" in plausibility_warnings(axial, "MR")[0]
    assert plausibility_warnings(sagittal, "MR") == plausibility_warnings(axial, "XR") == []
    assert "single slice is coronal" in plausibility_warnings(volume(size=(1, 40, 44), code="LPS"), "MR")[0]
    write_series(tmp_path, "5", "one of a localizer", axial)
    with pytest.raises(ImageError, match="The image is axial"):
        Preprocessing().apply(read_image(next(tmp_path.iterdir())))
    sitk.WriteImage(sitk.Cast(sagittal[0, :, :] * 1, sitk.sitkUInt8), str(tmp_path / "film.png"))
    assert "does not give its scale" in plausibility_warnings(read_image(tmp_path / "film.png"), "XR")[0]


def test_real_volumes_keep_their_labels():
    data = SHARED_DATA / "lumbar_mr"
    if not data.exists():
        pytest.skip(f"no real data in {data}")
    image, label = read_image(data / "myo_01_image.nii.gz"), sitk.ReadImage(str(data / "myo_01_label.nii.gz"))
    preprocessing = Preprocessing(pixel_mm=1.0)
    canonical = preprocessing.apply(image)
    back = back_to_source(preprocessing.apply_to_labels(label, canonical), canonical, order=0, dtype=np.int16)
    assert np.array_equal(sitk.GetArrayViewFromImage(back), sitk.GetArrayViewFromImage(label))


def test_local_contrast_shows_what_is_faint_beside_what_is_bright():
    rows, columns = np.mgrid[:80, :60]
    values = np.where(columns > 20, 1000.0, 0.0) + 2.0 * rows  # a bright band, as the column is in a film
    faint = np.s_[40:44, 30:50]
    values[faint] -= 40.0
    film = sitk.GetImageFromArray(values[None].astype(np.float32))

    def contrast(local_mm):
        how = Preprocessing(pixel_mm=1.0, planes=("single-slice",), local_mm=local_mm)
        found = how.apply(film).array[0]
        assert found.min() >= -2.0 and found.max() <= 2.0 and found.dtype == np.float32
        return abs(float(found[faint].mean() - found[46:50, 30:50].mean()))

    assert contrast(None) < 0.3 and contrast(6.0) > 0.6


def test_a_flat_image_has_no_local_contrast_and_is_no_trouble():
    values = np.zeros((1, 40, 40), np.float32)
    values[0, 5, 5] = 1.0
    how = Preprocessing(pixel_mm=1.0, planes=("single-slice",), local_mm=5.0)
    found = how.apply(sitk.GetImageFromArray(values)).array
    assert np.isfinite(found).all() and abs(found[0, 30:, 30:]).max() < 1e-3


@pytest.mark.parametrize(
    "dtype, values", [(np.uint8, [0, 7, 255]), (np.int16, [0, -3, 22]), (np.int32, [0, 5, 100_000]), (np.int16, [9])]
)
def test_the_ids_of_an_image_of_labels_are_found_whatever_they_are(dtype, values):
    voxels = np.resize(np.array(values, dtype), (4, 5, 6))
    assert ids_in(sitk.GetImageFromArray(voxels)) == sorted(v for v in values if v)
