"""The architectures that the papers compare with, from MONAI, each with one softmax output per structure."""
