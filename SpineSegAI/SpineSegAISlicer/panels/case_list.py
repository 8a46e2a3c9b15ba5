"""The cases of a training set: shown, moved to another split, removed, loaded."""

import qt
import slicer
from slicer.i18n import tr as _

CASE, SPLIT, STRUCTURES, NOTES, SPACING, PATIENT = range(6)
ROW_PIXELS = 24

SPLITS = (("training", _("training")), ("validation", _("validation")), ("test", _("test")))


class CaseList:
    """Behavior of the table and of the buttons below it, on widgets that Qt Designer laid out.

    :param panel: `DatasetPanel`: its training set, its messages.
    """

    def __init__(self, panel):
        ui = self.ui = panel.ui
        self.panel = panel
        self.rows = []
        for split, title in SPLITS:
            ui.splitComboBox.addItem(title, split)
        ui.casesTable.wordWrap = False
        header = ui.casesTable.horizontalHeader()
        for column in (SPLIT, STRUCTURES):
            header.setSectionResizeMode(column, qt.QHeaderView.ResizeToContents)
        for column in (CASE, NOTES):  # tooltips have them whole
            header.setSectionResizeMode(column, qt.QHeaderView.Stretch)
        for column in (SPACING, PATIENT):  # in the tooltip of the case: the panel is narrow
            ui.casesTable.setColumnHidden(column, True)
        ui.casesTable.verticalHeader().setDefaultSectionSize(ROW_PIXELS)
        ui.casesTable.connect("itemSelectionChanged()", panel.updateButtons)
        ui.splitButton.connect("clicked(bool)", self._onSplit)
        ui.loadCaseButton.connect("clicked(bool)", self._onLoad)
        ui.removeCaseButton.connect("clicked(bool)", self._onRemove)

    def setEnabled(self, ready):
        """Enable what can be done with the selected cases.

        :param ready: whether the training set can be changed now.
        """
        ui, selected = self.ui, [self.rows[n] for n in self._selected()]
        labelled = bool(selected) and all(row.split != "unlabelled" for row in selected)
        ui.splitButton.enabled = ui.splitComboBox.enabled = ready and labelled
        ui.removeCaseButton.enabled = ready and bool(selected)
        ui.loadCaseButton.enabled = ready and len(selected) == 1

    @property
    def waiting(self):
        """Rows of cases that are still to be annotated."""
        return [row for row in self.rows if row.split == "unlabelled"]

    def show(self, rows):
        """Splits as they are; of the cases to annotate, the least certain first.

        :param rows: as `TrainingSet.rows` gives them.
        """
        waiting = [row for row in rows if row.split == "unlabelled"]
        waiting.sort(key=lambda row: -(row.scores.get("uncertainty") or -1.0))
        self.rows = [row for row in rows if row.split != "unlabelled"] + waiting
        self._fill()

    def _fill(self):
        table = self.ui.casesTable
        table.clearSelection()
        table.setRowCount(len(self.rows))
        titles = dict(SPLITS)
        for number, row in enumerate(self.rows):
            notes, structures = list(row.warnings), row.structures
            if row.scores.get("uncertainty") is not None:
                structures = _("uncertainty {value:.2f}").format(value=row.scores["uncertainty"])
            if row.scores.get("reason"):
                notes.insert(0, row.scores["reason"])
            spacing = " × ".join(f"{s:.2f}".rstrip("0").rstrip(".") for s in row.spacing) if row.spacing else ""
            texts = {
                CASE: row.name,
                SPLIT: titles.get(row.split, _("to annotate")),
                STRUCTURES: structures,
                NOTES: " ".join(notes),
                SPACING: spacing,
                PATIENT: row.patient,
            }
            for column, text in texts.items():
                item = qt.QTableWidgetItem(text)
                about = [row.name, row.patient, spacing and _("{spacing} mm").format(spacing=spacing)]
                tips = {CASE: "\n".join(line for line in about if line), NOTES: "\n".join(notes)}
                item.setToolTip(tips.get(column, text))
                item.setFlags(qt.Qt.ItemIsSelectable | qt.Qt.ItemIsEnabled)
                table.setItem(number, column, item)

    def _selected(self):
        """Numbers of the selected rows."""
        table = self.ui.casesTable
        rows = range(min(table.rowCount, len(self.rows)))
        return [n for n in rows if table.item(n, CASE) is not None and table.item(n, CASE).isSelected()]

    def _onSplit(self):
        keys = [self.rows[n].key for n in self._selected()]
        with self.panel.showingErrors():
            moved = self.panel.trainingSet().set_split(keys, self.ui.splitComboBox.currentData)
            others = len(set(moved) - set(keys))
            text = _("Cases moved: {count}.").format(count=len(moved))
            if others:
                text += " " + _("Of these, other cases of the same patients: {count}.").format(count=others)
            self.panel.messages.say(text)
        self.panel.refresh()

    def _onRemove(self):
        keys = [self.rows[n].key for n in self._selected()]
        question = _("Remove from the dataset: {count}. Files that it made for them are deleted.")
        if not slicer.util.confirmOkCancelDisplay(question.format(count=len(keys)), _("SpineSegAI")):
            return
        with self.panel.showingErrors():
            self.panel.trainingSet().remove(keys)
            self.panel.messages.say(_("Cases removed: {count}.").format(count=len(keys)))
        self.panel.refresh()

    def _onLoad(self):
        (number,) = self._selected()
        row = self.rows[number]
        with slicer.util.tryWithErrorDisplay(_("The image could not be loaded.")):
            node = slicer.util.loadVolume(str(row.image), {"name": row.name})
            self.panel.parameters.write(inputVolume=node)
