"""The reader's corrections on segmentation nodes: what is labelled, a correction carried out, its log, one undo step.

Renaming moves what segments hold from one to another: their voxels and surfaces stay the very same objects, so it costs
nothing and nothing can be lost. Only where voxels change are they written anew. Locked segments are never written.
"""

import time

import numpy as np
import slicer
from slicer.i18n import tr as _

from SpineSegAILib import anatomy
from SpineSegAILib.anatomy.terminology import CONFIDENCE_TAG, SCHEME_TAG, UNVALIDATED_TAG
from SpineSegAILib.correction import Labelling
from SpineSegAILib.errors import CorrectionError
from SpineSegAILib.results import check_names, check_overlap

from . import nodes, volumes
from .result_attribute import ATTRIBUTES, LOG_ATTRIBUTE

STEP_TAG = "SpineSegAI.CorrectionStep"
"""Tag of a segment: the step that made the segments as they are, as a number. Undo brings it back with them."""

FOLLOWING_TAGS = (
    *(CONFIDENCE_TAG, UNVALIDATED_TAG, SCHEME_TAG),
    *(nodes.KEYPOINT_TAG, nodes.UNCERTAINTY_TAG, nodes.LOCKED_TAG),
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
    ours = [(nodes.structureOfSegment(s), s) for s in segments if nodes.structureOfSegment(s) is not None]
    if not ours:
        raise CorrectionError(
            _("No segment of “{name}” is a structure that SpineSegAI made.").format(name=segmentationNode.GetName()),
            _("Choose a segmentation that SpineSegAI made."),
        )
    check_names([(structureId, segment.GetName()) for structureId, segment in ours])
    return Labelling(
        present=frozenset(structureId for structureId, _segment in ours),
        scheme=nodes.schemeOf(segmentationNode),
        locked=frozenset(structureId for structureId, segment in ours if nodes.isLocked(segment)),
    )


def checkedLabels(segmentationNode, volumeNode):
    """Label image on the volume's voxels, for tools that change voxels.

    :raises CorrectionError: segments overlap, since a voxel of a result belongs to one structure.
    """
    refuseOverlap(segmentationNode, volumeNode)
    return nodes.labelsFromSegmentation(segmentationNode, volumeNode)


def refuseOverlap(segmentationNode, volumeNode):
    """Two segments drawn over each other are a sentence, not a surprise.

    Segments that share an image cannot overlap: looked at are images, not segments, until two do.

    :raises CorrectionError: names two that share voxels.
    """
    segmentation = segmentationNode.GetSegmentation()
    structures = nodes.structuresOfSegmentation(segmentationNode)
    layers = {}
    for structureId, segmentId in structures.items():
        image = segmentation.GetSegment(segmentId).GetRepresentation(nodes.LABELMAP)
        layers.setdefault(image, {})[segmentId] = structureId
    if len(layers) < 2:
        return
    held = [nodes.mergedArray(segmentationNode, segments, volumeNode) for segments in layers.values()]
    if (np.sum([array != 0 for array in held], axis=0, dtype=np.uint8) > 1).any():
        masks = {
            i: array == i for array, segments in zip(held, layers.values(), strict=True) for i in segments.values()
        }
        check_overlap(masks)


def centreOf(segmentationNode, structureId):
    """World position (RAS, mm) of the middle of a structure; None if it has no voxels.

    The mean of its voxels, or the voxel nearest to it where the structure is bent and the mean lies outside.
    """
    segmentation = segmentationNode.GetSegmentation()
    segmentId = nodes.structuresOfSegmentation(segmentationNode).get(structureId)
    segment = segmentation.GetSegment(segmentId) if segmentId else None
    image = segment.GetRepresentation(nodes.LABELMAP) if segment else None
    if image is None or image.GetPointData().GetScalars() is None:
        return None
    index = np.argwhere(nodes.arrayOfImage(image) == segment.GetLabelValue())
    if not len(index):
        return None
    nearest = index[np.argmin(((index - index.mean(axis=0)) ** 2).sum(axis=1))]
    matrix = volumes.worldTransform(segmentationNode) @ nodes.imageToWorld(image)
    ijk = nearest[::-1] + np.array(image.GetExtent()[::2])
    return (matrix @ [*ijk, 1.0])[:3].tolist()


# --- a correction carried out ----------------------------------------------------------------------------------------


def applyCorrection(segmentationNode, volumeNode, correction, saveState=None):
    """Carry out a `correction.Correction`: ids, names, colours, codes, tags, and voxels where it changes any.

    :param volumeNode: the volume that the segmentation belongs to; its voxels are the grid of `correction.patch`.
    :param saveState: called once before anything is changed, for one undo step.
    """
    if correction.only_names:
        after = None
    else:
        labels = checkedLabels(segmentationNode, volumeNode)
        import SimpleITK as sitk

        after = correction.apply(sitk.GetArrayViewFromImage(labels))

    before = frozenset(nodes.structuresOfSegmentation(segmentationNode))
    readLog(segmentationNode)  # a damaged one is refused before anything is changed
    if saveState is not None:
        saveState()
    with slicer.util.NodeModify(segmentationNode):
        if after is None:
            _rename(segmentationNode, correction.mapping)
        else:
            _rewrite(segmentationNode, volumeNode, correction.mapping, after)
        _describe(segmentationNode, before, correction.mapping)
        nodes.sortSegments(segmentationNode.GetSegmentation())
        nodes.updateSummary(segmentationNode)
        addToLog(segmentationNode, correction.log_entry(before))
        segmentationNode.Modified()


def _rename(segmentationNode, mapping):
    """What segments hold goes to the segments of the new names; nothing is merged or removed."""
    segmentation = segmentationNode.GetSegmentation()
    structures = nodes.structuresOfSegmentation(segmentationNode)
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
            nodes.addStructure(segmentation, segment, new)


class _Held:
    """What a segment holds, apart from its name: representations, label value, tags."""

    def __init__(self, segment):
        self.representations = {name: segment.GetRepresentation(name) for name in (nodes.LABELMAP, nodes.SURFACE)}
        self.labelValue = segment.GetLabelValue()
        self.tags = {tag: nodes.tagOf(segment, tag) or None for tag in FOLLOWING_TAGS}

    def give(self, segment):
        segment.RemoveAllRepresentations()
        segment.SetLabelValue(self.labelValue)
        for name, data in self.representations.items():
            if data is not None:
                segment.AddRepresentation(name, data)
        self.giveTags(segment)

    def giveTags(self, segment):
        for tag, value in self.tags.items():
            nodes.setTag(segment, tag, value)


def _rewrite(segmentationNode, volumeNode, mapping, labels):
    """Voxels as an array says, and tags as the names say; of what is merged, the one that had the name keeps its."""
    segmentation = segmentationNode.GetSegmentation()
    structures = nodes.structuresOfSegmentation(segmentationNode)
    locked = {s for s, i in structures.items() if nodes.isLocked(segmentation.GetSegment(i))}
    tags = {new: _Held(segmentation.GetSegment(structures[old])) for old, new in mapping.items() if old in structures}
    tags |= {s: _Held(segmentation.GetSegment(i)) for s, i in structures.items() if s not in mapping}
    there = np.zeros(int(labels.max(initial=0)) + 1, bool)
    there[labels] = True
    present = anatomy.sorted_ids(set(np.flatnonzero(there).tolist()) - locked - {0})
    segmentationNode.RemoveClosedSurfaceRepresentation()  # made again when asked for
    gone = [segmentId for s, segmentId in structures.items() if s not in locked and s not in present]
    nodes.takeOutVoxels(segmentation, gone)
    for segmentId in gone:
        segmentation.RemoveSegment(segmentId)
    nodes.writeVoxels(segmentation, labels, present, volumeNode)
    structures = nodes.structuresOfSegmentation(segmentationNode)
    scheme = nodes.schemeOf(segmentationNode).name
    for s in present:
        segment = segmentation.GetSegment(structures[s])
        if s in tags:
            tags[s].giveTags(segment)
        else:
            nodes.setTag(segment, SCHEME_TAG, scheme)


def _describe(segmentationNode, before, mapping):
    """Name what was renamed, and discs whose neighbours were; names that a reader gave to others stay."""
    segmentation = segmentationNode.GetSegmentation()
    structures = nodes.structuresOfSegmentation(segmentationNode)
    extent = nodes.schemeOf(segmentationNode).extent
    touched = {new for old, new in mapping.items() if new}
    for s, segmentId in structures.items():
        segment = segmentation.GetSegment(segmentId)
        same = anatomy.display_name(s, before, extent) == anatomy.display_name(s, structures, extent)
        if s in touched or s not in before or not same:
            nodes.nameSegment(segment, s, structures, extent, segment.HasTag(UNVALIDATED_TAG))


def addEmpty(segmentationNode, structureIds):
    """Segments without voxels, to be drawn."""
    segmentation = segmentationNode.GetSegmentation()
    scheme = nodes.schemeOf(segmentationNode)
    present = {*nodes.structuresOfSegmentation(segmentationNode), *structureIds}
    for s in structureIds:
        segment = slicer.vtkSegment()
        segment.AddRepresentation(nodes.LABELMAP, slicer.vtkOrientedImageData())
        nodes.nameSegment(segment, s, present, scheme.extent, unvalidated=False)
        nodes.setTag(segment, SCHEME_TAG, scheme.name)
        nodes.addStructure(segmentation, segment, s)
    nodes.sortSegments(segmentation)


# --- the log ---------------------------------------------------------------------------------------------------------


def readLog(segmentationNode):
    """`correction_log.CorrectionLog` of a segmentation; empty if there is none.

    :raises CorrectionError: it is damaged.
    """
    from SpineSegAILib.results.correction_log import CorrectionLog

    return CorrectionLog.from_json(segmentationNode.GetAttribute(LOG_ATTRIBUTE) or "")


def addToLog(segmentationNode, entry):
    """Add a step, and note it on the segments, so that undo takes the step back with them."""
    writeLog(segmentationNode, readLog(segmentationNode).added(entry))
    segmentation = segmentationNode.GetSegmentation()
    if segmentation.GetNumberOfSegments():
        # Later steps have larger numbers, and none has that of a step that was taken back.
        step = max(time.time_ns(), stepNoted(segmentationNode) + 1)
        nodes.setTag(segmentation.GetNthSegment(0), STEP_TAG, str(step))


def logCarried(segmentationNode, volumeNode):
    """Add the step that replaced what is not locked by the segments of another series."""
    from SpineSegAILib.results.correction_log import carried

    segmentation = segmentationNode.GetSegmentation()
    structures = nodes.structuresOfSegmentation(segmentationNode)
    replaced = [i for i, segmentId in structures.items() if not nodes.isLocked(segmentation.GetSegment(segmentId))]
    addToLog(segmentationNode, carried(replaced, structures, volumeNode.GetName()))


def writeLog(segmentationNode, log):
    """Store a log; an empty one is no attribute."""
    segmentationNode.SetAttribute(LOG_ATTRIBUTE, log.to_json() if log.entries else None)


def stepNoted(segmentationNode):
    """The step that led to the segments as they are: the last one that any has; 0 for none, None without segments."""
    segmentation = segmentationNode.GetSegmentation()
    noted = [nodes.tagOf(segmentation.GetSegment(i), STEP_TAG) for i in segmentation.GetSegmentIDs()]
    return max(int(text) if text.isdigit() else 0 for text in noted) if noted else None


class LogKeeper:
    """Keeps what is said about a segmentation (its log, its result's document) in line with undo and redo."""

    def __init__(self, segmentationNode):
        self.segmentationNode = segmentationNode
        self._said = {}  # step → what was said after it
        self.keep()

    def keep(self):
        """Call after every step, and before undo or redo."""
        said = {name: self.segmentationNode.GetAttribute(name) for name in ATTRIBUTES}
        self._said[stepNoted(self.segmentationNode)] = said

    def afterRestore(self):
        """Call after undo or redo: what is said is what was said of these segments."""
        for name, text in self._said.get(stepNoted(self.segmentationNode), {}).items():
            self.segmentationNode.SetAttribute(name, text)
        nodes.updateSummary(self.segmentationNode)
