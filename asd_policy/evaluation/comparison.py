"""Compare two sets of episodes: of two samplers of one run, or of one sampler in two runs.

Every difference is second minus first, and every ratio second over first.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, Required, TypedDict

import numpy as np

from asd_policy._common.shapes import LARGEST, Count, Share, check_shape
from asd_policy._common.statistics import (
    Floats,
    Interval,
    cluster_ratio,
    paired_bootstrap,
    paired_difference,
    unpaired_difference,
    welch_difference,
)
from asd_policy.errors import RunError
from asd_policy.evaluation.equivalence import LEVEL, equivalence_power, tost_paired, tost_unpaired
from asd_policy.evaluation.rollout.episodes import Episode
from asd_policy.evaluation.rollout.journal import RESULTS, find_run
from asd_policy.policy.plan import PlanRecord

VERSION = 1
"""Of results.json that can be read."""
MARGIN = 0.1
"""Difference of success rates that would not matter, by default."""

_MEASURED_WITH = ("device", "backend", "dtype", "envs", "workers")
"""What latencies depend on, beside the sampler, in results.json."""
RATIOS = ("rounds_ratio", "latency_ratio")

Pairs = Sequence[tuple[Episode, Episode]]


def pair(first: Sequence[Episode], second: Sequence[Episode]) -> list[tuple[Episode, Episode]]:
    """Pair the episodes of equal index: they had equal seeds."""
    counterparts = {episode.index: episode for episode in first}
    return [(counterparts[episode.index], episode) for episode in second if episode.index in counterparts]


def reward_difference(pairs: Pairs) -> dict[str, Any] | None:
    """Average the difference of the returns, with its 95 % interval, over pairs in which neither episode failed."""
    finished = [(a.total_reward, b.total_reward) for a, b in pairs if a.error is None and b.error is None]
    returns = [(first, second) for first, second in finished if first is not None and second is not None]
    if not returns:
        return None
    first, second = zip(*returns, strict=True)
    mean, interval = paired_bootstrap(second, first)
    return {"mean": mean, "ci95": interval}


def equivalence_result(pairs: Pairs, margin: float) -> dict[str, Any]:
    """Test whether two success rates are equal within a margin, from paired episodes (TOST).

    The power is that of so many pairs at equal rates. Its discordance is estimated by Laplace's rule of succession: to
    see no pair that differs does not mean that there is none.

    Args:
        pairs: At least one.
        margin: Of the difference, between 0 and 1.
    """
    first, second = ([episode.success for episode in side] for side in zip(*pairs, strict=True))
    differing = sum(a != b for a, b in zip(first, second, strict=True))
    discordance = (differing + 1) / (len(pairs) + 2)
    power = equivalence_power(len(pairs), discordance, margin)
    return _verdict(margin, tost_paired(first, second, margin), power, discordance)


def _verdict(margin: float, p_value: float, power: float | None, discordance: float | None) -> dict[str, Any]:
    return {
        "margin": margin,
        "p_value": min(p_value, 1.0),
        "equivalent": p_value <= LEVEL,
        "power": power,
        "discordance": discordance,
    }


class _Estimate(TypedDict):
    mean: float
    ci95: tuple[float, float] | None


class _Verdict(TypedDict):
    margin: Share
    p_value: Share
    equivalent: bool
    power: Share | None
    discordance: NotRequired[Share | None]


class _Latency(TypedDict, total=False):
    mean: Required[float]
    p50: float
    p95: float
    p99: float
    max: float


class _Timing(TypedDict, total=False):
    counted_latency_ms: _Latency | None
    delay_steps_mean: float | None
    stale_fraction: float
    missed_fraction: Share | None
    control_frequency_hz: float
    jitter_ms: float | None
    seam_mean: float | None


class _Sampler(TypedDict, total=False):
    """A sampler of results.json: the fields that this package reads again."""

    spec: Required[str]
    episodes: Annotated[int, (1, LARGEST)]
    success_rate: Share
    return_mean: float | None
    return_ci95: tuple[float, float] | None
    plans: Count
    rounds_mean: float | None
    latency_ms: _Latency | None
    ran: str
    exact: bool
    steps: Annotated[int, (1, LARGEST)]
    failed: Count
    success_ci95: tuple[Share, Share]
    equivalence: _Verdict | None
    reward_difference: _Estimate | None
    modes: dict[str, Count]
    mode_entropy: float | None
    window: Annotated[int, (1, LARGEST)] | None
    nfe_mean: float | None
    algorithmic_speedup: float | None
    wall_clock_speedup: float | None
    overhead_fraction: float | None
    acceptance_by_step: list[Share | None] | None
    cut_plans: Count
    timing: _Timing | None


class _Results(TypedDict, total=False):
    """A results.json of eval: the fields that this package reads again."""

    env: Required[str]
    seed: Required[Any]  # of any size, and nothing is computed with it
    episodes: Required[Count]
    samplers: Required[list[_Sampler]]
    policy: str
    chain: str
    reference: str
    device: str
    torch_device: str
    backend: str
    dtype: str
    package: str
    commit: str | None
    torch: str
    started: str
    envs: Count
    max_steps: Count | None
    workers: Count
    complete: bool
    interrupted: bool
    clock: str
    hz: float | None
    env_hz: float | None
    latency: str | None
    latency_sha256: str | None
    continuity: str | None
    deadline_ms: float | None
    fallback: str | None
    episodes_per_second: float | None
    environment_steps_per_second: float | None


_COSTS = ("rounds_mean", "latency_ms")
"""Fields that a sampler with plans must have."""


@dataclass(frozen=True)
class Run:
    """What an evaluation left in its folder."""

    path: Path
    """Its results.json."""
    results: dict[str, Any]
    """Contents of that file."""
    episodes: tuple[Episode, ...] | None
    """Of its journal; None where there is none beside it."""

    @property
    def samplers(self) -> dict[str, dict[str, Any]]:
        """The results of each sampler by its spec."""
        return {result["spec"]: result for result in self.results["samplers"]}

    def of(self, spec: str) -> list[Episode] | None:
        """List the episodes of a sampler that its results count; None without a journal."""
        if self.episodes is None:
            return None
        count = self.results["episodes"]
        return sorted((e for e in self.episodes if e.spec == spec and e.index < count), key=lambda e: e.index)


def read_results(path: Path) -> tuple[Path, dict[str, Any]]:
    """Read the results.json of a command; return its path, and what is in it.

    Args:
        path: The file, or its folder.

    Raises:
        RunError: It is no results.json of `asd-policy`, or of another version.
    """
    file = path / RESULTS if path.is_dir() else path
    try:
        results = json.loads(file.read_text())
        version, _ = results["version"], results["command"]
    except OSError as error:
        raise RunError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise RunError(f"{file} is no {RESULTS} of asd-policy") from None
    if version != VERSION:
        raise RunError(f"{file} has version {version!r}; version {VERSION} can be read")
    return file, results


def load_run(path: Path) -> Run:
    """Read what an evaluation left in its folder.

    Args:
        path: Its results.json, or its folder.

    Raises:
        RunError: It is no results.json of `asd-policy eval`, or of another version; or the journal is damaged.
    """
    file, results = read_results(path)
    if results["command"] != "eval":
        raise RunError(f"{file} is of asd-policy {results['command']}; those of asd-policy eval can be read")
    missing = [key for key in ("env", "seed", "episodes", "samplers") if key not in results]
    if missing:
        raise RunError(f"{file} is no {RESULTS} of asd-policy: it has no {missing[0]!r}")
    try:
        check_shape(results, _Results, "results")
        for sampler in results["samplers"]:
            _check_costs(sampler)
    except ValueError as error:
        raise RunError(f"{file} is damaged: {error}") from None
    found = find_run(file.parent)
    return Run(file, results, None if found is None else found.episodes)


def kept_episodes(folder: Path) -> int:
    """Count the episodes of each sampler in the results of a run that is complete; 0 where there is none."""
    if not (folder / RESULTS).exists():
        return 0
    results = load_run(folder).results
    return results["episodes"] if results.get("complete") else 0


def _check_costs(sampler: dict[str, Any]) -> None:
    """Refuse a sampler whose plans cost nothing.

    Raises:
        ValueError: It did.
    """
    if not sampler.get("plans") or not sampler.keys() >= set(_COSTS):
        return
    absent = [key for key in _COSTS if sampler[key] is None]
    if absent or not 0 < sampler["rounds_mean"] or not 0 < sampler["latency_ms"]["mean"]:
        raise ValueError(f"{sampler['spec']} has {sampler['plans']} plans, and of their {' or '.join(_COSTS)} nothing")


def compare_runs(first: Run, second: Run, margin: float) -> dict[str, Any]:
    """Compare two runs: build what `asd-policy compare --json` prints, for each sampler that both have.

    Args:
        first: The run that is subtracted, or divided by.
        second: The other.
        margin: Difference of success rates that would not matter, between 0 and 1.

    Raises:
        RunError: The runs are of different environments, share no sampler, or lack what is compared.
    """
    if first.results["env"] != second.results["env"]:
        raise RunError(
            f"{first.path} is of {first.results['env']}, {second.path} of {second.results['env']}: "
            "only runs in the same environment can be compared"
        )
    specs = [spec for spec in first.samplers if spec in second.samplers]
    if not specs:
        raise RunError(
            f"no sampler is in both: {first.path} has {', '.join(first.samplers) or 'none'}; "
            f"{second.path} has {', '.join(second.samplers) or 'none'}"
        )
    why = _why_unpaired(first, second)
    try:
        samplers = [
            {"spec": spec, "exact": all(run.samplers[spec].get("exact", True) for run in (first, second))}
            | _compare_sampler(first, second, spec, why is None, margin)
            for spec in specs
        ]
    except KeyError as error:
        raise RunError(f"{first.path} or {second.path} lacks {error}, which an asd-policy eval writes") from error
    return {
        "version": VERSION,
        "command": "compare",
        "first": str(first.path),
        "second": str(second.path),
        "env": first.results["env"],
        "paired": why is None,
        "why_unpaired": why,
        "differing": _differing(first, second),
        "samplers": samplers,
    }


def _differing(first: Run, second: Run) -> list[str]:
    """Say what else than samplers differs that latencies depend on; runs of old versions may not name all of it."""
    found = []
    for key in _MEASURED_WITH:
        a, b = first.results.get(key), second.results.get(key)
        if a is None or b is None or a == b:
            continue
        if key == "device":  # its parts are the processor, its CPUs and the threads
            pairs = list(zip(a.split(", "), b.split(", "), strict=False))
            a, b = (", ".join(side) for side in zip(*((x, y) for x, y in pairs if x != y) or [(a, b)], strict=True))
        found.append(f"{key} {a} in the first run, {b} in the second")
    return found


def _why_unpaired(first: Run, second: Run) -> str | None:
    """Explain why episodes of equal index are no pairs; None where they are."""
    seeds = [run.results["seed"] for run in (first, second)]
    if seeds[0] != seeds[1]:
        return f"the seeds are {seeds[0]} and {seeds[1]}"
    missing = [str(run.path.parent) for run in (first, second) if run.episodes is None]
    return f"no episodes.jsonl in {' and '.join(missing)}" if missing else None


def _compare_sampler(first: Run, second: Run, spec: str, paired: bool, margin: float) -> dict[str, Any]:
    a, b = first.samplers[spec], second.samplers[spec]
    episodes, others = first.of(spec), second.of(spec)
    if episodes is None or others is None:
        return {**_unpaired(a, b, margin), **_ratios_of_means(a, b)}
    if not paired:
        return {**_unpaired(a, b, margin), **_ratios(episodes, others, paired)}
    pairs = pair(episodes, others)
    if not pairs:
        raise RunError(f"{first.path} and {second.path} share no episode of {spec}")
    episodes, others = map(list, zip(*pairs, strict=True))
    successes = [[episode.success for episode in side] for side in (others, episodes)]
    return {
        "episodes": [len(pairs), len(pairs)],
        "success_difference": {
            "mean": float(np.mean(successes[0]) - np.mean(successes[1])),
            "ci95": paired_difference(*successes),
        },
        "return_difference": reward_difference(pairs),
        "equivalence": equivalence_result(pairs, margin),
        **_ratios(episodes, others, paired),
    }


def _unpaired(a: dict[str, Any], b: dict[str, Any], margin: float) -> dict[str, Any]:
    """Compute the differences of two groups of episodes from their results.json."""
    first, second = ((round(result["success_rate"] * result["episodes"]), result["episodes"]) for result in (b, a))
    return {
        "episodes": [a["episodes"], b["episodes"]],
        "success_difference": {
            "mean": b["success_rate"] - a["success_rate"],
            "ci95": unpaired_difference(first, second),
        },
        "return_difference": _return_difference(a, b),
        "equivalence": _verdict(margin, tost_unpaired(first, second, margin), None, None),
    }


def _return_difference(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any] | None:
    """Compute the difference of two mean returns; None where one has none."""
    if a["return_mean"] is None or b["return_mean"] is None:
        return None
    interval = None
    if a["return_ci95"] is not None and b["return_ci95"] is not None:
        interval = welch_difference(_mean_return(b), _mean_return(a))
    return {"mean": b["return_mean"] - a["return_mean"], "ci95": interval}


def _mean_return(result: dict[str, Any]) -> tuple[float, Interval, int]:
    """Look up the mean return, its interval, and the number of episodes: those that failed may have no return."""
    low, high = result["return_ci95"]
    return result["return_mean"], (low, high), result["episodes"] - result.get("failed", 0)


def _ratios_of_means(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Compute the ratios of `_ratios` from results.json, without intervals."""
    if not a["plans"] or not b["plans"]:
        return dict.fromkeys(RATIOS)
    return {
        "rounds_ratio": {"mean": b["rounds_mean"] / a["rounds_mean"], "ci95": None},
        "latency_ratio": {"mean": b["latency_ms"]["mean"] / a["latency_ms"]["mean"], "ci95": None},
    }


def _ratios(a: Sequence[Episode], b: Sequence[Episode], paired: bool) -> dict[str, Any]:
    """Compute how much longer plans of b took than those of a, in rounds and seconds; None where one has no plan."""
    first, second = ([episode for episode in side if episode.plans] for side in (a, b))
    if paired:
        pairs = pair(first, second)
        first, second = [one for one, _ in pairs], [other for _, other in pairs]
    if not first or not second:
        return dict.fromkeys(RATIOS)

    def ratio(value: Callable[[PlanRecord], float]) -> dict[str, Any]:
        mean, interval = cluster_ratio(_sums(second, value), _sums(first, value), paired)
        return {"mean": mean, "ci95": interval}

    return {"rounds_ratio": ratio(lambda plan: plan.rounds), "latency_ratio": ratio(lambda plan: plan.seconds)}


def _sums(episodes: Sequence[Episode], value: Callable[[PlanRecord], float]) -> Floats:
    """Compute for each episode the sum over its plans, and their number, [N, 2]."""
    return np.array([(sum(map(value, episode.plans)), len(episode.plans)) for episode in episodes], dtype=float)
