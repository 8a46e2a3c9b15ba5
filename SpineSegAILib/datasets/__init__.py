"""Datasets: what is in them, as one manifest."""

from .manifest import Case, Manifest, read_cases, read_label, read_manifest

__all__ = ["Case", "Manifest", "read_cases", "read_label", "read_manifest"]
