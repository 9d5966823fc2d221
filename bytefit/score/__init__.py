"""Bits per byte: protocols, compression with the model, the proof."""
