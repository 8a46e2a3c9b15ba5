"""A small picture of one structure: the slice through its middle, for the panel."""

import numpy as np
import qt
import slicer

from ..scene import labelmaps, volumes
from ..scene.segments import structuresOfSegmentation

PIXELS = 140
PIXEL_MM = 0.5  # 70 mm: a vertebra with both neighbors
_PLANES = {1: (0, 2), 2: (0, 1)}
"""World axis across a single slice (see `volumes.singleSliceAxis`) → axes from left to right and from top to bottom of
its picture; they run towards left, back and feet, as in Slicer's views."""
_SAGITTAL = (1, 2)
_FILL, _EDGE = 0.3, 0.9  # how strongly the color covers the image, inside and on the outline


def previewPixmap(volumeNode, segmentationNode, structureId):
    """Sagittal picture of a structure, head up and front to the left; None where there is nothing to show.

    A single slice of another plane, such as an AP film, is shown in its own.
    """
    image = previewArray(volumeNode, segmentationNode, structureId)
    if image is None:
        return None
    pixmap = qt.QPixmap()
    pixmap.loadFromData(f"P6 {image.shape[1]} {image.shape[0]} 255\n".encode() + image.tobytes())
    return pixmap


def previewArray(volumeNode, segmentationNode, structureId):
    """The picture as (rows, columns, 3) uint8 array."""
    centre = labelmaps.centreOf(segmentationNode, structureId)
    if centre is None or volumeNode is None or volumeNode.GetImageData() is None:
        return None
    # Samples in a plane of the world, looked up in image and segment: right for oblique volumes too.
    steps = (np.arange(PIXELS) - (PIXELS - 1) / 2) * PIXEL_MM
    across, down = _PLANES.get(volumes.singleSliceAxis(volumeNode), _SAGITTAL)
    points = np.broadcast_to(centre, (PIXELS, PIXELS, 3)).copy()
    points[..., across] -= steps[None, :]
    points[..., down] -= steps[:, None]
    grey = _sampled(slicer.util.arrayFromVolume(volumeNode), volumes.ijkToWorldMatrix(volumeNode), (0, 0, 0), points)
    low, high = np.percentile(grey, (1, 99))
    grey = np.clip((grey - low) / max(high - low, 1e-6), 0, 1)
    segmentation = segmentationNode.GetSegmentation()
    segment = segmentation.GetSegment(structuresOfSegmentation(segmentationNode)[structureId])
    held = segment.GetRepresentation(labelmaps.LABELMAP)
    matrix = volumes.worldTransform(segmentationNode) @ labelmaps.imageToWorld(held)
    mask = _sampled(labelmaps.arrayOfImage(held), matrix, held.GetExtent()[::2], points) == segment.GetLabelValue()
    inner = mask.copy()
    for axis in (0, 1):
        for shift in (-1, 1):
            inner &= np.roll(mask, shift, axis)
    cover = np.where(inner, _FILL, np.where(mask, _EDGE, 0.0))[..., None]
    colored = (1 - cover) * grey[..., None] + cover * np.array(segment.GetColor())
    return (255 * colored).astype(np.uint8)


def _sampled(array, ijkToWorld, first, points):
    """Nearest voxels of a (k, j, i) array at world points; 0 outside."""
    inverse = np.linalg.inv(ijkToWorld)
    ijk = np.rint(points @ inverse[:3, :3].T + inverse[:3, 3]).astype(int) - np.array(first)
    k, j, i = ijk[..., 2], ijk[..., 1], ijk[..., 0]
    inside = (k >= 0) & (j >= 0) & (i >= 0) & (k < array.shape[0]) & (j < array.shape[1]) & (i < array.shape[2])
    values = array[np.where(inside, k, 0), np.where(inside, j, 0), np.where(inside, i, 0)]
    return np.where(inside, values, 0)
