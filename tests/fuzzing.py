"""How much the fuzz tests try: little in every run of the suite, more by scripts/maintenance/fuzz.py."""

import os

SCALE = int(os.environ.get("FUZZ_SCALE", "1"))
"""Times as many damaged inputs as in a run of the whole suite."""
