"""The segmentation methods. `catalog` describes them without torch; `build_method` makes one."""
