"""Which model follows clicks: the one that comes with SpineSegAI, or one of the user's own, such as SAM or MedSAM.

The choice is kept with the application, not with a scene: it is about what a user has, not about a case.
"""

import slicer
from slicer.i18n import tr as _

from SpineSegAILib.checkpoints import list_checkpoints
from SpineSegAILib.errors import CheckpointError
from SpineSegAILib.methods.catalog import CLICK_CHECKPOINT, METHODS

SETTING = "SpineSegAI/ClickModel"


def clickModels():
    """`CheckpointInfo` of each model that takes clicks, ours first."""
    found = [info for info in list_checkpoints() if info.method in METHODS and METHODS[info.method].clicks]
    return sorted(found, key=lambda info: info.name != CLICK_CHECKPOINT)


def chosenModel():
    """Name of the model that is to follow clicks; ours where the one that was chosen is gone.

    :raises CheckpointError: there is none.
    """
    names = [info.name for info in clickModels()]
    if not names:
        raise CheckpointError(
            _("The model that follows clicks, “{name}”, is not installed.").format(name=CLICK_CHECKPOINT),
            _("Reinstall SpineSegAI, or copy {name}.safetensors into the folder of your checkpoints.").format(
                name=CLICK_CHECKPOINT
            ),
        )
    return _chosenOf(names)


def _chosenOf(names):
    wanted = slicer.app.userSettings().value(SETTING)
    return wanted if wanted in names else names[0]


def reasonAgainst():
    """Why clicks cannot be followed: a sentence; empty where they can."""
    try:
        chosenModel()
    except CheckpointError as error:
        return str(error)
    return ""


class ModelChoice:
    """A combo box with the models that follow clicks; seen only where there is more than one.

    :param combo: the combo box.
    """

    def __init__(self, combo):
        self._combo = combo
        self._isShowing = False
        combo.visible = False
        combo.connect("currentIndexChanged(int)", self._onIndex)

    def update(self):
        """A model may have come since, or gone, or been chosen elsewhere."""
        found = clickModels()
        self._isShowing = True
        self._combo.clear()
        for info in found:
            self._combo.addItem(info.title, info.name)
        if found:
            self._combo.setCurrentIndex(self._combo.findData(_chosenOf([info.name for info in found])))
        self._isShowing = False
        self._combo.visible = len(found) > 1

    def _onIndex(self, _index):
        if not self._isShowing and self._combo.currentData:
            slicer.app.userSettings().setValue(SETTING, self._combo.currentData)
