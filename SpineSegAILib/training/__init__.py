"""Training: configuration, data, the trainer and its run directory."""
