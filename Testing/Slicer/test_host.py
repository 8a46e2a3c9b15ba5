"""The host against what was measured in Slicer 5.8 and 5.10: the same code must work, and fail, in both.

What the widgets have there is held against them in `test_slicer_api.py`.
"""

import enum
import gc
import pathlib
import shutil
import subprocess
from types import SimpleNamespace
from typing import Annotated, Optional

import ctk
import host
import pytest
import qt
import slicer
import vtk
from slicer.parameterNodeWrapper import Choice, WithinRange, parameterNodeWrapper

UI = """<?xml version="1.0"?><ui version="4.0"><class>T</class><widget class="qMRMLWidget" name="T">
<layout class="QVBoxLayout" name="l"><item><widget class="{kind}" name="w"/></item></layout></widget>
<connections/></ui>"""


# --- properties and methods ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("QPushButton", "text"), ("QComboBox", "currentIndex"), ("QComboBox", "currentText"), ("QComboBox", "count"),
        ("QTableWidget", "rowCount"), ("QProgressBar", "value"), ("QLabel", "toolTip"), ("QCheckBox", "checked"),
    ],
)  # fmt: skip
def test_properties_are_attributes_and_cannot_be_called(kind, name):
    value = getattr(getattr(qt, kind)(), name)
    with pytest.raises(TypeError, match="not callable"):
        value()


def test_current_data_is_a_property_that_keeps_any_object():
    combo = qt.QComboBox()
    combo.addItem("one", ("a", 1))
    assert combo.currentData == ("a", 1) and combo.itemData(0) == ("a", 1)
    combo.addItem("two", 2)
    assert combo.findData(2) == 1 and combo.findText("one") == 0


def test_setters_exist_both_ways():
    button = qt.QPushButton()
    button.enabled = False
    assert not button.isEnabled()
    button.setEnabled(True)
    assert button.enabled


def test_methods_stay_methods():
    combo, table, process = qt.QComboBox(), qt.QTableWidget(1, 1), qt.QProcess()
    table.setItem(0, 0, qt.QTableWidgetItem("cell"))
    assert table.item(0, 0).text() == "cell"
    assert process.state() == qt.QProcess.NotRunning
    assert combo.isEnabled() is True
    with pytest.raises(AttributeError):
        combo.isEnabled = False


def test_the_object_name_is_also_called_name():
    button = qt.QPushButton()
    button.name = "apply"
    assert button.objectName == "apply" and button.name == "apply"


def test_an_entry_has_a_tooltip_and_can_be_greyed():
    combo = qt.QComboBox()
    combo.addItem("heading")
    combo.setItemData(0, "tip", qt.Qt.ToolTipRole)
    combo.model().item(0).setEnabled(False)
    assert combo.itemData(0, qt.Qt.ToolTipRole) == "tip"
    assert not combo.model().item(0).isEnabled()


def test_a_node_combo_box_has_the_current_node_id_as_property_and_passes_the_node():
    slicer.mrmlScene.Clear(0)
    combo = slicer.qMRMLNodeComboBox()
    combo.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    combo.noneEnabled = True
    combo.setMRMLScene(slicer.mrmlScene)
    seen = []
    combo.connect("currentNodeChanged(vtkMRMLNode*)", lambda node: seen.append(node))
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    combo.setCurrentNode(node)
    assert combo.currentNodeID == node.GetID() and combo.currentNode() is node
    assert seen == [node]
    slicer.mrmlScene.RemoveNode(node)
    assert combo.currentNode() is None and seen[-1] is None


# --- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["connect", "attribute"])
def test_a_slot_gets_the_arguments_that_it_takes(way):
    button, seen = qt.QPushButton(), []
    slots = [lambda: seen.append("none"), lambda checked: seen.append(checked)]
    for slot in slots:
        if way == "connect":
            button.connect("clicked(bool)", slot)
        else:
            button.clicked.connect(slot)
    button.click()
    assert seen == ["none", False]


def test_a_bound_method_gets_the_arguments_that_it_takes():
    class Panel:
        def __init__(self):
            self.seen = []

        def plain(self):
            self.seen.append("plain")

        def checked(self, value):
            self.seen.append(value)

    panel, button = Panel(), qt.QPushButton()
    button.connect("clicked(bool)", panel.plain)
    button.connect("clicked(bool)", panel.checked)
    button.click()
    assert panel.seen == ["plain", False]


def test_a_slot_can_be_disconnected():
    button, seen = qt.QPushButton(), []
    slot = lambda: seen.append(1)  # noqa: E731
    button.connect("clicked(bool)", slot)
    button.disconnect("clicked(bool)", slot)
    button.click()
    assert seen == []


def test_a_signal_that_does_not_exist_is_an_error():
    with pytest.raises(ValueError, match="no signal"):
        qt.QComboBox().connect("currentIndexChanged(QString)", print)


def test_an_exception_in_a_slot_is_kept_for_the_test():
    from host.pythonqt import ERRORS

    button = qt.QPushButton()
    button.connect("clicked(bool)", lambda: 1 / 0)
    button.click()
    assert len(ERRORS) == 1 and "ZeroDivisionError" in ERRORS.pop()


def test_a_widget_that_is_released_no_longer_follows_the_scene():
    slicer.mrmlScene.Clear(0)
    frame = slicer.qMRMLWidget()
    selector = slicer.qMRMLNodeComboBox(frame)
    selector.nodeTypes = ["vtkMRMLTableNode"]
    selector.setMRMLScene(slicer.mrmlScene)
    host.release(SimpleNamespace(parent=frame))
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode")
    assert selector.currentNode() is None  # one that follows the scene chooses its first node
    slicer.mrmlScene.Clear(0)


# --- processes and timers --------------------------------------------------------------------------------------------


def test_python_slicer_is_on_the_path_and_runs_python():
    program = shutil.which("PythonSlicer")
    assert subprocess.run([program, "-c", "print(1 + 1)"], capture_output=True, check=True).stdout == b"2\n"


def test_a_process_answers_in_bytes_and_ends_when_its_input_closes():
    process, seen, ended = qt.QProcess(), [], []
    process.connect("readyReadStandardOutput()", lambda: seen.append(process.readAllStandardOutput().data()))
    process.connect("finished(int,QProcess::ExitStatus)", lambda code, status: ended.append(code))
    process.start(shutil.which("PythonSlicer"), ["-c", "import sys\nfor line in sys.stdin: print('got', line, end='')"])
    process.write(b"hello\n")
    process.closeWriteChannel()
    assert host.wait_until(lambda: ended, 20)
    assert b"".join(seen) == b"got hello\n" and ended == [0]


def test_a_program_that_is_not_there_reports_an_error():
    process, errors = qt.QProcess(), []
    process.connect("errorOccurred(QProcess::ProcessError)", lambda error: errors.append(error))
    process.start("/no/such/program", [])
    assert host.wait_until(lambda: errors, 10)
    assert errors[0] == qt.QProcess.FailedToStart


def test_file_dialogs_give_what_was_chosen_and_nothing_else(monkeypatch):
    """In PythonQt the pointer for the chosen filter is an argument, not a second result."""
    from PySide6.QtWidgets import QFileDialog

    for name, chosen in (("getOpenFileName", "/a"), ("getSaveFileName", ""), ("getOpenFileNames", ["/a", "/b"])):
        monkeypatch.setattr(QFileDialog, name, lambda *_arguments, chosen=chosen: (chosen, "All files (*)"))
        assert getattr(qt.QFileDialog, name)(None, "Title", "", "All files (*)") == chosen
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_arguments: "/folder")
    assert qt.QFileDialog.getExistingDirectory(None, "Title", "") == "/folder"


def test_single_shot_timers_take_functions():
    fired = []
    qt.QTimer.singleShot(1, lambda: fired.append(1))
    assert host.wait_until(lambda: fired, 5)


# --- parameter node --------------------------------------------------------------------------------------------------


class Mode(enum.Enum):
    FAST = 1
    SLOW = 2


@parameterNodeWrapper
class Parameters:
    text: str = "a"
    number: int = 3
    bounded: Annotated[int, WithinRange(0, 50)] = 0
    real: Annotated[float, WithinRange(0.0, 1.0)] = 0.5
    flag: bool = True
    mode: Mode = Mode.FAST
    path: pathlib.Path
    maybe: Optional[int]  # noqa: UP045 - the spelling that 5.8 is known to take
    many: list[int]
    table: dict[str, int]
    volume: slicer.vtkMRMLScalarVolumeNode


@pytest.fixture
def parameters():
    """Wrappers are kept as long as their node is in the scene; another one of the same node is `parameters.again()`."""
    slicer.mrmlScene.Clear(0)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode")
    kept = [Parameters(node)]

    def again():
        kept.append(Parameters(node))
        return kept[-1]

    Parameters.again = staticmethod(again)
    yield kept[0]
    slicer.mrmlScene.Clear(0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text", "b"), ("number", -1), ("real", 0.25), ("flag", False), ("mode", Mode.SLOW),
        ("path", pathlib.Path("/x")), ("maybe", 4), ("maybe", None), ("many", [1, 2]), ("table", {"a": 1}),
    ],
)  # fmt: skip
def test_parameters_keep_their_type(parameters, name, value):
    setattr(parameters, name, value)
    assert getattr(parameters.again(), name) == value


def test_a_node_parameter_is_a_reference(parameters):
    assert parameters.volume is None
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    parameters.volume = node
    assert parameters.volume is node


def test_validators_refuse(parameters):
    with pytest.raises(ValueError, match="outside"):
        parameters.real = 2.0


def widgets(kind, name):
    from host.pythonqt import unwrap

    widget = kind()
    unwrap(widget).setProperty("SlicerParameterName", name)
    return type("Ui", (), {})(), widget


def test_widgets_and_parameters_follow_each_other(parameters):
    ui, box = widgets(qt.QCheckBox, "flag")
    ui.box = box
    tag = parameters.connectParametersToGui({"flag": box})
    assert box.checked
    box.checked = False
    assert parameters.flag is False
    parameters.flag = True
    assert box.checked
    parameters.disconnectGui(tag)
    box.checked = False
    assert parameters.flag is True


def test_a_spin_box_has_the_range_of_its_parameter_and_none_without(parameters):
    for name, limits in (("bounded", (0, 50)), ("number", (-(2**31), 2**31 - 1))):
        ui, box = widgets(qt.QSpinBox, name)
        ui.box = box
        box.minimum, box.maximum = 0, 1000  # as a .ui may say
        parameters.connectGui(ui)
        assert (box.minimum, box.maximum) == limits


def test_a_slider_needs_a_range(parameters):
    ui, slider = widgets(qt.QSlider, "number")
    ui.slider = slider
    with pytest.raises(RuntimeError, match="unbounded"):
        parameters.connectGui(ui)


def test_a_combo_box_on_a_string_needs_choices(parameters):
    ui, combo = widgets(qt.QComboBox, "text")
    ui.combo = combo
    with pytest.raises(RuntimeError, match="requires the Choice annotation"):
        parameters.connectGui(ui)
    assert Choice(["a"]).choices == ["a"]


def test_a_wrapper_that_is_let_go_before_its_node_would_end_slicer():
    from host.pythonqt import ERRORS

    slicer.mrmlScene.Clear(0)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode")
    wrapper = Parameters(node)
    del wrapper
    gc.collect()
    assert len(ERRORS) == 1 and "Slicer ends" in ERRORS.pop()
    wrapper = Parameters(node)
    slicer.mrmlScene.RemoveNode(node)
    del wrapper
    gc.collect()
    assert ERRORS == []


# --- .ui files -------------------------------------------------------------------------------------------------------


def test_a_widget_that_the_host_lacks_is_an_error(tmp_path):
    path = tmp_path / "t.ui"
    path.write_text(UI.format(kind="qMRMLSomethingNew"))
    with pytest.raises(ValueError, match="no stand-in for qMRMLSomethingNew"):
        slicer.util.loadUI(str(path))


def test_widgets_get_the_scene_only_where_the_ui_file_connects_them(tmp_path):
    path = tmp_path / "t.ui"
    path.write_text(UI.format(kind="qMRMLNodeComboBox"))
    widget = slicer.util.loadUI(str(path))
    widget.setMRMLScene(slicer.mrmlScene)
    assert slicer.util.childWidgetVariables(widget).w.mrmlScene() is None


def test_a_section_folds():
    from host.pythonqt import unwrap

    section = ctk.ctkCollapsibleButton()
    layout = qt.QVBoxLayout(section)
    inner = qt.QPushButton("inside")
    layout.addWidget(inner)
    section.collapsed = True
    assert inner.isHidden()
    section.collapsed = False
    assert not unwrap(inner).isHidden()


def test_a_box_that_can_be_folded_shows_an_arrow():
    from host.pythonqt import unwrap
    from PySide6.QtWidgets import QStyle, QStyleOptionGroupBox

    box = unwrap(ctk.ctkCollapsibleGroupBox())
    box.setTitle("Levels")
    option = QStyleOptionGroupBox()
    box.initStyleOption(option)
    assert not option.subControls & QStyle.SubControl.SC_GroupBoxCheckBox
    box.resize(200, 60)
    unfolded = box.grab().toImage().copy(0, 0, 20, 20)
    box.setProperty("collapsed", True)
    box.resize(200, 60)
    assert box.grab().toImage().copy(0, 0, 20, 20) != unfolded


# --- the scene -------------------------------------------------------------------------------------------------------


def test_a_segments_tag_is_read_into_a_mutable():
    segment, value = slicer.vtkSegment(), vtk.mutable("")
    segment.SetTag("key", "text")
    assert segment.GetTag("key", value) and value.get() == "text"


def test_a_slice_node_without_a_layout_name_would_end_slicer():
    from host.pythonqt import ERRORS
    from panel_case import make_view

    slicer.mrmlScene.Clear(0)
    make_view()
    assert ERRORS == []
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceNode")
    assert len(ERRORS) == 1 and "Slicer ends" in ERRORS.pop()
    slicer.mrmlScene.Clear(0)


def test_a_click_by_a_script_opens_the_menu_of_show_3d():
    button = slicer.qMRMLSegmentationShow3DButton()
    with pytest.raises(AssertionError, match="setChecked"):
        button.click()
    button.setChecked(True)
    assert button.checked


# --- testing mode ----------------------------------------------------------------------------------------------------


def test_there_are_no_views_in_testing_mode():
    assert slicer.app.testingEnabled() and slicer.app.layoutManager() is None


def test_messages_do_not_block():
    slicer.util.errorDisplay("wrong")
    slicer.util.infoDisplay("well")


def test_there_is_no_packaging_module_as_in_older_slicers():
    with pytest.raises(ImportError):
        import slicer.packaging  # noqa: F401
