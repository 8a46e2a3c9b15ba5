"""Verdiff-Net: a conditional U-Net gives a prior, a diffusion U-Net refines it, samples tell how sure it is."""
