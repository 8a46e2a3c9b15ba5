"""Segmentations on disk: what is written is read back, by us, by Slicer's own reader and by plain image readers."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import slicerio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from SpineSegAILib.anatomy import SCHEMES, STRUCTURES, Extent, LabelScheme, scheme, sorted_ids
from SpineSegAILib.cli.arguments import check_result_files
from SpineSegAILib.cli.segment import _structure_rows
from SpineSegAILib.errors import ImageError, OutputError, SchemeError
from SpineSegAILib.files import SEGMENTATION_SUFFIXES
from SpineSegAILib.results import Alternative, Segmentation, read_segmentation
from SpineSegAILib.results.files import HEADER_KEY

SCHEME = SCHEMES["lumbar-mr"]
GEOMETRY = ("GetSize", "GetSpacing", "GetOrigin", "GetDirection")


def rotation(*degrees: float) -> np.ndarray:
    """Matrix of a rotation about x, y and z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        turn = np.eye(3)
        i, j = (k for k in range(3) if k != axis)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


def labels_with(ids, *, size=(9, 12, 14), direction=None) -> sitk.Image:
    """Small oblique label image: a slab for each id, from top to bottom as in the body."""
    values = np.zeros(size[::-1], np.int16)
    for k, sid in enumerate(reversed(sorted_ids(ids))):
        values[k % size[2], 2:5, 1 + k // size[2] : 3 + k // size[2]] = sid
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((1.2, 0.9, 4.4))
    image.SetOrigin((-31.5, 12.25, 700.125))
    image.SetDirection((rotation(8, -5, 12) if direction is None else direction).ravel().tolist())
    return image


TRUST = ("level_confidence", "outline_quality")


def segmentation_of(*ids: int, **more) -> Segmentation:
    return Segmentation(labels_with(ids), **{"scheme": SCHEME, **more})


def full() -> Segmentation:
    return segmentation_of(
        22, 23, 24, 25, 26, 122, 123, 124, 125, 61,
        level_confidence=0.875,
        outline_quality={22: 0.987, 23: 0.5, 24: 1.0},
        alternatives=[Alternative("L2 L3", 0.25, {22: 21, 23: 22}, "L3 to L4 or L2 to L3?")],
        scale_known=False,
        warnings=["The sacrum is cut: “L5 or L6?” := {not sure} | 50 %"],
        unvalidated=frozenset({61, 125}),
        provenance={"method": "resenc-unet", "seconds": {"network": 1.5}, "path": Path("a/b"), "n": np.int64(3)},
        keypoints={23: (1.5, -2.0, 3.25)},
    )  # fmt: skip


def assert_same_geometry(one: sitk.Image, other: sitk.Image, tolerance: float = 1e-4) -> None:
    for what in GEOMETRY:
        assert np.allclose(getattr(one, what)(), getattr(other, what)(), atol=tolerance), what


def assert_same(read: Segmentation, written: Segmentation) -> None:
    assert_same_geometry(read.labels, written.labels)
    assert read.labels.GetPixelID() == sitk.sitkInt16
    assert np.array_equal(sitk.GetArrayFromImage(read.labels), sitk.GetArrayFromImage(written.labels))
    for what in ("scheme", *TRUST, "alternatives", "warnings", "unvalidated", "keypoints", "scale_known"):
        assert getattr(read, what) == getattr(written, what), what
    assert read.provenance == written.to_document()["provenance"]


# --- round trips ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SEGMENTATION_SUFFIXES)
def test_round_trip(tmp_path, suffix):
    written = full()
    files = written.write(tmp_path / f"case.v2{suffix}")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in files)
    assert len(files) == (1 if suffix == ".seg.nrrd" else 2)
    assert_same(read_segmentation(files[0]), written)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.tuples(*[st.integers(1, 7)] * 3),
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    mirrored=st.booleans(),
    suffix=st.sampled_from(SEGMENTATION_SUFFIXES),
    ids=st.lists(st.sampled_from(sorted(STRUCTURES)), min_size=1, max_size=4, unique=True),
    seed=st.integers(0, 2**31),
)
def test_round_trip_of_any_geometry(tmp_path, size, angles, mirrored, suffix, ids, seed):
    rng = np.random.default_rng(seed)
    labels = sitk.GetImageFromArray(rng.choice([0, *ids], size[::-1]).astype(np.int16))
    direction = rotation(*angles) @ np.diag([1, 1, -1 if mirrored else 1])
    labels.SetDirection(direction.ravel().tolist())
    labels.SetSpacing(rng.uniform(0.3, 6, 3).tolist())
    labels.SetOrigin(rng.uniform(-500, 500, 3).tolist())
    written = Segmentation(labels, SCHEME)
    read = read_segmentation(written.write(tmp_path / f"a result as {suffix[1:]}{suffix}")[0])
    assert np.array_equal(sitk.GetArrayFromImage(read.labels), sitk.GetArrayFromImage(labels))
    assert_same_geometry(read.labels, labels, 1e-3)


@pytest.mark.parametrize("suffix", SEGMENTATION_SUFFIXES)
def test_an_empty_result_can_be_written(tmp_path, suffix):
    (path, *_) = segmentation_of(warnings=["No spine found."]).write(tmp_path / f"none{suffix}")
    read = read_segmentation(path)
    assert read.present == []
    assert read.warnings == ["No spine found."]


@pytest.mark.parametrize("suffix", [".seg.nrrd", ".nii.gz"])
def test_a_scheme_that_no_longer_exists_comes_back(tmp_path, suffix):
    scheme = LabelScheme("mine", "My structures", (23, 24, 61), Extent.WHOLE, "CT")
    written = segmentation_of(23, 61, scheme=scheme)
    assert read_segmentation(written.write(tmp_path / f"case{suffix}")[0]).scheme == scheme


def test_the_file_that_was_asked_for_is_read_even_beside_its_namesake(tmp_path):
    segmentation_of(23).write(tmp_path / "case.nii")
    segmentation_of(24).write(tmp_path / "other" / "case.nii.gz")
    (tmp_path / "other" / "case.nii.gz").rename(tmp_path / "case.nii.gz")  # ours would not be written beside it
    assert read_segmentation(tmp_path / "case.nii").present == [23]
    assert read_segmentation(tmp_path / "case.nii.gz").present == [24]


# --- what others read -------------------------------------------------------------------------------------------------


def test_slicers_reader_finds_named_colored_coded_segments(tmp_path):
    written = full()
    (path,) = written.write(tmp_path / "case.seg.nrrd")
    document = slicerio.read_segmentation(str(path))
    assert np.allclose(document["ijkToLPS"][:3, 3], written.labels.GetOrigin())
    by_id = {segment["id"]: segment for segment in document["segments"]}
    assert list(by_id) == ["L3", "L3/L4", "L4", "L4/L5", "L5", "L5/S1", "L6", "L6/S1", "S1", "canal"]
    assert by_id["L5/S1"]["name"] == "L5/L6 disc"  # there is an L6
    assert by_id["canal"]["name"] == "spinal canal (experimental)"
    l4 = by_id["L4"]
    assert l4["name"] == "L4 vertebra (body)"
    assert l4["terminology"]["type"] == ["SCT", "71996003", "Body of L4 vertebra"]
    assert l4["color"] == pytest.approx(STRUCTURES[23].color)
    assert l4["tags"]["SpineSegAI.StructureId"] == "23"
    assert float(l4["tags"]["SpineSegAI.Confidence"]) == 0.875
    assert float(l4["tags"]["SpineSegAI.OutlineQuality"]) == 0.5
    values = sitk.GetArrayFromImage(written.labels)
    for segment in document["segments"]:
        mask = slicerio.segment_mask(document, segment)
        assert np.array_equal(mask.T, values == int(segment["tags"]["SpineSegAI.StructureId"]))


@pytest.mark.parametrize(
    ("number", "name"), list(enumerate(["Rückenmuskel", "腰肌", "C:\\new", "a\\\\nb", 'say “x” "y" \\xfc', "🦴"], 371))
)
def test_any_text_survives_in_slicers_header(tmp_path, number, name):
    values = np.zeros((3, 20, 20), np.int16)
    values[1, 5, 5], values[1, 7, 7] = 22, number
    warnings = [name, f"line\nbreak of {name}", "tab\there", "\\\\n"]
    written = Segmentation(sitk.GetImageFromArray(values), scheme(f"lumbar-mr+{name}={number}"), warnings=warnings)
    (path,) = written.write(tmp_path / "case.seg.nrrd")
    read = read_segmentation(path)
    assert (read.warnings, read.scheme, read.notes) == (warnings, written.scheme, [])
    assert np.array_equal(sitk.GetArrayFromImage(read.labels), values)
    told = sitk.ReadImage(str(path))  # by the library that Slicer reads it with
    assert told.GetMetaData("Segment1_Name") == written.name_of(number)
    assert name in told.GetMetaData("Segment1_Tags")
    assert json.loads(told.GetMetaData(HEADER_KEY))["warnings"] == warnings


def test_the_shell_lists_volumes_of_stacks_but_not_of_a_slice():
    stack = segmentation_of(22, 23)
    assert _structure_rows(stack)[0] == ("structure", "volume", "outline quality")
    assert _structure_rows(replace(stack, labels=stack.labels[1:2]))[0] == ("structure", "outline quality")


@pytest.mark.parametrize("suffix", SEGMENTATION_SUFFIXES)
def test_voxel_values_are_structure_ids_for_any_reader(tmp_path, suffix):
    written = full()
    image = sitk.ReadImage(str(written.write(tmp_path / f"case{suffix}")[0]))
    assert np.array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(written.labels))
    assert_same_geometry(image, written.labels)


def test_side_file_tells_all_the_rest(tmp_path):
    _, side = full().write(tmp_path / "case.nii.gz")
    assert side.name == "case.json"
    told = json.loads(side.read_text(encoding="utf-8"))
    assert told["scheme"]["extent"] == "body"
    l4 = next(s for s in told["structures"] if s["id"] == 23)
    assert l4 == {
        "id": 23, "structure": "L4", "name": "L4 vertebra (body)", "outline_quality": 0.5, "unvalidated": False
    }  # fmt: skip
    assert told["structures"][-1]["name"] == "spinal canal (experimental)"
    assert told["provenance"]["path"] == "a/b"
    assert told["warnings"] == full().warnings
    assert told["level_confidence"] == 0.875
    (other,) = told["alternatives"]
    assert (other["names"], other["probability"], other["relabel"]) == ("L2 L3", 0.25, "--set L4=L3")
    assert other["mapping"][0] == {"id": 22, "structure": "L3", "new_id": 21, "new_structure": "L2"}


def test_files_of_the_first_version_are_read(tmp_path):
    """They have a confidence of its level per structure, and none of the outline."""
    written = segmentation_of(22, 23, 61)
    path, side = written.write(tmp_path / "case.nii.gz")
    document = json.loads(side.read_text(encoding="utf-8"))
    old = {k: v for k, v in document.items() if k not in ("level_confidence", "alternatives", "scale_known")}
    for structure, confidence in zip(old["structures"], (0.9, 0.6, 0.3), strict=True):
        del structure["outline_quality"]
        structure["confidence"] = confidence
    side.write_text(json.dumps({**old, "version": 1}), encoding="utf-8")
    read = read_segmentation(path)
    assert (read.level_confidence, read.outline_quality, read.alternatives) == (0.6, {}, [])
    assert read.scale_known


def saved_by_slicer(path: Path, keep: set[str] | None = None) -> None:
    """Rewrites a file the way Slicer saves it: cropped to the segments, without our header, tags kept."""
    document = slicerio.read_segmentation(str(path))
    voxels = document["voxels"]
    inside = np.argwhere(voxels > 0)
    low, high = inside.min(axis=0), inside.max(axis=0) + 1
    document["voxels"] = voxels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    document["ijkToLPS"] = document["ijkToLPS"].copy()
    document["ijkToLPS"][:3, 3] += document["ijkToLPS"][:3, :3] @ low
    del document["SpineSegAI_Result"]
    for segment in document["segments"]:
        segment["tags"] = {k: v for k, v in segment["tags"].items() if keep is None or k in keep}
        del segment["extent"]
    slicerio.write_segmentation(str(path), document)


def test_a_segmentation_corrected_in_slicer_comes_back_on_the_images_grid(tmp_path):
    written = full()
    (path,) = written.write(tmp_path / "case.seg.nrrd")
    saved_by_slicer(path)
    read = read_segmentation(path)
    assert_same_geometry(read.labels, written.labels)
    assert np.array_equal(sitk.GetArrayFromImage(read.labels), sitk.GetArrayFromImage(written.labels))
    for what in ("scheme", *TRUST, "unvalidated", "scale_known"):
        assert getattr(read, what) == getattr(written, what), what


def test_segments_are_recognised_by_name_tag_or_code_and_others_reported(tmp_path):
    path = tmp_path / "scene.seg.nrrd"
    voxels = np.zeros((6, 6, 6), np.uint8)
    for value in range(1, 6):
        voxels[value] = value
    coded = {
        "contextName": "Segmentation category and type - Total Segmentator",
        "category": ["SCT", "123037004", "Anatomical Structure"],
        "type": ["SCT", "36470004", "L3 vertebra"],
    }
    segments = [
        {"id": "Segment_1", "name": "renamed", "tags": {"SpineSegAI.StructureId": "24"}},
        {"id": "L1", "name": "LWK 4"},
        {"id": "Segment_3", "name": "L4/L5"},
        {"id": "Segment_4", "name": "vertebra", "terminology": coded},
        {"id": "Segment_5", "name": "tumour"},
    ]
    for value, segment in enumerate(segments, start=1):
        segment["labelValue"] = value
    slicerio.write_segmentation(str(path), {"voxels": voxels, "ijkToLPS": np.eye(4), "segments": segments})
    read = read_segmentation(path)
    planes = sitk.GetArrayFromImage(read.labels)[0, 0]
    assert planes.tolist()[:4] == [0, 24, 23, 123]
    assert planes[5] == 0
    assert "“tumour”" in read.warnings[0]


def test_a_segment_renamed_to_an_absent_level_does_not_become_experimental(tmp_path):
    written = replace(full(), unvalidated=frozenset({21, 24}))  # L2 is not in the image
    (path,) = written.write(tmp_path / "case.seg.nrrd")
    document = slicerio.read_segmentation(str(path))
    for segment in document["segments"]:
        if segment["name"].startswith("L3 "):
            segment["name"] = "L2 vertebra"
    slicerio.write_segmentation(str(path), document)
    read = read_segmentation(path)
    assert 21 in read.present and 22 not in read.present
    assert read.unvalidated == {24}


def test_slicer_itself_reads_the_segments(tmp_path):
    slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
    from vtk.util.numpy_support import vtk_to_numpy

    written = full()
    (path,) = written.write(tmp_path / "case.seg.nrrd")
    scene = slicer.vtkMRMLScene()
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    storage = slicer.vtkMRMLSegmentationStorageNode()
    scene.AddNode(storage)
    storage.SetFileName(str(path))
    assert storage.ReadData(node)
    values = sitk.GetArrayFromImage(written.labels)
    for sid in written.present:
        segment = node.GetSegmentation().GetSegment(STRUCTURES[sid].name)
        assert segment.GetName() == written.name_of(sid)
        mask = slicer.vtkOrientedImageData()
        node.GetBinaryLabelmapRepresentation(STRUCTURES[sid].name, mask)
        assert (vtk_to_numpy(mask.GetPointData().GetScalars()) > 0).sum() == (values == sid).sum()
    storage.SetFileName(str(tmp_path / "saved.seg.nrrd"))
    assert storage.WriteData(node)
    read = read_segmentation(tmp_path / "saved.seg.nrrd")
    assert np.array_equal(sitk.GetArrayFromImage(read.labels), values)
    assert_same_geometry(read.labels, written.labels)
    assert (read.scheme, read.unvalidated) == (written.scheme, written.unvalidated)


# --- parts of a segmentation ------------------------------------------------------------------------------------------


def test_without_and_restricted_to_leave_the_original_alone():
    whole = full()
    before = whole.present
    part = whole.without([23, 61, 999])
    assert part.present == [sid for sid in before if sid not in (23, 61)]
    assert 23 not in part.outline_quality
    assert [a.mapping for a in part.alternatives] == [{22: 21}]
    assert part.keypoints == {}
    assert_same_geometry(part.labels, whole.labels, 0)
    assert whole.restricted_to([23]).present == [23]
    assert whole.restricted_to([]).present == []
    assert whole.present == before
    part.warnings.append("later")
    assert "later" not in whole.warnings


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["case.txt", "case", "case.nii.zip", ".nii.gz", "case.png"])
def test_unknown_suffixes_are_refused(tmp_path, name):
    with pytest.raises(OutputError) as caught:
        full().write(tmp_path / name)
    assert ".seg.nrrd" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SEGMENTATION_SUFFIXES)
def test_a_full_disk_leaves_nothing_behind(tmp_path, suffix):
    resource = pytest.importorskip("resource", reason="no limits on file sizes here")
    rng = np.random.default_rng(1)
    noise = sitk.GetImageFromArray(rng.choice([0, 23, 24, 25], (40, 50, 60)).astype(np.int16))
    target = tmp_path / f"case{suffix}"
    target.write_text("what was there before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, hard))  # writing beyond fails, as on a full disk
    try:
        with pytest.raises(OutputError) as caught:
            Segmentation(noise, SCHEME).write(target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.remedy
    assert [p.name for p in tmp_path.iterdir()] == [target.name]
    assert target.read_text(encoding="utf-8") == "what was there before"


@pytest.mark.parametrize("suffix", [".seg.nrrd", ".nii.gz"])
def test_missing_folder_and_folder_as_file(tmp_path, suffix):
    with pytest.raises(OutputError, match="null"):
        full().write(f"/dev/null/case{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    with pytest.raises(OutputError, match="folder"):
        full().write(tmp_path / f"folder{suffix}")
    assert [p.name for p in tmp_path.iterdir()] == [f"folder{suffix}"]


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="may write everywhere")
def test_no_permission(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError):
            full().write(tmp_path / "case.nii.gz")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("suffix", [".seg.nrrd", ".nii.gz"])
def test_overwriting_only_where_allowed(tmp_path, suffix):
    path = tmp_path / f"case{suffix}"
    segmentation_of(23).write(path)
    with pytest.raises(OutputError, match="exists"):
        segmentation_of(24).write(path, overwrite=False)
    assert read_segmentation(path).present == [23]
    segmentation_of(24).write(path)
    assert read_segmentation(path).present == [24]


def test_a_result_does_not_take_another_ones_side_file(tmp_path):
    first = segmentation_of(23, level_confidence=0.3)
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 900, (9, 12, 14)).astype(np.int16))
    sitk.WriteImage(image, tmp_path / "case.mha")  # what was segmented may be called so
    for _ in range(2):
        first.write(tmp_path / "case.nii.gz")
    with pytest.raises(OutputError, match=r"case\.json, which .* belongs to case\.nii\.gz") as caught:
        segmentation_of(24).write(tmp_path / "case.nrrd")
    assert ".seg.nrrd" in caught.value.remedy and not (tmp_path / "case.nrrd").exists()
    outputs = {"--output": tmp_path / "case.nrrd"}
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="belongs to"):
            check_result_files(outputs, {"IMAGE": tmp_path / "case.mha"}, overwrite=overwrite)
    assert read_segmentation(tmp_path / "case.nii.gz").level_confidence == 0.3
    segmentation_of(24).write(tmp_path / "case.seg.nrrd")  # needs none
    (tmp_path / "case.nii.gz").unlink()
    segmentation_of(24).write(tmp_path / "case.nrrd")
    assert read_segmentation(tmp_path / "case.nrrd").present == [24]


@pytest.mark.parametrize("suffix", SEGMENTATION_SUFFIXES)
def test_damaged_files_are_refused(tmp_path, suffix):
    path = full().write(tmp_path / f"case{suffix}")[0]
    path.write_bytes(path.read_bytes()[:90])
    with pytest.raises(ImageError, match="case"):
        read_segmentation(path)
    path.write_bytes(b"")
    with pytest.raises(ImageError, match="case"):
        read_segmentation(path)


def test_reading_what_is_no_segmentation(tmp_path):
    with pytest.raises(ImageError, match="was not found"):
        read_segmentation(tmp_path / "absent.nii.gz")
    with pytest.raises(ImageError, match="is a folder"):
        read_segmentation(tmp_path)
    image = sitk.GetImageFromArray(np.arange(1000, dtype=np.int16).reshape(10, 10, 10))
    sitk.WriteImage(image, str(tmp_path / "image.nii.gz"))
    with pytest.raises(ImageError, match="is an image, not a segmentation: it holds 1000 different values"):
        read_segmentation(tmp_path / "image.nii.gz")
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(ImageError, match=r"x\.txt"):
        read_segmentation(tmp_path / "x.txt")
    foreign = sitk.GetImageFromArray(np.full((3, 3, 3), 77, np.uint8))
    sitk.WriteImage(foreign, str(tmp_path / "foreign.nii.gz"))
    with pytest.raises(SchemeError, match="77"):
        read_segmentation(tmp_path / "foreign.nii.gz")
    fractions = sitk.GetImageFromArray(np.full((3, 3, 3), 0.5, np.float32))
    sitk.WriteImage(fractions, str(tmp_path / "float.nrrd"))
    with pytest.raises(ImageError, match=r"0\.5"):
        read_segmentation(tmp_path / "float.nrrd")


def test_side_files_that_are_damaged_foreign_newer_or_missing(tmp_path):
    path, side = full().write(tmp_path / "case.nii.gz")
    told = json.loads(side.read_text(encoding="utf-8"))
    side.write_text(json.dumps({**told, "version": 99}))
    with pytest.raises(ImageError, match="newer"):
        read_segmentation(path)
    side.write_text("{")
    with pytest.raises(ImageError, match="not valid JSON"):
        read_segmentation(path)
    del told["scheme"]["ids"]
    side.write_text(json.dumps(told))
    with pytest.raises(ImageError, match="damaged"):
        read_segmentation(path)
    for absent in (lambda: side.write_text('["something else"]'), side.unlink):
        absent()
        read = read_segmentation(path)
        assert read.present == full().present
        assert read.scheme.name == "file"
