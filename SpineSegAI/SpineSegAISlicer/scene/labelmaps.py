"""Voxels of segments: written, taken out, read back on the grid of a volume.

Results lie on the voxel grid of the volume they were made from; the segmentation gets the volume's geometry and the
same parent transform. Where one of the two is moved or hardened later without the other, voxels are read and written
where both lie in the world.
"""

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util import numpy_support

from SpineSegAILib.errors import HintError, ImageError
from SpineSegAILib.results import check_overlap

from .segments import addStructure, isLocked, segmentOf, structuresOf, structuresOfSegmentation, takeOverNames
from .volumes import ijkToRasMatrix, ijkToWorldMatrix, imageFromMatrix, refuseNonLinear, worldTransform

LABELMAP = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
"""Name of the representation that holds voxels."""


def gridIn(segmentationNode, volumeNode):
    """(4, 4) matrix from a volume's voxel indices (i, j, k) to a segmentation's coordinates (RAS, mm).

    The coordinates are those in which its segments are stored, under its own parent transform.

    :raises ImageError: the two are under different transforms, and one of these is not linear.
    """
    if segmentationNode.GetParentTransformNode() is volumeNode.GetParentTransformNode():
        return ijkToRasMatrix(volumeNode)
    for node in (segmentationNode, volumeNode):
        refuseNonLinear(node)
    return np.linalg.inv(worldTransform(segmentationNode)) @ ijkToWorldMatrix(volumeNode)


def writeVoxels(segmentationNode, labels, structureIds, volumeNode):
    """Give structures their voxels, in one image that they share; segments that are not there yet are made.

    :param labels: (k, j, i) array of structure ids on the volume's voxels.
    :param structureIds: those to write; other values of the array are not looked at.
    :raises ImageError: see `gridIn`; nothing was changed.
    """
    image = _denseLabelmap(labels, structureIds, gridIn(segmentationNode, volumeNode))
    segmentation = segmentationNode.GetSegmentation()
    structures = structuresOf(segmentation)
    takeOutVoxels(segmentation, [structures[i] for i in structureIds if i in structures])
    # New ones last: Slicer gives a new segment no other representations than those which the others have.
    for structureId in sorted(structureIds, key=lambda i: i not in structures):
        known = structureId in structures
        segment = segmentation.GetSegment(structures[structureId]) if known else slicer.vtkSegment()
        segment.SetLabelValue(structureIds.index(structureId) + 1)
        segment.AddRepresentation(LABELMAP, image)
        if not known:
            addStructure(segmentation, segment, structureId)


def structuresAside(segmentation):
    """Structures that are not in the image which most segments share; written together, they share a second one."""
    structures = structuresOf(segmentation)
    held = {s: segmentation.GetSegment(i).GetRepresentation(LABELMAP) for s, i in structures.items()}
    images = [image for image in held.values() if image is not None]
    main = max(images, key=images.count, default=None)
    return {s for s, image in held.items() if image is not None and image is not main}


def takeOutVoxels(segmentation, segmentIds):
    """Take the voxels away from segments, also where other segments keep using the same image."""
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


def _denseLabelmap(labels, structureIds, grid):
    """One image for all structures: value n is the n-th of them. Cropped to where there is anything.

    :param grid: as `gridIn` has it.
    """
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
    image.SetGeometryFromImageToWorldMatrix(slicer.util.vtkMatrixFromArray(grid))
    return image


def mergedArray(segmentationNode, segments, volumeNode):
    """(k, j, i) array on the volume's voxels.

    :param segments: segment id → value to give its voxels; where segments overlap, the last one is on top.
    :raises ImageError: see `gridIn`.
    """
    grid = gridIn(segmentationNode, volumeNode)
    pasted = _pasted(segmentationNode, segments, volumeNode, grid)
    if pasted is not None:
        return pasted
    geometry = slicer.vtkOrientedImageData()
    geometry.SetExtent(volumeNode.GetImageData().GetExtent())
    geometry.SetGeometryFromImageToWorldMatrix(slicer.util.vtkMatrixFromArray(grid))
    return arrayOfImage(_mergedImage(segmentationNode, segments, geometry))


def _pasted(segmentationNode, segments, volumeNode, grid):
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
        if not np.allclose(imageToWorld(own), grid, atol=1e-4):
            return None
        if own is not image:  # segments that share an image do not overlap: one pass for all of them
            _paste(result, image, lookup)
            image, lookup = own, {}
        lookup[segment.GetLabelValue()] = value
    _paste(result, image, lookup)
    return result


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


def _mergedImage(segmentationNode, segments, geometry):
    image = slicer.vtkOrientedImageData()
    ids, values = vtk.vtkStringArray(), vtk.vtkIntArray()
    for segmentId, value in segments.items():
        ids.InsertNextValue(segmentId)
        values.InsertNextValue(value)
    whole = slicer.vtkSegmentation.EXTENT_REFERENCE_GEOMETRY
    done = segmentationNode.GenerateMergedLabelmapForAllSegments(image, whole, geometry, ids, values)
    if not done or image.GetPointData().GetScalars() is None:
        raise ImageError(_("The segments of “{name}” cannot be read.").format(name=segmentationNode.GetName()))
    return image


def arrayOfImage(image):
    """(k, j, i) view of the voxels of an oriented image."""
    shape = image.GetDimensions()[::-1]
    return numpy_support.vtk_to_numpy(image.GetPointData().GetScalars()).reshape(shape)


def labelsFromSegmentation(segmentationNode, volumeNode):
    """Label image on the volume's voxels, in the world's geometry; values are structure ids.

    :raises HintError: no segment is a structure that SpineSegAI knows.
    :raises CorrectionError: renamed by hand, two segments are the same structure.
    """
    takeOverNames(segmentationNode)
    structures = structuresOfSegmentation(segmentationNode)
    if not structures:
        raise HintError(
            _("No segment of “{name}” is a structure that SpineSegAI made.").format(name=segmentationNode.GetName()),
            _("Select a segmentation that SpineSegAI made."),
        )
    return _labels(segmentationNode, structures, volumeNode)


def lockedLabels(segmentationNode, volumeNode):
    """The same of the locked structures alone; None if none is locked."""
    takeOverNames(segmentationNode)
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


def checkedLabels(segmentationNode, volumeNode):
    """`labelsFromSegmentation` for tools that change voxels.

    :raises CorrectionError: segments overlap, since a voxel of a result belongs to one structure.
    """
    refuseOverlap(segmentationNode, volumeNode)
    return labelsFromSegmentation(segmentationNode, volumeNode)


def refuseOverlap(segmentationNode, volumeNode):
    """Two segments drawn over each other are a sentence, not a surprise.

    Segments that share an image cannot overlap: looked at are images, not segments, until two do.

    :raises CorrectionError: names two that share voxels.
    """
    segmentation = segmentationNode.GetSegmentation()
    layers = {}
    for structureId, segmentId in structuresOfSegmentation(segmentationNode).items():
        image = segmentation.GetSegment(segmentId).GetRepresentation(LABELMAP)
        layers.setdefault(image, {})[segmentId] = structureId
    if len(layers) < 2:
        return
    held = [mergedArray(segmentationNode, segments, volumeNode) for segments in layers.values()]
    if (np.sum([array != 0 for array in held], axis=0, dtype=np.uint8) > 1).any():
        masks = {
            i: array == i for array, segments in zip(held, layers.values(), strict=True) for i in segments.values()
        }
        check_overlap(masks)


def voxelsOf(segmentationNode, structureId):
    """Where a structure's voxels are.

    :returns: (n, 3) indices (i, j, k) of its image, and the (4, 4) matrix from them to the world (RAS, mm); None if it
        has no voxels.
    """
    segment = segmentOf(segmentationNode, structureId)
    image = segment.GetRepresentation(LABELMAP) if segment else None
    if image is None or image.GetPointData().GetScalars() is None:
        return None
    index = np.argwhere(arrayOfImage(image) == segment.GetLabelValue())
    if not len(index):
        return None
    return index[:, ::-1] + image.GetExtent()[::2], worldTransform(segmentationNode) @ imageToWorld(image)


def centreOf(segmentationNode, structureId):
    """World position (RAS, mm) of the middle of a structure; None if it has no voxels.

    The mean of its voxels, or the voxel nearest to it where the structure is bent and the mean lies outside.
    """
    found = voxelsOf(segmentationNode, structureId)
    if found is None:
        return None
    index, toWorld = found
    nearest = index[np.argmin(((index - index.mean(axis=0)) ** 2).sum(axis=1))]
    return (toWorld @ [*nearest, 1.0])[:3].tolist()
