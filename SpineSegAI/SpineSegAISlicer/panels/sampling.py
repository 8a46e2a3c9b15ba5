"""How masks are drawn by methods that sample, and how long that takes."""

from slicer.i18n import tr as _

from ..processes import dependencies, run_times
from ..scene import volumes


class Sampling:
    """The widgets of samples, steps and preview; the options and the estimate that follow.

    :param ui: the widgets.
    :param parameters: `Parameters`.
    :param choices: `Choices`.
    :param device: `DeviceChoice`.
    """

    def __init__(self, ui, parameters, choices, device):
        self._ui = ui
        self._parameters = parameters
        self._choices = choices
        self._device = device
        device.knownCallbacks.append(self._showEstimate)

    def options(self, volumeNode=None):
        """The method's run-time options.

        :param volumeNode: to be segmented, since that may decide on the model; the input volume if not given.
        """
        parameters, shown = self._parameters.node, self._shown(volumeNode)
        if not shown:
            return {}
        if "preview" in shown and parameters.preview:
            return {"preview": "on"}
        usual = self._usual(volumeNode)
        return {name: getattr(parameters, name) or usual[name] for name in ("samples", "steps") if name in shown}

    def _shown(self, volumeNode=None):
        """Names of the options that say how masks are drawn; empty for methods that draw none, and for checkpoints that
        hold the prior alone."""
        method, info = self._choices.method(volumeNode), self._choices.checkpoint(volumeNode)
        if method is None or (info is not None and info.metadata["method"].get("stage") == "prior"):
            return ()
        return method.sampling

    def _usual(self, volumeNode=None):
        """Samples and steps that the checkpoint was made for, or else the method; for methods that sample."""
        info = self._choices.checkpoint(volumeNode)
        fields = self._choices.method(volumeNode).config_class().model_fields
        said = info.metadata["method"] if info is not None else {}
        return {name: said.get(name, fields[name].default) for name in ("samples", "steps")}

    def update(self, enabled):
        """Show what the method takes.

        :param enabled: whether the reader may choose now.
        """
        ui, shown = self._ui, self._shown()
        if shown and dependencies.areInstalled():  # on a fresh Slicer, configs cannot be read
            usual = self._usual()
            ui.samplesSpinBox.specialValueText = _("{count} samples").format(count=usual["samples"])
            ui.stepsSpinBox.specialValueText = _("{count} steps").format(count=usual["steps"])
        ui.samplingWidget.visible = bool(shown)
        for name, widgets in (
            ("samples", (ui.samplesLabel, ui.samplesSpinBox)),
            ("steps", (ui.stepsLabel, ui.stepsSpinBox)),
            ("preview", (ui.previewCheckBox,)),
        ):
            for widget in widgets:
                widget.visible = name in shown
        drawn = enabled and not ("preview" in shown and self._parameters.node.preview)
        ui.samplesSpinBox.enabled = ui.stepsSpinBox.enabled = drawn
        ui.previewCheckBox.enabled = enabled
        self._showEstimate()

    def _showEstimate(self):
        """How long a run with these settings will take, as far as the last one tells."""
        if self._parameters.node is None:  # the worker may say what the device is after the scene was closed
            return
        label = self._ui.estimateLabel
        label.text = self._estimate()
        label.visible = bool(label.text)
        label.toolTip = _("Based on the last run with this model on this device; excludes start-up.")

    def _estimate(self):
        volumeNode, info = self._parameters.inputVolume, self._choices.checkpoint()
        if info is None or volumeNode is None or volumeNode.GetImageData() is None:
            return ""
        if not dependencies.areInstalled():
            return ""
        seconds, device = None, self._device.name()
        if device is not None:
            evaluations = self._evaluations(self.options())
            seconds = run_times.estimate(device, str(info.path), self._work(volumeNode, info), evaluations)
        if seconds is not None:
            return _("About {time} on this device.").format(time=run_times.words(seconds))
        return _("Estimated after the first run on this device.") if self._shown() else ""

    def learn(self, volumeNode, options, result):
        """Remember how long a run took.

        :param options: that it was made with.
        """
        info, seconds = self._choices.checkpoint(volumeNode), result.provenance.get("seconds", {})
        if info is not None and "network" in seconds:
            device, evaluations = result.provenance.get("device"), self._evaluations(options)
            run_times.learn(device, str(info.path), self._work(volumeNode, info), evaluations, seconds)

    @staticmethod
    def _evaluations(options):
        if "preview" in options:
            return 0
        return options["samples"] * options["steps"] if options else 1

    @staticmethod
    def _work(volumeNode, info):
        from SpineSegAILib.imaging import Preprocessing

        preprocessing = Preprocessing.model_validate(info.metadata.get("preprocessing", {}))
        return volumes.sliceArea(volumeNode, preprocessing.min_slice_mm)
