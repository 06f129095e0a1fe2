"""Corpora: sharding and corpus tools, without torch."""
