"""Sharded corpora to batches, in an order that any number of workers shares."""
