"""A group of tools of the tab Correct."""


class Part:
    """What every group has; each does what of this it needs.

    :param section: `CorrectionPanel`: its segmentation, its selection, its message.
    """

    def __init__(self, section):
        self.section = section
        self.ui = section.ui

    def show(self):
        """Bring the widgets in line with the segmentation; not called while another tab is open."""

    def setEnabled(self, there, idle):
        """Enable what can be done now.

        :param there: a segmentation is chosen.
        :param idle: and nothing is being segmented.
        """

    def enter(self):
        """The module is opened."""

    def exit(self):
        """Another module is opened, which must not be disturbed."""

    def onSelected(self):
        """The user has selected other structures."""

    def onEffect(self, name):
        """Another effect of the Segment Editor is at work, or none (an empty name)."""

    def onCorrected(self, step):
        """A `correction.Correction` was carried out."""

    def onRestored(self):
        """Undo or redo was clicked."""

    def onLeft(self):
        """The segmentation is about to be another one, or none."""
