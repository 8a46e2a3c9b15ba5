"""Scenes become a training set that can be changed; whatever goes wrong, nothing is half there."""

import json
import os
import stat

import numpy as np
import pytest
import SimpleITK as sitk
from scene_data import Scene, box, lumbar, volume_image

from SpineSegAILib.anatomy import STRUCTURES, Extent, structure
from SpineSegAILib.cli import main
from SpineSegAILib.datasets import adding, read_label, read_manifest, training_set
from SpineSegAILib.datasets.entries import structures_in_words
from SpineSegAILib.datasets.slicer_scene import read_scene
from SpineSegAILib.datasets.training_set import TrainingSet
from SpineSegAILib.errors import DatasetError, OutputError
from SpineSegAILib.results.segment_names import parse_table

BODIES = "It is not specified whether vertebrae are bodies or whole."


def scenes(folder, count, **more):
    """Scenes of patients of their own."""
    return [lumbar(n, **more).write(folder / f"case{n}.mrb") for n in range(count)]


def add(target, paths, table=None, **more):
    table = parse_table(table or [])
    return target.add_scenes((read_scene(p, table=table, customs=target.customs) for p in paths), names=table, **more)


def tree(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*")) if folder.exists() else []


def test_a_training_set_is_made_and_can_be_read(tmp_path):
    target = TrainingSet(tmp_path / "set")
    add(target, scenes(tmp_path, 5), extent=Extent.BODY)
    manifest = read_manifest(tmp_path / "set" / "dataset.json")
    assert {s: len(c) for s, c in manifest.splits.items()} == {"training": 4, "validation": 1, "test": 0}
    case = manifest.cases("training")[0]
    assert [STRUCTURES[i].name for i in case.annotated] == ["L4", "L4/L5", "L5"] and case.extent is Extent.BODY
    label = read_label(case)
    assert np.array_equal(sitk.GetArrayFromImage(label) == structure("L4").id, box(slice(5, 14)))
    assert np.allclose(label.GetDirection(), volume_image().GetDirection())
    document = json.loads((tmp_path / "set" / "dataset.json").read_text(encoding="utf-8"))
    assert document["numTraining"] == 4
    assert not [p for p in tree(tmp_path / "set") if "adding" in p]


def test_what_is_not_understood_stops_it_and_nothing_is_written(tmp_path):
    scene = lumbar()
    scene.segmentation({"my tumour": box(slice(8, 10))}, "vtkMRMLScalarVolumeNode1", name="B", number=2)
    path = scene.write(tmp_path / "s.mrb")
    target = TrainingSet(tmp_path / "deep" / "set")
    with pytest.raises(DatasetError, match=r'“my tumour”.*--map "my tumour=L4", "my tumour=custom:my tumour"'):
        add(target, [path])
    assert tree(tmp_path / "deep") == [] and not (tmp_path / "deep").exists()
    add(target, [path], ignore_unknown=True)
    assert next(target.entries())[1]["annotated"] == ["L4", "L4/L5", "L5"]


def test_structures_of_the_readers_own_are_kept_with_their_names(tmp_path):
    path = tmp_path / "s.mrb"
    scene = lumbar()
    scene.segmentation({"my tumour": box(slice(8, 10))}, "vtkMRMLScalarVolumeNode1", name="B", number=2)
    scene.write(path)
    target = TrainingSet(tmp_path / "set")
    add(target, [path], [("My Tumour", "custom:scenes tumour")])
    value = target.table["custom"]["scenes tumour"]
    assert 300 <= value < 400
    assert TrainingSet(tmp_path / "set").names == {"my tumour": "custom:scenes tumour"}  # for the next scenes
    manifest = read_manifest(tmp_path / "set" / "dataset.json")
    (case,) = manifest.cases("training")
    own = structure("scenes tumour").id
    assert own in case.annotated and manifest.custom == (own,)
    assert (sitk.GetArrayFromImage(read_label(case)) == own).sum() == box(slice(8, 10)).sum()


def test_a_number_that_something_else_has_is_translated(tmp_path):
    array = np.zeros((4, 5, 6), np.int16)
    array[1], array[2] = 333, 23
    for name in ("image", "label"):
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / f"{name}.nii.gz"))
    case = {"image": "image.nii.gz", "label": "label.nii.gz"}
    for name in ("first thing", "second thing"):
        table = {"custom": {name: 333}, "training": [{**case, "annotated": [name, "L4"]}]}
        (tmp_path / "dataset.json").write_text(json.dumps(table), encoding="utf-8")
        manifest = read_manifest(tmp_path / "dataset.json")
        label = sitk.GetArrayFromImage(read_label(manifest.cases("training")[0]))
        assert (label[1] == structure(name).id).all() and (label[2] == 23).all()
    assert structure("first thing").id != structure("second thing").id
    (tmp_path / "dataset.json").write_text(json.dumps({"custom": {"x": 7}, "training": [case]}), encoding="utf-8")
    with pytest.raises(DatasetError, match=r"“custom” in .* is not valid"):
        read_manifest(tmp_path / "dataset.json")


def test_the_same_scene_again_replaces_its_case(tmp_path):
    target = TrainingSet(tmp_path / "set")
    add(target, scenes(tmp_path, 3))
    before = {e["origin"]: s for s, e in target.entries()}
    scene = Scene()
    scene.segmentation({"L2": box(slice(5, 14))}, scene.volume(image=volume_image(1)))
    path = scene.write(tmp_path / "corrected.mrb")  # another scene with the same volume
    assert add(target, [path]).replaced == ["case1_T2"]
    entries = {e["origin"]: (s, e["annotated"]) for s, e in target.entries()}
    assert len(entries) == 3 and entries["corrected.mrb: T2"] == (before["case1.mrb: T2"], ["L2"])
    (case,) = [c for cases in read_manifest(target.path).splits.values() for c in cases if "case1" in c.name]
    assert set(np.unique(sitk.GetArrayFromImage(read_label(case)))) == {0, structure("L2").id}


def test_a_corrected_case_keeps_its_patient_together(tmp_path):
    """The former case is replaced and another one of its patient comes in with it: both where the former was."""
    target = TrainingSet(tmp_path / "set")
    add(target, [lumbar(0).write(tmp_path / "a.mrb")], patient="P", split="validation")
    both = [lumbar(0).write(tmp_path / "a2.mrb"), lumbar(1).write(tmp_path / "b.mrb")]
    add(target, both, patient="P", validation_share=0.0)
    assert [split for split, _ in target.entries()] == ["validation", "validation"]


def test_scenes_of_one_name_are_different_cases(tmp_path):
    paths = []
    for n in range(2):
        (tmp_path / f"p{n}").mkdir()
        paths.append(lumbar(n).write(tmp_path / f"p{n}" / "scene.mrb"))
    target = TrainingSet(tmp_path / "set")
    add(target, paths)
    assert sorted(row.name for row in target.rows()) == ["scene_T2", "scene_T2_2"]


def test_files_of_two_cases_are_two_where_upper_and_lower_case_are_the_same(tmp_path):
    paths = []
    for n, name in enumerate(("Scene", "scene")):
        (tmp_path / f"p{n}").mkdir()
        paths.append(lumbar(n).write(tmp_path / f"p{n}" / f"{name}.mrb"))
    target = TrainingSet(tmp_path / "set")
    add(target, paths)
    assert sorted(row.name for row in target.rows()) == ["Scene_T2", "scene_T2_2"]


def test_one_volume_in_two_scenes_is_said(tmp_path):
    paths = [lumbar().write(tmp_path / f"{name}.mrb") for name in "ab"]
    with pytest.raises(DatasetError, match=r"“T2” of b\.mrb is in a\.mrb: T2, too"):
        add(TrainingSet(tmp_path / "set"), paths)


def test_an_annotated_image_no_longer_waits(tmp_path):
    turned = sitk.DICOMOrient(volume_image(), "RAI")  # another order of axes, as a program may load it
    sitk.WriteImage(turned, str(tmp_path / "image.nii.gz"))
    sitk.WriteImage(volume_image(7), str(tmp_path / "other.nii.gz"))
    target = TrainingSet(tmp_path / "set")
    assert target.add_images([tmp_path / "image.nii.gz", tmp_path / "other.nii.gz"]) == ["image", "other"]
    assert target.add_images([tmp_path / "image.nii.gz"]) == []
    assert add(target, [lumbar().write(tmp_path / "s.mrb")]).replaced == ["image"]
    assert [(row.name, row.split) for row in target.rows()] == [("s_T2", "training"), ("other", "unlabelled")]
    bare = Scene()
    bare.volume()
    add(target, [bare.write(tmp_path / "bare.mrb"), lumbar(3).write(tmp_path / "t.mrb")], unlabelled=True)
    assert "s_T2" in [row.name for row in target.rows()]  # what is annotated is not lost to a bare volume
    assert (tmp_path / "image.nii.gz").exists()
    with pytest.raises(DatasetError, match="is not an image"):
        target.add_images([tmp_path / "gone.nii.gz"])


def test_patients_stay_together(tmp_path):
    paths = []
    for n in range(12):
        scene = lumbar(n)
        scene.patient(f"P{n // 3}", "vtkMRMLScalarVolumeNode1")
        paths.append(scene.write(tmp_path / f"c{n}.mrb"))
    target = TrainingSet(tmp_path / "set")
    add(target, paths, validation_share=0.5)
    splits = {}
    for split, entry in target.entries():
        splits.setdefault(entry["patient"], set()).add(split)
    assert sorted(map(tuple, splits.values())) == [("training",), ("training",), ("validation",), ("validation",)]
    again = TrainingSet(tmp_path / "again")
    add(again, paths[:6], validation_share=0.5)
    add(again, paths[6:], validation_share=0.0)
    assert len({e["patient"] for s, e in again.entries() if s == "validation"}) == 1


def test_a_patient_in_two_splits_is_refused(tmp_path):
    first, second = scenes(tmp_path, 2)
    target = TrainingSet(tmp_path / "set")
    add(target, [first], patient="P", split="training")
    before = tree(tmp_path / "set"), target.path.read_bytes()
    with pytest.raises(DatasetError, match=r"The patient P of case1\.mrb: T2 is already in training"):
        add(target, [second], patient="P", split="validation")
    assert (tree(tmp_path / "set"), target.path.read_bytes()) == before
    add(target, [second], patient="Q", split="validation")
    assert [s for s, _ in target.entries()] == ["training", "validation"]


def test_a_patient_renamed_into_another_split_is_refused(tmp_path):
    first, second = scenes(tmp_path, 2)
    target = TrainingSet(tmp_path / "set")
    add(target, [first], patient="P", split="training")
    add(target, [second], patient="Q", split="validation")
    before = target.path.read_bytes()
    with pytest.raises(DatasetError, match="is already in training"):
        add(target, [second], patient="P")
    assert target.path.read_bytes() == before


def test_cases_that_come_one_at_a_time_are_validated_too(tmp_path):
    target = TrainingSet(tmp_path / "set")
    for n, path in enumerate(scenes(tmp_path, 10)):
        add(target, [path], patient=f"P{n}", validation_share=0.3)
    splits = [split for split, _ in target.entries()]
    assert 1 <= splits.count("validation") <= 5 and len(splits) == 10


def test_problems_stop_it_unless_they_are_skipped(tmp_path):
    good, bad = lumbar().write(tmp_path / "good.mrb"), tmp_path / "bad.mrb"
    bad.write_bytes(b"x")
    target = TrainingSet(tmp_path / "set")
    with pytest.raises(DatasetError, match=r"bad\.mrb is damaged"):
        add(target, [good, bad])
    assert not (tmp_path / "set").exists()
    summary = add(target, [good, bad], skip_problems=True)
    assert len(summary.problems) == 1 and len(list(target.entries())) == 1
    with pytest.raises(DatasetError, match=r"bad\.mrb is damaged"):
        add(TrainingSet(tmp_path / "other"), [bad], skip_problems=True)


def test_nothing_annotated(tmp_path):
    scene = Scene()
    scene.volume()
    path = scene.write(tmp_path / "s.mrb")
    target = TrainingSet(tmp_path / "set")
    with pytest.raises(DatasetError, match="Nothing is annotated"):
        add(target, [path])
    add(target, [path], unlabelled=True)
    (row,) = target.rows()
    assert (row.split, row.structures, row.spacing) == ("unlabelled", "", (1.5, 1.5, 4.0))
    with pytest.raises(DatasetError, match="is not annotated yet"):
        target.set_split([row.key], "training")
    with pytest.raises(DatasetError, match="lists no cases"):
        read_manifest(target.path)
    scene.segmentation({"L4": box(slice(5, 14))}, "vtkMRMLScalarVolumeNode1")
    add(target, [scene.write(path)])  # annotated meanwhile: no longer unlabeled
    assert [r.split for r in target.rows()] == ["training"]


@pytest.mark.parametrize("place", ["labels", "images"])
def test_a_write_that_fails_changes_nothing(tmp_path, monkeypatch, place):
    first, second = scenes(tmp_path, 2)
    target = TrainingSet(tmp_path / "set")
    add(target, [first])
    before = tree(tmp_path / "set"), target.path.read_bytes(), json.dumps(target.table)
    write = training_set.sitk.WriteImage

    def fails(image, path, **more):
        if place in str(path):
            raise OSError(28, "No space left on device")
        write(image, path, **more)

    monkeypatch.setattr(training_set.sitk, "WriteImage", fails)
    with pytest.raises(OutputError, match="cannot be written: No space left"):
        add(target, [second])
    assert (tree(tmp_path / "set"), target.path.read_bytes(), json.dumps(target.table)) == before


def test_of_two_imports_at_once_neither_loses_its_cases(tmp_path):
    one, other = TrainingSet(tmp_path / "set"), TrainingSet(tmp_path / "set")
    first, second = scenes(tmp_path, 2)
    add(one, [first])
    before = tree(tmp_path / "set"), one.path.read_bytes()
    with pytest.raises(OutputError, match="was changed by another program meanwhile"):
        add(other, [second])
    assert (tree(tmp_path / "set"), one.path.read_bytes()) == before
    add(TrainingSet(tmp_path / "set"), [second])
    with pytest.raises(OutputError, match="was changed by another program meanwhile"):
        one.remove([one.rows()[0].key])
    assert len(TrainingSet(tmp_path / "set").rows()) == 2


def test_a_read_only_folder(tmp_path, monkeypatch):
    path = lumbar().write(tmp_path / "s.mrb")
    folder = tmp_path / "set"
    folder.mkdir()
    if os.geteuid() == 0:  # whom no permission stops: say what the system would say to others

        def refuse(*args, **named):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(adding.tempfile, "mkdtemp", refuse)
    else:
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(OutputError, match="cannot be written: Permission denied"):
        add(TrainingSet(folder), [path])
    folder.chmod(stat.S_IRWXU)
    assert tree(folder) == []


def test_what_a_killed_process_left_is_tidied_up(tmp_path):
    folder = tmp_path / "set"
    old, new = folder / ".adding-old", folder / ".adding-new"
    for left in (old, new):
        left.mkdir(parents=True)
    os.utime(old, (0, 0))
    add(TrainingSet(folder), scenes(tmp_path, 1))
    assert not old.exists() and new.exists()  # the newer one may be another process at work


def test_a_manifest_that_is_none(tmp_path):
    (tmp_path / "dataset.json").write_text("{", encoding="utf-8")
    with pytest.raises(DatasetError, match="cannot be read"):
        TrainingSet(tmp_path)
    (tmp_path / "dataset.json").write_text('{"training": {}}', encoding="utf-8")
    with pytest.raises(DatasetError, match="is not a dataset file"):
        TrainingSet(tmp_path)


@pytest.mark.parametrize(
    "odd",
    [{"annotated": [{}]}, {"annotated": "L4"}, {"annotated": [None]}, {"keypoints": [1]}, {"notes": 5}, {"label": 5},
     {"spacing_mm": ["a"]}, {"spacing_mm": 4}, {"size": {}}, {"ranking": [1]}, {"image": None}, {"image": ["a"]}],
    ids=str,
)  # fmt: skip
def test_entries_of_an_odd_form_are_said(tmp_path, odd):
    entry = {"image": "a.nii.gz", "label": "b.nii.gz", "annotated": ["L4"], **odd}
    (tmp_path / "dataset.json").write_text(json.dumps({"training": ["a.nii.gz", entry]}))
    with pytest.raises(DatasetError, match=f"entry 2 of training in .*dataset.json.*|“{next(iter(odd))}”"):
        TrainingSet(tmp_path)


@pytest.mark.parametrize("own", [["tumor"], {"tumor": "a"}, {"tumor": None}, 5])
def test_structures_of_the_readers_own_of_an_odd_form_are_said(tmp_path, own):
    (tmp_path / "dataset.json").write_text(json.dumps({"custom": own}))
    with pytest.raises(DatasetError, match="“custom”"):
        TrainingSet(tmp_path)


def test_a_label_value_that_is_no_number_is_said(tmp_path):
    for value in ("1e999", "{}", '"x"', "null"):
        (tmp_path / "dataset.json").write_text(f'{{"labels": {{"L5": {value}}}, "training": []}}')
        with pytest.raises(DatasetError, match="“labels”"):
            read_manifest(tmp_path / "dataset.json")


def test_rows_removal_and_splits(tmp_path):
    target = TrainingSet(tmp_path / "set")
    log = json.dumps([{"what": "shift"}])
    add(target, scenes(tmp_path, 4, attributes={"SpineSegAI.CorrectionLog": log}), validation_share=0.25)
    rows = {row.name: row for row in target.rows()}
    assert sorted(rows) == [f"case{n}_T2" for n in range(4)]
    row = rows["case0_T2"]
    assert (row.structures, row.spacing, row.warnings) == (
        "L4–L5, L4/L5",
        (1.5, 1.5, 4.0),
        [BODIES, "Corrected by hand."],
    )
    moved = target.set_split([row.key], "validation")
    assert row.key == "images/case0_T2.nii.gz" and set(moved) <= {row.key}
    assert {r.name: r.split for r in TrainingSet(tmp_path / "set").rows()}["case0_T2"] == "validation"
    target.remove(["images/case1_T2.nii.gz"])
    assert "case1_T2" not in {r.name for r in target.rows()}
    assert not (tmp_path / "set" / "images" / "case1_T2.nii.gz").exists()
    (tmp_path / "set" / "labels" / "case2_T2.nii.gz").unlink()
    assert "is missing" in next(r for r in target.rows() if r.name == "case2_T2").warnings[0]
    with pytest.raises(DatasetError, match="“held-out” is not a split"):
        target.set_split([row.key], "held-out")


def test_files_that_are_not_the_training_sets_own_stay(tmp_path):
    image = tmp_path / "elsewhere.nii.gz"
    sitk.WriteImage(volume_image(), str(image))
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps({"training": [{"image": "../elsewhere.nii.gz"}]}), encoding="utf-8")
    TrainingSet(folder).remove(["../elsewhere.nii.gz"])
    assert image.exists()


def test_words_for_structures():
    names = ["T12", "L1", "L2", "L4", "L5", "S1", "L1/L2", "L4/L5", "canal", "custom:a thing"]
    assert structures_in_words(names) == "T12–L2, L4–S1, 2 discs, canal, a thing"
    assert structures_in_words([]) == ""


def test_a_structure_of_the_readers_own_is_learnt_and_found_again(tmp_path, capsys):
    """From a scene with a tumor to a checkpoint that draws it, by its name."""
    from SpineSegAILib.checkpoints import read_header
    from SpineSegAILib.inference import Predictor
    from SpineSegAILib.results import read_segmentation

    image = volume_image()
    values = sitk.GetArrayFromImage(image) // 8
    values[box(slice(5, 14))] += 60
    values[box(slice(18, 27))] += 60
    values[box(slice(7, 12), columns=slice(10, 18))] = 190  # easily told apart
    bright = sitk.GetImageFromArray(values)
    bright.CopyInformation(image)
    paths = []
    for n in range(2):
        scene = Scene()
        volume = scene.volume(image=bright + n)
        scene.segmentation(
            {"L4": box(slice(5, 14)), "L5": box(slice(18, 27)), "lesion": box(slice(7, 12), columns=slice(10, 18))},
            volume,
        )
        paths.append(str(scene.write(tmp_path / f"c{n}.mrb")))
    data, run = tmp_path / "set", tmp_path / "run"
    imported = [
        "import-scenes",
        *paths,
        "--output",
        str(data),
        "--map",
        "lesion=custom:bright lesion",
        "--extent",
        "body",
    ]
    assert main([*imported, "--validation", "0.5"]) == 0
    command = ["train", str(data / "dataset.json"), "--output", str(run), "--quiet", "--device", "cpu"]
    for setting in ("optimization.mixed_precision=no", "optimization.batch=2", "optimization.workers=0",
                    "optimization.learning_rate=0.01", "data.patch=[32,32]", "preprocessing.pixel_mm=1.5"):  # fmt: skip
        command += ["--set", setting]
    assert main([*command, "--method", "unet", "--preset", "tiny", "--steps", "60"]) == 0
    info = read_header(run / "last.safetensors")
    own = structure("bright lesion")
    assert own.id in info.scheme.ids and info.metadata["method"]["scheme"].endswith(f"+bright lesion={own.id}")
    assert own.id not in info.unvalidated
    sitk.WriteImage(bright, str(tmp_path / "new.nii.gz"))
    checkpoint = str(run / "last.safetensors")
    output = tmp_path / "new.seg.nrrd"
    assert main(["segment", str(tmp_path / "new.nii.gz"), "--checkpoint", checkpoint, "--output", str(output),
                 "--structures", "bright lesion", "--device", "cpu", "--quiet"]) == 0  # fmt: skip
    found = read_segmentation(output)
    assert found.present == [own.id] and found.name_of(own.id) == "bright lesion"
    truth = box(slice(7, 12), columns=slice(10, 18))
    drawn = sitk.GetArrayFromImage(found.labels) > 0
    assert 2 * (drawn & truth).sum() / (drawn.sum() + truth.sum()) > 0.6
    assert Predictor(info, "cpu").scheme.ids == info.scheme.ids
    capsys.readouterr()
    assert main([*command[:3], str(tmp_path / "other"), "--quiet", "--device", "cpu", "--steps", "0"]) == 2
    assert "bright lesion is not trained, since resenc-unet" in capsys.readouterr().err


# --- at the shell ----------------------------------------------------------------------------------------------------


def test_listing_writes_nothing_and_names_what_is_not_known(tmp_path, capsys):
    scene = lumbar()
    scene.segmentation({"my tumour": box(slice(8, 10))}, "vtkMRMLScalarVolumeNode1", name="B", number=2)
    (tmp_path / "in").mkdir()
    scene.write(tmp_path / "in" / "s.mrb")
    output = tmp_path / "set"
    assert main(["import-scenes", str(tmp_path / "in"), "--output", str(output), "--list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["unplaced"] == ["my tumour"] and found["cases"][0]["annotated"] == ["L4", "L4/L5", "L5"]
    assert main(["import-scenes", str(tmp_path / "in"), "--output", str(output), "--list"]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[1].split() == ["my", "tumour", "?", "not", "understood", "1"]
    assert not output.exists()


def test_importing_at_the_shell(tmp_path, capsys):
    paths = [str(p) for p in scenes(tmp_path, 2)]
    output = tmp_path / "set"
    command = ["import-scenes", *paths, "--output", str(output), "--map", "L4-L5 disc=ignore", "--quiet"]
    assert main([*command, "--validation", "0", "--progress-lines", "--extent", "body"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert lines[-1] == {"progress": 1.0, "message": "Done"}
    assert [c.annotated for c in read_manifest(output / "dataset.json").cases("training")] == [(23, 24)] * 2
    assert main([*command[:-3], "--map", "L4=L9"]) == 2
    assert "“L9” is not a structure" in capsys.readouterr().err
    assert main(["import-scenes", str(tmp_path / "gone.mrb"), "--output", str(output), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == "DatasetError"
