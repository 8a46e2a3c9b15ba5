"""Images: reading, checking, and the way from any file to the canonical grid and exactly back."""

from typing import TYPE_CHECKING

from ..lazy import lazy_exports

if TYPE_CHECKING:
    from .checks import as_volume, check_image, plausibility_warnings, refuse_labels, whole_numbers
    from .finding import find_images
    from .geometry import SAGITTAL_DIRECTION, Geometry, Plane, as_it_lies, plane, upright
    from .headers import check_inline
    from .preprocessing import AIR, CanonicalVolume, Preprocessing, back_to_source, resample_to_source
    from .reading import read_file, read_geometry, read_image
    from .tags import (
        MODALITY_TAG,
        ORIENTATION_UNKNOWN_TAG,
        PICTURE,
        SCALE_UNKNOWN_TAG,
        carry_tags,
        orientation_is_known,
        scale_is_known,
    )
else:
    __getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
