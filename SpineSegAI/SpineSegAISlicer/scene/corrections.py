"""The reader's corrections on segmentation nodes: what is labelled, a correction carried out, one undo step.

Renaming moves what segments hold from one to another: their voxels and surfaces stay the very same objects, so it costs
nothing and nothing can be lost. Only where voxels change are they written anew. Locked segments are never written.
"""

import numpy as np
import slicer
from slicer.i18n import tr as _

from SpineSegAILib import anatomy
from SpineSegAILib.anatomy.terminology import CONFIDENCE_TAG, QUALITY_TAG, SCHEME_TAG, UNSCALED_TAG, UNVALIDATED_TAG
from SpineSegAILib.correction import LabeledStructures
from SpineSegAILib.errors import CorrectionError
from SpineSegAILib.results import check_names

from . import correction_log, labelmaps, results
from .labelmaps import LABELMAP, SURFACE
from .segments import (
    KEYPOINT_TAG,
    LOCKED_TAG,
    UNCERTAINTY_TAG,
    addStructure,
    isLocked,
    nameSegment,
    setTag,
    sortSegments,
    structureOfSegment,
    structuresOfSegmentation,
    tagOf,
)

FOLLOWING_TAGS = (
    *(CONFIDENCE_TAG, QUALITY_TAG, UNVALIDATED_TAG, UNSCALED_TAG, SCHEME_TAG),
    *(KEYPOINT_TAG, UNCERTAINTY_TAG, LOCKED_TAG),
)
"""What goes with the voxels when they get another name."""


# --- what is labelled ------------------------------------------------------------------------------------------------


def labellingOf(segmentationNode):
    """What the level tools need to know of a segmentation.

    :raises CorrectionError: none is chosen, it holds no structure of ours, or one was renamed by hand to another.
    """
    if segmentationNode is None:
        raise CorrectionError(
            _("No segmentation is chosen."), _("Segment a volume, or choose a segmentation that SpineSegAI made.")
        )
    segmentation = segmentationNode.GetSegmentation()
    segments = [segmentation.GetSegment(i) for i in segmentation.GetSegmentIDs()]
    ours = [(structureOfSegment(s), s) for s in segments if structureOfSegment(s) is not None]
    if not ours:
        raise CorrectionError(
            _("No segment of “{name}” is a structure that SpineSegAI made.").format(name=segmentationNode.GetName()),
            _("Choose a segmentation that SpineSegAI made."),
        )
    check_names([(structureId, segment.GetName()) for structureId, segment in ours])
    return LabeledStructures(
        present=frozenset(structureId for structureId, _segment in ours),
        scheme=results.schemeOf(segmentationNode),
        locked=frozenset(structureId for structureId, segment in ours if isLocked(segment)),
    )


# --- a correction carried out ----------------------------------------------------------------------------------------


def applyCorrection(segmentationNode, volumeNode, correction, saveState=None):
    """Carry out a `correction.Correction`: ids, names, colours, codes, tags, and voxels where it changes any.

    :param volumeNode: the volume that the segmentation belongs to; its voxels are the grid of `correction.patch`.
    :param saveState: called once before anything is changed, for one undo step.
    """
    if correction.only_names:
        after = None
    else:
        labels = labelmaps.checkedLabels(segmentationNode, volumeNode)
        import SimpleITK as sitk

        after = correction.apply(sitk.GetArrayViewFromImage(labels))

    before = frozenset(structuresOfSegmentation(segmentationNode))
    correction_log.readLog(segmentationNode)  # a damaged one is refused before anything is changed
    if saveState is not None:
        saveState()
    with slicer.util.NodeModify(segmentationNode):
        if after is None:
            _rename(segmentationNode, correction.mapping)
        else:
            _rewrite(segmentationNode, volumeNode, correction.mapping, after)
        _describe(segmentationNode, before, correction.mapping)
        sortSegments(segmentationNode.GetSegmentation())
        results.updateSummary(segmentationNode)
        correction_log.addToLog(segmentationNode, correction.log_entry(before))
        segmentationNode.Modified()


def _rename(segmentationNode, mapping):
    """What segments hold goes to the segments of the new names; nothing is merged or removed."""
    segmentation = segmentationNode.GetSegmentation()
    structures = structuresOfSegmentation(segmentationNode)
    held = {new: _Held(segmentation.GetSegment(structures[old])) for old, new in mapping.items() if old in structures}
    left = [structures[old] for old in mapping if old in structures and old not in held]
    for segmentId in left:
        segmentation.GetSegment(segmentId).RemoveAllRepresentations()  # else Slicer erases the voxels that move on
        segmentation.RemoveSegment(segmentId)
    for new, content in held.items():
        if new in structures:
            content.give(segmentation.GetSegment(structures[new]))
        else:
            segment = slicer.vtkSegment()
            content.give(segment)
            addStructure(segmentation, segment, new)


class _Held:
    """What a segment holds, apart from its name: representations, label value, tags."""

    def __init__(self, segment):
        self.representations = {name: segment.GetRepresentation(name) for name in (LABELMAP, SURFACE)}
        self.labelValue = segment.GetLabelValue()
        self.tags = {tag: tagOf(segment, tag) or None for tag in FOLLOWING_TAGS}

    def give(self, segment):
        segment.RemoveAllRepresentations()
        segment.SetLabelValue(self.labelValue)
        for name, data in self.representations.items():
            if data is not None:
                segment.AddRepresentation(name, data)
        self.giveTags(segment)

    def giveTags(self, segment):
        for tag, value in self.tags.items():
            setTag(segment, tag, value)


def _rewrite(segmentationNode, volumeNode, mapping, labels):
    """Voxels as an array says, and tags as the names say; of what is merged, the one that had the name keeps its."""
    segmentation = segmentationNode.GetSegmentation()
    structures = structuresOfSegmentation(segmentationNode)
    locked = {s for s, i in structures.items() if isLocked(segmentation.GetSegment(i))}
    tags = {new: _Held(segmentation.GetSegment(structures[old])) for old, new in mapping.items() if old in structures}
    tags |= {s: _Held(segmentation.GetSegment(i)) for s, i in structures.items() if s not in mapping}
    there = np.zeros(int(labels.max(initial=0)) + 1, bool)
    there[labels] = True
    present = anatomy.sorted_ids(set(np.flatnonzero(there).tolist()) - locked - {0})
    segmentationNode.RemoveClosedSurfaceRepresentation()  # made again when asked for
    gone = [segmentId for s, segmentId in structures.items() if s not in locked and s not in present]
    labelmaps.takeOutVoxels(segmentation, gone)
    for segmentId in gone:
        segmentation.RemoveSegment(segmentId)
    labelmaps.writeVoxels(segmentation, labels, present, volumeNode)
    structures = structuresOfSegmentation(segmentationNode)
    scheme = results.schemeOf(segmentationNode).name
    for s in present:
        segment = segmentation.GetSegment(structures[s])
        if s in tags:
            tags[s].giveTags(segment)
        else:
            setTag(segment, SCHEME_TAG, scheme)


def _describe(segmentationNode, before, mapping):
    """Name what was renamed, and discs whose neighbours were; names that a reader gave to others stay."""
    segmentation = segmentationNode.GetSegmentation()
    structures = structuresOfSegmentation(segmentationNode)
    extent = results.schemeOf(segmentationNode).extent
    touched = {new for old, new in mapping.items() if new}
    for s, segmentId in structures.items():
        segment = segmentation.GetSegment(segmentId)
        same = anatomy.display_name(s, before, extent) == anatomy.display_name(s, structures, extent)
        if s in touched or s not in before or not same:
            nameSegment(segment, s, structures, extent, segment.HasTag(UNVALIDATED_TAG))


def addEmpty(segmentationNode, structureIds):
    """Segments without voxels, to be drawn."""
    segmentation = segmentationNode.GetSegmentation()
    scheme = results.schemeOf(segmentationNode)
    present = {*structuresOfSegmentation(segmentationNode), *structureIds}
    for s in structureIds:
        segment = slicer.vtkSegment()
        segment.AddRepresentation(LABELMAP, slicer.vtkOrientedImageData())
        nameSegment(segment, s, present, scheme.extent, unvalidated=False)
        setTag(segment, SCHEME_TAG, scheme.name)
        addStructure(segmentation, segment, s)
    sortSegments(segmentation)
