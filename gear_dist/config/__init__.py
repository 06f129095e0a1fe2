"""Every setting of a run: what it may be, where it is read, how it is documented."""
