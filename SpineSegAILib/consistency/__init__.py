"""One anatomically possible sequence of levels out of a network's opinions.

`resolve_levels` turns `Evidence` into instances with names; `nearest_level_maps` carries the names to another grid.
The steps are pure functions: `shapes` finds, splits and merges pieces along the spine's axis (`column` holds them),
`opinions` weighs the evidence of each for every level, `sequence` names them, `words` tells the reader, `size` compares
with an adult's.
"""

from .levels import resolve_levels
from .result import Instance, LevelResult, nearest_level_maps
from .settings import ConsistencySettings
from .size import relative_size

__all__ = ["ConsistencySettings", "Instance", "LevelResult", "nearest_level_maps", "relative_size", "resolve_levels"]
