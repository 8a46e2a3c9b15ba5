"""Scenes in: pairs, transforms, names, points; and everything that a scene may not do."""

import json
import os
import zipfile

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scene_data import Scene, box, lumbar, sagittal, volume_image

from SpineSegAILib.anatomy import Extent, structure
from SpineSegAILib.datasets import scene_files
from SpineSegAILib.datasets.slicer_scene import read_scene
from SpineSegAILib.imaging import headers
from SpineSegAILib.results.segment_names import parse_table

L4, DISC, L5 = (structure(n).id for n in ("L4", "L4/L5", "L5"))


def only(report):
    """The one case of a scene without problems."""
    assert report.problems == []
    (case,) = report.cases
    return case


def ids(case):
    return {t: i for i, t in enumerate(case.targets, start=1)}


def problem(path, **more):
    report = read_scene(path, **more)
    assert len(report.problems) == 1, report.problems
    return report.problems[0]


@pytest.mark.parametrize("suffix", [".mrb", ".mrml"])
def test_a_scene_is_read(tmp_path, suffix):
    case = only(read_scene(lumbar().write(tmp_path / f"one{suffix}")))
    assert (case.volume, case.patient, case.targets) == ("T2", "one", ["L4", "L4/L5", "L5"])
    assert case.unplaced == [] and case.extent is None and case.corrections is None
    assert sitk.Hash(case.image) == sitk.Hash(volume_image())
    label = case.label({"L4": L4, "L4/L5": DISC, "L5": L5})
    values = sitk.GetArrayFromImage(label)
    assert label.GetOrigin() == case.image.GetOrigin() and label.GetDirection() == case.image.GetDirection()
    for sid, rows in ((L4, slice(5, 14)), (DISC, slice(14, 18)), (L5, slice(18, 27))):
        assert np.array_equal(values == sid, box(rows))


def test_several_pairs_in_one_scene(tmp_path):
    scene = Scene()
    first, second = scene.volume("T2"), scene.volume("T1", volume_image(1), number=2)
    scene.segmentation({"L1": box(slice(3, 9))}, second, name="B", number=2)
    scene.segmentation({"L4": box(slice(3, 9))}, first, name="A")
    scene.segmentation({"canal": box(slice(3, 30), columns=slice(24, 28))}, first, name="C", number=3)
    report = read_scene(scene.write(tmp_path / "two.mrb"))
    assert report.problems == []
    assert {c.volume: c.targets for c in report.cases} == {"T2": ["L4", "canal"], "T1": ["L1"]}


def test_one_structure_twice_in_two_segmentations_is_refused(tmp_path):
    scene = Scene()
    volume = scene.volume()
    scene.segmentation({"L4": box(slice(3, 9))}, volume, name="A")
    scene.segmentation({"L4": box(slice(20, 29))}, volume, name="B", number=2)
    assert "two segmentations with L4" in problem(scene.write(tmp_path / "s.mrb"))


def test_nested_transforms_move_the_case(tmp_path):
    scene = Scene()
    outer = scene.transform([[0, -1, 0, 5], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], number=2)
    inner = scene.transform([[1, 0, 0, 10], [0, 1, 0, 0], [0, 0, 1, -7], [0, 0, 0, 1]], outer)
    volume = scene.volume(transform=inner)
    scene.segmentation({"L4": box(slice(5, 14))}, volume, transform=inner)
    case = only(read_scene(scene.write(tmp_path / "s.mrb")))
    assert np.array_equal(sitk.GetArrayFromImage(case.label({"L4": 1})) > 0, box(slice(5, 14)))
    left, posterior, superior = volume_image().GetOrigin()
    x, y, z = -left + 10, -posterior, superior - 7  # RAS; then the outer one
    assert np.allclose(case.image.GetOrigin(), (-(-y + 5), -x, z))
    assert np.allclose(np.reshape(case.image.GetDirection(), (3, 3))[:, 0], (-1, 0, 0))  # columns ran to posterior


def test_a_segmentation_under_another_transform_lies_where_it_is_seen(tmp_path):
    scene = Scene()
    shift = scene.transform([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -6], [0, 0, 0, 1]])
    volume = scene.volume()
    scene.segmentation({"L4": box(slice(5, 14))}, volume, transform=shift)
    case = only(read_scene(scene.write(tmp_path / "s.mrb")))
    assert np.array_equal(case.segments[0].mask, box(slice(9, 18)))  # 6 mm are four rows of 1.5 mm downwards


def test_a_segmentation_of_another_geometry_is_resampled(tmp_path):
    fine = np.zeros((10, 80, 60), np.uint8)
    fine[2:8, 10:28, 16:44] = 3
    image = sagittal(fine)
    image.SetSpacing((0.75, 0.75, 4.0))
    image.SetOrigin((-20.0, -30.375, 40.375))  # voxel edges coincide
    image.SetMetaData("Segment0_ID", "a")
    image.SetMetaData("Segment0_Name", "L4")
    image.SetMetaData("Segment0_LabelValue", "3")
    scene = Scene()
    scene.segmentation({}, scene.volume(), image=image)
    case = only(read_scene(scene.write(tmp_path / "s.mrb")))
    assert np.array_equal(case.segments[0].mask, box(slice(5, 14)))


def test_a_transform_that_is_not_linear_and_one_that_shears(tmp_path):
    scene = Scene()
    scene.segmentation(
        {"L4": box(slice(5, 14))}, scene.volume(transform=scene.transform(np.eye(4), kind="GridTransform"))
    )
    assert "is not a linear transform. Harden it" in problem(scene.write(tmp_path / "grid.mrb"))
    scene = Scene()
    shear = scene.transform([[1, 0.4, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    scene.segmentation({"L4": box(slice(5, 14))}, scene.volume(transform=shear))
    assert "shears it" in problem(scene.write(tmp_path / "shear.mrb"))
    scene = Scene()
    scene.segmentation({"L4": box(slice(5, 14))}, scene.volume(transform=scene.transform(np.zeros((4, 4)))))
    assert "is damaged" in problem(scene.write(tmp_path / "zero.mrb"))
    scene, projective = Scene(), np.eye(4)
    projective[3] = (0.001, 0, 0, 1)
    scene.segmentation({"L4": box(slice(5, 14))}, scene.volume(transform=scene.transform(projective)))
    assert "is damaged" in problem(scene.write(tmp_path / "projective.mrb"))


def test_tags_terminology_and_corrections_are_read(tmp_path):
    scene = Scene()
    log = [{"what": "shift", "by": 1}]
    scene.segmentation(
        {"mine": box(slice(5, 14)), "Segment_2": box(slice(18, 27))},
        scene.volume(),
        tags={
            "mine": "SpineSegAI.StructureId:23|SpineSegAI.Scheme:lumbar-mr|",
            "Segment_2": "TerminologyEntry:x~SCT^1^y~SCT^21799000^Body of L5~^^~z~^^~^^|",
        },
        attributes={"SpineSegAI.CorrectionLog": json.dumps(log)},
    )
    case = only(read_scene(scene.write(tmp_path / "s.mrb")))
    assert [(s.placement.target, s.placement.how) for s in case.segments] == [("L4", "tag"), ("L5", "terminology")]
    assert case.extent is Extent.BODY and case.corrections == log


def test_unknown_and_empty_segments_are_said(tmp_path):
    scene = Scene()
    scene.segmentation(
        {"L4": box(slice(5, 14)), "my tumour": box(slice(8, 10)), "L5": np.zeros((10, 40, 30), bool)}, scene.volume()
    )
    path = scene.write(tmp_path / "s.mrb")
    case = only(read_scene(path))
    assert case.unplaced == ["my tumour"] and case.targets == ["L4"]
    assert any("“L5” is empty" in note for note in case.notes)
    case = only(read_scene(path, table=parse_table([("My tumour", "custom:tumour")])))
    assert case.unplaced == [] and case.targets == ["L4", "custom:tumour"]
    label = sitk.GetArrayFromImage(case.label({"L4": 1, "custom:tumour": 2}))
    assert (label == 2).sum() == box(slice(8, 10)).sum()  # a tumor lies inside a vertebra and is on top
    assert any("“my tumour” overlaps “L4”" in note for note in case.notes)


def test_overlapping_structures(tmp_path):
    scene = Scene()
    scene.segmentation({"L4": box(slice(5, 14)), "L5": box(slice(13, 27))}, scene.volume())
    case = only(read_scene(scene.write(tmp_path / "little.mrb")))
    assert any("“L5” overlaps “L4” in 84 voxels" in note for note in case.notes)
    label = sitk.GetArrayFromImage(case.label({"L4": 1, "L5": 2}))
    assert (label[:, 13] == 2).sum() == 84
    scene = Scene()
    scene.segmentation({"L4": box(slice(5, 14)), "L5": box(slice(6, 16))}, scene.volume())
    assert "overlap by 89% of the smaller" in problem(scene.write(tmp_path / "much.mrb"))


def test_bodies_and_whole_vertebrae_do_not_mix(tmp_path):
    scene = Scene()
    scene.segmentation({"L4 (body)": box(slice(5, 14)), "whole L5": box(slice(18, 27))}, scene.volume())
    assert "vertebral bodies and whole vertebrae" in problem(scene.write(tmp_path / "s.mrb"))


# --- points ----------------------------------------------------------------------------------------------------------


def points_file(positions, system="LPS"):
    control = [{"label": label, "position": list(at)} for label, at in positions.items()]
    return json.dumps({"markups": [{"coordinateSystem": system, "controlPoints": control}]})


def test_points_become_a_weak_case(tmp_path):
    at = volume_image().TransformContinuousIndexToPhysicalPoint((10.0, 12.0, 4.0))
    scene = Scene()
    lift = scene.transform([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 3], [0, 0, 0, 1]])
    scene.volume()
    ras = (-at[0], -at[1], at[2] - 3)
    scene.points(
        points_file({"L4 vertebra": ras, "disc L4-5": (*ras[:2], ras[2] - 9), "F-1": ras}, "RAS"), transform=lift
    )
    case = only(read_scene(scene.write(tmp_path / "s.mrb")))
    assert set(case.keypoints) == {"L4", "L4/L5"} and case.segments == [] and case.is_annotated
    assert np.allclose(case.keypoints["L4"], at)
    assert any("“F-1”" in note for note in case.notes)


def test_points_that_cannot_be_used(tmp_path):
    scene = Scene()
    scene.volume()
    scene.points(points_file({"L4": (900.0, 0.0, 0.0)}))
    assert "none of its volumes holds them all" in problem(scene.write(tmp_path / "far.mrb"))
    scene = Scene()
    scene.volume()
    scene.volume("T1", number=2)
    scene.points(points_file({"L4": volume_image().TransformIndexToPhysicalPoint((10, 10, 4))}))
    assert "several volumes hold them" in problem(scene.write(tmp_path / "two.mrb"))
    scene = Scene()
    scene.volume()
    scene.points(points_file({"F-1": (0, 0, 0)}))
    report = read_scene(scene.write(tmp_path / "other.mrb"))
    assert report.problems == [] and "no point that is named after" in report.notes[0]


# --- what a scene lacks ----------------------------------------------------------------------------------------------


def test_a_scene_without_a_volume(tmp_path):
    scene = Scene()
    scene.segmentation({"L4": box(slice(5, 14))})
    assert "has no volume" in problem(scene.write(tmp_path / "s.mrb"))
    assert "has no volume" in problem(Scene().write(tmp_path / "empty.mrb"))


def test_two_volumes_and_a_segmentation_that_does_not_say_which(tmp_path):
    scene = Scene()
    scene.volume()
    scene.volume("T1", number=2)
    scene.segmentation({"L4": box(slice(5, 14))})
    assert "does not say which of “T2”, “T1” it belongs to" in problem(scene.write(tmp_path / "s.mrb"))


def test_one_volume_needs_no_reference(tmp_path):
    scene = Scene()
    scene.volume()
    scene.segmentation({"L4": box(slice(5, 14))})
    assert only(read_scene(scene.write(tmp_path / "s.mrb"))).targets == ["L4"]


def test_a_volume_nobody_drew_on_is_kept_apart(tmp_path):
    scene = lumbar()
    scene.volume("T1", volume_image(1), number=2)
    scene.volume("flat", sitk.Image([5, 5, 5], sitk.sitkInt16), number=3)
    report = read_scene(scene.write(tmp_path / "s.mrb"))
    assert report.problems == []
    assert [(c.volume, c.is_annotated) for c in report.cases] == [("T2", True), ("T1", False)]
    assert "“flat”" in report.notes[0]


def test_label_maps_and_surfaces_are_refused_with_a_way_out(tmp_path):
    scene = Scene()
    scene.volume()
    scene.node("LabelMapVolume", 1, "old labels")
    assert "Import it into a segmentation" in problem(scene.write(tmp_path / "labels.mrb"))
    scene = Scene()
    volume = scene.volume()
    storage = scene.stored("SegmentationStorage", 1, "Seg.seg.vtm", b"<xml/>")
    scene.node("Segmentation", 1, "Seg", {"storage": storage, "referenceImageGeometryRef": volume})
    assert "stored as surfaces" in problem(scene.write(tmp_path / "vtm.mrb"))


def test_a_volume_that_lies_elsewhere_than_the_scene_says(tmp_path):
    scene = lumbar()
    scene.nodes = [node.replace('origin="20 30 40"', 'origin="0 0 0"') for node in scene.nodes]
    assert "lies elsewhere in its file" in problem(scene.write(tmp_path / "s.mrb"))
    scene = lumbar()  # Slicer turned an axis round: its first voxel is another corner
    corner = volume_image().TransformIndexToPhysicalPoint((0, 0, 9))
    scene.nodes = [
        node.replace('origin="20 30 40"', f'origin="{-corner[0]:g} {-corner[1]:g} {corner[2]:g}"')
        for node in scene.nodes
    ]
    assert only(read_scene(scene.write(tmp_path / "turned.mrb"))).targets == ["L4", "L4/L5", "L5"]


def test_patients_are_the_same_in_every_scene_and_not_named(tmp_path):
    found = []
    for name in ("a", "b"):
        scene = lumbar()
        scene.patient("DOE-123", "vtkMRMLScalarVolumeNode1")
        found.append(only(read_scene(scene.write(tmp_path / f"{name}.mrb"))).patient)
    assert found[0] == found[1] and "DOE" not in found[0] and found[0].startswith("patient-")


# --- what a scene may not do -----------------------------------------------------------------------------------------


def test_not_a_scene(tmp_path):
    (tmp_path / "a.mrb").write_bytes(b"no archive")
    assert "is damaged: it is not an archive" in problem(tmp_path / "a.mrb")
    assert "does not exist" in problem(tmp_path / "gone.mrb")
    assert "is not a Slicer scene" in problem(tmp_path / "a.txt")
    with zipfile.ZipFile(tmp_path / "b.mrb", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "holds no scene" in problem(tmp_path / "b.mrb")
    (tmp_path / "c.mrml").write_text("<MRML><Volume", encoding="utf-8")
    assert "is damaged" in problem(tmp_path / "c.mrml")
    (tmp_path / "d.mrml").write_text("<html/>", encoding="utf-8")
    assert "is not a Slicer scene" in problem(tmp_path / "d.mrml")


def test_a_corrupt_member(tmp_path):
    path = lumbar().write(tmp_path / "s.mrb")
    data = bytearray(path.read_bytes())
    start = data.index(b"T2.nrrd") + 200
    data[start : start + 400] = bytes(400)
    path.write_bytes(data)
    assert "cannot be read" in problem(path)


@pytest.mark.parametrize("name", ["../../evil.nrrd", "/etc/evil", "C:/evil", "a/..\\..\\..\\evil", "s/../../evil"])
def test_members_that_point_outside(tmp_path, name):
    path = lumbar().write(tmp_path / "s.mrb")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    assert "points outside of the archive" in problem(path)
    assert not list(tmp_path.parent.rglob("evil*"))


@pytest.mark.parametrize("suffix", [".mrb", ".mrml"])
@pytest.mark.parametrize(
    "name", ["../../secret.nrrd", "/secret.nrrd", "file:///secret.nrrd", "http://host/secret.nrrd"]
)
def test_references_that_point_outside(tmp_path, name, suffix):
    sitk.WriteImage(volume_image(), str(tmp_path / "secret.nrrd"))
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    scene = lumbar()
    document = scene.document().replace('fileName="Data/T2.nrrd"', f'fileName="{name}"')
    report = read_scene(scene.write(folder / f"s{suffix}", document))
    assert "names a file outside of it" in report.problems[0] and report.cases == []


def test_a_link_that_leads_outside(tmp_path):
    secret = tmp_path / "secret.nrrd"
    sitk.WriteImage(volume_image(), str(secret))
    folder = tmp_path / "scene"
    folder.mkdir()
    path = lumbar().write(folder / "s.mrml")
    (folder / "Data" / "T2.nrrd").unlink()
    os.symlink(secret, folder / "Data" / "T2.nrrd")
    assert "names a file outside of it" in problem(path)
    assert only(read_scene(path, root=tmp_path)).targets == ["L4", "L4/L5", "L5"]  # what the reader gave as a whole


@pytest.mark.parametrize(
    "start",
    [
        '<!DOCTYPE MRML [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>',
        '<!DOCTYPE MRML [<!ENTITY file SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE MRML SYSTEM "http://host/evil.dtd">',
    ],
)
def test_entities_are_refused(tmp_path, start):
    document = lumbar().document().replace("<MRML", f"{start}<MRML").replace('name="T2"', 'name="&b;"')
    assert "declares XML entities" in problem(lumbar().write(tmp_path / "s.mrb", document))


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(scene_files, "MAX_FILE_BYTES", 1_000_000)
    scene = lumbar()
    scene.files["Data/T2.nrrd"] = bytes(5_000_000)
    assert "is larger than" in problem(scene.write(tmp_path / "s.mrb"))
    monkeypatch.setattr(scene_files, "MAX_FILE_BYTES", 4 * 2**30)
    monkeypatch.setattr(scene_files.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1_000_000}))
    assert "no room to unpack" in problem(tmp_path / "s.mrb")


def test_a_bomb_that_lies_about_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(scene_files, "MAX_FILE_BYTES", 1_000_000)
    scene = lumbar()
    scene.files["Data/T2.nrrd"] = bytes(5_000_000)
    path = scene.write(tmp_path / "s.mrb")
    data = path.read_bytes()
    size = (5_000_000).to_bytes(4, "little")
    assert data.count(size) == 2  # of the member's header, and of the directory
    path.write_bytes(data.replace(size, (5_000).to_bytes(4, "little")))
    assert "cannot be read" in problem(path) or "is larger than" in problem(path)


def test_a_huge_document(tmp_path, monkeypatch):
    monkeypatch.setattr(scene_files, "MAX_DOCUMENT_BYTES", 500)
    for suffix in (".mrb", ".mrml"):
        assert "is larger than" in problem(lumbar().write(tmp_path / f"s{suffix}"))


def test_a_huge_volume_is_refused_by_its_header(tmp_path, monkeypatch):
    header = (b"NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 60000 60000 60000\n"
              b"space directions: (1,0,0) (0,1,0) (0,0,1)\nkinds: domain domain domain\nendian: little\nencoding: raw\n"
              b"space origin: (0,0,0)\n\n")  # fmt: skip
    scene = lumbar()
    scene.files["Data/T2.nrrd"] = header + bytes(1000)
    assert "60000 × 60000 × 60000 voxels" in problem(scene.write(tmp_path / "s.mrb"))
    monkeypatch.setattr(headers, "MAX_VOXELS", 100)
    assert "voxels" in problem(lumbar().write(tmp_path / "t.mrb"))


def test_a_header_that_names_another_file(tmp_path):
    header = (b"NRRD0004\ntype: unsigned char\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n"
              b"data file: /etc/passwd\n\n")  # fmt: skip
    scene = lumbar()
    scene.files["Data/T2.nrrd"] = header
    assert "keeps its voxels in another file" in problem(scene.write(tmp_path / "s.mrb"))


@given(st.integers(0, 2), st.integers(0, 5000), st.binary(min_size=1, max_size=12))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_damage_is_worse_than_a_sentence(tmp_path, which, at, bytes_):
    scene = lumbar()
    path = tmp_path / "s.mrb"
    document = scene.document().encode()
    if which == 0:  # in the XML
        document = document[: at % len(document)] + bytes_ + document[at % len(document) + len(bytes_) :]
    scene.write(path, document)
    if which == 1:  # in the archive
        data = path.read_bytes()
        path.write_bytes(data[: at % len(data)] + bytes_ + data[at % len(data) + len(bytes_) :])
    elif which == 2:  # cut off
        path.write_bytes(path.read_bytes()[: at + 1])
    report = read_scene(path)
    assert report.problems or report.cases
    assert all(sentence.rstrip().endswith((".", "”")) for sentence in report.problems)


def test_scenes_in_folders(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    first, second = lumbar().write(tmp_path / "a" / "x.mrb"), lumbar().write(tmp_path / "a" / "b" / "y.mrml")
    found = scene_files.find_scenes([tmp_path / "a", first])
    assert [path for path, _ in found[:2]] == sorted([first, second]) or {p for p, _ in found} == {first, second}
    (tmp_path / "none").mkdir()
    with pytest.raises(scene_files.DatasetError, match="There is no scene in"):
        scene_files.find_scenes([tmp_path / "none"])


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_members_are_damage_whatever_they_are_packed_with(tmp_path, method):
    scene = lumbar()
    path = scene.write(tmp_path / "a.mrb")
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    packed = tmp_path / "b.mrb"
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    whole = packed.read_bytes()
    begin = whole.index(b"a.mrml") + len(b"a.mrml")
    packed.write_bytes(whole[: begin + 20] + b"\xa5" * 40 + whole[begin + 60 :])
    assert "is damaged" in problem(packed)


def test_a_member_that_begins_before_the_archive_is_damage(tmp_path):
    path = lumbar().write(tmp_path / "a.mrb")
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(b"PK\x05\x06"))
    while at >= 0:  # in the directory: where each member's own header is
        data[at + 42 : at + 46] = b"\xff\xff\xff\x7f"
        at = data.rfind(b"PK\x01\x02", 0, at)
    path.write_bytes(bytes(data[:10]) + bytes(data[60:]))  # what comes before the directory is shorter than it says
    assert "is damaged" in problem(path)
