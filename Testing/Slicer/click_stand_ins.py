"""What tests of clicks need instead of a mouse, a worker and a clock."""

from types import SimpleNamespace

import numpy as np
import SimpleITK as sitk
import vtk
from panel_case import slicer

COMMAND = vtk.vtkCommand


class Interactor:
    """`vtkRenderWindowInteractor` of a view: where the mouse is, and which keys are held."""

    def __init__(self):
        self.position, self.control, self.shift, self.alt, self.key = (0, 0), False, False, False, ""

    def GetEventPosition(self):
        return self.position

    def GetControlKey(self):
        return int(self.control)

    def GetShiftKey(self):
        return int(self.shift)

    def GetAltKey(self):
        return int(self.alt)

    def GetKeySym(self):
        return self.key


class Hand:
    """A user's hand in a slice view.

    :param sliceNode: of the view.
    :param process: function of the interactor and of an event.
    """

    def __init__(self, sliceNode, process):
        self.interactor = Interactor()
        self._sliceNode, self._process = sliceNode, process

    def event(self, name):
        """One event; returns whether it was taken."""
        return self._process(self.interactor, getattr(COMMAND, f"{name}Event"))

    def moveTo(self, position):
        """Move the mouse to where a point (RAS, mm) is seen."""
        toXy = np.linalg.inv(slicer.util.arrayFromVTKMatrix(self._sliceNode.GetXYToRAS()))
        self.interactor.position = tuple((toXy @ [*position, 1.0])[:2])
        return self.event("MouseMove")

    def click(self, *positions, control=False):
        """Press at the first position, drag to the others, and let go."""
        self.interactor.control = control
        self.moveTo(positions[0])
        taken = [self.event("LeftButtonPress")]
        taken += [self.moveTo(position) for position in positions[1:]]
        taken.append(self.event("LeftButtonRelease"))
        self.interactor.control = False
        return all(taken)

    def press(self, key, down=True):
        """A key goes down, or up."""
        self.interactor.key = key
        return self.event("KeyPress" if down else "KeyRelease")


class Client:
    """The worker's client, which answers when it is told to: each click becomes a small box."""

    def __init__(self, half=2):
        self.asked, self.half = [], half

    def refine(self, onDone, onError, **about):
        self.asked.append(SimpleNamespace(onDone=onDone, onError=onError, **about))
        job = self.asked[-1]
        job.silence = lambda: job.__dict__.update(onDone=lambda *_: None, onError=lambda *_: None)
        return job

    def answer(self, index=-1, labels="drawn", words="Correct it by 1 click"):
        """Answer a question.

        :param labels: None where nothing changes.
        """
        from SpineSegAISlicer.processes.requests import Refined

        asked = self.asked[index]
        before = sitk.GetArrayFromImage(asked.labels)
        after = before.copy()
        for click in asked.clicks:
            at = asked.labels.TransformPhysicalPointToIndex(click.point)[::-1]
            part = after[tuple(slice(max(i - self.half, 0), i + self.half + 1) for i in at)]
            free = ~np.isin(part, list(asked.locked))
            part[free & ((part == click.structure_id) | click.add)] = click.structure_id if click.add else 0
        where = np.argwhere(before != after)
        if labels is None or not len(where):
            asked.onDone(Refined(words, (), None, {}))
            return
        box = tuple(slice(int(a), int(b) + 1) for a, b in zip(where.min(0), where.max(0), strict=True))
        asked.onDone(Refined(words, box, after[box], {"add": 1, "remove": 0}))


class Clock:
    """`qt.QTimer.singleShot`, whose time passes when it is told to."""

    def __init__(self):
        self.waiting = []

    def __call__(self, milliseconds, function):
        self.waiting.append((milliseconds, function))

    def strike(self):
        """All that waits is due."""
        due, self.waiting = self.waiting, []
        for _milliseconds, function in due:
            function()


class ScriptedEffect:
    """What `EffectCase` uses of a `qSlicerSegmentEditorScriptedEffect`.

    :param node: `vtkMRMLSegmentEditorNode`.
    """

    def __init__(self, node):
        self._node = node
        self.history = slicer.vtkSegmentationHistory()
        self.saved = 0

    def parameterSetNode(self):
        return self._node

    def saveStateForUndo(self):
        self.saved += 1
        self.history.SetSegmentation(self._node.GetSegmentationNode().GetSegmentation())
        self.history.SaveState()
