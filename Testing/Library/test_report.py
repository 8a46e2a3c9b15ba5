"""The report: what it shows, that it loads nothing, and that no text is cut off."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from matplotlib.backends.backend_agg import FigureCanvasAgg
from pydicom.uid import MediaStorageDirectoryStorage
from test_dicom import classic

from SpineSegAILib.anatomy import scheme
from SpineSegAILib.errors import ConfigError, OutputError
from SpineSegAILib.imaging.study import study_of
from SpineSegAILib.phantoms.spine import PhantomSpec, make_phantom
from SpineSegAILib.results import Segmentation
from SpineSegAILib.results.measurement import COLUMNS, measure_all
from SpineSegAILib.results.report import RESEARCH, make_report, write_report
from SpineSegAILib.results.report_pdf import _all_rows, _first


@pytest.fixture(scope="module")
def found():
    """An image, its result and its measurements."""
    spec = PhantomSpec(top="L1", bottom="S1", slices=7, slice_mm=5.0, pixel_mm=1.5)
    phantom = make_phantom(spec, np.random.default_rng(0))
    result = Segmentation(
        phantom.labels,
        scheme("lumbar-mr"),
        level_confidence=0.87,
        outline_quality={sid: 0.3 if sid == 24 else 0.9 for sid in (20, 21, 22, 23, 24, 124)},
        warnings=["No sacrum <was> recognized: $level$ labels are uncertain. " + "More words. " * 40],
        unvalidated=frozenset([61]),
        provenance={"method": "resenc-unet", "checkpoint": "tiny", "device": "cpu", "seconds": {"network": 1.25}},
    )
    return phantom.image, result, measure_all(result)


def texts_within_pages(figures) -> list[str]:
    """All texts; each lies wholly on its page and over no other one."""
    words = []
    for figure in figures:
        renderer = FigureCanvasAgg(figure).get_renderer()
        width, height = figure.get_size_inches() * figure.dpi
        boxes = []
        for text in figure.texts:
            box = text.get_window_extent(renderer)
            assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text.get_text()
            assert not text.get_text() or not any(box.shrunk(0.9, 0.6).overlaps(other) for other in boxes), text
            boxes.append(box)
            words.append(text.get_text())
    return words


def test_the_page_says_what_was_measured_and_what_is_uncertain(found, tmp_path):
    image, result, rows = found
    path = write_report(image, result, tmp_path / "r.html", source="Ä, case 1.nii.gz", rows=rows)
    page = path.read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(?!data:)', page) and "<script" not in page and "data:image/png;base64," in page
    assert "<h1>Ä, case 1.nii.gz</h1>" in page and "No sacrum &lt;was&gt; recognized" in page
    assert "Model: tiny, resenc-unet" in page and "Computed: 1.2 s on cpu" in page and "0.87 (0 to 1)" in page
    assert RESEARCH in page and "Low outline quality, please check: L5" in page and "Experimental" in page
    l3 = next(row for row in rows if row["structure"] == "L3")
    assert f"<td>{l3['height_middle_mm']:.1f}</td>" in page and "Mid. height (mm)" in page
    assert f"Lordosis L1–S1: <b>{rows[-1]['lordosis_deg']:.1f}°</b>" in page
    told = re.findall(r"<li><b>([^<]*)</b>: ", page)
    assert sorted(", ".join(told).split(", ")) == sorted(row["structure"] for row in rows if row["notes"])


def test_no_text_of_the_pdf_is_cut_or_covered(found, tmp_path):
    image, result, rows = found
    path = write_report(image, result, tmp_path / "r.pdf", source="a_" * 60 + ".nii.gz", rows=rows)
    assert path.read_bytes().startswith(b"%PDF")
    report = make_report(image, result, source="a_" * 60 + ".nii.gz", rows=rows)
    first, rest = _first(report).figures, _all_rows(report).figures
    words = texts_within_pages(first) + texts_within_pages(rest)
    assert len(first) == 1 and any("$level$" in w for w in words) and any(w.startswith("L4") for w in words)
    assert all(cell in words for row in report.every.rows for cell in row)
    shown = " ".join(" ".join(words).split())
    for text in (f"{title}: {method}." for title, method in report.methods):
        assert text in shown, "how each value is taken"


def test_a_note_that_many_share_is_said_once(found):
    """A slab of the midline, which cuts every structure from side to side, made three crowded pages."""
    image, result, rows = found
    rows = [{**row, "notes": "Not given: volume (the image's border cuts it)."} for row in rows]
    report = make_report(image, result, source="a.nii.gz", rows=rows)
    ((names, note),) = report.notes
    assert names.startswith("T12, ") and names.endswith("spine") and note == rows[0]["notes"]
    assert len(_all_rows(report).figures) == 1


def test_what_is_not_claimed_is_no_table(found):
    """Of a film whose model has no fitted outline quality there is nothing to tell of a vertebra but why."""
    image, result, _ = found
    bare = {"outline_quality": None, "kind": "vertebra", "structure": "vertebra", "unvalidated": False}
    row = {**dict.fromkeys(COLUMNS), **bare, "notes": "Not given: lengths and volumes."}
    spine = {**dict.fromkeys(COLUMNS), "structure": "spine", "notes": ""}
    report = make_report(image, result, source="film.jpg", rows=[row, spine])
    assert not report.tables and report.notes == (("vertebra", "Not given: lengths and volumes."),)


def test_a_film_has_no_lengths(found, tmp_path):
    image, result, _ = found
    film = Segmentation(result.labels, result.scheme, scale_known=False)
    report = make_report(image, film, source="film.jpg", rows=measure_all(film))
    heads = " ".join(head for table in (*report.tables, report.every) for head in table.header)
    assert "mm" not in heads and "mL" not in heads and "°" in heads
    assert any("does not give its pixel size" in note for _, note in report.notes)


def test_the_patient_is_shown_only_if_asked_for(found, tmp_path):
    image, result, rows = found
    told = {"PatientName": "Doe^Jane", "PatientID": "7", "SeriesDate": "20260102", "SeriesDescription": "T2 sag"}
    folder = classic(tmp_path / "series", **told)
    assert study_of(folder) == {"Series": "T2 sag", "Date": "2026-01-02", "Modality": "MR"}
    directory = pydicom.dcmread(next(folder.iterdir()))
    directory.file_meta.MediaStorageSOPClassUID = directory.SOPClassUID = MediaStorageDirectoryStorage
    for keyword in ("PixelData", "Rows", "Columns", "Modality", "SeriesDescription", "SeriesDate"):
        delattr(directory, keyword)
    directory.save_as(folder / "DICOMDIR")  # comes first, and tells nothing of the study
    for patient in (False, True):
        path = write_report(image, result, tmp_path / "r.html", source=folder, rows=rows, patient=patient)
        page = path.read_text(encoding="utf-8")
        assert ("Doe Jane" in page) is patient and "Date: 2026-01-02" in page
    with pytest.raises(ConfigError, match="not DICOM"):
        write_report(image, result, tmp_path / "s.html", source="a.nii.gz", rows=rows, patient=True)
    with pytest.raises(OutputError, match=r"Use \.html"):
        write_report(image, result, tmp_path / "s.doc", source="a.nii.gz", rows=rows)


def test_no_name_or_title_of_a_narrow_picture_is_cut(found):
    """The curved coronal picture of a slab is narrower than the names in it."""
    from SpineSegAILib.results.preview import draw_preview

    image, result, _ = found
    slab = slice(3, 5)  # of the slices
    axis = int(np.argmin(image.GetSize()))
    cut = tuple(slab if a == axis else slice(None) for a in range(3))
    figure = draw_preview(image[cut], replace(result, labels=result.labels[cut]), framed=False)
    width, _ = figure.get_size_inches() * figure.dpi
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.canvas.draw()
    axes = figure.axes[-1]
    assert axes.get_title("center") == "Coronal, curved"
    for text in (axes.title, *axes.texts):
        box = text.get_window_extent(renderer)
        assert (text is axes.title or not text.get_clip_on()) and box.x0 >= 0 and box.x1 <= width, text.get_text()


def test_the_uncut_picture_has_no_heading(found):
    from SpineSegAILib.results.preview import draw_preview

    image, result, rows = found
    assert not draw_preview(sitk.Image(image), result, rows=rows, framed=False).texts
