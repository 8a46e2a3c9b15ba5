"""Draw the panel as users see it: ``python Testing/Slicer/render_panel.py FOLDER [IMAGE [CHECKPOINT]]``.

Writes ``TAB-STATE-WIDTH-STYLE.png`` for every tab and state, at two widths, light and dark, from one run of the shipped
default model (or another) on an image that SimpleITK reads (or the shipped sample). For screens that are scaled, set
``QT_SCALE_FACTOR=1.5``.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import host

WIDTHS = (380, 500)
STYLES = ("light", "dark")


def main(folder: str, image: str = "", checkpoint: str = "") -> None:
    """Write the pictures of all tabs and states."""
    os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp()  # as where nothing was chosen before
    host.start()
    import slicer
    from dicom_series import write_series
    from panel_case import open_widget
    from SpineSegAISlicer.scene import samples
    from SpineSegAISlicer.scene.segments import UNCERTAINTY_TAG, setTag

    from SpineSegAI import SpineSegAIWidget

    Path(folder).mkdir(parents=True, exist_ok=True)
    widget = open_widget(SpineSegAIWidget)
    panel, ui, parameters = widget.segmentPanel, widget.ui, widget._parameterNode
    draw = Camera(widget, Path(folder))
    draw("segment-empty")
    draw("correct-empty", "correctTab")
    draw("train-empty", "trainTab")
    parameters.inputVolume = slicer.util.loadVolume(image) if image else samples.load()
    parameters.checkpoint = checkpoint
    panel.warmUp()
    host.wait_until(lambda: panel.device.answer is not None, 120)
    draw("segment-before")
    ui.applyButton.click()
    host.wait_until(lambda: ui.progressBar.value > 20, 120)
    draw("segment-running")
    host.wait_until(lambda: not widget.segmenting.isRunning, 600)
    draw("segment-after")
    correct = widget.correctionPanel
    draw("correct-result", "correctTab")
    correct.review.table.select([23])
    draw("correct-selected", "correctTab")
    draw_clicks(draw, correct)
    ask(parameters.outputSegmentation)
    correct.refresh()
    draw("segment-question")
    ui.advancedCollapsibleButton.collapsed = False
    draw("segment-advanced")
    ui.modelDetailsButton.checked = True
    draw("segment-details")
    ui.modelDetailsButton.checked = False
    model = ui.modelComboBox.currentIndex
    sampling = [i for i in range(ui.modelComboBox.count) if "Verdiff" in ui.modelComboBox.itemText(i)]
    ui.modelComboBox.setCurrentIndex(sampling[0])
    draw("segment-sampling")
    ui.modelComboBox.setCurrentIndex(model)
    ui.advancedCollapsibleButton.collapsed = True
    ui.queueCollapsibleButton.collapsed = False
    draw("segment-volumes")
    ui.queueCollapsibleButton.collapsed = True
    work = tempfile.TemporaryDirectory()
    storage = parameters.inputVolume.GetStorageNode()
    kept = storage.GetFileName()
    storage.SetFileName(str(write_series(parameters.inputVolume, Path(work.name, "series"))[0]))
    panel.update()
    widget.resultPanel.update()
    draw("segment-dicom")
    storage.SetFileName(kept)
    draw("correct-question", "correctTab")
    correct.ui.shiftUpButton.click()
    draw("correct-shifted", "correctTab")
    correct.ui.swapButton.click()
    draw("correct-refused", "correctTab")
    correct.ui.correctUndoButton.click()
    segmentation = parameters.outputSegmentation.GetSegmentation()
    for segmentId in segmentation.GetSegmentIDs():  # as of methods that sample
        setTag(segmentation.GetSegment(segmentId), UNCERTAINTY_TAG, "0.12")
    correct.refresh()
    draw("correct-uncertainty", "correctTab")
    for name in ("levels", "editor", "repair", "again", "series"):
        getattr(correct.ui, f"{name}GroupBox").collapsed = False
    draw("correct-unfolded", "correctTab")
    widget.datasetUi.datasetCollapsibleButton.collapsed = False
    widget.trainingUi.trainCollapsibleButton.collapsed = False
    draw("train-unfolded", "trainTab")
    widget.datasetUi.datasetFolderLineEdit.text = str(Path(work.name, "dataset"))
    widget.datasetPanel.addImages([samples.samplePath()])
    widget.trainingPanel.runs.watch(run_elsewhere(Path(work.name, "first")))
    draw("train-cases", "trainTab")
    draw_film(draw, widget)
    widget.cleanup()
    work.cleanup()
    slicer.mrmlScene.Clear()


def draw_clicks(draw, correct) -> None:
    """The toggle “Click to correct”: switched on, and while a click is being followed."""
    from click_stand_ins import Client
    from SpineSegAISlicer.panels.clicking import Stroke
    from SpineSegAISlicer.scene import labelmaps

    client = correct.segmenting.queue.client
    correct.ui.clickButton.setChecked(True)
    draw("correct-clicks", "correctTab")
    client.refine = Client().refine  # which never answers
    middle = labelmaps.centreOf(correct.segmentationNode, 23)
    correct.clicks.tool.add(Stroke((tuple(middle),), True))
    host.wait_until(lambda: False, 0.5)
    draw("correct-clicking", "correctTab")
    correct.clicks.stop()
    correct.clicks.tool.forget()
    del client.refine


def draw_film(draw, widget) -> None:
    """A synthetic film's result with its Cobb lines."""
    from test_cobb_lines import FilmCase

    case = FilmCase()
    case.widget = widget
    case.open()
    widget.ui.cobbCheckBox.click()
    draw("segment-film")


def ask(node) -> None:
    """As if the levels were a close call: the question, and its answer."""
    from SpineSegAISlicer.scene import result_attribute
    from SpineSegAISlicer.scene.segments import structuresOfSegmentation

    from SpineSegAILib import anatomy, correction
    from SpineSegAILib.results import Alternative

    up = correction.shift(correction.LabeledStructures(frozenset(structuresOfSegmentation(node))), "up")
    after = anatomy.sorted_ids({up.mapping.get(i, i) for i in structuresOfSegmentation(node)})
    names = " ".join(anatomy.STRUCTURES[i].name for i in after if anatomy.STRUCTURES[i].is_vertebral)
    document = result_attribute.read(node)
    question = f"Which levels are these? They may also be {names.split()[0]} to {names.split()[-1]} (25 %)."
    document["alternatives"] = [Alternative(names, 0.25, up.mapping, question).to_document()]
    document["warnings"] = [question, *document.get("warnings", [])]
    result_attribute.write(node, document)


def run_elsewhere(folder):
    """A training run on another computer that shares the folder."""
    from SpineSegAILib.training.run import RunDirectory, write_json

    run = RunDirectory(folder)
    run.folder.mkdir()
    owner = {"pid": 1, "started": 1.0, "host": "another computer"}
    write_json(run.config_file, {"name": "lumbar-mr-resenc-tuned", "optimization": {"steps": 4000}})
    write_json(run.lock_file, owner)
    write_json(run.status_file, {"state": "running", **owner, "heartbeat": time.time(), "progressed": time.time()})
    run.event("step", step=1000, losses={"total": 0.41}, steps_per_second=2.0, elapsed=500.0)
    return run.folder


class Camera:
    """Takes the pictures, and says how large what they show wants to be."""

    def __init__(self, widget, folder):
        from host.pythonqt import unwrap

        self._widget, self._folder = widget, folder
        self._frame = unwrap(widget.parent)

    def __call__(self, name, tab="segmentTab"):
        from host.pythonqt import unwrap
        from PySide6.QtGui import QColor, QPalette
        from PySide6.QtWidgets import QApplication

        self._widget.tabs.show(tab)
        frame, application = self._frame, QApplication.instance()
        frame.show()
        for style in STYLES:
            palette = QPalette(QColor(53, 53, 53)) if style == "dark" else QPalette(QColor(239, 239, 239))
            if style == "dark":
                palette.setColor(QPalette.Base, QColor(35, 35, 35))
                palette.setColor(QPalette.Link, QColor(90, 160, 250))
                for role in (QPalette.WindowText, QPalette.ButtonText, QPalette.Text):
                    palette.setColor(QPalette.Disabled, role, QColor(127, 127, 127))  # as Slicer's dark style has it
            application.setPalette(palette)
            frame.setPalette(palette)
            for width in WIDTHS:
                for _again in range(2):  # what was there before has left its heights
                    frame.resize(width, 100)
                    host.wait_until(lambda: False, 0.05)
                page = unwrap(getattr(self._widget.ui, tab))  # the tabs themselves are as high as the highest of them
                height = max(page.layout().totalHeightForWidth(page.width()), page.minimumSizeHint().height())
                frame.resize(width, frame.height() - page.height() + height)
                host.wait_until(lambda: False, 0.05)
                frame.grab().save(str(self._folder / f"{name}-{width}-{style}.png"))
        least = frame.minimumSizeHint()
        print(f"{name}: at least {least.width()} wide, {frame.width()} x {frame.height()}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
