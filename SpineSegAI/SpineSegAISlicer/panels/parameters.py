"""The choices that are saved with the scene, as the sections share them."""

import contextlib

import slicer

from ..scene import volumes


class Parameters:
    """Holds the typed parameter node of the scene that is open."""

    def __init__(self):
        self.node = None  # None while a scene is closed
        self.isShowing = False

    @contextlib.contextmanager
    def showing(self):
        """While widgets are brought in line with the node, what they say is not a choice of the reader's."""
        self.isShowing = True
        try:
            yield
        finally:
            self.isShowing = False

    def write(self, **values):
        """Set several at once; the widgets follow."""
        if self.node is None or self.isShowing:
            return
        with slicer.util.NodeModify(self.node):
            for name, value in values.items():
                if getattr(self.node, name) != value:
                    setattr(self.node, name, value)

    @property
    def inputVolume(self):
        """What to segment; None if nothing is chosen."""
        return self.node.inputVolume if self.node is not None else None

    @property
    def outputSegmentation(self):
        """The result that is worked on; None if there is none."""
        return self.node.outputSegmentation if self.node is not None else None

    @property
    def outputVolume(self):
        """The volume that the result was made on; None without a result, or if the volume is gone."""
        output = self.outputSegmentation
        return volumes.segmentedVolume(output) if output is not None else None
