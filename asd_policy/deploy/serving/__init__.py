"""A policy server for robots whose GPU is elsewhere, and its client.

Both speak gRPC, by `planner.proto`. Importing `asd_policy` imports none of it.
"""

import os

from asd_policy.errors import BackendError

# gRPC's fork handlers break processes that it starts, such as environments or ffmpeg.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

try:
    from asd_policy.deploy.serving.client import RemotePlan, RemotePolicy
except ImportError as error:
    raise BackendError(f"serving needs {error.name}: pip install 'asd-policy[serve]'") from None

__all__ = ["RemotePlan", "RemotePolicy"]
