"""Results of the library as segmentation nodes, and back."""

import json

import numpy as np
import slicer
from slicer.i18n import tr as _

from SpineSegAILib import anatomy
from SpineSegAILib.anatomy.terminology import (
    CONFIDENCE_TAG,
    LOG_ATTRIBUTE,
    QUALITY_TAG,
    SCHEME_TAG,
    UNSCALED_TAG,
    UNVALIDATED_TAG,
)
from SpineSegAILib.errors import ImageError, SchemeError

from . import result_attribute
from .labelmaps import gridIn, labelsFromSegmentation, mergedArray, writeVoxels
from .segments import (
    KEYPOINT_TAG,
    UNCERTAINTY_TAG,
    isLocked,
    nameSegment,
    setTag,
    sortSegments,
    structureOfSegment,
    structuresOfSegmentation,
    tagOf,
)
from .volumes import pointToNode, pointToWorld

_SCHEME = "lumbar-mr"
"""Of a segmentation that does not say which one it was made with."""


def segmentationFromResult(result, volumeNode, segmentationNode=None, saveState=None, only=()):
    """Show a result as a segmentation node on its volume.

    In an existing node, structures that are locked stay as they are, voxel for voxel, and the new ones are fitted
    around them; unlocked structures are replaced; segments that are not structures of ours are left alone. Nothing
    moves: a node with segments keeps its transform, whatever the volume's is by now.

    :param result: `SpineSegAILib.results.Segmentation` with one voxel per voxel of the volume.
    :param volumeNode: the volume that was segmented.
    :param segmentationNode: node to update; a new one is made if not given.
    :param saveState: called once before anything is changed, so that a single undo brings back what was there, e.g.
        `qMRMLSegmentEditorWidget.saveStateForUndo` or `UndoHistory.saveState`.
    :param only: structures that were asked for; the others stay as if they were locked. Empty for all.
    :returns: the segmentation node.
    :raises ImageError: the volume has other voxels by now, or its segmentation cannot be compared with it, see
        `labelmaps.gridIn`; nothing was changed.
    """
    import SimpleITK as sitk

    labels = sitk.GetArrayViewFromImage(result.labels)
    shape = volumeNode.GetImageData().GetDimensions()[::-1]
    if labels.shape != tuple(shape):
        raise ImageError(
            _("The result has {result} voxels, but “{name}” has {volume} now.").format(
                result=labels.shape, name=volumeNode.GetName(), volume=tuple(shape)
            ),
            _("The volume was changed during the computation: segment it again."),
        )
    if segmentationNode is None:
        segmentationNode = _newSegmentationNode(volumeNode)
    else:
        if _hasSegments(segmentationNode):
            gridIn(segmentationNode, volumeNode)
        if saveState is not None:
            saveState()
    with slicer.util.NodeModify(segmentationNode):
        _placeWith(segmentationNode, volumeNode)
        _writeStructures(segmentationNode, result, volumeNode, labels, frozenset(only))
        result_attribute.write(segmentationNode, {k: v for k, v in result.to_document().items() if k != "corrections"})
        if result.corrections and not segmentationNode.GetAttribute(LOG_ATTRIBUTE):
            segmentationNode.SetAttribute(LOG_ATTRIBUTE, result.corrections.to_json())
        if only:
            updateSummary(segmentationNode)
    return segmentationNode


def _newSegmentationNode(volumeNode):
    name = slicer.mrmlScene.GenerateUniqueName(_("{volume} spine").format(volume=volumeNode.GetName()))
    segmentationNode = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    segmentationNode.CreateDefaultDisplayNodes()
    return segmentationNode


def _hasSegments(segmentationNode):
    return segmentationNode.GetSegmentation().GetNumberOfSegments() > 0


def _placeWith(segmentationNode, volumeNode):
    """Same reference geometry, same study in the subject hierarchy; same transform, unless that would move segments.

    Of segments that are all replaced, too: undo brings them back.
    """
    if _hasSegments(segmentationNode):
        _joinStudyOf(segmentationNode, volumeNode)
    else:
        placeInStudyOf(segmentationNode, volumeNode)
    # After the transform: it is the volume as seen from the segmentation, and what Slicer resamples to when it saves.
    segmentationNode.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)


def placeInStudyOf(node, volumeNode):
    """Give a node made from a volume the volume's transform, and its place in the subject hierarchy."""
    transformNode = volumeNode.GetParentTransformNode()
    node.SetAndObserveTransformNodeID(transformNode.GetID() if transformNode else None)
    _joinStudyOf(node, volumeNode)


def _joinStudyOf(node, volumeNode):
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    volumeItem, item = hierarchy.GetItemByDataNode(volumeNode), hierarchy.GetItemByDataNode(node)
    if volumeItem and item:
        hierarchy.SetItemParent(item, hierarchy.GetItemParent(volumeItem))


def _writeStructures(segmentationNode, result, volumeNode, labels, only):
    segmentation = segmentationNode.GetSegmentation()
    locked, replaceable = {}, {}
    for segmentId in segmentation.GetSegmentIDs():
        segment = segmentation.GetSegment(segmentId)
        structureId = structureOfSegment(segment)
        if isLocked(segment) or (only and structureId is not None and structureId not in only):
            locked[segmentId] = structureId
        elif structureId is not None:
            replaceable[structureId] = segmentId
    if locked:
        occupied = mergedArray(segmentationNode, dict.fromkeys(locked, 1), volumeNode)
        labels = np.where(occupied > 0, 0, labels)
    lockedStructures = set(locked.values())
    present = [i for i in result.present if i not in lockedStructures]

    # Surfaces of what is replaced would be stale; they are made again when asked for.
    segmentationNode.RemoveClosedSurfaceRepresentation()
    for structureId, segmentId in replaceable.items():
        if structureId not in present:
            segmentation.RemoveSegment(segmentId)
    writeVoxels(segmentationNode, labels, present, volumeNode)
    allPresent = {*present, *(i for i in lockedStructures if i is not None)}
    written = structuresOfSegmentation(segmentationNode)
    for structureId in present:
        _describe(segmentationNode, segmentation.GetSegment(written[structureId]), structureId, result, allPresent)
    sortSegments(segmentation)
    segmentationNode.Modified()


def _describe(segmentationNode, segment, structureId, result, present):
    """Everything but the voxels of a structure's segment, as a result has it."""
    nameSegment(segment, structureId, present, result.scheme.extent, structureId in result.unvalidated)
    segment.SetTag(SCHEME_TAG, result.scheme.name)
    point = result.keypoints.get(structureId)
    point = pointToNode(segmentationNode, point) if point is not None else None
    sure = result.level_confidence
    unsure = result.provenance.get("uncertainty", {}).get(anatomy.STRUCTURES[structureId].name)
    for tag, value in (
        (UNCERTAINTY_TAG, f"{unsure:.4f}" if unsure is not None else None),
        (CONFIDENCE_TAG, f"{sure:.4f}" if sure is not None and anatomy.STRUCTURES[structureId].is_counted else None),
        (QUALITY_TAG, f"{result.outline_quality[structureId]:.4f}" if structureId in result.outline_quality else None),
        (UNSCALED_TAG, None if result.scale_known else "1"),
        (UNVALIDATED_TAG, "1" if structureId in result.unvalidated else None),
        (KEYPOINT_TAG, " ".join(f"{x:.3f}" for x in point) if point is not None else None),
    ):
        setTag(segment, tag, value)


def resultFromSegmentation(segmentationNode, volumeNode):
    """The `Segmentation` that a node shows now, corrections included.

    :raises HintError: no segment is a structure that SpineSegAI made.
    """
    from SpineSegAILib.results import Segmentation

    labels = labelsFromSegmentation(segmentationNode, volumeNode)
    document = _currentDocument(segmentationNode)
    log = segmentationNode.GetAttribute(LOG_ATTRIBUTE)
    if log:
        document["corrections"] = json.loads(log)
    return Segmentation.from_document(labels, document, scheme=schemeOf(segmentationNode))


def schemeOf(segmentationNode):
    """The label scheme of the checkpoint that a segmentation was made with; the lumbar one if it is not known.

    A file keeps the tags of the segments alone, as the library reads them too.
    """
    described = result_attribute.read(segmentationNode).get("scheme")
    if described:
        return anatomy.LabelScheme.from_document(described)
    names = {tagOf(segment, SCHEME_TAG) for segment in _structureSegments(segmentationNode)} - {""}
    try:
        return anatomy.scheme(names.pop() if len(names) == 1 else _SCHEME)
    except SchemeError:  # of a later version
        return anatomy.SCHEMES[_SCHEME]


def _structureSegments(segmentationNode):
    segmentation = segmentationNode.GetSegmentation()
    return [segmentation.GetSegment(i) for i in structuresOfSegmentation(segmentationNode).values()]


def updateSummary(segmentationNode):
    """Bring the stored document in line with the segments, after names or structures have changed."""
    if result_attribute.read(segmentationNode):
        result_attribute.write(segmentationNode, _currentDocument(segmentationNode))


def _currentDocument(segmentationNode):
    """The stored document of a result, with the structures that the segmentation has now."""
    segmentation = segmentationNode.GetSegmentation()
    structures, points, sure = [], {}, []
    for structureId, segmentId in structuresOfSegmentation(segmentationNode).items():
        segment = segmentation.GetSegment(segmentId)
        confidence, quality, point = (tagOf(segment, tag) for tag in (CONFIDENCE_TAG, QUALITY_TAG, KEYPOINT_TAG))
        structures.append(
            {
                "id": structureId,
                "structure": anatomy.STRUCTURES[structureId].name,
                "name": segment.GetName(),
                "outline_quality": float(quality) if quality else None,
                "unvalidated": segment.HasTag(UNVALIDATED_TAG),
            }
        )
        if confidence:
            sure.append(float(confidence))
        if point:
            points[str(structureId)] = list(pointToWorld(segmentationNode, [float(x) for x in point.split()]))
    unvalidated = sorted(s["id"] for s in structures if s["unvalidated"])
    stored = result_attribute.read(segmentationNode)
    ids = {s["id"] for s in structures}
    if any(m["id"] not in ids for other in stored.get("alternatives", ()) for m in other["mapping"]):
        # The levels were named again: the question is answered, and the confidence was of other names.
        questions = {other["question"] for other in stored["alternatives"]}
        warnings = [w for w in stored.get("warnings", ()) if w not in questions]
        stored = {**stored, "alternatives": [], "level_confidence": None, "warnings": warnings}
    # Scenes of the first version have the confidence on the segments alone, files from elsewhere have all of it there.
    stored.setdefault("level_confidence", min(sure, default=None))
    unscaled = any(segment.HasTag(UNSCALED_TAG) for segment in _structureSegments(segmentationNode))
    stored.setdefault("scale_known", not unscaled)
    return {**stored, "structures": structures, "keypoints_lps_mm": points, "unvalidated": unvalidated}


class UndoHistory:
    """One step back for results that replaced others: the segments as they were before.

    Slicer's Segment Editor keeps its own history; this one serves where no editor is open.
    """

    def __init__(self, segmentationNode):
        self.segmentationNode = segmentationNode
        self._history = slicer.vtkSegmentationHistory()
        self._history.SetSegmentation(segmentationNode.GetSegmentation())
        self._attributes = {}

    def saveState(self):
        """Remember the segments as they are now."""
        self._attributes = {n: self.segmentationNode.GetAttribute(n) for n in result_attribute.ATTRIBUTES}
        self._history.SaveState()

    def undo(self):
        """Bring back the segments that `saveState` saw."""
        self._history.RestorePreviousState()
        for name, text in self._attributes.items():
            self.segmentationNode.SetAttribute(name, text)
        self.segmentationNode.Modified()
