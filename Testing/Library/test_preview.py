"""The picture of a result: right slice, right proportions, right sides, whatever the image's orientation."""

from __future__ import annotations

import time
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.contour import QuadContourSet

from SpineSegAILib.anatomy import SCHEMES, Extent, LabelScheme, structure
from SpineSegAILib.errors import OutputError
from SpineSegAILib.results import Segmentation
from SpineSegAILib.results.preview import draw_preview, render_preview

SCHEME = SCHEMES["lumbar-mr"]
SPACING = (4.0, 1.0, 1.5)  # slices, rows, columns
SHAPE = (13, 150, 100)
MIDDLE = 8  # the slice that holds most of the column


def case(direction="PIR", *, spacing=SPACING, scheme=SCHEME, **more) -> tuple[sitk.Image, Segmentation]:
    """Noise with three vertebrae, two discs and a canal, on a canonical grid that is then turned as asked."""
    values = np.random.default_rng(0).integers(0, 50, SHAPE).astype(np.int16)
    labels = np.zeros(SHAPE, np.int16)
    for index, name in enumerate(("L3", "L4", "L5")):
        top = 20 + 40 * index
        labels[MIDDLE - 3 : MIDDLE + 4, top : top + 26, 40:62] = structure(name).id
        labels[MIDDLE, top : top + 26, 36:66] = structure(name).id
        if index < 2:
            below = structure(("L3/L4", "L4/L5")[index]).id
            labels[MIDDLE - 3 : MIDDLE + 4, top + 28 : top + 38, 40:62] = below
    labels[MIDDLE - 1 : MIDDLE + 2, :, 68:78] = structure("canal").id
    values[labels > 0] += 100
    return turned(values, direction, spacing), Segmentation(turned(labels, direction, spacing), scheme, **more)


def turned(array: np.ndarray, direction: str, spacing=SPACING) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing[::-1])
    image.SetDirection((0, 0, -1, 1, 0, 0, 0, -1, 0))  # columns backwards, rows downwards, slices to the right
    return sitk.DICOMOrient(image, direction)


def texts(figure) -> list[str]:
    return [t.get_text() for t in (*figure.texts, *(t for a in figure.axes for t in a.texts)) if t.get_text()]


def captions(figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def shown(axes) -> np.ndarray:
    return axes.images[0].get_array()


def png_size(path: Path) -> tuple[int, ...]:
    return sitk.ReadImage(str(path)).GetSize()


def test_writes_a_picture_quickly_without_touching_matplotlibs_state(tmp_path):
    image, segmentation = case()
    backend = matplotlib.get_backend()
    draw_preview(image, segmentation)  # fonts and caches are made once
    started = time.process_time()
    path = render_preview(image, segmentation, tmp_path / "preview.png")
    assert time.process_time() - started < 4.0  # 0.6 s where nothing else runs
    assert [p.name for p in tmp_path.iterdir()] == ["preview.png"]
    width, height = png_size(path)
    assert 800 < width < 4000
    assert 800 < height < 2000
    assert matplotlib.get_backend() == backend
    assert not matplotlib._pylab_helpers.Gcf.figs


def test_shows_slice_names_and_what_made_it():
    image, segmentation = case(
        warnings=["The sacrum is not visible."],
        unvalidated=frozenset({61}),
        provenance={"method": "resenc-unet", "checkpoint": {"name": "lumbar-mr-default"}},
    )
    figure = draw_preview(image, segmentation, title="case 7")
    assert captions(figure) == ["Sagittal, slice 9 of 13", "with labels", "Coronal, curved"]
    written = texts(figure)
    assert {"case 7", "Research use only", "• The sacrum is not visible.", "canal *"} <= set(written)
    assert "resenc-unet  ·  lumbar-mr-default" in written
    assert any("five lumbar" in text for text in written)
    assert any("not validated on real cases" in text for text in written)
    for name in ("L3", "L4", "L5", "L3/L4", "L4/L5"):
        assert written.count(name) == 2  # sagittal and coronal
    assert written.count("canal *") == 1  # the coronal view runs through the bodies


def test_discs_are_named_after_the_neighbours_that_are_there():
    image, segmentation = case()
    array = sitk.GetArrayFromImage(segmentation.labels)
    for old, new in (("L5", "L6"), ("L4/L5", "L5/S1"), ("L4", "L5"), ("L3/L4", "L4/L5"), ("L3", "L4")):
        array[array == structure(old).id] = structure(new).id
    labels = sitk.GetImageFromArray(array)
    labels.CopyInformation(segmentation.labels)
    assert "L5/L6" in texts(draw_preview(image, Segmentation(labels, SCHEME)))


@pytest.mark.parametrize("direction", ["LPS", "RAS", "ASL", "SRP", "PIL"])
def test_any_orientation_gives_the_same_picture(direction):
    reference, other = (draw_preview(*case(d)) for d in ("PIR", direction))
    assert captions(reference) == captions(other)
    for ours, theirs in zip(reference.axes, other.axes, strict=True):
        assert np.array_equal(shown(ours), shown(theirs))
        assert ours.images[0].get_extent() == pytest.approx(theirs.images[0].get_extent())


def test_proportions_are_the_patients():
    figure = draw_preview(*case())
    width, height = figure.get_size_inches()
    scales = []
    for axes in figure.axes:
        box = axes.get_position()
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        scales += [(right - left) / (box.width * width), (bottom - top) / (box.height * height)]
    assert np.ptp(scales) < 0.01 * np.mean(scales)  # mm per inch, across and down, in every panel
    rows, columns = shown(figure.axes[0]).shape
    assert figure.axes[0].get_ylim()[0] == pytest.approx(rows * SPACING[1])
    assert figure.axes[0].get_xlim()[1] == pytest.approx(columns * SPACING[2])


def test_the_patients_right_is_on_the_left_of_the_coronal_view():
    image, segmentation = case()
    array = sitk.GetArrayFromImage(image)
    array[-1] = 999  # the rightmost slice
    marked = sitk.GetImageFromArray(array)
    marked.CopyInformation(image)
    coronal = draw_preview(marked, segmentation).axes[2]
    assert (shown(coronal)[:, 0] > 900).all()
    assert (shown(coronal)[:, -1] < 900).all()
    assert [t.get_text() for t in coronal.texts[:4]] == ["R", "L", "S", "I"]


def test_the_coronal_view_follows_the_column():
    """A column that leans backwards stays in the coronal view from top to bottom."""
    labels = np.zeros((11, 160, 140), np.int16)
    for index, name in enumerate(("L1", "L2", "L3", "L4")):
        labels[3:8, 10 + 36 * index : 34 + 36 * index, 20 + 25 * index : 50 + 25 * index] = structure(name).id
    image = turned((labels > 0).astype(np.int16) * 100, "PIR", (4, 1, 1))
    coronal = draw_preview(image, Segmentation(turned(labels, "PIR", (4, 1, 1)), SCHEME)).axes[2]
    middle = shown(coronal)[:, shown(coronal).shape[1] // 2]
    for index in range(4):
        assert (middle[14 + 36 * index : 30 + 36 * index] == 100).all()


def test_a_whole_vertebra_is_named_on_its_body():
    labels = np.zeros((9, 80, 120), np.int16)
    labels[2:7, 20:50, 20:55] = structure("L3").id
    labels[4, 35:55, 75:105] = structure("L3").id  # spinous process
    scheme = LabelScheme("whole", "", (22,), Extent.WHOLE, "CT")
    image = turned(np.where(labels > 0, 400, -800).astype(np.int16), "PIR", (2, 1, 1))
    sagittal = draw_preview(image, Segmentation(turned(labels, "PIR", (2, 1, 1)), scheme)).axes[1]
    (name,) = (t for t in sagittal.texts if t.get_text() == "L3")
    assert name.get_position() == pytest.approx((37.5, 35.0), abs=1.0)


def test_outlines_lie_on_the_labels():
    figure = draw_preview(*case())
    contours = [c for c in figure.axes[1].collections if isinstance(c, QuadContourSet)]
    assert contours
    assert not [c for c in figure.axes[0].collections if isinstance(c, QuadContourSet)]
    points = np.concatenate([path.vertices for c in contours for path in c.get_paths()])
    assert points[:, 1].min() >= 0
    assert points[:, 1].max() <= SHAPE[1] * SPACING[1]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_single_slices(tmp_path, axis):
    image, segmentation = case()
    size, index = list(image.GetSize()), [MIDDLE, 30, 50][axis]
    size[2 - axis], start = 1, [0, 0, 0]
    start[2 - axis] = index
    cut = [sitk.RegionOfInterest(x, size, start) for x in (image, segmentation.labels)]
    figure = draw_preview(cut[0], Segmentation(cut[1], SCHEME))
    assert captions(figure) == ["Single slice", "with labels"]
    assert "L3" in texts(figure)
    render_preview(cut[0], Segmentation(cut[1], SCHEME), tmp_path / "single.png")


@pytest.mark.parametrize("direction", [(1, 0, 0, 0, 1, 0, 0, 0, 1), (-1, 0, 0, 0, -1, 0, 0, 0, 1)])
def test_a_single_slice_is_drawn_as_it_is_segmented_whatever_its_header_says(direction):
    image, segmentation = case()
    image, labels = (x[:, :, MIDDLE : MIDDLE + 1] for x in (image, segmentation.labels))
    sagittal = shown(draw_preview(image, Segmentation(labels, SCHEME)).axes[0])
    for x in (image, labels):
        x.SetDirection(direction)
    assert np.array_equal(shown(draw_preview(image, Segmentation(labels, SCHEME)).axes[0]), sagittal)


def test_nothing_found_is_said():
    image, segmentation = case()
    empty = segmentation.restricted_to([])
    figure = draw_preview(image, empty)
    assert "• No structure was found in this image." in texts(figure)
    assert len(figure.axes) == 2


@pytest.mark.parametrize("value", [0, -1000, 7])
def test_constant_images_are_drawn(tmp_path, value):
    image, segmentation = case()
    constant = sitk.Image(image.GetSize(), sitk.sitkInt16) + value
    constant.CopyInformation(image)
    render_preview(constant, segmentation, tmp_path / "constant.png")


def test_long_warnings_are_wrapped_not_cut():
    image, segmentation = case(warnings=["word " * 120])
    lines = [t for t in texts(draw_preview(image, segmentation)) if "word" in t]
    assert len(lines) > 1
    assert sum(line.count("word") for line in lines) == 120


def test_the_tables_notes_stand_below_and_do_not_hide_the_picture():
    image, segmentation = case()
    blank = "Not given: slip (the upper back corner of S1 is missing from its outline)."
    rows = [{"structure": "L5", "notes": blank}, {"structure": "L4", "notes": ""}]
    found = texts(draw_preview(image, segmentation, rows=rows))
    assert f"• L5: {blank}" in " ".join(found) and not any(t.startswith("• L4") for t in found)
    many = texts(draw_preview(image, segmentation, rows=[{"structure": f"T{n}", "notes": blank} for n in range(1, 13)]))
    assert "• More notes are in the table of measurements." in many
    assert sum(t.startswith("• T") for t in many) < 8


def test_failures(tmp_path):
    image, segmentation = case()
    with pytest.raises(ValueError, match="differ in size"):
        render_preview(image[:, :, 1:], segmentation, tmp_path / "x.png")
    with pytest.raises(OutputError):
        render_preview(image, segmentation, "/dev/null/x.png")
    assert list(tmp_path.iterdir()) == []
