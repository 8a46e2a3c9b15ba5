"""What a section says: a line, the log, dialogs."""

import slicer
from slicer.i18n import tr as _


class Messages:
    """A status line, and a log if there is one.

    :param statusLabel: QLabel, hidden while there is nothing to say.
    :param logText: QPlainTextEdit, or None.
    """

    def __init__(self, statusLabel, logText=None):
        self._statusLabel = statusLabel
        self._logText = logText
        self.say("")

    def say(self, text):
        """One line."""
        self._statusLabel.text = text
        self._statusLabel.visible = bool(text)

    def log(self, text):
        """A line or more for the log."""
        if self._logText is not None:
            self._logText.appendPlainText(text)

    def show(self, failure, quiet=False):
        """Why something has no result.

        :param failure: `processes.failure.Failure`.
        :param quiet: without a dialog.
        """
        self.say(failure.message)
        self.log(f"{failure.kind}: {failure.message} {failure.remedy}".rstrip())
        if failure.kind == "InternalError" and failure.log:
            self.log(failure.log)
        if quiet:
            return
        text = failure.message + ("\n\n" + failure.remedy if failure.remedy else "")
        details = {"detailedText": failure.log} if failure.log else {}
        slicer.util.errorDisplay(text, windowTitle=_("SpineSegAI"), **details)
