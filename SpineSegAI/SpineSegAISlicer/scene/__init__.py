"""Nodes of the scene: results, corrections, volumes, points and tables as MRML has them. Nothing here knows a widget."""
