"""Results of the library as segmentation nodes, and back.

A segment's identity is its id (the structure's name, ``L4/L5``) and the tag `STRUCTURE_TAG`; never its voxel value,
which Slicer rewrites, nor its display name, which users change. Results lie on the voxel grid of the volume they were
made from; the segmentation gets the volume's geometry and the same parent transform, so the two cannot come apart.
"""

from dataclasses import replace

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util import numpy_support

from SpineSegAILib import anatomy, terminology
from SpineSegAILib.errors import HintError, ImageError, SpineSegAIError
from SpineSegAILib.results import CONFIDENCE_TAG, SCHEME_TAG, STRUCTURE_TAG, UNVALIDATED_TAG, Segmentation

from . import result_attribute
from .volumes import (
    checkVolume,
    ijkToWorldMatrix,
    imageFromMatrix,
    imageFromVolume,
    otherSeriesOfStudy,
    refusedPlane,
    worldTransform,
)

LOCKED_TAG = "SpineSegAI.Locked"
"""Tag of a segment that no result may change; set by the reader."""

# --- results to segmentation nodes -----------------------------------------------------------------------------------


def structureOfSegment(segment):
    """Structure id that a segment holds, by its tag; None for a segment that SpineSegAI did not make."""
    text = _tag(segment, STRUCTURE_TAG)
    return int(text) if text.isdigit() and int(text) in anatomy.STRUCTURES else None


def isLocked(segment):
    """True for a segment that results must not change."""
    return segment.HasTag(LOCKED_TAG)


def setLocked(segment, locked):
    """Protect a segment from being replaced, or give it free."""
    if locked:
        segment.SetTag(LOCKED_TAG, "1")
    else:
        segment.RemoveTag(LOCKED_TAG)


def segmentationFromResult(result, volumeNode, segmentationNode=None, saveState=None):
    """Show a result as a segmentation node on its volume.

    In an existing node, structures that are locked stay as they are, voxel for voxel, and the new ones are fitted
    around them; unlocked structures are replaced; segments that are no structures of ours are left alone.

    :param result: `SpineSegAILib.results.Segmentation` with one voxel per voxel of the volume.
    :param volumeNode: the volume that was segmented.
    :param segmentationNode: node to update; a new one is made if not given.
    :param saveState: called once before anything is changed, so that a single undo brings back what was there, e.g.
        `qMRMLSegmentEditorWidget.saveStateForUndo` or `UndoHistory.saveState`.
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
        _writeStructures(segmentationNode, result, volumeNode, labels)
        result_attribute.write(segmentationNode, result.summary())
    return segmentationNode


def _newSegmentationNode(volumeNode):
    name = slicer.mrmlScene.GenerateUniqueName(_("{volume} spine").format(volume=volumeNode.GetName()))
    segmentationNode = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    segmentationNode.CreateDefaultDisplayNodes()
    return segmentationNode


def _placeWith(segmentationNode, volumeNode):
    """Same reference geometry, same transform, same study in the subject hierarchy."""
    transformNode = volumeNode.GetParentTransformNode()
    segmentationNode.SetAndObserveTransformNodeID(transformNode.GetID() if transformNode else None)
    # After the transform: it is the volume as seen from the segmentation, and what Slicer resamples to when it saves.
    segmentationNode.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    volumeItem = hierarchy.GetItemByDataNode(volumeNode)
    segmentationItem = hierarchy.GetItemByDataNode(segmentationNode)
    if volumeItem and segmentationItem:
        hierarchy.SetItemParent(segmentationItem, hierarchy.GetItemParent(volumeItem))


def _writeStructures(segmentationNode, result, volumeNode, labels):
    segmentation = segmentationNode.GetSegmentation()
    locked, replaceable = {}, {}
    for segmentId in segmentation.GetSegmentIDs():
        segment = segmentation.GetSegment(segmentId)
        structureId = structureOfSegment(segment)
        if isLocked(segment):
            locked[segmentId] = structureId
        elif structureId is not None:
            replaceable[structureId] = segmentId
    if locked:
        occupied = _merged(segmentationNode, dict.fromkeys(locked, 1), volumeNode)
        labels = np.where(occupied > 0, 0, labels)
    lockedStructures = set(locked.values())
    present = [i for i in result.present if i not in lockedStructures]

    # Surfaces of what is replaced would be stale; they are made again when asked for.
    segmentationNode.RemoveClosedSurfaceRepresentation()
    for structureId, segmentId in replaceable.items():
        if structureId not in present:
            segmentation.RemoveSegment(segmentId)
    image = _denseLabelmap(labels, present, volumeNode)
    representation = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
    allPresent = {*present, *(i for i in lockedStructures if i is not None)}
    for value, structureId in enumerate(present, start=1):
        segmentId = replaceable.get(structureId)
        if segmentId is None:
            segment = slicer.vtkSegment()
            segment.SetLabelValue(value)
            segment.AddRepresentation(representation, image)
            segmentId = anatomy.STRUCTURES[structureId].name
            if segmentation.GetSegment(segmentId) is not None:  # a segment of the user's own has that id
                segmentId = segmentation.GenerateUniqueSegmentID(segmentId)
            segmentation.AddSegment(segment, segmentId)
        else:
            segment = segmentation.GetSegment(segmentId)
            segmentation.ClearSegment(segmentId)
            segment.SetLabelValue(value)
            segment.AddRepresentation(representation, image)
        _describe(segment, structureId, result, allPresent)
    _sort(segmentation)
    segmentationNode.Modified()


def _describe(segment, structureId, result, present):
    """Name, colour, terminology and tags of a structure's segment."""
    structure = anatomy.STRUCTURES[structureId]
    name = anatomy.display_name(structureId, present, result.scheme.extent)
    if structureId in result.unvalidated:
        name = _("{structure} (unvalidated)").format(structure=name)
    segment.SetName(name)
    segment.SetColor(*structure.color)
    entry = terminology.terminology_entry(structureId, present, result.scheme.extent)
    segment.SetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), entry)
    segment.SetTag(STRUCTURE_TAG, str(structureId))
    segment.SetTag(SCHEME_TAG, result.scheme.name)
    for tag, value in (
        (CONFIDENCE_TAG, f"{result.confidence[structureId]:.4f}" if structureId in result.confidence else None),
        (UNVALIDATED_TAG, "1" if structureId in result.unvalidated else None),
    ):
        if value is None:
            segment.RemoveTag(tag)
        else:
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


def _sort(segmentation):
    """Anatomical order, top down; segments that are no structures keep their order, at the end."""
    ids = list(segmentation.GetSegmentIDs())
    structures = {i: structureOfSegment(segmentation.GetSegment(i)) for i in ids}
    rank = {sid: n for n, sid in enumerate(anatomy.sorted_ids(s for s in structures.values() if s is not None))}
    segmentation.ReorderSegments(sorted(ids, key=lambda i: rank.get(structures[i], len(rank))))


# --- segmentation nodes to labels ------------------------------------------------------------------------------------


def _merged(segmentationNode, segments, volumeNode):
    """(k, j, i) array on the volume's voxels.

    :param segments: segment id → value to give its voxels; where segments overlap, the last one is on top.
    """
    if _sameTransform(segmentationNode, volumeNode):
        geometry = slicer.vtkOrientedImageData()
        geometry.SetExtent(volumeNode.GetImageData().GetExtent())
        _setGeometry(geometry, volumeNode)
        return _array(_mergedImage(segmentationNode, segments, geometry))
    import SimpleITK as sitk

    image = _mergedImage(segmentationNode, segments, None)
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    extentStart = np.eye(4)  # the array's first voxel is the first one of the extent
    extentStart[:3, 3] = image.GetExtent()[::2]
    ijkToRas = worldTransform(segmentationNode) @ slicer.util.arrayFromVTKMatrix(matrix) @ extentStart
    moving = imageFromMatrix(_array(image), ijkToRas, segmentationNode.GetName())
    fixed = imageFromVolume(volumeNode)
    return sitk.GetArrayFromImage(sitk.Resample(moving, fixed, sitk.Transform(), sitk.sitkNearestNeighbor, 0))


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


def _array(image):
    shape = image.GetDimensions()[::-1]
    return numpy_support.vtk_to_numpy(image.GetPointData().GetScalars()).reshape(shape)


def structuresOfSegmentation(segmentationNode):
    """Structure id → segment id, for the segments that hold structures of ours, in the node's order."""
    segmentation = segmentationNode.GetSegmentation()
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
    merged = _merged(segmentationNode, {segmentId: value for value, segmentId in structures.items()}, volumeNode)
    return imageFromMatrix(merged.astype(np.int16), ijkToWorldMatrix(volumeNode), segmentationNode.GetName())


def resultFromSegmentation(segmentationNode, volumeNode):
    """The `Segmentation` that a node shows now, corrections included.

    :raises HintError: no segment is a structure that SpineSegAI made.
    """
    labels = labelsFromSegmentation(segmentationNode, volumeNode)
    summary = result_attribute.read(segmentationNode)
    described = summary.get("scheme")
    if described:
        extent = anatomy.Extent(described["extent"]) if described["extent"] else None
        scheme = anatomy.LabelScheme(
            described["name"], described["title"], tuple(described["ids"]), extent, described["modality"]
        )
    else:
        scheme = anatomy.SCHEMES["lumbar-mr"]
    segmentation = segmentationNode.GetSegmentation()
    structures = structuresOfSegmentation(segmentationNode)
    return Segmentation(
        labels=labels,
        scheme=scheme,
        confidence={
            s: float(_tag(segmentation.GetSegment(i), CONFIDENCE_TAG))
            for s, i in structures.items()
            if segmentation.GetSegment(i).HasTag(CONFIDENCE_TAG)
        },
        warnings=list(summary.get("warnings", ())),
        unvalidated=frozenset(s for s, i in structures.items() if segmentation.GetSegment(i).HasTag(UNVALIDATED_TAG)),
        provenance=dict(summary.get("provenance", {})),
    )


def _tag(segment, tag):
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
        self._summary = {}

    def saveState(self):
        """Remember the segments as they are now."""
        self._summary = result_attribute.read(self.segmentationNode)
        self._history.SaveState()

    def undo(self):
        """Bring back the segments that `saveState` saw."""
        self._history.RestorePreviousState()
        result_attribute.write(self.segmentationNode, self._summary)
        self.segmentationNode.Modified()


# --- other series ----------------------------------------------------------------------------------------------------


def applyToOtherSeries(segmentationNode, volumeNode):
    """See `SpineSegAILogic.applyToOtherSeries`."""
    scheme = resultFromSegmentation(segmentationNode, volumeNode)
    report = []
    for other in otherSeriesOfStudy(volumeNode):
        try:
            checkVolume(other)
            refused = refusedPlane(other, ("sagittal", "isotropic"))
            if refused:
                raise ImageError(_("not carried over: a {plane} series").format(plane=refused))
            carried = replace(
                scheme,
                labels=labelsFromSegmentation(segmentationNode, other),
                confidence={},
                warnings=[
                    _("Carried over by position from “{volume}”: check it, the patient may have moved.").format(
                        volume=volumeNode.GetName()
                    ),
                    *scheme.warnings,
                ],
                provenance={**scheme.provenance, "carried_from": volumeNode.GetName()},
            )
            if not carried.present:
                raise ImageError(_("not carried over: the two series do not overlap"))
            report.append((other, segmentationFromResult(carried, other), _("carried over")))
        except SpineSegAIError as error:
            report.append((other, None, str(error)))
    return report


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


def showTable(tableNode):
    """Show a table in the layout's table view, where there are views."""
    if slicer.app.layoutManager() is None:
        return
    selection = slicer.app.applicationLogic().GetSelectionNode()
    selection.SetActiveTableID(tableNode.GetID())
    slicer.app.applicationLogic().PropagateTableSelection()
