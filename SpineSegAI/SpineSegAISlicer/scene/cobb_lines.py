"""Cobb angles of a film in the views: two lines for each curve, along its end vertebrae's endplates.

The lines can be dragged, and the angle follows. A curve whose angle is not given gets no lines. They belong to one
segmentation, lie in the world (its film may be under a transform) and are made again when its segments change.
"""

import numpy as np
import slicer
from slicer.i18n import tr as _

from . import results, volumes
from .labelmaps import LABELMAP
from .segments import structuresOf

ROLE = "SpineSegAI.CobbLines"
"""Node references of a segmentation to its lines: upper and lower endplate of the first curve, of the second …"""

CURVE_ATTRIBUTE = "SpineSegAI.Curve"
"""Of a line: its curve, as ``T6–T11``."""

OWNER_ROLE = "SpineSegAI.CobbLinesOf"
"""Node reference of a line to its segmentation."""

COLOR = (1.0, 0.82, 0.4)
LONGER = 0.3  # of an endplate, that its line goes on to either side: to be taken hold of beside the bone


def isFilm(segmentationNode, volumeNode):
    """Whether a result is of a film with levels, whose curves can be measured."""
    if segmentationNode is None or volumeNode is None or volumes.singleSliceAxis(volumeNode) is None:
        return False
    scheme = results.schemeOf(segmentationNode)
    return scheme.modality == "XR" and any(s.order is not None for s in scheme.structures)


class CobbLines:
    """Shows and hides them, and hears when one is dragged.

    :param onMoved: called without arguments when an angle has changed.
    """

    def __init__(self, onMoved):
        self._onMoved = onMoved
        self._observed = {}  # line's id → (node, tag of the observer)
        self._drawnFor = {}  # segmentation's id → its segments when the lines were drawn

    def areShown(self, segmentationNode):
        """Whether there are lines."""
        return bool(_linesOf(segmentationNode))

    def show(self, segmentationNode, volumeNode):
        """Draw the lines, in the place of those that are there.

        :returns: a sentence for each curve whose angle is not given; one for a spine without curves.
        :raises HintError: there is no structure of ours.
        """
        from SpineSegAILib.results.measurement import FilmSpine

        curves = FilmSpine(results.resultFromSegmentation(segmentationNode, volumeNode)).curves()
        self.hide(segmentationNode)
        for curve in curves:
            if curve.angle is not None:
                for ends, isLabeled in zip(curve.lines, (True, False), strict=True):
                    points = [np.array(volumes.lps(point)) for point in ends]
                    _draw(segmentationNode, curve.name, points, isLabeled)
        self._drawnFor[segmentationNode.GetID()] = _stamp(segmentationNode)
        self._observe(segmentationNode)
        if not curves:
            return [_("The spine has no curve of 10° or more.")]
        return [
            _("{curve}: the angle is not given: {reason}.").format(curve=curve.name, reason=curve.why)
            for curve in curves
            if curve.angle is None
        ]

    def hide(self, segmentationNode):
        """Remove the lines."""
        self._drawnFor.pop(segmentationNode.GetID(), None)
        lines = _linesOf(segmentationNode)
        segmentationNode.RemoveNodeReferenceIDs(ROLE)  # so that nobody looks for them while they go
        for node in lines:
            self._remove(node)

    def update(self, segmentationNode, volumeNode):
        """Lines that are there are drawn again where the segments have changed; a loaded scene's are listened to."""
        if not self.areShown(segmentationNode):
            return
        stamp = _stamp(segmentationNode)
        if self._drawnFor.setdefault(segmentationNode.GetID(), stamp) != stamp:
            self.show(segmentationNode, volumeNode)
        self._observe(segmentationNode)

    def tidy(self):
        """Remove the lines of segmentations that were removed, and what is left of a curve whose line was."""
        for node in slicer.util.getNodesByClass("vtkMRMLMarkupsLineNode"):
            if node.GetAttribute(CURVE_ATTRIBUTE) is None:
                continue
            owner = node.GetNodeReference(OWNER_ROLE)
            if owner is None or _partner(owner, node) is None:
                self._remove(node)

    def angles(self, segmentationNode):
        """Curve's name → angle (degrees) of its lines as they lie now, top down."""
        lines = _linesOf(segmentationNode)
        found = {}
        for upper, lower in zip(lines[::2], lines[1::2], strict=False):
            name = upper.GetAttribute(CURVE_ATTRIBUTE)
            if name == lower.GetAttribute(CURVE_ATTRIBUTE):
                found[name] = _angle(upper, lower)
        return found

    def forget(self):
        """The scene goes away, with the lines."""
        self._observed = {}
        self._drawnFor = {}

    def _observe(self, segmentationNode):
        for node in _linesOf(segmentationNode):
            if self._observed.get(node.GetID(), (None, None))[0] is not node:
                event = slicer.vtkMRMLMarkupsNode.PointModifiedEvent
                tag = node.AddObserver(event, lambda *_event: self._moved(segmentationNode))
                self._observed[node.GetID()] = (node, tag)
        self._moved(segmentationNode)

    def _moved(self, segmentationNode):
        _nameLines(segmentationNode, self.angles(segmentationNode))
        self._onMoved()

    def _remove(self, node):
        known, tag = self._observed.pop(node.GetID(), (None, None))
        if known is not None:
            known.RemoveObserver(tag)
        for gone in (node, node.GetDisplayNode()):
            if gone is not None and gone.GetScene() is not None:  # else it went with its partner
                slicer.mrmlScene.RemoveNode(gone)


def _linesOf(segmentationNode):
    count = segmentationNode.GetNumberOfNodeReferences(ROLE)
    nodes = [segmentationNode.GetNthNodeReference(ROLE, index) for index in range(count)]
    return [node for node in nodes if node is not None]


def _partner(segmentationNode, line):
    """The other line of a curve; None if it is gone."""
    name = line.GetAttribute(CURVE_ATTRIBUTE)
    alike = (n for n in _linesOf(segmentationNode) if n is not line and n.GetAttribute(CURVE_ATTRIBUTE) == name)
    return next(alike, None)


def _stamp(segmentationNode):
    """Tells whether a segmentation's voxels or names have changed."""
    segmentation = segmentationNode.GetSegmentation()
    found = {i: segmentation.GetSegment(s).GetRepresentation(LABELMAP) for i, s in structuresOf(segmentation).items()}
    return tuple((i, image.GetMTime() if image is not None else 0) for i, image in found.items())


def _draw(segmentationNode, curve, ends, isLabeled):
    """One line.

    :param ends: left and right end of the endplate (RAS, mm).
    :param isLabeled: whether the curve's angle is written beside it.
    """
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsLineNode", curve)
    node.SetAttribute(CURVE_ATTRIBUTE, curve)
    node.CreateDefaultDisplayNodes()
    node.GetMeasurement("length").SetEnabled(False)  # a film's pixels need not have a size
    display = node.GetDisplayNode()
    display.SetSelectedColor(*COLOR)
    display.SetColor(*COLOR)
    display.SetGlyphScale(1.5)
    display.SetTextScale(3.0)
    display.SetPointLabelsVisibility(False)
    display.SetPropertiesLabelVisibility(isLabeled)
    beyond = LONGER * (ends[1] - ends[0])
    node.AddControlPointWorld(list(ends[0] - beyond))
    node.AddControlPointWorld(list(ends[1] + beyond))
    node.SetNodeReferenceID(OWNER_ROLE, segmentationNode.GetID())
    segmentationNode.AddNodeReferenceID(ROLE, node.GetID())


def _angle(upper, lower):
    """Degrees between two lines."""
    directions = []
    for node in (upper, lower):
        ends = np.zeros((2, 3))
        for index in range(min(node.GetNumberOfControlPoints(), 2)):
            node.GetNthControlPointPositionWorld(index, ends[index])
        directions.append((ends[1] - ends[0]) / max(np.linalg.norm(ends[1] - ends[0]), 1e-9))
    return float(np.degrees(np.arccos(np.clip(directions[0] @ directions[1], -1.0, 1.0))))


def _nameLines(segmentationNode, angles):
    """A line is called after its curve and its angle, which is what stands beside the upper one."""
    for node in _linesOf(segmentationNode):
        curve = node.GetAttribute(CURVE_ATTRIBUTE)
        name = f"{curve}: {angles[curve]:.0f}°" if curve in angles else curve
        if node.GetName() != name:
            node.SetName(name)
