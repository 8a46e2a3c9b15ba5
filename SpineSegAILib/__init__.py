"""SpineSegAI: spine segmentation for radiologists and researchers. Research use only.

    from SpineSegAILib import Predictor, read_image

    result = Predictor("lumbar-mr-resenc").segment(read_image("spine.nii.gz"))
    result.write("spine.seg.nrrd")

Importing the package imports neither torch nor monai: names are looked up when they are used.
"""

from typing import TYPE_CHECKING

from .lazy import lazy_exports

if TYPE_CHECKING:
    from .correction import Click, refine
    from .hints import Anchor, Hints
    from .imaging import read_image
    from .inference import Predictor
    from .results import Segmentation, read_segmentation
else:
    __getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)

__version__ = "0.2.0"
