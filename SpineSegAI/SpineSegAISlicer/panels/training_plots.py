"""A run's curves as Slicer plots: tables, series and charts, kept up to date while the run goes on."""

import slicer
import vtk
from slicer.i18n import tr as _

LOSS_COLOR = (0.12, 0.47, 0.71)
SCORE_COLOR = (0.85, 0.51, 0.17)


class CurvePlots:
    """Two charts, loss and Dice over the steps. The nodes are not saved with the scene: the run's folder has it all."""

    def __init__(self):
        self._tables = {}  # nodes, not ids: those begin anew with the next scene
        self._charts = {}

    @property
    def isShown(self):
        """Whether the charts are in the scene."""
        return bool(self._charts) and all(chart.GetScene() is not None for chart in self.charts())

    def show(self, name, events):
        """Make the charts for a run, and show one in the layout, where there are views.

        :param name: of the run.
        :param events: of the run.
        """
        self.remove()
        for key, title, color in (("loss", _("Loss"), LOSS_COLOR), ("dice", _("Validation Dice"), SCORE_COLOR)):
            self._addChart(key, f"{name}: {title}", title, color)
        self.update(events)
        if slicer.app.layoutManager() is not None:
            slicer.modules.plots.logic().ShowChartInLayout(self.charts()[0])

    def update(self, events):
        """Bring the tables up to date."""
        from SpineSegAILib.training.pictures import loss_curve, score_curve

        for key, (steps, values) in (("loss", loss_curve(events)), ("dice", score_curve(events, "level_dice"))):
            node = self._tables[key]
            if node.GetScene() is None or node.GetTable().GetNumberOfRows() == len(steps):
                continue
            table = node.GetTable()
            table.SetNumberOfRows(len(steps))
            for row, step in enumerate(steps):
                table.SetValue(row, 0, vtk.vtkVariant(step))
                table.SetValue(row, 1, vtk.vtkVariant(values[row]))
            table.Modified()
            node.Modified()

    def charts(self):
        """The chart nodes: loss, Dice."""
        return list(self._charts.values())

    def remove(self):
        """Take everything out of the scene."""
        for chart in self.charts():
            if chart.GetScene() is None:
                continue
            series = [chart.GetNthPlotSeriesNode(i) for i in range(chart.GetNumberOfPlotSeriesNodes())]
            for node in [*series, *[s.GetTableNode() for s in series if s], chart]:
                if node is not None:
                    slicer.mrmlScene.RemoveNode(node)
        self._tables.clear()
        self._charts.clear()

    def _addChart(self, key, name, title, color):
        add = slicer.mrmlScene.AddNewNodeByClass
        tableNode = add("vtkMRMLTableNode", name)
        for kind, column in ((vtk.vtkIntArray, "step"), (vtk.vtkDoubleArray, key)):
            array = kind()
            array.SetName(column)
            tableNode.AddColumn(array)
        seriesNode = add("vtkMRMLPlotSeriesNode", title)
        seriesNode.SetAndObserveTableNodeID(tableNode.GetID())
        seriesNode.SetXColumnName("step")
        seriesNode.SetYColumnName(key)
        seriesNode.SetPlotType(seriesNode.PlotTypeScatter)
        seriesNode.SetMarkerStyle(seriesNode.MarkerStyleNone if key == "loss" else seriesNode.MarkerStyleCircle)
        seriesNode.SetColor(*color)
        chartNode = add("vtkMRMLPlotChartNode", name)
        chartNode.SetTitle(name)
        chartNode.SetXAxisTitle(_("step"))
        chartNode.SetYAxisTitle(title)
        chartNode.AddAndObservePlotSeriesNodeID(seriesNode.GetID())
        if key == "dice":
            chartNode.SetYAxisRangeAuto(False)
            chartNode.SetYAxisRange(0.0, 1.0)
        for node in (tableNode, seriesNode, chartNode):
            node.SetSaveWithScene(False)
        self._tables[key] = tableNode
        self._charts[key] = chartNode
