"""Checkpoints: state by name, written in parts by all ranks, published whole, read by any."""
