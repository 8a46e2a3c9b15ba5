"""Intervals, paired tests, segments found, absent structures, and the report as CSV and as a page."""

import csv
import json
import math
import re

import numpy as np
import pytest
import SimpleITK as sitk

from SpineSegAILib.anatomy import scheme, structure
from SpineSegAILib.cli import main
from SpineSegAILib.evaluation import evaluate_case, summarize
from SpineSegAILib.evaluation.masks import pixel_distances, surface_measures
from SpineSegAILib.evaluation.scores import sagittal_axis
from SpineSegAILib.evaluation.statistics import holm, mean_intervals, paired
from SpineSegAILib.evaluation.summary import paired_values
from SpineSegAILib.results import Segmentation


def case(reference: dict, predicted: dict, annotated: str, **about):
    """Scores of stacks in which each named structure fills rows a…b."""

    def image(rows):
        array = np.zeros((6, 80, 12), np.int16)
        for name, (first, last) in rows.items():
            array[1:5, first:last, 3:9] = structure(name).id
        return sitk.GetImageFromArray(array)

    ids = [structure(n).id for n in annotated.split()]
    return evaluate_case(image(reference), image(predicted), ids, **about)


# --- masks ---


def test_surface_dice_counts_what_is_within_the_tolerance():
    a, b = np.zeros((2, 2, 40, 40), bool)
    a[:, 10:20, 10:20] = True
    b[:, 11:21, 10:20] = True
    for step, expected in ((0.5, 1.0), (1.0, 1.0)):
        assert surface_measures(a, b, (4.0, step, step))[2] == expected
    # At 2 mm pixels, the surface's voxels of the first and the last row are 2 mm away; all slices are at the edge.
    hd95, asd, share = surface_measures(a, b, (4.0, 2.0, 2.0))
    assert share == pytest.approx(1 - 10 / 100) and hd95 == 2.0 and asd == pytest.approx(0.2)
    empty = np.zeros_like(a)
    assert surface_measures(a, empty, (1, 1, 1))[2] == 0.0 and math.isnan(surface_measures(empty, empty, (1, 1, 1))[2])


def test_pixels_are_those_of_single_slices():
    a, b = np.zeros((2, 4, 30, 30), bool)
    a[0:3, 5:15, 5:15] = True
    b[1:4, 8:18, 5:15] = True
    hd95, asd, one_sided = pixel_distances(a, b, 0)
    alone = surface_measures(a[1], b[1], (1.0, 1.0))
    assert (hd95, asd) == alone[:2] and hd95 == 3.0 and one_sided == 2
    assert math.isnan(pixel_distances(a, np.zeros_like(a), 0)[0]) and pixel_distances(a, np.zeros_like(a), 0)[2] == 3


@pytest.mark.parametrize("code, axis", [("PIR", 0), ("LPS", 2), ("SLP", 1)])
def test_sagittal_slices_are_found_in_any_orientation(code, axis):
    image = sitk.Image(5, 6, 7, sitk.sitkInt16)
    image.SetDirection(sitk.DICOMOrientImageFilter.GetDirectionCosinesFromOrientation(code))
    assert sagittal_axis(image) == axis
    assert sagittal_axis(image[:, 2:3, :]) == 1  # one slice: across it


# --- segments ---


def test_panoptic_quality_does_not_ask_for_the_level():
    rows = {"L3": (5, 15), "L4": (20, 30), "L5": (35, 45)}
    shifted = {"L2": (5, 15), "L3": (20, 30), "L4": (35, 45)}
    found = case(rows, shifted, "L3 L4 L5").panoptic["vertebrae"]
    assert (found.found, found.missed, found.spurious) == (3, 0, 0) and found.quality()["pq"] == 1.0


def test_panoptic_quality_counts_missed_and_spurious_segments_but_not_the_unknown():
    reference = {"L3": (5, 15), "L4": (20, 30), "L5": (35, 45)}
    # L3 is right, L4 is found by two thirds, L5 is missed; S1 lies on L5, T11 where nothing is annotated.
    predicted = {"L3": (5, 15), "L4": (20, 32), "S1": (42, 45), "T11": (60, 70)}
    quality = case(reference, predicted, "L3 L4 L5").panoptic["vertebrae"].quality()
    assert [quality[k] for k in ("found", "missed", "spurious", "unknown")] == [2, 1, 1, 1]
    iou = 10 / 12
    assert quality["rq"] == pytest.approx(2 / 3) and quality["sq"] == pytest.approx((1 + iou) / 2)
    assert quality["pq"] == pytest.approx((1 + iou) / 3)


# --- averages ---


def test_what_is_absent_is_counted_and_can_be_charged_with_the_diagonal():
    report = case({"L4": (20, 30)}, {"L4": (20, 30), "L5": (35, 45)}, "L3 L4 L5")
    row = summarize([report])["overall"]
    assert [row[k] for k in ("scored", "missed", "invented", "absent_in_both", "undefined_distances")] == [
        2,
        0,
        1,
        1,
        1,
    ]
    assert report.absent == ["L3"] and row["hd95_mm"] == 0.0
    assert row["with_diagonal"]["hd95_mm"] == pytest.approx(math.hypot(6, 80, 12) / 2)


def test_intervals_draw_patients():
    def of(patient, dice_rows, name):
        return case({"L4": (20, 30)}, {"L4": dice_rows}, "L4", case=name, patient=patient)

    good, bad = (20, 30), (25, 35)
    mixed = [of("p1", good, "a"), of("p1", good, "b"), of("p2", bad, "c"), of("p2", bad, "d")]
    row = summarize(mixed)["overall"]
    assert row["dice"] == 0.75 and row["intervals"]["dice"] == [0.5, 1.0]  # two patients, not four cases
    assert summarize(mixed[:2])["overall"]["intervals"]["dice"] is None
    json.dumps(summarize(mixed), allow_nan=False)


def test_interval_of_a_mean_has_the_coverage_of_the_normal_one():
    rng = np.random.default_rng(3)
    values = rng.normal(0.8, 0.1, (200, 1))
    (low, high), macro = mean_intervals(values, np.ones((200, 1)))
    half = 1.96 * values.std(ddof=1) / math.sqrt(200)
    assert low == pytest.approx(values.mean() - half, abs=0.002) and high == pytest.approx(
        values.mean() + half, abs=0.002
    )
    assert macro == (low, high)


def test_identification_rate_is_per_subject():
    rows = {"L3": (5, 15), "L4": (20, 30)}
    right = case(rows, rows, "L3 L4", case="a", patient="p1")
    half = case(rows, {"L3": (5, 15), "L5": (20, 30)}, "L3 L4", case="b", patient="p2")
    found = summarize([right, half])["identification"]
    assert (found["rate"], found["subjects"], found["subjects_right"]) == (0.75, 2, 1)


# --- pairs ---


def test_paired_test_against_the_definition():
    from scipy.stats import wilcoxon

    rng = np.random.default_rng(0)
    base = {i: float(v) for i, v in enumerate(rng.uniform(0.5, 0.9, 20))}
    method = {i: v + float(rng.normal(0.03, 0.02)) for i, v in base.items()}
    found = paired({**method, "more": 1.0}, base)
    difference = [method[i] - base[i] for i in base]
    assert (found.pairs, found.unpaired, found.verdict) == (20, 1, "better")
    assert found.p == wilcoxon(difference).pvalue and found.difference == pytest.approx(np.mean(difference))
    assert found.low < found.difference < found.high and 0 < found.rank_biserial <= 1
    assert paired(method, base, less_is_better=True).verdict == "worse"
    assert paired(base, base).p == 1.0 and paired(base, base).verdict == "undecided"
    assert paired({0: 1.0}, {0: 0.5}).low is None and paired({}, base).pairs == 0
    assert paired({0: math.nan, 1: 1.0}, {0: 1.0, 1: 1.0}).pairs == 1


def test_every_sign_alike_is_the_largest_effect():
    assert paired({i: i + 1.0 for i in range(5)}, {i: 0.0 for i in range(5)}).rank_biserial == 1.0


def test_too_few_patients_decide_nothing():
    for pairs, verdict in ((2, "undecided"), (5, "undecided"), (6, "better")):
        found = paired({i: 0.9 + 0.001 * i for i in range(pairs)}, {i: 0.5 for i in range(pairs)})
        assert found.verdict == verdict and found.low > 0
        assert (found.p < 0.05) == (verdict == "better")


def test_correction_for_many_tests():
    assert holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)]


def test_distances_are_paired_over_structures_that_both_found():
    rows = {"L3": (5, 15), "L4": (20, 30)}
    one = summarize([case(rows, {"L4": (21, 31)}, "L3 L4", case="a")])
    other = summarize([case(rows, {"L3": (9, 19), "L4": (20, 30)}, "L3 L4", case="a")])
    first, second, left = paired_values(one, other, "hd95_mm")
    assert first == {"/a": 1.0} and second == {"/a": 0.0} and left == 1
    assert paired_values(one, other, "hd95_mm", "discs")[0] == {}


def test_what_is_absent_in_one_and_invented_by_the_other_is_a_pair():
    rows = {"L3": (5, 15), "L4": (20, 30)}
    right = summarize([case(rows, rows, "L3 L4 L5 S1", case="a")])
    invented = summarize([case(rows, {**rows, "L5": (35, 45)}, "L3 L4 L5 S1", case="a")])
    for metric in ("dice", "iou", "precision", "surface_dice"):
        first, second, left = paired_values(right, invented, metric)
        assert first == {"/a": 1.0} and second == {"/a": pytest.approx(2 / 3)} and left == 0
        assert paired_values(invented, right, metric, "vertebrae") == (second, first, 0)
        assert paired_values(invented, right, metric, "discs") == ({}, {}, 0)
    assert paired_values(right, invented, "hd95_mm") == ({"/a": 0.0}, {"/a": 0.0}, 0)
    assert paired_values(right, right, "dice") == ({"/a": 1.0}, {"/a": 1.0}, 0)


# --- files ---


@pytest.fixture
def dataset(tmp_path):
    from tiny_data import write_tiny_dataset

    return write_tiny_dataset(tmp_path, training=2)


def test_the_shell_writes_csv_and_a_page_that_needs_nothing_else(dataset, tiny_checkpoint, tmp_path, capsys):
    page, table = tmp_path / "r.html", tmp_path / "r.csv"
    words = ["evaluate", str(dataset), "--split", "training", "--checkpoint", str(tiny_checkpoint)]
    assert (
        main([*words, "--output", str(tmp_path / "r.json"), "--html", str(page), "--csv", str(table), "--quiet"]) == 0
    )
    report = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    summary = report["variants"]["full"]
    assert summary["peak_mb"] > 50 and all(c["seconds"] > 0 for c in summary["cases"])

    lines = list(csv.DictReader(table.open(encoding="utf-8")))
    assert len(lines) == sum(len(c["structures"]) or 1 for c in summary["cases"])
    assert {line["case"] for line in lines} == {"case0_image", "case1_image"}
    assert [float(line["dice"]) for line in lines] == [s["dice"] for c in summary["cases"] for s in c["structures"]]

    text = page.read_text(encoding="utf-8")
    assert text.count("<svg") == 3 - (summary["structures"] == {}) and "case0_image" in text
    assert text.count("data:image/jpeg;base64,") >= 2
    linked = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert linked and all(link.startswith(("data:", "#")) for link in linked) and "<script" not in text


def test_names_are_written_as_text(tmp_path):
    from SpineSegAILib.evaluation.page import report_page

    rows = {"L4": (20, 30)}
    summary = summarize([case(rows, rows, "L4", case="<b>&x", source="s<i>")])
    text = report_page({"dataset": "d", "split": "test", "variants": {"full": summary}, "checkpoint": "<c>"})
    assert "<b>&x" not in text and "&lt;b&gt;&amp;x" in text and "&lt;c&gt;" in text and "<i>" not in text


def test_wrong_names_are_refused_before_the_work(dataset, tiny_checkpoint, tmp_path, capsys):
    words = ["evaluate", str(dataset), "--split", "training", "--output", str(tmp_path / "r.json"), "--html", "x.pdf"]
    assert main([*words, "--checkpoint", str(tiny_checkpoint)]) == 2 and "Use .html" in capsys.readouterr().err


def test_the_worst_cases_are_kept():
    from SpineSegAILib.evaluation.dataset import Seen
    from SpineSegAILib.evaluation.worst import WorstCases
    from SpineSegAILib.phantoms.spine import PhantomSpec, make_phantom

    phantom = make_phantom(PhantomSpec(top="L3", bottom="S1", slices=5, pixel_mm=3.0), np.random.default_rng(0))
    labels = phantom.labels
    worst = WorstCases(1)
    for name, result in (("good", labels), ("bad", labels * 0), ("better", labels)):
        prediction = Segmentation(sitk.Cast(result, sitk.sitkInt16), scheme("lumbar-mr"))
        report = evaluate_case(labels, prediction, [structure("L4").id], case=name)
        worst(Seen(phantom.image, labels, prediction, report))
    (kept,) = worst.drawn()
    assert kept.case == "bad" and kept.dice == 0.0 and set(kept.pictures) == {"reference", "result"}
