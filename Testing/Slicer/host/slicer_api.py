"""What the widgets of the real application have, from `slicer-api.json`, and what it raises for anything else.

The file was read out of Slicer 5.10.0 through PythonQt: for each class its properties (attributes without a call), its
methods, and the calls whose return PythonQt cannot hand over. The stand-ins of this folder have more, since PySide6 has
more: `Proxy` asks here first, so that code which only works on stand-ins fails.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("slicer-api.json")
DOCUMENT = json.loads(FILE.read_text(encoding="utf-8"))
CLASSES: dict[str, dict[str, Any]] = DOCUMENT["classes"]
NAMES = {
    "qt": frozenset(DOCUMENT["qt_classes"]),
    "ctk": frozenset(DOCUMENT["ctk_classes"]),
    "slicer": frozenset(DOCUMENT["slicer_classes"]),
}
"""Module → names of the classes that it has. MRML nodes and functions of `slicer.util` are not among them."""

NOT_IN_THE_FILE: dict[str, dict[str, str]] = {
    "qMRMLWidget": {
        "setMRMLScene": "every panel's root has it: Slicer's own template of a scripted module calls it",
        "mrmlScene": "the getter of that",
        "mrmlSceneChanged": "what the .ui files connect; Slicer's own template of a scripted module does so",
    },
    "QScrollBar": {
        "setValue": "a slot of QAbstractSlider; QSlider, which is in the file, has it from there",
        "maximum": "a property of QAbstractSlider, likewise",
    },
    "QDesktopServices": {"openUrl": "static; Slicer's own modules call it"},
    "QUiLoader": {"load": "`slicer.util.loadUI` calls it"},
    "QSizePolicy": dict.fromkeys(("Preferred", "Ignored"), "values of `QWidget.setSizePolicy`; Slicer's DICOM module"),
    "QLocale": {"setDefault": "static, in Qt's documentation; a test sets decimal commas with it"},
    "QFile": dict.fromkeys(("ReadOnly", "exists", "fileName", "open"), "`slicer.util.loadUI` uses it"),
    "QWidgetItem": {"widget": "what a layout's `itemAt` and `takeAt` give; `slicer.util.reloadScriptedModule` uses it"},
    "Application": dict.fromkeys(
        (
            *("applicationLogic", "layoutManager", "processEvents", "startupCompleted", "testingEnabled"),
            *("userSettings", "applicationName", "coreIOManager", "topLevelWidgets"),
        ),
        "of `slicer.app`, used in Slicer 5.10 by this extension or by `slicer.util`",
    ),
    "ctkDICOMDatabase": {
        **dict.fromkeys(("isOpen", "fileForInstance"), "of `slicer.dicomDatabase`; Slicer's DICOMUtils uses it so"),
        "insert": "the same; Slicer's plug-in for DICOM segmentations adds what it has written by it",
        **dict.fromkeys(("openDatabase", "closeDatabase", "databaseFilename"), "the same; tests open one of their own"),
    },
    "qSlicerSegmentEditorScriptedEffect": {
        **dict.fromkeys(
            ("name", "title", "perSegment"), "Q_PROPERTY of qSlicerSegmentEditorAbstractEffect; Draw sets it"
        ),
        **dict.fromkeys(
            ("parameterSetNode", "addOptionsWidget", "saveStateForUndo", "selectEffect", "addActor2D", "removeActor2D"),
            "Q_INVOKABLE of qSlicerSegmentEditorAbstractEffect; Slicer's scripted effects call it",
        ),
        **dict.fromkeys(("setPythonSource", "self"), "Slicer's template of a scripted effect calls it"),
    },
    "qSlicerSegmentEditorEffectFactory": dict.fromkeys(
        ("instance", "registerEffect"), "AbstractScriptedSegmentEditorEffect.register calls it"
    ),
    "qMRMLSliceView": dict.fromkeys(
        ("setViewCursor", "setDefaultViewCursor", "scheduleRender"),
        "Q_INVOKABLE of qMRMLSliceView.h or its base ctkVTKAbstractView; the Segment Editor sets cursors so",
    ),
    "IOManager": {
        "loadNodes": "of `slicer.app.coreIOManager()`; `slicer.util.loadVolume` uses it",
        "fileWriterFileType": "the same; `slicer.util.saveNode` uses it",
        "saveNodes": "the same; `slicer.util.saveNode` uses it",
    },
}
"""Class without an entry in the file → what is used of it all the same, each with the reason to believe in it."""

_OBJECTS = ("QTimer", "QProcess", "QSettings", "QAction", "QButtonGroup")
"""What all of these have is QObject's, which has no entry of its own."""


@dataclass(frozen=True)
class Members:
    """What a class has.

    Attributes:
        properties: attributes without a call, and enumeration values.
        methods: to be called.
        either: known to be there, but not as which of the two.
        unknown: methods whose return PythonQt cannot hand over.
    """

    properties: frozenset[str]
    methods: frozenset[str]
    either: frozenset[str]
    unknown: frozenset[str]

    def has(self, name: str) -> bool:
        """Whether there is such an attribute."""
        return name in self.properties or name in self.methods or name in self.either


@functools.cache
def members(kind: str) -> Members | None:
    """Of a class with an entry; None for others."""
    entry = CLASSES.get(kind)
    if kind == "QObject":
        every = [CLASSES[name] for name in _OBJECTS]
        methods = frozenset.intersection(*(frozenset(entry["methods"]) for entry in every))
        return Members(frozenset({"objectName"}), methods, frozenset(), frozenset())
    if entry is None:
        return None
    base = members(entry["base"]) if "base" in entry else None
    properties, methods = frozenset(entry.get("properties", ())), frozenset(entry.get("methods", ()))
    either, unknown = frozenset(entry.get("members", ())), frozenset(entry.get("returns_unknown", ()))
    if base is not None:
        properties, methods = properties | base.properties, methods | base.methods
        either, unknown = either | base.either, unknown | base.unknown
    return Members(properties, methods, either, unknown)


def known(kind: type) -> tuple[str, Members | None]:
    """Name of the nearest class that has an entry, and what that has; (the class's own name, None) without any."""
    for base in kind.__mro__:
        found = members(base.__name__)
        if found is not None:
            return base.__name__, found
    return kind.__name__, None


def check(kind: type, name: str) -> Members | None:
    """Refuse an attribute that the real application does not have.

    Returns:
        what the class has; None if nothing is known of it.

    Raises:
        AttributeError: it has no such attribute, or nobody has looked whether it has.
    """
    if name.startswith("__") or name == "name":  # Python's own; PythonQt's short word for the object's name
        return None
    if name in NOT_IN_THE_FILE.get(kind.__name__, ()):
        return None
    nearest, found = known(kind)
    if found is None:
        raise AttributeError(f"{FILE.name} has no entry for {kind.__name__} ({name}): see `NOT_IN_THE_FILE`")
    if not found.has(name):
        also = "" if nearest == kind.__name__ else f" ({FILE.name} has no entry for it, only for {nearest})"
        raise AttributeError(f"{kind.__name__} has no attribute named {name!r}{also}")
    return found
