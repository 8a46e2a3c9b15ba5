"""Structures and levels, label schemes, terminology: the one source of names, ids, codes and colors."""

from typing import TYPE_CHECKING

from ..lazy import lazy_exports

if TYPE_CHECKING:
    from .schemes import SCHEMES, VALUE_MAPS, LabelScheme, extended, scheme
    from .structures import (
        ARTERY_ID,
        BASIC_KINDS,
        BUILT_IN,
        CANAL_ID,
        CORD_ID,
        CUSTOM_IDS,
        DISC_ID,
        GENERIC_IDS,
        KINDS,
        L6_ID,
        LATERALITY,
        POSTERIOR_ID,
        SACRUM_ID,
        SACRUM_RANK,
        STRUCTURES,
        T13_ID,
        VEIN_ID,
        VERTEBRA_ID,
        Code,
        Extent,
        Kind,
        Structure,
        code,
        counterpart,
        custom_structure,
        disc_below,
        disc_name,
        display_name,
        laterality,
        level_chain,
        level_of,
        next_below,
        order_of,
        other_side,
        posterior_of,
        ranks,
        short_name,
        sorted_ids,
        structure,
        vertebra_above,
    )
else:
    __getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
