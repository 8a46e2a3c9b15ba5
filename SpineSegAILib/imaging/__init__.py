"""Images: reading, checking, and the way from any file to the canonical grid and exactly back."""

from typing import TYPE_CHECKING

from ..lazy import lazy_exports

if TYPE_CHECKING:
    from .checks import MODALITY_TAG, PICTURE, as_volume, check_image, doubts
    from .geometry import SAGITTAL_DIRECTION, Geometry, Plane, plane
    from .preprocessing import CanonicalVolume, Preprocessing, back_to_source, back_to_source_many
    from .reading import header_geometry, is_picture, of_picture, read_image
else:
    __getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
