"""Residual-encoder U-Net with a kind head and a rank head: the default method."""
