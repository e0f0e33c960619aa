"""Shared by the studies: a checkpoint's planning states, a sampler's counts on them, and results saved as they come."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from scipy import stats

import asd_policy
from asd_policy._common.files import write_json
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.tokens import Chain
from asd_policy.checkpoints.token_folder import is_token_folder
from asd_policy.evaluation import closed_loop
from asd_policy.evaluation.reports import report
from asd_policy.evaluation.rollout.environments import make_env
from asd_policy.evaluation.states import States
from asd_policy.networks.denoiser import Denoiser
from asd_policy.policy.policy import Policy
from asd_policy.samplers import Sampler, make_sampler
from asd_policy.samplers.asd.experience import Experience
from asd_policy.samplers.warm_start import WarmStart

ROOT = Path(__file__).resolve().parents[2]
CHUNK = 64
"""Plans that are sampled together: memory depends on it, no count does."""
CALIBRATION_SEED = 1_000_000
"""Added to a study's seed for the plans that an experience is learned from."""
ROLL_OUT = "asd:window=32"
"""Sampler of the episodes that states are taken from: exact, so the states are those of DDPM."""
console = Console(stderr=True)


@dataclass(frozen=True)
class Subject:
    """A checkpoint, and where and with what experience it plans."""

    name: str
    env: str
    policy: Policy
    states: States
    calibration: States
    """States of other episodes, with other seeds."""
    experience: Experience
    """Experience from the plans of the `calibration` episodes, frozen."""


@dataclass(frozen=True)
class Counts:
    """The cost of each of N plans."""

    rounds: npt.NDArray[np.int64]
    nfe: npt.NDArray[np.int64]


def bundled() -> dict[str, tuple[Path, str]]:
    """List the folder and the environment of each bundled diffusion policy by its name."""
    entries = json.loads((ROOT / "checkpoints/manifest.json").read_text())
    found = {Path(entry["path"]).name: (ROOT / entry["path"], entry["env"]) for entry in entries}
    return {name: each for name, each in found.items() if not is_token_folder(each[0])}


def load(folder: Path, env_id: str, states: int, calibration: int, seed: int) -> Subject:
    """Load a checkpoint and roll it out until there are states enough.

    Args:
        folder: The checkpoint.
        env_id: Its environment.
        states: Number of states to measure on.
        calibration: Number of states to learn from; the experience has all the plans of their episodes.
        seed: Of the episodes.
    """
    env = make_env(env_id)
    planner = asd_policy.load_policy(folder, ROLL_OUT)
    learned_from = closed_loop.collect_states(planner, env, calibration, seed + CALIBRATION_SEED)
    planner.experience.freeze()
    measured = closed_loop.collect_states(planner, env, states, seed)
    env.close()
    return Subject(folder.name, env_id, planner, measured, learned_from, planner.experience)


def count(
    denoiser: Denoiser, chain: Chain, sampler: Sampler, states: States, experience: Experience | None, seed: int
) -> Counts:
    """Sample one plan per state. State i has the same tape whatever the sampler and the other states."""
    rounds: list[int] = []
    nfe: list[int] = []
    for start in range(0, len(states), CHUNK):
        rows = slice(start, start + CHUNK)
        last_plan = states.last_plan[rows]
        generators = [torch.Generator().manual_seed(seed + start + row) for row in range(len(last_plan))]
        past = WarmStart(last_plan, experience)
        result = sampler.sample(denoiser, chain, last_plan.shape, states.cond[rows], generators, warm_start=past)
        rounds += result.stats.rounds
        nfe += result.stats.nfe
    return Counts(np.asarray(rounds), np.asarray(nfe))


def learn(denoiser: Denoiser, chain: GaussianChain, spec: str, states: States, seed: int) -> Experience:
    """Learn from a sampler's plans, one per state, on tapes of their own; return the frozen experience."""
    experience = Experience()
    count(denoiser, chain, make_sampler(spec), states, experience, seed + CALIBRATION_SEED)
    experience.freeze()
    return experience


def summarize(counts: Counts, episodes: npt.NDArray[np.int64], steps: int) -> dict[str, Any]:
    """Add up the counts of N plans.

    Args:
        counts: Of the plans.
        episodes: The episode of each [N].
        steps: Length K of the chain.
    """
    mean = float(counts.rounds.mean())
    error, reach = clustered_error(counts.rounds, episodes)
    return {
        "n": len(episodes),
        "episodes": len(np.unique(episodes)),
        "steps": steps,
        "rounds_mean": mean,
        "rounds_standard_error": error,
        "rounds_p95": float(np.percentile(counts.rounds, 95)),
        "nfe_per_step": float(counts.nfe.mean() / steps),
        "speedup": steps / mean,
        "speedup_ci95": [steps / (mean + reach), steps / max(mean - reach, 1.0)],  # no plan takes less than a round
    }


def clustered_error(values: npt.NDArray[Any], clusters: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Compute the standard error of a mean over independent clusters, and the reach of its 95 % interval.

    The sandwich estimator with G/(G − 1) and Student's t for G clusters (Cameron and Miller 2015, section II);
    with one value in each it is the ordinary one.

    Raises:
        ValueError: There is one cluster only, and so no spread between any.
    """
    _, owner = np.unique(clusters, return_inverse=True)
    sums = np.bincount(owner, weights=values - values.mean())
    groups = len(sums)
    if groups < 2:
        raise ValueError(f"all {len(values)} states are of one episode, which has no standard error; take more states")
    error = float(np.sqrt(groups / (groups - 1) * np.square(sums).sum()) / len(values))
    return error, float(stats.t.ppf(0.975, groups - 1)) * error


class Results:
    """Records by key in a JSON file that is written after each, so that an interruption loses one."""

    def __init__(self, path: Path, options: dict[str, Any]) -> None:
        """Take up what the file, `<part>.json`, has, if it is of the same code, checkpoints and options."""
        self._path = path
        self._records: dict[str, Any] = {"fingerprint": fingerprint(path.stem, options), "records": {}}
        if path.exists():
            found = json.loads(path.read_text())
            if found["fingerprint"] == self._records["fingerprint"]:
                self._records = found

    def once(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Look up the record of a key; measure it now if it is not there."""
        records = self._records["records"]
        if key not in records:
            records[key] = measure()
            write_json(self._path, self._records)
        return records[key]


def fingerprint(part: str, options: dict[str, Any]) -> str:
    """Compute a digest of all that the results of a part depend on: package, script, weights, options."""
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    files = [*(ROOT / "asd_policy").rglob("*.py"), Path(__file__), ROOT / f"scripts/benchmarks/study_{part}.py"]
    files += (ROOT / "checkpoints").glob("*/model.safetensors")
    for path in sorted(files):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def provenance(command: str, seed: int) -> str:
    """Write the line that says on what a table was measured, and with which code."""
    commit = report.git_commit()
    code = f"asd_policy {asd_policy.__version__}" + (f" at {commit[:8]}" if commit else "")
    device = report.hardware(torch.device("cpu"))
    return f"{device}; torch {torch.__version__}, float32; seed {seed}; {code}; `{command}`."


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"
