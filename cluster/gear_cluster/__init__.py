"""Launchers: local processes and Ray."""
