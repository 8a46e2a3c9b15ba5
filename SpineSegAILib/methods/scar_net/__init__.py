"""SCAR-Net: a recognition network finds keypoints and steers a segmentation network. And its ancestor, DGMSNet."""
