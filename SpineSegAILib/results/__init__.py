"""Results: segmentations and their files, measurements and pictures."""

from typing import TYPE_CHECKING

from ..lazy import lazy_exports

if TYPE_CHECKING:
    from .alternatives import Alternative
    from .checks import check_names, check_overlap
    from .files import check_sidecar, side_file, write_image
    from .ours import is_ours
    from .reading import read_segmentation
    from .segmentation import Segmentation, drop_unvalidated, require_structures
    from .whole import whole_vertebrae
else:
    __getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
