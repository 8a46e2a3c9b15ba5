"""Clicks that correct one structure: where it should be, and where not."""
