"""Miniature fakes of public datasets, in the folders that they are published in."""

import json
import shutil
import zlib

import numpy as np
import pytest
import SimpleITK as sitk

from SpineSegAILib.anatomy import CUSTOM_IDS, STRUCTURES, Extent, structure
from SpineSegAILib.cli import main
from SpineSegAILib.datasets import Case, read_label, read_manifest
from SpineSegAILib.datasets.manifest import read_case
from SpineSegAILib.datasets.public_sets import import_dataset
from SpineSegAILib.errors import DatasetError
from SpineSegAILib.results.segment_names import parse_table


def put(path, *values):
    """An image with a slice for each value, and others of zeros."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros((8, 3, 4), np.int16)
    for n, value in enumerate(values):
        array[n] = value
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))


def taken(target):
    """split → {patient/name: names of the structures}, after reading it all as training does."""
    manifest = read_manifest(target.path)
    found = {}
    for split, cases in manifest.splits.items():
        for case in cases:
            present = np.unique(sitk.GetArrayFromImage(read_label(case)))
            assert set(present) - {0} == set(case.annotated)
            found.setdefault(split, {})[f"{case.patient}/{case.name}"] = [STRUCTURES[i].name for i in case.annotated]
    return manifest, found


def test_parse_knows_arteries_of_both_sides_and_nothing_of_veins(tmp_path):
    for patient in ("PA000005", "PA000016"):
        put(tmp_path / "parse" / "train" / patient / "image" / f"{patient}.nii.gz", 50)
        put(tmp_path / "parse" / "train" / patient / "label" / f"{patient}.nii.gz", 1)
    manifest, found = taken(import_dataset("parse", tmp_path / "parse", tmp_path / "out", validation_share=0.5))
    assert set(found) == {"training", "validation"}
    cases = found["training"] | found["validation"]
    assert cases == {f"{p}/{p}": ["pulmonary artery"] for p in ("PA000005", "PA000016")}
    assert manifest.modality == "CT" and manifest.cases("training")[0].extent is not Extent.WHOLE


def test_spider(tmp_path):
    folder = tmp_path / "spider"
    for name in ("1_t1", "1_t2", "2_t2", "10_t2_SPACE"):
        put(folder / "images" / f"{name}.mha", 50)
    put(folder / "masks" / "1_t1.mha", 1, 2, 100, 201)
    put(folder / "masks" / "1_t2.mha", 1, 2, 100, 201)
    put(folder / "masks" / "2_t2.mha", 5, 6, 205, 206)
    put(folder / "masks" / "10_t2_SPACE.mha", 9, 109, 209)
    (folder / "overview.csv").write_text(
        "new_file_name,subset,sex\n1_t1,training,F\n1_t2,training,F\n2_t2,validation,M\n10_t2_SPACE,training,M\n",
        encoding="utf-8",
    )
    manifest, found = taken(import_dataset("spider", folder, tmp_path / "out"))
    assert found == {
        "training": {
            "1/1_t1": ["L4", "L5", "L5/S1", "canal"],
            "1/1_t2": ["L4", "L5", "L5/S1", "canal"],
            "10/10_t2_SPACE": ["T9", "T9/T10"],
        },
        "validation": {"2/2_t2": ["T12", "T12/L1", "L1", "L1/L2"]},
    }
    assert all(c.extent is Extent.WHOLE for c in manifest.cases("training")) and manifest.modality == "MR"


@pytest.mark.parametrize("base", ["", "train", "MRI_train/train"])
def test_mrspineseg(tmp_path, base):
    folder = tmp_path / "mrspineseg"
    for n in range(1, 6):
        put(folder / base / "MR" / f"Case{n}.nii.gz", 50)
        put(folder / base / "Mask" / f"mask_case{n}.nii.gz", 1, 2, 11, 19)
    put(folder / base / "MR" / "Case200.nii.gz", 50)  # a test case, whose mask was not published
    _, found = taken(import_dataset("mrspineseg", folder, tmp_path / "out"))
    assert {split: len(cases) for split, cases in found.items()} == {"training": 4, "validation": 1}
    assert found["training"] | found["validation"] == {
        f"Case{n}/Case{n}": ["T9/T10", "L5", "L5/S1", "S1"] for n in range(1, 6)
    }


def test_verse(tmp_path):
    folder = tmp_path / "verse20"
    for part, subject, file in (
        ("dataset-verse20training", "sub-verse500", "sub-verse500_dir-ax"),
        ("dataset-verse20training", "sub-verse521", "sub-verse521_split-verse253"),
        ("dataset-verse20validation", "sub-gl090", "sub-gl090_dir-ax"),
    ):
        put(folder / part / "rawdata" / subject / f"{file}_ct.nii.gz", 50)
        put(folder / part / "derivatives" / subject / f"{file}_seg-vert_msk.nii.gz", 19, 28, 20, 25)
        (folder / part / "derivatives" / subject / f"{file}_seg-subreg_ctd.json").write_text("[]", encoding="utf-8")
    manifest, found = taken(import_dataset("verse", folder, tmp_path / "out"))
    levels = ["T12", "T13", "L1", "L6"]
    assert found == {
        "training": {
            "sub-verse500/sub-verse500_dir-ax_ct": levels,
            "sub-verse521/sub-verse521_split-verse253_ct": levels,
        },
        "validation": {"sub-gl090/sub-gl090_dir-ax_ct": levels},
    }
    assert manifest.modality == "CT"
    one = import_dataset("verse", folder / "dataset-verse20training", tmp_path / "one", validation_share=0)
    assert len(read_manifest(one.path).cases("training")) == 2
    put(folder / "dataset-verse20validation" / "rawdata" / "sub-verse500" / "sub-verse500_ct.nii.gz", 50)
    put(folder / "dataset-verse20validation" / "derivatives" / "sub-verse500" / "sub-verse500_seg-vert_msk.nii.gz", 20)
    with pytest.raises(DatasetError, match="sub-verse500 is in both training and validation"):
        import_dataset("verse", folder, tmp_path / "two")
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize("data, label", [("data", "label"), ("raw_data/volumes", "raw_data/labels")])
def test_ctspine1k(tmp_path, data, label):
    folder = tmp_path / "ctspine1k"
    cases = (
        ("COLONOG", "1.3.6.1.4.1.9328.50.4.0001"),
        ("liver", "liver_110"),
        ("COVID-19", "volume-covid19-A-0003_ct"),
    )
    for group, name in (*cases, ("liver", "liver_169")):
        put(folder / data / group / f"{name}.nii.gz", 50)
        put(folder / label / group / f"{name}_seg.nii.gz", 19, 20, 24)
    (folder / "data_split.txt").write_text(
        "trainset:\n1.3.6.1.4.1.9328.50.4.0001.nii.gz\nvolume-covid19-A-0003_ct.nii.gz\n\ntest_public:\nliver_110.nii.gz\n"
        "\ntest_private:\nliver_169.nii.gz\n", encoding="utf-8",
    )  # fmt: skip
    manifest, found = taken(import_dataset("ctspine1k", folder, tmp_path / "out"))
    assert {split: sorted(cases) for split, cases in found.items()} == {
        "training": ["1.3.6.1.4.1.9328.50.4.0001/1.3.6.1.4.1.9328.50.4.0001",
                     "volume-covid19-A-0003_ct/volume-covid19-A-0003_ct"],
        "validation": ["liver_110/liver_110"],
        "test": ["liver_169/liver_169"],
    }  # fmt: skip
    assert manifest.cases("training")[0].annotated == (19, 20, 24)


def nnunet(folder, labels, cases=2, **more):
    for n in range(cases):
        put(folder / "imagesTr" / f"spine_{n:03d}_0000.nii.gz", 50)
        put(folder / "labelsTr" / f"spine_{n:03d}.nii.gz", 1, 2, 3)
    table = {"channel_names": {"0": "T2"}, "labels": labels, "numTraining": cases, "file_ending": ".nii.gz", **more}
    (folder / "dataset.json").write_text(json.dumps(table), encoding="utf-8")
    return folder


def test_nnunet(tmp_path):
    folder = nnunet(tmp_path / "Dataset042_Spine", {"background": 0, "vertebra L5": 1, "L4": 2, "disc L4-5": 3})
    target = import_dataset("nnunet", folder, tmp_path / "out", extent=Extent.BODY, validation_share=0.5)
    manifest, found = taken(target)
    assert [c.extent for c in manifest.cases("training")] == [Extent.BODY]
    assert list(found["training"].values()) == list(found["validation"].values()) == [["L4", "L4/L5", "L5"]]


def test_a_set_imported_again_keeps_its_splits(tmp_path):
    labels, out = {"background": 0, "L5": 1, "L4": 2, "disc L4-5": 3}, tmp_path / "out"
    target = import_dataset("nnunet", nnunet(tmp_path / "set", labels, cases=10), out, extent=Extent.BODY)
    first = next(row for row in target.rows() if row.split == "training")
    target.set_split([first.key], "test")
    before = {entry["patient"]: split for split, entry in target.entries()}
    shutil.rmtree(tmp_path / "set")
    again = import_dataset("nnunet", nnunet(tmp_path / "set", labels, cases=20), out, extent=Extent.BODY)
    after = {entry["patient"]: split for split, entry in again.entries()}
    assert len(after) == 20 and {patient: after[patient] for patient in before} == before
    assert sum(split == "validation" for split in after.values()) == 4


def test_a_number_that_another_structure_of_the_readers_own_has_is_not_given_again(tmp_path):
    wanted = CUSTOM_IDS[zlib.crc32(b"odd cyst") % len(CUSTOM_IDS)]
    (tmp_path / "out").mkdir()
    (tmp_path / "out/dataset.json").write_text(json.dumps({"custom": {"odd tumor": wanted}}), encoding="utf-8")
    folder = nnunet(tmp_path / "Dataset008_Cyst", {"background": 0, "L5": 1, "odd cyst": 2, "L4": 3})
    table = parse_table([("odd cyst", "custom:odd cyst")])
    manifest, found = taken(import_dataset("nnunet", folder, tmp_path / "out", table=table, validation_share=0))
    assert len(set(manifest.custom)) == 2 and all("odd cyst" in names for names in found["training"].values())


def test_nnunet_with_structures_of_the_readers_own(tmp_path):
    folder = nnunet(tmp_path / "Dataset007_Cage", {"background": 0, "L5": 1, "cage": 2, "aorta": 3})
    with pytest.raises(DatasetError, match="“cage”, “aorta”"):
        import_dataset("nnunet", folder, tmp_path / "out")
    target = import_dataset(
        "nnunet",
        folder,
        tmp_path / "out",
        table=parse_table([("cage", "custom:sets cage"), ("aorta", "custom:sets aorta")]),
    )
    manifest, found = taken(target)
    assert set(manifest.custom) == {structure("sets cage").id, structure("sets aorta").id}
    assert found["training"]["spine_000/spine_000_0000"][0] == "L5"
    ignoring = import_dataset(
        "nnunet", folder, tmp_path / "b", table=parse_table([("cage", "ignore"), ("aorta", "ignore")])
    )
    assert taken(ignoring)[1]["training"]["spine_000/spine_000_0000"] == ["L5"]


def test_nnunet_that_cannot_be_taken(tmp_path):
    with pytest.raises(DatasetError, match="region of several"):
        import_dataset("nnunet", nnunet(tmp_path / "a", {"background": 0, "whole": [1, 2]}), tmp_path / "out")
    two = nnunet(tmp_path / "b", {"background": 0, "L5": 1}, channel_names={"0": "T1", "1": "T2"})
    with pytest.raises(DatasetError, match="have 2 channels: T1, T2"):
        import_dataset("nnunet", two, tmp_path / "out")
    folder = nnunet(tmp_path / "c", {"background": 0, "L5": 1, "L4": 2, "L3": 3})
    (folder / "imagesTr" / "spine_001_0000.nii.gz").unlink()
    with pytest.raises(DatasetError, match="has no image spine_001_0000"):
        import_dataset("nnunet", folder, tmp_path / "out")
    (folder / "dataset.json").unlink()
    with pytest.raises(DatasetError, match="dataset\\.json does not exist"):
        import_dataset("nnunet", folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["spider", "mrspineseg", "verse", "ctspine1k"])
def test_another_folder_is_refused_with_the_layout(tmp_path, kind):
    with pytest.raises(DatasetError, match=f"no labeled cases of {kind}.*It has"):
        import_dataset(kind, tmp_path, tmp_path / "out")
    with pytest.raises(DatasetError, match="There is no folder"):
        import_dataset(kind, tmp_path / "gone", tmp_path / "out")


def test_foreign_values_and_damaged_masks(tmp_path):
    put(tmp_path / "images" / "1_t2.mha", 50)
    put(tmp_path / "masks" / "1_t2.mha", 77)
    with pytest.raises(DatasetError, match="values that mean nothing there: 77"):
        import_dataset("spider", tmp_path, tmp_path / "out")
    (tmp_path / "masks" / "1_t2.mha").write_bytes(b"x")
    with pytest.raises(DatasetError, match="cannot be read"):
        import_dataset("spider", tmp_path, tmp_path / "out")
    put(tmp_path / "masks" / "1_t2.mha", 0)
    with pytest.raises(DatasetError, match="are empty"):
        import_dataset("spider", tmp_path, tmp_path / "out")


@pytest.mark.parametrize("millimetres", [0.0, 0.04, 0.4])
def test_a_label_beside_its_image_is_the_same_to_import_and_evaluation(tmp_path, millimetres):
    put(tmp_path / "images" / "1_t2.mha", 50)
    put(tmp_path / "masks" / "1_t2.mha", 1, 2)
    label = sitk.ReadImage(str(tmp_path / "masks" / "1_t2.mha"))
    label.SetOrigin((0.0, millimetres, 0.0))
    sitk.WriteImage(label, str(tmp_path / "masks" / "1_t2.mha"))
    case = Case(
        tmp_path / "images" / "1_t2.mha", tmp_path / "masks" / "1_t2.mha", (24, 23), label_values={1: 24, 2: 23}
    )
    if millimetres < 0.1:
        import_dataset("spider", tmp_path, tmp_path / "out")
        read_case(case)
        return
    for attempt in (lambda: import_dataset("spider", tmp_path, tmp_path / "out"), lambda: read_case(case)):
        with pytest.raises(DatasetError, match="does not lie on the grid of"):
            attempt()


LAYOUTS = {
    "spider": ("images/1_t2.mha", "masks/1_t2.mha"),
    "mrspineseg": ("MR/Case1.nii.gz", "Mask/mask_case1.nii.gz"),
    "verse": ("rawdata/sub-1/sub-1_ct.nii.gz", "derivatives/sub-1/sub-1_seg-vert_msk.nii.gz"),
    "ctspine1k": ("data/colon/1.nii.gz", "label/colon/1_seg.nii.gz"),
    "nnunet": ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_what_macos_leaves_beside_files_is_skipped(tmp_path, kind):
    for name in LAYOUTS[kind]:
        put(tmp_path / name, 20 if kind in ("verse", "ctspine1k") else 1)
        (tmp_path / name).with_name(f"._{(tmp_path / name).name}").write_bytes(b"\0\5\x16\7macOS")
    if kind == "nnunet":
        (tmp_path / "dataset.json").write_text('\ufeff{"labels": {"background": 0, "L5": 1}}', encoding="utf-8")
    assert len(list(import_dataset(kind, tmp_path, tmp_path / "out").entries())) == 1


@pytest.mark.parametrize("data", [b"\xff\xfe\0", b"a;b\0c\n1;2", b"new_file_name,subset\n" + b'"' + b"x" * 200_000])
def test_damaged_tables_of_public_sets_are_said(tmp_path, data):
    for name in LAYOUTS["spider"]:
        put(tmp_path / name, 1)
    (tmp_path / "overview.csv").write_bytes(data)
    try:
        import_dataset("spider", tmp_path, tmp_path / "out")
    except DatasetError as error:
        assert "overview.csv" in str(error)
    for name in LAYOUTS["ctspine1k"]:
        put(tmp_path / name, 20)
    (tmp_path / "data_split.txt").write_bytes(data)
    try:
        import_dataset("ctspine1k", tmp_path, tmp_path / "out2")
    except DatasetError as error:
        assert "data_split.txt" in str(error)


@pytest.mark.parametrize(
    "table",
    ["[]", "5", "null", "{}", '{"labels": []}', '{"labels": {"L5": "x"}}', '{"labels": {"L5": null}}',
     '{"labels": {"L5": 1e999}}', '{"labels": {"L5": 1}, "channel_names": ["MR"]}', "[" * 100_000,
     '{"labels": {"L5": 1}, "file_ending": 5}', '{"labels": {"L5": 1}, "file_ending": "/../*"}',
     '{"labels": {"L5": {}}}', '{"labels": {"1": ["L5"]}}'],
)  # fmt: skip
def test_damaged_descriptions_of_nnunet_are_said(tmp_path, table):
    for name in LAYOUTS["nnunet"]:
        put(tmp_path / name, 1)
    (tmp_path / "dataset.json").write_text(table)
    with pytest.raises(DatasetError):
        import_dataset("nnunet", tmp_path, tmp_path / "out")


def test_sets_can_be_joined_and_the_shell_says_what_it_did(tmp_path, capsys):
    for n in range(1, 3):
        put(tmp_path / "spider" / "images" / f"{n}_t2.mha", 50)
        put(tmp_path / "spider" / "masks" / f"{n}_t2.mha", 1)
        put(tmp_path / "mr" / "MR" / f"Case{n}.nii.gz", 50)
        put(tmp_path / "mr" / "Mask" / f"mask_case{n}.nii.gz", 2)
    out = str(tmp_path / "out")
    assert (
        main(["import-dataset", "--format", "spider", str(tmp_path / "spider"), "--output", out, "--validation", "0"])
        == 0
    )
    assert (
        main(["import-dataset", "--format", "mrspineseg", str(tmp_path / "mr"), "--output", out, "--validation", "0.5"])
        == 0
    )
    assert "3 training, 1 validation" in capsys.readouterr().out
    manifest = read_manifest(tmp_path / "out" / "dataset.json")
    labels = [np.unique(sitk.GetArrayFromImage(read_label(c))).tolist() for c in manifest.cases("training")]
    assert labels == [[0, 24]] * 3
    assert (
        main(["import-dataset", "--format", "spider", str(tmp_path / "spider"), "--output", out, "--validation", "0"])
        == 0
    )
    assert "3 training, 1 validation" in capsys.readouterr().out  # the same again: nothing is there twice
