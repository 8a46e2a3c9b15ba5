"""Segments that hold structures of ours: whose they are, what they are called, what is tagged on them.

A segment's identity is its id (the structure's name, ``L4/L5``) and the tag `STRUCTURE_TAG`; never its voxel value,
which Slicer rewrites. Users change its display name: what that says is taken over before its voxels are used.
"""

import slicer
import vtk
from slicer.i18n import tr as _

from SpineSegAILib import anatomy
from SpineSegAILib.anatomy import terminology
from SpineSegAILib.anatomy.terminology import STRUCTURE_TAG
from SpineSegAILib.results.checks import check_once
from SpineSegAILib.results.segment_names import structure_of_segment

LOCKED_TAG = "SpineSegAI.Locked"
"""Tag of a segment that no result may change; set by the reader."""

UNCERTAINTY_TAG = "SpineSegAI.Uncertainty"
"""Tag of a segment with the mean uncertainty of its voxels, for methods that tell."""

KEYPOINT_TAG = "SpineSegAI.KeyPoint"
"""Tag of a segment with its structure's keypoint, as the method predicted it or the reader moved it.

It lies where the voxels do: LPS, mm, in the segmentation's own coordinates, without its parent transforms.
"""


def tagOf(segment, tag):
    """A tag's text; empty where the segment does not have it."""
    value = vtk.mutable("")
    segment.GetTag(tag, value)
    return value.get()


def setTag(segment, tag, value):
    """Set a tag, or remove it with None; a segment that has it so already is not modified."""
    if value is None:
        if segment.HasTag(tag):
            segment.RemoveTag(tag)
    elif tagOf(segment, tag) != value:
        segment.SetTag(tag, value)


def structureOfSegment(segment):
    """Structure id that a segment holds, by its tag; None for a segment that SpineSegAI did not make."""
    text = tagOf(segment, STRUCTURE_TAG)
    return int(text) if text.isdecimal() and int(text) in anatomy.STRUCTURES else None


def structuresOfSegmentation(segmentationNode):
    """Structure id → segment id, for the segments that hold structures of ours, in the node's order."""
    return structuresOf(segmentationNode.GetSegmentation())


def structuresOf(segmentation):
    """The same of a `vtkSegmentation`."""
    found = {}
    for segmentId in segmentation.GetSegmentIDs():
        structureId = structureOfSegment(segmentation.GetSegment(segmentId))
        if structureId is not None:
            found[structureId] = segmentId
    return found


def takeOverNames(segmentationNode):
    """Segments that a reader gave the name of another structure hold that one from now on, as in files.

    :raises CorrectionError: a structure would be there twice; nothing is changed then.
    """
    segmentation = segmentationNode.GetSegmentation()
    called = []
    for recorded, segmentId in structuresOf(segmentation).items():
        segment = segmentation.GetSegment(segmentId)
        named = structure_of_segment(segment.GetName(), {STRUCTURE_TAG: str(recorded)})[0]
        called.append((named, segment))
    check_once((structureId, segment.GetName()) for structureId, segment in called)
    for structureId, segment in called:
        setTag(segment, STRUCTURE_TAG, str(structureId))


def segmentOf(segmentationNode, structureId):
    """The segment that holds a structure; None if there is none."""
    segmentId = structuresOfSegmentation(segmentationNode).get(structureId)
    return segmentationNode.GetSegmentation().GetSegment(segmentId) if segmentId is not None else None


def isLocked(segment):
    """True for a segment that results must not change."""
    return segment.HasTag(LOCKED_TAG)


def setLocked(segment, locked):
    """Protect a segment from being replaced, or give it free."""
    setTag(segment, LOCKED_TAG, "1" if locked else None)


def addStructure(segmentation, segment, structureId):
    """Add a new segment for a structure, with the structure's name as id where that is free."""
    segment.SetTag(STRUCTURE_TAG, str(structureId))
    segmentId = anatomy.STRUCTURES[structureId].name
    if segmentation.GetSegment(segmentId) is not None:  # a segment of the user's own has that id
        segmentId = segmentation.GenerateUniqueSegmentID(segmentId)
    segmentation.AddSegment(segment, segmentId)


def nameSegment(segment, structureId, present, extent, unvalidated):
    """What a segment is called, in words, color and codes.

    :param present: ids in the case; discs are named from their neighbors.
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
    return _("{structure} (experimental)").format(structure=name) if unvalidated else name


def sortSegments(segmentation):
    """Anatomical order, top down; segments that are not structures keep their order, at the end."""
    ids = list(segmentation.GetSegmentIDs())
    structures = {i: structureOfSegment(segmentation.GetSegment(i)) for i in ids}
    rank = {sid: n for n, sid in enumerate(anatomy.sorted_ids(s for s in structures.values() if s is not None))}
    ordered = sorted(ids, key=lambda i: rank.get(structures[i], len(rank)))
    if ordered != ids:
        segmentation.ReorderSegments(ordered)
