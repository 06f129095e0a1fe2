"""Discriminators and their regularisation."""
