"""Measurements against shapes whose size is known."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from SpineSegAILib.anatomy import SCHEMES, Extent, LabelScheme, structure
from SpineSegAILib.errors import MissingPackageError, OutputError
from SpineSegAILib.phantoms.spine import PhantomSpec, make_phantom
from SpineSegAILib.results import Segmentation
from SpineSegAILib.results.measurement import (
    COLUMNS,
    MEASUREMENTS,
    SHORT_COLUMNS,
    SPINE_MEASUREMENTS,
    Row,
    measure,
    measure_all,
    write_measurements,
)
from SpineSegAILib.results.measurement.plausibility import limit_of
from SpineSegAILib.results.quality import cut_by_border

SCHEME = SCHEMES["lumbar-mr"]
SPACING = (4.0, 1.0, 1.0)  # slices, rows, columns
SHAPE = (15, 160, 120)


class Scene:
    """Boxes and wedges painted on a canonical grid; positions and sizes are (aside, down, back) in mm."""

    def __init__(self, spacing=SPACING, shape=SHAPE):
        self.spacing, self.values = spacing, np.zeros(shape, np.int16)
        self.axes = np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij")

    def wedge(self, name, center, front, back, depth, width=44.0, degrees=0.0):
        """A body with these heights at its front and back edge, turned in the sagittal plane."""
        aside, down, behind = (axis - c for axis, c in zip(self.axes, center, strict=True))
        angle = np.radians(degrees)
        w = np.cos(angle) * down + np.sin(angle) * behind
        u = -np.sin(angle) * down + np.cos(angle) * behind
        half = (front + (back - front) * (u / depth + 0.5)) / 2
        # Half open, so that a box of 26 mm that is aligned with voxels of 1 mm is 26 voxels high.
        inside = (abs(aside) <= width / 2) & (-depth / 2 <= u) & (u < depth / 2) & (-half <= w) & (w < half)
        self.values[inside] = structure(name).id
        return self

    def box(self, name, center, height, depth, **more):
        return self.wedge(name, center, height, height, depth, **more)

    def segmentation(self, direction="PIR", scheme=SCHEME, **more):
        image = sitk.GetImageFromArray(self.values)
        image.SetSpacing(self.spacing[::-1])
        image.SetOrigin((11.0, -7.0, 23.0))
        image.SetDirection((0, 0, -1, 1, 0, 0, 0, -1, 0))  # columns backwards, rows downwards, slices to the right
        return Segmentation(sitk.DICOMOrient(image, direction), scheme, **more)


def measured(scene, name="L3", **more):
    rows = {row["structure"]: row for row in measure(scene.segmentation(**more))}
    return rows[name]


def heights(row):
    return [row[f"height_{at}_mm"] for at in ("anterior", "middle", "posterior")]


@pytest.mark.parametrize("degrees", [-32.0, -17.0, -5.0, 0.0, 3.0, 11.0, 24.0])
@pytest.mark.parametrize("spacing", [(4.0, 1.0, 1.0), (1.0, 1.0, 1.0), (3.3, 0.7, 0.7)])
def test_a_turned_box_alone(degrees, spacing):
    shape = tuple(round(n * s / t) for n, s, t in zip(SHAPE, SPACING, spacing, strict=True))
    row = measured(Scene(spacing, shape).box("L3", (28.3, 70.4, 55.7), 26.0, 34.0, degrees=degrees))
    assert heights(row) == pytest.approx([26.0] * 3, abs=0.5)
    assert row["depth_mm"] == pytest.approx(34.0, abs=0.5)


def test_a_wedge_keeps_its_heights():
    row = measured(Scene().wedge("L3", (28, 70, 55), 16.0, 28.0, 34.0, degrees=12.0))
    expected = [16 + 12 * share for share in (0.1, 0.5, 0.9)]
    assert heights(row) == pytest.approx(expected, abs=0.5)


def test_neighbours_tell_the_axis_of_a_body_that_is_deeper_than_high():
    scene = Scene()
    for index, name in enumerate(("L2", "L3", "L4")):
        scene.box(name, (28, 40 + 38 * index, 62 - 14 * index), 25.0, 33.0, degrees=-20.0)
    for row in measure(scene.segmentation()):
        assert heights(row) == pytest.approx([25.0] * 3, abs=0.5)
        assert row["depth_mm"] == pytest.approx(33.0, abs=0.5)


@pytest.mark.parametrize("degrees", [-25.0, 0.0, 14.0])
def test_a_disc_between_its_vertebrae(degrees):
    turned = np.radians(degrees)
    down, back = np.cos(turned), np.sin(turned)
    scene = Scene()
    for name, step in (("L3", -18.0), ("L4", 18.0)):
        scene.box(name, (28, 75 + step * down, 55 + step * back), 25.0, 34.0, degrees=degrees)
    scene.wedge("L3/L4", (28, 75, 55), 11.0, 7.0, 34.0, degrees=degrees)
    row = measured(scene, "L3/L4")
    assert heights(row) == pytest.approx([11 - 4 * share for share in (0.1, 0.5, 0.9)], abs=0.5)
    assert row["height_mean_mm"] == pytest.approx(9.0, abs=0.4)


def test_discs_without_vertebrae():
    scene = Scene()
    for index, name in enumerate(("L2/L3", "L3/L4", "L4/L5")):
        scene.box(name, (28, 40 + 36 * index, 62 - 8 * index), 8.0, 34.0, degrees=-12.0)
    for row in measure(scene.segmentation()):
        assert heights(row) == pytest.approx([8.0] * 3, abs=0.5)


def test_volume_and_centre_in_both_conventions():
    scene = Scene((1.0, 1.0, 1.0), (60, 80, 80)).box("L3", (30, 40.5, 40.5), 20.0, 30.0, width=40.0)
    segmentation = scene.segmentation()
    row = measure(segmentation)[0]
    assert row["volume_ml"] == pytest.approx((scene.values > 0).sum() / 1000)
    # From the origin 30 mm to the right, 40.5 mm down, 40.5 mm back.
    assert [row[f"centroid_lps_{a}_mm"] for a in "xyz"] == pytest.approx([11 - 30, -7 + 40.5, 23 - 40.5])
    assert [row[f"centroid_ras_{a}_mm"] for a in "xyz"] == pytest.approx([19, -33.5, -17.5])


@pytest.mark.parametrize("direction", ["LPS", "RAS", "ASR", "SRA"])
def test_orientation_of_the_file_does_not_matter(direction):
    scene = Scene().wedge("L3", (28, 70, 55), 20.0, 27.0, 34.0, degrees=9.0).box("L2", (28, 34, 50), 25.0, 34.0)
    for ours, theirs in zip(measure(scene.segmentation()), measure(scene.segmentation(direction)), strict=True):
        assert ours.keys() == theirs.keys()
        for key in COLUMNS:
            assert theirs[key] == (pytest.approx(ours[key], abs=1e-3) if isinstance(ours[key], float) else ours[key])


def test_what_the_border_cuts_gets_no_size():
    cut_above = measured(Scene().box("L3", (28, 5, 55), 26.0, 34.0))
    assert cut_above["touches_border"] is True
    assert cut_above["volume_ml"] is None
    assert heights(cut_above) == [None] * 3
    assert cut_above["centroid_lps_x_mm"] is not None

    cut_aside = measured(Scene().box("L3", (28, 70, 55), 26.0, 34.0, width=400.0))  # stack narrower than the body
    assert cut_aside["touches_border"] is True
    assert cut_aside["volume_ml"] is None
    assert heights(cut_aside) == pytest.approx([26.0] * 3, abs=0.5)


def test_a_single_slice_has_heights_and_no_volume():
    row = measured(Scene((1.0, 0.8, 0.8), (1, 160, 120)).box("L3", (0, 60, 45), 26.0, 34.0, degrees=8.0))
    assert heights(row) == pytest.approx([26.0] * 3, abs=0.5)
    assert row["volume_ml"] is None


@pytest.mark.parametrize("direction", [(1, 0, 0, 0, 1, 0, 0, 0, 1), (-1, 0, 0, 0, -1, 0, 0, 0, 1)])
def test_a_single_slice_is_measured_as_it_is_segmented_whatever_its_header_says(direction):
    scene = Scene((1.0, 0.8, 0.8), (1, 200, 120)).wedge("L3", (0, 60, 45), 30.0, 22.0, 34.0)
    scene.wedge("L4", (0, 100, 50), 26.0, 26.0, 34.0, degrees=10.0)
    sagittal, axial = scene.segmentation(), scene.segmentation()
    axial.labels.SetDirection(direction)
    for key in ("height_anterior_mm", "height_posterior_mm", "depth_mm", "endplate_angle_deg", "slip_mm"):
        values = [[row[key] for row in measure(seg)] for seg in (sagittal, axial)]
        assert values[0] == pytest.approx(values[1]), key
    assert not cut_by_border(axial.labels)
    row = measure(axial)[0]
    place = [row[f"centroid_lps_{axis}_mm"] for axis in "xyz"]
    assert axial.labels[axial.labels.TransformPhysicalPointToIndex(place)] == structure("L3").id


def test_the_body_of_a_whole_vertebra_is_measured_without_its_arch():
    scene = Scene((2.0, 1.0, 1.0), (30, 140, 140))
    scene.box("L3", (29, 70, 45), 26.0, 34.0)
    scene.box("L3", (29, 78, 98), 18.0, 30.0, width=8.0)  # spinous process
    for side in (-14, 14):  # pedicles and laminae, beside the canal
        scene.box("L3", (29 + side, 66, 75), 12.0, 30.0, width=8.0)
    whole = LabelScheme("whole", "", (structure("L3").id,), Extent.WHOLE, "CT")
    row = measured(scene, scheme=whole)
    assert heights(row) == pytest.approx([26.0] * 3, abs=0.5)
    assert row["depth_mm"] == pytest.approx(34.0, abs=0.5)


@pytest.mark.parametrize("degrees", [0.0, 20.0])
def test_canal_depth_only_where_it_is_validated(degrees):
    turned = np.radians(degrees)
    scene = Scene().box("L3", (28, 75, 45), 26.0, 34.0, degrees=degrees)
    behind = (28, 75 - 28 * np.sin(turned), 45 + 28 * np.cos(turned))
    scene.box("canal", behind, 300.0, 14.0, width=20.0, degrees=degrees)
    row = measured(scene)
    assert row["canal_depth_mm"] == pytest.approx(14.0, abs=0.5)
    assert measured(scene, unvalidated=frozenset({61}))["canal_depth_mm"] is None
    assert measured(scene, "canal")["volume_ml"] is None  # cut by the border, as canals are


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"scoliosis_deg": 15.0, "oblique_deg": (3.0, -4.0, 5.0), "orientation": "RAS"},
        {"wedge": {"L1": 0.4}, "biconcave": {"L3": 0.25}, "degenerated": {"L4": 0.9}, "slice_mm": 2.5, "slices": 25},
        {"variant": "L6", "pixel_mm": 0.7, "slice_mm": 3.3, "slices": 19},
        {"stenosis": {"L3": 0.5, "L4": 0.7, "L5": 0.3}, "listhesis": {"L4": 8.0, "L2": -4.0}},
        {"stenosis": {"L2": 0.6}, "listhesis": {"L5": 10.0}, "lordosis_deg": 70, "sacral_slope_deg": 55},
        {"scoliosis_deg": 30, "slices": 25, "slice_mm": 2.5, "stenosis": {"L4": 0.6}},
    ],
    ids=["usual", "scoliosis", "fractures", "fine", "stenosis", "steep", "strong scoliosis"],
)
def test_phantoms_are_measured_to_a_millimetre(changes):
    phantom = make_phantom(PhantomSpec(top="T12", **changes), np.random.default_rng(5))
    *rows, spine = measure_all(Segmentation(phantom.labels, SCHEME))
    rows = {row["structure"]: row for row in rows}
    levels = [name for name in phantom.truth["levels"] if name != "S1"]
    assert len(levels) >= 5
    for name in levels:
        assert heights(rows[name]) == pytest.approx(phantom.truth["heights"][name], abs=1.0), name
        assert rows[name]["canal_depth_mm"] == pytest.approx(phantom.truth["canal"][name], abs=1.0), name
        assert rows[name]["slip_mm"] == pytest.approx(phantom.truth["slip"][name], abs=1.2), name
    discs = {row["id"]: row for row in rows.values() if row["kind"] == "disc"}
    for sid, height in phantom.truth["discs"].items():
        assert discs[sid]["height_middle_mm"] == pytest.approx(height, abs=1.0), sid
        assert discs[sid]["canal_depth_mm"] == pytest.approx(phantom.truth["canal"][sid], abs=1.0), sid
    assert spine["lordosis_deg"] == pytest.approx(phantom.truth["lordosis"], abs=2.0)
    assert spine["scoliosis_deg"] == pytest.approx(phantom.truth["cobb_seen"], abs=2.0)
    below_l1 = [n for n in rows if n.startswith("L")]
    assert sum(rows[n]["endplate_angle_deg"] for n in below_l1) == pytest.approx(spine["lordosis_deg"], abs=0.1)


def test_discs_are_called_by_the_neighbors_that_are_there(tmp_path):
    scene = Scene(shape=(15, 220, 120))
    for name, at in (("L5", 30), ("L6", 66), ("S1", 102)):
        scene.box(name, (28, at, 55), 26.0, 34.0)
    scene.wedge("L5/S1", (28, 48, 55), 7.0, 9.0, 34.0).box("L6/S1", (28, 84, 55), 8.0, 34.0)
    rows = measure_all(scene.segmentation())
    assert [row["structure"] for row in rows] == ["L5", "L5/L6", "L6", "L6/S1", "S1", "spine"]
    assert limit_of("endplate_angle_deg", rows[1]).usual == (-6.0, 21.0)  # no longer a disc above the sacrum
    with write_measurements(rows, tmp_path / "table.csv").open(encoding="utf-8-sig") as file:
        assert [row["structure"] for row in csv.DictReader(file)][1] == "L5/L6"


def test_a_slip_and_a_wedge_between_boxes():
    scene = Scene()
    scene.box("L3", (28, 40, 55), 26.0, 34.0).box("L3/L4", (28, 57, 55), 8.0, 34.0)
    scene.box("L4", (28, 74, 62), 26.0, 34.0)  # seven millimeters farther back: L3 lies in front of it
    scene.wedge("L4/L5", (28, 93, 62), 12.0, 6.0, 34.0)
    rows = {row["structure"]: row for row in measure(scene.segmentation())}
    assert rows["L3"]["slip_mm"] == pytest.approx(7.0, abs=0.5)
    assert rows["L3/L4"]["disc_height_index"] == pytest.approx(8 / 26, abs=0.02)
    assert rows["L3/L4"]["endplate_angle_deg"] == pytest.approx(0.0, abs=1.0)
    assert rows["L4"]["slip_mm"] is None  # nothing below it
    assert rows["L4/L5"]["disc_height_index"] is None


@pytest.mark.parametrize("degrees", [-15.0, 0.0, 20.0])
def test_the_angle_of_an_endplate_is_that_of_the_line_between_its_rims(degrees):
    """Lower endplates are not symmetric: their deepest place lies behind the middle, and the slope there is steeper."""
    scene = Scene((4.0, 0.5, 0.5), (15, 320, 240))
    for name, center in (("L3", 40.0), ("L4", 75.0)):
        aside, down, behind = (a - c for a, c in zip(scene.axes, (28.0, center, 55.0), strict=True))
        turned = np.radians(degrees)
        w, u = np.cos(turned) * down + np.sin(turned) * behind, np.cos(turned) * behind - np.sin(turned) * down
        share = u / 17.0
        hollow = 2.0 * (1 - share**2) + 3.0 * (share - share**3)  # nothing at both rims
        inside = (abs(aside) <= 22) & (abs(u) <= 17) & (w >= -13) & (w <= 13 - hollow)
        scene.values[inside] = structure(name).id
    rows = {row["structure"]: row for row in measure(scene.segmentation())}
    assert rows["L3"]["endplate_angle_deg"] == pytest.approx(0.0, abs=3.5)  # the slope at the middle says 7
    assert rows["L4"]["endplate_angle_deg"] == pytest.approx(0.0, abs=3.5)


def test_a_sacrum_of_low_quality_tells_neither_slip_nor_angle_by_itself():
    phantom = make_phantom(PhantomSpec(top="T12"), np.random.default_rng(5))
    s1 = structure("S1").id
    for quality, given in ((None, True), (0.9, True), (0.4, False)):
        told = {} if quality is None else {s1: quality}
        rows = {r["structure"]: r for r in measure_all(Segmentation(phantom.labels, SCHEME, outline_quality=told))}
        assert (rows["L5"]["slip_mm"] is not None) is given
        assert ("Not given: slip (the outline of S1 has a low quality)" in rows["L5"]["notes"]) is not given
        assert rows["L5/S1"]["endplate_angle_deg"] is not None  # of the disc
        assert ("to the lower face of the last disc" in rows["spine"]["notes"]) is not given
        assert ("upper back corner of the outline of S1" in rows["L5"]["notes"]) is (rows["L5"]["slip_mm"] is not None)
        assert "S1" not in rows["L4"]["notes"]
        alone = phantom.labels * sitk.Cast(phantom.labels != structure("L5/S1").id, sitk.sitkInt16)
        spine = measure_all(Segmentation(alone, SCHEME, outline_quality=told))[-1]
        assert (spine["lordosis_deg"] is not None) is given
        assert ("(endplates of S1: the outline of S1 has a low quality)" in spine["notes"]) is not given


def test_a_gap_in_the_levels_is_no_neighbourhood():
    scene = Scene().box("L2", (28, 40, 55), 26.0, 34.0).box("L4", (28, 110, 62), 26.0, 34.0)
    assert measured(scene, "L2")["slip_mm"] is None


def test_a_tilted_column_has_a_cobb_angle():
    scene = Scene((2.0, 1.0, 1.0), (31, 160, 120))
    for k, (name, degrees) in enumerate((("L2", 10.0), ("L3", 0.0), ("L4", -15.0))):
        aside, down, back = (a - c for a, c in zip(scene.axes, (30, 35 + 40 * k, 60), strict=True))
        turn = np.radians(degrees)
        height = np.cos(turn) * down - np.sin(turn) * aside
        inside = (abs(height) < 13) & (abs(np.cos(turn) * aside + np.sin(turn) * down) < 22) & (abs(back) < 17)
        scene.values[inside] = structure(name).id
    spine = measure_all(scene.segmentation())[-1]
    assert spine["scoliosis_deg"] == pytest.approx(25.0, abs=1.5)
    assert spine["lordosis_deg"] is None


@pytest.mark.parametrize(("kept", "given"), [(25, True), (7, True), (5, False), (3, False)])
def test_outlines_of_a_few_middle_slices_tell_no_cobb_angle(kept, given):
    made = make_phantom(PhantomSpec(scoliosis_deg=30.0, slices=25, slice_mm=3.5), np.random.default_rng(3))
    values = sitk.GetArrayFromImage(made.labels)
    for sid in np.unique(values)[1:]:
        drawn = np.flatnonzero((values == sid).any(axis=(1, 2)))
        middle = len(drawn) // 2
        outside = np.setdiff1d(drawn, drawn[max(middle - kept // 2, 0) : middle + kept // 2 + 1])
        values[outside] = np.where(values[outside] == sid, 0, values[outside])
    few = sitk.GetImageFromArray(values)
    few.CopyInformation(made.labels)
    spine = measure_all(Segmentation(few, SCHEME))[-1]
    if given:
        assert spine["scoliosis_deg"] == pytest.approx(made.truth["cobb_seen"], abs=2.0)
    else:
        assert spine["scoliosis_deg"] is None and "fewer than two vertebrae are in view" in spine["notes"]


def test_real_bodies_have_plausible_sizes(real_lumbar_mr):
    labels = sitk.Cast(sitk.ReadImage(str(real_lumbar_mr.parent / "chu_02_label.nii.gz")), sitk.sitkInt16)
    rows = measure(Segmentation(labels, SCHEME))
    assert [row["structure"] for row in rows] == ["T11", "T12", "L1", "L2", "L3", "L4", "L5"]
    for row in rows:
        assert not row["touches_border"]
        assert 20 < row["volume_ml"] < 60
        assert all(20 < height < 36 for height in heights(row))
        assert 25 < row["depth_mm"] < 40
    downwards = [row["centroid_lps_z_mm"] for row in rows]
    assert downwards == sorted(downwards, reverse=True)


def test_tiny_islands_and_empty_results_measure_without_error():
    scene = Scene()
    assert measure(scene.segmentation()) == []
    scene.values[7, 50, 50] = 22
    row = measured(scene)
    assert row["volume_ml"] is None
    assert heights(row) == [None] * 3
    assert "0.0 mL is not possible" in row["notes"] and "its outline is too small or damaged" in row["notes"]


@pytest.fixture
def two_rows() -> list[Row]:
    """The rows of L3 and of an L4 that the border cuts."""
    scene = Scene().box("L3", (28, 70, 55), 26.0, 34.0).box("L4", (28, 155, 55), 26.0, 34.0)
    return measure(scene.segmentation(outline_quality={22: 0.934}, unvalidated=frozenset({23})))


def test_a_table_is_short_unless_all_of_it_is_asked_for(tmp_path: Path, two_rows):
    path = write_measurements(two_rows, tmp_path / "short.csv")
    with path.open(encoding="utf-8", newline="") as file:
        l3, l4 = csv.DictReader(file)
    assert tuple(l3) == SHORT_COLUMNS and len(l3) <= 12 and not any("centroid" in key for key in l3)
    assert l3["height_middle_mm"] == f"{two_rows[0]['height_middle_mm']:.1f}" and l3["outline_quality"] == "0.93"
    assert all(
        key.endswith(("_mm", "_ml", "_deg")) for key in l3 if key not in ("structure", "outline_quality", "notes")
    )
    assert l4["volume_ml"] == l4["outline_quality"] == l3["slip_mm"] == ""
    assert l4["notes"].startswith("Not given: heights, volume, endplate angle, slip (the image's border cuts it).")

    path = write_measurements(two_rows, tmp_path / "all.csv", COLUMNS, precise=True)
    with path.open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert tuple(read[0]) == COLUMNS
    assert [r["name"] for r in read] == ["L3 vertebra (body)", "L4 vertebra (body) (experimental)"]
    assert [r["touches_border"] for r in read] == ["no", "yes"]
    assert float(read[0]["height_middle_mm"]) == pytest.approx(two_rows[0]["height_middle_mm"], abs=0.005)
    assert read[0]["outline_quality"] == "0.934" and read[1]["volume_ml"] == ""
    with pytest.raises(OutputError):
        write_measurements(two_rows, "/dev/null/sizes.csv")
    with pytest.raises(OutputError, match="\\.xlsx"):
        write_measurements(two_rows, tmp_path / "sizes.ods")


def test_a_table_in_json_and_for_a_spreadsheet(tmp_path: Path, two_rows, monkeypatch):
    two_rows[0]["slip_mm"], two_rows[0]["structure"] = -0.04, "=1+1"
    rows = json.loads(write_measurements(two_rows, tmp_path / "s.json").read_text(encoding="utf-8"))
    assert tuple(rows[0]) == SHORT_COLUMNS and str(rows[0]["slip_mm"]) == "0.0" and rows[1]["volume_ml"] is None
    path = write_measurements(two_rows, tmp_path / "a.json", COLUMNS, precise=True)
    assert json.loads(path.read_text(encoding="utf-8"))[0]["slip_mm"] == -0.04

    import openpyxl

    sheet = openpyxl.load_workbook(write_measurements(two_rows, tmp_path / "s.xlsx")).active
    head, l3, l4 = sheet.iter_rows()
    assert tuple(cell.value for cell in head) == SHORT_COLUMNS
    found = dict(zip(SHORT_COLUMNS, l3, strict=True))
    assert (found["structure"].value, found["structure"].data_type) == ("=1+1", "s")
    assert found["volume_ml"].value == round(two_rows[0]["volume_ml"], 1) and found["volume_ml"].number_format == "0.0"
    assert l4[1].value is None

    monkeypatch.setattr("SpineSegAILib.results.measurement.export.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="openpyxl"):
        write_measurements(two_rows, tmp_path / "t.xlsx")
    assert not (tmp_path / "t.xlsx").exists()


def test_columns_are_documented_and_say_their_unit():
    assert len(set(COLUMNS)) == len(COLUMNS)
    for m in (*MEASUREMENTS, *SPINE_MEASUREMENTS):
        assert m.key.endswith({"mm": "_mm", "mL": "_ml", "°": "_deg", "": "_index"}[m.unit])
        assert m.label
        assert m.method
