"""ATM-Net: Swin UNETR whose decoder attends to a sentence about the anatomy (arXiv 2504.03476)."""
