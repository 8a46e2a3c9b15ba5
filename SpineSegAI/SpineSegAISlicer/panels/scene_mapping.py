"""What the segments of scenes are taken as, before any of them becomes a case."""

import qt
from slicer.i18n import tr as _

from SpineSegAILib import anatomy
from SpineSegAILib.errors import SpineSegAIError

SEGMENT, TARGET, REASON, COUNT = range(4)
ROW_PIXELS = 24
EXTENTS = (("", _("not specified")), ("body", _("vertebral bodies")), ("whole", _("whole vertebrae")))
REASONS = {
    "table": _("your mapping"),
    "tag": _("made by SpineSegAI"),
    "terminology": _("terminology"),
    "name": _("name"),
    "": _("not understood"),
}
UNKNOWN_STYLE = "background: #fff3cd; color: #664d03;"
IGNORE, CUSTOM = "ignore", "custom:"


class SceneMapping:
    """The table of names and meanings, on widgets that Qt Designer laid out.

    :param ui: the widgets, as `slicer.util.childWidgetVariables` gives them.
    """

    def __init__(self, ui):
        self.ui = ui
        self._document = None  # of the listing
        self._customs = []
        self._choices = []  # (segment name, combo box, target that was found)
        self._asksExtent = False
        for extent, title in EXTENTS:
            ui.extentComboBox.addItem(title, extent)
        ui.mappingTable.wordWrap = False
        header = ui.mappingTable.horizontalHeader()
        for column in (SEGMENT, TARGET):
            header.setSectionResizeMode(column, qt.QHeaderView.Stretch)
        for column in (REASON, COUNT):
            header.setSectionResizeMode(column, qt.QHeaderView.ResizeToContents)
        ui.mappingTable.verticalHeader().setDefaultSectionSize(ROW_PIXELS)

    @property
    def isAsking(self):
        """True from `ask` to `forget`."""
        return self._document is not None

    def ask(self, document, customs):
        """Show what was found.

        :param document: as ``import-scenes --list --json`` prints it.
        :param customs: names of the reader's own structures that the training set has.
        """
        self._document, self._customs = document, list(customs)
        self._fill()
        self._update()

    def forget(self):
        """Nothing is asked any more."""
        self._document, self._choices = None, []
        self.ui.mappingTable.setRowCount(0)

    def answers(self):
        """Segment name → target, where the reader chose another one than was found."""
        targets = ((name, self._target(combo), found) for name, combo, found in self._choices)
        return {name: target for name, target, found in targets if target != found}

    def extent(self):
        """What vertebral masks cover, where it had to be asked; else empty."""
        return self.ui.extentComboBox.currentData if self._asksExtent else ""

    def _fill(self):
        """A row for each name and meaning; what is not understood comes first."""
        groups = {}
        for case in self._document["cases"]:
            for segment in case["segments"]:
                if segment["voxels"]:
                    key = (segment["name"], segment["target"], segment["how"])
                    groups[key] = groups.get(key, 0) + 1
        rows = sorted(groups.items(), key=lambda entry: bool(entry[0][1]))
        table = self.ui.mappingTable
        table.setRowCount(len(rows))
        self._choices = []
        for number, ((name, target, how), count) in enumerate(rows):
            for column, text in ((SEGMENT, name), (REASON, REASONS.get(how, how)), (COUNT, str(count))):
                item = qt.QTableWidgetItem(text)
                item.setFlags(qt.Qt.ItemIsEnabled)
                table.setItem(number, column, item)
            combo = self._targetComboBox(target)
            table.setCellWidget(number, TARGET, combo)
            self._choices.append((name, combo, target))
            combo.connect("currentIndexChanged(int)", self._update)
            combo.connect("editTextChanged(QString)", self._update)

    def _targetComboBox(self, target):
        combo = qt.QComboBox()
        combo.editable = True
        combo.addItem(_("? choose"), "")
        combo.addItem(_("omit"), IGNORE)
        customs = self._customs
        if target.startswith(CUSTOM) and target[len(CUSTOM) :] not in customs:
            customs = [*customs, target[len(CUSTOM) :]]
        for name in customs:
            combo.addItem(name, f"{CUSTOM}{name}")
        for structureId in anatomy.sorted_ids(anatomy.BUILT_IN):
            structure = anatomy.STRUCTURES[structureId]
            if structure.kind.value not in ("artery", "vein"):
                combo.addItem(structure.name, structure.name)
        combo.setCurrentIndex(max(0, combo.findData(target)))
        return combo

    def _target(self, combo):
        """What a row's reader chose or typed; a name that is not a structure is one of the reader's own."""
        from SpineSegAILib.results.segment_names import parse_target

        text = combo.currentText.strip()
        index = combo.findText(text)
        if index >= 0:
            return combo.itemData(index)
        for attempt in (text, f"{CUSTOM}{text}"):
            try:
                return parse_target(attempt)
            except SpineSegAIError:
                continue
        return ""

    def _update(self, *_index):
        """Say what will be added, and whether anything is missing."""
        ui, document = self.ui, self._document
        missing = []
        chosen = {}
        for number, (name, combo, found) in enumerate(self._choices):
            target = self._target(combo)
            chosen[name, found] = target
            unknown = not target
            if unknown:
                missing.append(name)
            combo.setStyleSheet(UNKNOWN_STYLE if unknown else "")
            item = ui.mappingTable.item(number, REASON)
            if item is not None and target != found:
                own = target.startswith(CUSTOM)
                item.setText(REASONS[""] if unknown else _("your own structure") if own else REASONS["table"])
        cases = [c for c in document["cases"] if c["keypoints"] or self._targets(c, chosen)]
        bare = len(document["cases"]) - len(cases)
        parts = [_("Annotated cases: {count}.").format(count=len(cases))]
        if bare:
            parts.append(_("Volumes without annotation, kept as cases to annotate: {count}.").format(count=bare))
        if missing:
            names = ", ".join(f"“{name}”" for name in dict.fromkeys(missing))
            parts.append(_("Choose what these are, or “omit”: {names}.").format(names=names))
        ui.mappingLabel.text = " ".join(parts)
        self._asksExtent = any(not c["extent"] and _hasVertebrae(self._targets(c, chosen)) for c in cases)
        ui.extentLabel.visible = ui.extentComboBox.visible = self._asksExtent
        notes = [*document["problems"], *document["notes"], *(n for c in document["cases"] for n in c["notes"])]
        ui.mappingNotesLabel.text = "\n".join("⚠ " + note for note in dict.fromkeys(notes))
        ui.mappingNotesLabel.visible = bool(notes)
        ui.mappingAddButton.enabled = not missing and bool(document["cases"])
        count = len(document["cases"])
        ui.mappingAddButton.text = _("Add case") if count == 1 else _("Add {count} cases").format(count=count)

    @staticmethod
    def _targets(case, chosen):
        """What a case's segments are taken as now."""
        targets = [chosen.get((s["name"], s["target"]), s["target"]) for s in case["segments"] if s["voxels"]]
        return [target for target in targets if target not in ("", IGNORE)]


def _hasVertebrae(targets):
    return any(not t.startswith(CUSTOM) and anatomy.structure(t).is_vertebral for t in targets)
