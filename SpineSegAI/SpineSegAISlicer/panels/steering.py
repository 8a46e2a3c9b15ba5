"""What steers a segmentation besides the image: keypoints, a segmentation to start from, what is locked."""

import slicer
from slicer.i18n import tr as _

from SpineSegAILib.errors import HintError

from ..scene import keypoints, labelmaps


class Steering:
    """The widgets of keypoints and of the segmentation to start from; the hints that follow.

    :param ui: the widgets.
    :param parameters: `Parameters`.
    :param choices: `Choices`.
    """

    def __init__(self, ui, parameters, choices):
        self._ui = ui
        self._parameters = parameters
        self._choices = choices

    def update(self, enabled):
        """Show what the method takes.

        :param enabled: whether the reader may choose now.
        """
        ui = self._ui
        ui.keypointsLabel.visible = ui.keypointsSelector.visible = self._choices.accepts("keypoints")
        ui.priorLabel.visible = ui.priorSelector.visible = self._choices.accepts("prior")
        ui.priorSelector.enabled = enabled

    def chosen(self):
        """Ids of the chosen volume, of its keypoints and of the segmentation to start from, empty if not chosen; and
        the visible range.

        A result that comes while others wait is shown, and its volume is the chosen one then: so a run keeps these.
        """
        parameters = self._parameters.node
        nodes = (parameters.inputVolume, parameters.keypoints, parameters.priorSegmentation)
        return (*(node.GetID() if node is not None else "" for node in nodes), self._choices.visibleRange())

    def hints(self, volumeNode, outputNode=None, chosen=None, usePrior=True):
        """`SpineSegAILib.hints.Hints`: visible range, keypoints, segmentation to start from, what is locked.

        :param outputNode: segmentation that the result goes into; what is locked there stays.
        :param chosen: as `chosen` had it when the run began; as it is now if not given.
        :param usePrior: whether the chosen segmentation is what to start from.
        :raises HintError: what was chosen is gone, or is not what it should be.
        """
        from SpineSegAILib.hints import Hints

        volumeId, keypointsId, priorId, visible = chosen or self.chosen()
        if volumeNode is None or volumeNode.GetID() != volumeId:  # others that wait in line get none of another volume
            keypointsId, priorId, visible = "", "", ()
        points = keypointsId and self._choices.accepts("keypoints", volumeNode)
        prior = priorId and self._choices.accepts("prior", volumeNode) and usePrior
        priorNode = self._node(priorId) if prior else None
        return Hints(
            visible=visible if any(visible) else None,
            keypoints=keypoints.keypointsFromNode(self._node(keypointsId)) if points else {},
            prior=labelmaps.labelsFromSegmentation(priorNode, volumeNode) if prior else None,
            locked=_lockedInEither(outputNode, priorNode, volumeNode),
        )

    @staticmethod
    def _node(nodeId):
        node = slicer.mrmlScene.GetNodeByID(nodeId)
        if node is None:
            raise HintError(
                _("The keypoints or initial segmentation for this volume were removed while it was queued."),
                _("Choose other keypoints or another segmentation to start from, or none, and segment it again."),
            )
        return node


def _lockedInEither(outputNode, priorNode, volumeNode):
    """Locked structures of two segmentations as one label image, those of the first one on top; None without any."""
    import SimpleITK as sitk

    first, second = (labelmaps.lockedLabels(n, volumeNode) if n is not None else None for n in (outputNode, priorNode))
    if first is None or second is None:
        return second if first is None else first
    return first + second * sitk.Cast(first == 0, first.GetPixelID())
