"""What to segment with: method, checkpoint, visible levels, experimental structures."""

from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from SpineSegAILib import anatomy
from SpineSegAILib.checkpoints import SUFFIX, list_checkpoints, read_header
from SpineSegAILib.errors import SpineSegAIError
from SpineSegAILib.methods.catalog import DEFAULT_METHOD, METHODS

from ..processes.failure import Failure
from ..scene import volumes
from .checkpoint_details import detailsHtml

GROUPS = (("system", _("Systems")), ("baseline", _("Baselines")))
PLANES = {
    "axial": _("an axial stack"),
    "coronal": _("a coronal stack"),
    "sagittal": _("a sagittal stack"),
    "isotropic": _("an isotropic volume"),
    "single-slice": _("a single slice (a localizer or a picture)"),
}


class Choices:
    """The widgets, and what they say. Other sections ask here, not the widgets.

    :param ui: the widgets, as `slicer.util.childWidgetVariables` gives them.
    :param parameters: `Parameters`.
    :param messages: `Messages`.
    """

    def __init__(self, ui, parameters, messages):
        self._ui = ui
        self._parameters = parameters
        self._messages = messages
        self.isWarm = False  # whether what is slow to load may be loaded, since the panel has been open for a while
        self._checkpoints = list_checkpoints()
        self._fillMethods()
        ui.checkpointDetailsBrowser.visible = False
        ui.methodComboBox.connect("currentIndexChanged(int)", self._onMethod)
        ui.checkpointComboBox.connect("currentIndexChanged(int)", self._onCheckpoint)
        ui.checkpointBrowseButton.connect("clicked(bool)", self._onBrowse)
        ui.checkpointDetailsButton.connect("toggled(bool)", self._showDetails)
        ui.topLevelComboBox.connect("currentIndexChanged(int)", self._onLevels)
        ui.bottomLevelComboBox.connect("currentIndexChanged(int)", self._onLevels)

    # --- what was chosen ---------------------------------------------------------------------------------------------

    def method(self):
        """The chosen method's catalogue entry; None if none is chosen."""
        return METHODS.get(self._ui.methodComboBox.currentData)

    def accepts(self, hint):
        """Whether the chosen method takes a hint, by its name in `SpineSegAILib.hints.Hints`."""
        method = self.method()
        return method is not None and hint in method.accepted_hints

    def checkpoint(self):
        """The chosen checkpoint's `CheckpointInfo`, or None."""
        return self._info(self.checkpointName)

    @property
    def checkpointName(self):
        """Name or path of the chosen checkpoint; empty if none is chosen."""
        return self._ui.checkpointComboBox.currentData or ""

    def visibleRange(self):
        """Ids of the topmost and the lowest vertebra in view; None for an end that is not given."""
        return tuple(c.currentData or None for c in (self._ui.topLevelComboBox, self._ui.bottomLevelComboBox))

    def reasonsAgainst(self, volumeNode):
        """Every reason why this volume cannot be segmented with these choices; empty if it can."""
        reasons = []
        try:
            volumes.checkVolume(volumeNode)
        except SpineSegAIError as error:
            reasons.append(str(error))
        reasons += self._reasonsAgainstCheckpoint()
        top, bottom = self.visibleRange()
        if top and bottom and anatomy.STRUCTURES[top].order > anatomy.STRUCTURES[bottom].order:
            reasons.append(_("The visible range is upside down: the topmost vertebra comes first."))
        if not reasons and self.isWarm:
            reasons += self._reasonsAgainstPlane(volumeNode)
        return reasons

    def _reasonsAgainstCheckpoint(self):
        method = self.method()
        if method is None:
            return [_("No method is selected.")]
        if self.checkpoint() is not None:
            return []
        if self._ui.checkpointComboBox.count == 0:
            return [
                _("There is no checkpoint for {method}: browse for one, train one, or choose another method.").format(
                    method=method.title
                )
            ]
        return [
            _("The checkpoint “{name}” is not there any more: choose another one.").format(
                name=Path(self.checkpointName).name
            )
        ]

    def _reasonsAgainstPlane(self, volumeNode):
        accepted = self.checkpoint().metadata.get("preprocessing", {}).get("planes")
        refused = volumes.refusedPlane(volumeNode, accepted) if accepted else None
        if not refused:
            return []
        return [
            _("“{volume}” is {plane}; this checkpoint takes {accepted}.").format(
                volume=volumeNode.GetName(),
                plane=PLANES[refused],
                accepted=_(" or ").join(PLANES[p] for p in accepted if p != "single-slice"),
            )
        ]

    # --- shown -------------------------------------------------------------------------------------------------------

    def update(self):
        """Bring the widgets in line with the parameter node."""
        ui, parameters = self._ui, self._parameters.node
        with self._parameters.showing():
            method = parameters.method if parameters.method in METHODS else DEFAULT_METHOD
            if ui.methodComboBox.findData(method) < 0:  # of a checkpoint file; it is not among those that are offered
                self._addMethod(METHODS[method])
            ui.methodComboBox.setCurrentIndex(ui.methodComboBox.findData(method))
            self._fillCheckpoints(method, parameters.checkpoint)
            self._fillLevels()
            ui.topLevelComboBox.setCurrentIndex(max(0, ui.topLevelComboBox.findData(parameters.topLevel)))
            ui.bottomLevelComboBox.setCurrentIndex(max(0, ui.bottomLevelComboBox.findData(parameters.bottomLevel)))
        self._showExperimental()
        self._showDetails()

    def setEnabled(self, enabled):
        """Let the reader choose, or not while a segmentation runs."""
        ui = self._ui
        for widget in (ui.methodComboBox, ui.checkpointBrowseButton, ui.unvalidatedCheckBox):
            widget.enabled = enabled
        for combo, least in ((ui.checkpointComboBox, 1), (ui.topLevelComboBox, 2), (ui.bottomLevelComboBox, 2)):
            combo.enabled = enabled and combo.count >= least

    def refreshCheckpoints(self):
        """Look for checkpoint files again: some may have come since, e.g. from a training run."""
        self._checkpoints = list_checkpoints()

    def _fillMethods(self):
        combo = self._ui.methodComboBox
        for group, title in GROUPS:
            members = [info for info in METHODS.values() if info.group == group]
            if not members:
                continue
            combo.addItem(title)
            combo.model().item(combo.count - 1).setEnabled(False)
            for info in members:
                self._addMethod(info)

    def _addMethod(self, info):
        combo = self._ui.methodComboBox
        combo.addItem(info.title, info.id)
        tip = f"<b>{info.title}</b><br>{info.summary}<br><i>{info.citation}</i>"
        combo.setItemData(combo.count - 1, tip, qt.Qt.ToolTipRole)

    def _fillCheckpoints(self, method, wanted):
        combo = self._ui.checkpointComboBox
        combo.clear()
        known = [info for info in self._checkpoints if info.method == method]
        for info in known:
            combo.addItem(info.title, info.name)
            combo.setItemData(combo.count - 1, str(info.path), qt.Qt.ToolTipRole)
        if wanted and wanted not in [info.name for info in known]:
            info = self._info(wanted)
            if info is None:
                combo.addItem(_("{name} (not found)").format(name=Path(wanted).name), wanted)
            elif info.method == method:
                combo.addItem(info.title, wanted)
                combo.setItemData(combo.count - 1, wanted, qt.Qt.ToolTipRole)
        combo.setCurrentIndex(max(0, combo.findData(wanted)) if combo.count else -1)

    def _info(self, nameOrPath):
        """What is known of a checkpoint, read from its header; None if it cannot be read."""
        for info in self._checkpoints:
            if info.name == nameOrPath:
                return info if info.path.is_file() else None
        try:
            return read_header(nameOrPath) if nameOrPath.endswith(SUFFIX) else None
        except SpineSegAIError:
            return None

    def _fillLevels(self):
        """Vertebrae of the checkpoint's scheme, top down, if its method takes a visible range."""
        info = self.checkpoint()
        levels = [s for s in info.scheme.structures if s.is_vertebral and s.order is not None] if info else []
        takes = bool(levels) and self.accepts("visible")
        levels.sort(key=lambda s: s.order)
        for combo in (self._ui.topLevelComboBox, self._ui.bottomLevelComboBox):
            combo.clear()
            combo.addItem(_("not given"), 0)
            for structure in levels if takes else ():
                combo.addItem(structure.name, structure.id)
        self._ui.visibleLabel.enabled = takes

    def _showExperimental(self):
        info, box = self.checkpoint(), self._ui.unvalidatedCheckBox
        box.visible = bool(info and info.unvalidated)
        if info and info.unvalidated:
            names = ", ".join(anatomy.STRUCTURES[i].name for i in anatomy.sorted_ids(info.unvalidated))
            box.toolTip = _(
                "Also segment what this checkpoint learnt from generated images alone, without a real example: {names}."
                " The segments are called “(unvalidated)”."
            ).format(names=names)

    def _showDetails(self):
        shown = self._ui.checkpointDetailsButton.checked
        self._ui.checkpointDetailsBrowser.visible = shown
        if shown:
            info = self.checkpoint()
            self._ui.checkpointDetailsBrowser.setHtml(detailsHtml(info) if info else _("No checkpoint is chosen."))

    # --- chosen ------------------------------------------------------------------------------------------------------

    def _onMethod(self):
        if self.method() is not None:
            self._parameters.write(method=self.method().id, checkpoint="")

    def _onCheckpoint(self):
        self._parameters.write(checkpoint=self.checkpointName)

    def _onLevels(self):
        top, bottom = self.visibleRange()
        self._parameters.write(topLevel=top or 0, bottomLevel=bottom or 0)

    def _onBrowse(self):
        path = qt.QFileDialog.getOpenFileName(
            slicer.util.mainWindow(), _("Checkpoint"), "", _("SpineSegAI checkpoints (*{suffix})").format(suffix=SUFFIX)
        )
        if isinstance(path, tuple):  # PySide-style bindings give the filter as well
            path = path[0]
        if path:
            self.useCheckpointFile(path)

    def useCheckpointFile(self, path):
        """Choose a checkpoint file, and its method with it."""
        try:
            info = read_header(path)
            if info.method not in METHODS:
                raise SpineSegAIError(
                    _("{name} was made for the method “{method}”, which this version does not have.").format(
                        name=info.path.name, method=info.method
                    ),
                    _("Update SpineSegAI."),
                )
        except SpineSegAIError as error:
            self._messages.show(Failure.of(error))
            return
        self._parameters.write(method=info.method, checkpoint=str(path))
