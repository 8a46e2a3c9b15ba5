"""``slicer.app``, ``slicer.modules`` and the scene with its module logics: what the slicer-core wheel leaves out."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import slicer
import vtk
from PySide6 import QtCore, QtWidgets

from .dicom import ctkDICOMDatabase
from .editor_effects import start_effects
from .pythonqt import ERRORS, ProxyClass, wrap
from .widgets import CUSTOM_WIDGETS

LOGICS = {
    "segmentations": "vtkSlicerSegmentationsModuleLogic",
    "terminologies": "vtkSlicerTerminologiesModuleLogic",
    "volumes": "vtkSlicerVolumesLogic",
    "tables": "vtkSlicerTablesLogic",
    "markups": "vtkSlicerMarkupsLogic",
    "colors": "vtkSlicerColorLogic",
    "subjecthierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
}
"""Slicer module → logic class of the wheel."""


class Application(QtCore.QObject):
    """What Slicer-side code asks of ``slicer.app``."""

    startupCompleted = QtCore.Signal()

    def __init__(self) -> None:
        super().__init__()
        self._temporary = tempfile.mkdtemp(prefix="slicer-host-")

    applicationName = QtCore.Property(str, lambda self: "Slicer host")
    majorVersion = QtCore.Property(int, lambda self: 5)
    minorVersion = QtCore.Property(int, lambda self: 10)
    temporaryPath = QtCore.Property(str, lambda self: self._temporary)
    slicerHome = QtCore.Property(str, lambda self: sys.prefix)

    def testingEnabled(self) -> bool:
        return True

    def processEvents(self) -> None:
        QtWidgets.QApplication.processEvents()

    def topLevelWidgets(self) -> list[QtWidgets.QWidget]:
        return QtWidgets.QApplication.topLevelWidgets()

    def moduleManager(self) -> ModuleManager:
        return _MODULE_MANAGER

    def coreIOManager(self) -> IOManager:
        return _IO_MANAGER

    def layoutManager(self) -> None:
        """The initial layout of Slicer in testing mode shows no views."""
        return None

    def applicationLogic(self) -> Any:
        return slicer.appLogic

    def userSettings(self) -> QtCore.QSettings:
        return QtCore.QSettings()

    def translate(self, context: str, text: str) -> str:
        return text

    def startupEnvironment(self) -> dict[str, str]:
        return dict(os.environ)

    def setOverrideCursor(self, cursor: Any) -> None:
        QtWidgets.QApplication.setOverrideCursor(cursor)

    def restoreOverrideCursor(self) -> None:
        QtWidgets.QApplication.restoreOverrideCursor()

    def pauseRender(self) -> None:
        pass

    def resumeRender(self) -> None:
        pass


class IOManager(QtCore.QObject):
    """``slicer.app.coreIOManager()``: loads volumes and segmentations by the logics, saves by storage nodes."""

    def fileWriterFileType(self, node: Any) -> str:
        return "SegmentationFile" if node.IsA("vtkMRMLSegmentationNode") else "NoFile"

    def saveNodes(self, file_type: str, properties: dict[str, Any], messages: Any) -> bool:
        if file_type != "SegmentationFile":
            raise NotImplementedError(f"The host saves segmentations, not {file_type}")
        node = slicer.mrmlScene.GetNodeByID(properties["nodeID"])
        if node.GetStorageNode() is None:
            node.AddDefaultStorageNode()
        node.GetStorageNode().SetFileName(properties["fileName"])
        return bool(node.GetStorageNode().WriteData(node))

    def loadNodes(self, file_type: str, properties: dict[str, Any], nodes: Any, messages: Any) -> bool:
        name = properties.get("name") or Path(properties["fileName"]).name.split(".")[0]
        if file_type == "SegmentationFile":
            logic = slicer.modules.segmentations.logic()
            node = logic.LoadSegmentationFromFile(properties["fileName"], True, name)
            if node is not None:
                nodes.AddItem(node)
            return node is not None
        if file_type != "VolumeFile":
            raise NotImplementedError(f"The host loads volumes and segmentations, not {file_type}")
        node = slicer.modules.volumes.logic().AddArchetypeVolume(properties["fileName"], name)
        if node is None:
            return False
        nodes.AddItem(node)
        return True


class ModuleManager(QtCore.QObject):
    moduleAboutToBeUnloaded = QtCore.Signal(str)


class LoadableModule:
    """``slicer.modules.<name>`` of a C++ module: gives its logic."""

    def __init__(self, logic: Any) -> None:
        self._logic = logic

    def logic(self) -> Any:
        return self._logic


class ScriptedModuleParent:
    """What a scripted module's constructor fills in (``parent.title`` …)."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.icon = None
        self.representation: Any = None  # what `widgetRepresentation` gives; tests that ask for it set it

    def widgetRepresentation(self) -> Any:
        return self.representation


def observe_new_nodes(scene: Any) -> None:
    """Every displayable node has its subject hierarchy item while it is there, as the module sees to in Slicer."""

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def added(caller: Any, event: str, node: Any) -> None:
        if node.IsA("vtkMRMLSliceNode") and not node.GetLayoutName():
            ERRORS.append("A slice node was added to the scene before it had a layout name: Slicer ends.")
        if scene.IsImporting() or node.GetHideFromEditors():
            return
        if node.IsA("vtkMRMLDisplayableNode") or node.IsA("vtkMRMLTableNode"):
            hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
            if not hierarchy.GetItemByDataNode(node):
                hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def removed(caller: Any, event: str, node: Any) -> None:
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
        if node is not hierarchy and hierarchy.GetItemByDataNode(node):
            hierarchy.RemoveItem(hierarchy.GetItemByDataNode(node), False, False)

    scene.AddObserver(scene.NodeAddedEvent, added)
    scene.AddObserver(scene.NodeAboutToBeRemovedEvent, removed)


def python_slicer(folder: str) -> None:
    """Put an executable called PythonSlicer on the PATH, as Slicer does; it is this Python."""
    launcher = Path(folder, "PythonSlicer")
    launcher.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    launcher.chmod(launcher.stat().st_mode | stat.S_IXUSR)
    os.environ["PATH"] = folder + os.pathsep + os.environ["PATH"]


def start_application() -> None:
    """Fill the gaps in the ``slicer`` module: application, scene, logics, widgets."""
    global _MODULE_MANAGER, _IO_MANAGER
    _MODULE_MANAGER, _IO_MANAGER = ModuleManager(), IOManager()
    application = Application()
    slicer.app = wrap(application)
    slicer._host_application = application
    slicer.dicomDatabase = wrap(ctkDICOMDatabase())
    python_slicer(application._temporary)

    scene = slicer.vtkMRMLScene()
    slicer.mrmlScene = scene
    # Reading scene bundles unpacks them into the cache folder.
    cache = slicer.vtkCacheManager()
    Path(application._temporary, ".slicer-cache").touch()
    cache.SetRemoteCacheDirectory(application._temporary)
    cache.SetMRMLScene(scene)
    dataManager = slicer.vtkDataIOManager()
    dataManager.SetCacheManager(cache)
    scene.SetCacheManager(cache)
    scene.SetDataIOManager(dataManager)
    slicer.appLogic = slicer.vtkSlicerApplicationLogic()
    slicer.appLogic.SetMRMLScene(scene)
    slicer.modules = types.SimpleNamespace()
    # Without Slicer's shared files the logics complain about terminologies and color tables that nothing here uses.
    verbosity = vtk.vtkLogger.GetCurrentVerbosityCutoff()
    vtk.vtkLogger.SetStderrVerbosity(vtk.vtkLogger.VERBOSITY_OFF)
    for name, class_name in LOGICS.items():
        logic = getattr(slicer, class_name)()
        logic.SetMRMLApplicationLogic(slicer.appLogic)
        if name == "terminologies":
            logic.SetModuleShareDirectory(application._temporary)
        logic.SetMRMLScene(scene)
        slicer.appLogic.SetModuleLogic(name.capitalize(), logic)
        setattr(slicer.modules, name, LoadableModule(logic))
    for name in ("Segmentations", "Terminologies"):
        slicer.appLogic.SetModuleLogic(name, getattr(slicer.modules, name.lower()).logic())
    vtk.vtkLogger.SetStderrVerbosity(verbosity)
    observe_new_nodes(scene)
    for name, kind in CUSTOM_WIDGETS.items():
        if name.startswith(("qMRML", "qSlicer")):
            setattr(slicer, name, ProxyClass(kind))
    start_effects(ProxyClass)
    slicer.qSlicerScriptedLoadableModule = type("qSlicerScriptedLoadableModule", (), {})
    slicer.selfTests = {}
