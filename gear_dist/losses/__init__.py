"""Losses of the training step."""
