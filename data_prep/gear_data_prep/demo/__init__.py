"""The procedural corpus of the demonstration."""
