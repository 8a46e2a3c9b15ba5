"""Files that volumes come from, and Slicer's DICOM database, which finds them and takes what is made of them."""

import itertools
from pathlib import Path

import slicer
from slicer.i18n import tr as _

from SpineSegAILib.errors import ImageError, OutputError

UIDS_ATTRIBUTE = "DICOM.instanceUIDs"
"""Of a volume that the module DICOM loaded: UIDs of its slices, separated by blanks."""


def database():
    """Slicer's DICOM database if there is one that is open, else None."""
    found = getattr(slicer, "dicomDatabase", None)  # set by the module DICOM, which may be switched off
    return found if found is not None and found.isOpen else None


def fileOf(volumeNode):
    """The file that a volume was loaded from, or the first of several; None if there is none, or none any more."""
    return next(_files(volumeNode), None)


def isFromDicom(volumeNode):
    """Whether a volume's files are there, and are DICOM."""
    from SpineSegAILib.imaging.dicom_headers import is_dicom
    from SpineSegAILib.imaging.headers import first_bytes

    found = fileOf(volumeNode)
    try:
        return found is not None and is_dicom(first_bytes(found, 256))
    except ImageError:  # protected
        return False


def seriesFileOf(volumeNode):
    """A file of the DICOM series that a volume was loaded from.

    :raises OutputError: it was not loaded from DICOM, or its files are gone.
    """
    found, name = fileOf(volumeNode), volumeNode.GetName()
    if found is None and volumeNode.GetAttribute(UIDS_ATTRIBUTE):
        raise OutputError(
            _("The DICOM files of “{volume}” are not found.").format(volume=name),
            _("Import the series in the module “DICOM” again."),
        )
    if found is None or not isFromDicom(volumeNode):
        raise OutputError(
            _("“{volume}” was not loaded from DICOM: a DICOM segmentation refers to the images of its study.").format(
                volume=name
            ),
            _("Load the series in the module “DICOM” and segment that, or use “Save segmentation…”."),
        )
    return found


def add(path, uid):
    """Copy a DICOM file into the database, into the study that it says.

    :param uid: of its instance.
    :raises OutputError: there is no database any more, or it does not take the file.
    """
    target = database()
    if target is not None:
        target.insert(str(path))
        if target.fileForInstance(uid):
            return
    raise OutputError(
        _("The DICOM database did not take the segmentation."),
        _("Open the module “DICOM” and see that the database is open and its disk not full; then save again."),
    )


def _files(volumeNode):
    """Those that are there: of the database, and of the volume's own storage."""
    target, storageNode = database(), volumeNode.GetStorageNode()
    uids = (volumeNode.GetAttribute(UIDS_ATTRIBUTE) or "").split() if target is not None else ()
    own = storageNode.GetFullNameFromFileName() if storageNode is not None else None
    names = itertools.chain((target.fileForInstance(uid) for uid in uids), (own,))
    return (path for path in map(Path, filter(None, names)) if path.is_file())
