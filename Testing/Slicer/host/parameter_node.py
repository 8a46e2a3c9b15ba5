"""``slicer.parameterNodeWrapper``: typed properties on a script node, bound to widgets by ``SlicerParameterName``.

Only the types and widgets that the panels use; an unknown combination raises, as the original does.
"""

from __future__ import annotations

import enum
import json
import pathlib
import types
import typing
import weakref
from dataclasses import dataclass
from typing import Any

import slicer
import vtk
from PySide6 import QtWidgets

from . import widgets
from .pythonqt import ERRORS, slot, unwrap

PROPERTY = "SlicerParameterName"


@dataclass
class Choice:
    choices: Any


@dataclass
class WithinRange:
    minimum: float
    maximum: float


@dataclass
class Default:
    value: Any


@dataclass
class Decimals:
    value: int


@dataclass
class SingleStep:
    value: float


def _split(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    if typing.get_origin(annotation) is typing.Annotated:
        return annotation.__origin__, annotation.__metadata__
    return annotation, ()


def _is_node(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, slicer.vtkMRMLNode)


class _Parameter:
    """One parameter: how it is written into the node."""

    def __init__(self, name: str, annotation: Any, default: Any) -> None:
        self.name = name
        kind, self.annotations = _split(annotation)
        arguments = typing.get_args(kind)
        self.optional = type(None) in arguments
        if typing.get_origin(kind) in (typing.Union, types.UnionType):
            kind = next(a for a in arguments if a is not type(None))
        self.kind = kind
        plain = typing.get_origin(kind) or kind
        known = _is_node(kind) or (isinstance(plain, type) and issubclass(plain, enum.Enum))
        if not known and plain not in (str, int, float, bool, pathlib.Path, list, dict):
            raise TypeError(f"Unable to create serializer for {name}: {annotation}")
        self.plain = plain
        stated = next((a.value for a in self.annotations if isinstance(a, Default)), None)
        if default is None:
            default = stated
        if default is None and not self.optional and not _is_node(kind):
            default = next(iter(kind)) if issubclass(plain, enum.Enum) else plain()
        self.default = default

    def read(self, node: Any) -> Any:
        if _is_node(self.kind):
            found = node.GetNodeReference(self.name)
            return found if found is not None and found.IsA(self.kind.__name__) else None
        text = node.GetParameter(self.name)
        if text == "" and self.optional:
            return None
        if self.plain is str:
            return text
        if self.plain is bool:
            return text == "True"
        if self.plain in (int, float):
            return self.plain(text)
        if self.plain is pathlib.Path:
            return pathlib.Path(text)
        if isinstance(self.plain, type) and issubclass(self.plain, enum.Enum):
            return self.plain[text]
        return json.loads(text)

    def write(self, node: Any, value: Any) -> None:
        if _is_node(self.kind):
            if value is not None and not isinstance(value, str) and not value.IsA(self.kind.__name__):
                raise TypeError(f"{self.name} takes {self.kind.__name__}, not {value.GetClassName()}")
            node.SetNodeReferenceID(self.name, value if isinstance(value, str) or value is None else value.GetID())
            return
        if value is None:
            if not self.optional:
                raise TypeError(f"{self.name} cannot be None")
            text = ""
        elif isinstance(value, enum.Enum):
            text = value.name
        elif self.plain in (list, dict):
            text = json.dumps(value)
        else:
            if self.plain is float and isinstance(value, int) and not isinstance(value, bool):
                value = float(value)
            if not isinstance(value, self.plain):
                raise TypeError(f"{self.name} takes {self.plain.__name__}, not {type(value).__name__}")
            text = str(value)
        for annotation in self.annotations:
            if isinstance(annotation, WithinRange) and not annotation.minimum <= value <= annotation.maximum:
                raise ValueError(f"{self.name}: {value} is outside {annotation.minimum}…{annotation.maximum}")
            if isinstance(annotation, Choice) and value not in annotation.choices:
                raise ValueError(f"{self.name}: {value!r} is none of {list(annotation.choices)}")
        node.SetParameter(self.name, text)

    def is_in(self, node: Any) -> bool:
        if _is_node(self.kind):
            return True  # an absent reference is None, which is the default of every node parameter
        return self.name in (node.GetParameterNames() or ())


class _Connector:
    """A widget and how its value is read, written and watched."""

    def __init__(self, widget: Any, parameter: _Parameter) -> None:
        target = unwrap(widget)
        kind = parameter.plain
        name = type(target)
        if name is QtWidgets.QCheckBox and kind is bool:
            self.read, self.write, signal = target.isChecked, target.setChecked, target.toggled
        elif name in (QtWidgets.QComboBox, widgets.ctkComboBox) and kind in (str, int, float, bool):
            choice = next((a for a in parameter.annotations if isinstance(a, Choice)), None)
            if choice is None:
                raise RuntimeError("ComboBoxToStringableConnector requires the Choice annotation to be used.")
            if target.count() == 0:
                target.addItems([str(c) for c in choice.choices])
            self.read = lambda: kind(target.currentText())
            self.write = lambda value: target.setCurrentText(str(value))
            signal = target.currentIndexChanged
        elif name is QtWidgets.QLineEdit and kind is str:
            self.read, self.write, signal = target.text, target.setText, target.textChanged
        elif name in (QtWidgets.QSpinBox, QtWidgets.QSlider) and kind is int:
            within = next((a for a in parameter.annotations if isinstance(a, WithinRange)), None)
            if within is None and name is QtWidgets.QSlider:
                raise RuntimeError("Cannot have a connection to ctkSliderWidget where the float types is unbounded.")
            # Without a range the original takes away the one that the .ui gives.
            target.setRange(*((within.minimum, within.maximum) if within is not None else (-(2**31), 2**31 - 1)))
            self.read, self.write, signal = target.value, target.setValue, target.valueChanged
        elif name in (QtWidgets.QDoubleSpinBox, widgets.ctkSliderWidget) and kind in (float, int):
            within = next((a for a in parameter.annotations if isinstance(a, WithinRange)), None)
            if within is None and name is widgets.ctkSliderWidget:
                raise RuntimeError("Cannot have a connection to ctkSliderWidget where the float types is unbounded.")
            if within is not None:
                target.setProperty("minimum", within.minimum)
                target.setProperty("maximum", within.maximum)
            self.read = lambda: kind(target.property("value"))
            self.write = lambda value: target.setProperty("value", value)
            signal = target.valueChanged
        elif name is widgets.ctkPathLineEdit and kind is pathlib.Path:
            self.read = lambda: pathlib.Path(target.property("currentPath"))
            self.write = lambda value: target.setProperty("currentPath", str(value))
            signal = target.currentPathChanged
        elif name is widgets.qMRMLNodeComboBox and _is_node(parameter.kind):
            target.setProperty("nodeTypes", [parameter.kind.__name__])
            self.read, self.write, signal = target.currentNode, target.setCurrentNode, target.currentNodeChanged
        else:
            raise RuntimeError(f"Unable to create GUI connector from datatype '{kind}' to widget type '{name}'.")
        self._signal = signal
        self._slot: Any = None

    def watch(self, callback: Any) -> None:
        self._slot = slot(callback)
        self._signal.connect(self._slot)

    def release(self) -> None:
        if self._slot is not None:
            self._signal.disconnect(self._slot)
            self._slot = None


def _let_go(node: Any) -> None:
    """The original leaves an observer on the node, which ends Slicer once garbage collection has cleared it."""
    if node.GetScene() is not None:
        ERRORS.append(f"The wrapper of {node.GetID()} was let go while the node is in the scene: Slicer ends.")


def parameterNodeWrapper(classtype: type | None = None) -> Any:
    """Class decorator: annotated members become properties kept in the script node."""
    if classtype is None:
        return parameterNodeWrapper
    hints = typing.get_type_hints(classtype, include_extras=True)
    parameters = {name: _Parameter(name, hint, getattr(classtype, name, None)) for name, hint in hints.items()}

    def init(self: Any, parameterNode: Any) -> None:
        self.parameterNode = parameterNode
        weakref.finalize(self, _let_go, parameterNode).atexit = False
        self._guis, self._next, self._updating = {}, 0, False
        for parameter in parameters.values():
            if not parameter.is_in(parameterNode):
                parameter.write(parameterNode, parameter.default)

    def connect(self: Any, mapping: dict[str, Any]) -> int:
        connectors = {}
        for name, widget in mapping.items():
            if name not in parameters:
                raise ValueError(f"Cannot find a param with the given name: {name}")
            connectors[name] = _Connector(widget, parameters[name])
        for name, connector in connectors.items():
            connector.write(getattr(self, name))
            connector.watch(lambda *_, n=name, c=connector: to_node(self, n, c))
        tag, self._next = self._next, self._next + 1
        observer = self.parameterNode.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: to_gui(self, connectors))
        self._guis[tag] = (connectors, observer)
        return tag

    def to_node(self: Any, name: str, connector: _Connector) -> None:
        if not self._updating:
            setattr(self, name, connector.read())

    def to_gui(self: Any, connectors: dict[str, _Connector]) -> None:
        if self._updating:
            return
        self._updating = True
        try:
            for name, connector in connectors.items():
                connector.write(getattr(self, name))
        finally:
            self._updating = False

    def connect_gui(self: Any, gui: Any) -> None:
        """Without the tag, as in Slicer up to 5.10 (its issue 7547)."""
        found = {}
        for widget in vars(gui).values():
            name = unwrap(widget).property(PROPERTY)
            if name:
                found[name] = widget
        connect(self, found)

    def disconnect(self: Any, tag: int | None) -> None:
        if tag in self._guis:
            connectors, observer = self._guis.pop(tag)
            for connector in connectors.values():
                connector.release()
            self.parameterNode.RemoveObserver(observer)

    for name, parameter in parameters.items():
        getter = lambda self, p=parameter: p.read(self.parameterNode)  # noqa: E731
        setter = lambda self, value, p=parameter: p.write(self.parameterNode, value)  # noqa: E731
        setattr(classtype, name, property(getter, setter))
    classtype.__init__ = init
    classtype.connectGui = connect_gui
    classtype.connectParametersToGui = connect
    classtype.disconnectGui = disconnect
    classtype.StartModify = lambda self: self.parameterNode.StartModify()
    classtype.EndModify = lambda self, was: self.parameterNode.EndModify(was)
    classtype.AddObserver = lambda self, event, f, priority=0.0: self.parameterNode.AddObserver(event, f, priority)
    classtype.RemoveObserver = lambda self, tag: self.parameterNode.RemoveObserver(tag)
    classtype.Modified = lambda self: self.parameterNode.Modified()
    return classtype
