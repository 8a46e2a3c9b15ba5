"""``slicer.ScriptedLoadableModule``: base classes of a scripted module, as far as an extension relies on them."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import unittest
from typing import Any

import slicer

__all__ = [
    "ScriptedLoadableModule",
    "ScriptedLoadableModuleLogic",
    "ScriptedLoadableModuleTest",
    "ScriptedLoadableModuleWidget",
]


class ScriptedLoadableModule:
    def __init__(self, parent: Any) -> None:
        self.parent = parent
        self.moduleName = type(self).__name__
        parent.title, parent.categories, parent.dependencies, parent.contributors = "", [], [], []
        parent.helpText = parent.acknowledgementText = ""

    def resourcePath(self, filename: str) -> str:
        return os.path.join(os.path.dirname(self.parent.path), "Resources", filename)


class ScriptedLoadableModuleWidget:
    def __init__(self, parent: Any) -> None:
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.developerMode = False
        self.parent = parent
        self.layout = parent.layout()

    def resourcePath(self, filename: str) -> str:
        return os.path.join(os.path.dirname(slicer.util.modulePath(self.moduleName)), "Resources", filename)

    def setup(self) -> None:
        pass

    def cleanup(self) -> None:
        pass

    def onReload(self) -> None:
        """As `slicer.util.reloadScriptedModule`: the file is read again, and the widget made again in its place."""
        path = slicer.util.modulePath(self.moduleName)
        specification = importlib.util.spec_from_file_location(self.moduleName, path)
        module = importlib.util.module_from_spec(specification)
        sys.modules[self.moduleName] = module
        specification.loader.exec_module(module)
        while self.parent.layout().count():
            item = self.parent.layout().takeAt(0)
            if item.widget() is not None:
                item.widget().hide()
        self.cleanup()
        widget = getattr(module, f"{self.moduleName}Widget")(self.parent)
        widget.setup()
        setattr(slicer.modules, f"{self.moduleName}Widget", widget)

    def enter(self) -> None:
        pass

    def exit(self) -> None:
        pass


class ScriptedLoadableModuleLogic:
    def __init__(self, parent: Any = None) -> None:
        self.moduleName = type(self).__name__.removesuffix("Logic")
        self.isSingletonParameterNode = True

    def getParameterNode(self) -> Any:
        node = slicer.mrmlScene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
        if node is None:
            node = self.createParameterNode()
            slicer.mrmlScene.AddNode(node)
        node.SetAttribute("ModuleName", self.moduleName)
        return node

    def createParameterNode(self) -> Any:
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
        node.UnRegister(None)
        node.SetSingletonTag(self.moduleName)
        node.SetModuleName(self.moduleName)
        node.SetAttribute("ModuleName", self.moduleName)
        node.SetNodeReferenceID("category", None)
        return node


class ScriptedLoadableModuleTest(unittest.TestCase):
    def __init__(self, methodName: str = "runTest") -> None:
        super().__init__(methodName)
        self.messageDelay = 0

    def delayDisplay(self, message: str, msec: int | None = None) -> None:
        slicer.app.processEvents()

    def runTest(self) -> None:
        pass


def load(name: str, path: str) -> Any:
    """Import a scripted module's file and register it as ``slicer.modules.<name>`` (what the factory manager does)."""
    from .application import ScriptedModuleParent

    module = importlib.import_module(name)
    parent = ScriptedModuleParent(path)
    setattr(slicer.modules, name.lower(), parent)
    setattr(slicer.modules, name + "Instance", getattr(module, name)(parent))
    return module
