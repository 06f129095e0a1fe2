"""Trained networks in use: weights files, sampling, reconstruction; no engines."""
