"""`python -m asd_policy.cli`, the same as `asd-policy`."""

from asd_policy.cli import main

main()
