"""Swin-Unet: encoder and decoder of shifted-window attention, without convolutions between them."""
