"""Segmenting again with what the reader knows: the hints for the worker, and what of its answer is taken over."""

from dataclasses import replace

from slicer.i18n import tr as _

from SpineSegAILib import anatomy

from . import correction_log, corrections, labelmaps, results
from .segments import structuresOfSegmentation
from .volumes import lps


class SegmentAgain:
    """One request, handed to `Segmenting.start`.

    :param anchors: structure id → position (RAS, mm) of levels that are known.
    :param keypoints: structure id → point (LPS, mm) of keypoints that the reader moved.
    :param prior: label image to start from, or None.
    :param only: structures to replace; empty for all.
    :param box: part of the volume's array (k, j, i) to replace; None for all.
    """

    def __init__(self, anchors=None, keypoints=None, prior=None, only=(), box=None):
        self._anchors = dict(anchors or {})
        self._keypoints = dict(keypoints or {})
        self._prior = prior
        self._only = tuple(only)
        self._box = box

    def hints(self, base):
        """What the panel knows anyway (`hints.Hints`: visible range, locked structures), and what was added here."""
        from SpineSegAILib.hints import Anchor

        return replace(
            base,
            anchors=(*base.anchors, *(Anchor(i, lps(point)) for i, point in self._anchors.items())),
            keypoints={**base.keypoints, **self._keypoints},
            prior=self._prior,
            structures=self._only,
        )

    def place(self, result, volumeNode, segmentationNode, saveState):
        """Put the answer into the segmentation, as one undo step.

        :param saveState: called once before anything is changed.
        """
        if self._box is not None:
            return self._placeBox(result, volumeNode, segmentationNode, saveState)
        correction_log.readLog(segmentationNode)  # a damaged one is refused before anything is changed
        results.segmentationFromResult(result, volumeNode, segmentationNode, saveState, only=self._only)
        correction_log.addToLog(segmentationNode, self._entry(segmentationNode))
        return segmentationNode

    def _placeBox(self, result, volumeNode, segmentationNode, saveState):
        from SpineSegAILib.correction import voxels as editing

        labelling = corrections.labellingOf(segmentationNode)
        labels = labelmaps.checkedLabels(segmentationNode, volumeNode)
        step = editing.replace_inside(labels, result.labels, self._box, locked=labelling.locked)
        corrections.applyCorrection(segmentationNode, volumeNode, step, saveState, labels)
        return segmentationNode

    def _entry(self, segmentationNode):
        from datetime import datetime, timezone

        from SpineSegAILib.results.correction_log import CorrectionEntry

        present = structuresOfSegmentation(segmentationNode)
        named = {i: anatomy.STRUCTURES[i].name for i in present}
        details = {
            "anchors": [anatomy.STRUCTURES[i].name for i in self._anchors],
            "keypoints": [anatomy.STRUCTURES[i].name for i in self._keypoints],
            "prior": self._prior is not None,
        }
        return CorrectionEntry(
            tool="segment-again",
            words=_("Segmented again"),
            when=datetime.now(timezone.utc).replace(microsecond=0),
            structures=tuple(anatomy.STRUCTURES[i].name for i in self._only or named),
            redrawn=True,
            details=details,
        )
