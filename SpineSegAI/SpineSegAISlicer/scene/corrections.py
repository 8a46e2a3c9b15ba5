"""The user's corrections on segmentation nodes: what is labeled, a correction carried out, one undo step.

A segment stays the same object, under the same id, whatever it is called: renaming costs nothing, nothing can be lost,
and whoever has selected, hidden or drawn on it still has the same thing. Only structures whose voxels change are
written. Locked segments are never written.
"""

import numpy as np
import slicer
from slicer.i18n import tr as _

from SpineSegAILib import anatomy
from SpineSegAILib.anatomy.terminology import QUALITY_TAG, SCHEME_TAG, STRUCTURE_TAG, UNVALIDATED_TAG
from SpineSegAILib.correction import LabeledStructures
from SpineSegAILib.errors import CorrectionError
from SpineSegAILib.results import check_names

from . import correction_log, labelmaps, results
from .labelmaps import LABELMAP
from .segments import (
    addStructure,
    isLocked,
    nameSegment,
    segmentOf,
    setTag,
    sortSegments,
    structureOfSegment,
    structuresOf,
    structuresOfSegmentation,
)

# --- what is labeled ------------------------------------------------------------------------------------------------


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


def applyCorrection(segmentationNode, volumeNode, correction, saveState=None, labels=None):
    """Carry out a `correction.Correction`: names, colors, codes, tags, and voxels where it changes any.

    :param volumeNode: the volume that the segmentation belongs to; its voxels are the grid of `correction.patch`.
    :param saveState: called once before anything is changed, for one undo step.
    :param labels: `labelmaps.checkedLabels` of the two, where they are at hand; else they are read.
    """
    if labels is None and not correction.only_names:
        labels = labelmaps.checkedLabels(segmentationNode, volumeNode)
    before = frozenset(structuresOfSegmentation(segmentationNode))
    correction_log.readLog(segmentationNode)  # a damaged one is refused before anything is changed
    if saveState is not None:
        saveState()
    with slicer.util.NodeModify(segmentationNode):
        _rename(segmentationNode.GetSegmentation(), correction.mapping)
        made = set() if correction.only_names else _redraw(segmentationNode, volumeNode, labels, correction)
        _describe(segmentationNode, before, made | set(correction.mapping.values()))
        sortSegments(segmentationNode.GetSegmentation())
        results.updateSummary(segmentationNode)
        correction_log.addToLog(segmentationNode, correction.log_entry(before))
        segmentationNode.Modified()


def _rename(segmentation, mapping):
    """Segments become other structures. Of those that become the same one, one stays: that which was it before."""
    structures = structuresOf(segmentation)
    kept, gone = {}, []
    for old in sorted(mapping, key=lambda i: mapping[i] != i):
        if old in structures:
            new = mapping[old]
            if new and new not in kept:
                kept[new] = segmentation.GetSegment(structures[old])
            else:
                gone.append(structures[old])
    _remove(segmentation, gone)
    for new, segment in kept.items():
        setTag(segment, STRUCTURE_TAG, str(new))


def _remove(segmentation, segmentIds):
    labelmaps.takeOutVoxels(segmentation, segmentIds)
    for segmentId in segmentIds:
        segmentation.RemoveSegment(segmentId)


def _redraw(segmentationNode, volumeNode, labels, correction):
    """Give other voxels to the structures that a correction changes, once they have their names.

    :returns: ids of the structures whose segments are new.
    """
    import SimpleITK as sitk

    before = sitk.GetArrayViewFromImage(labels)
    after = correction.apply(before)
    changed = correction.redrawn(before)
    segmentation = segmentationNode.GetSegmentation()
    structures = structuresOf(segmentation)
    locked = {s for s, i in structures.items() if isLocked(segmentation.GetSegment(i))}
    there = np.bincount(after.ravel(), minlength=max(anatomy.STRUCTURES) + 1) > 0
    segmentationNode.RemoveClosedSurfaceRepresentation()  # made again when asked for
    _remove(segmentation, [structures[s] for s in changed if s in structures and not there[s]])
    written = {s for s in {*changed, *labelmaps.structuresAside(segmentation)} - locked if there[s]}
    labelmaps.writeVoxels(segmentationNode, after, anatomy.sorted_ids(written), volumeNode)
    for s in changed & written:
        setTag(segmentOf(segmentationNode, s), QUALITY_TAG, None)  # was of the outline that it had
    made = written - set(structures)
    for s in made:
        setTag(segmentOf(segmentationNode, s), SCHEME_TAG, results.schemeOf(segmentationNode).name)
    return made


def _describe(segmentationNode, before, touched):
    """Name what was renamed, and discs whose neighbors were; names that a reader gave to others stay."""
    segmentation = segmentationNode.GetSegmentation()
    structures = structuresOfSegmentation(segmentationNode)
    extent = results.schemeOf(segmentationNode).extent
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
