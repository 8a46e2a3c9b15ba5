"""A user's corrections: of names, of pieces, and of voxels, by tools and by clicks."""

from typing import TYPE_CHECKING

from ..lazy import lazy_exports

if TYPE_CHECKING:
    from .clicks import Click, click_correction, load_click_method, refine
    from .levels import (
        COUNTINGS,
        L6_ID,
        T13_ID,
        choose_naming,
        delete,
        insert,
        merge,
        set_level,
        shift,
        swap,
        switch_counting,
    )
    from .splitting import split
    from .step import (
        Correction,
        Direction,
        LabeledStructures,
        Patch,
        apply_correction,
        array_of,
        remap_labels,
        structure_at,
    )
    from .voxels import AXES, LARGEST_SMOOTHING_MM, array_axis, interpolate, replace_inside, smooth
else:
    __getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
