"""The command line `asd-policy`: `app.py` parses, and there is one file for each command."""

from asd_policy.cli.app import BAD_INPUT, main, run

__all__ = ["BAD_INPUT", "main", "run"]
