"""Segmenting with the choices of the panel: what is asked for a volume, and where its answer goes."""

import importlib

import slicer

from ..processes import dependencies
from ..processes.job_queue import JobQueue
from ..processes.requests import SegmentationRequest
from ..scene import results, uncertainty, views, volumes
from ..scene.segment_again import SegmentAgain

SLOW_IMPORTS = ("SimpleITK", "pydantic", "SpineSegAILib.worker.protocol")
"""What talking to the worker needs, in an order in which each has little left to load after those before it."""

TOOL_IMPORTS = ("scipy.ndimage", "SpineSegAILib.correction.voxels")
"""The same, for the first repair."""


class Segmenting:
    """What the sections share to segment: the queue, and how to start it.

    :param client: `WorkerClient`.
    :param watcher: `job_queue.Watcher`.
    :param parameters: `Parameters`.
    :param choices: `Choices`.
    :param device: `DeviceChoice`.
    :param sampling: `Sampling`.
    :param steering: `Steering`.
    """

    def __init__(self, client, watcher, parameters, choices, device, sampling, steering):
        self.queue = JobQueue(client, watcher)
        self.parameters = parameters
        self.choices = choices
        self.device = device
        self.sampling = sampling
        self.steering = steering
        self.beforeReplaceCallbacks = []  # called with a segmentation node before its segments are replaced
        self.placedCallbacks = []  # called with the `SegmentTask` whose answer is in the scene

    @property
    def isRunning(self):
        """True while a volume is being segmented or waits for it."""
        return self.queue.isRunning

    def warmUp(self):
        """Load what the first click would wait for, and start the worker. Does nothing the second time."""
        if not self.choices.isWarm:
            self.choices.isWarm = True
            for name in SLOW_IMPORTS:
                importlib.import_module(name)
        if not self.device.isAsked:
            self.device.ask()

    def start(self, volumeNodes, outputNode=None, again=None):
        """Segment volumes one after the other; not while others are.

        :param outputNode: segmentation to update; only with a single volume.
        :param again: `SegmentAgain`: more hints, and what of the result is taken over.
        """
        if not dependencies.ready():
            return
        # An installation takes minutes, in which the scene may change.
        volumeNodes = [node for node in volumeNodes if node is not None and node.GetScene() is not None]
        if outputNode is not None and outputNode.GetScene() is None:
            outputNode = None
        if not volumeNodes or self.isRunning or (again is not None and outputNode is None):
            return
        self.warmUp()
        outputNode = outputNode if len(volumeNodes) == 1 else None
        chosen = self.steering.chosen()
        self.queue.start([SegmentTask(self, node, outputNode, again, chosen) for node in volumeNodes])


class SegmentTask:
    """One volume in the queue, see `job_queue.Task`. Nodes are kept as ids: they may vanish while it waits."""

    def __init__(self, segmenting, volumeNode, outputNode, again, chosen):
        self.key = volumeNode.GetID()
        self.history = None  # `UndoHistory` of the segments that the answer replaced; None if it replaced none
        self.segmentationNode = None  # where the answer was placed
        self.viewsBefore = views.arrangement()
        self.options = {}
        self._segmenting = segmenting
        self._outputId = outputNode.GetID() if outputNode is not None else None
        self.again = again
        self._chosen = chosen
        self._hints = None

    @property
    def volumeNode(self):
        """None once it was removed."""
        return slicer.mrmlScene.GetNodeByID(self.key)

    @property
    def _outputNode(self):
        return slicer.mrmlScene.GetNodeByID(self._outputId) if self._outputId else None

    def isThere(self):
        """Whether the volume is still in the scene; and the segmentation, of which a part is segmented again."""
        return self.volumeNode is not None and (self.again is None or self._outputNode is not None)

    def reasonsAgainst(self):
        """Sentences why it cannot be segmented with the choices as they are now."""
        return self._segmenting.choices.reasonsAgainst(self.volumeNode)

    def request(self):
        """What the worker is asked.

        :raises ImageError: the volume cannot be segmented.
        :raises HintError: what it was to be segmented with is gone, or is not what it should be.
        """
        by, volumeNode = self._segmenting, self.volumeNode
        image = volumes.imageFromVolume(volumeNode)
        hints = by.steering.hints(volumeNode, self._outputNode, self._chosen, usePrior=self.again is None)
        self._hints = self.again.hints(hints) if self.again is not None else hints
        self.options = by.sampling.options(volumeNode)
        return SegmentationRequest(
            image=image,
            checkpoint=by.choices.checkpointNameFor(volumeNode),
            device=by.device.chosen,
            hints=self._hints,
            options=self.options,
            includeUnvalidated=by.parameters.node.includeUnvalidated,
        )

    def place(self, result):
        """Put the answer into the scene; what it replaces can be brought back.

        :raises SpineSegAIError: it does not fit any more; nothing was changed.
        """
        volumeNode, outputNode = self.volumeNode, self._outputNode
        history = results.UndoHistory(outputNode) if outputNode is not None else None

        def saveState():
            history.saveState()
            for callback in self._segmenting.beforeReplaceCallbacks:
                callback(outputNode)

        again = self.again
        if again is None and outputNode is not None:
            again = SegmentAgain(prior=self._hints.prior)
        place = again.place if again is not None else results.segmentationFromResult
        self.segmentationNode = place(result, volumeNode, outputNode, saveState)
        uncertainty.mapFromResult(result, volumeNode, self.segmentationNode)
        self.history = history
