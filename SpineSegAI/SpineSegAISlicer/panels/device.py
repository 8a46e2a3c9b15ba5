"""What to compute on, and what that really is."""

from slicer.i18n import tr as _

from SpineSegAILib.errors import SpineSegAIError

DEVICES = (("auto", _("Automatic")), ("cpu", "CPU"), ("cuda", "NVIDIA GPU (CUDA)"), ("mps", "Apple GPU (MPS)"))
ERROR_STYLE = "color: #c62828;"


class DeviceChoice:
    """The widgets of the device, and what the worker says of it.

    :param ui: the widgets.
    :param parameters: `Parameters`.
    :param client: `WorkerClient`.
    """

    def __init__(self, ui, parameters, client):
        self._combo, self._label = ui.deviceComboBox, ui.deviceLabel
        self._parameters = parameters
        self._client = client
        self.isAsked = False  # whether the worker is asked what a device is: once there is time for it to start
        self.answer = None  # (asked, id or None if it cannot be used, name): what the worker said
        self.knownCallbacks = []  # called when it is known
        for device, title in DEVICES:
            self._combo.addItem(title, device)
        self._combo.connect("currentIndexChanged(int)", self._onChosen)

    @property
    def chosen(self):
        """``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``."""
        return self._combo.currentData

    def name(self):
        """How results will name the chosen device; None while that is not known."""
        if self.answer is None or self.answer[0] != self.chosen or self.answer[1] is None:
            return None
        _asked, device, name = self.answer
        return name if device.startswith("cuda") else device

    def update(self):
        """Bring the widgets in line with the parameter node."""
        with self._parameters.showing():
            self._combo.setCurrentIndex(max(0, self._combo.findData(self._parameters.node.device)))
        self._show()

    def setEnabled(self, enabled):
        """Let the reader choose, or not."""
        self._combo.enabled = enabled

    def _onChosen(self):
        if not self._parameters.isShowing:
            self._parameters.write(device=self.chosen)
            if self.isAsked:
                self.ask()

    def ask(self):
        """Let the worker say what the chosen device really is. It is started by this."""
        self.isAsked = True
        asked = self.chosen
        try:
            self._client.describeDevice(
                asked,
                onDone=lambda device, name: self._onAnswer(asked, device, name),
                onError=lambda failure: self._onFailure(asked, failure),
            )
        except SpineSegAIError as error:
            self._onAnswer(asked, None, error.message)

    def _onFailure(self, asked, failure):
        if failure.kind == "WorkerError":  # the worker was ended, maybe for another job: the next one is asked again
            self.isAsked = False
        else:
            self._onAnswer(asked, None, failure.message)

    def _onAnswer(self, asked, device, name):
        self.answer = (asked, device, name)
        self._show()
        for callback in self.knownCallbacks:
            callback()

    def _show(self):
        label = self._label
        if self.answer is None or self.answer[0] != self.chosen:
            label.visible = False
            return
        _asked, device, name = self.answer
        label.visible = True
        label.text = name
        if device is None:
            label.toolTip = _("This device cannot be used: {reason}").format(reason=name)
            label.setStyleSheet(ERROR_STYLE)
            return
        label.setStyleSheet("")
        label.toolTip = device
        if device == "cpu":
            label.text = _("CPU ({name})").format(name=name)
            label.toolTip = _("No graphics card is used.")
