"""The synthetic case that comes along is written under that name, and over nothing of anybody's."""

from __future__ import annotations

from test_cli import files, run

from SpineSegAILib.imaging import read_image
from SpineSegAILib.results import read_segmentation


def test_the_sample_is_written_and_says_what_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("sample") == 0
    said = capsys.readouterr().out
    assert "wrote synthetic_spine.nii.gz" in said and "spinesegai segment synthetic_spine.nii.gz" in said
    assert "synthetic, not a patient's image" in said
    assert files(tmp_path) == {"synthetic_spine.nii.gz"}
    assert run("sample", "-o", "new folder/in", "--label", "--quiet") == 0 and not capsys.readouterr().out
    folder = tmp_path / "new folder/in"
    labels = read_segmentation(folder / "synthetic_spine_label.nii.gz")
    assert labels.present and read_image(folder / "synthetic_spine.nii.gz").GetSize() == labels.labels.GetSize()


def test_what_is_there_stays(tmp_path, capsys):
    assert run("sample", "-o", tmp_path) == run("sample", "-o", tmp_path) == 0
    (tmp_path / "synthetic_spine_label.nii.gz").write_bytes(b"a person's")
    capsys.readouterr()
    assert run("sample", "-o", tmp_path, "--label") == 2
    assert "is there already, and is not the sample" in capsys.readouterr().err
    assert (tmp_path / "synthetic_spine_label.nii.gz").read_bytes() == b"a person's"
    (tmp_path / "file").write_bytes(b"")
    assert run("sample", "-o", tmp_path / "file") == 2
