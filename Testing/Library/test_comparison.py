"""Comparisons: the shipped configurations on miniature fakes of their data; going on after a kill; the tables."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.image import imsave
from tiny_data import write_films, write_tiny_dataset

from SpineSegAILib.anatomy import STRUCTURES, VALUE_MAPS, VERTEBRA_ID, Kind
from SpineSegAILib.checkpoints import load_tensors, read_header, save_checkpoint
from SpineSegAILib.cli import main
from SpineSegAILib.comparison.config import ComparisonConfig, read_comparison, shipped_configs
from SpineSegAILib.comparison.papers import PAPERS, figure
from SpineSegAILib.comparison.parts import Work, digest, training_of
from SpineSegAILib.comparison.run import _scoring, describe, plan, run_comparison
from SpineSegAILib.comparison.tables import markdown, short_tables, tabulate, write_tables
from SpineSegAILib.datasets.manifest import read_manifest
from SpineSegAILib.errors import ConfigError, DatasetError, MissingPackageError, TrainingError
from SpineSegAILib.phantoms.spine import PhantomSpec, make_phantom
from SpineSegAILib.phantoms.vessels import VesselSpec, make_vessels
from SpineSegAILib.training.run import RunDirectory
from SpineSegAILib.training.trainer import run_training

tomllib = pytest.importorskip("tomllib")  # Python 3.11


# --- miniature fakes of the data ---


def spines(count: int):
    """(image, label with structure ids) of small phantoms."""
    for number in range(count):
        spec = PhantomSpec(top="L1", bottom="S1", slices=3, slice_mm=8.0, pixel_mm=4.0)
        phantom = make_phantom(spec, np.random.default_rng(number))
        yield phantom.image, phantom.labels


def coded(label: sitk.Image, ids: dict[int, int]) -> sitk.Image:
    """The label image with other values; what has none is background."""
    array = sitk.GetArrayFromImage(label)
    values = np.zeros_like(array)
    for sid, value in ids.items():
        values[array == sid] = value
    result = sitk.GetImageFromArray(values)
    result.CopyInformation(label)
    return result


def put(image: sitk.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def values_of(name: str) -> dict[int, int]:
    """Structure id → the first value that a public set has for it."""
    found: dict[int, int] = {}
    for value, sid in VALUE_MAPS[name].items():
        found.setdefault(sid, value)
    return found


def spider(folder: Path) -> Path:
    lines = ["new_file_name,subset"]
    for n, (image, label) in enumerate(spines(3), start=1):
        put(image, folder / f"raw/images/{n}_t2.mha")
        put(coded(label, values_of("spider")), folder / f"raw/masks/{n}_t2.mha")
        lines.append(f"{n}_t2,{'training' if n < 3 else 'validation'}")
    (folder / "raw/overview.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return imported("spider", folder)


def mrspineseg(folder: Path) -> Path:
    for n, (image, label) in enumerate(spines(3), start=1):
        put(image, folder / f"raw/MR/Case{n}.nii.gz")
        put(coded(label, values_of("mrspineseg")), folder / f"raw/Mask/mask_case{n}.nii.gz")
    return imported("mrspineseg", folder, "--validation", "0.3")


def verse(folder: Path) -> Path:
    vertebrae = {sid: sid for sid, s in STRUCTURES.items() if s.is_vertebral and 8 <= sid <= 25}
    for n, part in enumerate(("training", "training", "test")):
        image, label = list(spines(n + 1))[n]
        sub = folder / f"raw/dataset-verse20{part}"
        put(image, sub / f"rawdata/sub-{n}/sub-{n}_ct.nii.gz")
        put(coded(label, vertebrae), sub / f"derivatives/sub-{n}/sub-{n}_seg-vert_msk.nii.gz")
    return imported("verse", folder)


def imported(kind: str, folder: Path, *more: str) -> Path:
    words = ["import-dataset", "--format", kind, str(folder / "raw"), "--output", str(folder / "set"), "--quiet", *more]
    assert main(words) == 0
    return folder / "set/dataset.json"


def listed(folder: Path, pairs, names: list[str], **more) -> Path:
    """A manifest of one's own: two training cases and one to be scored."""
    lists = {"training": [], "test": []}
    for n, (image, label) in enumerate(pairs):  # with more than three, all are for training, to be dealt to folds
        put(image, folder / f"{n}.nii.gz")
        put(label, folder / f"{n}_label.nii.gz")
        entry = {"image": f"{n}.nii.gz", "label": f"{n}_label.nii.gz", "annotated": names}
        lists["test" if n == 2 and len(pairs) == 3 else "training"].append(entry)
    path = folder / "dataset.json"
    path.write_text(json.dumps({"name": "Own", **more, **lists}), encoding="utf-8")
    return path


def lumbar(folder: Path) -> Path:
    names = ["L1", "L2", "L3", "L4", "L5", "L1/L2", "L2/L3", "L3/L4", "L4/L5", "L5/S1"]
    ids = {sid: sid for sid, s in STRUCTURES.items() if s.name in names}
    path = listed(folder, [(i, coded(x, ids)) for i, x in spines(5)], names, modality={"0": "MR"}, extent="body")
    table = json.loads(path.read_text(encoding="utf-8"))
    weak = {"image": "weak.nii.gz", "keypoints": {"L4": [0.0, 0.0, 0.0], "L5": [0.0, 0.0, -30.0]}}
    (folder / "weak.nii.gz").write_bytes((folder / "0.nii.gz").read_bytes())
    table["training"].append(weak)
    path.write_text(json.dumps(table), encoding="utf-8")
    return path


def binary(folder: Path) -> Path:
    vertebra = {sid: VERTEBRA_ID for sid, s in STRUCTURES.items() if s.is_vertebral}
    return listed(folder, [(i, coded(x, vertebra)) for i, x in spines(3)], ["vertebra"], extent="body")


def parse(folder: Path) -> Path:
    for n in range(3):
        phantom = make_vessels(VesselSpec(), np.random.default_rng(n))
        small = (slice(None, None, 3),) * 3  # a hundred windows less
        put(phantom.image[small], folder / f"raw/PA{n}/image/PA{n}.nii.gz")
        arteries = coded(phantom.labels[small], {i: 1 for i, s in STRUCTURES.items() if s.kind is Kind.ARTERY})
        put(arteries, folder / f"raw/PA{n}/label/PA{n}.nii.gz")
    return imported("parse", folder)


def films(folder: Path) -> Path:
    write_films(folder / "raw")
    return imported("aasce", folder, "--validation", "0.34")


FAKES = {
    "atm-net-mrspineseg": mrspineseg,
    "atm-net-spider": spider,
    "films": films,
    "la-caf": parse,
    "scar-net": lumbar,
    "verdiff-net-mr": binary,
    "verdiff-net-verse": verse,
}


ALREADY_TRIED = {"atm-net-spider", "verdiff-net-verse"}
"""Their networks are those of another comparison: two of them tell whether these data are read and tabulated."""


def test_every_shipped_configuration_has_a_fake():
    screenings = {name for name in shipped_configs() if name.endswith("-parts")} | {"all-methods"}  # see test_folds
    assert set(shipped_configs()) - screenings == set(FAKES)


LEFT_OUT = ("nnU-Net v2", "SAM", *(f"λ = {weight}" for weight in range(50, 101, 10)))
"""Needs what tests have not, or is another row's network with another number; see test_nnunet and test_sam."""


def blank(canvas: object, place: object, **more: object) -> None:
    """In place of a drawn picture, which takes a third of a comparison's time here and is tested elsewhere."""
    imsave(place, np.zeros((1, 1)), format="png")


@pytest.mark.parametrize("name", FAKES)
def test_a_papers_comparison_works_from_end_to_end(name, tmp_path, capsys, monkeypatch):
    if name not in ALREADY_TRIED:  # of two, all pictures are drawn
        monkeypatch.setattr("matplotlib.backends.backend_agg.FigureCanvasAgg.print_png", blank)
    manifest = FAKES[name](tmp_path)
    config = read_comparison(name, dataset=manifest)
    out = tmp_path / "out"
    words = ["compare", name, str(out), "--dataset", str(manifest), "--rehearse", "--device", "cpu", "--quiet"]
    every = [entry.name for entry in config.entries if entry.shown]
    shown = [row for row in every if row not in LEFT_OUT and (row in every[:4] or not row.endswith(", arg max"))]
    if name in ALREADY_TRIED:
        shown = [row for row in shown if row in every[:4]]
    unwanted = [row for row in every if row not in shown]
    words += [word for row in unwanted for word in ("--without", row)]
    assert main(words) == 0, capsys.readouterr().err
    table = json.loads((out / "table.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in table["variants"]["full"]["rows"]] == shown
    assert table["missing"] == [entry for entry in every if entry not in shown]
    assert all(row["scored"] > 0 for row in table["variants"]["full"]["rows"])
    # Every row of the paper is there, and every entry stands in one: beside its figures, or alone.
    assert len(table["papers"]) == len(config.papers)
    for beside, paper in zip(table["papers"], map(PAPERS.__getitem__, config.papers), strict=True):
        assert set(paper.rows) <= {row["paper"] for row in beside["rows"]}
        for row in beside["rows"]:
            assert row["figures"] == list(paper.rows.get(row["paper"], [None] * len(paper.columns)))
        assert sorted(row["entry"] for row in beside["rows"] if row["entry"]) == sorted(shown)
    text = (out / "table.md").read_text(encoding="utf-8")
    assert "These results mean nothing" in text and ("was trained for two steps" in text or not config.papers)
    assert all(PAPERS[name].citation in text for name in config.papers)
    page = (out / "table.html").read_text(encoding="utf-8")
    assert all((out / link).exists() for row in table["variants"]["full"]["rows"] for link in row["pages"])
    assert "<script" not in page
    assert len(list(csv.reader((out / "table.csv").open(encoding="utf-8")))) == len(shown) + 1


# --- the machinery ---


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_tiny_dataset(tmp_path_factory.mktemp("data"), training=2)


SMALL = {"data.patch": [64, 64], "preprocessing.pixel_mm": 4.0, "optimization.batch": 2, "optimization.workers": 0}


def config_of(manifest: Path, **more) -> ComparisonConfig:
    entries = [
        {"name": "U-Net", "method": "unet", "preset": "tiny"},
        {"name": "Two", "method": "resenc-unet", "preset": "tiny"},
    ]
    table = {"title": "T", "dataset": str(manifest), "split": "validation", "budget": {"steps": 2}, "set": SMALL}
    return ComparisonConfig.model_validate({**table, "entries": entries, **more})


@pytest.mark.parametrize(
    "odd",
    [{"set": 5}, {"set": "a"}, {"entries": True}, {"entries": [5]}, {"entries": None}, {"papers": 5}, {"papers": [{}]},
     {"start": {"set": 1}}, {"entries": [{"name": "a", "method": {}}]}, {"entries": [{"name": "a", "method": "no"}]},
     {"entries": [{"name": "a", "method": "unet", "set": "x"}]},
     {"entries": [{"name": "a", "method": "unet", "preset": []}]},
     {"entries": [{"name": "a", "method": "unet", "options": 3}]},
     {"entries": [{"name": "a", "method": "unet", "set": {"method.method_id": 1, "method.preset": 2}}]}],
    ids=str,
)  # fmt: skip
def test_configurations_of_an_odd_form_are_refused_in_words(manifest, tmp_path, odd):
    table = {"title": "T", "dataset": str(manifest), "argmax": True, "budget": {"steps": 2},
             "entries": [{"name": "U-Net", "method": "unet", "preset": "tiny"}], **odd}  # fmt: skip
    (tmp_path / "c.json").write_text(json.dumps(table))
    with pytest.raises(ConfigError):
        read_comparison(tmp_path / "c.json")


def test_what_is_done_is_not_done_again_and_a_killed_one_goes_on(manifest, tmp_path, monkeypatch):
    config = config_of(manifest, seeds=[1, 2])
    trained = []

    def killed_at_third(request):
        trained.append((request.config.method["method"], request.config.seed, request.resume))
        if len(trained) == 3:
            raise KeyboardInterrupt
        run_training(request)

    with pytest.raises(KeyboardInterrupt):
        run_comparison(config, Work(tmp_path, "cpu", train=killed_at_third))
    assert [t[:2] for t in trained] == [("unet", 1), ("resenc-unet", 1), ("unet", 2)]
    found = run_comparison(config, Work(tmp_path, "cpu", train=killed_at_third))
    assert [t[:2] for t in trained[3:]] == [("unet", 2), ("resenc-unet", 2)]
    assert [(d["name"], d["seed"]) for d in found] == [("U-Net", 1), ("U-Net", 2), ("Two", 1), ("Two", 2)]

    def never(request):
        pytest.fail("trained again")

    assert run_comparison(config, Work(tmp_path, "cpu", train=never)) == found
    with pytest.raises(pytest.fail.Exception):  # another budget is another experiment
        run_comparison(config_of(manifest, budget={"steps": 3}), Work(tmp_path, "cpu", train=never))

    table = tabulate(config, describe(config, Work(tmp_path, "cpu")), found)
    row = table["variants"]["full"]["rows"][0]
    macro = [100 * d["report"]["variants"]["full"]["overall"]["macro"]["dice"] for d in found[:2]]
    assert row["figures"]["Dice"] == pytest.approx(np.mean(macro)) and row["seeds"] == [1, 2]
    assert row["spread"]["Dice"] == pytest.approx(np.std(macro, ddof=1))
    (dice,) = [d for d in table["variants"]["full"]["differences"] if d["metric"] == "dice"]
    assert (dice["name"], dice["base"], dice["pairs"]) == ("Two", "U-Net", 1)
    assert {p.suffix for p in write_tables(table, tmp_path)} == {".json", ".csv", ".md", ".html"}
    assert "| U-Net |" in markdown(table)
    ((variant, (header, first, second)),) = short_tables(table)
    assert variant == "full" and header[:2] == ["", "Dice"] and [first[0], second[0]] == ["U-Net", "Two"]
    assert first[1].startswith(f"{row['figures']['Dice']:.2f}") and len(header) == len(first) <= 8, "for a terminal"


def test_an_entry_that_fails_stops_none_of_the_others(manifest, tmp_path):
    entries = [
        {"name": "Bad", "method": "unet", "preset": "tiny"},
        {"name": "Further", "method": "unet", "preset": "tiny", "start_from": "entry:Bad"},
        {"name": "Good", "method": "resenc-unet", "preset": "tiny"},
    ]
    config = config_of(manifest, entries=entries)

    def train(request):
        if request.config.method["method"] == "unet":
            raise TrainingError("The loss is no number.")
        run_training(request)

    work = Work(tmp_path, "cpu", train=train)
    found = run_comparison(config, work)
    table = tabulate(config, describe(config, work, found), found)
    assert [d["name"] for d in found] == ["Good"] and table["missing"] == ["Bad", "Further"]
    bad, further = table["failed"].values()
    assert bad == "The loss is no number." and "“Bad”" in further and "The loss is no number" in markdown(table)
    work = Work(tmp_path, "cpu", only=["Bad"], train=train)
    none = run_comparison(config_of(manifest, entries=entries[:1]), work)
    assert none == [] and write_tables(tabulate(config, describe(config, work), none), tmp_path)


def test_checkpoints_are_taken_beside_what_is_trained(manifest, tiny_checkpoint, tmp_path):
    taken, info = tmp_path / "taken.safetensors", read_header(tiny_checkpoint)
    training = {"cases": ["case9_image"], "cases_before": ["case2_image"]}
    save_checkpoint(taken, load_tensors(info), {**info.metadata, "training": training})
    entries = [
        {"name": "Taken", "checkpoint": str(taken)},
        {"name": "Raw", "checkpoint": str(taken), "options": {"batch": 2}},
        {"name": "Further", "method": "resenc-unet", "preset": "tiny", "start_from": "entry:Taken"},
    ]
    config = config_of(manifest, entries=entries)
    found = run_comparison(config, Work(tmp_path / "out", "cpu", only=["Taken"]))
    assert [d["name"] for d in found] == ["Taken"] and found[0]["seed"] is None
    assert tabulate(config, describe(config, Work(tmp_path)), found)["missing"] == ["Raw", "Further"]
    started = []

    def train(request):
        started.append(request.config.start_from)
        return run_training(request)

    found = run_comparison(config, Work(tmp_path / "out", "cpu", train=train))
    assert started == [str(taken)]
    assert [d["seen"] for d in found] == [["case2_image"]] * 3  # the last one through where it started from


def test_a_second_stage_is_another_one_where_its_first_stage_is(manifest, tiny_checkpoint, tmp_path):
    def folders(**changes):
        def entry(name, start="", **more):
            return {"name": name, "method": "resenc-unet", "preset": "tiny", "start_from": start, **more}

        entries = [
            entry("A1", set={"optimization.learning_rate": 0.01}, shown=False),
            entry("A2", set={"optimization.learning_rate": changes.get("rate", 0.02)}, shown=False),
            entry("B", "entry:A1"),
            entry("C", "entry:A2"),
            entry("Again", "entry:A1"),
            entry("Outside", str(outside)),
        ]
        parts = plan(config_of(manifest, entries=entries, seeds=[1, 2]), Work(tmp_path / "out", "cpu"))
        return {part.entry.name: part.folder for part in parts if part.seed == 1}

    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(tiny_checkpoint.read_bytes())
    first = folders()
    assert len({first[name] for name in ("A1", "A2", "B", "C", "Outside")}) == 5 and first["Again"] == first["B"]
    changed = folders(rate=0.03)
    assert {name for name in first if first[name] != changed[name]} == {"A2", "C"}
    info = read_header(outside)
    save_checkpoint(outside, load_tensors(info), {**info.metadata, "title": "Another"})
    changed = folders()
    assert {name for name in first if first[name] != changed[name]} == {"Outside"}


def test_what_a_reader_should_know_of_a_row_is_said(manifest, tmp_path):
    def train(request):
        run_training(request)
        RunDirectory(request.output).best.unlink()

    config = config_of(manifest, split="training")
    found = run_comparison(config, Work(tmp_path, "cpu", only=["U-Net"], train=train))
    assert found[0]["seen"] == ["case0_image", "case1_image"]
    text = markdown(tabulate(config, describe(config, Work(tmp_path)), found))
    assert "U-Net was trained on 2 of the cases that are scored here." in text
    assert "the best weights of each run are scored" in text
    assert "Of U-Net, the last weights are scored, since a run has no best ones." in text


def test_equal_hours_mean_a_schedule_over_the_hours(manifest):
    config = config_of(manifest, budget={"hours": 2.0})
    training = training_of(config.entries[0], 35, config, manifest, False)
    assert training.optimization.hours == 2.0 and training.optimization.steps > 10**6
    half = config.entries[0].model_copy(update={"share": 0.5})
    assert training_of(half, 35, config, manifest, False).optimization.hours == 1.0


def test_the_scored_cases_never_choose_the_weights():
    assert config_of(Path("d"), split="validation").taken_weights == "last"
    assert config_of(Path("d"), split="test").taken_weights == "best"


@pytest.mark.parametrize(
    "change, words",
    [
        ({"baseline": "nobody"}, "no entry “nobody”"),
        ({"papers": ["atm-net/mars"]}, "no table “atm-net/mars”"),
        ({"entries": [{"name": "a", "method": "unet"}, {"name": "a", "method": "unet"}]}, "two entries are called “a”"),
        ({"entries": [{"name": "a", "method": "unet", "checkpoint": "b"}]}, "either a checkpoint or a method"),
        ({"entries": [{"name": "a", "method": "unet", "start_from": "entry:b"}]}, "starts from “b”"),
        ({"entries": [{"name": "a", "method": "unet", "paper": "X"}]}, "has a row “X”"),
        ({"variants": ["upside-down"]}, "upside-down"),
        ({"split": "validation", "weights": "best"}, "weights: .* chosen on “validation”"),
        ({"budgett": {}}, "budgett"),
    ],
)
def test_a_wrong_configuration_is_refused_with_the_reason(change, words, tmp_path):
    table = {"title": "T", "dataset": "d.json", "entries": [{"name": "a", "method": "unet"}], **change}
    path = tmp_path / "c.json"
    path.write_text(json.dumps(table), encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        read_comparison(path)


def test_mistakes_are_found_before_the_first_training(manifest, tmp_path):
    def never(request):
        pytest.fail("trained")

    wrong = [{"name": "a", "method": "unet", "preset": "tiny"}, {"name": "b", "method": "unet", "set": {"method.x": 1}}]
    with pytest.raises(ConfigError, match="x"):
        run_comparison(config_of(manifest, entries=wrong), Work(tmp_path, train=never))
    with pytest.raises(ConfigError, match="no entry “z”"):
        run_comparison(config_of(manifest), Work(tmp_path, only=["z"], train=never))
    with pytest.raises(DatasetError, match="no “test” cases"):
        run_comparison(config_of(manifest, split="test"), Work(tmp_path, train=never))
    with pytest.raises(ConfigError, match="gone does not exist"):
        run_comparison(config_of(manifest, resources={"text_bank": "gone"}), Work(tmp_path, train=never))
    assert not list(tmp_path.iterdir())


def test_what_an_entry_does_not_learn_from_is_no_part_of_it(manifest, tmp_path):
    (tmp_path / "bank").write_bytes(b"1")

    def folders(**more):
        entries = [
            {"name": "U-Net", "method": "unet", "preset": "tiny"},
            {"name": "ATM-Net", "method": "atm-net", "preset": "tiny"},
        ]
        return [part.folder for part in plan(config_of(manifest, entries=entries, **more), Work(tmp_path / "out"))]

    without, given = folders(), folders(resources={"text_bank": str(tmp_path / "bank")})
    (tmp_path / "bank").write_bytes(b"22")
    changed = folders(resources={"text_bank": str(tmp_path / "bank")})
    assert without[0] == given[0] == changed[0]
    assert len({without[1], given[1], changed[1]}) == 3


def test_a_corrected_label_makes_it_another_experiment(tmp_path):
    manifest = write_tiny_dataset(tmp_path / "data")
    config, work = config_of(manifest), Work(tmp_path / "out")

    def keys():
        return [(part.folder, digest(*_scoring(part, config, work))) for part in plan(config, work)]

    before = keys()
    assert keys() == before
    case = read_manifest(manifest).cases("validation")[0]
    label = sitk.ReadImage(str(case.label))
    sitk.WriteImage(label * 0, str(case.label))
    after = keys()
    assert all(was[0] != now[0] and was[1] != now[1] for was, now in zip(before, after, strict=True))


def test_a_file_is_read_once_for_all_entries(manifest, tmp_path, monkeypatch):
    (tmp_path / "bank").write_bytes(b"3")
    read, real = [], Path.open
    monkeypatch.setattr(Path, "open", lambda self, *mode, **how: read.append(self.name) or real(self, *mode, **how))
    entries = [{"name": f"{n}", "method": "atm-net", "preset": "tiny"} for n in range(3)]
    plan(config_of(manifest, entries=entries, resources={"text_bank": str(tmp_path / "bank")}), Work(tmp_path / "out"))
    assert read.count("bank") == 1


def test_a_comparison_that_cannot_start_leaves_no_folder(manifest, tmp_path, capsys):
    path = tmp_path / "c.json"
    path.write_text(config_of(manifest, split="test").model_dump_json(exclude_none=True), encoding="utf-8")
    assert main(["compare", str(path), str(tmp_path / "out")]) == 2 and "no “test” cases" in capsys.readouterr().err
    assert main(["compare", str(path), str(tmp_path / "out"), "--dataset", str(tmp_path / "gone.json")]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]
    capsys.readouterr()
    (tmp_path / "file").touch()
    path.write_text(config_of(manifest).model_dump_json(exclude_none=True), encoding="utf-8")
    assert main(["compare", str(path), str(tmp_path / "file" / "out")]) == 2
    assert "cannot be made" in capsys.readouterr().err


def test_the_shell_names_what_it_cannot_read(tmp_path, capsys, monkeypatch):
    assert main(["compare", "nowhere", str(tmp_path)]) == 2 and "atm-net-spider" in capsys.readouterr().err
    assert main(["compare", "all-methods", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "--dataset DATASET.json" in told and str(shipped_configs()["all-methods"]) in told
    (tmp_path / "c.toml").write_text("title =", encoding="utf-8")
    assert (
        main(["compare", str(tmp_path / "c.toml"), str(tmp_path)]) == 2 and "cannot be read" in capsys.readouterr().err
    )
    monkeypatch.setitem(__import__("sys").modules, "tomllib", None)
    with pytest.raises(MissingPackageError, match="JSON"):
        read_comparison("scar-net")


def test_paths_in_a_configuration_are_relative_to_it(tmp_path):
    table = {
        "title": "T",
        "dataset": "sub/d.json",
        "resources": {"text_bank": "b"},
        "entries": [
            {"name": "a", "method": "unet", "start_from": "w/start.safetensors"},
            {"name": "b", "checkpoint": "../own.safetensors"},
            {"name": "c", "checkpoint": "lumbar-mr-resenc"},
            {"name": "d", "method": "unet", "start_from": "entry:a"},
        ],
    }
    (tmp_path / "c.json").write_text(json.dumps(table), encoding="utf-8")
    config = read_comparison(tmp_path / "c.json")
    assert config.dataset == str(tmp_path / "sub/d.json") and config.resources == {"text_bank": str(tmp_path / "b")}
    start, taken, name, entry = ((e.start_from or e.checkpoint) for e in config.entries)
    assert start == str(tmp_path / "w/start.safetensors") and taken == str(tmp_path / "../own.safetensors")
    assert (name, entry) == ("lumbar-mr-resenc", "entry:a")


def test_every_column_of_the_papers_is_in_a_summary(manifest, tiny_checkpoint, tmp_path):
    entries = [{"name": "Taken", "checkpoint": str(tiny_checkpoint)}]
    (found,) = run_comparison(config_of(manifest, entries=entries), Work(tmp_path, "cpu"))
    summary = found["report"]["variants"]["full"]
    for table in PAPERS.values():
        for key in table.columns.values():
            place, metric = key.rsplit(".", 1)
            assert metric in summary["overall"]["macro"] and place.partition(":")[0] in (
                "macro",
                "overall",
                "structure",
            )
    assert figure(summary, "structure:L4.dice") == pytest.approx(100 * summary["structures"]["L4"]["dice"])
    assert figure(summary, "structure:L1/L2.dice") is None
