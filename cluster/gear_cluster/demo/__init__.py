"""The demonstration that `make train` runs, and its embedded object store."""
