"""Native networks whose state dicts have the keys of the public checkpoint formats."""
