"""The training loop under a clock, checkpoints, metrics."""
