"""How far are a network's calls from what this machine's arithmetic and memory allow?"""

from collections.abc import Sequence
from typing import Any

from asd_policy._common.clock import clock_of
from asd_policy.evaluation.roofline import measure_ceiling
from asd_policy.networks.backends import make_backend
from asd_policy.policy.policy import Policy
from study_common import Results, console, markdown_table


def measure(name: str, policy: Policy, backends: Sequence[str], results: Results) -> dict[str, Any]:
    """Measure a policy's calls on each backend, and the device.

    Args:
        name: Of the checkpoint.
        policy: On any backend.
        backends: Specs of those to measure.
        results: Where the record is kept.
    """

    def run() -> dict[str, Any]:
        with console.status(f"calls of {name}"):
            running = [policy.with_backend(make_backend(backend)) for backend in backends]
            return measure_ceiling(running, 1, clock_of(policy.device)).record()

    return results.once(name, run)


def markdown(records: dict[str, dict[str, Any]]) -> str:
    """Format one table of all networks: the median of a call, and the share of it that the limit would need."""
    counts = [point["points"] for point in next(iter(records.values()))["backends"][0]["curve"]]
    header = ["checkpoint", "parameters", "backend", *(f"{count} point{'s' * (count > 1)}" for count in counts)]
    rows, rates = [], []
    for name, record in records.items():
        network = record["network"]
        for index, backend in enumerate(record["backends"]):
            cells = [f"{point['call_ms']:.3g} ({100 * point['of_limit']:.0f} %)" for point in backend["curve"]]
            owner = [f"`{name}`", f"{network['parameters'] / 1e6:.1f} M"] if index == 0 else ["", ""]
            rows.append([*owner, backend["backend"], *cells])
        first = network["work"][0]
        rates.append(
            f"`{name}`: {1e-9 * record['flops_per_second']['float32']:.0f} GFLOP/s and "
            f"{1e-9 * record['bytes_per_second']:.0f} GB/s measured; a point is {1e-6 * first['flops']:.0f} MFLOP, "
            f"the weights are {1e-6 * network['weight_bytes']:.0f} MB"
        )
    return markdown_table(header, rows) + "\n" + ".\n".join(rates) + ".\n"
