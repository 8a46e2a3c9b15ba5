"""The table of a segmentation's structures: order, color, outline quality, uncertainty, visibility, lock."""

from dataclasses import dataclass

import qt
from slicer.i18n import tr as _

from SpineSegAILib.anatomy.terminology import QUALITY_TAG

from ..scene.segments import UNCERTAINTY_TAG, isLocked, setLocked, structureOfSegment, tagOf

NAME, QUALITY, SHOWN, LOCKED, UNCERTAINTY = range(5)


@dataclass(frozen=True)
class Row:
    """What a row shows; a row is only written when this changes."""

    segmentId: str
    structureId: int | None
    name: str
    color: tuple
    quality: float | None
    uncertainty: float | None
    shown: bool
    locked: bool


class StructureTable:
    """Behavior of the table, on a QTableWidget.

    :param onSelected: called without arguments when the reader selects something else.
    :param beforeLock: called before a lock is set or taken off, for an undo step.
    """

    def __init__(self, table, onSelected, beforeLock):
        self.table = table
        self.rows = []
        self._segmentationNode = None
        self._onSelected = onSelected
        self._beforeLock = beforeLock
        self._filling = False
        header = table.horizontalHeader()
        header.setSectionResizeMode(NAME, qt.QHeaderView.Stretch)
        for column in (QUALITY, UNCERTAINTY, SHOWN, LOCKED):
            header.setSectionResizeMode(column, qt.QHeaderView.ResizeToContents)
        header.moveSection(UNCERTAINTY, SHOWN)  # beside the other figure
        table.setColumnHidden(UNCERTAINTY, True)
        table.verticalHeader().setDefaultSectionSize(qt.QFontMetrics(table.font).height() + 6)
        table.connect("itemSelectionChanged()", self._selectionChanged)
        table.connect("cellChanged(int,int)", self._cellChanged)

    def fill(self, segmentationNode):
        """Show a segmentation's segments; only what has changed is written."""
        self._segmentationNode = segmentationNode
        rows = rowsOf(segmentationNode) if segmentationNode is not None else []
        if rows == self.rows:
            return
        selected = self.selectedSegments()
        self._filling = True
        try:
            if len(rows) != len(self.rows):
                self.table.setRowCount(len(rows))
            for index, row in enumerate(rows):
                if index >= len(self.rows) or self.rows[index] != row:
                    self._write(index, row)
            self.rows = rows
            # Most methods do not tell; no room is spent on it.
            self.table.setColumnHidden(UNCERTAINTY, all(row.uncertainty is None for row in rows))
            self.table.setColumnHidden(QUALITY, all(row.quality is None for row in rows))
            self._select(lambda row: row.segmentId in selected)
        finally:
            self._filling = False

    def _write(self, index, row):
        from SpineSegAILib.results.quality import LOW  # with SimpleITK, for which opening the panel does not wait

        name = qt.QTableWidgetItem(row.name.replace(" (body)", ""))  # the same for all: no room is spent on it
        name.setToolTip(row.name)
        name.setData(qt.Qt.DecorationRole, qt.QColor(*[round(255 * c) for c in row.color]))
        name.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsSelectable)
        quality = _figure("" if row.quality is None else f"{100 * row.quality:.0f} %")
        if row.quality is not None and row.quality < LOW:
            quality.setForeground(qt.QBrush(qt.QColor("#c62828")))
        self.table.setItem(index, NAME, name)
        self.table.setItem(index, QUALITY, quality)
        self.table.setItem(index, UNCERTAINTY, _figure("" if row.uncertainty is None else f"{row.uncertainty:.2f}"))
        for column, on in ((SHOWN, row.shown), (LOCKED, row.locked)):
            item = qt.QTableWidgetItem()
            item.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsUserCheckable)
            item.setCheckState(qt.Qt.Checked if on else qt.Qt.Unchecked)
            self.table.setItem(index, column, item)

    # --- selection ---------------------------------------------------------------------------------------------------

    def _isSelected(self, index):
        item = self.table.item(index, NAME)
        return item is not None and item.isSelected()

    def selectedSegments(self):
        """Ids of the selected segments."""
        return [row.segmentId for index, row in enumerate(self.rows) if self._isSelected(index)]

    def selected(self):
        """Ids of the selected structures, top down."""
        found = [row.structureId for index, row in enumerate(self.rows) if self._isSelected(index)]
        return [structureId for structureId in found if structureId is not None]

    def select(self, structureIds):
        """Select these structures, and tell."""
        self._selectRows(lambda row: row.structureId in structureIds)

    def selectSegment(self, segmentId):
        """Select this segment, whatever it is, and tell."""
        self._selectRows(lambda row: row.segmentId == segmentId)

    def _selectRows(self, wanted):
        self._filling = True
        try:
            self._select(wanted)
        finally:
            self._filling = False
        self._onSelected()

    def _select(self, wanted):
        first = None
        for index, row in enumerate(self.rows):
            on = bool(wanted(row))
            for column in (NAME, QUALITY, UNCERTAINTY):
                self.table.item(index, column).setSelected(on)
            if on and first is None:
                first = index
        if first is not None:
            self.table.scrollToItem(self.table.item(first, NAME), qt.QAbstractItemView.PositionAtCenter)

    def step(self, by):
        """Select the next (1) or previous (-1) row with a structure; from the ends it goes round."""
        found = [row.structureId for row in self.rows if row.structureId is not None]
        if not found:
            return
        selected = self.selected()
        at = found.index(selected[-1 if by > 0 else 0]) + by if selected else (0 if by > 0 else -1)
        self.select([found[at % len(found)]])

    def selectLeastCertain(self):
        """Select the structure with the poorest outline that is not locked; called again, the next one.

        :returns: False if the quality of none is known.
        """
        doubtful = [r for r in self.rows if r.structureId is not None and r.quality is not None and not r.locked]
        doubtful.sort(key=lambda row: row.quality)
        if not doubtful:
            return False
        selected = self.selected()
        ids = [row.structureId for row in doubtful]
        at = ids.index(selected[0]) + 1 if len(selected) == 1 and selected[0] in ids else 0
        self.select([ids[at % len(ids)]])
        return True

    def _selectionChanged(self):
        if not self._filling:
            self._onSelected()

    # --- ticks -------------------------------------------------------------------------------------------------------

    def _cellChanged(self, index, column):
        if self._filling or column not in (SHOWN, LOCKED) or index >= len(self.rows):
            return
        on = self.table.item(index, column).checkState() == qt.Qt.Checked
        segmentId = self.rows[index].segmentId
        if column == SHOWN:
            self._segmentationNode.GetDisplayNode().SetSegmentVisibility(segmentId, on)
        else:
            self._beforeLock()
            setLocked(self._segmentationNode.GetSegmentation().GetSegment(segmentId), on)
        self.fill(self._segmentationNode)


def _figure(text):
    """A cell with a number."""
    item = qt.QTableWidgetItem(text)
    item.setTextAlignment(qt.Qt.AlignRight | qt.Qt.AlignVCenter)
    item.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsSelectable)
    return item


def rowsOf(segmentationNode):
    """A `Row` per segment, in the segmentation's order."""
    segmentation = segmentationNode.GetSegmentation()
    displayNode = segmentationNode.GetDisplayNode()
    rows = []
    for segmentId in segmentation.GetSegmentIDs():
        segment = segmentation.GetSegment(segmentId)
        quality, uncertainty = (tagOf(segment, tag) for tag in (QUALITY_TAG, UNCERTAINTY_TAG))
        rows.append(
            Row(
                segmentId=segmentId,
                structureId=structureOfSegment(segment),
                name=segment.GetName() or _("(without a name)"),
                color=tuple(segment.GetColor()),
                quality=float(quality) if quality else None,
                uncertainty=float(uncertainty) if uncertainty else None,
                shown=displayNode is None or bool(displayNode.GetSegmentVisibility(segmentId)),
                locked=isLocked(segment),
            )
        )
    return rows
