"""Sections of the panel: behavior of widgets that Qt Designer laid out."""
