"""SCAR-Net: a recognition network finds key points and steers a segmentation network. And its ancestor, DGMSNet."""
