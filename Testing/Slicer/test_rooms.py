"""The plan of the Slicer side: who may know whom, whose widgets are whose, how large a file may get."""

import ast
from pathlib import Path
from xml.etree import ElementTree

import pytest

MODULE = Path(__file__).parents[2] / "SpineSegAI"
PACKAGE = MODULE / "SpineSegAISlicer"
FILES = sorted(PACKAGE.rglob("*.py"))

MAY_IMPORT = {
    "processes": {"processes"},
    "scene": {"scene"},
    "panels": {"panels", "scene", "processes"},
    "SpineSegAISlicer": {"panels", "scene", "processes", "SpineSegAISlicer"},
}
"""Arrows run one way: processes know no node, nodes know no widget."""

SECTIONS = {
    "advancedCollapsibleButton": {"segment", "choices", "device", "sampling", "steering"},
    "resultCollapsibleButton": {"result", "outputs"},
    "queueCollapsibleButton": {"queue"},
    "SpineSegAICorrect": {
        *("correct", "editor_bridge", "undo_tools", "review", "level_tools"),
        *("click_tools", "hint_tools", "repair_tools", "series_tools"),
    },
    "datasetCollapsibleButton": {"dataset", "case_list", "scene_mapping"},
    "trainCollapsibleButton": {"train", "runs"},
}
"""Section, by its widget in the .ui file → the files that touch its widgets."""


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows_run_one_way(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = path.parents[node.level - 1]
            parts = [*base.relative_to(PACKAGE.parent).parts, *(node.module or "").split(".")]
            names = [a.name for a in node.names] if base == PACKAGE and not node.module else [""]
            for name in names:
                room = ([p for p in [*parts[1:], name] if p] or [""])[0]
                room = room if (PACKAGE / room).is_dir() and room else PACKAGE.name
                assert room in MAY_IMPORT[path.parent.name], f"line {node.lineno}: {path.parent.name} imports {room}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nodes_and_processes_know_no_widget(path):
    """`qt` is there for timers, processes and settings; nothing outside of panels makes or reads a widget."""
    if path.parent.name not in ("scene", "processes"):
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("qt", "ctk"):
            assert node.attr in ("QTimer", "QProcess", "QProcessEnvironment"), f"line {node.lineno}: qt.{node.attr}"


def test_what_clicks_do_knows_no_widget():
    """It is shared by the tab and the Segment Editor's effect, and tested without either."""
    for node in ast.walk(ast.parse((PACKAGE / "panels/clicking.py").read_text(encoding="utf-8"))):
        assert not isinstance(node, ast.Import) or not {"qt", "ctk"} & {alias.name for alias in node.names}


def widgets():
    """Name of a widget → names of the sections that it lies in."""
    found = {}

    def walk(element, sections):
        for child in element:
            inside = sections
            if child.tag == "widget":
                inside = sections | ({child.get("name")} & SECTIONS.keys())
                found[child.get("name")] = found.get(child.get("name"), frozenset()) | inside
            walk(child, inside)

    for path in (MODULE / "Resources/UI").glob("*.ui"):
        walk(ElementTree.parse(path).getroot(), frozenset())
    return found


def test_no_panel_reads_another_panels_widgets():
    owners, checked = widgets(), 0
    assert SECTIONS.keys() <= owners.keys()
    for path in (PACKAGE / "panels").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value).split(".")[-1] in ("ui", "_ui"):
                assert node.attr in owners, f"{path.name}, line {node.lineno}: there is no widget {node.attr}"
                allowed = {name for section in owners[node.attr] for name in SECTIONS[section]}
                checked += 1
                if owners[node.attr]:
                    assert path.stem in allowed, f"{path.name}, line {node.lineno}: {node.attr} belongs to {allowed}"
    assert checked > 300


@pytest.mark.parametrize("path", sorted(MODULE.rglob("*.py")), ids=lambda p: p.name)
def test_no_room_is_hidden_in_a_large_file(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= (150 if path.name == "SpineSegAI.py" else 450)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            assert node.end_lineno - node.lineno < 300, node.name
