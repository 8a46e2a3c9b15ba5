"""Scoliosis in films: corners from outlines, Cobb angles by two rules, what is left blank and why."""

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.figure import Figure

from SpineSegAILib.anatomy import STRUCTURES, scheme, structure
from SpineSegAILib.cli.segment import _structure_rows
from SpineSegAILib.correction import Correction, Patch, apply_correction
from SpineSegAILib.imaging import SAGITTAL_DIRECTION
from SpineSegAILib.imaging.geometry import like
from SpineSegAILib.imaging.quads import filled_quadrangles
from SpineSegAILib.phantoms.films import FilmSpec, make_film, random_film
from SpineSegAILib.results import Segmentation
from SpineSegAILib.results.film_lines import draw_curves
from SpineSegAILib.results.measurement import FILM, FILM_COLUMNS, FilmSpine, measure, measure_all, write_measurements
from SpineSegAILib.results.measurement.cobb import completed, curves, set_angles
from SpineSegAILib.results.measurement.corners import fit_quad
from SpineSegAILib.results.measurement.rows import NotMeasured
from SpineSegAILib.results.measurement_table import measurement_table
from SpineSegAILib.results.ours import is_ours
from SpineSegAILib.results.preview import draw_preview
from SpineSegAILib.results.report import make_report

SCHEME = scheme("thoracolumbar-xr")
TILTS = {"T2": 4.0, "T6": -18.0, "T11": 24.0, "L4": -9.0}


def film(seed=0, **fields):
    return make_film(FilmSpec(**{"tilts": TILTS, **fields}), np.random.default_rng(seed))


def result(made, without=(), **known):
    values = sitk.GetArrayFromImage(made.labels).astype(np.int16)
    values[np.isin(values, [structure(name).id for name in without])] = 0
    return Segmentation(like(made.labels, values), SCHEME, scale_known=False, **known)


def rows_of(segmentation):
    *rows, spine = measure_all(segmentation)
    return {row["structure"]: row for row in rows}, spine


# --- corners ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("angle", [0, 7, -23, 38])
@pytest.mark.parametrize("size", [(16.0, 9.0), (40.0, 22.0), (160.0, 90.0)])
def test_corners_come_back_to_a_fraction_of_a_pixel(angle, size):
    half = np.array([(-1, -1), (1, -1), (-1.1, 1), (1.1, 1)]) * size / 2
    turn = np.radians(angle)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    corners = half @ matrix.T + (150.3, 140.8)
    mask = filled_quadrangles((300, 300), {1: corners}) > 0
    quad = fit_quad(mask, matrix @ (0.1, 1.0))
    assert np.linalg.norm(quad.corners - corners, axis=1).max() < 1.2
    assert quad.tilt == pytest.approx(angle, abs=25 / size[0])


def test_a_notch_and_a_spur_do_not_turn_an_edge():
    corners = np.array([(50.0, 50.0), (110.0, 50.0), (50.0, 84.0), (110.0, 84.0)])
    mask = filled_quadrangles((140, 160), {1: corners}) > 0
    mask[50:56, 62:68] = False
    mask[44:50, 108:112] = True
    quad = fit_quad(mask, np.array([0.0, 1.0]))
    assert np.linalg.norm(quad.corners - corners, axis=1).max() < 1.2 and abs(quad.tilt) < 0.5


@pytest.mark.parametrize("shape", ["speck", "disc", "cross"])
def test_what_is_no_quadrangle_is_refused(shape):
    y, x = np.mgrid[:80, :80] - 40
    mask = {
        "speck": (abs(x) < 2) & (abs(y) < 2),
        "disc": np.zeros_like(x, bool) | ((abs(x) < 30) & (abs(y) < 1)),
        "cross": ((abs(x) < 3) & (abs(y) < 30)) | ((abs(y) < 3) & (abs(x) < 30)),
    }[shape]
    with pytest.raises(NotMeasured):
        fit_quad(mask, np.array([0.0, 1.0]))


# --- the rules -------------------------------------------------------------------------------------------------------


def column(tilts, step=30.0, width=40.0):
    """(n, 4, 2) corners of vertebrae that stand on one another."""
    turned = np.radians(np.asarray(tilts, float))
    down = np.stack([-np.sin(turned), np.cos(turned)], 1)
    right = np.stack([np.cos(turned), np.sin(turned)], 1)
    centers = np.array([200.0, 40.0]) + np.concatenate([[[0, 0]], np.cumsum(step * (down[:-1] + down[1:]) / 2, axis=0)])
    return np.stack(
        [centers + sx * width / 2 * right + sy * step / 3 * down for sy in (-1, 1) for sx in (-1, 1)], axis=1
    )


def test_the_sets_angles_of_a_single_curve_are_taken_from_the_ends_of_the_column():
    tilts = [0, -4, -10, -16, -12, -2, 8, 17, 22, 18, 11, 6, 3, 1, 0, 0, 0]
    assert set_angles(column(tilts), 600) == pytest.approx((38.0, 16.0, 22.0), abs=1e-6)


def test_the_sets_angles_of_an_upper_and_a_lower_double_curve():
    tilts = [12, 8, 0, -8, -14, -6, 6, 16, 20, 14, 4, -6, -12, -9, -4, -2, 0]
    upper = set_angles(column(tilts), 1000)  # ends in the upper half: one above, one below
    assert upper == pytest.approx((34.0, 26.0, 32.0), abs=1e-6)
    lower = set_angles(column(tilts), 200)  # ends in the lower half: two above
    assert lower == pytest.approx((34.0, 26.0, 0.0), abs=1e-6)


@pytest.mark.parametrize("added", ["C7", "L6", "T13", "none"])
def test_vertebrae_added_to_a_film_stand_where_they_belong(added):
    """A reader's correction adds them at the end of the scheme."""
    tilts = [12, 8, 0, -8, -14, -6, 6, 16, 20, 14, 4, -6, -12, -9, -4, -2, 0]
    names = [*(f"T{n}" for n in range(1, 13)), *(f"L{n}" for n in range(1, 6))]
    at = {"C7": 0, "T13": 12, "L6": 17, "none": 0}[added]
    if added != "none":
        names.insert(at, added)
        tilts.insert(at, {"C7": -25, "T13": -20, "L6": 30}[added])
    corners = dict(zip((structure(name).id for name in names), column(tilts), strict=True))
    shape = (640, 400)
    drawn = filled_quadrangles(shape, corners)[np.newaxis].astype(np.int16)
    before = np.where(drawn == structure(added).id, 0, drawn) if added != "none" else drawn
    image = sitk.GetImageFromArray(before)
    image.SetDirection(SAGITTAL_DIRECTION)
    click = Correction("click", "Correct it", patch=Patch.between(before, drawn))
    corrected = apply_correction(Segmentation(image, SCHEME), click)
    _, spine = rows_of(corrected)
    angles = [spine[f"cobb_{which}_deg"] for which in ("main", "upper", "lower")]
    of_the_set = [tilt for name, tilt in zip(names, tilts, strict=True) if name not in ("C7", "L6")]
    assert angles == pytest.approx(set_angles(column(of_the_set), shape[0]), abs=1.5)
    assert not spine["notes"], "none is missing"
    if added == "T13":
        renamed = replace(corrected, labels=image)  # it is in the scheme still
        assert not rows_of(renamed)[1]["notes"]


def test_curves_alternate_and_small_bends_are_none():
    tilts = [12, 8, 0, -8, -14, -6, 6, 16, 20, 14, 4, -6, -12, -9, -4, -2, 0]
    corners = column(tilts)
    found = curves(tilts, corners.mean(1))
    assert [(c.upper, c.lower, c.side) for c in found] == [
        (0, 4, "left"),
        (4, 8, "right"),
        (8, 12, "left"),
        (12, 16, "right"),
    ]
    assert all(c.upper < c.apex < c.lower for c in found)
    assert curves([0, 3, 6, 9, 5, 0], column([0, 3, 6, 9, 5, 0]).mean(1)) == []
    assert curves([], np.zeros((0, 2))) == [] and curves([40], np.zeros((1, 2))) == []


def test_mirrored_films_have_mirrored_curves():
    tilts = np.array([0, -4, -10, -16, -12, -2, 8, 17, 22, 18, 11, 6, 3, 1, 0, 0, 0])
    one, other = (curves(t, column(t).mean(1)) for t in (tilts, -tilts))
    assert [(c.upper, c.lower, c.apex) for c in one] == [(c.upper, c.lower, c.apex) for c in other]
    assert {(a.side, b.side) for a, b in zip(one, other, strict=True)} <= {("left", "right"), ("right", "left")}


# --- a film's table --------------------------------------------------------------------------------------------------


def test_a_film_gives_tilts_curves_and_the_sets_angles():
    made = film()
    rows, spine = rows_of(result(made))
    for sid, tilt in made.tilts.items():
        assert rows[STRUCTURES[sid].name]["tilt_deg"] == pytest.approx(tilt, abs=1.2)
    assert rows["T6–T11"]["curve_deg"] == pytest.approx(42.0, abs=2.0)
    assert rows["T11–L4"]["curve_deg"] == pytest.approx(33.0, abs=2.0)
    assert "convex to the right" in rows["T6–T11"]["notes"] and "convex to the left" in rows["T11–L4"]["notes"]
    assert spine["cobb_main_deg"] == pytest.approx(42.0, abs=1.0)
    assert not spine["notes"] and all(row["volume_ml"] is None for row in rows.values())
    assert [row["id"] for row in measure(result(made))] == list(SCHEME.ids)


@pytest.mark.parametrize("seed", range(3))
def test_angles_do_not_depend_on_pixels_or_on_how_the_slice_is_stored(seed):
    spec = random_film(np.random.default_rng(seed))
    coarse, fine = (
        make_film(spec.model_copy(update=u), np.random.default_rng(0))
        for u in ({}, {"rows": 1024, "columns": 560, "pixel_mm": 0.3})
    )
    (_, one), (_, two) = rows_of(result(coarse)), rows_of(result(fine))
    assert one["cobb_main_deg"] == pytest.approx(two["cobb_main_deg"], abs=1.5)
    moved = result(coarse)
    moved.labels = sitk.DICOMOrient(moved.labels, "LPI")
    _, three = rows_of(moved)
    assert three["cobb_main_deg"] == pytest.approx(one["cobb_main_deg"], abs=1e-6)
    lines = {c.name: np.array(c.lines) for c in FilmSpine(result(coarse)).curves()}
    for curve in FilmSpine(moved).curves():
        assert np.allclose(np.sort(lines[curve.name], axis=1), np.sort(np.array(curve.lines), axis=1), atol=1e-3)


def test_the_lines_lie_along_the_endplates_in_the_patients_space():
    made = film(pixel_mm=0.7)
    curve = next(c for c in FilmSpine(result(made)).curves() if c.name == "T6–T11")
    upper, lower = made.corners[structure("T6").id], made.corners[structure("T11").id]
    assert np.allclose(curve.lines, (upper[:2], lower[2:]), atol=1.0)


@pytest.mark.parametrize(
    "fields, without, blank, said",
    [
        ({}, ["T3", "T4", "T5"], "T6–T11", "T6 may not be its end: T5 is not segmented"),
        ({}, ["T12", "L1", "L2"], "T6–T11", "T11 may not be its end: T12 is not segmented"),
        ({"crop": (0.3, 0.0)}, [], "", "T1 is not segmented"),
        ({"crop": (0.0, 0.26)}, [], "", "L3 is not segmented"),
    ],
)
def test_a_curve_is_blank_where_its_end_is_in_doubt(fields, without, blank, said):
    rows, spine = rows_of(result(film(**fields), without))
    assert spine["cobb_main_deg"] is None and "Not given: main Cobb angle" in spine["notes"]
    if blank:
        assert rows[blank]["curve_deg"] is None and said in rows[blank]["notes"]
    else:
        assert said in spine["notes"] or "border cuts it" in spine["notes"]
        ends = [row for row in rows.values() if row["kind"] == "curve" and row["curve_deg"] is None]
        assert ends and all("Not given: Cobb angle of a curve (" in row["notes"] for row in ends)
        assert all("may not be its end" in row["notes"] for row in ends)


def test_what_the_neighbors_let_expect_stands_in_where_it_hardly_matters():
    full, spine = rows_of(result(film()))
    rows, without = rows_of(result(film(), ["T5"]))
    said = "With the tilt of T5 as the neighbors let expect: it may be off by 1°."
    assert (
        rows["T6–T11"]["curve_deg"] == pytest.approx(full["T6–T11"]["curve_deg"], abs=0.01)
        and said in rows["T6–T11"]["notes"]
    )
    assert (
        without["cobb_main_deg"] == pytest.approx(spine["cobb_main_deg"], abs=0.01)
        and "With the tilt of T5" in without["notes"]
    )
    rows, without = rows_of(result(film(), ["T8"]))  # in the middle of the curve
    assert without["cobb_main_deg"] == pytest.approx(spine["cobb_main_deg"], abs=0.01) and not without["notes"]
    assert (
        rows["T6–T11"]["curve_deg"] == pytest.approx(full["T6–T11"]["curve_deg"], abs=0.01)
        and "neighbors" not in rows["T6–T11"]["notes"]
    )


def test_a_vertebra_at_the_end_of_the_column_is_estimated_with_more_doubt():
    _, whole = rows_of(result(film()))
    _, spine = rows_of(result(film(), ["L5"]))
    assert spine["cobb_main_deg"] == pytest.approx(whole["cobb_main_deg"], abs=0.01)
    assert spine["cobb_lower_deg"] is None and "L5 is not segmented" in spine["notes"]
    _, spine = rows_of(result(film(), ["T9", "L5"]))
    assert "thoracolumbar Cobb angle (L5 is not segmented)" in spine["notes"]  # T9 would not change it
    _, spine = rows_of(result(film(), ["L3", "L4", "L5"]))
    assert spine["cobb_main_deg"] is None and "L3 is not segmented" in spine["notes"]


def test_estimated_vertebrae_stand_where_they_would_be():
    corners = column([0, -4, -8, -12, -16, -20])
    known = {place: corners[place] for place in (1, 3, 4)}
    found = completed(known, 6)
    assert found.off == {0: 12.0, 2: 6.5, 5: 12.0}
    assert np.abs(found.corners - corners)[[0, 2, 5]].max() < 4 and np.array_equal(found.corners[3], corners[3])
    turned = found.turned(2, 5.0)
    across = [c[2, [1, 3]].mean(0) - c[2, [0, 2]].mean(0) for c in (found.corners, turned)]
    before, after = (np.degrees(np.arctan2(a[1], a[0])) for a in across)
    assert after - before == pytest.approx(5.0) and np.allclose(turned[2].mean(0), found.corners[2].mean(0))
    assert completed({3: corners[3]}, 6) is None
    assert set(completed({0: corners[0], 5: corners[5]}, 6).off.values()) == {np.inf}


def test_a_doubtful_outline_gives_no_tilt():
    doubtful = {structure(name).id: 0.1 for name in ("T6", "T7")}
    rows, spine = rows_of(result(film(), outline_quality=doubtful))
    assert rows["T6"]["tilt_deg"] is None and "doubtful" in rows["T6"]["notes"]
    assert spine["cobb_main_deg"] is None and "T6: its outline is doubtful" in spine["notes"]
    low = {sid: 0.4 for sid in doubtful}  # such corners are right more often than not
    rows, spine = rows_of(result(film(), outline_quality=low))
    assert rows["T6"]["tilt_deg"] is not None and spine["cobb_main_deg"] is not None


def test_nothing_found_is_no_error(tmp_path):
    made = film()
    (spine,) = measure_all(result(made, [s.name for s in SCHEME.structures]))
    assert spine["cobb_main_deg"] is None
    assert write_measurements([spine], tmp_path / "none.csv").exists()


def test_the_table_of_a_film_has_the_columns_of_films_and_is_ours(tmp_path):
    rows = measure_all(result(film()))
    table = write_measurements(rows, tmp_path / "film.csv")
    header = table.read_text(encoding="utf-8").splitlines()[0]
    assert tuple(header.split(",")) == FILM_COLUMNS
    assert is_ours(table) and is_ours(write_measurements(rows, tmp_path / "film.json"))


def test_the_shell_lists_no_volumes_of_a_film():
    rows = _structure_rows(replace(result(film()), scale_known=True))
    assert rows[0] == ("structure", "outline quality") and len(rows) > 10


# --- what a reader sees ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [0.0, 300.0])
@pytest.mark.parametrize("mirrored", [False, True])
def test_the_angle_of_a_curve_is_written_inside_of_the_picture(room, mirrored):
    tilts = {name: -tilt if mirrored else tilt for name, tilt in TILTS.items()}
    spine = FilmSpine(result(film(tilts=tilts)))
    low, high = (f([quad.corners[:, 0] for quad in spine.quads.values()]) for f in (np.min, np.max))
    for edges in ((low - room, high + 300.0), (low - 300.0, high + room)):
        axes = Figure(figsize=(4, 8)).add_axes((0, 0, 1, 1))
        axes.set(xlim=edges, ylim=(spine.labels.shape[0], 0))
        draw_curves(axes, spine, (1.0, 1.0))
        for curve, told in zip(spine.curves(), axes.texts, strict=True):
            box = told.get_window_extent().transformed(axes.transData.inverted())
            assert edges[0] <= box.x0 and box.x1 <= edges[1]
            assert not room or (told.get_ha() == "left") is (curve.side == "right")


def test_the_preview_draws_how_angles_are_taken():
    made = film()
    plain, drawn = (
        draw_preview(made.image, segmentation)
        for segmentation in (Segmentation(result(made).labels, scheme("vertebra")), result(made))
    )
    lines = [len(figure.axes[-1].lines) for figure in (plain, drawn)]
    assert lines[1] - lines[0] == 2 * len(FilmSpine(result(made)).curves()) > 0
    assert any("42°" in text.get_text() for text in drawn.axes[-1].texts)


def test_the_report_lists_curves_and_no_lordosis():
    made = film()
    segmentation = result(made)
    report = make_report(made.image, segmentation, source="film.png", rows=measure_all(segmentation))
    table = next(t for t in report.tables if t.title == "Curves")
    assert [row[0].split()[0] for row in table.rows] == ["T2–T6", "T6–T11", "T11–L4"]
    assert {label for label, _ in report.spine} == {
        "Main Cobb angle",
        "Proximal thoracic Cobb angle",
        "Thoracolumbar Cobb angle",
    }


def test_the_table_of_a_film_has_its_columns_alone():
    columns, rows = measurement_table(result(film()))
    keys = [column.key for column in columns]
    assert {"tilt_deg", "curve_deg", "cobb_main_deg"} <= set(keys) and "lordosis_deg" not in keys
    by_name = {row[0]: dict(zip(keys, row, strict=True)) for row in rows}
    assert float(by_name["curve T6–T11"]["curve_deg"]) == pytest.approx(42, abs=2)
    elsewhere = [
        column.key for column in measurement_table(Segmentation(result(film()).labels, scheme("lumbar-mr")))[0]
    ]
    assert "lordosis_deg" in elsewhere and not set(FILM) & set(elsewhere)
