"""Volume nodes for the library: what can be segmented, where it lies, and as a SimpleITK image.

SimpleITK is imported where an image is made, so that opening the panel does not wait for it.
"""

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

from SpineSegAILib.errors import ImageError

UNCERTAINTY_ATTRIBUTE = "SpineSegAI.UncertaintyMeans"
"""Of a map of uncertainty that SpineSegAI made: the means of the structures, as JSON."""

_RADIOGRAPHS = ("CR", "DX", "RF", "XA", "RG")  # DICOM's words
_FILM_SHAPE = 1.5  # rows over columns; 1.8 and more in films of a whole spine
_SHEAR_TOLERANCE = 1e-3  # as `imaging.check_image`; less is rounding in file headers


def isUncertaintyMap(volumeNode):
    """True for a map that SpineSegAI made: not an image, though a scalar volume."""
    return volumeNode.GetAttribute(UNCERTAINTY_ATTRIBUTE) is not None


def images():
    """The scene's scalar volumes that are images: neither color pictures nor label maps nor maps of uncertainty."""
    return [node for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") if _isImage(node)]


def _isImage(node):
    """Whether a node is an image that users see in lists."""
    return (
        node.GetClassName() == "vtkMRMLScalarVolumeNode"
        and not node.GetHideFromEditors()
        and not isUncertaintyMap(node)
    )


def isFilm(volumeNode):
    """Whether a volume is a radiograph: one slice, by its DICOM modality or, where that is not told, by its shape.

    Films of the spine are high and narrow; single slices of MR are about square.
    """
    if volumeNode is None or volumeNode.GetImageData() is None:
        return False
    columns, rows, slices = volumeNode.GetImageData().GetDimensions()
    if slices != 1:
        return False
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    item = hierarchy.GetItemByDataNode(volumeNode)
    name = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMSeriesModalityAttributeName()
    modality = hierarchy.GetItemAttribute(item, name) if item else ""
    return modality in _RADIOGRAPHS if modality else rows > _FILM_SHAPE * columns


def singleSliceAxis(volumeNode):
    """World axis (0: right–left, 1: front–back, 2: head–feet) across a volume of one slice; None for any other."""
    if volumeNode is None or volumeNode.GetImageData() is None or 1 not in volumeNode.GetImageData().GetDimensions():
        return None
    axis = volumeNode.GetImageData().GetDimensions().index(1)
    return int(np.argmax(np.abs(ijkToWorldMatrix(volumeNode)[:3, axis])))


def segmentedVolume(segmentationNode):
    """The volume that a segmentation was made on; None if that is not known, or gone."""
    return segmentationNode.GetNodeReference(segmentationNode.GetReferenceImageGeometryReferenceRole())


def checkVolume(volumeNode):
    """Refuse what is not one scalar volume, cheaply: no voxel is looked at.

    :raises ImageError: there is none, it has no voxels, is colored, a label map, a map of uncertainty, or under a
        non-linear transform.
    """
    if volumeNode is None:
        raise ImageError(_("No volume is selected."), _("Load a volume and select it as input."))
    name = volumeNode.GetName()
    imageData = volumeNode.GetImageData()
    if imageData is None or imageData.GetNumberOfPoints() == 0:
        raise ImageError(_("The volume “{name}” has no voxels.").format(name=name), _("Select another volume."))
    if volumeNode.IsA("vtkMRMLLabelMapVolumeNode"):
        raise ImageError(
            _("“{name}” is a label map, not an image.").format(name=name),
            _("Select the image that it belongs to, or convert it in the module “Volumes”."),
        )
    if isUncertaintyMap(volumeNode):
        raise ImageError(
            _("“{name}” is an uncertainty map, not an image.").format(name=name),
            _("Select the image that it was made from."),
        )
    components = imageData.GetNumberOfScalarComponents()
    if components != 1:
        raise ImageError(
            _("“{name}” has {count} values per voxel (a color picture or a vector volume).").format(
                name=name, count=components
            ),
            _("Convert it with the module “Vector to Scalar Volume”."),
        )
    refuseNonLinear(volumeNode)


def refuseNonLinear(node):
    """What lies under a non-linear transform has no voxel grid in the world.

    :raises ImageError: the node is.
    """
    transformNode = node.GetParentTransformNode()
    if transformNode is not None and not transformNode.IsTransformToWorldLinear():
        raise ImageError(
            _("“{name}” is under the non-linear transform “{transform}”.").format(
                name=node.GetName(), transform=transformNode.GetName()
            ),
            _("Harden the transform (in the module “Transforms”) or take “{name}” out of it.").format(
                name=node.GetName()
            ),
        )


def ijkToRasMatrix(volumeNode):
    """(4, 4) matrix from voxel indices (i, j, k) to the volume's own coordinates, without its parent transforms."""
    matrix = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def ijkToWorldMatrix(volumeNode):
    """(4, 4) matrix from voxel indices (i, j, k) to world coordinates (RAS, mm), parent transforms included."""
    return worldTransform(volumeNode) @ ijkToRasMatrix(volumeNode)


def worldTransform(node):
    """(4, 4) matrix of a node's linear parent transforms."""
    transformNode = node.GetParentTransformNode()
    if transformNode is None:
        return np.eye(4)
    matrix = vtk.vtkMatrix4x4()
    transformNode.GetMatrixTransformToWorld(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def imageFromVolume(volumeNode):
    """SimpleITK image of a volume node as it lies in the world: linear parent transforms are part of its geometry.

    :raises ImageError: see `checkVolume`; also for sheared voxel axes.
    """
    checkVolume(volumeNode)
    array = slicer.util.arrayFromVolume(volumeNode)  # (k, j, i)
    return imageFromMatrix(array, ijkToWorldMatrix(volumeNode), volumeNode.GetName())


def imageFromMatrix(array, ijkToRas, name):
    """Image of an array (k, j, i) whose voxels lie where a (4, 4) matrix to RAS says."""
    import SimpleITK as sitk

    from SpineSegAILib.imaging.geometry import set_index_to_lps

    ijkToLps = _toLps(ijkToRas)
    spacing = np.linalg.norm(ijkToLps[:3, :3], axis=0)
    if not np.all(spacing > 0):
        raise ImageError(_("The geometry of “{name}” is damaged: an axis has no length.").format(name=name))
    direction = ijkToLps[:3, :3] / spacing
    if not np.allclose(direction.T @ direction, np.eye(3), atol=_SHEAR_TOLERANCE):
        raise ImageError(
            _("The voxel axes of “{name}” are not perpendicular (gantry tilt, or a shearing transform).").format(
                name=name
            ),
            _("Resample it first, with the module “Resample Scalar/Vector/DWI Volume”."),
        )
    image = sitk.GetImageFromArray(array)
    set_index_to_lps(image, ijkToLps)
    return image


def asStored(labels, volumeNode):
    """Labels on a volume's voxels as they lie in the volume's own coordinates, without its parent transforms.

    :param labels: SimpleITK image as it lies in the world.
    """
    import SimpleITK as sitk

    return imageFromMatrix(sitk.GetArrayViewFromImage(labels), ijkToRasMatrix(volumeNode), volumeNode.GetName())


def pointToNode(node, point):
    """A point (LPS, mm) of the world in a node's own coordinates, without its linear parent transforms."""
    return lps((np.linalg.inv(worldTransform(node)) @ [*lps(point), 1.0])[:3])


def pointToWorld(node, point):
    """A point (LPS, mm) of a node's own coordinates in the world."""
    return lps((worldTransform(node) @ [*lps(point), 1.0])[:3])


def lps(point):
    """A point (x, y, z) of Slicer's (RAS, mm) in the library's coordinates (LPS, mm), or back."""
    return tuple(_toLps([*point, 1.0])[:3].tolist())


def _toLps(matrix):
    """A (4, 4) matrix to RAS, or a homogeneous point, to LPS instead; or back."""
    from SpineSegAILib.imaging.geometry import RAS_FROM_LPS  # its own inverse

    return RAS_FROM_LPS @ matrix


class VolumeGeometry:
    """Geometry of a volume node as a SimpleITK image would tell it, without its voxels: enough for `imaging.plane`."""

    def __init__(self, volumeNode):
        self._matrix = _toLps(ijkToWorldMatrix(volumeNode))
        self._size = volumeNode.GetImageData().GetDimensions()

    def GetSize(self):
        return tuple(self._size)

    def GetSpacing(self):
        return tuple(np.linalg.norm(self._matrix[:3, :3], axis=0).tolist())

    def GetOrigin(self):
        return tuple(self._matrix[:3, 3].tolist())

    def GetDirection(self):
        return tuple((self._matrix[:3, :3] / np.linalg.norm(self._matrix[:3, :3], axis=0)).ravel().tolist())


def acquisitionAxis(volumeNode):
    """Axis of a volume's array (k, j, i) across the slices that were acquired: the one with the largest spacing.

    Of a single slice, the one across it, whatever its spacing.
    """
    if 1 in volumeNode.GetImageData().GetDimensions():
        return 2 - volumeNode.GetImageData().GetDimensions().index(1)
    return 2 - int(np.argmax(np.linalg.norm(ijkToWorldMatrix(volumeNode)[:3, :3], axis=0)))


def refusedPlane(volumeNode, accepted):
    """Name of the volume's acquisition plane if it is none of those that a checkpoint accepts, else None.

    :param accepted: planes as `imaging.Preprocessing.planes` has them.
    """
    from SpineSegAILib import imaging

    plane = imaging.plane(VolumeGeometry(volumeNode))
    return None if plane in accepted else plane


def sliceArea(volumeNode, finest):
    """Area (mm²) of all slices that a network will see.

    :param finest: slice spacing (mm) to which finer stacks are resampled.
    """
    geometry = VolumeGeometry(volumeNode)
    size, spacing = np.array(geometry.GetSize()), np.array(geometry.GetSpacing())
    leftRight = abs(np.reshape(geometry.GetDirection(), (3, 3))[0])
    axis = int(np.argmin(size)) if size.min() == 1 else int(np.argmax(leftRight))
    slices = 1.0 if size[axis] == 1 else size[axis] * spacing[axis] / max(spacing[axis], finest)
    return float(slices * np.prod(np.delete(size * spacing, axis)))


def otherSeriesOfStudy(volumeNode):
    """The `images` under the same study as this one in the subject hierarchy; empty if it is in no study."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    item = hierarchy.GetItemByDataNode(volumeNode)
    study = hierarchy.GetItemAncestorAtLevel(item, slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMLevelStudy())
    if not study:
        return []
    items = vtk.vtkIdList()
    hierarchy.GetItemChildren(study, items, True)
    nodes = [hierarchy.GetItemDataNode(items.GetId(i)) for i in range(items.GetNumberOfIds())]
    return [node for node in nodes if node is not None and node is not volumeNode and _isImage(node)]
