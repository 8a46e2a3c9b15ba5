"""A picture that lies otherwise than its header says, or whose header says nothing, and vertebrae of children."""

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.polynomial.legendre import legval

from SpineSegAILib.anatomy import KINDS, SCHEMES, STRUCTURES
from SpineSegAILib.checkpoints import DEFAULT_CHECKPOINT
from SpineSegAILib.consistency import Instance, LevelResult
from SpineSegAILib.correction import LabeledStructures
from SpineSegAILib.correction.splitting import split
from SpineSegAILib.correction.voxels import array_axis
from SpineSegAILib.errors import ImageError
from SpineSegAILib.evidence import Evidence
from SpineSegAILib.imaging import (
    ORIENTATION_UNKNOWN_TAG,
    SAGITTAL_DIRECTION,
    CanonicalVolume,
    Preprocessing,
    as_it_lies,
    carry_tags,
)
from SpineSegAILib.imaging.geometry import like
from SpineSegAILib.imaging.tags import DIRECTION_TAG
from SpineSegAILib.inference import Predictor
from SpineSegAILib.inference.doubts import not_told
from SpineSegAILib.inference.second_look import Bow, Look, as_found, better_turn, small_size
from SpineSegAILib.phantoms.spine import PhantomSpec, make_phantom
from SpineSegAILib.results import Segmentation, read_segmentation
from SpineSegAILib.results.measurement import measure_all
from SpineSegAILib.results.numbering import places
from SpineSegAILib.results.preview import draw_preview
from SpineSegAILib.results.quality import cut_by_border

WAYS = {
    "as it is": lambda a: a,
    "upside down": lambda a: a[:, ::-1],
    "turned front to back": lambda a: a[:, :, ::-1],
    "turned by 180°": lambda a: a[:, ::-1, ::-1],
    "lying on its side, with rows and columns exchanged": lambda a: a.transpose(0, 2, 1),
    "turned by 90°": lambda a: a.transpose(0, 2, 1)[:, :, ::-1],
    "turned by 270°": lambda a: a.transpose(0, 2, 1)[:, ::-1],
    "lying on its side, with rows and columns exchanged and turned": lambda a: a.transpose(0, 2, 1)[:, ::-1, ::-1],
}
"""How a picture may stand: what was done to an upright one."""


def levels_along(back: np.ndarray, margin: float = 7.0) -> LevelResult:
    """Nine vertebrae, T9 to L5, 30 mm apart, at these places from front to back (mm)."""
    instances = [
        Instance("vertebra", sid, (0.0, 30.0 * i, float(at)), 2e4, None, 1.0, None, False)
        for i, (sid, at) in enumerate(zip((*range(16, 20), *range(20, 25)), back, strict=True))
    ]
    nothing = np.zeros((1, 1, 1), np.int16)
    return LevelResult(nothing, instances, (4.0, 1.0, 1.0), nothing, sequence="T9 …", margin=margin)


def along(lean: float, depth: float, skew: float) -> np.ndarray:
    return 100 + legval(np.linspace(-1, 1, 9), (0, lean, depth, skew))


UPRIGHT = (-10.0, 10.0, 6.0)
"""What sagittal exams show."""
COURSES = {
    "as it is": UPRIGHT,
    "upside down": (10.0, 10.0, -6.0),
    "turned front to back": (10.0, -10.0, -6.0),
    "turned by 180°": (-10.0, -10.0, 6.0),
}
"""The same in a picture that stands so."""


def evidence_of(certainty: float, shape: tuple[int, ...]) -> Evidence:
    kinds = np.zeros((len(KINDS), *shape), np.float32)
    kinds[1], kinds[0] = certainty, 1 - certainty
    return Evidence(scheme=SCHEMES["lumbar-mr"], spacing=(4.0, 1.0, 1.0), kinds=kinds, rank=np.zeros(shape, np.float32))


UPRIGHT_PICTURE = np.random.default_rng(0).normal(size=(5, 80, 80)).astype(np.float32)


class Eye:
    """A network that recognizes one picture, and is less certain about everything else."""

    def __init__(self, better: float = 0.95, otherwise: float = 0.9) -> None:
        self.better, self.otherwise = better, otherwise
        self.passes = 0

    def __call__(self, volume: CanonicalVolume):
        self.passes += 1
        known = volume.array.shape == UPRIGHT_PICTURE.shape and np.allclose(volume.array, UPRIGHT_PICTURE, atol=1e-3)
        certainty = self.better if known else self.otherwise
        return evidence_of(certainty, volume.array.shape), levels_along(along(*UPRIGHT))


def volume_of(array: np.ndarray) -> CanonicalVolume:
    image = sitk.GetImageFromArray(np.ascontiguousarray(array))
    image.SetSpacing((1.0, 1.0, 4.0))
    image.SetDirection(SAGITTAL_DIRECTION)
    made = Preprocessing(pixel_mm=1.0).apply(image)
    made.array[...] = array
    return made


@pytest.mark.parametrize("way", COURSES)
def test_the_course_of_a_column_tells_how_it_stands(way):
    bow = Bow.of(levels_along(along(*COURSES[way])))
    assert bow is not None and (bow.lean, bow.depth, bow.skew) == pytest.approx(COURSES[way], abs=1e-6)
    assert bow.is_upright == (way == "as it is") and bow.is_upside_down == (way == "upside down")
    assert bow.is_reversed == (way in ("turned front to back", "turned by 180°"))


def test_few_vertebrae_have_no_course():
    levels = levels_along(along(*UPRIGHT))
    levels.instances = levels.instances[:4]
    assert Bow.of(levels) is None
    levels = levels_along(along(*UPRIGHT))
    levels.instances = [
        Instance(**{**vars(i), "centroid_mm": tuple(0.3 * mm for mm in i.centroid_mm)}) for i in levels.instances
    ]
    assert Bow.of(levels) is None


@pytest.mark.parametrize("way", WAYS)
def test_a_picture_that_lies_otherwise_than_its_header_says_is_named(way):
    array = WAYS[way](UPRIGHT_PICTURE)
    across = way not in COURSES
    eye = Eye(otherwise=0.75 if across else 0.9)
    evidence, levels = eye(volume_of(array))
    if not across:
        levels = levels_along(along(*COURSES[way]))
    found = better_turn(volume_of(array), eye, Look.of(evidence, levels))
    if way == "as it is":
        assert found is None
    else:
        assert found is not None and found.words.startswith(way)
        assert f"The picture seems to be {found.words}: the spine does not lie as the header says" in found.doubt
    if way == "as it is":
        assert eye.passes == 1, "what is plain costs no other look"


def test_a_kyphosis_is_not_taken_for_a_turned_picture():
    eye = Eye(better=0.95, otherwise=0.91)
    volume = volume_of(UPRIGHT_PICTURE)
    look = Look.of(eye(volume)[0], levels_along(along(-10.0, -10.0, 6.0)))
    assert look.bow is not None and look.bow.is_reversed and better_turn(volume, eye, look) is None
    flat = Look.of(eye(volume)[0], levels_along(along(3.0, 1.0, 0.5)))
    assert better_turn(volume, eye, flat) is None


def test_a_short_view_of_a_steep_lordosis_is_not_upside_down():
    eye = Eye(better=0.95, otherwise=0.93)
    volume = volume_of(UPRIGHT_PICTURE)
    look = Look.of(eye(volume)[0], levels_along(along(*COURSES["upside down"])))
    assert look.bow is not None and look.bow.is_upside_down and better_turn(volume, eye, look) is None


# --- no orientation in the file ---------------------------------------------------------------------------------------


def stored(array: np.ndarray, order: tuple[int, int, int], spacing=(4.0, 1.0, 1.0)) -> sitk.Image:
    """Slices, rows, columns in this order of a file's axes, with no word of how they lie."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(order)))
    image.SetSpacing([spacing[axis] for axis in order][::-1])
    image.SetMetaData(ORIENTATION_UNKNOWN_TAG, "1")
    return image


PREPROCESSING = Preprocessing(pixel_mm=1.0, low=0.0, high=100.0)


def see(volume: CanonicalVolume):
    """As `Eye` does, after `PREPROCESSING`."""
    low, high = UPRIGHT_PICTURE.min(), UPRIGHT_PICTURE.max()
    known = np.allclose(volume.array, 4 * (UPRIGHT_PICTURE - low) / (high - low) - 2, atol=1e-3)
    return evidence_of(0.95 if known else 0.9, volume.array.shape), levels_along(along(*UPRIGHT))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0)])
def test_a_stack_without_orientation_is_turned_as_it_plainly_shows(way, order):
    image = stored(WAYS[way](UPRIGHT_PICTURE), order)
    found, notes = as_found(image, PREPROCESSING, see)
    assert "does not give the image's orientation" in notes[0]
    assert see(PREPROCESSING.apply(found))[0].kinds[1].max() == np.float32(0.95), "the way that is recognized"
    assert found.GetDirection() == image.GetDirection(), "a result lies on the voxels of the file"
    assert as_it_lies(found).GetDirection() != image.GetDirection()


@pytest.mark.parametrize(
    ("image", "eye"),
    [
        (stored(UPRIGHT_PICTURE, (0, 1, 2), (1.0, 1.0, 1.0)), Eye()),
        (stored(UPRIGHT_PICTURE, (0, 1, 2)), Eye(otherwise=0.949)),
        (stored(UPRIGHT_PICTURE, (0, 1, 2)), Eye(better=0.8, otherwise=0.6)),
    ],
    ids=["no stack", "in several ways", "no spine"],
)
def test_what_is_not_plainly_a_spine_from_the_side_is_refused(image, eye):
    with pytest.raises(ImageError, match="does not give the image's orientation") as error:
        as_found(image, Preprocessing(pixel_mm=1.0), eye)
    assert "dcm2niix" in error.value.remedy


def test_the_orientation_that_was_found_stays_with_the_result(tmp_path):
    labels = stored(np.full((5, 80, 80), 23, np.int16), (0, 1, 2))
    found, _ = as_found(stored(UPRIGHT_PICTURE[:, ::-1], (0, 1, 2)), PREPROCESSING, see)
    carry_tags(found, labels)
    Segmentation(labels, SCHEMES["lumbar-mr"], provenance=not_told(labels)).write(tmp_path / "a.nii.gz")
    read = read_segmentation(tmp_path / "a.nii.gz").labels
    assert as_it_lies(read).GetDirection() == as_it_lies(found).GetDirection() != found.GetDirection()
    assert read.GetDirection() == labels.GetDirection()


def untold(image: sitk.Image, way: str = "as it is") -> sitk.Image:
    """A phantom's image in a file that does not tell how it lies, as `as_found` leaves it and what follows from it."""
    array = np.ascontiguousarray(WAYS[way](sitk.GetArrayFromImage(image)))
    result = stored(array, (0, 1, 2), image.GetSpacing()[::-1])
    result.SetOrigin((5.0, -8.0, 13.0))
    flips = {"as it is": (1, 1, 1), "upside down": (1, -1, 1), "turned by 180°": (-1, -1, 1)}[way]  # columns, rows
    lying = np.reshape(SAGITTAL_DIRECTION, (3, 3)) * flips
    result.SetMetaData(DIRECTION_TAG, " ".join(f"{c:g}" for c in lying.ravel()))
    return result


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(PhantomSpec(slices=7, margin_top_mm=10), np.random.default_rng(4))


@pytest.mark.parametrize("way", ["as it is", "upside down", "turned by 180°"])
def test_measurements_and_quality_know_the_orientation_that_was_found(phantom, way):
    labels = untold(phantom.labels, way)
    told, found = (measure_all(Segmentation(x, SCHEMES["lumbar-mr"])) for x in (phantom.labels, labels))
    for ours, theirs in zip(told, found, strict=True):
        places = {key for key in ours if key.startswith("centroid")}
        assert {k: v for k, v in ours.items() if k not in places} == pytest.approx(
            {k: v for k, v in theirs.items() if k not in places}, nan_ok=True
        )
    for row in found[:-1]:
        index = np.argwhere(sitk.GetArrayFromImage(labels) == row["id"]).mean(axis=0)[::-1]
        place = labels.TransformContinuousIndexToPhysicalPoint(index.tolist())
        assert [row[f"centroid_lps_{axis}_mm"] for axis in "xyz"] == pytest.approx(place), "as the file has it"
    assert cut_by_border(labels) == cut_by_border(phantom.labels)


def test_the_preview_and_the_tools_know_the_orientation_that_was_found(phantom):
    image, labels = untold(phantom.image, "upside down"), untold(phantom.labels, "upside down")
    plain = sitk.Image(image)  # as it is read again from its file
    plain.EraseMetaData(DIRECTION_TAG)
    told = draw_preview(phantom.image, Segmentation(phantom.labels, SCHEMES["lumbar-mr"]))
    for given in (image, plain):
        drawn = draw_preview(given, Segmentation(labels, SCHEMES["lumbar-mr"]))
        for ours, theirs in zip(told.axes, drawn.axes, strict=True):
            assert np.array_equal(ours.images[0].get_array(), theirs.images[0].get_array())
    assert not plain.HasMetaDataKey(DIRECTION_TAG), "what was given stays as it is"
    assert [array_axis(labels, s) for s in ("sagittal", "coronal", "axial")] == [0, 2, 1]


def test_a_lone_vertebra_is_split_into_what_lies_above_and_below(phantom):
    values = sitk.GetArrayFromImage(phantom.labels)
    values[values != 22] = 0
    lone = like(phantom.labels, values)
    for labels, above in ((untold(lone), 1), (untold(lone, "upside down"), -1)):
        correction = split(LabeledStructures.of(labels), labels, 22)
        after = correction.apply(sitk.GetArrayFromImage(labels))
        rows = [np.argwhere(after == sid)[:, 1].mean() for sid in (21, 22)]
        assert above * (rows[1] - rows[0]) > 5


def test_levels_are_read_again_in_the_order_that_was_found(tmp_path, phantom):
    labels = untold(phantom.labels, "upside down")
    for name in ("a.nii.gz", "a.seg.nrrd"):
        Segmentation(labels, SCHEMES["lumbar-mr"], provenance=not_told(labels)).write(tmp_path / name)
        assert not read_segmentation(tmp_path / name).notes
    heights = {sid: place.height for sid, place in places(labels).items()}
    assert heights[20] > heights[22] > heights[24]


# --- children ---------------------------------------------------------------------------------------------------------


def test_a_spine_that_is_recognized_is_not_looked_at_for_a_childs():
    eye = Eye()
    plain = Look(vertebrae=8, margin=5.0, certainty=0.94)
    assert small_size(lambda scale: volume_of(UPRIGHT_PICTURE), eye, plain) is None and eye.passes == 0
    doubtful = Look(vertebrae=3, margin=1.0, certainty=0.8)
    assert small_size(lambda scale: volume_of(UPRIGHT_PICTURE), eye, doubtful) is not None and eye.passes == 1


# --- the network that ships -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exam() -> sitk.Image:
    spec = PhantomSpec(slices=3, slice_mm=5.0, width_mm=170.0, pixel_mm=1.2)
    return make_phantom(spec, np.random.default_rng(1)).image


@pytest.fixture
def shipped(monkeypatch):
    """The default checkpoint, which counts its passes."""
    predictor = Predictor(DEFAULT_CHECKPOINT, "cpu")
    predictor.passes = 0
    once = predictor._evidence

    def counted(*args, **options):
        predictor.passes += 1
        return once(*args, **options)

    monkeypatch.setattr(predictor, "_evidence", counted)
    return predictor


def test_the_network_that_ships_sees_a_good_exam_once(shipped, exam):
    result = shipped.segment(exam)
    assert shipped.passes == 1 and result.warnings == []


def test_the_network_that_ships_doubts_an_exam_that_is_upside_down(shipped, exam):
    rows = 2 - int(np.argmax(np.abs(np.reshape(exam.GetDirection(), (3, 3))[2])))
    turned = like(exam, np.ascontiguousarray(np.flip(sitk.GetArrayFromImage(exam), rows)))
    said = shipped.segment(turned).warnings
    assert "The picture seems to be upside down" in said[0] and shipped.passes == 3


def test_the_network_that_ships_finds_the_vertebrae_of_a_child(shipped, exam):
    small = sitk.Image(exam)
    small.SetSpacing([0.55 * mm for mm in exam.GetSpacing()])
    result = shipped.segment(small)
    assert result.provenance["scale"] == pytest.approx(0.53, abs=0.06)
    assert {sid for sid in result.present if STRUCTURES[sid].kind.value == "vertebra"} >= set(range(20, 25))
