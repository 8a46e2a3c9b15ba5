"""SpineSegAI in 3D Slicer: what Slicer's module list shows. Panel, logic and test are in `SpineSegAISlicer`."""

import os
import sys

import qt
import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import ScriptedLoadableModule, ScriptedLoadableModuleWidget

try:
    import SpineSegAILib
except ImportError:  # a source checkout used as additional module path: the library lies beside this folder
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    import SpineSegAILib

OLDEST_PYTHON = (3, 10)
"""This file alone has to be understood by older ones, to say so."""


class SpineSegAI(ScriptedLoadableModule):
    """What Slicer's module list shows."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = "SpineSegAI"
        parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        parent.dependencies = ["Markups", "Segmentations", "SubjectHierarchy", "Tables"]
        parent.contributors = ["SpineSegAI contributors"]
        parent.helpText = _(
            "Segments vertebrae, discs and spinal canal, one named segment per structure. Select a volume and click"
            " “Segment spine”.<br><b>For research use only, not for diagnosis.</b> Numbering assumes five lumbar"
            " vertebrae unless L6 or T13 is seen: check the levels."
        )
        parent.acknowledgementText = _(
            "SpineSegAI {version}. All methods are published; hover over a method for its reference."
        ).format(version=SpineSegAILib.__version__)
        if sys.version_info < OLDEST_PYTHON:
            return
        slicer.app.connect("startupCompleted()", registerSampleData)
        slicer.app.connect("startupCompleted()", registerTerminology)
        slicer.app.connect("startupCompleted()", registerClicks)


def registerSampleData():
    """Add the synthetic lumbar spine to the module “Sample Data”."""
    from SpineSegAISlicer.scene import samples

    samples.register()


def registerTerminology():
    """Let Slicer's terminology selector know the structures."""
    from SpineSegAILib.anatomy.terminology import TERMINOLOGY_FILE
    from SpineSegAILib.resources import resources_folder

    slicer.modules.terminologies.logic().LoadTerminologyFromFile(
        str(resources_folder() / "Terminology" / TERMINOLOGY_FILE)
    )


def registerClicks():
    """Add the effect “Spine click” to Slicer's Segment Editor."""
    from SpineSegAISlicer.panels.click_tools import registerEffect

    registerEffect()


if sys.version_info >= OLDEST_PYTHON:
    # Slicer looks for these in this file.
    from SpineSegAISlicer.logic import SpineSegAILogic  # noqa: F401
    from SpineSegAISlicer.parameter_node import SpineSegAIParameterNode  # noqa: F401
    from SpineSegAISlicer.self_test import SpineSegAITest  # noqa: F401
    from SpineSegAISlicer.widget import SpineSegAIWidget
else:

    class SpineSegAIWidget(ScriptedLoadableModuleWidget):
        """What an older Slicer shows instead of the panel."""

        def setup(self):
            """Called when the module is opened for the first time."""
            ScriptedLoadableModuleWidget.setup(self)
            label = qt.QLabel(
                _("SpineSegAI needs Slicer 5.10 or newer: this one has Python {there}, not {needed} or newer.").format(
                    there=".".join(map(str, sys.version_info[:2])), needed=".".join(map(str, OLDEST_PYTHON))
                )
            )
            label.wordWrap = True
            self.layout.addWidget(label)
            self.layout.addStretch(1)
