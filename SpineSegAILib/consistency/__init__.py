"""One anatomically possible sequence of levels out of a network's opinions.

`resolve_levels` turns `Evidence` into instances with names; `nearest_level_maps` carries the names to another grid.
The steps are pure functions: `shapes` finds, splits and merges pieces along the spine's axis, `sequence` names them.
"""

from .levels import Instance, LevelResult, nearest_level_maps, resolve_levels
from .settings import ConsistencySettings

__all__ = ["ConsistencySettings", "Instance", "LevelResult", "nearest_level_maps", "resolve_levels"]
