"""A policy server for robots whose GPU is elsewhere, and its client.

Both speak gRPC, as `planner.proto` says. Importing `asd_policy` imports none of it.
"""

from asd_policy.errors import BackendError

try:
    from asd_policy.serving.client import RemotePlan, RemotePolicy
except ImportError as error:
    raise BackendError(f"serving needs {error.name}: pip install 'asd-policy[serve]'") from None

__all__ = ["RemotePlan", "RemotePolicy"]
