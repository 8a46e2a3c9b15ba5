"""The choices of the panel as they are saved with the scene."""

from typing import Annotated

import slicer
from slicer import vtkMRMLMarkupsFiducialNode, vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper


@parameterNodeWrapper
class SpineSegAIParameterNode:
    """Typed access to the module's parameter node.

    inputVolume - what to segment.
    outputSegmentation - where the segments go; a new node if not set.
    method - id in the catalog; empty for the default.
    checkpoint - name, or path of a file from elsewhere; empty for the first one of the method.
    device - auto, cpu, cuda or mps.
    topLevel, bottomLevel - structure ids of the ends of the visible range; 0 if not given.
    keypoints - centers of structures, named after them; for methods that take keypoints.
    samples, steps, preview - of methods that sample: masks drawn and steps of each, 0 for as many as the checkpoint was
        made for; or only what they would start from.
    priorSegmentation - what such a method starts from; its own mask if not set.
    includeUnvalidated - also segment experimental structures, which are not validated on real cases.
    opacity - of the segments.
    """

    inputVolume: vtkMRMLScalarVolumeNode
    outputSegmentation: vtkMRMLSegmentationNode
    method: str = ""
    checkpoint: str = ""
    device: str = "auto"
    topLevel: int = 0
    bottomLevel: int = 0
    samples: Annotated[int, WithinRange(0, 50)] = 0
    steps: Annotated[int, WithinRange(0, 1000)] = 0
    preview: bool = False
    keypoints: vtkMRMLMarkupsFiducialNode
    priorSegmentation: vtkMRMLSegmentationNode
    includeUnvalidated: bool = False
    opacity: Annotated[float, WithinRange(0.0, 1.0)] = 0.6


def typedParameterNode(node):
    """A `SpineSegAIParameterNode` of a parameter node. It is kept as long as the node is in the scene.

    A wrapper leaves observers on its node, which end Slicer once garbage collection has cleared them. So wrappers are
    kept, in a place that outlives a reload of this package.
    """
    kept = vars(slicer).setdefault("spineSegAIParameterNodes", [])
    kept[:] = [wrapper for wrapper in kept if wrapper.parameterNode.GetScene() is not None]
    kept.append(SpineSegAIParameterNode(node))
    return kept[-1]
