"""The effect “Spine click” of Slicer's Segment Editor."""
