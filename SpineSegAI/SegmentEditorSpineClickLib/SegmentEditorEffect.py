"""“Spine click” in Slicer's Segment Editor: the selected structure follows to where the user clicks.

Slicer reads this file when it starts, and makes an instance for each Segment Editor: what a function needs is imported
when it is called. What clicks do is in `SpineSegAISlicer.panels.clicking`, shared with the tab Correct.
"""

import qt
import slicer
import vtk
from SegmentEditorEffects import AbstractScriptedSegmentEditorEffect
from slicer.i18n import tr as _


class SegmentEditorEffect(AbstractScriptedSegmentEditorEffect):
    """Hands what happens in slice views to a `ClickTool`, and shows the sign of the next click.

    :param scriptedEffect: `qSlicerSegmentEditorScriptedEffect`, Slicer's side of it.
    """

    def __init__(self, scriptedEffect):
        scriptedEffect.name = "Spine click"  # not translated: modules find effects by it
        scriptedEffect.title = _("Spine click")
        AbstractScriptedSegmentEditorEffect.__init__(self, scriptedEffect)
        self.tool = None  # `ClickTool`; one that knows more of the case may be put in its place
        self._mouse = None
        self._label = None
        self._combo = None
        self._choice = None  # `ModelChoice`, with the combo box
        self._trace = None
        self._shownSign = None

    # --- what Slicer asks of an effect -------------------------------------------------------------------------------

    def clone(self):
        """Another instance, for another Segment Editor."""
        effect = slicer.qSlicerSegmentEditorScriptedEffect(None)
        effect.setPythonSource(__file__.replace("\\", "/"))
        return effect

    def icon(self):
        """The sign for adding."""
        from SpineSegAISlicer.panels.click_cursor import signPixmap

        return qt.QIcon(signPixmap(True))

    def helpText(self):
        """What the mouse does."""
        return "<html>" + _(
            "The selected structure follows to where you click<br>."
            "<p><ul style='margin: 0'>"
            "<li><b>Left-click:</b> the structure should be here, too.</li>"
            "<li><b>Ctrl + left-click:</b> it should not be here.</li>"
            "<li><b>Left-button drag:</b> a scribble, which is many clicks.</li>"
            "<li><b>Esc:</b> end.</li></ul>"
            "<p>Segments that are locked in SpineSegAI never change. Name a segment after a structure, such as L4,"
            " L4/L5 or canal.</p>"
        )

    def setupOptionsFrame(self):
        """Which model follows, where there are several; and a sentence on what was done, or why not."""
        self._combo = qt.QComboBox()
        self._combo.toolTip = _("Which model follows the clicks.")
        self._combo.visible = False
        self.scriptedEffect.addOptionsWidget(self._combo)
        self._label = qt.QLabel()
        self._label.wordWrap = True
        self.scriptedEffect.addOptionsWidget(self._label)

    def activate(self):
        """The effect was chosen."""
        from SpineSegAISlicer.panels.click_models import ModelChoice, reasonAgainst

        if self._choice is None:
            self._choice = ModelChoice(self._combo)
        self._choice.update()
        self._show(reasonAgainst(), True)

    def deactivate(self):
        """Another effect was chosen, or none."""
        if self._mouse is not None:
            self._mouse.forget()
        self._endTrace()

    def createCursor(self, viewWidget):
        """A plus, or a minus while Ctrl is held."""
        from SpineSegAISlicer.panels.click_cursor import signCursor

        return signCursor(self._mouse is None or not self._mouse.isRemoving)

    def processInteractionEvents(self, callerInteractor, eventId, viewWidget):
        """Something happened in a view.

        :returns: whether nobody else is to look at it.
        """
        if viewWidget.className() != "qMRMLSliceWidget":
            return False
        if self._mouse is None:
            from SpineSegAISlicer.panels.clicking import ClickMouse

            self._mouse = ClickMouse(lambda stroke: self._tool().add(stroke), self._end)
        mouse = self._mouse
        taken = mouse.process(callerInteractor, eventId, viewWidget.mrmlSliceNode())
        if mouse.isDrawing and self._trace is None:
            self._trace = _Trace(self.scriptedEffect, viewWidget, not mouse.isRemoving)
        if mouse.isDrawing:
            self._trace.add(callerInteractor.GetEventPosition())
        else:
            self._endTrace()
        self._showSign(viewWidget)
        return taken

    # --- what it does ------------------------------------------------------------------------------------------------

    def _tool(self):
        if self.tool is None:
            from SpineSegAISlicer.panels.clicking import ClickTool, EffectCase

            case = EffectCase(self.scriptedEffect, self._show)
            self.tool = ClickTool(case, _client, qt.QTimer.singleShot)
        return self.tool

    def _end(self):
        self.scriptedEffect.selectEffect("")

    def _show(self, text, isError):
        if self._label is not None:
            self._label.text = text
            self._label.setStyleSheet("color: #c62828" if isError else "")

    def _showSign(self, viewWidget):
        sign = (viewWidget.mrmlSliceNode().GetID(), self._mouse.isRemoving)
        if sign != self._shownSign:
            self._shownSign = sign
            cursor = self.createCursor(viewWidget)
            viewWidget.sliceView().setViewCursor(cursor)
            viewWidget.sliceView().setDefaultViewCursor(cursor)  # comes back after the mouse was on a markup

    def _endTrace(self):
        if self._trace is not None:
            self._trace.remove()
            self._trace = None


def _client():
    """The panel's `WorkerClient`, whose worker is warm; the panel is made where it was not opened yet."""
    return slicer.util.getModuleWidget("SpineSegAI").client


class _Trace:
    """The line of a scribble while it is drawn."""

    def __init__(self, scriptedEffect, viewWidget, add):
        from SpineSegAISlicer.panels.click_cursor import COLORS

        self._effect, self._viewWidget = scriptedEffect, viewWidget
        self._points, self._lines, self._line = vtk.vtkPoints(), vtk.vtkCellArray(), vtk.vtkPolyData()
        self._line.SetPoints(self._points)
        self._line.SetLines(self._lines)
        mapper = vtk.vtkPolyDataMapper2D()
        mapper.SetInputData(self._line)
        self._actor = vtk.vtkActor2D()
        self._actor.SetMapper(mapper)
        self._actor.GetProperty().SetColor(*(int(COLORS[add][i : i + 2], 16) / 255 for i in (1, 3, 5)))
        self._actor.GetProperty().SetLineWidth(3)
        scriptedEffect.addActor2D(viewWidget, self._actor)

    def add(self, position):
        """The mouse was moved to a place in the view."""
        self._points.InsertNextPoint(*position, 0)
        count = self._points.GetNumberOfPoints()
        if count > 1:
            self._lines.InsertNextCell(2)
            for index in (count - 2, count - 1):
                self._lines.InsertCellPoint(index)
        self._points.Modified()
        self._lines.Modified()
        self._line.Modified()
        self._viewWidget.sliceView().scheduleRender()

    def remove(self):
        """Take the line out of the view."""
        self._effect.removeActor2D(self._viewWidget, self._actor)
        self._viewWidget.sliceView().scheduleRender()
