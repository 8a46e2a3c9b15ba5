"""Results of the library as segmentation nodes, and back.

A segment's identity is its id (the structure's name, ``L4/L5``) and the tag `STRUCTURE_TAG`; never its voxel value,
which Slicer rewrites, nor its display name, which users change. Results lie on the voxel grid of the volume they were
made from; the segmentation gets the volume's geometry and the same parent transform, so the two cannot come apart.
"""

import csv
import json
from dataclasses import replace

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util import numpy_support

from SpineSegAILib import anatomy
from SpineSegAILib.anatomy import terminology
from SpineSegAILib.anatomy.terminology import CONFIDENCE_TAG, SCHEME_TAG, STRUCTURE_TAG, UNVALIDATED_TAG
from SpineSegAILib.errors import HintError, ImageError, SpineSegAIError
from SpineSegAILib.files import staged

from . import result_attribute
from .volumes import (
    checkVolume,
    ijkToWorldMatrix,
    imageFromMatrix,
    imageFromVolume,
    otherSeriesOfStudy,
    refusedPlane,
    segmentedVolume,
    worldTransform,
)

LOCKED_TAG = "SpineSegAI.Locked"
"""Tag of a segment that no result may change; set by the reader."""

UNCERTAINTY_TAG = "SpineSegAI.Uncertainty"
"""Tag of a segment with the mean uncertainty of its voxels, for methods that tell."""

KEYPOINT_TAG = "SpineSegAI.KeyPoint"
"""Tag of a segment with its structure's key point (LPS, mm), as the method predicted it or the reader moved it."""

CARRIED_ROLE = "SpineSegAI.CarriedTo"
"""Node references from a segmentation to what was made of it on other volumes."""

LABELMAP = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
SURFACE = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
"""Names of the representations that hold voxels, and what is shown in 3D."""

# --- results to segmentation nodes -----------------------------------------------------------------------------------


def structureOfSegment(segment):
    """Structure id that a segment holds, by its tag; None for a segment that SpineSegAI did not make."""
    text = tagOf(segment, STRUCTURE_TAG)
    return int(text) if text.isdigit() and int(text) in anatomy.STRUCTURES else None


def isLocked(segment):
    """True for a segment that results must not change."""
    return segment.HasTag(LOCKED_TAG)


def setLocked(segment, locked):
    """Protect a segment from being replaced, or give it free."""
    setTag(segment, LOCKED_TAG, "1" if locked else None)


def segmentationFromResult(result, volumeNode, segmentationNode=None, saveState=None, only=()):
    """Show a result as a segmentation node on its volume.

    In an existing node, structures that are locked stay as they are, voxel for voxel, and the new ones are fitted
    around them; unlocked structures are replaced; segments that are no structures of ours are left alone.

    :param result: `SpineSegAILib.results.Segmentation` with one voxel per voxel of the volume.
    :param volumeNode: the volume that was segmented.
    :param segmentationNode: node to update; a new one is made if not given.
    :param saveState: called once before anything is changed, so that a single undo brings back what was there, e.g.
        `qMRMLSegmentEditorWidget.saveStateForUndo` or `UndoHistory.saveState`.
    :param only: structures that were asked for; the others stay as if they were locked. Empty for all.
    :returns: the segmentation node.
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
    elif saveState is not None:
        saveState()
    with slicer.util.NodeModify(segmentationNode):
        _placeWith(segmentationNode, volumeNode)
        _writeStructures(segmentationNode, result, volumeNode, labels, frozenset(only))
        result_attribute.write(segmentationNode, {k: v for k, v in result.to_document().items() if k != "corrections"})
        if result.corrections and not segmentationNode.GetAttribute(result_attribute.LOG_ATTRIBUTE):
            segmentationNode.SetAttribute(result_attribute.LOG_ATTRIBUTE, result.corrections.to_json())
        if only:
            updateSummary(segmentationNode)
    return segmentationNode


def _newSegmentationNode(volumeNode):
    name = slicer.mrmlScene.GenerateUniqueName(_("{volume} spine").format(volume=volumeNode.GetName()))
    segmentationNode = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    segmentationNode.CreateDefaultDisplayNodes()
    return segmentationNode


def _placeWith(segmentationNode, volumeNode):
    """Same reference geometry, same transform, same study in the subject hierarchy."""
    placeInStudyOf(segmentationNode, volumeNode)
    # After the transform: it is the volume as seen from the segmentation, and what Slicer resamples to when it saves.
    segmentationNode.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)


def placeInStudyOf(node, volumeNode):
    """Give a node made from a volume the volume's transform, and its place in the subject hierarchy."""
    transformNode = volumeNode.GetParentTransformNode()
    node.SetAndObserveTransformNodeID(transformNode.GetID() if transformNode else None)
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
    writeVoxels(segmentation, labels, present, volumeNode)
    allPresent = {*present, *(i for i in lockedStructures if i is not None)}
    written = structuresOfSegmentation(segmentationNode)
    for structureId in present:
        _describe(segmentation.GetSegment(written[structureId]), structureId, result, allPresent)
    sortSegments(segmentation)
    segmentationNode.Modified()


def writeVoxels(segmentation, labels, structureIds, volumeNode):
    """Give structures their voxels, in one image that they share; segments that are not there yet are made.

    :param labels: (k, j, i) array of structure ids on the volume's voxels.
    :param structureIds: those to write; other values of the array are not looked at.
    """
    image = _denseLabelmap(labels, structureIds, volumeNode)
    structures = _structures(segmentation)
    takeOutVoxels(segmentation, [structures[i] for i in structureIds if i in structures])
    # New ones last: Slicer gives a new segment no other representations than those which the others have.
    for structureId in sorted(structureIds, key=lambda i: i not in structures):
        known = structureId in structures
        segment = segmentation.GetSegment(structures[structureId]) if known else slicer.vtkSegment()
        segment.SetLabelValue(structureIds.index(structureId) + 1)
        segment.AddRepresentation(LABELMAP, image)
        if not known:
            addStructure(segmentation, segment, structureId)


def addStructure(segmentation, segment, structureId):
    """Add a new segment for a structure, with the structure's name as id where that is free."""
    segment.SetTag(STRUCTURE_TAG, str(structureId))
    segmentId = anatomy.STRUCTURES[structureId].name
    if segmentation.GetSegment(segmentId) is not None:  # a segment of the user's own has that id
        segmentId = segmentation.GenerateUniqueSegmentID(segmentId)
    segmentation.AddSegment(segment, segmentId)


def takeOutVoxels(segmentation, segmentIds):
    """Take the voxels away from segments, also where other segments go on using the same image."""
    values = {}
    for segmentId in segmentIds:
        segment = segmentation.GetSegment(segmentId)
        image = segment.GetRepresentation(LABELMAP)
        if image is not None:
            values.setdefault(image, []).append(segment.GetLabelValue())
            segment.RemoveRepresentation(LABELMAP)
    used = {segmentation.GetSegment(i).GetRepresentation(LABELMAP) for i in segmentation.GetSegmentIDs()}
    for image, gone in values.items():
        if image in used and image.GetPointData().GetScalars() is not None:
            array = arrayOfImage(image)
            array[np.isin(array, gone)] = 0
            image.Modified()


def _describe(segment, structureId, result, present):
    """Everything but the voxels of a structure's segment, as a result has it."""
    nameSegment(segment, structureId, present, result.scheme.extent, structureId in result.unvalidated)
    segment.SetTag(SCHEME_TAG, result.scheme.name)
    point = result.keypoints.get(structureId)
    unsure = result.provenance.get("uncertainty", {}).get(anatomy.STRUCTURES[structureId].name)
    for tag, value in (
        (UNCERTAINTY_TAG, f"{unsure:.4f}" if unsure is not None else None),
        (CONFIDENCE_TAG, f"{result.confidence[structureId]:.4f}" if structureId in result.confidence else None),
        (UNVALIDATED_TAG, "1" if structureId in result.unvalidated else None),
        (KEYPOINT_TAG, " ".join(f"{x:.3f}" for x in point) if point is not None else None),
    ):
        setTag(segment, tag, value)


def nameSegment(segment, structureId, present, extent, unvalidated):
    """What a segment is called, in words, colour and codes.

    :param present: ids in the case; discs are named from their neighbours.
    :param extent: of vertebral masks, as in the scheme.
    """
    segment.SetName(segmentName(structureId, present, extent, unvalidated))
    segment.SetColor(*anatomy.STRUCTURES[structureId].color)
    entry = terminology.terminology_entry(structureId, present, extent)
    segment.SetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), entry)
    segment.SetTag(STRUCTURE_TAG, str(structureId))


def segmentName(structureId, present, extent, unvalidated):
    """Name of a structure's segment for readers."""
    name = anatomy.display_name(structureId, present, extent)
    return _("{structure} (unvalidated)").format(structure=name) if unvalidated else name


def setTag(segment, tag, value):
    """Set a tag, or remove it with None; a segment that has it so already is not modified."""
    if value is None:
        if segment.HasTag(tag):
            segment.RemoveTag(tag)
    elif tagOf(segment, tag) != value:
        segment.SetTag(tag, value)


def _denseLabelmap(labels, structureIds, volumeNode):
    """One image for all structures: value n is the n-th of them. Cropped to where there is anything."""
    lookup = np.zeros(int(labels.max(initial=0)) + 1, np.uint8 if len(structureIds) < 256 else np.int16)
    for value, structureId in enumerate(structureIds, start=1):
        if structureId < len(lookup):
            lookup[structureId] = value
    dense = lookup[labels]
    occupied = [np.flatnonzero(dense.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    ranges = [(int(o[0]), int(o[-1]) + 1) if len(o) else (0, 1) for o in occupied]
    cropped = np.ascontiguousarray(dense[tuple(slice(*r) for r in ranges)])
    image = slicer.vtkOrientedImageData()
    (k0, k1), (j0, j1), (i0, i1) = ranges
    image.SetExtent(i0, i1 - 1, j0, j1 - 1, k0, k1 - 1)
    image.GetPointData().SetScalars(numpy_support.numpy_to_vtk(cropped.ravel(), deep=True))
    _setGeometry(image, volumeNode)
    return image


def _setGeometry(orientedImage, volumeNode):
    matrix = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(matrix)
    orientedImage.SetGeometryFromImageToWorldMatrix(matrix)


def sortSegments(segmentation):
    """Anatomical order, top down; segments that are no structures keep their order, at the end."""
    ids = list(segmentation.GetSegmentIDs())
    structures = {i: structureOfSegment(segmentation.GetSegment(i)) for i in ids}
    rank = {sid: n for n, sid in enumerate(anatomy.sorted_ids(s for s in structures.values() if s is not None))}
    ordered = sorted(ids, key=lambda i: rank.get(structures[i], len(rank)))
    if ordered != ids:
        segmentation.ReorderSegments(ordered)


# --- segmentation nodes to labels ------------------------------------------------------------------------------------


def mergedArray(segmentationNode, segments, volumeNode):
    """(k, j, i) array on the volume's voxels.

    :param segments: segment id → value to give its voxels; where segments overlap, the last one is on top.
    """
    if _sameTransform(segmentationNode, volumeNode):
        pasted = _pasted(segmentationNode, segments, volumeNode)
        if pasted is not None:
            return pasted
        geometry = slicer.vtkOrientedImageData()
        geometry.SetExtent(volumeNode.GetImageData().GetExtent())
        _setGeometry(geometry, volumeNode)
        return arrayOfImage(_mergedImage(segmentationNode, segments, geometry))
    import SimpleITK as sitk

    image = _mergedImage(segmentationNode, segments, None)
    extentStart = np.eye(4)  # the array's first voxel is the first one of the extent
    extentStart[:3, 3] = image.GetExtent()[::2]
    ijkToRas = worldTransform(segmentationNode) @ imageToWorld(image) @ extentStart
    moving = imageFromMatrix(arrayOfImage(image), ijkToRas, segmentationNode.GetName())
    fixed = imageFromVolume(volumeNode)
    return sitk.GetArrayFromImage(sitk.Resample(moving, fixed, sitk.Transform(), sitk.sitkNearestNeighbor, 0))


def _pasted(segmentationNode, segments, volumeNode):
    """`mergedArray` for segments that lie on the volume's voxel grid, as they do unless they were drawn on another one.

    Ten times as quick as letting Slicer resample every segment. None where a segment does not lie so.
    """
    segmentation = segmentationNode.GetSegmentation()
    result = np.zeros(volumeNode.GetImageData().GetDimensions()[::-1], np.int16)
    image, lookup = None, {}
    for segmentId, value in segments.items():
        segment = segmentation.GetSegment(segmentId)
        own = segment.GetRepresentation(LABELMAP)
        if own is None:  # an empty segment
            continue
        if not _onGridOf(own, volumeNode):
            return None
        if own is not image:  # segments that share an image do not overlap: one pass for all of them
            _paste(result, image, lookup)
            image, lookup = own, {}
        lookup[segment.GetLabelValue()] = value
    _paste(result, image, lookup)
    return result


def _onGridOf(image, volumeNode):
    grid = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(grid)
    return np.allclose(imageToWorld(image), slicer.util.arrayFromVTKMatrix(grid), atol=1e-4)


def imageToWorld(image):
    """(4, 4) matrix from voxel indices (i, j, k) of an oriented image to its segmentation's coordinates (RAS, mm)."""
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def _paste(result, image, lookup):
    """Write an image's values into an array, each as the lookup says; what the lookup lacks is not written."""
    if image is None or image.GetPointData().GetScalars() is None or min(image.GetDimensions()) < 1:
        return
    extent = image.GetExtent()
    into, source = [], []
    for axis, size in zip((2, 1, 0), result.shape, strict=True):
        first, last = max(extent[2 * axis], 0), min(extent[2 * axis + 1], size - 1)
        into.append(slice(first, last + 1))
        source.append(slice(first - extent[2 * axis], last + 1 - extent[2 * axis]))
    values = arrayOfImage(image)[tuple(source)]
    table = np.zeros(int(max(values.max(initial=0), *lookup)) + 1, np.int16)
    for value, new in lookup.items():
        table[value] = new
    found = table[values]
    part = result[tuple(into)]
    np.copyto(part, found, where=found != 0)


def _sameTransform(first, second):
    return np.allclose(worldTransform(first), worldTransform(second))


def _mergedImage(segmentationNode, segments, geometry):
    image = slicer.vtkOrientedImageData()
    mode = (
        slicer.vtkSegmentation.EXTENT_REFERENCE_GEOMETRY
        if geometry
        else slicer.vtkSegmentation.EXTENT_UNION_OF_SEGMENTS
    )
    ids, values = vtk.vtkStringArray(), vtk.vtkIntArray()
    for segmentId, value in segments.items():
        ids.InsertNextValue(segmentId)
        values.InsertNextValue(value)
    done = segmentationNode.GenerateMergedLabelmapForAllSegments(image, mode, geometry, ids, values)
    if not done or image.GetPointData().GetScalars() is None:
        raise ImageError(_("The segments of “{name}” cannot be read.").format(name=segmentationNode.GetName()))
    return image


def arrayOfImage(image):
    """(k, j, i) view of the voxels of an oriented image."""
    shape = image.GetDimensions()[::-1]
    return numpy_support.vtk_to_numpy(image.GetPointData().GetScalars()).reshape(shape)


def structuresOfSegmentation(segmentationNode):
    """Structure id → segment id, for the segments that hold structures of ours, in the node's order."""
    return _structures(segmentationNode.GetSegmentation())


def _structures(segmentation):
    found = {}
    for segmentId in segmentation.GetSegmentIDs():
        structureId = structureOfSegment(segmentation.GetSegment(segmentId))
        if structureId is not None:
            found[structureId] = segmentId
    return found


def labelsFromSegmentation(segmentationNode, volumeNode):
    """Label image on the volume's voxels, in the world's geometry; values are structure ids.

    :raises HintError: no segment is a structure that SpineSegAI knows.
    """
    structures = structuresOfSegmentation(segmentationNode)
    if not structures:
        raise HintError(
            _("No segment of “{name}” is a structure that SpineSegAI made.").format(name=segmentationNode.GetName()),
            _("Select a segmentation that SpineSegAI made."),
        )
    return _labels(segmentationNode, structures, volumeNode)


def lockedLabels(segmentationNode, volumeNode):
    """The same of the locked structures alone; None if none is locked."""
    segmentation = segmentationNode.GetSegmentation()
    structures = {
        structureId: segmentId
        for structureId, segmentId in structuresOfSegmentation(segmentationNode).items()
        if isLocked(segmentation.GetSegment(segmentId))
    }
    return _labels(segmentationNode, structures, volumeNode) if structures else None


def _labels(segmentationNode, structures, volumeNode):
    merged = mergedArray(segmentationNode, {segmentId: value for value, segmentId in structures.items()}, volumeNode)
    return imageFromMatrix(merged.astype(np.int16), ijkToWorldMatrix(volumeNode), segmentationNode.GetName())


def resultFromSegmentation(segmentationNode, volumeNode):
    """The `Segmentation` that a node shows now, corrections included.

    :raises HintError: no segment is a structure that SpineSegAI made.
    """
    from SpineSegAILib.results import Segmentation

    labels = labelsFromSegmentation(segmentationNode, volumeNode)
    document = _currentDocument(segmentationNode)
    log = segmentationNode.GetAttribute(result_attribute.LOG_ATTRIBUTE)
    if log:
        document["corrections"] = json.loads(log)
    return Segmentation.from_document(labels, document, scheme=schemeOf(segmentationNode))


def schemeOf(segmentationNode):
    """The label scheme of the checkpoint that a segmentation was made with; the lumbar one if it is not known."""
    described = result_attribute.read(segmentationNode).get("scheme")
    return anatomy.LabelScheme.from_document(described) if described else anatomy.SCHEMES["lumbar-mr"]


def updateSummary(segmentationNode):
    """Bring the stored document in line with the segments, after names or structures have changed."""
    if result_attribute.read(segmentationNode):
        result_attribute.write(segmentationNode, _currentDocument(segmentationNode))


def _currentDocument(segmentationNode):
    """The stored document of a result, with the structures that the segmentation has now."""
    segmentation = segmentationNode.GetSegmentation()
    structures, points = [], {}
    for structureId, segmentId in structuresOfSegmentation(segmentationNode).items():
        segment = segmentation.GetSegment(segmentId)
        confidence, point = tagOf(segment, CONFIDENCE_TAG), tagOf(segment, KEYPOINT_TAG)
        structures.append(
            {
                "id": structureId,
                "structure": anatomy.STRUCTURES[structureId].name,
                "name": segment.GetName(),
                "confidence": float(confidence) if confidence else None,
                "unvalidated": segment.HasTag(UNVALIDATED_TAG),
            }
        )
        if point:
            points[str(structureId)] = [float(x) for x in point.split()]
    unvalidated = sorted(s["id"] for s in structures if s["unvalidated"])
    stored = result_attribute.read(segmentationNode)
    return {**stored, "structures": structures, "keypoints_lps_mm": points, "unvalidated": unvalidated}


def tagOf(segment, tag):
    """A tag's text; empty where the segment does not have it."""
    value = vtk.mutable("")
    segment.GetTag(tag, value)
    return value.get()


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


# --- other series ----------------------------------------------------------------------------------------------------


def applyToOtherSeries(segmentationNode, volumeNode):
    """See `SpineSegAILogic.applyToOtherSeries`."""
    result = resultFromSegmentation(segmentationNode, volumeNode)
    report = []
    for other in otherSeriesOfStudy(volumeNode):
        try:
            carried = _carried(result, segmentationNode, volumeNode, other)
            report.append((other, segmentationFromResult(carried, other), _("carried over")))
        except SpineSegAIError as error:
            report.append((other, None, str(error)))
    return report


def carriedTo(segmentationNode, other):
    """What was carried from a segmentation to another volume before; None if nothing was."""
    for index in range(segmentationNode.GetNumberOfNodeReferences(CARRIED_ROLE)):
        node = segmentationNode.GetNthNodeReference(CARRIED_ROLE, index)
        if node is not None and segmentedVolume(node) is other:
            return node
    return None


def carryTo(segmentationNode, volumeNode, other, saveState=None):
    """Carry a segmentation, by position, to another volume.

    What was carried there before is replaced, except for its locked structures. Locked structures stay locked.

    :param saveState: called once before that is changed.
    :returns: the other volume's segmentation node.
    :raises ImageError: the other volume cannot be segmented, or shows another part of the body.
    """
    carried = _carried(resultFromSegmentation(segmentationNode, volumeNode), segmentationNode, volumeNode, other)
    before = carriedTo(segmentationNode, other)
    made = segmentationFromResult(carried, other, before, saveState)
    if before is None:
        segmentationNode.AddNodeReferenceID(CARRIED_ROLE, made.GetID())
    source, target = segmentationNode.GetSegmentation(), made.GetSegmentation()
    there = structuresOfSegmentation(made)
    for structureId, segmentId in structuresOfSegmentation(segmentationNode).items():
        if isLocked(source.GetSegment(segmentId)) and structureId in there:
            setLocked(target.GetSegment(there[structureId]), True)
    return made


def _carried(result, segmentationNode, volumeNode, other):
    """The result on the voxels of another series."""
    checkVolume(other)
    refused = refusedPlane(other, ("sagittal", "isotropic"))
    if refused:
        raise ImageError(_("not carried over: a {plane} series").format(plane=refused))
    warning = _("Carried over by position from “{volume}”: check it, the patient may have moved.")
    carried = replace(
        result,
        labels=labelsFromSegmentation(segmentationNode, other),
        confidence={},
        warnings=[warning.format(volume=volumeNode.GetName()), *result.warnings],
        provenance={**result.provenance, "carried_from": volumeNode.GetName()},
    )
    if not carried.present:
        raise ImageError(_("not carried over: the two series do not overlap"))
    return carried


# --- views and tables ------------------------------------------------------------------------------------------------


def centreOfSpine(segmentationNode):
    """World position (RAS, mm) to look at: the middle of the structures' common box."""
    bounds = [0.0] * 6
    segmentationNode.GetRASBounds(bounds)
    return [(bounds[2 * axis] + bounds[2 * axis + 1]) / 2 for axis in range(3)]


def centreViews(volumeNode, segmentationNode):
    """Show the volume in the slice views, and jump to the spine in all of them."""
    slicer.util.setSliceViewerLayers(background=volumeNode, fit=True)
    centre = centreOfSpine(segmentationNode)
    slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *centre, slicer.vtkMRMLSliceNode.CenteredJumpSlice)
    layoutManager = slicer.app.layoutManager()
    if layoutManager is not None:
        for index in range(layoutManager.threeDViewCount):
            layoutManager.threeDWidget(index).threeDView().resetFocalPoint()


def lookAt(position):
    """Move all slice views to a world position (RAS, mm), and turn the 3D views' cameras about it from now on."""
    slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *position, slicer.vtkMRMLSliceNode.CenteredJumpSlice)
    for cameraNode in slicer.util.getNodesByClass("vtkMRMLCameraNode"):
        camera = cameraNode.GetCamera()
        shift = np.subtract(position, camera.GetFocalPoint())
        camera.SetPosition(*np.add(camera.GetPosition(), shift))
        camera.SetFocalPoint(*position)
        cameraNode.ResetClippingRange()


def tableFromMeasurements(columns, rows, segmentationNode):
    """A table node with one row per structure; the one that belongs to the segmentation already is filled anew.

    :param columns: `worker_protocol.Column` per column.
    """
    role = "SpineSegAI.Measurements"
    tableNode = segmentationNode.GetNodeReference(role)
    if tableNode is None:
        name = _("{segmentation} measurements").format(segmentation=segmentationNode.GetName())
        tableNode = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", slicer.mrmlScene.GenerateUniqueName(name))
        segmentationNode.SetNodeReferenceID(role, tableNode.GetID())
    with slicer.util.NodeModify(tableNode):
        tableNode.RemoveAllColumns()
        for column, values in zip(columns, zip(*rows, strict=True), strict=True):
            tableNode.AddColumn(_tableColumn(column.key, values))
            tableNode.SetColumnTitle(column.key, column.title)
            tableNode.SetColumnDescription(column.key, column.description)
        tableNode.SetUseColumnTitleAsColumnHeader(True)
    return tableNode


def _tableColumn(name, values):
    """A VTK array of a column: numbers where all are numbers or missing, else text."""
    if any(isinstance(value, (str, bool)) for value in values):
        array, missing = vtk.vtkStringArray(), ""
        texts = {True: _("yes"), False: ""}
        values = [texts[value] if isinstance(value, bool) else value for value in values]
    else:
        array, missing = vtk.vtkDoubleArray(), float("nan")
    array.SetName(name)
    for value in values:
        array.InsertNextValue(missing if value is None else value)
    return array


def writeTable(tableNode, path):
    """Write a table node to a CSV file, with the columns' stable keys as header; whole or not at all.

    :raises OutputError: the file cannot be written.
    """
    table = tableNode.GetTable()
    columns = [table.GetColumn(index) for index in range(table.GetNumberOfColumns())]
    with staged(path) as (place,), place.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([column.GetName() for column in columns])
        for row in range(table.GetNumberOfRows()):
            writer.writerow([_cell(column.GetValue(row)) for column in columns])


def _cell(value):
    """A number with as many digits as mean something; nothing where there is none."""
    if isinstance(value, str):
        return value
    return "" if np.isnan(value) else f"{value:.3f}".rstrip("0").rstrip(".")


def showTable(tableNode):
    """Show a table in the layout's table view, where there are views; in a layout that has one."""
    layoutManager = slicer.app.layoutManager()
    if layoutManager is None:
        return
    layoutManager.setLayout(slicer.modules.tables.logic().GetLayoutWithTable(layoutManager.layout))
    selection = slicer.app.applicationLogic().GetSelectionNode()
    selection.SetActiveTableID(tableNode.GetID())
    slicer.app.applicationLogic().PropagateTableSelection()
