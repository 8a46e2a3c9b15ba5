"""Nothing is used that the real Slicer does not have: a walk through the source, and the running panel.

`host/slicer-api.json` was read out of Slicer 5.10.0. Both checks fail for what stopped the panel there.
"""

import re
from pathlib import Path
from xml.etree import ElementTree

import ctk
import pytest
import qt
import slicer
from api_walk import walk, widgets
from host import slicer_api
from host.pythonqt import unwrap
from host.widgets import CUSTOM_WIDGETS

MODULE = Path(__file__).parents[2] / "SpineSegAI"
UI = MODULE / "Resources/UI"
FILES = sorted(MODULE.rglob("*.py"))


# --- the source ------------------------------------------------------------------------------------------------------


def test_the_source_uses_nothing_that_slicer_lacks():
    sources = {str(path.relative_to(MODULE)): path.read_text(encoding="utf-8") for path in FILES}
    findings = walk(sources, widgets(UI))
    print(f"{findings.checked} names and attributes looked at")
    assert findings.wrong == []
    assert findings.checked > 700  # else the walk has lost sight of the widgets


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        # What stopped the panel in Slicer 5.10.0: the rows' height.
        ("table.verticalHeader().setDefaultSectionSize(table.fontMetrics().height() + 6)", "unknown to PythonQt"),
        ("text = ui.applyButton.text()", "not callable"),
        ("if ui.applyButton.isEnabled: pass", "is not called"),
        ("x = ui.queueTable.rowCount() + 1", "not callable"),
        ("ui.applyButton.isEnabled = True", "cannot be set"),
        ("ui.applyButton.caption = 'x'", "has no attribute named 'caption'"),
        ("for b in (ui.applyButton, ui.undoButton): b.setTitle('x')", "has no attribute named 'setTitle'"),
        ("ui.inputVolumeSelector.currentNode", "is not called"),
        ("ui.inputVolumeSelector.connect('nodeChosen(vtkMRMLNode*)', f)", "has no signal 'nodeChosen'"),
        ("item = table.item(0, 0); item.text = 'x'", "cannot be set"),
        ("qt.QNothing()", "no such class"),
        ("qt.QProcess.Dead", "has no attribute named 'Dead'"),
        ("ctk.ctkNothing()", "no such class"),
        ("slicer.qMRMLNothing()", "no such class"),
        ("slicer.util.nothing()", "no such function"),
        ("ui.runLogText.verticalScrollBar().setTracking(True)", "NOT_IN_THE_FILE"),
        ("timer = qt.QTimer(); timer.isActive == 1", "is not called"),
    ],
)
def test_the_walk_finds(line, reason):
    source = f"class Panel:\n    def __init__(self, table, ui):\n        {line}\n"
    (wrong,) = walk({"panel.py": source}, widgets(UI), {("Panel", "table"): frozenset({"QTableWidget"})}).wrong
    assert reason in wrong and wrong.startswith("panel.py:3: ")


def test_the_walk_follows_widgets_into_other_functions():
    source = (
        "class Table:\n    def __init__(self, table):\n        self.table = table\n        self._size(table)\n"
        "    def show(self):\n        self.table.rowCount()\n"
        "    def _size(self, given):\n        given.fontInfo()\n"
        "class Panel:\n    def __init__(self, ui):\n        self.part = Table(ui.structuresTable)\n"
    )
    wrong = walk({"panel.py": source}, widgets(UI)).wrong
    assert [re.match(r"panel.py:(\d+)", entry).group(1) for entry in wrong] == ["6", "8"]


def test_what_is_right_is_not_found():
    source = (
        "class Panel:\n    def __init__(self, ui):\n        combo = ui.modelComboBox\n"
        "        for button, slot in ((ui.applyButton, self.f), (ui.undoButton, combo.clear)):\n"
        "            button.connect('clicked(bool)', slot)\n"
        "        combo.addItem(str(combo.count), combo.currentData)\n"
        "        self.timer = qt.QTimer()\n        self.timer.connect('timeout()', self.timer.stop)\n"
        "        ui.queueTable.item(0, 0).setText(ui.statusLabel.text)\n"
        "        qt.QTimer.singleShot(0, lambda: ui.applyButton.setEnabled(True))\n"
    )
    findings = walk({"panel.py": source}, widgets(UI))
    assert findings.wrong == [] and findings.checked >= 12


# --- the running panel -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fontMetrics", "fontInfo"])
def test_what_pythonqt_cannot_hand_over_is_an_error(name):
    for widget in (qt.QTableWidget(), qt.QPushButton(), qt.QLabel(), qt.QWidget()):
        with pytest.raises(ValueError, match="unknown to PythonQt"):
            getattr(widget, name)()
    with pytest.raises(ValueError, match="unknown to PythonQt"):
        qt.QColor("red").rgba64()


def test_the_way_round_it_works():
    table = qt.QTableWidget()
    assert qt.QFontMetrics(table.font).height() > 5


def test_what_is_not_there_is_an_error():
    button, item, process = qt.QPushButton(), qt.QTableWidgetItem("x"), qt.QProcess()
    for thing in (button, item, process, qt.QColor("red"), ctk.ctkCollapsibleButton(), slicer.qMRMLNodeComboBox()):
        with pytest.raises(AttributeError, match="has no attribute named 'caption'"):
            _ = thing.caption
        with pytest.raises(AttributeError, match="creation of new attributes on C\\+\\+ objects is not allowed"):
            thing.caption = "x"
    for name in ("QNothing", "QPySide"):
        with pytest.raises(AttributeError):
            getattr(qt, name)
    with pytest.raises(AttributeError, match="has no attribute named 'Dead'"):
        _ = qt.QProcess.Dead


def test_a_method_is_no_value():
    button, item = qt.QPushButton("x"), qt.QTableWidgetItem("x")
    with pytest.raises(TypeError, match="is a method: call it"):
        bool(button.isEnabled)
    with pytest.raises(TypeError, match="is a method: call it"):
        f"{item.text}"
    with pytest.raises(ValueError, match="does not accept"):
        button.text = item.text
    with pytest.raises(AttributeError, match="can not be overwritten"):
        button.isEnabled = True


def test_a_property_is_no_method():
    for thing, name in (
        (qt.QLabel("x"), "text"), (qt.QTableWidget(), "rowCount"), (qt.QComboBox(), "currentIndex"),
        (ctk.ctkCollapsibleButton(), "collapsed"), (slicer.qMRMLNodeComboBox(), "currentNodeID"),
    ):  # fmt: skip
        with pytest.raises(TypeError, match="is not callable"):
            getattr(thing, name)()


def test_a_class_that_nobody_has_looked_up_is_reported():
    with pytest.raises(AttributeError, match="no entry for it, only for QWidget"):
        _ = qt.QDial().notchesVisible
    assert qt.QDial().enabled  # as every widget


@pytest.mark.parametrize("name", sorted(CUSTOM_WIDGETS))
def test_stand_ins_have_nothing_that_the_originals_lack(name):
    """What a stand-in offers is what is tested against: signals, properties and methods of its own."""
    kind = CUSTOM_WIDGETS[name]
    own = {member for base in kind.__mro__ if base.__module__.startswith("host") for member in vars(base)}
    _nearest, found = slicer_api.known(kind)
    listed = slicer_api.NOT_IN_THE_FILE.get(name, {})
    shown = {member for member in own if not member.startswith("_") and not member.isupper()} - {"staticMetaObject"}
    assert {member for member in shown if not found.has(member) and member not in listed} == set()


def test_every_widget_of_the_ui_files_has_an_entry():
    kinds = {kind for kinds in widgets(UI).values() for kind in kinds}
    without = {kind for kind in kinds if slicer_api.members(kind) is None}
    assert without == {"qMRMLWidget"} and "qMRMLWidget" in slicer_api.NOT_IN_THE_FILE


def test_the_ui_files_set_properties_and_connect_slots_that_are_there():
    checked = 0
    for path in UI.glob("*.ui"):
        tree = ElementTree.parse(path)
        kinds = {widget.get("name"): widget.get("class") for widget in tree.iter("widget")}
        for widget in tree.iter("widget"):
            found = slicer_api.members(widget.get("class") if widget.get("class") != "qMRMLWidget" else "QWidget")
            for entry in widget.findall("property"):
                checked += 1
                name = entry.get("name")
                dynamic = entry.get("stdset") == "0" and name in ("SlicerParameterName", "buddy")
                assert dynamic or name == "buddy" or found.has(name), f"{path.name}: {widget.get('name')}.{name}"
        for connection in tree.iter("connection"):
            kind = kinds[connection.findtext("receiver")]
            assert slicer_api.members(kind).has(connection.findtext("slot").partition("(")[0]), f"{path.name}: {kind}"
    assert checked > 400


def test_every_exception_has_its_reason():
    for kind, used in slicer_api.NOT_IN_THE_FILE.items():
        assert slicer_api.members(kind) is None, f"{kind} has an entry"
        assert used and all(len(reason) > 10 for reason in used.values())


def test_objects_are_still_what_they_are():
    color = qt.QColor("red")
    assert color == qt.QColor(255, 0, 0)
    assert isinstance(color, qt.QColor) and isinstance(unwrap(qt.QLabel()), unwrap(qt.QLabel))
    item = qt.QTableWidgetItem("x")
    item.setData(qt.Qt.DecorationRole, color)
    assert item.data(qt.Qt.DecorationRole).redF() == 1.0
