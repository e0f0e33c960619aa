"""Counters of a server, for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.plans = Counter("asd_policy_plans", "Plans made.", registry=self.registry)
        self.rounds = Counter("asd_policy_rounds", "Sequential network calls of all plans.", registry=self.registry)
        self.latency = Histogram(
            "asd_policy_latency_seconds",
            "From a request's arrival to its plan.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batch = Histogram(
            "asd_policy_batch", "Robots planned for at once.", buckets=_BATCHES, registry=self.registry
        )
        self.refusals = Counter(
            "asd_policy_refusals", "Calls refused, by gRPC's status.", ["status"], registry=self.registry
        )
        self.dropped = Counter(
            "asd_policy_dropped", "Requests whose client had gone before they were planned.", registry=self.registry
        )

    def watch(self, queue: Callable[[], int], sessions: Callable[[], int]) -> None:
        """Read the lengths of queue and sessions at each scrape."""
        Gauge("asd_policy_queue", "Requests that wait.", registry=self.registry).set_function(queue)
        Gauge("asd_policy_sessions", "Robots with a place.", registry=self.registry).set_function(sessions)
