"""The case that is open in Slicer as a small scene on disk, for the same reader as scenes from elsewhere.

Written beside the scene: no node gets a storage node or another file name, so saving the scene later is what it was.
"""

from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import slicer
from slicer.i18n import tr as _

from SpineSegAILib.errors import DatasetError, OutputError

from .volumes import imageFromVolume, worldTransform

_VOLUME, _SEGMENTATION = "vtkMRMLScalarVolumeNode1", "vtkMRMLSegmentationNode1"


def write(volumeNode, segmentationNode, folder):
    """Write a volume and its segmentation as ``<volume>.mrml`` with files beside it.

    :param segmentationNode: may be None: then the volume is a case to annotate.
    :param folder: empty folder.
    :returns: the scene's path.
    :raises ImageError: the volume is none that can be segmented.
    :raises DatasetError: the segmentation is empty, of surfaces alone, or under a non-linear transform.
    :raises OutputError: a file cannot be written.
    """
    folder = Path(folder)
    _writeImage(imageFromVolume(volumeNode), volumeNode.GetName(), folder / "image.nrrd")  # where it lies in the world
    nodes = [
        _stored("VolumeArchetypeStorage", "vtkMRMLVolumeArchetypeStorageNode1", "image.nrrd"),
        _element(
            "Volume", id=_VOLUME, name=volumeNode.GetName(), references="storage:vtkMRMLVolumeArchetypeStorageNode1;"
        ),
    ]
    if segmentationNode is not None:
        transformNode = segmentationNode.GetParentTransformNode()
        if transformNode is not None and not transformNode.IsTransformToWorldLinear():
            raise DatasetError(
                _("“{name}” is under a non-linear transform.").format(name=segmentationNode.GetName()),
                _("Harden it in the module “Transforms”."),
            )
        if not segmentationNode.GetSegmentation().GetNumberOfSegments():
            raise DatasetError(
                _("“{name}” has no segments.").format(name=segmentationNode.GetName()), _("Segment the volume first.")
            )
        _writeSegments(segmentationNode, folder / "segments.seg.nrrd")
        nodes += [
            _transform(worldTransform(segmentationNode)),
            _stored("SegmentationStorage", "vtkMRMLSegmentationStorageNode1", "segments.seg.nrrd"),
            _element(
                "Segmentation", id=_SEGMENTATION, name=segmentationNode.GetName(),
                references="storage:vtkMRMLSegmentationStorageNode1;transform:vtkMRMLLinearTransformNode1;"
                f"referenceImageGeometryRef:{_VOLUME};",
                attributes=";".join(
                    f"{quote(name)}:{quote(segmentationNode.GetAttribute(name) or '')}"
                    for name in segmentationNode.GetAttributeNames()
                ),
            ),
        ]  # fmt: skip
    patient = _patientOf(volumeNode)
    if patient:
        item = _element("SubjectHierarchyItem", id="2", dataNode=_VOLUME)
        nodes.append(
            f'<SubjectHierarchyItem id="1" attributes={quoteattr(f"DICOM.PatientID^{patient}|Level^Patient|")}>'
            f"{item}</SubjectHierarchyItem>"
        )
    safe = "".join(c if c.isalnum() or c in "-_ ." else "_" for c in volumeNode.GetName()).strip(" .") or "case"
    path = folder / f"{safe[:80]}.mrml"
    path.write_text("<MRML>\n" + "\n".join(nodes) + "\n</MRML>\n", encoding="utf-8")
    return path


def _writeImage(image, name, path):
    import SimpleITK as sitk

    try:
        sitk.WriteImage(image, str(path))
    except RuntimeError as error:
        raise _notWritten(name, path) from error


def _writeSegments(segmentationNode, path):
    """Into a file, by a storage node that the segmentation never hears of."""
    name = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
    if not segmentationNode.GetSegmentation().ContainsRepresentation(name):
        raise DatasetError(
            _("The segments of “{name}” are surfaces.").format(name=segmentationNode.GetName()),
            _("Make “Binary labelmap” their source representation in the module “Segmentations”."),
        )
    storageNode = slicer.vtkMRMLSegmentationStorageNode()
    storageNode.SetFileName(str(path))
    if not storageNode.WriteData(segmentationNode) or not path.exists():
        raise _notWritten(segmentationNode.GetName(), path)


def _notWritten(name, path):
    return OutputError(
        _("“{name}” could not be written to {folder}.").format(name=name, folder=path.parent),
        _("Is the disk full that holds temporary files?"),
    )


def _transform(matrix):
    text = " ".join(f"{value:.17g}" for row in matrix for value in row)
    return _element("LinearTransform", id="vtkMRMLLinearTransformNode1", name="World", matrixTransformToParent=text)


def _stored(kind, nodeId, file):
    return _element(kind, id=nodeId, name=kind, fileName=quote(file))


def _element(kind, **attributes):
    return f"<{kind} {' '.join(f'{key}={quoteattr(value)}' for key, value in attributes.items())} />"


def _patientOf(volumeNode):
    """DICOM patient id (or name) that the subject hierarchy puts the volume under; empty if it is under none."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    item = hierarchy.GetItemByDataNode(volumeNode)
    constants = slicer.vtkMRMLSubjectHierarchyConstants
    patient = hierarchy.GetItemAncestorAtLevel(item, constants.GetDICOMLevelPatient()) if item else 0
    if not patient:
        return ""
    return hierarchy.GetItemAttribute(patient, "DICOM.PatientID") or hierarchy.GetItemName(patient)
