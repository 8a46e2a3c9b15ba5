"""From an image to a segmentation: windows, passes, calibration, and the way back to the image's voxels."""

from typing import TYPE_CHECKING

from ..lazy import lazy_exports

if TYPE_CHECKING:
    from .device import choose_device
    from .predictor import OPTIONS, SCALES, USUAL_SIZES, Predictor
    from .restore import channels_without_kind, labels_on_source
else:
    __getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
