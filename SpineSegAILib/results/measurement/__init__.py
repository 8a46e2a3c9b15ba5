"""Sizes and positions of segmented structures, in millimeters, milliliters and degrees.

Everything is measured on the label image alone, in the patient's proportions: the grid may be oblique and its slices
thick. A value is given only where it can be trusted; else it is blank, and the row's notes say why: the image's border
cuts the structure, its outline is damaged, its own error is too large, or anatomy does not allow the value.

`definitions` says what is measured, `table` puts it together, `plausibility` holds the limits.
"""

from typing import TYPE_CHECKING

from ...lazy import lazy_exports

if TYPE_CHECKING:
    from .definitions import (
        COLUMNS,
        EVERY,
        FILM,
        FILM_COLUMNS,
        MEASUREMENTS,
        SHORT_COLUMNS,
        SPINE,
        SPINE_MEASUREMENTS,
        Measurement,
    )
    from .export import check_table_file, decimals, short_columns, write_measurements
    from .plausibility import LIMITS, Limit
    from .rows import Row
    from .scoliosis import CURVE, Curve, FilmSpine, is_film
    from .table import measure, measure_all, sacrum_is_broken
else:
    __getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
