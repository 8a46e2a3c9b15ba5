"""The sample that comes with SpineSegAI: a synthetic lumbar spine, nobody's."""

import hashlib

import slicer
from slicer.i18n import tr as _

from SpineSegAILib.resources import resources_folder

NAME = "SpineSegAI synthetic lumbar spine"
FILE = "lumbar_phantom.nii.gz"


def samplePath():
    """Where the sample lies.

    :raises SpineSegAIError: the installation is incomplete.
    """
    from SpineSegAILib.errors import SpineSegAIError

    path = resources_folder() / "Samples" / FILE
    if not path.is_file():
        raise SpineSegAIError(_("The sample {path} is missing.").format(path=path), _("Install the extension again."))
    return path


def register():
    """Add the sample to the module “Sample Data”; it is a local file, so this works without a network."""
    import SampleData

    path = samplePath()
    # With the checksum, Sample Data notices that its cache still has the sample of an older version.
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    logic = SampleData.SampleDataLogic
    if hasattr(logic, "registerCustomSampleDataCategory"):  # not in older versions
        logic.registerCustomSampleDataCategory("SpineSegAI", title="SpineSegAI")
    logic.registerCustomSampleDataSource(
        category="SpineSegAI",
        sampleName=NAME,
        uris=path.as_uri(),
        fileNames=FILE,
        nodeNames=NAME,
        checksums=f"SHA256:{checksum}",
    )


def load():
    """The sample as a volume node; the one that is in the scene already, if there is one."""
    node = slicer.util.getFirstNodeByClassByName("vtkMRMLScalarVolumeNode", NAME)
    return node or slicer.util.loadVolume(str(samplePath()), {"name": NAME})
