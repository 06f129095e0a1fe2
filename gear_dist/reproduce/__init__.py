"""The method's claim put to the test: its arms from one warm-up, measured as they train."""
