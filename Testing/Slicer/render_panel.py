"""Draw the panel as users see it, into a PNG: ``python Testing/Slicer/render_panel.py OUTPUT.png [STATE [IMAGE]]``.

States: ``before``; ``after`` segments first, with the shipped default checkpoint; ``correct`` is the Correct section
with a level selected, after the same; ``uncertainty`` is the panel after a method that samples, with its map shown, for
which a Verdiff-Net checkpoint must be found. Without an image (any that SimpleITK reads) it is the shipped sample.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import host

WIDTH = 420


def render(path: str, state: str = "after", image: str = "") -> None:
    """Write the picture of the panel in a state."""
    host.start()
    import slicer
    from host.pythonqt import unwrap
    from panel_case import open_widget
    from SpineSegAISlicer.scene import samples

    from SpineSegAI import SpineSegAIWidget

    widget = open_widget(SpineSegAIWidget)
    panel, frame = widget.segmentPanel, unwrap(widget.parent)
    widget._parameterNode.inputVolume = slicer.util.loadVolume(image) if image else samples.load()
    host.wait_until(lambda: panel.device.answer is not None, 60)
    if state == "uncertainty":
        widget._parameterNode.method = "verdiff-net"
    if state != "before":
        widget.ui.applyButton.click()
        host.wait_until(lambda: not widget.segmenting.isRunning, 300)
    if state == "correct":
        for name in ("segmentCollapsibleButton", "resultCollapsibleButton"):
            getattr(widget.ui, name).collapsed = True
        correct = widget.correctionPanel
        correct.review.table.select([23])
        correct.ui.againGroupBox.collapsed = False
        correct.ui.repairGroupBox.collapsed = False
    if state == "uncertainty":
        slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceCompositeNode")
        widget.ui.uncertaintyCheckBox.click()
        assert widget.ui.uncertaintyCheckBox.checked
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
