"""A diffusion policy in closed loop, and live policies of other libraries."""

from asd_policy.policy.observation import ENVIRONMENT_KEYS, ENVIRONMENT_STATE, OBS, STATE
from asd_policy.policy.plan import Horizons
from asd_policy.policy.policy import Policy
from asd_policy.policy.sensors import SensorEncoder

__all__ = ["ENVIRONMENT_KEYS", "ENVIRONMENT_STATE", "OBS", "STATE", "Horizons", "Policy", "SensorEncoder"]
