"""A diffusion policy in closed loop, and live policies of other libraries."""

from asd_policy.policy.policy import Horizons, Policy

__all__ = ["Horizons", "Policy"]
