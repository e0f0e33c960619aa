"""Rounds of `asd` in a few kernels for a GPU."""
