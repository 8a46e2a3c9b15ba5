"""Segmentations of other programs, and those that people changed by hand, given as input: each means what it says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import slicerio
from test_cli import case, files, phantom, predictor, segment  # noqa: F401

from SpineSegAILib import cli
from SpineSegAILib.anatomy import SCHEMES, VALUE_MAPS, structure
from SpineSegAILib.errors import ConfigError, CorrectionError, ImageError, SchemeError
from SpineSegAILib.results import Segmentation, read_segmentation

LUMBAR = ["L1", "L1/L2", "L2", "L2/L3", "L3", "L3/L4", "L4", "L4/L5", "L5", "L5/S1", "S1"]
BODY, DISC, SLICES, COLUMNS = 27, 8, 4, 24  # of a column of blocks: rows (mm) of each, slices, columns


def blocks(values: Sequence[int], pitch: float = 1.0, dtype: type = np.int16) -> sitk.Image:
    """A sagittal label image: blocks one below the other, vertebrae and discs by turns, a row each millimeter."""
    sizes = [BODY if n % 2 == 0 else DISC for n in range(len(values))]
    array = np.zeros((SLICES, sum(sizes) + 10, COLUMNS), dtype)
    row = 5
    for value, size in zip(values, sizes, strict=True):
        array[1:-1, row : row + size, 4:20] = value
        row += size
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.0, pitch, 4.0))
    image.SetDirection((0, 0, 1, 1, 0, 0, 0, -1, 0))
    return image


def ids(*names: str) -> list[int]:
    return [structure(name).id for name in names]


def stored(path: Path, names: Sequence[str], *, numbered: bool = True, layers=None, **header) -> Path:
    """A .seg.nrrd of another program: ids are numbers, names are what they are, there are no tags of ours."""
    image = blocks(range(1, len(names) + 1))
    voxels = sitk.GetArrayFromImage(image).T.astype(np.uint8) if layers is None else layers
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    segments = [
        {"id": str(n if numbered else name), "name": name, "labelValue": n, "layer": 0}
        for n, name in enumerate(names, start=1)
    ]
    if layers is not None:
        for n, segment in enumerate(segments):
            segment.update(layer=n, labelValue=1)
    slicerio.write_segmentation(str(path), {"voxels": voxels, "ijkToLPS": matrix, "segments": segments, **header})
    return path


def from_top(labels: sitk.Image) -> list[int]:
    values = sitk.GetArrayFromImage(labels)[SLICES // 2, :, 10]
    return [int(v) for v in values[np.flatnonzero(np.diff(values, prepend=0))] if v]


def relabel(path: Path, *words: str) -> int:
    return cli.main(["relabel", str(path), "--output", str(path.with_name("out.seg.nrrd")), *words])


def edited(path: Path, change) -> Path:
    """The file after `change` was made to its segments, as with a double click in Slicer."""
    document = slicerio.read_segmentation(str(path))
    for described in document["segments"]:
        change(described)
        if described.get("terminology", "") is None:
            del described["terminology"]
    slicerio.write_segmentation(str(path), document)
    return path


# --- names -----------------------------------------------------------------------------------------------------------


def test_ids_of_other_programs_do_not_count(tmp_path):
    names = ["L1", "L1/L2", "L2", "L2/L3", "L3"]
    path = stored(tmp_path / "a.seg.nrrd", names)
    edited(path, lambda s: s.update(id={"L1": "1", "L3": "20"}.get(s["name"], s["id"])))
    assert from_top(read_segmentation(path).labels) == ids(*names)
    edited(path, lambda s: s.update(id="L5" if s["name"] == "L1" else s["id"], name="what"))
    assert read_segmentation(path).present == []


@pytest.mark.parametrize(
    "names",
    [
        ["LWK1", "LWK2", "LWK3", "LWK4", "LWK5"],
        [f"vertèbre L{n}" for n in range(1, 6)],
        [f"vertebrae_L{n}" for n in range(1, 6)],
        [f"L{n} vertebra" for n in range(1, 6)],
        ["L1", "L2", "L3", "L4", "L5 corrected"],
    ],
)
def test_names_are_understood_as_scenes_have_them(tmp_path, names):
    path = stored(tmp_path / "a.nrrd", [n.encode("ascii", "replace").decode().replace("?", "e") for n in names])
    if not names[0].isascii():  # slicerio writes ASCII alone
        data = path.read_bytes()
        path.write_bytes(data.replace(b":=vertebre", ":=vertèbre".encode()))
    assert from_top(read_segmentation(path, complete=True).labels) == ids("L1", "L2", "L3", "L4", "L5")


def test_a_new_name_counts_for_everything(case, tiny_checkpoint, predictor, phantom, capsys):  # noqa: F811
    (path,) = Segmentation(phantom.labels, SCHEMES["lumbar-mr"]).write(case / "own.seg.nrrd")
    shifted = {"L2": "L1", "L3": "L2", "L4": "L3", "L5": "L4"}
    edited(path, lambda s: s.update(name=shifted.get(s["id"], s["name"])))
    before = sitk.GetArrayFromImage(phantom.labels)
    assert segment(case, tiny_checkpoint, "--lock", path) == 0
    after = sitk.GetArrayFromImage(predictor["hints"].locked)
    assert np.array_equal(before == structure("L4").id, after == structure("L3").id)
    assert "note: --lock: “L3” was made as L4 and renamed by hand: it is taken as L3." in " ".join(
        "".join(capsys.readouterr()).split()
    )
    assert segment(case, tiny_checkpoint, "--levels-from", path) == 0
    anchor = predictor["hints"].anchors[-1]
    there = phantom.labels[phantom.labels.TransformPhysicalPointToIndex(anchor.point)]
    assert (there, anchor.structure_id) in [(structure(a).id, structure(b).id) for a, b in shifted.items()]


# --- what is not understood ------------------------------------------------------------------------------------------


def test_what_is_not_understood_is_said_or_refused(case, tiny_checkpoint, predictor, capsys):  # noqa: F811
    path = stored(case / "a.seg.nrrd", ["L1", "what", "L2", "L2/L3", "L3"])
    read = read_segmentation(path)
    assert from_top(read.labels) == ids("L1", "L2", "L2/L3", "L3")
    said = "Omitted, since no structure of SpineSegAI has that name: “what”."
    assert read.notes == [said] and read.warnings == [said]
    with pytest.raises(CorrectionError, match="“what”"):
        read_segmentation(path, complete=True)
    assert segment(case, tiny_checkpoint, "--lock", path) == 2
    assert "segments that are not structures of SpineSegAI: “what”" in capsys.readouterr().err
    assert "hints" not in predictor and files(case) == {"case.nii.gz", "a.seg.nrrd"}
    summary = case / "r.json"
    assert relabel(path, "--shift", "up", "--json", str(summary)) == 0
    assert f"note: {said}" in " ".join("".join(capsys.readouterr()).split())
    assert said in json.loads(summary.read_text(encoding="utf-8"))["warnings"]


def test_notes_of_a_segmentation_reach_the_result(case, tiny_checkpoint, predictor, phantom, capsys):  # noqa: F811
    (path,) = Segmentation(phantom.labels, SCHEMES["lumbar-mr"]).write(case / "own.seg.nrrd")
    edited(path, lambda s: s.update(name="what", tags={}, terminology=None) if s["id"] == "canal" else None)
    summary = case / "r.json"
    assert segment(case, tiny_checkpoint, "--levels-from", path, "--json", summary) == 0
    said = "--levels-from: Omitted, since no structure of SpineSegAI has that name: “what”."
    assert f"note: {said}" in " ".join("".join(capsys.readouterr()).split())
    assert said in json.loads(summary.read_text(encoding="utf-8"))["warnings"]
    assert said in read_segmentation(case / "out.seg.nrrd").warnings


def test_voxels_that_no_segment_has_are_said(tmp_path):
    path = stored(tmp_path / "a.seg.nrrd", ["L1", "L1/L2", "L2"])
    document = slicerio.read_segmentation(str(path))
    del document["segments"][1]
    slicerio.write_segmentation(str(path), document)
    assert "value 2, which no segment has" in read_segmentation(path).notes[0]
    with pytest.raises(CorrectionError, match="value 2"):
        read_segmentation(path, complete=True)


def test_a_file_without_structures_is_no_lock(case, tiny_checkpoint, predictor, capsys):  # noqa: F811
    sitk.WriteImage(blocks([0, 0, 0]), str(case / "empty.nii.gz"))
    for flag in ("--lock", "--levels-from"):
        assert segment(case, tiny_checkpoint, flag, case / "empty.nii.gz") == 2
        assert f"{flag}: " in (err := capsys.readouterr().err) and "holds no structures" in err


# --- layers and fractions --------------------------------------------------------------------------------------------


def overlapping(names: Sequence[str]) -> np.ndarray:
    """Two layers that share 5 rows."""
    whole = sitk.GetArrayFromImage(blocks([1] * len(names))).T > 0
    layers = np.zeros((len(names), *whole.shape), np.uint8)
    for n in range(len(names)):
        layers[n, 4:20, 5 + 25 * n : 35 + 25 * n, 1:-1] = 1
    return layers


def test_layers_that_overlap_are_refused_with_both_names(case, tiny_checkpoint, predictor, capsys):  # noqa: F811
    path = stored(case / "a.seg.nrrd", ["L1", "L2"], layers=overlapping(["L1", "L2"]))
    for flag in ("--lock", "--levels-from"):
        assert segment(case, tiny_checkpoint, flag, path) == 2
        assert "L1 and L2 overlap in 160 voxels" in capsys.readouterr().err
    assert relabel(path, "--shift", "up") == 2
    assert "L1 and L2 overlap in 160 voxels" in capsys.readouterr().err


def fractions(scale: float, dtype: type) -> np.ndarray:
    """A layer for L1 and one for L2, full inside, a quarter at their upper and lower rims."""
    array = np.zeros((2, COLUMNS, 72, SLICES), float)
    for n in range(2):
        rows = slice(5 + 35 * n, 32 + 35 * n)
        array[n, 4:20, rows, 1:-1] = scale
        array[n, 4:20, rows.start, 1:-1] = array[n, 4:20, rows.stop - 1, 1:-1] = scale / 4
    return array.astype(dtype)


@pytest.mark.parametrize(("scale", "dtype", "said"), [(255, np.uint8, "0 255"), (1.0, np.float32, "0 1")])
def test_fractions_are_halved_where_their_range_is_known(tmp_path, scale, dtype, said):
    path = stored(
        tmp_path / "a.seg.nrrd", ["L1", "L2"], layers=fractions(scale, dtype),
        containedRepresentationNames=["Fractional labelmap"], masterRepresentation="Fractional labelmap",
        Segmentation_ScalarRange=said,
    )  # fmt: skip
    labels = read_segmentation(path).labels
    assert from_top(labels) == ids("L1", "L2")
    rows = (sitk.GetArrayFromImage(labels) == structure("L1").id).any(axis=(0, 2))
    assert np.flatnonzero(rows).tolist() == list(range(6, 31))


@pytest.mark.parametrize(
    ("scale", "dtype", "declared"), [(255, np.uint8, True), (1.0, np.float32, True), (1.0, np.float32, False)]
)
def test_fractions_of_unknown_range_are_refused(tmp_path, scale, dtype, declared):
    header = {"masterRepresentation": "Fractional labelmap"} if declared else {}
    path = stored(tmp_path / "a.seg.nrrd", ["L1", "L2"], layers=fractions(scale, dtype), **header)
    with pytest.raises(ImageError, match="is a fractional labelmap"):
        read_segmentation(path)


def test_many_grades_in_a_layer_are_fractions_whatever_the_header_says(tmp_path):
    layers = fractions(200, np.uint8)
    layers[0, 4:20, 6:30, 1:-1] = np.arange(1, 25)[None, :, None]
    with pytest.raises(ImageError, match="is a fractional labelmap"):
        read_segmentation(stored(tmp_path / "a.seg.nrrd", ["L1", "L2"], layers=layers))


# --- numberings of other programs ------------------------------------------------------------------------------------


def numbered(name: str, names: Sequence[str]) -> list[int]:
    """The values that another program gives to structures; 0 for those that it does not have."""
    values = {sid: value for value, sid in reversed(VALUE_MAPS[name].items())}
    return [values.get(sid, 0) for sid in ids(*names)]


@pytest.mark.parametrize("name", ["spider", "mrspineseg", "totalsegmentator", "totalspineseg"])
def test_values_of_other_programs_are_refused_and_named(tmp_path, capsys, name):
    path = tmp_path / "theirs.nii.gz"
    values = numbered(name, LUMBAR)
    sitk.WriteImage(blocks(values), str(path))
    assert relabel(path, "--shift", "down") == 2
    err = capsys.readouterr().err
    assert "not structure ids" in err and name in err and "--label-values" in err
    assert relabel(path, "--shift", "up", "--label-values", name) == 0
    expected = [n for n, value in zip(LUMBAR, values, strict=True) if value]
    labels = read_segmentation(tmp_path / "out.seg.nrrd").labels
    above = {"L1": "T12", "S1": "L5", "L1/L2": "T12/L1", "L5/S1": "L4/L5"}
    shifted = [above.get(n) or n.replace(n[1], "#").replace("L#", f"L{int(n[1]) - 1}") for n in expected]
    assert from_top(labels)[0] == structure(shifted[0]).id


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([6, 0, 5, 0, 4, 0, 3, 0, 2, 0, 1], "C6 would lie above C1"),  # sacrum 1, L5 2, …
        ([2, 0, 1], "C2 would lie above C1"),
        ([1, 0, 2, 0, 3, 0, 4, 0, 5], "C1 and C2 would be 35 mm apart"),  # L1 1 … L5 5
        ([201, 0, 202, 0, 300], "300"),
    ],
)
def test_values_that_cannot_be_structure_ids(tmp_path, values, why):
    sitk.WriteImage(blocks(values), str(tmp_path / "a.nrrd"))
    with pytest.raises(SchemeError, match=why):
        read_segmentation(tmp_path / "a.nrrd")


def test_a_mask_names_no_structure(case, tiny_checkpoint, predictor, capsys):  # noqa: F811
    """Its only value is 1, which would be C1."""
    sitk.WriteImage(blocks([0, 0, 1]), str(case / "mask.nii.gz"))
    assert relabel(case / "mask.nii.gz", "--set", "C1=L3") == 2
    assert "is a mask: its only value is 1, which is not the id of a structure" in capsys.readouterr().err
    for flag in ("--lock", "--levels-from"):
        assert segment(case, tiny_checkpoint, flag, case / "mask.nii.gz") == 2
        assert "is a mask" in capsys.readouterr().err
    assert relabel(case / "mask.nii.gz", "--shift", "up", "--label-values", "spider") == 0  # L5 there


def test_a_vertebra_as_long_as_the_cord_is_none(tmp_path):
    array = sitk.GetArrayFromImage(blocks(ids("C1", "C2/C3", "T4", "T4/T5", "T5", "T5/T6", "T6")))
    array[1:-1, :, 21:23] = 1  # the cord of totalspineseg, C1 here
    image = blocks(ids("C1", "C2/C3", "T4", "T4/T5", "T5", "T5/T6", "T6"))
    made = sitk.GetImageFromArray(array)
    made.CopyInformation(image)
    sitk.WriteImage(made, str(tmp_path / "a.nii.gz"))
    with pytest.raises(SchemeError, match="C1 would be"):
        read_segmentation(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("names", [LUMBAR, ["C2", "C2/C3", "C3", "C3/C4", "C4"], ["T11", "T11/T12", "T12"]])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_structure_ids_need_no_word(tmp_path, names, suffix):
    image = blocks(ids(*names), pitch=0.5 if names[0] == "C2" else 1.0)
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
    read = read_segmentation(tmp_path / f"a{suffix}")
    assert from_top(read.labels) == ids(*names) and not read.notes


def test_names_that_run_upside_down_are_refused(tmp_path):
    with pytest.raises(SchemeError, match="run upside down: L3 lies above L1"):
        read_segmentation(stored(tmp_path / "a.seg.nrrd", ["L3", "L2/L3", "L2", "L1/L2", "L1"]))


def test_label_values_are_for_label_images(case, tiny_checkpoint, predictor, capsys):  # noqa: F811
    path = stored(case / "a.seg.nrrd", ["L1", "L1/L2", "L2"])
    with pytest.raises(ConfigError, match="already lists the structures"):
        read_segmentation(path, values="spider")
    assert segment(case, tiny_checkpoint, "--label-values", "spider") == 2
    assert "Use it with --prior, --lock or --levels-from" in capsys.readouterr().err
    assert relabel(path, "--shift", "up", "--label-values", "mine") == 2
    assert "--label-values: “mine” is not a valid choice. Use verse" in " ".join(capsys.readouterr().err.split())
    sitk.WriteImage(blocks([5, 0, 4]), str(case / "b.nii.gz"))
    assert relabel(case / "b.nii.gz", "--shift", "up", "--label-values", "totalspineseg") == 2
    assert "totalspineseg does not use: 4, 5" in capsys.readouterr().err


def test_a_segmentation_of_slicer_without_seg_in_its_name(tmp_path):
    path = stored(tmp_path / "Segmentation.nrrd", ["L4", "L4/L5", "L5"])
    assert from_top(read_segmentation(path).labels) == ids("L4", "L4/L5", "L5")


# --- numbers that went through floating point ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shift", "failure", "said"),
    [
        (3e-6, None, ""),
        (0.25, ImageError, r"20\.25"),
        (np.nan, ImageError, "NaN or infinity"),
        (np.inf, ImageError, "NaN or infinity"),
    ],
)
def test_values_that_are_no_whole_numbers(tmp_path, shift, failure, said):
    array = sitk.GetArrayFromImage(blocks(ids(*LUMBAR), dtype=np.float32))
    array[array == structure("L1").id] += shift
    image = sitk.GetImageFromArray(array)
    image.CopyInformation(blocks(ids(*LUMBAR)))
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    if failure is None:
        assert from_top(read_segmentation(tmp_path / "a.nrrd").labels) == ids(*LUMBAR)
        return
    with pytest.raises(failure, match=said):
        read_segmentation(tmp_path / "a.nrrd")


def test_negative_and_huge_values(tmp_path):
    for value in (-1, 2**31 - 1, 2**40):
        sitk.WriteImage(blocks([value, 0, 0], dtype=np.int64), str(tmp_path / "a.nrrd"))
        with pytest.raises(SchemeError, match="not structure ids"):
            read_segmentation(tmp_path / "a.nrrd")
