"""Clicks that correct: what the mouse does in slice views, asked of the worker, each click one undo step.

Shared by the tab Correct and by the effect “Spine click” of Slicer's Segment Editor. Nothing here knows a widget: what
is corrected, and where its reader looks, is what a case says (`EffectCase`, or the tab's own).
"""

import collections
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import vtk
from slicer.i18n import tr as _

from SpineSegAILib import correction
from SpineSegAILib.anatomy.terminology import STRUCTURE_TAG
from SpineSegAILib.errors import CorrectionError, SpineSegAIError

from ..processes import dependencies
from ..processes.failure import Failure
from ..scene import correction_log, corrections, labelmaps, volumes
from ..scene.segments import setTag, structureOfSegment, structuresOfSegmentation
from .click_models import chosenModel

EFFECT = "Spine click"
"""Name of the effect in Slicer's Segment Editor."""

SLOW_MILLISECONDS = 300
"""A correction that takes longer says that it is being computed."""

SCRIBBLE_MM = 1.0
"""Distance of the points of a scribble: the finest that the network sees."""

_COMMAND = vtk.vtkCommand
_PRESSES = (_COMMAND.LeftButtonPressEvent, _COMMAND.LeftButtonDoubleClickEvent)


@dataclass(frozen=True)
class Stroke:
    """A click, or a scribble.

    :param points: where (RAS, mm).
    :param add: whether the structure should be there.
    """

    points: tuple
    add: bool


class ClickMouse:
    """What the mouse and the keyboard do in slice views.

    Left button: add; with Ctrl: remove; dragged: a scribble; Esc: end.

    :param onStroke: called with a `Stroke`.
    :param onEnd: called without arguments when the user wants to end.
    """

    def __init__(self, onStroke, onEnd):
        self.isRemoving = False  # Ctrl is held, or what is being drawn removes
        self._onStroke = onStroke
        self._onEnd = onEnd
        self._points = []

    @property
    def isDrawing(self):
        """Whether the button is down."""
        return bool(self._points)

    def process(self, interactor, eventId, sliceNode):
        """Look at an event of a slice view.

        :param interactor: `vtkRenderWindowInteractor` of the view.
        :param eventId: of `vtkCommand`.
        :param sliceNode: of the view.
        :returns: whether nobody else is to look at it.
        """
        if eventId in _PRESSES and not (interactor.GetShiftKey() or interactor.GetAltKey()):
            if not self._points:
                self.isRemoving = bool(interactor.GetControlKey())
                self._points = [_position(interactor, sliceNode)]
            return True
        if eventId == _COMMAND.MouseMoveEvent:
            if self._points:
                self._drag(_position(interactor, sliceNode))
            else:
                self.isRemoving = bool(interactor.GetControlKey())
            return self.isDrawing
        if eventId == _COMMAND.LeftButtonReleaseEvent and self._points:
            points, self._points = self._points, []
            self._onStroke(Stroke(tuple(points), not self.isRemoving))
            self.isRemoving = bool(interactor.GetControlKey())
            return True
        if eventId in (_COMMAND.KeyPressEvent, _COMMAND.KeyReleaseEvent):
            return self._key(interactor.GetKeySym() or "", eventId == _COMMAND.KeyPressEvent)
        return False

    def _drag(self, position):
        if np.linalg.norm(np.subtract(position, self._points[-1])) >= SCRIBBLE_MM:
            self._points.append(position)

    def _key(self, key, pressed):
        if key == "Escape" and pressed:
            self.forget()
            self._onEnd()
            return True
        if key.startswith("Control") and not self._points:
            self.isRemoving = pressed
        return False

    def forget(self):
        """What was being drawn is given up."""
        self._points = []
        self.isRemoving = False


def _position(interactor, sliceNode):
    """Where the mouse is (RAS, mm)."""
    x, y = interactor.GetEventPosition()
    return tuple(sliceNode.GetXYToRAS().MultiplyPoint((x, y, 0.0, 1.0))[:3])


@dataclass
class _Question:
    """A stroke on its way: about a segment, which stays the same whatever it is called meanwhile."""

    segmentationNode: Any
    volumeNode: Any
    segmentId: str
    stroke: Stroke
    model: str  # name of the checkpoint that is to follow it
    labels: Any = None  # (k, j, i) structure ids as they were sent
    structureId: int = 0

    @property
    def isThere(self):
        """Whether what it is about is still in the scene."""
        return self.segmentationNode.GetScene() is not None and self.volumeNode.GetScene() is not None


@dataclass(frozen=True)
class _Followed:
    """A stroke that was followed: its step (`correction_log.stepNoted`) and the result that it corrected
    (`correction_log.lastResult`) tell whether it still holds.
    """

    segmentationNode: Any
    step: int
    result: Any
    segmentId: str
    stroke: Stroke = field(repr=False)


class ClickTool:
    """Strokes are asked of the worker one after the other, and each becomes one undo step.

    :param case: what is corrected. `segmentationNode` is it; `target()` gives it, its volume and the id of the segment
        that is to follow, or raises a `SpineSegAIError`; `carryOut(segmentationNode, volumeNode, correction)` makes an
        undo step; `say(text)` and `showError(error)` tell the user.
    :param client: function that gives the `WorkerClient`.
    :param later: function of a time in ms and of a function to call then, as `qt.QTimer.singleShot`.
    """

    def __init__(self, case, client, later):
        self._case = case
        self._client = client
        self._later = later
        self._waiting = collections.deque()
        self._asked = None  # `_Question` that the worker computes
        self._job = None
        self._followed = []

    @property
    def isBusy(self):
        """Whether a stroke is being followed."""
        return self._asked is not None

    def add(self, stroke):
        """Follow a stroke, after those before it. What cannot be followed changes nothing, and the user hears why."""
        if not dependencies.ready():
            return
        try:
            question = _Question(*self._case.target(), stroke, chosenModel())
            node = question.segmentationNode
            corrections.labellingOf(node).require_unlocked([self._structure(node, question.segmentId)])
        except SpineSegAIError as error:
            self._case.showError(error)
            return
        self._waiting.append(question)
        self._askNext()

    def forget(self):
        """Drop all strokes that were not followed yet."""
        self._waiting.clear()
        if self._asked is not None:
            self._job.silence()
        self._asked = self._job = None

    # --- asked -------------------------------------------------------------------------------------------------------

    def _askNext(self):
        while self._asked is None and self._waiting:
            question = self._waiting.popleft()
            if not question.isThere:
                continue
            try:
                self._ask(question)
            except SpineSegAIError as error:
                self._asked = None
                self._case.showError(error)

    def _ask(self, question):
        """Hand image, labels and clicks to the worker.

        :raises SpineSegAIError: the case is not one that clicks can be followed in.
        """
        import SimpleITK as sitk

        node, volumeNode = question.segmentationNode, question.volumeNode
        labelling = corrections.labellingOf(node)
        labels = labelmaps.checkedLabels(node, volumeNode)
        question.labels = sitk.GetArrayViewFromImage(labels)
        question.structureId = self._structure(node, question.segmentId)
        step, result = correction_log.stepNoted(node), correction_log.lastResult(node)
        # Not those that were taken back, nor of another result; other segmentations have segments of the same ids.
        self._followed = [
            f for f in self._followed if f.segmentationNode is node and f.step <= step and f.result == result
        ]
        own = [f for f in self._followed if f.segmentId == question.segmentId]
        self._asked = question
        self._job = self._client().refine(
            image=volumes.imageFromVolume(volumeNode),
            labels=labels,
            clicks=_clicks(question.structureId, [question.stroke]),
            earlier=_clicks(question.structureId, [f.stroke for f in own]),
            locked=labelling.locked,
            checkpoint=question.model,
            onDone=lambda answer: self._onAnswer(question, answer),
            onError=lambda failure: self._onError(question, failure),
        )
        name = labelling.name(question.structureId)
        self._later(SLOW_MILLISECONDS, lambda: self._onSlow(question, name))

    @staticmethod
    def _structure(segmentationNode, segmentId):
        segment = segmentationNode.GetSegmentation().GetSegment(segmentId)
        if segment is None:
            raise CorrectionError(_("The structure that was clicked for is gone."), _("Select another one."))
        return structureOfSegment(segment)

    # --- answered ----------------------------------------------------------------------------------------------------

    def _onSlow(self, question, name):
        if self._asked is question and question.isThere:
            self._case.say(_("Correcting {name}…").format(name=name))

    def _onAnswer(self, question, answer):
        self._asked = self._job = None
        if question.isThere and question.segmentationNode is self._case.segmentationNode:
            try:
                self._follow(question, answer)
            except SpineSegAIError as error:
                self._case.showError(error)
        self._askNext()

    def _onError(self, question, failure):
        self._asked = self._job = None
        if question.isThere and not failure.isCancelled:
            self._case.showError(failure)
        self._askNext()

    def _follow(self, question, answer):
        """Make an undo step of an answer, or say that nothing changes.

        :raises SpineSegAIError: it does not fit any more; nothing was changed.
        """
        node = question.segmentationNode
        step = self._step(question, answer)
        if step.patch is None:
            name = correction.LabeledStructures.of(question.labels).name(question.structureId)
            self._case.say(
                _("Nothing changes: {name} is there already.").format(name=name)
                if question.stroke.add
                else _("Nothing changes: {name} is not there.").format(name=name)
            )
            return
        self._case.carryOut(node, question.volumeNode, step)
        number, result = correction_log.stepNoted(node) or 0, correction_log.lastResult(node)
        self._followed.append(_Followed(node, number, result, question.segmentId, question.stroke))

    def _step(self, question, answer):
        """The answer as a `Correction` of the segments as they are now; they may have changed since it was asked."""
        words = {"structures": (question.structureId,), "details": answer.details}
        if answer.labels is None:
            return correction.Correction("click", answer.words, **words)
        node = question.segmentationNode
        if self._structure(node, question.segmentId) != question.structureId:
            raise CorrectionError(_("The structure was renamed while the click was followed."), _("Click again."))
        now = correction.array_of(labelmaps.checkedLabels(node, question.volumeNode))
        locked = list(corrections.labellingOf(node).locked)
        if question.structureId in locked:
            raise CorrectionError(_("The structure was locked while the click was followed."), _("Unlock it first."))
        there = now[answer.box]
        changed = (answer.labels != question.labels[answer.box]) & ~np.isin(there, locked)
        after = np.where(changed, answer.labels, there)
        patch = correction.Patch(answer.box, after.astype(np.int16)) if (after != there).any() else None
        return correction.Correction("click", answer.words, patch=patch, **words)


def _clicks(structureId, strokes):
    return [
        correction.Click(structureId, volumes.lps(point), stroke.add) for stroke in strokes for point in stroke.points
    ]


class EffectCase:
    """What a Segment Editor edits, as a case of `ClickTool`.

    :param scriptedEffect: `qSlicerSegmentEditorScriptedEffect`.
    :param show: function of a text and of whether it is an error.
    """

    def __init__(self, scriptedEffect, show):
        self._effect = scriptedEffect
        self._show = show

    @property
    def _node(self):
        return self._effect.parameterSetNode()

    @property
    def segmentationNode(self):
        """What is edited; None for nothing."""
        return self._node.GetSegmentationNode() if self._node is not None else None

    def target(self):
        """Segmentation, volume, and the selected segment's id.

        A segment that is not ours is taken for what it is called.

        :raises CorrectionError: one of them is missing, or the segment is not a structure.
        """
        node = self.segmentationNode
        if node is None:
            raise CorrectionError(_("There is no segmentation."), _("Create one, or segment a volume."))
        volumeNode = volumes.segmentedVolume(node) or self._node.GetSourceVolumeNode()
        if volumeNode is None:
            raise CorrectionError(_("No volume is chosen."), _("Choose the image that is segmented."))
        segmentId = self._node.GetSelectedSegmentID() or ""
        segment = node.GetSegmentation().GetSegment(segmentId) if segmentId else None
        if segment is None:
            raise CorrectionError(_("No segment is selected."), _("Select the one that is to be corrected."))
        if structureOfSegment(segment) is None:
            self._recognize(node, segment)
        return node, volumeNode, segmentId

    @staticmethod
    def _recognize(node, segment):
        from SpineSegAILib.results.segment_names import structure_of_segment

        structureId = structure_of_segment(segment.GetName(), {})[0]
        if structureId is None or structureId in structuresOfSegmentation(node):
            raise CorrectionError(
                _("“{name}” is not a structure that SpineSegAI knows.").format(name=segment.GetName()),
                _("Name the segment after one that is not there yet, such as L4, L4/L5 or canal."),
            )
        setTag(segment, STRUCTURE_TAG, str(structureId))

    def carryOut(self, segmentationNode, volumeNode, step):
        """One undo step of the editor."""
        corrections.applyCorrection(segmentationNode, volumeNode, step, self._effect.saveStateForUndo)
        self.say(step.words + ".")

    def say(self, text):
        """A sentence among the effect's options."""
        self._show(text, False)

    def showError(self, error):
        """Why something could not be done, and what to do."""
        failure = error if isinstance(error, Failure) else Failure.of(error)
        self._show(f"{failure.message} {failure.remedy}".strip(), True)
