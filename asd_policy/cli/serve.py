"""`asd-policy serve`: plan for robots whose GPU is elsewhere, until a signal stops it."""

import math
import queue
import signal
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from asd_policy._common.extras import needed
from asd_policy.checkpoints import load_policy
from asd_policy.cli.common import DONE, INTERRUPTED, ChainOption, FixedCropOption, check_at_least, choose_samplers
from asd_policy.errors import BackendError, SpecError
from asd_policy.policy.law import CHECKPOINT

if TYPE_CHECKING:
    import grpc

STOPS = signal.SIGTERM, signal.SIGINT
"""Signals that end a server when the plans under way are finished."""
PACKAGES = "google.protobuf", "grpc", "grpc_health", "prometheus_client"
"""What a server needs beyond the other commands, which the extra `serve` installs."""


@dataclass(frozen=True)
class ServeCommand:
    """Plan for robots that ask over gRPC (asd_policy.deploy.serving.RemotePolicy), until SIGTERM or Ctrl-C."""

    policy: str
    """Checkpoint: a path, or a Hugging Face Hub id such as owner/name or owner/name@revision."""
    host: str = "127.0.0.1"
    """Name or address of the interface to listen on; 0.0.0.0 for all."""
    port: int = 8470
    """Port; 0 for one that is free."""
    sampler: str | None = None
    """Sampler spec; by default asd, or the checkpoint's own DDIM where that runs."""
    backend: str | None = None
    """Spec of what runs the network, as for eval; the checkpoint's own by default."""
    chain: ChainOption = CHECKPOINT
    fixed_crop: FixedCropOption = False
    device: str = "cpu"
    """Torch device to plan on."""
    max_batch: int = 8
    """Robots planned for at once."""
    max_queue: int = 32
    """Requests that may wait, beside those in work; more are refused."""
    max_clients: int = 64
    """Robots with a place; more are refused."""
    max_per_peer: int | None = None
    """Robots with a place that share a connection, as behind a gateway, or a host other than this one; by default a
    quarter and half of max-clients."""
    lease: float = 60.0
    """How long a robot keeps its place without a plan [s]."""
    tls_cert: Path | None = None
    """The server's certificate, and those that vouch for it (PEM), for TLS."""
    tls_key: Path | None = None
    """The certificate's private key (PEM)."""
    token_file: Path | None = None
    """File with the token that every call must carry."""
    metrics_port: int | None = None
    """Port for Prometheus, on the same interface."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self, console: Console) -> int:
        """Serve; return the exit status: 0 after SIGTERM, 130 after Ctrl-C."""
        for name in ("max_batch", "max_queue", "max_clients", "max_per_peer"):
            if getattr(self, name) is not None:
                check_at_least(name.replace("_", "-"), getattr(self, name), 1)
        for name in ("port", "metrics_port"):
            check_port(name.replace("_", "-"), getattr(self, name))
        if not 0 < self.lease < math.inf:
            raise SpecError(f"--lease {self.lease:g} is not a time above 0 s")
        with needed("serve", "serve", BackendError):
            for package in PACKAGES:
                import_module(package)
            from prometheus_client import start_http_server

            from asd_policy.deploy.serving.server import Limits, PolicyServer
            from asd_policy.deploy.serving.tokens import read_token
        token = None if self.token_file is None else read_token(self.token_file)
        credentials = self._credentials()
        policy = load_policy(self.policy, self.sampler, self.device, self.backend, self.chain, self.fixed_crop)
        if self.sampler is None:
            policy = policy.with_sampler(choose_samplers(policy, ())[-1])
        policy.check()
        limits = Limits(self.max_batch, self.max_queue, self.max_clients, self.lease, self.max_per_peer)
        server = PolicyServer(policy, limits, token, credentials)
        waiting = "planning for batches of every size before it listens"
        if not console.is_terminal:  # in a log nothing turns: a line says what is waited for
            console.print(waiting)
        if self.metrics_port is not None:
            try:
                metrics, _ = start_http_server(self.metrics_port, self.host, server.metrics.registry)
            except OSError as error:
                raise SpecError(f"--metrics-port {self.metrics_port} on {self.host}: {error.strerror}") from None
            console.print(f"metrics on {self.host}:{metrics.server_port}", soft_wrap=True, highlight=False)
        stops: queue.SimpleQueue[int] = queue.SimpleQueue()
        with console.status(waiting):
            port = server.start(self.host, self.port)
        before = {number: signal.signal(number, lambda it, _: stops.put(it)) for number in STOPS}
        console.print(f"serving {self.policy} on {self.host}:{port}", soft_wrap=True, highlight=False)
        for warning in self._warnings():
            console.print(f"warning: {warning}", soft_wrap=True)
        number = stops.get()
        for each, handler in before.items():  # once more ends at once
            signal.signal(each, handler)
        console.print("stopping: plans under way are finished")
        server.stop()
        return INTERRUPTED if number == signal.SIGINT else DONE

    def _credentials(self) -> "grpc.ServerCredentials | None":
        """Read what TLS needs; None where it was not asked for."""
        if self.tls_cert is None or self.tls_key is None:
            if self.tls_cert is not None or self.tls_key is not None:
                raise SpecError("--tls-cert and --tls-key go together; one of them is missing")
            return None
        import grpc

        return grpc.ssl_server_credentials([(self.tls_key.read_bytes(), self.tls_cert.read_bytes())])

    def _warnings(self) -> list[str]:
        """List what an operator should know."""
        from asd_policy.deploy.serving.wire import is_loopback

        if is_loopback(self.host):
            return []
        if self.token_file is None:
            return [f"whoever reaches {self.host} can have plans made: there is no --token-file"]
        return [] if self.tls_cert else ["the token and all else is sent in plain text: there is no --tls-cert"]


def check_port(name: str, port: int | None) -> None:
    """Refuse a port that is out of range.

    Raises:
        SpecError: It is.
    """
    if port is not None and not 0 <= port < 2**16:
        raise SpecError(f"--{name} {port} is not in 0 … {2**16 - 1}")
