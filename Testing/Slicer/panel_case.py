"""Base class and helpers of tests that click on the panel. They run in the host and, unchanged, inside Slicer."""

import json
import os
import shutil
import struct
import sys
import tempfile
import unittest
from pathlib import Path
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).parent))

import host

host.start()

import numpy as np  # noqa: E402
import qt  # noqa: E402
import slicer  # noqa: E402
import vtk  # noqa: E402

DOUBLE = str(Path(__file__).with_name("double_worker.py"))


def make_checkpoint(folder, name="double", method="resenc-unet", scheme="lumbar-mr", config=(), **metadata):
    """A checkpoint file with a true header and no weights, for tests whose worker loads none."""
    document = {
        "format": 1,
        "title": name.capitalize(),
        "method": {"method": method, "scheme": scheme, **dict(config)},
        "preprocessing": {"modality": "MR", "planes": ["sagittal", "isotropic", "single-slice"]},
        **metadata,
    }
    header = json.dumps({"__metadata__": {"spinesegai": json.dumps(document)}}).encode()
    path = Path(folder, f"{name}.safetensors")
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    return path


def make_volume(name="T2", size=(10, 60, 50), ijkToRas=None, seed=0):
    """A sagittal volume node, bright in the middle: slices run from left to right, rows downwards.

    :param size: slices, rows, columns.
    """
    array = np.random.default_rng(seed).integers(1, 200, size).astype(np.int16)
    array[:, :4], array[:, -4:], array[..., :4], array[..., -4:] = 0, 0, 0, 0
    array[:, :4] = array.min()
    if ijkToRas is None:
        ijkToRas = sagittal()
    matrix = slicer.util.vtkMatrixFromArray(np.asarray(ijkToRas, float))
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    slicer.util.updateVolumeFromArray(node, array)
    node.SetIJKToRASMatrix(matrix)
    node.CreateDefaultDisplayNodes()
    return node


def sagittal(spacing=(1.25, 1.0, 4.0), origin=(-20.0, 30.0, 40.0)):
    """IJK to RAS of a sagittal stack: columns to posterior, rows to inferior, slices to the right."""
    columns, rows, slices = spacing
    return np.array(
        [[0, 0, slices, origin[0]], [-columns, 0, 0, origin[1]], [0, -rows, 0, origin[2]], [0, 0, 0, 1]], float
    )


def axial():
    """IJK to RAS of an axial stack."""
    return np.array([[-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 5, 0], [0, 0, 0, 1]], float)


def make_view(name="Test"):
    """The node of a sagittal slice view, which must not enter the scene before it has a layout name."""
    node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLSliceNode")
    node.UnRegister(None)
    node.SetLayoutName(name)
    node = slicer.mrmlScene.AddNode(node)
    node.SetOrientationToSagittal() if hasattr(node, "SetOrientationToSagittal") else node.SetOrientation("Sagittal")
    return node


def open_widget(kind):
    """A module's widget in a frame of its own, set up, as Slicer makes it when the module is opened."""
    frame = slicer.qMRMLWidget()
    frame.setLayout(qt.QVBoxLayout())
    frame.setMRMLScene(slicer.mrmlScene)
    widget = kind(frame)
    widget.setup()
    return widget


class PanelCase(unittest.TestCase):
    """A fresh scene, a folder of checkpoints, and a panel whose worker is the quick double."""

    worker = (DOUBLE,)
    environment: ClassVar[dict] = {}
    checkpoints = ("double",)

    def setUp(self):
        from SpineSegAISlicer.panels import choices, segment
        from SpineSegAISlicer.processes import dependencies, run_times
        from SpineSegAISlicer.processes.worker_client import WorkerClient

        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        for name in self.checkpoints:
            make_checkpoint(self.folder, name)
        self.set(os.environ, "SPINESEGAI_CHECKPOINTS", str(self.folder))
        self.dialogs = []
        for kind in ("errorDisplay", "infoDisplay", "warningDisplay"):
            self.patch(slicer.util, kind, lambda text, **named: self.dialogs.append(text))
        self.patch(dependencies, "ensure", lambda more=(): None)
        self.patch(segment, "DOUBLE_CLICK_SECONDS", 0.0)
        settings = qt.QSettings(str(self.folder / "settings.ini"), qt.QSettings.IniFormat)
        self.patch(run_times, "settings", lambda: settings)
        self.patch(choices, "list_checkpoints", self.listCheckpoints)
        slicer.mrmlScene.Clear(0)
        self.makeClient = WorkerClient
        self.widget = None

    def tearDown(self):
        if self.widget is not None:
            self.widget.cleanup()
            host.release(self.widget)
        slicer.mrmlScene.Clear(0)

    def patch(self, owner, name, value):
        """Replace an attribute until the test ends."""
        before = getattr(owner, name)
        setattr(owner, name, value)
        self.addCleanup(setattr, owner, name, before)

    def set(self, mapping, key, value):
        """Set an item until the test ends."""
        before = mapping.get(key)
        mapping[key] = value
        self.addCleanup(lambda: mapping.pop(key) if before is None else mapping.__setitem__(key, before))

    def listCheckpoints(self):
        """Those of the test's own folder, so that shipped ones do not change what a test means."""
        from SpineSegAILib.checkpoints import read_header

        return [read_header(path) for path in sorted(self.folder.glob("*.safetensors"))]

    def openPanel(self, **environment):
        """The module's widget, as Slicer opens it. Environment variables are for the double."""
        from SpineSegAISlicer.processes import worker_client

        from SpineSegAI import SpineSegAIWidget

        variables = {**self.environment, **environment}
        self.patch(worker_client, "WorkerClient", lambda: self.makeClient(self.worker, variables))
        self.widget = open_widget(SpineSegAIWidget)
        return self.widget

    @property
    def panel(self):
        return self.widget.segmentPanel

    @property
    def ui(self):
        return self.widget.ui

    def chooseModelOf(self, method):
        """Choose the first model of a method."""
        name = next(info.name for info in self.listCheckpoints() if info.method == method)
        self.ui.modelComboBox.setCurrentIndex(self.ui.modelComboBox.findData(name))

    def click(self, button):
        """Click, as a user does: a disabled button does nothing."""
        button.click()

    def waitUntil(self, condition, seconds=60.0, message="it did not happen in time"):
        self.assertTrue(host.wait_until(condition, seconds), message)

    def waitUntilDone(self, seconds=180.0):
        self.waitUntil(lambda: not self.widget.segmenting.isRunning, seconds, "the segmentation did not end")

    def run_to_the_end(self):
        """Click the big button and wait."""
        self.assertTrue(self.ui.applyButton.enabled, self.ui.applyButton.toolTip)
        self.click(self.ui.applyButton)
        self.waitUntilDone()

    def output(self):
        return self.widget._parameterNode.outputSegmentation

    def segmentations(self):
        return slicer.util.getNodesByClass("vtkMRMLSegmentationNode")

    def nodeIds(self):
        scene = slicer.mrmlScene
        return {scene.GetNthNode(i).GetID() for i in range(scene.GetNumberOfNodes())}


def centroid(segmentationNode, structureId, volumeNode):
    """Mean position of a structure's voxels in the world (RAS, mm), read back on a volume's grid."""
    import SimpleITK as sitk
    from SpineSegAISlicer.scene import labelmaps

    image = labelmaps.labelsFromSegmentation(segmentationNode, volumeNode)
    return image_centroid(image, structureId) if (sitk.GetArrayViewFromImage(image) == structureId).any() else None


def image_centroid(image, structureId):
    """Mean position of a label's voxels (RAS, mm) in a SimpleITK image."""
    import SimpleITK as sitk

    index = np.argwhere(sitk.GetArrayViewFromImage(image) == structureId).mean(axis=0)[::-1]
    left, posterior, superior = image.TransformContinuousIndexToPhysicalPoint(index.tolist())
    return np.array([-left, -posterior, superior])


def linear_transform(matrix, name="Moved"):
    """A linear transform node of a (4, 4) array."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", name)
    node.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(np.asarray(matrix, float)))
    return node


__all__ = [
    "PanelCase",
    "axial",
    "centroid",
    "image_centroid",
    "linear_transform",
    "make_checkpoint",
    "make_view",
    "make_volume",
    "np",
    "open_widget",
    "qt",
    "sagittal",
    "slicer",
    "vtk",
]
