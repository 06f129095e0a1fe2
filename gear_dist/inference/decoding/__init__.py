"""Decoding: a generator's weights and cache laid out for one token after another."""
