"""What a result warns of, with the answer that puts it right: beside the result and beside the level tools."""

from slicer.i18n import tr as _

from ..scene import result_attribute

WARNING_STYLE = "background: #fff3cd; color: #664d03; border: 1px solid #e0c97f; padding: 4px; border-radius: 3px;"


class WarningsBox:
    """A label with the sentences, and a button that chooses the other naming that a result offers.

    :param label: QLabel.
    :param button: QPushButton.
    """

    def __init__(self, label, button):
        self._label, self._button = label, button
        self._alternative = None
        self.answerCallbacks = []  # called with the `results.Alternative` that was chosen
        label.setStyleSheet(WARNING_STYLE)
        button.connect("clicked(bool)", self._onAnswer)
        self.show(None, False)

    def show(self, segmentationNode, idle):
        """Show what the result of a segmentation node says; nothing for None.

        :param idle: whether it can be answered now.
        """
        warnings = result_attribute.warningsOf(segmentationNode) if segmentationNode is not None else []
        offered = result_attribute.alternativesOf(segmentationNode) if warnings else []
        self._alternative = next(iter(offered), None)
        self._label.visible = bool(warnings)
        self._label.text = "\n".join("⚠ " + warning for warning in warnings)
        self._button.visible = self._alternative is not None
        self._button.enabled = idle
        if self._alternative is not None:
            self._button.text = _("Rename to {levels}").format(levels=_inShort(self._alternative.names))
            self._button.toolTip = _(
                "Rename the levels to {names} ({percent} % probable). “Undo” takes it back."
            ).format(names=self._alternative.names, percent=round(100 * self._alternative.probability))

    def _onAnswer(self):
        if self._alternative is not None:
            for callback in self.answerCallbacks:
                callback(self._alternative)


def _inShort(names):
    """``"T12 to S1, with L6"`` for a whole sequence of names."""
    levels = [name.strip("()[]") for name in names.split()]
    text = _("{top} to {bottom}").format(top=levels[0], bottom=levels[-1])
    unusual = [level for level in levels if level in ("T13", "L6")]
    return _("{range}, with {levels}").format(range=text, levels=", ".join(unusual)) if unusual else text
