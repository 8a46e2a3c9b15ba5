"""Architectures of segmentation-models-pytorch, each with one softmax output per structure."""
