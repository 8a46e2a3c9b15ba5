"""Nodes of the scene: results, corrections, volumes, points, tables. Nothing here knows a widget."""
