"""Why something has no result, in words for the reader."""

import traceback

from slicer.i18n import tr as _

from SpineSegAILib.errors import SpineSegAIError


class Failure:
    """Kind (the error's class), message, remedy, and what is worth reading in the log."""

    def __init__(self, kind, message, remedy="", log=""):
        self.kind = kind
        self.message = message
        self.remedy = remedy
        self.log = log

    @classmethod
    def of(cls, error):
        """What an exception says; one that nobody foresaw is a bug, and comes with its traceback."""
        if isinstance(error, SpineSegAIError):
            return cls(error.kind, error.message, error.remedy)
        return cls(
            "InternalError",
            f"{type(error).__name__}: {error}",
            _("This is a bug in SpineSegAI; please report it with the log."),
            "".join(traceback.format_exception(type(error), error, error.__traceback__)),
        )

    @classmethod
    def cancelled(cls):
        """The reader did not want it any more."""
        return cls("Cancelled", _("Cancelled."))

    @property
    def isCancelled(self):
        """Whether it is not to be reported to anybody."""
        return self.kind == "Cancelled"
