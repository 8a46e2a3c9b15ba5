"""Scripted effects of the Segment Editor: what one sees of Slicer, the factory, and the views that it hears of.

What is here is checked against `slicer_api` like all that is Qt: an effect that asks for more fails. The names and the
order of calls are those of Slicer 5.10 (qSlicerSegmentEditorAbstractEffect.h, qMRMLSegmentEditorWidget.cxx).
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import slicer
from PySide6.QtCore import Property, QObject, Signal
from PySide6.QtGui import QCursor
from PySide6.QtWidgets import QFormLayout, QFrame, QWidget

from .pythonqt import unwrap, wrap


class qSlicerSegmentEditorScriptedEffect(QObject):
    """Slicer's side of an effect that is written in Python."""

    effectSelected = Signal(str)
    undoWanted = Signal()

    def __init__(self, parent: Any = None) -> None:
        super().__init__()
        self._name = self._title = ""
        self._perSegment = True
        self._node: Any = None
        self._self: Any = None
        self._frame = QFrame()
        self._layout = QFormLayout(self._frame)
        self.actors: list[Any] = []

    def _property(kind: type, name: str) -> Property:  # type: ignore[misc]
        return Property(kind, lambda self: getattr(self, name), lambda self, value: setattr(self, name, value))

    name = _property(str, "_name")
    title = _property(str, "_title")
    perSegment = _property(bool, "_perSegment")
    del _property

    def setPythonSource(self, path: str) -> bool:
        """The folder's name is the module's, the file's name the class's; the module is read once."""
        source = Path(path)
        module = sys.modules.get(source.parent.name)
        if module is None or not hasattr(module, source.stem):
            specification = importlib.util.spec_from_file_location(source.parent.name, source)
            module = importlib.util.module_from_spec(specification)
            sys.modules[source.parent.name] = module
            specification.loader.exec_module(module)
        self._self = getattr(module, source.stem)(wrap(self))
        setattr(slicer, source.parent.name, self._self)
        return True

    def self(self) -> Any:
        return self._self

    def parameterSetNode(self) -> Any:
        return self._node

    def setParameterSetNode(self, node: Any) -> None:
        self._node = node

    def addOptionsWidget(self, widget: QWidget) -> None:
        self._layout.addRow(widget)

    def optionsFrame(self) -> QFrame:
        return self._frame

    def saveStateForUndo(self) -> None:
        self.undoWanted.emit()

    def selectEffect(self, name: str) -> None:
        self.effectSelected.emit(name)

    def addActor2D(self, view: Any, actor: Any) -> None:
        self.actors.append(actor)

    def removeActor2D(self, view: Any, actor: Any) -> None:
        self.actors.remove(actor)


class qSlicerSegmentEditorEffectFactory(QObject):
    """Registered effects; each Segment Editor has copies of its own."""

    _instance: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.effects: list[Any] = []

    @classmethod
    def instance(cls) -> qSlicerSegmentEditorEffectFactory:
        cls._instance = cls._instance or cls()
        return cls._instance

    def registerEffect(self, effect: Any) -> bool:
        effect = unwrap(effect)
        if effect.property("name") in [known.property("name") for known in self.effects]:
            return False
        self.effects.append(effect)
        return True

    def copies(self, known: list[str]) -> list[Any]:
        """Of the effects that an editor does not have yet."""
        new = [effect for effect in self.effects if effect.property("name") not in known]
        return [unwrap(effect.self().clone()) for effect in new]


class EditorEffects:
    """The effects of one Segment Editor widget.

    Args:
        widget: `qMRMLSegmentEditorWidget`.
    """

    def __init__(self, widget: Any) -> None:
        self._widget = widget
        self._effects: dict[str, Any] = {}
        self.active: Any = None

    def named(self, name: str) -> Any:
        """The effect of a name; None if there is none."""
        factory = qSlicerSegmentEditorEffectFactory.instance()
        for effect in factory.copies(list(self._effects)):
            effect.effectSelected.connect(self._widget.setActiveEffectByName)
            effect.undoWanted.connect(self._widget.saveStateForUndo)
            effect.self().setupOptionsFrame()
            self._effects[effect.property("name")] = effect
        found = self._effects.get(name)
        if found is not None:
            found.setParameterSetNode(self._widget.mrmlSegmentEditorNode())
        return found

    def update(self) -> None:
        """The parameter set node may name another effect."""
        node = self._widget.mrmlSegmentEditorNode()
        chosen = self.named(node.GetActiveEffectName() or "") if node is not None else None
        if chosen is self.active:
            return
        if self.active is not None:
            self.active.self().deactivate()
        self.active = chosen
        if chosen is not None:
            chosen.self().activate()


class qMRMLSliceView(QWidget):
    """The view inside a slice widget."""

    def __init__(self) -> None:
        super().__init__()
        self.cursors: list[QCursor] = []
        self.defaultCursor: QCursor | None = None

    def setViewCursor(self, cursor: QCursor) -> None:
        self.cursors.append(cursor)

    def setDefaultViewCursor(self, cursor: QCursor) -> None:
        self.defaultCursor = cursor

    def scheduleRender(self) -> None:
        pass


class qMRMLSliceWidget(QWidget):
    """A slice view of the layout, of which an effect hears."""

    def __init__(self, node: Any) -> None:
        super().__init__()
        self._node, self._view = node, qMRMLSliceView()

    def mrmlSliceNode(self) -> Any:
        return self._node

    def sliceView(self) -> qMRMLSliceView:
        return self._view


class AbstractScriptedSegmentEditorEffect:
    """Base class of scripted effects."""

    def __init__(self, scriptedEffect: Any) -> None:
        self.scriptedEffect = scriptedEffect

    def register(self) -> None:
        slicer.qSlicerSegmentEditorEffectFactory.instance().registerEffect(self.scriptedEffect)


def start_effects(proxied: Any) -> None:
    """Fill the names into the `slicer` module, and make the one that effects import.

    Args:
        proxied: makes of a class what PythonQt shows of it.
    """
    slicer.qSlicerSegmentEditorScriptedEffect = proxied(qSlicerSegmentEditorScriptedEffect)
    slicer.qSlicerSegmentEditorEffectFactory = proxied(qSlicerSegmentEditorEffectFactory)
    module = types.ModuleType("SegmentEditorEffects", "Stand-in for Slicer's package of effects")
    module.AbstractScriptedSegmentEditorEffect = AbstractScriptedSegmentEditorEffect  # type: ignore[attr-defined]
    sys.modules["SegmentEditorEffects"] = module
