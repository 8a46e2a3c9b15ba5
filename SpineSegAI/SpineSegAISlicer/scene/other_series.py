"""Segmentations carried, by position, to other volumes of the same patient."""

import hashlib
from dataclasses import replace

from slicer.i18n import tr as _

from SpineSegAILib.anatomy.terminology import LOG_ATTRIBUTE
from SpineSegAILib.errors import ImageError, SpineSegAIError

from .labelmaps import labelsFromSegmentation
from .results import resultFromSegmentation, segmentationFromResult
from .segments import isLocked, setLocked, structuresOfSegmentation
from .volumes import checkVolume, otherSeriesOfStudy, refusedPlane, segmentedVolume

CARRIED_ROLE = "SpineSegAI.CarriedTo"
"""Node references from a segmentation to what was made of it on other volumes."""
CARRIED_ATTRIBUTE = "SpineSegAI.CarriedVoxels"
"""Of what was carried: what tells whether anybody has changed it since, with whatever tool."""


def applyToOtherSeries(segmentationNode, volumeNode):
    """See `SpineSegAILogic.applyToOtherSeries`."""
    result = resultFromSegmentation(segmentationNode, volumeNode)
    report = []
    for other in otherSeriesOfStudy(volumeNode):
        before = carriedTo(segmentationNode, other)
        try:
            if before is not None and _isChanged(before, other):  # nobody is asked, and nothing can be undone
                report.append((other, None, _("not copied: corrected since (replace it in the tab “Correct”)")))
                continue
            carried = _carryTo(result, segmentationNode, volumeNode, other)
            carried.SetAttribute(LOG_ATTRIBUTE, segmentationNode.GetAttribute(LOG_ATTRIBUTE))
            report.append((other, carried, _("copied")))
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
    result = resultFromSegmentation(segmentationNode, volumeNode)
    return _carryTo(result, segmentationNode, volumeNode, other, saveState)


def _carryTo(result, segmentationNode, volumeNode, other, saveState=None):
    carried = _carried(result, segmentationNode, volumeNode, other)
    before = carriedTo(segmentationNode, other)
    made = segmentationFromResult(carried, other, before, saveState)
    if before is None:
        segmentationNode.AddNodeReferenceID(CARRIED_ROLE, made.GetID())
    source, target = segmentationNode.GetSegmentation(), made.GetSegmentation()
    there = structuresOfSegmentation(made)
    for structureId, segmentId in structuresOfSegmentation(segmentationNode).items():
        if isLocked(source.GetSegment(segmentId)) and structureId in there:
            setLocked(target.GetSegment(there[structureId]), True)
    made.SetAttribute(CARRIED_ATTRIBUTE, _voxels(made, other))
    return made


def _isChanged(carried, other):
    return carried.GetAttribute(CARRIED_ATTRIBUTE) != _voxels(carried, other)


def _voxels(segmentationNode, volumeNode):
    """What tells the voxels of a segmentation's structures from others."""
    import SimpleITK as sitk

    labels = sitk.GetArrayFromImage(labelsFromSegmentation(segmentationNode, volumeNode))
    return hashlib.sha256(labels.astype("<i4").tobytes()).hexdigest()[:16]


def _carried(result, segmentationNode, volumeNode, other):
    """The result on the voxels of another series."""
    checkVolume(other)
    refused = refusedPlane(other, ("sagittal", "isotropic"))
    if refused:
        raise ImageError(_("not copied: a {plane} series").format(plane=refused))
    warning = _("Copied by position from “{volume}”. Check the outlines: the patient may have moved.")
    carried = replace(
        result,
        labels=labelsFromSegmentation(segmentationNode, other),
        level_confidence=None,
        outline_quality={},
        warnings=[warning.format(volume=volumeNode.GetName()), *result.warnings],
        provenance={**result.provenance, "carried_from": volumeNode.GetName()},
    )
    if not carried.present:
        raise ImageError(_("not copied: the two series do not overlap"))
    return carried
