"""The log of what a reader changed, as a segmentation node keeps it, in line with undo and redo."""

import time

from SpineSegAILib.anatomy.terminology import LOG_ATTRIBUTE

from .result_attribute import ATTRIBUTES
from .results import updateSummary
from .segments import isLocked, setTag, structuresOfSegmentation, tagOf

STEP_TAG = "SpineSegAI.CorrectionStep"
"""Tag of a segment: the step that made the segments as they are, as a number. Undo brings it back with them."""


def readLog(segmentationNode):
    """`correction_log.CorrectionLog` of a segmentation; empty if there is none.

    :raises CorrectionError: it is damaged.
    """
    from SpineSegAILib.results.correction_log import CorrectionLog

    return CorrectionLog.from_json(segmentationNode.GetAttribute(LOG_ATTRIBUTE) or "")


def lastResult(segmentationNode):
    """The last step that put a new result in place of the segments; None if there is none.

    :raises CorrectionError: the log is damaged.
    """
    entries = readLog(segmentationNode).entries
    return next((entry for entry in reversed(entries) if entry.tool in ("segment-again", "carry")), None)


def addToLog(segmentationNode, entry):
    """Add a step, and note it on the segments, so that undo takes the step back with them."""
    writeLog(segmentationNode, readLog(segmentationNode).added(entry))
    segmentation = segmentationNode.GetSegmentation()
    if segmentation.GetNumberOfSegments():
        # Later steps have larger numbers, and none has that of a step that was taken back.
        step = max(time.time_ns(), stepNoted(segmentationNode) + 1)
        for segmentId in segmentation.GetSegmentIDs():  # any may be removed in the Segment Editor
            setTag(segmentation.GetSegment(segmentId), STEP_TAG, str(step))


def logCarried(segmentationNode, volumeNode):
    """Add the step that replaced what is not locked by the segments of another series."""
    from SpineSegAILib.results.correction_log import carried

    segmentation = segmentationNode.GetSegmentation()
    structures = structuresOfSegmentation(segmentationNode)
    replaced = [i for i, segmentId in structures.items() if not isLocked(segmentation.GetSegment(segmentId))]
    addToLog(segmentationNode, carried(replaced, structures, volumeNode.GetName()))


def writeLog(segmentationNode, log):
    """Store a log; an empty one is not an attribute."""
    segmentationNode.SetAttribute(LOG_ATTRIBUTE, log.to_json() if log.entries else None)


def stepNoted(segmentationNode):
    """The step that led to the segments as they are: the last one that any has; 0 for none, None without segments."""
    segmentation = segmentationNode.GetSegmentation()
    noted = [tagOf(segmentation.GetSegment(i), STEP_TAG) for i in segmentation.GetSegmentIDs()]
    return max(int(text) if text.isdecimal() else 0 for text in noted) if noted else None


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
        updateSummary(self.segmentationNode)
