"""Autospeculative decoding: the sampler, its rounds, its drafts, its couplings, and what it learns."""
