"""A run's curves as Slicer plots: tables, series and charts, kept up to date while the run continues."""

import slicer
import vtk
from slicer.i18n import tr as _

CURVES = {"loss": (_("Loss"), (0.12, 0.47, 0.71)), "dice": (_("Validation Dice"), (0.85, 0.51, 0.17))}
"""Key → title and color, in the order in which they are made."""

FEWEST_POINTS = 2
"""A chart of one point is an error to VTK, and empty."""


class CurvePlots:
    """Charts of loss and Dice over the steps, each from the moment on when it has points.

    The nodes are not saved with the scene: the run's folder has it all.
    """

    def __init__(self):
        self._name = None  # of the run that is shown
        self._tables = {}  # nodes, not ids: those begin again with the next scene
        self._charts = {}

    @property
    def isShown(self):
        """True from `show` on, until the charts are removed."""
        return self._name is not None and all(chart.GetScene() is not None for chart in self.charts())

    def show(self, name, events):
        """Make the charts for a run, and show the first one in the layout, where there are views.

        :param name: of the run.
        :param events: of the run.
        """
        self.remove()
        self._name = name
        self.update(events)

    def update(self, events):
        """Bring the tables up to date."""
        from SpineSegAILib.training.pictures import loss_curve, score_curve

        for key, (steps, values) in (("loss", loss_curve(events)), ("dice", score_curve(events, "level_dice"))):
            if len(steps) < FEWEST_POINTS:
                continue
            isFirst = not self._charts
            if key not in self._charts:
                self._addChart(key)
            self._fill(self._tables[key], steps, values)
            if isFirst and slicer.app.layoutManager() is not None:
                slicer.modules.plots.logic().ShowChartInLayout(self._charts[key])

    @staticmethod
    def _fill(node, steps, values):
        table = node.GetTable()
        if node.GetScene() is None or table.GetNumberOfRows() == len(steps):
            return
        table.SetNumberOfRows(len(steps))
        for row, step in enumerate(steps):
            table.SetValue(row, 0, vtk.vtkVariant(step))
            table.SetValue(row, 1, vtk.vtkVariant(values[row]))
        table.Modified()
        node.Modified()

    def charts(self):
        """The chart nodes that have points: loss, Dice."""
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
        self._name = None
        self._tables.clear()
        self._charts.clear()

    def _addChart(self, key):
        title, color = CURVES[key]
        name = f"{self._name}: {title}"
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
