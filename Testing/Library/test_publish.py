"""From a trained checkpoint to one that can be handed on: calibrated, evaluated, with a card."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from tiny_data import write_tiny_dataset

from SpineSegAILib.anatomy import CANAL_ID, KINDS, STRUCTURES, scheme, structure
from SpineSegAILib.checkpoints import load_tensors, read_header, save_checkpoint
from SpineSegAILib.cli import main
from SpineSegAILib.datasets.manifest import read_manifest
from SpineSegAILib.errors import ConfigError, DatasetError, ImageError
from SpineSegAILib.evaluation import VARIANTS, calibrate
from SpineSegAILib.evaluation.calibrate import fit_calibration
from SpineSegAILib.evaluation.measurements import compare_measurements, measurement_summary
from SpineSegAILib.evaluation.publish import Publication, Row, experimental, publish
from SpineSegAILib.evidence import Evidence
from SpineSegAILib.imaging import Preprocessing
from SpineSegAILib.imaging.geometry import like
from SpineSegAILib.inference import Predictor
from SpineSegAILib.inference.calibration import Calibration
from SpineSegAILib.methods.catalog import build_method, make_config
from SpineSegAILib.phantoms.spine import PhantomSpec, make_phantom
from SpineSegAILib.results import Segmentation

L3, L4 = structure("L3").id, structure("L4").id


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_tiny_dataset(tmp_path_factory.mktemp("data"), training=1)


def checkpoint(path, cases=()):
    """An untrained network that says what it was trained on."""
    config = make_config("resenc-unet", "tiny")
    metadata = {
        "title": "Tiny", "method": config.model_dump(mode="json"), "patch": [64, 64],
        "preprocessing": Preprocessing(pixel_mm=3.0).model_dump(mode="json"), "unvalidated": ["canal"],
        "training": {"cases": list(cases), "phantoms": 3, "steps": 7, "hours": 0.5, "seed": 1},
    }  # fmt: skip
    save_checkpoint(path, build_method(config).state_dict(), metadata)
    return read_header(path)


def test_the_card_says_what_was_measured_and_the_header_holds_it(manifest, tmp_path):
    what = Publication(
        "shown", [manifest], "validation", "spinesegai train …", "## What it is for\n\nNothing.\n",
        rows=[Row("one slice at a time", {"batch": "1"})], more=["## Else\n"], shown_dataset="DATA/dataset.json",
    )  # fmt: skip
    weights, card, results = publish(checkpoint(tmp_path / "a.safetensors"), what, tmp_path / "out", device="cpu")
    assert (weights.name, card.name, results.name) == ("shown.safetensors", "shown.md", "shown-results.md")
    info = read_header(weights)
    text = card.read_text(encoding="utf-8")
    command = "spinesegai evaluate DATA/dataset.json --split validation --checkpoint shown --variants all"
    assert info.metadata["validation_command"].startswith(command) and command in text
    assert set(info.metadata["validation"]) == set(VARIANTS)
    assert list(info.metadata["mechanisms"]) == ["as shipped", "one slice at a time"]
    assert text.startswith("# Tiny\n") and "0 cases and 3 synthetic ones, 7 steps in 0.50 hours, seed 1" in text
    dice = info.metadata["validation"]["full"]["vertebrae"]["dice"]
    tables = results.read_text(encoding="utf-8")
    assert all(f"| **vertebrae** | 6 | {dice:.3f} |" in page for page in (text, tables))
    for part in ("## What it is for", "spinesegai train …", "`--option batch=1`", "canal", "(shown-results.md)"):
        assert part in text
    assert len(text.splitlines()) < 70 and "| L3 |" not in text
    for part in ("| L3 |", "## Else", "(shown.md)", command):
        assert part in tables


def test_a_checkpoint_that_does_not_say_its_training_is_published(manifest, tmp_path):
    info = checkpoint(tmp_path / "a.safetensors")
    info.metadata.pop("training")
    what = Publication("shown", [manifest], "validation", "some command", "")
    card = publish(info, what, tmp_path / "out", device="cpu")[1].read_text(encoding="utf-8")
    assert "does not say what it was trained on" in card


def test_all_results_can_lie_in_a_folder_of_their_own(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr("SpineSegAILib.evaluation.publish.VARIANTS", ("full",))
    what = Publication("shown", [manifest], "validation", "", "", tables=tmp_path / "docs/results")
    paths = publish(checkpoint(tmp_path / "a.safetensors"), what, tmp_path / "out", device="cpu")
    assert paths[2] == tmp_path / "docs/results/shown-results.md"
    assert "(../docs/results/shown-results.md)" in paths[1].read_text(encoding="utf-8")
    assert "(../../out/shown.md)" in paths[2].read_text(encoding="utf-8")


class Oracle:
    """Images that hold their own labels (`own_labels`), seen as they are but for L3's upper half."""

    method = SimpleNamespace(state_dict=dict)
    scheme = scheme("lumbar-mr")

    def segment(self, image, **_):
        values = np.floor(sitk.GetArrayFromImage(image)).astype(np.int16)
        rows = np.flatnonzero((values == L3).any((0, 2)))
        missing = values[:, : rows[len(rows) // 2]]
        missing[missing == L3] = 0
        return Segmentation(like(image, values), self.scheme, outline_quality={L3: 0.2, L4: 0.9})


def own_labels(folder, count, seed=0):
    """As `write_phantoms`; each image is its own label and noise below 1, so that it is not taken for a label map."""
    rng = np.random.default_rng(seed)
    phantom = make_phantom(PhantomSpec(top="L1", slices=9), rng)
    values = sitk.GetArrayFromImage(phantom.labels)
    image = like(phantom.labels, (values + rng.uniform(0.1, 0.9, values.shape)).astype(np.float32))
    entries = []
    for number in range(count):
        sitk.WriteImage(image, str(folder / f"{number}.nii.gz"))
        sitk.WriteImage(phantom.labels, str(folder / f"{number}_label.nii.gz"))
        names = [STRUCTURES[int(sid)].name for sid in np.unique(sitk.GetArrayViewFromImage(phantom.labels)) if sid]
        entries.append({"image": f"{number}.nii.gz", "label": f"{number}_label.nii.gz", "annotated": names})
    path = folder / "dataset.json"
    path.write_text(json.dumps({"name": "Further", "validation": entries}), encoding="utf-8")
    return path


def test_the_card_says_how_far_measurements_and_qualities_can_be_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr("SpineSegAILib.evaluation.publish.Predictor", lambda *_, **__: Oracle())
    monkeypatch.setattr("SpineSegAILib.evaluation.publish.VARIANTS", ("full",))
    monkeypatch.setattr("SpineSegAILib.evaluation.publish.write_phantoms", own_labels)
    dataset = own_labels(tmp_path, 1)
    what = Publication("shown", [dataset], "validation", "", "", phantoms=2)
    _, _, card = publish(checkpoint(tmp_path / "a.safetensors"), what, tmp_path / "out", device="cpu")
    text = card.read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    heights = {row[0]: row for row in rows if row[1:2] == ["vertebra: height (mm)"]}
    assert set(heights) == {"validation split", "2 synthetic spines"}
    assert [heights[name][2] for name in heights] == ["15", "30"]  # three heights of five vertebrae
    row = heights["validation split"]
    assert row[3] == "0 %" and -4.0 < float(row[4]) < -1.5  # L3 lacks half of its 27 mm
    assert 9.0 < float(row[7]) < 16.0
    assert "| validation split | lordosis L1–S1 (°) | 1 | 0 % | 0.0 | 0.0 | 0.0 | 0.0 |" in text
    quality = next(row for row in rows if row[0] == "validation split, full" and len(row) == 7)
    assert quality[1:] == ["2", "1", "0.9", "1", "1", "1.00"]


def test_what_a_segmentation_leaves_blank_is_counted():
    phantom = make_phantom(PhantomSpec(top="L3", slices=9), np.random.default_rng(0))
    values = sitk.GetArrayFromImage(phantom.labels)
    annotated = set(np.unique(values).tolist()) - {0, CANAL_ID}
    complete = compare_measurements(phantom.labels, Segmentation(phantom.labels, Oracle.scheme), annotated)
    assert all(pair.found == pytest.approx(pair.reference) for pair in complete)
    assert {"vertebra: slip", "disc: height", "vertebra: endplate angle"} <= {pair.line for pair in complete}
    assert not [pair for pair in complete if pair.line.startswith("canal")]  # which these readers did not label
    values[values == structure("L5").id] = 0
    part = compare_measurements(phantom.labels, Segmentation(like(phantom.labels, values), Oracle.scheme), annotated)
    assert {(p.structure, p.key) for p in part} == {(p.structure, p.key) for p in complete}
    lines = measurement_summary(part)
    assert lines["vertebra: slip"]["values"] == 3 and lines["vertebra: slip"]["blank"] == 2  # of L4 and L5
    assert lines["vertebra: height"]["blank"] == 3 and lines["vertebra: height"]["largest_error"] < 0.5


def test_cases_that_a_checkpoint_has_seen_do_not_make_its_card(manifest, tmp_path):
    info = checkpoint(tmp_path / "a.safetensors", ["case1_image"])
    with pytest.raises(ConfigError, match="were in the training data"):
        publish(info, Publication("b", [manifest], "validation", "", ""), tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["publish", "calibrate"])
def test_a_run_that_goes_on_meanwhile_does_not_change_what_is_written(manifest, tmp_path, monkeypatch, command):
    last = checkpoint(tmp_path / "last.safetensors")
    measured = load_tensors(last)

    def goes_on(*_, **__):
        save_checkpoint(last.path, {name: value + 1 for name, value in measured.items()}, last.metadata)

    def fails(*_, **__):
        goes_on()
        raise ImageError("Not today.", "")

    monkeypatch.setattr(Predictor, "segment", fails)
    monkeypatch.setattr("SpineSegAILib.evaluation.fit_quality.fit_quality", goes_on)
    words = [command, str(last.path), str(manifest), "--device", "cpu", "--quiet", "--output"]
    if command == "publish":
        monkeypatch.setattr("SpineSegAILib.evaluation.publish.VARIANTS", ("full",))
        assert main([*words, str(tmp_path / "out"), "--name", "new"]) == 0
    else:
        assert main([*words, str(tmp_path / "out/new.safetensors"), "--keep-edges"]) == 0
    written = load_tensors(read_header(tmp_path / "out/new.safetensors"))
    assert all(torch.equal(written[name], value) for name, value in measured.items())


def test_the_calibration_finds_the_edges_that_readers_drew(manifest, tmp_path, monkeypatch):
    """A network whose vertebrae are one voxel too large all around gets the log-odds that take it away."""
    predictor = Predictor(checkpoint(tmp_path / "a.safetensors"), device="cpu")
    cases = read_manifest(manifest).cases("validation")

    def too_large(method, volume, device, **_):
        label = preprocessed[volume.array.shape].label
        kinds = np.zeros((len(KINDS), *label.shape), np.float32)
        grown = label > 0
        for axis, step in ((1, 1), (1, -1), (2, 1), (2, -1)):
            grown |= np.roll(label > 0, step, axis)
        kinds[1] = np.where(label > 0, 0.95, np.where(grown, 0.6, 0.0))
        kinds[0] = 1 - kinds[1]
        ranks = np.select([label == i for i in range(19, 25)], [5.0, 4.0, 3.0, 2.0, 1.0, 0.0], 2.5).astype(np.float32)
        return Evidence(volume.spacing, scheme("lumbar-mr"), kinds=kinds, rank=ranks)

    preprocessed = {case.volume.array.shape: case for case in calibrate.load_labelled(cases, predictor.preprocessing)}
    monkeypatch.setattr(calibrate, "predict_volume", too_large)
    lines = []
    found = fit_calibration(predictor, cases, report=lines.append)
    assert found.offsets["vertebra"] > np.log(0.6 / 0.4)
    assert lines[0].startswith("without calibration") and len(lines) > len(calibrate._COARSE)
    monkeypatch.setattr(calibrate, "structures_found", lambda evidence: np.zeros(evidence.kinds.shape[1:], np.int16))
    assert fit_calibration(predictor, cases) == Calibration()  # nothing helps: nothing is changed
    with pytest.raises(DatasetError, match="No case has a label"):
        fit_calibration(predictor, [])
    monkeypatch.setattr(calibrate, "score_on_grid", lambda case, found, scheme: SimpleNamespace(structures=[]))
    with pytest.raises(DatasetError, match="Nothing that is annotated in these cases is of lumbar-mr"):
        fit_calibration(predictor, cases)


def test_an_interrupted_publication_leaves_nothing(manifest, tmp_path, monkeypatch):
    info = checkpoint(tmp_path / "a.safetensors")
    monkeypatch.setattr("SpineSegAILib.evaluation.publish.model_card", lambda *_: sitk.ReadImage("nowhere"))
    with pytest.raises(RuntimeError):
        publish(info, Publication("b", [manifest], "validation", "", ""), tmp_path / "out", device="cpu")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_unseen_cases_do_not_show_to_be_good_is_experimental(tmp_path):
    def row(scored, dice):
        return {"scored": scored, "dice": dice}

    info = checkpoint(tmp_path / "a.safetensors")
    assert experimental(info, {"groups": {}, "structures": {}}) == [STRUCTURES[i].name for i in info.unvalidated]
    found = {"L1": row(6, 0.95), "L2": row(2, 0.95), "L3": row(6, 0.79), "L1/L2": row(3, 0.80), "L2/L3": row(0, None)}
    assert experimental(info, {"groups": {}, "structures": found}) == ["L2", "L3", "L2/L3", "canal"]
    whole = replace(
        info, metadata={**info.metadata, "method": {**info.metadata["method"], "scheme": "lumbar-mr-posterior"}}
    )
    together = {"groups": {"posterior elements": row(6, 0.7)}, "structures": {"L1": row(6, 0.95)}}
    names = experimental(whole, together)
    assert "L4 posterior elements" in names and "L1" not in names and "S1" not in names
    together["groups"]["posterior elements"] = row(6, 0.81)
    assert "L4 posterior elements" not in experimental(whole, together)
    together["structures"]["L4"] = row(6, 0.5)
    assert "L4 posterior elements" in experimental(whole, together)
