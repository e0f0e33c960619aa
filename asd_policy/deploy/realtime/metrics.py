"""A control loop's telemetry for Prometheus, over HTTP."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from asd_policy._common.extras import needed
from asd_policy.deploy.realtime.telemetry import COUNTS, STATES, Telemetry
from asd_policy.errors import LoopError

if TYPE_CHECKING:
    from prometheus_client import Metric

_HELP = {
    "ticks": "Deadlines at which the loop acted.",
    "missed": "Deadlines that it let pass.",
    "blind": "Ticks whose observation was not there in time.",
    "stale": "Ticks without a planned action.",
    "safe": "Safe actions written.",
    "faults": "Times it went over to safe actions.",
    "plans": "Plans executed.",
    "cut": "Plans that a deadline's fallback has finished.",
    "dropped": "Plans thrown away.",
    "episodes": "Episodes that ended.",
}
_QUANTILES = {"0.5": "p50", "0.95": "p95", "0.99": "p99", "1": "max"}


class MetricsServer:
    """Answers every scrape with the telemetry of that instant, from a registry of its own."""

    def __init__(self, telemetry: Callable[[], Telemetry], port: int, host: str) -> None:
        """Listen.

        Args:
            telemetry: Called at each scrape.
            port: To listen on, 0 for any free one.
            host: Address to listen on.

        Raises:
            LoopError: prometheus-client is missing, or the port cannot be had.
        """
        with needed("the metrics endpoint", "realtime", LoopError):
            from prometheus_client import CollectorRegistry, start_http_server
        registry = CollectorRegistry()
        registry.register(_Collector(telemetry))
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise LoopError(f"metrics_port={port} on {host} cannot be had: {error.strerror or error}") from None
        self.port = int(self._server.server_port)
        """The port."""

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Collector:
    def __init__(self, telemetry: Callable[[], Telemetry]) -> None:
        self._telemetry = telemetry

    def collect(self) -> "Iterator[Metric]":
        """Yield the metrics of this instant."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        telemetry = self._telemetry()
        for name in COUNTS:
            yield CounterMetricFamily(f"asd_policy_loop_{name}", _HELP[name], value=getattr(telemetry, name))
        state = GaugeMetricFamily("asd_policy_loop_state", "1 for the state that the loop is in.", labels=["state"])
        for each in STATES:
            state.add_metric([each], each == telemetry.state)
        yield state
        for name, values, units in (
            ("period_seconds", telemetry.period_ms, 1e3),
            ("lateness_seconds", telemetry.lateness_ms, 1e3),
            ("plan_seconds", telemetry.plan_ms, 1e3),
            ("seam", telemetry.seam, 1.0),
        ):
            gauge = GaugeMetricFamily(f"asd_policy_loop_{name}", "Quantiles of the last values.", labels=["quantile"])
            if values is not None:
                for quantile, field in _QUANTILES.items():
                    gauge.add_metric([quantile], getattr(values, field) / units)
            yield gauge
        if telemetry.rounds_mean is not None:
            yield GaugeMetricFamily(
                "asd_policy_loop_rounds", "Mean rounds of the last plans.", value=telemetry.rounds_mean
            )

    def describe(self) -> "list[Metric]":
        """Describe nothing in advance: the registry has nothing else."""
        return []
