"""Processes of Slicer's Python: found, started, asked, ended. Nothing here knows a widget or a node."""
