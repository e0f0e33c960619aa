"""A policy server for robots whose GPU is elsewhere, and its client.

Both speak gRPC, by `planner.proto`. Importing `asd_policy` imports none of it.
"""

import os

from asd_policy._common.extras import needed
from asd_policy.errors import BackendError

# gRPC's fork handlers break processes that it starts, such as environments or ffmpeg.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

with needed("planning on a server", "client", BackendError):
    from asd_policy.deploy.serving.client import RemotePlan, RemotePolicy

__all__ = ["RemotePlan", "RemotePolicy"]
