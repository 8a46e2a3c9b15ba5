"""Measurements as table nodes, and table nodes as files."""

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

from SpineSegAILib.files import atomic_write, write_csv_rows


def tableFromMeasurements(columns, rows, segmentationNode):
    """A table node with one row per structure; the one that belongs to the segmentation already is filled again.

    :param columns: `SpineSegAILib.results.column.Column` per column.
    """
    role = "SpineSegAI.Measurements"
    tableNode = segmentationNode.GetNodeReference(role)
    if tableNode is None:
        name = _("{segmentation} measurements").format(segmentation=segmentationNode.GetName())
        tableNode = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", slicer.mrmlScene.GenerateUniqueName(name))
        segmentationNode.SetNodeReferenceID(role, tableNode.GetID())
    with slicer.util.NodeModify(tableNode):
        tableNode.RemoveAllColumns()
        for column, values in zip(columns, zip(*rows, strict=True), strict=True):
            tableNode.AddColumn(_tableColumn(column.key, values))
            tableNode.SetColumnTitle(column.key, column.title)
            tableNode.SetColumnDescription(column.key, column.description)
        tableNode.SetUseColumnTitleAsColumnHeader(True)
    return tableNode


def _tableColumn(name, values):
    """A VTK array of a column: numbers where all are numbers or missing, else text."""
    if any(isinstance(value, (str, bool)) for value in values):
        array, missing = vtk.vtkStringArray(), ""
        texts = {True: _("yes"), False: ""}
        values = [texts[value] if isinstance(value, bool) else value for value in values]
    else:
        array, missing = vtk.vtkDoubleArray(), float("nan")
    array.SetName(name)
    for value in values:
        array.InsertNextValue(missing if value is None else value)
    return array


def writeTable(tableNode, path):
    """Write a table node to a CSV file, with the columns' stable keys as header; whole or not at all.

    :raises OutputError: the file cannot be written.
    """
    table = tableNode.GetTable()
    columns = [table.GetColumn(index) for index in range(table.GetNumberOfColumns())]
    rows = [[_cell(column.GetValue(row)) for column in columns] for row in range(table.GetNumberOfRows())]
    with atomic_write(path) as (place,):
        write_csv_rows(place, [[column.GetName() for column in columns], *rows])


def _cell(value):
    """A number with as many digits as mean something; nothing where there is none."""
    if isinstance(value, str):
        return value
    return "" if np.isnan(value) else f"{value:.3f}".rstrip("0").rstrip(".")
