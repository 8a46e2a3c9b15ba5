"""The phantom is what its spec says, and its labels are what its truth says."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from SpineSegAILib.anatomy import CANAL_ID, SACRUM_ID, STRUCTURES, disc_below, level_chain, ranks, structure
from SpineSegAILib.imaging import Geometry, Preprocessing
from SpineSegAILib.phantoms.spine import PhantomSpec, make_phantom, random_spec, sample_case

STRAIGHT = {"oblique_deg": (0.0, 0.0, 0.0), "scoliosis_deg": 0.0}


def make(seed=3, **fields):
    return make_phantom(PhantomSpec(**fields), np.random.default_rng(seed))


def canonical(image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.DICOMOrient(image, "PIR"))


def ids(phantom) -> set[int]:
    return {int(v) for v in np.unique(sitk.GetArrayViewFromImage(phantom.labels)) if v}


def length_in(phantom, structure_id: int, point: np.ndarray, direction: np.ndarray) -> float:
    """mm of a line through a structure, from the label image."""
    steps = np.arange(-45, 45, 0.1)
    direction = direction / np.linalg.norm(direction)
    points = point + steps[:, None] * direction
    origin, spacing = np.array(phantom.labels.GetOrigin()), np.array(phantom.labels.GetSpacing())
    matrix = np.array(phantom.labels.GetDirection()).reshape(3, 3)
    index = np.rint((points - origin) @ matrix / spacing).astype(int)
    inside = ((index >= 0) & (index < phantom.labels.GetSize())).all(axis=1)
    array = sitk.GetArrayViewFromImage(phantom.labels)
    values = np.zeros(len(steps))
    values[inside] = array[tuple(index[inside][:, ::-1].T)]
    return float((values == structure_id).sum() * 0.1)


def axes_of(phantom, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Center, downward and backward direction of a vertebra, from the discs above and below it (LPS)."""
    chain = [s.name for s in phantom.spec.chain()]
    above = structure(chain[chain.index(name) - 1])
    points = phantom.keypoints
    center = np.array(points[structure(name).id])
    down = np.subtract(points[disc_below(structure(name)).id], points[disc_below(above).id])
    down /= np.linalg.norm(down)
    back = np.cross(down, [-1.0, 0.0, 0.0])  # right x down = back, in (right, down, back)
    back *= np.sign(back[1])
    return center, down, back / np.linalg.norm(back)


@pytest.fixture(scope="module")
def fine():
    """Straight, finely sampled, nothing wrong with it."""
    return make(
        top="T10", bottom="S1", margin_top_mm=12, pixel_mm=0.5, slices=3, slice_mm=4, width_mm=200, kyphosis_deg=2
    )


def test_the_same_seed_gives_the_same_voxels_and_another_does_not():
    spec = PhantomSpec(slices=5, pixel_mm=2)
    one, same, other = (make_phantom(spec, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(*(sitk.GetArrayViewFromImage(p.image) for p in (one, same)))
    assert np.array_equal(*(sitk.GetArrayViewFromImage(p.labels) for p in (one, same)))
    assert one.keypoints == same.keypoints and one.truth == same.truth
    assert sitk.GetArrayViewFromImage(one.labels).sum() != sitk.GetArrayViewFromImage(other.labels).sum()


@pytest.mark.parametrize("seed", range(8))
def test_random_phantoms_are_whole_and_in_anatomical_order(seed):
    rng = np.random.default_rng(seed)
    spec = random_spec(rng, pixel_mm=1.5, slice_mm=4.0, slices=14)
    phantom = make_phantom(spec, rng)
    assert Geometry.of(phantom.image) == Geometry.of(phantom.labels)
    assert phantom.image.GetPixelID() == phantom.labels.GetPixelID() == sitk.sitkInt16
    names = [s.name for s in spec.chain()]
    between = names[names.index(spec.top) : names.index(spec.bottom) + 1]
    found = ids(phantom)
    for name in between[1:-1]:
        level = structure(name)
        assert {level.id, disc_below(level).id} <= found
        assert level.id in phantom.keypoints
    assert CANAL_ID in found and found <= set(STRUCTURES)
    # From the top down, as `anatomy.ranks` says.
    labels = canonical(phantom.labels)
    rank = ranks(found)
    heights = {i: np.argwhere(labels == i)[:, 1].mean() for i in found - {CANAL_ID}}
    ordered = sorted(heights, key=lambda i: -rank[i])
    assert all(heights[a] < heights[b] for a, b in pairwise(ordered))
    for sid, point in phantom.keypoints.items():
        assert phantom.labels[phantom.labels.TransformPhysicalPointToIndex(point)] == sid
    values = sitk.GetArrayViewFromImage(phantom.image)
    assert values.std() > 5


def test_each_structure_is_one_piece(fine):
    labels = sitk.GetArrayFromImage(fine.labels)
    for sid in ids(fine):
        pieces = sitk.ConnectedComponent(sitk.GetImageFromArray((labels == sid).astype(np.uint8)))
        sizes = np.bincount(sitk.GetArrayViewFromImage(pieces).ravel())[1:]
        assert sizes.max() > 0.98 * sizes.sum(), STRUCTURES[sid].name


def test_heights_in_the_labels_are_the_true_ones(fine):
    assert fine.truth["levels"] == ["T10", "T11", "T12", "L1", "L2", "L3", "L4", "L5", "S1"]
    for name in ("T11", "T12", "L1", "L2", "L3", "L4", "L5"):
        sid = structure(name).id
        center, down, back = axes_of(fine, name)
        depth = length_in(fine, sid, center, back)
        anterior, middle, posterior = fine.truth["heights"][name]
        assert length_in(fine, sid, center, down) == pytest.approx(middle, abs=1.0)
        assert length_in(fine, sid, center - 0.4 * depth * back, down) == pytest.approx(anterior, abs=1.2)
        assert length_in(fine, sid, center + 0.4 * depth * back, down) == pytest.approx(posterior, abs=1.2)


def test_disc_heights_and_canal_in_the_labels_are_the_true_ones(fine):
    for name in ("T11", "T12", "L1", "L2", "L3", "L4"):
        sid = disc_below(structure(name)).id
        _, down, _ = axes_of(fine, name)
        height = length_in(fine, sid, np.array(fine.keypoints[sid]), down)
        assert height == pytest.approx(fine.truth["discs"][sid], abs=1.0)
    for name in ("T12", "L2", "L3", "L4"):
        center, _, back = axes_of(fine, name)
        assert length_in(fine, CANAL_ID, center + 25 * back, back) == pytest.approx(fine.truth["canal"][name], abs=1.2)


def test_lordosis_and_slope_are_as_asked(fine):
    assert fine.truth["lordosis"] == pytest.approx(48, abs=0.5)
    assert fine.truth["sacral_slope"] == pytest.approx(38, abs=0.5)
    # The axes of L1 and L5 in the labels differ by what lies between them.
    axes = [axes_of(fine, name)[1] for name in ("L1", "L5")]
    angle = np.degrees(np.arccos(np.clip(axes[0] @ axes[1], -1, 1)))
    assert 15 < angle < 48


@pytest.mark.parametrize(
    ("variant", "present", "absent", "pairs"),
    [
        ("L6", {25, 124, 125}, {28, 128}, [(24, 124), (124, 25), (25, 125), (125, SACRUM_ID)]),
        ("T13", {28, 119, 128}, {25, 125}, [(19, 119), (119, 28), (28, 128), (128, 20)]),
        ("L4-count", {23, 123, SACRUM_ID}, {24, 124, 25}, [(23, 123), (123, SACRUM_ID)]),
        (None, {24, 124, 119}, {25, 28, 125, 128}, [(19, 119), (119, 20), (24, 124), (124, SACRUM_ID)]),
    ],
)
def test_numbering_variants(variant, present, absent, pairs):
    phantom = make(variant=variant, top="T11", pixel_mm=1.5, slices=5)
    found = ids(phantom)
    assert present <= found and not absent & found
    labels = canonical(phantom.labels)
    for upper, lower in pairs:  # the first lies on the second: they touch, in this order
        below = np.zeros_like(labels, bool)
        below[:, 1:] = labels[:, :-1] == upper
        assert (below & (labels == lower)).sum() > 20
        assert np.argwhere(labels == upper)[:, 1].mean() < np.argwhere(labels == lower)[:, 1].mean()
    assert [s.id for s in phantom.spec.chain() if s.name == "T13"] == ([28] if variant == "T13" else [])


def test_a_slipped_vertebra_is_seen_in_the_labels():
    fields = {"top": "L1", "pixel_mm": 0.7, "slices": 3, **STRAIGHT}
    normal, slipped = make(**fields), make(listhesis={"L4": 8.0}, **fields)

    def step(phantom):
        labels = canonical(phantom.labels)[1]
        back = [np.argwhere(labels == i)[:, 1].max() for i in (23, 24)]  # the rearmost point of L4 and of L5
        return (back[0] - back[1]) * 0.7

    assert step(normal) - step(slipped) == pytest.approx(8.0, abs=1.5)
    assert slipped.truth["listhesis"] == {"L4": 8.0}


def test_a_wedge_fracture_and_a_biconcave_one_are_seen_in_the_labels():
    fields = {"top": "T11", "pixel_mm": 0.6, "slices": 3, "width_mm": 200}
    broken = make(wedge={"L1": 0.4}, biconcave={"L3": 0.4}, **fields)
    normal = make(**fields)
    heights = {}
    for phantom, key in ((normal, "normal"), (broken, "broken")):
        for name in ("L1", "L3"):
            center, down, back = axes_of(phantom, name)
            sid = structure(name).id
            heights[key, name] = [length_in(phantom, sid, center + k * back, down) for k in (-13.0, 0.0, 13.0)]
    assert heights["broken", "L1"][0] < 0.75 * heights["normal", "L1"][0]
    assert heights["broken", "L1"][2] > 0.9 * heights["normal", "L1"][2]
    assert heights["broken", "L3"][1] < 0.75 * heights["normal", "L3"][1]


def test_degeneration_and_stenosis_are_seen():
    fields = {"top": "L1", "pixel_mm": 0.7, "slices": 3}
    worn = make(degenerated={"L4": 1.0}, stenosis={"L3": 0.6}, **fields)
    normal = make(**fields)
    disc = disc_below(structure("L4")).id
    assert worn.truth["discs"][disc] < 0.65 * normal.truth["discs"][disc]
    level = disc_below(structure("L3")).id
    depth = {}
    for key, phantom in (("worn", worn), ("normal", normal)):
        _, _, back = axes_of(phantom, "L3")
        depth[key] = length_in(phantom, CANAL_ID, np.array(phantom.keypoints[level]) + 25 * back, back)
        values, labels = (canonical(x) for x in (phantom.image, phantom.labels))
        depth[key + " signal"] = np.percentile(values[labels == disc], 90) / np.median(values[labels == 23])
    assert depth["worn"] < 0.7 * depth["normal"]
    assert depth["worn signal"] < 0.6 * depth["normal signal"]


def test_scoliosis_bends_the_column_sideways():
    fields = {"top": "T10", "pixel_mm": 1.2, "slices": 41, "slice_mm": 2.0}

    def bend(phantom):
        right = np.array([phantom.keypoints[structure(n).id][0] for n in ("T11", "T12", "L1", "L2", "L3", "L4", "L5")])
        return np.ptp(right)

    assert bend(make(scoliosis_deg=0.0, **fields)) < 0.5
    assert 8 < bend(make(scoliosis_deg=30.0, **fields)) < 45


def test_contrasts_differ_as_tissues_do():
    def ratio(contrast):
        phantom = make(contrast=contrast, contrast_jitter=0, noise=0.0, bias=0, coil_mm=None, pixel_mm=1.0, slices=5)
        values, labels = (canonical(x).astype(float) for x in (phantom.image, phantom.labels))
        return np.median(values[labels == CANAL_ID]) / np.median(values[(labels > 19) & (labels < 25)])

    assert ratio("t2") > 1.5
    assert ratio("t1") < 0.8
    assert ratio("fat-suppressed") > 2.5
    assert ratio("water") > 1.3


def test_ct_is_in_hounsfield_units():
    phantom = make(contrast="ct", slices=5, pixel_mm=1.5, noise=0.005)
    values, labels = (canonical(x) for x in (phantom.image, phantom.labels))
    assert values.min() < -900 and 100 < np.median(values[labels == 22]) < 350


def test_a_level_cut_by_the_edge_keeps_its_name():
    phantom = make(top="T12", margin_top_mm=-12, pixel_mm=1.0, slices=5)
    labels = canonical(phantom.labels)
    assert (labels[:, 0] == 19).any() and 18 not in labels
    assert "T12" not in phantom.truth["levels"] and "L1" in phantom.truth["levels"]
    without_sacrum = make(top="T10", bottom="L3", margin_bottom_mm=-8, pixel_mm=1.0, slices=5)
    assert SACRUM_ID not in ids(without_sacrum)


@pytest.mark.parametrize("code", ["LPS", "RAS", "ASR"])
def test_orientation_and_obliqueness_change_the_storage_and_not_the_patient(code):
    plain = make(pixel_mm=1.5, slices=7)
    turned = make(pixel_mm=1.5, slices=7, orientation=code)
    preprocessing = Preprocessing(pixel_mm=1.5)
    a, b = (preprocessing.apply(p.image) for p in (plain, turned))
    assert np.array_equal(a.array, b.array)
    oblique = make(pixel_mm=1.5, slices=7, orientation=code, oblique_deg=(6, -8, 5))
    labels = oblique.labels
    for sid, point in oblique.keypoints.items():
        assert labels[labels.TransformPhysicalPointToIndex(point)] == sid
    assert len({round(abs(v), 4) for v in oblique.image.GetDirection()}) > 3


@pytest.mark.parametrize(
    "fields",
    [{"top": "L7"}, {"top": "L6"}, {"top": "S1", "bottom": "L1"}, {"wedge": {"X": 0.2}}, {"top": "C2"}, {"tip": 1}],
)
def test_impossible_specs_are_refused(fields):
    with pytest.raises(ValueError):
        PhantomSpec(**fields)


def test_specs_are_json_and_random_ones_vary():
    rng = np.random.default_rng(0)
    specs = [random_spec(rng) for _ in range(80)]
    assert {s.contrast for s in specs} == {"t1", "t2", "fat-suppressed", "water", "random"}
    assert {s.variant for s in specs} == {None, "L6", "T13"}
    assert PhantomSpec.model_validate_json(specs[0].model_dump_json()) == specs[0]
    assert random_spec(rng, contrast="ct", variant="L6").variant == "L6"


def test_the_shipped_sample_is_the_sample_case():
    folder = Path(__file__).parents[2] / "Resources/Samples"
    image, labels = folder / "lumbar_phantom.nii.gz", folder / "lumbar_phantom_label.nii.gz"
    assert image.stat().st_size + labels.stat().st_size < 1_600_000
    case = sample_case()
    shipped = sitk.ReadImage(str(image)), sitk.ReadImage(str(labels))
    assert Geometry.of(shipped[0]).matches(Geometry.of(case.image))
    # Rounding differs between processors and library versions.
    assert (sitk.GetArrayViewFromImage(shipped[1]) == sitk.GetArrayViewFromImage(case.labels)).mean() > 0.999
    difference = sitk.GetArrayFromImage(shipped[0]).astype(float) - sitk.GetArrayFromImage(case.image)
    assert np.abs(difference).mean() < 2
    assert {structure(s).id for s in ("T11", "L5", "S1")} <= ids(case)
    assert level_chain()[-1].id == SACRUM_ID
