"""“Click to correct”: the toggle of the tab, which puts the effect “Spine click” of its Segment Editor to work."""

from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from SpineSegAILib.errors import CorrectionError

from ..processes.failure import Failure
from ..scene.segments import structuresOfSegmentation
from .click_models import ModelChoice, reasonAgainst
from .clicking import EFFECT, ClickTool
from .part import Part

EFFECT_FILE = Path(__file__).parents[2] / "SegmentEditorSpineClickLib" / "SegmentEditorEffect.py"


def registerEffect():
    """Add the effect “Spine click” to Slicer's Segment Editor, once."""
    if hasattr(slicer, EFFECT_FILE.parent.name):  # Slicer keeps an effect there under the name of its folder
        return
    effect = slicer.qSlicerSegmentEditorScriptedEffect(None)
    effect.setPythonSource(EFFECT_FILE.as_posix())
    effect.self().register()


class ClickTools(Part):
    """The toggle, and the case that `ClickTool` corrects: the section's."""

    def __init__(self, section):
        super().__init__(section)
        registerEffect()
        self.tool = ClickTool(self, lambda: section.segmenting.queue.client, qt.QTimer.singleShot)
        self._reason = None  # why clicks cannot be followed; None while that was not looked at
        self._tip = self.ui.clickButton.toolTip
        self._choice = ModelChoice(self.ui.clickModelComboBox)
        self._idle = False
        self._escape = qt.QShortcut(qt.QKeySequence("Escape"), section.root)
        self._escape.setEnabled(False)
        self._escape.connect("activated()", self.stop)
        self.ui.clickButton.connect("toggled(bool)", self._onToggled)

    # --- the toggle --------------------------------------------------------------------------------------------------

    def show(self):
        """A checkpoint may have come since, or gone."""
        self._reason = reasonAgainst()
        self._choice.update()
        self._enable()

    def setEnabled(self, there, idle):
        """Not while something else changes the segments."""
        self._idle = idle
        if not idle:
            self.stop()
        self._enable()

    def _enable(self):
        button = self.ui.clickButton
        button.enabled = self._idle and self._reason == ""
        button.toolTip = self._reason or self._tip

    def _onToggled(self, on):
        editor = self.section.editor.widget
        if on:
            self.section.review.stopPicking()
            editor.setActiveEffectByName(EFFECT)
            self.say(
                self._reason
                or _("Click where the selected structure should be, with Ctrl where not. Drag to scribble. Esc ends.")
            )
        elif self._isActive():
            editor.setActiveEffect(None)
            self.section.showMessage("")
        self._escape.setEnabled(on)

    def _isActive(self):
        node = self.section.editor.widget.mrmlSegmentEditorNode()
        return node is not None and node.GetActiveEffectName() == EFFECT

    def onEffect(self, name):
        """The effect may be chosen among the editor's own, too, or left for another one."""
        if name == EFFECT:
            self.section.editor.widget.effectByName(EFFECT).self().tool = self.tool
        self.ui.clickButton.checked = name == EFFECT

    def stop(self):
        """No clicks any more; those that were made are still followed."""
        self.ui.clickButton.checked = False

    def exit(self):
        """A click in another module is not for us."""
        self.stop()

    def onRestored(self):
        """What was being computed was for segments that are others now."""
        self.tool.forget()

    def onLeft(self):
        """The same."""
        self.stop()
        self.tool.forget()

    # --- what `ClickTool` corrects -----------------------------------------------------------------------------------

    @property
    def segmentationNode(self):
        """The section's."""
        return self.section.segmentationNode

    def target(self):
        """Segmentation, volume, and the id of the selected segment.

        :raises CorrectionError: not one structure is selected, the volume is gone, or a segmentation runs.
        """
        section = self.section
        if section.segmentationNode is None:
            raise CorrectionError(_("There is no segmentation."), _("Segment a volume first."))
        section.refuseWhileRunning()
        (structureId,) = section.review.selected(1)
        segmentId = structuresOfSegmentation(section.segmentationNode)[structureId]
        return section.segmentationNode, section.requireVolume(), segmentId

    def carryOut(self, segmentationNode, volumeNode, step):
        """One undo step of the section."""
        self.section.refuseWhileRunning()
        self.section.carryOut(step)

    def say(self, text):
        """A sentence in the section."""
        self.section.showMessage(text)

    def showError(self, error):
        """Why something could not be done, and what to do."""
        failure = error if isinstance(error, Failure) else Failure.of(error)
        self.section.showMessage(f"{failure.message} {failure.remedy}".strip(), isError=True)
