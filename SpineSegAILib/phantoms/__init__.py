"""Synthetic spines and vessels with known labels."""
