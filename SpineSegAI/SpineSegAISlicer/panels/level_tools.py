"""Levels: shifted, set, counted otherwise, swapped, merged, split, deleted, inserted."""

import slicer
from slicer.i18n import tr as _

from SpineSegAILib import anatomy, correction

from ..scene import corrections, results, volumes
from .part import Part

SCOPES = (("all", _("All levels")), ("above", _("Selected and above")), ("below", _("Selected and below")))
COUNTINGS = (
    ("L5", _("Five lumbar vertebrae")),
    ("L6", _("Six lumbar vertebrae (L6)")),
    ("T12", _("Twelve thoracic vertebrae")),
    ("T13", _("Thirteen thoracic vertebrae (T13)")),
)


class LevelTools(Part):
    """Each button is one correction of the library."""

    def __init__(self, section):
        super().__init__(section)
        ui = self.ui
        self._updating = False
        for key, title in SCOPES:
            ui.scopeComboBox.addItem(title, key)
        ui.countingComboBox.addItem(_("as it is"), "")
        for key, title in COUNTINGS:
            ui.countingComboBox.addItem(title, key)
        for button, slot in (
            (ui.shiftUpButton, lambda: self._onShift("up")),
            (ui.shiftDownButton, lambda: self._onShift("down")),
            (ui.swapButton, self._onSwap),
            (ui.mergeButton, self._onMerge),
            (ui.splitButton, self._onSplit),
            (ui.deleteButton, self._onDelete),
            (ui.insertAboveButton, lambda: self._onInsert("below")),
            (ui.insertBelowButton, lambda: self._onInsert("above")),
        ):
            button.connect("clicked(bool)", slot)
        ui.levelComboBox.connect("currentIndexChanged(int)", self._onLevel)
        ui.countingComboBox.connect("currentIndexChanged(int)", self._onCounting)

    def show(self):
        """Offer the names that the selected structure may get: vertebrae for a vertebra, discs for a disc …"""
        selected, combo = self.section.review.table.selected(), self.ui.levelComboBox
        structure = anatomy.STRUCTURES[selected[0]] if len(selected) == 1 else None
        names = []
        if structure is not None and structure.order is not None:
            scheme = results.schemeOf(self.section.segmentationNode)
            known = [anatomy.STRUCTURES[i] for i in anatomy.sorted_ids(scheme.ids)]
            alike = [s for s in known if s.kind is structure.kind or (s.is_vertebral and structure.is_vertebral)]
            names = [(s.name, s.id) for s in alike if s.order is not None]
        entries = [(_("choose…"), 0), *names]
        self._updating = True
        if entries != [(combo.itemText(i), combo.itemData(i)) for i in range(combo.count)]:
            combo.clear()
            for title, data in entries:
                combo.addItem(title, data)
        combo.setCurrentIndex(0)
        self._updating = False

    def onSelected(self):
        """Other names are possible."""
        self.show()

    def setEnabled(self, there, idle):
        """All tools say in a sentence what else they need."""
        ui = self.ui
        for widget in (ui.shiftUpButton, ui.shiftDownButton, ui.levelComboBox, ui.countingComboBox, ui.swapButton,
                       ui.mergeButton, ui.splitButton, ui.deleteButton, ui.insertAboveButton,
                       ui.insertBelowButton):  # fmt: skip
            widget.enabled = idle

    def _scope(self):
        return self.ui.scopeComboBox.currentData

    def _side(self):
        """Who makes room: those above, unless those below were chosen to move."""
        return "below" if self._scope() == "below" else "above"

    def _selected(self, count=None):
        return self.section.review.selected(count)

    def _onShift(self, to):
        scope = self._scope()

        def plan(labelling):
            if scope == "all":
                return correction.shift(labelling, to)
            return correction.shift(labelling, to, self._selected(1)[0], scope)

        self.section.do(plan)

    def _onLevel(self, index):
        level = self.ui.levelComboBox.currentData
        if index > 0 and not self._updating:
            self.setLevel(level)
            self.ui.levelComboBox.setCurrentIndex(0)

    def setLevel(self, level):
        """“This one is …” for the selected structure; it is an anchor from then on."""
        picked = self.section.review.picked
        step = self.section.do(lambda known: correction.set_level(known, self._selected(1)[0], level, self._scope()))
        if step is not None:
            self.section.hints.addAnchor(level, picked)

    def choose(self, alternative):
        """Take the other naming that a result offers."""
        return self.section.do(lambda labelling: correction.choose_naming(labelling, alternative))

    def _onCounting(self, index):
        to = self.ui.countingComboBox.currentData
        if index > 0:
            self.section.do(lambda labelling: correction.switch_counting(labelling, to, self._side()))
            self.ui.countingComboBox.setCurrentIndex(0)

    def _onSwap(self):
        self.section.do(lambda labelling: correction.swap(labelling, *self._selected(2)))

    def _onMerge(self):
        self.section.do(lambda labelling: correction.merge(labelling, *self._selected(2), direction=self._side()))

    def _onSplit(self):
        def plan(labelling):
            chosen, picked = self._selected(1)[0], self.section.review.picked
            point = volumes.lps(picked[1]) if picked is not None and picked[0] == chosen else None
            return correction.split(labelling, self.section.labels(), chosen, point=point, direction=self._side())

        self.section.do(plan)

    def _onDelete(self):
        self.section.do(lambda labelling: correction.delete(labelling, *self._selected()))

    def _onInsert(self, direction):
        step = self.section.do(lambda labelling: correction.insert(labelling, self._selected(1)[0], direction))
        if step is not None:
            self._drawMissing(step.missing)

    def _drawMissing(self, structureIds):
        """Empty segments for what is to be drawn, the first one ready in the Segment Editor."""
        section, review = self.section, self.section.review
        segmentation = section.segmentationNode.GetSegmentation()
        with section.ownStep(), slicer.util.NodeModify(section.segmentationNode):
            corrections.addEmpty(section.segmentationNode, structureIds)
        review.table.fill(section.segmentationNode)
        review.table.select(structureIds)
        names = ", ".join(segmentation.GetSegment(i).GetName() for i in review.table.selectedSegments())
        section.showMessage(_("The name is free: draw {name} with the Segment Editor below.").format(name=names))
        section.editor.startDrawing()
