"""What to segment with: the model, visible levels, experimental structures."""

from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from SpineSegAILib import anatomy
from SpineSegAILib.checkpoints import DEFAULT_CHECKPOINT, SUFFIX, list_checkpoints, read_header
from SpineSegAILib.errors import SpineSegAIError
from SpineSegAILib.methods.catalog import DEFAULT_METHOD, METHODS

from ..processes.failure import Failure
from ..processes.training import modified
from ..scene import volumes
from .checkpoint_details import detailsHtml

PLANES = {
    "axial": _("an axial stack"),
    "coronal": _("a coronal stack"),
    "sagittal": _("a sagittal stack"),
    "isotropic": _("an isotropic volume"),
    "single-slice": _("a single slice (a localizer or a picture)"),
}


def modelTitle(info):
    """What a model is for, as a radiologist says it; the method is named where there are several for the same.

    :param info: `CheckpointInfo`; the shipped ones are titled “Lumbar MR (ATM-Net)”, users' own ones as they like.
    """
    purpose, _bracket, by = info.title.partition(" (")
    method = METHODS.get(info.method)
    if method is None or by.casefold() != f"{method.title})".casefold():
        return info.title
    return f"{purpose} · {_('recommended') if info.name == DEFAULT_CHECKPOINT else method.title}"


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
        self._files = {}  # path of a model from elsewhere → (when it was changed last, what is known of it)
        ui.modelDetailsBrowser.visible = False
        ui.modelComboBox.connect("currentIndexChanged(int)", self._onModel)
        ui.modelBrowseButton.connect("clicked(bool)", self._onBrowse)
        ui.modelDetailsButton.connect("toggled(bool)", self._showDetails)
        ui.topLevelComboBox.connect("currentIndexChanged(int)", self._onLevels)
        ui.bottomLevelComboBox.connect("currentIndexChanged(int)", self._onLevels)

    # --- what was chosen ---------------------------------------------------------------------------------------------

    def method(self, volumeNode=None):
        """The catalog's entry of the chosen model's method; of the one that is wanted if there is no model of it.

        :param volumeNode: to be segmented; the input volume if not given.
        """
        info, parameters = self.checkpoint(volumeNode), self._parameters.node
        if info is not None:
            return METHODS.get(info.method)
        return METHODS.get(parameters.method) if parameters is not None else None

    def accepts(self, hint, volumeNode=None):
        """Whether the chosen method takes a hint, by its name in `SpineSegAILib.hints.Hints`.

        :param volumeNode: as for `method`.
        """
        method = self.method(volumeNode)
        return method is not None and hint in method.accepted_hints

    def checkpoint(self, volumeNode=None):
        """The chosen checkpoint's `CheckpointInfo`, or None.

        :param volumeNode: as for `method`.
        """
        return self._info(self.checkpointNameFor(volumeNode) if volumeNode is not None else self.checkpointName)

    @property
    def checkpointName(self):
        """Name or path of the chosen model's checkpoint; empty if there is none."""
        return self._ui.modelComboBox.currentData or ""

    def checkpointNameFor(self, volumeNode):
        """The same for any volume: without a choice of the reader's, films get the model for films, others do not."""
        parameters = self._parameters.node
        if parameters is None or parameters.checkpoint:
            return self.checkpointName
        return self._automatic(parameters.method, volumeNode)

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
        reasons += self._reasonsAgainstCheckpoint(volumeNode)
        top, bottom = self.visibleRange()
        if top and bottom and anatomy.STRUCTURES[top].order > anatomy.STRUCTURES[bottom].order:
            reasons.append(_("The visible range is upside down: the topmost vertebra comes first."))
        if not reasons and self.isWarm:
            reasons += self._reasonsAgainstPlane(volumeNode)
        return reasons

    def _reasonsAgainstCheckpoint(self, volumeNode):
        if self.checkpoint(volumeNode) is not None:
            return []
        if self._ui.modelComboBox.count == 0:
            return [_("There is no model: browse for one, or train one.")]
        name = self.checkpointNameFor(volumeNode)
        wanted = METHODS.get(self._parameters.node.method)
        if not name and wanted is not None:
            return [
                _("There is no model for {method}: browse for one, train one, or choose another.").format(
                    method=wanted.title
                )
            ]
        return [_("The model “{name}” was not found: choose another one.").format(name=Path(name).name)]

    def _reasonsAgainstPlane(self, volumeNode):
        accepted = self.checkpoint(volumeNode).metadata.get("preprocessing", {}).get("planes")
        refused = volumes.refusedPlane(volumeNode, accepted) if accepted else None
        if not refused:
            return []
        stacks = [p for p in accepted if p != "single-slice"]
        return [
            _("“{volume}” is {plane}; this model requires {accepted}.").format(
                volume=volumeNode.GetName(),
                plane=PLANES[refused],
                accepted=_(" or ").join(PLANES[p] for p in stacks or accepted),
            )
        ]

    # --- shown -------------------------------------------------------------------------------------------------------

    def update(self):
        """Bring the widgets in line with the parameter node."""
        ui, parameters = self._ui, self._parameters.node
        with self._parameters.showing():
            self._fillModels(parameters.method, parameters.checkpoint)
            self._fillLevels()
            ui.topLevelComboBox.setCurrentIndex(max(0, ui.topLevelComboBox.findData(parameters.topLevel)))
            ui.bottomLevelComboBox.setCurrentIndex(max(0, ui.bottomLevelComboBox.findData(parameters.bottomLevel)))
        self._showExperimental()
        self._showDetails()

    def setEnabled(self, enabled):
        """Let the reader choose, or not while a segmentation runs."""
        ui = self._ui
        for widget in (ui.modelBrowseButton, ui.unvalidatedCheckBox):
            widget.enabled = enabled
        for combo, least in ((ui.modelComboBox, 1), (ui.topLevelComboBox, 2), (ui.bottomLevelComboBox, 2)):
            combo.enabled = enabled and combo.count >= least

    def refreshCheckpoints(self):
        """Look for checkpoint files again: some may have come since, e.g. from a training run."""
        self._checkpoints = list_checkpoints()

    def _fillModels(self, method, wanted):
        """All models, the recommended one first.

        :param method: whose first model is meant where none is named; if empty that for films, where the volume is
            one, else the default's.
        :param wanted: name or path of the one that is chosen; empty if none is named.
        """
        combo = self._ui.modelComboBox
        combo.clear()
        known = self._offered()
        for info in known:
            self._addModel(info, info.name)
        wanted = wanted or self._automatic(method, self._parameters.inputVolume)
        if wanted and combo.findData(wanted) < 0:
            info = self._info(wanted)
            if info is not None:
                self._addModel(info, wanted)
            else:
                combo.addItem(_("{name} (not found)").format(name=Path(wanted).name), wanted)
        if not wanted and known:
            title = METHODS[method].title if method in METHODS else _("Default")
            combo.addItem(_("{method} (no model)").format(method=title), "")
        combo.setCurrentIndex(combo.findData(wanted) if combo.count else -1)

    def _offered(self):
        return [i for i in self._checkpoints if i.method in METHODS and METHODS[i.method].offered]

    def _automatic(self, method, volumeNode):
        """Name of the model that is meant where none is named, see `_fillModels`; empty if there is none."""
        known = self._offered()
        if not method and volumes.isFilm(volumeNode):
            for info in known:
                if info.metadata.get("preprocessing", {}).get("modality") == "XR":
                    return info.name
        return next((info.name for info in known if info.method == (method or DEFAULT_METHOD)), "")

    def _addModel(self, info, data):
        combo = self._ui.modelComboBox
        combo.addItem(modelTitle(info), data)
        method = METHODS.get(info.method)
        about = f"<br>{method.summary}<br><i>{method.citation}</i>" if method is not None else ""
        combo.setItemData(combo.count - 1, f"<b>{info.title}</b>{about}<br>{info.path}", qt.Qt.ToolTipRole)

    def _info(self, nameOrPath):
        """What is known of a checkpoint, read from its header; None if it cannot be read."""
        for info in self._checkpoints:
            if info.name == nameOrPath:
                return info if info.path.is_file() else None
        if not nameOrPath.endswith(SUFFIX):
            return None
        changed = modified(Path(nameOrPath))  # this is asked at every click, and the file may be on a slow drive
        if self._files.get(nameOrPath, (None,))[0] != changed:
            self._files[nameOrPath] = (changed, _header(nameOrPath))
        return self._files[nameOrPath][1]

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
                "Also segment structures for which this model is not validated on real cases:"
                " {names}. The segments are called “(experimental)”."
            ).format(names=names)

    def _showDetails(self):
        shown = self._ui.modelDetailsButton.checked
        self._ui.modelDetailsBrowser.visible = shown
        if shown:
            info = self.checkpoint()
            self._ui.modelDetailsBrowser.setHtml(detailsHtml(info) if info else _("No model is chosen."))

    # --- chosen ------------------------------------------------------------------------------------------------------

    def _onModel(self):
        info = self.checkpoint()
        self._parameters.write(method=info.method if info is not None else "", checkpoint=self.checkpointName)

    def _onLevels(self):
        top, bottom = self.visibleRange()
        self._parameters.write(topLevel=top or 0, bottomLevel=bottom or 0)

    def _onBrowse(self):
        path = qt.QFileDialog.getOpenFileName(
            slicer.util.mainWindow(), _("Model"), "", _("SpineSegAI models (*{suffix})").format(suffix=SUFFIX)
        )
        if path:
            self.useCheckpointFile(path)

    def useCheckpointFile(self, path):
        """Choose a model file."""
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


def _header(path):
    """What a file says of the model in it; None if it cannot be read."""
    try:
        return read_header(path)
    except SpineSegAIError:
        return None
