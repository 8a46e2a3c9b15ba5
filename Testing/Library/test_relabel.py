"""``spinesegai relabel``: steps in their order, what it refuses, and that it leaves nothing half-done."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
import slicerio

from SpineSegAILib import cli
from SpineSegAILib.anatomy import SCHEMES, STRUCTURES, structure
from SpineSegAILib.errors import CorrectionError
from SpineSegAILib.imaging.geometry import like
from SpineSegAILib.results import Segmentation, read_segmentation
from SpineSegAILib.results.measurement import COLUMNS

SCHEME = SCHEMES["lumbar-mr"]
COLUMN = "L1 L1/L2 L2 L2/L3 L3 L3/L4 L4"


def column(names: str = COLUMN) -> Segmentation:
    """Blocks one below the other, each 10 rows (mm) high."""
    values = np.zeros((6, 110, 20), np.int16)
    for k, name in enumerate(names.split()):
        values[1:5, 5 + 12 * k : 15 + 12 * k, 4:16] = structure(name).id
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((1.0, 1.0, 4.0))
    image.SetDirection((0, 0, 1, 1, 0, 0, 0, -1, 0))
    return Segmentation(image, SCHEME, outline_quality={20: 0.5})


def point_in(k: int) -> str:
    """A point in the k-th block."""
    return ",".join(f"{x:g}" for x in column().labels.TransformIndexToPhysicalPoint((10, 10 + 12 * k, 3)))


@pytest.fixture(params=["spine.seg.nrrd", "spine.nii.gz"])
def spine(request, tmp_path):
    column().write(tmp_path / request.param)
    return tmp_path / request.param


def relabel(path, *words: str) -> list[str]:
    """Names from top to bottom after `spinesegai relabel`."""
    output = path.with_name("out.seg.nrrd")
    assert cli.main(["relabel", str(path), "--output", str(output), *words]) == 0
    values = sitk.GetArrayFromImage(read_segmentation(output).labels)
    values = values[3, :, 10]
    return [STRUCTURES[int(v)].name for v in values[np.flatnonzero(np.diff(values, prepend=0))] if v]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--shift", "up"], "T12 T12/L1 L1 L1/L2 L2 L2/L3 L3"),
        (["--shift", "up", "--from", "L2"], "T12 T12/L1 L1 L1/L2 L3 L3/L4 L4"),
        (["--shift", "down", "--from", "L3", "--direction", "below"], "L1 L1/L2 L2 L2/L3 L4 L4/L5 L5"),
        (["--set", f"L5@{point_in(6)}"], "L2 L2/L3 L3 L3/L4 L4 L4/L5 L5"),
        (["--set", "L4=L5"], "L2 L2/L3 L3 L3/L4 L4 L4/L5 L5"),
        (["--set", f"T12@{point_in(0)}", "--direction", "above"], "T12 T12/L1 L2 L2/L3 L3 L3/L4 L4"),
        (["--swap", "L1,L3"], "L3 L1/L2 L2 L2/L3 L1 L3/L4 L4"),
        (["--merge", "L2,L3"], "L2 L2/L3 L3 L3 L3 L3/L4 L4"),
        (["--delete", "L1,L1/L2"], "L2 L2/L3 L3 L3/L4 L4"),
        (["--insert", "L3"], "T12 T12/L1 L1 L1/L2 L2 L2/L3 L4"),
        (["--set", "L4=L5", "--counting", "L6", "--delete", "L3"], "L3/L4 L4 L4/L5 L5 L5/S1 L6"),
        (["--shift", "up", "--shift", "down"], COLUMN),
        (["--split", "L3", "--normal", "0,0,1"], "T12 T12/L1 L1 L1/L2 L2 L3 L3/L4 L4"),
        ([f"--split=L4@{point_in(6)}", "--direction", "below"], "L1 L1/L2 L2 L2/L3 L3 L3/L4 L4 L5"),
    ],
)
def test_steps(spine, words, expected):
    assert relabel(spine, *words) == expected.split()


def test_two_anchors_that_agree(spine):
    assert relabel(spine, "--set", f"L5@{point_in(6)}", "--set", f"L4@{point_in(4)}")[-1] == "L5"


def test_the_log_and_quality_go_along(spine, capsys):
    relabel(spine, "--shift", "up", "--delete", "L3")
    shown = capsys.readouterr().out
    assert "Shift levels up: L1 → T12, L1/L2 → T12/L1" in shown and "Delete L3: L3 → removed" in shown
    result = read_segmentation(spine.with_name("out.seg.nrrd"))
    assert [e.tool for e in result.corrections.entries] == ["shift", "delete"]
    assert result.outline_quality == {structure("T12").id: 0.5}


def test_what_was_done_as_json(spine, capsys):
    relabel(spine, "--shift", "up", "--json", "-")
    document = json.loads(capsys.readouterr().out)
    assert [e["tool"] for e in document["corrections"]["entries"]] == ["shift"]
    assert document["structures"][0]["structure"] == "T12"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "There is nothing to correct"),
        (["--shift", "sideways"], "--shift: “sideways” is not a valid choice"),
        (["--counting", "L7"], "L7"),
        (["--shift", "down", "--shift", "down", "--shift", "down"], "Cannot shift L5/S1 below the sacrum"),
        (["--shift", "up"] * 5, "T9 would become T8, which the label scheme “lumbar-mr” does not have"),
        (["--set", "L5@0,0,500"], r"lies outside the image"),
        (["--set", "L5@0,0,0"], "only background at"),
        (
            ["--set", f"L5@{point_in(6)}", "--set", f"L2@{point_in(4)}"],
            "in the end, L3 is there",
        ),
        (["--set", f"L5@{point_in(6)}", "--delete", "L5"], "in the end, background is there"),
        (["--delete", "L5"], "L5 is not labeled"),
        (["--delete", COLUMN.replace(" ", ",")], "Nothing would remain. Keep at least one structure"),
        (["--shift", "up", "--lock", "L2"], "L2 is locked"),
        (["--shift", "up", "--lock", COLUMN.replace(" ", ",")], "Every structure is locked"),
    ],
)
def test_what_cannot_be_done(spine, capsys, words, message):
    output = spine.with_name("out.nii.gz")
    assert cli.main(["relabel", str(spine), "--output", str(output), *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not output.exists() and not output.with_name("out.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--from", "L3", "--shift", "up"], "--from belongs to the step before it"),
        (
            ["--swap", "L1,L2", "--direction", "above"],
            "--swap does not take --direction. It is for --counting,",
        ),
        (["--set", "L5"], "--set: Missing structure in “L5”"),
        (["--set", "L5@1,2"], "--set: “1,2” is not a point"),
        (["--merge", "L1"], "does not name two structures"),
        (["--delete", "Q7"], "“Q7” is not a structure"),
        (["--split", "L1", "--normal", "nan,0,0"], "--normal: “nan,0,0” is not a point"),
        (["--shift", "up", "--direction", "sideways"], "--direction: “sideways” is not a valid choice"),
        (["--shift", "up", "--lock", "knee"], "--lock: “knee” is not a structure"),
    ],
)
def test_flags_that_mean_nothing(spine, capsys, words, message):
    assert cli.main(["relabel", str(spine), "--output", str(spine.with_name("out.nii.gz")), *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_files(spine, capsys):
    for words, message in (
        ([str(spine), "--output", str(spine)], "INPUT and --output name the same file"),
        ([str(spine), "--output", str(spine / "a.nii.gz")], "is not a folder"),
        ([str(spine), "--output", str(spine.parent / "a.txt")], "Unsupported file extension"),
        ([str(spine), "--output", str(spine.parent / "a.nrrd"), "--json", str(spine.parent / "a.txt")], "Use .json"),
        (
            [str(spine), "--output", str(spine.parent / "a.nrrd"), "--json", str(spine.parent / "a.json")],
            "the same file",
        ),
        ([str(spine.parent / "none.nii.gz"), "--output", str(spine.parent / "a.nii.gz")], "was not found"),
    ):
        assert cli.main(["relabel", *words, "--shift", "up"]) == 2
        assert message in capsys.readouterr().err


def edited(path, change) -> None:
    """The file after `change` was made to its segments, as a reader would in Slicer."""
    document = slicerio.read_segmentation(str(path))
    change(document)
    slicerio.write_segmentation(str(path), document)


def renamed(names):
    """What a double click on a segment's name changes: the name, not the tag nor the id."""

    def change(document):
        for segment in document["segments"]:
            segment["name"] = names.get(segment["name"], segment["name"])

    return change


def test_segments_renamed_by_hand_are_what_they_are_called(tmp_path, capsys):
    path = tmp_path / "spine.seg.nrrd"
    column("L1 L2 L3").write(path)
    edited(path, renamed({f"L{n} vertebra (body)": f"L{n + 1}" for n in (1, 2, 3)}))
    assert relabel(path, "--shift", "down") == ["L3", "L4", "L5"]
    note = " ".join(capsys.readouterr().err.split())
    assert "“L2” was made as L1 and renamed by hand: it is taken as L2." in note
    assert read_segmentation(path).outline_quality == {structure("L2").id: 0.5}  # it follows the voxels


def test_a_name_given_twice_by_hand(tmp_path, capsys):
    path = tmp_path / "spine.seg.nrrd"
    column().write(path)
    edited(path, renamed({"L1 vertebra (body)": "L2 corrected"}))
    assert cli.main(["relabel", str(path), "--output", str(tmp_path / "a.nii.gz"), "--shift", "up"]) == 2
    assert "L2 is there twice, as “L2 corrected” and “L2 vertebra (body)”" in capsys.readouterr().err


def test_vertebrae_renamed_and_discs_forgotten(tmp_path, capsys):
    path = tmp_path / "spine.seg.nrrd"
    column("L1 L1/L2 L2").write(path)
    edited(path, renamed({"L1 vertebra (body)": "L2", "L2 vertebra (body)": "L3"}))
    assert relabel(path, "--delete", "L1/L2") == ["L2", "L3"]
    assert "out of order: L2 lies above L1/L2" in " ".join(capsys.readouterr().err.split())
    assert not any("out of order" in w for w in read_segmentation(tmp_path / "out.seg.nrrd").warnings)


def test_segments_that_overlap(tmp_path, capsys):
    path = tmp_path / "spine.seg.nrrd"
    column("L1 L2").write(path)

    def overlap(document):
        one = np.asarray(document["voxels"])
        two = np.zeros_like(one)
        two[4:16, 10:20, 1:5] = 1
        document["voxels"] = np.stack([np.where(one == 20, one, 0), two])
        document["segments"][1] |= {"layer": 1, "labelValue": 1}

    edited(path, overlap)
    assert cli.main(["relabel", str(path), "--output", str(tmp_path / "a.nii.gz"), "--shift", "up"]) == 2
    assert "L1 and L2 overlap in 240 voxels" in capsys.readouterr().err
    with pytest.raises(CorrectionError, match="L1 and L2 overlap"):
        read_segmentation(path)


def test_a_plain_label_image(tmp_path):
    image = column("T8 T9").labels
    sitk.WriteImage(image, str(tmp_path / "plain.nii.gz"))
    assert relabel(tmp_path / "plain.nii.gz", "--shift", "up") == ["T7", "T8"]


def test_what_a_person_made_is_not_replaced_unasked(spine, capsys):
    """Neither a file of another program, nor a result that was corrected."""
    theirs, corrected = spine.with_name("theirs.nii.gz"), spine.with_name("corrected.seg.nrrd")
    sitk.WriteImage(column("T8 T9").labels, str(theirs))
    assert cli.main(["relabel", str(spine), "-o", str(corrected), "--shift", "up"]) == 0
    for path in (theirs, corrected):
        before = path.read_bytes()
        image = str(spine.with_name("image.nii.gz"))
        for words in (["relabel", str(spine), "--shift", "down"], ["refine", str(spine), image, "--add", "L3@0,0,0"]):
            assert cli.main([*words, "-o", str(path)]) == 2
            assert "is not an unchanged result of SpineSegAI" in capsys.readouterr().err
            assert path.read_bytes() == before
        assert cli.main(["relabel", str(spine), "--shift", "down", "-o", str(path), "--overwrite"]) == 0
        assert path.read_bytes() != before


def test_the_corrected_segmentation_is_measured_and_drawn(spine, capsys):
    table, picture = spine.with_name("sizes.csv"), spine.with_name("p.png")
    words = ["relabel", str(spine), "-o", str(spine.with_name("right.seg.nrrd")), "--shift", "up"]
    image = spine.with_name("image.nii.gz")
    labels = read_segmentation(spine).labels
    grey = np.random.default_rng(0).uniform(1, 99, sitk.GetArrayFromImage(labels).shape).astype(np.float32)
    sitk.WriteImage(like(labels, grey), str(image))
    for alone, said in (
        (["--preview", str(picture)], "Name it with --image"),
        (["--image", str(image)], "Use --preview with it"),
        (["--measurements-all"], "Use --measurements with it"),
    ):
        assert cli.main([*words, *alone]) == 2
        assert said in capsys.readouterr().err
    drawn = ["--preview", str(picture), "--image", str(image)]
    assert cli.main([*words, *drawn, "--measurements", str(table), "--measurements-all"]) == 0
    said = capsys.readouterr().out
    assert f"wrote {table}" in said and f"wrote {picture}" in said
    assert picture.read_bytes().startswith(b"\x89PNG")
    head, *rows, _ = table.read_text(encoding="utf-8").splitlines()
    assert head.split(",") == list(COLUMNS)
    found = read_segmentation(spine.with_name("right.seg.nrrd"))
    assert [row.split(",")[1] for row in rows] == [structure(sid).name for sid in found.present]
    sitk.WriteImage(like(labels, grey)[:, :, 1:], str(image))
    picture.unlink()
    assert cli.main([*words, *drawn, "--overwrite"]) == 2 and not picture.exists()
    assert "is not a segmentation of" in capsys.readouterr().err
