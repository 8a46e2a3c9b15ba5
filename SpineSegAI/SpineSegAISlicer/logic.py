"""What can be done without the panel, for scripts.

Slicer reads this file when it starts: what a function needs is imported when it is called.
"""

from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleLogic

from .parameter_node import typedParameterNode


class SpineSegAILogic(ScriptedLoadableModuleLogic):
    """Segment, measure, copy to other series, by a call each."""

    def getParameterNode(self):
        """The scene's `SpineSegAIParameterNode`."""
        return typedParameterNode(super().getParameterNode())

    @staticmethod
    def volumes():
        """The images of the scene: neither color pictures nor label maps."""
        from .scene import volumes

        return volumes.images()

    def firstVolume(self):
        """The first image of the scene, or None."""
        return next(iter(self.volumes()), None)

    @staticmethod
    def segment(
        volumeNode,
        checkpoint=None,
        device="auto",
        hints=None,
        options=None,
        includeUnvalidated=False,
        segmentationNode=None,
        progress=None,
    ):
        """Segment a volume and wait for it: one named, colored, coded segment per structure.

        Runs in this process and blocks until done; the panel uses a process of its own instead. Example::

            volumeNode = slicer.util.loadVolume("lumbar.nii.gz")
            segmentationNode = SpineSegAILogic().segment(volumeNode)
            slicer.util.saveNode(segmentationNode, "lumbar.seg.nrrd")

        :param volumeNode: scalar volume, sagittal or isotropic, may be under a linear transform.
        :param checkpoint: name or path; the default checkpoint if not given.
        :param device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``.
        :param hints: `SpineSegAILib.hints.Hints`, e.g. ``Hints(visible=(18, 26))`` for T11 to S1.
        :param options: options of the method, name → value.
        :param includeUnvalidated: also experimental structures, which are not validated on real cases.
        :param segmentationNode: node to update; its locked segments stay as they are. A new one if not given.
        :param progress: function of a fraction (0…1) and a sentence.
        :returns: the segmentation node.
        :raises SpineSegAILib.errors.SpineSegAIError: with a message and a remedy, for every foreseeable failure.
        """
        from SpineSegAILib.hints import Hints
        from SpineSegAILib.results import drop_unvalidated, require_structures
        from SpineSegAILib.worker.process import default_predictor

        from .scene import results, uncertainty, volumes

        hints = hints or Hints()
        image = volumes.imageFromVolume(volumeNode)
        predictor = default_predictor(checkpoint, device)
        result = predictor.segment(image, hints=hints, options=options or {}, progress=progress)
        require_structures(result, _("No spine was found in “{volume}”.").format(volume=volumeNode.GetName()))
        if not includeUnvalidated:
            result = drop_unvalidated(result, hints.locked, _("Use includeUnvalidated=True to include them"))
        segmentationNode = results.segmentationFromResult(result, volumeNode, segmentationNode)
        uncertainty.mapFromResult(result, volumeNode, segmentationNode)
        return segmentationNode

    @staticmethod
    def measure(segmentationNode, volumeNode):
        """Measure a segmentation as it is now, corrections included.

        :param volumeNode: the volume that it belongs to.
        :returns: a table node, one row per structure.
        """
        from SpineSegAILib.results.measurement_table import measurement_table

        from .scene import results, tables

        columns, rows = measurement_table(results.resultFromSegmentation(segmentationNode, volumeNode))
        return tables.tableFromMeasurements(columns, rows, segmentationNode)

    @staticmethod
    def warningsOf(segmentationNode):
        """Sentences that the reader should see, e.g. that the sacrum is not in view and level labels are uncertain."""
        from .scene import result_attribute

        return result_attribute.warningsOf(segmentationNode)

    @staticmethod
    def applyToOtherSeries(segmentationNode, volumeNode):
        """Carry a segmentation, by position, to the other series of its volume's study: a starting point there.

        What was carried there before is replaced, unless it was corrected since.

        :returns: for each other series its volume node, the segmentation node there (or None), and a sentence.
        """
        from .scene import other_series

        return other_series.applyToOtherSeries(segmentationNode, volumeNode)
