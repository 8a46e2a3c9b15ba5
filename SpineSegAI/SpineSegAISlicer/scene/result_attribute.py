"""The attribute of a segmentation node that keeps everything about a result but its voxels."""

import json

from SpineSegAILib.anatomy.terminology import LOG_ATTRIBUTE

ATTRIBUTE = "SpineSegAI.Result"

ATTRIBUTES = (ATTRIBUTE, LOG_ATTRIBUTE)
"""All that is said of the segments apart from themselves."""


def read(segmentationNode):
    """The dictionary that `write` stored; empty for a segmentation that SpineSegAI did not make."""
    try:
        document = json.loads(segmentationNode.GetAttribute(ATTRIBUTE) or "{}")
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def write(segmentationNode, document):
    """Store `SpineSegAILib.results.Segmentation.to_document()`."""
    segmentationNode.SetAttribute(ATTRIBUTE, json.dumps(document))


def warningsOf(segmentationNode):
    """Sentences that the reader should see, e.g. that the sacrum is not in view and level labels are uncertain."""
    return read(segmentationNode).get("warnings", [])


def levelConfidenceOf(segmentationNode):
    """How probable the names of all levels together are (0…1); None where a reader gave them, or nobody tells."""
    sure = read(segmentationNode).get("level_confidence")
    return sure if isinstance(sure, float) else None


def alternativesOf(segmentationNode):
    """The other namings that a reader is asked about (`results.Alternative`), best first."""
    from SpineSegAILib.results import Alternative

    try:
        found = [Alternative.from_document(a) for a in read(segmentationNode).get("alternatives", ())]
    except (KeyError, TypeError, ValueError):  # someone edited the scene
        return []
    return [alternative for alternative in found if alternative.question and alternative.mapping]
