"""The tab Segment: input, the big button, progress.

The panel computes nothing. It reads the choices, hands volumes to the worker one after the other, and turns answers
into nodes. Whatever can go wrong arrives as a `Failure` and is shown with its remedy.
"""

import importlib
from html import escape

import qt
from slicer.i18n import tr as _

from ..processes import dependencies, run_times
from .choices import Choices
from .device import DeviceChoice
from .sampling import Sampling
from .segmenting import SLOW_IMPORTS, TOOL_IMPORTS, Segmenting
from .steering import Steering

DOUBLE_CLICK_SECONDS = 0.5
"""The second click of a double click must not cancel what the first one started."""


class SegmentPanel:
    """Behavior of the section, on widgets that Qt Designer laid out; what watches the queue.

    :param ui: the widgets, as `slicer.util.childWidgetVariables` gives them.
    :param parameters: `Parameters`.
    :param client: `WorkerClient`.
    :param messages: `Messages`.
    """

    def __init__(self, ui, parameters, client, messages):
        self.ui = ui
        self.parameters = parameters
        self.messages = messages
        self.choices = Choices(ui, parameters, messages)
        self.device = DeviceChoice(ui, parameters, client)
        self.sampling = Sampling(ui, parameters, self.choices, self.device)
        self.steering = Steering(ui, parameters, self.choices)
        self.segmenting = Segmenting(client, self, parameters, self.choices, self.device, self.sampling, self.steering)
        self.queue = self.segmenting.queue
        self.queue.changedCallbacks.append(self.updateButtons)
        self._clock = qt.QTimer()
        self._clock.setInterval(250)
        self._clock.connect("timeout()", self._showElapsed)
        for widget in (ui.progressBar, ui.elapsedLabel):
            widget.visible = False
        ui.applyButton.connect("clicked(bool)", self.onApply)

    # --- shown -------------------------------------------------------------------------------------------------------

    def update(self):
        """Bring the widgets in line with the parameter node, and the button with everything."""
        if self.parameters.node is None or self.parameters.isShowing:
            return
        self.choices.update()
        self.device.update()
        self.updateButtons()

    def refreshCheckpoints(self):
        """Look for checkpoint files again: some may have come since, e.g. from a training run."""
        self.choices.refreshCheckpoints()
        self.update()

    def updateButtons(self):
        """Enable what can be done now; a disabled button says in its tooltip why."""
        if self.parameters.node is None:
            return
        button, idle = self.ui.applyButton, not self.segmenting.isRunning
        if idle:
            reasons = self.choices.reasonsAgainst(self.parameters.inputVolume)
            button.text = _("Segment spine")
            button.enabled = not reasons
            button.toolTip = listed(reasons) if reasons else _("Segment the spine in this volume.")
        else:
            button.text = _("Cancel")
            button.toolTip = _("Stop the segmentation; the scene stays as it is.")
            button.enabled = not self.queue.isCancelling
        for widget in (self.ui.inputVolumeSelector, self.ui.outputSegmentationSelector, self.ui.tryLabel):
            widget.enabled = idle
        self.ui.tryLabel.visible = self.parameters.inputVolume is None
        self.choices.setEnabled(idle)
        self.device.setEnabled(idle)
        self.sampling.update(enabled=idle)
        self.steering.update(enabled=idle)

    def _showElapsed(self):
        seconds = int(self.queue.pace.elapsed())
        text, left = f"{seconds // 60}:{seconds % 60:02d}", self.queue.pace.left()
        if left is not None:
            text = _("{elapsed}, about {time} left").format(elapsed=text, time=run_times.words(left))
        self.ui.elapsedLabel.text = text

    # --- clicks ------------------------------------------------------------------------------------------------------

    def onApply(self):
        """The big button: start, or cancel."""
        if not self.segmenting.isRunning:
            self.segmenting.start([self.parameters.inputVolume], self.parameters.outputSegmentation)
        elif self.queue.pace.elapsed() > DOUBLE_CLICK_SECONDS:
            self.cancel()

    def cancel(self, quietly=False):
        """Stop everything that runs or waits; the scene stays as it is.

        :param quietly: without a word, since the scene goes away.
        """
        if self.queue.task is not None and not quietly:
            self.messages.say(_("Cancelling…"))
        self.queue.cancel(quietly)

    def warmUpInSteps(self, names=(*SLOW_IMPORTS, *TOOL_IMPORTS)):
        """As `warmUp`, with turns of the event loop in between. Called some time after the panel has opened."""
        if self.parameters.node is None or not dependencies.areInstalled():
            return
        if names:
            importlib.import_module(names[0])
            qt.QTimer.singleShot(0, lambda: self.warmUpInSteps(names[1:]))
        else:
            self.warmUp()

    def warmUp(self):
        """Load what the first click would wait for."""
        if self.parameters.node is not None and dependencies.areInstalled():
            self.segmenting.warmUp()
            self.updateButtons()

    # --- the scene ---------------------------------------------------------------------------------------------------

    def onSceneClose(self):
        """Everything in the scene goes away: drop what runs."""
        self.cancel(quietly=True)
        self.queue.states.clear()
        self.messages.say("")

    def onNodeRemoved(self):
        """A node was removed: if it was the one being segmented, drop the job."""
        self.queue.dropWhatIsGone()
        self.updateButtons()

    def cleanup(self):
        """The panel goes away."""
        self.cancel(quietly=True)
        self._clock.stop()

    # --- what the queue tells ----------------------------------------------------------------------------------------

    def onBegin(self, task):
        """A volume is about to be segmented."""
        self._clock.start()
        self.ui.progressBar.value = 0
        self.ui.progressBar.visible = True
        self.ui.elapsedLabel.visible = True
        self.messages.say(_("Segmenting “{volume}”…").format(volume=task.volumeNode.GetName()))

    def onProgress(self, fraction, message):
        """The running one has got on."""
        self.ui.progressBar.value = int(100 * fraction)
        if message:
            self.messages.say(message)

    def onPlaced(self, task, result):
        """A result is in the scene: it is what the panel shows from now on."""
        for callback in self.segmenting.placedCallbacks:
            callback(task)
        self.sampling.learn(task.volumeNode, task.options, result)
        self.parameters.write(inputVolume=task.volumeNode, outputSegmentation=task.segmentationNode)
        words = _("{count} structures in {seconds:.1f} s.")
        self.messages.say(words.format(count=len(result.present), seconds=self.queue.pace.elapsed()))

    def onCancelled(self):
        """The reader has stopped it."""
        self.messages.say(_("Cancelled; nothing was changed."))

    def onFailed(self, failure, quiet):
        """There is no result."""
        self.messages.show(failure, quiet)

    def onRemoved(self):
        """The volume is gone, or the segmentation that was to be changed."""
        self.messages.say(_("The volume or its segmentation was removed from the scene; the result was dropped."))

    def onIdle(self):
        """Nothing runs any more."""
        self._clock.stop()
        self.ui.progressBar.visible = False
        self.ui.elapsedLabel.visible = False


def listed(reasons):
    """A tooltip that lists sentences."""
    return "<ul>" + "".join(f"<li>{escape(reason)}</li>" for reason in reasons) + "</ul>"
