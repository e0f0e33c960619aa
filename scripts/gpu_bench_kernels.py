"""How many kernels does a round launch, and how many of them are the network's? Counted by PyTorch's profiler.

A CUDA graph is one launch, and the profiler gives its kernels the number of that launch. So the kernels of a round are
those of the graph that a plan launches most often; those of the network are counted apart, in a recording of one call
on as many points; what is left is ours. On a CPU, operators are counted in the place of kernels, and the rounds of a
plan share all of its operators.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from asd_policy.evaluation.roofline import network_call, replayed
from asd_policy.policy.policy import Policy

# What PyTorch asks for where CUDA graphs are profiled: its profiler crashes when it is begun again after a teardown.
WITH_GRAPHS = {"TEARDOWN_CUPTI": "0", "DISABLE_CUPTI_LAZY_REINIT": "1"}
_COPIES = ("Memcpy", "Memset")
_LAUNCH = "GraphLaunch"
"""In the names of the runtime's and of the driver's calls that launch a graph."""
MOST_NAMES = 20
"""Names of our kernels that are kept, those of most launches first."""


@dataclass(frozen=True)
class Event:
    """A kernel, or a call that launches some."""

    name: str
    launch: int
    """Number of the call that launched it, and of the call itself."""
    on_device: bool


def events(work: Callable[[], object], device: torch.device) -> list[Event]:
    """Run work under the profiler."""
    gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=activities) as profiled:
        work()
        if gpu:
            torch.cuda.synchronize(device)
    inner: Any = profiled.profiler
    found = inner.kineto_results.events()
    if not gpu:
        return [Event(each.name(), 0, True) for each in found if each.name().startswith("aten::")]
    return [
        Event(each.name(), each.correlation_id(), str(each.device_type()).endswith("CUDA"))
        for each in found
        if not each.is_user_annotation()
    ]


def kernels(seen: Iterable[Event]) -> dict[int, Counter[str]]:
    """Count kernels by name, copies apart, of each launch."""
    found: dict[int, Counter[str]] = {}
    for event in seen:
        if event.on_device and not event.name.startswith(_COPIES):
            found.setdefault(event.launch, Counter())[event.name] += 1
    return found


def of_round(seen: Iterable[Event], rounds: int) -> Counter[str]:
    """Count the kernels of a round by name.

    Args:
        seen: The events of a plan.
        rounds: Of the plan; where no graph is launched, they share its kernels.
    """
    seen = list(seen)
    by_launch = kernels(seen)
    graphs = [by_launch[event.launch] for event in seen if _LAUNCH in event.name and event.launch in by_launch]
    if not graphs:
        total = sum(by_launch.values(), Counter())
        return Counter({name: -(-count // rounds) for name, count in total.items()})
    # Of launches that are equally often, those of more kernels: the start of a plan launches few.
    counted = Counter(tuple(sorted(each.items())) for each in graphs)
    often, _ = max(counted.items(), key=lambda pair: (pair[1], sum(count for _, count in pair[0])))
    return Counter(dict(often))


def count(policy: Policy, plan: Callable[[], Any]) -> dict[str, Any]:
    """Count the kernels of a plan, of a round, and of the network in it.

    Args:
        policy: That plans, at batch 1.
        plan: Makes a plan and returns its stats.
    """
    plan()
    made: list[Any] = []
    seen = events(lambda: made.append(plan()), policy.device)
    stats = made[0]
    round_ = of_round(seen, max(stats.rounds))
    with torch.inference_mode():
        call = replayed(policy.denoiser, network_call(policy.denoiser, policy, stats.window))
        call()
        network = sum(kernels(events(call, policy.device)).values(), Counter())
    ours = round_ - network
    return {
        "unit": "kernels" if policy.device.type == "cuda" else "operators",
        "points": stats.window,
        "rounds": max(stats.rounds),
        "plan": sum(sum(each.values()) for each in kernels(seen).values()),
        "copies": sum(event.on_device and event.name.startswith(_COPIES) for event in seen),
        "graph_launches": sum(_LAUNCH in event.name for event in seen),
        "round": sum(round_.values()),
        "network": sum(network.values()),
        "ours": sum(round_.values()) - sum(network.values()),
        "our_names": dict(ours.most_common(MOST_NAMES)),
    }
