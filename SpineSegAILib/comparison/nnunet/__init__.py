"""nnU-Net v2 itself as a row of a comparison: its own commands, in processes of their own, on the same cases."""
