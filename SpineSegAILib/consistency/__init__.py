"""One anatomically possible sequence of levels out of a network's opinions.

`resolve_levels` turns `Evidence` into instances with names; `nearest_level_maps` carries the names to another grid.
The steps are pure functions: `shapes` finds, splits and merges pieces along the spine's axis (`column` holds them),
`likelihoods` weighs the evidence and the hints for every level, `sequence` names them, `naming` and `instances` put the
result together, `messages` tells the reader, `size` compares with an adult's.
"""

from .levels import resolve_levels
from .result import Instance, LevelResult, nearest_level_maps
from .settings import ConsistencySettings
from .size import relative_size

__all__ = ["ConsistencySettings", "Instance", "LevelResult", "nearest_level_maps", "relative_size", "resolve_levels"]
