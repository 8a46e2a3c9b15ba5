"""BiSeNet: a shallow path for detail, a deep one for context."""
