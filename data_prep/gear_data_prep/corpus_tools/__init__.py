"""A finished corpus: verified, repaired, counted, looked at."""
