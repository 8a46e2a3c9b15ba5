"""Draw the panel as users see it, into a PNG: ``python Testing/Slicer/render_panel.py OUTPUT.png [before|after]``.

``after`` segments the sample first, with the shipped default checkpoint.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import host

WIDTH = 420


def render(path: str, state: str = "after") -> None:
    """Write the picture of the panel in a state."""
    host.start()
    import slicer
    from host.pythonqt import unwrap
    from panel_case import open_widget
    from SpineSegAISlicer import samples

    from SpineSegAI import SpineSegAIWidget

    widget = open_widget(SpineSegAIWidget)
    panel, frame = widget.segmentPanel, unwrap(widget.parent)
    widget._parameterNode.inputVolume = samples.load()
    host.wait_until(lambda: panel._device is not None, 60)
    if state == "after":
        widget.ui.applyButton.click()
        host.wait_until(lambda: not panel.isRunning, 300)
    frame.resize(WIDTH, 100)
    frame.show()
    host.wait_until(lambda: False, 0.2)
    frame.resize(WIDTH, frame.sizeHint().height())
    host.wait_until(lambda: False, 0.2)
    frame.grab().save(path)
    widget.cleanup()
    slicer.mrmlScene.Clear()


if __name__ == "__main__":
    render(*sys.argv[1:])
