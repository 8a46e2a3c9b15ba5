"""The Slicer and CTK widgets that the panel's .ui file names, as far as the panel uses them.

Each has the properties, methods and signals of the original that matter here, under the original's names; `SIGNALS`
lists the C++ signatures, since Python signals have none.
"""

from __future__ import annotations

from typing import Any, ClassVar
from xml.etree import ElementTree

import slicer
import vtk
from PySide6.QtCore import Property, QEvent, QRect, QSize, Qt, Signal
from PySide6.QtGui import QColor, QPainter, QPolygon
from PySide6.QtUiTools import QUiLoader
from PySide6.QtWidgets import (
    QAbstractButton,
    QComboBox,
    QDoubleSpinBox,
    QFileDialog,
    QGroupBox,
    QHBoxLayout,
    QInputDialog,
    QLabel,
    QLineEdit,
    QPushButton,
    QSlider,
    QStyle,
    QStyleOption,
    QStyleOptionGroupBox,
    QStylePainter,
    QTextBrowser,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from .editor_effects import EditorEffects
from .pythonqt import unwrap, wrap


def _property(kind: Any, name: str, changed: str | None = None) -> Property:
    """A read/write Qt property kept in ``_<name>``; `changed` names a method to call afterwards."""
    field = f"_{name}"

    def write(self: Any, value: Any) -> None:
        setattr(self, field, value)
        if changed:
            getattr(self, changed)()

    return Property(kind, lambda self: getattr(self, field), write)


class ctkCollapsibleButton(QAbstractButton):
    """A section with a header that folds it."""

    SIGNALS = ("contentsCollapsed(bool)",)
    contentsCollapsed = Signal(bool)
    HEADER = 26

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._collapsed = False
        self.setCheckable(True)
        self.setChecked(True)
        self.setContentsMargins(0, self.HEADER, 0, 0)
        self.toggled.connect(lambda on: self._setCollapsed(not on))

    def _setCollapsed(self, collapsed: bool) -> None:
        if collapsed == self._collapsed:
            return
        self._collapsed = collapsed
        self.setChecked(not collapsed)
        for child in self.findChildren(QWidget, options=Qt.FindDirectChildrenOnly):
            child.setVisible(not collapsed)
        self.setMaximumHeight(self.HEADER if collapsed else 16777215)
        self.contentsCollapsed.emit(collapsed)

    collapsed = Property(bool, lambda self: self._collapsed, _setCollapsed)
    contentsFrameShape = _property(int, "frame")
    _frame = 0

    def hitButton(self, position: Any) -> bool:
        return position.y() < self.HEADER

    def childEvent(self, event: QEvent) -> None:
        if event.added() and self._collapsed and isinstance(event.child(), QWidget):
            event.child().hide()

    def sizeHint(self) -> QSize:
        inner = self.layout().totalSizeHint() if self.layout() and not self._collapsed else QSize(120, self.HEADER)
        return QSize(inner.width(), max(inner.height(), self.HEADER))

    def minimumSizeHint(self) -> QSize:
        return QSize(60, self.HEADER) if self._collapsed or not self.layout() else self.layout().totalMinimumSize()

    def paintEvent(self, _: QEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.Antialiasing)
        palette = self.palette()
        header = QRect(0, 0, self.width(), self.HEADER - 2)
        painter.fillRect(header, palette.button().color().darker(106))
        painter.setPen(palette.mid().color())
        painter.drawRect(header.adjusted(0, 0, -1, -1))
        if not self._collapsed:
            painter.drawRect(self.rect().adjusted(0, self.HEADER - 3, -1, -1))
        painter.setBrush(palette.windowText())
        painter.setPen(Qt.NoPen)
        x, y = 13, header.center().y()
        arrow = [(-4, -2), (4, -2), (0, 4)] if not self._collapsed else [(-2, -4), (-2, 4), (4, 0)]
        polygon = QPolygon()
        for dx, dy in arrow:
            polygon.append(self.rect().topLeft() + type(self.rect().topLeft())(x + dx, y + dy))
        painter.drawPolygon(polygon)
        painter.setPen(palette.windowText().color())
        painter.drawText(header.adjusted(26, 0, 0, 0), Qt.AlignVCenter | Qt.AlignLeft, self.text().replace("&&", "&"))


class ctkCollapsibleGroupBox(QGroupBox):
    """A group box with a title that folds it."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setCheckable(True)
        self.setChecked(True)
        self.toggled.connect(lambda on: self._show(on))

    def _show(self, on: bool) -> None:
        for child in self.findChildren(QWidget, options=Qt.FindDirectChildrenOnly):
            child.setVisible(on)
        self.setMaximumHeight(16777215 if on else self.fontMetrics().height() + 8)

    def childEvent(self, event: QEvent) -> None:
        if event.added() and not self.isChecked() and isinstance(event.child(), QWidget):
            event.child().hide()

    def initStyleOption(self, option: QStyleOptionGroupBox) -> None:
        super().initStyleOption(option)
        option.subControls &= ~QStyle.SubControl.SC_GroupBoxCheckBox
        option.text = f"      {self.title()}"

    def paintEvent(self, _: QEvent) -> None:
        painter, option = QStylePainter(self), QStyleOptionGroupBox()
        self.initStyleOption(option)
        painter.drawComplexControl(QStyle.ComplexControl.CC_GroupBox, option)
        arrow = QStyleOption()
        arrow.initFrom(self)
        arrow.rect = QRect(4, self.fontMetrics().height() // 2 - 5, 10, 10)
        kind = QStyle.PrimitiveElement
        painter.drawPrimitive(kind.PE_IndicatorArrowDown if self.isChecked() else kind.PE_IndicatorArrowRight, arrow)

    collapsed = Property(bool, lambda self: not self.isChecked(), lambda self, v: self.setChecked(not v))


class ctkComboBox(QComboBox):
    defaultText = _property(str, "defaultText")
    _defaultText = ""


class ctkSearchBox(QLineEdit):
    pass


class ctkMenuButton(QPushButton):
    pass


class ctkFittedTextBrowser(QTextBrowser):
    """A text browser as high as its text."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._collapsed = False
        self._detailsText = self._showText = self._hideText = ""
        self.setVerticalScrollBarPolicy(Qt.ScrollBarAlwaysOff)
        self.document().documentLayout().documentSizeChanged.connect(lambda _: self._fit())

    collapsed = _property(bool, "collapsed")
    showDetailsText = _property(str, "showText")
    hideDetailsText = _property(str, "hideText")

    def _fit(self) -> None:
        self.setFixedHeight(int(self.document().size().height()) + 2 * self.frameWidth())


class ctkSliderWidget(QWidget):
    """A slider with a spin box."""

    SIGNALS = ("valueChanged(double)",)
    valueChanged = Signal(float)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._slider, self._box = QSlider(Qt.Horizontal), QDoubleSpinBox()
        layout.addWidget(self._slider, 1)
        layout.addWidget(self._box)
        self._slider.setRange(0, 1000)
        self._box.valueChanged.connect(self._from_box)
        self._slider.sliderMoved.connect(
            lambda at: self._box.setValue(self._box.minimum() + at / 1000 * (self._box.maximum() - self._box.minimum()))
        )

    def _from_box(self, value: float) -> None:
        span = self._box.maximum() - self._box.minimum()
        self._slider.setValue(round(1000 * (value - self._box.minimum()) / span) if span else 0)
        self.valueChanged.emit(value)

    value = Property(float, lambda self: self._box.value(), lambda self, v: self._box.setValue(v))
    minimum = Property(float, lambda self: self._box.minimum(), lambda self, v: self._box.setMinimum(v))
    maximum = Property(float, lambda self: self._box.maximum(), lambda self, v: self._box.setMaximum(v))
    singleStep = Property(float, lambda self: self._box.singleStep(), lambda self, v: self._box.setSingleStep(v))
    decimals = Property(int, lambda self: self._box.decimals(), lambda self, v: self._box.setDecimals(v))
    suffix = Property(str, lambda self: self._box.suffix(), lambda self, v: self._box.setSuffix(v))


class ctkPathLineEdit(QWidget):
    """Says of a new path only if it could be one; of an empty one, that it could not."""

    SIGNALS = ("currentPathChanged(QString)", "validInputChanged(bool)")
    currentPathChanged = Signal(str)
    validInputChanged = Signal(bool)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._edit, button = QLineEdit(), QToolButton()
        button.setText("…")
        button.clicked.connect(self.browse)
        layout.addWidget(self._edit)
        layout.addWidget(button)
        self._valid = False
        self._edit.textChanged.connect(self._changed)
        self._nameFilters: list[str] = []
        self._settingKey = ""

    def _changed(self, text: str) -> None:
        if bool(text) != self._valid:
            self._valid = bool(text)
            self.validInputChanged.emit(self._valid)
        if text:
            self.currentPathChanged.emit(text)

    def browse(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "", self._edit.text())
        if path:
            self._edit.setText(path)

    currentPath = Property(str, lambda self: self._edit.text(), lambda self, v: self._edit.setText(v))
    nameFilters = _property("QStringList", "nameFilters")
    settingKey = _property(str, "settingKey")


class qMRMLWidget(QWidget):
    """Holds the scene, and hands it to the widgets that the .ui file connects to it (and to no others)."""

    SIGNALS = ("mrmlSceneChanged(vtkMRMLScene*)",)
    CARRIED: ClassVar = {"mrmlSceneChanged": lambda self: self.mrmlScene()}
    mrmlSceneChanged = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._scene = None

    def setMRMLScene(self, scene: Any) -> None:
        self._scene = scene
        self.mrmlSceneChanged.emit()

    def mrmlScene(self) -> Any:
        return self._scene


class qMRMLNodeComboBox(QComboBox):
    """Nodes of the scene in a combo box, with the entries that add, rename or remove."""

    SIGNALS = ("currentNodeChanged(vtkMRMLNode*)", "currentNodeIDChanged(QString)", "nodeAddedByUser(vtkMRMLNode*)")
    CARRIED: ClassVar = {
        "currentNodeChanged": lambda self: self.currentNode(),
        "nodeAddedByUser": lambda self: self.currentNode(),
    }
    currentNodeChanged = Signal()
    currentNodeIDChanged = Signal(str)
    nodeAddedByUser = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._scene: Any = None
        self._nodeTypes: list[str] = []
        self._noneEnabled = self._addEnabled = self._removeEnabled = False
        self._renameEnabled = self._editEnabled = self._showHidden = self._selectNodeUponCreation = False
        self._showChildNodeTypes = True
        self._noneDisplay, self._baseName = "None", ""
        self._current: str | None = None
        self._observed: list[tuple[Any, int]] = []
        self._filling = False
        self.activated.connect(self._picked)

    nodeTypes = _property("QStringList", "nodeTypes", "_fill")
    noneEnabled = _property(bool, "noneEnabled", "_fill")
    addEnabled = _property(bool, "addEnabled", "_fill")
    removeEnabled = _property(bool, "removeEnabled", "_fill")
    renameEnabled = _property(bool, "renameEnabled", "_fill")
    editEnabled = _property(bool, "editEnabled", "_fill")
    showHidden = _property(bool, "showHidden", "_fill")
    showChildNodeTypes = _property(bool, "showChildNodeTypes", "_fill")
    selectNodeUponCreation = _property(bool, "selectNodeUponCreation")
    noneDisplay = _property(str, "noneDisplay", "_fill")
    baseName = _property(str, "baseName")

    def _unobserve(self) -> None:
        for caller, tag in self._observed:
            caller.RemoveObserver(tag)
        self._observed = []

    def setMRMLScene(self, scene: Any) -> None:
        self._unobserve()
        self._scene = scene
        if scene:
            for event in (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndCloseEvent, scene.EndImportEvent):
                self._observed.append((scene, scene.AddObserver(event, lambda *_: self._scene_changed())))
        self._scene_changed()

    def mrmlScene(self) -> Any:
        return self._scene

    def _nodes(self) -> list[Any]:
        if not self._scene:
            return []
        found = [self._scene.GetNthNode(i) for i in range(self._scene.GetNumberOfNodes())]
        return [
            n
            for n in found
            if any(n.IsA(t) if self._showChildNodeTypes else n.GetClassName() == t for t in self._nodeTypes)
            and (self._showHidden or not n.GetHideFromEditors())
        ]

    def _scene_changed(self) -> None:
        if self._scene and self._scene.IsBatchProcessing():
            return
        self._fill()

    def _fill(self) -> None:
        nodes = self._nodes()
        ids = [n.GetID() for n in nodes]
        before = self._current
        if self._current not in ids:
            # As the original does: without "None", the first node is chosen.
            self._current = None if self._noneEnabled or not ids else ids[0]
        self._filling = True
        self.clear()
        if self._noneEnabled:
            self.addItem(self._noneDisplay)
        for node in nodes:
            self.addItem(node.GetName(), node.GetID())
        if self._addEnabled or self._renameEnabled or self._removeEnabled:
            self.insertSeparator(self.count())
        label = self._nodeTypes[0].removeprefix("vtkMRML").removesuffix("Node") if self._nodeTypes else "node"
        if self._renameEnabled:
            self.addItem(f"Rename current {label}", "rename")
        if self._addEnabled:
            self.addItem(f"Create new {label}", "add")
        if self._removeEnabled:
            self.addItem(f"Delete current {label}", "remove")
        self._show_current()
        self._filling = False
        if self._current != before:
            self._announce()

    def _show_current(self) -> None:
        index = self.findData(self._current) if self._current else (0 if self._noneEnabled else -1)
        self.setCurrentIndex(index)

    def _announce(self) -> None:
        self.currentNodeChanged.emit()
        self.currentNodeIDChanged.emit(self._current or "")

    def _picked(self, index: int) -> None:
        data = self.itemData(index)
        if data == "add":
            self.addNode()
        elif data == "remove":
            self._scene.RemoveNode(self.currentNode())
        elif data == "rename":
            name, accepted = QInputDialog.getText(self, "Rename", "New name:", text=self.currentNode().GetName())
            if accepted:
                self.currentNode().SetName(name)
        else:
            self.setCurrentNodeID(data)

    def addNode(self) -> Any:
        node = self._scene.AddNewNodeByClass(self._nodeTypes[0], self._baseName)
        self.setCurrentNode(node)
        self.nodeAddedByUser.emit()
        return node

    def currentNode(self) -> Any:
        return self._scene.GetNodeByID(self._current) if self._scene and self._current else None

    def setCurrentNode(self, node: Any) -> None:
        self.setCurrentNodeID(node.GetID() if hasattr(node, "GetID") else node)

    def setCurrentNodeID(self, node_id: str | None) -> None:
        known = {n.GetID() for n in self._nodes()}
        node_id = node_id if node_id in known else None
        if node_id is None and not self._noneEnabled and known and self._current in known and node_id != "":
            self._current = None
        changed = node_id != self._current
        self._current = node_id
        self._show_current()
        if changed:
            self._announce()

    currentNodeID = Property(str, lambda self: self._current or "", setCurrentNodeID)

    def nodeCount(self) -> int:
        return len(self._nodes())


class qMRMLSegmentationShow3DButton(ctkMenuButton):
    """Makes the closed surface when asked."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._locked = False
        self._node: Any = None
        self.setText("Show 3D")
        self.setCheckable(True)
        self.setEnabled(False)
        self.toggled.connect(self._toggled)

    locked = _property(bool, "locked")

    def click(self) -> None:
        raise AssertionError("Its menu would open, and block: show 3D by setChecked(True)")

    def setSegmentationNode(self, node: Any) -> None:
        self._node = node if node and node.IsA("vtkMRMLSegmentationNode") else None
        self.setEnabled(self._node is not None)

    def segmentationNode(self) -> Any:
        return self._node

    def _toggled(self, on: bool) -> None:
        if not self._node:
            return
        name = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
        if on:
            self._node.CreateClosedSurfaceRepresentation()
        else:
            self._node.RemoveClosedSurfaceRepresentation()
        del name


class qMRMLSegmentEditorWidget(qMRMLWidget):
    """The Segment Editor without its effects: what it edits, and its history of undo steps."""

    SIGNALS = ("segmentationNodeChanged(vtkMRMLSegmentationNode*)",)
    CARRIED: ClassVar = {"segmentationNodeChanged": lambda self: self.segmentationNode()}
    segmentationNodeChanged = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        layout = QVBoxLayout(self)
        layout.addWidget(QLabel("Slicer's Segment Editor is shown here."))
        self._node: Any = None
        self._observed: Any = None
        self._effects = EditorEffects(self)
        self._history = slicer.vtkSegmentationHistory()
        self._undo_button, self._redo_button = QToolButton(self), QToolButton(self)
        for button, name in ((self._undo_button, "UndoButton"), (self._redo_button, "RedoButton")):
            button.setObjectName(name)
            button.hide()
        self._history.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self._history_changed())
        self._history_changed()
        self._undoEnabled = self._segmentationNodeSelectorVisible = self._sourceVolumeNodeSelectorVisible = True
        self._switchToSegmentationsButtonVisible = True

    undoEnabled = _property(bool, "undoEnabled")
    segmentationNodeSelectorVisible = _property(bool, "segmentationNodeSelectorVisible")
    sourceVolumeNodeSelectorVisible = _property(bool, "sourceVolumeNodeSelectorVisible")
    switchToSegmentationsButtonVisible = _property(bool, "switchToSegmentationsButtonVisible")
    maximumNumberOfUndoStates = Property(
        int,
        lambda self: self._history.GetMaximumNumberOfStates(),
        lambda self, v: self._history.SetMaximumNumberOfStates(v),
    )

    def _history_changed(self) -> None:
        """As the original, whose buttons are there even where they are hidden."""
        self._undo_button.setEnabled(self._history.IsRestorePreviousStateAvailable())
        self._redo_button.setEnabled(self._history.IsRestoreNextStateAvailable())

    def setMRMLSegmentEditorNode(self, node: Any) -> None:
        if self._observed is not None:
            self._node.RemoveObserver(self._observed)
        self._node = node
        changed = lambda *_: self._effects.update()  # noqa: E731
        self._observed = node.AddObserver(vtk.vtkCommand.ModifiedEvent, changed) if node is not None else None
        self._effects.update()

    def mrmlSegmentEditorNode(self) -> Any:
        return self._node

    def segmentationNode(self) -> Any:
        return self._node.GetSegmentationNode() if self._node else None

    def sourceVolumeNode(self) -> Any:
        return self._node.GetSourceVolumeNode() if self._node else None

    def setSegmentationNode(self, node: Any) -> None:
        if self._node is None:
            return
        self._history.SetSegmentation(node.GetSegmentation() if node else None)
        if self._node.GetSegmentationNode() is node:
            return
        self._node.SetAndObserveSegmentationNode(node)
        if node is not None:  # as the original does
            self._node.SetAndObserveSourceVolumeNode(
                node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole())
            )
            if node.GetSegmentation().GetNumberOfSegments():
                self._node.SetSelectedSegmentID(node.GetSegmentation().GetNthSegmentID(0))
        self.segmentationNodeChanged.emit()

    def setSourceVolumeNode(self, node: Any) -> None:
        if self._node is not None:
            self._node.SetAndObserveSourceVolumeNode(node)

    def currentSegmentID(self) -> str:
        return (self._node.GetSelectedSegmentID() if self._node else None) or ""

    def setCurrentSegmentID(self, segment_id: str) -> None:
        self._node.SetSelectedSegmentID(segment_id)

    def setActiveEffect(self, effect: Any) -> None:
        self._node.SetActiveEffectName("")

    def setActiveEffectByName(self, name: str) -> None:
        self._node.SetActiveEffectName(name)

    def activeEffect(self) -> Any:
        return self._effects.active

    def effectByName(self, name: str) -> Any:
        return self._effects.named(name)

    def updateWidgetFromMRML(self) -> None:
        self._history.SetSegmentation(self.segmentationNode().GetSegmentation() if self.segmentationNode() else None)

    def setupViewObservations(self) -> None:
        pass

    def removeViewObservations(self) -> None:
        pass

    def saveStateForUndo(self) -> None:
        self._history.SaveState()

    def undo(self) -> None:
        if self._history.IsRestorePreviousStateAvailable():
            self._history.RestorePreviousState()

    def redo(self) -> None:
        if self._history.IsRestoreNextStateAvailable():
            self._history.RestoreNextState()


class UiLoader:
    """``qt.QUiLoader()`` that knows the widgets above, and Qt Designer's connections of the MRML scene."""

    def load(self, file: Any, parent: Any = None) -> Any:
        path = unwrap(file).fileName()
        loader = QUiLoader()
        tree = ElementTree.parse(path)
        for name in {used.get("class", "") for used in tree.iter("widget")} & CUSTOM_WIDGETS.keys():
            loader.registerCustomWidget(CUSTOM_WIDGETS[name])
        connections = tree.find("connections")
        wanted = []
        if connections is not None:
            for entry in connections.iter("connection"):
                wanted.append(tuple(entry.findtext(k, "") for k in ("sender", "signal", "receiver", "slot")))
        for used in tree.iter("widget"):
            name = used.get("class", "")
            if name[:3] in ("qMR", "ctk", "qSl") and name not in CUSTOM_WIDGETS:
                raise ValueError(f"{path}: the host has no stand-in for {name}")
        # Qt would warn of signatures that Python classes do not have: the loader gets the file without them.
        if connections is not None:
            tree.getroot().remove(connections)
        from PySide6.QtCore import QBuffer, QByteArray, QIODevice

        buffer = QBuffer()
        buffer.setData(QByteArray(ElementTree.tostring(tree.getroot())))
        buffer.open(QIODevice.ReadOnly)
        widget = loader.load(buffer, unwrap(parent))
        if widget is None:
            raise RuntimeError(f"{path}: {loader.errorString()}")
        for sender, signal, receiver, slot_name in wanted:
            source = widget if widget.objectName() == sender else widget.findChild(QWidget, sender)
            target = widget.findChild(QWidget, receiver)
            if source is None or target is None:
                raise ValueError(f"{path}: connection {sender} → {receiver} names a widget that is not there")
            if (signal, slot_name) != ("mrmlSceneChanged(vtkMRMLScene*)", "setMRMLScene(vtkMRMLScene*)"):
                raise ValueError(f"{path}: the host connects nothing but scenes, not {signal} to {slot_name}")
            source.mrmlSceneChanged.connect(lambda s=source, t=target: t.setMRMLScene(s.mrmlScene()))
        return wrap(widget)


CUSTOM_WIDGETS = {
    kind.__name__: kind
    for kind in (
        ctkCollapsibleButton, ctkCollapsibleGroupBox, ctkComboBox, ctkSearchBox, ctkMenuButton, ctkFittedTextBrowser,
        ctkSliderWidget, ctkPathLineEdit, qMRMLWidget, qMRMLNodeComboBox, qMRMLSegmentationShow3DButton,
        qMRMLSegmentEditorWidget,
    )
}  # fmt: skip
"""By class name, for the loader, the `ctk` module and the `slicer` module."""

__all__ = ["CUSTOM_WIDGETS", "UiLoader", "QColor", "vtk"]
