"""bytefit: train the best language model that fits in N bytes, and prove it."""

__version__ = "0.1.0"
