"""Which image next: the doubtful one, and files that cannot be used at the end."""

import csv
import json

import numpy as np
import pytest
import SimpleITK as sitk

from SpineSegAILib.cli import main
from SpineSegAILib.errors import ImageError
from SpineSegAILib.imaging import find_images
from SpineSegAILib.inference import Predictor, ranking
from SpineSegAILib.inference.ranking import Scores, rank, score
from SpineSegAILib.phantoms.spine import PhantomSpec, make_phantom


def phantom(seed):
    spec = PhantomSpec(top="T12", bottom="S1", slices=3, slice_mm=12.0, pixel_mm=1.5, contrast="t2")
    return make_phantom(spec, np.random.default_rng(seed)).image


def corrupted(image, seed=0):
    """The same with strong noise, and with a part of the column blurred away."""
    array = sitk.GetArrayFromImage(image).astype(np.float32)
    rng = np.random.default_rng(seed)
    array += rng.normal(0, 0.2 * array.max(), array.shape)
    axis = int(np.argmax(np.abs(np.reshape(image.GetDirection(), (3, 3))[2])))  # of the image: along the column
    at = [slice(None)] * 3
    size = array.shape[2 - axis]
    at[2 - axis] = slice(size // 3, size // 2)
    array[tuple(at)] = array.mean()
    result = sitk.GetImageFromArray(array)
    result.CopyInformation(image)
    return result


@pytest.fixture(scope="module")
def default():
    return Predictor(device="cpu")


def test_a_corrupted_phantom_comes_before_a_clean_one(tmp_path, default, capsys):
    clean = phantom(1)
    sitk.WriteImage(clean, str(tmp_path / "a_clean.nii.gz"))
    sitk.WriteImage(corrupted(clean), str(tmp_path / "b_corrupted.nii.gz"))
    (tmp_path / "c_damaged.nii.gz").write_bytes(b"x")
    steps = []
    found = rank(find_images([tmp_path]), default, progress=lambda f, m: steps.append(f))
    assert [s.path.name for s in found] == ["b_corrupted.nii.gz", "a_clean.nii.gz", "c_damaged.nii.gz"]
    worse, better, damaged = found
    assert worse.uncertainty > better.uncertainty + 0.05
    assert worse.entropy > better.entropy and worse.disagreement > better.disagreement
    assert all(0.0 <= v <= 1.0 for s in (worse, better) for v in (s.levels, s.entropy, s.disagreement))
    assert "L5" in better.sequence and better.margin is not None
    assert damaged.uncertainty is None and "cannot be read" in damaged.reason
    assert steps == sorted(steps) and steps[-1] == 1.0


def test_without_a_spine_there_is_the_greatest_doubt(default):
    noise = sitk.GetImageFromArray(np.random.default_rng(0).normal(100, 1, (8, 60, 60)).astype(np.float32))
    noise.SetSpacing((1.5, 1.5, 5.0))
    noise.SetDirection((0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0))
    found = score(noise, default)
    assert found.uncertainty > 0.5


def test_scores_are_the_same_every_time(tiny_checkpoint):
    predictor = Predictor(tiny_checkpoint, "cpu")
    assert score(phantom(2), predictor) == score(phantom(2), predictor)


def test_the_mean_is_of_what_is_known():
    assert Scores(path=None, levels=0.5, entropy=0.1).uncertainty == pytest.approx(0.3)
    assert Scores(path=None).uncertainty is None and Scores(path=None).figures() == ("", "", "", "")


def test_at_the_shell(tmp_path, tiny_checkpoint, capsys):
    sitk.WriteImage(phantom(1), str(tmp_path / "a.nii.gz"))
    sitk.WriteImage(sitk.Image([4, 4, 4], sitk.sitkInt16), str(tmp_path / "b.nii.gz"))
    command = ["rank", str(tmp_path), "--checkpoint", str(tiny_checkpoint), "--device", "cpu"]
    assert main([*command, "--json", "--output", str(tmp_path / "r.csv")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [s["image"][-8:] for s in document["ranking"]] == ["a.nii.gz", "b.nii.gz"]
    with (tmp_path / "r.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows[1]["uncertainty"] == "" and "the same everywhere" in rows[1]["reason"]
    assert main([*command, "--progress-lines"]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[1].split()[:2] == ["1", "a.nii.gz"]
    assert json.loads(shown.err.splitlines()[-1])["progress"] == 1.0
    assert main(["rank", str(tmp_path / "gone.nii.gz")]) == 2
    assert main([*command, "--output", str(tmp_path / "r.txt")]) == 2
    (tmp_path / "none").mkdir()
    with pytest.raises(ImageError, match="There is no image in"):
        find_images([tmp_path / "none"])


def test_an_order_is_kept_where_a_side_matters():
    """Arteries and veins have sides: a mirrored lung is another lung."""
    from SpineSegAILib.anatomy import SCHEMES
    from SpineSegAILib.evidence import Evidence

    array = np.zeros((5, 2, 3, 4), np.float32)
    assert not ranking._may_be_mirrored(Evidence((1, 1, 1), SCHEMES["pulmonary-av"], classes=array))
    assert ranking._may_be_mirrored(Evidence((1, 1, 1), SCHEMES["lumbar-mr"], kinds=array))
