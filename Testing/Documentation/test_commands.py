"""The commands and the code of the documentation work as they are written."""

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys

import generate
import numpy as np
import pytest
import SimpleITK as sitk
from generate import PAGES, ROOT
from pages import BLOCK, blocks, commands, page_name
from scene_data import Scene, box

from SpineSegAILib.anatomy import STRUCTURES

SAMPLE = ROOT / "Resources/Samples/lumbar_phantom.nii.gz"
SAMPLE_LABEL = ROOT / "Resources/Samples/lumbar_phantom_label.nii.gz"


def write_dataset(folder, split):
    """The synthetic sample with its labels as a dataset of one case."""
    shutil.copy(SAMPLE, folder / "lumbar.nii.gz")
    shutil.copy(SAMPLE_LABEL, folder / "label.nii.gz")
    present = np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(SAMPLE_LABEL))))
    names = [STRUCTURES[int(i)].name for i in present if i]
    case = {"image": "lumbar.nii.gz", "label": "label.nii.gz", "annotated": names}
    document = {"name": "Sample", "modality": {"0": "MR"}, "extent": "body", split: [case]}
    (folder / "dataset.json").write_text(json.dumps(document), encoding="utf-8")


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with what the pages speak of: the synthetic sample as image, study and dataset; an annotated scene."""
    (tmp_path / "study").mkdir()
    shutil.copy(SAMPLE, tmp_path / "study/lumbar.nii.gz")
    write_dataset(tmp_path, "validation")
    scene = Scene()
    scene.segmentation({"L4": box(slice(5, 12)), "L5": box(slice(16, 24))}, scene.volume())
    (tmp_path / "scenes").mkdir()
    scene.write(tmp_path / "scenes/exam.mrb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


RUNNABLE = [p for p in generate.pages() if any(runs for runs, _ in blocks(p, "sh", "python"))]


@pytest.mark.parametrize("path", RUNNABLE, ids=page_name)
def test_the_code_of_a_page_runs(path, workplace, capsys):
    """Block by block in one folder; whatever cannot run here is marked with the reason."""
    from SpineSegAILib.cli import main

    names = {"__name__": "page"}
    text = generate.MARKED.sub("", path.read_text(encoding="utf-8"))
    for skipped, language, code in BLOCK.findall(text):
        if skipped or language not in ("sh", "python"):
            continue
        if language == "python":
            exec(compile(code, page_name(path), "exec"), names)
            continue
        for line in filter(str.strip, code.replace("\\\n", " ").splitlines()):
            words = shlex.split(line, comments=True)
            if words[:1] == ["spinesegai"]:
                assert main(words[1:]) == 0, f"{line}\n{capsys.readouterr().err}"
            elif words[:2] == ["python", "-c"]:
                subprocess.run([sys.executable, *words[1:]], check=True)
            else:
                assert not words, f"mark the block “not run”, with the reason: {line}"


def test_a_method_is_added_in_six_steps_as_the_page_says(tmp_path):
    """In a copy of the library: its files, its entry, and a training of two steps."""
    copy = tmp_path / "SpineSegAILib"
    shutil.copytree(ROOT / "SpineSegAILib", copy, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "Resources").symlink_to(ROOT / "Resources")
    entry = ""
    for _, code in blocks(PAGES / "add-a-method.md", "python"):
        place = re.match(r"# (SpineSegAILib/\S+)\n", code)
        if place:
            path = tmp_path / place[1]
            path.parent.mkdir(exist_ok=True)
            path.write_text(code[place.end() :], encoding="utf-8")
            (path.parent / "__init__.py").write_text('"""The plain network."""\n', encoding="utf-8")
        else:
            entry = f"{code.rstrip()},\n"
    catalog = copy / "methods/catalog.py"
    text = catalog.read_text(encoding="utf-8")
    assert text.count("    for info in (\n") == 1 and ast.parse(f"[{entry}]")
    catalog.write_text(text.replace("    for info in (\n", f"    for info in (\n{entry}"), encoding="utf-8")
    write_dataset(tmp_path, "training")
    train = next(
        w for _, code in blocks(PAGES / "add-a-method.md", "sh") for w in commands(code) if w[0] == "train"
    )  # fmt: skip
    run = [sys.executable, "-m", "SpineSegAILib", *train, "--device", "cpu", "--set", "optimization.batch=2"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/plain/last.safetensors").is_file()
