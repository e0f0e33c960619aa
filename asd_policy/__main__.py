"""`python -m asd_policy`, the same as `asd-policy`."""

from asd_policy.cli import main

main()
