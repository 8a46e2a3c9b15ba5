"""The extension's files: CMake lists, the installed layout, the .ui file, translations."""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
MODULE = ROOT / "SpineSegAI"
UI_FILES = sorted((MODULE / "Resources/UI").glob("*.ui"))
SLICER_SIDE = sorted(MODULE.rglob("*.py"))


def listed(path, variable):
    """Entries of a CMake list."""
    text = re.sub(r"#.*", "", (ROOT / path).read_text(encoding="utf-8"))
    return re.search(rf"set\({variable}\s([^)]*)\)", text).group(1).split()


def on_disk(folder, *patterns, base=None):
    base = base or folder
    return sorted(
        str(p.relative_to(base)) for pattern in patterns for p in folder.rglob(pattern) if "__pycache__" not in p.parts
    )


def complete(found, wanted, where):
    missing = "\n  ".join(sorted(set(wanted) - set(found)))
    gone = "\n  ".join(sorted(set(found) - set(wanted)))
    say = f"(`python {Path(__file__).relative_to(ROOT)}` brings the library's list up to date)"
    assert not missing, f"add to {where} {say}:\n  {missing}"
    assert not gone, f"remove from {where} {say}:\n  {gone}"


def test_every_script_of_the_module_is_listed():
    complete(
        listed("SpineSegAI/CMakeLists.txt", "MODULE_PYTHON_SCRIPTS"),
        on_disk(MODULE, "*.py"),
        "SpineSegAI/CMakeLists.txt",
    )


def test_every_resource_of_the_module_is_listed():
    wanted = on_disk(MODULE / "Resources", "*.ui", "*.png", "*.svg", base=MODULE)
    complete(listed("SpineSegAI/CMakeLists.txt", "MODULE_PYTHON_RESOURCES"), wanted, "SpineSegAI/CMakeLists.txt")


def test_every_script_of_the_library_is_listed():
    wanted = on_disk(ROOT / "SpineSegAILib", "*.py", base=ROOT)
    complete(
        listed("SpineSegAILib/CMakeLists.txt", "SPINESEGAI_LIBRARY_SCRIPTS"), wanted, "SpineSegAILib/CMakeLists.txt"
    )


def test_every_test_that_can_run_in_slicer_is_listed():
    text = {p.name: p.read_text(encoding="utf-8") for p in Path(__file__).parent.glob("test_*.py")}
    wanted = [
        name
        for name, code in text.items()
        if re.search(r"^    unittest\.main\(\)", code, re.M) and name != "test_speed.py"
    ]
    complete(
        listed("Testing/Slicer/CMakeLists.txt", "SPINESEGAI_SLICER_TESTS"), wanted, "Testing/Slicer/CMakeLists.txt"
    )


def test_the_index_entry_fits_the_extension():
    entry = json.loads((ROOT / "SpineSegAI.json.in").read_text(encoding="utf-8"))
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    value = lambda name: re.search(rf'set\({name} "([^"]*)"', text).group(1)  # noqa: E731
    assert entry["category"] == value("EXTENSION_CATEGORY") == "Segmentation"
    assert entry["build_dependencies"] == value("EXTENSION_DEPENDS").split() == ["PyTorch"]
    for name in ("EXTENSION_ICONURL", "EXTENSION_SCREENSHOTURLS"):
        assert (ROOT / value(name).removeprefix("${files}/")).is_file(), f"{name} names a file that is not there"


def test_the_address_is_set_in_one_place_or_reported_as_missing():
    cmake = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    (address,) = re.findall(r'set\(SPINESEGAI_ADDRESS "([^"]*)"', cmake)
    assert not address or re.fullmatch(r"https://[^\s/]+/[^\s]+[^/\s]", address)
    assert 'set(EXTENSION_HOMEPAGE "${SPINESEGAI_ADDRESS}")' in cmake and "message(WARNING" in cmake
    assert (
        json.loads((ROOT / "SpineSegAI.json.in").read_text(encoding="utf-8"))["scm_url"] == "@SPINESEGAI_ADDRESS@.git"
    )
    others = [ROOT / name for name in ("pyproject.toml", "README.md", "CITATION.cff", "SpineSegAI.json.in")]
    for path in (*others, *SLICER_SIDE):
        hosted = re.findall(r"(?:github|gitlab)(?:usercontent)?\.com/\S*SpineSegAI", path.read_text(encoding="utf-8"))
        assert not hosted, f"{path.name} has an address of its own: {hosted}"


def test_the_version_is_the_same_wherever_it_is_given():
    from SpineSegAILib import __version__

    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## ([\d.]+)", changelog, re.M).group(1) == __version__
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_the_icon_is_a_square_of_128_pixels():
    header = (MODULE / "Resources/Icons/SpineSegAI.png").read_bytes()[:24]
    assert header[16:24] == (128).to_bytes(4, "big") * 2


def test_installed_files_work_without_the_checkout(tmp_path):
    """What CMake would install, in the flat folder of an installed extension: it opens, and its files are found."""
    flat = tmp_path / "lib/Slicer-5.10/qt-scripted-modules"
    for name in listed("SpineSegAI/CMakeLists.txt", "MODULE_PYTHON_SCRIPTS") + listed(
        "SpineSegAI/CMakeLists.txt", "MODULE_PYTHON_RESOURCES"
    ):
        copy(MODULE / name, flat / name)
    for name in listed("SpineSegAILib/CMakeLists.txt", "SPINESEGAI_LIBRARY_SCRIPTS"):
        copy(ROOT / name, flat / name)
    for name in listed("SpineSegAILib/CMakeLists.txt", "SPINESEGAI_RESOURCES"):
        if (ROOT / "Resources" / name).is_dir():
            shutil.copytree(ROOT / "Resources" / name, flat / "SpineSegAILib/Resources" / name)
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import host
host.start(module_folder={str(flat)!r}, library_folder={str(flat)!r})
import SpineSegAI, SpineSegAILib, SpineSegAISlicer
from SpineSegAISlicer.scene import samples
from panel_case import open_widget
widget = open_widget(SpineSegAI.SpineSegAIWidget)
widget.cleanup()
print(SpineSegAI.__file__, SpineSegAILib.__file__, SpineSegAISlicer.__file__, samples.samplePath(), sep="\\n")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(line.startswith(str(flat)) for line in done.stdout.split()), done.stdout


def test_reloading_reads_everything_again_and_ends_what_runs(tmp_path):
    """As the developer's button does, while a volume is being segmented."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from panel_case import PanelCase, host, make_volume, slicer

class Case(PanelCase):
    environment = dict(DOUBLE_SECONDS="30")

    def runTest(self):
        volume = make_volume()
        old = self.openPanel()
        self.click(old.ui.applyButton)
        self.waitUntil(lambda: old.client.processId is not None)
        old.onReload()
        self.assertFalse(old.client.isRunning)
        new = self.widget = slicer.modules.SpineSegAIWidget
        self.assertIsNot(type(new), type(old))
        self.assertIsNot(sys.modules["SpineSegAISlicer.panels.choices"].Choices, type(old.choices))
        self.assertIs(sys.modules["SpineSegAI"].SpineSegAIWidget, type(new))
        self.assertIs(new.ui.inputVolumeSelector.currentNode(), volume)
        self.assertEqual(new.ui.applyButton.text, "Segment spine")
        old.logic.getParameterNode().topLevel = 20
        self.assertEqual(new.ui.topLevelComboBox.currentText, "L1")
        self.assertNotEqual(old.ui.topLevelComboBox.currentText, "L1")  # the old one listens no more

import unittest
from host.pythonqt import ERRORS
result = unittest.TextTestRunner().run(Case())
sys.exit(bool(ERRORS) or not result.wasSuccessful())
"""
    env = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", cwd=ROOT, env=env
    )
    assert done.returncode == 0, done.stderr


def copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def test_an_older_slicer_is_told_what_is_needed(monkeypatch):
    from host.pythonqt import wrap
    from panel_case import open_widget

    path = MODULE / "SpineSegAI.py"
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
    monkeypatch.setattr(sys, "version_info", (3, 9, 10))
    specification = importlib.util.spec_from_file_location("OldSpineSegAI", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    widget = open_widget(module.SpineSegAIWidget)
    label = wrap(widget.layout.itemAt(0).widget())
    assert "needs Slicer 5.10 or newer" in label.text and "Python 3.9" in label.text


def test_the_library_knows_nothing_of_slicer():
    for path in (ROOT / "SpineSegAILib").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for name in names:
                assert name.split(".")[0] not in ("slicer", "qt", "ctk", "vtk"), f"{path.name} imports {name}"


@pytest.mark.parametrize("path", SLICER_SIDE, ids=lambda p: p.name)
def test_heavy_packages_are_not_imported_at_file_scope(path):
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            assert name.split(".")[0] not in ("torch", "monai", "SimpleITK", "pydantic", "scipy"), (
                f"line {node.lineno}: {name}"
            )


@pytest.mark.parametrize("path", SLICER_SIDE, ids=lambda p: p.name)
def test_sentences_are_translatable(path):
    """A string with a space that reaches a reader goes through _(); what does not is a docstring, a key or a style."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    wrapped, skipped = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("_", "translate"):
            wrapped |= {id(n) for n in ast.walk(node)}
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(id(node.value))  # docstrings
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(n) for n in ast.walk(node)}
    allowed = re.compile(
        r"SpineSegAI synthetic lumbar spine|SpineSegAI contributors|NVIDIA GPU|Apple GPU|background: |color: "
        r"|^(Level tracing|Spine click)$"
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in wrapped | skipped:
            sentence = re.search(r"[A-Za-z]{2,} [a-z]{2,}", node.value)
            assert not sentence or allowed.search(node.value) or node.value.startswith("<"), (
                f"line {node.lineno}: {node.value!r}"
            )


@pytest.mark.parametrize("path", UI_FILES, ids=lambda p: p.name)
def test_every_control_of_the_ui_file_has_a_tooltip_or_says_what_it_does(path):
    tree = ElementTree.parse(path)
    inputs = ("QComboBox", "QPushButton", "QToolButton", "qMRMLNodeComboBox", "ctkSliderWidget", "QTableWidget",
              "qMRMLSegmentationShow3DButton")  # fmt: skip
    set_by_code = {"applyButton"}
    for widget in tree.iter("widget"):
        if widget.get("class") in inputs and widget.get("name") not in set_by_code:
            tips = [p for p in widget.findall("property") if p.get("name") == "toolTip"]
            assert tips, f"{widget.get('name')} has no tooltip"


@pytest.mark.parametrize("path", UI_FILES, ids=lambda p: p.name)
def test_the_keyboard_reaches_every_control_in_reading_order(path):
    tree = ElementTree.parse(path)
    stops = [stop.text for stop in tree.iter("tabstop")]
    kinds = ("QComboBox", "QPushButton", "QToolButton", "QCheckBox", "qMRMLNodeComboBox", "ctkSliderWidget",
             "QTableWidget", "qMRMLSegmentationShow3DButton", "QPlainTextEdit", "QSpinBox",
             "QDoubleSpinBox")  # fmt: skip
    controls = [w.get("name") for w in tree.iter("widget") if w.get("class") in kinds]
    assert stops == controls


@pytest.mark.parametrize("path", UI_FILES, ids=lambda p: p.name)
def test_every_label_of_a_control_has_it_as_buddy(path):
    tree = ElementTree.parse(path)
    names = {w.get("name") for w in tree.iter("widget")}
    for widget in tree.iter("widget"):
        text = next((p.findtext("string") for p in widget.findall("property") if p.get("name") == "text"), "") or ""
        if widget.get("class") == "QLabel" and text.endswith(":"):
            buddy = next((p.findtext("cstring") for p in widget.findall("property") if p.get("name") == "buddy"), None)
            assert buddy in names, widget.get("name")


def write_library_list():
    """Bring the list in SpineSegAILib/CMakeLists.txt up to date with the files on disk."""
    path = ROOT / "SpineSegAILib/CMakeLists.txt"
    entries = "".join(f"  {name}\n" for name in on_disk(ROOT / "SpineSegAILib", "*.py", base=ROOT))
    start = "set(SPINESEGAI_LIBRARY_SCRIPTS\n"
    before, rest = path.read_text(encoding="utf-8").split(start)
    path.write_text(before + start + entries + "  )" + rest.split("  )", 1)[1])


if __name__ == "__main__":
    write_library_list()
