"""Weights to integer codes and scales."""
