"""Lossless speculative decoding as a routing problem."""
