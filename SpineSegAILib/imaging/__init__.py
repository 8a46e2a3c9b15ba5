"""Images: reading, checking, and the way from any file to the canonical grid and exactly back."""

from typing import TYPE_CHECKING

from ..lazy import lazy_exports

if TYPE_CHECKING:
    from .checks import MODALITY_TAG, PICTURE, as_volume, check_image, known_modality, plausibility_warnings
    from .geometry import SAGITTAL_DIRECTION, Geometry, Plane, plane
    from .preprocessing import CanonicalVolume, Preprocessing, back_to_source, resample_to_source
    from .reading import gray_picture, is_picture, read_geometry, read_image
else:
    __getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
