"""From a trained checkpoint to one that can be handed on: calibrated, evaluated, with a card."""

import numpy as np
import pytest
import SimpleITK as sitk
from tiny_data import write_tiny_dataset

from SpineSegAILib.anatomy import KINDS, scheme
from SpineSegAILib.checkpoints import read_header, save_checkpoint
from SpineSegAILib.datasets.manifest import read_manifest
from SpineSegAILib.errors import ConfigError, DatasetError
from SpineSegAILib.evaluation import VARIANTS, calibrate
from SpineSegAILib.evaluation.calibrate import fit_calibration
from SpineSegAILib.evaluation.publish import Publication, Row, publish
from SpineSegAILib.evidence import Evidence
from SpineSegAILib.imaging import Preprocessing
from SpineSegAILib.inference import Predictor
from SpineSegAILib.inference.calibration import Calibration
from SpineSegAILib.methods.catalog import build_method, make_config


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
        "shown", manifest, "validation", "spinesegai train …", "## What it is for\n\nNothing.\n",
        rows=[Row("one slice at a time", {"batch": "1"})], more=["## Else\n"], shown_dataset="DATA/dataset.json",
    )  # fmt: skip
    weights, card = publish(checkpoint(tmp_path / "a.safetensors"), what, tmp_path / "out", device="cpu")
    assert (weights.name, card.name) == ("shown.safetensors", "shown.md")
    info = read_header(weights)
    text = card.read_text(encoding="utf-8")
    command = "spinesegai evaluate DATA/dataset.json --split validation --checkpoint shown --variants all"
    assert info.metadata["validation_command"].startswith(command) and command in text
    assert set(info.metadata["validation"]) == set(VARIANTS)
    assert list(info.metadata["mechanisms"]) == ["as shipped", "one slice at a time"]
    assert text.startswith("# Tiny\n") and "0 cases and 3 phantoms, 7 steps in 0.50 hours, seed 1" in text
    dice = info.metadata["validation"]["full"]["vertebrae"]["dice"]
    assert f"| **vertebrae** | 6 | {dice:.3f} |" in text
    for part in ("## What it is for", "spinesegai train …", "`--option batch=1`", "## Else", "canal"):
        assert part in text


def test_cases_that_a_checkpoint_has_seen_do_not_make_its_card(manifest, tmp_path):
    info = checkpoint(tmp_path / "a.safetensors", ["case1_image"])
    with pytest.raises(ConfigError, match="were in the method's training"):
        publish(info, Publication("b", manifest, "validation", "", ""), tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


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


def test_an_interrupted_publication_leaves_nothing(manifest, tmp_path, monkeypatch):
    info = checkpoint(tmp_path / "a.safetensors")
    monkeypatch.setattr("SpineSegAILib.evaluation.publish.model_card", lambda *_: sitk.ReadImage("nowhere"))
    with pytest.raises(RuntimeError):
        publish(info, Publication("b", manifest, "validation", "", ""), tmp_path / "out", device="cpu")
    assert list((tmp_path / "out").iterdir()) == []
