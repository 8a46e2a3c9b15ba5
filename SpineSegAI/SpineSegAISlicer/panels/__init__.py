"""Sections of the panel: behaviour of widgets that Qt Designer laid out."""
