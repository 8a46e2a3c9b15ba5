"""Metrics against shapes whose answers are known, and averages against cases made by hand."""

import json
import math
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial import cKDTree

from SpineSegAILib.anatomy import Extent, scheme, structure
from SpineSegAILib.comparison.hints import visible_levels
from SpineSegAILib.errors import Cancelled, ConfigError, DatasetError, DeviceError, HintError, ImageError
from SpineSegAILib.evaluation import (
    VARIANTS,
    HintMaker,
    dice,
    evaluate_case,
    evaluate_dataset,
    format_report,
    hd95_and_asd,
    make_variant,
    summarize,
    surface_distances,
    write_report,
)
from SpineSegAILib.evaluation.masks import TOLERANCE_MM, on_square_grid, pixel_distances, surface_measures
from SpineSegAILib.hints import Hints
from SpineSegAILib.imaging.geometry import like
from SpineSegAILib.imaging.tags import SCALE_UNKNOWN_TAG, scale_is_known
from SpineSegAILib.results import Segmentation

SPACING = (4.0, 1.0, 0.5)  # mm along z, y, x


def image_of(array: np.ndarray, spacing=SPACING) -> sitk.Image:
    image = sitk.GetImageFromArray(array.astype(np.int16))
    image.SetSpacing(spacing[::-1])
    return image


def column(**rows: tuple[int, int]) -> np.ndarray:
    """A stack in which each named structure fills rows a…b; 6 slices, 60 rows, 12 columns."""
    array = np.zeros((6, 60, 12), np.int16)
    for name, (first, last) in rows.items():
        array[1:5, first:last, 3:9] = structure(name.replace("_", "/")).id
    return array


# --- two masks ---


def block(*corner: int, shape=(20, 40, 40), size=(4, 10, 12)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True))] = True
    return mask


def test_identical_masks_are_perfect():
    mask = block(3, 3, 3)
    assert dice(mask, mask) == 1.0
    assert hd95_and_asd(mask, mask, SPACING) == (0.0, 0.0)


@pytest.mark.parametrize("shift", [(2, 0, 0), (0, 3, 0), (0, 0, 5)])
def test_shifted_block(shift):
    # The face that was left behind is the shift's length away, so Hausdorff is that length in mm on every axis.
    a, b = block(5, 10, 10), block(*(5 + shift[0], 10 + shift[1], 10 + shift[2]))
    forth, back = surface_distances(a, b, SPACING)
    expected = sum(s * mm for s, mm in zip(shift, SPACING, strict=True))
    assert forth.max() == pytest.approx(expected) and back.max() == pytest.approx(expected)
    along = next(i for i in range(3) if shift[i])
    size = (4, 10, 12)[along]
    assert dice(a, b) == pytest.approx((size - shift[along]) / size)


def test_concentric_balls():
    z, y, x = np.ogrid[-15:16, -15:16, -15:16]
    radius = np.sqrt(z**2 + y**2 + x**2)
    hd95, asd = hd95_and_asd(radius <= 13, radius <= 8, (2.0, 2.0, 2.0))
    assert hd95 == pytest.approx(10.0, abs=1.0)  # 5 voxels of 2 mm
    assert asd == pytest.approx(10.0, abs=0.5)


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_all_pairs_of_surface_voxels(seed):
    rng = np.random.default_rng(seed)
    a, b = (rng.random((5, 9, 11)) < 0.3 for _ in range(2))

    def surface(mask):
        padded = np.pad(mask, 1)
        inner = np.ones_like(padded)
        for axis in range(3):
            for step in (-1, 1):
                inner &= np.roll(padded, step, axis)
        return np.argwhere(mask & ~inner[1:-1, 1:-1, 1:-1]) * SPACING

    forth, back = cKDTree(surface(b)).query(surface(a))[0], cKDTree(surface(a)).query(surface(b))[0]
    hd95, asd = hd95_and_asd(a, b, SPACING)
    assert hd95 == pytest.approx(max(np.percentile(forth, 95), np.percentile(back, 95)))
    assert asd == pytest.approx(np.concatenate([forth, back]).mean())


@pytest.mark.parametrize("axis", range(3))
def test_the_surface_of_a_single_slice_is_its_outline(axis):
    a, b = (block(10, 10 + shift, shape=(60, 60), size=(30, 30)) for shift in (0, 6))
    flat = hd95_and_asd(a, b, (1.0, 1.0))
    assert flat[0] == pytest.approx(6.0)
    a, b = np.expand_dims(a, axis), np.expand_dims(b, axis)
    spacing = np.insert([1.0, 1.0], axis, 8.0)
    assert hd95_and_asd(a, b, spacing) == flat
    assert pixel_distances(a, b, axis)[:2] == flat
    # A structure that is one slice thin in a stack is surface all over, since the slices beside it are known.
    thin = np.zeros((3, 60, 60), bool)
    thin[1, 10:40, 10:40] = True
    assert surface_distances(thin, thin, SPACING)[0].size == 900


@pytest.mark.filterwarnings("ignore:monai")
@pytest.mark.parametrize("spacing", [(1.0, 1.5), (4.0, 1.0, 1.2)])
def test_agrees_with_monai(spacing):
    import torch
    from monai.metrics import DiceMetric, HausdorffDistanceMetric, SurfaceDiceMetric, SurfaceDistanceMetric

    rng = np.random.default_rng(0)
    ours, theirs = (ndimage.gaussian_filter(rng.random((24,) * len(spacing)), 2) > 0.5 for _ in range(2))
    one_hot = [torch.from_numpy(np.stack([~mask, mask])[None]).float() for mask in (theirs, ours)]
    foreground = {"include_background": False}
    expected = [
        HausdorffDistanceMetric(percentile=95, **foreground)(*one_hot, spacing=spacing).item(),
        SurfaceDistanceMetric(symmetric=True, **foreground)(*one_hot, spacing=spacing).item(),
        SurfaceDiceMetric([TOLERANCE_MM])(*one_hot, spacing=spacing).item(),
    ]
    assert dice(ours, theirs) == pytest.approx(DiceMetric(**foreground)(*one_hot).item(), rel=1e-5)
    assert surface_measures(ours, theirs, spacing) == pytest.approx(expected, rel=1e-5)


def test_on_the_networks_grid_the_same_is_measured():
    """Validation during a training and `evaluate` have one scorer."""
    from SpineSegAILib.evaluation.on_grid import LabelledVolume, score_on_grid
    from SpineSegAILib.imaging import Preprocessing

    truth = column(L3=(5, 20), L4=(22, 38), L5=(40, 55))
    image, reference = image_of(np.random.default_rng(0).normal(0, 100, truth.shape)), image_of(truth)
    preprocessing = Preprocessing(pixel_mm=1.0, planes=("sagittal", "isotropic", "axial", "coronal", "single-slice"))
    volume = preprocessing.apply(image)
    label = preprocessing.apply_to_labels(reference, volume)
    ids = [structure(n).id for n in ("L3", "L4", "L5")]
    case = LabelledVolume("a", volume, label, tuple(ids))
    found = np.where(label == ids[2], 0, np.roll(label, 2, axis=1))
    report = score_on_grid(case, found, scheme("lumbar-mr"))
    assert [s.dice for s in report.structures] == pytest.approx([dice(label == i, found == i) for i in ids])
    assert report.structures[2].dice == 0.0


def test_empty_masks_have_no_distance():
    empty, mask = np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool)
    assert math.isnan(dice(empty, empty)) and dice(empty, mask) == 0.0
    assert all(map(math.isnan, hd95_and_asd(empty, mask, SPACING)))


# --- one case ---

TRUTH = {"L3": (5, 15), "L4": (20, 30), "L5": (35, 45)}
IDS = [structure(n).id for n in TRUTH]


def scores(report):
    return {s.name: s for s in report.structures}


def test_perfect_case():
    array = column(**TRUTH)
    report = evaluate_case(image_of(array), image_of(array), IDS)
    assert [s.name for s in report.structures] == ["L3", "L4", "L5"] and report.levels_right
    for s in report.structures:
        assert (s.dice, s.iou, s.hd95_mm, s.asd_mm, s.matched_dice, s.false_positive_ml) == (1, 1, 0, 0, 1, 0)
        assert s.reference_ml == s.predicted_ml == pytest.approx(4 * 10 * 6 * 2.0 / 1000)
    assert report.unscored == []


def test_shift_by_one_level_is_seen():
    shifted = column(L2=TRUTH["L3"], L3=TRUTH["L4"], L4=TRUTH["L5"])
    report = evaluate_case(image_of(column(**TRUTH)), image_of(shifted), IDS)
    found = scores(report)
    assert all(s.dice == 0 and s.matched_dice == 1 and s.level_right is False for s in found.values())
    assert found["L3"].matched_id == structure("L2").id
    # L2 is not annotated, so it is no false positive by itself, and the voxels lie in a reference mask.
    (outside,) = report.unscored
    assert (outside.name, outside.outside_ml, outside.reason) == ("L2", 0.0, "not annotated")
    assert found["L3"].false_positive_ml == pytest.approx(0.48)


def test_partial_overlap():
    report = evaluate_case(image_of(column(L4=(20, 30))), image_of(column(L4=(25, 35))), [structure("L4").id])
    (s,) = report.structures
    assert s.dice == pytest.approx(0.5) and s.iou == pytest.approx(1 / 3) and s.precision == pytest.approx(0.5)
    assert s.hd95_mm == pytest.approx(5.0) and s.level_right


def test_precision_is_the_share_of_the_prediction_that_is_right():
    reference, small, large = (image_of(column(L4=rows)) for rows in ((20, 30), (20, 24), (15, 40)))
    both = [evaluate_case(reference, guess, [structure("L4").id], case=n) for n, guess in (("a", small), ("b", large))]
    assert [r.structures[0].precision for r in both] == [1.0, pytest.approx(10 / 25)]
    assert summarize(both)["overall"]["macro"]["precision"] == pytest.approx(0.7)


@pytest.mark.parametrize("axis", range(3))
def test_distances_in_pixels_of_a_papers_grid(axis):
    """Slices of 60 × 12 pixels, padded to 60 × 60 and brought to 120 × 120: every distance doubles."""
    reference, predicted = (np.moveaxis(column(L4=rows), 0, axis) for rows in ((20, 30), (23, 33)))
    images = [image_of(array) for array in (reference, predicted)]
    for image in images:
        image.SetDirection(np.eye(3)[:, np.roll(range(3), 2 - axis)].ravel())  # left to right along `axis`
    own, finer = (evaluate_case(*images, [structure("L4").id], grid=g).structures[0] for g in (None, 120))
    assert own.hd95_px == pytest.approx(3.0) and finer.hd95_px == pytest.approx(6.0)
    assert finer.hd95_mm == own.hd95_mm and finer.dice == own.dice


def test_a_slice_is_padded_to_a_square_and_resized():
    labels = np.zeros((2, 6, 3), np.int16)
    labels[0, :, 1], labels[1, 5, 2] = 1, 2
    square = on_square_grid(labels, 0, 12)
    assert square.shape == (2, 12, 12) and labels.sum() == 6 + 2
    # Three columns in the middle of six; the pixel grid of the odd rest lies half a pixel aside.
    assert np.flatnonzero((square[0] == 1).any(0)).tolist() == [5, 6] and (square[0] == 1).any(1).all()
    assert np.argwhere(square[1] == 2).tolist() == [[10, 7], [10, 8], [11, 7], [11, 8]]
    assert on_square_grid(np.ones((2, 8, 8), np.int16), 0, 4).all()


def test_absent_structures():
    reference, predicted = column(L3=(5, 15), L4=(20, 30)), column(L3=(5, 15), L5=(35, 45))
    report = evaluate_case(image_of(reference), image_of(predicted), [*IDS, structure("L1").id])
    found = scores(report)
    assert set(found) == {"L3", "L4", "L5"}  # L1 is in neither
    for name in ("L4", "L5"):
        assert found[name].dice == found[name].iou == found[name].precision == 0.0 and math.isnan(found[name].hd95_mm)
    assert found["L4"].level_right is False and found["L5"].level_right is None
    assert found["L5"].false_positive_ml == pytest.approx(0.48)


def test_sacrum_taken_for_a_lumbar_vertebra_is_an_error_of_level():
    report = evaluate_case(image_of(column(S1=(40, 50))), image_of(column(L5=(40, 50))), [structure("S1").id])
    (s,) = report.structures
    assert s.dice == 0 and s.matched_dice == 1 and s.level_right is False


def test_a_disc_is_no_match_for_a_vertebra():
    report = evaluate_case(image_of(column(L4=(20, 30))), image_of(column(L4_L5=(20, 30))), [structure("L4").id])
    (s,) = report.structures
    assert s.matched_dice == 0 and s.matched_id is None


def test_generic_vertebrae_are_scored_as_one():
    truth = np.where(column(**TRUTH) > 0, structure("vertebra").id, 0)
    report = evaluate_case(image_of(truth), image_of(column(**TRUTH)), [structure("vertebra").id])
    (s,) = report.structures
    assert s.dice == 1 and s.level_right is None and report.unscored == []
    # and the other way round: a scheme without levels against a reference with them
    binary = Segmentation(image_of(truth), scheme("vertebra"))
    (s,) = evaluate_case(image_of(column(**TRUTH)), binary, IDS).structures
    assert (s.name, s.dice) == ("vertebra", 1.0)


def test_generic_structures_are_not_charged_for_levels_that_nobody_annotated():
    every = column(**TRUTH, S1=(50, 58))
    binary = Segmentation(image_of(np.where(every > 0, structure("vertebra").id, 0)), scheme("vertebra"))
    report = evaluate_case(image_of(column(**TRUTH)), binary, IDS)
    (s,) = report.structures
    assert (s.dice, s.hd95_mm, s.false_positive_ml) == (1.0, 0.0, 0.0)
    (beyond,) = report.unscored
    assert (beyond.name, beyond.reason) == ("vertebra", "not annotated")
    assert beyond.outside_ml == pytest.approx(4 * 8 * 6 * 2.0 / 1000)
    # It is charged where it touches what is annotated, where it lies on another structure, and where all are annotated.
    joined = Segmentation(image_of(np.where(column(L3=(5, 15), L5=(35, 50)) > 0, 90, 0)), scheme("vertebra"))
    (s,) = evaluate_case(image_of(column(**TRUTH)), joined, IDS).structures
    assert s.dice == pytest.approx(2 * 20 / (30 + 25))
    on_disc = column(L3=(5, 15), L4_L5=(20, 30))
    generic = Segmentation(image_of(np.where(on_disc > 0, 90, 0)), scheme("vertebra"))
    report = evaluate_case(image_of(on_disc), generic, [*IDS, structure("L4/L5").id])
    assert scores(report)["vertebra"].dice == pytest.approx(2 / 3) and report.unscored == []
    generic_reference = np.where(column(**TRUTH) > 0, structure("vertebra").id, 0)
    (s,) = evaluate_case(image_of(generic_reference), binary, [structure("vertebra").id]).structures
    assert s.dice == pytest.approx(2 * 30 / (30 + 38))


def test_a_level_that_nobody_annotated_stays_itself_beside_a_generic_one():
    mixed = column(**TRUTH, S1=(50, 58))
    mixed[mixed == structure("L4").id] = structure("vertebra").id
    report = evaluate_case(image_of(column(**TRUTH)), image_of(mixed), IDS)
    (s,) = report.structures
    assert (s.name, s.dice) == ("vertebra", 1.0) and [u.name for u in report.unscored] == ["S1"]


def test_what_a_scheme_lacks_is_not_scored():
    array = column(T12=(2, 6), **{"L4": (20, 30)})
    five = Segmentation(image_of(np.where(array == structure("L4").id, array, 0)), scheme("lumbar11"))
    report = evaluate_case(image_of(array), five, [structure("T12").id, structure("L4").id])
    assert [s.name for s in report.structures] == ["L4"] and report.not_offered == ["T12"]


def test_different_geometry_is_refused():
    a, b = image_of(column(**TRUTH)), image_of(column(**TRUTH), spacing=(4.0, 1.0, 0.6))
    with pytest.raises(DatasetError, match="different geometries"):
        evaluate_case(a, b, IDS, case="x")


# --- variants ---


def oriented(array: np.ndarray, code: str) -> sitk.Image:
    image = image_of(array)
    image.SetDirection(sitk.DICOMOrientImageFilter.GetDirectionCosinesFromOrientation("PIR"))
    return sitk.DICOMOrient(image, code)


@pytest.mark.parametrize("code", ["PIR", "LPS", "RAS", "ASL"])
def test_crops_follow_the_patient(code):
    array = column(**TRUTH)
    image = oriented(array, code)
    ids = {
        variant: set(np.unique(sitk.GetArrayFromImage(make_variant(image, image, variant)[1]))) - {0}
        for variant in VARIANTS
    }
    l3, l4, l5 = IDS
    assert ids["full"] == ids["zoom-1.3"] == {l3, l4, l5}
    assert ids["top-third-off"] == {l4, l5} and ids["bottom-third-off"] == {l3, l4, l5}
    cropped, _ = make_variant(image, image, "top-third-off")
    point = cropped.TransformIndexToPhysicalPoint((0, 0, 0))
    assert cropped[0, 0, 0] == image[image.TransformPhysicalPointToIndex(point)]


def test_a_single_slice_is_cropped_as_it_is_segmented_whatever_its_header_says():
    image = image_of(column(**TRUTH)[3:4])
    image.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, 1))
    image.SetMetaData(SCALE_UNKNOWN_TAG, "1")
    height = image.GetSize()[1]
    left = {"top-third-off": height - height // 3, "bottom-third-off": height - height // 3}
    for variant in ("top-third-off", "bottom-third-off", "t1-like", "middle-slices"):
        cropped, _ = make_variant(image, image, variant)
        assert cropped.GetSize() == (image.GetSize()[0], left.get(variant, height), 1)
        assert not scale_is_known(cropped)
    first, last = visible_levels(image).visible
    assert (first, last) == (structure("L3").id, structure("S1").id)


def test_other_contrasts_change_the_intensities_alone():
    ramp = np.tile(np.linspace(0, 800, 101), (3, 4, 1))
    image, label = image_of(ramp), image_of(np.ones((3, 4, 101)))
    for variant, bright in (("t1-like", 35), ("fat-suppressed-like", 100)):
        copy, same = make_variant(image, label, variant)
        found = sitk.GetArrayFromImage(copy)[0, 0]
        assert same is label and copy.GetSpacing() == image.GetSpacing()
        assert abs(int(found.argmax()) - bright) <= 2 and found[0] == 0  # air stays dark


def test_zoom_enlarges_all_axes():
    image = image_of(column(**TRUTH))
    larger, label = make_variant(image, image, "zoom-1.3")
    assert larger.GetSpacing() == pytest.approx([1.3 * s for s in image.GetSpacing()])
    assert label.GetSpacing() == larger.GetSpacing() and image.GetSpacing() == SPACING[::-1]
    with pytest.raises(ConfigError, match="zoom-2"):
        make_variant(image, image, "zoom-2")


# --- a dataset ---


class Oracle:
    """Segments by looking at the intensities, which tell the labels; fails on a constant image."""

    scheme = scheme("lumbar-mr")

    def segment(self, image: sitk.Image, **_) -> Segmentation:
        labels = sitk.Cast(image, sitk.sitkInt16)
        if not sitk.GetArrayViewFromImage(labels).any():
            raise ImageError("No spine was found.")
        return Segmentation(labels, self.scheme)


@pytest.fixture
def dataset(tmp_path):
    upright = [oriented(column(**TRUTH), "PIR"), oriented(column(L4=(2, 12), L5=(36, 56)), "LPS")]
    entries = []
    for name, label in zip("ab", upright, strict=True):
        values = sitk.GetArrayFromImage(label)
        noise = np.random.default_rng(0).uniform(0.1, 0.9, values.shape)  # else it would be taken for a label map
        sitk.WriteImage(like(label, (values + noise).astype(np.float32)), str(tmp_path / f"{name}.nii.gz"))
        sitk.WriteImage(label, str(tmp_path / f"{name}_label.nii.gz"))
        entry = {"image": f"{name}.nii.gz", "label": f"{name}_label.nii.gz", "annotated": ["L4", "L5"], "source": name}
        entries.append(entry)
    entries[0]["annotated"].append("L3")
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"validation": entries}), encoding="utf-8")
    return path


def test_report_of_a_data_set(dataset, tmp_path):
    steps = []
    report = evaluate_dataset(
        dataset,
        "validation",
        Oracle(),
        variants=[v for v in VARIANTS if not v.endswith("-like")],  # it looks at intensities
        about={"checkpoint": "oracle"},
        progress=lambda fraction, _: steps.append(fraction),
    )
    assert steps == sorted(steps) and steps[-1] == 1.0
    full = report["variants"]["full"]
    assert full["groups"]["vertebrae"]["dice"] == 1.0 and full["groups"]["vertebrae"]["levels_right"] == 5
    assert full["groups"]["vertebrae"]["cases_right"] == 2 and set(full["sources"]) == {"a", "b"}
    # Case b has 60 rows. With the top 20 off nothing is left of its L4, nor predicted, so L4 is skipped; with the
    # bottom 20 off 4 of L5's 20 rows are left, too few to count.
    top = {c["case"]: [s["name"] for s in c["structures"]] for c in report["variants"]["top-third-off"]["cases"]}
    assert top == {"a": ["L4", "L5"], "b": ["L5"]}
    bottom = report["variants"]["bottom-third-off"]["cases"][1]
    assert [s["name"] for s in bottom["structures"]] == ["L4"]
    assert [(u["name"], u["reason"], u["outside_ml"]) for u in bottom["unscored"]] == [("L5", "cut by the crop", 0.0)]

    write_report(report, tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["checkpoint"] == "oracle"
    table = format_report(report)
    assert "top-third-off" in table and "vertebrae" in table and "1.000" in table


def test_the_report_says_what_makes_its_scores_worth_less(dataset, tmp_path):
    document = json.loads(dataset.read_text(encoding="utf-8"))
    document["validation"][1]["extent"] = "whole"
    dataset.write_text(json.dumps(document), encoding="utf-8")
    method = Oracle()
    report = evaluate_dataset(dataset, "validation", method, trained_on={"a", "elsewhere"})
    assert "1 of 2 scored cases were in the training data" in report["seen"] and " a." in report["seen"]
    assert ("whole vertebrae drawn" in report["extent"]) == (method.scheme.extent is Extent.BODY)
    assert all(report[key] in format_report(report) for key in ("seen", "extent"))
    plain = evaluate_dataset(dataset, "validation", method, trained_on={"elsewhere"})
    assert "seen" not in plain


def test_a_case_that_does_not_fit_its_hints_is_missed(dataset):
    class Strict(Oracle):
        def segment(self, image, hints=None, **_):
            if hints is not None:
                raise HintError("7 vertebrae were found.")
            return super().segment(image)

    told = evaluate_dataset(dataset, "validation", Strict(), hints=HintMaker(lambda image, reference: Hints()))
    full = told["variants"]["full"]
    assert full["groups"]["vertebrae"]["dice"] == 0.0
    assert len(full["failures"]) == 2 and "7 vertebrae were found" in full["failures"]["a"]


def test_several_datasets_are_scored_together(dataset):
    twice = evaluate_dataset([dataset, dataset], "validation", Oracle())
    once = evaluate_dataset(dataset, "validation", Oracle())
    assert twice["dataset"] == f"{dataset.name}, {dataset.name}"
    a, b = (report["variants"]["full"]["groups"]["vertebrae"] for report in (once, twice))
    assert b["scored"] == 2 * a["scored"] and b["dice"] == pytest.approx(a["dice"])


def test_cases_of_one_name_in_two_datasets_are_of_two_patients_where_nobody_says_whose_they_are(dataset, tmp_path):
    table = json.loads(dataset.read_text(encoding="utf-8"))
    for entry in table["validation"]:
        del entry["source"]
    both = [tmp_path / folder / "dataset.json" for folder in ("one", "two")]
    for path in both:
        path.parent.mkdir()
        for image in tmp_path.glob("*.nii.gz"):
            shutil.copy(image, path.parent)
        path.write_text(json.dumps(table), encoding="utf-8")
    cases = evaluate_dataset(both, "validation", Oracle())["variants"]["full"]["cases"]
    assert [case["patient"] for case in cases] == ["a", "b", "2/a", "2/b"]


class Blind:
    """Fails on every image."""

    def __init__(self, known: str) -> None:
        self.scheme = scheme(known)

    def segment(self, image: sitk.Image, **_) -> Segmentation:
        raise ImageError("No spine was found.")


def test_failure_counts_as_missed(dataset, tmp_path):
    report = evaluate_dataset(dataset, "validation", Blind("lumbar-mr"))
    row = report["variants"]["full"]["groups"]["vertebrae"]
    assert row["dice"] == 0.0 and row["hd95_mm"] is None and row["undefined_distances"] == row["scored"] == 5
    assert row["levels_right"] == 0 and row["levels"] == 5
    assert set(report["variants"]["full"]["failures"]) == {"a", "b"}
    write_report(report, tmp_path / "report.json")  # no NaN in JSON
    assert "No spine was found" in format_report(report)


def test_an_image_that_cannot_be_used_counts_as_missed_and_the_others_count(dataset, tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"damaged")
    shown = []
    report = evaluate_dataset(dataset, "validation", Oracle(), watch=shown.append)["variants"]["full"]
    assert set(report["failures"]) == {"a"} and "cannot be read" in report["failures"]["a"]
    vertebrae = report["groups"]["vertebrae"]
    assert (vertebrae["levels_right"], vertebrae["levels"], len(shown)) == (2, 5, 2)

    class Small(Oracle):
        def segment(self, image, **_):
            raise DeviceError("There is not enough memory for this volume.", "Crop it.")

    report = evaluate_dataset(dataset, "validation", Small())["variants"]["full"]
    assert "not enough memory" in report["failures"]["b"]


def test_labels_on_another_grid_are_found_before_the_work_begins(dataset, tmp_path):
    label = sitk.ReadImage(str(tmp_path / "b_label.nii.gz"))
    label.SetOrigin((100.0, 0.0, 0.0))
    sitk.WriteImage(label, str(tmp_path / "b_label.nii.gz"))
    shown = []
    with pytest.raises(DatasetError, match="does not lie on the grid"):
        evaluate_dataset(dataset, "validation", Oracle(), watch=shown.append)
    assert not shown


def test_a_failure_misses_what_the_scheme_offers(dataset):
    generic = evaluate_dataset(dataset, "validation", Blind("vertebra"))["variants"]["full"]
    assert {c["case"]: [s["name"] for s in c["structures"]] for c in generic["cases"]} == {
        "a": ["vertebra"],
        "b": ["vertebra"],
    }
    assert generic["overall"]["dice"] == 0.0 and generic["overall"]["levels"] == 0
    vessels = evaluate_dataset(dataset, "validation", Blind("pulmonary-av"))["variants"]["full"]
    assert vessels["overall"]["scored"] == 0 and vessels["cases"][0]["not_offered"] == ["L3", "L4", "L5"]


def test_evaluation_can_be_cancelled_and_names_what_is_wrong(dataset):
    with pytest.raises(Cancelled):
        evaluate_dataset(dataset, "validation", Oracle(), cancelled=lambda: True)
    with pytest.raises(DatasetError, match="no “training” cases"):
        evaluate_dataset(dataset, "training", Oracle())
    with pytest.raises(ConfigError, match="upside-down"):
        evaluate_dataset(dataset, "validation", Oracle(), variants=["upside-down"])


def test_averages_by_structure_and_over_all():
    # L4 is scored in two cases (1 and 0.5), L5 in one (0): mean over all 0.5, over structures' means 0.375.
    l4, l5 = structure("L4").id, structure("L5").id
    a = evaluate_case(image_of(column(L4=(20, 30))), image_of(column(L4=(20, 30))), [l4], case="a")
    b = evaluate_case(image_of(column(L4=(20, 30), L5=(40, 50))), image_of(column(L4=(25, 35))), [l4, l5], case="b")
    row = summarize([a, b])["groups"]["vertebrae"]
    assert row["dice"] == pytest.approx(0.5) and row["macro"]["dice"] == pytest.approx(0.375)
    assert row["undefined_distances"] == 1 and row["hd95_mm"] == pytest.approx(2.5)
    assert (row["levels_right"], row["levels"], row["cases_right"], row["cases"]) == (2, 3, 1, 2)


def test_posterior_elements_of_which_some_have_no_level_are_scored_as_one():
    names = ("L3 posterior elements", "L4 posterior elements")
    truth, guess = np.zeros((4, 40, 30), np.int16), np.zeros((4, 40, 30), np.int16)
    truth[:, 2:12, 5:20], truth[:, 20:30, 5:20] = structure(names[0]).id, structure("posterior elements").id
    guess[:, 2:12, 5:20], guess[:, 20:30, 5:20] = structure(names[0]).id, structure(names[1]).id
    annotated = [structure(n).id for n in (*names, "posterior elements")]
    result = Segmentation(image_of(guess), scheme("lumbar-mr-posterior"))
    (s,) = evaluate_case(image_of(truth), result, annotated).structures
    assert (s.name, s.group, s.dice) == ("posterior elements", "posterior elements", 1.0)
    truth[truth == structure("posterior elements").id] = structure(names[1]).id
    report = evaluate_case(image_of(truth), result, annotated[:2])
    assert [x.name for x in report.structures] == list(names) and all(x.level_right for x in report.structures)
