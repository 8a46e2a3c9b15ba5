"""A wrong image is doubted: what an image shows, by its values and whatever its header says or does not say."""

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from SpineSegAILib.anatomy import STRUCTURES, Kind, scheme
from SpineSegAILib.errors import ImageError
from SpineSegAILib.imaging import plausibility_warnings, read_image, refuse_labels
from SpineSegAILib.imaging.content import bright_rim, is_symmetric, seems_ct, shows_labels
from SpineSegAILib.imaging.geometry import like
from SpineSegAILib.phantoms.spine import PhantomSpec, make_phantom
from SpineSegAILib.results import Segmentation

MR = ("t1", "t2", "fat-suppressed", "water")
SUFFIXES = (".nii.gz", ".nrrd", ".mha")


@pytest.fixture(scope="module")
def phantoms():
    """One of each contrast."""
    return {
        contrast: make_phantom(PhantomSpec(contrast=contrast, slices=9), np.random.default_rng(1))
        for contrast in (*MR, "ct")
    }


def values_of(image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayFromImage(image).astype(np.float32)


# --- label maps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_a_label_map_is_no_image(tmp_path, phantoms, suffix, dtype):
    labels = phantoms["t2"].labels
    path = tmp_path / f"case{suffix}"
    sitk.WriteImage(like(labels, sitk.GetArrayFromImage(labels).astype(dtype)), str(path))
    with pytest.raises(ImageError, match="is a label map") as error:
        read_image(path)
    assert str(error.value).startswith(f"{path.name} is a label map")
    assert "that it was drawn on" in error.value.remedy


def test_a_binary_mask_and_a_picture_of_labels_are_label_maps(tmp_path, phantoms):
    values = sitk.GetArrayFromImage(phantoms["t2"].labels)
    assert shows_labels(like(phantoms["t2"].labels, (values > 0).astype(np.uint8)))
    Image.fromarray(values[4].astype(np.uint8)).save(tmp_path / "case.png")
    with pytest.raises(ImageError, match="is a label map"):
        read_image(tmp_path / "case.png")


@pytest.mark.parametrize("sigma", [0.0, 0.7, 2.0])
def test_probabilities_are_no_image(phantoms, sigma):
    mask = sitk.Cast(phantoms["t2"].labels > 0, sitk.sitkFloat32) * 0.97
    smooth = sitk.SmoothingRecursiveGaussian(mask, sigma) if sigma else mask
    with pytest.raises(ImageError, match=r"is a (mask|label map)"):
        refuse_labels(smooth, "probabilities")
    with pytest.raises(ImageError, match=r"is a (mask|label map)"):
        refuse_labels(sitk.Cast(smooth * 255, sitk.sitkUInt8), "probabilities of 8 bit")
    for contrast in MR:
        image = phantoms[contrast].image
        refuse_labels(image)
        refuse_labels(sitk.Clamp(image, upperBound=float(np.percentile(values_of(image), 90))))


def test_a_segmentation_of_slicer_is_no_image(tmp_path, phantoms):
    made = phantoms["t2"]
    path = tmp_path / "case.seg.nrrd"
    Segmentation(made.labels, scheme("lumbar-mr")).write(path)
    with pytest.raises(ImageError, match="is a segmentation, not an image"):
        read_image(path)
    other = path.rename(tmp_path / "image.nrrd")  # its header tells, whatever it is called
    with pytest.raises(ImageError, match="is a segmentation, not an image"):
        read_image(other)


@pytest.mark.parametrize("levels", [32, 64, 256])
def test_an_image_of_few_gray_levels_is_an_image(phantoms, levels):
    for contrast in MR:
        image = phantoms[contrast].image
        values = values_of(image)
        few = np.rint(np.clip(values / np.percentile(values, 99.5), 0, 1) * (levels - 1)).astype(np.uint8)
        assert not shows_labels(like(image, few))


# --- CT ---------------------------------------------------------------------------------------------------------------

UNITS = {
    "as it is": lambda hu: hu,
    "shifted by 1024": lambda hu: hu + 1024,
    "from 0 to 1": lambda hu: (hu - hu.min()) / np.ptp(hu),
    "ten times as large": lambda hu: 10 * hu,
    "window for bone, 8 bit": lambda hu: np.clip((hu + 450) / 1500 * 255, 0, 255).astype(np.uint8),
}
NARROW = {
    "window for soft tissue, 8 bit": lambda hu: np.clip((hu + 160) / 400 * 255, 0, 255).astype(np.uint8),
    "narrow window, 8 bit": lambda hu: np.clip((hu + 125) / 350 * 255, 0, 255).astype(np.uint8),
}


@pytest.mark.parametrize("unit", UNITS)
def test_ct_is_told_by_its_values_in_whatever_unit(phantoms, unit):
    image = phantoms["ct"].image
    said = plausibility_warnings(like(image, UNITS[unit](values_of(image))), "MR")
    assert [note for note in said if "seems to be CT" in note]


@pytest.mark.parametrize("unit", ["shifted by 1024", "from 0 to 1"])
def test_a_checkpoint_for_ct_wants_hounsfield_units(phantoms, unit):
    image = phantoms["ct"].image
    assert plausibility_warnings(image, "CT") == []
    (said,) = plausibility_warnings(like(image, UNITS[unit](values_of(image))), "CT")
    assert "not Hounsfield units" in said


@pytest.mark.parametrize("unit", [*UNITS, *NARROW])
def test_vertebrae_of_ct_have_a_bright_rim_in_any_window(phantoms, unit):
    made = phantoms["ct"]
    vertebrae = [sid for sid, structure in STRUCTURES.items() if structure.kind is Kind.VERTEBRA]
    bone = np.isin(sitk.GetArrayFromImage(made.labels), vertebrae)
    assert bright_rim({**UNITS, **NARROW}[unit](values_of(made.image)), bone)
    for contrast in MR:
        mask = np.isin(sitk.GetArrayFromImage(phantoms[contrast].labels), vertebrae)
        assert not bright_rim(values_of(phantoms[contrast].image), mask)
    assert not bright_rim(values_of(made.image), np.zeros_like(bone))
    said = plausibility_warnings(phantoms["t2"].image, "MR", as_segmented="CT")
    assert "seems to be CT" in said[0]


@pytest.mark.parametrize("contrast", MR)
def test_mr_is_not_doubted(phantoms, contrast):
    image = phantoms[contrast].image
    assert plausibility_warnings(image, "MR") == [] and not seems_ct(values_of(image))
    for slope, offset in ((1, 500), (0.001, 0), (1, -700)):
        assert plausibility_warnings(like(image, slope * values_of(image) + offset), "MR") == []


def test_the_model_that_would_fit_is_named(phantoms):
    image = phantoms["ct"].image
    (said,) = plausibility_warnings(image, "MR", lambda modality: {"CT": ["chest-ct"]}[modality])
    assert said.endswith("Choose a checkpoint for CT: chest-ct.")
    (said,) = plausibility_warnings(image, "MR", lambda modality: [])
    assert said.endswith("None is for CT.")


# --- radiographs ------------------------------------------------------------------------------------------------------


def film() -> np.ndarray:
    """A radiograph: what is behind each other adds up, so that it is gray nearly everywhere."""
    rows, columns = np.mgrid[:300, :200] / 100.0
    depth = 3.0 - (columns - 1.0) ** 2 + 0.6 * (abs(columns - 1.0) < 0.2) * (1 + 0.3 * np.sin(20 * rows))
    return np.rint(80 * depth + np.random.default_rng(0).normal(0, 3, depth.shape)).clip(0, 255).astype(np.uint8)


def test_a_radiograph_without_a_header_is_told_by_its_values(tmp_path):
    Image.fromarray(film()).save(tmp_path / "film.png")
    image = read_image(tmp_path / "film.png")
    said = plausibility_warnings(image, "MR", lambda modality: {"XR": ["xray"]}[modality])
    assert [note for note in said if "seems to be radiographs" in note and note.endswith(": xray.")]
    assert not [note for note in plausibility_warnings(image, "XR") if "seems" in note]


def test_a_picture_of_a_slice_of_mr_is_not_called_a_film(tmp_path, phantoms):
    for contrast in MR:
        values = values_of(phantoms[contrast].image)[4]
        Image.fromarray((values / values.max() * 255).astype(np.uint8)).save(tmp_path / "slice.png")
        image = read_image(tmp_path / "slice.png")
        scale, film = plausibility_warnings(image, "MR", lambda modality: {"XR": ["xray"]}[modality])
        assert "does not give its scale" in scale
        assert film.endswith("If it is a radiograph, choose a checkpoint for radiographs: xray.")


def test_a_slice_of_mr_is_no_radiograph(tmp_path):
    """Dark where there is little signal: most of a slice is."""
    rows, columns = np.mgrid[:300, :200] / 100.0
    slice_ = np.where((columns > 0.6) & (columns < 1.4), 60 + 100 * (np.sin(12 * rows) > 0.3), 4)
    noise = np.random.default_rng(0).normal(0, 3, slice_.shape)
    Image.fromarray((slice_ + noise).clip(0, 255).astype(np.uint8)).save(tmp_path / "slice.png")
    said = plausibility_warnings(read_image(tmp_path / "slice.png"), "XR", lambda modality: [f"for {modality}"])
    assert [note for note in said if "seems to be MR" in note and note.endswith(": for MR.")]


# --- planes -----------------------------------------------------------------------------------------------------------


def axial(slices: int = 9) -> np.ndarray:
    """Cross-sections of a trunk: nearly, but not quite, alike on the left and on the right."""
    rows, columns = np.mgrid[-1:1:120j, -1:1:160j]
    plane = 300.0 * (columns**2 + rows**2 < 0.8)
    plane += 400.0 * ((columns**2 + (rows - 0.2) ** 2 < 0.04) | (abs(abs(columns) - 0.25) < 0.12) & (rows > 0.2))
    plane *= 1 + 0.15 * columns
    noise = np.random.default_rng(0).normal(0, 20, (slices, *plane.shape))
    return (np.clip(plane + noise, 0, None) * (columns**2 + rows**2 < 0.9)).astype(np.float32)


def test_an_axial_series_that_its_header_calls_sagittal_is_told_by_its_symmetry(phantoms):
    planes = axial()
    image = sitk.GetImageFromArray(planes)
    image.SetSpacing((2.0, 2.0, 4.0))
    image.SetDirection(phantoms["t2"].image.GetDirection())
    (said,) = plausibility_warnings(image, "MR")
    assert "left and right alike" in said and "Choose a sagittal series" in said
    assert is_symmetric(planes) and not is_symmetric(values_of(phantoms["t2"].image)[2:7])


def test_an_axial_picture_is_told_by_its_symmetry(tmp_path):
    plane = axial(1)[0]
    Image.fromarray((plane / plane.max() * 255).astype(np.uint8)).save(tmp_path / "slice.png")
    assert [note for note in plausibility_warnings(read_image(tmp_path / "slice.png"), "MR") if "alike" in note]


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_photograph_is_turned_as_its_camera_says(tmp_path, phantoms, turn):
    upright = values_of(phantoms["t2"].image)[4]
    upright = (upright / upright.max() * 255).astype(np.uint8)[:200, :160]
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[turn]
    exif = Image.Exif()
    exif[0x0112] = turn
    for suffix, options in ((".png", {}), (".jpg", {"quality": 100})):
        Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / f"a{suffix}", exif=exif, **options)
        found = values_of(read_image(tmp_path / f"a{suffix}"))[0]
        assert found.shape == upright.shape and abs(found - upright).mean() < 2


def test_gray_with_alpha_is_gray(tmp_path, phantoms):
    values = values_of(phantoms["t2"].image)[4]
    gray = Image.fromarray((values / values.max() * 255).astype(np.uint8))
    for mode in ("LA", "RGBA", "RGB"):
        gray.convert(mode).save(tmp_path / "a.png")
        assert np.array_equal(values_of(read_image(tmp_path / "a.png"))[0], np.array(gray))


def test_a_photograph_in_color_is_refused(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="3 values per pixel"):
        read_image(tmp_path / "a.png")
